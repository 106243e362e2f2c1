//! Memory is bounded by configuration, not by what the topic holds: 200 busy partitions with 300 MB in them are consumed
//! within a budget of their own.
//!
//! Method: a child process (this binary, started for [`child`]) consumes everything, so that its peak resident memory
//! (`VmHWM`) is its own. Its handlers are slow enough for every queue to fill. Compared with the peak of the same child
//! before it took its first message: what it grew by has to stay below
//!
//! ```text
//! memory                     32 MiB   RocksDB's cache and write buffers
//! in_flight_bytes             8 MiB   messages taken and not yet recorded
//! prefetch                   13 MiB   64 KiB for each partition, the least that hapax divides down to
//! one batch per partition    25 MiB   two arenas of 64 KiB that a partition's messages lie in
//! one answer of the broker   50 MiB   `fetch.max.bytes`: it arrives whole, before it is divided
//! everything else            32 MiB   tasks, ledgers, indexes, the client's own, the allocator's slack
//! ```
//!
//! Seen to fail while `fetch.message.max.bytes` had librdkafka's default of 1 MiB for each partition: "memory grew by 277 MiB,
//! and 160 MiB are accounted for". With the bound it grew by 75 MiB.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hapax::config::ByteCount;
use hapax::{Bytes, Context, Idempotent, Topic, Window};
use tempfile::TempDir;

use crate::kafka::{self, eventually};
use crate::member::{self, Member, Message, SOON};

const PARTITIONS: i32 = 200;
const MESSAGES: u64 = 300;
const BYTES: usize = 5_000;
const GROWTH_MAX_MIB: u64 = 32 + 8 + 13 + 25 + 50 + 32;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_busy_partitions_stay_within_the_configured_memory() {
    let Some(broker) = kafka::broker() else { return };
    let (brokers, topic, dir) = (
        broker.bootstrap(),
        kafka::unique("memory"),
        TempDir::new().unwrap(),
    );
    member::create_topic(broker, &topic, PARTITIONS, &[]);
    // Nothing to compress: what travels is what lies in memory.
    let mut random = fastrand::Rng::with_seed(1);
    let payload: String = std::iter::repeat_with(|| random.alphanumeric())
        .take(BYTES)
        .collect();
    for part in 0..10 {
        let messages = (0..PARTITIONS).flat_map(|partition| {
            let payload = &payload;
            let numbers = part * MESSAGES / 10..(part + 1) * MESSAGES / 10;
            numbers.map(move |n| Message::new(partition, format!("{partition}-{n}"), payload.as_str()))
        });
        member::send(&brokers, &topic, messages).await;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::child", "--ignored", "--nocapture"])
        .env("IT_BROKERS", &brokers)
        .env("IT_TOPIC", &topic)
        .env("IT_DIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(output.unwrap().success(), "the child consumes everything");
    let report = std::fs::read_to_string(dir.path().join("report")).unwrap();
    let numbers: Vec<u64> = report
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    let [before_kib, peak_kib, done] = numbers[..] else {
        panic!("{report}")
    };
    assert_eq!(done, PARTITIONS as u64 * MESSAGES);
    assert!(member::is_caught_up(&brokers, &topic, &topic));
    let growth = (peak_kib - before_kib) / 1_024;
    println!(
        "memory grew by {growth} MiB from {} MiB; at most {GROWTH_MAX_MIB} MiB",
        before_kib / 1_024
    );
    assert!(
        growth <= GROWTH_MAX_MIB,
        "memory grew by {growth} MiB, and {GROWTH_MAX_MIB} MiB are accounted for"
    );
}

/// Peak and present resident memory, in KiB.
fn resident(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child process of the test in this file"]
async fn child() {
    let of = |name: &str| std::env::var(name).expect("started by the test of this file");
    let (brokers, topic, dir) = (of("IT_BROKERS"), of("IT_TOPIC"), PathBuf::from(of("IT_DIR")));
    let before_kib = resident("VmHWM:");
    let done = Arc::new(AtomicU64::new(0));
    let bytes = Topic::bytes(&topic, Idempotent)
        .state(Arc::clone(&done))
        .window(Window::hours(1))
        .unordered(4);
    let member = Member::start(
        member::consumer(&brokers, &topic, &dir.join("state"))
            .with(|layer| {
                layer.memory = Some(ByteCount::mib(32));
                layer.limits.in_flight = Some(2_000);
                layer.limits.in_flight_bytes = Some(ByteCount::mib(8));
            })
            .handle(bytes, |_: Bytes, cx: Context<Arc<AtomicU64>>| async move {
                member::nap(Duration::from_millis(20)).await;
                cx.state().fetch_add(1, Ordering::Relaxed);
                Ok(())
            }),
    );
    eventually("every message", 4 * SOON, || {
        (done.load(Ordering::Relaxed) >= PARTITIONS as u64 * MESSAGES).then_some(())
    });
    let peak_kib = resident("VmHWM:");
    member::await_caught_up(&brokers, &topic, &topic);
    member.stop().await;
    let report = format!("{before_kib} {peak_kib} {}\n", done.load(Ordering::Relaxed));
    std::fs::write(dir.join("report"), report).unwrap();
}
