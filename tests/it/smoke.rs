//! The thinnest whole path: real Kafka, token, window, handler, record, commit, stop, start again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::config::Listen;
use hapax::{Consumer, Context, NonIdempotent, Topic, Window};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::kafka;

async fn produce(broker: &kafka::Broker, topic: &str, tokens: impl IntoIterator<Item = String>) {
    let producer: FutureProducer = broker.client().create().unwrap();
    for token in tokens {
        let headers = OwnedHeaders::new().insert(Header {
            key: "idempotency-key",
            value: Some(&token),
        });
        let record = FutureRecord::to(topic)
            .key(&token)
            .payload(&token)
            .headers(headers);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_knows_what_was_done() {
    let Some(broker) = kafka::broker() else { return };
    let topic = kafka::unique("smoke");
    broker.create_topic(&topic, 2, &[]);
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    produce(broker, &topic, (0..20).map(|n| format!("t{}", n % 10))).await;
    for round in 0..2 {
        let consumer = Consumer::local(&topic, dir.path())
            .brokers(broker.bootstrap())
            .with(|layer| {
                layer.admin.listen = Some(Listen::Off);
                layer.dead_letter.create = Some(true);
            })
            .handle(
                Topic::bytes(&topic, NonIdempotent)
                    .state(Arc::clone(&seen))
                    .window(Window::hours(1)),
                |payload, cx: Context<Arc<Mutex<Vec<String>>>>| async move {
                    cx.state()
                        .lock()
                        .unwrap()
                        .push(String::from_utf8_lossy(&payload).into_owned());
                    Ok(())
                },
            );
        let wanted = 10 + round * 5;
        let done = Arc::clone(&seen);
        let all_seen = tokio::task::spawn_blocking(move || {
            kafka::eventually("every token handled", Duration::from_secs(60), || {
                (done.lock().unwrap().len() >= wanted).then_some(())
            });
        });
        let summary = consumer
            .run_until(async move { all_seen.await.unwrap() })
            .await
            .unwrap();
        eprintln!("{summary:?}");
        assert_eq!(seen.lock().unwrap().len(), wanted);
        produce(broker, &topic, (0..10).map(|n| format!("t{}", n + 5))).await;
    }
}
