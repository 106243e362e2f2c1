//! The rig: a log per partition, a process that can be started, drained, crashed and started again, and everything
//! that it did to the outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::letterbox::Letterbox;
use super::script::{Edge, Script, Side};
#[cfg(test)]
use crate::accounts::Account;
use crate::accounts::Balance;
use crate::assignments::{Assignments, Facts, Parts};
use crate::attempt::Factory;
use crate::broker::{CommitMark, Committed};
use crate::clock::Clock;
use crate::commits::{Commits, Due};
use crate::config::{Cold, Durability, Limits, Start, TopicPolicy};
use crate::desk::Desk;
use crate::error::Error;
use crate::limits::{Budget, Waker};
use crate::message::{BatchBuilder, Kept, NextOffset, Offset};
use crate::metrics::TopicMeters;
use crate::outcome::{Open, Stage};
use crate::partition::{Starts, Wiring};
use crate::pulse::Pulse;
use crate::store::lookups::Lookups;
use crate::store::memory::{Fault, MemoryStore};
use crate::store::{PartitionId, Store, TopicSpec};
use crate::token::{Extractor, Reader};

#[cfg(test)]
mod arrivals;
mod faults;
mod journals;
mod rebuilds;
mod remains;

#[cfg(test)]
pub(crate) use arrivals::Arriving;
use journals::{Inline, Late};

/// How much time passes between two deliveries.
const STEP: Duration = Duration::from_millis(10);

/// Turns in which nothing is left to wait for. Once is not enough: what one record completes may wake work that was
/// behind it.
const SETTLED_AFTER: u32 = 3;

fn dies_at(script: &Option<Script>, edge: Edge, side: Side) -> bool {
    script.as_ref().is_some_and(|script| script.dies_at(edge, side))
}

/// See the module.
pub(crate) struct Rig {
    topic: String,
    pub(crate) policy: TopicPolicy,
    pub(crate) limits: Limits,
    /// Where states and offsets are made durable. Replicated, a group is what a transaction is: letters and offset come with it.
    pub(crate) durability: Durability,
    pub(crate) cold: Cold,
    /// A rebuild ends after so many messages, as by a kill.
    pub(crate) rebuild_dies_after: Option<usize>,
    pub(crate) max_clock_jump: Duration,
    pub(crate) commit_every: Duration,
    pub(crate) dead_letter_topic: String,
    pub(crate) audit_topic: Option<String>,
    /// Where orders find the partitions that are served.
    pub(crate) desk: Desk,
    readers: Vec<Reader>,
    factory: Arc<dyn Factory>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Clock,
    pub(crate) letterbox: Letterbox,
    log: BTreeMap<i32, Vec<(i64, Kept)>>,
    committed: BTreeMap<i32, Committed>,
    process: Option<Process>,
    started: bool,
    pub(crate) pulse: Pulse,
    /// How long a group takes to become durable.
    pub(crate) sync: Duration,
    /// How long an answer of the store takes that was read when it was asked.
    #[cfg(test)]
    pub(crate) answers_after: Duration,
    /// Where the process is to die, if that is scripted.
    pub(crate) script: Option<Script>,
    /// The write of the next start that fails, and how.
    fails: Option<(u64, Fault)>,
}

struct Process {
    assignments: Assignments,
    commits: Commits,
    failures: mpsc::UnboundedReceiver<Error>,
    next: BTreeMap<i32, usize>,
}

impl Rig {
    pub(crate) fn new(
        topic: &str,
        policy: TopicPolicy,
        readers: Vec<Reader>,
        factory: Arc<dyn Factory>,
    ) -> Self {
        Self {
            topic: topic.to_owned(),
            policy,
            limits: Limits::of(Durability::Local),
            durability: Durability::Local,
            cold: Cold::Refuse,
            rebuild_dies_after: None,
            max_clock_jump: Duration::from_secs(3_600),
            commit_every: Duration::from_millis(100),
            dead_letter_topic: format!("{topic}.dead-letters"),
            audit_topic: None,
            desk: Desk::default(),
            readers,
            factory,
            store: Arc::new(MemoryStore::new("test", &[])),
            started: false,
            clock: Clock::manual(1_700_000_000_000),
            letterbox: Letterbox::default(),
            log: BTreeMap::new(),
            committed: BTreeMap::new(),
            process: None,
            // The rig has no poll thread that could stand still; a test of that puts its own here.
            pulse: Pulse::new(crate::clock::now(), Duration::MAX),
            sync: Duration::ZERO,
            #[cfg(test)]
            answers_after: Duration::ZERO,
            script: None,
            fails: None,
        }
    }

    /// Appends a message to a partition's log.
    pub(crate) fn send(&mut self, partition: i32, message: Kept) -> i64 {
        let log = self.log.entry(partition).or_default();
        let offset = log.last().map_or(0, |(offset, _)| offset + 1);
        log.push((offset, message));
        offset
    }

    /// The topic has that many partitions, empty ones included.
    pub(crate) fn partitions(&mut self, count: i32) {
        for partition in 0..count {
            self.log.entry(partition).or_default();
        }
    }

    /// The message at an offset of a partition's log.
    pub(crate) fn message(&self, partition: i32, offset: Offset) -> Option<&Kept> {
        let log = self.log.get(&partition)?;
        log.iter()
            .find(|(at, _)| *at == offset.0)
            .map(|(_, message)| message)
    }

    fn end_of_log(&self, partition: i32) -> i64 {
        let last = self.log.get(&partition).and_then(|log| log.last());
        last.map_or(0, |(offset, _)| offset + 1)
    }

    pub(crate) fn extractor(&self) -> Extractor {
        let token_bytes_max = self.limits.token_bytes.0 as usize;
        Extractor::new(&self.topic, self.readers.clone(), token_bytes_max)
    }

    fn spec(&self) -> TopicSpec {
        TopicSpec {
            name: self.topic.clone(),
            window_ms: crate::clock::millis(self.policy.window),
        }
    }

    /// Starts a process on the store and assigns it every partition that has messages.
    pub(crate) async fn start(&mut self) -> Result<(), Error> {
        self.store = Arc::new(match self.started {
            true => self.store.restart(&[self.spec()]),
            false => MemoryStore::new("test", &[self.spec()]),
        });
        self.started = true;
        if let Some((writes, fault)) = self.fails.take() {
            self.store.fail_after(writes, fault);
        }
        let store: Arc<dyn Store> = Arc::clone(&self.store) as Arc<dyn Store>;
        let commits = Commits::default();
        let budget = Budget::new(&self.limits, Waker::new(|| {}));
        let wiring = Wiring {
            topic: self.topic.as_str().into(),
            policy: self.policy.clone(),
            dead_letter_topic: self.dead_letter_topic.clone(),
            audit_topic: self.audit_topic.clone(),
            limits: self.limits.clone(),
            max_clock_jump: self.max_clock_jump,
            commit_every: self.commit_every,
            durability: self.durability,
            extractor: self.extractor(),
            factory: Arc::clone(&self.factory),
            clock: self.clock.clone(),
            lookups: self.lookups(&store),
            journal: match self.sync {
                Duration::ZERO => Arc::new(Inline {
                    store: Arc::clone(&store),
                    letterbox: self.letterbox.clone(),
                    script: self.script.clone(),
                }),
                delay => Arc::new(Late::start(Arc::clone(&store), &self.letterbox, delay)),
            },
            letters: Arc::new(self.letterbox.watched_by(self.script.clone())),
            commits: commits.clone(),
            budget: budget.clone(),
            meters: TopicMeters::new(&self.topic),
            starts: Starts::new(&self.policy, crate::clock::now()),
            seed: 7,
            unclean_starts: store.past().unclean,
            pulse: self.pulse.clone(),
            window_full: AtomicBool::new(false),
        };
        let id = store.topic(&self.topic)?;
        let (failures, failed) = mpsc::unbounded_channel();
        let parts = Parts {
            topics: [(self.topic.clone(), (id, Arc::new(wiring)))].into(),
            store,
            commits: commits.clone(),
            budget,
            desk: self.desk.clone(),
            clock: self.clock.clone(),
            cold: self.cold,
            start: Start::Earliest,
            deleted: crate::config::Deleted::Refuse,
            durability: self.durability,
            runtime: Handle::current(),
            failures,
        };
        let assignments = Assignments::new(parts);
        self.process = Some(Process {
            assignments,
            commits,
            failures: failed,
            next: BTreeMap::new(),
        });
        let partitions: Vec<_> = self.log.keys().copied().collect();
        for partition in partitions {
            self.assign(partition)?;
        }
        Ok(())
    }

    fn lookups(&self, store: &Arc<dyn Store>) -> Lookups {
        #[cfg(test)]
        if !self.answers_after.is_zero() {
            return Lookups::late(Arc::clone(store), self.answers_after);
        }
        Lookups::inline(Arc::clone(store))
    }

    /// Assigns one partition to the running process.
    pub(crate) fn assign(&mut self, partition: i32) -> Result<(), Error> {
        let facts = self.facts(partition);
        self.assign_with(partition, &facts)
    }

    /// What the broker knows of a partition.
    fn facts(&self, partition: i32) -> Facts {
        Facts {
            committed: self.committed_of(partition),
            low: 0,
            high: self.end_of_log(partition),
        }
    }

    fn assign_with(&mut self, partition: i32, facts: &Facts) -> Result<(), Error> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let Some(id) = process.assignments.id(&self.topic, partition) else {
            return Ok(());
        };
        if dies_at(&self.script, Edge::Assigned { partition }, Side::Before) {
            return Ok(());
        }
        let mut prepared = process.assignments.prepare(id, facts)?;
        if let Some(plan) = prepared.rebuild().cloned() {
            let Some(point) = self.read_back(plan)? else {
                return Ok(());
            };
            let Some(process) = &mut self.process else {
                return Ok(());
            };
            process.assignments.rebuilt(&mut prepared, point)?;
        }
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        if self.durability == Durability::Replicated {
            // The rig's journals keep the order: what comes after it is durable after it.
            prepared.raise_fence();
        }
        let start = prepared.start;
        let mark = CommitMark::from_metadata(&process.assignments.mark(start));
        self.committed.insert(
            partition,
            Committed {
                next: start.next,
                mark,
            },
        );
        if dies_at(&self.script, Edge::Assigned { partition }, Side::After) {
            return Ok(());
        }
        // Where it is not written yet, it is the first that goes into the journal.
        let _ = prepared.raise_fence();
        process.assignments.serve(prepared);
        let log = self
            .log
            .get(&partition)
            .map_or(0, |log| log.partition_point(|(offset, _)| *offset < start.next.0));
        process.next.insert(partition, log);
        Ok(())
    }

    /// The next start runs another handler.
    pub(crate) fn replace(&mut self, factory: Arc<dyn Factory>) {
        self.factory = factory;
    }

    /// The next start reads tokens from other sources.
    pub(crate) fn read_by(&mut self, readers: Vec<Reader>) {
        self.readers = readers;
    }

    /// Whether there is a process.
    pub(crate) const fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Delivers what is in the logs and lets virtual time pass; what is due is committed.
    pub(crate) async fn run_for(&mut self, time: Duration) {
        let mut left = time;
        loop {
            let wait = STEP.min(left);
            self.turn(wait).await;
            left = left.saturating_sub(wait);
            if left.is_zero() {
                return;
            }
        }
    }

    /// One turn of what the poll thread does.
    async fn turn(&mut self, wait: Duration) {
        self.deliver();
        crate::clock::sleep_until(crate::clock::now() + wait).await;
        self.clock.advance(wait);
        self.commit();
    }

    /// Runs until nothing is left to wait for, at most that long; false where something still is.
    pub(crate) async fn settle(&mut self, within: Duration) -> bool {
        let mut left = within;
        let mut settled = 0;
        while settled < SETTLED_AFTER {
            if left.is_zero() || self.has_failed() {
                return false;
            }
            self.run_for(STEP).await;
            left = left.saturating_sub(STEP);
            settled = if self.is_settled() { settled + 1 } else { 0 };
        }
        true
    }

    /// Whether everything sent is delivered, decided and committed, and no record waits for anybody but a person.
    fn is_settled(&self) -> bool {
        let Some(process) = &self.process else { return true };
        let rests = |open: &Open| matches!(open.stage, Stage::Held { verdict: None, .. });
        let decided = process.assignments.budget().room() == self.limits.in_flight;
        decided
            && process.next.iter().all(|(partition, next)| {
                let end = self.end_of_log(*partition);
                let delivered = self.log.get(partition).is_none_or(|log| *next >= log.len());
                let committed = self
                    .committed_offset(*partition)
                    .is_some_and(|next| next.0 >= end);
                let open = self.open(*partition).unwrap_or_default();
                delivered && committed && open.iter().all(rests)
            })
    }

    fn has_failed(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| !process.failures.is_empty())
    }

    fn deliver(&mut self) {
        let Some(process) = &mut self.process else { return };
        for (partition, next) in &mut process.next {
            let Some(id) = process.assignments.id(&self.topic, *partition) else {
                continue;
            };
            let Some(log) = self.log.get(partition) else {
                continue;
            };
            let room = process.assignments.budget().room();
            if *next >= log.len() || room == 0 || !process.assignments.has_room(id) {
                continue;
            }
            let mut batch = BatchBuilder::new(self.topic.as_str().into(), *partition, 16, 1_024);
            for (offset, message) in log.iter().skip(*next).take(room.min(64)) {
                let one = message.into_batch(self.topic.as_str().into(), *partition, Offset(*offset));
                let Some(raw) = one.get(0) else { continue };
                batch.push(
                    raw.offset(),
                    raw.timestamp_ms(),
                    raw.key(),
                    raw.payload(),
                    raw.headers(),
                );
            }
            *next += batch.len();
            process.assignments.offer(id, batch.finish());
        }
    }

    fn commit(&mut self) {
        let Some(process) = &self.process else { return };
        if self.durability == Durability::Replicated {
            for id in process.assignments.ids() {
                let known = self.store.load_position(id).ok().flatten();
                if let (Some(known), Some(committed)) = (known, self.committed.get_mut(&id.partition)) {
                    committed.next = known.commit_point;
                }
            }
        }
        for Due { id, point, .. } in process.commits.take_due(crate::clock::now()) {
            let mark = CommitMark::from_metadata(&process.assignments.mark(point));
            let edge = Edge::Commit {
                partition: id.partition,
                next: point.next.0,
            };
            if dies_at(&self.script, edge.clone(), Side::Before) {
                return;
            }
            self.committed.insert(
                id.partition,
                Committed {
                    next: point.next,
                    mark,
                },
            );
            if dies_at(&self.script, edge, Side::After) {
                return;
            }
            process
                .commits
                .answered(id, point.next, true, crate::clock::now());
        }
    }

    /// The process dies where it stands: nothing more is written, sent or committed.
    pub(crate) fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            let ids = process.assignments.ids();
            process.assignments.end(&ids);
        }
        self.store.crash();
        self.store = Arc::new(self.store.offline());
    }

    /// Drains every partition; `revoked` where they go to another member. Returns the books.
    pub(crate) async fn drain(&mut self, budget: Duration, revoked: bool) -> Vec<Balance> {
        let ids = self.process.as_ref().map(|process| process.assignments.ids());
        self.drain_some(&ids.unwrap_or_default(), budget, revoked).await
    }

    /// The same of some partitions.
    async fn drain_some(&mut self, ids: &[PartitionId], budget: Duration, revoked: bool) -> Vec<Balance> {
        let Some(process) = &self.process else {
            return Vec::new();
        };
        let deadline = process.assignments.drain(ids, budget, revoked);
        while let Some(process) = &self.process {
            if process.assignments.are_drained(ids) || crate::clock::now() > deadline + Duration::from_secs(1)
            {
                break;
            }
            crate::clock::sleep_until(crate::clock::now() + Duration::from_millis(5)).await;
            self.clock.advance(Duration::from_millis(5));
        }
        self.commit();
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        process.assignments.end(ids);
        process.assignments.balances()
    }

    /// A clean end: drain, then close the store.
    pub(crate) async fn stop(&mut self) -> Vec<Balance> {
        let balances = self.drain(Duration::from_secs(10), false).await;
        self.process = None;
        // The memory store has nothing that can fail in closing.
        let _ = self.store.close();
        self.store = Arc::new(self.store.offline());
        balances
    }

    /// The books of every assignment of the running process, added up.
    pub(crate) fn books(&self) -> Balance {
        let balances = self
            .process
            .as_ref()
            .map(|process| process.assignments.balances());
        Balance::sum(&balances.unwrap_or_default())
    }

    /// What stopped the process, if anything did.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        self.process.as_mut()?.failures.try_recv().ok()
    }

    /// The offset committed for a partition.
    pub(crate) fn committed_offset(&self, partition: i32) -> Option<NextOffset> {
        self.committed_of(partition).map(|committed| committed.next)
    }

    /// What the group has committed: by itself, or with the last of its transactions.
    fn committed_of(&self, partition: i32) -> Option<Committed> {
        if self.durability == Durability::Local {
            return self.committed.get(&partition).cloned();
        }
        let position = self.store.load_position(self.id(partition)?).ok()??;
        Some(Committed {
            next: position.commit_point,
            mark: None,
        })
    }

    /// The partition, as the store numbers it.
    pub(crate) fn id(&self, partition: i32) -> Option<PartitionId> {
        Some(PartitionId {
            topic: self.store.topic(&self.topic).ok()?,
            partition,
        })
    }
}

/// What only the schedules do.
#[cfg(test)]
impl Rig {
    /// Somebody else commits: another member, or a person who resets the group.
    pub(crate) fn commit_as(&mut self, partition: i32, next: i64, mark: Option<CommitMark>) {
        let next = NextOffset(next);
        self.committed.insert(partition, Committed { next, mark });
    }

    /// The topic is deleted and made again: its offsets start anew, and Kafka drops what was committed.
    pub(crate) fn recreate(&mut self) {
        self.log.clear();
        self.committed.clear();
    }

    /// What is committed for a partition.
    #[allow(dead_code, reason = "for the next schedule")]
    pub(crate) fn committed(&self, partition: i32) -> Option<&Committed> {
        self.committed.get(&partition)
    }

    /// Forgets what was committed for a partition, as a broker does after its retention.
    #[allow(dead_code, reason = "for the next schedule")]
    pub(crate) fn forget_commit(&mut self, partition: i32) {
        self.committed.remove(&partition);
    }

    /// The next start finds an empty directory.
    pub(crate) fn lose_the_disk(&mut self) {
        self.started = false;
    }

    /// What lies in one account.
    pub(crate) fn account(&self, account: Account) -> u64 {
        self.books().of(account)
    }
}
