//! Members of a group in this process, what their handlers did, and what the broker says of it.
//!
//! Everything here asks the broker with clients of its own, so that no claim rests on hapax's word alone. Waiting is
//! [`kafka::eventually`]: for a condition, with a bound.

#![allow(dead_code, reason = "each test takes the part that it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::accounts::{Account, Balance};
use hapax::config::{Layer, Listen, Properties};
use hapax::{Bytes, Consumer, Context, HandlerError, Summary};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::kafka;

/// One request to a broker, one wait for something that takes milliseconds: two shared cores must not fail a test.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// What every consumer here has in common: a quick group and no port of its own.
pub(crate) fn quick(layer: &mut Layer) {
    layer.admin.listen = Some(Listen::Off);
    layer.commit_every = Some(Duration::from_millis(50));
    for (name, value) in [
        ("heartbeat.interval.ms", "300"),
        ("session.timeout.ms", "6000"),
        ("fetch.wait.max.ms", "20"),
        ("reconnect.backoff.max.ms", "200"),
    ] {
        property(layer, name, value);
    }
}

/// Passes a property through to the client library.
pub(crate) fn property(layer: &mut Layer, name: &str, value: &str) {
    let Properties(properties) = &mut layer.kafka;
    properties.insert(name.to_owned(), value.to_owned());
}

/// A consumer of that group and state directory.
pub(crate) fn consumer(brokers: &str, group: &str, dir: &Path) -> Consumer {
    Consumer::local(group, dir).brokers(brokers).with(quick)
}

/// A consumer that runs until it is stopped.
pub(crate) struct Member {
    stop: oneshot::Sender<()>,
    run: JoinHandle<Result<Summary, hapax::Error>>,
}

impl Member {
    pub(crate) fn start(consumer: Consumer) -> Self {
        crate::events::listen();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = consumer.run_until(async move {
            let _ = stopped.await;
        });
        let run = tokio::spawn(async move {
            let outcome = running.await;
            if let Err(error) = &outcome {
                // Whoever waits for what it does would only see that nothing comes.
                eprintln!("a consumer ended: {}", hapax::error::chain(error));
            }
            outcome
        });
        Self { stop, run }
    }

    /// Stops it, and hands back its books, which have to balance.
    pub(crate) async fn stop(self) -> Summary {
        let _ = self.stop.send(());
        let summary = ended(self.run)
            .await
            .unwrap_or_else(|error| panic!("the consumer ended with: {}", hapax::error::chain(&error)));
        for balance in &summary.balances {
            assert_eq!(balance.remainder(), 0, "{balance:?}");
            assert_eq!(balance.of(Account::InFlight), 0, "{balance:?}");
        }
        summary
    }

    /// Why it ended by itself.
    pub(crate) async fn failure(self) -> String {
        let Self { stop, run } = self;
        let outcome = ended(run).await;
        drop(stop);
        match outcome {
            Ok(summary) => panic!("it ended without an error: {summary:?}"),
            Err(error) => hapax::error::chain(&error),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.run.is_finished()
    }
}

async fn ended(run: JoinHandle<Result<Summary, hapax::Error>>) -> Result<Summary, hapax::Error> {
    let joined = tokio::time::timeout(2 * SOON, run).await;
    joined
        .expect("a consumer ends in time")
        .expect("it does not panic")
}

/// The books of all assignments together.
pub(crate) fn total(summary: &Summary, account: Account) -> u64 {
    summary.balances.iter().map(|balance| balance.of(account)).sum()
}

/// Messages taken by all assignments together.
pub(crate) fn taken(summary: &Summary) -> u64 {
    summary.balances.iter().map(|Balance { taken, .. }| taken).sum()
}

// ---- Handlers.

/// One call of a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) payload: String,
    pub(crate) attempt: u32,
    pub(crate) fence: u64,
}

/// What the handlers of one member did, and the gate that some of them wait at.
#[derive(Clone, Default)]
pub(crate) struct Effects(Arc<Inner>);

#[derive(Default)]
struct Inner {
    started: Mutex<Vec<Call>>,
    finished: Mutex<Vec<Call>>,
    gate: watch::Sender<bool>,
}

impl Effects {
    pub(crate) fn started(&self) -> Vec<Call> {
        self.0.started.lock().unwrap().clone()
    }

    pub(crate) fn finished(&self) -> Vec<Call> {
        self.0.finished.lock().unwrap().clone()
    }

    /// Lets every handler pass that waits, or will.
    pub(crate) fn open(&self) {
        self.0.gate.send_replace(true);
    }

    /// Calls that started for that payload.
    pub(crate) fn starts_of(&self, payload: &str) -> usize {
        self.0
            .started
            .lock()
            .unwrap()
            .iter()
            .filter(|call| call.payload == payload)
            .count()
    }
}

/// A handler that does what the payload says: `wait` stands at the gate, `fail` ends with an error that says nothing
/// about what was applied, `sleep-20` takes as many milliseconds. Anything else is done at once.
pub(crate) async fn handle(payload: Bytes, cx: Context<Effects>) -> Result<(), HandlerError> {
    let inner = Arc::clone(&cx.state().0);
    let text = String::from_utf8_lossy(&payload).into_owned();
    let call = Call {
        topic: cx.topic().to_owned(),
        partition: cx.partition(),
        offset: cx.offset().0,
        payload: text.clone(),
        attempt: cx.attempt(),
        fence: cx.fence(),
    };
    inner.started.lock().unwrap().push(call.clone());
    if text.contains("wait") {
        let mut gate = inner.gate.subscribe();
        gate.wait_for(|open| *open).await?;
    }
    if let Some((_, millis)) = text.split_once("sleep-") {
        let digits: String = millis.chars().take_while(char::is_ascii_digit).collect();
        nap(Duration::from_millis(digits.parse()?)).await;
    }
    if text.contains("fail") {
        return Err("nobody knows what was applied".into());
    }
    inner.finished.lock().unwrap().push(call);
    Ok(())
}

/// The work of a handler that takes time.
#[expect(
    clippy::disallowed_methods,
    reason = "it stands for the work of a handler, on the machine's clock"
)]
pub(crate) async fn nap(length: Duration) {
    tokio::time::sleep(length).await;
}

// ---- The broker's side.

/// A message to be sent. Its token is the header that hapax reads by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) token: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) timestamp_ms: Option<i64>,
}

impl Message {
    pub(crate) fn new(partition: i32, token: impl Into<String>, payload: impl Into<String>) -> Self {
        Self {
            partition: Some(partition),
            payload: Some(payload.into().into_bytes()),
            token: Some(token.into().into_bytes()),
            ..Self::default()
        }
    }

    pub(crate) fn key(self, key: impl Into<String>) -> Self {
        Self {
            key: Some(key.into().into_bytes()),
            ..self
        }
    }
}

/// Sends, in order, and waits for every acknowledgement.
pub(crate) async fn send(brokers: &str, topic: &str, messages: impl IntoIterator<Item = Message>) {
    let producer: FutureProducer = client(brokers)
        .set("linger.ms", "1")
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .unwrap();
    let mut sending = Vec::new();
    for message in messages {
        let mut headers = OwnedHeaders::new();
        if let Some(token) = &message.token {
            headers = headers.insert(Header {
                key: "idempotency-key",
                value: Some(token),
            });
        }
        for (key, value) in &message.headers {
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(topic).headers(headers);
        record.partition = message.partition;
        record.key = message.key.as_deref();
        record.payload = message.payload.as_deref();
        record.timestamp = message.timestamp_ms;
        sending.push(producer.send_result(record).map_err(|(error, _)| error).unwrap());
    }
    for sent in sending {
        sent.await.unwrap().unwrap();
    }
}

/// The start of any client's configuration.
pub(crate) fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("reconnect.backoff.max.ms", "200");
    config
}

fn reader(brokers: &str, group: &str) -> BaseConsumer {
    client(brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .create()
        .unwrap()
}

/// The first and the next offset of each partition.
pub(crate) fn ends(brokers: &str, topic: &str) -> BTreeMap<i32, (i64, i64)> {
    let reader = reader(brokers, "unused");
    let metadata = reader.fetch_metadata(Some(topic), SOON).unwrap();
    metadata.topics()[0]
        .partitions()
        .iter()
        .map(|partition| {
            let ends = reader.fetch_watermarks(topic, partition.id(), SOON).unwrap();
            (partition.id(), ends)
        })
        .collect()
}

/// What the group has committed, by partition, with the metadata of the commit.
pub(crate) fn committed(brokers: &str, group: &str, topic: &str) -> BTreeMap<i32, (i64, String)> {
    let reader = reader(brokers, group);
    let mut asked = TopicPartitionList::new();
    for partition in ends(brokers, topic).into_keys() {
        asked.add_partition(topic, partition);
    }
    // Just started, the broker may not have found who answers for the group.
    let answer = kafka::eventually("committed offsets", SOON, || {
        reader.committed_offsets(asked.clone(), SOON).ok()
    });
    answer
        .elements()
        .iter()
        .filter_map(|element| match element.offset() {
            Offset::Offset(next) => Some((element.partition(), (next, element.metadata().to_owned()))),
            _ => None,
        })
        .collect()
}

/// Whether the group's commits stand at the end of every partition: whatever was sent is recorded.
pub(crate) fn is_caught_up(brokers: &str, group: &str, topic: &str) -> bool {
    lag(brokers, group, topic).values().all(|lag| *lag == 0)
}

/// Messages between commit and end, by partition.
pub(crate) fn lag(brokers: &str, group: &str, topic: &str) -> BTreeMap<i32, i64> {
    let committed = committed(brokers, group, topic);
    ends(brokers, topic)
        .into_iter()
        .map(|(partition, (low, high))| {
            let next = committed.get(&partition).map_or(low, |(next, _)| *next);
            (partition, high - next)
        })
        .collect()
}

/// Waits until the group's commits stand at the end of every partition.
pub(crate) fn await_caught_up(brokers: &str, group: &str, topic: &str) {
    let asked = std::panic::catch_unwind(|| {
        kafka::eventually("commits at the end of the log", SOON, || {
            is_caught_up(brokers, group, topic).then_some(())
        });
    });
    assert!(
        asked.is_ok(),
        "messages between the commits and the ends of {topic}: {:?}",
        lag(brokers, group, topic)
    );
}

/// The state of the group and the number of its members.
pub(crate) fn group_state(brokers: &str, group: &str) -> (String, usize) {
    let listed = reader(brokers, "unused").fetch_group_list(Some(group), SOON);
    let Ok(listed) = listed else {
        return (String::new(), 0);
    };
    listed.groups().first().map_or((String::new(), 0), |found| {
        (found.state().to_owned(), found.members().len())
    })
}

/// A message as it lies in a topic.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) headers: BTreeMap<String, Vec<u8>>,
}

impl Found {
    pub(crate) fn header(&self, name: &str) -> String {
        let value = self.headers.get(name);
        String::from_utf8_lossy(value.map_or(&[][..], Vec::as_slice)).into_owned()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.payload.as_deref().unwrap_or_default()).into_owned()
    }
}

/// Creates a topic, and the one for its dead letters, which has to take its largest message with hapax's headers.
pub(crate) fn create_topic(broker: &kafka::Broker, name: &str, partitions: i32, configs: &[(&str, &str)]) {
    broker.create_topic(name, partitions, configs);
    broker.create_topic(
        &format!("{name}.dead-letters"),
        1,
        &[("max.message.bytes", "2097152")],
    );
}

/// Every message of a topic, partition by partition.
pub(crate) fn read_all(brokers: &str, topic: &str) -> Vec<Found> {
    let reader: BaseConsumer = client(brokers)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    // Counting offsets would not do: a transaction takes one more for its end.
    let mut unread = BTreeSet::new();
    for (partition, (low, _)) in ends(brokers, topic) {
        list.add_partition_offset(topic, partition, Offset::Offset(low))
            .unwrap();
        unread.insert(partition);
    }
    reader.assign(&list).unwrap();
    let mut found = Vec::new();
    while !unread.is_empty() {
        let next = kafka::eventually("the next message of a topic", SOON, || {
            reader.poll(Duration::from_millis(100))
        });
        let message = match next {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(partition)) => {
                unread.remove(&partition);
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let headers = message
            .headers()
            .map(|headers| headers.iter())
            .into_iter()
            .flatten();
        found.push(Found {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: headers
                .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                .collect(),
        });
    }
    found.sort_by_key(|found| (found.partition, found.offset));
    found
}
