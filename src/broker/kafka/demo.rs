//! What `hapax demo` needs of Kafka besides a consumer: a cluster, a producer, and a look from outside.
//!
//! The cluster is librdkafka's mock broker inside this process, or a real one. The mock keeps 5 MiB of a partition and
//! no oracle: it accepts what a real broker would refuse. It is good enough to be killed against, not to prove fences.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use rdkafka::util::Timeout;

use super::ANSWER_MAX;
use crate::broker::{Error, Letter};
use crate::clock;

/// Where the demo plays.
pub(crate) struct Cluster {
    brokers: String,
    mock: Option<MockCluster<'static, DefaultProducerContext>>,
    /// Topics to be deleted in the end.
    made: Vec<String>,
}

impl Cluster {
    /// A mock broker inside this process, on a free port of the loopback interface.
    ///
    /// # Errors
    /// [`Error::Fatal`] where the client library cannot start one.
    pub(crate) fn embedded() -> Result<Self, Error> {
        let mock = MockCluster::new(1).map_err(|error| Error::Fatal(crate::error::chain(&error)))?;
        Ok(Self {
            brokers: mock.bootstrap_servers(),
            mock: Some(mock),
            made: Vec::new(),
        })
    }

    /// A cluster that runs somewhere.
    pub(crate) const fn real(brokers: String) -> Self {
        Self {
            brokers,
            mock: None,
            made: Vec::new(),
        }
    }

    /// For `bootstrap.servers`.
    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Whether it is the mock.
    pub(crate) const fn is_embedded(&self) -> bool {
        self.mock.is_some()
    }

    /// Makes a topic for messages up to that many bytes, and waits until every partition of it has a leader.
    ///
    /// # Errors
    /// [`Error::Topic`] where it is refused, [`Error::Unreachable`] where nobody answers.
    pub(crate) async fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        message_bytes_max: u32,
    ) -> Result<(), Error> {
        if let Some(mock) = &self.mock {
            // The mock knows no CreateTopics.
            return mock
                .create_topic(name, partitions, 1)
                .map_err(|error| refused(name, crate::error::chain(&error)));
        }
        let admin = self.admin()?;
        // -1: as many replicas as the cluster gives a topic by default.
        let bytes_max = message_bytes_max.to_string();
        let topic =
            NewTopic::new(name, partitions, TopicReplication::Fixed(-1)).set("max.message.bytes", &bytes_max);
        let made = admin.create_topics([&topic], &options()).await;
        let made = made.map_err(unreachable(&self.brokers, "creating a topic"))?;
        if let Some((_, code)) = made.into_iter().find_map(Result::err) {
            return Err(refused(name, code.to_string()));
        }
        self.made.push(name.to_owned());
        let within = clock::now() + ANSWER_MAX;
        while !is_led(&admin, name, partitions) {
            if clock::now() >= within {
                return Err(refused(
                    name,
                    format!("it has no leader for each partition after {ANSWER_MAX:?}"),
                ));
            }
            clock::sleep_until(clock::now() + Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Deletes what was made, the group's offsets included. The mock takes everything with it.
    ///
    /// # Errors
    /// What is left behind, by name.
    pub(crate) async fn clean_up(&mut self, group: &str) -> Result<(), Error> {
        let made = std::mem::take(&mut self.made);
        let names: Vec<&str> = made.iter().map(String::as_str).collect();
        if names.is_empty() {
            return Ok(());
        }
        let admin = self.admin()?;
        // A group that never committed does not exist, and so is as good as deleted.
        let _ = admin.delete_groups(&[group], &options()).await;
        let deleted = admin.delete_topics(&names, &options()).await;
        let deleted = deleted.map_err(unreachable(&self.brokers, "deleting the demo's topics"))?;
        match deleted.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some((topic, code)) => Err(refused(&topic, format!("it could not be deleted: {code}"))),
        }
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, Error> {
        config(&self.brokers)
            .create()
            .map_err(|error| Error::Config(crate::error::chain(&error)))
    }
}

fn is_led(admin: &AdminClient<DefaultClientContext>, topic: &str, partitions: i32) -> bool {
    let Ok(metadata) = admin.inner().fetch_metadata(Some(topic), ANSWER_MAX) else {
        return false;
    };
    let led = metadata.topics().iter().flat_map(|found| found.partitions());
    led.filter(|partition| partition.leader() >= 0).count() as i32 == partitions
}

/// A producer that waits for each message to be acknowledged.
#[derive(Clone)]
pub(crate) struct Sender(FutureProducer);

impl Sender {
    /// # Errors
    /// [`Error::Config`] where the client cannot be made.
    pub(crate) fn new(brokers: &str) -> Result<Self, Error> {
        let mut config = config(brokers);
        config
            .set("enable.idempotence", "true")
            .set("delivery.timeout.ms", "15000")
            .set("linger.ms", "2");
        let producer = config.create();
        producer
            .map(Self)
            .map_err(|error| Error::Config(crate::error::chain(&error)))
    }

    /// Sends one message with one header; answers with the partition and the offset that it got.
    ///
    /// # Errors
    /// [`Error::Fatal`] where it is not acknowledged within 15 s.
    pub(crate) async fn send(
        &self,
        topic: &str,
        key: &str,
        payload: &[u8],
        (header, value): (&str, &str),
    ) -> Result<(i32, i64), Error> {
        let headers = OwnedHeaders::new().insert(Header {
            key: header,
            value: Some(value),
        });
        let record = FutureRecord::to(topic).key(key).payload(payload).headers(headers);
        match self.0.send(record, Timeout::Never).await {
            Ok(delivery) => Ok((delivery.partition, delivery.offset)),
            Err((error, _)) => Err(Error::Fatal(format!(
                "a message to {topic:?} was not acknowledged: {}",
                crate::error::chain(&error)
            ))),
        }
    }
}

/// Looks at topics and a group from outside, and joins nothing. Every call blocks.
#[derive(Clone)]
pub(crate) struct Observer {
    brokers: String,
    consumer: Arc<BaseConsumer>,
}

impl Observer {
    /// One that looks at that group.
    ///
    /// # Errors
    /// [`Error::Config`] where the client cannot be made.
    pub(crate) fn new(brokers: &str, group: &str) -> Result<Self, Error> {
        let mut config = config(brokers);
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "20");
        let consumer = config.create();
        let consumer = consumer.map_err(|error| Error::Config(crate::error::chain(&error)))?;
        Ok(Self {
            brokers: brokers.to_owned(),
            consumer: Arc::new(consumer),
        })
    }

    /// The committed offset of each partition from 0 on; 0 for one that has none.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where nobody answers.
    pub(crate) fn committed(&self, topic: &str, partitions: i32) -> Result<Vec<i64>, Error> {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        let found = self.consumer.committed_offsets(list, ANSWER_MAX);
        let found = found.map_err(unreachable(&self.brokers, "asking for committed offsets"))?;
        let of = |partition| match found.find_partition(topic, partition).map(|e| e.offset()) {
            Some(KafkaOffset::Offset(next)) => next,
            _ => 0,
        };
        Ok((0..partitions).map(of).collect())
    }

    /// Everything that a topic of one partition has.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where it cannot be read to its end in time.
    pub(crate) fn read(&self, topic: &str) -> Result<Vec<Letter>, Error> {
        let refused = |what| unreachable(&self.brokers, what);
        let asked = self.consumer.fetch_watermarks(topic, 0, ANSWER_MAX);
        let (low, high) = asked.map_err(refused("asking for the ends of a topic"))?;
        let mut list = TopicPartitionList::new();
        let placed = list.add_partition_offset(topic, 0, KafkaOffset::Offset(low));
        placed
            .and_then(|()| self.consumer.assign(&list))
            .map_err(refused("reading a topic"))?;
        let (mut letters, mut next, until) = (Vec::new(), low, clock::now() + ANSWER_MAX);
        while next < high {
            if clock::now() >= until {
                return Err(Error::Unreachable {
                    brokers: self.brokers.clone(),
                    what: "reading a topic",
                    why: format!("{topic:?} came up to offset {next} of {high} within {ANSWER_MAX:?}"),
                });
            }
            // An error here is one that the client mends by itself, or the time runs out.
            if let Some(Ok(message)) = self.consumer.poll(Duration::from_millis(100)) {
                next = message.offset() + 1;
                let headers = message.headers().map(|headers| headers.iter());
                let headers = headers.into_iter().flatten();
                letters.push(Letter {
                    topic: topic.to_owned(),
                    key: message.key().map(<[u8]>::to_vec).map(Into::into),
                    payload: message.payload().map(<[u8]>::to_vec).map(Into::into),
                    timestamp_ms: message.timestamp().to_millis(),
                    headers: headers
                        .map(|header| {
                            (
                                header.key.to_owned(),
                                header.value.map(<[u8]>::to_vec).map(Into::into),
                            )
                        })
                        .collect(),
                });
            }
        }
        self.consumer.unassign().map_err(refused("reading a topic"))?;
        Ok(letters)
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "hapax-demo");
    config
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(ANSWER_MAX))
        .operation_timeout(Some(ANSWER_MAX))
}

fn refused(topic: &str, why: String) -> Error {
    Error::Topic {
        topic: topic.to_owned(),
        why,
    }
}

fn unreachable(
    brokers: &str,
    what: &'static str,
) -> impl FnOnce(rdkafka::error::KafkaError) -> Error + use<> {
    let brokers = brokers.to_owned();
    move |error| Error::Unreachable {
        brokers,
        what,
        why: crate::error::chain(&error),
    }
}
