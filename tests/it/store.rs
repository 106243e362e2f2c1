//! The store: the claims of the conformance suite on both stores, and the model test.
//!
//! The oracle is the memory store. A store on disk writes down what it has in memory when it is dropped, so a kill is
//! played by a copy of its directory, taken while it is open: that is what the next process would find.
//!
//! Seen to fail with each of these lines of the store on disk taken out: a range that `clear` deletes, its deletion of
//! the offset, that of `forget_position`, the flush of `close` and of `apply`, the look at the topics of the offsets,
//! the check of the durability mode, its default; and of the sorted files: which of two records rules, and the removal from
//! overlapped buckets.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use hapax::config::Durability;
use hapax::fence::Fence;
use hapax::message::{NextOffset, Offset};
use hapax::outcome::{Closed, End, Open, Reason, Stage, Stored};
use hapax::store::conformance::{self, Medium};
use hapax::store::memory::MemoryStore;
use hapax::store::rocks::RocksStore;
use hapax::store::{Changes, Error, Hit, PartitionId, Position, Store, TopicId, TopicSpec};
use hapax::token::TokenKey;
use proptest::prelude::*;
use tempfile::TempDir;

const MEMORY: u64 = 64 << 20;

#[derive(Default)]
struct Memory(Option<MemoryStore>);

impl Medium for Memory {
    type Store = MemoryStore;

    fn start(&mut self, group: &str, topics: &[TopicSpec]) -> Result<MemoryStore, Error> {
        let store = match self.0.take() {
            None => MemoryStore::new(group, topics),
            Some(earlier) => earlier.restart(topics),
        };
        self.0 = Some(store.clone());
        Ok(store)
    }
}

struct Disk(TempDir, Durability);

impl Disk {
    fn new() -> Self {
        Self(TempDir::new().unwrap(), Durability::Local)
    }

    fn replicated() -> Self {
        Self(TempDir::new().unwrap(), Durability::Replicated)
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }
}

impl Medium for Disk {
    type Store = RocksStore;

    fn start(&mut self, group: &str, topics: &[TopicSpec]) -> Result<RocksStore, Error> {
        RocksStore::open(self.dir(), group, topics, MEMORY, self.1)
    }

    fn kill(&mut self, store: RocksStore) {
        let left = copy(self.dir());
        drop(store);
        self.0 = left;
    }
}

/// The files of a store, by name and size. Its lock and its diary are no part of it.
fn files(dir: &Path) -> BTreeMap<OsString, u64> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| !entry.file_name().to_str().unwrap().starts_with("LO"))
        // One may go between the two questions.
        .filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.len())))
        .collect()
}

/// A copy of a store that is open. It is taken again where something changed meanwhile: a compaction, which ends.
fn copy(dir: &Path) -> TempDir {
    for _ in 0..10_000 {
        let copy = TempDir::new().unwrap();
        let before = files(dir);
        let copied = before
            .keys()
            .all(|name| std::fs::copy(dir.join(name), copy.path().join(name)).is_ok());
        if copied && files(dir) == before {
            return copy;
        }
        std::thread::yield_now();
    }
    panic!("{} does not come to rest", dir.display());
}

fn spec(name: &str, window_ms: i64) -> TopicSpec {
    TopicSpec {
        name: name.into(),
        window_ms,
    }
}

fn key(number: u64) -> TokenKey {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key[8..].copy_from_slice(&number.wrapping_mul(0xd134_2543_de82_ef95).to_be_bytes());
    TokenKey(key)
}

fn done(offset: i64, first_seen_ms: i64) -> Closed {
    Closed {
        end: End::Done(Stored::Nothing),
        offset: Offset(offset),
        first_seen_ms,
        attempts: 1,
        fingerprint: None,
    }
}

#[test]
fn the_memory_store_keeps_every_claim() {
    conformance::every_claim(Memory::default);
}

#[test]
fn the_store_on_disk_keeps_every_claim() {
    conformance::every_claim(Disk::new);
}

#[test]
fn the_store_of_a_replicated_consumer_keeps_every_claim() {
    conformance::every_claim(Disk::replicated);
}

// ---- The model test.

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<Changes>),
    Log(Vec<Changes>, i64),
    Clear(PartitionId),
    LookUp(PartitionId, i64, Vec<TokenKey>),
    Drop(TopicId, i64),
    Forget(PartitionId),
    Restart { end: Ending, window_ms: i64 },
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Close,
    Kill,
}

fn partitions() -> impl Strategy<Value = PartitionId> {
    (0u16..2, 0i32..3).prop_map(|(topic, partition)| PartitionId {
        topic: TopicId(topic),
        partition,
    })
}

/// Few, so that they meet.
fn keys() -> impl Strategy<Value = TokenKey> {
    (0u64..12).prop_map(key)
}

fn offsets() -> impl Strategy<Value = Offset> {
    (0i64..6).prop_map(Offset)
}

/// Over some ten buckets, on both sides of the epoch.
fn moments() -> impl Strategy<Value = i64> {
    -300i64..700
}

fn changes() -> impl Strategy<Value = Changes> {
    let ends = prop_oneof![
        4 => Just(End::Done(Stored::Nothing)),
        1 => Just(End::Done(Stored::Reply("reply".into()))),
        1 => Just(End::Failed(Reason::Crashed)),
        1 => Just(End::Forgotten),
    ];
    let closed = (keys(), ends, offsets(), moments()).prop_map(|(key, end, offset, first_seen_ms)| {
        let closed = Closed {
            end,
            ..done(offset.0, first_seen_ms)
        };
        (key, closed)
    });
    let opened =
        (prop::collection::vec(keys(), 1..3), offsets(), 0u32..4).prop_map(|(keys, offset, attempts)| Open {
            keys,
            offset,
            stage: Stage::Begun {
                not_applied: false,
                message: None,
            },
            first_seen_ms: 0,
            attempts,
            since_ms: 0,
            fingerprint: None,
        });
    let position = (offsets(), prop::option::of(moments())).prop_map(|(offset, time_ms)| Position {
        commit_point: NextOffset(offset.0),
        time_ms,
        acknowledged_ms: time_ms,
        written_ms: 9,
    });
    (
        partitions(),
        prop::collection::vec(closed, 0..6),
        prop::collection::vec((keys(), offsets()), 0..4),
        prop::collection::vec(opened, 0..4),
        prop::option::of(position),
        prop::option::of((1u64..9).prop_map(Fence)),
    )
        .prop_map(|(partition, closed, removed, opened, position, fence)| Changes {
            acts: Vec::new(),
            partition,
            closed,
            removed,
            opened,
            position,
            fence,
        })
}

fn steps(logged: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        10 - logged => prop::collection::vec(changes(), 0..4).prop_map(Step::Apply),
        logged => (prop::collection::vec(changes(), 0..4), 0i64..100)
            .prop_map(|(group, next)| Step::Log(group, next)),
        8 => (partitions(), moments(), prop::collection::vec(keys(), 0..20))
            .prop_map(|(partition, since_ms, keys)| Step::LookUp(partition, since_ms, keys)),
        1 => (0u16..2, moments()).prop_map(|(topic, until_ms)| Step::Drop(TopicId(topic), until_ms)),
        1 => partitions().prop_map(Step::Forget),
        1 => partitions().prop_map(Step::Clear),
        1 => (prop::sample::select(vec![Ending::Close, Ending::Kill]), prop::sample::select(vec![400i64, 160, 1_000]))
            .prop_map(|(end, window_ms)| Step::Restart { end, window_ms }),
    ]
}

fn look_up(store: &dyn Store, partition: PartitionId, since_ms: i64, keys: &[TokenKey]) -> Vec<Hit> {
    let mut hits = Vec::new();
    store.look_up(partition, since_ms, keys, &mut hits).unwrap();
    hits
}

/// Everything that can be asked of both, compared.
fn compare(disk: &dyn Store, memory: &dyn Store) {
    assert_eq!(disk.past(), memory.past());
    assert_eq!(disk.partitions().unwrap(), memory.partitions().unwrap());
    let all: Vec<TokenKey> = (0..12).map(key).collect();
    for topic in (0..2).map(TopicId) {
        let sizes = [disk, memory].map(|store| store.window_size(topic).unwrap());
        assert_eq!(
            (sizes[0].buckets, sizes[0].oldest_ms),
            (sizes[1].buckets, sizes[1].oldest_ms)
        );
        for partition in 0..3 {
            let at = PartitionId { topic, partition };
            assert_eq!(disk.load(at).unwrap(), memory.load(at).unwrap());
            assert_eq!(
                look_up(disk, at, i64::MIN, &all),
                look_up(memory, at, i64::MIN, &all)
            );
        }
    }
}

/// Plays the steps on both, and compares them after every restart and at the end.
///
/// A local store loses nothing to a kill, so there the oracle is told that all is durable.
fn play(steps: Vec<Step>, mut disk: Disk) {
    let mut memory = Memory::default();
    let topics = |window_ms| [spec("orders", window_ms), spec("refunds", 400)];
    let mut on_disk = disk.start("billing", &topics(400)).unwrap();
    let mut in_memory = memory.start("billing", &topics(400)).unwrap();
    for step in steps {
        match step {
            Step::Apply(group) => {
                on_disk.apply(&group).unwrap();
                in_memory.apply(&group).unwrap();
            }
            Step::Log(group, next) => {
                let logged: Vec<_> = group.iter().map(|changes| (changes.partition, next)).collect();
                // Into the copies that there are; each third makes those that there are not.
                if next % 3 == 0 {
                    on_disk.apply_restored(&group, &logged).unwrap();
                    in_memory.apply_restored(&group, &logged).unwrap();
                } else {
                    on_disk.apply_logged(&group, &logged).unwrap();
                    in_memory.apply_logged(&group, &logged).unwrap();
                }
            }
            Step::Clear(partition) => {
                on_disk.clear(partition).unwrap();
                in_memory.clear(partition).unwrap();
            }
            Step::LookUp(partition, since_ms, keys) => assert_eq!(
                look_up(&on_disk, partition, since_ms, &keys),
                look_up(&in_memory, partition, since_ms, &keys)
            ),
            Step::Drop(topic, until_ms) => assert_eq!(
                on_disk.drop_buckets(topic, until_ms).unwrap(),
                in_memory.drop_buckets(topic, until_ms).unwrap()
            ),
            Step::Forget(partition) => {
                on_disk.forget_position(partition).unwrap();
                in_memory.forget_position(partition).unwrap();
            }
            Step::Restart { end, window_ms } => {
                match end {
                    Ending::Close => {
                        on_disk.close().unwrap();
                        in_memory.close().unwrap();
                    }
                    Ending::Kill if disk.1 == Durability::Local => in_memory.flush(),
                    Ending::Kill => {}
                }
                // Also after a close: it has written down all of it.
                disk.kill(on_disk);
                on_disk = disk.start("billing", &topics(window_ms)).unwrap();
                in_memory = memory.start("billing", &topics(window_ms)).unwrap();
                compare(&on_disk, &in_memory);
            }
        }
    }
    compare(&on_disk, &in_memory);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_on_disk_answers_as_the_simplest_one(steps in prop::collection::vec(steps(2), 1..60)) {
        play(steps, Disk::new());
    }

    #[test]
    fn the_store_of_a_replicated_consumer_answers_as_the_simplest_one(
        steps in prop::collection::vec(steps(8), 1..60),
    ) {
        play(steps, Disk::replicated());
    }
}

/// Before anything is written, in both directions, also of a store that is older than the second mode.
#[test]
fn a_store_of_another_durability_mode_is_refused() {
    let modes = [Durability::Local, Durability::Replicated];
    for (made, asked) in modes.into_iter().zip(modes.into_iter().rev()) {
        let mut disk = Disk(TempDir::new().unwrap(), made);
        disk.start("billing", &[spec("orders", 400)]).unwrap();
        let before = files(disk.dir());
        disk.1 = asked;
        let refused = disk.start("billing", &[spec("orders", 400)]).unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(&refused, Error::Durability { found, asked: wanted, .. }
                if found == made.name() && wanted == asked.name()),
            "{text}"
        );
        assert!(text.contains("a `state_dir` of its own"), "{text}");
        assert_eq!(files(disk.dir()), before);
        disk.1 = made;
        let store = disk.start("billing", &[spec("orders", 400)]).unwrap();
        assert_eq!(store.past().unclean, 1, "the refused start does not count");
    }
}

#[test]
fn a_store_that_states_no_durability_mode_is_local() {
    let mut disk = Disk::new();
    drop(disk.start("billing", &[spec("orders", 400)]).unwrap());
    {
        let options = rocksdb::Options::default();
        let families = rocksdb::DB::list_cf(&options, disk.dir()).unwrap();
        let db = rocksdb::DB::open_cf(&options, disk.dir(), families).unwrap();
        let meta = db.cf_handle("meta").unwrap();
        assert!(db.get_cf(&meta, "durability").unwrap().is_some());
        db.delete_cf(&meta, "durability").unwrap();
    }
    disk.1 = Durability::Replicated;
    assert!(matches!(
        disk.start("billing", &[]),
        Err(Error::Durability { .. })
    ));
    disk.1 = Durability::Local;
    disk.start("billing", &[]).unwrap();
}

/// Groups so large that they are written as sorted files: the later record of a token rules, in a group and over
/// groups, also where it replaces one in a bucket of another length; what was cleared before stays away. After a kill
/// closed records may be ahead of the changelog's offset, and reading on from there ends with the same.
#[test]
fn large_groups_are_applied_as_small_ones() {
    const SEED: u64 = 11;
    println!("seed {SEED}");
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut disk = Disk::replicated();
    let mut memory = Memory::default();
    let partitions = [0, 1].map(|partition| PartitionId {
        topic: TopicId(0),
        partition,
    });
    let tokens: Vec<TokenKey> = (0..30_000).map(key).collect();
    let mut ahead = 0;
    for (round, window_ms) in [400, 400, 1_000, 400].into_iter().enumerate() {
        let topics = [spec("orders", window_ms)];
        let mut on_disk = disk.start("billing", &topics).unwrap();
        let in_memory = memory.start("billing", &topics).unwrap();
        let mut large = || {
            partitions.map(|at| Changes {
                closed: (0..40_000)
                    .map(|offset| {
                        let token = tokens[random.usize(..tokens.len())];
                        (token, done(offset + 100_000 * round as i64, random.i64(0..500)))
                    })
                    .collect(),
                position: Some(Position {
                    commit_point: NextOffset(round as i64),
                    time_ms: None,
                    acknowledged_ms: None,
                    written_ms: 0,
                }),
                ..Changes::new(at)
            })
        };
        let groups = [large(), large()];
        let small = partitions.map(|at| Changes {
            closed: tokens[..50]
                .iter()
                .map(|token| (*token, done(round as i64, 120)))
                .collect(),
            ..Changes::new(at)
        });
        let logged = |next| partitions.map(|at| (at, 10 * round as i64 + next));
        let replay = |store: &dyn Store, from: i64| {
            let steps = [(&groups[0], 1), (&small, 2), (&groups[1], 3)];
            for (group, next) in steps.into_iter().filter(|(_, next)| *next > from) {
                store.apply_restored(group, &logged(next)).unwrap();
            }
        };
        if round == 1 {
            for store in [&on_disk as &dyn Store, &in_memory] {
                store.clear(partitions[1]).unwrap();
            }
        }
        replay(&in_memory, 0);
        replay(&on_disk, 0);
        let same = |on_disk: &dyn Store| {
            for at in partitions {
                assert_eq!(on_disk.load(at).unwrap(), in_memory.load(at).unwrap());
                for since_ms in [i64::MIN, 150, 300] {
                    assert_eq!(
                        look_up(on_disk, at, since_ms, &tokens),
                        look_up(&in_memory, at, since_ms, &tokens),
                        "round {round}"
                    );
                }
            }
        };
        same(&on_disk);
        disk.kill(on_disk);
        on_disk = disk.start("billing", &topics).unwrap();
        let next = on_disk.load(partitions[0]).unwrap().changelog;
        assert_eq!(next, on_disk.load(partitions[1]).unwrap().changelog);
        ahead += u32::from(next != Some(10 * round as i64 + 3));
        if round == 1 && next.is_none_or(|next| next < 10) {
            on_disk.clear(partitions[1]).unwrap();
        }
        replay(&on_disk, next.map_or(0, |next| next - 10 * round as i64));
        same(&on_disk);
        on_disk.close().unwrap();
        in_memory.close().unwrap();
    }
    assert!(ahead > 0, "no kill lost anything");
}
