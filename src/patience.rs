//! Patience: how whoever needs an answer of the brokers asks, pauses, asks again, and gives up.
//!
//! Brokers that are away come back, and a topic that was made a moment ago has no leader yet: neither is a reason to end a
//! consumer. A right that is missing is one, and so is everything that is not about reaching a broker.

use std::time::Duration;

use crate::broker;
use crate::clock::Instant;
use crate::error::Error;

/// One question takes a quarter of the time that has been waited already: a broker that is slow is given longer, and one
/// question without an answer keeps nobody for long.
const PART: u32 = 4;
const QUESTION_MIN: Duration = Duration::from_millis(300);

/// Of a question that is on the way of a partition. A stop waits for the one that is under way.
pub(crate) const QUESTION_MAX: Duration = Duration::from_secs(3);

/// A question that failed is followed by another after a tenth of the time that has been waited already.
const PAUSE_PART: u32 = 10;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How often it is said that something is waited for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Brokers that are away for minutes come back; whoever waits for longer wants somebody to look.
pub(crate) const GIVE_UP: Duration = Duration::from_secs(600);

/// What whoever has waited so long gives one question, of this length at most.
pub(crate) fn question(waited: Duration, at_most: Duration) -> Duration {
    (waited / PART).clamp(QUESTION_MIN, at_most)
}

/// How long whoever has waited so long pauses before the next question.
pub(crate) fn pause(waited: Duration) -> Duration {
    (waited / PAUSE_PART).clamp(PAUSE_MIN, PAUSE_MAX)
}

/// Whether the next answer may be another: nobody answered, or could not.
pub(crate) const fn may_change(error: &Error) -> bool {
    matches!(
        error,
        Error::Broker(broker::Error::Unreachable { .. } | broker::Error::ChangelogRead { .. })
    )
}

/// Of one who says now and then that it waits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Said(Option<Instant>);

impl Said {
    /// Whether it is time to say it again; then it is said now.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self
            .0
            .is_none_or(|said| now.saturating_duration_since(said) > SAY_EVERY);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

/// Of one who waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// When it was last heard that it goes on.
    heard: Instant,
    said: Said,
}

impl Patience {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            heard: now,
            said: Said(None),
        }
    }

    /// It goes on: whatever was waited for before counts no more.
    pub(crate) const fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.said = Said(None);
    }

    pub(crate) fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// Whether it has waited for too long.
    pub(crate) fn is_spent(&self, now: Instant) -> bool {
        self.waited(now) > GIVE_UP
    }

    /// Whether it is time to say that it waits.
    pub(crate) fn says(&mut self, now: Instant) -> bool {
        self.said.is_due(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn whoever_has_waited_longer_asks_for_longer_and_less_often() {
        let most = Duration::from_secs(10);
        let asked = [0, 2_000, 8_000, 100_000].map(|waited| question(MS(waited), most));
        assert_eq!(asked, [300, 500, 2_000, 10_000].map(MS));
        let paused = [0, 1_000, 5_000, 100_000].map(|waited| pause(MS(waited)));
        assert_eq!(paused, [100, 100, 500, 2_000].map(MS));
    }

    #[test]
    fn patience_ends_ten_minutes_after_the_last_that_was_heard() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(start);
        assert!(!patience.is_spent(at(600)));
        patience.hear(at(600));
        assert!(!patience.is_spent(at(1_200)) && patience.is_spent(at(1_201)));
        assert_eq!(patience.waited(at(601)), Duration::from_secs(1));
    }

    #[test]
    fn it_is_said_at_once_and_then_every_so_often() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(start);
        let said: Vec<_> = (0..12).filter(|second| patience.says(at(*second))).collect();
        assert_eq!(said, [0, 6]);
        patience.hear(at(12));
        assert!(patience.says(at(12)), "of another wait");
    }

    /// A changelog that was made a moment ago has no leader yet: three that start together are told so.
    #[test]
    fn a_broker_that_does_not_answer_may_and_a_right_that_is_missing_does_not() {
        let text = String::new;
        let unreachable = broker::Error::Unreachable {
            brokers: text(),
            what: "asking",
            why: "NotLeaderForPartition".into(),
        };
        assert!(may_change(&unreachable.into()));
        let right = broker::Error::Right {
            what: text(),
            why: text(),
            command: text(),
        };
        assert!(!may_change(&right.into()));
        assert!(!may_change(&broker::Error::Config(text()).into()));
        assert!(!may_change(&Error::Internal(text())));
    }
}
