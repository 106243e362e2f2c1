//! One key under test: its value against bounds, each with the reason that a user reads.

use std::time::Duration;

use crate::config::breaker::Share;
use crate::config::error::Problem;
use crate::config::units::{ByteCount, show_duration};

/// The problems found so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) problems: Vec<Problem>,
}

impl Found {
    pub(super) fn key<T: Shown>(&mut self, key: impl Into<String>, value: T) -> Key<'_, T> {
        Key {
            found: self,
            key: key.into(),
            value,
        }
    }
}

/// One key and its value.
#[derive(Debug)]
pub(super) struct Key<'f, T> {
    found: &'f mut Found,
    key: String,
    value: T,
}

impl<T: Shown + PartialOrd> Key<'_, T> {
    /// Refuses a value below `bound`.
    pub(super) fn least(self, bound: T, why: &str) -> Self {
        let low = self.value < bound;
        self.when(low, why, format!("write at least {}", bound.show()))
    }

    /// Refuses a value above `bound`.
    pub(super) fn most(self, bound: T, why: &str) -> Self {
        let high = self.value > bound;
        self.when(high, why, format!("write at most {}", bound.show()))
    }
}

impl<T: Shown> Key<'_, T> {
    /// Notes a problem of the value where `broken`.
    pub(super) fn when(self, broken: bool, why: impl Into<String>, fix: impl Into<String>) -> Self {
        if broken {
            self.found
                .problems
                .push(Problem::new(self.key.clone(), self.value.show(), why, fix));
        }
        self
    }
}

/// A value as the file would state it.
pub(super) trait Shown {
    fn show(&self) -> String;
}

impl Shown for Duration {
    fn show(&self) -> String {
        format!("\"{}\"", show_duration(*self))
    }
}

impl Shown for ByteCount {
    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Shown for usize {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Shown for Share {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Shown for u32 {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Shown for &str {
    fn show(&self) -> String {
        format!("{self:?}")
    }
}
