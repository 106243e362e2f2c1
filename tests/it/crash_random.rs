//! A consumer that is killed at any moment, several times, loses nothing and repeats nothing it may not repeat.
//!
//! Messages of the variants with keys keep their order, what handlers call is away now and then, so that messages are held for a
//! retry, and operators decide what is in doubt. A seed says what is sent, and when each life is killed: so long after its start (while it opens, restores, joins),
//! or so long after its handlers began. `HAPAX_CRASH_SEEDS=200` runs more seeds than the few of every test run,
//! `HAPAX_CRASH_SEED=17` runs that one.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::crash::{Run, Until, VARIANTS};
use crate::kafka::{self, Broker};

/// Three of each class: about a minute.
const SEEDS: u64 = 12;
const MESSAGES: usize = 150;
/// Runs at a time: most of the time they wait for a session to end.
const AT_ONCE: usize = 4;

fn seeds() -> Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("HAPAX_CRASH_SEED") {
        return seed..seed + 1;
    }
    1_000..1_000 + number("HAPAX_CRASH_SEEDS").unwrap_or(SEEDS)
}

fn one(broker: &Broker, seed: u64) {
    let variant = VARIANTS[seed as usize % VARIANTS.len()];
    let again = format!("HAPAX_CRASH_SEED={seed} make test ARGS='--test it crash_random'");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut run = Run::new(broker, seed, variant, MESSAGES, &again).operated(seed);
    for _ in 0..random.u32(2..5) {
        run.live(match random.u8(0..4) {
            0 => Until::Start(Duration::from_millis(random.u64(0..2_500))),
            _ => Until::Work(Duration::from_millis(random.u64(0..500))),
        });
    }
    println!("seed {seed}, {}: {:?}", variant.name(), run.finish());
}

#[test]
fn killed_at_any_moment() {
    let Some(broker) = kafka::broker() else { return };
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            one(broker, seed);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let failed = workers
            .into_iter()
            .map(|worker| worker.join())
            .filter(Result::is_err);
        assert_eq!(failed.count(), 0, "runs that failed; each has said how above");
    });
}
