//! Closed records in bulk: sorted files handed to RocksDB, past its write buffers.
//!
//! A restore writes millions of records that nobody looks up yet. One by one each costs a walk down the skip list of a
//! write buffer, and later a flush; sorted all at once and written as a table they cost half of that.
//!
//! A file is on stable storage when RocksDB has taken it, before the changelog's offset is even written to memory: after
//! a crash closed records may be ahead of the offset, never behind it. Whoever reads on from there writes them again, the
//! same, before the partition is served. Of what else is in memory RocksDB flushes all families first where a file
//! overlaps it, so a partition that was cleared does not come back beneath its new records.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use rocksdb::{IngestExternalFileOptions, SstFileWriter};

use super::keys::{self, ClosedKey};
use super::{RocksStore, write::Writer};
use crate::record;
use crate::store::bucket::Bucket;
use crate::store::{Changes, Error, TopicId};

/// Records of one bucket from which on a file is worth its two syncs.
const RECORDS_MIN: usize = 16 << 10;
/// One name: one thread writes at a time, and what a crash has left is removed by the next.
const FILE: &str = "hapax-ingest.sst";

/// What becomes of the closed records of one bucket, in the order of the group.
#[derive(Default)]
struct Table {
    /// Where the record lies among `records`, empty for one that another bucket replaces.
    entries: Vec<(ClosedKey, Range<usize>)>,
    records: Vec<u8>,
}

impl Table {
    /// In the order of the keys, each once: of several the last rules.
    fn sort(&mut self) {
        self.entries.sort_by_key(|(key, _)| *key);
        self.entries.reverse();
        self.entries.dedup_by_key(|(key, _)| *key);
        self.entries.reverse();
    }
}

impl Writer {
    /// Writes the closed records of every bucket that is worth a file, and returns the group without them. The buckets
    /// exist.
    pub(super) fn ingest<'g>(
        &mut self,
        store: &RocksStore,
        group: &'g [Changes],
    ) -> Result<Cow<'g, [Changes]>, Error> {
        if group.iter().map(|changes| changes.closed.len()).sum::<usize>() < RECORDS_MIN {
            return Ok(Cow::Borrowed(group));
        }
        let tables = tables(store, group)?;
        // A bucket of another window length must lose what this one replaces in the same way: all or none.
        if tables.values().all(|table| table.entries.len() < RECORDS_MIN) {
            return Ok(Cow::Borrowed(group));
        }
        for ((topic, bucket), mut table) in tables {
            table.sort();
            self.ingest_table(store, topic, bucket, &table)?;
        }
        let rest = group.iter().map(|changes| Changes {
            closed: Vec::new(),
            removed: changes.removed.clone(),
            opened: changes.opened.clone(),
            acts: changes.acts.clone(),
            ..*changes
        });
        Ok(Cow::Owned(rest.collect()))
    }

    fn ingest_table(
        &mut self,
        store: &RocksStore,
        topic: TopicId,
        bucket: Bucket,
        table: &Table,
    ) -> Result<(), Error> {
        let path = store.path.join(FILE);
        // Removed, never overwritten: it may be another name of a file that RocksDB has taken.
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Directory { path, source });
            }
            _ => {}
        }
        let name = keys::bucket(topic, bucket);
        let options = store.budget.family(&name);
        let mut file = SstFileWriter::create(&options);
        let written = file.open(&path).and_then(|()| {
            for (key, place) in &table.entries {
                match table.records.get(place.clone()) {
                    Some(record) if !record.is_empty() => file.put(key, record)?,
                    _ => file.delete(key)?,
                }
            }
            file.finish()
        });
        written.map_err(|error| self.end("write a sorted file", &error))?;
        let mut how = IngestExternalFileOptions::default();
        how.set_move_files(true);
        let family = store.family(&name)?;
        let taken = store.db.ingest_external_file_cf_opts(&family, &how, vec![&path]);
        taken.map_err(|error| self.end("take a sorted file", &error))
    }
}

fn tables(store: &RocksStore, group: &[Changes]) -> Result<BTreeMap<(TopicId, Bucket), Table>, Error> {
    let mut tables: BTreeMap<(TopicId, Bucket), Table> = BTreeMap::new();
    let mut record = Vec::new();
    for changes in group {
        let topic = changes.partition.topic;
        let window_ms = store.window_ms(topic)?;
        let known = store.buckets_of(topic);
        for (token, closed) in &changes.closed {
            let key = keys::closed(changes.partition.partition, token);
            let bucket = Bucket::of(closed.first_seen_ms, window_ms);
            for other in known
                .iter()
                .filter(|other| **other != bucket && other.overlaps(bucket))
            {
                let table = tables.entry((topic, *other)).or_default();
                table.entries.push((key, 0..0));
            }
            record.clear();
            record::encode_closed(closed, bucket.start_ms, &mut record);
            let table = tables.entry((topic, bucket)).or_default();
            let start = table.records.len();
            table.records.extend_from_slice(&record);
            table.entries.push((key, start..table.records.len()));
        }
    }
    Ok(tables)
}
