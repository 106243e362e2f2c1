//! The edges of the window, the boundary of the share, trials one at a time, late ends, clocks, and threads at once.

use super::*;
use crate::config::Share;

const OPEN_FOR: Duration = Duration::from_secs(10);

struct World {
    breaker: Breaker,
    start: Instant,
}

impl World {
    fn new(share: &str, over: u32) -> Self {
        let start = crate::clock::now();
        let terms = Terms {
            failure_share: Share::parse(share).unwrap(),
            over,
            open_for: OPEN_FOR,
        };
        Self {
            breaker: Breaker::new(terms, start),
            start,
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// One failure at that time, of an attempt that started then.
    fn fail(&self, ms: u64) -> Option<Change> {
        self.breaker.failed(self.at(ms), self.at(ms))
    }

    /// Failures until it opens; how many that took.
    fn fail_until_open(&self, ms: u64) -> u64 {
        (1..=1_000)
            .find(|_| self.fail(ms).is_some())
            .expect("it opens in the end")
    }

    fn is_open(&self) -> bool {
        matches!(self.breaker.state(), State::Open(_))
    }

    fn half_open(&self, ms: u64) {
        assert_eq!(self.breaker.look(self.at(ms)), Some(Change::HalfOpened));
    }

    fn trial(&self, failed: bool, ms: u64) -> Option<Change> {
        assert!(self.breaker.try_trial(), "no trial");
        self.breaker.trial_ended(failed, self.at(ms))
    }

    fn close(&self, ms: u64) {
        for left in (0..TRIALS).rev() {
            assert_eq!(self.trial(false, ms).is_some(), left == 0);
        }
        assert!(self.breaker.is_closed());
    }
}

#[test]
fn it_opens_at_the_share_and_not_one_failure_before() {
    for (share, failures) in [("0.5", 50), ("0.01", 1), ("0.3", 30), ("0.07", 7), ("1", 100)] {
        let world = World::new(share, 100);
        world.breaker.passed(100);
        for n in 1..failures {
            assert_eq!(world.fail(0), None, "{share}: {n} of 100");
        }
        let opened = Change::Opened {
            failures,
            attempts: 100,
        };
        assert_eq!(world.fail(0), Some(opened), "{share}");
        assert!(world.is_open());
    }
}

#[test]
fn few_attempts_prove_nothing() {
    let world = World::new("0.5", 100);
    assert_eq!(world.fail_until_open(0), LEAST);
    let small = World::new("0.5", 4);
    assert_eq!(small.fail_until_open(0), 4, "all that it looks at");
    let none = World::new("0.5", 0);
    assert!((0..1_000).all(|_| none.fail(0).is_none()), "there is no breaker");
    none.breaker.passed(5);
    assert!(none.breaker.is_closed());
}

/// The window slides: a failure counts for exactly `over` attempts, itself included.
#[test]
fn what_is_longer_ago_than_the_window_counts_no_more() {
    for (over, between) in [(100, 99), (64, 63), (65, 64), (63, 62), (1_000, 999)] {
        let with_one_more = |passed| {
            let world = World::new("1", over);
            let half = u64::from(over) / 2;
            // Not all fail, so it stays closed.
            world.breaker.passed(1);
            assert!((0..half).all(|_| world.fail(0).is_none()));
            world.breaker.passed(passed);
            let ones = world.breaker.ring.iter();
            ones.map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
                .sum::<u64>()
        };
        let half = u64::from(over) / 2;
        assert_eq!(
            with_one_more(u64::from(over) - half),
            half,
            "{over}: all are inside"
        );
        assert_eq!(
            with_one_more(u64::from(over) - half + 1),
            half - 1,
            "{over}: the oldest is out"
        );
        assert_eq!(with_one_more(between), 1, "{over}: the last one is inside");
        assert_eq!(with_one_more(between + 1), 0, "{over}");
        assert_eq!(
            with_one_more(between * 7),
            0,
            "{over}: more than a whole window at once"
        );
    }
}

/// Against the obvious one: a list of the last ends.
#[test]
fn it_agrees_with_a_list() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let over = random.u32(1..200);
        let percent = random.u64(1..=100);
        let world = World::new(&format!("{}", percent as f64 / 100.0), over);
        let mut list = std::collections::VecDeque::new();
        for step in 0..2_000 {
            if random.u64(0..200) < percent {
                list.push_back(true);
                list.drain(..list.len().saturating_sub(over as usize));
                let failures = list.iter().filter(|failed| **failed).count() as u64;
                let attempts = list.len() as u64;
                let opens = attempts >= LEAST.min(u64::from(over)) && failures * 100 >= percent * attempts;
                let expected = opens.then_some(Change::Opened { failures, attempts });
                assert_eq!(world.fail(0), expected, "seed {seed}, step {step}");
                if opens {
                    break;
                }
            } else {
                let passed = random.u64(0..5);
                list.extend((0..passed).map(|_| false));
                list.drain(..list.len().saturating_sub(over as usize));
                world.breaker.passed(passed);
            }
        }
    }
}

#[test]
fn it_is_half_open_at_its_time_and_not_before() {
    let world = World::new("0.5", 100);
    world.fail_until_open(7);
    assert_eq!(world.breaker.state(), State::Open(world.at(10_007)));
    assert_eq!(world.breaker.look(world.at(10_006)), None);
    assert!(!world.breaker.try_trial(), "open");
    world.half_open(10_007);
    assert_eq!(world.breaker.look(world.at(10_007)), None, "told once");
    assert_eq!(world.breaker.state(), State::HalfOpen);
}

#[test]
fn trials_go_one_at_a_time_and_the_last_one_closes_it() {
    let world = World::new("0.5", 100);
    world.fail_until_open(0);
    world.half_open(10_000);
    for left in (0..TRIALS).rev() {
        assert!(world.breaker.try_trial());
        assert!(!world.breaker.try_trial(), "one is out");
        assert!(!world.breaker.is_closed());
        let closed = (left == 0).then_some(Change::Closed(Duration::from_millis(10_020)));
        assert_eq!(world.breaker.trial_ended(false, world.at(10_020)), closed);
    }
    assert_eq!(world.fail_until_open(10_020), LEAST, "it starts anew");
}

#[test]
fn a_trial_that_fails_opens_it_again_whatever_succeeded_before() {
    let world = World::new("0.5", 100);
    world.fail_until_open(0);
    let mut now = 10_000;
    for successes in 0..TRIALS {
        world.half_open(now);
        for _ in 0..successes {
            assert_eq!(world.trial(false, now), None);
        }
        assert_eq!(world.trial(true, now), Some(Change::Reopened));
        now += 10_000;
        assert_eq!(world.breaker.state(), State::Open(world.at(now)));
    }
    world.half_open(now);
    world.close(now);
}

#[test]
fn a_trial_that_was_given_back_is_made_again() {
    let world = World::new("0.5", 100);
    world.fail_until_open(0);
    world.half_open(10_000);
    assert_eq!(world.trial(false, 10_000), None);
    assert!(world.breaker.try_trial());
    world.breaker.trial_given_back();
    world.breaker.trial_given_back();
    assert!(world.breaker.try_trial());
    assert_eq!(world.breaker.trial_ended(false, world.at(10_001)), None);
    assert!(
        world.trial(false, 10_002).is_some(),
        "what succeeded before still counts"
    );
}

/// Attempts of before that end late: they decide nothing while it is not closed, and nothing about what came after.
#[test]
fn what_started_before_it_closed_says_nothing() {
    let world = World::new("0.5", 100);
    world.fail_until_open(0);
    assert_eq!(world.fail(5), None);
    world.breaker.passed(1_000);
    assert!(world.is_open());
    world.half_open(10_000);
    assert_eq!(world.fail(10_000), None);
    assert!(world.breaker.try_trial(), "a late failure did not use it up");
    world.breaker.trial_given_back();
    world.close(10_050);
    let late = || world.breaker.failed(world.at(10_049), world.at(10_100));
    assert!((0..200).all(|_| late().is_none()));
    assert!(world.breaker.is_closed());
    let young = || world.breaker.failed(world.at(10_050), world.at(10_100));
    assert_eq!((1..=200).find(|_| young().is_some()), Some(LEAST));
}

/// A process that stood still, and a task that goes by an older reading than another.
#[test]
fn clocks_that_leap_or_lag_do_no_harm() {
    let world = World::new("0.5", 100);
    world.fail_until_open(1_000);
    assert_eq!(world.breaker.look(world.start), None, "an older reading");
    world.half_open(1_000_000_000_000);
    assert_eq!(
        world.trial(true, 0),
        Some(Change::Reopened),
        "by an older reading"
    );
    world.half_open(1_000_000_000_000);
    world.close(1_000_000_000_000);
    let earlier = crate::clock::now();
    let later = World::new("0.5", 100);
    assert_eq!(later.breaker.failed(earlier, earlier), None, "before its start");
}

/// Threads at once: one opens it, one trial is out at a time, one closes it.
#[test]
fn everything_happens_once_for_many_tasks() {
    use std::sync::atomic::AtomicU64;
    for seed in 0..20u64 {
        let world = World::new("0.5", 100);
        let (opened, closed, out) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        if world.fail(0).is_some() {
                            opened.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(opened.into_inner(), 1, "seed {seed}");
        world.half_open(10_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for turn in 0..400u64 {
                        if !world.breaker.try_trial() {
                            continue;
                        }
                        assert_eq!(out.fetch_add(1, Ordering::SeqCst), 0, "two trials at a time");
                        out.fetch_sub(1, Ordering::SeqCst);
                        if (turn + seed).is_multiple_of(2) {
                            world.breaker.trial_given_back();
                        } else if world.breaker.trial_ended(false, world.at(10_000)).is_some() {
                            closed.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(
            closed.into_inner(),
            u64::from(world.breaker.is_closed()),
            "seed {seed}"
        );
    }
}
