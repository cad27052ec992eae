//! Random schedules against a simulated node: kernel namespaces, the API, a runtime,
//! two ztunnels that behave as zds.md says down to their exits, and a driver that
//! fails, is late and repeats itself. `world` checks each step, `rest` the end.
//!
//! `SCHEDULES=1000000 cargo test --release -p ambient --test simulation` is the long
//! run; without the variable it is what fits in CI. Schedules are drawn from a fixed
//! seed, unless `SEED` (a number) gives another, and a failure is shrunk.

#![expect(clippy::expect_used, reason = "a test")]

mod rest;
mod world;
mod ztunnel;

use ambient::event::{Annotation, Wanted};
use ambient::id::OptionsHash;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeSet;
use world::{Outcome, SLOTS, World};

/// Schedules of a run in CI.
const SCHEDULES: u32 = 100_000;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Op {
    Create { slot: usize, wanted: bool, probes: bool },
    Label { slot: usize, options: Option<u64> },
    Ports { slot: usize, ports: BTreeSet<u16> },
    Rename { slot: usize },
    Reannotate { slot: usize, value: Annotation },
    End { slot: usize },
    Delete { slot: usize },
    Vanish { slot: usize },
    Mirror { slot: usize },
    Sandbox { slot: usize, told: bool, overlap: bool, two: bool },
    AddAgain { slot: usize },
    Down { slot: usize, told: bool },
    LateDown { pick: usize },
    Status { slot: usize },
    Watch { count: usize },
    Step { pick: usize, outcome: Outcome },
    Timer { pick: usize },
    Expire { pick: usize },
    Connect { z: usize },
    Disconnect { z: usize },
    Crash { z: usize },
    EndOfFile,
    Work { z: usize, nack: bool },
    Respond { z: usize },
    Talk { z: usize },
    Retry { z: usize },
    Audit { pick: usize, how: Outcome },
    Drift { slot: usize },
    FlushProbes,
    Again { pick: usize },
    Restart { done: bool },
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let pick = || 0..8_usize;
    let z = || 0..2_usize;
    let often = |p: f64| proptest::bool::weighted(p);
    let outcome = || {
        prop_oneof![
            8 => Just(Outcome::Done),
            2 => Just(Outcome::Failed),
            1 => Just(Outcome::Refused),
            2 => Just(Outcome::Odd),
        ]
    };
    let pods = prop_oneof![
        6 => (slot(), often(0.8), often(0.7))
            .prop_map(|(slot, wanted, probes)| Op::Create { slot, wanted, probes }),
        4 => (slot(), proptest::option::weighted(0.6, 1..3_u64))
            .prop_map(|(slot, options)| Op::Label { slot, options }),
        1 => (slot(), proptest::collection::btree_set(80..83_u16, 0..3))
            .prop_map(|(slot, ports)| Op::Ports { slot, ports }),
        1 => slot().prop_map(|slot| Op::Rename { slot }),
        1 => (slot(), prop_oneof![
            Just(Annotation::Absent),
            Just(Annotation::Pending),
            Just(Annotation::Enabled),
            Just(Annotation::Foreign)
        ])
            .prop_map(|(slot, value)| Op::Reannotate { slot, value }),
        1 => slot().prop_map(|slot| Op::End { slot }),
        2 => slot().prop_map(|slot| Op::Delete { slot }),
        2 => slot().prop_map(|slot| Op::Vanish { slot }),
        1 => slot().prop_map(|slot| Op::Mirror { slot }),
        8 => (slot(), often(0.8), often(0.3), often(0.3))
            .prop_map(|(slot, told, overlap, two)| Op::Sandbox { slot, told, overlap, two }),
        2 => slot().prop_map(|slot| Op::AddAgain { slot }),
        2 => (slot(), often(0.7)).prop_map(|(slot, told)| Op::Down { slot, told }),
        1 => pick().prop_map(|pick| Op::LateDown { pick }),
        4 => slot().prop_map(|slot| Op::Status { slot }),
    ];
    let driver = prop_oneof![
        10 => (1..4_usize).prop_map(|count| Op::Watch { count }),
        20 => (pick(), outcome()).prop_map(|(pick, outcome)| Op::Step { pick, outcome }),
        5 => pick().prop_map(|pick| Op::Timer { pick }),
        1 => pick().prop_map(|pick| Op::Expire { pick }),
        4 => (pick(), outcome()).prop_map(|(pick, how)| Op::Audit { pick, how }),
        1 => slot().prop_map(|slot| Op::Drift { slot }),
        1 => Just(Op::FlushProbes),
        2 => pick().prop_map(|pick| Op::Again { pick }),
        1 => often(0.5).prop_map(|done| Op::Restart { done }),
    ];
    let ztunnel = prop_oneof![
        6 => z().prop_map(|z| Op::Connect { z }),
        2 => z().prop_map(|z| Op::Disconnect { z }),
        1 => z().prop_map(|z| Op::Crash { z }),
        2 => Just(Op::EndOfFile),
        6 => (z(), often(0.2)).prop_map(|(z, nack)| Op::Work { z, nack }),
        6 => z().prop_map(|z| Op::Respond { z }),
        14 => z().prop_map(|z| Op::Talk { z }),
        1 => z().prop_map(|z| Op::Retry { z }),
    ];
    prop_oneof![40 => pods, 50 => driver, 40 => ztunnel, 1 => Just(Op::Drain)]
}

fn happen(world: &mut World, op: Op) {
    match op {
        Op::Create { slot, wanted, probes } => {
            let wanted = if wanted { Wanted::Ambient(OptionsHash(1)) } else { Wanted::No };
            let ports = if probes { BTreeSet::from([80]) } else { BTreeSet::new() };
            world.create(slot, wanted, ports);
        }
        Op::Label { slot, options } => world.change(slot, |state| {
            state.wanted = options.map_or(Wanted::No, |o| Wanted::Ambient(OptionsHash(o)));
        }),
        Op::Ports { slot, ports } => world.change(slot, |state| state.probe_ports = ports),
        Op::Rename { slot } => world.change(slot, |state| {
            let other =
                if state.identity.service_account == "default" { "other" } else { "default" };
            state.identity.service_account = other.into();
        }),
        Op::Reannotate { slot, value } => world.change(slot, |state| state.annotation = value),
        Op::End { slot } => world.change(slot, |state| state.terminal = true),
        Op::Delete { slot } => world.change(slot, |state| state.deleting = true),
        Op::Vanish { slot } => world.vanish(slot),
        Op::Mirror { slot } => world.mirror(slot),
        Op::Sandbox { slot, told, overlap, two } => world.sandbox(slot, told, overlap, two),
        Op::AddAgain { slot } => world.add(slot),
        Op::Down { slot, told } => world.down(slot, told),
        Op::LateDown { pick } => world.late_down(pick),
        Op::Status { slot } => world.status(slot),
        Op::Watch { count } => {
            for _ in 0..count {
                world.next_watch();
            }
        }
        Op::Step { pick, outcome } => world.finish(pick, outcome),
        Op::Timer { pick } => world.ring(pick),
        Op::Expire { pick } => world.expire(pick),
        Op::Connect { z } => world.connect(z),
        Op::Disconnect { z } => world.disconnect(z),
        Op::Crash { z } => world.crash(z),
        Op::EndOfFile => {
            world.end_of_file();
        }
        Op::Work { z, nack } => {
            world.ztunnels[z].work(nack);
        }
        Op::Respond { z } => {
            world.respond(z);
        }
        Op::Talk { z } => {
            for _ in 0..4 {
                world.ztunnels[z].work(false);
                world.respond(z);
            }
        }
        Op::Retry { z } => world.ztunnels[z].retry(),
        Op::Audit { pick, how } => world.audit(pick, how),
        Op::Drift { slot } => world.drift(slot),
        Op::FlushProbes => world.flush_probes(),
        Op::Again { pick } => world.again(pick),
        Op::Restart { done } => world.restart(done),
        Op::Drain => world.drain(),
    }
}

fn number(name: &str) -> Option<u32> {
    std::env::vars().find(|(key, _)| key == name).and_then(|(_, value)| value.parse().ok())
}

/// A panic's text goes into the failure, so that shrinking is silent.
fn simulate(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let outcome = std::panic::catch_unwind(move || {
        let mut world = World::new();
        for op in ops {
            happen(&mut world, op);
        }
        world.rest();
        world.verify();
    });
    outcome.map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        TestCaseError::fail(text.unwrap_or_default())
    })
}

#[test]
fn no_schedule_loses_a_pod_leaves_a_ghost_or_tells_a_lie() {
    let cases = number("SCHEDULES").unwrap_or(SCHEDULES);
    let mut seed = [7_u8; 32];
    seed[..4].copy_from_slice(&number("SEED").unwrap_or(0).to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    std::panic::set_hook(Box::new(|_| {}));
    let mut runner = TestRunner::new_with_rng(config, rng);
    let schedules = proptest::collection::vec(op(), 1..48);
    let result = runner.run(&schedules, simulate);
    let _ = std::panic::take_hook();
    if let Err(failure) = result {
        panic!("{failure}");
    }
    println!("{cases} schedules");
}
