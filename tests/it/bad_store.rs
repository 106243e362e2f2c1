//! State directories that cannot be used: refused with what to do, changed in nothing; and a disk that fills up while the
//! consumer runs, which stops it and loses nothing (Inv 9).
//!
//! Method: a real Kafka and real directories. Read-only and full ones are small file systems in memory, which only root
//! can mount: elsewhere those tests say that they are skipped.
//!
//! Seen to fail: `check_group` that finds every group right, and a journal that acknowledges a write that failed ("a consumer
//! ends in time: Elapsed", both: it went on).

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use hapax::config::ByteCount;
use hapax::{Bytes, Consumer, Context, Idempotent, NonIdempotent, Reply, Topic, Window};
use tempfile::TempDir;

use crate::frozen::{self, Orders};
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message, SOON};

fn topic(broker: &Broker) -> String {
    let topic = kafka::unique("bad-store");
    member::create_topic(broker, &topic, 1, &[]);
    topic
}

fn consumer(brokers: &str, group: &str, topic: &str, dir: &Path) -> Consumer {
    member::consumer(brokers, group, dir).handle(
        Topic::bytes(topic, NonIdempotent)
            .state(Effects::default())
            .window(Window::hours(1)),
        member::handle,
    )
}

/// What a start there is refused with.
async fn refused(broker: &Broker, group: &str, topic: &str, dir: &Path) -> String {
    Member::start(consumer(&broker.bootstrap(), group, topic, dir))
        .failure()
        .await
}

/// A store of that group, made by a consumer that ran and stopped.
async fn used(broker: &Broker, topic: &str, dir: &Path) {
    let brokers = broker.bootstrap();
    member::send(&brokers, topic, [Message::new(0, "one", "one")]).await;
    let member = Member::start(consumer(&brokers, topic, topic, dir));
    member::await_caught_up(&brokers, topic, topic);
    member.stop().await;
}

/// A file system in memory, unmounted when dropped.
struct Mounted(TempDir);

impl Mounted {
    fn new(options: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        let thread = std::thread::current();
        // Not `eprintln!`, which the test harness hides when a test passes.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {}: no file system can be mounted here",
            thread.name().unwrap_or("a test")
        );
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_takes_no_file_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let topic = topic(broker);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let text = refused(broker, &topic, &topic, &file).await;
    assert!(
        text.contains(&format!("state directory {} cannot be used", file.display())),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    for (options, why) in [("size=1m,ro", "Read-only"), ("size=16k", "No space left")] {
        let Some(mounted) = Mounted::new(options) else {
            continue;
        };
        let state = mounted
            .path()
            .join(if options.contains("ro") { "." } else { "state" });
        let text = refused(broker, &topic, &topic, &state).await;
        assert!(
            text.contains("cannot be used") && text.contains(why),
            "{options}: {text}"
        );
    }
}

/// The disk fills up under a running consumer: it stops with the reason, commits nothing that is not recorded, and when
/// there is room again the next start finishes everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_stops_the_consumer_and_loses_nothing() {
    const MESSAGES: i64 = 3_000;
    let Some(broker) = kafka::broker() else { return };
    let Some(mounted) = Mounted::new("size=64m") else {
        return;
    };
    let (brokers, topic) = (broker.bootstrap(), topic(broker));
    let effects = Effects::default();
    let group = topic.clone();
    let consumer = || {
        // Each outcome keeps a reply of 16 KiB.
        let topic = Topic::bytes(&topic, Idempotent)
            .state(effects.clone())
            .window(Window::hours(1));
        member::consumer(&brokers, &group, &mounted.path().join("state"))
            .with(|layer| layer.memory = Some(ByteCount::mib(16)))
            .handle_reply(topic, |payload: Bytes, cx: Context<Effects>| async move {
                let offset = cx.offset().0;
                member::handle(payload, cx).await?;
                let mut random = fastrand::Rng::with_seed(offset as u64);
                Ok(Reply::bytes(
                    (0..16 << 10).map(|_| random.u8(..)).collect::<Vec<_>>(),
                ))
            })
    };
    let first = Member::start(consumer());
    member::send(
        &brokers,
        &topic,
        (0..10).map(|n| Message::new(0, format!("{n}"), "quick")),
    )
    .await;
    member::await_caught_up(&brokers, &topic, &topic);
    let filler = mounted.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[7; 64 << 10]).is_ok() {}
    member::send(
        &brokers,
        &topic,
        (10..MESSAGES).map(|n| Message::new(0, format!("{n}"), "quick")),
    )
    .await;
    let text = first.failure().await;
    assert!(
        text.contains("a durable write failed, hapax stopped") && text.contains("No space left"),
        "{text}"
    );
    let (next, _) = &member::committed(&brokers, &topic, &topic)[&0];
    assert!(*next < MESSAGES, "{next} were committed");

    std::fs::remove_file(&filler).unwrap();
    let big = Command::new("mount")
        .args(["-o", "remount,size=512m"])
        .arg(mounted.path())
        .status();
    assert!(big.unwrap().success());
    let second = Member::start(consumer());
    member::await_caught_up(&brokers, &topic, &topic);
    second.stop().await;
    let mut offsets: Vec<i64> = effects.finished().iter().map(|call| call.offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets, (0..MESSAGES).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_by_another_process_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let topic = topic(broker);
    let dir = TempDir::new().unwrap();
    let orders = Orders {
        brokers: broker.bootstrap(),
        topic: topic.clone(),
        dir: dir.path().to_owned(),
        class: NonIdempotent,
    };
    member::send(&orders.brokers, &topic, [Message::new(0, "one", "one")]).await;
    let other = frozen::start(&orders);
    eventually("the other process at work", 2 * SOON, || {
        (!orders.starts().is_empty()).then_some(())
    });
    let text = refused(broker, &topic, &topic, &dir.path().join("state")).await;
    assert!(
        text.contains("is in use by another process") && text.contains("`state_dir` of its own"),
        "{text}"
    );
    member::await_caught_up(&orders.brokers, &topic, &topic);
    other.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_group_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (topic(broker), TempDir::new().unwrap());
    used(broker, &topic, dir.path()).await;
    let text = refused(broker, "another-group", &topic, dir.path()).await;
    assert!(
        text.contains(&format!("belongs to group {topic:?}, not \"another-group\"")),
        "{text}"
    );
    assert!(text.contains("`state_dir` of its own"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_cluster_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (topic(broker), TempDir::new().unwrap());
    used(broker, &topic, dir.path()).await;
    let other = rdkafka::mocking::MockCluster::new(1).unwrap();
    for name in [topic.clone(), format!("{topic}.dead-letters")] {
        other.create_topic(&name, 1, 1).unwrap();
    }
    let text = Member::start(consumer(&other.bootstrap_servers(), &topic, &topic, dir.path()))
        .failure()
        .await;
    assert!(text.contains("belongs to cluster"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_refused_and_left_as_it_is() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (topic(broker), TempDir::new().unwrap());
    used(broker, &topic, dir.path()).await;
    let manifest = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("MANIFEST")
        })
        .unwrap();
    let mut bytes = std::fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0x5a);
    std::fs::write(&manifest, &bytes).unwrap();
    let text = refused(broker, &topic, &topic, dir.path()).await;
    assert!(
        text.contains("is corrupt") && text.contains("nothing was changed"),
        "{text}"
    );
    assert_eq!(std::fs::read(&manifest).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_later_version_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, dir) = (topic(broker), TempDir::new().unwrap());
    used(broker, &topic, dir.path()).await;
    {
        let options = rocksdb::Options::default();
        let families = rocksdb::DB::list_cf(&options, dir.path()).unwrap();
        let db = rocksdb::DB::open_cf(&options, dir.path(), families).unwrap();
        let meta = db.cf_handle("meta").unwrap();
        db.put_cf(&meta, "format", "2").unwrap();
    }
    let text = refused(broker, &topic, &topic, dir.path()).await;
    assert!(
        text.contains("has format 2, this hapax reads up to 1; run the version that wrote it"),
        "{text}"
    );
}
