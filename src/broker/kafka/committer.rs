//! The committer: a thread that commits and waits for the broker's answer, so that the poll thread never does.
//!
//! An asynchronous commit of the client library is never answered: its commit callback needs a property that is not
//! set while events are used, and so nobody would know which commit point rules. A synchronous one waits for as long as
//! the coordinator is away. One request for each topic, because the client answers a request as a whole: a topic that
//! is gone must not speak for another.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::callbacks::{Answered, Callbacks};
use crate::fence::Gate;
use crate::message::NextOffset;
use crate::worker::Worker;

/// The commit of one partition.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) next: NextOffset,
    /// The commit's metadata: the store's mark.
    pub(super) mark: String,
    /// The assignment that it is for.
    pub(super) gate: Gate,
}

/// The handle of the thread. Dropping it waits for the answer to what was handed over.
pub(super) struct Committer {
    thread: Worker<Vec<Order>>,
}

impl Committer {
    /// Starts the thread. What the broker says goes to `answers`, one for each order; `answered` is called after them.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(super) fn start(
        consumer: Arc<BaseConsumer<Callbacks>>,
        answers: mpsc::Sender<Answered>,
        answered: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let thread = Worker::start("hapax-commit", move |inbox: mpsc::Receiver<Vec<Order>>| {
            for orders in inbox {
                for answer in orders
                    .chunk_by(|a, b| a.topic == b.topic)
                    .flat_map(|of_topic| commit(&consumer, of_topic))
                {
                    // Nobody listens any more where the consumer was left behind.
                    let _ = answers.send(answer);
                }
                answered();
            }
        })?;
        Ok(Self { thread })
    }

    /// Hands over commits; their answers come in their order.
    pub(super) fn commit(&self, orders: Vec<Order>) {
        let mut by_topic: BTreeMap<String, Vec<Order>> = BTreeMap::new();
        for order in orders {
            by_topic.entry(order.topic.clone()).or_default().push(order);
        }
        let orders: Vec<Order> = by_topic.into_values().flatten().collect();
        if !orders.is_empty() {
            // Where the thread is gone nothing is answered, and whoever waits has a deadline.
            self.thread.send(orders);
        }
    }
}

/// Commits what belongs to one topic.
fn commit(consumer: &BaseConsumer<Callbacks>, orders: &[Order]) -> Vec<Answered> {
    // Asked here, immediately before: an order may have waited behind a coordinator that was away (Inv 5).
    let living = |order: &&Order| order.gate.accepts();
    let accepted = match list(orders.iter().filter(living)) {
        Ok(list) if list.count() == 0 => Ok(()),
        Ok(list) => consumer.commit(&list, CommitMode::Sync),
        Err(error) => Err(error),
    };
    if let Err(error) = &accepted {
        consumer.context().note_kick(error.rdkafka_error_code());
        let why = crate::error::chain(error);
        tracing::warn!(topic = orders.first().map(|order| order.topic.as_str()), %why, "a commit was refused");
    }
    let answer = |order: &Order| Answered {
        topic: order.topic.clone(),
        partition: order.partition,
        next: order.next,
        accepted: accepted.is_ok() && order.gate.accepts(),
    };
    orders.iter().map(answer).collect()
}

fn list<'a>(orders: impl Iterator<Item = &'a Order>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for order in orders {
        let mut element = list.add_partition(&order.topic, order.partition);
        element.set_offset(KafkaOffset::Offset(order.next.0))?;
        element.set_metadata(&order.mark);
    }
    Ok::<_, KafkaError>(list)
}
