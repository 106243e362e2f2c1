//! In doubt, resolved by a person, and carried out: the whole way on a real Kafka.
//!
//! The first consumer leaves three messages in doubt, one of them with a duplicate behind it, and stops. The command
//! line gives each another verdict. What the handler of the second consumer is called with, and what lies in the dead-letter topic, is what a person asked for.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::config::Listen;
use hapax::{Bytes, Consumer, Context, NonIdempotent, Topic, Window};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::{self, Broker, eventually};

const WITHIN: Duration = Duration::from_secs(60);

type Calls = Arc<Mutex<Vec<String>>>;

/// A consumer whose handler fails without saying what it did, or does not.
fn consumer(broker: &Broker, topic: &str, dir: &Path, calls: &Calls, fails: bool) -> Consumer {
    Consumer::local(topic, dir)
        .brokers(broker.bootstrap())
        .with(|layer| {
            layer.admin.listen = Some(Listen::Off);
            layer.dead_letter.create = Some(true);
        })
        .handle(
            Topic::bytes(topic, NonIdempotent)
                .window(Window::hours(1))
                .state(Arc::clone(calls)),
            move |payload: Bytes, cx: Context<Calls>| async move {
                let payload = String::from_utf8(payload.to_vec())?;
                cx.state().lock().unwrap().push(payload);
                match fails {
                    true => Err("the line went dead".into()),
                    false => Ok(()),
                }
            },
        )
}

fn hapax(dir: &Path, verb: &str, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hapax"));
    let output = command
        .arg(verb)
        .arg("--state-dir")
        .arg(dir)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn run_until(consumer: Consumer, done: impl FnMut() -> Option<()> + Send + 'static) {
    let until = tokio::task::spawn_blocking(|| eventually("the calls", WITHIN, done));
    consumer.run_until(async { until.await.unwrap() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_decides_is_carried_out_at_the_next_start() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (kafka::unique("resolved"), tempfile::tempdir().unwrap());
    let letters = format!("{topic}.dead-letters");
    broker.create_topic(&topic, 1, &[]);
    let producer: FutureProducer = broker.client().create().unwrap();
    for name in ["done", "run", "letter", "done"] {
        let headers = OwnedHeaders::new().insert(Header {
            key: "idempotency-key",
            value: Some(name),
        });
        let record = FutureRecord::to(&topic).key(name).payload(name).headers(headers);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }
    let calls = Calls::default();
    let first = consumer(broker, &topic, dir.path(), &calls, true);
    let group: BaseConsumer = broker.client().set("group.id", &topic).create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topic, 0);
    // Past the last one: that all of them are held is recorded.
    run_until(first, move || {
        let committed = group.committed_offsets(asked.clone(), WITHIN).ok()?;
        (committed.elements().first()?.offset() == Offset::Offset(4)).then_some(())
    })
    .await;
    assert_eq!(calls.lock().unwrap().len(), 3, "the duplicate was not run");
    let listed = hapax(dir.path(), "held", &[]);
    assert!(
        listed.contains("4 messages held: 3 in doubt without a verdict, 0 with one, 0 to be retried, 1 behind their token or key"),
        "{listed}"
    );

    for (offset, verdict) in [("0", "--done"), ("1", "--run"), ("2", "--dead-letter")] {
        let place = ["--topic", &topic, "--partition", "0", "--offset", offset];
        let mut args = place.to_vec();
        args.extend([verdict, "--reason", "asked the bank", "--by", "anna"]);
        hapax(dir.path(), "resolve", &args);
    }
    calls.lock().unwrap().clear();
    let reader: BaseConsumer = broker
        .client()
        .set("group.id", kafka::unique("reader"))
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    reader.subscribe(&[&letters]).unwrap();
    let letter = Arc::new(Mutex::new(None));
    let (seen, found) = (Arc::clone(&calls), Arc::clone(&letter));
    let second = consumer(broker, &topic, dir.path(), &calls, false);
    run_until(second, move || {
        if let Some(Ok(message)) = reader.poll(Duration::from_millis(10)) {
            let headers = message.headers()?;
            let reason = headers
                .iter()
                .find(|header| header.key == "hapax-reason")?
                .value?;
            let payload = String::from_utf8(message.payload()?.to_vec()).unwrap();
            *found.lock().unwrap() = Some((payload, String::from_utf8(reason.to_vec()).unwrap()));
        }
        let run = !seen.lock().unwrap().is_empty();
        (run && found.lock().unwrap().is_some()).then_some(())
    })
    .await;
    assert_eq!(*calls.lock().unwrap(), ["run"], "only what is to be run is run");
    let expected = ("letter".to_owned(), "operator".to_owned());
    assert_eq!(letter.lock().unwrap().take(), Some(expected));
    let listed = hapax(dir.path(), "held", &["--all"]);
    assert!(listed.starts_with("0 messages held"), "{listed}");
    let audit = hapax(dir.path(), "audit", &["--json"]);
    assert_eq!(audit.lines().count(), 3, "{audit}");
}
