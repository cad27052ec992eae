//! Plans that cannot be waited for in real time, or must hold for any directory.

use super::super::candidate::File;
use super::super::select::GONE;
use super::*;
use proptest::prelude::*;

const OWNED: &str = "02-istio-cni.conflist";

fn list(name: &str, plugin: &str) -> String {
    format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"{plugin}"}}]}}"#)
}

fn files(files: &[(&str, &str)]) -> Snapshot {
    let file = |text: &str| File {
        content: Ok(text.to_owned()),
        mode: 0o600,
        owner: (0, 0),
        link: false,
        folder: None,
    };
    files.iter().map(|(name, text)| ((*name).to_owned(), file(text))).collect()
}

fn want(mode: Mode) -> Want {
    let entry = PluginEntry::default();
    Want { mode, conf_name: None, file_mode: 0o600, entry }
}

fn owned_mode() -> Mode {
    Mode::Owned { file_name: None }
}

/// Performs a plan on a snapshot.
fn perform(files: &mut Snapshot, actions: &[Action]) {
    for action in actions {
        match action {
            Action::Write { name, text, permissions }
            | Action::Create { name, text, permissions }
            | Action::Replace { name, text, permissions, .. } => {
                let (content, link, folder) = (Ok(text.clone()), false, None);
                let owner = permissions.owner.unwrap_or_default();
                files.insert(
                    name.clone(),
                    File { content, mode: permissions.mode, owner, link, folder },
                );
            }
            Action::Chmod { name, mode } => files.get_mut(name).unwrap().mode = *mode,
            Action::Remove { name, .. } => drop(files.remove(name)),
        }
    }
}

#[test]
fn another_network_is_taken_when_the_primary_is_gone_for_good() {
    let (a, b) = (list("a", "x"), list("b", "y"));
    let mut now = files(&[("10-a.conflist", &a), ("20-b.conflist", &b)]);
    let want = want(owned_mode());
    let first = plan(&now, &want, &Memory::default()).unwrap();
    perform(&mut now, &first.actions);
    now.remove("10-a.conflist");
    let gone = |absent_for| Memory { known: first.known.clone(), absent_for };
    let soon = plan(&now, &want, &gone(GONE - Duration::from_millis(1))).unwrap();
    assert_eq!((soon.actions.len(), soon.known.unwrap().name.as_str()), (0, "10-a.conflist"));
    assert!(matches!(soon.state, State::Kept(_)));
    let late = plan(&now, &want, &gone(GONE)).unwrap();
    assert_eq!(late.known.as_ref().unwrap().name, "20-b.conflist");
    assert_eq!(late.state, State::Complete);
    perform(&mut now, &late.actions);
    assert!(now[OWNED].content.as_ref().unwrap().contains("\"y\""));
    // With nothing else there, the last good copy stays for ever.
    now.remove("20-b.conflist");
    let alone = Memory { known: late.known, absent_for: GONE * 100 };
    let kept = plan(&now, &want, &alone).unwrap();
    assert!(kept.actions.is_empty() && matches!(kept.state, State::Kept(_)));
}

/// A broken primary is never left for another network, however long it is broken.
#[test]
fn a_broken_primary_is_not_left() {
    let mut now = files(&[("10-a.conflist", &list("a", "x")), ("20-b.conflist", &list("b", "y"))]);
    for mode in [owned_mode(), Mode::InPlace] {
        let want = want(mode);
        let known = plan(&now, &want, &Memory::default()).unwrap().known;
        now.get_mut("10-a.conflist").unwrap().content = Ok("{".to_owned());
        let plan = plan(&now, &want, &Memory { known, absent_for: GONE }).unwrap();
        assert_eq!(plan.known.unwrap().name, "10-a.conflist");
        now.get_mut("10-a.conflist").unwrap().content = Ok(list("a", "x"));
    }
}

/// multus makes its file from the one that comes first, which is ours by then: ours
/// must not grow with it.
#[test]
fn a_primary_that_comes_to_hold_us_is_not_followed_further() {
    let multus = |inside: &str| {
        format!(
            r#"{{"cniVersion":"0.3.1","name":"multus","type":"multus","delegates":[{inside}]}}"#
        )
    };
    let calico = list("calico", "calico");
    let mut now = files(&[("00-multus.conf", &multus(&calico)), ("10-calico.conflist", &calico)]);
    let want = want(owned_mode());
    let first = plan(&now, &want, &Memory::default()).unwrap();
    perform(&mut now, &first.actions);
    let ours = now["00-istio-cni.conflist"].clone();
    let holds_ours = multus(ours.content.as_ref().unwrap());
    now.get_mut("00-multus.conf").unwrap().content = Ok(holds_ours);
    for known in [first.known, None] {
        let then = plan(&now, &want, &Memory { known, ..Memory::default() }).unwrap();
        assert!(then.actions.is_empty(), "{:?}", then.actions);
        assert!(matches!(then.state, State::Kept(_)));
    }
}

#[test]
fn a_marker_names_no_file_elsewhere() {
    for evil in ["../../root/x.conf", "/etc/x.conf", "x.sh", "10-a.conflist"] {
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"a"}},{{"type":"istio-cni","sluice":{{"converted":"{evil}"}}}}]}}"#
        );
        let now = files(&[("10-a.conflist", &text)]);
        let directory = Directory::new(&now, &Mode::InPlace);
        let actions = directory.undo("10-a.conflist", directory.primary("10-a.conflist").unwrap());
        let actions = actions.unwrap();
        assert!(
            matches!(&actions[..], [Action::Replace { name, .. }] if name == "10-a.conflist"),
            "{evil}: {actions:?}"
        );
    }
}

/// Texts that a directory may hold.
fn any_text() -> impl Strategy<Value = String> {
    let marker = prop_oneof![
        Just(String::new()),
        Just(r#","sluice":{}"#.to_owned()),
        Just(r#","sluice":{"primary":"10-a.conflist"}"#.to_owned()),
        Just(r#","sluice":{"converted":"10-a.conf"}"#.to_owned()),
        Just(r#","sluice":5"#.to_owned()),
    ];
    let plugin = prop_oneof![
        3 => "[ab]".prop_map(|kind| format!(r#"{{"type":"{kind}"}}"#)),
        1 => marker.prop_map(|marker| format!(r#"{{"type":"istio-cni"{marker}}}"#)),
    ];
    let plugins = prop::collection::vec(plugin.clone(), 0..4);
    prop_oneof![
        4 => ("[ab]", "1.0.0|1.1.0|0.2.0|9.9.9", plugins).prop_map(|(name, version, plugins)| {
            format!(r#"{{"cniVersion":"{version}","name":"{name}","plugins":[{}]}}"#, plugins.join(","))
        }),
        2 => plugin,
        1 => ".{0,10}",
    ]
}

fn any_directory() -> impl Strategy<Value = Snapshot> {
    let name = "(00|02|10|20)-(a|b|istio-cni)\\.(conf|conflist|json)";
    prop::collection::btree_map(name, any_text(), 0..5).prop_map(|texts| {
        let texts: Vec<(&str, &str)> =
            texts.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        files(&texts)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    /// From any directory it settles: a few plans, and then nothing is left to do.
    /// Then the chain that is loaded has us, once, at its end.
    #[test]
    fn any_directory_settles(
        start in any_directory(),
        mode in prop_oneof![Just(owned_mode()), Just(Mode::InPlace), Just(Mode::Standalone)],
    ) {
        let (mut now, want, mut memory) = (start, want(mode), Memory::default());
        for round in 0.. {
            prop_assert!(round < 6, "does not settle: {now:?}");
            let Ok(plan) = plan(&now, &want, &memory) else { return Ok(()) };
            memory.known = plan.known;
            if !plan.actions.is_empty() {
                perform(&mut now, &plan.actions);
                continue;
            }
            if matches!(plan.state, State::Complete | State::Kept(_)) && want.mode == owned_mode() {
                let first = Directory::new(&now, &want.mode);
                let (name, kind) = first.kinds.iter().next().unwrap();
                prop_assert!(matches!(kind, Kind::Owned(Some(_)) | Kind::Derived), "{name}: {kind:?}");
                let list = List::parse(now[*name].content.as_ref().unwrap());
                prop_assert!(list.is_err() || list.unwrap().carries());
            }
            break;
        }
    }

    /// Whatever was installed, a removal takes all of us out, and what was not ours
    /// is as it was.
    #[test]
    fn any_directory_can_be_had_back(
        start in any_directory(),
        modes in prop::collection::vec(
            prop_oneof![Just(owned_mode()), Just(Mode::InPlace), Just(Mode::Standalone)], 1..4),
    ) {
        let mut now = start.clone();
        for mode in modes {
            let (want, mut memory) = (want(mode), Memory::default());
            for _ in 0..6 {
                let Ok(plan) = plan(&now, &want, &memory) else { break };
                memory.known = plan.known;
                perform(&mut now, &plan.actions);
            }
        }
        for _ in 0..3 {
            let actions = super::super::removal::actions(&now, &owned_mode());
            let actions: Vec<_> = actions.into_iter().map(|action| action.unwrap()).collect();
            perform(&mut now, &actions);
        }
        let ours = |name: &str, file: &File| {
            let text = file.content.as_ref().unwrap();
            text.contains("istio-cni") || name.contains("istio-cni")
        };
        for (name, file) in start.iter().filter(|(name, file)| !ours(name, file)) {
            // A list that was Istio's may have taken the place of nothing else.
            prop_assert_eq!(now.get(name).map(|file| &file.content), Some(&file.content), "{}", name);
        }
        for (name, kind) in Directory::new(&now, &owned_mode()).kinds {
            let carries = matches!(&kind, Kind::Primary(primary) if primary.carries);
            prop_assert!(!carries && !matches!(kind, Kind::Owned(_) | Kind::Standalone), "{name}: {kind:?}");
        }
    }
}
