//! What each step of a message costs by itself, without a broker: token, judge, record, ledger, record format, reopen.
//!
//! Stores hold 2 M tokens, in one live bucket or in five. A look-up asks for one batch of 1,024 keys, as a partition
//! task does. Keys and order are the same in every run.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench that cannot go on has no figure"
)]

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::OnceLock;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use hapax::config::Durability;
use hapax::ledger::{Admitted, CommitPoint, Ledger};
use hapax::message::{Batch, BatchBuilder, Header, NextOffset, Offset};
use hapax::record;
use hapax::store::rocks::RocksStore;
use hapax::store::{Changes, Hit, Store as _};
use hapax::token::{Extractor, Found, Reader, TokenKey};

mod filled;

/// Messages of a batch, as the poll thread takes them.
const BATCH: usize = 1_024;
/// Tokens of a store that is looked into.
const TOKENS: u64 = 2_000_000;
/// Batches that a bench goes through in turn, so that it does not ask for what it has just asked.
const TURNS: u64 = 256;

/// Where the stores are, removed at the end.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

fn main() {
    // Beside the build, not in the folder for temporary files: where that is memory, a sync costs nothing.
    let beside = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
    FOLDER.set(folder.path().to_owned()).unwrap();
    divan::main();
}

fn folder(name: &str) -> PathBuf {
    FOLDER.get().unwrap().join(name)
}

fn items() -> ItemsCount {
    ItemsCount::new(BATCH)
}

/// Messages as `benches/peers/streams/load.sh` makes them: a token of UUID shape, 200 bytes of JSON.
fn messages() -> Batch {
    let mut batch = BatchBuilder::new("bench".into(), 0, BATCH, 512 * BATCH);
    for number in 0..BATCH as u64 {
        let hex = filled::key(number).to_string();
        let token = format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        );
        let payload = format!(
            "{{\"number\":{number},\"token\":\"{token}\",\"note\":\"{:120}\"}}",
            hex
        );
        let header = Header {
            name: "idempotency-key",
            value: Some(token.as_bytes()),
        };
        let key = format!("key-{number}");
        batch.push(
            Offset(number as i64),
            Some(number as i64),
            Some(key.as_bytes()),
            Some(payload.as_bytes()),
            [header],
        );
    }
    batch.finish()
}

#[divan::bench(args = ["header", "key", "json"])]
fn token(bencher: Bencher<'_, '_>, source: &str) {
    let reader = match source {
        "header" => Reader::Header("idempotency-key".to_owned()),
        "key" => Reader::Key,
        _ => Reader::Json("/token".to_owned()),
    };
    let extractor = Extractor::new("bench", [reader], 512);
    let messages = messages();
    let mut keys = Vec::with_capacity(BATCH);
    bencher.counter(items()).bench_local(|| {
        keys.clear();
        for message in messages.iter() {
            assert_eq!(extractor.read(&message, &mut keys), Found::Tokens);
        }
        keys.len()
    });
}

/// A store of [`TOKENS`] in that many live buckets, as writing has left it: newest records in the write buffer.
fn store(buckets: usize) -> &'static RocksStore {
    static ONE: OnceLock<RocksStore> = OnceLock::new();
    static FIVE: OnceLock<RocksStore> = OnceLock::new();
    let cell = if buckets == 1 { &ONE } else { &FIVE };
    cell.get_or_init(|| {
        let store = filled::open(&folder(&format!("buckets-{buckets}"))).unwrap();
        filled::fill(&store, filled::Span::new(TOKENS, buckets)).unwrap();
        let size = store.window_size(store.topic(filled::TOPIC).unwrap()).unwrap();
        assert_eq!(size.buckets, buckets, "live buckets");
        store
    })
}

/// Looks up batches of partition 0, made of the numbers that `pick` gives; each key must be found, or none.
fn judge(bencher: Bencher<'_, '_>, buckets: usize, found: usize, pick: impl Fn(u64) -> u64) {
    let store = store(buckets);
    let partition = filled::partition(store, 0).unwrap();
    let since_ms = filled::Span::new(TOKENS, buckets).at_ms(TOKENS) - filled::WINDOW_MS;
    let batches: Vec<Vec<TokenKey>> = (0..TURNS)
        .map(|turn| {
            let numbers = turn * BATCH as u64..(turn + 1) * BATCH as u64;
            numbers.map(|number| filled::key(pick(number))).collect()
        })
        .collect();
    let mut turns = batches.iter().cycle();
    let mut hits: Vec<Hit> = Vec::with_capacity(BATCH);
    bencher.counter(items()).bench_local(|| {
        hits.clear();
        store
            .look_up(partition, since_ms, turns.next().unwrap(), &mut hits)
            .unwrap();
        assert_eq!(hits.len(), found, "of {BATCH} keys");
    });
}

#[divan::bench(args = [1, 5])]
fn judge_miss(bencher: Bencher<'_, '_>, buckets: usize) {
    judge(bencher, buckets, 0, |number| TOKENS + number);
}

/// Hits all over the window, so in every bucket alike.
#[divan::bench(args = [1, 5])]
fn judge_hit(bencher: Bencher<'_, '_>, buckets: usize) {
    let per_partition = TOKENS / filled::PARTITIONS as u64;
    judge(bencher, buckets, BATCH, |number| {
        filled::mix(number) % per_partition * filled::PARTITIONS as u64
    });
}

/// One group: 1,024 outcomes of one partition, one write, one sync.
#[divan::bench(sample_count = 300, sample_size = 1)]
fn record(bencher: Bencher<'_, '_>) {
    let store = filled::open(&folder("record")).unwrap();
    let partition = filled::partition(&store, 0).unwrap();
    let next = Cell::new(0);
    let group = || {
        let mut changes = Changes::new(partition);
        let from = next.replace(next.get() + BATCH as u64);
        changes.closed = (from..from + BATCH as u64)
            .map(|number| (filled::key(number), filled::done(number as i64, number as i64)))
            .collect();
        [changes]
    };
    bencher
        .counter(items())
        .with_inputs(group)
        .bench_local_values(|group| store.apply(&group).unwrap());
}

/// Admits a batch and completes it, in order or from the last to the first.
#[divan::bench(args = ["in order", "backwards"])]
fn ledger(bencher: Bencher<'_, '_>, order: &str) {
    let mut ledger = Ledger::new(CommitPoint {
        next: NextOffset(0),
        time_ms: None,
    });
    let mut slots = Vec::with_capacity(BATCH);
    let mut offset = 0;
    bencher.counter(items()).bench_local(|| {
        for _ in 0..BATCH {
            match ledger.admit(Offset(offset), offset) {
                Admitted::New(slot) => slots.push(slot),
                repeat => panic!("{offset}: {repeat:?}"),
            }
            offset += 1;
        }
        if order == "backwards" {
            slots.reverse();
        }
        slots.drain(..).for_each(|slot| ledger.complete(slot));
        assert_eq!(ledger.commit_point().next, NextOffset(offset));
    });
}

#[divan::bench]
fn encode(bencher: Bencher<'_, '_>) {
    let closed: Vec<_> = (0..BATCH as i64)
        .map(|n| filled::done(n << 10, n << 10))
        .collect();
    let mut out = Vec::with_capacity(64);
    bencher.counter(items()).bench_local(|| {
        for closed in &closed {
            out.clear();
            record::encode_closed(black_box(closed), 0, &mut out);
            black_box(&out);
        }
    });
}

#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let records: Vec<_> = (0..BATCH as i64)
        .map(|n| {
            let mut out = Vec::new();
            record::encode_closed(&filled::done(n << 10, n << 10), 0, &mut out);
            out
        })
        .collect();
    bencher.counter(items()).bench_local(|| {
        for record in &records {
            black_box(record::decode_closed(black_box(record), 0).unwrap());
        }
    });
}

/// Closed when dropped, which divan does after it has read the clock.
struct Opened(RocksStore);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.close().unwrap();
    }
}

/// Opens a store of 2 M tokens in five buckets that was closed, and loads its partitions.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn reopen(bencher: Bencher<'_, '_>) {
    let dir = folder("reopen");
    let store = Opened(filled::open(&dir).unwrap());
    filled::fill(&store.0, filled::Span::new(TOKENS, 5)).unwrap();
    drop(store);
    bencher.bench_local(|| {
        let store = Opened(filled::open(&dir).unwrap());
        for number in 0..filled::PARTITIONS {
            let known = store
                .0
                .load(filled::partition(&store.0, number).unwrap())
                .unwrap();
            assert!(
                known.position.is_some(),
                "partition {number} has lost its position"
            );
        }
        store
    });
}

/// Records of one call: so many are written one by one, or as sorted files.
#[divan::bench(args = [8_192, 262_144], sample_count = 3, sample_size = 1)]
fn restore(bencher: Bencher<'_, '_>, group: u64) {
    let dir = folder("restore");
    let span = filled::Span::new(TOKENS, 5);
    let input = || {
        let _ = std::fs::remove_dir_all(&dir);
        filled::open_in(&dir, Durability::Replicated).unwrap()
    };
    bencher
        .counter(ItemsCount::new(TOKENS as usize))
        .with_inputs(input)
        .bench_local_refs(|store| {
            let partition = filled::partition(store, 0).unwrap();
            for from in (0..TOKENS).step_by(group as usize) {
                let tokens = from..TOKENS.min(from + group);
                let mut changes = Changes::new(partition);
                changes.closed = tokens
                    .map(|token| (filled::key(token), filled::done(token as i64, span.at_ms(token))))
                    .collect();
                store
                    .apply_restored(&[changes], &[(partition, from as i64)])
                    .unwrap();
            }
            // All of it on the disk, and where the next start looks for it.
            store.close().unwrap();
        });
}
