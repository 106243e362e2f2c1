//! Recovery: what is read of a changelog becomes what the store knows.
//!
//! One path for every reason to read one: an assignment, a restart, a lost disk. It resumes where the store stands if the
//! log still begins before that, and otherwise forgets what the store has of the partition and reads all of it: the
//! changelog wins over whatever the disk says. Frames are applied in their order, together with how far that is, so that a
//! restart in the middle resumes there.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{self, Instant};
use crate::error::Error;
use crate::journal::extents::Extents;
use crate::journal::frame::{self, Owner};
use crate::metrics::RestoreMeters;
use crate::store::{Changes, PartitionId, Store};

/// Records that are held before they are applied to the store, of all partitions of one reading: about 100 MB. The more at
/// a time the better, since large groups are written as sorted files; too few do not make one.
const HELD: usize = 600_000;
const APPLY: std::ops::RangeInclusive<usize> = 10_000..=150_000;

/// How often it says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// One partition that is being read.
pub(crate) struct Recovery {
    id: PartitionId,
    changelog: String,
    owner: Owner,
    store: Arc<dyn Store>,
    extents: Extents,
    meters: RestoreMeters,
    /// What of the log is read.
    span: (i64, i64),
    begun: Instant,
    said: Instant,
    pending: Vec<Changes>,
    entries: usize,
    entries_max: usize,
    /// The changelog's offset after what is pending.
    next: i64,
    read: Progress,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Frames read.
    pub(crate) frames: u64,
    /// Records in them.
    pub(crate) records: u64,
}

impl Recovery {
    /// Begins with what the store has, and says from which offset on the changelog is to be read. The log has
    /// `low..high`; so many `partitions` are read together.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn begin(
        store: &Arc<dyn Store>,
        extents: &Extents,
        id: PartitionId,
        (topic, changelog): (&str, &str),
        owner: Owner,
        (low, high): (i64, i64),
        partitions: usize,
    ) -> Result<(Self, i64), Error> {
        let from = match store.load(id)?.changelog {
            // Nothing was deleted that the store has not seen, and it is no log that was made again.
            Some(next) if (low..=high).contains(&next) => {
                extents.resume(id, next, store.seen_until(id)?);
                next
            }
            known => {
                if let Some(next) = known {
                    tracing::warn!(
                        changelog,
                        partition = id.partition,
                        next,
                        low,
                        high,
                        "the store's copy is outside the changelog; it is forgotten and read anew"
                    );
                }
                store.clear(id)?;
                extents.begin(id);
                low
            }
        };
        if from < high {
            tracing::info!(
                changelog,
                partition = id.partition,
                from,
                to = high,
                "restoring from the changelog"
            );
        }
        let now = clock::now();
        let recovery = Self {
            id,
            changelog: changelog.to_owned(),
            owner,
            store: Arc::clone(store),
            extents: extents.clone(),
            meters: RestoreMeters::new(topic),
            span: (from, high),
            begun: now,
            said: now,
            pending: Vec::new(),
            entries: 0,
            entries_max: (HELD / partitions.max(1)).clamp(*APPLY.start(), *APPLY.end()),
            next: from,
            read: Progress::default(),
        };
        Ok((recovery, from))
    }

    /// Takes one message of the changelog.
    ///
    /// # Errors
    /// [`Error::Changelog`] where it is not a frame of this group and topic, and a store that fails.
    pub(crate) fn message(&mut self, offset: i64, bytes: &[u8]) -> Result<(), Error> {
        let unreadable = |why: String| Error::Changelog {
            topic: self.changelog.clone(),
            partition: self.id.partition,
            offset,
            why,
        };
        let (head, changes) = frame::decode(bytes, self.id).map_err(|error| unreadable(error.to_string()))?;
        if head.owner != self.owner {
            return Err(unreadable(
                "it was written by another group or for another topic; two groups share this changelog: give one of them another name".into(),
            ));
        }
        let records = changes.closed.len() + changes.removed.len() + changes.opened.len();
        self.read.frames += 1;
        self.read.records += records as u64;
        self.entries += records + 1;
        self.next = offset + 1;
        self.extents
            .extend(self.id, self.next, bytes.len() as u64, [&changes]);
        self.pending.push(changes);
        if self.entries >= self.entries_max {
            self.apply()?;
            self.say();
        }
        Ok(())
    }

    /// A restore of minutes says that it goes on.
    fn say(&mut self) {
        let now = clock::now();
        if now.saturating_duration_since(self.said) < SAY_EVERY {
            return;
        }
        self.said = now;
        let (from, to) = self.span;
        let percent = (self.next - from) * 100 / (to - from).max(1);
        tracing::info!(
            changelog = %self.changelog, partition = self.id.partition, records = self.read.records,
            records_per_second = self.rate(now), at = self.next, to, "restoring, {percent} %"
        );
    }

    fn rate(&self, now: Instant) -> u64 {
        let took = now.saturating_duration_since(self.begun).as_secs_f64();
        (self.read.records as f64 / took.max(0.001)) as u64
    }

    /// Everything is read; the changelog goes on at `next`.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn end(mut self, next: i64) -> Result<Progress, Error> {
        self.next = self.next.max(next);
        self.apply()?;
        let now = clock::now();
        let took = now.saturating_duration_since(self.begun);
        self.meters.took(took);
        tracing::info!(
            changelog = %self.changelog, partition = self.id.partition, frames = self.read.frames,
            records = self.read.records, records_per_second = self.rate(now), ?took, "restored from the changelog"
        );
        Ok(self.read)
    }

    fn apply(&mut self) -> Result<(), Error> {
        self.store.apply_logged(&self.pending, &[(self.id, self.next)])?;
        self.meters.restored(self.read.records);
        self.pending.clear();
        self.entries = 0;
        Ok(())
    }
}
