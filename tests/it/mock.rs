//! The same runtime on librdkafka's mock cluster, which injects what a real broker rarely does: requests that fail, a
//! broker that goes and comes back, and one that answers late.
//!
//! The mock is no oracle of fencing, so nothing here is about zombies. It is asked for commits and contents by clients
//! of the test's own.
//!
//! Seen to fail: every answer to a commit taken for an acknowledgement (`committer.rs`): "messages between the commits and the
//! ends of ..: {0: 5}"; strays looked for before the first commit is acknowledged (`move_strays`): the same for the message
//! after the held one; the poll thread not beating while it asks (`ask` in `rebalance.rs`): "every message: not within 60s".

use std::time::Duration;

use hapax::accounts::Account;
use hapax::{Class, Consumer, Idempotent, NonIdempotent, Topic, Window};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;

use crate::kafka::{self, eventually};
use crate::member::{self, Effects, Member, Message, SOON};

/// A cluster with one topic.
struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
    brokers: String,
    topic: String,
    dir: TempDir,
}

impl Mock {
    fn new(partitions: i32) -> Self {
        let cluster = MockCluster::new(1).unwrap();
        let topic = kafka::unique("mock");
        cluster.create_topic(&topic, partitions, 1).unwrap();
        cluster
            .create_topic(&format!("{topic}.dead-letters"), 1, 1)
            .unwrap();
        Self {
            brokers: cluster.bootstrap_servers(),
            cluster,
            topic,
            dir: TempDir::new().unwrap(),
        }
    }

    fn consumer(&self, class: Class, effects: &Effects) -> Consumer {
        member::consumer(&self.brokers, &self.topic, self.dir.path()).handle(
            Topic::bytes(&self.topic, class)
                .state(effects.clone())
                .window(Window::hours(1))
                .deadline(Duration::from_secs(60)),
            member::handle,
        )
    }

    fn start(&self, class: Class, effects: &Effects) -> Member {
        Member::start(self.consumer(class, effects))
    }

    async fn send(&self, messages: impl IntoIterator<Item = Message>) {
        member::send(&self.brokers, &self.topic, messages).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.brokers, &self.topic, &self.topic);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_are_suppressed_also_after_a_restart() {
    let mock = Mock::new(2);
    let effects = Effects::default();
    let messages =
        |from: i32| (from..from + 20).map(|n| Message::new(n % 2, format!("token-{n}"), format!("{n}")));
    mock.send(messages(0).chain(messages(10))).await;
    let member = mock.start(NonIdempotent, &effects);
    mock.caught_up();
    let first = member.stop().await;
    assert_eq!(
        (
            effects.finished().len(),
            member::total(&first, Account::Duplicate)
        ),
        (30, 10)
    );
    mock.send(messages(20)).await;
    let member = mock.start(NonIdempotent, &effects);
    mock.caught_up();
    let second = member.stop().await;
    assert_eq!(
        (
            effects.finished().len(),
            member::total(&second, Account::Duplicate)
        ),
        (40, 10)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_is_made_again() {
    use RDKafkaRespErr::{
        RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS as LOADING,
        RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE as AWAY, RD_KAFKA_RESP_ERR_NOT_COORDINATOR as MOVED,
        RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS as REBALANCING, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT as LATE,
    };
    let mock = Mock::new(1);
    let effects = Effects::default();
    let failures = [REBALANCING, MOVED, LATE, AWAY, LOADING, REBALANCING];
    // The first commits of the assignment, before any handler.
    mock.cluster
        .request_errors(RDKafkaApiKey::OffsetCommit, &failures);
    mock.send((0..5).map(|n| Message::new(0, format!("a-{n}"), "quick")))
        .await;
    let member = mock.start(NonIdempotent, &effects);
    mock.caught_up();
    // And those of the running consumer.
    mock.cluster
        .request_errors(RDKafkaApiKey::OffsetCommit, &failures);
    mock.send((0..5).map(|n| Message::new(0, format!("b-{n}"), "quick")))
        .await;
    mock.caught_up();
    let summary = member.stop().await;
    assert_eq!(
        (effects.finished().len(), member::total(&summary, Account::Done)),
        (10, 10)
    );
}

/// Work is held in doubt; the next start's first commit fails a few times. The partition is ours all the same: what is
/// held stays held, and does not go to the dead-letter topic as if the partition had moved.
#[tokio::test(flavor = "multi_thread")]
async fn held_work_stays_where_only_the_first_commit_fails() {
    use RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS as REBALANCING;
    let mock = Mock::new(1);
    let effects = Effects::default();
    mock.send([Message::new(0, "held", "fail")]).await;
    let member = mock.start(NonIdempotent, &effects);
    mock.caught_up();
    member.stop().await;
    mock.cluster
        .request_errors(RDKafkaApiKey::OffsetCommit, &[REBALANCING; 3]);
    let member = mock.start(NonIdempotent, &effects);
    mock.send([Message::new(0, "next", "quick")]).await;
    mock.caught_up();
    let summary = member.stop().await;
    let letters = member::read_all(&mock.brokers, &format!("{}.dead-letters", mock.topic));
    assert_eq!(letters.len(), 0, "{:?}", letters[0].headers);
    let restored: u64 = summary.balances.iter().map(|balance| balance.restored).sum();
    assert_eq!((restored, effects.finished().len()), (1, 1));
}

/// The broker goes while handlers run: they end and are recorded, nothing can be committed. It comes back: the commits
/// follow, and nothing ran twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_and_comes_back_costs_nothing() {
    let mock = Mock::new(2);
    let effects = Effects::default();
    mock.send((0..20).map(|n| Message::new(n % 2, format!("token-{n}"), "wait").key(format!("{n}"))))
        .await;
    let member = mock.start(NonIdempotent, &effects);
    eventually("every handler", SOON, || {
        (effects.starts_of("wait") == 20).then_some(())
    });
    mock.cluster.broker_down(-1).unwrap();
    effects.open();
    eventually("every outcome", SOON, || {
        (effects.finished().len() == 20).then_some(())
    });
    assert!(!member.has_ended(), "a broker that is away is waited for");
    mock.cluster.broker_up(-1).unwrap();
    mock.caught_up();
    mock.send((20..30).map(|n| Message::new(n % 2, format!("token-{n}"), "quick")))
        .await;
    mock.caught_up();
    let summary = member.stop().await;
    assert_eq!(
        (effects.started().len(), member::total(&summary, Account::Done)),
        (30, 30)
    );
}

/// Every answer takes 250 ms, and an assignment asks much more than a session's worth of questions. That is a slow
/// broker and not a frozen process: every partition is served, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_broker_is_no_loss() {
    let mock = Mock::new(16);
    let effects = Effects::default();
    mock.send((0..160).map(|n| Message::new(n % 16, format!("token-{n}"), "quick")))
        .await;
    mock.cluster
        .broker_round_trip_time(-1, Duration::from_millis(250))
        .unwrap();
    let member = Member::start(mock.consumer(Idempotent, &effects).with(|layer| {
        member::property(layer, "session.timeout.ms", "3000");
    }));
    eventually("every message", 2 * SOON, || {
        (effects.finished().len() >= 160).then_some(())
    });
    mock.cluster.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    mock.caught_up();
    let summary = member.stop().await;
    assert_eq!(
        summary.balances.len(),
        16,
        "one assignment of each partition: {summary:?}"
    );
    assert_eq!(effects.started().len(), 160);
}
