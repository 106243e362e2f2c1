//! The window: log time per partition, and whether a record still counts.
//!
//! Age is *log time*: the partition's own highest timestamp, never a wall clock, so that downtime ages nothing
//! (Inv 6). Whether a record counts is asked with partition time as an argument and answered exactly; deletion is
//! lazy and lives in `sweep.rs`.

use crate::message::{NextOffset, Offset};
use crate::token::TokenKey;

/// The highest timestamp taken from one partition. It never runs backwards, and a jump ahead counts only once a
/// second message confirms it: one message stamped a year ahead would otherwise expire every token at once.
#[derive(Debug, Clone)]
pub struct PartitionTime {
    now_ms: Option<i64>,
    /// What the first message may be ahead of without being a jump: the wall clock at assignment.
    start_ms: i64,
    jump_max_ms: i64,
    unconfirmed: Option<(i64, TokenKey)>,
}

impl PartitionTime {
    /// Partition time as restored from the commit point, `None` before the first message. `start_ms` is the wall
    /// clock at assignment; a timestamp more than `jump_max_ms` ahead waits for confirmation.
    #[must_use]
    pub const fn new(restored_ms: Option<i64>, start_ms: i64, jump_max_ms: i64) -> Self {
        Self {
            now_ms: restored_ms,
            start_ms,
            jump_max_ms,
            unconfirmed: None,
        }
    }

    /// Partition time now, in milliseconds since the epoch; `None` before the first stamped message.
    #[must_use]
    pub const fn now_ms(&self) -> Option<i64> {
        self.now_ms
    }

    /// Whether a jump waits for its confirmation.
    #[must_use]
    pub const fn is_jump_pending(&self) -> bool {
        self.unconfirmed.is_some()
    }

    /// Takes a message and returns partition time after it: the time at which that message is judged.
    pub fn take(&mut self, timestamp_ms: Option<i64>, token: &TokenKey) -> i64 {
        let Some(stamp) = timestamp_ms else {
            return self.now_ms.unwrap_or(0);
        };
        let Some(now) = self.now_ms else {
            // The first message ever: the past is as good as any start, the far future needs confirmation.
            let known = if stamp.saturating_sub(self.start_ms) > self.jump_max_ms {
                self.jump(stamp, token)
            } else {
                Some(stamp)
            };
            let now = known.unwrap_or(self.start_ms);
            self.now_ms = Some(now);
            return now;
        };
        if stamp <= now {
            return now;
        }
        if stamp - now <= self.jump_max_ms {
            self.now_ms = Some(stamp);
            return stamp;
        }
        if let Some(confirmed) = self.jump(stamp, token) {
            self.now_ms = Some(confirmed);
            return confirmed;
        }
        now
    }

    /// Two messages of different tokens agree that time has moved at least to the lower of their stamps.
    fn jump(&mut self, stamp: i64, token: &TokenKey) -> Option<i64> {
        match self.unconfirmed.take() {
            Some((earlier, by)) if by != *token => {
                let confirmed = earlier.min(stamp);
                let beyond = earlier.max(stamp);
                // The higher one may be a jump of its own, seen from the time just confirmed.
                if beyond - confirmed > self.jump_max_ms {
                    self.unconfirmed = Some(if earlier > stamp {
                        (earlier, by)
                    } else {
                        (stamp, *token)
                    });
                    return Some(confirmed);
                }
                Some(beyond)
            }
            Some((earlier, by)) => {
                self.unconfirmed = Some((earlier.max(stamp), by));
                None
            }
            None => {
                self.unconfirmed = Some((stamp, *token));
                None
            }
        }
    }
}

/// How long a topic's outcomes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    length_ms: i64,
}

impl Window {
    /// A window of that many milliseconds of log time.
    #[must_use]
    pub const fn of_ms(length_ms: i64) -> Self {
        Self { length_ms }
    }

    /// Its length in milliseconds.
    #[must_use]
    pub const fn length_ms(self) -> i64 {
        self.length_ms
    }

    /// Whether a record counts for a message judged at `now_ms`: inside the window, or at or above the commit
    /// point at any age. The second half is the floor of Inv 6: whatever Kafka can still deliver again is remembered.
    #[must_use]
    pub fn holds(self, now_ms: i64, first_seen_ms: i64, offset: Offset, commit_point: NextOffset) -> bool {
        now_ms.saturating_sub(first_seen_ms) < self.length_ms || offset.0 >= commit_point.0
    }

    /// The oldest first seen that a look-up has to reach, given partition time at the commit point. Everything at
    /// or above the commit point was judged at that time or later, so this covers the floor as well.
    #[must_use]
    pub const fn reach_ms(self, time_at_commit_point_ms: i64) -> i64 {
        time_at_commit_point_ms.saturating_sub(self.length_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const A: TokenKey = TokenKey([1; 16]);
    const B: TokenKey = TokenKey([2; 16]);

    #[test]
    fn time_is_the_highest_stamp_and_never_runs_back() {
        let mut time = PartitionTime::new(Some(100), 0, HOUR);
        assert_eq!(time.take(Some(200), &A), 200);
        assert_eq!(time.take(Some(150), &B), 200);
        assert_eq!(time.take(None, &B), 200);
    }

    #[test]
    fn a_jump_at_the_limit_counts_at_once_and_one_past_it_waits() {
        let mut time = PartitionTime::new(Some(0), 0, HOUR);
        assert_eq!(time.take(Some(HOUR), &A), HOUR);
        assert_eq!(time.take(Some(2 * HOUR + 1), &A), HOUR);
        assert!(time.is_jump_pending());
    }

    /// Schedule 13: lagging seven days, window one day; one message is stamped now.
    #[test]
    fn a_clock_in_the_future_expires_nothing_until_another_token_confirms_it() {
        let now = 7 * 24 * HOUR;
        let mut time = PartitionTime::new(Some(0), 0, HOUR);
        assert_eq!(time.take(Some(now), &A), 0);
        assert_eq!(
            time.take(Some(now + 1), &A),
            0,
            "the same token confirms nothing: it may be resent by one bad clock"
        );
        assert_eq!(
            time.take(Some(10), &B),
            10,
            "lagging messages go on at their own time"
        );
        assert_eq!(time.take(Some(now + 5), &B), now + 5);
    }

    #[test]
    fn two_jumps_far_apart_confirm_only_the_nearer() {
        let mut time = PartitionTime::new(Some(0), 0, HOUR);
        assert_eq!(time.take(Some(1_000 * HOUR), &A), 0);
        assert_eq!(time.take(Some(10 * HOUR), &B), 10 * HOUR);
        assert!(time.is_jump_pending(), "the farther one still waits");
    }

    #[test]
    fn the_first_message_may_lie_in_the_past_but_not_far_in_the_future() {
        assert_eq!(PartitionTime::new(None, 500 * HOUR, HOUR).take(Some(3), &A), 3);
        assert_eq!(
            PartitionTime::new(None, 500 * HOUR, HOUR).take(Some(9_000 * HOUR), &A),
            500 * HOUR
        );
    }

    #[test]
    fn the_window_ends_exactly_at_its_length() {
        let window = Window::of_ms(HOUR);
        assert!(window.holds(HOUR - 1, 0, Offset(1), NextOffset(2)));
        assert!(!window.holds(HOUR, 0, Offset(1), NextOffset(2)));
    }

    #[test]
    fn what_kafka_can_deliver_again_is_remembered_at_any_age() {
        let window = Window::of_ms(HOUR);
        assert!(window.holds(1_000 * HOUR, 0, Offset(2), NextOffset(2)));
        assert!(!window.holds(1_000 * HOUR, 0, Offset(1), NextOffset(2)));
    }

    /// Schedule 7: partition time 100 h, window 1 h; an outbox message stamped 97 h and then its duplicate.
    #[test]
    fn a_late_message_gets_a_whole_window() {
        let mut time = PartitionTime::new(Some(100 * HOUR), 0, HOUR);
        let first_seen = time.take(Some(97 * HOUR), &A);
        let judged = time.take(Some(97 * HOUR + 1), &B);
        assert!(Window::of_ms(HOUR).holds(judged, first_seen, Offset(1), NextOffset(9)));
    }
}
