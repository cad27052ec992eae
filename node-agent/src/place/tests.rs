use super::cgroup::{belonging, started};
use super::*;

const UID: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";
const ID: &str = "4f3c2b1a4f3c2b1a4f3c2b1a4f3c2b1a4f3c2b1a4f3c2b1a4f3c2b1a4f3c2b1a";

#[test]
fn reads_cgroups_of_every_driver() {
    let systemd = UID.replace('-', "_");
    for (line, uid, container) in [
        (
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{ID}.scope"
            ),
            Some(UID),
            Some(ID),
        ),
        (format!("0::/kubepods/besteffort/pod{UID}/{ID}"), Some(UID), Some(ID)),
        (format!("0::/../../pod{UID}/{ID}"), Some(UID), Some(ID)),
        (
            format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-{ID}.scope"),
            Some(UID),
            Some(ID),
        ),
        (
            format!("0::/system.slice/kubelet-kubepods-pod{systemd}.slice:cri-containerd:{ID}"),
            None,
            None,
        ),
        (format!("0::/kubepods/pod{UID}"), Some(UID), None),
        (
            "0::/kubepods/pod0123456789abcdef0123456789abcdef/x".to_owned(),
            Some("0123456789abcdef0123456789abcdef"),
            None,
        ),
        ("0::/user.slice/podman-1.scope".to_owned(), None, None),
        ("0::/".to_owned(), None, None),
        (String::new(), None, None),
        (
            format!("1:cpu:/kubepods/pod{UID}/{ID}\n2:pids:/kubepods/pod{UID}/{ID}"),
            Some(UID),
            Some(ID),
        ),
        (
            format!(
                "1:cpu:/kubepods/pod{UID}/{ID}\n2:pids:/kubepods/pod{}/{ID}",
                UID.replace("0a", "0b")
            ),
            None,
            None,
        ),
    ] {
        let found = belonging(&line);
        assert_eq!((found.uid.as_deref(), found.container.as_deref()), (uid, container), "{line}");
    }
}

#[test]
fn reads_when_a_process_started() {
    let mut fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
    fields[0] = "S".to_owned();
    let stat = format!("7 (a) b (c)) {}", fields.join(" "));
    assert_eq!(started(&stat), Some(22));
    assert_eq!(started("7 (a"), None);
}

#[test]
fn nothing_is_found_without_an_address_or_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let ips = [IpAddr::from([10, 0, 0, 5])];
    let wanted = Wanted { uids: &[], addresses: &[], recorded: &[], hosts: &[] };
    assert!(matches!(find(dir.path(), &wanted), Err(PlaceError::NoAddress)));
    let wanted = Wanted { addresses: &ips, ..wanted };
    assert!(matches!(find(dir.path(), &wanted), Err(PlaceError::Nowhere { .. })));
}

/// A /proc with a process a namespace.
struct Processes(tempfile::TempDir);

impl Processes {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn add(&self, pid: u32, netns: &Netns, started: u64, cgroup: &str) {
        use std::os::fd::{AsFd, AsRawFd};
        let process = self.0.path().join(pid.to_string());
        fs::create_dir_all(process.join("ns")).unwrap();
        let file = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
        std::os::unix::fs::symlink(file, process.join("ns/net")).unwrap();
        let zeros = "0 ".repeat(18);
        fs::write(process.join("stat"), format!("{pid} (p) S {zeros}{started} 0\n")).unwrap();
        fs::write(process.join("cgroup"), cgroup).unwrap();
    }
}

#[test]
fn a_namespace_is_found_by_its_number() {
    let (own, other) = (Netns::create().unwrap(), Netns::create().unwrap());
    let proc = Processes::new();
    proc.add(5, &other, 1, "");
    assert!(by_id(proc.0.path(), own.id()).unwrap().is_none());
    proc.add(6, &own, 1, "");
    assert_eq!(by_id(proc.0.path(), own.id()).unwrap().unwrap().id(), own.id());
    assert!(by_id(Path::new("/nonexistent"), own.id()).is_err());
}

fn netns_with(address: &str) -> Netns {
    let netns = Netns::create().unwrap();
    let args = ["address", "add", address, "dev", "lo"];
    let run = || sys::process::Command::new("/sbin/ip").args(args).run().map(drop).unwrap();
    within(&netns, run).unwrap();
    netns
}

#[test]
fn the_namespace_is_the_pods_own() {
    let ips = [IpAddr::from([10, 0, 0, 5])];
    let uids = [UID.to_owned()];
    let (own, twin) = (netns_with("10.0.0.5/32"), netns_with("10.0.0.5/32"));
    let other = netns_with("10.0.0.6/32");
    let of = |uid: &str, id: &str| format!("0::/kubepods/pod{uid}/{id}\n");
    let (mine, theirs) = (of(UID, ID), of(&UID.replace("0a", "0b"), ID));
    let wanted = Wanted { uids: &uids, addresses: &ips, recorded: &[], hosts: &[] };

    let proc = Processes::new();
    // Of the pod, but without its address: hands off.
    proc.add(3, &other, 1, &mine);
    let found = find(proc.0.path(), &wanted);
    assert!(matches!(found, Err(PlaceError::Nowhere { .. })), "{found:?}");
    // The address, of another pod.
    proc.add(4, &twin, 1, &theirs);
    let found = find(proc.0.path(), &wanted);
    assert!(matches!(found, Err(PlaceError::Nowhere { .. })), "{found:?}");
    // The sandbox is the oldest process' container, whatever joined it later.
    proc.add(5, &own, 90, &of(UID, &ID.replace('4', "5")));
    proc.add(6, &own, 70, &mine);
    proc.add(7, &own, 80, "0::/\n");
    let place = find(proc.0.path(), &wanted).unwrap();
    assert_eq!((place.netns.id(), place.sandbox.as_deref()), (own.id(), Some(ID)));
    // Never the host's.
    let hosts = [own.id()];
    let found = find(proc.0.path(), &Wanted { hosts: &hosts, ..wanted });
    assert!(matches!(found, Err(PlaceError::Nowhere { .. })), "{found:?}");

    // Where cgroups say nothing, the address decides, then the record, or nobody.
    let proc = Processes::new();
    proc.add(5, &own, 1, "0::/\n");
    let wanted = Wanted { uids: &uids, addresses: &ips, recorded: &[], hosts: &[] };
    let place = find(proc.0.path(), &wanted).unwrap();
    assert_eq!((place.netns.id(), place.sandbox), (own.id(), None));
    proc.add(6, &twin, 2, "0::/\n");
    let found = find(proc.0.path(), &wanted);
    assert!(matches!(found, Err(PlaceError::Ambiguous { .. })), "{found:?}");
    let recorded = [twin.id()];
    let place = find(proc.0.path(), &Wanted { recorded: &recorded, ..wanted }).unwrap();
    assert_eq!(place.netns.id(), twin.id());
    // Of two that records name, the one with a process of the pod.
    let proc = Processes::new();
    proc.add(5, &own, 1, &mine);
    proc.add(6, &twin, 2, "0::/\n");
    let both = [twin.id(), own.id()];
    let place = find(proc.0.path(), &Wanted { recorded: &both, ..wanted }).unwrap();
    assert_eq!(place.netns.id(), own.id());
}

#[test]
fn other_pods_namespaces_are_left_closed() {
    let ips = [IpAddr::from([10, 0, 0, 5])];
    let uids = [UID.to_owned()];
    let (own, other) = (netns_with("10.0.0.5/32"), Netns::create().unwrap());
    let proc = Processes::new();
    proc.add(5, &own, 1, &format!("0::/kubepods/pod{UID}/{ID}\n"));
    proc.add(6, &other, 2, &format!("0::/kubepods/pod{}/{ID}\n", UID.replace("0a", "0b")));
    let survey = Survey::take(proc.0.path(), &[]).unwrap();
    // What is not read by now cannot be read any more.
    fs::remove_dir_all(proc.0.path().join("6")).unwrap();
    drop(other);
    let wanted = Wanted { uids: &uids, addresses: &ips, recorded: &[own.id()], hosts: &[] };
    assert_eq!(survey.find(&wanted).unwrap().netns.id(), own.id());
    let wanted = Wanted { recorded: &[], ..wanted };
    assert_eq!(survey.find(&wanted).unwrap().netns.id(), own.id());
}

#[test]
fn where_nobody_tells_addresses_the_processes_decide() {
    let (own, twin, bare) =
        (netns_with("10.0.0.5/32"), netns_with("10.0.0.6/32"), Netns::create().unwrap());
    let uids = [UID.to_owned()];
    let mine = format!("0::/kubepods/pod{UID}/{ID}\n");
    let proc = Processes::new();
    let found = |hosts: &[NetnsId]| Survey::take(proc.0.path(), hosts).unwrap().find_owned(&uids);
    // Whose it is nobody knows, or another's.
    proc.add(1, &own, 1, "0::/\n");
    proc.add(2, &twin, 2, &mine.replace("0a", "0b"));
    assert!(matches!(found(&[]), Err(PlaceError::Nowhere { .. })));
    // Not yet, or no more, linked to anybody.
    proc.add(3, &bare, 3, &mine);
    assert!(matches!(found(&[]), Err(PlaceError::Nowhere { .. })));
    proc.add(4, &own, 4, &mine);
    assert_eq!(found(&[]).unwrap().netns.id(), own.id());
    assert!(matches!(found(&[own.id()]), Err(PlaceError::Nowhere { .. })));
    proc.add(5, &twin, 5, &mine);
    assert!(matches!(found(&[]), Err(PlaceError::Scattered { .. })));
}
