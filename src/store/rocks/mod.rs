//! The store on disk: one RocksDB database, one write-ahead log, one sync for a whole group of partitions.
//!
//! A group is one write batch, so it is durable together or not at all, and after a write that failed nothing more is
//! written (Inv 9): what the log holds then is known only to whoever opens it next. Closed records lie in one family
//! per topic and time bucket, dropped whole; open records, positions and acts of operators in a family each.
//!
//! A store of a replicated consumer is a copy of its changelog topic. What partitions do is not in the write-ahead log
//! there: it lies in memory until all families are flushed together, and after a crash it is what the last flush left.
//! The log still holds what belongs to the store itself: identity, topics, and whether it runs.
//!
//! It decides nothing and reads no clock. `rocksdb` is named in this folder only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rocksdb::{BoundColumnFamily, DB, ReadOptions, WriteBatch, WriteOptions, properties};

use self::options::Budget;
use self::write::Writer;
use super::bucket::Bucket;
use super::{
    AuditEntry, AuditMark, Changes, Error, Hit, Identity, Known, PartitionId, PastStarts, Store, StoreId,
    TopicId, TopicSpec, WindowSize,
};
use crate::config::Durability;
use crate::message::Offset;
use crate::outcome::Open;
use crate::token::TokenKey;

mod ingest;
mod keys;
mod open;
mod options;
mod read;
mod write;

/// A store in a directory of its own.
pub struct RocksStore {
    db: DB,
    path: PathBuf,
    budget: Budget,
    reads: ReadOptions,
    synced: WriteOptions,
    /// For what a changelog has made durable.
    logged: WriteOptions,
    durability: Durability,
    store_id: StoreId,
    group: String,
    cluster: RwLock<Option<String>>,
    past: PastStarts,
    /// A consumer's start, which ends in a close, or a visit that leaves the count of starts alone.
    role: Role,
    topics: BTreeMap<TopicId, Topic>,
    /// How many partitions each topic had at the last contact with a broker.
    partitions: RwLock<BTreeMap<TopicId, i32>>,
    /// Newest first. Replaced whole, so that a look-up never waits for a bucket being made or dropped.
    buckets: RwLock<BTreeMap<TopicId, Arc<[Bucket]>>>,
    writer: Mutex<Writer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Consumer,
    Visitor,
}

#[derive(Debug)]
struct Topic {
    spec: TopicSpec,
    /// Whether this start was opened for it. One left out keeps its number and its records.
    asked: bool,
}

/// What RocksDB says of itself. All zero where it is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Flushes and compactions that failed. After one the store refuses writes until it is opened again.
    pub background_errors: u64,
    /// Writes wait for a flush or a compaction.
    pub writes_stopped: bool,
    /// Writes are slowed to that many bytes a second; 0 for full speed.
    pub delayed_bytes_per_second: u64,
}

impl RocksStore {
    /// Opens the store of `group` in `dir`, or makes it. `memory_bytes` bounds what blocks and write buffers hold
    /// together (at least 16 MiB). A store keeps the durability mode that it was made in.
    ///
    /// Blocks on the disk, and cannot be cancelled: the lock is held until it returns and the store is dropped.
    ///
    /// # Errors
    /// [`Error::Directory`], [`Error::Locked`], [`Error::Corrupt`], [`Error::Newer`], [`Error::Foreign`],
    /// [`Error::Durability`] or [`Error::Io`].
    pub fn open(
        dir: &Path,
        group: &str,
        topics: &[TopicSpec],
        memory_bytes: u64,
        durability: Durability,
    ) -> Result<Self, Error> {
        open::prepare(dir)?;
        if open::exists(dir)?
            && let Some(found) = open::peek(dir)?
        {
            open::check(dir, &found, group, durability)?;
        }
        let budget = Budget::new(memory_bytes, durability);
        let (db, buckets) = open::open(dir, &budget, true)?;
        let found = match open::read(&db, dir)? {
            Some(found) => {
                open::check(dir, &found, group, durability)?;
                found
            }
            None => Self::identify(&db, dir, group, durability)?,
        };
        let mut store = Self::assemble(dir, db, budget, found, &buckets, Role::Consumer)?;
        store.ask_for(topics)?;
        Ok(store)
    }

    /// Opens a store that exists, with the group and the topics that it states itself: for the CLI on a stopped
    /// consumer. Neither this nor its close counts as a start or an end of the consumer.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Directory`] where there is no store.
    pub fn open_existing_for_cli(dir: &Path) -> Result<Self, Error> {
        if !open::exists(dir)? {
            return Err(Error::Directory {
                path: dir.to_owned(),
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        open::peek(dir)?;
        // Whose store it is will be known when it is open. To flush all families together is right in either mode.
        let budget = Budget::new(0, Durability::Replicated);
        let (db, buckets) = open::open(dir, &budget, false)?;
        let found = open::read(&db, dir)?.ok_or_else(|| open::unreadable(dir, keys::FORMAT))?;
        let mut store = Self::assemble(dir, db, budget, found, &buckets, Role::Visitor)?;
        store.topics.values_mut().for_each(|topic| topic.asked = true);
        Ok(store)
    }

    /// Every topic that the store knows, with its number, also those it was not opened for.
    #[must_use]
    pub fn topics(&self) -> Vec<(TopicId, TopicSpec)> {
        self.topics
            .iter()
            .map(|(id, topic)| (*id, topic.spec.clone()))
            .collect()
    }

    /// States how many partitions a topic has, at the first contact with a broker. Returns the number it had before,
    /// where that was smaller: its keys are spread anew, and a token may come back in another partition.
    ///
    /// # Errors
    /// [`Error::Shrunk`] where it was larger, [`Error::UnknownTopic`], and an I/O error.
    pub fn claim_partitions(&self, topic: &str, count: i32) -> Result<Option<i32>, Error> {
        let id = self.topic(topic)?;
        let mut writer = self.writer("note the partitions of a topic")?;
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        let known = partitions.get(&id).copied();
        match known {
            Some(known) if known == count => return Ok(None),
            Some(known) if known > count => {
                return Err(Error::Shrunk {
                    path: self.path.clone(),
                    topic: topic.to_owned(),
                    known,
                    now: count,
                });
            }
            _ => {}
        }
        let mut batch = WriteBatch::new();
        batch.put_cf(&self.family(keys::META)?, keys::partitions(id), count.to_string());
        writer.write(self, "note the partitions of a topic", batch)?;
        partitions.insert(id, count);
        Ok(known)
    }

    /// The durability mode that the store was made in.
    #[must_use]
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// How many partitions the topic had at the last contact with a broker, `None` before the first.
    #[must_use]
    pub fn partitions_of(&self, topic: TopicId) -> Option<i32> {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.get(&topic).copied()
    }

    /// How the storage engine is.
    ///
    /// # Errors
    /// An I/O error.
    pub fn health(&self) -> Result<Health, Error> {
        let number = |name| match self.db.property_int_value(name) {
            Ok(value) => Ok(value.unwrap_or(0)),
            Err(error) => Err(self.damage("ask for its health", &error)),
        };
        Ok(Health {
            background_errors: number(properties::BACKGROUND_ERRORS)?,
            writes_stopped: number(properties::IS_WRITE_STOPPED)? != 0,
            delayed_bytes_per_second: number(properties::ACTUAL_DELAYED_WRITE_RATE)?,
        })
    }

    /// Bytes of memory that blocks and write buffers hold now.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.budget.used_bytes()
    }

    /// Gives a database its identity.
    fn identify(db: &DB, dir: &Path, group: &str, durability: Durability) -> Result<open::Found, Error> {
        let store_id = create_id();
        let meta = family(db, keys::META)?;
        let mut batch = WriteBatch::new();
        batch.put_cf(&meta, keys::FORMAT, open::FORMAT.to_string());
        batch.put_cf(&meta, keys::STORE_ID, store_id.to_string());
        batch.put_cf(&meta, keys::GROUP, group);
        batch.put_cf(&meta, keys::UNCLEAN, "0");
        batch.put_cf(&meta, keys::DURABILITY, durability.name());
        db.write_opt(batch, &synced())
            .map_err(|error| open::damage(dir, "write the identity", &error))?;
        Ok(open::Found {
            store_id,
            group: group.to_owned(),
            cluster: None,
            running: false,
            unclean: 0,
            durability,
            topics: BTreeMap::new(),
            partitions: BTreeMap::new(),
        })
    }

    fn assemble(
        path: &Path,
        db: DB,
        budget: Budget,
        found: open::Found,
        bucket_names: &[String],
        role: Role,
    ) -> Result<Self, Error> {
        let mut buckets: BTreeMap<TopicId, Vec<Bucket>> = BTreeMap::new();
        for (topic, bucket) in bucket_names.iter().filter_map(|name| keys::parse_bucket(name)) {
            buckets.entry(topic).or_default().push(bucket);
        }
        let buckets = buckets.into_iter().map(|(topic, mut of_topic)| {
            of_topic.sort_unstable();
            (topic, of_topic.into())
        });
        let topics = found
            .topics
            .into_iter()
            .map(|(id, spec)| (id, Topic { spec, asked: false }));
        let store = Self {
            path: path.to_owned(),
            budget,
            reads: ReadOptions::default(),
            synced: synced(),
            logged: logged(found.durability),
            durability: found.durability,
            store_id: found.store_id,
            group: found.group,
            cluster: RwLock::new(found.cluster),
            past: PastStarts {
                unclean: if found.running { found.unclean + 1 } else { 0 },
            },
            role,
            topics: topics.collect(),
            partitions: RwLock::new(found.partitions),
            buckets: RwLock::new(buckets.collect()),
            writer: Mutex::default(),
            db,
        };
        Ok(store)
    }

    /// Notes the topics of this start, and that it runs.
    fn ask_for(&mut self, topics: &[TopicSpec]) -> Result<(), Error> {
        let mut batch = WriteBatch::new();
        let meta = self.family(keys::META)?;
        batch.put_cf(&meta, keys::RUNNING, "");
        batch.put_cf(&meta, keys::UNCLEAN, self.past.unclean.to_string());
        let mut asked = Vec::new();
        for spec in topics {
            let known = self.topics.iter().find(|(_, topic)| topic.spec.name == spec.name);
            let id = match known {
                Some((id, _)) => *id,
                None => self.next_topic(asked.len())?,
            };
            batch.put_cf(&meta, keys::topic(id), open::topic_text(spec));
            asked.push((id, spec.clone()));
        }
        drop(meta);
        self.writing().write(self, "note the start", batch)?;
        for (id, spec) in asked {
            self.topics.insert(id, Topic { spec, asked: true });
        }
        Ok(())
    }

    fn next_topic(&self, taken: usize) -> Result<TopicId, Error> {
        let next = self
            .topics
            .keys()
            .next_back()
            .map_or(0, |last| usize::from(last.0) + 1)
            + taken;
        let number = u16::try_from(next).map_err(|_| Error::Io {
            what: "number a topic",
            why: format!("{next} topics are too many"),
        })?;
        Ok(TopicId(number))
    }

    fn window_ms(&self, topic: TopicId) -> Result<i64, Error> {
        match self.topics.get(&topic) {
            Some(known) => Ok(known.spec.window_ms),
            None => Err(Error::UnknownTopic(format!("number {}", topic.0))),
        }
    }

    fn family(&self, name: &str) -> Result<Arc<BoundColumnFamily<'_>>, Error> {
        family(&self.db, name)
    }

    /// Every family that holds something of ours.
    fn families(&self) -> Result<Vec<Arc<BoundColumnFamily<'_>>>, Error> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        let names = buckets.iter().flat_map(|(topic, of_topic)| {
            let name = |bucket: &Bucket| keys::bucket(*topic, *bucket);
            of_topic.iter().map(name)
        });
        [keys::META, keys::OPEN, keys::AUDIT]
            .into_iter()
            .map(str::to_owned)
            .chain(names)
            .map(|name| self.family(&name))
            .collect()
    }

    fn damage(&self, what: &'static str, error: &rocksdb::Error) -> Error {
        open::damage(&self.path, what, error)
    }

    fn buckets_of(&self, topic: TopicId) -> Arc<[Bucket]> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets.get(&topic).cloned().unwrap_or_default()
    }

    fn set_buckets(&self, topic: TopicId, of_topic: impl IntoIterator<Item = Bucket>) {
        let of_topic: BTreeSet<Bucket> = of_topic.into_iter().collect();
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(topic, of_topic.into_iter().collect());
    }
}

fn family<'a>(db: &'a DB, name: &str) -> Result<Arc<BoundColumnFamily<'a>>, Error> {
    db.cf_handle(name).ok_or_else(|| Error::Io {
        what: "find a column family",
        why: format!("{name} does not exist"),
    })
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn logged(durability: Durability) -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(durability == Durability::Replicated);
    options
}

fn create_id() -> StoreId {
    // Seeded by the system: two stores made at the same moment must not share a name.
    StoreId(fastrand::Rng::new().u128(..).to_be_bytes())
}

impl fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksStore")
            .field("path", &self.path)
            .field("store_id", &self.store_id)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl Store for RocksStore {
    fn identity(&self) -> Identity {
        let cluster = self.cluster.read().unwrap_or_else(PoisonError::into_inner);
        Identity {
            store_id: self.store_id,
            group: self.group.clone(),
            cluster: cluster.clone(),
        }
    }

    fn past(&self) -> PastStarts {
        self.past
    }

    fn claim_cluster(&self, cluster: &str) -> Result<(), Error> {
        let mut writer = self.writer("claim the cluster")?;
        let mut known = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(found) if found == cluster => Ok(()),
            Some(found) => Err(Error::Foreign {
                path: self.path.clone(),
                what: "cluster",
                found: found.clone(),
                asked: cluster.to_owned(),
            }),
            None => {
                let mut batch = WriteBatch::new();
                batch.put_cf(&self.family(keys::META)?, keys::CLUSTER, cluster);
                writer.write(self, "claim the cluster", batch)?;
                *known = Some(cluster.to_owned());
                Ok(())
            }
        }
    }

    fn topic(&self, name: &str) -> Result<TopicId, Error> {
        self.topics
            .iter()
            .find(|(_, topic)| topic.asked && topic.spec.name == name)
            .map(|(id, _)| *id)
            .ok_or_else(|| Error::UnknownTopic(name.to_owned()))
    }

    fn load(&self, partition: PartitionId) -> Result<Known, Error> {
        self.load_partition(partition)
    }

    fn visit(&self, partition: PartitionId, visit: &mut dyn FnMut(Open)) -> Result<Known, Error> {
        self.visit_partition(partition, visit)
    }

    fn load_open(&self, partition: PartitionId, names: &[(TokenKey, Offset)]) -> Result<Vec<Open>, Error> {
        self.read_open(partition, names)
    }

    fn forget_position(&self, partition: PartitionId) -> Result<(), Error> {
        self.writer("forget a position")?.forget_position(self, partition)
    }

    fn seen_until(&self, partition: PartitionId) -> Result<Option<i64>, Error> {
        self.newest_of(partition)
    }

    fn partitions(&self) -> Result<Vec<PartitionId>, Error> {
        self.list_partitions()
    }

    fn look_up(
        &self,
        partition: PartitionId,
        since_ms: i64,
        keys: &[TokenKey],
        hits: &mut Vec<Hit>,
    ) -> Result<(), Error> {
        self.find(partition, since_ms, keys, hits)
    }

    fn apply(&self, group: &[Changes]) -> Result<(), Error> {
        self.writer("apply")?.apply(self, group)
    }

    fn apply_logged(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), Error> {
        self.writer("apply what is logged")?
            .apply_logged(self, group, logged)
    }

    fn apply_restored(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), Error> {
        self.writer("apply what is restored")?
            .apply_restored(self, group, logged)
    }

    fn clear(&self, partition: PartitionId) -> Result<(), Error> {
        self.writer("clear a partition")?.clear(self, partition)
    }

    fn drop_buckets(&self, topic: TopicId, until_ms: i64) -> Result<usize, Error> {
        self.writer("drop buckets")?.drop_buckets(self, topic, until_ms)
    }

    fn window_size(&self, topic: TopicId) -> Result<WindowSize, Error> {
        let mut size = WindowSize::default();
        for bucket in self.buckets_of(topic).iter() {
            // One that was dropped meanwhile has no size.
            let Some(family) = self.db.cf_handle(&keys::bucket(topic, *bucket)) else {
                continue;
            };
            for property in [
                properties::LIVE_SST_FILES_SIZE,
                properties::CUR_SIZE_ALL_MEM_TABLES,
            ] {
                let bytes = self.db.property_int_value_cf(&family, property);
                let bytes = bytes.map_err(|error| self.damage("measure a window", &error))?;
                size.bytes += bytes.unwrap_or(0);
            }
            size.buckets += 1;
            size.oldest_ms = size
                .oldest_ms
                .min(Some(bucket.start_ms))
                .or(Some(bucket.start_ms));
        }
        Ok(size)
    }

    fn audit(&self, entry: &AuditEntry) -> Result<(), Error> {
        self.writer("audit")?.audit(self, entry)
    }

    fn audited(&self) -> Result<Vec<AuditEntry>, Error> {
        self.list_audit()
    }

    fn visit_audit(
        &self,
        before: Option<AuditMark>,
        visit: &mut dyn FnMut(AuditEntry) -> bool,
    ) -> Result<(), Error> {
        self.visit_acts(before, visit)
    }

    fn close(&self) -> Result<(), Error> {
        self.writer("close")?.close(self)
    }
}
