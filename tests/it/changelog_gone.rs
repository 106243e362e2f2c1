//! A changelog topic that is deleted: while the group is stopped, and while it runs. Its states are gone; what is left is the
//! committed offset, and that alone says nothing of what was done.
//!
//! Seen to fail: with `KafkaTransactions::look_again` made to answer `None`: "it ends by itself: not within 120s".

use std::path::Path;
use std::time::Duration;

use hapax::config::{Cold, Durability};
use hapax::{NonIdempotent, Topic, Window};
use rdkafka::admin::AdminOptions;
use tracing::Level;

use crate::events;
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message};
use crate::start::admin;

const WITHIN: Duration = Duration::from_secs(120);

struct Group {
    broker: &'static Broker,
    topic: String,
    cold: Cold,
}

impl Group {
    fn new(broker: &'static Broker) -> Self {
        events::listen();
        let topic = kafka::unique("gone");
        member::create_topic(broker, &topic, 2, &[]);
        Self {
            broker,
            topic,
            cold: Cold::Refuse,
        }
    }

    fn changelog(&self) -> String {
        format!("{0}.{0}.hapax", self.topic)
    }

    fn start(&self, dir: &Path, effects: &Effects) -> Member {
        let topic = Topic::bytes(&self.topic, NonIdempotent)
            .state(effects.clone())
            .window(Window::hours(1));
        let consumer = member::consumer(&self.broker.bootstrap(), &self.topic, dir).with(|layer| {
            layer.durability = Some(Durability::Replicated);
            layer.cold = Some(self.cold);
        });
        Member::start(consumer.handle(topic, member::handle))
    }

    async fn send(&self, from: i32, to: i32) {
        let messages = (from..to).map(|n| Message::new(n % 2, format!("t-{n}"), format!("m-{n}")));
        member::send(&self.broker.bootstrap(), &self.topic, messages).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.broker.bootstrap(), &self.topic, &self.topic);
    }

    async fn delete_changelog(&self) {
        let (options, changelog) = (
            AdminOptions::new().operation_timeout(Some(WITHIN)),
            self.changelog(),
        );
        let deleted = admin(self.broker)
            .delete_topics(&[&changelog], &options)
            .await
            .unwrap();
        assert!(deleted[0].is_ok(), "{deleted:?}");
        eventually("no changelog", WITHIN, || {
            let found = admin(self.broker)
                .inner()
                .fetch_metadata(Some(&changelog), WITHIN)
                .ok()?;
            found.topics()[0].partitions().is_empty().then_some(())
        });
    }

    /// The next start is refused, each partition with the reason; read back from the input it knows what was done.
    async fn starts_cold(&mut self, dir: &Path, effects: &Effects, done: i32) {
        self.cold = Cold::Refuse;
        let refused = self.start(dir, effects);
        eventually("two refusals", WITHIN, || {
            let cold = events::all(|said| {
                let text = said.text();
                let is_cold = text.contains(&format!("{}[", self.topic)) && text.contains("is cold");
                said.level == Level::ERROR && is_cold && text.contains("the changelog was deleted")
            });
            (cold.len() >= 2).then_some(())
        });
        refused.stop().await;
        self.cold = Cold::Rebuild;
        let before = effects.started().len();
        self.send(0, done).await;
        self.send(done, done + 10).await;
        let rebuilt = self.start(dir, effects);
        self.caught_up();
        rebuilt.stop().await;
        assert_eq!(
            effects.started().len() - before,
            10,
            "what was done is known again"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_that_is_deleted_while_stopped_leaves_its_partitions_cold() {
    let Some(broker) = kafka::broker() else { return };
    let mut group = Group::new(broker);
    let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
    group.send(0, 40).await;
    let first = group.start(dir.path(), &effects);
    group.caught_up();
    first.stop().await;
    group.delete_changelog().await;
    // Also on the disk that has a copy of it: the changelog wins over whatever the disk says.
    group.starts_cold(dir.path(), &effects, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_that_is_deleted_while_running_ends_the_consumer_with_the_reason() {
    let Some(broker) = kafka::broker() else { return };
    let mut group = Group::new(broker);
    let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
    group.send(0, 40).await;
    let running = group.start(dir.path(), &effects);
    group.caught_up();
    group.delete_changelog().await;
    group.send(40, 42).await;
    eventually("it ends by itself", WITHIN, || running.has_ended().then_some(()));
    let why = running.failure().await;
    for part in [
        &group.changelog(),
        "was deleted while hapax ran",
        "cold = \"rebuild\"",
    ] {
        assert!(why.contains(part), "{part:?} is not in: {why}");
    }
    let committed = member::committed(&broker.bootstrap(), &group.topic, &group.topic);
    assert!(committed.values().all(|(next, _)| *next == 20), "{committed:?}");
    let before = effects.started().len();
    group.starts_cold(dir.path(), &effects, 40).await;
    // The two that came meanwhile were begun by nobody: without a record nothing runs.
    let late = |n: i32| effects.starts_of(&format!("m-{n}"));
    assert_eq!((before, late(40), late(41)), (40, 1, 1));
}
