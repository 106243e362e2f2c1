//! What the changelog says: a record for each offset, and the fence. Folding frames gives what a restore reads.

use crate::rules::Rules;
use crate::world::{OFFSETS, World};

/// What is known of the message at one offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    #[default]
    None,
    Begun,
    Held,
    /// Held until another attempt is due, with its message: its offset is recorded.
    Retry,
    /// That attempt is begun. The message is in the record still, and nowhere else.
    Again,
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
    Hold,
    HoldForRetry,
    BeginAgain,
    /// Un-begun, it is held as before.
    UnBeginAgain,
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
        matches!(self, Self::Held | Self::Retry | Self::Again)
    }

    /// Whether it was held, and is to run again.
    pub(crate) fn returns(self) -> bool {
        matches!(self, Self::Retry | Self::Again)
    }
}

impl Records {
    /// Applies one group. A store has one closed record for a token: an outcome takes the place of an older one.
    pub(crate) fn apply(&mut self, world: &World, changes: &Changes, fence: u8) {
        for (offset, change) in changes.iter().enumerate() {
            self.of[offset] = match *change {
                Change::None => continue,
                Change::Begin => Record::Begun,
                Change::UnBegin => Record::None,
                Change::Hold => Record::Held,
                Change::HoldForRetry | Change::UnBeginAgain => Record::Retry,
                Change::BeginAgain => Record::Again,
                Change::Done(seen) => {
                    self.forget_outcome(world, world.token(offset));
                    Record::Done(seen)
                }
            };
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

    /// Whether a message of this token other than this one is held.
    pub(crate) fn holds_another(&self, world: &World, rules: &Rules, offset: usize) -> bool {
        let token = world.token(offset);
        let is_open = |record: Record| match rules.held_is_open {
            true => record.is_kept(),
            false => record == Record::Held,
        };
        (0..world.len())
            .any(|other| other != offset && world.token(other) == token && is_open(self.of[other]))
    }
}
