//! Reading: look-ups by the batch, and what a partition left behind.

use std::cell::RefCell;
use std::collections::BTreeSet;

use rocksdb::{Direction, IteratorMode, PrefixRange, ReadOptions};
use serde::{Deserialize, Serialize};

use super::keys::{self, ClosedKey};
use super::{RocksStore, open};
use crate::message::{NextOffset, Offset};
use crate::outcome::Open;
use crate::record;
use crate::store::bucket::Bucket;
use crate::store::{AuditEntry, AuditMark, Error, Hit, Known, PartitionId, Position};
use crate::token::TokenKey;

/// A position in `meta`.
#[derive(Serialize, Deserialize)]
pub(super) struct PositionText {
    commit_point: i64,
    time_ms: Option<i64>,
    acknowledged_ms: Option<i64>,
    written_ms: i64,
}

impl From<Position> for PositionText {
    fn from(position: Position) -> Self {
        Self {
            commit_point: position.commit_point.0,
            time_ms: position.time_ms,
            acknowledged_ms: position.acknowledged_ms,
            written_ms: position.written_ms,
        }
    }
}

impl From<PositionText> for Position {
    fn from(text: PositionText) -> Self {
        Self {
            commit_point: NextOffset(text.commit_point),
            time_ms: text.time_ms,
            acknowledged_ms: text.acknowledged_ms,
            written_ms: text.written_ms,
        }
    }
}

/// The buffers of one look-up, kept by its thread: a batch costs no allocation of ours per key.
#[derive(Default)]
struct Scratch {
    /// Keys and where they stand in the batch, in the order of the keys.
    sorted: Vec<(TokenKey, usize)>,
    /// Each key once, as it is stored, in the same order, with its first place in `sorted`. Those found go.
    asked: Vec<(ClosedKey, usize)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

type KeyValue = (Box<[u8]>, Box<[u8]>);

impl RocksStore {
    pub(super) fn find(
        &self,
        partition: PartitionId,
        since_ms: i64,
        keys: &[TokenKey],
        hits: &mut Vec<Hit>,
    ) -> Result<(), Error> {
        let start = hits.len();
        let found = SCRATCH.with_borrow_mut(|scratch| {
            scratch.ask(partition.partition, keys);
            for bucket in self.buckets_of(partition.topic).iter() {
                if bucket.end_ms <= since_ms || scratch.asked.is_empty() {
                    break;
                }
                self.find_in(partition, *bucket, scratch, hits)?;
            }
            Ok(())
        });
        if found.is_err() {
            hits.truncate(start);
        }
        if let Some(new) = hits.get_mut(start..) {
            new.sort_unstable_by_key(|hit| hit.key);
        }
        found
    }

    fn find_in(
        &self,
        partition: PartitionId,
        bucket: Bucket,
        scratch: &mut Scratch,
        hits: &mut Vec<Hit>,
    ) -> Result<(), Error> {
        // Dropped since the list was taken: whatever was in it is past.
        let Some(family) = self.db.cf_handle(&keys::bucket(partition.topic, bucket)) else {
            return Ok(());
        };
        let keys = scratch.asked.iter().map(|(key, _)| key);
        let answers = self.db.batched_multi_get_cf_opt(&family, keys, true, &self.reads);
        for ((_, first), answer) in scratch.asked.iter().zip(&answers) {
            let value = answer.as_ref().map_err(|error| self.damage("look up", error))?;
            let Some(value) = value else { continue };
            let closed = record::decode_closed(value, bucket.start_ms).map_err(|source| Error::Record {
                place: format!("{} of bucket {}", self.place(partition), bucket.start_ms),
                source,
            })?;
            hits.extend(scratch.places(*first).map(|key| Hit {
                key,
                closed: closed.clone(),
            }));
        }
        let mut answers = answers.iter();
        scratch.asked.retain(|_| matches!(answers.next(), Some(Ok(None))));
        Ok(())
    }

    pub(super) fn read_open(
        &self,
        partition: PartitionId,
        names: &[(TokenKey, Offset)],
    ) -> Result<Vec<Open>, Error> {
        let family = self.family(keys::OPEN)?;
        let mut found = Vec::with_capacity(names.len());
        for (key, offset) in names {
            let value = self
                .db
                .get_pinned_cf(&family, keys::open(partition, key, *offset));
            if let Some(value) = value.map_err(|error| self.damage("load a held message", &error))? {
                found.push(self.decode_open(partition, &value)?);
            }
        }
        Ok(found)
    }

    fn decode_open(&self, partition: PartitionId, value: &[u8]) -> Result<Open, Error> {
        record::decode_open(value).map_err(|source| Error::Record {
            place: format!("{}, open", self.place(partition)),
            source,
        })
    }

    /// Whether the store follows the partition's changelog.
    pub(super) fn has_copy(&self, partition: PartitionId) -> Result<bool, Error> {
        let meta = self.family(keys::META)?;
        let found = self.db.get_pinned_cf(&meta, keys::changelog(partition));
        let found = found.map_err(|error| self.damage("read `meta`", &error))?;
        Ok(found.is_some())
    }

    pub(super) fn load_partition(&self, partition: PartitionId) -> Result<Known, Error> {
        let mut open = Vec::new();
        let known = self.visit_partition(partition, &mut |record| open.push(record))?;
        open.sort_by_key(|record| record.offset);
        Ok(Known { open, ..known })
    }

    /// In the order of their keys. Each record is decoded, handed on, and forgotten.
    pub(super) fn visit_partition(
        &self,
        partition: PartitionId,
        visit: &mut dyn FnMut(Open),
    ) -> Result<Known, Error> {
        let meta = self.family(keys::META)?;
        let text = |key: String| match self.db.get_cf(&meta, &key) {
            Ok(bytes) => Ok(bytes.map(|bytes| (key, bytes))),
            Err(error) => Err(self.damage("read `meta`", &error)),
        };
        let position = match text(keys::position(partition))? {
            None => None,
            Some((key, bytes)) => {
                let text = serde_json::from_slice::<PositionText>(&bytes);
                Some(text.map_err(|_| open::unreadable(&self.path, &key))?.into())
            }
        };
        let fence = match text(keys::fence(partition))? {
            None => 0,
            Some((key, bytes)) => std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| open::unreadable(&self.path, &key))?,
        };
        let changelog = match text(keys::changelog(partition))? {
            None => None,
            Some((key, bytes)) => {
                let next = std::str::from_utf8(&bytes)
                    .ok()
                    .and_then(|text| text.parse().ok());
                Some(next.ok_or_else(|| open::unreadable(&self.path, &key))?)
            }
        };
        for value in self.under(keys::OPEN, keys::open_prefix(partition))? {
            let (_, value) = value.map_err(|error| self.damage("load a partition", &error))?;
            visit(self.decode_open(partition, &value)?);
        }
        Ok(Known {
            position,
            fence,
            changelog,
            open: Vec::new(),
        })
    }

    /// The end of the newest bucket that has a record of the partition.
    pub(super) fn newest_of(&self, partition: PartitionId) -> Result<Option<i64>, Error> {
        let (start, end) = keys::closed_range(partition.partition);
        for bucket in self.buckets_of(partition.topic).iter() {
            let Some(family) = self.db.cf_handle(&keys::bucket(partition.topic, *bucket)) else {
                continue;
            };
            let mut options = ReadOptions::default();
            options.set_iterate_upper_bound(end);
            let mut records = self.db.raw_iterator_cf_opt(&family, options);
            records.seek(start);
            if records.valid() {
                return Ok(Some(bucket.end_ms));
            }
            records
                .status()
                .map_err(|error| self.damage("find the newest bucket", &error))?;
        }
        Ok(None)
    }

    pub(super) fn list_partitions(&self) -> Result<Vec<PartitionId>, Error> {
        let mut found = BTreeSet::new();
        for prefix in [keys::POSITION, keys::CHANGELOG] {
            for entry in self.under(keys::META, prefix)? {
                let (key, _) = entry.map_err(|error| self.damage("list partitions", &error))?;
                let unreadable = || open::unreadable(&self.path, &String::from_utf8_lossy(&key));
                found.insert(keys::parse_partition(&key, prefix).ok_or_else(unreadable)?);
            }
        }
        // Partitions are few and open records may be many: one step per partition.
        let open = self.family(keys::OPEN)?;
        let mut records = self.db.raw_iterator_cf(&open);
        records.seek_to_first();
        while let Some(partition) = records.key().and_then(keys::parse_open) {
            found.insert(partition);
            records.seek(keys::open_end(partition));
        }
        records
            .status()
            .map_err(|error| self.damage("list partitions", &error))?;
        Ok(found.into_iter().collect())
    }

    pub(super) fn list_audit(&self) -> Result<Vec<AuditEntry>, Error> {
        let mut entries = Vec::new();
        for entry in self
            .db
            .iterator_cf(&self.family(keys::AUDIT)?, IteratorMode::Start)
        {
            let (_, value) = entry.map_err(|error| self.damage("read the audit", &error))?;
            entries.push(self.act(&value)?);
        }
        Ok(entries)
    }

    pub(super) fn visit_acts(
        &self,
        before: Option<AuditMark>,
        visit: &mut dyn FnMut(AuditEntry) -> bool,
    ) -> Result<(), Error> {
        let mode = match &before {
            Some(before) => IteratorMode::From(&before.0, Direction::Reverse),
            None => IteratorMode::End,
        };
        for entry in self.db.iterator_cf(&self.family(keys::AUDIT)?, mode) {
            let (key, value) = entry.map_err(|error| self.damage("read the audit", &error))?;
            if before.is_some_and(|before| *key == before.0) {
                continue;
            }
            if !visit(self.act(&value)?) {
                break;
            }
        }
        Ok(())
    }

    fn act(&self, value: &[u8]) -> Result<AuditEntry, Error> {
        serde_json::from_slice(value).map_err(|error| Error::Corrupt {
            path: self.path.clone(),
            what: format!("an act of an operator is unreadable: {error}"),
        })
    }

    fn under(
        &self,
        name: &str,
        prefix: impl AsRef<[u8]>,
    ) -> Result<impl Iterator<Item = Result<KeyValue, rocksdb::Error>>, Error> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(PrefixRange(prefix.as_ref()));
        // Read once, and no reason to push out what is looked up all the time.
        options.fill_cache(false);
        let family = self.family(name)?;
        Ok(self.db.iterator_cf_opt(&family, options, IteratorMode::Start))
    }

    /// A partition in words.
    fn place(&self, partition: PartitionId) -> String {
        let name = self
            .topics
            .get(&partition.topic)
            .map_or("?", |topic| &topic.spec.name);
        format!("{name}/{}", partition.partition)
    }
}

impl Scratch {
    fn ask(&mut self, partition: i32, keys: &[TokenKey]) {
        self.sorted.clear();
        self.sorted
            .extend(keys.iter().enumerate().map(|(place, key)| (*key, place)));
        self.sorted.sort_unstable();
        self.asked.clear();
        let mut last = None;
        for (first, (key, _)) in self.sorted.iter().enumerate() {
            if last != Some(key) {
                self.asked.push((keys::closed(partition, key), first));
                last = Some(key);
            }
        }
    }

    /// Every place in the batch of the key that stands first at `first`.
    fn places(&self, first: usize) -> impl Iterator<Item = usize> {
        let same = self.sorted.get(first..).unwrap_or_default();
        let key = same.first().map(|(key, _)| *key);
        same.iter()
            .take_while(move |(other, _)| Some(*other) == key)
            .map(|(_, place)| *place)
    }
}
