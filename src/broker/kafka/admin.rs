//! What hapax asks a cluster before it runs, and all that it may create there: topics for dead letters, changelog topics,
//! and partitions of the latter.
//!
//! It gathers; what follows from it is judged in `broker/cluster.rs`. Only `hapax check` asks about the group.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    TopicResult,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaErrorCode;

use super::{ANSWER_MAX, producer, unreachable};
use crate::broker::Error;
use crate::broker::cluster::{Absent, Cluster, NewChangelog, NewLetters, TopicFacts};
use crate::clock;
use crate::config::{Durability, Settings};

/// Between two questions that the broker cannot answer yet.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the broker may take to tell properties. Without an answer a start only warns that they are not proven, so it
/// does not wait long for a broker that never tells, such as the client library's mock.
const PROPERTIES_MAX: Duration = Duration::from_secs(2);

/// Asks for the cluster, the topics of the settings, their dead-letter topics and, in replicated mode, their changelog
/// topics. Blocks.
///
/// # Errors
/// [`Error::Unreachable`] where nobody answers, [`Error::Config`] where the client refuses a property. What the broker
/// says of a single topic is no error here.
pub(crate) fn ask(settings: &Settings) -> Result<Cluster, Error> {
    let consumer = asker(settings, None)?;
    let mut topics = BTreeMap::new();
    for topic in names(settings) {
        let (partitions, replicas) = partitions(settings, &consumer, &topic)?;
        let facts = TopicFacts {
            partitions,
            replicas,
            properties: Err("it was not asked for".to_owned()),
        };
        topics.insert(topic, facts);
    }
    let id = consumer.client().fetch_cluster_id(ANSWER_MAX);
    properties(settings, &mut topics)?;
    Ok(Cluster { id, topics })
}

/// Creates a topic for dead letters, with the cluster's own replication factor, and waits until it is to be seen.
/// Blocks.
///
/// # Errors
/// [`Error::Letters`] where the broker refuses. A topic that another member has just created is no error.
pub(crate) fn create(settings: &Settings, new: &NewLetters) -> Result<(), Error> {
    let bytes = new.message_bytes_max.map(|bytes| bytes.to_string());
    let properties: Vec<_> = bytes
        .into_iter()
        .map(|bytes| ("max.message.bytes", bytes))
        .collect();
    make(settings, &new.name, new.partitions, &properties)?.map_err(|why| Error::Letters {
        topic: new.name.clone(),
        input: new.input.clone(),
        why,
    })
}

/// Creates a changelog topic in the same way. Blocks.
///
/// # Errors
/// [`Error::NoChangelog`] where the broker refuses. A topic that another member has just created is no error.
pub(crate) fn create_changelog(settings: &Settings, new: &NewChangelog) -> Result<(), Error> {
    make(settings, &new.name, new.partitions, &new.properties())?.map_err(|why| new.refused(why))
}

/// Gives a changelog topic that has `has` partitions as many as its input, and waits until they are to be seen. Blocks.
///
/// # Errors
/// [`Error::Changelog`] where the broker refuses. Partitions that another member has just added are no error.
pub(crate) fn grow(settings: &Settings, has: i32, wanted: &NewChangelog) -> Result<(), Error> {
    let partitions = NewPartitions::new(&wanted.name, usize::try_from(wanted.partitions).unwrap_or(0));
    let client = admin(settings)?;
    let answers = block_on(client.create_partitions([&partitions], &patient()))?;
    // `InvalidPartitions` is the answer where they are there already, and where they are not it is not seen.
    let answer = match accepted(answers, RDKafkaErrorCode::InvalidPartitions) {
        Ok(()) => seen(settings, &wanted.name, wanted.partitions)?,
        Err(why) => Err(why),
    };
    answer.map_err(|why| wanted.not_grown(has, &why))
}

/// Creates a topic with the cluster's own replication factor, and waits until it is to be seen. The inner error is what
/// speaks against it.
fn make(
    settings: &Settings,
    name: &str,
    partitions: i32,
    properties: &[(&str, String)],
) -> Result<Result<(), String>, Error> {
    // -1 leaves it to the broker's `default.replication.factor`.
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
    for (property, value) in properties {
        topic = topic.set(property, value);
    }
    let client = admin(settings)?;
    let answers = block_on(client.create_topics([&topic], &patient()))?;
    match accepted(answers, RDKafkaErrorCode::TopicAlreadyExists) {
        Ok(()) => seen(settings, name, 1),
        Err(why) => Ok(Err(format!("creating it was refused: {why}"))),
    }
}

fn patient() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(ANSWER_MAX))
        .operation_timeout(Some(ANSWER_MAX))
}

/// What the broker says against a change, unless it says that another member has `done` it.
fn accepted(answers: KafkaResult<Vec<TopicResult>>, done: RDKafkaErrorCode) -> Result<(), String> {
    for answer in answers.map_err(|error| crate::error::chain(&error))? {
        match answer {
            Ok(_) => {}
            Err((_, code)) if code == done => {}
            Err((_, code)) => return Err(code.to_string()),
        }
    }
    Ok(())
}

/// Waits until a topic is to be seen with that many partitions.
fn seen(settings: &Settings, name: &str, wanted: i32) -> Result<Result<(), String>, Error> {
    let consumer = asker(settings, None)?;
    let deadline = clock::now() + ANSWER_MAX;
    loop {
        let (partitions, _) = partitions(settings, &consumer, name)?;
        if partitions.is_ok_and(|found| found >= wanted) {
            return Ok(Ok(()));
        }
        if clock::now() > deadline {
            return Ok(Err(format!("it was not to be seen within {ANSWER_MAX:?}")));
        }
        thread::park_timeout(PAUSE);
    }
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
    committed(settings, &consumer, &list).map(drop)
}

/// What the group of that client has committed. Blocks.
pub(super) fn committed(
    settings: &Settings,
    consumer: &BaseConsumer,
    list: &TopicPartitionList,
) -> Result<TopicPartitionList, Error> {
    let deadline = clock::now() + ANSWER_MAX;
    loop {
        let error = match consumer.committed_offsets(list.clone(), ANSWER_MAX) {
            Ok(committed) => return Ok(committed),
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
    let mut names: BTreeSet<_> = inputs
        .flat_map(|topic| [topic.clone(), settings.dead_letter.topic_of(topic)])
        .collect();
    names.extend(settings.admin.audit_topic.clone());
    if settings.durability == Durability::Replicated {
        names.extend(settings.topics.keys().map(|topic| settings.changelog_of(topic)));
    }
    names.extend(crate::broker::cluster::given_names(settings));
    names
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

pub(super) fn admin(settings: &Settings) -> Result<AdminClient<DefaultClientContext>, Error> {
    producer::without_consumer_properties(settings)
        .create()
        .map_err(|error| Error::Config(crate::error::chain(&error)))
}

/// How many partitions a topic has, and on how many brokers the one with the fewest copies lies.
fn partitions(
    settings: &Settings,
    consumer: &BaseConsumer,
    topic: &str,
) -> Result<(Result<i32, Absent>, usize), Error> {
    let metadata = consumer
        .fetch_metadata(Some(topic), ANSWER_MAX)
        .map_err(unreachable(settings, "asking for a topic"))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok((Err(Absent::Missing), 0));
    };
    let partitions = match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(found.partitions().len() as i32),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Err(Absent::Missing)
        }
        Some(code) => Err(Absent::Refused(code.to_string())),
    };
    let replicas = found
        .partitions()
        .iter()
        .map(|partition| partition.replicas().len());
    Ok((partitions, replicas.min().unwrap_or(0)))
}

/// Fills in the topics' properties, as far as the broker tells them: that takes a right of its own, and some brokers do
/// not know the request.
fn properties(settings: &Settings, topics: &mut BTreeMap<String, TopicFacts>) -> Result<(), Error> {
    let existing: Vec<String> = topics
        .iter()
        .filter(|(_, facts)| facts.partitions.is_ok())
        .map(|(name, _)| name.clone())
        .collect();
    if existing.is_empty() {
        return Ok(());
    }
    let client = admin(settings)?;
    let options = AdminOptions::new().request_timeout(Some(PROPERTIES_MAX));
    let resources: Vec<_> = existing
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    let deadline = clock::now() + PROPERTIES_MAX;
    loop {
        let answers = match block_on(client.describe_configs(&resources, &options))? {
            Ok(answers) => answers,
            Err(error) => {
                let why = crate::error::chain(&error);
                for facts in topics.values_mut() {
                    facts.properties = Err(why.clone());
                }
                return Ok(());
            }
        };
        // Another broker may answer than the one that told of the topic, and may not have heard of it yet.
        let mut soon = false;
        // They come in the order of the questions.
        for (name, answer) in existing.iter().zip(answers) {
            let Some(facts) = topics.get_mut(name) else {
                continue;
            };
            soon |= matches!(answer, Err(RDKafkaErrorCode::UnknownTopicOrPartition));
            facts.properties = answer.map(stated).map_err(|code| code.to_string());
        }
        if !soon || clock::now() > deadline {
            return Ok(());
        }
        thread::park_timeout(PAUSE);
    }
}

fn stated(resource: ConfigResource) -> BTreeMap<String, String> {
    let entries = resource.entries.into_iter();
    entries
        .filter_map(|entry| Some((entry.name, entry.value?)))
        .collect()
}

/// The client answers on a thread of its own, so nothing here needs the caller's runtime.
pub(super) fn block_on<T>(asking: impl Future<Output = T>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Error::Config(format!("no runtime to ask with: {error}")))?;
    Ok(runtime.block_on(asking))
}
