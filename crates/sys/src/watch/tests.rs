use super::*;
use crate::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

const BOUND: Duration = Duration::from_secs(60);

/// A watch, and what it says.
fn watch() -> (Watch, Receiver<Notice>) {
    let watch = Watch::start().unwrap();
    // That of the trial is dead.
    let end = Instant::now() + BOUND;
    while watch.count() > 0 {
        assert!(Instant::now() < end, "{watch:?}");
        std::thread::sleep(PAUSE);
    }
    let (sender, notices) = channel();
    watch.follow(move |notice| sender.send(notice).is_ok());
    (watch, notices)
}

/// Waits for a notice and says which came before it.
#[track_caller]
fn await_notice(notices: &Receiver<Notice>, wanted: Notice) -> Vec<Notice> {
    let end = Instant::now() + BOUND;
    let mut before = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match notices.recv_timeout(left) {
            Ok(notice) if notice == wanted => return before,
            Ok(notice) => before.push(notice),
            Err(_) => panic!("never {wanted:?}, but {before:?}"),
        }
    }
}

/// Does something in a namespace.
#[track_caller]
fn shell(netns: &Netns, line: &str) {
    within(netns, || Command::new("/bin/sh").args(["-ec", line]).run().unwrap()).unwrap();
}

/// A change there is heard.
#[track_caller]
fn is_heard(notices: &Receiver<Notice>, netns: &Netns, line: &str) {
    while notices.try_recv().is_ok() {}
    shell(netns, line);
    await_notice(notices, Notice::Changed(netns.id()));
}

/// One is not: what it caused would come before what another does after it.
#[track_caller]
fn is_not_heard(notices: &Receiver<Notice>, netns: &Netns, line: &str, mark: &Netns) {
    while notices.try_recv().is_ok() {}
    shell(netns, line);
    shell(mark, "ip rule add fwmark 77 lookup 77; ip rule del fwmark 77 lookup 77");
    // Its two changes may be told one by one.
    let mut before = await_notice(notices, Notice::Changed(mark.id()));
    before.retain(|notice| *notice != Notice::Changed(mark.id()));
    assert!(before.is_empty(), "{line}: {before:?}");
}

#[test]
fn hears_what_concerns_capture_and_nothing_else() {
    let (watch, notices) = watch();
    let [pod, mark, other] = [(); 3].map(|()| Netns::create().unwrap());
    // What gets an IPv6 address of itself says so a second later.
    shell(&pod, "ip link set lo up; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
    for netns in [&pod, &mark] {
        watch.add(netns).unwrap();
    }
    // Twice does no harm.
    watch.add(&pod).unwrap();
    for line in [
        "nft list ruleset",
        "iptables-nft-save >/dev/null",
        "ip link add a0 type veth peer name b0",
        "ip link set a0 up; ip link set b0 up; ip addr add 192.0.2.1/24 dev a0",
        "ip route add 198.51.100.0/24 dev a0",
        "ip route add local default dev lo table 77",
    ] {
        is_not_heard(&notices, &pod, line, &mark);
    }
    is_not_heard(&notices, &other, "ip link set lo up; nft add table inet x", &mark);
    for line in [
        "nft add table inet x",
        "nft add chain inet x y",
        "nft flush ruleset",
        "iptables-nft -t nat -N FOO",
        "ip6tables-nft -t nat -N FOO",
        "ip rule add fwmark 5 lookup 133",
        "ip -6 rule add fwmark 5 lookup 133",
        "ip route add local default dev lo table 133",
        "ip -6 route add local default dev lo table 100",
        "ip route flush table 133",
        "ip -6 addr add ::6 dev lo",
        "ip -6 addr del ::6/128 dev lo",
        "echo 0 >/proc/sys/net/ipv6/conf/a0/disable_ipv6; ip -6 addr add 2001:db8::1/64 dev a0 nodad",
        "ip link set lo down",
    ] {
        is_heard(&notices, &pod, line);
        // What the kernel does in steps is heard by then.
        std::thread::sleep(PAUSE * 10);
    }
}

/// What is watched dies all the same, its interfaces with it, and that is heard.
#[test]
fn holds_nothing_and_hears_of_death() {
    let (watch, notices) = watch();
    let node = Netns::create().unwrap();
    let pod = Netns::create().unwrap();
    let id = pod.id();
    watch.add(&pod).unwrap();
    let fd = pod.as_fd().as_raw_fd();
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    shell(&node, &format!("ip link add here type veth peer name there netns {path}"));
    let has = |name: &str| {
        let names = within(&node, || routing::interface_names().unwrap()).unwrap();
        names.iter().any(|found| found.1 == name)
    };
    assert!(has("here"));
    drop(pod);
    await_notice(&notices, Notice::Dead(id));
    let end = Instant::now() + BOUND;
    while has("here") {
        assert!(Instant::now() < end, "the interface lives");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(watch.count(), 0);
}

/// Many who change much lose messages of the one socket at most, and that is said.
#[test]
fn a_flood_is_heard_as_changes_or_as_loss() {
    let (watch, notices) = watch();
    let [pod, other] = [(); 2].map(|()| Netns::create().unwrap());
    watch.add(&pod).unwrap();
    watch.add(&other).unwrap();
    let mut script = String::from("add table inet x\nadd set inet x s { type mark; }\n");
    for element in 0..20_000 {
        script.push_str(&format!("add element inet x s {{ {element} }}\n"));
    }
    let file = tempfile(&script);
    for _ in 0..5 {
        shell(&pod, &format!("nft -f {}; nft flush ruleset", file.display()));
    }
    shell(&other, "ip link set lo up");
    let before = await_notice(&notices, Notice::Changed(other.id()));
    std::fs::remove_file(&file).unwrap();
    assert!(
        before.iter().any(|notice| [Notice::Lost, Notice::Changed(pod.id())].contains(notice)),
        "{before:?}"
    );
    // A wake-up tells each thing once.
    assert!(before.len() < 20_000, "{}", before.len());
}

fn tempfile(text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("sluice-watch-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

/// Its thread and who was told by it.
#[test]
fn ends_when_it_is_dropped() {
    let (watch, notices) = watch();
    drop(watch);
    assert_eq!(notices.recv(), Err(std::sync::mpsc::RecvError));
}
