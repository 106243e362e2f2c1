//! Starts and ends of a consumer on a real Kafka: what is refused before anything runs, and what a dropped future
//! leaves behind.
//!
//! Refusals are judged by their words, since a person has to act on them; ends by what the next start finds.
//!
//! Seen to fail, each with its line taken out:
//! - `runtime.rs`, `signal.stop()` in the drop of a run: "a store that nobody uses: not within 60s"
//! - `runtime.rs`, the drop of an unclosed store: "it was refused, not killed, left: 1"
//! - `broker/cluster.rs`, the room for headers (`to < from`): the start of the too small one came back `Ok`
//! - `broker/kafka/producer.rs`, `message.max.bytes`: "the dead letter: not within 60s"
//! - `store/rocks/mod.rs`, the refusal of fewer partitions: the start on the topic made again came back `Ok`

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::config::Listen;
use hapax::store::Store as _;
use hapax::store::rocks::RocksStore;
use hapax::{Consumer, Context, Error, HandlerError, NonIdempotent, Topic, Window};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::Semaphore;

use crate::kafka::{self, Broker, eventually};

const WITHIN: Duration = Duration::from_secs(60);

async fn produce(broker: &Broker, topic: &str, rows: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let mut config = broker.client();
    config.set("message.max.bytes", "10000000");
    let producer: FutureProducer = config.create().unwrap();
    for (token, payload) in rows {
        let headers = OwnedHeaders::new().insert(Header {
            key: "idempotency-key",
            value: Some(&token),
        });
        let record = FutureRecord::to(topic)
            .key(&token)
            .payload(&payload)
            .headers(headers);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }
}

fn tokens(range: std::ops::Range<usize>) -> impl Iterator<Item = (String, Vec<u8>)> {
    range.map(|number| (format!("t{number}"), b"p".to_vec()))
}

/// A consumer of that topic that rejects everything, and creates its topic for dead letters where `create` says so.
fn rejecting(broker: &Broker, topic: &str, dir: &Path, create: bool) -> Consumer {
    rejecting_at(&broker.bootstrap(), topic, dir, create)
}

fn rejecting_at(brokers: &str, topic: &str, dir: &Path, create: bool) -> Consumer {
    Consumer::local(topic, dir)
        .brokers(brokers)
        .with(|layer| {
            layer.admin.listen = Some(Listen::Off);
            layer.dead_letter.create = Some(create);
        })
        .handle(
            Topic::bytes(topic, NonIdempotent).window(Window::hours(1)),
            |_, _: Context| async { Err(HandlerError::reject("never")) },
        )
}

/// A start that stops as soon as it may.
pub(crate) async fn start_and_stop(consumer: Consumer) -> Result<(), Error> {
    consumer.run_until(std::future::ready(())).await.map(drop)
}

#[track_caller]
pub(crate) fn says(error: &Error, what: &[&str]) {
    let text = hapax::error::chain(error);
    for part in what {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

pub(crate) fn unclean_starts(dir: &Path) -> u32 {
    RocksStore::open_existing_for_cli(dir).unwrap().past().unclean
}

pub(crate) fn admin(broker: &Broker) -> AdminClient<DefaultClientContext> {
    broker.client().create().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_topic_for_dead_letters_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (kafka::unique("letters"), tempfile::tempdir().unwrap());
    let letters = format!("{topic}.dead-letters");
    broker.create_topic(&topic, 3, &[("max.message.bytes", "2000000")]);
    let refused = start_and_stop(rejecting(broker, &topic, dir.path(), false))
        .await
        .unwrap_err();
    says(
        &refused,
        &[
            &letters,
            "does not exist",
            "--partitions 3 --config max.message.bytes=2016384",
            "dead_letter.create = true",
        ],
    );
    assert_eq!(unclean_starts(dir.path()), 0, "it was refused, not killed");
}

/// Schedule 20: the largest message that the input takes must fit into its dead-letter topic, hapax's headers included.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_for_dead_letters_is_created_so_that_the_largest_message_fits() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (kafka::unique("largest"), tempfile::tempdir().unwrap());
    let letters = format!("{topic}.dead-letters");
    broker.create_topic(&topic, 3, &[("max.message.bytes", "2000000")]);
    // Beyond the default limits of a client, and nothing that compresses.
    let payload: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(1_999_000)
        .collect();
    produce(broker, &topic, [("big".to_owned(), payload.clone())]).await;

    let reader: BaseConsumer = broker
        .client()
        .set("group.id", kafka::unique("reader"))
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    let found = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&found);
    let name = letters.clone();
    let until_found = tokio::task::spawn_blocking(move || {
        // Nothing is there to subscribe to before the consumer has created it.
        eventually("the topic for dead letters", WITHIN, || {
            let metadata = reader.fetch_metadata(Some(&name), WITHIN).ok()?;
            (metadata.topics().first()?.partitions().len() == 3).then_some(())
        });
        reader.subscribe(&[&name]).unwrap();
        let letter = eventually("the dead letter", WITHIN, || {
            let message = reader.poll(Duration::from_millis(100))?.ok()?;
            let headers = message.headers()?;
            let reason = headers
                .iter()
                .find(|header| header.key == "hapax-reason")?
                .value?;
            Some((
                message.payload()?.to_vec(),
                String::from_utf8(reason.to_vec()).unwrap(),
            ))
        });
        *seen.lock().unwrap() = Some(letter);
    });
    rejecting(broker, &topic, dir.path(), true)
        .run_until(async move { until_found.await.unwrap() })
        .await
        .unwrap();
    let (bytes, reason) = found.lock().unwrap().take().unwrap();
    assert_eq!(reason, "rejected");
    assert!(bytes == payload, "the bytes are intact");

    let resource = ResourceSpecifier::Topic(&letters);
    let described = admin(broker)
        .describe_configs([&resource], &AdminOptions::new())
        .await
        .unwrap();
    let limit = described[0].as_ref().unwrap().get("max.message.bytes").unwrap();
    assert_eq!(limit.value.as_deref(), Some("2016384"));
    // The next start finds it, whether it may create or not.
    start_and_stop(rejecting(broker, &topic, dir.path(), false))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_for_dead_letters_that_is_too_small_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (kafka::unique("small"), tempfile::tempdir().unwrap());
    let letters = format!("{topic}.dead-letters");
    // Both as the broker makes them: equal is too small.
    broker.create_topic(&topic, 1, &[]);
    broker.create_topic(&letters, 1, &[]);
    let refused = start_and_stop(rejecting(broker, &topic, dir.path(), true))
        .await
        .unwrap_err();
    says(
        &refused,
        &[&letters, "takes messages of 1048588 bytes", "1064972 are needed"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_may_grow_and_one_that_was_made_again_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (kafka::unique("grown"), tempfile::tempdir().unwrap());
    broker.create_topic(&topic, 2, &[]);
    let start = || start_and_stop(rejecting(broker, &topic, dir.path(), true));
    start().await.unwrap();
    let options = AdminOptions::new().operation_timeout(Some(WITHIN));
    let grown = admin(broker)
        .create_partitions([&NewPartitions::new(&topic, 4)], &options)
        .await
        .unwrap();
    assert!(grown[0].is_ok(), "{grown:?}");
    let partitions = || {
        let metadata = admin(broker)
            .inner()
            .fetch_metadata(Some(&topic), WITHIN)
            .unwrap();
        metadata.topics()[0].partitions().len()
    };
    eventually("4 partitions", WITHIN, || (partitions() == 4).then_some(()));
    start().await.unwrap();
    let deleted = admin(broker).delete_topics(&[&topic], &options).await.unwrap();
    assert!(deleted[0].is_ok(), "{deleted:?}");
    eventually("no topic", WITHIN, || (partitions() == 0).then_some(()));
    broker.create_topic(&topic, 2, &[]);
    let refused = start().await.unwrap_err();
    says(
        &refused,
        &[&topic, "with 4 partitions, now it has 2", "made again"],
    );
    assert_eq!(unclean_starts(dir.path()), 0, "it was refused, not killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (kafka::unique("absent"), tempfile::tempdir().unwrap());
    let refused = start_and_stop(rejecting(broker, &topic, dir.path(), true))
        .await
        .unwrap_err();
    says(&refused, &[&topic, "it does not exist; create it"]);
}

/// A broker that knows neither DescribeConfigs nor CreateTopics: what may not be asked is no reason to refuse, what
/// cannot be made is.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_knows_less_is_asked_less() {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic("orders", 1, 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let start = |create| {
        let consumer = rejecting_at(&mock.bootstrap_servers(), "orders", dir.path(), create);
        start_and_stop(consumer)
    };
    let refused = start(false).await.unwrap_err();
    says(&refused, &["orders.dead-letters", "does not exist"]);
    let refused = start(true).await.unwrap_err();
    says(&refused, &["orders.dead-letters", "creating it was refused"]);
    mock.create_topic("orders.dead-letters", 1, 1).unwrap();
    start(false).await.unwrap();
}

/// Handlers that were let in, and how many of them have ended.
#[derive(Clone)]
struct Gate {
    entered: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
}

fn gated(broker: &Broker, topic: &str, dir: &Path, gate: &Gate) -> Consumer {
    Consumer::local(topic, dir)
        .brokers(broker.bootstrap())
        .with(|layer| {
            layer.admin.listen = Some(Listen::Off);
            layer.dead_letter.create = Some(true);
            layer.drain = Some(Duration::from_secs(30));
        })
        .handle(
            Topic::bytes(topic, NonIdempotent)
                .window(Window::hours(1))
                .unordered(4)
                .state(gate.clone()),
            |_, cx: Context<Gate>| async move {
                let gate = cx.state();
                gate.entered.fetch_add(1, Ordering::SeqCst);
                gate.open.acquire().await?.forget();
                gate.ended.fetch_add(1, Ordering::SeqCst);
                Ok(())
            },
        )
}

/// Without the guard in `runtime.rs` the poll thread would hold the group's partitions and the store for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dropped_future_stops_the_consumer_and_loses_nothing() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (kafka::unique("dropped"), tempfile::tempdir().unwrap());
    broker.create_topic(&topic, 1, &[]);
    produce(broker, &topic, tokens(0..20)).await;
    let gate = Gate {
        entered: Arc::default(),
        ended: Arc::default(),
        open: Arc::new(Semaphore::new(2)),
    };
    let count = |of: &Arc<AtomicUsize>| of.load(Ordering::SeqCst);
    let running = tokio::spawn(gated(broker, &topic, dir.path(), &gate).run_until(std::future::pending()));
    // Two have ended, and the four slots are taken by others.
    eventually("handlers in flight", WITHIN, || {
        (count(&gate.ended) == 2 && count(&gate.entered) == 6).then_some(())
    });
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    // Those in flight may finish; the other fourteen must not start.
    gate.open.add_permits(100);
    let store = eventually("a store that nobody uses", WITHIN, || {
        RocksStore::open_existing_for_cli(dir.path()).ok()
    });
    assert_eq!(store.past().unclean, 0, "it ended as a stop does");
    drop(store);
    assert_eq!((count(&gate.entered), count(&gate.ended)), (6, 6));

    let all = gate.clone();
    gated(broker, &topic, dir.path(), &gate)
        .run_until(async move {
            tokio::task::spawn_blocking(move || {
                eventually("the rest", WITHIN, || {
                    (all.ended.load(Ordering::SeqCst) == 20).then_some(())
                });
            })
            .await
            .unwrap();
        })
        .await
        .unwrap();
    assert_eq!(
        count(&gate.entered),
        20,
        "what was finished in the background was recorded"
    );
}
