//! The ledger of one assignment of one partition: which delivered messages are dealt with, and the commit point.
//!
//! It counts *delivered messages*, not offsets: gaps between offsets are normal (transaction markers, compaction),
//! and so are repeats. Its commit point is the only source of what is committed (Inv 1): it passes a message only
//! when that one and everything delivered before it is complete, and `complete` is called only for what is recorded.

use std::collections::VecDeque;

use crate::message::{NextOffset, Offset};

/// One admitted message, numbered in the order of delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u64);

/// What the ledger says of a delivered message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It has not been seen in this assignment.
    New(Slot),
    /// The same offset was delivered before: the first delivery answers for it.
    Repeat,
    /// It lies below an offset already taken and was never delivered itself: the source broke its order. Taking it
    /// for a repeat would lose it.
    OutOfOrder {
        /// The highest offset taken before.
        highest: Offset,
    },
}

/// Everything below `next` is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPoint {
    /// The offset to commit.
    pub next: NextOffset,
    /// Partition time after the last message below it, in milliseconds since the epoch; `None` before the first.
    pub time_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    offset: Offset,
    time_after_ms: i64,
    complete: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Ledger {
    rows: VecDeque<Row>,
    /// The number of the first row.
    first: u64,
    point: CommitPoint,
    highest: Option<Offset>,
}

impl Ledger {
    /// A ledger that starts at the committed offset.
    #[must_use]
    pub const fn new(start: CommitPoint) -> Self {
        Self {
            rows: VecDeque::new(),
            first: 0,
            point: start,
            highest: None,
        }
    }

    /// Takes a delivered message, with partition time after it.
    pub fn admit(&mut self, offset: Offset, time_after_ms: i64) -> Admitted {
        if let Some(highest) = self.highest.filter(|highest| offset <= *highest) {
            // Below the commit point everything delivered was recorded, and what was not delivered is a gap of the
            // log: the broker would have to rewrite history to fill it.
            let known = offset.0 < self.point.next.0
                || self.rows.binary_search_by_key(&offset, |row| row.offset).is_ok();
            return if known {
                Admitted::Repeat
            } else {
                Admitted::OutOfOrder { highest }
            };
        }
        if offset.0 < self.point.next.0 {
            return Admitted::Repeat;
        }
        self.highest = Some(offset);
        self.rows.push_back(Row {
            offset,
            time_after_ms,
            complete: false,
        });
        Admitted::New(Slot(self.first + self.rows.len() as u64 - 1))
    }

    /// Notes that a message is recorded. Called once per slot.
    ///
    /// # Panics
    /// On a slot that is complete already: two owners of one message would be two outcomes.
    pub fn complete(&mut self, slot: Slot) {
        let row = slot
            .0
            .checked_sub(self.first)
            .and_then(|index| self.rows.get_mut(index as usize));
        let Some(row) = row.filter(|row| !row.complete) else {
            panic!(
                "slot {} completed twice (first open slot {}, {} rows)",
                slot.0,
                self.first,
                self.rows.len()
            );
        };
        row.complete = true;
        while let Some(row) = self.rows.front().filter(|row| row.complete) {
            self.point = CommitPoint {
                next: row.offset.next(),
                time_ms: Some(row.time_after_ms),
            };
            self.rows.pop_front();
            self.first += 1;
        }
    }

    /// What may be committed.
    #[must_use]
    pub const fn commit_point(&self) -> CommitPoint {
        self.point
    }

    /// The last message that was delivered; before the first one, the last below the start.
    #[must_use]
    pub fn delivered(&self) -> Offset {
        self.highest.unwrap_or(Offset(self.point.next.0 - 1))
    }

    /// Messages taken and not yet complete, or complete behind one that is not: what memory holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether everything taken is below the commit point.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The highest offset taken in this assignment.
    #[must_use]
    pub const fn highest(&self) -> Option<Offset> {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const START: CommitPoint = CommitPoint {
        next: NextOffset(0),
        time_ms: None,
    };

    fn admit(ledger: &mut Ledger, offset: i64) -> Slot {
        match ledger.admit(Offset(offset), offset * 10) {
            Admitted::New(slot) => slot,
            other => panic!("{offset}: {other:?}"),
        }
    }

    #[test]
    fn the_commit_point_waits_for_the_first_open_message() {
        let mut ledger = Ledger::new(START);
        let slots: Vec<_> = (0..3).map(|offset| admit(&mut ledger, offset)).collect();
        ledger.complete(slots[1]);
        ledger.complete(slots[2]);
        assert_eq!(ledger.commit_point(), START, "0 is open");
        ledger.complete(slots[0]);
        assert_eq!(
            ledger.commit_point(),
            CommitPoint {
                next: NextOffset(3),
                time_ms: Some(20)
            }
        );
    }

    #[test]
    fn gaps_are_normal() {
        let mut ledger = Ledger::new(START);
        let slots = [5, 9, 100].map(|offset| admit(&mut ledger, offset));
        for slot in slots {
            ledger.complete(slot);
        }
        assert_eq!(ledger.commit_point().next, NextOffset(101));
    }

    #[test]
    fn the_same_offset_again_is_answered_by_the_ledger() {
        let mut ledger = Ledger::new(CommitPoint {
            next: NextOffset(4),
            time_ms: Some(1),
        });
        let slot = admit(&mut ledger, 5);
        admit(&mut ledger, 8);
        assert_eq!(ledger.admit(Offset(5), 0), Admitted::Repeat, "in flight");
        ledger.complete(slot);
        assert_eq!(ledger.admit(Offset(5), 0), Admitted::Repeat, "complete");
        assert_eq!(
            ledger.admit(Offset(3), 0),
            Admitted::Repeat,
            "committed before this assignment"
        );
        assert_eq!(
            ledger.admit(Offset(7), 0),
            Admitted::OutOfOrder { highest: Offset(8) }
        );
        assert_eq!(ledger.len(), 1);
    }

    #[test]
    #[should_panic(expected = "completed twice")]
    fn one_message_has_one_owner() {
        let mut ledger = Ledger::new(START);
        let first = admit(&mut ledger, 1);
        let second = admit(&mut ledger, 2);
        ledger.complete(second);
        ledger.complete(second);
        ledger.complete(first);
    }

    proptest! {
        /// Against the naive model: a map of offsets, and a scan for the first open one.
        #[test]
        fn agrees_with_a_map_of_offsets(steps in prop::collection::vec((0i64..4, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            let mut ledger = Ledger::new(START);
            let mut model: BTreeMap<i64, bool> = BTreeMap::new();
            let mut open: Vec<(Slot, i64)> = Vec::new();
            let mut highest = -1;
            for (gap, pick, deliver) in steps {
                if deliver || open.is_empty() {
                    let offset = highest + gap; // gap 0 repeats the highest
                    match ledger.admit(Offset(offset), offset) {
                        Admitted::New(slot) => {
                            prop_assert!(offset > highest);
                            highest = offset;
                            model.insert(offset, false);
                            open.push((slot, offset));
                        }
                        Admitted::Repeat => prop_assert!(offset <= highest.max(-1)),
                        Admitted::OutOfOrder { .. } => prop_assert!(false, "delivery was in order"),
                    }
                } else {
                    let (slot, offset) = open.swap_remove(pick.index(open.len()));
                    ledger.complete(slot);
                    model.insert(offset, true);
                }
                let expected = model.iter().take_while(|(_, complete)| **complete).last().map_or(0, |(offset, _)| offset + 1);
                prop_assert_eq!(ledger.commit_point().next, NextOffset(expected));
                prop_assert!(model.range(..expected).all(|(_, complete)| *complete));
            }
        }
    }
}
