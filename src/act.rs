//! Acts: what an operator asks of a partition that is served, and what came of it.
//!
//! An act goes to the task that owns the partition, and to nobody else: it alone knows what is in flight. It is refused
//! where it would break an invariant, and saying it twice changes nothing the second time. What it changes, and the act
//! itself, become durable together before it is answered.

use std::fmt;

use tokio::sync::oneshot;

use crate::broker::Letter;
use crate::message::{Kept, Offset};
use crate::outcome::{Reason, Verdict};
use crate::store::AuditEntry;
use crate::token::TokenKey;

/// Acts of one order at the most: an order keeps its partition's task busy, and an answer is a list.
pub(crate) const ACTS_MAX: usize = 1_000;

/// An operator's words that are longer are refused: they lie in records, letters and the audit.
pub(crate) const REASON_BYTES_MAX: usize = 1_024;

/// Who does it, why, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) at_ms: i64,
}

impl Said {
    /// The act as it is kept.
    pub(crate) fn act(&self, act: &str, of: (&str, i32, Offset), token: TokenKey) -> AuditEntry {
        let (topic, partition, offset) = of;
        AuditEntry {
            at_ms: self.at_ms,
            act: act.to_owned(),
            topic: topic.to_owned(),
            partition,
            offset: offset.0,
            token: token.to_string(),
            reason: self.reason.clone(),
            by: self.by.clone(),
        }
    }
}

/// The act for the audit topic: JSON, under the partition that it is about.
pub(crate) fn letter(topic: &str, entry: &AuditEntry) -> Letter {
    let key = format!("{}[{}]", entry.topic, entry.partition);
    Letter {
        topic: topic.to_owned(),
        key: Some(key.into()),
        // Text and numbers: that has a JSON form.
        payload: Some(serde_json::to_vec(entry).unwrap_or_default().into()),
        timestamp_ms: Some(entry.at_ms),
        headers: Vec::new(),
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// What became of a message that is held.
    Resolve {
        offset: Offset,
        verdict: Verdict,
        /// Attempts at it that whoever decides knows of: what became of a later one they do not know. `None` where they do
        /// not say.
        attempts: Option<u32>,
    },
    /// Later messages of that token are dead-lettered, with the operator's reason.
    Invalidate { token: TokenKey },
    /// The next message of that token runs.
    Forget { token: TokenKey },
    /// A message that was given up on is held, and runs at once.
    Redrive(Box<Redriven>),
}

/// A dead letter, as it was before it was one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redriven {
    /// Where it came from.
    pub(crate) offset: Offset,
    /// Why it was given up on, where its letter says it.
    pub(crate) reason: Option<Reason>,
    /// The operator says that no attempt at it has applied anything.
    pub(crate) not_applied: bool,
    pub(crate) message: Kept,
}

impl Act {
    /// As it is written on the command line.
    pub(crate) const fn verb(&self) -> &'static str {
        match self {
            Self::Resolve {
                verdict: Verdict::Done,
                ..
            } => "resolve --done",
            Self::Resolve {
                verdict: Verdict::Run,
                ..
            } => "resolve --run",
            Self::Resolve {
                verdict: Verdict::DeadLetter,
                ..
            } => "resolve --dead-letter",
            Self::Invalidate { .. } => "invalidate",
            Self::Forget { .. } => "forget",
            Self::Redrive(_) => "redrive",
        }
    }
}

/// What came of one act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is durable; or, of a dry run, it would be done. What that means, in words.
    Done(String),
    /// It was so before. Nothing was written.
    Unchanged(String),
    /// It would break an invariant, or there is nothing that it could be about. Nothing was written.
    Refused(String),
}

impl Answer {
    /// The name in JSON.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Unchanged(_) => "unchanged",
            Self::Refused(_) => "refused",
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Done(text) | Self::Unchanged(text) | Self::Refused(text)) = self;
        f.write_str(text)
    }
}

/// The answers to one order, in the order of its acts.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) answers: Vec<Answer>,
    /// What is still to be written to the audit topic. Empty where it was written with the acts.
    pub(crate) letters: Vec<Letter>,
}

/// Acts for one partition.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) acts: Vec<Act>,
    pub(crate) said: Said,
    /// Only say what would be done.
    pub(crate) dry_run: bool,
    /// Dropped where the partition goes before it is answered.
    pub(crate) answer: oneshot::Sender<Answered>,
}
