//! What hapax asks a cluster before it runs: which one it is, and whether the topics are there.

use std::collections::BTreeMap;

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{ANSWER_MAX, unreachable};
use crate::broker::Error;
use crate::config::Settings;

/// What the cluster said.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Its id, where the broker states one.
    pub(crate) id: Option<String>,
    /// The number of partitions of each topic asked for.
    pub(crate) partitions: BTreeMap<String, i32>,
}

/// Asks for the cluster and its topics.
///
/// # Errors
/// [`Error::Unreachable`] where nobody answers, [`Error::Topic`] for a topic that is missing.
pub(crate) fn ask(settings: &Settings, topics: impl IntoIterator<Item = String>) -> Result<Cluster, Error> {
    let consumer: BaseConsumer = super::client_config(settings)
        .create()
        .map_err(|error| Error::Config(crate::error::chain(&error)))?;
    let mut partitions = BTreeMap::new();
    for topic in topics {
        let metadata = consumer
            .fetch_metadata(Some(&topic), ANSWER_MAX)
            .map_err(unreachable(settings, "asking for a topic"))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Err(Error::Topic {
                topic,
                why: "the broker does not list it".into(),
            });
        };
        if let Some(error) = found.error() {
            return Err(Error::Topic {
                topic,
                why: rdkafka::types::RDKafkaErrorCode::from(error).to_string(),
            });
        }
        partitions.insert(topic, found.partitions().len() as i32);
    }
    let id = consumer.client().fetch_cluster_id(ANSWER_MAX);
    Ok(Cluster { id, partitions })
}
