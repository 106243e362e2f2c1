//! The circuit breaker of one handler: whether attempts may start, by how the latest ones ended.
//!
//! A downstream that is away fails every attempt that it is sent, and each of them costs its message a retry, or puts it in
//! doubt. So the breaker **opens** when the share of failures among the last `over` attempts is large enough, and nothing
//! starts while it is open. After `open_for` it is **half-open**: single attempts, *trials*, go through one at a time. The
//! [`TRIALS`]th success in a row closes it, one failure opens it again. What the handler *said* of a message is no failure: an
//! attempt that ended with `reject` reached whatever decides that.
//!
//! One breaker serves all partition tasks of one topic and process, without a lock. Whether it is closed is one atomic load;
//! successes are counted by each task for itself, and laid into the ring once a turn, for all messages of that turn together.
//! Failures are laid there one by one, because the next attempt must already be refused by the one that opens it.
//!
//! It lives in memory: a process starts with a closed one. It reads no clock (Inv 11) and says nothing to anybody: who changes
//! its state is told so, and tells the others (`partition/starts.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Instant, millis};
use crate::config::Breaker as Terms;

/// Successes in a row that close a half-open breaker. One would not do: at a share of failures of one half every second trial
/// succeeds, and would let all slots loose on it; three in a row happen then one time in eight.
pub(crate) const TRIALS: u64 = 3;

/// Attempts before which a breaker never opens (or `over`, where that is less): a single message that fails each of its
/// attempts says something of the message.
pub(crate) const LEAST: u64 = 20;

/// What a breaker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Attempts start.
    Closed,
    /// None does, before that instant.
    Open(Instant),
    /// Single ones do.
    HalfOpen,
}

/// What became of a breaker, told to the one caller that made it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It opened: so many of so many attempts had failed.
    Opened {
        /// Attempts that failed, of those that are looked at.
        failures: u64,
        /// Attempts that are looked at.
        attempts: u64,
    },
    /// The trial failed: it is open again.
    Reopened,
    /// `open_for` is over.
    HalfOpened,
    /// The last trial succeeded; it had let nothing but trials through for so long.
    Closed(Duration),
}

/// The whole state in one word, so that every change is one compare-and-swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Closed,
    Open {
        until_ms: u64,
    },
    HalfOpen {
        /// A trial is under way.
        out: bool,
        /// Trials that succeeded so far.
        succeeded: u64,
    },
}

impl Word {
    const fn pack(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { until_ms } => 1 | until_ms << 8,
            Self::HalfOpen { out, succeeded } => 2 | (out as u64) << 2 | succeeded << 8,
        }
    }

    const fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::Closed,
            1 => Self::Open { until_ms: word >> 8 },
            _ => Self::HalfOpen {
                out: word & 4 != 0,
                succeeded: word >> 8,
            },
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Breaker {
    terms: Terms,
    start: Instant,
    word: AtomicU64,
    /// When it last opened from closed, and when it last closed.
    opened_ms: AtomicU64,
    closed_ms: AtomicU64,
    /// One bit for each of the last `over` attempts: whether it failed.
    ring: Box<[AtomicU64]>,
    /// Attempts since it closed; the next one's place in the ring.
    next: AtomicU64,
    /// One past the place of the latest failure, 0 before any: as long as it is not over, the ring has bits to clear.
    failed_next: AtomicU64,
}

impl Breaker {
    /// A closed one. Of `over = 0`: it never opens.
    pub(crate) fn new(terms: Terms, now: Instant) -> Self {
        let words = u64::from(terms.over).div_ceil(64);
        Self {
            terms,
            start: now,
            word: AtomicU64::new(Word::Closed.pack()),
            opened_ms: AtomicU64::new(0),
            closed_ms: AtomicU64::new(0),
            ring: (0..words).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicU64::new(0),
            failed_next: AtomicU64::new(0),
        }
    }

    /// The terms that it goes by.
    pub(crate) const fn terms(&self) -> &Terms {
        &self.terms
    }

    fn word(&self) -> Word {
        Word::unpack(self.word.load(Ordering::Acquire))
    }

    fn swap(&self, from: Word, to: Word) -> bool {
        let (from, to) = (from.pack(), to.pack());
        self.word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn since_start(&self, at: Instant) -> u64 {
        millis(at.saturating_duration_since(self.start)).unsigned_abs()
    }

    fn open_until(&self, now: Instant) -> Word {
        // Rounded up: it is not half-open before its time, and never open for no time at all.
        let open_ms = millis(self.terms.open_for).unsigned_abs().max(1);
        let until_ms = self.since_start(now).saturating_add(open_ms);
        Word::Open {
            until_ms: until_ms.min(u64::MAX >> 8),
        }
    }

    /// Whether attempts start without asking: one load.
    pub(crate) fn is_closed(&self) -> bool {
        self.word() == Word::Closed
    }

    /// What it is, as of the last change: an open one stays that until somebody [looks](Self::look).
    pub(crate) fn state(&self) -> State {
        match self.word() {
            Word::Closed => State::Closed,
            Word::Open { until_ms } => State::Open(self.start + Duration::from_millis(until_ms)),
            Word::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Time passes: an open one is half-open once `open_for` is over.
    pub(crate) fn look(&self, now: Instant) -> Option<Change> {
        let found = self.word();
        let Word::Open { until_ms } = found else {
            return None;
        };
        let half_open = Word::HalfOpen {
            out: false,
            succeeded: 0,
        };
        (self.since_start(now) >= until_ms && self.swap(found, half_open)).then_some(Change::HalfOpened)
    }

    /// Takes the one trial of a half-open breaker, if nobody has it. Whoever does ends it or gives it back.
    pub(crate) fn try_trial(&self) -> bool {
        let found = self.word();
        let Word::HalfOpen {
            out: false,
            succeeded,
        } = found
        else {
            return false;
        };
        self.swap(found, Word::HalfOpen { out: true, succeeded })
    }

    /// So many attempts did not fail. Those that end while it is not closed say nothing: trials decide then.
    pub(crate) fn passed(&self, count: u64) {
        if self.terms.over == 0 || count == 0 || !self.is_closed() {
            return;
        }
        let over = u64::from(self.terms.over);
        let place = self.next.fetch_add(count, Ordering::Relaxed);
        let clear = self.failed_next.load(Ordering::Relaxed) + over;
        if place >= clear || clear == over {
            // No failure is so recent that its bit could stand: a healthy handler is done here.
            return;
        }
        for place in place..place + count.min(over) {
            self.set(place, false);
        }
    }

    /// An attempt that started at `started` failed.
    pub(crate) fn failed(&self, started: Instant, now: Instant) -> Option<Change> {
        // One that started before the breaker last closed tells of the time before: slow ones, all slots at once, would
        // open it again just then.
        let is_old = self.since_start(started) < self.closed_ms.load(Ordering::Relaxed);
        if self.terms.over == 0 || is_old || !self.is_closed() {
            return None;
        }
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        self.failed_next.fetch_max(place + 1, Ordering::Relaxed);
        self.set(place, true);
        let over = u64::from(self.terms.over);
        let attempts = (place + 1).min(over);
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        let failures = self.ring.iter().map(ones).sum::<u64>().min(attempts);
        if attempts < LEAST.min(over) || !self.terms.failure_share.is_reached(failures, attempts) {
            return None;
        }
        if !self.swap(Word::Closed, self.open_until(now)) {
            return None;
        }
        self.opened_ms.store(self.since_start(now), Ordering::Relaxed);
        Some(Change::Opened { failures, attempts })
    }

    /// The trial ended.
    pub(crate) fn trial_ended(&self, failed: bool, now: Instant) -> Option<Change> {
        let found = self.word();
        let Word::HalfOpen { out: true, succeeded } = found else {
            return None;
        };
        if failed {
            return self.swap(found, self.open_until(now)).then_some(Change::Reopened);
        }
        let succeeded = succeeded + 1;
        if succeeded < TRIALS {
            self.swap(
                found,
                Word::HalfOpen {
                    out: false,
                    succeeded,
                },
            );
            return None;
        }
        // While the trial is out nobody else changes anything: what follows is seen by all with the last store.
        for word in &self.ring {
            word.store(0, Ordering::Relaxed);
        }
        self.next.store(0, Ordering::Relaxed);
        self.failed_next.store(0, Ordering::Relaxed);
        let now_ms = self.since_start(now);
        self.closed_ms.store(now_ms, Ordering::Relaxed);
        let open_ms = now_ms.saturating_sub(self.opened_ms.load(Ordering::Relaxed));
        self.swap(found, Word::Closed)
            .then_some(Change::Closed(Duration::from_millis(open_ms)))
    }

    /// The trial did not start, or was cut off: another one may be made.
    pub(crate) fn trial_given_back(&self) {
        let found = self.word();
        if let Word::HalfOpen { out: true, succeeded } = found {
            self.swap(
                found,
                Word::HalfOpen {
                    out: false,
                    succeeded,
                },
            );
        }
    }

    fn set(&self, place: u64, failed: bool) {
        let place = place % u64::from(self.terms.over).max(1);
        let Some(word) = self.ring.get((place / 64) as usize) else {
            return;
        };
        let bit = 1 << (place % 64);
        if failed {
            word.fetch_or(bit, Ordering::Relaxed);
        } else if word.load(Ordering::Relaxed) & bit != 0 {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
