//! The standby: copies of the windows that other members own, kept up from their changelogs, so that taking over costs only
//! the tail.
//!
//! A copy is what a restore would have made of the same frames, by the same code ([`Intake`]); so the restore goes on where
//! it stands. Here is what happens to frames, and to partitions that come and go meanwhile; who reads them is the broker's
//! edge, and who may write to which copy is said in [`crate::copies`]. Nothing here ends the consumer: what cannot be read
//! stops one copy, and whoever is assigned that partition is told the same by its restore.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::copies::{Copies, Turn};
use crate::error::Error;
use crate::metrics::StandbyMeters;
use crate::recovery::{Intake, Most, Source};
use crate::store::{PartitionId, Store, TopicId};

/// What waits of one partition before it is applied. Little: a partition that comes here waits for it.
const MOST: Most = Most {
    records: 10_000,
    bytes: 4 << 20,
};

/// One topic whose windows are kept.
pub(crate) struct Of {
    pub(crate) source: Source,
    pub(crate) meters: StandbyMeters,
}

/// See the module.
pub(crate) struct Standby {
    store: Arc<dyn Store>,
    copies: Copies,
    topics: BTreeMap<TopicId, Of>,
    tails: BTreeMap<PartitionId, Tail>,
}

struct Tail {
    intake: Intake,
    since: Turn,
    meters: StandbyMeters,
    /// Records that were counted.
    counted: u64,
    /// It stands at the end of what is committed.
    at_end: bool,
    /// It has stood there, and that was said.
    said: bool,
}

impl Standby {
    pub(crate) fn new(store: Arc<dyn Store>, copies: Copies, topics: BTreeMap<TopicId, Of>) -> Self {
        Self {
            store,
            copies,
            topics,
            tails: BTreeMap::new(),
        }
    }

    /// The name of a topic's changelog, by topic.
    pub(crate) fn changelogs(&self) -> BTreeMap<TopicId, String> {
        let names = self.topics.iter();
        names.map(|(id, of)| (*id, of.source.changelog.clone())).collect()
    }

    /// Whether a copy of it is to be kept up, and is not.
    pub(crate) fn lacks(&self, id: PartitionId) -> bool {
        !self.tails.contains_key(&id) && self.copies.free(id).is_some()
    }

    /// Keeps up a copy of a partition from here on, whose changelog has `low..high` now.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn begin(&mut self, id: PartitionId, log: (i64, i64)) -> Result<(), Error> {
        let Some(of) = self.topics.get(&id.topic) else {
            return Ok(());
        };
        // What is outside the log is forgotten, which is a write as well.
        let Some((since, writing)) = self
            .copies
            .free(id)
            .and_then(|since| Some((since, self.copies.write(id, since)?)))
        else {
            return Ok(());
        };
        let (intake, _) = Intake::begin(&self.store, id, of.source.clone(), log, MOST)?;
        drop(writing);
        let tail = Tail {
            intake,
            since,
            meters: of.meters.clone(),
            counted: 0,
            at_end: false,
            said: false,
        };
        self.tails.insert(id, tail);
        self.behind(id, log.1);
        Ok(())
    }

    /// What is kept up, with its changelog and where its reading goes on. What has come here meanwhile is not.
    pub(crate) fn tails(&mut self) -> Vec<(PartitionId, String, i64)> {
        let gone: Vec<_> = self
            .tails
            .iter()
            .filter(|(id, tail)| self.copies.free(**id) != Some(tail.since))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.shed(id);
        }
        for (topic, of) in &self.topics {
            of.meters.stopped.set(self.copies.stopped_of(*topic) as f64);
        }
        let tails = self.tails.iter();
        tails
            .map(|(id, tail)| (*id, tail.intake.changelog().to_owned(), tail.intake.next()))
            .collect()
    }

    /// Takes one message of a changelog.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn message(&mut self, id: PartitionId, offset: i64, bytes: &[u8]) -> Result<(), Error> {
        let Some(tail) = self.tails.get_mut(&id) else {
            return Ok(());
        };
        tail.at_end = false;
        match tail.intake.message(offset, bytes) {
            Ok(()) if tail.intake.is_full() => self.apply(id),
            Ok(()) => Ok(()),
            Err(error) => {
                self.stop(id, &error);
                Ok(())
            }
        }
    }

    /// A copy stands at the end of what is committed, which is at that offset.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn end(&mut self, id: PartitionId, next: i64) -> Result<(), Error> {
        let Some(tail) = self.tails.get_mut(&id) else {
            return Ok(());
        };
        tail.intake.reach(next);
        if tail.intake.is_ahead() {
            self.apply(id)?;
        }
        let Some(tail) = self.tails.get_mut(&id) else {
            return Ok(());
        };
        tail.at_end = true;
        tail.meters.lag(id.partition, 0);
        tracing::debug!(
            changelog = tail.intake.changelog(),
            partition = id.partition,
            next,
            "a copy is at the end"
        );
        if !std::mem::replace(&mut tail.said, true) {
            let read = tail.intake.read();
            tracing::info!(
                changelog = tail.intake.changelog(),
                partition = id.partition,
                frames = read.frames,
                records = read.records,
                next,
                "the copy of another member's window stands at the end of its changelog"
            );
        }
        Ok(())
    }

    /// Nothing more has come for now: what waits is applied.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn rest(&mut self) -> Result<(), Error> {
        let waiting: Vec<_> = self
            .tails
            .iter()
            .filter(|(_, tail)| tail.intake.is_ahead())
            .map(|(id, _)| *id)
            .collect();
        waiting.into_iter().try_for_each(|id| self.apply(id))
    }

    /// Those that do not stand at the end of their changelogs, as far as anybody knows.
    pub(crate) fn late(&self) -> Vec<PartitionId> {
        let late = self.tails.iter().filter(|(_, tail)| !tail.at_end);
        late.map(|(id, _)| *id).collect()
    }

    /// That changelog goes on until `high`.
    pub(crate) fn behind(&self, id: PartitionId, high: i64) {
        if let Some(tail) = self.tails.get(&id) {
            tail.meters
                .lag(id.partition, high.saturating_sub(tail.intake.next()).max(0));
        }
    }

    /// Its log has lost what was to be read next: what has not been applied is forgotten, and it is to be begun anew.
    pub(crate) fn shed(&mut self, id: PartitionId) {
        if let Some(tail) = self.tails.remove(&id) {
            tail.meters.lag(id.partition, 0);
        }
    }

    /// What there is in its changelog cannot be read. The copy stays at what was applied.
    fn stop(&mut self, id: PartitionId, why: &Error) {
        self.copies.stop(id);
        tracing::error!(
            why = %crate::error::chain(why),
            "the copy of another member's window is not kept up any more; whoever is assigned the partition meets the same, and stops"
        );
        if let Some(tail) = self.tails.remove(&id) {
            tail.meters.stopped.set(self.copies.stopped_of(id.topic) as f64);
        }
    }

    fn apply(&mut self, id: PartitionId) -> Result<(), Error> {
        let Some(tail) = self.tails.get_mut(&id) else {
            return Ok(());
        };
        // Held until it is in the store: whoever waits for the partition reads where the copy stands after this.
        let Some(writing) = self.copies.write(id, tail.since) else {
            self.shed(id);
            return Ok(());
        };
        tail.intake.apply()?;
        drop(writing);
        let records = tail.intake.read().records;
        tail.meters.records.increment(records - tail.counted);
        tail.counted = records;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
