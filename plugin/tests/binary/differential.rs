//! The same calls to the plugin and to one that is built on another
//! implementation of the specification, the crate rscni-plugin: the same
//! success or the same code. Where the two differ on purpose it says why.

use rscni_plugin::cni::{Cni, Plugin};
use rscni_plugin::error::Error;
use rscni_plugin::types::{Args, CNIResult};
use serde_json::Value;

use crate::stand::{Call, Outcome, answer};

/// Does nothing and hands the result on, as ours does for a pod that passes through.
struct PassThrough;

impl Cni for PassThrough {
    fn add(&self, args: Args) -> Result<CNIResult, Error> {
        Ok(args.config().prev_result.clone().unwrap_or_default())
    }

    fn del(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    fn gc(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
#[ignore = "the other implementation, run by the test below as a process of its own"]
fn other() {
    // Not for `--include-ignored`: it ends the process.
    if !std::env::args().any(|argument| argument == "--exact") {
        return;
    }
    let failed = Plugin::default().msg("other").run(&PassThrough).is_err();
    std::process::exit(i32::from(failed));
}

/// Without Istio's empty `ipam` and `dns`, which the other one refuses.
fn config(version: &str, run_dir: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"{version}","name":"mesh","type":"istio-cni","cni_agent_run_dir":"{run_dir}"{more}}}"#
    )
}

fn run_other(call: Call) -> Outcome {
    let this = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let arguments =
        ["--exact", "differential::other", "--ignored", "--nocapture", "--test-threads=1"];
    let mut outcome =
        call.instead([this].into_iter().chain(arguments.map(str::to_owned)).collect()).run();
    // libtest's own lines stand before it.
    let start = outcome.stdout.iter().position(|&b| b == b'{').unwrap_or(outcome.stdout.len());
    outcome.stdout.drain(..start);
    outcome
}

/// Success with its output, or the code of the failure.
fn verdict(outcome: &Outcome) -> Result<Value, u64> {
    let object: Value = match outcome.stdout.as_slice() {
        b"" => Value::Null,
        bytes => serde_json::from_slice(bytes).expect("JSON or nothing on stdout"),
    };
    match outcome.status {
        Some(0) => Ok(object),
        _ => Err(object["code"].as_u64().expect("a code")),
    }
}

/// Where the two differ on purpose. (DEL is left out as a whole: ours never
/// fails. The name without a type is left out: the other one wants a type.)
fn intended(command: &str, variable: &str, stdin: &str) -> bool {
    match command {
        // libcni's skeleton, and so Istio's plugin, wants CNI_PATH for ADD and CHECK.
        "ADD" | "CHECK" if variable == "CNI_PATH" => true,
        // What a command does not use cannot make it fail.
        "ADD" | "CHECK" => stdin.contains(r#""cni.dev/valid-attachments":7"#),
        "STATUS" => {
            stdin.contains(r#""cni.dev/valid-attachments":7"#)
                || stdin.contains(r#""prevResult":7"#)
        }
        "GC" => stdin.contains(r#""prevResult":7"#),
        // "The value of cniVersion specified in input", the specification says;
        // the other one says its newest, as libcni's skeleton does.
        "VERSION" => !stdin.contains(r#""cniVersion":"1.1.0""#),
        _ => false,
    }
}

#[test]
fn another_implementation_of_the_specification_says_the_same() {
    let fake = answer("200 OK", r#"{"decision":"done"}"#);
    let result = r#","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/n"}],"ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.0.0.2"]}}"#;
    let good = config("1.1.0", fake.run_dir(), result);
    let mut stdins: Vec<String> =
        ["0.1.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.2.0", "9.9.9"]
            .map(|version| config(version, fake.run_dir(), ""))
            .to_vec();
    stdins.extend([
        good.clone(),
        String::new(),
        good[..good.len() / 2].to_owned(),
        format!("{good}x"),
        good.replace("\"mesh\"", "\"\""),
        good.replace("\"mesh\"", "\"a b\""),
        config("1.1.0", fake.run_dir(), r#","prevResult":7"#),
        config(
            "1.1.0",
            fake.run_dir(),
            r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]"#,
        ),
        config("1.1.0", fake.run_dir(), r#","cni.dev/valid-attachments":7"#),
    ]);
    let variables = [
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../x"),
        ("CNI_NETNS", ""),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_PATH", ""),
        ("CNI_COMMAND", "UPDATE"),
    ];
    let (mut compared, mut different) = (0, Vec::new());
    for command in ["ADD", "CHECK", "STATUS", "GC", "VERSION"] {
        let calls = stdins.iter().map(|stdin| (stdin, ("CNI_ARGS", "")));
        let calls = calls.chain(variables.map(|variable| (&good, variable)));
        for (stdin, (name, value)) in calls {
            if intended(command, name, stdin) {
                continue;
            }
            let call =
                || Call::new(command, "/n", stdin.as_str()).set("CNI_ARGS", "").set(name, value);
            let (ours, theirs) = (verdict(&call().run()), verdict(&run_other(call())));
            compared += 1;
            if ours != theirs {
                different.push(format!(
                    "{command} {name}={value:?} {stdin}\n  ours {ours:?}\n  other {theirs:?}"
                ));
            }
        }
    }
    assert!(compared > 80, "{compared}");
    assert!(different.is_empty(), "{}", different.join("\n"));
}
