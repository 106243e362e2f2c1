//! What the store of a consumer that is not running says: what is in doubt, what is recorded.
//!
//! The same look that an operator has with `hapax held`: the directory is opened as a visitor, which counts neither as
//! a start nor as an end of the consumer.

use std::collections::BTreeMap;
use std::path::Path;

use super::books::Sent;
use super::{PARTITIONS, TOKEN_HEADER};
use crate::message::{BatchBuilder, Header, Offset};
use crate::outcome::{End, Reason, Stage};
use crate::store::rocks::RocksStore;
use crate::store::{Error, PartitionId, Store as _};
use crate::token::{Extractor, Found, Reader, TokenKey};

/// A token that is begun and has no outcome, and whoever began it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InDoubt {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// Attempts that were begun.
    pub(super) attempts: u32,
}

/// What a stopped store says.
#[derive(Debug, Default)]
pub(super) struct Stopped {
    pub(super) in_doubt: Vec<InDoubt>,
    /// Open for another reason: held, settling, or begun and known to have applied nothing.
    pub(super) open_otherwise: usize,
    /// Messages that are recorded and not yet committed: they will be delivered again.
    pub(super) redelivered: u64,
    /// Every token that has an outcome: done, or rejected. Another end is neither.
    pub(super) outcomes: BTreeMap<String, Option<Outcome>>,
}

/// The outcomes that a demo may end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Rejected,
}

/// Opens the store in `dir`, reads, and closes it again. `committed` has the broker's offset of each partition.
pub(super) fn look(dir: &Path, topic: &str, sent: &[Sent], committed: &[i64]) -> Result<Stopped, Error> {
    let store = RocksStore::open_existing_for_cli(dir)?;
    let id = store.topic(topic)?;
    let mut stopped = Stopped::default();
    for (partition, next) in (0..PARTITIONS).zip(committed) {
        let at = PartitionId { topic: id, partition };
        let mut settling = Vec::new();
        for open in store.load(at)?.open {
            match open.stage {
                Stage::Begun {
                    not_applied: false, ..
                } => stopped.in_doubt.push(InDoubt {
                    partition,
                    offset: open.offset.0,
                    attempts: open.attempts,
                }),
                stage => {
                    stopped.open_otherwise += 1;
                    if matches!(stage, Stage::Settling { .. }) {
                        settling.push(open.offset.0);
                    }
                }
            }
        }
        let here: Vec<&Sent> = sent.iter().filter(|sent| sent.partition == partition).collect();
        let mut hits = Vec::new();
        store.look_up(at, i64::MIN, &keys(topic, partition, &here), &mut hits)?;
        for hit in hits {
            let Some(message) = here.get(hit.key) else {
                continue;
            };
            let outcome = match hit.closed.end {
                End::Done(_) => Some(Outcome::Done),
                End::Failed(Reason::Rejected) => Some(Outcome::Rejected),
                _ => None,
            };
            stopped.outcomes.insert(message.token.clone(), outcome);
            if hit.closed.offset.0 == message.offset && message.offset >= *next {
                stopped.redelivered += 1;
            }
        }
        stopped.redelivered += settling.iter().filter(|offset| *offset >= next).count() as u64;
    }
    store.close()?;
    Ok(stopped)
}

/// The keys under which the store files the tokens of those messages.
fn keys(topic: &str, partition: i32, sent: &[&Sent]) -> Vec<TokenKey> {
    let mut batch = BatchBuilder::new(topic.into(), partition, sent.len(), sent.len() * 64);
    for message in sent {
        let header = Header {
            name: TOKEN_HEADER,
            value: Some(message.token.as_bytes()),
        };
        batch.push(Offset(message.offset), None, None, None, [header]);
    }
    let extractor = Extractor::new(topic, [Reader::Header(TOKEN_HEADER.to_owned())], 512);
    let mut keys = Vec::with_capacity(sent.len());
    for raw in batch.finish().iter() {
        let found = extractor.read(&raw, &mut keys);
        assert!(
            found == Found::Tokens,
            "a message of the demo without a token: {found:?}"
        );
    }
    keys
}
