use super::*;

fn passed(uid: &str) -> Passed {
    Passed {
        version: wire::passed::VERSION,
        container: "c1".into(),
        namespace: "shop".into(),
        name: "cart".into(),
        uid: uid.into(),
        netns: "/proc/self/ns/net".into(),
        ..Passed::default()
    }
}

fn pod(uid: Option<&str>) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: "cart".into(),
        uid: uid.map(str::to_owned),
        ..Pod::default()
    }
}

#[test]
fn a_pod_is_known_by_its_uid_where_there_is_one() {
    assert!(is_that(&pod(Some("u")), &passed("u")));
    assert!(!is_that(&pod(Some("u")), &passed("v")));
    assert!(is_that(&pod(None), &passed("u")) && is_that(&pod(Some("u")), &passed("")));
    let mut mirror = pod(Some("u"));
    mirror.annotations.insert("kubernetes.io/config.hash".into(), "v".into());
    assert!(is_that(&mirror, &passed("v")));
    let other = Passed { name: "other".into(), ..passed("u") };
    assert!(!is_that(&pod(Some("u")), &other));
}

#[test]
fn files_are_whole_bounded_and_swept() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::new(dir.path());
    audit.write_down(&passed("u")).unwrap();
    let path = dir.path().join("passed/c1.json");
    assert_eq!(read(&path).unwrap().unwrap(), passed("u"));
    // Another interface of the same sandbox neither replaces nor removes it.
    let second = Passed { interface: "net1".into(), ..passed("other") };
    let first = Passed { interface: "eth0".into(), ..passed("u") };
    let id = SandboxId::new("c1").unwrap();
    audit.write_down(&first).unwrap();
    audit.write_down(&second).unwrap();
    audit.detach(&id, "net1");
    assert_eq!(read(&path).unwrap().unwrap(), first);
    audit.detach(&id, "eth0");
    assert!(!path.exists());
    audit.write_down(&passed("u")).unwrap();
    let other = path.with_file_name("c2.json");
    fs::copy(&path, &other).unwrap();
    assert!(read(&other).is_err(), "it is about another sandbox");
    fs::write(&other, "{").unwrap();
    assert!(read(&other).is_err());
    assert!(read(&path.with_file_name("c3.json")).unwrap().is_none());
    fs::write(path.with_file_name(".new-77"), "").unwrap();
    audit.sweep();
    assert_eq!(audit.names().len(), 2);
    audit.forget(&SandboxId::new("c1").unwrap());
    for number in audit.names().len()..MAX_FILES {
        fs::write(path.with_file_name(format!("x{number}.json")), "").unwrap();
    }
    assert!(audit.write_down(&passed("u")).is_err());
}
