//! The process's budget of messages and bytes, in flight and held: what stops the taking (Inv 10).
//!
//! In flight is counted per batch and per turn of a partition task, never per message; held as it happens, which is
//! seldom.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::config::Limits;

/// Shared by the poll thread, which takes, and the partition tasks, which give back.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    messages_max: usize,
    bytes_max: usize,
    held: AtomicUsize,
    held_bytes: AtomicU64,
    held_max: usize,
    held_bytes_max: u64,
    waker: Waker,
}

/// Wakes the poll thread: something that it waited for may be there.
#[derive(Clone)]
pub(crate) struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    pub(crate) fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    pub(crate) fn wake(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}

/// A batch's share of the bytes, given back when the batch is dropped.
pub(crate) struct Lease {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, waker: Waker) -> Self {
        Self(Arc::new(Inner {
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            messages_max: limits.in_flight,
            bytes_max: usize::try_from(limits.in_flight_bytes.0).unwrap_or(usize::MAX),
            held: AtomicUsize::new(0),
            held_bytes: AtomicU64::new(0),
            held_max: limits.held,
            held_bytes_max: limits.held_bytes.0,
            waker,
        }))
    }

    /// How many messages may be taken now; 0 also where the bytes are spent. One batch may go over the bytes: a
    /// message larger than the limit must still be taken some time.
    pub(crate) fn room(&self) -> usize {
        if self.0.bytes.load(Ordering::Relaxed) >= self.0.bytes_max {
            return 0;
        }
        self.0
            .messages_max
            .saturating_sub(self.0.messages.load(Ordering::Relaxed))
    }

    /// Takes a batch's share.
    pub(crate) fn take(&self, messages: usize, bytes: usize) -> Lease {
        self.0.messages.fetch_add(messages, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Lease {
            budget: self.clone(),
            bytes,
        }
    }

    /// Wakes whoever takes, because a partition has room again.
    pub(crate) fn wake(&self) {
        self.0.waker.wake();
    }

    /// One message more is held, in whichever partition.
    pub(crate) fn hold(&self, bytes: usize) {
        self.0.held.fetch_add(1, Ordering::Relaxed);
        self.0.held_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Messages are held no longer, or no longer here.
    pub(crate) fn let_go(&self, messages: usize, bytes: usize) {
        let before = self.0.held.fetch_sub(messages, Ordering::Relaxed);
        assert!(
            before >= messages,
            "{messages} messages let go, {before} were held"
        );
        self.0.held_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Whether no more may be held: then no partition takes more, until something held is decided or too old.
    pub(crate) fn is_held_full(&self) -> bool {
        self.0.held.load(Ordering::Relaxed) >= self.0.held_max
            || self.0.held_bytes.load(Ordering::Relaxed) >= self.0.held_bytes_max
    }

    /// Messages are complete, or released.
    pub(crate) fn give_back(&self, messages: usize) {
        let before = self.0.messages.fetch_sub(messages, Ordering::Relaxed);
        assert!(
            before >= messages,
            "{messages} messages given back, {before} were in flight"
        );
        if before >= self.0.messages_max {
            self.0.waker.wake();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let inner = &self.budget.0;
        let before = inner.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if before >= inner.bytes_max {
            inner.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ByteCount, Durability};

    fn budget(change: impl FnOnce(&mut Limits)) -> Budget {
        let mut limits = Limits::of(Durability::Local);
        change(&mut limits);
        Budget::new(&limits, Waker::new(|| {}))
    }

    #[test]
    fn what_is_held_is_bounded_by_number_and_by_bytes() {
        let by_number = budget(|limits| limits.held = 2);
        by_number.hold(1);
        assert!(!by_number.is_held_full());
        by_number.hold(1);
        assert!(by_number.is_held_full());
        by_number.let_go(1, 1);
        assert!(!by_number.is_held_full());
        let by_bytes = budget(|limits| limits.held_bytes = ByteCount(10));
        by_bytes.hold(10);
        assert!(by_bytes.is_held_full());
    }

    #[test]
    fn both_limits_stop_the_taking_and_what_is_given_back_can_be_taken_again() {
        let budget = budget(|limits| (limits.in_flight, limits.in_flight_bytes) = (10, ByteCount(100)));
        let lease = budget.take(4, 150);
        assert_eq!(budget.room(), 0, "bytes are spent");
        drop(lease);
        assert_eq!(budget.room(), 6);
        let _lease = budget.take(6, 1);
        assert_eq!(budget.room(), 0);
        budget.give_back(10);
        assert_eq!(budget.room(), 10);
    }
}
