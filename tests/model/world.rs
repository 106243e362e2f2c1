//! What a run of the checker may contain: the messages, and how often what goes wrong goes wrong.
//!
//! The bounds are the whole of the bounding: within them every order of steps is looked at.

use crate::properties::Sight;
use crate::records::Record;

/// As many messages as any world has. Records are kept in arrays of this length.
pub(crate) const OFFSETS: usize = 4;

/// The window, in the unit of [`Message::stamp`]: an outcome first seen at 0 is forgotten at 1.
pub(crate) const WINDOW: u8 = 1;

/// One message of the partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) token: u8,
    /// Log time.
    pub(crate) stamp: u8,
}

const A: Message = Message { token: 0, stamp: 0 };
const B: Message = Message { token: 1, stamp: 0 };
/// The first token again, and its stamp ends the window of everything before it.
const A_LATE: Message = Message { token: 0, stamp: 1 };

/// One message.
pub(crate) const ONE: &[Message] = &[A];
/// A message and its duplicate.
pub(crate) const AA: &[Message] = &[A, A];
/// Two tokens.
pub(crate) const AB: &[Message] = &[A, B];
/// Two tokens, and a duplicate of the first.
pub(crate) const ABA: &[Message] = &[A, B, A];
/// Two tokens, a duplicate, and a repetition from after the window.
pub(crate) const ABBA_LATE: &[Message] = &[A, B, B, A_LATE];

/// What the handler's user said about repeating it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Idempotent,
    /// Without a probe: what is in doubt is held.
    NonIdempotent,
}

/// One bounded world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) log: &'static [Message],
    pub(crate) class: Class,
    /// Handlers that one consumer runs at a time.
    pub(crate) slots: u8,
    /// What the first owner holds of the first message already, which is committed.
    pub(crate) found: Record,
    /// How often something may still go wrong, counted over both consumers.
    pub(crate) budget: Budget,
    /// What the checker must have come across.
    pub(crate) sees: &'static [Sight],
}

/// How often each kind of trouble may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) freezes: u8,
    pub(crate) crashes: u8,
    /// Polite revocations.
    pub(crate) moves: u8,
    /// Commits whose answer is lost.
    pub(crate) lost_replies: u8,
    pub(crate) trims: u8,
    /// Attempts that apply nothing, and are held for another one.
    pub(crate) refusals: u8,
    /// Orders of operators.
    pub(crate) orders: u8,
    /// Assignments after the first: with 2, three ownerships follow one another.
    pub(crate) assignments: u8,
}

/// Nothing goes wrong, and the partition stays where it is.
pub(crate) const NO_TROUBLE: Budget = Budget {
    freezes: 0,
    crashes: 0,
    moves: 0,
    lost_replies: 0,
    trims: 0,
    refusals: 0,
    orders: 0,
    assignments: 0,
};

impl World {
    pub(crate) fn len(&self) -> usize {
        self.log.len()
    }

    pub(crate) fn token(&self, offset: usize) -> u8 {
        self.log[offset].token
    }

    /// Partition time once this offset was taken: the highest stamp so far.
    pub(crate) fn time(&self, offset: usize) -> u8 {
        self.log[..=offset]
            .iter()
            .map(|message| message.stamp)
            .max()
            .unwrap_or(0)
    }

    /// Whether the two are one token within one window, by the true log time.
    pub(crate) fn repeats(&self, one: usize, other: usize) -> bool {
        self.token(one) == self.token(other) && self.time(one).abs_diff(self.time(other)) < WINDOW
    }
}
