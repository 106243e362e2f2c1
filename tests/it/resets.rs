//! Offsets that are set on purpose, as by `kafka-consumer-groups --reset-offsets`: back, and forward, in both modes.
//!
//! That tool commits without metadata while the group is stopped, which is what the test does with a client of its own. What
//! hapax makes of it is judged by its log, by what its handler did, and by the books.
//!
//! Seen to fail: with `Rules::set_back` made to answer `None`: "a warning: not within 60s".

use std::path::Path;
use std::time::Duration;

use hapax::accounts::Account;
use hapax::config::{Cold, Durability};
use hapax::{Class, Idempotent, NonIdempotent, Topic, Window};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::Level;

use crate::events::{self, Said};
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message};

const WITHIN: Duration = Duration::from_secs(60);

struct Group {
    brokers: String,
    topic: String,
    durability: Durability,
    class: Class,
    cold: Cold,
}

impl Group {
    fn new(broker: &Broker, durability: Durability, class: Class) -> Self {
        events::listen();
        let topic = kafka::unique("reset");
        member::create_topic(broker, &topic, 1, &[]);
        Self {
            brokers: broker.bootstrap(),
            topic,
            durability,
            class,
            cold: Cold::Refuse,
        }
    }

    fn start(&self, dir: &Path, effects: &Effects) -> Member {
        let topic = Topic::bytes(&self.topic, self.class)
            .state(effects.clone())
            .window(Window::hours(1));
        let consumer = member::consumer(&self.brokers, &self.topic, dir).with(|layer| {
            layer.durability = Some(self.durability);
            layer.cold = Some(self.cold);
        });
        Member::start(consumer.handle(topic, member::handle))
    }

    async fn send(&self, from: i32, to: i32) {
        let messages = (from..to).map(|n| Message::new(0, format!("t-{n}"), format!("m-{n}")));
        member::send(&self.brokers, &self.topic, messages).await;
    }

    /// A member takes the first messages, and leaves.
    async fn takes_all(&self, dir: &Path, effects: &Effects) {
        self.send(0, ALL).await;
        let first = self.start(dir, effects);
        self.caught_up();
        first.stop().await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.brokers, &self.topic, &self.topic);
    }

    /// As the tool does it: the number, and no metadata.
    fn reset(&self, to: i64) {
        let tool: BaseConsumer = member::client(&self.brokers)
            .set("group.id", &self.topic)
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Offset(to))
            .unwrap();
        // The group has members until its last one's leave is through.
        eventually("the offset set", WITHIN, || {
            tool.commit(&list, CommitMode::Sync).ok()
        });
    }

    fn said(&self, level: Level, text: &str) -> Vec<Said> {
        events::all(|said| {
            let all = said.text();
            said.level == level && all.contains(&self.topic) && all.contains(text)
        })
    }

    fn await_said(&self, level: Level, text: &str) -> Said {
        eventually("a warning", WITHIN, || self.said(level, text).into_iter().next())
    }
}

const ALL: i32 = 40;

/// What has an outcome is suppressed, and the log says from where to where, once.
async fn set_back(durability: Durability) {
    let Some(broker) = kafka::broker() else { return };
    // In local mode nobody can tell what another consumer did before the offset was set: a guarded class is asked about.
    let class = if durability == Durability::Local {
        Idempotent
    } else {
        NonIdempotent
    };
    let group = Group::new(broker, durability, class);
    let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
    group.takes_all(dir.path(), &effects).await;
    let end = member::committed(&group.brokers, &group.topic, &group.topic)[&0].0;
    assert_eq!(group.said(Level::WARN, "was set back").len(), 0);

    group.reset(10);
    let second = group.start(dir.path(), &effects);
    let said = group.await_said(Level::WARN, "the group's offset was set back");
    let values = ["from", "to", "messages"].map(|name| said.field(name).to_owned());
    assert_eq!(values, [end.to_string(), "10".into(), (end - 10).to_string()]);
    assert!(said.text().contains("of another group"), "{}", said.text());
    group.send(ALL, ALL + 5).await;
    group.caught_up();
    let summary = second.stop().await;
    assert_eq!(member::total(&summary, Account::Redelivery), 30);
    assert_eq!(effects.started().len(), 45, "nothing ran twice");
    assert_eq!(
        group.said(Level::WARN, "the group's offset was set back").len(),
        1
    );

    // It is past: the next start has nothing to say of it.
    let third = group.start(dir.path(), &effects);
    group.send(ALL + 5, ALL + 6).await;
    group.caught_up();
    third.stop().await;
    assert_eq!(
        group.said(Level::WARN, "the group's offset was set back").len(),
        1
    );
    assert_eq!(effects.started().len(), 46);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_set_back_is_recognised_local() {
    set_back(Durability::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_set_back_is_recognised_replicated() {
    set_back(Durability::Replicated).await;
}

/// Nobody has recorded what lies between, so the partition is cold, and the refusal says by how much.
async fn set_forward(durability: Durability) {
    let Some(broker) = kafka::broker() else { return };
    let mut group = Group::new(broker, durability, NonIdempotent);
    let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
    group.takes_all(dir.path(), &effects).await;
    let end = member::committed(&group.brokers, &group.topic, &group.topic)[&0].0;
    group.send(ALL, ALL + 20).await;
    group.reset(end + 15);
    let refused = group.start(dir.path(), &effects);
    let said = group.await_said(Level::ERROR, "is cold").text();
    for part in [
        "was set forward by 15",
        &end.to_string(),
        "cold = \"rebuild\"",
        "cold = \"run\"",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    refused.stop().await;
    assert_eq!(effects.started().len(), 40);

    // Read back, what was skipped counts as done.
    group.cold = Cold::Rebuild;
    let third = group.start(dir.path(), &effects);
    group.send(ALL, ALL + 20).await;
    group.caught_up();
    third.stop().await;
    let ran: Vec<_> = effects
        .started()
        .into_iter()
        .skip(40)
        .map(|call| call.payload)
        .collect();
    assert_eq!(ran, ["m-55", "m-56", "m-57", "m-58", "m-59"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_set_forward_is_cold_with_the_reason_local() {
    set_forward(Durability::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_set_forward_is_cold_with_the_reason_replicated() {
    set_forward(Durability::Replicated).await;
}

/// In local mode a guarded class is refused, in words that say what was found.
#[tokio::test(flavor = "multi_thread")]
async fn a_guarded_class_is_asked_about_an_offset_that_was_set_back_in_local_mode() {
    let Some(broker) = kafka::broker() else { return };
    let mut group = Group::new(broker, Durability::Local, NonIdempotent);
    let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
    group.takes_all(dir.path(), &effects).await;
    group.reset(10);
    let refused = group.start(dir.path(), &effects);
    let said = group.await_said(Level::ERROR, "is cold").text();
    assert!(said.contains("up to 40: the offset was set back by 30"), "{said}");
    refused.stop().await;
    group.cold = Cold::Rebuild;
    let rebuilt = group.start(dir.path(), &effects);
    group.send(ALL, ALL + 1).await;
    group.caught_up();
    rebuilt.stop().await;
    assert_eq!(effects.started().len(), 41, "what is known here stays known");
}
