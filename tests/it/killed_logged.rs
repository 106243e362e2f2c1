//! A store that is killed while it takes what a changelog has made durable comes back as it was after some earlier
//! group: the changes, their offset in the changelog, and this of all partitions alike.
//!
//! Method: the owner is a child process, this same test binary started for [`child`]. It has the least memory there is, so
//! that RocksDB flushes by itself all the time; it flushes by request as well, clears a partition, and writes what goes
//! through the log of the store. It is killed by SIGKILL after a seeded number of groups, and goes on from what it finds.
//!
//! Seen to fail without `atomic_flush`, with families flushed by one call each, with `apply` through the log of the store,
//! and with the changelog's offset in a batch of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hapax::config::Durability;
use hapax::fence::Fence;
use hapax::message::{NextOffset, Offset};
use hapax::outcome::{Closed, End, Open, Stage, Stored};
use hapax::store::rocks::RocksStore;
use hapax::store::{AuditEntry, Changes, Known, PartitionId, Position, Store, TopicSpec};
use hapax::token::TokenKey;

const LIVES: u32 = 24;
/// Closed tokens of one group in one partition.
const BATCH: i64 = 400;
/// Groups of one bucket.
const BUCKET: i64 = 150;
/// Every so many groups the last partition is cleared.
const CLEAR: i64 = 40;
/// Every so many groups something is made durable at once.
const FLUSH: i64 = 7;

fn topics() -> [TopicSpec; 2] {
    ["orders", "refunds"].map(|name| TopicSpec {
        name: name.into(),
        window_ms: 4_000,
    })
}

fn open(dir: &Path, durability: Durability) -> RocksStore {
    RocksStore::open(dir, "billing", &topics(), 16 << 20, durability).unwrap()
}

/// Two that only grow, in two topics, and one that is cleared at times.
fn partitions(store: &RocksStore) -> [PartitionId; 3] {
    [("orders", 0), ("refunds", 3), ("orders", 1)].map(|(topic, partition)| PartitionId {
        topic: store.topic(topic).unwrap(),
        partition,
    })
}

fn key(number: i64) -> TokenKey {
    let [a, b] = [0x9e37_79b9_7f4a_7c15, 0xd134_2543_de82_ef95].map(|odd| (number as u64).wrapping_mul(odd));
    TokenKey((u128::from(a) << 64 | u128::from(b)).to_be_bytes())
}

/// The tokens that a group closes.
fn closes(group: i64) -> impl Iterator<Item = TokenKey> {
    (group * BATCH..(group + 1) * BATCH).map(key)
}

fn begun(group: i64) -> Open {
    Open {
        keys: vec![key(-group)],
        offset: Offset(group),
        stage: Stage::Begun {
            not_applied: false,
            message: None,
        },
        first_seen_ms: 0,
        attempts: 1,
        since_ms: 0,
        fingerprint: None,
    }
}

fn position(group: i64) -> Position {
    Position {
        commit_point: NextOffset(group),
        time_ms: Some(group),
        acknowledged_ms: None,
        written_ms: 0,
    }
}

/// What a group does in one partition. After it the changelog's next offset is its number.
fn changes(at: PartitionId, group: i64) -> Changes {
    let closed = closes(group).map(|key| {
        let closed = Closed {
            end: End::Done(Stored::Nothing),
            offset: Offset(group),
            first_seen_ms: group / BUCKET * 1_000,
            attempts: 1,
            fingerprint: None,
        };
        (key, closed)
    });
    Changes {
        closed: closed.collect(),
        removed: vec![(key(1 - group), Offset(group - 1))],
        opened: vec![begun(group)],
        position: Some(position(group)),
        fence: Some(Fence(group as u64)),
        ..Changes::new(at)
    }
}

fn act(group: i64) -> AuditEntry {
    AuditEntry {
        at_ms: group,
        act: "resolve --done".into(),
        topic: "orders".into(),
        partition: 0,
        offset: group,
        token: String::new(),
        reason: String::new(),
        by: String::new(),
    }
}

/// Runs in the child, until it is killed.
#[test]
#[ignore = "started by the test below"]
fn child() {
    let Some(dir) = std::env::var_os("IT_DIR") else {
        return;
    };
    let durability = match std::env::var("IT_DURABILITY").unwrap().as_str() {
        "local" => Durability::Local,
        _ => Durability::Replicated,
    };
    let store = open(Path::new(&dir), durability);
    let partitions = partitions(&store);
    let mut said = std::io::stdout();
    let from = store.load(partitions[0]).unwrap().changelog.unwrap_or(0);
    for group in from + 1.. {
        if group % CLEAR == 0 {
            store.clear(partitions[2]).unwrap();
        }
        let logged = partitions.map(|at| (at, group));
        let all = partitions.map(|at| changes(at, group));
        let has_copy = |at: &PartitionId| store.load(*at).unwrap().changelog.is_some();
        if partitions.iter().all(has_copy) {
            store.apply_logged(&all, &logged).unwrap();
        } else {
            store.apply_restored(&all, &logged).unwrap();
        }
        // A line is one write: it says that the group is there, and that the flush below begins.
        said.write_all(format!("group {group}\n").as_bytes()).unwrap();
        if group % FLUSH == 0 {
            // Says again what is so already.
            let again = Changes {
                position: Some(position(group)),
                fence: Some(Fence(group as u64)),
                opened: vec![begun(group)],
                ..Changes::new(partitions[0])
            };
            store.apply(&[again]).unwrap();
        }
        if group % 11 == 0 {
            store.audit(&act(group)).unwrap();
        }
    }
}

/// The child, killed with the test that started it.
struct Owner(Child);

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets the owner run for so many groups, in every second life until it flushes, and kills it a moment later. Returns the
/// last group that it said it had written.
fn live(dir: &Path, durability: Durability, random: &mut fastrand::Rng) -> i64 {
    let mut owner = Owner(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_logged::child", "--ignored", "--nocapture"])
            .env("IT_DIR", dir)
            .env("IT_DURABILITY", durability.name())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let lines = BufReader::new(owner.0.stdout.take().unwrap()).lines();
    let mut numbers = lines.map_while(Result::ok).filter_map(|line| {
        let number = line.rsplit_once("group ")?.1;
        number.parse().ok()
    });
    let groups = random.usize(1..120);
    let mut last: i64 = numbers.by_ref().take(groups).last().unwrap();
    if random.bool() {
        last = numbers.by_ref().find(|number| number % FLUSH == 0).unwrap();
    }
    // Not waiting for anything: the moment of the fault.
    let moment = Duration::from_micros(random.u64(0..6_000));
    #[expect(clippy::disallowed_methods, reason = "the moment of a fault is no wait")]
    std::thread::sleep(moment);
    owner.0.kill().unwrap();
    // What it said between.
    let last = numbers.last().unwrap_or(last);
    owner.0.wait().unwrap();
    last
}

fn found(store: &RocksStore, at: PartitionId, group: i64) -> usize {
    let mut hits = Vec::new();
    let keys: Vec<TokenKey> = closes(group).collect();
    store.look_up(at, i64::MIN, &keys, &mut hits).unwrap();
    hits.len()
}

/// Checks that the store is as it was after one group, and returns that group.
fn agrees(store: &RocksStore, said: i64) -> i64 {
    let partitions = partitions(store);
    let known = partitions.map(|at| store.load(at).unwrap());
    let group = known[0].changelog.unwrap_or(0);
    assert!(group <= said + 1, "{group} of {said}");
    if group == 0 {
        return 0;
    }
    for (at, known) in partitions.into_iter().zip(known) {
        // Between the clear and the group that follows it.
        let cleared = at == partitions[2] && (group + 1) % CLEAR == 0 && known == Known::default();
        if cleared {
            assert!((1..said + 3).all(|of| found(store, at, of) == 0));
            continue;
        }
        assert_eq!(known.changelog, Some(group), "{at:?}");
        assert_eq!(known.position, Some(position(group)), "{at:?} at {group}");
        assert_eq!(known.fence, group as u64, "{at:?}");
        assert_eq!(known.open, [begun(group)], "{at:?}");
        let first = if at == partitions[2] {
            (group / CLEAR * CLEAR).max(1)
        } else {
            1
        };
        let expected: RangeInclusive<i64> = first..=group;
        // The last ones, those that may have been lost, and of the others some.
        for of in (1..said + 3).filter(|of| *of > group - 5 || of % 7 == 0) {
            let closed = if expected.contains(&of) { BATCH as usize } else { 0 };
            assert_eq!(found(store, at, of), closed, "group {of} in {at:?} at {group}");
        }
    }
    let acts = store.audited().unwrap();
    assert!(
        acts.windows(2).all(|two| two[0].at_ms <= two[1].at_ms),
        "{acts:?}"
    );
    group
}

/// Kills one store again and again; returns after how many lives something was lost, and the last group.
fn campaign(durability: Durability, seed: u64) -> (u32, i64) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut losses, mut last) = (0, 0);
    for life in 1..=LIVES {
        let said = live(dir.path(), durability, &mut random);
        let store = RocksStore::open_existing_for_cli(dir.path()).unwrap();
        assert_eq!(store.past().unclean, life);
        let group = agrees(&store, said);
        assert!(group >= last, "{group} after {last}: what was durable is gone");
        losses += u32::from(group < said);
        last = group;
    }
    let store = open(dir.path(), durability);
    assert_eq!(store.past().unclean, LIVES);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), durability);
    assert_eq!(store.past().unclean, 0);
    assert_eq!(agrees(&store, last), last);
    (losses, last)
}

#[test]
fn a_replicated_store_comes_back_as_it_was_after_some_group() {
    let (losses, last) = campaign(Durability::Replicated, 4);
    assert!(losses > 0, "a campaign that loses nothing shows nothing");
    assert!(last > 0, "nothing was ever flushed");
}

#[test]
fn a_local_store_loses_nothing_to_a_kill() {
    let (losses, last) = campaign(Durability::Local, 4);
    assert_eq!(losses, 0);
    assert!(last > 0);
}
