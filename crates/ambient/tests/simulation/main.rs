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
    Unlisted { slot: usize },
    FlushProbes,
    Again { pick: usize },
    Restart { done: bool, blind: bool },
    Seek { times: usize },
    Unlabelled { slot: usize, times: usize },
    Drain,
}

/// Three small numbers make an operation: drawing from a tree of `prop_oneof!` takes
/// ten times as long as what is tested, and these shrink as well.
fn op() -> impl Strategy<Value = Op> {
    (0..KINDS, 0..64_u8, 0..64_u8).prop_map(|(kind, a, b)| decode(kind, a, b))
}

/// Sum of the weights in [`decode`].
const KINDS: u8 = 182;

fn decode(kind: u8, a: u8, b: u8) -> Op {
    let (slot, pick, z) = (usize::from(a) % SLOTS, usize::from(a % 8), usize::from(a % 2));
    // In so many of a hundred cases.
    let often = |percent: u32| u32::from(b) * 100 < percent * 64;
    let outcome = match b {
        0..40 => Outcome::Done,
        40..50 => Outcome::Failed,
        50..54 => Outcome::Refused,
        _ => Outcome::Odd,
    };
    // The weight of each is the length of its range.
    match kind {
        0..8 => Op::Create { slot, wanted: often(80), probes: often(75) },
        8..19 => Op::Sandbox { slot, told: often(80), overlap: a > 40, two: b % 4 < 1 },
        19..32 => Op::Watch { count: 1 + pick / 2 },
        32..57 => Op::Step { pick, outcome },
        57..67 => Op::Connect { z },
        67..86 => Op::Talk { z },
        86..91 => Op::Label { slot, options: often(60).then_some(1 + u64::from(b % 2)) },
        91..97 => Op::Status { slot },
        97..105 => Op::Work { z, nack: !often(80) },
        105..113 => Op::Respond { z },
        113..120 => Op::Timer { pick },
        120..125 => Op::Audit { pick, how: outcome },
        125..128 => Op::Disconnect { z },
        128..130 => Op::Crash { z },
        130..133 => Op::EndOfFile,
        133..134 => Op::Retry { z },
        134..136 => Op::Expire { pick },
        136..139 => Op::Delete { slot },
        139..142 => Op::Vanish { slot },
        142..145 => Op::Down { slot, told: often(70) },
        145..147 => Op::LateDown { pick },
        147..150 => Op::AddAgain { slot },
        150..152 => Op::Mirror { slot },
        152..154 => Op::End { slot },
        154..156 => Op::Rename { slot },
        156..158 => Op::Ports { slot, ports: (80..80 + u16::from(b % 3)).collect() },
        158..160 => Op::Reannotate {
            slot,
            value: match b % 4 {
                0 => Annotation::Absent,
                1 => Annotation::Pending,
                2 => Annotation::Enabled,
                _ => Annotation::Foreign,
            },
        },
        160..162 => Op::Drift { slot },
        162..164 => Op::FlushProbes,
        164..168 => Op::Again { pick },
        168..174 if kind > 170 => Op::Watch { count: 4 },
        168..174 => Op::Restart { done: often(50), blind: a < 32 },
        174..176 => Op::Seek { times: 1 + pick },
        176..178 => Op::Unlabelled { slot, times: usize::from(b % 8) },
        178..181 => Op::Unlisted { slot },
        _ => Op::Drain,
    }
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
        Op::Unlisted { slot } => world.unlisted(slot),
        Op::FlushProbes => world.flush_probes(),
        Op::Again { pick } => world.again(pick),
        Op::Restart { done, blind } => world.restart(done, blind),
        Op::Seek { times } => world.seek(times),
        Op::Unlabelled { slot, times } => {
            // While the agent is away, and afterwards it is hard to find.
            world.change(slot, |state| state.wanted = Wanted::No);
            world.restart(true, true);
            while world.next_watch() {}
            world.seek(times);
        }
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
    let mut seed = [7_u8; 16];
    seed[..4].copy_from_slice(&number("SEED").unwrap_or(0).to_le_bytes());
    // Not the default: in a debug build it takes most of the time.
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
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
