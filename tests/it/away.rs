//! Brokers that are away while a partition is on its way to be served: they are waited for, and a stop waits for nobody.
//!
//! A reading of a changelog is held by a peer's open transaction in it: the end of the log is known then, and what lies before
//! it is not shown. The broker is each test's own, stopped and frozen.
//!
//! Seen to fail: the stop while partitions are fenced, when a stop asked for the fate of the fence until somebody answered: "a
//! consumer ends in time: Elapsed".

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hapax::config::{Durability, Listen};
use hapax::{Idempotent, Topic, Window};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::admin_port::get;
use crate::events;
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message, SOON};

const WITHIN: Duration = Duration::from_secs(120);
const PARTITIONS: i32 = 4;

struct Group {
    brokers: String,
    topic: String,
    effects: Effects,
}

impl Group {
    fn new(broker: &Broker) -> Self {
        events::listen();
        let topic = kafka::unique("away");
        member::create_topic(broker, &topic, PARTITIONS, &[]);
        Self {
            brokers: broker.bootstrap(),
            topic,
            effects: Effects::default(),
        }
    }

    /// Its session outlives a broker that is away.
    fn start(&self, dir: &Path) -> (Member, SocketAddr) {
        let address = SocketAddr::from(([127, 0, 0, 1], kafka::free_port()));
        let topic = Topic::bytes(&self.topic, Idempotent)
            .state(self.effects.clone())
            .window(Window::hours(1));
        let consumer = member::consumer(&self.brokers, &self.topic, dir).with(|layer| {
            layer.durability = Some(Durability::Replicated);
            layer.admin.listen = Some(Listen::At(address));
            member::property(layer, "session.timeout.ms", "300000");
        });
        (Member::start(consumer.handle(topic, member::handle)), address)
    }

    async fn tick(&self, number: usize) {
        let tick = |p| Message::new(p, format!("{p}-{number}"), format!("{p}-{number}"));
        member::send(&self.brokers, &self.topic, (0..PARTITIONS).map(tick)).await;
    }

    fn await_tick(&self, number: usize) {
        eventually("a message of every partition", WITHIN, || {
            let ran = |p: i32| self.effects.starts_of(&format!("{p}-{number}")) > 0;
            (0..PARTITIONS).all(ran).then_some(())
        });
    }

    /// There is a changelog, and something in it.
    async fn has_served(&self) {
        let dir = tempfile::tempdir().unwrap();
        self.tick(0).await;
        let (member, _) = self.start(dir.path());
        self.await_tick(0);
        member.stop().await;
    }

    fn peer(&self) -> BaseProducer {
        let peer: BaseProducer = member::client(&self.brokers)
            .set("transactional.id", kafka::unique("peer"))
            .set("transaction.timeout.ms", "600000")
            .create()
            .unwrap();
        peer.init_transactions(SOON).unwrap();
        peer.begin_transaction().unwrap();
        peer
    }

    /// Nobody is shown what comes after this in that changelog, for as long as the transaction is open.
    fn holds_the_changelog(&self) -> BaseProducer {
        let peer = self.peer();
        let changelog = format!("{0}.{0}.hapax", self.topic);
        let record = BaseRecord::to(&changelog)
            .partition(0)
            .key("never")
            .payload("committed");
        peer.send(record).map_err(|(error, _)| error).unwrap();
        peer.flush(SOON).unwrap();
        peer
    }

    /// Nobody is told where the group stands, for as long as the transaction is open.
    fn holds_the_offset(&self) -> BaseProducer {
        let peer = self.peer();
        let stranger: BaseConsumer = member::client(&self.brokers)
            .set("group.id", &self.topic)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Offset(0))
            .unwrap();
        peer.send_offsets_to_transaction(&list, &stranger.group_metadata().unwrap(), SOON)
            .unwrap();
        peer
    }

    fn said(&self, text: &str) -> usize {
        events::all(|said| said.text().contains(text) && said.text().contains(&self.topic)).len()
    }
}

fn says(address: SocketAddr, text: &str) {
    eventually(text, WITHIN, || {
        get(address, "/readyz")?.1.contains(text).then_some(())
    });
}

const ASKED: &str = "until the broker says where to start";
const RESTORED: &str = "until the changelog is read";

/// A log that stands still is asked for its end again; a broker that is away then is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_broker_that_goes_away_in_the_middle_of_a_restore_is_waited_for() {
    let Some(mut broker) = Broker::own() else { return };
    let group = Group::new(&broker);
    group.has_served().await;
    let held = group.holds_the_changelog();
    let dir = tempfile::tempdir().unwrap();
    let (member, at) = group.start(dir.path());
    says(at, RESTORED);
    broker.stop();
    eventually("it waits for the broker", WITHIN, || {
        let waits = |said: &events::Said| {
            let text = said.text();
            text.contains("have to wait") && text.contains(&group.brokers)
        };
        (!events::all(waits).is_empty()).then_some(())
    });
    assert!(!member.has_ended());
    broker.restart();
    eventually("the end of the peer's transaction", WITHIN, || {
        held.abort_transaction(SOON).ok()
    });
    group.tick(1).await;
    group.await_tick(1);
    member.stop().await;
}

/// SIGTERM while nobody answers: in order, and clean. With a transaction of a peer open there is something to ask about.
async fn a_stop_is_clean(holds: impl FnOnce(&Group) -> BaseProducer, asked: &str) {
    let Some(mut broker) = Broker::own() else { return };
    let group = Group::new(&broker);
    group.has_served().await;
    let held = holds(&group);
    let dir = tempfile::tempdir().unwrap();
    let (member, at) = group.start(dir.path());
    says(at, asked);
    broker.freeze();
    member.stop().await;
    broker.thaw();
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_while_partitions_are_asked_about_is_a_clean_one() {
    a_stop_is_clean(Group::holds_the_offset, ASKED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_while_partitions_are_restored_is_a_clean_one() {
    a_stop_is_clean(Group::holds_the_changelog, RESTORED).await;
}

/// The fence is on its way: everything is read, and nothing is served. The moment is short, so it is looked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_while_partitions_are_fenced_is_a_clean_one() {
    let Some(mut broker) = Broker::own() else { return };
    let group = Group::new(&broker);
    group.has_served().await;
    let dir = tempfile::tempdir().unwrap();
    let restored = "restored from the changelog";
    for _ in 0..30 {
        let before = group.said(restored);
        let (member, at) = group.start(dir.path());
        eventually("everything is read", WITHIN, || {
            (group.said(restored) >= before + 4).then_some(())
        });
        broker.freeze();
        let fencing = get(at, "/readyz").is_some_and(|(_, why)| why.contains(RESTORED));
        if fencing {
            member.stop().await;
            broker.thaw();
            return;
        }
        broker.thaw();
        member.stop().await;
    }
    panic!("no start was met between reading and serving");
}
