//! What an outcome gives back, on a real Kafka: outputs are there with their outcome and never without it, wherever the process dies.
//!
//! Method: the consumer is a child process, this same test binary started for [`child`], which kills itself at a named point
//! (`hapax::crash`), and is started again without one. Its handler notes every call in a file, and emits one output. What is in the
//! topic at the end is compared with that.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use hapax::accounts::Account;
use hapax::config::Durability;
use hapax::{Bytes, Context, Idempotent, NonIdempotent, Output, Reply, Topic, Window};
use tempfile::TempDir;

use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Found, Member, Message, SOON};
use crate::process::{self, Process, told};

const MESSAGES: usize = 200;

/// What the child is told, and where it writes.
#[derive(Clone)]
struct Orders {
    brokers: String,
    topic: String,
    dir: PathBuf,
    durability: Durability,
}

impl Orders {
    fn calls_file(&self) -> PathBuf {
        self.dir.join("calls")
    }

    fn outputs_topic(&self) -> String {
        format!("{}-shipments", self.topic)
    }

    /// How often the handler was called, by offset.
    fn calls(&self) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.calls_file()).unwrap_or_default();
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            *calls.entry(line.to_owned()).or_default() += 1;
        }
        calls
    }

    /// Outputs that are committed, by the offset of their message.
    fn outputs(&self) -> BTreeMap<String, Vec<Found>> {
        let mut outputs: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for found in member::read_all(&self.brokers, &self.outputs_topic()) {
            outputs
                .entry(found.header("hapax-offset"))
                .or_default()
                .push(found);
        }
        outputs
    }
}

/// Starts the child. It kills itself at that point, where there is one.
fn start(orders: &Orders, crash_at: Option<&str>) -> Process {
    let told = [
        ("brokers", orders.brokers.as_str()),
        ("topic", &orders.topic),
        ("dir", orders.dir.to_str().unwrap()),
        ("durability", &orders.durability.to_string()),
    ];
    Process::start_crashing("outcomes::child", &told, crash_at)
}

async fn ship(payload: Bytes, cx: Context<Orders>) -> Result<(), hapax::HandlerError> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(cx.state().calls_file())?;
    file.write_all(format!("{}\n", cx.offset()).as_bytes())?;
    let output = Output::to(cx.state().outputs_topic())
        .key(payload.clone())
        .payload(payload);
    Ok(cx.emit("shipment", output)?)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child process of the tests in this file"]
async fn child() {
    let orders = Orders {
        brokers: told("brokers"),
        topic: told("topic"),
        dir: told("dir").into(),
        durability: match told("durability").as_str() {
            "local" => Durability::Local,
            _ => Durability::Replicated,
        },
    };
    let topic = Topic::bytes(&orders.topic, Idempotent)
        .state(orders.clone())
        .window(Window::hours(1))
        .outputs([orders.outputs_topic()]);
    let durability = orders.durability;
    let consumer = member::consumer(&orders.brokers, &orders.topic, &orders.dir.join("state"))
        .with(|layer| {
            layer.durability = Some(durability);
            // Many small groups, so that the point is reached on the way.
            layer.limits.in_flight = Some(20);
        })
        .handle(topic, ship);
    process::run(consumer).await;
}

/// Runs through all messages, killed once at that point on the way.
async fn killed_at(broker: &Broker, durability: Durability, point: &str, dir: &TempDir) -> Orders {
    let topic = kafka::unique("outcomes");
    member::create_topic(broker, &topic, 1, &[]);
    let orders = Orders {
        brokers: broker.bootstrap(),
        topic,
        dir: dir.path().to_owned(),
        durability,
    };
    broker.create_topic(&orders.outputs_topic(), 1, &[]);
    let messages =
        (0..MESSAGES).map(|n| Message::new(0, format!("t-{n}"), format!("order-{n}")).key(format!("k-{n}")));
    member::send(&orders.brokers, &orders.topic, messages).await;
    start(&orders, Some(point)).dies();
    let again = start(&orders, None);
    member::await_caught_up(&orders.brokers, &orders.topic, &orders.topic);
    again.stop();
    orders
}

fn assert_one_each(outputs: &BTreeMap<String, Vec<Found>>) {
    assert_eq!(outputs.len(), MESSAGES, "one message or more has no output");
    let mut tokens = std::collections::BTreeSet::new();
    for (offset, found) in outputs {
        let first = &found[0];
        assert_eq!(first.text(), format!("order-{offset}"));
        assert_eq!(first.header("hapax-output"), "shipment");
        assert!(
            tokens.insert(first.header("idempotency-key")),
            "two messages share a child token"
        );
        for other in found {
            assert_eq!(
                (&other.headers, &other.payload),
                (&first.headers, &first.payload),
                "sent again as another"
            );
        }
    }
}

/// Local: killed between the acknowledgement of outputs and the close of their tokens. They are sent again, with the same ids, and
/// no handler runs again whose output is there.
#[tokio::test(flavor = "multi_thread")]
async fn outputs_that_a_kill_cut_off_are_sent_again_and_nothing_of_them_runs_again_local() {
    let Some(broker) = kafka::broker() else { return };
    let dir = TempDir::new().unwrap();
    let orders = killed_at(broker, Durability::Local, "before-letter-record:20", &dir).await;
    let (outputs, calls) = (orders.outputs(), orders.calls());
    assert_one_each(&outputs);
    let repeated: Vec<_> = outputs.iter().filter(|(_, found)| found.len() > 1).collect();
    assert!(!repeated.is_empty(), "the kill cut nothing off");
    for (offset, _) in repeated {
        assert_eq!(
            calls[offset], 1,
            "{offset}: its outcome was durable, and it ran again"
        );
    }
}

/// Replicated: killed with outputs in an open transaction. Who reads what is committed sees each output once, with its outcome.
#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_seen_exactly_with_their_outcome_replicated() {
    let Some(broker) = kafka::broker() else { return };
    for point in [
        "outputs-in-transaction:3",
        "before-commit-transaction:3",
        "after-transaction:3",
    ] {
        let dir = TempDir::new().unwrap();
        let orders = killed_at(broker, Durability::Replicated, point, &dir).await;
        let outputs = orders.outputs();
        assert_one_each(&outputs);
        let repeated: Vec<_> = outputs.iter().filter(|(_, found)| found.len() > 1).collect();
        assert!(repeated.is_empty(), "{point}: {repeated:?}");
        let ran_again = orders.calls().values().filter(|calls| **calls > 1).count();
        // Of the others nobody knows whether their third transaction had an outcome.
        if point.starts_with("outputs") {
            assert!(ran_again > 0, "{point}: the kill cut nothing off");
        }
    }
}

/// Replies and receipts, and the same reply again to a duplicate: to its own topic, with its own correlation id. A topic that is not
/// allowed gets nothing, and is not even made.
async fn whoever_asked_is_told(durability: Durability) {
    let Some(broker) = kafka::broker() else { return };
    let (brokers, topic) = (broker.bootstrap(), kafka::unique("replies"));
    member::create_topic(broker, &topic, 1, &[]);
    let name = |what: &str| format!("{topic}-{what}");
    for what in ["alice", "bob", "receipts"] {
        broker.create_topic(&name(what), 1, &[]);
    }
    let dir = TempDir::new().unwrap();
    let consumer = || {
        let orders = Topic::bytes(&topic, NonIdempotent)
            .window(Window::hours(1))
            .reply_to("reply-to", [name("alice"), name("bob")])
            .receipts(name("receipts"));
        member::consumer(&brokers, &topic, dir.path())
            .with(|layer| layer.durability = Some(durability))
            .handle_reply(orders, |payload: Bytes, _: Context| async move {
                Ok(Reply::bytes(format!(
                    "done: {}",
                    String::from_utf8_lossy(&payload)
                )))
            })
    };
    let asking = |token: &str, to: String, correlation: &str| {
        let mut message = Message::new(0, token, "charge").key("k");
        message.headers.push(("reply-to".into(), to.into_bytes()));
        message
            .headers
            .push(("correlation-id".into(), correlation.into()));
        message
    };
    let messages = [
        asking("t-1", name("alice"), "c-0"),
        asking("t-1", name("bob"), "c-1"),
        asking("t-2", name("mallory"), "c-2"),
        asking("t-1", format!("{topic}.{topic}.hapax"), "c-3"),
    ];
    member::send(&brokers, &topic, messages).await;
    let running = Member::start(consumer());
    member::await_caught_up(&brokers, &topic, &topic);
    let summary = running.stop().await;
    assert_eq!(
        (
            member::total(&summary, Account::Done),
            member::total(&summary, Account::Duplicate)
        ),
        (2, 2)
    );
    // Another start on the same disk: what is told is told.
    let running = Member::start(consumer());
    member::send(&brokers, &topic, [asking("t-1", name("bob"), "c-4")]).await;
    member::await_caught_up(&brokers, &topic, &topic);
    running.stop().await;

    let told = |what: &str| -> Vec<[String; 3]> {
        let found = member::read_all(&brokers, &name(what));
        let of = |found: &Found| {
            [
                found.text(),
                found.header("correlation-id"),
                found.header("hapax-replayed"),
            ]
        };
        found.iter().map(of).collect()
    };
    let reply = |correlation: &str, replayed: &str| {
        [
            "done: charge".to_owned(),
            correlation.to_owned(),
            replayed.to_owned(),
        ]
    };
    assert_eq!(told("alice"), [reply("c-0", "")]);
    assert_eq!(told("bob"), [reply("c-1", "true"), reply("c-4", "true")]);
    let verdicts: Vec<_> = member::read_all(&brokers, &name("receipts"))
        .iter()
        .map(|found| {
            let receipt: serde_json::Value = serde_json::from_str(&found.text()).unwrap();
            format!(
                "{} of {} after {}",
                receipt["verdict"], receipt["offset"], receipt["original_offset"]
            )
        })
        .collect();
    let duplicate = |offset: i64| format!("\"duplicate\" of {offset} after 0");
    assert_eq!(verdicts, [duplicate(1), duplicate(3), duplicate(4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asked_is_told_local() {
    whoever_asked_is_told(Durability::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asked_is_told_replicated() {
    whoever_asked_is_told(Durability::Replicated).await;
}

/// Schedule 20, of outputs: the start looks whether their topics are there, and take the largest.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_looks_where_outcomes_are_given_back_to() {
    let Some(broker) = kafka::broker() else { return };
    let (brokers, topic) = (broker.bootstrap(), kafka::unique("given"));
    member::create_topic(broker, &topic, 1, &[]);
    let small = format!("{topic}-small");
    broker.create_topic(&small, 1, &[("max.message.bytes", "10000")]);
    let dir = TempDir::new().unwrap();
    for (to, says) in [
        (small.as_str(), "takes messages of 10000 bytes"),
        ("not-there", "it does not exist"),
    ] {
        let orders = Topic::bytes(&topic, Idempotent)
            .window(Window::hours(1))
            .outputs([to]);
        let consumer = member::consumer(&brokers, &topic, dir.path())
            .handle(orders, |_: Bytes, _: Context| async { Ok(()) });
        let refused = consumer.run_until(std::future::pending()).await.unwrap_err();
        let text = hapax::error::chain(&refused);
        assert!(
            text.contains(&format!("output topic {to:?} of topic {topic:?}")) && text.contains(says),
            "{text}"
        );
    }
}

/// The handler of partition 0 emits to a topic that nobody has made, and that no configuration names. That partition waits, the other
/// one goes on; what waited is there once the topic is.
async fn a_missing_topic_holds_up_its_partition(durability: Durability) {
    let Some(broker) = kafka::broker() else { return };
    let (brokers, topic) = (broker.bootstrap(), kafka::unique("missing"));
    member::create_topic(broker, &topic, 2, &[]);
    let missing = format!("{topic}-nowhere");
    let dir = TempDir::new().unwrap();
    let orders = Topic::bytes(&topic, NonIdempotent)
        .window(Window::hours(1))
        .state(missing.clone());
    let emitting = |payload: Bytes, cx: Context<String>| async move {
        if cx.partition() == 0 {
            cx.emit("lost?", Output::to(cx.state().clone()).payload(payload))?;
        }
        Ok(())
    };
    let consumer = member::consumer(&brokers, &topic, dir.path())
        .with(|layer| layer.durability = Some(durability))
        .handle(orders, emitting);
    let running = Member::start(consumer);
    let next_of = |partition: i32| {
        let committed = member::committed(&brokers, &topic, &topic);
        committed.get(&partition).map_or(0, |(next, _)| *next)
    };
    member::send(&brokers, &topic, [Message::new(0, "t-0", "first")]).await;
    for n in 0..20 {
        member::send(&brokers, &topic, [Message::new(1, format!("u-{n}"), "other")]).await;
        eventually("the other partition goes on", SOON, || {
            (next_of(1) > n).then_some(())
        });
    }
    assert!(!running.has_ended());
    assert_eq!(next_of(0), 0, "its outcome is not complete");
    broker.create_topic(&missing, 1, &[]);
    member::await_caught_up(&brokers, &topic, &topic);
    let summary = running.stop().await;
    assert_eq!(member::total(&summary, Account::Done), 21);
    let found = member::read_all(&brokers, &missing);
    assert_eq!(found.iter().map(Found::text).collect::<Vec<_>>(), ["first"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_holds_up_its_partition_local() {
    a_missing_topic_holds_up_its_partition(Durability::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_holds_up_its_partition_replicated() {
    a_missing_topic_holds_up_its_partition(Durability::Replicated).await;
}
