//! Namespaces of pods: which variant is in use there, the lock, user namespaces.

use super::fixture::{
    Directory, Lab, VARIANTS, basic, dump, families, load_istio, namespace, ours, rich, rules,
};
use crate::backend::Applied;
use crate::iptables::{Iptables, Search, Variant};
use crate::netns::{Netns, within};
use crate::process::Command;
use nix::fcntl::{Flock, FlockArg};
use redirect::net::Family;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

#[test]
fn legacy_is_used_where_legacy_rules_are() {
    let lab = Lab::both();
    let plan = basic(true);
    let ns = namespace();
    lab.apply(&ns, &ours(&plan), None).unwrap();
    assert_eq!(rules(&ns, Variant::Legacy, Family::V4), "");
    assert_ne!(rules(&ns, Variant::Nft, Family::V4), "");

    let ns = namespace();
    load_istio(&ns, Variant::Legacy, &rich(true));
    assert_eq!(lab.apply(&ns, &ours(&plan), None).unwrap(), Applied::Replaced);
    assert_eq!(lab.observe(&ns, &ours(&plan)), "");
    for family in families(&plan) {
        assert_ne!(rules(&ns, Variant::Legacy, *family), "");
        assert_eq!(rules(&ns, Variant::Nft, *family), "");
    }
}

#[test]
fn rules_of_the_other_variant_do_not_stay() {
    let lab = Lab::both();
    let plan = basic(true);
    let ns = namespace();
    load_istio(&ns, Variant::Legacy, &plan);
    load_istio(&ns, Variant::Nft, &rich(true));
    assert_eq!(lab.apply(&ns, &ours(&plan), None).unwrap(), Applied::Replaced);
    assert_eq!(rules(&ns, Variant::Nft, Family::V4), "");
    assert_eq!(rules(&ns, Variant::Nft, Family::V6), "");
    assert_eq!(lab.observe(&ns, &ours(&plan)), "");
    assert_eq!(lab.apply(&ns, &ours(&plan), None).unwrap(), Applied::Unchanged);

    load_istio(&ns, Variant::Nft, &plan);
    lab.remove(&ns).unwrap();
    for variant in VARIANTS {
        assert_eq!(rules(&ns, variant, Family::V4), "");
        assert_eq!(rules(&ns, variant, Family::V6), "");
    }
}

#[test]
fn the_lock_is_the_namespaces_own() {
    let lab = Lab::new(Variant::Legacy);
    let want = ours(&basic(false));
    let (held, free) = (namespace(), namespace());
    let file = File::from(held.as_fd().try_clone_to_owned().unwrap());
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| lab.apply(&held, &want, None).map(|done| (done, Instant::now())));
        std::thread::sleep(Duration::from_millis(300));
        lab.apply(&free, &want, None).unwrap();
        let elsewhere = Instant::now();
        assert!(!waiting.is_finished(), "a writer that does not mind the lock");
        drop(lock);
        let (done, here) = waiting.join().unwrap().unwrap();
        assert_eq!(done, Applied::Created);
        assert!(elsewhere < here);
    });
}

/// Versions before 1.8.6 know one path for the lock.
#[test]
fn an_old_version_finds_the_namespaces_lock_in_the_usual_place() {
    let tools = Directory::new();
    let save = "if [ \"$1\" = --version ]; then echo 'iptables-save v1.8.4 (legacy)'; \
                else exec /usr/sbin/iptables-legacy-save; fi";
    tools.script("iptables-legacy-save", save);
    let log = tools.0.join("log");
    let note =
        format!("[ /run/xtables.lock -ef /proc/self/ns/net ] && echo own >> {}", log.display());
    for name in ["iptables-legacy", "iptables-legacy-restore"] {
        tools.script(name, &format!("{note}\nexec /usr/sbin/{name} \"$@\""));
    }
    // Makes the common lock where there is none yet.
    let command = Command::new("/usr/sbin/iptables-legacy").args(["-S", "-w"]);
    within(&namespace(), || command.run()).unwrap().unwrap();
    let search = Search { dirs: vec![tools.0.clone()], force: Some(Variant::Legacy) };
    let lab = Lab { backend: Iptables::detect_with(&search).unwrap(), tools };
    for ns in [&namespace(), &user_namespace().ns] {
        fs::write(&log, "").unwrap();
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(lab.apply(ns, &ours(&basic(false)), None).unwrap(), Applied::Created);
        assert_eq!(fs::read_to_string(&log).unwrap(), "own\n");
    }
}

#[test]
fn writers_at_once_do_not_double_anything() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let (first, second) = (rich(true), basic(true));
        for plans in [[&first, &first], [&first, &second]] {
            let ns = namespace();
            let applied: Vec<_> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..8)
                    .map(|at| {
                        let (lab, ns, plan) = (&lab, &ns, plans[at % 2]);
                        scope.spawn(move || lab.apply(ns, &ours(plan), None))
                    })
                    .collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            if plans[0] == plans[1] {
                for result in applied {
                    result.unwrap();
                }
            }
            // Whoever was last: it is one of the two, whole.
            let seen = plans.map(|plan| lab.observe(&ns, &ours(plan)));
            let last = lab.apply(&ns, &ours(plans[0]), None).unwrap();
            assert!(last == Applied::Replaced || seen[0].is_empty(), "{variant}: {seen:?}");
            assert_eq!(lab.observe(&ns, &ours(plans[0])), "");
            if plans[0] == plans[1] {
                assert_eq!(last, Applied::Unchanged, "{variant}: {seen:?}");
            }
            lab.remove(&ns).unwrap();
            assert_eq!(rules(&ns, variant, Family::V4), "", "{variant}");
        }
    }
}

/// A process in a user namespace of its own, with a network namespace in it.
struct Sandbox {
    child: Child,
    ns: Netns,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn user_namespace() -> Sandbox {
    #[expect(clippy::disallowed_methods, reason = "a process that stays, as a pod's does")]
    let mut child = std::process::Command::new("/usr/bin/unshare")
        .args(["--user", "--net", "/bin/sh", "-c", "echo ready; exec sleep 60"])
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut ready).unwrap();
    let proc = format!("/proc/{}", child.id());
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("{proc}/{map}"), "0 100000 65536").unwrap();
    }
    let ns = Netns::open(format!("{proc}/ns/net").as_ref()).unwrap();
    Sandbox { child, ns }
}

#[test]
fn a_pod_with_a_user_namespace_is_programmed() {
    for variant in VARIANTS {
        let lab = Lab::new(variant);
        let plan = rich(true);
        let sandbox = user_namespace();
        let ns = &sandbox.ns;
        assert_eq!(lab.apply(ns, &ours(&plan), None).unwrap(), Applied::Created, "{variant}");
        assert_eq!(lab.observe(ns, &ours(&plan)), "");
        assert!(dump(ns, variant, Family::V4).contains("--uid-owner 1337"));
        assert_eq!(lab.apply(ns, &ours(&plan), None).unwrap(), Applied::Unchanged);
        let applied = lab.apply(ns, &ours(&basic(true)), None).unwrap();
        assert_eq!(applied, Applied::Replaced);
        assert_eq!(lab.observe(ns, &ours(&basic(true))), "");
        lab.remove(ns).unwrap();
        for family in [Family::V4, Family::V6] {
            assert_eq!(rules(ns, variant, family), "", "{variant}");
        }
    }
}
