//! The changelogs, read while they are written: what is trimmed later has been seen. And topics read to their end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::checker::Message;

/// A topic that is not read to its end within this time: transactions of the dead have to time out first.
const END_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The payloads of a topic, by partition and offset.
pub(crate) type Log = BTreeMap<(i32, i64), Vec<u8>>;

/// Reads topics until it is stopped.
pub(crate) struct Tail {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<String, Log>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Tail {
    pub(crate) fn start(client: &ClientConfig, topics: &[String], partitions: i32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen: Arc<Mutex<BTreeMap<String, Log>>> = Arc::default();
        let threads = topics.iter().map(|topic| {
            let consumer = reader(client, topic, partitions);
            let (stop, seen, topic) = (Arc::clone(&stop), Arc::clone(&seen), topic.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    // What the client cannot mend comes again.
                    let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
                        continue;
                    };
                    let message = Message::of(&message);
                    let mut seen = seen.lock().unwrap();
                    let log = seen.entry(topic.clone()).or_default();
                    log.insert(message.place(), message.payload.unwrap_or_default());
                }
            })
        });
        let threads = threads.collect();
        Self { stop, seen, threads }
    }

    /// Stops, and returns everything that was seen.
    pub(crate) fn stop(mut self) -> BTreeMap<String, Log> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn reader(client: &ClientConfig, topic: &str, partitions: i32) -> BaseConsumer {
    let mut config = client.clone();
    config
        .set("group.id", format!("{topic}-reader"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "50");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&list).unwrap();
    consumer
}

/// The offset after the last message of a partition, as readers of that isolation see it.
fn end(client: &ClientConfig, isolation: &str, topic: &str, partition: i32) -> Option<i64> {
    let mut config = client.clone();
    config.set("isolation.level", isolation);
    let consumer: BaseConsumer = config.create().unwrap();
    let marks = consumer.fetch_watermarks(topic, partition, ANSWER_WITHIN);
    marks.ok().map(|(_, high)| high)
}

/// Every committed message of a topic that nobody writes to any more, once no transaction is open in it.
pub(crate) fn read(client: &ClientConfig, topic: &str, partitions: i32) -> Vec<Message> {
    let until = Instant::now() + END_WITHIN;
    for partition in 0..partitions {
        loop {
            let stable = end(client, "read_committed", topic, partition);
            if stable.is_some() && stable == end(client, "read_uncommitted", topic, partition) {
                break;
            }
            assert!(
                Instant::now() < until,
                "{topic}/{partition}: a transaction stays open"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }
    let consumer = reader(client, topic, partitions);
    let mut messages = Vec::new();
    let mut left: BTreeSet<i32> = (0..partitions).collect();
    while !left.is_empty() {
        assert!(Instant::now() < until, "{topic}: {left:?} not read to the end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => messages.push(Message::of(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&partition);
            }
            Some(Err(_)) | None => {}
        }
    }
    messages.sort_by_key(Message::place);
    messages
}
