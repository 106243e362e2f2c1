//! Rebalances: partitions that come, are decided about, served, drained, and go.
//!
//! Coming: the broker is asked what it has of them, by another thread (`arriving.rs`) → decide where each starts and note it
//! durably → split its queue, assign → commit once with this store's mark → serve, when the broker has acknowledged that.
//! Going: drain → commit → clear the fence → unassign. Nothing here waits for an answer of the broker, but for a drain's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rdkafka::consumer::{Consumer as _, RebalanceProtocol};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::callbacks::{Answered, Event};
use super::consumer::PollThread;
use super::properties::session;
use super::raw::RawQueue;
use super::take::Queue;
use crate::assignments::Prepared;
use crate::broker;
use crate::clock::{self, Instant};
use crate::error::Error;
use crate::store::PartitionId;

/// A first commit that was refused is sent again after this.
const REFUSED_AGAIN: Duration = Duration::from_millis(100);

/// A first commit that nobody has answered is sent again after this.
const COMMIT_AGAIN: Duration = Duration::from_secs(5);

/// What is decided is recorded even past the budget of a drain: the disk has this much longer, and after that the
/// broker as much again to acknowledge the last commit.
const PAST_DRAIN: Duration = Duration::from_secs(5);

/// The broker gives the partitions of a dead member away this much after its session at the latest.
const PAST_SESSION: Duration = Duration::from_secs(1);

/// A partition that is assigned, and is served once its first commit is acknowledged.
pub(super) struct First {
    prepared: Prepared,
    /// When that commit is sent, or sent again.
    due: Instant,
}

impl First {
    pub(super) const fn id(&self) -> PartitionId {
        self.prepared.id
    }
}

/// What this process holds of partitions that are another's.
pub(super) enum Strays {
    /// Nobody knows yet which are ours.
    Unknown,
    /// Some are ours; the rest may still come. A member that died here a moment ago keeps its partitions until its
    /// session ends, so a first assignment can be a part.
    Settling(Instant),
    /// They go to the dead-letter topic.
    Moving(Vec<PartitionId>),
    /// There are none.
    Gone,
}

impl PollThread {
    pub(super) fn apply(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Assigned(partitions) => {
                self.of_group.extend(partitions.iter().cloned());
                self.assigned(&partitions)
            }
            Event::Revoked { partitions, lost } => {
                self.of_group.retain(|given| !partitions.contains(given));
                self.revoked(&partitions, lost)
            }
        }
    }

    /// The client is told at once, with nothing: until then it fetches nothing, not even of partitions that stay.
    fn assigned(&mut self, partitions: &[(String, i32)]) -> Result<(), Error> {
        self.end_strays_among(partitions)?;
        let ids: Vec<_> = partitions
            .iter()
            .filter_map(|(topic, partition)| self.assignments.id(topic, *partition))
            .collect();
        for id in &ids {
            if let Some(replication) = &self.replication {
                replication.take(*id);
            }
            self.assignments.commits().expect(*id);
        }
        self.give_to_client(&TopicPartitionList::new())?;
        if let Some(replication) = &mut self.replication {
            replication.member.join(&self.consumer);
        }
        self.arriving.expect(&ids);
        self.report();
        Ok(())
    }

    /// Its window is whole, or as whole as it is to be. It is served once that is known: to the group, by its first commit,
    /// or to the changelog, by its fence.
    pub(super) fn come_to_serve(&mut self, prepared: Prepared) {
        if let Some(replication) = &mut self.replication {
            replication.raise_fence(prepared);
        } else {
            let due = clock::now();
            self.uncommitted.push(First { prepared, due });
        }
    }

    /// Its messages go into a queue of their own, from before it is assigned: what comes earlier would be out of order.
    pub(super) fn split(&mut self, topic: &str, id: PartitionId) -> Result<(), Error> {
        let queues = self
            .consumer
            .split_partition_queue(topic, id.partition)
            .zip(RawQueue::new(&self.consumer, topic, id.partition));
        let Some((mut split, raw)) = queues else {
            return Err(Error::Internal(format!("{topic}[{}] has no queue", id.partition)));
        };
        let signal = Arc::clone(&self.signal);
        split.set_nonempty_callback(move || signal.raise());
        self.queues.push(Queue {
            topic: topic.into(),
            id,
            _split: split,
            raw,
        });
        Ok(())
    }

    /// It is not served, though it stays ours.
    pub(super) fn refuse(&mut self, id: PartitionId, why: &broker::Error) {
        tracing::error!("{why}");
        self.queues.retain(|queue| queue.id != id);
        self.assignments.commits().forget(id);
        self.refused.insert(id, why.to_string());
        self.report();
    }

    /// Before its first handler an owner commits once, with its store's mark: whoever comes after this one, even
    /// after a crash, sees that another store has served the partition (schedule 10).
    pub(super) fn commit_first(&mut self) {
        let now = clock::now();
        let mut due = Vec::new();
        for first in self.uncommitted.iter_mut().filter(|first| first.due <= now) {
            first.due = now + COMMIT_AGAIN;
            due.push(first.prepared.first_commit());
        }
        self.commit(&due);
    }

    /// What the broker said of a commit. A partition whose first one is acknowledged is served from here on.
    pub(super) fn answered(&mut self, answered: &Answered) {
        let Some(id) = self.assignments.id(&answered.topic, answered.partition) else {
            return;
        };
        let of_first = |first: &First| first.prepared.id == id && first.prepared.start.next == answered.next;
        if let Some(place) = self.uncommitted.iter().position(of_first) {
            if answered.accepted {
                let First { prepared, .. } = self.uncommitted.swap_remove(place);
                self.assignments.serve(prepared);
            } else if let Some(first) = self.uncommitted.get_mut(place) {
                first.due = clock::now() + REFUSED_AGAIN;
            }
            return;
        }
        self.assignments
            .commits()
            .answered(id, answered.next, answered.accepted, clock::now());
        if answered.accepted {
            crate::crash::point("after-commit");
        }
    }

    fn revoked(&mut self, partitions: &[(String, i32)], lost: bool) -> Result<(), Error> {
        let ids: Vec<_> = partitions
            .iter()
            .filter_map(|(t, p)| self.assignments.id(t, *p))
            .collect();
        self.arriving.forget(&ids);
        self.uncommitted.retain(|first| !ids.contains(&first.id()));
        self.refused.retain(|id, _| !ids.contains(id));
        if let Some(replication) = &mut self.replication {
            replication.go(&ids);
        }
        if let Some(rebuilding) = &mut self.rebuilding {
            rebuilding.go(&mut self.assignments, &ids);
        }
        if lost {
            tracing::warn!(partitions = ids.len(), "partitions lost");
        } else {
            crate::crash::point("during-rebalance");
            if !crate::crash::is_off("drain") {
                self.drain(&ids, true)?;
            }
        }
        for id in &ids {
            // Also what was on its way here and never served.
            self.assignments.commits().forget(*id);
        }
        // The fence comes down before unassign: from there on another member may own the partition (Inv 5).
        if lost || !crate::crash::is_off("drain") {
            self.assignments.end(&ids);
        }
        if let Some(replication) = &self.replication {
            replication.leave(&ids);
        }
        self.queues.retain(|queue| !ids.contains(&queue.id));
        let list = self.held_by_client(partitions);
        if matches!(self.strays, Strays::Gone) {
            // What the drain could not move, because it still ran or its letter was not taken, is looked for again.
            self.strays = Strays::Unknown;
        }
        self.report();
        let applied = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_unassign(&list),
            _ => self.consumer.unassign(),
        };
        applied.map_err(|error| fatal(error).into())
    }

    /// Lets what runs finish, up to the budget, while the main queue is served; then commits what is recorded.
    pub(super) fn drain(&mut self, ids: &[PartitionId], revoked: bool) -> Result<(), Error> {
        let deadline = self.assignments.drain(ids, self.settings.drain, revoked) + PAST_DRAIN;
        while !self.assignments.are_drained(ids) && clock::now() < deadline {
            self.serve_main_queue(Duration::from_millis(1))?;
            if !self.turned() {
                // Frozen in the middle of it: the partitions are another's by now, and nothing more is committed.
                return Ok(());
            }
        }
        let due = self.assignments.commits().take_last(ids);
        crate::crash::point("before-commit");
        self.commit(&due);
        // Recorded all the same where nobody answers: whoever comes next is delivered it again, and knows it where the
        // store moves with it.
        let deadline = clock::now() + PAST_DRAIN;
        while self.assignments.commits().waits_for(ids) && clock::now() < deadline && self.turned() {
            self.serve_main_queue(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// What was held here of partitions that have gone to another member while this process was away has no other
    /// home. Known one session after the first assignment is served; what is ours and refused stays.
    pub(super) fn move_strays(&mut self) -> Result<(), Error> {
        match &self.strays {
            // What is held moves with its partition.
            _ if self.replication.is_some() => {}
            Strays::Unknown if self.uncommitted.is_empty() && !self.assignments.ids().is_empty() => {
                self.strays = Strays::Settling(clock::now() + session(&self.settings) + PAST_SESSION);
            }
            Strays::Settling(until) if *until <= clock::now() => {
                let rebuilding = self.rebuilding.as_ref();
                let ours: Vec<_> = self
                    .refused
                    .keys()
                    .copied()
                    .chain(self.arriving.ids())
                    .chain(
                        rebuilding
                            .into_iter()
                            .flat_map(super::rebuilding::Rebuilding::ids),
                    )
                    .collect();
                let strays = self.assignments.move_strays(self.settings.drain, &ours)?;
                self.strays = Strays::Moving(strays);
            }
            Strays::Moving(strays) if self.assignments.are_drained(strays) => {
                let strays = strays.clone();
                self.assignments.end(&strays);
                self.strays = Strays::Gone;
            }
            _ => {}
        }
        Ok(())
    }

    /// A stray becomes ours after all: its task must be over before another one of the same partition starts.
    fn end_strays_among(&mut self, partitions: &[(String, i32)]) -> Result<(), Error> {
        let Strays::Moving(strays) = &mut self.strays else {
            return Ok(());
        };
        let assignments = &self.assignments;
        let assigned = |id: &PartitionId| {
            partitions
                .iter()
                .any(|(topic, partition)| assignments.id(topic, *partition) == Some(*id))
        };
        let ending: Vec<_> = strays.extract_if(.., |id| assigned(id)).collect();
        if !ending.is_empty() {
            self.drain(&ending, true)?;
            self.assignments.end(&ending);
        }
        Ok(())
    }

    /// What is still to be applied when the consumer closes: a revoke that was only noted would be waited for, for
    /// ever.
    pub(super) fn apply_at_close(&mut self) {
        self.consumer.context().closing.store(true, Ordering::Release);
        while let Some(event) = self.consumer.context().next_event() {
            if let Event::Revoked { partitions, .. } = event {
                let list = self.held_by_client(&partitions);
                // Whatever it says, the consumer is on its way out.
                let _ = match self.consumer.rebalance_protocol() {
                    RebalanceProtocol::Cooperative => self.consumer.incremental_unassign(&list),
                    _ => self.consumer.unassign(),
                };
            }
        }
    }
}

pub(super) fn fatal(error: rdkafka::error::KafkaError) -> broker::Error {
    broker::Error::Fatal(crate::error::chain(&error))
}
