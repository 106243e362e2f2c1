//! The simplest correct store: everything in memory, one lock around it.
//!
//! It is the oracle of the model test and the users' test double, so it is written to be read: no cache, no index,
//! nothing that could be wrong in the same way as the store on disk. It survives a *restart* (the same memory,
//! opened again by [`MemoryStore::restart`]), never the process.
//!
//! Faults enter here too: [`MemoryStore::fail_after`] counts down successful writes, [`MemoryStore::crash`] ends a
//! start without its close. A start that was not closed loses what was logged since the last durable write
//! ([`Store::apply_logged`]), all of it: the least that a store may keep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bucket::Bucket;
use super::{
    AuditEntry, Changes, Error, Hit, Identity, Known, PartitionId, PastStarts, Position, Store, StoreId,
    TopicId, TopicSpec, WindowSize, first_key,
};
use crate::message::Offset;
use crate::outcome::{Closed, Open};
use crate::record;
use crate::token::TokenKey;

/// A store that lives as long as its handles. Clones share one start; [`restart`](Self::restart) begins the next.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    memory: Arc<Mutex<Memory>>,
    start: u64,
    past: PastStarts,
    opened_for: Arc<[TopicSpec]>,
}

/// What becomes of the group whose write is made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is gone.
    Lost,
    /// It is there after all: a sync that reported failure, with the bytes on the disk. Nobody may rely on either.
    Survives,
}

#[derive(Debug)]
struct Memory {
    identity: Identity,
    /// The number of the start that may use the memory. Handles of earlier ones belong to dead processes.
    start: u64,
    running: bool,
    unclean: u32,
    /// Why this start writes no more.
    ended: Option<&'static str>,
    fault: Option<(u64, Fault)>,
    /// By number. Never shrinks: a topic left out of one start keeps its number for the next.
    topics: Vec<TopicSpec>,
    state: State,
    /// What a crash brings back, `None` where that is the same.
    durable: Option<Box<State>>,
}

/// What is known of partitions.
#[derive(Debug, Clone, Default)]
struct State {
    buckets: BTreeMap<(TopicId, Bucket), Records>,
    open: BTreeMap<(PartitionId, TokenKey, Offset), Open>,
    positions: BTreeMap<PartitionId, Position>,
    fences: BTreeMap<PartitionId, u64>,
    changelog: BTreeMap<PartitionId, i64>,
    audit: BTreeMap<[u8; 16], AuditEntry>,
}

type Records = BTreeMap<(i32, TokenKey), Closed>;

impl MemoryStore {
    /// An empty store, and its first start.
    #[must_use]
    pub fn new(group: &str, topics: &[TopicSpec]) -> Self {
        // Unique within the process, which is as long as the store lives.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let memory = Memory {
            identity: Identity {
                store_id: StoreId(u128::from(number).to_be_bytes()),
                group: group.to_owned(),
                cluster: None,
            },
            start: 0,
            running: false,
            unclean: 0,
            ended: None,
            fault: None,
            topics: Vec::new(),
            state: State::default(),
            durable: None,
        };
        Self::begin(Arc::new(Mutex::new(memory)), topics)
    }

    /// The next start on the same memory, as a new process would make it. Earlier handles fail from here on. Where
    /// the last start was not closed, this one follows an unclean end.
    #[must_use]
    pub fn restart(&self, topics: &[TopicSpec]) -> Self {
        Self::begin(Arc::clone(&self.memory), topics)
    }

    fn begin(memory: Arc<Mutex<Memory>>, topics: &[TopicSpec]) -> Self {
        let mut inner = memory.lock().unwrap_or_else(PoisonError::into_inner);
        inner.unclean = if inner.running { inner.unclean + 1 } else { 0 };
        inner.fall_back();
        inner.running = true;
        inner.ended = None;
        inner.fault = None;
        inner.start += 1;
        for topic in topics {
            match inner.topics.iter_mut().find(|known| known.name == topic.name) {
                Some(known) => known.window_ms = topic.window_ms,
                None => inner.topics.push(topic.clone()),
            }
        }
        let (start, unclean) = (inner.start, inner.unclean);
        drop(inner);
        Self {
            memory,
            start,
            past: PastStarts { unclean },
            opened_for: topics.into(),
        }
    }

    /// Ends this start as SIGKILL would: every later call fails, and nothing notes a clean end.
    pub fn crash(&self) {
        let mut memory = self.lock();
        if memory.start == self.start {
            memory.start += 1;
        }
    }

    /// A handle for a tool on a store that no process uses: it counts as no start, and how the last process ended
    /// stays as it was. Earlier handles fail from here on.
    #[must_use]
    pub fn offline(&self) -> Self {
        let mut memory = self.lock();
        memory.fall_back();
        memory.ended = None;
        memory.start += 1;
        Self {
            memory: Arc::clone(&self.memory),
            start: memory.start,
            past: PastStarts {
                unclean: memory.unclean + u32::from(memory.running),
            },
            opened_for: Arc::clone(&self.opened_for),
        }
    }

    /// Lets `writes` more groups of this start through, then fails the next one and refuses every one after it.
    pub fn fail_after(&self, writes: u64, fault: Fault) {
        self.lock().fault = Some((writes, fault));
    }

    /// What a store on disk does by itself at times: whatever was logged so far survives the next crash.
    pub fn flush(&self) {
        self.lock().durable = None;
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Whoever panicked under the lock applied a group in part at worst, and a test fails by its panic.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn living(&self, what: &'static str) -> Result<MutexGuard<'_, Memory>, Error> {
        let memory = self.lock();
        if memory.start == self.start {
            Ok(memory)
        } else {
            Err(io(what, "this start is over"))
        }
    }

    fn writable(&self, what: &'static str) -> Result<MutexGuard<'_, Memory>, Error> {
        let memory = self.living(what)?;
        match memory.ended {
            None => Ok(memory),
            Some(why) => Err(io(what, why)),
        }
    }

    /// A group that is durable, or one that is logged elsewhere.
    fn write(
        &self,
        what: &'static str,
        group: &[Changes],
        logged: Option<(&[(PartitionId, i64)], Copies)>,
    ) -> Result<(), Error> {
        let (is_logged, copies) = (logged.is_some(), logged.map(|(_, copies)| copies));
        let logged = logged.map_or(&[][..], |(logged, _)| logged);
        let mut memory = self.writable(what)?;
        // All of them are asked for before anything is written: together or not at all.
        let windows = group
            .iter()
            .map(|changes| memory.window_ms(changes.partition.topic))
            .collect::<Result<Vec<_>, _>>()?;
        for (partition, _) in logged {
            memory.window_ms(partition.topic)?;
        }
        let failing = match &mut memory.fault {
            None => None,
            Some((0, fault)) => Some(*fault),
            Some((writes, _)) => {
                *writes -= 1;
                None
            }
        };
        if failing != Some(Fault::Lost) {
            if is_logged {
                memory.log();
            } else if !group.is_empty() {
                memory.durable = None;
            }
            let without_copy: Vec<PartitionId> = logged
                .iter()
                .map(|(partition, _)| *partition)
                .filter(|partition| {
                    copies == Some(Copies::Known) && !memory.state.changelog.contains_key(partition)
                })
                .collect();
            for (changes, window_ms) in group.iter().zip(windows) {
                if !without_copy.contains(&changes.partition) {
                    memory.state.apply(changes, window_ms);
                }
            }
            let logged = logged.iter().copied();
            memory
                .state
                .changelog
                .extend(logged.filter(|(partition, _)| !without_copy.contains(partition)));
        }
        match failing {
            None => Ok(()),
            Some(_) => {
                memory.ended = Some("an earlier write failed");
                Err(io(what, "made to fail"))
            }
        }
    }
}

/// Which copies of changelogs a write goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copies {
    Known,
    Made,
}

fn io(what: &'static str, why: &str) -> Error {
    Error::Io {
        what,
        why: why.to_owned(),
    }
}

impl Memory {
    fn window_ms(&self, topic: TopicId) -> Result<i64, Error> {
        match self.topics.get(usize::from(topic.0)) {
            Some(known) => Ok(known.window_ms),
            None => Err(Error::UnknownTopic(format!("number {}", topic.0))),
        }
    }

    /// The state before the next logged write is what a crash brings back.
    fn log(&mut self) {
        if self.durable.is_none() {
            self.durable = Some(Box::new(self.state.clone()));
        }
    }

    /// What a crash does, and nothing after a close. A bucket that was made exists, if empty.
    fn fall_back(&mut self) {
        if let Some(durable) = self.durable.take() {
            let lost = std::mem::replace(&mut self.state, *durable);
            for bucket in lost.buckets.into_keys() {
                self.state.buckets.entry(bucket).or_default();
            }
        }
    }
}

impl State {
    fn apply(&mut self, changes: &Changes, window_ms: i64) {
        let PartitionId { topic, partition } = changes.partition;
        for (key, closed) in &changes.closed {
            let bucket = Bucket::of(closed.first_seen_ms, window_ms);
            for ((of, other), records) in &mut self.buckets {
                if *of == topic && *other != bucket && other.overlaps(bucket) {
                    records.remove(&(partition, *key));
                }
            }
            let records = self.buckets.entry((topic, bucket)).or_default();
            records.insert((partition, *key), closed.clone());
        }
        for (key, offset) in &changes.removed {
            self.open.remove(&(changes.partition, *key, *offset));
        }
        for open in &changes.opened {
            let key = (changes.partition, first_key(open), open.offset);
            self.open.insert(key, open.clone());
        }
        if let Some(position) = changes.position {
            self.positions.insert(changes.partition, position);
        }
        if let Some(fence) = changes.fence {
            self.fences.insert(changes.partition, fence.0);
        }
        for act in &changes.acts {
            self.audit.insert(act.key(), act.clone());
        }
    }

    fn clear(&mut self, partition: PartitionId) {
        for ((topic, _), records) in &mut self.buckets {
            if *topic == partition.topic {
                records.retain(|(of, _), _| *of != partition.partition);
            }
        }
        self.open.retain(|(of, _, _), _| *of != partition);
        self.positions.remove(&partition);
        self.fences.remove(&partition);
        self.changelog.remove(&partition);
    }

    fn drop_buckets(&mut self, topic: TopicId, until_ms: i64) {
        self.buckets
            .retain(|(of, bucket), _| *of != topic || bucket.end_ms > until_ms);
    }

    fn buckets_of(&self, topic: TopicId) -> impl Iterator<Item = (Bucket, &Records)> {
        self.buckets
            .iter()
            .filter(move |((of, _), _)| *of == topic)
            .map(|((_, bucket), records)| (*bucket, records))
    }
}

impl Store for MemoryStore {
    fn identity(&self) -> Identity {
        self.lock().identity.clone()
    }

    fn past(&self) -> PastStarts {
        self.past
    }

    fn claim_cluster(&self, cluster: &str) -> Result<(), Error> {
        let mut memory = self.writable("claim the cluster")?;
        match &memory.identity.cluster {
            Some(found) if found != cluster => Err(Error::Foreign {
                path: PathBuf::from(":memory:"),
                what: "cluster",
                found: found.clone(),
                asked: cluster.to_owned(),
            }),
            _ => {
                memory.identity.cluster = Some(cluster.to_owned());
                Ok(())
            }
        }
    }

    fn topic(&self, name: &str) -> Result<TopicId, Error> {
        let memory = self.living("find a topic")?;
        self.opened_for
            .iter()
            .find(|spec| spec.name == name)
            .and_then(|spec| memory.topics.iter().position(|known| known.name == spec.name))
            .and_then(|number| u16::try_from(number).ok())
            .map(TopicId)
            .ok_or_else(|| Error::UnknownTopic(name.to_owned()))
    }

    fn load(&self, partition: PartitionId) -> Result<Known, Error> {
        let memory = self.living("load a partition")?;
        let mut open: Vec<Open> = memory
            .state
            .open
            .iter()
            .filter(|((of, _, _), _)| *of == partition)
            .map(|(_, open)| open.clone())
            .collect();
        open.sort_by_key(|open| open.offset);
        Ok(Known {
            position: memory.state.positions.get(&partition).copied(),
            fence: memory.state.fences.get(&partition).copied().unwrap_or(0),
            changelog: memory.state.changelog.get(&partition).copied(),
            open,
        })
    }

    fn load_open(&self, partition: PartitionId, names: &[(TokenKey, Offset)]) -> Result<Vec<Open>, Error> {
        let memory = self.living("load held messages")?;
        memory.window_ms(partition.topic)?;
        let open = |(key, offset): &(TokenKey, Offset)| memory.state.open.get(&(partition, *key, *offset));
        Ok(names.iter().filter_map(open).cloned().collect())
    }

    fn forget_position(&self, partition: PartitionId) -> Result<(), Error> {
        let mut memory = self.writable("forget a position")?;
        memory.state.positions.remove(&partition);
        memory.state.changelog.remove(&partition);
        memory.durable = None;
        Ok(())
    }

    fn seen_until(&self, partition: PartitionId) -> Result<Option<i64>, Error> {
        let memory = self.living("find the newest bucket")?;
        let newest = memory
            .state
            .buckets_of(partition.topic)
            .find(|(_, records)| records.keys().any(|(of, _)| *of == partition.partition));
        Ok(newest.map(|(bucket, _)| bucket.end_ms))
    }

    fn partitions(&self) -> Result<Vec<PartitionId>, Error> {
        let memory = self.living("list partitions")?;
        let state = &memory.state;
        let open = state.open.keys().map(|(partition, _, _)| partition);
        let begun = state.positions.keys().chain(state.changelog.keys());
        let all: BTreeSet<PartitionId> = begun.chain(open).copied().collect();
        Ok(all.into_iter().collect())
    }

    fn look_up(
        &self,
        partition: PartitionId,
        since_ms: i64,
        keys: &[TokenKey],
        hits: &mut Vec<Hit>,
    ) -> Result<(), Error> {
        let memory = self.living("look up")?;
        for (index, key) in keys.iter().enumerate() {
            let found = memory
                .state
                .buckets_of(partition.topic)
                .take_while(|(bucket, _)| bucket.end_ms > since_ms)
                .find_map(|(_, records)| records.get(&(partition.partition, *key)));
            hits.extend(found.map(|closed| Hit {
                key: index,
                closed: closed.clone(),
            }));
        }
        Ok(())
    }

    fn apply(&self, group: &[Changes]) -> Result<(), Error> {
        self.write("apply", group, None)
    }

    fn apply_logged(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), Error> {
        self.write("apply what is logged", group, Some((logged, Copies::Known)))
    }

    fn apply_restored(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), Error> {
        self.write("apply what is restored", group, Some((logged, Copies::Made)))
    }

    fn clear(&self, partition: PartitionId) -> Result<(), Error> {
        let mut memory = self.writable("clear a partition")?;
        memory.window_ms(partition.topic)?;
        memory.log();
        memory.state.clear(partition);
        Ok(())
    }

    fn drop_buckets(&self, topic: TopicId, until_ms: i64) -> Result<usize, Error> {
        let mut memory = self.writable("drop buckets")?;
        let before = memory.state.buckets.len();
        memory.state.drop_buckets(topic, until_ms);
        if let Some(durable) = &mut memory.durable {
            durable.drop_buckets(topic, until_ms);
        }
        Ok(before - memory.state.buckets.len())
    }

    fn window_size(&self, topic: TopicId) -> Result<WindowSize, Error> {
        let memory = self.living("measure a window")?;
        let mut size = WindowSize::default();
        let mut record = Vec::new();
        for (bucket, records) in memory.state.buckets_of(topic) {
            size.buckets += 1;
            let oldest = size
                .oldest_ms
                .map_or(bucket.start_ms, |start| start.min(bucket.start_ms));
            size.oldest_ms = Some(oldest);
            for closed in records.values() {
                record.clear();
                record::encode_closed(closed, bucket.start_ms, &mut record);
                size.bytes += (size_of::<i32>() + size_of::<TokenKey>() + record.len()) as u64;
            }
        }
        Ok(size)
    }

    fn audit(&self, entry: &AuditEntry) -> Result<(), Error> {
        let mut memory = self.writable("audit")?;
        memory.state.audit.insert(entry.key(), entry.clone());
        if let Some(durable) = &mut memory.durable {
            durable.audit.insert(entry.key(), entry.clone());
        }
        Ok(())
    }

    fn audited(&self) -> Result<Vec<AuditEntry>, Error> {
        let memory = self.living("read the audit")?;
        Ok(memory.state.audit.values().cloned().collect())
    }

    fn close(&self) -> Result<(), Error> {
        let mut memory = self.writable("close")?;
        memory.running = false;
        memory.durable = None;
        memory.ended = Some("the store is closed");
        Ok(())
    }
}
