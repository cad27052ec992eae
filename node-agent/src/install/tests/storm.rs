//! Another program that handles its configuration in every bad way.

use super::node::{Node, until};
use crate::install::*;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CHANGES: u64 = 1000;
/// How old a runtime's view of the primary may be.
const STALE: Duration = Duration::from_secs(1);
/// What the machine may steal from a test of time: two cores, other suites.
const SLACK: Duration = Duration::from_secs(9);

fn list(version: u64) -> String {
    format!(
        "{{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {{\"type\": \"main\", \"version\": {version}, \"odd\": 1.0e2}}\n  ]\n}}\n"
    )
}

/// The other program. `versions` gets what it meant to have, and since when it lay
/// there whole.
struct Writer<'a> {
    node: &'a Node,
    random: u64,
    version: u64,
    versions: &'a Mutex<Vec<(u64, Instant)>>,
}

impl Writer<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64: the same storm each time.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn change(&mut self, file: &str) {
        let path = self.node.net(file);
        self.version += 1;
        let text = list(self.version);
        match self.below(8) {
            // By a temporary file, as it should be, beside it or from elsewhere.
            0 | 1 => {
                let temporary = self.node.net("10-net.tmp");
                fs::write(&temporary, &text).unwrap();
                fs::rename(temporary, &path).unwrap();
            }
            2 => {
                let temporary = self.node.dir.path().join("elsewhere");
                fs::write(&temporary, &text).unwrap();
                fs::rename(temporary, &path).unwrap();
            }
            // In place, with a moment in which it is empty, and half of it.
            3 => fs::write(&path, &text).unwrap(),
            4 => {
                let half = usize::try_from(self.below(text.len() as u64)).unwrap();
                fs::write(&path, &text.as_bytes()[..half]).unwrap();
                self.rest();
                fs::write(&path, &text).unwrap();
            }
            // Gone for a while.
            5 => {
                let _ = fs::remove_file(&path);
                self.rest();
                fs::write(&path, &text).unwrap();
            }
            6 => {
                let _ = fs::rename(&path, self.node.net("10-net.conflist.bak"));
                self.rest();
                fs::write(&path, &text).unwrap();
            }
            _ => {
                if let Ok(open) = fs::OpenOptions::new().write(true).open(&path) {
                    open.set_len(self.version % 50).unwrap();
                }
                self.rest();
                fs::write(&path, &text).unwrap();
            }
        }
        self.versions.lock().unwrap().push((self.version, Instant::now()));
        self.rest();
    }

    fn rest(&mut self) {
        if self.below(3) != 0 {
            std::thread::sleep(Duration::from_micros(self.below(12_000)));
        }
    }
}

/// How old the version is that a runtime would load now, counted from when the
/// next one was there whole; or what is wrong with the chain.
fn age(node: &Node, versions: &Mutex<Vec<(u64, Instant)>>) -> Result<Duration, String> {
    // Taken before the look.
    let now = Instant::now();
    let loaded = node.loaded()?;
    let plugins = loaded["plugins"].as_array().cloned().unwrap_or_default();
    let types: Vec<_> = plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect();
    if types != ["main", "istio-cni"] {
        return Err(format!("the chain is {types:?}"));
    }
    let version = plugins[0]["version"].as_u64().ok_or("no version")?;
    let versions = versions.lock().unwrap();
    let next = versions.iter().rev().take_while(|(other, _)| *other > version).last();
    Ok(next.map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at)))
}

/// With our own file the chain has us at every moment.
#[test]
fn our_own_file_survives_a_storm() {
    let node = Node::owned();
    node.write("10-net.conflist", &list(0));
    node.write("87-other.conflist", &list(0).replace("main", "other").replace("\"net\"", "\"o\""));
    let running = node.start();
    running.wait_ready();
    let versions = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let checker = scope.spawn(|| {
            let mut oldest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                oldest = oldest.max(age(&node, &versions)?);
                looks.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok::<_, String>(oldest)
        });
        let mut writer =
            Writer { node: &node, random: 88_172_645_463_325_252, version: 0, versions: &versions };
        for _ in 0..CHANGES {
            writer.change("10-net.conflist");
            if checker.is_finished() {
                break;
            }
        }
        let last = writer.version;
        let end = Instant::now();
        until("the last version", || {
            let loaded = node.loaded().ok()?;
            (loaded["plugins"][0]["version"] == last).then_some(())
        });
        assert!(end.elapsed() < STALE + SLACK, "{:?}", end.elapsed());
        done.store(true, Ordering::Relaxed);
        let oldest = checker.join().unwrap().unwrap();
        println!("{CHANGES} changes, {looks:?} looks, at most {oldest:?} behind");
        assert!(oldest < STALE + SLACK, "{oldest:?} behind");
        assert_eq!(node.read("10-net.conflist"), list(last), "the primary is never written");
    });
    assert!(looks.load(Ordering::Relaxed) > CHANGES, "{looks:?} looks");
    running.wait_ready();
    assert_eq!(running.count("CREATE_CNI_CONFIG_FAILURE"), 0);
    assert!(running.count("SUCCESS") > 10);
}

/// In place there are moments without us; but nothing of the other's is ever lost,
/// and removal gives back what it wrote last.
#[test]
fn a_primary_that_is_changed_in_place_survives_a_storm() {
    let node = Node::new(Mode::InPlace);
    node.write("10-net.conflist", &list(0));
    let running = node.start();
    running.wait_ready();
    let versions = Mutex::new(Vec::new());
    let mut writer = Writer { node: &node, random: 7, version: 0, versions: &versions };
    for n in 1..=CHANGES / 4 {
        writer.change("10-net.conflist");
        if n % 25 == 0 {
            let (version, end) = (writer.version, Instant::now());
            until("us, and the last version", || {
                wrong_in_place(&node, version).is_none().then_some(())
            });
            assert!(end.elapsed() < STALE + SLACK, "{:?}", end.elapsed());
        }
    }
    drop(running);
    assert!(remove(&node.settings).errors.is_empty());
    assert_eq!(node.read("10-net.conflist"), list(writer.version));
}

fn wrong_in_place(node: &Node, version: u64) -> Option<String> {
    let loaded = node.loaded().unwrap_or_default();
    (node.chain() != ["main", "istio-cni"] || loaded["plugins"][0]["version"] != version)
        .then(|| loaded.to_string())
}

/// Two that write the same file for ever: bounded, counted and told.
#[test]
fn a_fight_is_bounded_and_told() {
    let node = Node::owned();
    node.write("05-cilium.conflist", &list(0));
    let running = node.start();
    running.wait_ready();
    let start = Instant::now();
    let mut removed = 0;
    while start.elapsed() < Duration::from_secs(5) {
        if fs::rename(
            node.net("02-istio-cni.conflist"),
            node.net("02-istio-cni.conflist.cilium_bak"),
        )
        .is_ok()
        {
            removed += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // A burst of 10, then 4 a second.
    assert!((10..=35).contains(&removed), "removed {removed} times");
    let repaired = || {
        let events = running.events.lock().unwrap();
        events.iter().filter(|e| matches!(e, InstallEvent::Repaired { .. })).count()
    };
    until("each removal but the last is repaired", || (repaired() >= removed - 1).then_some(()));
    let events = running.events.lock().unwrap();
    let told: Vec<_> =
        events.iter().filter(|e| matches!(e, InstallEvent::Contested { .. })).collect();
    assert!(
        matches!(told[..], [InstallEvent::Contested { file, times: 5 }] if file == "02-istio-cni.conflist"),
        "{told:?}"
    );
}
