//! Questions to the broker that no contestant answers for itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::Result;

const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How often the committed offsets are asked for: bounds how much later than the commit it is noticed.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// Next offsets by partition.
pub(crate) type Ends = BTreeMap<i32, i64>;

/// Asks about one topic, in the name of one group that it never joins.
pub(crate) struct Observer {
    client: BaseConsumer,
    topic: String,
}

impl Observer {
    pub(crate) fn new(brokers: &str, topic: &str, group: &str) -> Result<Self> {
        let client = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .create()?;
        Ok(Self {
            client,
            topic: topic.to_owned(),
        })
    }

    /// The ends of the log, and how many messages lie before them.
    pub(crate) fn ends(&self) -> Result<(Ends, u64)> {
        let metadata = self.client.fetch_metadata(Some(&self.topic), ANSWER_MAX)?;
        let topic = metadata
            .topics()
            .first()
            .ok_or("the broker knows no such topic")?;
        let mut ends = Ends::new();
        let mut messages = 0;
        for partition in topic.partitions() {
            let (low, high) = self
                .client
                .fetch_watermarks(&self.topic, partition.id(), ANSWER_MAX)?;
            ends.insert(partition.id(), high);
            messages += u64::try_from(high - low)?;
        }
        Ok((ends, messages))
    }

    /// Waits until the group has committed exactly these offsets, and says when that was seen.
    pub(crate) fn await_committed(&self, ends: &Ends, at_most: Duration) -> Result<Instant> {
        let begun = Instant::now();
        loop {
            let committed = self.committed(ends)?;
            let now = Instant::now();
            if committed == *ends {
                return Ok(now);
            }
            if begun.elapsed() > at_most {
                return Err(format!(
                    "committed {committed:?}, the log ends at {ends:?}, and {at_most:?} are over"
                )
                .into());
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn committed(&self, ends: &Ends) -> Result<Ends> {
        let mut asked = TopicPartitionList::new();
        for partition in ends.keys() {
            asked.add_partition(&self.topic, *partition);
        }
        let answer = self.client.committed_offsets(asked, ANSWER_MAX)?;
        let offsets = answer.elements().into_iter().filter_map(|element| {
            let Offset::Offset(next) = element.offset() else {
                return None;
            };
            Some((element.partition(), next))
        });
        Ok(offsets.collect())
    }
}
