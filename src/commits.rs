//! Commit points on their way to the broker.
//!
//! A partition task publishes a commit point once the store knows it; the poll thread commits what is due and hears
//! from the broker what ruled. A commit that failed is due again. Only a partition whose fence still stands is
//! committed (Inv 5): Kafka itself refuses by generation, not by ownership.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fence::Gate;
use crate::ledger::CommitPoint;
use crate::message::NextOffset;
use crate::store::PartitionId;

/// The board that partition tasks and the poll thread share. Locked once per commit interval and partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commits(Arc<Mutex<BTreeMap<PartitionId, Entry>>>);

#[derive(Debug)]
struct Entry {
    gate: Gate,
    published: CommitPoint,
    /// Handed to the broker, and not yet answered.
    sent: Option<CommitPoint>,
    /// What the broker acknowledged: the commit point that rules.
    acknowledged: Option<CommitPoint>,
}

impl Commits {
    fn board(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Entry>> {
        // A panic elsewhere does not make these numbers wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new assignment starts at a point that the broker has.
    pub(crate) fn assign(&self, id: PartitionId, gate: &Gate, start: CommitPoint) {
        let entry = Entry {
            gate: gate.clone(),
            published: start,
            sent: None,
            acknowledged: Some(start),
        };
        self.board().insert(id, entry);
    }

    /// The assignment is over.
    pub(crate) fn forget(&self, id: PartitionId) {
        self.board().remove(&id);
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

    /// What is to be committed now. Each point taken is out until it is [`answered`](Self::answered) or
    /// [failed](Self::all_failed), so whoever takes it must send it.
    pub(crate) fn take_due(&self) -> Vec<(PartitionId, CommitPoint)> {
        Self::take(&mut self.board(), |_| true)
    }

    /// What is to be committed now of partitions that are drained. Whatever was sent of them before is sent again, if
    /// it is still due: its answer may come too late. Other partitions are left as they are.
    pub(crate) fn take_last(&self, drained: &[PartitionId]) -> Vec<(PartitionId, CommitPoint)> {
        let mut board = self.board();
        for id in drained {
            if let Some(entry) = board.get_mut(id) {
                entry.sent = None;
            }
        }
        Self::take(&mut board, |id| drained.contains(id))
    }

    fn take(
        board: &mut BTreeMap<PartitionId, Entry>,
        of: impl Fn(&PartitionId) -> bool,
    ) -> Vec<(PartitionId, CommitPoint)> {
        let due = board.iter_mut().filter(|(id, entry)| {
            of(id)
                && entry.gate.accepts()
                && entry.sent.is_none()
                && entry.acknowledged != Some(entry.published)
        });
        due.map(|(id, entry)| {
            entry.sent = Some(entry.published);
            (*id, entry.published)
        })
        .collect()
    }

    /// The broker's answer for one partition.
    pub(crate) fn answered(&self, id: PartitionId, next: NextOffset, accepted: bool) {
        if let Some(entry) = self.board().get_mut(&id)
            && let Some(sent) = entry.sent.take_if(|sent| sent.next == next)
            && accepted
        {
            entry.acknowledged = Some(sent);
        }
    }

    /// Whether the broker has yet to answer for one of them.
    pub(crate) fn waits_for(&self, ids: &[PartitionId]) -> bool {
        let board = self.board();
        ids.iter()
            .any(|id| board.get(id).is_some_and(|entry| entry.sent.is_some()))
    }

    /// Nothing of what was sent has been answered, and nothing will be.
    pub(crate) fn all_failed(&self) {
        for entry in self.board().values_mut() {
            entry.sent = None;
        }
    }

    /// Partition time at the point that the broker has.
    pub(crate) fn acknowledged_ms(&self, id: PartitionId) -> Option<i64> {
        self.board().get(&id)?.acknowledged?.time_ms
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

    #[test]
    fn a_failed_commit_is_due_again_and_the_acknowledged_one_rules() {
        let (commits, gate) = (Commits::default(), Gate::mint(Fence(0)));
        commits.assign(ID, &gate, point(5));
        assert!(commits.take_due().is_empty());
        commits.publish(ID, &gate, point(9));
        assert_eq!(commits.take_due(), [(ID, point(9))]);
        assert!(commits.take_due().is_empty(), "one at a time");
        commits.answered(ID, NextOffset(9), false);
        assert_eq!(commits.acknowledged(), [(ID, point(5))]);
        assert_eq!(commits.take_due(), [(ID, point(9))]);
        commits.answered(ID, NextOffset(9), true);
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
        assert_eq!(commits.take_last(&[ID]), [(ID, point(1))]);
        assert_eq!(commits.take_due(), [(KEPT, point(1))]);
        assert_eq!(
            commits.take_last(&[ID]),
            [(ID, point(1))],
            "its answer is not waited for"
        );
        assert!(commits.take_due().is_empty());
    }

    #[test]
    fn an_ended_assignment_commits_nothing() {
        let (commits, gate) = (Commits::default(), Gate::mint(Fence(0)));
        commits.assign(ID, &gate, point(0));
        commits.publish(ID, &gate, point(1));
        gate.clear();
        assert!(commits.take_due().is_empty());
        let next = Gate::mint(gate.fence());
        commits.assign(ID, &next, point(0));
        commits.publish(ID, &gate, point(7));
        assert!(
            commits.take_due().is_empty(),
            "what the older assignment publishes is not the newer one's"
        );
    }
}
