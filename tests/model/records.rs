//! What the changelog says: a record for each offset, and the fence. Folding frames gives what a restore reads.

use crate::rules::Rules;
use crate::world::{OFFSETS, World};

/// Attempts are counted up to here.
const ATTEMPTS_MAX: u8 = 4;

/// What an operator decides about a message that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Done,
    Run,
}

/// What is known of the message at one offset; of one that is kept, with the number of its attempts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    #[default]
    None,
    Begun,
    /// Held, because nobody knows what became of its last attempt.
    InDoubt(u8),
    /// Held behind another message of its token.
    Behind,
    /// Held until another attempt is due, with its message: its offset is recorded.
    Retry(u8),
    /// An operator has decided about it, and that is not carried out yet.
    Ordered(Verdict, u8),
    /// Another attempt at what was held is begun. The message is in the record still, and nowhere else.
    Again(u8),
    /// Its outcome is recorded, with partition time when it was judged.
    Done(u8),
}

/// One change of one offset in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    #[default]
    None,
    Begin,
    UnBegin,
    HoldInDoubt,
    HoldBehind,
    HoldForRetry,
    /// An operator's verdict about what is held is written into its record.
    Order(Verdict),
    BeginAgain,
    /// Un-begun, it is held as before.
    UnBeginAgain,
    /// Begun again, with the verdict left in the record (only without the rule `verdict_is_spent`).
    BeginAndKeepOrder,
    /// Begun as if the attempt before had not been counted (only without the rule `attempts_go_on`).
    BeginUncounted,
    /// What was held behind its token is a duplicate, and needs no record.
    Close,
    Done(u8),
}

/// The changes of one group, by offset.
pub(crate) type Changes = [Change; OFFSETS];

/// A window, as a store or a reader of the changelog has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Records {
    pub(crate) of: [Record; OFFSETS],
    pub(crate) fence: u8,
}

impl Record {
    /// Whether the message is kept: Kafka need not deliver it again.
    pub(crate) fn is_kept(self) -> bool {
        !matches!(self, Self::None | Self::Begun | Self::Done(_))
    }

    /// Whether it was held, and is to run again.
    pub(crate) fn returns(self) -> bool {
        matches!(self, Self::Retry(_) | Self::Again(_))
    }

    /// Attempts so far of a message that an operator may decide about.
    pub(crate) fn may_be_decided(self) -> Option<u8> {
        match self {
            Self::InDoubt(attempts) | Self::Retry(attempts) => Some(attempts),
            _ => None,
        }
    }

    /// Attempts that were begun.
    pub(crate) fn attempts(self) -> u8 {
        match self {
            Self::None | Self::Behind | Self::Done(_) => 0,
            Self::Begun => 1,
            Self::InDoubt(attempts)
            | Self::Retry(attempts)
            | Self::Again(attempts)
            | Self::Ordered(_, attempts) => attempts,
        }
    }

    /// Attempts so far, now that one has ended. One that was not begun has left no trace in the record.
    fn attempts_with_the_last(self) -> u8 {
        match self {
            Self::Begun | Self::Again(_) | Self::InDoubt(_) => self.attempts(),
            _ => self.next_attempt(),
        }
    }

    fn next_attempt(self) -> u8 {
        (self.attempts() + 1).min(ATTEMPTS_MAX)
    }

    /// What a change makes of it.
    fn changed(self, change: Change) -> Self {
        match change {
            Change::None => self,
            Change::Begin => Self::Begun,
            Change::UnBegin | Change::Close => Self::None,
            Change::HoldInDoubt => Self::InDoubt(self.attempts()),
            Change::HoldBehind => Self::Behind,
            Change::HoldForRetry => Self::Retry(self.attempts_with_the_last()),
            Change::Order(verdict) => Self::Ordered(verdict, self.attempts()),
            Change::BeginAgain => Self::Again(self.next_attempt()),
            Change::BeginUncounted => Self::Again(self.attempts()),
            Change::BeginAndKeepOrder => Self::Ordered(Verdict::Run, self.next_attempt()),
            Change::UnBeginAgain => Self::Retry(self.attempts().saturating_sub(1)),
            Change::Done(seen) => Self::Done(seen),
        }
    }
}

impl Records {
    /// Applies one group. A store has one closed record for a token: an outcome takes the place of an older one.
    pub(crate) fn apply(&mut self, world: &World, changes: &Changes, fence: u8) {
        for (offset, change) in changes.iter().enumerate() {
            if matches!(change, Change::Done(_)) {
                self.forget_outcome(world, world.token(offset));
            }
            self.of[offset] = self.of[offset].changed(*change);
        }
        self.fence = self.fence.max(fence);
    }

    fn forget_outcome(&mut self, world: &World, token: u8) {
        for offset in 0..world.len() {
            if world.token(offset) == token && matches!(self.of[offset], Record::Done(_)) {
                self.of[offset] = Record::None;
            }
        }
    }

    /// Where this token's outcome is recorded, and when it was first seen.
    pub(crate) fn outcome(&self, world: &World, token: u8) -> Option<(usize, u8)> {
        (0..world.len())
            .filter(|offset| world.token(*offset) == token)
            .find_map(|offset| match self.of[offset] {
                Record::Done(seen) => Some((offset, seen)),
                _ => None,
            })
    }

    /// Whether a message of this token other than this one is held. Of those that are held behind it the first comes first.
    pub(crate) fn holds_another(&self, world: &World, rules: &Rules, offset: usize) -> bool {
        let token = world.token(offset);
        let is_open = |other: usize| match self.of[other] {
            Record::InDoubt(_) => true,
            Record::Behind => other < offset,
            record => record.is_kept() && rules.held_is_open,
        };
        (0..world.len()).any(|other| other != offset && world.token(other) == token && is_open(other))
    }
}
