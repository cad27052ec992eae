//! The fault matrix: what can happen to a node, while it is asked for what nodes are
//! asked for. In every cell the same must hold ([`check`]): a pod of the mesh is
//! captured or not started, pods outside the mesh start, DEL succeeds, and nothing is
//! lost or half done once the fault is over.
//!
//! The agent is the real one as `install-cni`, its pods come from the API's stand-in,
//! and the lab's runtime runs what the installer wrote and copied.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with figures")]

mod check;
mod clock;
mod fault;
mod figure;
mod moment;
mod pod;
mod reboot;
mod skew;
mod stage;
mod token;

use fault::Fault;
use moment::Moment;
use stage::Stage;
use std::time::Instant;

/// A row of the matrix, on a node of its own.
fn row(fault: Fault) {
    let mut stage = Stage::set(fault);
    for moment in Moment::ALL {
        let begun = Instant::now();
        let seen = moment::cell(&mut stage, fault, moment);
        let took = begun.elapsed().as_secs_f32();
        println!("{:<18} x {:<8} {seen}; {took:.1} s in all", fault.name(), moment.name());
    }
}

/// These mostly wait, so they do it together.
#[test]
fn api_down_forbidding_and_slow() {
    std::thread::scope(|scope| {
        for fault in [Fault::ApiDown, Fault::ApiForbidden, Fault::ApiSlow] {
            scope.spawn(move || row(fault));
        }
    });
}

#[test]
fn agent_killed() {
    row(Fault::AgentKilled);
}

#[test]
fn disk_full() {
    row(Fault::DiskFull);
}

#[test]
fn run_wiped() {
    row(Fault::RunWiped);
}

#[test]
fn conflist_rewritten() {
    row(Fault::ConflistRewritten);
}

#[test]
fn clock_jump() {
    row(Fault::ClockJump);
}
