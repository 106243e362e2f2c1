//! What is sent, while the members suffer: a thread that sends so many messages a second until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::plan::Messages;
use super::terms::TOPICS;
use super::world::SENT_MS;

/// How long everything that was sent may wait for its broker.
const FLUSH_WITHIN: Duration = Duration::from_secs(90);

/// See the module.
pub(crate) struct Feed {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    pub(crate) fn start(client: &ClientConfig, run: &str, messages: Messages, per_second: u32) -> Self {
        let mut config = client.clone();
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            // Longer than any broker is away.
            .set("message.timeout.ms", "120000");
        let producer: BaseProducer = config.create().unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let run = run.to_owned();
        let thread = thread::spawn(move || send(&producer, &run, messages, per_second, &told, &count));
        Self {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    /// Stops, waits until everything is acknowledged, and says how many there are.
    pub(crate) fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn send(
    producer: &BaseProducer,
    run: &str,
    messages: Messages,
    per_second: u32,
    stop: &AtomicBool,
    sent: &AtomicUsize,
) {
    let started = Instant::now();
    let topics = TOPICS.map(|terms| terms.topic(run));
    for (n, message) in messages.enumerate() {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let due = Duration::from_secs(1) * n as u32 / per_second;
        while started.elapsed() < due {
            producer.poll(Duration::from_millis(5));
        }
        let at_ms = now_ms();
        let payload = message.act.payload(message.token.as_deref().unwrap_or("none"));
        let sent_ms = at_ms.to_string();
        let mut record = BaseRecord::<str, str>::to(&topics[message.topic])
            .partition(message.partition)
            .payload(&payload)
            .timestamp(at_ms - message.lag_ms);
        record.key = message.key.as_deref();
        let mut headers = OwnedHeaders::new().insert(Header {
            key: SENT_MS,
            value: Some(&sent_ms),
        });
        if let Some(token) = &message.token {
            headers = headers.insert(Header {
                key: "idempotency-key",
                value: Some(token),
            });
        }
        record = record.headers(headers);
        while let Err((error, same)) = producer.send(record) {
            assert!(
                matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)),
                "{error}"
            );
            producer.poll(Duration::from_millis(50));
            record = same;
        }
        sent.fetch_add(1, Ordering::SeqCst);
    }
    producer.flush(FLUSH_WITHIN).unwrap();
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_millis() as i64
}
