//! The agent with its ports, its sockets and its installer.

use crate::machine::{Machine, PRIMARY, cleanup, mode, program};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use sys::netns::within;

const LABELLED: [&str; 6] = [
    "istio_cni_installs_total{result=\"SUCCESS\"} ",
    "istio_cni_install_ready 1",
    "istio_cni_plugin_requests_total{response_code=\"200\"} 0",
    "sluice_ready{condition=\"installed\"} 1",
    "sluice_alive{loop=\"plugin socket\"} 1",
    "process_open_fds ",
];

#[test]
fn installs_reports_and_ends_without_uninstalling() {
    let mut machine = Machine::new();
    machine.start(&[]);
    assert_eq!(machine.chain(), ["bridge", "istio-cni"]);
    assert!(machine.path("bin").join("istio-cni").exists());
    assert!(machine.get(8000, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(machine.get(8000, "/other").starts_with("HTTP/1.1 404"));
    let metrics = machine.get(15014, "/metrics");
    for part in LABELLED {
        assert!(metrics.lines().any(|line| line.starts_with(part)), "{part}\n{metrics}");
    }
    assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
    let status = "POST /status HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";
    assert!(machine.say("pluginevent.sock", status).starts_with("HTTP/1.1 200"));
    machine.until("the request is counted", |m| {
        m.get(15014, "/metrics").contains("sluice_requests_total{path=\"/status\",code=\"0\"} 1")
    });
    // What another program takes out is put back, and counted.
    let written = std::fs::read_dir(machine.path("net.d"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| !path.ends_with("10-pods.conflist"))
        .unwrap();
    std::fs::remove_file(&written).unwrap();
    machine.until("put back", |m| written.exists() && m.chain() == ["bridge", "istio-cni"]);
    machine
        .until("counted", |m| m.get(15014, "/metrics").contains("sluice_conflist_repairs_total 1"));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        assert_eq!(machine.stop(signal), Some(0), "{}", machine.log());
        for socket in ["pluginevent.sock", "log.sock"] {
            assert!(!machine.path("run").join(socket).exists(), "{socket}");
        }
        assert_eq!(machine.chain(), ["bridge", "istio-cni"]);
        assert!(machine.path("bin").join("istio-cni").exists());
        machine.start(&[]);
    }
}

#[test]
fn opens_as_many_files_as_it_may() {
    let mut machine = Machine::new();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // What systemd gives. Tests beside this one need fewer.
    let few = 1000;
    assert!(hard > few, "{hard}");
    setrlimit(Resource::RLIMIT_NOFILE, few, hard).unwrap();
    machine.start(&[]);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let limit = machine.limit("Max open files");
    let words: Vec<&str> = limit.split_whitespace().collect();
    assert_eq!(words[3..5], [hard.to_string(), hard.to_string()], "{limit}");
    assert_eq!(machine.stop(Signal::SIGTERM), Some(0), "{}", machine.log());
}

#[test]
fn says_what_it_is_not_ready_for() {
    let mut machine = Machine::new();
    let primary = machine.path("net.d").join("10-pods.conflist");
    std::fs::remove_file(&primary).unwrap();
    // Nobody listens there: an API server that is down.
    machine.begin(&["--api-url=http://127.0.0.1:1", "--node-name=n"]);
    machine.until("both are named", |m| {
        let page = m.get(8000, "/readyz");
        page.starts_with("HTTP/1.1 503")
            && page.contains("\ninstalled: ")
            && page.contains("synced: ")
            && !page.contains("not installed yet")
    });
    assert!(machine.get(8000, "/healthz").starts_with("HTTP/1.1 200"), "it is alive");
    let metrics = machine.get(15014, "/metrics");
    assert!(metrics.contains("istio_cni_install_ready 0"), "{metrics}");
    assert!(metrics.contains("sluice_ready{condition=\"synced\"} 0"), "{metrics}");
    assert!(metrics.contains("sluice_api_requests_total{verb="), "{metrics}");
    std::fs::write(&primary, PRIMARY).unwrap();
    machine.until("installed with the API server down", |m| {
        let page = m.get(8000, "/readyz");
        page.contains("synced: ") && !page.contains("installed: ")
    });
    assert_eq!(machine.chain(), ["bridge", "istio-cni"]);
    assert_eq!(machine.stop(Signal::SIGTERM), Some(0), "{}", machine.log());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let machine = Machine::new();
    let pods = format!("--pods={}", machine.path("pods").display());
    let taken: Vec<TcpListener> = within(&machine.host, || {
        [8000, 15014].map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap()).into()
    })
    .unwrap();
    for (argument, parts) in [
        ("--health-address=:8000", [":8000", "SLUICE_HEALTH_ADDRESS"]),
        ("--monitoring-port=15014", [":15014", "MONITORING_PORT"]),
    ] {
        assert_eq!(machine.spawn(&[&pods, argument]).wait().unwrap().code(), Some(1));
        for part in parts {
            assert!(machine.log().contains(part), "{part}: {}", machine.log());
        }
        assert_eq!(machine.chain(), ["bridge"], "nothing is installed that nobody serves");
    }
    drop(taken);
}

#[test]
fn writes_a_stock_plugins_lines() {
    let mut machine = Machine::new();
    machine.start(&["--log_output_level=default:warn,cni-agent:debug", "--log_as_json"]);
    let socket = machine.path("run").join("log.sock");
    assert_eq!(mode(&socket), 0o600);
    let line = json!({"level": "info", "time": "2026-01-02T03:04:05.000006Z", "scope": "cni-plugin", "msg": "hello from istio", "pod": "p"});
    let body = json!([line.to_string() + "\n", "no line"]).to_string();
    let request =
        format!("POST /log HTTP/1.1\r\nHost: unix\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert!(machine.say("log.sock", &request).starts_with("HTTP/1.1 200"));
    machine.until("the line is there", |m| m.log().contains("hello from istio"));
    let log = machine.log();
    let written = log.lines().find(|line| line.contains("hello from istio")).unwrap();
    let written: serde_json::Value = serde_json::from_str(written).unwrap();
    assert_eq!(written["scope"], "cni-plugin");
    assert_eq!(written["time"], "2026-01-02T03:04:05.000006Z");
    assert!(
        machine.get(15014, "/metrics").contains("sluice_plugin_log_lines_total{level=\"info\"} 1")
    );
    for nonsense in ["POST /log HTTP/1.1\r\nContent-Length: 1\r\n\r\n{", "GET /log", "\x16\x03"] {
        machine.say("log.sock", nonsense.trim());
    }
    assert!(machine.say("log.sock", &request).starts_with("HTTP/1.1 200"));
    // The scope's level goes to the plugin.
    let ours = std::fs::read_dir(machine.path("net.d"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    assert!(ours.into_iter().any(|text| text.contains("\"plugin_log_level\": \"warn\"")));
    assert_eq!(machine.stop(Signal::SIGTERM), Some(0));
}

#[test]
fn cleanup_takes_out_by_order_only() {
    let mut machine = Machine::new();
    machine.start(&[]);
    // With the agent there: it stops putting us back.
    let (code, said) = cleanup(&machine, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(machine.chain(), ["bridge"]);
    machine.until("the agent knows", |m| m.get(8000, "/readyz").contains("sluice cleanup"));
    assert_eq!(machine.chain(), ["bridge"]);
    assert_eq!(
        std::fs::read_to_string(machine.path("net.d").join("10-pods.conflist")).unwrap(),
        PRIMARY
    );
    for _ in 0..2 {
        let (code, said) = cleanup(&machine, &[]);
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(machine.stop(Signal::SIGTERM), Some(0));
    // The binary goes when no sandbox was made with it.
    let binary = machine.path("bin").join("istio-cni");
    assert!(binary.exists());
    let cache = format!("--cni-cache-dir={}", machine.path("cache").display());
    assert_eq!(
        cleanup(&machine, &[&cache]).0,
        Some(1),
        "what cannot be read is not taken for empty"
    );
    std::fs::create_dir_all(machine.path("cache").join("results")).unwrap();
    assert_eq!(cleanup(&machine, &[&cache]).0, Some(0));
    assert!(!binary.exists());
    // And without an agent, on a node that never had one.
    let other = Machine::new();
    let (code, said) = cleanup(&other, &[]);
    assert_eq!(code, Some(0), "{said}");
    // A new agent takes the order back, unless somebody holds it.
    let mut holder = program("sluice")
        .args(["cleanup", "--hold"])
        .args(machine.directories())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pods = format!("--pods={}", machine.path("pods").display());
    machine.begin(&[&pods, "--health-address=:8000"]);
    machine.until("held", |m| m.get(8000, "/readyz").contains("sluice cleanup"));
    machine.until("out", |m| m.chain() == ["bridge"]);
    kill(Pid::from_raw(i32::try_from(holder.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(holder.wait().unwrap().code(), Some(0));
    assert_eq!(machine.stop(Signal::SIGTERM), Some(0));
    machine.start(&["--installation=a"]);
    assert_eq!(machine.chain(), ["bridge", "istio-cni"]);
    // An agent of the installation that was removed leaves the node alone, as one
    // does whose DaemonSet is about to go.
    assert_eq!(cleanup(&machine, &["--installation=a"]).0, Some(0));
    assert_eq!(machine.stop(Signal::SIGTERM), Some(0));
    machine.begin(&[&pods, "--health-address=:8000", "--installation=a"]);
    machine.until("left alone", |m| m.get(8000, "/readyz").contains("sluice cleanup"));
    assert_eq!(machine.chain(), ["bridge"]);
    assert!(machine.path("run").join("removed").exists(), "the plugin lets pods pass");
    assert_eq!(machine.stop(Signal::SIGTERM), Some(0));
    machine.start(&["--installation=b"]);
    assert_eq!(machine.chain(), ["bridge", "istio-cni"]);
}

#[test]
fn cleanup_says_what_it_could_not_do() {
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.path("net.d")).unwrap();
    std::fs::write(machine.path("net.d"), "a file").unwrap();
    let (code, said) = cleanup(&machine, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("net.d"), "{said}");
    let (code, said) = cleanup(&machine, &["--wait-for-daemonset=x"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("POD_NAMESPACE"), "{said}");
    let waiting =
        ["--wait-for-daemonset=x", "--namespace=n", "--timeout=1s", "--api-url=http://127.0.0.1:1"];
    let (code, said) = cleanup(&machine, &waiting);
    assert_eq!(code, Some(1));
    assert!(said.contains("n/x: not done within 1 s"), "{said}");
}

/// The Job of the chart's hook waits for its DaemonSet.
#[test]
fn cleanup_waits_for_every_node() {
    let machine = Machine::new();
    let api = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("--api-url=http://{}", api.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for ready in [1, 2] {
            let (mut stream, _) = api.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            asked.push(String::from_utf8_lossy(&request[..length]).into_owned());
            let set = json!({"kind": "DaemonSet", "metadata": {"generation": 1}, "status": {"observedGeneration": 1,
                "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberReady": ready}})
            .to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                set.len()
            );
            stream.write_all((head + &set).as_bytes()).unwrap();
        }
        asked
    });
    let (code, said) =
        cleanup(&machine, &["--wait-for-daemonset=x", "--namespace=n", "--timeout=60s", &url]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 of 2 nodes are done"), "{said}");
    for request in server.join().unwrap() {
        assert!(
            request.starts_with("GET /apis/apps/v1/namespaces/n/daemonsets/x HTTP/1.1"),
            "{request}"
        );
    }
    assert_eq!(machine.chain(), ["bridge"], "it touches nothing");
}
