//! Kafka, through rdkafka: the one folder that names the client library.
//!
//! `consumer.rs` is the poll thread; `rebalance.rs` is what it does when partitions come and go, `callbacks.rs` what it is
//! told, `arriving.rs` what happens before anything is known of a partition (`asker.rs` asks), `committer.rs` how it commits,
//! `take.rs` how it takes messages (with the one unsafe module, `raw.rs`), `signal.rs` what wakes it, `properties.rs` how it is
//! set up. `producer.rs` sends dead letters, `rights.rs` names rights that are missing, `admin.rs` asks about topics and the
//! cluster, `demo.rs` has the broker
//! inside `hapax demo`. `owners.rs` asks the group who has a partition, `letters.rs` reads
//! dead letters back.

pub(crate) mod admin;
pub(crate) mod arriving;
pub(crate) mod asker;
mod callbacks;
pub(crate) mod changelog;
mod committer;
pub(crate) mod consumer;
#[cfg(feature = "rocks")]
pub(crate) mod cutter;
#[cfg(feature = "cli")]
pub(crate) mod demo;
#[cfg(feature = "cli")]
pub(crate) mod letters;
pub(crate) mod member;
pub(crate) mod owners;
pub(crate) mod producer;
pub(crate) mod properties;
mod raw;
pub(crate) mod reach;
mod rebalance;
pub(crate) mod rebuilder;
pub(crate) mod rebuilding;
pub(crate) mod replication;
pub(crate) mod restorer;
mod rights;
pub(crate) mod signal;
pub(crate) mod standby;
mod take;
pub(crate) mod transactions;

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use crate::config::Settings;

/// How long a question to the broker may take before hapax says that nobody answers.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What every client of this consumer shares: brokers, security, and what the user passes through.
pub(crate) fn client_config(settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &settings.brokers);
    config.set("client.id", format!("hapax-{}", settings.group));
    for (key, value) in &settings.kafka {
        config.set(key, value);
    }
    config
}

/// An error of the client library, with what was being done.
pub(crate) fn unreachable(
    settings: &Settings,
    what: &'static str,
) -> impl FnOnce(KafkaError) -> super::Error {
    let brokers = settings.brokers.clone();
    move |error| super::Error::Unreachable {
        brokers,
        what,
        why: crate::error::chain(&error),
    }
}
