//! What hapax asks a cluster before it runs, and the one thing that it may create there: topics for dead letters.
//!
//! It gathers; what follows from it is judged in `broker/cluster.rs`. Only `hapax check` asks about the group.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaErrorCode;

use super::{ANSWER_MAX, producer, unreachable};
use crate::broker::Error;
use crate::broker::cluster::{Absent, Cluster, NewLetters, TopicFacts};
use crate::clock;
use crate::config::Settings;

/// Between two questions that the broker cannot answer yet.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the broker may take to tell limits. Without an answer a start only warns that the size of dead letters is
/// not proven, so it does not wait long for a broker that never tells, such as the client library's mock.
const LIMITS_MAX: Duration = Duration::from_secs(2);

/// Asks for the cluster, the topics of the settings, and their dead-letter topics. Blocks.
///
/// # Errors
/// [`Error::Unreachable`] where nobody answers, [`Error::Config`] where the client refuses a property. What the broker
/// says of a single topic is no error here.
pub(crate) fn ask(settings: &Settings) -> Result<Cluster, Error> {
    let consumer = asker(settings, None)?;
    let mut topics = BTreeMap::new();
    for topic in names(settings) {
        let facts = TopicFacts {
            partitions: partitions(settings, &consumer, &topic)?,
            message_bytes_max: Err("it was not asked for".to_owned()),
        };
        topics.insert(topic, facts);
    }
    let id = consumer.client().fetch_cluster_id(ANSWER_MAX);
    limits(settings, &mut topics)?;
    Ok(Cluster { id, topics })
}

/// Creates topics for dead letters, with the cluster's own replication factor, and waits until they are to be seen.
/// Blocks.
///
/// # Errors
/// [`Error::Letters`] where the broker refuses. A topic that another member has just created is no error.
pub(crate) fn create(settings: &Settings, new: &NewLetters) -> Result<(), Error> {
    let bytes = new.message_bytes_max.map(|bytes| bytes.to_string());
    // -1 leaves it to the broker's `default.replication.factor`.
    let mut topic = NewTopic::new(&new.name, new.partitions, TopicReplication::Fixed(-1));
    if let Some(bytes) = &bytes {
        topic = topic.set("max.message.bytes", bytes);
    }
    let refused = |why: String| Error::Letters {
        topic: new.name.clone(),
        input: new.input.clone(),
        why: format!("creating it was refused: {why}"),
    };
    let client = admin(settings)?;
    let options = AdminOptions::new()
        .request_timeout(Some(ANSWER_MAX))
        .operation_timeout(Some(ANSWER_MAX));
    let answers = block_on(client.create_topics([&topic], &options))?;
    for answer in answers.map_err(|error| refused(crate::error::chain(&error)))? {
        match answer {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(refused(code.to_string())),
        }
    }
    let consumer = asker(settings, None)?;
    let deadline = clock::now() + ANSWER_MAX;
    while partitions(settings, &consumer, &new.name)?.is_err() {
        if clock::now() > deadline {
            return Err(refused(format!("it was not to be seen within {ANSWER_MAX:?}")));
        }
        thread::park_timeout(PAUSE);
    }
    Ok(())
}

/// Whether the broker tells this group's committed offsets, which takes the right to describe the group. Blocks.
///
/// # Errors
/// [`Error::Unreachable`] with what it said.
pub(crate) fn ask_group(settings: &Settings, cluster: &Cluster) -> Result<(), Error> {
    let consumer = asker(settings, Some(&settings.group))?;
    let mut list = TopicPartitionList::new();
    for topic in settings.topics.keys() {
        let facts = cluster.topics.get(topic);
        if facts.is_some_and(|facts| facts.partitions.is_ok()) {
            list.add_partition(topic, 0);
        }
    }
    let deadline = clock::now() + ANSWER_MAX;
    loop {
        let error = match consumer.committed_offsets(list.clone(), ANSWER_MAX) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // The first question about a group may come before the broker has found its coordinator.
        let soon = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::NotCoordinator
                    | RDKafkaErrorCode::CoordinatorNotAvailable
                    | RDKafkaErrorCode::CoordinatorLoadInProgress
            )
        );
        if !soon || clock::now() > deadline {
            return Err(unreachable(settings, "asking for the group's committed offsets")(
                error,
            ));
        }
        thread::park_timeout(PAUSE);
    }
}

fn names(settings: &Settings) -> BTreeSet<String> {
    let inputs = settings.topics.keys();
    inputs
        .flat_map(|topic| [topic.clone(), settings.dead_letter.topic_of(topic)])
        .collect()
}

fn asker(settings: &Settings, group: Option<&str>) -> Result<BaseConsumer, Error> {
    let mut config = super::client_config(settings);
    // To ask about a topic must not make it.
    config.set("allow.auto.create.topics", "false");
    if let Some(group) = group {
        config.set("group.id", group);
    }
    config
        .create()
        .map_err(|error| Error::Config(crate::error::chain(&error)))
}

fn admin(settings: &Settings) -> Result<AdminClient<DefaultClientContext>, Error> {
    producer::without_consumer_properties(settings)
        .create()
        .map_err(|error| Error::Config(crate::error::chain(&error)))
}

fn partitions(
    settings: &Settings,
    consumer: &BaseConsumer,
    topic: &str,
) -> Result<Result<i32, Absent>, Error> {
    let metadata = consumer
        .fetch_metadata(Some(topic), ANSWER_MAX)
        .map_err(unreachable(settings, "asking for a topic"))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(Err(Absent::Missing));
    };
    Ok(match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(found.partitions().len() as i32),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Err(Absent::Missing)
        }
        Some(code) => Err(Absent::Refused(code.to_string())),
    })
}

/// Fills in `max.message.bytes`, as far as the broker tells it: that takes a right of its own, and some brokers do not
/// know the request.
fn limits(settings: &Settings, topics: &mut BTreeMap<String, TopicFacts>) -> Result<(), Error> {
    let existing: Vec<String> = topics
        .iter()
        .filter(|(_, facts)| facts.partitions.is_ok())
        .map(|(name, _)| name.clone())
        .collect();
    if existing.is_empty() {
        return Ok(());
    }
    let client = admin(settings)?;
    let options = AdminOptions::new().request_timeout(Some(LIMITS_MAX));
    let resources: Vec<_> = existing
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    let answers = match block_on(client.describe_configs(&resources, &options))? {
        Ok(answers) => answers,
        Err(error) => {
            let why = crate::error::chain(&error);
            for facts in topics.values_mut() {
                facts.message_bytes_max = Err(why.clone());
            }
            return Ok(());
        }
    };
    // They come in the order of the questions.
    for (name, answer) in existing.iter().zip(answers) {
        let Some(facts) = topics.get_mut(name) else {
            continue;
        };
        facts.message_bytes_max = match answer {
            Err(code) => Err(code.to_string()),
            Ok(resource) => resource
                .get("max.message.bytes")
                .and_then(|entry| entry.value.as_ref()?.parse().ok())
                .ok_or_else(|| "the broker does not state it".to_owned()),
        };
    }
    Ok(())
}

/// The client answers on a thread of its own, so nothing here needs the caller's runtime.
fn block_on<T>(asking: impl Future<Output = T>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Error::Config(format!("no runtime to ask with: {error}")))?;
    Ok(runtime.block_on(asking))
}
