//! The broker: a group with its generations, the committed offset, and a changelog with transactions.
//!
//! Generations and epochs are not counted but compared: all that Kafka asks of a number is whether it is the present
//! one. So two histories that differ only in their numbers are one state.

use crate::orders::Orders;
use crate::records::{Changes, Records};
use crate::world::World;

/// How many consumers there are.
pub(crate) const CONSUMERS: usize = 2;

/// What a consumer's client believes about its membership, and shows when it commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Metadata {
    /// Generation -1 and no member: what the client says once the group has refused it. Kafka does not check it.
    #[default]
    MinusOne,
    /// An earlier generation, or a member that was expelled.
    Stale,
    /// The present generation, as a member of it, whoever owns the partition.
    Fresh,
}

/// A commit point with partition time there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Mark {
    pub(crate) offset: u8,
    pub(crate) time: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Open,
    Committed,
    Aborted,
}

/// One frame in the part of the changelog that is not stable yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    pub(crate) by: usize,
    pub(crate) fate: Fate,
    pub(crate) changes: Changes,
    /// The fence that the frame raises, or 0.
    pub(crate) fence: u8,
    /// What the owner writes again before it trims.
    pub(crate) again: Option<Records>,
    /// Operators' acts.
    pub(crate) acts: Orders,
}

/// A reader of the changelog during a restore. It stops at its target, and what comes after it is not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Reader {
    #[default]
    None,
    /// That many frames lie between the last stable offset and the target.
    Waits(usize),
    Read(Records),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Broker {
    pub(crate) member: [bool; CONSUMERS],
    pub(crate) owner: Option<usize>,
    pub(crate) committed: Mark,
    /// Offsets sent within a transaction that has not ended.
    pub(crate) pending: [Option<Mark>; CONSUMERS],
    /// The producer was fenced: its transaction outlived its timeout, and its epoch is no longer the present one.
    pub(crate) fenced: [bool; CONSUMERS],
    /// Everything below the last stable offset, folded.
    pub(crate) stable: Records,
    /// The same for a reader that begins at the last frame that was written again.
    pub(crate) since_again: Option<Records>,
    /// What lies at and above the last stable offset: the first frame is of an open transaction.
    pub(crate) tail: Vec<Frame>,
    pub(crate) readers: [Reader; CONSUMERS],
}

impl Broker {
    /// The first consumer is a member and the owner, the second a member.
    pub(crate) fn new() -> Self {
        Self {
            member: [true; CONSUMERS],
            owner: None,
            committed: Mark::default(),
            pending: [None; CONSUMERS],
            fenced: [false; CONSUMERS],
            stable: Records::default(),
            since_again: None,
            tail: Vec::new(),
            readers: [Reader::None; CONSUMERS],
        }
    }

    pub(crate) fn has_open(&self, by: usize) -> bool {
        self.pending[by].is_some()
            || self
                .tail
                .iter()
                .any(|frame| frame.by == by && frame.fate == Fate::Open)
    }

    /// The offsets become pending, or the broker says that the generation is not the present one.
    pub(crate) fn accept(&mut self, by: usize, metadata: Metadata, mark: Mark) -> bool {
        let accepted = metadata != Metadata::Stale;
        if accepted {
            self.pending[by] = Some(mark);
        }
        accepted
    }

    /// Ends the transaction of this producer. Gives the frames that became visible.
    pub(crate) fn end(&mut self, world: &World, by: usize, fate: Fate) -> Vec<(Changes, Orders)> {
        let mut visible = Vec::new();
        for frame in &mut self.tail {
            if frame.by == by && frame.fate == Fate::Open {
                frame.fate = fate;
                if fate == Fate::Committed {
                    visible.push((frame.changes, frame.acts));
                }
            }
        }
        if let Some(mark) = self.pending[by].take()
            && fate == Fate::Committed
        {
            self.committed = mark;
        }
        self.fold(world);
        visible
    }

    /// Moves the last stable offset up to the first open frame, and the readers with it. Aborted frames go at once: a
    /// reader passes them without looking.
    fn fold(&mut self, world: &World) {
        let mut at = 0;
        while let Some(frame) = self.tail.get(at) {
            let stable = at == 0 && frame.fate == Fate::Committed;
            if !stable && frame.fate != Fate::Aborted {
                at += 1;
                continue;
            }
            let frame = self.tail.remove(at);
            if stable {
                self.fold_stable(world, &frame);
            }
            for reader in &mut self.readers {
                match reader {
                    Reader::Waits(frames) if *frames > at => *frames -= 1,
                    _ => {}
                }
            }
            self.serve_readers();
        }
    }

    fn fold_stable(&mut self, world: &World, frame: &Frame) {
        fold_into(&mut self.stable, world, frame);
        if let Some(since) = &mut self.since_again {
            fold_into(since, world, frame);
        }
        if frame.again.is_some() {
            self.since_again = frame.again;
        }
    }

    /// Starts a read up to that many frames past the last stable offset.
    pub(crate) fn restore(&mut self, by: usize, frames: usize) {
        self.readers[by] = Reader::Waits(frames);
        self.serve_readers();
    }

    fn serve_readers(&mut self) {
        for reader in &mut self.readers {
            if *reader == Reader::Waits(0) {
                *reader = Reader::Read(self.stable);
            }
        }
    }

    /// Every committed frame: what a reader finds who is not in a hurry.
    pub(crate) fn truth(&self, world: &World) -> Records {
        let mut records = self.stable;
        for frame in self.tail.iter().filter(|frame| frame.fate == Fate::Committed) {
            fold_into(&mut records, world, frame);
        }
        records
    }

    /// Deletes the head of the changelog: up to the last frame that was written again, or, without one, everything.
    pub(crate) fn delete_head(&mut self) {
        self.stable = self.since_again.take().unwrap_or_default();
    }
}

fn fold_into(records: &mut Records, world: &World, frame: &Frame) {
    records.apply(world, &frame.changes, frame.fence);
}
