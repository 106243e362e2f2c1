//! The fence: the number of one assignment of one partition.
//!
//! Whoever carries another number is refused (Inv 5). The runtime *mints* one when a partition is assigned and
//! *clears* it before unassign is called; the journal and the committer ask whether it is still *accepted*,
//! immediately before they write. A revoked partition that comes back to the same process gets a new number, so
//! that work of the earlier assignment cannot write into the later one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of one assignment of one partition. Larger is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who may write for one assignment. Shared by its partition task, the journal and the committer.
#[derive(Debug, Clone)]
pub struct Gate {
    fence: Fence,
    /// The fence while the assignment lives, 0 once it is over. Numbers start at 1.
    current: Arc<AtomicU64>,
}

impl Gate {
    /// Opens the gate of the assignment that follows `last`, the highest fence the store knows.
    #[must_use]
    pub fn mint(last: Fence) -> Self {
        let fence = Fence(last.0 + 1);
        Self {
            fence,
            current: Arc::new(AtomicU64::new(fence.0)),
        }
    }

    /// The number of this assignment.
    #[must_use]
    pub const fn fence(&self) -> Fence {
        self.fence
    }

    /// Whether what this assignment produced may still be written, sent or committed.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.current.load(Ordering::Acquire) == self.fence.0
    }

    /// Ends the assignment: nothing it produced is written from here on. Done *before* unassign, because from then
    /// on another member may own the partition, and Kafka itself refuses by generation, not by ownership.
    pub fn clear(&self) {
        self.current.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_comes_back_is_another_assignment() {
        let first = Gate::mint(Fence(0));
        let held_by_the_journal = first.clone();
        assert!(held_by_the_journal.accepts());
        first.clear();
        let second = Gate::mint(first.fence());
        assert!(
            !held_by_the_journal.accepts(),
            "work of the first assignment is refused"
        );
        assert!(second.accepts());
        assert!(second.fence() > first.fence());
    }
}
