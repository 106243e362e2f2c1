//! The process's budget of messages and bytes in flight: what stops the poll thread from taking more (Inv 10).
//!
//! Counted per batch and per turn of a partition task, never per message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shared by the poll thread, which takes, and the partition tasks, which give back.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    messages_max: usize,
    bytes_max: usize,
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
    pub(crate) fn new(messages_max: usize, bytes_max: usize, waker: Waker) -> Self {
        Self(Arc::new(Inner {
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            messages_max,
            bytes_max,
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

    #[test]
    fn both_limits_stop_the_taking_and_what_is_given_back_can_be_taken_again() {
        let budget = Budget::new(10, 100, Waker::new(|| {}));
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
