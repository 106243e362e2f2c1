//! Extents: how new the outcomes are that each part of a changelog holds.
//!
//! A part can be deleted once every outcome in it is past. To know which part that is, the log of each partition is kept
//! here as a short list of pieces, in order, each with the newest first seen of what is closed in it. Reading it back
//! begins the list, what the journal writes extends it, and a piece grows until its outcomes span a sixteenth of a window:
//! so the list stays short however long the log is.
//!
//! What is said of a piece stays true: a log only grows at its end, and an outcome's first seen is written once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::{Changes, PartitionId, TopicId};

/// Shared by whoever reads changelogs, the journal, and whoever trims. Locked once for a frame or a group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extents(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    windows_ms: BTreeMap<TopicId, i64>,
    logs: BTreeMap<PartitionId, VecDeque<Piece>>,
}

/// What lies between the end of the piece before and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// The offset after its last frame.
    end: i64,
    /// The lowest and the highest first seen of what is closed in it; `None` where nothing is.
    seen_ms: Option<(i64, i64)>,
    bytes: u64,
}

/// The part of a log in which every outcome is past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past {
    /// The first offset that is not in it.
    pub(crate) below: i64,
    /// About how long it is; `u64::MAX` where nobody has read it.
    pub(crate) bytes: u64,
}

/// Pieces of one window, about.
const PIECES: i64 = 16;

impl Extents {
    /// For topics of those windows, in milliseconds.
    pub(crate) fn new(windows_ms: BTreeMap<TopicId, i64>) -> Self {
        let logs = BTreeMap::new();
        Self(Arc::new(Mutex::new(Board { windows_ms, logs })))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Every change is one step, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A log is read from its beginning.
    pub(crate) fn begin(&self, id: PartitionId) {
        self.board().logs.insert(id, VecDeque::new());
    }

    /// A log is read from `next` on. What lies before is in the store, and whatever is closed there was first seen before
    /// `seen_until_ms`.
    pub(crate) fn resume(&self, id: PartitionId, next: i64, seen_until_ms: Option<i64>) {
        let before = Piece {
            end: next,
            seen_ms: seen_until_ms.map(|until| (until, until)),
            bytes: u64::MAX,
        };
        self.board().logs.insert(id, VecDeque::from([before]));
    }

    /// The log goes on at `next` now, with those changes before it. Only for a log that was begun: whatever else is in it
    /// has to be known.
    pub(crate) fn extend<'c>(
        &self,
        id: PartitionId,
        next: i64,
        bytes: u64,
        changes: impl IntoIterator<Item = &'c Changes>,
    ) {
        let closed = changes.into_iter().flat_map(|changes| &changes.closed);
        let seen_ms = closed
            .map(|(_, closed)| (closed.first_seen_ms, closed.first_seen_ms))
            .reduce(span);
        let mut board = self.board();
        let width_ms = board
            .windows_ms
            .get(&id.topic)
            .map_or(0, |window| window / PIECES);
        let Some(log) = board.logs.get_mut(&id) else {
            return;
        };
        let grown = Piece {
            end: next,
            seen_ms,
            bytes,
        };
        match log.back_mut() {
            Some(last) if last.takes(&grown, width_ms) => last.grow(&grown),
            _ => log.push_back(grown),
        }
    }

    /// The part in which everything closed was first seen at or before `until_ms`, if there is one.
    pub(crate) fn past(&self, id: PartitionId, until_ms: i64) -> Option<Past> {
        let board = self.board();
        let past = board
            .logs
            .get(&id)?
            .iter()
            .take_while(|piece| piece.seen_ms.is_none_or(|(_, newest)| newest <= until_ms));
        past.map(|piece| Past {
            below: piece.end,
            bytes: piece.bytes,
        })
        .reduce(|all, piece| Past {
            below: piece.below,
            bytes: all.bytes.saturating_add(piece.bytes),
        })
    }

    /// What lies below is deleted.
    pub(crate) fn cut(&self, id: PartitionId, below: i64) {
        if let Some(log) = self.board().logs.get_mut(&id) {
            log.retain(|piece| piece.end > below);
        }
    }

    /// What lies below could be deleted, and was not: it is remembered as one piece.
    pub(crate) fn fold(&self, id: PartitionId, past: Past) {
        if let Some(log) = self.board().logs.get_mut(&id) {
            log.retain(|piece| piece.end > past.below);
            log.push_front(Piece {
                end: past.below,
                seen_ms: None,
                bytes: past.bytes,
            });
        }
    }
}

impl Piece {
    /// Whether what follows may be told of together with this. What nobody has read stays apart: it goes as soon as it can.
    fn takes(&self, next: &Self, width_ms: i64) -> bool {
        let (low, high) = match (self.seen_ms, next.seen_ms) {
            (Some(seen), Some(more)) => span(seen, more),
            _ => (0, 0),
        };
        self.bytes < u64::MAX && high.saturating_sub(low) <= width_ms
    }

    fn grow(&mut self, next: &Self) {
        self.end = self.end.max(next.end);
        self.bytes = self.bytes.saturating_add(next.bytes);
        self.seen_ms = match (self.seen_ms, next.seen_ms) {
            (Some(seen), Some(more)) => Some(span(seen, more)),
            (one, other) => one.or(other),
        };
    }
}

fn span((low, high): (i64, i64), (other_low, other_high): (i64, i64)) -> (i64, i64) {
    (low.min(other_low), high.max(other_high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Offset;
    use crate::outcome::{Closed, End, Stored};
    use crate::token::TokenKey;
    use proptest::prelude::*;

    const ID: PartitionId = PartitionId {
        topic: TopicId(0),
        partition: 0,
    };

    fn extents() -> Extents {
        Extents::new(BTreeMap::from([(TopicId(0), 1_600)]))
    }

    fn changes(seen_ms: &[i64]) -> Changes {
        let mut changes = Changes::new(ID);
        let closed = |first_seen_ms: &i64| Closed {
            end: End::Done(Stored::Nothing),
            offset: Offset(0),
            first_seen_ms: *first_seen_ms,
            attempts: 1,
            fingerprint: None,
        };
        changes.closed = seen_ms
            .iter()
            .map(|seen| (TokenKey([0; 16]), closed(seen)))
            .collect();
        changes
    }

    proptest! {
        /// Never past what is still needed, and never more than a piece behind.
        #[test]
        fn the_part_that_is_past_is_what_the_whole_list_says(
            frames in proptest::collection::vec(proptest::collection::vec(0i64..10_000, 0..4), 1..80),
            until_ms in 0i64..10_000,
        ) {
            let extents = extents();
            extents.begin(ID);
            for (n, seen) in frames.iter().enumerate() {
                extents.extend(ID, n as i64 + 1, 1, [&changes(seen)]);
            }
            let first_needed = |until: i64| frames.iter().position(|seen| seen.iter().any(|seen| *seen > until));
            let below = extents.past(ID, until_ms).map_or(0, |past| past.below);
            prop_assert!(below <= first_needed(until_ms).unwrap_or(frames.len()) as i64);
            let earlier = first_needed(until_ms - 100).unwrap_or(frames.len()) as i64;
            // What shares a piece with something newer waits for it, and no piece is wider than that.
            let least = frames.iter().take(earlier as usize).flatten().max().copied().unwrap_or(0);
            if least <= until_ms - 100 && first_needed(until_ms).is_none() {
                prop_assert_eq!(below, frames.len() as i64);
            }
            extents.cut(ID, below);
            prop_assert_eq!(extents.past(ID, until_ms), None);
        }
    }

    #[test]
    fn a_list_is_short_however_long_the_log_is() {
        let extents = extents();
        extents.begin(ID);
        for n in 0..10_000 {
            extents.extend(ID, n + 1, 50, [&changes(&[n])]);
        }
        let pieces = extents.board().logs.get(&ID).map_or(0, VecDeque::len);
        assert!((90..=102).contains(&pieces), "{pieces}");
        let past = extents.past(ID, 5_000).unwrap();
        assert!((4_850..=5_001).contains(&past.below), "{past:?}");
        extents.fold(ID, past);
        assert_eq!(extents.past(ID, 5_000), Some(past));
        assert!(extents.board().logs.get(&ID).map_or(0, VecDeque::len) < 60);
    }

    /// What a store already has of a log is not read again, so only its newest outcome is known.
    #[test]
    fn what_nobody_has_read_goes_when_the_store_has_nothing_newer() {
        let extents = extents();
        assert_eq!(extents.past(ID, i64::MAX), None, "not begun");
        extents.extend(ID, 3, 1, [&changes(&[5])]);
        assert_eq!(extents.past(ID, i64::MAX), None, "what was before is not known");
        extents.resume(ID, 7, Some(500));
        extents.extend(ID, 8, 1, [&changes(&[90])]);
        assert_eq!(extents.past(ID, 499), None);
        let whole = extents.past(ID, 500).unwrap();
        assert_eq!((whole.below, whole.bytes), (8, u64::MAX));
        extents.resume(ID, 9, None);
        assert_eq!(extents.past(ID, 0).map(|past| past.below), Some(9));
        extents.begin(ID);
        assert_eq!(extents.past(ID, i64::MAX), None, "nothing is in it yet");
    }
}
