//! Changelog topics on a real Kafka: created where they are missing, grown with their input, and refused as they are where
//! the broker would delete states, or states would not fit (schedules 4 and 20).
//!
//! Method: a start of the replicated mode that stops at once, and `hapax check` beside it; a refusal is judged by its
//! words, and the mend that it names is carried out and has to mend. What a changelog is, is asked of the broker.
//!
//! Seen to fail:
//! - `broker/kafka/admin.rs`, a changelog created without its properties: the start that made it was refused, "max.message.bytes
//!   is 1048588"
//! - `broker/kafka/admin.rs`, a refused creation taken for a success: "creating it was refused" is not in the error
//! - `broker/cluster/changelog.rs`, one byte of room less (`takes + 1 < needed`): the start on the too small one came back `Ok`
//! - `broker/cluster/changelog.rs`, wrong values of the fixed properties let pass: "cleanup.policy is" is not in the error
//! - `broker/kafka/transactions.rs`, frames without a key: beside compaction, "commits at the end of the log: not within 30s"

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hapax::config::{Durability, Listen};
use hapax::store::Store as _;
use hapax::store::rocks::RocksStore;
use hapax::{Consumer, Context, Error, NonIdempotent, Topic, Window};
use rdkafka::admin::{
    AdminOptions, AlterConfig, ConfigEntry, ConfigSource, NewPartitions, ResourceSpecifier,
};
use rdkafka::mocking::MockCluster;
use tempfile::TempDir;

use crate::cli::{Said, hapax};
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message};
use crate::start::{admin, says, start_and_stop, unclean_starts};

const WITHIN: Duration = Duration::from_secs(60);

/// An input topic with its group, named alike, and a state directory.
struct Input {
    broker: &'static Broker,
    topic: String,
    dir: TempDir,
}

impl Input {
    fn new(broker: &'static Broker, partitions: i32, configs: &[(&str, &str)]) -> Self {
        let topic = kafka::unique("changelog");
        broker.create_topic(&topic, partitions, configs);
        let dir = TempDir::new().unwrap();
        Self { broker, topic, dir }
    }

    fn changelog(&self) -> String {
        format!("{0}.{0}.hapax", self.topic)
    }

    async fn start(&self) -> Result<(), Error> {
        let consumer = consumer(
            &self.broker.bootstrap(),
            &self.topic,
            &self.dir.path().join("state"),
        );
        start_and_stop(consumer).await
    }

    /// A guarded handler runs after its begin is in the changelog, so one that has run says that states can be written.
    async fn serves(&self) {
        let brokers = self.broker.bootstrap();
        let message = Message::new(0, "token", "payload");
        member::send(&brokers, &self.topic, [message]).await;
        let effects = Effects::default();
        let topic = Topic::bytes(&self.topic, NonIdempotent)
            .state(effects.clone())
            .window(Window::hours(1));
        let consumer = member::consumer(&brokers, &self.topic, &self.dir.path().join("state"))
            .with(|layer| {
                layer.durability = Some(Durability::Replicated);
                layer.dead_letter.create = Some(true);
            })
            .handle(topic, member::handle);
        let member = Member::start(consumer);
        member::await_caught_up(&brokers, &self.topic, &self.topic);
        assert_eq!(effects.finished().len(), 1);
        member.stop().await;
    }

    fn check(&self) -> Said {
        check(&self.broker.bootstrap(), &self.topic, self.dir.path())
    }

    fn partitions(&self, topic: &str) -> usize {
        let metadata = admin(self.broker).inner().fetch_metadata(Some(topic), WITHIN);
        metadata.unwrap().topics()[0].partitions().len()
    }

    async fn grow(&self, partitions: usize) {
        let options = AdminOptions::new().operation_timeout(Some(WITHIN));
        let new = NewPartitions::new(&self.topic, partitions);
        let grown = admin(self.broker).create_partitions([&new], &options).await;
        assert!(grown.as_ref().is_ok_and(|grown| grown[0].is_ok()), "{grown:?}");
        eventually("partitions", WITHIN, || {
            (self.partitions(&self.topic) == partitions).then_some(())
        });
    }

    /// What the broker says of the changelog.
    async fn described(&self) -> Vec<ConfigEntry> {
        let changelog = self.changelog();
        let resource = ResourceSpecifier::Topic(&changelog);
        // Held until it has answered: a client that is dropped before never does.
        let client = admin(self.broker);
        let described = client.describe_configs([&resource], &AdminOptions::new());
        described.await.unwrap().remove(0).unwrap().entries
    }

    /// Carries out the `kafka-configs.sh --alter` of a refusal.
    async fn alter(&self, refused: &Error) {
        let (changelog, refused) = (self.changelog(), hapax::error::chain(refused));
        let command = refused
            .split('`')
            .find(|text| text.starts_with("kafka-configs.sh --alter"))
            .unwrap();
        assert!(
            command.contains(&format!("--entity-name {changelog} ")),
            "{command}"
        );
        let (_, pairs) = command.split_once("--add-config ").unwrap();
        let mut properties: BTreeMap<_, _> =
            pairs.split(',').filter_map(|pair| pair.split_once('=')).collect();
        // The request states all of them; the command leaves the others as they are.
        let described = self.described().await;
        for entry in &described {
            if let (ConfigSource::DynamicTopic, Some(value)) = (&entry.source, &entry.value) {
                properties.entry(&entry.name).or_insert(value);
            }
        }
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(&changelog));
        for (name, value) in properties {
            alter = alter.set(name, value);
        }
        let altered = admin(self.broker)
            .alter_configs([&alter], &AdminOptions::new())
            .await;
        assert!(altered.as_ref().is_ok_and(|all| all[0].is_ok()), "{altered:?}");
    }
}

fn consumer(brokers: &str, topic: &str, dir: &Path) -> Consumer {
    Consumer::replicated(topic, dir)
        .brokers(brokers)
        .with(|layer| {
            layer.admin.listen = Some(Listen::Off);
            layer.dead_letter.create = Some(true);
        })
        .handle(
            Topic::bytes(topic, NonIdempotent).window(Window::hours(1)),
            |_, _: Context| async { Ok(()) },
        )
}

fn check(brokers: &str, topic: &str, dir: &Path) -> Said {
    let file = dir.join("hapax.toml");
    let text = format!(
        "group = \"{topic}\"\nbrokers = \"{brokers}\"\nstate_dir = \"{}\"\ndurability = \"replicated\"\n\
         admin.listen = \"off\"\ndead_letter.create = true\n[topics.{topic}]\nclass = \"non-idempotent\"\nwindow = \"1h\"\n",
        dir.join("state").display()
    );
    std::fs::write(&file, text).unwrap();
    hapax(&["check", "--config", file.to_str().unwrap()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_changelog_is_created_so_that_nothing_of_it_goes_and_every_state_fits() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 3, &[("max.message.bytes", "2000000")]);
    let changelog = input.changelog();
    input.check().ended(0).says(&format!(
        "ok    changelog topic \"{changelog}\": does not exist, the start creates it with 3 partitions, \
         cleanup.policy = delete, retention.ms = -1, retention.bytes = -1, max.message.bytes = 2016384; not proven"
    ));
    assert_eq!(input.partitions(&changelog), 0, "a check makes nothing");

    input.start().await.unwrap();
    assert_eq!(input.partitions(&changelog), 3);
    let described = input.described().await;
    for (name, value) in [
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("max.message.bytes", "2016384"),
    ] {
        let entry = described.iter().find(|entry| entry.name == name).unwrap();
        assert_eq!(entry.value.as_deref(), Some(value), "{name}");
    }
    input.check().ended(0).says(&format!(
        "ok    changelog topic \"{changelog}\": 3 partitions, takes 2016384 bytes"
    ));
    // It finds it, and has nothing to make.
    input.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_of_which_the_broker_deletes_is_refused_and_the_mend_mends_it() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 2, &[]);
    let changelog = input.changelog();
    // As somebody makes it who has read of compacted changelogs: with the broker's own retention and size.
    broker.create_topic(&changelog, 2, &[("cleanup.policy", "compact")]);
    let wrong = [
        changelog.as_str(),
        "cleanup.policy is \"compact\" and must be delete",
        "retention.ms is \"604800000\" and must be -1",
        "max.message.bytes is \"1048588\" and must be at least 1064972",
    ];
    let refused = input.start().await.unwrap_err();
    says(&refused, &wrong);
    assert_eq!(
        unclean_starts(&input.dir.path().join("state")),
        0,
        "it was refused, not killed"
    );
    let said = input.check();
    wrong
        .iter()
        .fold(said.ended(1).says("fail  changelog topic"), |said, part| {
            said.says(part)
        });

    input.alter(&refused).await;
    input.check().ended(0);
    input.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_that_is_compacted_as_well_is_accepted() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 1, &[]);
    let configs = [
        ("cleanup.policy", "compact,delete"),
        ("retention.ms", "-1"),
        ("max.message.bytes", "1064972"),
    ];
    broker.create_topic(&input.changelog(), 1, &configs);
    input.check().ended(0);
    input.serves().await;
}

/// Schedule 20: as large as the input is too small.
#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_into_which_the_largest_message_does_not_fit_is_refused_and_the_mend_mends_it() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 1, &[("max.message.bytes", "3000000")]);
    let configs = [("retention.ms", "-1"), ("max.message.bytes", "3016383")];
    broker.create_topic(&input.changelog(), 1, &configs);
    let refused = input.start().await.unwrap_err();
    says(
        &refused,
        &[
            "max.message.bytes is \"3016383\" and must be at least 3016384",
            "has messages of up to 3000000 bytes",
        ],
    );
    input.alter(&refused).await;
    input.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_grows_with_its_input_and_one_with_more_partitions_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 2, &[]);
    let changelog = input.changelog();
    input.start().await.unwrap();
    input.grow(4).await;
    input.check().ended(0).says(&format!(
        "ok    changelog topic \"{changelog}\": has 2 of 4 partitions, since \"{}\" has grown; the start adds the others",
        input.topic
    ));
    assert_eq!(input.partitions(&changelog), 2, "a check adds nothing");
    input.start().await.unwrap();
    assert_eq!(input.partitions(&changelog), 4);

    let other = Input::new(broker, 2, &[]);
    let configs = [("retention.ms", "-1"), ("max.message.bytes", "1064972")];
    broker.create_topic(&other.changelog(), 3, &configs);
    let wrong = [
        "it has 3 partitions and must have 2",
        "no topic can lose partitions",
    ];
    says(&other.start().await.unwrap_err(), &wrong);
    other.check().ended(1).says(wrong[0]).says(wrong[1]);
}

/// A member of the input's group that hears soon of new partitions.
fn growing(input: &Input, durability: Durability, dir: &Path, effects: &Effects) -> Member {
    let topic = Topic::bytes(&input.topic, NonIdempotent)
        .state(effects.clone())
        .window(Window::hours(1));
    let consumer = member::consumer(&input.broker.bootstrap(), &input.topic, dir).with(|layer| {
        layer.durability = Some(durability);
        layer.dead_letter.create = Some(true);
        member::property(layer, "topic.metadata.refresh.interval.ms", "500");
    });
    Member::start(consumer.handle(topic, member::handle))
}

async fn a_topic_grows_while_it_is_consumed(durability: Durability) {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 1, &[]);
    let (brokers, topic, state) = (
        broker.bootstrap(),
        input.topic.as_str(),
        input.dir.path().join("state"),
    );
    let send = |partition: i32, say: &str| {
        let message = Message::new(partition, format!("t-{partition}"), format!("{say}-{partition}"));
        member::send(&brokers, topic, [message])
    };
    let caught_up = || {
        eventually("commits at the end of the log", 2 * WITHIN, || {
            member::is_caught_up(&brokers, topic, topic).then_some(())
        });
    };
    let effects = Effects::default();
    let running = growing(&input, durability, &state, &effects);
    send(0, "first").await;
    caught_up();
    input.grow(3).await;
    for partition in 0..3 {
        send(partition, "grown").await;
    }
    caught_up();
    running.stop().await;
    let mut ran: Vec<_> = effects.finished().into_iter().map(|call| call.payload).collect();
    ran.sort_unstable();
    assert_eq!(ran, ["first-0", "grown-1", "grown-2"], "each token once");
    let store = RocksStore::open_existing_for_cli(&state).unwrap();
    let id = store.topic(topic).unwrap();
    assert_eq!(store.partitions_of(id), Some(3));
    drop(store);

    // What was recorded of the new partitions is there for the next: on this disk, or on any.
    let another = TempDir::new().unwrap();
    let mut next = state;
    if durability == Durability::Replicated {
        assert_eq!(input.partitions(&input.changelog()), 3);
        next = another.path().to_owned();
    }
    for partition in 0..3 {
        send(partition, "again").await;
    }
    let running = growing(&input, durability, &next, &effects);
    caught_up();
    running.stop().await;
    assert_eq!(
        effects.starts_of("again-0") + effects.starts_of("again-1") + effects.starts_of("again-2"),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_grows_while_it_is_consumed_local() {
    a_topic_grows_while_it_is_consumed(Durability::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_grows_while_it_is_consumed_replicated() {
    a_topic_grows_while_it_is_consumed(Durability::Replicated).await;
}

/// Somebody gives the changelog more partitions than the input gets: the new partition is not served, the old one is, the
/// log says what is wrong, and once that is mended the new one is served without a start.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_partition_without_a_changelog_that_fits_waits_for_the_mend_and_the_others_are_served() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 1, &[]);
    let (brokers, topic) = (broker.bootstrap(), input.topic.as_str());
    let effects = Effects::default();
    let running = growing(
        &input,
        Durability::Replicated,
        &input.dir.path().join("state"),
        &effects,
    );
    member::send(&brokers, topic, [Message::new(0, "t-0", "first")]).await;
    member::await_caught_up(&brokers, topic, topic);
    let changelog = input.changelog();
    let options = AdminOptions::new().operation_timeout(Some(WITHIN));
    let grown = admin(broker)
        .create_partitions([&NewPartitions::new(&changelog, 3)], &options)
        .await;
    assert!(grown.as_ref().is_ok_and(|grown| grown[0].is_ok()), "{grown:?}");
    input.grow(2).await;
    member::send(&brokers, topic, [Message::new(1, "t-1", "new")]).await;
    eventually("what is wrong, in the log", 2 * WITHIN, || {
        let told = |said: &crate::events::Said| {
            let text = said.text();
            text.contains(&changelog)
                && text.contains("it has 3 partitions and must have 2")
                && text.contains("not served yet")
        };
        (!crate::events::all(told).is_empty()).then_some(())
    });
    member::send(&brokers, topic, [Message::new(0, "t-2", "old")]).await;
    eventually("the old partition", WITHIN, || {
        (effects.starts_of("old") == 1).then_some(())
    });
    assert_eq!(effects.starts_of("new"), 0);
    input.grow(3).await;
    eventually("the new partition", 2 * WITHIN, || {
        (effects.starts_of("new") == 1).then_some(())
    });
    running.stop().await;
}

/// Kafka creates no topic beside another whose name differs in dots and underscores only.
#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_that_may_not_be_created_is_described_in_full() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, 5, &[]);
    broker.create_topic(&input.changelog().replace('.', "_"), 1, &[]);
    let refused = input.start().await.unwrap_err();
    let command = format!(
        "`kafka-topics.sh --create --topic {} --partitions 5 --config cleanup.policy=delete --config retention.ms=-1 \
         --config retention.bytes=-1 --config max.message.bytes=1064972`",
        input.changelog()
    );
    says(
        &refused,
        &[
            "creating it was refused",
            "it needs 5 partitions, cleanup.policy = delete",
            &command,
        ],
    );
    assert_eq!(
        unclean_starts(&input.dir.path().join("state")),
        0,
        "it was refused, not killed"
    );
}

/// A broker that knows neither DescribeConfigs nor CreateTopics: what it does not tell is said to be unproven, and what
/// cannot be made is refused.
#[test]
fn a_broker_that_tells_less_proves_less() {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic("orders", 1, 1).unwrap();
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let start = consumer(&mock.bootstrap_servers(), "orders", &dir.path().join("state"));
    mock.create_topic("orders.dead-letters", 1, 1).unwrap();
    let refused = runtime.block_on(start_and_stop(start)).unwrap_err();
    says(
        &refused,
        &["orders.orders.hapax", "creating it was refused", "--create"],
    );

    mock.create_topic("orders.orders.hapax", 1, 1).unwrap();
    check(&mock.bootstrap_servers(), "orders", dir.path())
        .ended(0)
        .says("warn  changelog topic \"orders.orders.hapax\": 1 partition; not proven: cleanup.policy = delete: ")
        .says("retention.ms = -1: ");
}

#[test]
fn a_durability_is_asked_for_with_what_each_comes_to() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("hapax.toml");
    let text = "group = \"g\"\nbrokers = \"k:1\"\nstate_dir = \"s\"\ntopics.orders = { class = \"idempotent\", window = \"2h\" }\n";
    std::fs::write(&file, text).unwrap();
    hapax(&["check", "--config", file.to_str().unwrap()])
        .ended(1)
        .says("durability: it is stated nowhere, and has no default")
        .says("durability = \"local\" (the window is on this machine's disk)")
        .says("durability = \"replicated\" (it is in Kafka, and moves with its partition)");
    std::fs::write(
        &file,
        format!("durability = \"replicated\"\nkafka.\"isolation.level\" = \"read_uncommitted\"\n{text}"),
    )
    .unwrap();
    hapax(&["explain", "--config", file.to_str().unwrap()])
        .ended(1)
        .says("isolation.level")
        .says("remove it, or write \"read_committed\"");
}
