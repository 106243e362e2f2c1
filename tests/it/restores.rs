//! The disk of a replicated member is a copy, and the changelog wins over it: from whatever copy a member starts, an older
//! one, a damaged one or none, it knows what the newest knows. A copy of somebody else's store is refused.
//!
//! Method: a member runs in rounds on a real Kafka, and between two of them another one that has a disk of its own. Its
//! directory is copied while it runs and once it has stopped, and copies are damaged. Then a member starts from each copy:
//! every token that was ever done is sent again, and has to be suppressed; what is open in its store afterwards has to be
//! what is open in the newest. How much each had to read is taken from what it says, and printed.
//!
//! Seen to fail: the damage that only a look-up meets, while the runtime left the copy where it was (`runtime/opening.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hapax::accounts::Account;
use hapax::config::Durability;
use hapax::outcome::Open;
use hapax::store::rocks::RocksStore;
use hapax::store::{PartitionId, Store as _, TopicSpec};
use hapax::{Consumer, NonIdempotent, Topic, Window};
use tempfile::TempDir;

use crate::kafka::{self, Broker};
use crate::member::{self, Effects, Member, Message};

const PARTITIONS: i32 = 2;
const ROUNDS: i32 = 4;
/// New tokens of a round, for each of the two members.
const TOKENS: i32 = 120;

struct Fleet {
    brokers: String,
    topic: String,
}

impl Fleet {
    fn new(broker: &Broker) -> Self {
        let topic = kafka::unique("restores");
        member::create_topic(broker, &topic, PARTITIONS, &[]);
        Self {
            brokers: broker.bootstrap(),
            topic,
        }
    }

    fn consumer(&self, group: &str, dir: &Path, durability: Durability, effects: &Effects) -> Consumer {
        member::consumer(&self.brokers, group, dir)
            .with(|layer| layer.durability = Some(durability))
            .handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(effects.clone())
                    .window(Window::hours(1)),
                member::handle,
            )
    }

    fn start(&self, dir: &Path, effects: &Effects) -> Member {
        Member::start(self.consumer(&self.topic, dir, Durability::Replicated, effects))
    }

    async fn send(&self, tokens: std::ops::Range<i32>, say: &str) {
        let messages =
            tokens.map(|n| Message::new(n % PARTITIONS, format!("{say}-{n}"), format!("{say}-{n}")));
        member::send(&self.brokers, &self.topic, messages).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.brokers, &self.topic, &self.topic);
    }

    /// New tokens, and two that stay open: what they have applied, nobody knows.
    async fn round(&self, number: i32) {
        let from = number * TOKENS;
        self.send(from..from + TOKENS, "done").await;
        self.send(from..from + 2, "fail").await;
        self.caught_up();
    }

    fn spec(&self) -> TopicSpec {
        TopicSpec {
            name: self.topic.clone(),
            window_ms: 3_600_000,
        }
    }

    /// What a stopped member's disk has open, with the bytes of what is held.
    fn open(&self, dir: &Path) -> BTreeMap<PartitionId, Vec<Open>> {
        let store =
            RocksStore::open(dir, &self.topic, &[self.spec()], 32 << 20, Durability::Replicated).unwrap();
        let ids = store.partitions().unwrap();
        let open = ids.into_iter().map(|id| (id, store.load(id).unwrap().open));
        let open = open.collect();
        store.close().unwrap();
        open
    }

    /// Frames and records that were read from the changelog, by every restore so far.
    fn read(&self) -> (u64, u64) {
        let changelog = format!("{0}.{0}.hapax", self.topic);
        let said = crate::events::all(|said| {
            said.field("changelog") == changelog && said.text().starts_with("restored from the changelog")
        });
        let sum = |field| {
            said.iter()
                .map(|said| said.field(field).parse::<u64>().unwrap())
                .sum()
        };
        (sum("frames"), sum("records"))
    }
}

/// As `cp -r` does it beside a process that writes: what is gone in the middle is not there.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match std::fs::copy(entry.path(), to.join(entry.file_name())) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => drop(copied.unwrap()),
        }
    }
}

fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| wanted(&path.file_name().unwrap().to_string_lossy()))
        .collect();
    found.sort();
    found
}

fn tables(dir: &Path) -> Vec<PathBuf> {
    files(dir, |name| name.ends_with(".sst"))
}

/// Tables of closed records: nothing of them is read before a token is looked up.
fn tables_of_records(dir: &Path) -> Vec<PathBuf> {
    let options = rocksdb::Options::default();
    let families = rocksdb::DB::list_cf(&options, dir).unwrap();
    let db = rocksdb::DB::open_cf_for_read_only(&options, dir, families, false).unwrap();
    let kept = ["default", "meta", "open", "audit"];
    let live = db.live_files().unwrap().into_iter();
    live.filter(|file| !kept.contains(&file.column_family_name.as_str()))
        .map(|file| dir.join(file.name.trim_start_matches('/')))
        .collect()
}

fn cut(path: &Path, part: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length / part * (part - 1)).unwrap();
}

/// Overwrites the first data block.
fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let end = bytes.len().min(64);
    bytes[..end].fill(0x5a);
    std::fs::write(path, bytes).unwrap();
}

type Damage = fn(&Path);

/// Damages of a copy, each with its name.
const DAMAGES: [(&str, Damage); 8] = [
    ("empty", |dir| std::fs::remove_dir_all(dir).unwrap()),
    ("without CURRENT", |dir| {
        std::fs::remove_file(dir.join("CURRENT")).unwrap()
    }),
    ("CURRENT empty", |dir| {
        std::fs::write(dir.join("CURRENT"), "").unwrap()
    }),
    ("manifest cut", |dir| {
        files(dir, |name| name.starts_with("MANIFEST"))
            .iter()
            .for_each(|path| cut(path, 2))
    }),
    ("a table gone", |dir| {
        std::fs::remove_file(&tables(dir)[0]).unwrap()
    }),
    ("a table cut", |dir| cut(&tables(dir)[0], 4)),
    ("tables spoilt", |dir| {
        tables(dir).iter().for_each(|path| spoil(path))
    }),
    ("all files empty", |dir| {
        files(dir, |_| true)
            .iter()
            .for_each(|path| std::fs::write(path, "").unwrap())
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn from_whatever_copy_a_member_starts_it_knows_what_the_newest_knows() {
    let Some(broker) = kafka::broker() else { return };
    crate::events::listen();
    let fleet = Fleet::new(broker);
    let effects = Effects::default();
    let scratch = TempDir::new().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let mut copies: Vec<String> = Vec::new();
    for round in 0..ROUNDS {
        let member = fleet.start(&at("one"), &effects);
        fleet.round(2 * round).await;
        copies.push(format!("running {round}"));
        copy(&at("one"), &at(&format!("running {round}")));
        member.stop().await;
        copies.push(format!("stopped {round}"));
        copy(&at("one"), &at(&format!("stopped {round}")));
        if round + 1 < ROUNDS {
            let other = fleet.start(&at("other"), &effects);
            fleet.round(2 * round + 1).await;
            other.stop().await;
        }
    }
    for (name, damage) in DAMAGES {
        copy(&at("one"), &at(name));
        damage(&at(name));
        copies.push(name.to_owned());
    }
    let tokens = (2 * ROUNDS - 1) * TOKENS;
    assert_eq!(effects.finished().len(), usize::try_from(tokens).unwrap());
    let started = effects.started().len();
    let newest = fleet.open(&at("one"));
    let held: usize = newest.values().map(Vec::len).sum();
    assert_eq!(held, usize::try_from(2 * (2 * ROUNDS - 1)).unwrap());

    let mut read = BTreeMap::new();
    for name in &copies {
        let before = fleet.read();
        let member = fleet.start(&at(name), &effects);
        fleet.send(0..tokens, "done").await;
        fleet.caught_up();
        let summary = member.stop().await;
        let after = fleet.read();
        let (frames, records) = (after.0 - before.0, after.1 - before.1);
        println!("{name:16} read {frames:4} frames, {records:5} records");
        read.insert(name.as_str(), records);
        assert_eq!(
            (
                member::total(&summary, Account::Duplicate),
                effects.started().len()
            ),
            (u64::from(tokens.unsigned_abs()), started),
            "{name}: duplicates, and handlers started so far: {summary:?}"
        );
        assert_eq!(fleet.open(&at(name)), newest, "{name}");
    }
    // The younger the copy, the less is read; of what was whole, nothing is.
    let stopped: Vec<u64> = (0..ROUNDS)
        .map(|round| read[format!("stopped {round}").as_str()])
        .collect();
    assert!(
        stopped.is_sorted_by(|older, younger| older > younger),
        "{stopped:?}"
    );
    assert_eq!(stopped.last(), Some(&0));
    for round in 0..ROUNDS {
        assert!(read[format!("running {round}").as_str()] <= read["empty"]);
    }
    assert!(read["empty"] > stopped[0], "{read:?}");
    for name in [
        "without CURRENT",
        "CURRENT empty",
        "a table gone",
        "a table cut",
        "tables spoilt",
    ] {
        assert_eq!(read[name], read["empty"], "{name}: all of it is read anew");
    }
}

/// Damage that nothing meets before a token is looked up: the member stops, says so, and puts the copy out of its way, so
/// that the next start reads it anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_turns_out_to_be_damaged_is_read_anew_by_the_next_start() {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker);
    let (effects, dir) = (Effects::default(), TempDir::new().unwrap());
    let state = dir.path().join("state");
    let member = fleet.start(&state, &effects);
    fleet.round(0).await;
    member.stop().await;
    let (started, newest) = (effects.started().len(), fleet.open(&state));
    let spoilt = tables_of_records(&state);
    assert!(!spoilt.is_empty());
    spoilt.iter().for_each(|path| spoil(path));

    let member = fleet.start(&state, &effects);
    fleet.send(0..TOKENS, "done").await;
    let error = member.failure().await;
    assert!(
        error.contains("is corrupt") && error.contains("the next start reads"),
        "{error}"
    );
    let member = fleet.start(&state, &effects);
    fleet.caught_up();
    member.stop().await;
    assert_eq!(effects.started().len(), started, "every duplicate was suppressed");
    assert_eq!(fleet.open(&state), newest);
    assert!(
        dir.path().join("state.corrupt").is_dir(),
        "kept for whoever wants to know why"
    );
}

/// A store of another group, of another cluster, and one that was filled in `local` mode: each refused, and whole afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_another_store_is_refused_and_stays_whole() {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker);
    let (effects, dirs) = (Effects::default(), TempDir::new().unwrap());
    let (replicated, local) = (dirs.path().join("replicated"), dirs.path().join("local"));
    let member = fleet.start(&replicated, &effects);
    fleet.round(0).await;
    member.stop().await;
    let group = format!("{}-local", fleet.topic);
    let member = Member::start(fleet.consumer(&group, &local, Durability::Local, &effects));
    member::await_caught_up(&fleet.brokers, &group, &fleet.topic);
    member.stop().await;

    let mock = rdkafka::mocking::MockCluster::new(1).unwrap();
    for name in [fleet.topic.clone(), format!("{}.dead-letters", fleet.topic)] {
        mock.create_topic(&name, 1, 1).unwrap();
    }
    let elsewhere = Fleet {
        brokers: mock.bootstrap_servers(),
        topic: fleet.topic.clone(),
    };
    let started = effects.started().len();
    let mode = Durability::Replicated;
    let refused = [
        (
            fleet.consumer("another-group", &replicated, mode, &effects),
            "belongs to group",
        ),
        (
            elsewhere.consumer(&fleet.topic, &replicated, mode, &effects),
            "belongs to cluster",
        ),
        (fleet.consumer(&group, &local, mode, &effects), "\"local\""),
    ];
    for (consumer, why) in refused {
        let error = Member::start(consumer).failure().await;
        assert!(error.contains(why), "{why}: {error}");
    }
    assert!(
        files(dirs.path(), |name| name.ends_with(".corrupt")).is_empty(),
        "nothing was set aside"
    );
    // And each one's own member goes on with it.
    let whole = [
        Member::start(fleet.consumer(&fleet.topic, &replicated, mode, &effects)),
        Member::start(fleet.consumer(&group, &local, Durability::Local, &effects)),
    ];
    fleet.send(0..TOKENS, "done").await;
    fleet.caught_up();
    member::await_caught_up(&fleet.brokers, &group, &fleet.topic);
    for member in whole {
        let summary = member.stop().await;
        assert_eq!(
            member::total(&summary, Account::Duplicate),
            u64::from(TOKENS.unsigned_abs())
        );
    }
    assert_eq!(effects.started().len(), started);
}
