//! The trim: what a changelog holds that nobody needs any more is deleted from its head.
//!
//! A frame is needed while an outcome in it is inside its window, while a token that it opened is open, and while it is
//! the last to say where its partition stands. So the owner of a partition looks how far every outcome is past by the time
//! at the *acknowledged* commit point (Inv 6, as the sweep does), has what is open written again with where the partition
//! stands, and deletes what lies below when that is committed. What is open moves to the end of the log with each trim,
//! and survives any number of them.
//!
//! Nothing here can be too late. That an outcome is past stays true, and what was open before the deletion point is above
//! it: a process that is frozen between the two steps, and is a zombie when it deletes, deletes what nobody needs. A crash
//! between them leaves a longer log. What is not deleted is only a longer log, too: a broker that refuses is a warning.
//!
//! Writing again must not cost more than is won: the log is trimmed when what can go is as long as what was written again
//! the last time. So a log is at most twice as long as what is needed of it, and a little.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::Duration;

use crate::clock::{self, Instant};
use crate::commits::Commits;
use crate::fence::Gate;
use crate::journal::extents::Extents;
use crate::store::{PartitionId, TopicId};
use crate::worker::Worker;

#[cfg(test)]
mod tests;

/// Deletes the head of changelogs. Every call blocks, and returns within a bounded time.
pub(crate) trait Cut: Send + 'static {
    /// Deletes what lies below that offset.
    ///
    /// # Errors
    /// [`Uncut`], and then it may be deleted or not.
    fn cut(&mut self, id: PartitionId, below: i64) -> Result<(), Uncut>;

    /// The name of a topic's changelog.
    fn changelog(&self, topic: TopicId) -> String;
}

/// Why the head of a changelog is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uncut {
    /// This user may not.
    NoRight,
    /// Anything else. It is tried again.
    Failed(String),
}

/// What the trim goes by.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) windows_ms: BTreeMap<TopicId, i64>,
    pub(crate) extents: Extents,
    pub(crate) commits: Commits,
}

/// A topic is looked at every quarter of its window, within these.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Less than this is not worth a transaction and a request.
const BYTES_MIN: u64 = 4 << 10;

/// A right that is missing is not granted within a minute.
const REFUSED_AGAIN: Duration = Duration::from_secs(600);

/// How soon an end is noticed while an answer is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// The trimmer's thread, which ends when this is dropped, after a request that is under way: it holds the journal.
pub(crate) struct Trimmer {
    _thread: Worker,
}

impl Trimmer {
    /// `rewrite` has what is open in a partition written again: how many bytes that was is told once it is committed.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(
        rules: Rules,
        rewrite: impl Fn(PartitionId, Gate) -> mpsc::Receiver<u64> + Send + 'static,
        mut cut: impl Cut,
    ) -> std::io::Result<Self> {
        let thread = Worker::start("hapax-trim", move |stopped| {
            let mut trim = Trim::new(rules);
            let stops = || stopped.try_recv() == Err(mpsc::TryRecvError::Disconnected);
            while stopped.recv_timeout(trim.rest(clock::now())) == Err(mpsc::RecvTimeoutError::Timeout) {
                let mut rewrite = |id, gate: &Gate| {
                    let rewritten = rewrite(id, gate.clone());
                    loop {
                        match rewritten.recv_timeout(LOOK) {
                            Ok(bytes) => return Some(bytes),
                            Err(mpsc::RecvTimeoutError::Timeout) if !stops() => {}
                            Err(_) => return None,
                        }
                    }
                };
                trim.pass(clock::now(), &mut rewrite, &mut cut);
            }
        })?;
        Ok(Self { _thread: thread })
    }
}

/// What the thread remembers.
struct Trim {
    rules: Rules,
    /// When a topic is looked at next.
    due: BTreeMap<TopicId, Instant>,
    /// How much was written again the last time.
    rewritten: BTreeMap<PartitionId, u64>,
    /// Topics of which was said that the right is missing.
    refused: BTreeSet<TopicId>,
    bytes_min: u64,
}

impl Trim {
    fn new(rules: Rules) -> Self {
        Self {
            rules,
            due: BTreeMap::new(),
            rewritten: BTreeMap::new(),
            refused: BTreeSet::new(),
            bytes_min: BYTES_MIN,
        }
    }

    /// Until the next topic is due.
    fn rest(&self, now: Instant) -> Duration {
        let (least, most) = EVERY;
        let next = self.due.values().min();
        next.map_or(least, |due| due.saturating_duration_since(now).clamp(least, most))
    }

    /// Trims whatever is due.
    fn pass(
        &mut self,
        now: Instant,
        rewrite: &mut dyn FnMut(PartitionId, &Gate) -> Option<u64>,
        cut: &mut dyn Cut,
    ) {
        let is_due = |topic: &TopicId| self.due.get(topic).is_none_or(|due| *due <= now);
        let windows = self.rules.windows_ms.iter();
        let due: BTreeMap<TopicId, i64> = windows
            .filter(|(topic, _)| is_due(topic))
            .map(|(topic, window_ms)| (*topic, *window_ms))
            .collect();
        for (topic, window_ms) in &due {
            let quarter = Duration::from_millis(u64::try_from(window_ms / 4).unwrap_or(0));
            self.due.insert(*topic, now + quarter.clamp(EVERY.0, EVERY.1));
        }
        for (id, gate, point) in self.rules.commits.served() {
            // Before a message with a timestamp nothing can be said to be past.
            if let (Some(window_ms), Some(time_ms)) = (due.get(&id.topic), point.time_ms) {
                self.trim(now, (id, &gate), time_ms.saturating_sub(*window_ms), rewrite, cut);
            }
        }
    }

    fn trim(
        &mut self,
        now: Instant,
        (id, gate): (PartitionId, &Gate),
        until_ms: i64,
        rewrite: &mut dyn FnMut(PartitionId, &Gate) -> Option<u64>,
        cut: &mut dyn Cut,
    ) {
        // Before anything is written again, so that what is written is not in it.
        let Some(past) = self.rules.extents.past(id, until_ms) else {
            return;
        };
        let before = self.rewritten.get(&id).copied().unwrap_or(0);
        if past.bytes < before.max(self.bytes_min) {
            return;
        }
        let Some(bytes) = rewrite(id, gate) else {
            // The assignment is over, or the journal is.
            return;
        };
        self.rewritten.insert(id, bytes);
        crate::crash::point("before-trim");
        if !gate.accepts() {
            return;
        }
        let changelog = cut.changelog(id.topic);
        match cut.cut(id, past.below) {
            Ok(()) => {
                self.rules.extents.cut(id, past.below);
                tracing::debug!(%changelog, partition = id.partition, below = past.below, rewritten = bytes, "trimmed");
            }
            Err(Uncut::NoRight) => {
                self.due.insert(id.topic, now + REFUSED_AGAIN);
                self.rules.extents.fold(id, past);
                if self.refused.insert(id.topic) {
                    tracing::warn!(
                        %changelog,
                        "the changelog cannot be trimmed, so it grows for ever: this user may not delete its records; \
                         grant it with `kafka-acls.sh --add --allow-principal User:<this user> --operation Delete --topic {changelog}`"
                    );
                }
            }
            Err(Uncut::Failed(why)) => {
                self.rules.extents.fold(id, past);
                tracing::warn!(%changelog, partition = id.partition, below = past.below, %why, "not trimmed; it is tried again");
            }
        }
    }
}
