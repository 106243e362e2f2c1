//! The pulse of the poll thread: how a partition task notices that the whole process stood still.
//!
//! A process that is frozen (a stopped container, a suspended machine) for longer than its session has lost its
//! partitions, and thaws believing that it owns them. Every thread goes on at the same moment: a task could start the
//! next handler before the poll thread has looked at its clock. So a task that finds the pulse stale starts and polls
//! nothing until the poll thread has turned once, and has either ended the assignment or found everything well.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Instant;

/// What the poll thread serves nothing of, though it was given it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Unserved {
    /// Why each partition is refused that is: cold, or its log is not what it was.
    pub(crate) refused: Vec<String>,
    /// Partitions of which the broker has not said yet where they start.
    pub(crate) arriving: usize,
    /// Partitions whose changelog is being read, or whose fence is on its way there.
    pub(crate) restoring: usize,
    /// Partitions whose window is being read back from their topic.
    pub(crate) rebuilding: usize,
}

/// How far the readings are that partitions wait for. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<Readings>>);

/// By topic and partition: offsets read, and of how many.
type Readings = BTreeMap<(u16, i32), (i64, i64)>;

impl Progress {
    fn map(&self) -> MutexGuard<'_, Readings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much is read of that topic's partition, of so much.
    pub(crate) fn note(&self, topic: u16, partition: i32, read: i64, of: i64) {
        self.map().insert((topic, partition), (read.min(of), of));
    }

    /// Nothing is read any more.
    pub(crate) fn clear(&self) {
        self.map().clear();
    }

    /// Offsets that are read, and of how many.
    pub(crate) fn total(&self) -> (i64, i64) {
        self.map()
            .values()
            .fold((0, 0), |(read, of), one| (read + one.0, of + one.1))
    }
}

/// Shared by the poll thread, which beats once a turn, and the partition tasks.
#[derive(Debug, Clone)]
pub(crate) struct Pulse(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    last_ms: AtomicU64,
    session_max: Duration,
}

impl Pulse {
    /// A pulse that is stale once it is older than `session_max`.
    pub(crate) fn new(now: Instant, session_max: Duration) -> Self {
        Self(Arc::new(Inner {
            start: now,
            last_ms: AtomicU64::new(0),
            session_max,
        }))
    }

    /// The poll thread turned. Returns how long that took since the last time.
    pub(crate) fn beat(&self, now: Instant) -> Duration {
        let now_ms = self.since_start(now);
        let last_ms = self.0.last_ms.swap(now_ms, Ordering::AcqRel);
        Duration::from_millis(now_ms.saturating_sub(last_ms))
    }

    /// Whether the poll thread has not turned for longer than a session lasts.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        let age_ms = self
            .since_start(now)
            .saturating_sub(self.0.last_ms.load(Ordering::Acquire));
        Duration::from_millis(age_ms) > self.0.session_max
    }

    fn since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0.start).as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long the client may take to give back what was lost, before the group is joined anew all the same.
const JOIN_ANEW_MAX: Duration = Duration::from_secs(5);

/// A member that stood still, has lost everything, and is to join its group anew.
///
/// 1. The process stands still for longer than the pulse allows and less than the broker's session: all is lost here, and
///    the group has not noticed.
/// 2. It subscribes again while its client still has the old assignment, and states that as its own.
/// 3. The group gives it the same, so there is nothing to be assigned and no event: those partitions are the member's, for
///    as long as it lives, and nobody serves them.
#[derive(Debug)]
pub(crate) struct JoinAnew {
    at_last: Instant,
}

impl JoinAnew {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            at_last: now + JOIN_ANEW_MAX,
        }
    }

    /// Whether it may subscribe, while its client holds so many partitions (`None` where it does not say): once it has given
    /// everything back. A client that never does must not keep the member out for ever.
    pub(crate) fn is_due(&self, held: Option<usize>, now: Instant) -> bool {
        held == Some(0) || now >= self.at_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_stale_after_the_session_and_fresh_after_the_next_beat() {
        let start = crate::clock::now();
        let pulse = Pulse::new(start, Duration::from_secs(6));
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!pulse.is_stale(at(6_000)));
        assert!(pulse.is_stale(at(6_001)));
        assert_eq!(pulse.beat(at(6_001)), Duration::from_millis(6_001));
        assert!(!pulse.is_stale(at(6_001)));
    }

    #[test]
    fn a_member_that_stood_still_joins_anew_only_once_it_has_given_everything_back() {
        let start = crate::clock::now();
        let joins = JoinAnew::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert!(
            !joins.is_due(Some(1), at(0)),
            "it would be given the same, unheard"
        );
        assert!(!joins.is_due(None, at(0)), "nobody knows what it holds");
        assert!(joins.is_due(Some(0), at(0)));
        assert!(!joins.is_due(Some(1), at(4_999)));
        assert!(joins.is_due(Some(1), at(5_000)), "not for ever");
        assert!(joins.is_due(None, at(5_000)));
    }
}
