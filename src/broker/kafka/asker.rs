//! Asking what the broker has of partitions: the group's commits, and the ends of their logs.
//!
//! With a client of its own that never joins the group: what a group has committed is told to anybody who may describe it,
//! and a question that waits must hold up nothing of the client that consumes. No generation is stated, so none can be
//! stale; what counts is that the question comes after the assignment, since the owner before can commit no more then. What
//! it may still have under way is a transaction, and of such a commit the broker says nothing before that has ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::ANSWER_MAX;
use super::rights::unanswered;
use crate::arrivals::Questions;
use crate::assignments::Facts;
use crate::broker::{self, CommitMark, Committed};
use crate::config::Settings;
use crate::error::Error;
use crate::message::NextOffset;
use crate::store::{PartitionId, TopicId};

/// A log that ends before the committed offset may belong to a leader that has only just taken over.
const END_ASKED_MAX: usize = 20;
const END_AGAIN: Duration = Duration::from_millis(100);

/// What the asker works with.
pub(crate) struct Parts {
    pub(crate) settings: Arc<Settings>,
    pub(crate) topics: BTreeMap<TopicId, String>,
    /// How many partitions each topic had when that was last looked at.
    pub(crate) counts: BTreeMap<String, i32>,
    /// Looks again, and does whatever a topic that has grown needs before its new partitions can be served.
    pub(crate) grow: Box<dyn Fn() -> Result<BTreeMap<String, i32>, Error> + Send>,
}

/// See the module.
pub(crate) struct Asker {
    parts: Parts,
    client: BaseConsumer,
}

impl Asker {
    /// # Errors
    /// Where the client refuses a property.
    pub(crate) fn new(parts: Parts) -> Result<Self, Error> {
        Ok(Self {
            client: client(&parts.settings)?,
            parts,
        })
    }

    /// A partition that was not there when the topics were looked at: it has a changelog before it is served.
    fn grow(&mut self, partitions: &[(String, i32)]) -> Result<(), Error> {
        let counts = &self.parts.counts;
        let is_new =
            |(topic, partition): &(String, i32)| counts.get(topic).is_none_or(|count| partition >= count);
        if partitions.iter().any(is_new) {
            self.parts.counts = (self.parts.grow)()?;
        }
        Ok(())
    }
}

impl Questions for Asker {
    fn ask(&mut self, ids: &[PartitionId], at_most: Duration) -> Result<Vec<Facts>, Error> {
        let named = |id: &PartitionId| {
            let topic = self.parts.topics.get(&id.topic);
            let topic =
                topic.ok_or_else(|| Error::Internal(format!("partition of unknown topic {:?}", id.topic)));
            topic.map(|topic| (topic.clone(), id.partition))
        };
        let partitions = ids.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        self.grow(&partitions)?;
        let settings = &self.parts.settings;
        let committed = self.client.committed_offsets(list(&partitions), at_most);
        let committed = committed.map_err(unanswered(settings, "asking for committed offsets"))?;
        facts(settings, &self.client, &partitions, &committed, at_most)
    }
}

/// What the group has committed of those partitions, and the ends of their logs.
///
/// # Errors
/// Where the broker does not answer.
pub(crate) fn committed(settings: &Settings, partitions: &[(String, i32)]) -> Result<Vec<Facts>, Error> {
    let client = client(settings)?;
    let committed = super::admin::committed(settings, &client, &list(partitions))?;
    facts(settings, &client, partitions, &committed, ANSWER_MAX)
}

fn client(settings: &Settings) -> Result<BaseConsumer, Error> {
    let client = super::reach::config(settings, 1).create();
    client.map_err(|error| broker::Error::Config(crate::error::chain(&error)).into())
}

fn list(partitions: &[(String, i32)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    list
}

fn facts(
    settings: &Settings,
    client: &BaseConsumer,
    partitions: &[(String, i32)],
    committed: &TopicPartitionList,
    at_most: Duration,
) -> Result<Vec<Facts>, Error> {
    let mut facts = Vec::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        let found = committed.find_partition(topic, *partition);
        let committed = found.and_then(|element| match element.offset() {
            KafkaOffset::Offset(next) => Some(Committed {
                next: NextOffset(next),
                mark: CommitMark::from_metadata(element.metadata()),
            }),
            _ => None,
        });
        let least = committed.as_ref().map_or(0, |committed| committed.next.0);
        let mut asked = 0;
        let (low, high) = loop {
            let ends = client.fetch_watermarks(topic, *partition, at_most);
            let (low, high) = ends.map_err(unanswered(settings, "asking for the ends of the log"))?;
            asked += 1;
            if high >= least || asked >= END_ASKED_MAX {
                break (low, high);
            }
            thread::park_timeout(END_AGAIN);
        };
        facts.push(Facts { committed, low, high });
    }
    Ok(facts)
}
