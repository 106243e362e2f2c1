//! Arriving: what the poll thread does with partitions that the group has assigned, before it knows where they start.
//!
//! Assigned by the group → the broker is asked about them, by another thread → what is known is given to the client with
//! where it starts. Until then the client has nothing of them, and the partitions that stay are served. A cooperative
//! rebalance takes them as they become known; an eager one replaces everything with each assignment, so there they come
//! together.

use rdkafka::consumer::{Consumer as _, RebalanceProtocol};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::consumer::PollThread;
use super::rebalance::fatal;
use crate::arrivals::Arrivals;
use crate::assignments::Facts;
use crate::error::Error;
use crate::message::NextOffset;
use crate::store::PartitionId;

/// See the module.
pub(crate) struct Arriving {
    arrivals: Arrivals,
    /// Known, and waiting for those that they have to come with.
    known: Vec<(PartitionId, Facts)>,
}

impl Arriving {
    pub(crate) const fn new(arrivals: Arrivals) -> Self {
        Self {
            arrivals,
            known: Vec::new(),
        }
    }

    pub(super) fn expect(&mut self, ids: &[PartitionId]) {
        self.arrivals.expect(ids);
    }

    /// Partitions that are ours, and not the client's yet.
    pub(super) fn ids(&self) -> Vec<PartitionId> {
        let known = self.known.iter().map(|(id, _)| *id);
        self.arrivals.waiting().into_iter().chain(known).collect()
    }

    /// They are given away, or lost: what is told of them later is dropped.
    pub(super) fn forget(&mut self, ids: &[PartitionId]) {
        self.arrivals.forget(ids);
        self.known.retain(|(id, _)| !ids.contains(id));
    }

    pub(super) fn forget_all(&mut self) {
        let ids = self.ids();
        self.forget(&ids);
    }

    /// What can be given to the client now.
    fn take(&mut self, together: bool) -> Result<Vec<(PartitionId, Facts)>, Error> {
        self.known.extend(self.arrivals.take()?);
        if together && !self.arrivals.waiting().is_empty() {
            return Ok(Vec::new());
        }
        Ok(std::mem::take(&mut self.known))
    }
}

impl PollThread {
    /// Decides about whatever is known by now, and gives it to the client.
    pub(super) fn serve_arrived(&mut self) -> Result<(), Error> {
        let together = !matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let known = self.arriving.take(together)?;
        if known.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        let mut coming = Vec::new();
        for (id, facts) in known {
            let topic = self.assignments.topic(id).unwrap_or_default().to_owned();
            match self.take_up(id, &facts) {
                Ok(start) => {
                    self.split(&topic, id)?;
                    list.add_partition_offset(&topic, id.partition, KafkaOffset::Offset(start.0))
                        .map_err(fatal)?;
                    coming.push((id, facts, start));
                }
                Err(Error::Broker(refusal)) if refusal.is_refusal() => {
                    self.refuse(id, &refusal);
                }
                Err(error) => return Err(error),
            }
        }
        self.give_to_client(&list)?;
        if let Some(replication) = &mut self.replication {
            replication.come(coming);
        }
        self.report();
        Ok(())
    }

    /// Where fetching begins. In local mode the partition is prepared with that; a changelog has to be read first.
    fn take_up(&mut self, id: PartitionId, facts: &Facts) -> Result<NextOffset, Error> {
        if self.replication.is_some() {
            return Ok(self.assignments.expect(id, facts)?.next);
        }
        let prepared = self.assignments.prepare(id, facts)?;
        let start = prepared.start.next;
        self.go_on(prepared)?;
        Ok(start)
    }

    /// Adds to what the client has; in an eager protocol it replaces that.
    pub(super) fn give_to_client(&self, list: &TopicPartitionList) -> Result<(), Error> {
        let given = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(list),
            _ => self.consumer.assign(list),
        };
        given.map_err(|error| fatal(error).into())
    }

    /// Those of the partitions that the client has: others were assigned by the group, and are refused, or still arriving.
    pub(super) fn held_by_client(&self, partitions: &[(String, i32)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        let held = self.consumer.assignment();
        for (topic, partition) in partitions {
            let is_held = held
                .as_ref()
                .map_or(true, |held| held.find_partition(topic, *partition).is_some());
            if is_held {
                list.add_partition(topic, *partition);
            }
        }
        list
    }
}
