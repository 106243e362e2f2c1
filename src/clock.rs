//! The only place that reads a clock (Inv 11).
//!
//! Everything else is given the time. The wall clock dates records and bounds holds; timers run on tokio's clock,
//! which tests pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use tokio::time::Instant;

/// A source of time. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Kind);

#[derive(Debug, Clone, Default)]
enum Kind {
    #[default]
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(Kind::System)
    }

    /// A wall clock that stands at `start_ms` (milliseconds since the epoch) until it is moved.
    #[must_use]
    pub fn manual(start_ms: i64) -> Self {
        Self(Kind::Manual(Arc::new(AtomicI64::new(start_ms))))
    }

    /// Moves a manual clock; does nothing to the machine's.
    pub fn advance(&self, by: Duration) {
        if let Kind::Manual(now) = &self.0 {
            now.fetch_add(millis(by), Ordering::SeqCst);
        }
    }

    /// The wall clock, in milliseconds since the epoch.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
            Kind::System => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
            Kind::Manual(now) => now.load(Ordering::SeqCst),
        }
    }
}

/// A monotonic reading, for latencies and deadlines.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits. Cancel safe: a dropped wait leaves nothing behind.
#[expect(clippy::disallowed_methods, reason = "this is the place that waits")]
pub(crate) async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline).await;
}

/// A duration in whole milliseconds, saturating.
#[must_use]
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
