use super::sandbox::MAX_ID;
use super::*;
use std::fs;
use wire::request::Attachment;

fn record(id: &str) -> Record {
    let pod = Pod {
        name: "p".into(),
        namespace: "n".into(),
        annotations: [
            ("traffic.sidecar.istio.io/includeOutboundPorts".to_owned(), "80".to_owned()),
            ("other".to_owned(), "secret".to_owned()),
        ]
        .into(),
        containers: vec![Container {
            name: "istio-proxy".into(),
            env: vec![("PASSWORD".into(), "secret".into()), ("INVALID_DROP".into(), "true".into())],
            run_as_user: Some(5),
            ..Container::default()
        }],
        ..Pod::default()
    };
    Record {
        version: Record::VERSION,
        sandbox: id.into(),
        interface: "eth0".into(),
        interfaces: BTreeSet::new(),
        pod: PodKey { namespace: "n".into(), name: "p".into(), uid: None },
        netns: Namespace { dev: 4, ino: 4026531840 },
        backend: "nftables".into(),
        rules: "0".into(),
        addresses: vec!["10.0.0.5".parse().unwrap()],
        facts: Facts::of(&pod),
        path: String::new(),
        ambient: None,
        leaving: false,
    }
}

#[test]
fn refuses_what_would_leave_the_directory() {
    let long = "a".repeat(MAX_ID + 1);
    for bad in ["", ".", "..", "../x", "a/b", "a b", "-a", "_a", ".new-1", "a\0", "ä", &long] {
        assert!(SandboxId::new(bad).is_err(), "{bad:?}");
    }
    for good in ["a", "0a-b_c.d", &"f".repeat(64)] {
        assert!(SandboxId::new(good).is_ok(), "{good}");
    }
}

#[test]
fn writes_reads_and_forgets() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let id = SandboxId::new("a").unwrap();
    assert!(records.read(&id).unwrap().is_none());
    assert!(!records.remove(&id).unwrap());

    records.write(&id, &record("a")).unwrap();
    let read = records.read(&id).unwrap().unwrap();
    assert_eq!(read, record("a"));
    assert_eq!(read.pod().proxy().unwrap().var("INVALID_DROP"), Some("true"));
    assert_eq!(read.pod().proxy().unwrap().run_as_user, Some(5));
    let path = dir.path().join("sandboxes/a.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("includeOutboundPorts") && !text.contains("secret"), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mode = fs::metadata(dir.path().join("sandboxes")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    for other in ["b", "c"] {
        records.write(&SandboxId::new(other).unwrap(), &record(other)).unwrap();
    }
    let live = [Attachment { container_id: "b".into(), if_name: "eth0".into() }];
    let (mut removed, errors) = records.retain(&live);
    removed.sort();
    assert_eq!(removed.iter().map(SandboxId::as_str).collect::<Vec<_>>(), ["a", "c"]);
    assert!(errors.is_empty());
    assert!(records.remove(&SandboxId::new("b").unwrap()).unwrap());
}

#[test]
fn an_ambient_pods_record_says_so_and_an_old_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let id = SandboxId::of_found("0a-1").unwrap();
    let facts = AmbientFacts { service_account: "s".into(), probe_ports: vec![80] };
    let own = Record { ambient: Some(facts), path: "/run/netns/a".into(), ..record("x") };
    records.write(&id, &own).unwrap();
    assert_eq!(records.read(&id).unwrap(), Some(own));
    let text = serde_json::to_string(&record("x")).unwrap();
    assert!(!text.contains("ambient") && !text.contains("path"), "as older agents wrote it");
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record("x"));
    // No runtime lists it.
    let (removed, errors) = records.retain(&[]);
    assert!(removed.is_empty() && errors.is_empty());
}

#[test]
fn a_sandbox_has_a_record_until_its_last_interface_goes() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let id = SandboxId::new("a").unwrap();
    // Of an agent that knew one only.
    let older = serde_json::to_string(&record("a")).unwrap().replace("\"interfaces\":[],", "");
    assert!(!older.contains("interfaces"));
    fs::write(dir.path().join("sandboxes/a.json"), older).unwrap();
    let older = records.read(&id).unwrap().unwrap();
    assert_eq!(older, record("a"));
    let mut more = Record { interface: "net1".into(), ..record("a") };
    more.join(&older);
    assert_eq!(more.attached(), BTreeSet::from(["eth0".to_owned(), "net1".to_owned()]));
    assert_eq!(more.interface, "eth0", "what an older agent or the plugin looks at");
    // Another sandbox of that name.
    let mut other = Record { netns: Namespace { dev: 4, ino: 5 }, ..record("a") };
    other.join(&more);
    assert_eq!(other.attached().len(), 1);

    records.write(&id, &more).unwrap();
    let detach = |name: &str| records.detach(&id, name).unwrap();
    assert_eq!(detach("net7"), Detached::Stays);
    assert_eq!(records.read(&id).unwrap().unwrap(), more);
    assert_eq!(detach("eth0"), Detached::Stays);
    let left = records.read(&id).unwrap().unwrap();
    assert_eq!((left.interface.as_str(), left.attached().len()), ("net1", 1));
    assert_eq!(detach("net1"), Detached::Removed);
    assert_eq!(detach("net1"), Detached::Unknown);

    records.write(&id, &more).unwrap();
    let live = |name: &str| [Attachment { container_id: "a".into(), if_name: name.into() }];
    assert!(records.retain(&live("net1")).0.is_empty());
    assert_eq!(records.read(&id).unwrap().unwrap().attached().len(), 1);
    assert_eq!(records.retain(&live("eth0")).0, [id]);
}

#[test]
fn says_what_is_wrong_with_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let id = SandboxId::new("a").unwrap();
    fs::write(dir.path().join("sandboxes/a.json"), "{").unwrap();
    assert!(matches!(records.read(&id), Err(RecordError::Content { .. })));
    let newer = Record { version: Record::VERSION + 1, ..record("a") };
    records.write(&id, &newer).unwrap();
    assert!(matches!(records.read(&id), Err(RecordError::Version { .. })));
}

#[test]
fn cleans_up_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    Records::open(dir.path()).unwrap();
    let left = dir.path().join("sandboxes/.new-1-0");
    fs::write(&left, "{").unwrap();
    Records::open(dir.path()).unwrap();
    assert!(!left.exists());
}
