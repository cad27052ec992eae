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
