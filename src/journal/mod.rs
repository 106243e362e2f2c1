//! The journal: the durable log of states. What a partition submits is durable when its acknowledgement says so, and
//! nothing is complete before (Inv 1).
//!
//! Many partitions share one journal. Each submits groups of [`Changes`] in order and learns how far it is durable
//! through its own [`Acks`]; there is no reply per message.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::broker::Letter;
use crate::fence::Gate;
use crate::ledger::CommitPoint;
use crate::store::Changes;

pub(crate) mod extents;
pub(crate) mod frame;
pub mod local;
pub(crate) mod replicated;

/// One group of one partition, in the order of its number.
#[derive(Debug)]
pub struct Submission {
    /// Whose assignment this is. A cleared one writes nothing (Inv 5).
    pub gate: Gate,
    /// Where the acknowledgement goes.
    pub acks: Arc<Acks>,
    /// The number of this submission: 1, 2, 3, …
    pub number: u64,
    /// What is to become durable.
    pub changes: Changes,
    /// Dead letters that become visible with it, together or not at all. Only the replicated journal takes them.
    pub letters: Vec<Letter>,
    /// Where the broker has the partition, in a group without a position: a rebuild's. It goes into the transaction, not
    /// into the changelog.
    pub stands: Option<CommitPoint>,
}

impl Submission {
    /// How much it is, in records and letters.
    pub(crate) fn entries(&self) -> usize {
        let changes = &self.changes;
        changes.closed.len() + changes.removed.len() + changes.opened.len() + self.letters.len()
    }
}

/// How far the groups of one assignment are durable.
#[derive(Debug, Default)]
pub struct Acks {
    durable: AtomicU64,
    failed: OnceLock<Failure>,
    changed: Notify,
}

/// Why a journal writes no more for an assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The assignment is over. Nothing of the group was written; its messages belong to the next owner.
    #[error("the assignment is over")]
    Fenced,
    /// A durable write failed. Nothing more runs, the process stops. Mend the disk and start again.
    #[error("a durable write failed: {0}")]
    Broken(String),
}

impl Acks {
    /// The number of the last durable submission, or why there will be no other.
    ///
    /// # Errors
    /// [`Failure`]: what was submitted after [`durable`](Self::durable) was not written.
    pub fn state(&self) -> Result<u64, Failure> {
        match self.failed.get() {
            Some(failure) => Err(failure.clone()),
            None => Ok(self.durable()),
        }
    }

    /// The number of the last durable submission.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Waits until there is something new. Cancel safe; may wake without news.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(crate) fn acknowledge(&self, number: u64) {
        self.durable.store(number, Ordering::Release);
        self.changed.notify_one();
    }

    pub(crate) fn fail(&self, failure: Failure) {
        // The first failure is the cause, what follows is its echo.
        let _ = self.failed.set(failure);
        self.changed.notify_one();
    }
}

/// Takes groups and makes them durable.
pub trait Journal: Send + Sync + 'static {
    /// Hands over one group. Never blocks; the answer comes through `acks`.
    fn submit(&self, submission: Submission);
}
