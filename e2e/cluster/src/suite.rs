//! Runs scenarios one after the other on one cluster, and prints what `cargo test`
//! prints: libtest has no place for something that all tests share and that is to be
//! taken down at the end.

use crate::cluster::Cluster;
use crate::packages::Packages;
use anyhow::{Result, anyhow};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// One test: a name, and what it does with a cluster.
pub type Scenario = (&'static str, fn(&mut Cluster) -> Result<()>);

/// Runs those whose names the arguments ask for. A cluster is brought up when there is
/// one, and anew after a failure.
#[must_use]
pub fn run(scenarios: &[Scenario]) -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let wanted = choose(scenarios, &arguments);
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in wanted {
            say(&format!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    say(&format!("\nrunning {} tests", wanted.len()));
    let left = scenarios.len() - wanted.len();
    let mut counts = Counts { left, ..Counts::default() };
    if !wanted.is_empty() {
        match Packages::find() {
            Ok(Ok(packages)) => run_all(&wanted, &packages, &mut counts),
            Ok(Err(missing)) => {
                for (name, _) in &wanted {
                    say(&format!("test {name} ... ignored"));
                }
                say(&format!("left out: {missing}"));
                counts.ignored = wanted.len();
            }
            Err(err) => {
                say(&format!("{err:#}"));
                counts.failed = wanted.len();
            }
        }
    }
    say(&format!(
        "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        if counts.failed == 0 { "ok" } else { "FAILED" },
        counts.passed,
        counts.failed,
        counts.ignored,
        counts.left,
        begun.elapsed().as_secs_f64()
    ));
    if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
    left: usize,
}

/// Nearly as libtest: any of the words that are no options, as the beginning of the name
/// (a part of it would bring a cluster up for somebody who works on another test) or, with
/// `--exact`, as all of it; `--skip` takes away.
fn choose<'a>(scenarios: &'a [Scenario], arguments: &[String]) -> Vec<&'a Scenario> {
    let (mut filters, mut skips) = (Vec::new(), Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--skip" => skips.extend(words.next()),
            // Their values are words of their own.
            "--test-threads" | "--format" | "--color" | "--logfile" => drop(words.next()),
            option if option.starts_with('-') => {}
            _ => filters.push(word),
        }
    }
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let matches = |name: &str, word: &String| {
        if exact { name == word } else { name.starts_with(word.as_str()) }
    };
    let wanted = |scenario: &&Scenario| {
        let name = scenario.0;
        (filters.is_empty() || filters.iter().any(|word| matches(name, word)))
            && !skips.iter().any(|word| matches(name, word))
    };
    scenarios.iter().filter(wanted).collect()
}

fn run_all(wanted: &[&Scenario], packages: &Packages, counts: &mut Counts) {
    let mut cluster: Option<Cluster> = None;
    let mut failures = Vec::new();
    for (name, scenario) in wanted {
        let begun = Instant::now();
        let outcome = ready(&mut cluster, packages).and_then(|cluster| {
            catch_unwind(AssertUnwindSafe(|| scenario(cluster)))
                .unwrap_or_else(|_| Err(anyhow!("panicked, see above")))
        });
        let took = begun.elapsed().as_secs_f64();
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        say(&format!("test {name} ... {word} ({took:.1} s)"));
        match outcome {
            Ok(()) => counts.passed += 1,
            Err(err) => {
                counts.failed += 1;
                let report = cluster.as_ref().map(Cluster::report).unwrap_or_default();
                // At once: whoever watches may not want to wait for the rest.
                say(&format!("---- {name} ----\n{err:#}\n{report}"));
                failures.push(*name);
                // What is left of it is no place for the next.
                cluster = None;
            }
        }
    }
    drop(cluster);
    if !failures.is_empty() {
        say(&format!("\nfailures:\n    {}", failures.join("\n    ")));
    }
}

fn ready<'a>(cluster: &'a mut Option<Cluster>, packages: &Packages) -> Result<&'a mut Cluster> {
    if cluster.is_none() {
        let begun = Instant::now();
        let fresh = Cluster::start(packages)?;
        say(&format!("a cluster of {} nodes after {:.1?}", fresh.nodes.len(), begun.elapsed()));
        *cluster = Some(fresh);
    }
    cluster.as_mut().ok_or_else(|| anyhow!("no cluster"))
}

#[expect(clippy::print_stdout, reason = "this is the output of a test program")]
fn say(line: &str) {
    println!("{line}");
    // A pipe is written in blocks: somebody may be watching.
    std::io::stdout().flush().ok();
}

#[cfg(test)]
mod tests {
    use super::{Scenario, choose};

    fn chosen(arguments: &[&str]) -> Vec<&'static str> {
        let scenarios: [Scenario; 3] =
            [("c_install", |_| Ok(())), ("c_upgrade", |_| Ok(())), ("c_up", |_| Ok(()))];
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        choose(&scenarios, &arguments).into_iter().map(|scenario| scenario.0).collect()
    }

    #[test]
    fn a_filter_is_the_beginning_of_a_name() {
        assert_eq!(chosen(&[]), ["c_install", "c_upgrade", "c_up"]);
        assert_eq!(chosen(&["c_up"]), ["c_upgrade", "c_up"]);
        assert_eq!(chosen(&["--exact", "c_up"]), ["c_up"]);
        assert_eq!(chosen(&["--skip", "c_up"]), ["c_install"]);
        assert_eq!(chosen(&["--test-threads", "1", "--nocapture", "c_i"]), ["c_install"]);
        assert!(chosen(&["install"]).is_empty());
    }
}
