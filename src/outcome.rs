//! Outcomes and the states of a token: what is written in the window, and why a message was given up.

use bytes::Bytes;

use crate::message::{Kept, Offset, Raw};
use crate::output::Output;
use crate::token::TokenKey;

/// Why a message was given up on. Its code is in the `hapax-reason` header, in records and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Reason {
    /// The handler said that this message can never succeed.
    Rejected = 1,
    /// Attempts or time for retries ran out.
    RetriesSpent = 2,
    /// The payload could not be decoded.
    Malformed = 3,
    /// No source had a token, and the policy is `dead-letter`.
    MissingToken = 4,
    /// A token longer than `token_bytes`.
    TokenTooLong = 5,
    /// A duplicate whose chosen fields differ from those of the first message.
    Mismatch = 6,
    /// The token's stated birth is older than the window.
    Expired = 7,
    /// The process died while this message ran, as often as attempts are allowed.
    Crashed = 8,
    /// Held for longer than `held_age`.
    HeldTooLong = 9,
    /// Held when its partition went to another member.
    Moved = 10,
    /// The token was invalidated by an operator.
    Invalidated = 11,
    /// An operator resolved the message to the dead-letter topic.
    Operator = 12,
    /// Older than `max_age` when an attempt was about to start.
    Useless = 13,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 13] = [
        Self::Rejected,
        Self::RetriesSpent,
        Self::Malformed,
        Self::MissingToken,
        Self::TokenTooLong,
        Self::Mismatch,
        Self::Expired,
        Self::Crashed,
        Self::HeldTooLong,
        Self::Moved,
        Self::Invalidated,
        Self::Operator,
        Self::Useless,
    ];

    /// The name in headers, metrics and the CLI.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RetriesSpent => "retries-spent",
            Self::Malformed => "malformed",
            Self::MissingToken => "missing-token",
            Self::TokenTooLong => "token-too-long",
            Self::Mismatch => "mismatch",
            Self::Expired => "expired",
            Self::Crashed => "crashed",
            Self::HeldTooLong => "held-too-long",
            Self::Moved => "moved",
            Self::Invalidated => "invalidated",
            Self::Operator => "operator",
            Self::Useless => "useless",
        }
    }

    /// Whether a message may have been applied that was given up on for that reason.
    #[must_use]
    pub(crate) const fn leaves_doubt(self) -> bool {
        matches!(
            self,
            Self::Moved | Self::HeldTooLong | Self::Crashed | Self::Operator
        )
    }

    /// The reason of that number, `None` for a number of a later version.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }
}

/// A digest of what two messages of one token are compared by. Only equal schemes are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fingerprint {
    /// The lower half of the CRC-32 of the whole payload. Differences are counted, nothing is decided by them: that one
    /// in 65,536 goes unseen is worth two bytes a token.
    Whole(u16),
    /// Eight bytes of blake3 over the chosen fields.
    Fields(u64),
}

impl Fingerprint {
    /// That of the whole payload.
    pub(crate) fn of_whole(raw: &Raw<'_>) -> Self {
        let crc = crc32fast::hash(raw.payload().unwrap_or_default());
        Self::Whole(crc as u16)
    }

    /// That of the fields at those JSON pointers, `None` where the payload is no JSON.
    pub(crate) fn of_fields(raw: &Raw<'_>, fields: &[String]) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_slice(raw.payload()?).ok()?;
        let mut hasher = blake3::Hasher::new_derive_key("hapax 2026-11-25 mismatch fields v1");
        for pointer in fields {
            // An absent field is not the field null; the lengths keep neighbours apart.
            let text = value.pointer(pointer).map(ToString::to_string);
            hasher.update(
                &text
                    .as_ref()
                    .map_or(u64::MAX, |text| text.len() as u64)
                    .to_le_bytes(),
            );
            hasher.update(text.unwrap_or_default().as_bytes());
        }
        let hash = hasher.finalize();
        hash.as_bytes()
            .first_chunk::<8>()
            .map(|bytes| Self::Fields(u64::from_le_bytes(*bytes)))
    }

    /// Whether the two can be compared and differ.
    #[must_use]
    pub fn differs(self, other: Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a != b,
            (Self::Fields(a), Self::Fields(b)) => a != b,
            _ => false,
        }
    }
}

/// How an open token ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The handler succeeded.
    Done(Stored),
    /// Given up on.
    Failed(Reason),
    /// Taken back by an operator, who said why: later messages are dead-lettered, and their letters say it.
    Invalidated(String),
    /// Made new again by an operator: the next message runs.
    Forgotten,
}

/// The reply of a handler, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Stored {
    /// No reply, or `store_outcome = false`.
    #[default]
    Nothing,
    /// The reply's bytes.
    Reply(Bytes),
    /// The reply was longer than `outcome_bytes`: its blake3 and its length.
    Digest([u8; 32], u64),
    /// Written by a later hapax, in an outcome version that this one does not read: its version byte, and what follows. It
    /// suppresses like any other, and is never given back.
    Later(Bytes),
}

/// A closed token: the end of its business, and what suppresses duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// How it ended.
    pub end: End,
    /// The message that it ended for.
    pub offset: Offset,
    /// Partition time when that message was judged, in milliseconds since the epoch.
    pub first_seen_ms: i64,
    /// Attempts that it took, 0 where nothing ran here. Done after 0 attempts is *outcome unknown*: somebody else did it,
    /// and a rebuild found its message below the commit point.
    pub attempts: u32,
    /// What later messages of the token are compared with.
    pub fingerprint: Option<Fingerprint>,
}

/// An operator's decision about a held message, kept until the partition's owner carries it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It was applied: record it as done.
    Done = 1,
    /// It was not applied: run it.
    Run = 2,
    /// Give up on it.
    DeadLetter = 3,
}

impl Verdict {
    /// The verdict as it is written on the command line.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Run => "run",
            Self::DeadLetter => "dead-letter",
        }
    }

    /// The verdict of that number, `None` for a number of a later version.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Done, Self::Run, Self::DeadLetter]
            .into_iter()
            .find(|verdict| *verdict as u8 == number)
    }
}

/// Why a message is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldFor {
    /// It may have been applied, and nobody has said whether it was.
    InDoubt,
    /// Another message of its token is open.
    Token,
    /// Its attempts in place are spent, and others come later.
    Retry {
        /// When the next one is due, by the wall clock, in milliseconds since the epoch.
        due_ms: i64,
        /// An attempt before may have applied something, and its class is run again all the same.
        may_have_applied: bool,
    },
    /// A message of its key is held, and this one comes after it.
    Key,
}

/// The state of a token with unfinished business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// An attempt was about to start, or started. Without a living owner this is *in doubt*, unless
    /// `not_applied` says that the last attempt changed nothing.
    Begun {
        /// The last attempt ended with an error that says so, and that was recorded before the wait.
        not_applied: bool,
        /// The message, where Kafka will not deliver it again: it was held, and its offset is committed.
        message: Option<Kept>,
    },
    /// Kept for later.
    Held {
        /// Why.
        why: HeldFor,
        /// The message itself.
        message: Kept,
        /// Given while the consumer was stopped, carried out when its partition is next assigned.
        verdict: Option<Verdict>,
    },
    /// The outcome is decided; its dead letter, or what it gives back, is not yet acknowledged.
    Settling {
        /// The outcome.
        end: End,
        /// The message to be dead-lettered; empty where it is not.
        message: Kept,
        /// What goes into the `hapax-error` header.
        error: String,
        /// What is to be sent besides, its headers included.
        outputs: Vec<Output>,
    },
}

/// An open token: begun, held or settling at one offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Every key the message's token has, the first source's first; never empty.
    pub keys: Vec<TokenKey>,
    /// The message.
    pub offset: Offset,
    /// Its state.
    pub stage: Stage,
    /// Partition time when the message was judged, in milliseconds since the epoch.
    pub first_seen_ms: i64,
    /// Attempts begun so far, also in earlier processes.
    pub attempts: u32,
    /// Wall clock of the first begin (or of the hold), in milliseconds since the epoch: `rerun_within` and
    /// `held_age` count from it.
    pub since_ms: i64,
    /// What later messages of the token are compared with.
    pub fingerprint: Option<Fingerprint>,
}

impl Open {
    /// Whether its message is held because another of its token is open.
    #[must_use]
    pub const fn is_behind_its_token(&self) -> bool {
        matches!(
            self.stage,
            Stage::Held {
                why: HeldFor::Token,
                ..
            }
        )
    }

    /// Bytes that count against `held_bytes`.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.stage {
            Stage::Begun { message, .. } => message.as_ref().map_or(0, Kept::bytes),
            Stage::Held { message, .. } | Stage::Settling { message, .. } => message.bytes(),
        }
    }
}
