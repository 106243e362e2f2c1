//! The fence: the number of one assignment of one partition.
//!
//! Whoever carries another number is refused (Inv 5). The runtime *mints* one when a partition is assigned and
//! *clears* it before unassign is called; the committer asks whether it is still *accepted*, and the journal *enters*
//! it for as long as a write takes. A revoked partition that comes back to the same process gets a new number, so that
//! work of the earlier assignment cannot write into the later one.
//!
//! Asking before a write is not enough: the journal asks, is told yes, and is held up; the partition is lost and
//! assigned again, and the new assignment loads what the store knows; then the old write lands behind its back. So
//! clearing waits for a write that has entered.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

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
    /// Whether the assignment lives.
    open: Arc<RwLock<bool>>,
}

/// Held while a write of one assignment is under way: until it is dropped the gate cannot be cleared.
#[derive(Debug)]
pub struct Entered<'a>(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, bool>);

impl Gate {
    /// Opens the gate of the assignment that follows `last`, the highest fence the store knows.
    #[must_use]
    pub fn mint(last: Fence) -> Self {
        Self {
            fence: Fence(last.0 + 1),
            open: Arc::new(RwLock::new(true)),
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
        *self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters to write; `None` once the assignment is over. Enter each gate once for a group: a thread that enters
    /// twice while another waits to clear would wait for itself.
    #[must_use]
    pub fn enter(&self) -> Option<Entered<'_>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.then(|| Entered(open))
    }

    /// Whether the other is a handle of the same assignment.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.open, &other.open)
    }

    /// Ends the assignment: nothing it produced is written from here on. Done *before* unassign, because from then
    /// on another member may own the partition, and Kafka itself refuses by generation, not by ownership. Waits for a
    /// write that is under way: as long as one sync takes.
    pub fn clear(&self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
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
            !held_by_the_journal.accepts() && held_by_the_journal.enter().is_none(),
            "work of the first assignment is refused"
        );
        assert!(second.accepts());
        assert!(second.fence() > first.fence());
    }

    #[test]
    fn an_assignment_ends_after_the_write_that_is_under_way() {
        let gate = Gate::mint(Fence(0));
        let entered = gate.enter();
        assert!(entered.is_some());
        std::thread::scope(|scope| {
            let clearing = scope.spawn(|| gate.clear());
            // While the write is under way nobody can clear: the lock itself says so, no time has to pass.
            assert!(gate.open.try_write().is_err());
            drop(entered);
            clearing.join().unwrap();
        });
        assert!(!gate.accepts());
    }
}
