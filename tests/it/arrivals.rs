//! Partitions that arrive while nobody can say where they start: a peer's transaction with their offset is still open.
//!
//! The peer is a producer of the test's own that sends an offset of the group in a transaction and then does nothing, as a
//! member does that died or froze. Kafka then tells nobody what that partition's commit is. What stays with a member, and
//! what else comes to it, must be served meanwhile.
//!
//! Seen to fail: with nothing taken while something is arriving, as it was when the poll thread asked: "a message of every other
//! partition: not within 60s".

use std::path::Path;
use std::time::Duration;

use hapax::config::{Cold, Durability, Listen};
use hapax::{Idempotent, NonIdempotent, Topic, Window};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::admin_port::get;
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message, SOON};

const WITHIN: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 4;

struct Group {
    brokers: String,
    topic: String,
    durability: Durability,
    protocol: &'static str,
}

impl Group {
    fn new(broker: &Broker, durability: Durability, protocol: &'static str) -> Self {
        let topic = kafka::unique("arrives");
        member::create_topic(broker, &topic, PARTITIONS, &[]);
        Self {
            brokers: broker.bootstrap(),
            topic,
            durability,
            protocol,
        }
    }

    fn start(&self, dir: &Path, effects: &Effects) -> Member {
        let topic = Topic::bytes(&self.topic, Idempotent)
            .state(effects.clone())
            .window(Window::hours(1));
        let consumer = member::consumer(&self.brokers, &self.topic, dir).with(|layer| {
            layer.durability = Some(self.durability);
            layer.cold = Some(Cold::Run);
            member::property(layer, "partition.assignment.strategy", self.protocol);
        });
        Member::start(consumer.handle(topic, member::handle))
    }

    /// One message into each partition.
    async fn tick(&self, number: usize) {
        let tick = |p| Message::new(p, format!("{p}-{number}"), format!("{p}-{number}"));
        member::send(&self.brokers, &self.topic, (0..PARTITIONS).map(tick)).await;
    }

    /// Sends an offset of that partition in a transaction, and leaves that open.
    fn leaves_open(&self, partition: i32) -> BaseProducer {
        let peer: BaseProducer = member::client(&self.brokers)
            .set("transactional.id", kafka::unique("peer"))
            .set("transaction.timeout.ms", "600000")
            .create()
            .unwrap();
        // Kafka takes an offset from one that was never a member (schedule 2): it is the transaction that counts here.
        let stranger: BaseConsumer = member::client(&self.brokers)
            .set("group.id", &self.topic)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(0))
            .unwrap();
        peer.init_transactions(SOON).unwrap();
        peer.begin_transaction().unwrap();
        peer.send_offsets_to_transaction(&list, &stranger.group_metadata().unwrap(), SOON)
            .unwrap();
        peer
    }

    fn await_ticks(&self, effects: &Effects, number: usize, partitions: &[i32]) {
        eventually("a message of every other partition", WITHIN, || {
            let ran = |p: &i32| effects.starts_of(&format!("{p}-{number}")) > 0;
            partitions.iter().all(ran).then_some(())
        });
    }
}

async fn the_others_are_served(durability: Durability, protocol: &'static str) {
    let Some(broker) = kafka::broker() else { return };
    let group = Group::new(broker, durability, protocol);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (stays, leaves) = (Effects::default(), Effects::default());
    let a = group.start(dirs[0].path(), &stays);
    let b = group.start(dirs[1].path(), &leaves);
    let mut number = 0;
    let of_b = loop {
        assert!(number < 300, "the second member takes no part");
        group.tick(number).await;
        member::await_caught_up(&group.brokers, &group.topic, &group.topic);
        // Whoever joins first has all of them for a while.
        let is_of_b = |p: &i32| leaves.starts_of(&format!("{p}-{number}")) > 0;
        let of_b: Vec<i32> = (0..PARTITIONS).filter(is_of_b).collect();
        if of_b.len() == 2 && member::group_state(&group.brokers, &group.topic) == ("Stable".to_owned(), 2) {
            break of_b;
        }
        number += 1;
    };
    let held_up = of_b[0];
    let others: Vec<i32> = (0..PARTITIONS).filter(|p| *p != held_up).collect();
    let open = group.leaves_open(held_up);
    b.stop().await;
    // More than once: what is served in between two questions is not served meanwhile.
    for _ in 0..5 {
        number += 1;
        group.tick(number).await;
        group.await_ticks(&stays, number, &others);
    }
    let early = stays.starts_of(&format!("{held_up}-{number}"));
    assert_eq!(early, 0, "where it starts is not known yet");
    open.abort_transaction(SOON).unwrap();
    member::await_caught_up(&group.brokers, &group.topic, &group.topic);
    group.await_ticks(&stays, number, &[held_up]);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_open_transaction_holds_up_its_own_partition_only_local() {
    the_others_are_served(Durability::Local, "cooperative-sticky").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_open_transaction_holds_up_its_own_partition_only_replicated() {
    the_others_are_served(Durability::Replicated, "cooperative-sticky").await;
}

/// The port says how many wait for what, and why those that are refused are.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readiness_says_what_is_not_served_and_why() {
    let Some(broker) = kafka::broker() else { return };
    let group = Group::new(broker, Durability::Local, "cooperative-sticky");
    let open = group.leaves_open(0);
    let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
    let start = |dir: &Path, cold| {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], kafka::free_port()));
        let topic = Topic::bytes(&group.topic, NonIdempotent)
            .state(effects.clone())
            .window(Window::hours(1));
        let consumer = member::consumer(&group.brokers, &group.topic, dir).with(|layer| {
            layer.cold = Some(cold);
            layer.admin.listen = Some(Listen::At(address));
        });
        (Member::start(consumer.handle(topic, member::handle)), address)
    };
    let says = |address, status: u16, text: &str| {
        eventually(text, WITHIN, || {
            let (found, why) = get(address, "/readyz")?;
            (found == status && why.contains(text)).then_some(())
        });
    };
    let (member, at) = start(dir.path(), Cold::Refuse);
    says(
        at,
        503,
        "1 partition is not served yet: 1 until the broker says where to start",
    );
    group.tick(0).await;
    group.await_ticks(&effects, 0, &[1, 2, 3]);
    open.abort_transaction(SOON).unwrap();
    says(at, 200, "ready");
    member::await_caught_up(&group.brokers, &group.topic, &group.topic);
    member.stop().await;

    let another = tempfile::tempdir().unwrap();
    let (member, at) = start(another.path(), Cold::Refuse);
    says(at, 503, "4 partitions are refused: ");
    says(at, 503, "is cold: offset 1 was committed with store");
    member.stop().await;
    let (member, at) = start(another.path(), Cold::Rebuild);
    says(at, 200, "ready");
    member.stop().await;
}

/// Stopped while the broker says nothing: it ends, and leaves its offsets to whoever comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_stopped_before_it_knows_where_to_start_ends_at_once() {
    let Some(broker) = kafka::broker() else { return };
    for protocol in ["range", "cooperative-sticky"] {
        let group = Group::new(broker, Durability::Local, protocol);
        let open = group.leaves_open(0);
        let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
        group.tick(0).await;
        let member = group.start(dir.path(), &effects);
        match protocol {
            // All that an eager rebalance assigns comes together.
            "range" => eventually("a member", WITHIN, || {
                (member::group_state(&group.brokers, &group.topic) == ("Stable".to_owned(), 1)).then_some(())
            }),
            _ => group.await_ticks(&effects, 0, &[1, 2, 3]),
        }
        assert_eq!(effects.starts_of("0-0"), 0);
        member.stop().await;
        open.abort_transaction(SOON).unwrap();
        let member = group.start(dir.path(), &effects);
        member::await_caught_up(&group.brokers, &group.topic, &group.topic);
        member.stop().await;
        assert_eq!(effects.finished().len(), 4);
    }
}
