//! Wanted: the partitions that a thread beside the poll thread is asked for, and whether anybody still wants them.
//!
//! A partition that goes and comes back has another ticket: what is done under the old one is nobody's any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::store::PartitionId;

/// Names one wish. A later wish for the same partition has another.
pub(crate) type Ticket = u64;

/// How often whoever waits looks whether anybody still wants it.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Shared by whoever wishes, and the thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted(Arc<Mutex<Wishes>>);

#[derive(Debug, Default)]
struct Wishes {
    of: BTreeMap<PartitionId, Ticket>,
    last: Ticket,
}

impl Wanted {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That partition is wanted from here on, under this ticket.
    pub(crate) fn want(&self, id: PartitionId) -> Ticket {
        let mut wishes = self.wishes();
        wishes.last += 1;
        let ticket = wishes.last;
        wishes.of.insert(id, ticket);
        ticket
    }

    pub(crate) fn wants(&self, id: PartitionId, ticket: Ticket) -> bool {
        self.wishes().of.get(&id) == Some(&ticket)
    }

    /// Every partition that is wanted.
    pub(crate) fn ids(&self) -> Vec<PartitionId> {
        self.wishes().of.keys().copied().collect()
    }

    /// Nobody wants that partition any more.
    pub(crate) fn forget(&self, id: PartitionId) {
        self.wishes().of.remove(&id);
    }

    /// Nobody wants anything any more.
    pub(crate) fn forget_all(&self) {
        self.wishes().of.clear();
    }

    /// Waits until that wish is forgotten.
    pub(crate) fn await_forgotten(&self, id: PartitionId, ticket: Ticket) {
        while self.wants(id, ticket) {
            thread::park_timeout(LOOK);
        }
    }
}
