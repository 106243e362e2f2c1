//! A store filled as in service: unique tokens, in the order of log time, in batches that are synced one by one.

use std::path::Path;

use hapax::config::Durability;
use hapax::message::{NextOffset, Offset};
use hapax::outcome::{Closed, End, Stored};
use hapax::store::rocks::RocksStore;
use hapax::store::{Changes, Error, PartitionId, Position, Store as _, TopicSpec};
use hapax::token::TokenKey;

/// The topic that the store is filled for.
pub(crate) const TOPIC: &str = "bench";
/// Its partitions.
pub(crate) const PARTITIONS: i32 = 4;
/// Its window: 24 h, in buckets of six.
pub(crate) const WINDOW_MS: i64 = 24 * HOUR_MS;
const HOUR_MS: i64 = 3_600_000;
/// The middle of a bucket: a window that starts here reaches into five of them.
const START_MS: i64 = 1_800_000_000_000 / (6 * HOUR_MS) * (6 * HOUR_MS) + 3 * HOUR_MS;
/// Records of one sync.
const BATCH: u64 = 8_192;
/// The default of `memory`.
const MEMORY_BYTES: u64 = 256 << 20;

/// Opens the store in `dir`, or makes it.
pub(crate) fn open(dir: &Path) -> Result<RocksStore, Error> {
    open_in(dir, Durability::Local)
}

/// The same in a durability mode.
pub(crate) fn open_in(dir: &Path, durability: Durability) -> Result<RocksStore, Error> {
    let topic = TopicSpec {
        name: TOPIC.to_owned(),
        window_ms: WINDOW_MS,
    };
    RocksStore::open(dir, "bench", &[topic], MEMORY_BYTES, durability)
}

/// One partition of the topic.
pub(crate) fn partition(store: &RocksStore, number: i32) -> Result<PartitionId, Error> {
    let topic = store.topic(TOPIC)?;
    Ok(PartitionId {
        topic,
        partition: number,
    })
}

/// The key of the token of that number: spread over all 128 bits as a hash is, and no two alike.
pub(crate) fn key(number: u64) -> TokenKey {
    let high = mix(number);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_be_bytes());
    bytes[8..].copy_from_slice(&mix(high ^ 0x9E37_79B9_7F4A_7C15).to_be_bytes());
    TokenKey(bytes)
}

/// A bijection on 64 bits.
pub(crate) fn mix(mut word: u64) -> u64 {
    for _ in 0..2 {
        word = (word ^ (word >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    }
    word ^ (word >> 32)
}

/// The partition that the token of that number belongs to.
pub(crate) const fn home(number: u64) -> i32 {
    (number % PARTITIONS as u64) as i32
}

/// A plain `Done`, as an idempotent handler without a reply leaves it.
pub(crate) const fn done(offset: i64, first_seen_ms: i64) -> Closed {
    Closed {
        end: End::Done(Stored::Nothing),
        offset: Offset(offset),
        first_seen_ms,
        attempts: 1,
        fingerprint: None,
    }
}

/// How log time runs while the store is filled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    tokens: u64,
    span_ms: i64,
}

impl Span {
    /// `tokens` spread evenly over as much time as fills one bucket or five.
    pub(crate) const fn new(tokens: u64, buckets: usize) -> Self {
        let span_ms = match buckets {
            1 => HOUR_MS,
            5 => WINDOW_MS,
            _ => panic!("a window of four quarters has one live bucket or five"),
        };
        Self { tokens, span_ms }
    }

    /// When the token of that number is first seen; of the number after the last, the end of the span.
    pub(crate) const fn at_ms(self, number: u64) -> i64 {
        START_MS + (self.span_ms as u64 * number / self.tokens) as i64
    }
}

/// Writes all tokens of the span, each batch over all partitions, with its positions.
pub(crate) fn fill(store: &RocksStore, span: Span) -> Result<(), Error> {
    let mut from = 0;
    while from < span.tokens {
        let to = span.tokens.min(from + BATCH);
        let group = (0..PARTITIONS).map(|number| {
            let mut changes = Changes::new(partition(store, number)?);
            let ours = (from..to).filter(|token| home(*token) == number);
            changes.closed = ours
                .map(|token| {
                    let offset = (token / PARTITIONS as u64) as i64;
                    (key(token), done(offset, span.at_ms(token)))
                })
                .collect();
            changes.position = Some(Position {
                commit_point: NextOffset((to / PARTITIONS as u64) as i64),
                time_ms: Some(span.at_ms(to)),
                written_ms: span.at_ms(to),
                acknowledged_ms: None,
            });
            Ok(changes)
        });
        store.apply(&group.collect::<Result<Vec<_>, Error>>()?)?;
        from = to;
    }
    Ok(())
}
