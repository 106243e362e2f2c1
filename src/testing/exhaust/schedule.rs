//! A schedule as data: where each process dies.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// Where the processes of one run die: the first at the edge of the first number, counted from 1, the second at that of
/// the second. The process after the last one lives. As text: `7`, or `7,3`; `none` without a crash.
///
/// It stays valid while handler, messages and version of hapax stay the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Schedule(Vec<usize>);

impl Schedule {
    /// The edge at which each process dies, from 1.
    #[must_use]
    pub fn crashes(&self) -> &[usize] {
        &self.0
    }

    /// The same, with one more process that dies, at that edge.
    pub(super) fn and(&self, edge: usize) -> Self {
        let more = self.0.iter().copied().chain([edge]);
        Self(more.collect())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "none");
        }
        for (n, edge) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{edge}")?;
        }
        Ok(())
    }
}

impl FromStr for Schedule {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        if text.trim() == "none" {
            return Ok(Self::default());
        }
        let edges = text.split(',').map(|edge| edge.trim().parse());
        edges.collect::<Result<_, _>>().map(Self)
    }
}
