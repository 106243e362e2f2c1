//! Recovery: what is read of a changelog becomes what the store knows.
//!
//! One path for every reason to read one: an assignment, a restart, a lost disk, a copy that is kept up for others
//! ([`crate::standby`]). It resumes where the store stands if the log still begins before that, and otherwise forgets what
//! the store has of the partition and reads all of it: the changelog wins over whatever the disk says. Frames are applied in
//! their order, together with how far that is, so that a restart in the middle resumes there.

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

/// Bytes of frames that are held before they are applied, of one partition: open records may be long.
const BYTES_MAX: usize = 64 << 20;

/// How often it says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Whose changelog it is: its name, and what its frames say of themselves.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) changelog: String,
    pub(crate) owner: Owner,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Frames read.
    pub(crate) frames: u64,
    /// Records in them.
    pub(crate) records: u64,
}

/// What is held of one partition at most, before it is applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    pub(crate) records: usize,
    /// Of frames.
    pub(crate) bytes: usize,
}

/// What is read of one partition's changelog, on its way into the store.
pub(crate) struct Intake {
    id: PartitionId,
    source: Source,
    store: Arc<dyn Store>,
    most: Most,
    pending: Vec<Changes>,
    records: usize,
    bytes: usize,
    /// The changelog's offset after what is pending.
    next: i64,
    /// The changelog's offset that the store knows.
    applied: Option<i64>,
    read: Progress,
}

impl Intake {
    /// Begins with what the store has, and says whether that counts. The log has `low..high`.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn begin(
        store: &Arc<dyn Store>,
        id: PartitionId,
        source: Source,
        (low, high): (i64, i64),
        most: Most,
    ) -> Result<(Self, bool), Error> {
        let known = store.visit(id, &mut |_| {})?.changelog;
        // Nothing was deleted that the store has not seen, and it is no log that was made again.
        let resumed = known.filter(|next| (low..=high).contains(next));
        if resumed.is_none() {
            if let Some(next) = known {
                tracing::warn!(
                    changelog = source.changelog,
                    partition = id.partition,
                    next,
                    low,
                    high,
                    "the store's copy is outside the changelog; it is forgotten and read anew"
                );
            }
            store.clear(id)?;
        }
        let intake = Self {
            id,
            source,
            store: Arc::clone(store),
            most,
            pending: Vec::new(),
            records: 0,
            bytes: 0,
            next: resumed.unwrap_or(low),
            applied: resumed,
            read: Progress::default(),
        };
        Ok((intake, resumed.is_some()))
    }

    pub(crate) fn changelog(&self) -> &str {
        &self.source.changelog
    }

    /// Where the reading goes on.
    pub(crate) const fn next(&self) -> i64 {
        self.next
    }

    pub(crate) const fn read(&self) -> Progress {
        self.read
    }

    /// Takes one message of the changelog.
    ///
    /// # Errors
    /// [`Error::Changelog`] where it is not a frame of this group and topic.
    pub(crate) fn message(&mut self, offset: i64, bytes: &[u8]) -> Result<(), Error> {
        let unreadable = |why: String| Error::Changelog {
            topic: self.source.changelog.clone(),
            partition: self.id.partition,
            offset,
            why,
        };
        let (head, changes) = frame::decode(bytes, self.id).map_err(|error| unreadable(error.to_string()))?;
        if head.owner != self.source.owner {
            return Err(unreadable(
                "it was written by another group or for another topic; two groups share this changelog: give one of them another name".into(),
            ));
        }
        let records = changes.closed.len() + changes.removed.len() + changes.opened.len();
        self.read.frames += 1;
        self.read.records += records as u64;
        self.records += records + 1;
        self.bytes += bytes.len();
        self.next = offset + 1;
        self.pending.push(changes);
        Ok(())
    }

    /// Nothing committed lies below `next` that was not taken.
    pub(crate) fn reach(&mut self, next: i64) {
        self.next = self.next.max(next);
    }

    /// Whether it is time to apply.
    pub(crate) const fn is_full(&self) -> bool {
        self.records >= self.most.records || self.bytes >= self.most.bytes
    }

    /// Whether the store does not know all that was taken.
    pub(crate) fn is_ahead(&self) -> bool {
        self.applied != Some(self.next)
    }

    /// # Errors
    /// A store that fails.
    pub(crate) fn apply(&mut self) -> Result<(), Error> {
        self.store
            .apply_restored(&self.pending, &[(self.id, self.next)])?;
        self.applied = Some(self.next);
        self.pending.clear();
        self.records = 0;
        self.bytes = 0;
        Ok(())
    }
}

/// One partition that is being read because it is to be served.
pub(crate) struct Recovery {
    intake: Intake,
    extents: Extents,
    meters: RestoreMeters,
    /// What of the log is read.
    span: (i64, i64),
    begun: Instant,
    said: Instant,
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
        topic: &str,
        source: Source,
        log: (i64, i64),
        partitions: usize,
    ) -> Result<(Self, i64), Error> {
        let records = (HELD / partitions.max(1)).clamp(*APPLY.start(), *APPLY.end());
        let most = Most {
            records,
            bytes: BYTES_MAX,
        };
        let (intake, is_resumed) = Intake::begin(store, id, source, log, most)?;
        let (from, to) = (intake.next(), log.1);
        if is_resumed {
            extents.resume(id, from, store.seen_until(id)?);
        } else {
            extents.begin(id);
        }
        if from < to {
            tracing::info!(
                changelog = intake.changelog(),
                partition = id.partition,
                from,
                to,
                "restoring from the changelog"
            );
        }
        let now = clock::now();
        let recovery = Self {
            intake,
            extents: extents.clone(),
            meters: RestoreMeters::new(topic),
            span: (from, to),
            begun: now,
            said: now,
        };
        Ok((recovery, from))
    }

    /// Takes one message of the changelog.
    ///
    /// # Errors
    /// [`Error::Changelog`] where it is not a frame of this group and topic, and a store that fails.
    pub(crate) fn message(&mut self, offset: i64, bytes: &[u8]) -> Result<(), Error> {
        self.intake.message(offset, bytes)?;
        let last = self.intake.pending.last();
        self.extents
            .extend(self.intake.id, offset + 1, bytes.len() as u64, last);
        if self.intake.is_full() {
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
        let at = self.intake.next();
        let percent = (at - from) * 100 / (to - from).max(1);
        tracing::info!(
            changelog = self.intake.changelog(),
            partition = self.intake.id.partition,
            records = self.intake.read().records,
            records_per_second = self.rate(now),
            at,
            to,
            "restoring, {percent} %"
        );
    }

    fn rate(&self, now: Instant) -> u64 {
        let took = now.saturating_duration_since(self.begun).as_secs_f64();
        (self.intake.read().records as f64 / took.max(0.001)) as u64
    }

    /// Everything is read; the changelog goes on at `next`.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn end(mut self, next: i64) -> Result<Progress, Error> {
        self.intake.reach(next);
        self.apply()?;
        let now = clock::now();
        let took = now.saturating_duration_since(self.begun);
        self.meters.took(took);
        let read = self.intake.read();
        tracing::info!(
            changelog = self.intake.changelog(),
            partition = self.intake.id.partition,
            frames = read.frames,
            records = read.records,
            records_per_second = self.rate(now),
            ?took,
            "restored from the changelog"
        );
        Ok(read)
    }

    fn apply(&mut self) -> Result<(), Error> {
        self.intake.apply()?;
        self.meters.restored(self.intake.read().records);
        Ok(())
    }
}
