//! Reading dead letters back, for `hapax redrive`: every committed one that its topic has.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::{ANSWER_MAX, client_config, unreachable};
use crate::broker::Error;
use crate::config::Settings;
use crate::dead_letter::PREFIX;
use crate::message::Kept;

/// A dead letter, and where its message came from.
pub(crate) struct Found {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) reason: Option<String>,
    /// The message, without the headers that made it a letter.
    pub(crate) message: Kept,
}

/// Hands every letter of that topic to `each`, a partition after the other, oldest first, and returns how many messages were
/// there that are no letters of hapax. Blocks.
///
/// # Errors
/// [`Error::Unreachable`] where nobody answers, [`Error::Config`] where the client refuses a property.
pub(crate) fn read(settings: &Settings, letters: &str, mut each: impl FnMut(Found)) -> Result<u64, Error> {
    let consumer: BaseConsumer = client_config(settings)
        .set("group.id", &settings.group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .create()
        .map_err(|error| Error::Config(crate::error::chain(&error)))?;
    let metadata = consumer
        .fetch_metadata(Some(letters), ANSWER_MAX)
        .map_err(unreachable(settings, "the partitions of the dead-letter topic"))?;
    let topics = metadata.topics().iter().filter(|topic| topic.name() == letters);
    let partitions = topics
        .flat_map(|topic| topic.partitions())
        .map(|partition| partition.id());
    let mut others = 0;
    for partition in partitions.collect::<Vec<_>>() {
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(letters, partition, KafkaOffset::Beginning)
            .and_then(|()| consumer.assign(&from))
            .map_err(unreachable(settings, "a partition of the dead-letter topic"))?;
        // To the end that the broker tells of: what is written while this reads is another run's.
        let mut silent = Duration::ZERO;
        loop {
            let step = Duration::from_millis(100);
            match consumer.poll(step) {
                Some(Ok(message)) => {
                    silent = Duration::ZERO;
                    match found(&message) {
                        Some(letter) => each(letter),
                        None => others += 1,
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::PartitionEOF))) => break,
                Some(Err(error)) if silent >= ANSWER_MAX => {
                    return Err(unreachable(settings, "dead letters")(error));
                }
                Some(Err(_)) => silent += step,
                None if silent >= 3 * ANSWER_MAX => {
                    let nobody = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
                    return Err(unreachable(settings, "dead letters")(nobody));
                }
                None => silent += step,
            }
        }
    }
    Ok(others)
}

fn found(message: &rdkafka::message::BorrowedMessage<'_>) -> Option<Found> {
    let mut headers = Vec::new();
    let (mut topic, mut partition, mut offset, mut reason) = (None, None, None, None);
    for header in message.headers()?.iter() {
        let text = || Some(std::str::from_utf8(header.value?).ok()?.to_owned());
        match header.key.strip_prefix(PREFIX) {
            None => {
                let value = header.value.map(bytes::Bytes::copy_from_slice);
                headers.push((header.key.to_owned(), value));
            }
            Some("topic") => topic = text(),
            Some("partition") => partition = text()?.parse().ok(),
            Some("offset") => offset = text()?.parse().ok(),
            Some("reason") => reason = text(),
            Some(_) => {}
        }
    }
    Some(Found {
        topic: topic?,
        partition: partition?,
        offset: offset?,
        reason,
        message: Kept {
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(bytes::Bytes::copy_from_slice),
            payload: message.payload().map(bytes::Bytes::copy_from_slice),
            headers,
        },
    })
}
