//! The retry budget of one handler: how many retries there may be beside the attempts that there are.
//!
//! Source of the formula: "Handling Overload" in *Site Reliability Engineering* (Google, 2016), where a client stops retrying once
//! retries are a tenth of its requests, and Finagle's `RetryBudget`, which adds a floor a second for clients that ask seldom. Here,
//! within the last [`WINDOW`]: retries ≤ share × attempts + `per_second` × [`WINDOW`], retries being attempts themselves. So with a
//! share of 0.2 a downstream that fails everything is asked a quarter more often than without retries, whatever each message
//! may have.
//!
//! A retry for which there is nothing left *waits* (`partition/starts.rs`): a budget decides when, never whether. Shared by all
//! tasks of a topic without a lock: a bucket a second, each one word, so that who counts and who takes exclude one another by
//! one compare-and-swap.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Instant, millis};
use crate::config::RetryBudget as Terms;

/// How far back attempts and retries are counted.
pub(crate) const WINDOW: Duration = Duration::from_secs(BUCKETS as u64);

const BUCKETS: usize = 10;
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// What was counted in one second. A million is as good as more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    /// The second, its lower 24 bits: one that is 194 days old is not taken for this one, since a bucket is asked every second
    /// or means nothing.
    second: u64,
    attempts: u64,
    retries: u64,
}

const SECOND_MASK: u64 = (1 << 24) - 1;

impl Bucket {
    fn pack(self) -> u64 {
        let count = |count: u64| count.min(COUNT_MAX);
        self.second << (2 * COUNT_BITS) | count(self.attempts) << COUNT_BITS | count(self.retries)
    }

    const fn unpack(word: u64) -> Self {
        Self {
            second: word >> (2 * COUNT_BITS),
            attempts: word >> COUNT_BITS & COUNT_MAX,
            retries: word & COUNT_MAX,
        }
    }

    /// This bucket, as it counts in that second: empty where it was another's.
    const fn of(self, second: u64) -> Self {
        if self.second == second {
            return self;
        }
        Self {
            second,
            attempts: 0,
            retries: 0,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    terms: Terms,
    start: Instant,
    buckets: [AtomicU64; BUCKETS],
}

impl RetryBudget {
    /// A whole one.
    pub(crate) fn new(terms: Terms, now: Instant) -> Self {
        Self {
            terms,
            start: now,
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Seconds since the start, from 1: 0 is what no bucket was used in.
    fn second(&self, now: Instant) -> u64 {
        let since_ms = millis(now.saturating_duration_since(self.start)).unsigned_abs();
        since_ms / 1_000 + 1
    }

    fn bucket(&self, second: u64) -> &AtomicU64 {
        let [first, ..] = &self.buckets;
        self.buckets
            .get((second % BUCKETS as u64) as usize)
            .unwrap_or(first)
    }

    /// So many attempts started.
    pub(crate) fn started(&self, count: u64, now: Instant) {
        if count == 0 || !self.terms.is_limited() {
            return;
        }
        let second = self.second(now);
        let add = |word| {
            let bucket = Bucket::unpack(word).of(second & SECOND_MASK);
            let attempts = bucket.attempts + count;
            Some(Bucket { attempts, ..bucket }.pack())
        };
        // It cannot fail: every word is answered.
        let _ = self
            .bucket(second)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// Takes one retry, if there is one left.
    pub(crate) fn take(&self, now: Instant) -> bool {
        if !self.terms.is_limited() {
            return true;
        }
        let second = self.second(now);
        let take = |word| {
            let bucket = Bucket::unpack(word).of(second & SECOND_MASK);
            let (attempts, retries) = self.before(second);
            let allowed = self.terms.share.of(attempts + bucket.attempts)
                + u64::from(self.terms.per_second) * BUCKETS as u64;
            let retries_now = bucket.retries + 1;
            (retries + retries_now <= allowed).then(|| {
                Bucket {
                    retries: retries_now,
                    ..bucket
                }
                .pack()
            })
        };
        self.bucket(second)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_ok()
    }

    /// Attempts and retries of the window before that second.
    fn before(&self, second: u64) -> (u64, u64) {
        let oldest = second.saturating_sub(BUCKETS as u64 - 1).max(1);
        (oldest..second).fold((0, 0), |(attempts, retries), earlier| {
            let bucket = Bucket::unpack(self.bucket(earlier).load(Ordering::Acquire));
            let bucket = bucket.of(earlier & SECOND_MASK);
            (attempts + bucket.attempts, retries + bucket.retries)
        })
    }

    /// When something is left again at the earliest, should nothing start meanwhile: at the end of this second its oldest
    /// bucket leaves the window.
    pub(crate) fn next_turn(&self, now: Instant) -> Instant {
        self.start + Duration::from_secs(self.second(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Share;

    struct World {
        budget: RetryBudget,
        start: Instant,
    }

    impl World {
        fn new(share: &str, per_second: u32) -> Self {
            let start = crate::clock::now();
            let terms = Terms {
                share: Share::parse(share).unwrap(),
                per_second,
            };
            Self {
                budget: RetryBudget::new(terms, start),
                start,
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// Takes what is left.
        fn drain(&self, ms: u64) -> u64 {
            (0..1_000_000)
                .take_while(|_| self.budget.take(self.at(ms)))
                .count() as u64
        }
    }

    #[test]
    fn the_floor_is_there_without_any_attempt_and_is_spent_once() {
        let world = World::new("0.2", 10);
        assert_eq!(world.drain(0), 100);
        assert_eq!(world.drain(9_999), 0);
        assert_eq!(world.drain(10_000), 100, "they have left the window");
    }

    #[test]
    fn the_share_is_exact() {
        let world = World::new("0.2", 1);
        world.budget.started(1_004, world.at(0));
        assert_eq!(world.drain(0), 10 + 200);
        world.budget.started(1, world.at(5_000));
        assert_eq!(world.drain(5_000), 1, "1005 attempts");
    }

    /// Attempts and retries leave the window in the second in which they are ten seconds old.
    #[test]
    fn the_window_slides_by_seconds() {
        let world = World::new("0.5", 1);
        world.budget.started(100, world.at(0));
        world.budget.started(40, world.at(3_000));
        assert_eq!(world.drain(0), 60, "not those of a later second");
        assert_eq!(world.drain(9_999), 20);
        assert_eq!(world.drain(10_000), 10 + 20 - 20);
        assert_eq!(world.drain(12_999), 0);
        assert_eq!(world.drain(13_000), 0, "20 of the tenth second still count");
        assert_eq!(world.drain(19_999), 0, "10 of the eleventh do");
        assert_eq!(world.drain(20_000), 10);
    }

    #[test]
    fn a_share_of_all_is_no_budget_and_a_share_of_nothing_the_floor() {
        let all = World::new("1", 1);
        assert!((0..10_000).all(|_| all.budget.take(all.start)));
        let none = World::new("0", 2);
        none.budget.started(1_000_000, none.start);
        assert_eq!(none.drain(0), 20);
    }

    #[test]
    fn more_than_a_bucket_counts_is_the_most_that_it_counts() {
        let world = World::new("0.5", 1);
        world.budget.started(u64::from(u32::MAX), world.start);
        world.budget.started(u64::from(u32::MAX), world.start);
        assert_eq!(world.drain(0), 10 + COUNT_MAX / 2);
    }

    /// A process that stood still has a whole budget; a task that goes by an older reading than another takes nothing twice.
    #[test]
    fn clocks_that_leap_or_lag_do_no_harm() {
        let world = World::new("0.2", 10);
        assert_eq!(world.drain(5_000), 100);
        assert_eq!(world.drain(1_000_000_000), 100);
        let (earlier, later) = (crate::clock::now(), World::new("0.2", 10));
        assert!(later.budget.take(earlier), "before its start");
        assert_eq!(later.drain(0), 99);
    }

    #[test]
    fn a_turn_comes_with_the_next_second() {
        let world = World::new("0.2", 1);
        assert_eq!(world.budget.next_turn(world.at(0)), world.at(1_000));
        assert_eq!(world.budget.next_turn(world.at(999)), world.at(1_000));
        assert_eq!(world.budget.next_turn(world.at(1_000)), world.at(2_000));
    }

    #[test]
    fn tasks_at_once_take_no_more_than_there_is() {
        let world = World::new("0.5", 10);
        world.budget.started(200, world.start);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| taken.fetch_add(world.drain(0), Ordering::SeqCst));
            }
        });
        assert_eq!(taken.into_inner(), 200);
    }
}
