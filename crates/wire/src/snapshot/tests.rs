use super::*;

fn snapshot() -> Snapshot {
    let known = |name: &str, mesh| KnownPod { namespace: "shop".into(), name: name.into(), mesh };
    Snapshot {
        version: VERSION,
        policy: "p".into(),
        source: Source::Kubernetes,
        agent_namespace: "istio-system".into(),
        excluded: ["kube-system".to_owned()].into(),
        ambient: Ambient::default(),
        pods: [("u-in".into(), known("in", true)), ("u-out".into(), known("out", false))].into(),
    }
}

fn annotations(injected: bool) -> BTreeMap<String, String> {
    if injected { [(INJECTED.to_owned(), "{}".to_owned())].into() } else { BTreeMap::new() }
}

fn judge(snapshot: &Snapshot, name: &str, uid: &str, said: Option<bool>) -> Verdict {
    let annotations = said.map(annotations);
    snapshot.judge(Subject { namespace: "shop", name, uid, annotations: annotations.as_ref() })
}

#[test]
fn a_sidecar_is_known_by_its_annotations_alone() {
    let s = snapshot();
    assert_eq!(judge(&s, "a", "", Some(false)), Verdict::Outside(Certainty::NotInjected));
    assert_eq!(judge(&s, "a", "", Some(true)), Verdict::Wait(Doubt::Injected));
    assert_eq!(judge(&s, "a", "u", None), Verdict::Wait(Doubt::NoAnnotations));
}

#[test]
fn what_the_agent_saw_counts_more_and_only_for_that_very_pod() {
    let s = snapshot();
    for said in [None, Some(true), Some(false)] {
        assert_eq!(judge(&s, "out", "u-out", said), Verdict::Outside(Certainty::Known));
        assert_eq!(judge(&s, "in", "u-in", said), Verdict::Wait(Doubt::Known));
    }
    assert_eq!(judge(&s, "out", "u-other", None), Verdict::Wait(Doubt::NoAnnotations));
    assert_eq!(judge(&s, "out", "", None), Verdict::Wait(Doubt::NoAnnotations));
    assert_eq!(judge(&s, "another", "u-out", None), Verdict::Wait(Doubt::NoAnnotations));
    let mut nameless = s;
    nameless.pods.insert(
        String::new(),
        KnownPod { namespace: "shop".into(), name: "a".into(), mesh: false },
    );
    assert_eq!(judge(&nameless, "a", "", None), Verdict::Wait(Doubt::NoAnnotations));
}

#[test]
fn where_manifests_count_the_runtimes_word_makes_nobody_pass() {
    let mut s = Snapshot { source: Source::Manifests, ..snapshot() };
    let nameless = KnownPod { namespace: "shop".into(), name: "nameless".into(), mesh: false };
    s.pods.insert(full_name("shop", "nameless"), nameless);
    for said in [None, Some(false)] {
        assert_eq!(judge(&s, "a", "u", said), Verdict::Wait(Doubt::NoManifest));
        assert_eq!(judge(&s, "a", "", said), Verdict::Wait(Doubt::NoManifest));
        for (name, uid) in [("out", "u-out"), ("out", ""), ("nameless", ""), ("nameless", "u")] {
            assert_eq!(judge(&s, name, uid, said), Verdict::Outside(Certainty::Known), "{name}");
        }
        assert_eq!(judge(&s, "in", "", said), Verdict::Wait(Doubt::Known));
        assert_eq!(judge(&s, "out", "u-other", said), Verdict::Wait(Doubt::NoManifest));
    }
    // Its word may keep one from passing.
    assert_eq!(judge(&s, "out", "u-out", Some(true)), Verdict::Wait(Doubt::Injected));
    // No uid has a slash, so a key that is a name is nobody's in a cluster.
    let s = Snapshot { source: Source::Kubernetes, ..s };
    assert_eq!(judge(&s, "nameless", "", None), Verdict::Wait(Doubt::NoAnnotations));
}

#[test]
fn a_snapshot_of_an_older_agent_means_kubernetes() {
    let text = serde_json::to_string(&snapshot()).unwrap();
    let older = text.replace("\"source\":\"kubernetes\",", "");
    assert_ne!(older, text);
    assert_eq!(Snapshot::parse(older.as_bytes()).unwrap(), snapshot());
    // Nobody passes by what is not understood.
    let newer = text.replace("\"kubernetes\"", "\"oracle\"");
    assert_eq!(Snapshot::parse(newer.as_bytes()).unwrap().source, Source::Manifests);
}

#[test]
fn what_could_be_ambient_waits() {
    let mut s = snapshot();
    s.ambient = Ambient { enabled: true, by_pod_label: true, outside: ["shop".to_owned()].into() };
    assert_eq!(judge(&s, "a", "", Some(false)), Verdict::Wait(Doubt::PodLabel));
    assert_eq!(judge(&s, "a", "", Some(true)), Verdict::Wait(Doubt::Injected));
    assert_eq!(judge(&s, "out", "u-out", None), Verdict::Outside(Certainty::Known));
    s.ambient.by_pod_label = false;
    assert_eq!(judge(&s, "a", "", Some(false)), Verdict::Outside(Certainty::NotInjected));
    assert_eq!(judge(&s, "a", "", None), Verdict::Wait(Doubt::NoAnnotations));
    s.ambient.outside.clear();
    assert_eq!(judge(&s, "a", "", Some(false)), Verdict::Wait(Doubt::NamespaceLabel));
}

#[test]
fn the_agent_and_excluded_namespaces_never_wait() {
    let s = snapshot();
    let judge = |namespace, name| s.judge(Subject { namespace, name, uid: "", annotations: None });
    assert_eq!(judge("kube-system", "a"), Verdict::Outside(Certainty::Excluded));
    assert_eq!(judge("istio-system", "istio-cni-node-x"), Verdict::Outside(Certainty::OwnAgent));
    assert_eq!(judge("shop", "istio-cni-node-x"), Verdict::Wait(Doubt::NoAnnotations));
    let nobody = Snapshot { agent_namespace: String::new(), ..snapshot() };
    let pod = Subject { namespace: "", name: "istio-cni-node-x", uid: "", annotations: None };
    assert_eq!(nobody.judge(pod), Verdict::Wait(Doubt::NoAnnotations));
}

#[test]
fn only_a_whole_file_of_this_format_counts() {
    let json = serde_json::to_vec(&snapshot()).unwrap();
    assert_eq!(Snapshot::parse(&json).unwrap(), snapshot());
    for end in 0..json.len() {
        assert!(Snapshot::parse(&json[..end]).is_err(), "cut at {end}");
    }
    let text = String::from_utf8(json).unwrap();
    for key in ["policy", "agent_namespace", "excluded", "ambient", "pods", "enabled", "outside"] {
        let lacks = text.replacen(&format!("\"{key}\""), "\"x\"", 1);
        assert!(
            matches!(Snapshot::parse(lacks.as_bytes()), Err(SnapshotError::Content(_))),
            "{key}"
        );
    }
    for version in ["0", "2", "4294967295"] {
        let other = text.replacen("\"version\":1", &format!("\"version\":{version}"), 1);
        assert!(matches!(Snapshot::parse(other.as_bytes()), Err(SnapshotError::Version(_))));
        let odd = format!("{{\"version\":{version},\"pods\":7}}");
        assert!(matches!(Snapshot::parse(odd.as_bytes()), Err(SnapshotError::Version(_))));
    }
    let added = text.replacen('{', "{\"new\":[1],", 1);
    assert_eq!(Snapshot::parse(added.as_bytes()).unwrap(), snapshot());
    let large = format!("{text}{}", " ".repeat(MAX_BYTES));
    assert!(matches!(Snapshot::parse(large.as_bytes()), Err(SnapshotError::TooLarge)));
}
