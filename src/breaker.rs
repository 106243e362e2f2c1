//! The circuit breaker of one handler: whether attempts may start, by how the latest ones ended.
//!
//! A downstream that is away fails every attempt that it is sent, and each of them costs its message a retry, or puts it in
//! doubt. So the breaker **opens** when the share of failures among the last `over` attempts is large enough, and nothing
//! starts while it is open. After `open_for` it is **half-open**: single attempts, *trials*, go through one at a time. The
//! [`TRIALS`]th success in a row closes it, one failure opens it again. What the handler *said* of a message is no failure: an
//! attempt that ended with `reject` reached whatever decides that.
//!
//! One breaker serves all partition tasks of one topic and process, without a lock. Whether it is closed is one atomic load;
//! successes are counted by each task for itself, and laid into the ring once a turn, for all messages of that turn together.
//! Failures are laid there one by one, because the next attempt must already be refused by the one that opens it.
//!
//! It lives in memory: a process starts with a closed one. It reads no clock (Inv 11) and says nothing to anybody: who changes
//! its state is told so, and tells the others (`partition/starts.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Instant, millis};
use crate::config::Breaker as Terms;

/// Successes in a row that close a half-open breaker. One would not do: at a share of failures of one half every second trial
/// succeeds, and would let all slots loose on it; three in a row happen then one time in eight.
pub(crate) const TRIALS: u64 = 3;

/// Attempts before which a breaker never opens (or `over`, where that is less): a single message that fails each of its
/// attempts says something of the message.
pub(crate) const LEAST: u64 = 20;

/// What a breaker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Attempts start.
    Closed,
    /// None does, before that instant.
    Open(Instant),
    /// Single ones do.
    HalfOpen,
}

/// What became of a breaker, told to the one caller that made it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It opened: so many of so many attempts had failed.
    Opened {
        /// Attempts that failed, of those that are looked at.
        failures: u64,
        /// Attempts that are looked at.
        attempts: u64,
    },
    /// The trial failed: it is open again.
    Reopened,
    /// `open_for` is over.
    HalfOpened,
    /// The last trial succeeded; it had let nothing but trials through for so long.
    Closed(Duration),
}

/// The whole state in one word, so that every change is one compare-and-swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Closed,
    Open {
        until_ms: u64,
    },
    HalfOpen {
        /// A trial is under way.
        out: bool,
        /// Trials that succeeded so far.
        succeeded: u64,
    },
}

impl Word {
    const fn pack(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { until_ms } => 1 | until_ms << 8,
            Self::HalfOpen { out, succeeded } => 2 | (out as u64) << 2 | succeeded << 8,
        }
    }

    const fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::Closed,
            1 => Self::Open { until_ms: word >> 8 },
            _ => Self::HalfOpen {
                out: word & 4 != 0,
                succeeded: word >> 8,
            },
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Breaker {
    terms: Terms,
    start: Instant,
    word: AtomicU64,
    /// When it last opened from closed, and when it last closed.
    opened_ms: AtomicU64,
    closed_ms: AtomicU64,
    /// One bit for each of the last `over` attempts: whether it failed.
    ring: Box<[AtomicU64]>,
    /// Attempts since it closed; the next one's place in the ring.
    next: AtomicU64,
    /// One past the place of the latest failure, 0 before any: as long as it is not over, the ring has bits to clear.
    failed_next: AtomicU64,
}

impl Breaker {
    /// A closed one. Of `over = 0`: it never opens.
    pub(crate) fn new(terms: Terms, now: Instant) -> Self {
        let words = u64::from(terms.over).div_ceil(64);
        Self {
            terms,
            start: now,
            word: AtomicU64::new(Word::Closed.pack()),
            opened_ms: AtomicU64::new(0),
            closed_ms: AtomicU64::new(0),
            ring: (0..words).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicU64::new(0),
            failed_next: AtomicU64::new(0),
        }
    }

    /// The terms that it goes by.
    pub(crate) const fn terms(&self) -> &Terms {
        &self.terms
    }

    fn word(&self) -> Word {
        Word::unpack(self.word.load(Ordering::Acquire))
    }

    fn swap(&self, from: Word, to: Word) -> bool {
        let (from, to) = (from.pack(), to.pack());
        self.word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn since_start(&self, at: Instant) -> u64 {
        millis(at.saturating_duration_since(self.start)).unsigned_abs()
    }

    fn open_until(&self, now: Instant) -> Word {
        // Rounded up: it is not half-open before its time, and never open for no time at all.
        let open_ms = millis(self.terms.open_for).unsigned_abs().max(1);
        let until_ms = self.since_start(now).saturating_add(open_ms);
        Word::Open {
            until_ms: until_ms.min(u64::MAX >> 8),
        }
    }

    /// Whether attempts start without asking: one load.
    pub(crate) fn is_closed(&self) -> bool {
        self.word() == Word::Closed
    }

    /// What it is, as of the last change: an open one stays that until somebody [looks](Self::look).
    pub(crate) fn state(&self) -> State {
        match self.word() {
            Word::Closed => State::Closed,
            Word::Open { until_ms } => State::Open(self.start + Duration::from_millis(until_ms)),
            Word::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Time passes: an open one is half-open once `open_for` is over.
    pub(crate) fn look(&self, now: Instant) -> Option<Change> {
        let found = self.word();
        let Word::Open { until_ms } = found else {
            return None;
        };
        let half_open = Word::HalfOpen {
            out: false,
            succeeded: 0,
        };
        (self.since_start(now) >= until_ms && self.swap(found, half_open)).then_some(Change::HalfOpened)
    }

    /// Takes the one trial of a half-open breaker, if nobody has it. Whoever does ends it or gives it back.
    pub(crate) fn try_trial(&self) -> bool {
        let found = self.word();
        let Word::HalfOpen {
            out: false,
            succeeded,
        } = found
        else {
            return false;
        };
        self.swap(found, Word::HalfOpen { out: true, succeeded })
    }

    /// So many attempts did not fail. Those that end while it is not closed say nothing: trials decide then.
    pub(crate) fn passed(&self, count: u64) {
        if self.terms.over == 0 || count == 0 || !self.is_closed() {
            return;
        }
        let over = u64::from(self.terms.over);
        let place = self.next.fetch_add(count, Ordering::Relaxed);
        let clear = self.failed_next.load(Ordering::Relaxed) + over;
        if place >= clear || clear == over {
            // No failure is so recent that its bit could stand: a healthy handler is done here.
            return;
        }
        for place in place..place + count.min(over) {
            self.set(place, false);
        }
    }

    /// An attempt that started at `started` failed.
    pub(crate) fn failed(&self, started: Instant, now: Instant) -> Option<Change> {
        // One that started before the breaker last closed tells of the time before: slow ones, all slots at once, would
        // open it again just then.
        let is_old = self.since_start(started) < self.closed_ms.load(Ordering::Relaxed);
        if self.terms.over == 0 || is_old || !self.is_closed() {
            return None;
        }
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        self.failed_next.fetch_max(place + 1, Ordering::Relaxed);
        self.set(place, true);
        let over = u64::from(self.terms.over);
        let attempts = (place + 1).min(over);
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        let failures = self.ring.iter().map(ones).sum::<u64>().min(attempts);
        if attempts < LEAST.min(over) || !self.terms.failure_share.is_reached(failures, attempts) {
            return None;
        }
        if !self.swap(Word::Closed, self.open_until(now)) {
            return None;
        }
        self.opened_ms.store(self.since_start(now), Ordering::Relaxed);
        Some(Change::Opened { failures, attempts })
    }

    /// The trial ended.
    pub(crate) fn trial_ended(&self, failed: bool, now: Instant) -> Option<Change> {
        let found = self.word();
        let Word::HalfOpen { out: true, succeeded } = found else {
            return None;
        };
        if failed {
            return self.swap(found, self.open_until(now)).then_some(Change::Reopened);
        }
        let succeeded = succeeded + 1;
        if succeeded < TRIALS {
            self.swap(
                found,
                Word::HalfOpen {
                    out: false,
                    succeeded,
                },
            );
            return None;
        }
        // While the trial is out nobody else changes anything: what follows is seen by all with the last store.
        for word in &self.ring {
            word.store(0, Ordering::Relaxed);
        }
        self.next.store(0, Ordering::Relaxed);
        self.failed_next.store(0, Ordering::Relaxed);
        let now_ms = self.since_start(now);
        self.closed_ms.store(now_ms, Ordering::Relaxed);
        let open_ms = now_ms.saturating_sub(self.opened_ms.load(Ordering::Relaxed));
        self.swap(found, Word::Closed)
            .then_some(Change::Closed(Duration::from_millis(open_ms)))
    }

    /// The trial did not start, or was cut off: another one may be made.
    pub(crate) fn trial_given_back(&self) {
        let found = self.word();
        if let Word::HalfOpen { out: true, succeeded } = found {
            self.swap(
                found,
                Word::HalfOpen {
                    out: false,
                    succeeded,
                },
            );
        }
    }

    fn set(&self, place: u64, failed: bool) {
        let place = place % u64::from(self.terms.over).max(1);
        let Some(word) = self.ring.get((place / 64) as usize) else {
            return;
        };
        let bit = 1 << (place % 64);
        if failed {
            word.fetch_or(bit, Ordering::Relaxed);
        } else if word.load(Ordering::Relaxed) & bit != 0 {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
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
                let _ = (0..half).map(|_| world.fail(0)).count();
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
                    let opens =
                        attempts >= LEAST.min(u64::from(over)) && failures * 100 >= percent * attempts;
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
}
