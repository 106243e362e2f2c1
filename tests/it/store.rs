//! The store: the claims of the conformance suite on both stores, and the model test.
//!
//! The oracle is the memory store.

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
    LookUp(PartitionId, i64, Vec<TokenKey>),
    Drop(TopicId, i64),
    Forget(PartitionId),
    Restart { closed: bool, window_ms: i64 },
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
            partition,
            closed,
            removed,
            opened,
            position,
            fence,
        })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(changes(), 0..4).prop_map(Step::Apply),
        8 => (partitions(), moments(), prop::collection::vec(keys(), 0..20))
            .prop_map(|(partition, since_ms, keys)| Step::LookUp(partition, since_ms, keys)),
        1 => (0u16..2, moments()).prop_map(|(topic, until_ms)| Step::Drop(TopicId(topic), until_ms)),
        1 => partitions().prop_map(Step::Forget),
        1 => (any::<bool>(), prop::sample::select(vec![400i64, 160, 1_000]))
            .prop_map(|(closed, window_ms)| Step::Restart { closed, window_ms }),
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_on_disk_answers_as_the_simplest_one(steps in prop::collection::vec(steps(), 1..60)) {
        let (mut disk, mut memory) = (Disk::new(), Memory::default());
        let topics = |window_ms| [spec("orders", window_ms), spec("refunds", 400)];
        let mut on_disk = disk.start("billing", &topics(400)).unwrap();
        let mut in_memory = memory.start("billing", &topics(400)).unwrap();
        for step in steps {
            match step {
                Step::Apply(group) => {
                    on_disk.apply(&group).unwrap();
                    in_memory.apply(&group).unwrap();
                }
                Step::LookUp(partition, since_ms, keys) => prop_assert_eq!(
                    look_up(&on_disk, partition, since_ms, &keys),
                    look_up(&in_memory, partition, since_ms, &keys)
                ),
                Step::Drop(topic, until_ms) => prop_assert_eq!(
                    on_disk.drop_buckets(topic, until_ms).unwrap(),
                    in_memory.drop_buckets(topic, until_ms).unwrap()
                ),
                Step::Forget(partition) => {
                    on_disk.forget_position(partition).unwrap();
                    in_memory.forget_position(partition).unwrap();
                }
                Step::Restart { closed, window_ms } => {
                    if closed {
                        on_disk.close().unwrap();
                        in_memory.close().unwrap();
                    }
                    drop(on_disk);
                    on_disk = disk.start("billing", &topics(window_ms)).unwrap();
                    in_memory = memory.start("billing", &topics(window_ms)).unwrap();
                }
            }
        }
        compare(&on_disk, &in_memory);
    }
}
