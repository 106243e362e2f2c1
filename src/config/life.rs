//! How long things count: windows that duplicates renew, and messages that are useless after a while.

use std::time::Duration;

use super::units::words;

/// Whether a duplicate starts the window of its token anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Renewal {
    /// The window counts from the message that had the outcome.
    Never,
    /// It counts from the last duplicate that was suppressed, to within a quarter of the window.
    OnDuplicate,
}

/// How old a message may be when an attempt at it starts: its own timestamp, against the wall clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MaxAge {
    /// How old. Of a message whose producer's clock runs ahead or behind that counts too.
    ///
    /// Default: none; no message is too old. Asked before each attempt, while no attempt may have applied anything. Too small, and
    /// a restart or a downstream that is away makes messages useless that somebody waits for. Metric: `hapax_outcomes_total`.
    pub after: Option<Duration>,
    /// The header by which a message states its own, in decimal milliseconds.
    ///
    /// Default: none; no header is read. It goes before `after`. What is not a number is counted, and goes by `after`. Metric:
    /// `hapax_malformed_max_ages_total`.
    pub header: Option<String>,
    /// What becomes of a message that is too old.
    ///
    /// Default: `dead-letter` with reason `useless`. With `skip` it is recorded and counted, and goes nowhere.
    /// Metric: `hapax_outcomes_total`.
    pub then: OnUseless,
}

impl MaxAge {
    /// Whether a message can be too old at all.
    pub(crate) const fn is_stated(&self) -> bool {
        self.after.is_some() || self.header.is_some()
    }
}

impl Default for MaxAge {
    fn default() -> Self {
        Self {
            after: None,
            header: None,
            then: OnUseless::DeadLetter,
        }
    }
}

/// What becomes of a message that is too old to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnUseless {
    /// It is dead-lettered with reason `useless`.
    DeadLetter,
    /// It is passed over, and recorded as such.
    Skip,
}

words! {
    Renewal { Never = "never", OnDuplicate = "on-duplicate" }
    OnUseless { DeadLetter = "dead-letter", Skip = "skip" }
}
