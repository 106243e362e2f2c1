//! Dead letters to Kafka: acknowledged by all replicas in sync, or an error.

use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use crate::broker::{Error, Letter, Letters, Sending};
use crate::config::Settings;

/// Sends with one idempotent producer for the whole process.
pub(crate) struct Producer(FutureProducer);

impl Producer {
    /// # Errors
    /// [`Error::Config`] where the client refuses a property.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let mut config = producer_config(settings);
        config.set("delivery.timeout.ms", "10000");
        config
            .create()
            .map(Self)
            .map_err(|error| Error::Config(crate::error::chain(&error)))
    }
}

/// What every producer of hapax is set up with.
pub(super) fn producer_config(settings: &Settings) -> ClientConfig {
    let mut config = without_consumer_properties(settings);
    config.set("enable.idempotence", "true");
    config.set("linger.ms", "5");
    // What the broker has taken once it must take again: its own limit is checked at start, and the client's default
    // of 1,000,000 bytes lies below the broker's.
    config.set("message.max.bytes", "1000000000");
    let compressed = ["compression.type", "compression.codec"];
    if compressed.iter().all(|name| config.get(name).is_none()) {
        // The broker's limit counts compressed bytes: what came compressed may not fit as it is.
        config.set("compression.type", "lz4");
    }
    config
}

/// Consumer-only properties that a user may pass under `[kafka]` are nobody else's.
pub(super) fn without_consumer_properties(settings: &Settings) -> ClientConfig {
    let mut config = super::client_config(settings);
    for consumer_only in CONSUMER_ONLY {
        config.remove(consumer_only);
    }
    config
}

const CONSUMER_ONLY: &[&str] = &[
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "partition.assignment.strategy",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "fetch.wait.max.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "fetch.error.backoff.ms",
    "isolation.level",
    "check.crcs",
    "allow.auto.create.topics",
    "coordinator.query.interval.ms",
];

impl Letters for Producer {
    fn send(&self, letter: Letter) -> Sending {
        let producer = self.0.clone();
        Box::pin(async move {
            let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len());
            for (key, value) in &letter.headers {
                headers = headers.insert(Header {
                    key,
                    value: value.as_deref(),
                });
            }
            let mut record = FutureRecord::<[u8], [u8]>::to(&letter.topic).headers(headers);
            record.key = letter.key.as_deref();
            record.payload = letter.payload.as_deref();
            record.timestamp = letter.timestamp_ms;
            match producer.send(record, Timeout::Never).await {
                Ok(_) => Ok(()),
                Err((error, _)) => Err(Error::Letter {
                    topic: letter.topic.clone(),
                    why: crate::error::chain(&error),
                }),
            }
        })
    }
}
