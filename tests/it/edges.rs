//! The edges of a transaction in replicated mode: the broker that coordinates it is gone in the middle, and messages that are
//! as large as their topic takes (schedule 20).
//!
//! Method: a broker of the test's own, killed while groups are being committed, and started again on the same data; effects
//! and books are counted, and everything is sent again. For the sizes, messages that do not compress, found by sending
//! smaller ones until the broker takes them.

use std::collections::BTreeMap;
use std::path::Path;

use hapax::accounts::Account;
use hapax::config::{Durability, MissingToken};
use hapax::outcome::Stage;
use hapax::store::rocks::RocksStore;
use hapax::store::{Store as _, TopicSpec};
use hapax::{Bytes, Consumer, Context, HandlerError, NonIdempotent, Reply, Topic, Window};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tempfile::TempDir;

use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message, SOON};

/// What is done cannot be committed, and then is: once. The first time nothing is under way when the broker goes; the others
/// it is killed in the middle of group after group.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_goes_away_in_the_middle_of_a_commit_loses_and_repeats_nothing() {
    const EACH: i32 = 2_000;
    const KILLS: i32 = 2;
    let Some(mut broker) = Broker::own() else { return };
    let topic = kafka::unique("away");
    member::create_topic(&broker, &topic, 2, &[]);
    let (brokers, effects, dir) = (broker.bootstrap(), Effects::default(), TempDir::new().unwrap());
    let messages = |from: i32, to: i32, say: &'static str| {
        (from..to).map(move |n| Message::new(n % 2, format!("t-{n}"), format!("{say}-{n}")))
    };
    let consumer = member::consumer(&brokers, &topic, dir.path())
        .with(|layer| {
            layer.durability = Some(Durability::Replicated);
            // The broker is away for some seconds, and the member keeps its partitions.
            member::property(layer, "session.timeout.ms", "45000");
        })
        .handle(
            Topic::bytes(&topic, NonIdempotent)
                .state(effects.clone())
                .window(Window::hours(1)),
            member::handle,
        );
    let member = Member::start(consumer);

    member::send(&brokers, &topic, messages(0, 4, "wait")).await;
    eventually("four at the gate", 2 * SOON, || {
        (effects.started().len() == 4).then_some(())
    });
    broker.kill();
    effects.open();
    eventually("four effects", SOON, || {
        (effects.finished().len() == 4).then_some(())
    });
    broker.restart();
    member::await_caught_up(&brokers, &topic, &topic);

    let mut sent = 4;
    for _ in 0..KILLS {
        let before = effects.finished().len();
        member::send(&brokers, &topic, messages(sent, sent + EACH, "sleep-4")).await;
        sent += EACH;
        eventually("some of them", SOON, || {
            (effects.finished().len() > before + 100).then_some(())
        });
        let done = effects.finished().len() - before;
        broker.kill();
        assert!(done < EACH as usize, "it was killed in the middle: {done}");
        broker.restart();
        member::await_caught_up(&brokers, &topic, &topic);
    }
    member::send(&brokers, &topic, messages(0, sent, "again")).await;
    member::await_caught_up(&brokers, &topic, &topic);
    assert!(!member.has_ended());
    let summary = member.stop().await;
    let mut places: Vec<_> = effects
        .finished()
        .iter()
        .map(|call| (call.partition, call.offset))
        .collect();
    let calls = places.len();
    places.sort_unstable();
    places.dedup();
    let all = usize::try_from(sent).unwrap();
    assert_eq!((calls, places.len(), effects.started().len()), (all, all, all));
    assert_eq!(
        [Account::Done, Account::Duplicate].map(|account| member::total(&summary, account)),
        [u64::from(sent.unsigned_abs()); 2],
        "{summary:?}"
    );
}

/// The input takes so much; the changelog and the topic for dead letters are made by hapax.
const LIMIT: usize = 2_000_000;
const OUTCOME: usize = 16 << 10;

/// Headers of a message: few, or as many small ones as somebody may think of.
fn headers(token: &str, many: bool) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new().insert(Header {
        key: "idempotency-key",
        value: Some(token),
    });
    for _ in 0..if many { 40_000 } else { 0 } {
        headers = headers.insert(Header {
            key: "h",
            value: None::<&[u8]>,
        });
    }
    headers
}

/// Sends the largest message that the broker takes, beginning with those bytes, and returns its payload.
async fn send_largest(broker: &Broker, topic: &str, begin: &str, token: &str, many: bool) -> Vec<u8> {
    let mut config = broker.client();
    config
        .set("message.max.bytes", "10000000")
        .set("compression.type", "none");
    let producer: FutureProducer = config.create().unwrap();
    let mut random = fastrand::Rng::with_seed(token.len() as u64);
    let mut payload: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(LIMIT).collect();
    payload[..begin.len()].copy_from_slice(begin.as_bytes());
    let sizes = format!("{topic}.sizes");
    let mut too_large = LIMIT;
    let mut fits = 0;
    while too_large - fits > 1 {
        // What is above the limit is refused, so what was taken last is the largest; the steps find it quickly.
        let middle = fits.midpoint(too_large);
        let record = FutureRecord::to(&sizes)
            .key("k")
            .payload(&payload[..middle])
            .headers(headers(token, many));
        match producer.send(record, SOON).await {
            Ok(_) => fits = middle,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                too_large = middle
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
    payload.truncate(fits);
    let record = FutureRecord::to(topic)
        .key("k")
        .payload(&payload)
        .headers(headers(token, many));
    producer.send(record, SOON).await.unwrap();
    payload
}

fn sized(broker: &Broker, topic: &str, dir: &Path, effects: &Effects) -> Consumer {
    let handler = |payload: Bytes, cx: Context<Effects>| async move {
        let _ = member::handle(Bytes::from_static(b"counted"), cx).await;
        let long = "e".repeat(1 << 20);
        match &payload[..4] {
            b"done" => Ok(Reply::bytes(vec![b'r'; OUTCOME])),
            b"fail" => Err(HandlerError::unknown(long)),
            _ => Err(HandlerError::reject(long)),
        }
    };
    member::consumer(&broker.bootstrap(), topic, dir)
        .with(|layer| {
            layer.durability = Some(Durability::Replicated);
            layer.dead_letter.create = Some(true);
        })
        .handle_reply(
            Topic::bytes(topic, NonIdempotent)
                .state(effects.clone())
                .window(Window::hours(1))
                .missing_token(MissingToken::DeadLetter)
                .unordered(16),
            handler,
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_as_large_as_their_topic_takes_are_done_held_and_given_up_on() {
    let Some(broker) = kafka::broker() else { return };
    let topic = kafka::unique("large");
    let limit = LIMIT.to_string();
    broker.create_topic(&topic, 1, &[("max.message.bytes", &limit)]);
    broker.create_topic(&format!("{topic}.sizes"), 1, &[("max.message.bytes", &limit)]);
    let (effects, dirs) = (Effects::default(), TempDir::new().unwrap());
    let mut sent = BTreeMap::new();
    for (number, begin) in ["done", "fail", "give", "done", "fail", "give"]
        .into_iter()
        .enumerate()
    {
        // The longest token that is taken, and one that is refused for its length.
        let token = format!("{number:0500}");
        let payload = send_largest(broker, &topic, begin, &token, number >= 3).await;
        sent.insert(i64::try_from(number).unwrap(), payload);
    }
    let too_long = "x".repeat(5_000);
    let payload = send_largest(broker, &topic, "none", &too_long, false).await;
    sent.insert(6, payload);

    let member = Member::start(sized(broker, &topic, &dirs.path().join("one"), &effects));
    member::await_caught_up(&broker.bootstrap(), &topic, &topic);
    let summary = member.stop().await;
    assert_eq!(effects.started().len(), 6);
    assert_eq!(
        [Account::Done, Account::Failed].map(|account| member::total(&summary, account)),
        [2, 3],
        "{summary:?}"
    );
    let letters = member::read_all(&broker.bootstrap(), &format!("{topic}.dead-letters"));
    let of = |letter: &member::Found| letter.header("hapax-offset").parse::<i64>().unwrap();
    let given_up: BTreeMap<i64, &[u8]> = letters
        .iter()
        .map(|letter| (of(letter), letter.payload.as_deref().unwrap()))
        .collect();
    let whole = |offsets: &[i64]| -> BTreeMap<i64, Vec<u8>> {
        sent.iter()
            .filter(|(offset, _)| offsets.contains(offset))
            .map(|(o, p)| (*o, p.clone()))
            .collect()
    };
    assert!(
        given_up
            .iter()
            .map(|(o, p)| (*o, p.to_vec()))
            .eq(whole(&[2, 5, 6])),
        "{:?}",
        given_up.keys()
    );

    // What is held lies in the changelog, whole.
    let other = dirs.path().join("other");
    let member = Member::start(sized(broker, &topic, &other, &effects));
    let again = ["0", "3"].map(|number| Message::new(0, format!("{number:0>500}"), "again"));
    member::send(&broker.bootstrap(), &topic, again).await;
    member::await_caught_up(&broker.bootstrap(), &topic, &topic);
    let summary = member.stop().await;
    assert_eq!(
        (
            member::total(&summary, Account::Duplicate),
            effects.started().len()
        ),
        (2, 6)
    );
    let spec = TopicSpec {
        name: topic.clone(),
        window_ms: 3_600_000,
    };
    let store = RocksStore::open(&other, &topic, &[spec], 32 << 20, Durability::Replicated).unwrap();
    let mut held = BTreeMap::new();
    for id in store.partitions().unwrap() {
        for open in store.load(id).unwrap().open {
            let Stage::Held { message, .. } = open.stage else {
                panic!("at {}", open.offset)
            };
            held.insert(open.offset.0, message.payload.clone().unwrap().to_vec());
        }
    }
    store.close().unwrap();
    assert!(held == whole(&[1, 4]), "{:?}", held.keys());
}
