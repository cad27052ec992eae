//! `istio-cni`: the chained CNI plugin that the container runtime executes.
//!
//! It starts, does one thing within one deadline and ends: synchronous, no
//! thread, no TCP socket, no other program, no Kubernetes, no policy. Pods that
//! are plainly none of the mesh's business pass through; for every other pod it
//! opens the network namespace and asks the agent of the node. While nobody
//! answers, a pod passes that is certain to be outside the mesh by what the agent
//! left in its run directory, and that is written down there.
//!
//! stdout is the runtime's: a result, or an error object with exit status 1
//! (a panic's too). stderr is for people: one JSON line an invocation.
#![cfg_attr(not(test), no_main)]

mod absent;
mod agent;
mod command;
mod deadline;
mod decision;
#[cfg(not(test))]
mod entry;
mod invocation;
mod netns;
mod output;
mod panic;
mod report;
mod run_dir;

use std::process::ExitCode;

use wire::cni::{Command, Config, Version};

use deadline::Deadline;
use report::Report;

/// Everything, from the environment to the exit status.
#[cfg_attr(test, expect(dead_code, reason = "tests have an entry of their own"))]
fn invoke() -> ExitCode {
    let deadline = Deadline::after(Config::default_timeout());
    let Some(word) = invocation::command_word() else {
        output::about();
        return ExitCode::SUCCESS;
    };
    // DEL must not fail, so neither must a defect in it: the hook has to know.
    panic::install(word == Command::Del.as_str());
    let mut report = Report::new(&word);
    match command::run(&word, deadline, &mut report) {
        Ok(stdout) => {
            report.write();
            output::result(&stdout)
        }
        Err(mut error) => {
            report.failed(&error);
            report.write();
            // libcni passes on the texts and drops the number, so a pod's event would
            // lack the one thing that can be looked up.
            if error.code >= wire::code::AGENT_UNREACHABLE {
                error.msg = error.to_string();
            }
            error
                .cni_version
                .get_or_insert_with(|| report.version().unwrap_or(Version::NEWEST).to_string());
            output::error(&error)
        }
    }
}
