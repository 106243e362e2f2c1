//! What is in Kafka: messages, dead letters, committed offsets.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A message as it lies in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Message {
    /// As the client hands it over.
    pub(crate) fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map_or(Vec::new(), |headers| {
            let owned = |value: &[u8]| value.to_vec();
            headers
                .iter()
                .map(|h| (h.key.to_owned(), h.value.map(owned)))
                .collect()
        });
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers,
        }
    }

    pub(crate) fn place(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }

    /// The text of a header that is there once.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut found = self.headers.iter().filter(|(of, _)| of == name);
        let (_, value) = found.next()?;
        assert!(found.next().is_none(), "{name} is there twice");
        value.clone().map(|value| String::from_utf8(value).unwrap())
    }

    /// Where a dead letter says that it comes from.
    pub(crate) fn origin(&self) -> Option<(String, (i32, i64))> {
        let number = |name| self.header(name)?.parse().ok();
        let place = (number("hapax-partition")? as i32, number("hapax-offset")?);
        Some((self.header("hapax-topic")?, place))
    }
}

/// The offset after the last message of each partition.
pub(crate) fn ends(client: &ClientConfig, topic: &str, partitions: i32) -> BTreeMap<i32, i64> {
    let consumer: BaseConsumer = client.create().unwrap();
    (0..partitions)
        .map(|partition| {
            let marks = consumer.fetch_watermarks(topic, partition, ANSWER_WITHIN);
            (partition, marks.unwrap().1)
        })
        .collect()
}

/// Every message of a topic, by partition and offset.
pub(crate) fn read_topic(client: &ClientConfig, topic: &str, partitions: i32) -> Vec<Message> {
    let mut ends = ends(client, topic, partitions);
    ends.retain(|_, end| *end > 0);
    let mut config = client.clone();
    config.set("group.id", format!("{topic}-checker"));
    config.set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in ends.keys() {
        list.add_partition_offset(topic, *partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut messages = Vec::new();
    while !ends.is_empty() {
        let polled = consumer.poll(ANSWER_WITHIN);
        let message = polled.unwrap_or_else(|| panic!("{topic}: nothing more, and {ends:?} not reached"));
        let message = message.unwrap();
        messages.push(Message::of(&message));
        if ends.get(&message.partition()) == Some(&(message.offset() + 1)) {
            ends.remove(&message.partition());
        }
    }
    messages.sort_by_key(Message::place);
    messages
}

/// The group's committed offsets with their metadata; `None` where its coordinator does not answer just now.
pub(crate) fn committed(
    consumer: &BaseConsumer,
    topic: &str,
    partitions: i32,
) -> Option<BTreeMap<i32, (i64, String)>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let answer = consumer.committed_offsets(list, ANSWER_WITHIN).ok()?;
    let elements = answer.elements();
    let offsets = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), (offset, element.metadata().to_owned()))),
        _ => None,
    });
    Some(offsets.collect())
}
