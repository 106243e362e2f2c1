//! Commit points on their way to the broker.
//!
//! A partition task publishes a commit point once the store knows it; the poll thread commits what is due and hears
//! from the broker what ruled. A commit that failed is due again. Only a partition whose fence still stands is
//! committed (Inv 5): Kafka itself refuses by generation, not by ownership.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Instant;
use crate::fence::Gate;
use crate::ledger::CommitPoint;
use crate::message::NextOffset;
use crate::store::PartitionId;

/// The board that partition tasks and the poll thread share. Locked once per commit interval and partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commits {
    board: Arc<Mutex<BTreeMap<PartitionId, Entry>>>,
    /// Assigned, and not served yet: being restored, rebuilt or fenced.
    coming: Arc<Mutex<BTreeSet<PartitionId>>>,
}

/// A commit point that is to be committed now.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) id: PartitionId,
    pub(crate) point: CommitPoint,
    /// Whose assignment it is.
    pub(crate) gate: Gate,
}

#[derive(Debug)]
struct Entry {
    gate: Gate,
    published: CommitPoint,
    /// Handed to the broker, and not yet answered.
    sent: Option<CommitPoint>,
    /// What the broker acknowledged: the commit point that rules.
    acknowledged: Option<CommitPoint>,
    /// Not before this is a refused one sent again.
    again: Option<Instant>,
}

/// How long after a refusal the same commit is tried again.
const AGAIN: Duration = Duration::from_millis(500);

impl Commits {
    fn board(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Entry>> {
        // A panic elsewhere does not make these numbers wrong.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Partitions that are assigned and not served yet. While this is held nobody else comes: whoever deletes what
    /// departed partitions have left holds it for as long as that takes.
    pub(crate) fn coming(&self) -> MutexGuard<'_, BTreeSet<PartitionId>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition is assigned; its window is needed from here on. Until it is served, or forgotten.
    pub(crate) fn expect(&self, id: PartitionId) {
        self.coming().insert(id);
    }

    /// A new assignment starts at a point that the broker has.
    pub(crate) fn assign(&self, id: PartitionId, gate: &Gate, start: CommitPoint) {
        let entry = Entry {
            gate: gate.clone(),
            published: start,
            sent: None,
            acknowledged: Some(start),
            again: None,
        };
        self.board().insert(id, entry);
        self.coming().remove(&id);
    }

    /// The assignment is over.
    pub(crate) fn forget(&self, id: PartitionId) {
        self.board().remove(&id);
        self.coming().remove(&id);
    }

    /// The store knows this point: it may be committed.
    pub(crate) fn publish(&self, id: PartitionId, gate: &Gate, point: CommitPoint) {
        if let Some(entry) = self
            .board()
            .get_mut(&id)
            .filter(|entry| entry.gate.fence() == gate.fence())
        {
            entry.published = point;
        }
    }

    /// The broker has this point already: it was committed in the transaction that recorded what lies below it.
    pub(crate) fn rules(&self, id: PartitionId, gate: &Gate, point: CommitPoint) {
        if let Some(entry) = self
            .board()
            .get_mut(&id)
            .filter(|entry| entry.gate.fence() == gate.fence())
        {
            entry.published = point;
            entry.acknowledged = Some(point);
        }
    }

    /// What is to be committed now. Each point taken is out until it is [`answered`](Self::answered), so whoever takes
    /// it must send it.
    pub(crate) fn take_due(&self, now: Instant) -> Vec<Due> {
        Self::take(&mut self.board(), |_, entry| {
            entry.again.is_none_or(|again| again <= now)
        })
    }

    /// What is to be committed now of partitions that are drained. Whatever was sent of them before is sent again, if
    /// it is still due: its answer may come too late. Other partitions are left as they are.
    pub(crate) fn take_last(&self, drained: &[PartitionId]) -> Vec<Due> {
        let mut board = self.board();
        for id in drained {
            if let Some(entry) = board.get_mut(id) {
                entry.sent = None;
            }
        }
        Self::take(&mut board, |id, _| drained.contains(id))
    }

    fn take(board: &mut BTreeMap<PartitionId, Entry>, of: impl Fn(&PartitionId, &Entry) -> bool) -> Vec<Due> {
        let due = board.iter_mut().filter(|(id, entry)| {
            of(id, entry)
                && entry.gate.accepts()
                && entry.sent.is_none()
                && entry.acknowledged != Some(entry.published)
        });
        due.map(|(id, entry)| {
            entry.sent = Some(entry.published);
            Due {
                id: *id,
                point: entry.published,
                gate: entry.gate.clone(),
            }
        })
        .collect()
    }

    /// The broker's answer for one partition.
    pub(crate) fn answered(&self, id: PartitionId, next: NextOffset, accepted: bool, now: Instant) {
        if let Some(entry) = self.board().get_mut(&id)
            && let Some(sent) = entry.sent.take_if(|sent| sent.next == next)
        {
            if accepted {
                entry.acknowledged = Some(sent);
                entry.again = None;
            } else {
                entry.again = Some(now + AGAIN);
            }
        }
    }

    /// Whether the broker has yet to answer for one of them.
    pub(crate) fn waits_for(&self, ids: &[PartitionId]) -> bool {
        let board = self.board();
        ids.iter()
            .any(|id| board.get(id).is_some_and(|entry| entry.sent.is_some()))
    }

    /// Partition time at the point that the broker has.
    pub(crate) fn acknowledged_ms(&self, id: PartitionId) -> Option<i64> {
        self.board().get(&id)?.acknowledged?.time_ms
    }

    /// Every assignment that lives, with what the broker has of it.
    pub(crate) fn served(&self) -> Vec<(PartitionId, Gate, CommitPoint)> {
        self.board()
            .iter()
            .filter(|(_, entry)| entry.gate.accepts())
            .filter_map(|(id, entry)| Some((*id, entry.gate.clone(), entry.acknowledged?)))
            .collect()
    }

    /// What the broker has, by partition: what deletion goes by.
    pub(crate) fn acknowledged(&self) -> Vec<(PartitionId, CommitPoint)> {
        self.board()
            .iter()
            .filter_map(|(id, entry)| Some((*id, entry.acknowledged?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::Fence;
    use crate::store::TopicId;

    const ID: PartitionId = PartitionId {
        topic: TopicId(0),
        partition: 0,
    };

    fn point(next: i64) -> CommitPoint {
        CommitPoint {
            next: NextOffset(next),
            time_ms: Some(next),
        }
    }

    fn at(ms: u64) -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(crate::clock::now) + Duration::from_millis(ms)
    }

    fn taken(due: Vec<Due>) -> Vec<(PartitionId, CommitPoint)> {
        due.into_iter().map(|due| (due.id, due.point)).collect()
    }

    #[test]
    fn a_failed_commit_is_due_again_and_the_acknowledged_one_rules() {
        let (commits, gate) = (Commits::default(), Gate::mint(Fence(0)));
        commits.assign(ID, &gate, point(5));
        assert!(commits.take_due(at(0)).is_empty());
        commits.publish(ID, &gate, point(9));
        assert_eq!(taken(commits.take_due(at(0))), [(ID, point(9))]);
        assert!(commits.take_due(at(0)).is_empty(), "one at a time");
        commits.answered(ID, NextOffset(9), false, at(0));
        assert_eq!(commits.acknowledged(), [(ID, point(5))]);
        assert!(
            commits.take_due(at(499)).is_empty(),
            "not at once: the coordinator may be away"
        );
        assert_eq!(taken(commits.take_due(at(500))), [(ID, point(9))]);
        commits.answered(ID, NextOffset(9), true, at(0));
        assert_eq!(commits.acknowledged(), [(ID, point(9))]);
    }

    /// A cooperative rebalance: one partition goes, another is kept and goes on committing.
    #[test]
    fn the_last_commit_of_one_partition_leaves_the_others_due() {
        const KEPT: PartitionId = PartitionId { partition: 1, ..ID };
        let (commits, gate) = (Commits::default(), Gate::mint(Fence(0)));
        for id in [ID, KEPT] {
            commits.assign(id, &gate, point(0));
            commits.publish(id, &gate, point(1));
        }
        assert_eq!(taken(commits.take_last(&[ID])), [(ID, point(1))]);
        assert_eq!(taken(commits.take_due(at(0))), [(KEPT, point(1))]);
        assert_eq!(
            taken(commits.take_last(&[ID])),
            [(ID, point(1))],
            "its answer is not waited for"
        );
        assert!(commits.take_due(at(0)).is_empty());
    }

    #[test]
    fn an_ended_assignment_commits_nothing() {
        let (commits, gate) = (Commits::default(), Gate::mint(Fence(0)));
        commits.assign(ID, &gate, point(0));
        commits.publish(ID, &gate, point(1));
        gate.clear();
        assert!(commits.take_due(at(0)).is_empty());
        let next = Gate::mint(gate.fence());
        commits.assign(ID, &next, point(0));
        commits.publish(ID, &gate, point(7));
        assert!(
            commits.take_due(at(0)).is_empty(),
            "what the older assignment publishes is not the newer one's"
        );
    }
}
