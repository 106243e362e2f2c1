//! Recovery: what is read of a changelog becomes what the store knows.
//!
//! One path for every reason to read one: an assignment, a restart, a lost disk. It resumes where the store stands if the
//! log still begins before that, and otherwise forgets what the store has of the partition and reads all of it: the
//! changelog wins over whatever the disk says. Frames are applied in their order, together with how far that is, so that a
//! restart in the middle resumes there.

use std::sync::Arc;

use crate::error::Error;
use crate::journal::frame::{self, Owner};
use crate::store::{Changes, PartitionId, Store};

/// Records applied to the store at a time: enough to share a write, few enough to be held in memory.
const APPLY: usize = 20_000;

/// One partition that is being read.
pub(crate) struct Recovery {
    id: PartitionId,
    changelog: String,
    owner: Owner,
    store: Arc<dyn Store>,
    pending: Vec<Changes>,
    entries: usize,
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
    /// `low..high`.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn begin(
        store: &Arc<dyn Store>,
        id: PartitionId,
        changelog: &str,
        owner: Owner,
        (low, high): (i64, i64),
    ) -> Result<(Self, i64), Error> {
        let from = match store.load(id)?.changelog {
            // Nothing was deleted that the store has not seen, and it is no log that was made again.
            Some(next) if (low..=high).contains(&next) => next,
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
                low
            }
        };
        let recovery = Self {
            id,
            changelog: changelog.to_owned(),
            owner,
            store: Arc::clone(store),
            pending: Vec::new(),
            entries: 0,
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
        self.pending.push(changes);
        if self.entries >= APPLY {
            self.apply()?;
        }
        Ok(())
    }

    /// Everything is read; the changelog goes on at `next`.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn end(mut self, next: i64) -> Result<Progress, Error> {
        self.next = self.next.max(next);
        self.apply()?;
        Ok(self.read)
    }

    fn apply(&mut self) -> Result<(), Error> {
        self.store.apply_logged(&self.pending, &[(self.id, self.next)])?;
        self.pending.clear();
        self.entries = 0;
        Ok(())
    }
}
