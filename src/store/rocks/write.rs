//! Writing: one batch for a whole group, and the families that it needs.

use std::borrow::Cow;
use std::sync::{Arc, MutexGuard, PoisonError};

use rocksdb::{BoundColumnFamily, FlushOptions, WriteBatch, WriteOptions};

use super::read::PositionText;
use super::{RocksStore, Role, keys};
use crate::config::Durability;
use crate::record;
use crate::store::bucket::Bucket;
use crate::store::{AuditEntry, Changes, Error, PartitionId, TopicId, first_key};

/// What only one thread at a time may do: write, and make or drop buckets. Its lock is held through the sync, so
/// that nothing is written after a failure that another thread has not seen yet.
#[derive(Default)]
pub(super) struct Writer {
    /// Why nothing more is written.
    ended: Option<String>,
    record: Vec<u8>,
}

/// Where the closed records of one bucket go.
struct Target<'a> {
    bucket: Bucket,
    family: Arc<BoundColumnFamily<'a>>,
    /// Buckets of another window length that must not keep an older record of the same token.
    overlapped: Vec<Arc<BoundColumnFamily<'a>>>,
}

impl RocksStore {
    pub(super) fn writing(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn writer(&self, what: &'static str) -> Result<MutexGuard<'_, Writer>, Error> {
        let writer = self.writing();
        match &writer.ended {
            None => Ok(writer),
            Some(why) => Err(Error::Io {
                what,
                why: why.clone(),
            }),
        }
    }

    fn target(&self, topic: TopicId, bucket: Bucket) -> Result<Target<'_>, Error> {
        let overlapped = self
            .buckets_of(topic)
            .iter()
            .filter(|other| **other != bucket && other.overlaps(bucket))
            .map(|other| self.family(&keys::bucket(topic, *other)))
            .collect::<Result<_, _>>()?;
        Ok(Target {
            bucket,
            family: self.family(&keys::bucket(topic, bucket))?,
            overlapped,
        })
    }
}

impl Writer {
    /// Writes into the log, synced: what belongs to the store itself, and all that a local store holds.
    pub(super) fn write(
        &mut self,
        store: &RocksStore,
        what: &'static str,
        batch: WriteBatch,
    ) -> Result<(), Error> {
        self.write_with(store, what, batch, &store.synced)
    }

    /// The only place that writes. A failure is the last write: what of it reached the log is not known, and no
    /// record may follow a gap.
    fn write_with(
        &mut self,
        store: &RocksStore,
        what: &'static str,
        batch: WriteBatch,
        options: &WriteOptions,
    ) -> Result<(), Error> {
        let written = store.db.write_opt(batch, options);
        written.map_err(|error| self.end(what, &error))
    }

    /// Makes what partitions did durable. In a replicated store not by the log: after a crash it would put this onto
    /// the state of the last flush, which is older, and the two would be of no one moment. So all that is in memory
    /// is flushed with it.
    fn keep(&mut self, store: &RocksStore, what: &'static str, batch: WriteBatch) -> Result<(), Error> {
        match store.durability {
            Durability::Local => self.write(store, what, batch),
            Durability::Replicated => {
                self.write_with(store, what, batch, &store.logged)?;
                self.flush(store)
            }
        }
    }

    /// In one call, since families named one by one are also flushed one by one: a crash between two of them would
    /// leave a state that never was.
    fn flush(&mut self, store: &RocksStore) -> Result<(), Error> {
        let families = store.families()?;
        let families: Vec<_> = families.iter().collect();
        let flushed = store.db.flush_cfs_opt(&families, &FlushOptions::default());
        flushed.map_err(|error| self.end("flush", &error))
    }

    pub(super) fn end(&mut self, what: &'static str, error: &rocksdb::Error) -> Error {
        self.ended = Some(format!("an earlier write failed: {error}"));
        Error::Io {
            what,
            why: error.to_string(),
        }
    }

    /// A group in one batch.
    pub(super) fn apply(&mut self, store: &RocksStore, group: &[Changes]) -> Result<(), Error> {
        let batch = self.batch(store, group)?;
        if group.is_empty() {
            // It changes no partition, so it takes nothing along that was only logged.
            return self.write(store, "apply", batch);
        }
        self.keep(store, "apply", batch)
    }

    /// Acts that change nothing.
    pub(super) fn audit(&mut self, store: &RocksStore, act: &AuditEntry) -> Result<(), Error> {
        let mut batch = WriteBatch::new();
        put_act(store, &mut batch, act)?;
        self.write(store, "audit", batch)
    }

    /// A group that a changelog has made durable, with how far that has been read: one batch, so never one without the
    /// other.
    pub(super) fn apply_logged(
        &mut self,
        store: &RocksStore,
        group: &[Changes],
        logged: &[(PartitionId, i64)],
    ) -> Result<(), Error> {
        for changes in group {
            store.window_ms(changes.partition.topic)?;
        }
        let mut without_copy = Vec::new();
        for (partition, _) in logged {
            store.window_ms(partition.topic)?;
            if !store.has_copy(*partition)? {
                without_copy.push(*partition);
            }
        }
        if without_copy.is_empty() {
            return self.put_logged(store, group, logged);
        }
        tracing::warn!(
            partitions = ?without_copy,
            "the copies of their changelogs were cleared meanwhile; they are read anew where they are needed again"
        );
        let (mut group, mut logged) = (group.to_vec(), logged.to_vec());
        group.retain(|changes| !without_copy.contains(&changes.partition));
        logged.retain(|(partition, _)| !without_copy.contains(partition));
        self.put_logged(store, &group, &logged)
    }

    fn put_logged(
        &mut self,
        store: &RocksStore,
        group: &[Changes],
        logged: &[(PartitionId, i64)],
    ) -> Result<(), Error> {
        let mut batch = self.batch(store, group)?;
        let meta = store.family(keys::META)?;
        for (partition, next) in logged {
            batch.put_cf(&meta, keys::changelog(*partition), next.to_string());
        }
        self.write_with(store, "apply what is logged", batch, &store.logged)
    }

    /// What is read back: closed records in bulk go past the write buffers. Not while the partition is served: each file is
    /// one more to look into until it is compacted.
    pub(super) fn apply_restored(
        &mut self,
        store: &RocksStore,
        group: &[Changes],
        logged: &[(PartitionId, i64)],
    ) -> Result<(), Error> {
        for (partition, _) in logged {
            store.window_ms(partition.topic)?;
        }
        self.make_buckets(store, group)?;
        // Only a copy of a changelog may hold closed records ahead of its offset.
        let group = match store.durability {
            Durability::Local => Cow::Borrowed(group),
            Durability::Replicated => self.ingest(store, group)?,
        };
        self.put_logged(store, &group, logged)
    }

    fn batch(&mut self, store: &RocksStore, group: &[Changes]) -> Result<WriteBatch, Error> {
        self.make_buckets(store, group)?;
        let records = group
            .iter()
            .map(|changes| changes.closed.len() + changes.opened.len());
        let mut batch = WriteBatch::with_capacity_bytes(64 * (records.sum::<usize>() + group.len()));
        for changes in group {
            self.put(store, &mut batch, changes)?;
        }
        Ok(batch)
    }

    /// One batch: where it comes back after a crash, it comes back whole.
    pub(super) fn clear(&mut self, store: &RocksStore, partition: PartitionId) -> Result<(), Error> {
        let PartitionId { topic, partition: of } = partition;
        store.window_ms(topic)?;
        let mut batch = WriteBatch::new();
        let (start, end) = keys::closed_range(of);
        for bucket in store.buckets_of(topic).iter() {
            let family = store.family(&keys::bucket(topic, *bucket))?;
            batch.delete_range_cf(&family, &start[..], &end[..]);
        }
        let open = store.family(keys::OPEN)?;
        let (start, end) = (keys::open_prefix(partition), keys::open_end(partition));
        batch.delete_range_cf(&open, &start[..], &end[..]);
        let meta = store.family(keys::META)?;
        for key in [
            keys::position(partition),
            keys::fence(partition),
            keys::changelog(partition),
        ] {
            batch.delete_cf(&meta, key);
        }
        let options = match store.durability {
            Durability::Local => &store.synced,
            Durability::Replicated => &store.logged,
        };
        self.write_with(store, "clear a partition", batch, options)
    }

    /// Makes the families that the group needs and that do not exist yet.
    fn make_buckets(&mut self, store: &RocksStore, group: &[Changes]) -> Result<(), Error> {
        for changes in group {
            let topic = changes.partition.topic;
            let window_ms = store.window_ms(topic)?;
            let mut known = store.buckets_of(topic);
            for (_, closed) in &changes.closed {
                let bucket = Bucket::of(closed.first_seen_ms, window_ms);
                if known.contains(&bucket) {
                    continue;
                }
                let name = keys::bucket(topic, bucket);
                let made = store.db.create_cf(&name, &store.budget.family(&name));
                made.map_err(|error| self.end("make a bucket", &error))?;
                store.set_buckets(topic, known.iter().copied().chain([bucket]));
                known = store.buckets_of(topic);
            }
        }
        Ok(())
    }

    fn put(&mut self, store: &RocksStore, batch: &mut WriteBatch, changes: &Changes) -> Result<(), Error> {
        let PartitionId { topic, partition } = changes.partition;
        let window_ms = store.window_ms(topic)?;
        let record = &mut self.record;
        let mut current: Option<Target<'_>> = None;
        // In the order of the keys, since neighbours share their way down the memtable's skip list: most of what a
        // write costs is cache misses on that way. Stable, because of two records of one key the later rules.
        let mut closed: Vec<_> = changes
            .closed
            .iter()
            .map(|(key, closed)| (Bucket::of(closed.first_seen_ms, window_ms), key, closed))
            .collect();
        closed.sort_by_key(|(bucket, key, _)| (bucket.start_ms, *key));
        for (bucket, key, closed) in closed {
            let target = match current {
                Some(target) if target.bucket == bucket => target,
                _ => store.target(topic, bucket)?,
            };
            let key = keys::closed(partition, key);
            record.clear();
            record::encode_closed(closed, bucket.start_ms, record);
            batch.put_cf(&target.family, key, &record);
            for family in &target.overlapped {
                batch.delete_cf(family, key);
            }
            current = Some(target);
        }
        let open = store.family(keys::OPEN)?;
        for (key, offset) in &changes.removed {
            batch.delete_cf(&open, keys::open(changes.partition, key, *offset));
        }
        for opened in &changes.opened {
            record.clear();
            record::encode_open(opened, record);
            let key = keys::open(changes.partition, &first_key(opened), opened.offset);
            batch.put_cf(&open, key, &record);
        }
        let meta = store.family(keys::META)?;
        if let Some(position) = changes.position {
            let text = json("write a position", &PositionText::from(position))?;
            batch.put_cf(&meta, keys::position(changes.partition), text);
        }
        if let Some(fence) = changes.fence {
            batch.put_cf(&meta, keys::fence(changes.partition), fence.to_string());
        }
        for act in &changes.acts {
            put_act(store, batch, act)?;
        }
        Ok(())
    }

    pub(super) fn forget_position(
        &mut self,
        store: &RocksStore,
        partition: PartitionId,
    ) -> Result<(), Error> {
        let mut batch = WriteBatch::new();
        let meta = store.family(keys::META)?;
        batch.delete_cf(&meta, keys::position(partition));
        batch.delete_cf(&meta, keys::changelog(partition));
        self.keep(store, "forget a position", batch)
    }

    /// A look-up that runs meanwhile holds the family it reads; the files go when it is done.
    pub(super) fn drop_buckets(
        &mut self,
        store: &RocksStore,
        topic: TopicId,
        until_ms: i64,
    ) -> Result<usize, Error> {
        let known = store.buckets_of(topic);
        let mut kept = Vec::new();
        let mut failed = None;
        for bucket in known.iter().copied() {
            if bucket.end_ms > until_ms || failed.is_some() {
                kept.push(bucket);
            } else if let Err(error) = store.db.drop_cf(&keys::bucket(topic, bucket)) {
                failed = Some(self.end("drop a bucket", &error));
            }
        }
        let dropped = known.len() - kept.len();
        store.set_buckets(topic, kept);
        failed.map_or(Ok(dropped), Err)
    }

    /// The mark goes first: what a failed flush leaves behind is still in the log, or in the changelog.
    pub(super) fn close(&mut self, store: &RocksStore) -> Result<(), Error> {
        if store.role == Role::Consumer {
            let mut batch = WriteBatch::new();
            batch.delete_cf(&store.family(keys::META)?, keys::RUNNING);
            self.write(store, "close", batch)?;
        }
        self.ended = Some("the store is closed".to_owned());
        self.flush(store)
    }
}

fn put_act(store: &RocksStore, batch: &mut WriteBatch, act: &AuditEntry) -> Result<(), Error> {
    batch.put_cf(&store.family(keys::AUDIT)?, act.key(), json("audit", act)?);
    Ok(())
}

fn json(what: &'static str, value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Io {
        what,
        why: error.to_string(),
    })
}
