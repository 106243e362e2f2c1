//! The consumer's callbacks. They run inside a poll of the main queue, so they only note what they were told: waiting in
//! one for work that needs the poll thread would deadlock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use crate::message::NextOffset;

/// What a rebalance callback saw.
#[derive(Debug)]
pub(super) enum Event {
    Assigned(Vec<(String, i32)>),
    Revoked {
        partitions: Vec<(String, i32)>,
        lost: bool,
    },
}

/// What the broker said of the commit of one partition.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) next: NextOffset,
    pub(super) accepted: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Callbacks {
    events: Mutex<VecDeque<Event>>,
    /// While the consumer closes, an unassign is applied at once, or the close never ends.
    pub(super) closing: AtomicBool,
    /// The group no longer knows this member: whatever `assignment_lost` says, everything is lost.
    pub(super) kicked: AtomicBool,
}

impl ClientContext for Callbacks {
    fn stats(&self, statistics: Statistics) {
        for (topic, of_topic) in &statistics.topics {
            for (partition, of_partition) in of_topic
                .partitions
                .iter()
                .filter(|(partition, _)| **partition >= 0)
            {
                if of_partition.hi_offset >= 0 && of_partition.committed_offset >= 0 {
                    let lag = of_partition.hi_offset - of_partition.committed_offset;
                    crate::metrics::lag(topic, *partition, lag.max(0));
                }
            }
        }
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.closing.load(Ordering::Acquire) {
            let applied = match consumer.rebalance_protocol() {
                RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
                _ => consumer.unassign(),
            };
            // The consumer is on its way out: there is nobody left to tell.
            drop(applied);
            return;
        }
        let partitions = list
            .elements()
            .iter()
            .map(|e| (e.topic().to_owned(), e.partition()))
            .collect();
        let event = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assigned(partitions),
            _ => Event::Revoked {
                partitions,
                lost: consumer.assignment_lost(),
            },
        };
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(event);
    }
}

impl Callbacks {
    pub(super) fn note_kick(&self, code: Option<RDKafkaErrorCode>) {
        use RDKafkaErrorCode::{FencedInstanceId, UnknownMemberId};
        if matches!(code, Some(UnknownMemberId | FencedInstanceId)) {
            self.kicked.store(true, Ordering::Release);
        }
    }

    pub(super) fn next_event(&self) -> Option<Event> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}
