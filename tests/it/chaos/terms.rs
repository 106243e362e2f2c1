//! The topics of a campaign: one for each kind of handler.

use std::time::Duration;

use crate::checker::Class;

/// Partitions of each topic.
pub(crate) const PARTITIONS: i32 = 3;
/// How long an outcome is remembered.
pub(crate) const WINDOW: Duration = Duration::from_secs(8);
pub(crate) const ATTEMPTS_MAX: u32 = 5;

/// One topic's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) name: &'static str,
    pub(crate) class: Class,
    /// Somebody can be asked what was applied.
    pub(crate) probe: bool,
    /// The resource checks fences.
    pub(crate) fenced: bool,
    /// Handlers of one partition that run at a time; messages of one key one after the other.
    pub(crate) slots: u32,
    pub(crate) by_key: bool,
}

pub(crate) const TOPICS: [Terms; 4] = [
    Terms {
        name: "idempotent",
        class: Class::Idempotent,
        probe: false,
        fenced: false,
        slots: 8,
        by_key: false,
    },
    Terms {
        name: "unprobed",
        class: Class::NonIdempotent,
        probe: false,
        fenced: false,
        slots: 6,
        by_key: true,
    },
    Terms {
        name: "probed",
        class: Class::PotentiallyIdempotent,
        probe: true,
        fenced: false,
        slots: 6,
        by_key: true,
    },
    Terms {
        name: "fenced",
        class: Class::NonIdempotent,
        probe: true,
        fenced: true,
        slots: 8,
        by_key: false,
    },
];

impl Terms {
    pub(crate) fn is_guarded(&self) -> bool {
        self.class != Class::Idempotent
    }

    /// Topics are named after the run.
    pub(crate) fn topic(&self, run: &str) -> String {
        format!("{run}-{}", self.name)
    }
}

/// The changelog of a topic, as the design names it.
pub(crate) fn changelog(group: &str, topic: &str) -> String {
    format!("{group}.{topic}.hapax")
}

pub(crate) fn letters(topic: &str) -> String {
    format!("{topic}.dead-letters")
}
