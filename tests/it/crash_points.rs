//! A consumer that is killed at a named point, in each class, loses nothing and repeats nothing it may not repeat.
//!
//! Each test is one point. A run is killed there (the n-th time, n from the seed), lives again until everything is
//! committed, and is judged by the checker from what is left. That the process was killed at the point and nowhere else
//! is known by the signal: nobody but the point itself sends it here.

use crate::checker::Class;
use crate::crash::{Run, Until, VARIANTS, Variant};
use crate::kafka::{self, Broker};

const MESSAGES: usize = 90;

fn seed() -> u64 {
    std::env::var("HAPAX_CRASH_SEED").map_or(1, |text| text.parse().unwrap())
}

fn again(test: &str, seed: u64) -> String {
    format!("HAPAX_CRASH_SEED={seed} make test ARGS='--test it crash_points::{test}'")
}

/// Runs every class at once: most of the time they wait for a session to end.
fn in_each_class(test: &str, one: impl Fn(&Broker, Variant, &str) + Sync) {
    let Some(broker) = kafka::broker() else { return };
    let again = again(test, seed());
    std::thread::scope(|scope| {
        let runs = VARIANTS.map(|variant| {
            scope.spawn({
                let (one, again) = (&one, &again);
                move || one(broker, variant, again)
            })
        });
        let failed = runs
            .map(|run| run.join())
            .into_iter()
            .filter(Result::is_err)
            .count();
        assert_eq!(failed, 0, "classes that failed; each has said how above");
    });
}

/// Killed at that point, in its first life or (where a class reaches it only after an unclean start) in its second.
fn killed_at(point: &'static str, counts: std::ops::Range<u32>) {
    in_each_class(&point.replace('-', "_"), |broker, variant, again| {
        let mut random = fastrand::Rng::with_seed(seed());
        let mut run = Run::new(broker, seed(), variant, MESSAGES, again);
        let begins = matches!(point, "before-begin" | "after-begin");
        if begins && variant.class == Class::Idempotent {
            assert!(run.live(Until::Point("inside-handler", 3)));
        }
        let until = Until::Point(point, random.u32(counts.clone()));
        assert!(run.live(until), "{}: {until:?} was not reached", run.name);
        let name = run.name.clone();
        let report = run.finish();
        println!("{point}, {name}: {report:?}");
    });
}

#[test]
fn before_begin() {
    killed_at("before-begin", 2..20);
}

#[test]
fn after_begin() {
    killed_at("after-begin", 2..20);
}

#[test]
fn inside_handler() {
    killed_at("inside-handler", 2..40);
}

#[test]
fn after_handler() {
    killed_at("after-handler", 2..40);
}

#[test]
fn after_record() {
    killed_at("after-record", 2..20);
}

#[test]
fn before_letter_record() {
    killed_at("before-letter-record", 1..3);
}

#[test]
fn before_commit() {
    killed_at("before-commit", 1..4);
}

#[test]
fn after_commit() {
    killed_at("after-commit", 1..4);
}

/// Asked to end in mid-flight, and killed before the drain.
#[test]
fn at_shutdown() {
    in_each_class("at_shutdown", |broker, variant, again| {
        let mut run = Run::new(broker, seed(), variant, MESSAGES, again);
        let asked = Until::Asked(20, "at-shutdown", 1);
        assert!(run.live(asked), "{}: {asked:?} was not reached", run.name);
        println!("at-shutdown, {}: {:?}", variant.name(), run.finish());
    });
}

/// Another member joins, and the first is killed when it is to give partitions away. The other one has no past: what is
/// guarded it refuses, what is idempotent it serves. Then it leaves.
#[test]
fn during_rebalance() {
    in_each_class("during_rebalance", |broker, variant, again| {
        let mut run = Run::new(broker, seed(), variant, 4 * MESSAGES, again);
        let until = Until::Point("during-rebalance", 1);
        let mut first = run.start(until);
        run.works();
        let mut other = run.start_other();
        let ended = run.attend(&mut first, until);
        assert!(run.buried(&first, ended), "{}: it gave nothing away", run.name);
        run.left(&mut other);
        println!("during-rebalance, {}: {:?}", variant.name(), run.finish());
    });
}

/// The same without a kill: the first member gives partitions away, goes on with the rest, and gets them back.
#[test]
fn a_rebalance_alone() {
    in_each_class("a_rebalance_alone", |broker, variant, again| {
        let mut run = Run::new(broker, seed(), variant, 4 * MESSAGES, again);
        let mut first = run.start(Until::Everything);
        run.works();
        let mut other = run.start_other();
        run.shares(&mut other);
        run.left(&mut other);
        let ended = run.attend(&mut first, Until::Everything);
        assert!(
            !run.buried(&first, ended),
            "{}: killed by somebody else",
            run.name
        );
        println!("a rebalance, {}: {:?}", variant.name(), run.judged());
    });
}
