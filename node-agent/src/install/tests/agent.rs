//! What Istio's own installer is tested for (reference 9.2), and what it gets wrong.

use super::node::{Node, Running, until};
use crate::install::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const OWNED: &str = "02-istio-cni.conflist";
const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {\"type\": \"main\", \"mtu\": 1.50e3},\n    {\"type\": \"portmap\"}\n  ]\n}\n";

fn input(name: &str) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/conformance/conflist")
        .join(format!("input-{name}"));
    let required = std::env::vars_os().any(|(k, v)| k == "REQUIRE_CONFORMANCE" && v == "1");
    match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if required => panic!("{}: {error}", path.display()),
        Err(_) => None,
    }
}

/// One of the whole-agent cases: files that are there, the configured name, files
/// that come later, and which of them is chained to and under which name.
struct Case {
    before: &'static [(&'static str, &'static str)],
    conf_name: Option<&'static str>,
    later: &'static [(&'static str, &'static str)],
    primary: &'static str,
    list: &'static str,
}

const CALICO: (&str, &str) = ("10-calico.conflist", "calico.conflist");
const MINIKUBE: (&str, &str) = ("20-minikube.conf", "minikube_cni.conf");

#[rustfmt::skip]
const CASES: [Case; 14] = [
    Case { before: &[CALICO], conf_name: None, later: &[], primary: CALICO.0, list: CALICO.0 },
    Case { before: &[MINIKUBE], conf_name: None, later: &[], primary: MINIKUBE.0, list: "20-minikube.conflist" },
    Case { before: &[CALICO, MINIKUBE], conf_name: None, later: &[], primary: CALICO.0, list: CALICO.0 },
    Case { before: &[MINIKUBE, ("30-calico.conflist", "calico.conflist")], conf_name: None, later: &[], primary: MINIKUBE.0, list: "20-minikube.conflist" },
    Case { before: &[("01-non.conf", "non_json.conf"), CALICO], conf_name: None, later: &[], primary: CALICO.0, list: CALICO.0 },
    Case { before: &[("01-bad.conf", "bad_minikube_cni.conf"), CALICO], conf_name: None, later: &[], primary: CALICO.0, list: CALICO.0 },
    Case { before: &[("01-a.conflist", "noname_calico.conflist"), ("02-b.conflist", "noplugins_calico.conflist"), MINIKUBE], conf_name: None, later: &[], primary: MINIKUBE.0, list: "20-minikube.conflist" },
    Case { before: &[("10-v.conflist", "nover_calico.conflist")], conf_name: None, later: &[], primary: "10-v.conflist", list: "10-v.conflist" },
    Case { before: &[CALICO, MINIKUBE], conf_name: Some("20-minikube.conflist"), later: &[], primary: MINIKUBE.0, list: "20-minikube.conflist" },
    Case { before: &[CALICO, MINIKUBE], conf_name: Some("10-calico.conf"), later: &[], primary: CALICO.0, list: CALICO.0 },
    Case { before: &[CALICO], conf_name: Some("20-minikube.conf"), later: &[MINIKUBE], primary: MINIKUBE.0, list: "20-minikube.conflist" },
    Case { before: &[MINIKUBE], conf_name: Some("30-c.conflist"), later: &[("30-c.conflist", "calico.conflist")], primary: "30-c.conflist", list: "30-c.conflist" },
    Case { before: &[], conf_name: None, later: &[CALICO], primary: CALICO.0, list: CALICO.0 },
    Case { before: &[("01-non.conf", "non_json.conf")], conf_name: None, later: &[MINIKUBE], primary: MINIKUBE.0, list: "20-minikube.conflist" },
];

fn install(case: &Case, mode: Mode) -> Option<(Node, Vec<(&'static str, String)>)> {
    let mut node = Node::new(mode);
    node.settings.conf_name = case.conf_name.map(str::to_owned);
    let mut originals = Vec::new();
    for (name, source) in case.before {
        originals.push((*name, input(source)?));
        node.write(name, &originals.last()?.1);
    }
    let running = node.start();
    if !case.later.is_empty() {
        let reason = running.wait_unready();
        assert!(reason.contains("network") || reason.contains("not there"), "{reason}");
        for (name, text) in &originals {
            assert_eq!(node.read(name), *text, "others are left alone");
        }
    }
    for (name, source) in case.later {
        originals.push((*name, input(source)?));
        node.write(name, &originals.last()?.1);
    }
    running.wait_ready();
    drop(running);
    Some((node, originals))
}

fn types(text: &str) -> Vec<String> {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let one = vec![value.clone()];
    let plugins = value["plugins"].as_array().unwrap_or(&one);
    plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_primary_is_found_and_chained_in_place() {
    for (n, case) in CASES.iter().enumerate() {
        let Some((node, originals)) = install(case, Mode::InPlace) else { return };
        let primary = &originals.iter().find(|(name, _)| *name == case.primary).unwrap().1;
        let mut want = types(primary);
        want.push("istio-cni".into());
        assert_eq!(types(&node.read(case.list)), want, "case {n}");
        assert_eq!(node.names().len(), originals.len(), "case {n}: {:?}", node.names());
        for _ in 0..2 {
            let removal = remove(&node.settings);
            assert!(removal.errors.is_empty(), "case {n}: {:?}", removal.errors);
            for (name, text) in &originals {
                assert_eq!(node.read(name), *text, "case {n}: {name}");
            }
            assert_eq!(node.names().len(), originals.len(), "case {n}: {:?}", node.names());
        }
    }
}

#[test]
fn the_primary_is_found_and_copied_into_our_own_file() {
    for (n, case) in CASES.iter().enumerate() {
        let Some((node, originals)) = install(case, Mode::of(None, None, None, None)) else {
            return;
        };
        let primary = &originals.iter().find(|(name, _)| *name == case.primary).unwrap().1;
        let mut want = types(primary);
        want.push("istio-cni".into());
        assert_eq!(node.chain(), want, "case {n}");
        for (name, text) in &originals {
            assert_eq!(node.read(name), *text, "case {n}: {name}");
        }
        assert!(remove(&node.settings).errors.is_empty());
        assert_eq!(node.names().len(), originals.len(), "case {n}: {:?}", node.names());
    }
}

#[test]
fn a_configuration_that_stands_alone() {
    for (conf_name, file) in [
        (None, "YYY-istio-cni.conf"),
        (Some("my-istio-cni.conf"), "my-istio-cni.conf"),
        (Some("no-extension"), "no-extension"),
    ] {
        let mut node = Node::new(Mode::Standalone);
        node.settings.conf_name = conf_name.map(str::to_owned);
        node.write("10-net.conflist", LIST);
        node.install();
        let stamp = node.stamp(file);
        node.install();
        assert_eq!(node.stamp(file), stamp, "written once");
        assert_eq!(types(&node.read(file)), ["istio-cni"]);
        assert_eq!(node.read("10-net.conflist"), LIST);
        remove(&node.settings);
        assert_eq!(node.names(), ["10-net.conflist"]);
    }
}

/// Waits until the chain is this, and how long that took.
fn chain_becomes(node: &Node, want: &[&str]) -> Duration {
    let start = Instant::now();
    until(&format!("{want:?}"), || (node.chain() == want).then_some(()));
    start.elapsed()
}

fn settled(node: &Node) -> Running {
    let running = node.start();
    running.wait_ready();
    running
}

#[test]
fn drift_of_our_entry_and_of_the_primary_is_followed() {
    for mode in [Mode::of(None, None, None, None), Mode::InPlace] {
        let node = Node::new(mode.clone());
        node.write("10-net.conflist", LIST);
        let running = settled(&node);
        let file = if mode == Mode::InPlace { "10-net.conflist" } else { OWNED };
        let right = node.read(file);
        // Somebody edits our entry, the file's mode, or removes our file.
        node.write(file, &right.replace("\"info\"", "\"debug\""));
        until("content again", || (node.read(file) == right).then_some(()));
        if mode != Mode::InPlace {
            for spoiled in ["", "{", "\u{0}", LIST] {
                node.write(file, spoiled);
                until("content again", || (node.read(file) == right).then_some(()));
            }
            assert_eq!(node.names(), [file, "10-net.conflist"]);
            fs::remove_file(node.net(file)).unwrap();
            until("file again", || node.net(file).exists().then_some(()));
            fs::set_permissions(node.net(file), fs::Permissions::from_mode(0o666)).unwrap();
            until("mode again", || (mode_of(&node, file) == 0o600).then_some(()));
        }
        // The primary's parameters change, then a plugin goes.
        node.write("10-net.conflist", &LIST.replace("1.50e3", "9000.0"));
        until("new mtu", || {
            let now = fs::read_to_string(node.net(file)).unwrap_or_default();
            (now.contains("9000.0") && now.contains("istio-cni")).then_some(())
        });
        node.write("10-net.conflist", &LIST.replace(",\n    {\"type\": \"portmap\"}", ""));
        chain_becomes(&node, &["main", "istio-cni"]);
        until("ready", || running.ready.borrow().ready.then_some(()));
        drop(running);
    }
}

fn mode_of(node: &Node, file: &str) -> u32 {
    fs::metadata(node.net(file)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_file_that_comes_earlier_is_followed_and_gone_before() {
    let node = Node::owned();
    node.write("10-net.conflist", LIST);
    let _running = settled(&node);
    node.write(
        "05-cilium.conflist",
        &LIST.replace("\"main\"", "\"cilium-cni\"").replace("net\"", "c\""),
    );
    chain_becomes(&node, &["cilium-cni", "portmap", "istio-cni"]);
    node.write("00-first.conf", r#"{"cniVersion":"0.4.0","name":"first","type":"first"}"#);
    chain_becomes(&node, &["first", "istio-cni"]);
    until("one file of ours", || (node.names().len() == 4).then_some(()));
    assert_eq!(node.names()[0], "0-istio-cni.conflist");
    // Even what is no network at all: a runtime would fail on it.
    node.write("-broken.conf", "{");
    until("before it", || (node.names()[0] == "!istio-cni.conflist").then_some(()));
    assert_eq!(node.chain(), ["first", "istio-cni"]);
}

#[test]
fn a_name_of_the_users_that_does_not_come_first_is_told() {
    let name = "50-mine.conflist".to_owned();
    let node = Node::new(Mode::Owned { file_name: Some(name.clone()) });
    node.write("10-net.conflist", LIST);
    let running = node.start();
    let reason = running.wait_unready();
    assert!(reason.contains("10-net.conflist") && reason.contains("FILENAME"), "{reason}");
    assert!(node.net(&name).exists());
    fs::rename(node.net("10-net.conflist"), node.net("60-net.conflist")).unwrap();
    running.wait_ready();
    assert_eq!(node.chain(), ["main", "portmap", "istio-cni"]);
}

#[test]
fn a_primary_that_is_broken_or_gone_is_waited_for() {
    let mut node = Node::owned();
    let other = LIST.replace("\"main\"", "\"other\"").replace("net\"", "o\"");
    node.write("10-net.conflist", LIST);
    node.write("87-other.conflist", &other);
    let running = settled(&node);
    let right = node.read(OWNED);
    for _ in 0..2 {
        fs::write(node.net("10-net.conflist"), &LIST[..40]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(node.read(OWNED), right);
        fs::remove_file(node.net("10-net.conflist")).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(node.read(OWNED), right);
        // Our own file too, so that nothing but memory is left of the network.
        fs::remove_file(node.net(OWNED)).unwrap();
        until("ours again", || node.net(OWNED).exists().then_some(()));
        assert_eq!(node.read(OWNED), right);
        until("told", || running.ready.borrow().reason.contains("10-net.conflist").then_some(()));
        assert!(running.ready.borrow().ready);
        node.write("10-net.conflist", LIST);
        until("complete", || running.ready.borrow().reason.is_empty().then_some(()));
    }
    // Over a restart with other settings, from our own file alone.
    fs::remove_file(node.net("10-net.conflist")).unwrap();
    drop(running);
    node.entry.log_level = "debug".into();
    let running = settled(&node);
    assert_eq!(node.read(OWNED), right.replace("\"info\"", "\"debug\""));
    // Under another name it is the same network, and taken at once.
    node.write("90-net.conflist", &LIST.replace("main", "moved"));
    chain_becomes(&node, &["moved", "portmap", "istio-cni"]);
    drop(running);
}

#[test]
fn nothing_is_written_and_nothing_flaps_when_nothing_changed() {
    for mode in [Mode::of(None, None, None, None), Mode::InPlace, Mode::Standalone] {
        let node = Node::new(mode);
        node.write("10-net.conflist", LIST);
        node.install();
        let names = node.names();
        let stamps: Vec<_> = names.iter().map(|name| node.stamp(name)).collect();
        let running = settled(&node);
        let binary = fs::metadata(node.settings.bin_dir.join("istio-cni")).unwrap();
        let mut ready = running.ready.clone();
        ready.mark_unchanged();
        // Events of others, and of our own file without a change.
        for n in 0..50 {
            node.write("other.txt", &n.to_string());
            node.write("zz-broken.conf", &n.to_string());
            fs::OpenOptions::new().append(true).open(node.net("10-net.conflist")).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        std::thread::sleep(Duration::from_millis(100));
        assert!(!ready.has_changed().unwrap());
        assert_eq!(running.count("SUCCESS"), 1);
        assert_eq!(names.iter().map(|name| node.stamp(name)).collect::<Vec<_>>(), stamps);
        let now = fs::metadata(node.settings.bin_dir.join("istio-cni")).unwrap();
        assert_eq!(binary.modified().unwrap(), now.modified().unwrap());
    }
}

#[test]
fn modes_of_files() {
    use std::os::unix::fs::{MetadataExt, chown};
    let mut node = Node::owned();
    node.write("10-net.conflist", LIST);
    node.install();
    assert_eq!(mode_of(&node, OWNED), 0o600);
    node.settings.group_read = true;
    node.install();
    assert_eq!(mode_of(&node, OWNED), 0o640);
    // In place everything is as it was, the owner too.
    for (name, text) in [("10-net.conflist", LIST), ("20-net.conf", r#"{"name":"n","type":"t"}"#)] {
        let node = Node::new(Mode::InPlace);
        node.write(name, text);
        fs::set_permissions(node.net(name), fs::Permissions::from_mode(0o604)).unwrap();
        chown(node.net(name), Some(12), Some(34)).unwrap();
        node.install();
        let list = node.names().remove(0);
        let check = |name: &str| {
            let meta = fs::metadata(node.net(name)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o604, 12, 34), "{name}");
        };
        check(&list);
        remove(&node.settings);
        check(name);
    }
}

#[test]
fn takes_over_from_istio_and_leaves_no_credential() {
    let node = Node::owned();
    let stock =
        r#"{"name":"istio-cni","type":"istio-cni","kubernetes":{"cni_bin_dir":"/opt/cni/bin"}}"#;
    let merged = LIST.replace(
        "    {\"type\": \"portmap\"}\n",
        &format!("    {{\"type\": \"portmap\"}},\n    {stock}\n"),
    );
    node.write("10-net.conflist", &merged);
    node.write("ZZZ-istio-cni-kubeconfig", "token");
    fs::write(node.settings.run_dir.join("istio-cni-kubeconfig"), "token").unwrap();
    fs::write(node.settings.run_dir.join("istio-cni.log"), "log").unwrap();
    fs::write(node.settings.bin_dir.join("istio-cni"), "old").unwrap();
    node.install();
    assert_eq!(node.read("10-net.conflist"), LIST, "the primary is restored");
    assert_eq!(node.chain(), ["main", "portmap", "istio-cni"]);
    assert_eq!(node.names(), [OWNED, "10-net.conflist"]);
    assert_eq!(fs::read_dir(&node.settings.run_dir).unwrap().count(), 0);
    // And back, into Istio's place, when asked for; and once more.
    for (mode, files) in [
        (Mode::InPlace, vec!["10-net.conflist"]),
        (Mode::of(None, None, None, None), vec![OWNED, "10-net.conflist"]),
        (
            Mode::Owned { file_name: Some("01-own.conflist".into()) },
            vec!["01-own.conflist", "10-net.conflist"],
        ),
        (Mode::InPlace, vec!["10-net.conflist"]),
    ] {
        let node = Node {
            settings: Settings { mode, ..node.settings.clone() },
            entry: node.entry.clone(),
            dir: tempfile::tempdir().unwrap(),
        };
        node.install();
        assert_eq!(node.names(), files);
        assert_eq!(node.chain(), ["main", "portmap", "istio-cni"]);
    }
    remove(&node.settings);
    assert_eq!(node.read("10-net.conflist"), LIST);
}

/// Istio's owned file says nothing about what it was made from.
#[test]
fn takes_over_istios_owned_file_without_its_primary() {
    let node = Node::owned();
    let stock = LIST.replace(
        "    {\"type\": \"portmap\"}\n",
        "    {\"type\": \"portmap\"},\n    {\"type\":\"istio-cni\",\"old\":1}\n",
    );
    node.write(OWNED, &stock);
    let _running = settled(&node);
    assert_eq!(node.chain(), ["main", "portmap", "istio-cni"]);
    assert!(!node.read(OWNED).contains("\"old\""));
    node.write("10-net.conflist", &LIST.replace("main", "new"));
    chain_becomes(&node, &["new", "portmap", "istio-cni"]);
}

/// multus writes a file that holds ours, and comes first: it must not be copied
/// into ours, which multus would copy into its own, and so on.
#[test]
fn does_not_chain_to_a_copy_of_itself() {
    let node = Node::owned();
    node.write("10-net.conflist", LIST);
    let running = settled(&node);
    let ours = node.read(OWNED);
    node.write(
        "00-multus.conf",
        &format!(r#"{{"name":"multus","type":"multus","delegates":[{ours}]}}"#),
    );
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(node.read(OWNED), ours);
    assert!(running.ready.borrow().ready);
    assert_eq!(node.names().len(), 3);
}

#[test]
fn a_removal_is_kept_until_another_installation() {
    let mut node = Node::owned();
    node.settings.installation = "first".into();
    node.write("10-net.conflist", LIST);
    let running = settled(&node);
    let removal = remove(&node.settings);
    assert!(removal.errors.is_empty() && removal.binary.is_some_and(|binary| binary.exists()));
    assert!(removal.changed.contains(&OWNED.to_owned()));
    assert_eq!(fs::read_to_string(node.settings.run_dir.join(REMOVED)).unwrap(), "first\n");
    let reason = running.wait_unready();
    assert!(reason.contains("cleanup"), "{reason}");
    node.write("10-net.conflist", &LIST.replace("main", "changed"));
    drop(running);
    let running = node.start();
    running.wait_unready();
    assert_eq!(node.names(), ["10-net.conflist"], "put back by a running or a restarted agent");
    drop(running);
    node.settings.installation = "second".into();
    node.install();
    assert_eq!(node.chain(), ["changed", "portmap", "istio-cni"]);
    assert!(!node.settings.run_dir.join(REMOVED).exists());
}

#[test]
fn a_list_of_another_with_the_same_stem_is_not_overwritten() {
    let node = Node::new(Mode::InPlace);
    node.write("10-net.conf", r#"{"name":"n","type":"t"}"#);
    node.write("10-net.conflist", LIST);
    let running = node.start();
    let reason = running.wait_unready();
    assert!(reason.contains("10-net.conflist is there already"), "{reason}");
    assert_eq!(node.read("10-net.conflist"), LIST);
    assert!(running.count("CREATE_CNI_CONFIG_FAILURE") > 0);
    fs::remove_file(node.net("10-net.conf")).unwrap();
    running.wait_ready();
}

#[test]
fn a_name_that_is_anothers_costs_it_nothing() {
    let mode = Mode::Owned { file_name: Some("10-net.conflist".into()) };
    for (mode, conf_name) in [(mode, None), (Mode::Standalone, Some("10-net.conflist".to_owned()))]
    {
        let mut node = Node::new(mode);
        node.settings.conf_name = conf_name;
        node.write("10-net.conflist", LIST);
        let reason = node.start().wait_unready();
        assert!(reason.contains("another product's file"), "{reason}");
        assert_eq!(node.read("10-net.conflist"), LIST);
    }
}

#[test]
fn plugins_in_a_folder_would_run_after_ours() {
    let node = Node::owned();
    node.write("10-net.conflist", LIST);
    fs::create_dir(node.net("net")).unwrap();
    fs::write(node.net("net/50-more.conf"), r#"{"type":"more"}"#).unwrap();
    let running = node.start();
    let reason = running.wait_unready();
    assert!(reason.contains("loadOnlyInlinedPlugins"), "{reason}");
    node.write(
        "10-net.conflist",
        &LIST.replace("\"name\"", "\"loadOnlyInlinedPlugins\": true, \"name\""),
    );
    running.wait_ready();
}

#[test]
fn a_converted_configuration_that_its_owner_writes_again_is_converted_again() {
    let node = Node::new(Mode::InPlace);
    let conf = "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"type\":\"t\",\"mtu\":1}\n\n";
    node.write("10-net.conf", conf);
    let running = settled(&node);
    assert_eq!(node.names(), ["10-net.conflist"]);
    let again = conf.replace("\"mtu\":1", "\"mtu\":2");
    node.write("10-net.conf", &again);
    until("converted", || (node.names() == ["10-net.conflist"]).then_some(()));
    assert!(node.read("10-net.conflist").contains("\"mtu\":2"));
    drop(running);
    // The mode changes: the original is there again, and ours before it.
    let node = Node {
        settings: Settings { mode: Mode::of(None, None, None, None), ..node.settings.clone() },
        entry: node.entry.clone(),
        dir: node.dir,
    };
    node.install();
    until("restored", || {
        let _running = settled(&node);
        (node.names() == [OWNED, "10-net.conf"]).then_some(())
    });
    assert_eq!(node.read("10-net.conf"), again);
    assert_eq!(node.chain(), ["t", "istio-cni"]);
}

/// A removal beside a running installer that writes all the time: whoever writes
/// last, nothing of ours is left.
#[test]
fn a_removal_wins_over_an_installer_that_is_writing() {
    for round in 0..40 {
        let node = Node::owned();
        node.write("10-net.conflist", LIST);
        let running = settled(&node);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..20 {
                    node.write("10-net.conflist", &LIST.replace("main", &format!("main{n}")));
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            std::thread::sleep(Duration::from_micros(150 * round));
            assert!(remove(&node.settings).errors.is_empty());
        });
        running.wait_unready();
        drop(running);
        assert_eq!(node.names(), ["10-net.conflist"], "round {round}");
        assert!(!node.read("10-net.conflist").contains("istio-cni"));
    }
}
