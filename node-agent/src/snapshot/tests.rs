use super::*;
use redirect::pod::{Container, Pod};
use redirect::selector::{EnablementSelector, LabelSelector};
use wire::snapshot::{Certainty, Doubt, INJECTED, Subject, Verdict};

fn pod(name: &str, injected: bool) -> Pod {
    let annotations = injected.then(|| (INJECTED.to_owned(), "{}".to_owned()));
    let proxy = Container { name: "istio-proxy".into(), ..Container::default() };
    Pod {
        name: name.into(),
        namespace: "shop".into(),
        uid: Some(format!("uid-{name}")),
        annotations: annotations.into_iter().collect(),
        containers: if injected { vec![proxy] } else { Vec::new() },
        ..Pod::default()
    }
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> Namespace {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Namespace { name: name.into(), labels: labels.collect() }
}

fn view(pods: Vec<Pod>, namespaces: Vec<Namespace>, complete: bool) -> View {
    View { pods, namespaces, complete, ..View::default() }
}

fn by_namespace_label() -> Config {
    let selector = LabelSelector {
        match_labels: [("mode".to_owned(), "ambient".to_owned())].into(),
        ..LabelSelector::default()
    };
    let selectors =
        vec![EnablementSelector { namespace_selector: selector, ..EnablementSelector::default() }];
    Config { ambient_enabled: true, enablement_selectors: selectors, ..Config::default() }
}

fn verdict(snapshot: &Snapshot, pod: &Pod) -> Verdict {
    let said: BTreeMap<String, String> = pod.annotations.clone();
    snapshot.judge(Subject {
        namespace: &pod.namespace,
        name: &pod.name,
        uid: pod.uid.as_deref().unwrap_or_default(),
        annotations: Some(&said),
    })
}

#[test]
fn says_what_was_decided() {
    let gateway = Pod { containers: Vec::new(), ..pod("gateway", true) };
    let host = Pod { host_network: true, ..pod("host", false) };
    let all = view(vec![pod("in", true), pod("out", false), gateway.clone(), host], vec![], true);
    let snapshot = build(&Config::default(), &all);
    let mesh: Vec<_> = snapshot.pods.iter().map(|(uid, pod)| (uid.as_str(), pod.mesh)).collect();
    assert_eq!(mesh, [("uid-gateway", false), ("uid-in", true), ("uid-out", false)]);
    assert_eq!(verdict(&snapshot, &pod("in", true)), Verdict::Wait(Doubt::Known));
    // More than annotations can tell.
    assert_eq!(verdict(&snapshot, &gateway), Verdict::Outside(Certainty::Known));
}

#[test]
fn a_static_pod_has_two_uids_and_none_of_anothers() {
    let mut mirror = pod("static", false);
    mirror.annotations.insert("kubernetes.io/config.hash".into(), "hash".into());
    let mut liar = pod("liar", false);
    liar.annotations.insert("kubernetes.io/config.hash".into(), "uid-in".into());
    let all = view(vec![liar, mirror, pod("in", true)], vec![], true);
    let snapshot = build(&Config::default(), &all);
    assert_eq!(snapshot.pods["hash"].name, "static");
    assert_eq!(snapshot.pods["uid-in"].name, "in");
}

#[test]
fn pods_of_manifests_are_known_by_name() {
    let nameless = Pod { uid: None, ..pod("nameless", false) };
    let all = || view(vec![nameless.clone(), pod("out", false)], vec![], true);
    let manifests = View { source: Source::Manifests, ..all() };
    let snapshot = build(&Config::default(), &manifests);
    assert_eq!(snapshot.source, Source::Manifests);
    assert_eq!(snapshot.pods.keys().collect::<Vec<_>>(), ["shop/nameless", "uid-out"]);
    assert_eq!(verdict(&snapshot, &nameless), Verdict::Outside(Certainty::Known));
    assert_eq!(verdict(&snapshot, &pod("unknown", false)), Verdict::Wait(Doubt::NoManifest));
    // What one source said is not for an agent with another.
    let dir = tempfile::tempdir().unwrap();
    Keeper::new(dir.path()).keep(&Config::default(), &manifests);
    let keeper = Keeper::new(dir.path());
    keeper.keep(&Config::default(), &view(vec![], vec![], false));
    assert!(keeper.current().unwrap().pods.is_empty());
}

#[test]
fn who_can_be_ambient() {
    let all = || {
        let namespaces = vec![namespace("shop", &[]), namespace("mesh", &[("mode", "ambient")])];
        view(Vec::new(), namespaces, true)
    };
    let off = build(&Config::default(), &all()).ambient;
    assert_eq!(off, Ambient::default());
    let istios = Config { ambient_enabled: true, ..Config::default() };
    let istios = build(&istios, &all()).ambient;
    assert!(istios.by_pod_label && istios.outside.is_empty(), "{istios:?}");
    let narrow = build(&by_namespace_label(), &all()).ambient;
    assert!(!narrow.by_pod_label);
    assert_eq!(narrow.outside, BTreeSet::from(["shop".to_owned()]));
    // Neither is a pod decided on whose namespace is not known.
    let unknown = build(&by_namespace_label(), &view(vec![pod("a", false)], vec![], true));
    assert!(unknown.pods.is_empty());
}

#[test]
fn is_written_when_it_changes_and_survives_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let keeper = Keeper::new(dir.path());
    assert!(keeper.current().is_none());
    let config = Config::default();
    let all = view(vec![pod("out", false)], Vec::new(), true);
    keeper.keep(&config, &all);
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let before = inode(&path);
    keeper.keep(&config, &all);
    assert_eq!(inode(&path), before, "nothing changed, nothing written");
    fs::remove_file(&path).unwrap();
    keeper.keep(&config, &all);
    assert!(path.exists(), "somebody emptied the directory");

    // The next agent has not seen anything yet.
    let keeper = Keeper::new(dir.path());
    keeper.keep(&config, &view(vec![pod("new", false)], Vec::new(), false));
    assert_eq!(keeper.current().unwrap().pods.len(), 2);
    keeper.keep(&config, &view(vec![pod("new", false)], Vec::new(), true));
    assert_eq!(keeper.current().unwrap().pods.len(), 1);
    // What another policy decided says nothing.
    let other = Config { ambient_enabled: true, ..Config::default() };
    keeper.keep(&other, &view(Vec::new(), Vec::new(), false));
    assert!(keeper.current().unwrap().pods.is_empty());
    assert_eq!(read(&path).as_ref(), keeper.current().as_deref());
}

#[test]
fn one_that_cannot_be_written_takes_the_old_one_away() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = Keeper::new(dir.path());
    keeper.keep(&Config::default(), &View::default());
    // Stands in the way of the temporary file.
    fs::create_dir(dir.path().join(format!(".{FILE_NAME}.new"))).unwrap();
    let other = Config { ambient_enabled: true, ..Config::default() };
    keeper.keep(&other, &View::default());
    assert!(keeper.current().is_none());
    assert!(!dir.path().join(FILE_NAME).exists());
}

#[test]
fn is_bounded() {
    let names = |n: usize| (0..n).map(|i| namespace(&format!("{i:060}"), &[])).collect();
    let mut large = build(&by_namespace_label(), &view(Vec::new(), names(30_000), true));
    assert!(bounded(&mut large).len() <= MAX_BYTES);
    assert!(large.ambient.outside.is_empty() && large.ambient.enabled);
    let mut most = build(&by_namespace_label(), &view(Vec::new(), names(5_000), true));
    bounded(&mut most);
    assert_eq!(most.ambient.outside.len(), 5_000);
}

#[test]
fn takes_a_cleanups_mark_away() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = Keeper::new(dir.path());
    keeper.stay().unwrap();
    let marker = dir.path().join(REMOVED_MARKER);
    fs::write(&marker, "").unwrap();
    keeper.stay().unwrap();
    assert!(!marker.exists());
}
