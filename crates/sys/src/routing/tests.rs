//! Against the real kernel, each in a namespace of its own that nothing keeps.

use super::*;
use crate::lab::{self, fresh};
use crate::netns::{Netns, within};
use redirect::ambient::Ipv6;
use std::sync::Mutex;
use std::time::{Duration, Instant};

fn ip_tool(args: &str) -> String {
    lab::run(&format!("ip {args}"), "")
}

#[test]
fn ensures_once_and_removes_all() {
    fresh(|| {
        let all = everything();
        assert_eq!(missing(&all).unwrap().len(), 10, "lo, an address, four rules, four routes");
        assert!(ensure(&all).unwrap());
        assert_eq!(missing(&all).unwrap(), Vec::<String>::new());
        for _ in 0..2 {
            assert!(!ensure(&all).unwrap(), "all of it was there");
        }
        for family in ["-4", "-6"] {
            let rules = ip_tool(&format!("{family} rule list"));
            assert_eq!(rules.matches("fwmark 0x539 lookup 133").count(), 1, "{rules}");
            assert_eq!(rules.matches("fwmark 0x111/0xfff lookup 100").count(), 1, "{rules}");
            let routes = ip_tool(&format!("{family} route list table 133"));
            assert!(routes.starts_with("local default dev lo"), "{routes}");
        }
        assert!(ip_tool("-6 addr list dev lo").contains("inet6 ::6/128"));

        remove(&all).unwrap();
        assert_eq!(missing(&all).unwrap().len(), 9, "lo stays up");
        remove(&all).unwrap();
        assert!(ensure(&all).unwrap(), "and again");
    });
}

#[test]
fn part_of_it_is_completed_and_duplicates_go() {
    fresh(|| {
        ip_tool("link set lo up");
        ip_tool("rule add fwmark 1337 lookup 133");
        ip_tool("rule add fwmark 1337 lookup 133 pref 77");
        // Look like ours and are not.
        ip_tool("rule add fwmark 1337/0xff lookup 133 pref 100");
        ip_tool("rule add fwmark 1337 iif lo lookup 133 pref 101");
        ip_tool("rule add not fwmark 1337 lookup 133 pref 102");
        let all = everything();
        assert!(ensure(&all).unwrap());
        assert_eq!(missing(&all).unwrap(), Vec::<String>::new());
        remove(&all).unwrap();
        let rules = ip_tool("rule list");
        assert_eq!(rules.matches("lookup 133").count(), 3, "{rules}");
        for foreign in ["100:", "101:", "102:"] {
            assert!(rules.contains(foreign), "{rules}");
        }
    });
}

#[test]
fn ztunnels_routing_has_istios_mask_and_priority() {
    let route =
        |family| MarkRoute { family, mark: 0x111, mask: 0xfff, table: 100, priority: Some(32764) };
    let want = Routing { loopback: Vec::new(), marks: vec![route(Family::V4), route(Family::V6)] };
    fresh(|| {
        ip_tool("link set lo up");
        // Upstream's loop ends at the first rule that exists (reference 10.1 #12).
        ip_tool("rule add fwmark 0x111/0xfff lookup 100 pref 32764");
        // Look alike: another mask, another priority.
        ip_tool("rule add fwmark 0x111 lookup 100 pref 32764");
        ip_tool("-6 rule add fwmark 0x111/0xfff lookup 100 pref 5");
        assert!(ensure(&want).unwrap());
        assert!(!ensure(&want).unwrap());
        let rules = ip_tool("-6 rule list");
        assert!(rules.contains("32764:\tfrom all fwmark 0x111/0xfff lookup 100"), "{rules}");
        assert_eq!(stale(&want).marks.len(), 2, "a sidecar's");
        assert_eq!(stale(&Routing::default()).marks.len(), 4);
        remove(&everything()).unwrap();
        let (v4, v6) = (ip_tool("rule list"), ip_tool("-6 rule list"));
        assert!(!v6.contains("lookup 100"), "of any priority: {v6}");
        assert!(v4.contains("fwmark 0x111 lookup 100") && !v4.contains("0xfff"), "{v4}");
        assert_eq!(ip_tool("route list table all type local default"), "");
    });
}

#[test]
fn look_alikes_do_not_count() {
    fresh(|| {
        ip_tool("link set lo up");
        ip_tool("rule add fwmark 1337/0xff lookup 133");
        ip_tool("rule add fwmark 1337 lookup 134");
        ip_tool("rule add not fwmark 1337 lookup 133");
        ip_tool("route add 10.0.0.0/8 dev lo table 133");
        let lines = missing(&everything()).unwrap();
        assert!(lines.contains(&"ip rule fwmark 1337 lookup 133".to_owned()), "{lines:?}");
        let route = "ip route local default dev lo table 133".to_owned();
        assert!(lines.contains(&route), "{lines:?}");
    });
}

#[test]
fn another_default_route_in_our_table_is_an_error() {
    fresh(|| {
        ip_tool("link set lo up");
        ip_tool("route add blackhole default table 133");
        let error = ensure(&everything()).unwrap_err().to_string();
        assert!(error.starts_with("add ip route local default dev lo table 133"), "{error}");
    });
}

#[test]
fn ipv6_that_is_off_is_said() {
    fresh(|| {
        for which in ["all", "default", "lo"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            std::fs::write(path, "1").unwrap();
        }
        let error = ensure(&everything()).unwrap_err();
        assert!(matches!(error, BackendError::Ipv6Disabled { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("net.ipv6.conf.all.disable_ipv6 is 1"), "{text}");
        let mut v4 = everything();
        v4.loopback.clear();
        v4.marks.retain(|mark| mark.family == Family::V4);
        ensure(&v4).unwrap();
    });
}

#[test]
fn ipv6_is_asked_of_the_namespace() {
    let switch = |which: &str, off: bool| {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        std::fs::write(path, if off { "1" } else { "0" }).unwrap();
    };
    fresh(|| {
        assert_eq!(ipv6().unwrap(), Ipv6::Present);
        switch("default", true);
        assert_eq!(ipv6().unwrap(), Ipv6::Absent, "what the first interface would have");
        switch("default", false);
        ip_tool("link add eth0 type veth peer name eth1");
        switch("lo", true);
        assert_eq!(ipv6().unwrap(), Ipv6::NoLoopback);
        switch("eth0", true);
        assert_eq!(ipv6().unwrap(), Ipv6::NoLoopback, "eth1 has it");
        switch("all", true);
        assert_eq!(ipv6().unwrap(), Ipv6::Absent);
        switch("eth1", false);
        switch("lo", false);
        assert_eq!(ipv6().unwrap(), Ipv6::Present, "one is enough");
    });
}

#[test]
fn nothing_wanted_is_nothing_done() {
    fresh(|| {
        assert!(!ensure(&Routing::default()).unwrap());
        assert!(ip_tool("link show lo").contains("state DOWN"));
        assert!(bring_loopback_up().unwrap());
        assert!(!bring_loopback_up().unwrap());
    });
}

#[test]
fn lists_addresses_and_routes() {
    fresh(|| {
        assert_eq!(addresses().unwrap(), Vec::<IpAddr>::new());
        ip_tool("link set lo up");
        ip_tool("link add eth0 type veth peer name eth1");
        ip_tool("link set eth1 up");
        ip_tool("link set eth0 up");
        ip_tool("addr add 2001:db8::5/64 dev eth0 nodad");
        ip_tool("addr add 10.1.2.3/24 dev eth0");
        ip_tool("addr add 169.254.3.3/16 dev eth0");
        ip_tool("addr add 10.9.9.9 peer 10.9.9.1 dev eth0");
        let found: Vec<String> = addresses().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.2.3", "10.9.9.9", "2001:db8::5"]);
        let names = interface_names().unwrap();
        assert_eq!(names[0], (1, "lo".to_owned()));
        assert!(names.iter().any(|(_, name)| name == "eth0"));

        let exists = |to: &str| route_exists(to.parse().unwrap()).unwrap();
        assert!(exists("10.1.2.77"));
        assert!(exists("10.1.2.3"));
        assert!(exists("2001:db8::77"));
        assert!(!exists("192.0.2.1"));
        assert!(!exists("2001:db8:1::1"));
        ip_tool("route add default via 10.1.2.1");
        ip_tool("route add blackhole 192.0.2.0/24");
        assert!(exists("198.51.100.1"));
        assert!(!exists("192.0.2.1"));
    });
}

/// containerd runs `loopback` beside the chain: it brings `lo` up, and refuses `::6`.
#[test]
fn waits_with_ipv6_for_who_brings_lo_up() {
    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(60);
    let netns = Netns::create().unwrap();
    let begin = |addresses: &[&str]| {
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        within(&netns, move || {
            ip_tool("link set lo down");
            for address in addresses {
                ip_tool(&format!("addr replace {address} dev pod0"));
            }
        })
        .unwrap();
    };
    let prepare = |patience| {
        within(&netns, move || {
            let begun = Instant::now();
            let found = prepare(patience).unwrap().len();
            let took = begun.elapsed();
            assert!(ip_tool("link show lo").contains("UP"));
            (found, took)
        })
        .unwrap()
    };
    within(&netns, || ip_tool("link add pod0 type veth peer name far0")).unwrap();
    within(&netns, || ip_tool("link set pod0 up")).unwrap();
    begin(&["10.9.9.1/24"]);
    let (found, took) = prepare(LONG);
    assert_eq!(found, 1);
    assert!(took < LONG, "IPv4 alone waits for nobody: {took:?}");

    begin(&["fd00:9::1/64"]);
    let (found, took) = prepare(SHORT);
    assert_eq!(found, 2);
    assert!(took >= SHORT, "nobody came: {took:?}");

    // Up already: no wait.
    assert!(prepare(LONG).1 < LONG);

    begin(&[]);
    let up = Mutex::new(None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(60));
            *up.lock().unwrap() = Some(Instant::now());
            within(&netns, || ip_tool("link set lo up")).unwrap();
        });
        prepare(LONG);
        let ended = Instant::now();
        assert!(up.lock().unwrap().is_some_and(|up| up < ended), "did not wait for it");
    });
}
