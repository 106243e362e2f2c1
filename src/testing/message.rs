//! What goes into a harness, and what comes out of it besides outcomes.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::broker::Letter;
use crate::clock::millis;
use crate::dead_letter::PREFIX;
use crate::message::{Kept, Offset};
use crate::outcome::{HeldFor, Open, Stage, Verdict};

/// A message to be sent to a [`Harness`](super::Harness).
///
/// Without more it has a null key, no header, partition 0, and the time of the harness's clock when it is sent.
#[derive(Debug, Clone)]
pub struct Message {
    pub(super) partition: i32,
    pub(super) kept: Kept,
}

impl Message {
    /// The value as JSON.
    ///
    /// # Panics
    /// Where the value has no JSON form.
    #[must_use]
    #[track_caller]
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => Self::bytes(json),
            Err(error) => panic!("no JSON form: {error}"),
        }
    }

    /// The bytes as they are.
    #[must_use]
    pub fn bytes(payload: impl Into<Bytes>) -> Self {
        Self::of(Some(payload.into()))
    }

    /// A null payload.
    #[must_use]
    pub fn tombstone() -> Self {
        Self::of(None)
    }

    fn of(payload: Option<Bytes>) -> Self {
        Self {
            partition: 0,
            kept: Kept {
                timestamp_ms: None,
                key: None,
                payload,
                headers: Vec::new(),
            },
        }
    }

    /// With that header `idempotency-key`: where a token is read by default.
    #[must_use]
    pub fn token(self, token: impl Into<Bytes>) -> Self {
        self.header("idempotency-key", token)
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.kept.headers.push((name.into(), Some(value.into())));
        self
    }

    /// With that key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.kept.key = Some(key.into());
        self
    }

    /// Stamped that long after the Unix epoch, instead of the harness's clock.
    #[must_use]
    pub fn at(mut self, since_epoch: Duration) -> Self {
        self.kept.timestamp_ms = Some(millis(since_epoch));
        self
    }

    /// To that partition.
    #[must_use]
    pub const fn partition(mut self, partition: i32) -> Self {
        self.partition = partition;
        self
    }
}

/// Where a message lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Sent {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
}

/// A message that the consumer keeps for later: what `hapax held` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// Which message.
    pub of: Sent,
    /// Why.
    pub why: HeldFor,
    /// Attempts begun.
    pub attempts: u32,
    /// The payload, `None` for a tombstone.
    pub payload: Option<Bytes>,
    /// What was decided about it, and is carried out at the next start.
    pub verdict: Option<Verdict>,
}

impl Held {
    /// `None` where the record is open for another reason.
    pub(super) fn from_open(partition: i32, open: Open) -> Option<Self> {
        let Stage::Held {
            why,
            message,
            verdict,
        } = open.stage
        else {
            return None;
        };
        Some(Self {
            of: Sent {
                partition,
                offset: open.offset,
            },
            why,
            attempts: open.attempts,
            payload: message.payload,
            verdict,
        })
    }
}

/// What a message that left the consumer has, whatever it is.
macro_rules! accessors {
    ($name:ident) => {
        impl $name {
            /// The topic that it went to.
            #[must_use]
            pub fn topic(&self) -> &str {
                &self.0.topic
            }

            /// The key, `None` for null.
            #[must_use]
            pub fn key(&self) -> Option<&[u8]> {
                self.0.key.as_deref()
            }

            /// The payload, `None` for null.
            #[must_use]
            pub fn payload(&self) -> Option<&[u8]> {
                self.0.payload.as_deref()
            }
        }
    };
}

accessors!(DeadLetter);
accessors!(Produced);

/// The value of the last header of that name; `None` where there is none, or its value is null.
fn last_header<'a>(letter: &'a Letter, name: &str) -> Option<&'a [u8]> {
    let named = |(found, _): &&(String, Option<Bytes>)| found == name;
    let (_, value) = letter.headers.iter().rev().find(named)?;
    value.as_deref()
}

/// What hapax wrote as text; empty where there is nothing.
fn text(value: Option<&[u8]>) -> &str {
    str::from_utf8(value.unwrap_or_default()).unwrap_or_default()
}

/// A message that was given up on, as it reached the dead-letter topic.
#[derive(Clone, PartialEq, Eq)]
pub struct DeadLetter(pub(super) Letter);

impl DeadLetter {
    /// Why: the code in the header `hapax-reason`, `"rejected"` or `"retries-spent"` for example. See
    /// [`Reason`](crate::outcome::Reason).
    #[must_use]
    pub fn reason(&self) -> &str {
        self.said("reason")
    }

    /// What was said, in words: the header `hapax-error`.
    #[must_use]
    pub fn error(&self) -> &str {
        self.said("error")
    }

    /// The value of the last header of that name: one of the message's own, or one of the lineage, `hapax-offset` for
    /// example. `None` where there is none, or its value is null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        last_header(&self.0, name)
    }

    /// A header of the lineage, which hapax wrote as text.
    fn said(&self, name: &str) -> &str {
        text(self.header(&format!("{PREFIX}{name}")))
    }
}

impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("reason", &self.reason())
            .field("error", &self.error())
            .field("offset", &self.said("offset"))
            .finish_non_exhaustive()
    }
}

/// A message that the consumer produced: an output of a handler.
#[derive(Clone, PartialEq, Eq)]
pub struct Produced(pub(super) Letter);

impl Produced {
    /// The value of the last header of that name as text, empty where there is none: `idempotency-key` for its token,
    /// `hapax-offset` for the message that it belongs to.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        text(last_header(&self.0, name))
    }
}

impl fmt::Debug for Produced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Produced")
            .field("topic", &self.topic())
            .field("output", &self.header("hapax-output"))
            .field("offset", &self.header("hapax-offset"))
            .finish_non_exhaustive()
    }
}
