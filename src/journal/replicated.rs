//! The replicated journal: states, dead letters and commit points in one transaction, and only then in the store.
//!
//! One thread makes groups durable: it takes whatever has been submitted, writes it as one transaction, and hands it to a
//! second thread that applies it to the store and acknowledges; while one group is applied the next is written, and the
//! one after collects. Nobody waits on a fixed tick.
//!
//! The order inside one turn is what keeps a process that was frozen or replaced from writing (schedules 1 and 2): first
//! ask which member of the group this is, then ask the gate of every submission, then write. A gate is cleared before
//! its partition is given away, and the broker refuses a member of an older generation; so what passes both belonged to
//! this process when it was written. That works because every transaction carries the commit point of every partition it
//! touches.
//!
//! What was not written for sure is made again, without those that are gone. Where nobody knows how a commit ended, a new
//! producer of the same name ends the old one, and the changelog says whether the group is there. What runs meanwhile
//! goes on (schedule 9).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::extents::Extents;
use super::frame::{self, Head, Owner, Session};
use super::{Acks, Failure, Journal, Submission};
use crate::attempt::panic_text;
use crate::broker::Letter;
use crate::clock::{self, Clock};
use crate::fence::Gate;
use crate::ledger::CommitPoint;
use crate::store::{Changes, PartitionId, Store, TopicId};
use parked::Parked;
pub(crate) use rewrite::PORTION_BYTES;
use rewrite::Rewrite;
use watch::Watch;

mod parked;
mod rewrite;
#[cfg(test)]
mod tests;
mod watch;

/// What the journal asks of Kafka. Every call blocks, and returns within the time that its implementation states.
pub(crate) trait Transactions: Send + 'static {
    /// This process as a member of the group.
    type Member;

    /// Who this process is in the group at this moment.
    ///
    /// # Errors
    /// Where it is no member, or another than its partitions were assigned to: what Kafka would accept unchecked.
    fn member(&mut self) -> Result<Self::Member, String>;

    /// Writes one group in one transaction, and returns where each partition's changelog goes on.
    ///
    /// # Errors
    /// [`Failed`], with what is known of the group.
    fn commit(&mut self, member: &Self::Member, group: &Group) -> Result<Ends, Failed>;

    /// Replaces the producer: whatever the old one left open is ended, one way or the other.
    ///
    /// # Errors
    /// Where that is not possible within a bounded time.
    fn renew(&mut self) -> Result<(), String>;

    /// Looks for a group in the changelogs, from those offsets on. Everything that was committed before is to be seen.
    ///
    /// # Errors
    /// Where a changelog cannot be read within a bounded time.
    fn find(&mut self, session: Session, number: u64, from: &Ends) -> Result<Option<Ends>, String>;

    /// Those of some topics that are not on the cluster. One of which nobody knows is not among them.
    fn missing(&mut self, topics: &BTreeSet<String>) -> BTreeSet<String>;
}

/// The offset at which each partition's changelog goes on.
pub(crate) type Ends = BTreeMap<PartitionId, i64>;

/// What is written together.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) frames: Vec<(PartitionId, Vec<u8>)>,
    pub(crate) letters: Vec<Letter>,
    pub(crate) points: BTreeMap<PartitionId, CommitPoint>,
}

/// A transaction that did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Nothing of it will ever be seen. It may be tried again.
    Aborted(String),
    /// Nothing of it will ever be seen, and it would fail again.
    Refused(String),
    /// Nobody knows, and the producer is of no more use.
    Unknown(String),
}

/// How the journal writes.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) owners: BTreeMap<TopicId, Owner>,
    /// Hears of what is written.
    pub(crate) extents: Extents,
    /// No frame is longer, unless one record is.
    pub(crate) frame_bytes_max: usize,
    /// What is written again in one transaction, in bytes of open records.
    pub(crate) rewrite_bytes: usize,
    /// A group that could not be written for so long ends the consumer.
    pub(crate) give_up: Duration,
    /// A call that has not returned for so long ends it too.
    pub(crate) call_max: Duration,
    pub(crate) clock: Clock,
}

/// The handle of the journal's threads. They end when the last handle is gone and everything submitted is written.
#[derive(Debug, Clone)]
pub(crate) struct Replicated {
    orders: mpsc::Sender<Order>,
}

/// The threads of the journal.
#[derive(Debug)]
pub(crate) struct Threads {
    writing: thread::JoinHandle<()>,
    watch: Watch,
    /// Nobody submits any more.
    ending: Arc<AtomicBool>,
}

impl Threads {
    /// Waits for their end, unless a call to the broker never returns. What belongs to assignments that are over is not asked
    /// after any more.
    pub(crate) fn join(self) {
        self.ending.store(true, Ordering::Release);
        while !self.writing.is_finished() {
            if self.watch.is_overdue() {
                return;
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        let _ = self.writing.join();
    }
}

#[derive(Debug)]
enum Order {
    Submit(Submission),
    /// To be told when everything before is applied.
    Settle(mpsc::Sender<()>),
    Rewrite(Rewrite),
}

/// What is durable, on its way to the store.
enum Applied {
    Group {
        changes: Vec<Changes>,
        ends: Ends,
        bytes: BTreeMap<PartitionId, u64>,
        acks: Vec<(Arc<Acks>, u64)>,
    },
    Settle(mpsc::Sender<()>),
}

/// Submissions of one transaction at most.
const GROUP_MAX: usize = 256;

/// Entries of one transaction, about: a larger one costs little less for each, and is waited for for longer.
const ENTRIES_MAX: usize = 30_000;

/// Groups that are durable and wait for the store.
const APPLYING_MAX: usize = 2;

/// Between two tries of a group that was aborted: at first, and at most. A rebalance takes about as long.
const AGAIN: Duration = Duration::from_millis(10);
const AGAIN_MAX: Duration = Duration::from_millis(200);

impl Replicated {
    /// Starts the journal's threads. `broken` is called once, with the reason, when nothing more can be written.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start<T: Transactions>(
        transactions: T,
        store: Arc<dyn Store>,
        rules: Rules,
        broken: impl Fn(String) + Send + Sync + 'static,
    ) -> std::io::Result<(Self, Threads)> {
        let (orders, inbox) = mpsc::channel();
        let broken: Arc<dyn Fn(String) + Send + Sync> = Arc::new(broken);
        let (watch, watching) = Watch::start(rules.call_max, Arc::clone(&broken))?;
        let (apply, applying) = mpsc::sync_channel(APPLYING_MAX);
        let applier = {
            let (store, extents) = (Arc::clone(&store), rules.extents.clone());
            thread::Builder::new()
                .name("hapax-apply".into())
                .spawn(move || apply_all(&*store, &extents, &applying))?
        };
        let ending = Arc::<AtomicBool>::default();
        let writer = Writer {
            transactions,
            store,
            session: Session::create(),
            number: 0,
            bytes: BTreeMap::new(),
            unresolved: None,
            rules,
            apply,
            watch: watch.clone(),
            ending: Arc::clone(&ending),
            rewriting: VecDeque::new(),
            parked: Parked::default(),
        };
        let writing = thread::Builder::new()
            .name("hapax-journal".into())
            .spawn(move || {
                let served = catch_unwind(AssertUnwindSafe(|| writer.serve(&inbox)));
                drop(watching);
                let applied = applier.join();
                let why = match (served, applied) {
                    (Ok(Ok(())), Ok(Ok(()))) => return,
                    // The store's reason is the cause where both have one.
                    (_, Ok(Err(why))) | (Ok(Err(why)), _) => why,
                    (Err(panic), _) | (_, Err(panic)) => {
                        format!("the journal ended by a panic: {}", panic_text(&*panic))
                    }
                };
                broken(why.clone());
                // What is submitted from here on is refused until every handle is gone.
                for order in inbox {
                    match order {
                        Order::Submit(submission) => submission.acks.fail(Failure::Broken(why.clone())),
                        // Dropped unanswered: whoever waits sees that it is over.
                        Order::Settle(_) | Order::Rewrite(_) => {}
                    }
                }
            })?;
        let threads = Threads {
            writing,
            watch,
            ending,
        };
        Ok((Self { orders }, threads))
    }

    /// Waits until everything that was submitted before is applied to the store, or refused. False where the journal has
    /// ended.
    #[cfg(test)]
    pub(crate) fn settle(&self) -> bool {
        self.settling().recv().is_ok()
    }

    /// The same for whoever cannot wait: told when everything is applied, and hung up on where the journal has ended.
    pub(crate) fn settling(&self) -> mpsc::Receiver<()> {
        let (done, settled) = mpsc::channel();
        // Where the journal has ended the other end is dropped, which says so.
        let _ = self.orders.send(Order::Settle(done));
        settled
    }

    /// Writes what is open in a partition again, with where it stands, so that no frame before is needed for it (`rewrite.rs`). How
    /// many bytes that was is told once all of it is committed; nothing is told where it was not.
    ///
    /// What of the changelog is not applied yet is not in `store`, and may not be written again: it lies behind everything that is.
    pub(crate) fn rewrite(&self, store: &dyn Store, id: PartitionId, gate: Gate) -> mpsc::Receiver<u64> {
        let (done, rewritten) = mpsc::channel();
        match Rewrite::of(store, id, gate, done) {
            // Where the journal has ended the other end is dropped, which says so.
            Ok(rewrite) => drop(self.orders.send(Order::Rewrite(rewrite))),
            // Whoever writes to it finds out more.
            Err(error) => tracing::warn!(%error, "what is open could not be read, and is not written again"),
        }
        rewritten
    }
}

impl Journal for Replicated {
    fn submit(&self, submission: Submission) {
        if let Err(mpsc::SendError(Order::Submit(submission))) = self.orders.send(Order::Submit(submission)) {
            submission
                .acks
                .fail(Failure::Broken("the journal's thread is gone".into()));
        }
    }
}

struct Writer<T> {
    transactions: T,
    store: Arc<dyn Store>,
    session: Session,
    number: u64,
    /// How long the frames of the last group are.
    bytes: BTreeMap<PartitionId, u64>,
    /// The number of a group that may be written, or not: nothing else is written before that is known.
    unresolved: Option<u64>,
    rules: Rules,
    apply: mpsc::SyncSender<Applied>,
    watch: Watch,
    ending: Arc<AtomicBool>,
    /// Partitions of which something is to be written again.
    rewriting: VecDeque<Rewrite>,
    parked: Parked,
}

impl<T: Transactions> Writer<T> {
    /// Writes until every handle is gone, or says why it writes no more.
    fn serve(mut self, inbox: &mpsc::Receiver<Order>) -> Result<(), String> {
        let mut group = Vec::new();
        loop {
            let mut next = self.next(inbox);
            if matches!(next, Err(mpsc::TryRecvError::Disconnected)) {
                return Ok(());
            }
            self.parked.release(&mut group, &mut self.transactions);
            let mut settling = None;
            let mut entries = 0;
            while let Ok(order) = next {
                match order {
                    Order::Submit(submission) => {
                        entries += submission.entries();
                        group.push(submission);
                    }
                    Order::Settle(done) => {
                        settling = Some(done);
                        break;
                    }
                    Order::Rewrite(rewrite) => {
                        self.rewriting.push_back(rewrite);
                        break;
                    }
                }
                if group.len() >= GROUP_MAX || entries >= ENTRIES_MAX {
                    break;
                }
                next = inbox.try_recv();
            }
            self.parked.set_aside(&mut group, &mut self.transactions);
            if let Err(why) = self.write(&mut group) {
                for submission in group.drain(..) {
                    submission.acks.fail(Failure::Broken(why.clone()));
                }
                return Err(why);
            }
            if let Some(done) = settling {
                self.hand_on(Applied::Settle(done))?;
            }
            self.rewrite_some()?;
        }
    }

    /// Waits for an order, unless there is something else to do.
    fn next(&self, inbox: &mpsc::Receiver<Order>) -> Result<Order, mpsc::TryRecvError> {
        // While something is written again, portions of that and the groups of others take turns.
        if !self.rewriting.is_empty() {
            return inbox.try_recv();
        }
        match self.parked.wait() {
            None => inbox.recv().map_err(mpsc::TryRecvError::from),
            Some(wait) => inbox.recv_timeout(wait).map_err(|error| match error {
                mpsc::RecvTimeoutError::Timeout => mpsc::TryRecvError::Empty,
                mpsc::RecvTimeoutError::Disconnected => mpsc::TryRecvError::Disconnected,
            }),
        }
    }

    /// Writes one group; afterwards `group` is empty, and each of it is on its way to the store or refused.
    fn write(&mut self, group: &mut Vec<Submission>) -> Result<(), String> {
        let since = clock::now();
        let (mut wait, mut last) = (AGAIN, None);
        while !group.is_empty() {
            let acks: Vec<_> = group.iter().map(|s| Arc::clone(&s.acks)).collect();
            let watch = self.watch.clone();
            let turn = watch.turn(acks);
            let failed = self.turn(group);
            drop(turn);
            match failed {
                Ok(()) => {}
                Err(Failed::Refused(why)) => return Err(why),
                Err(Failed::Aborted(why) | Failed::Unknown(why)) => {
                    if clock::now().saturating_duration_since(since) > self.rules.give_up {
                        return Err(format!(
                            "nothing could be written to the changelog for {:?}: {why}",
                            self.rules.give_up
                        ));
                    }
                    if last.as_ref() != Some(&why) {
                        tracing::warn!(%why, "a group was not written, and is made again until it is");
                    }
                    last = Some(why);
                    thread::park_timeout(wait);
                    wait = AGAIN_MAX.min(wait * 2);
                }
            }
        }
        Ok(())
    }

    /// One try.
    fn turn(&mut self, group: &mut Vec<Submission>) -> Result<(), Failed> {
        if self.ending.load(Ordering::Acquire) && group.iter().all(|submission| !submission.gate.accepts()) {
            // A stop does not wait for a broker that is away: whether it is there, the next start reads in the changelog.
            for over in group.drain(..) {
                over.acks.fail(Failure::Fenced);
            }
            return Ok(());
        }
        if let Some(number) = self.unresolved {
            // Before anything else, and for the group as it was: it may be there.
            let found = self.find_out(group, number)?;
            self.unresolved = None;
            if let Some(ends) = found {
                return self.written(group, ends);
            }
        }
        // In this order: whoever is told first that it is a member, and then that its assignments live, cannot have lost
        // them in between without the generation that it was told being refused.
        let member = self.transactions.member();
        for over in group.extract_if(.., |submission| {
            !submission.gate.accepts() && !crate::crash::is_off("fence")
        }) {
            over.acks.fail(Failure::Fenced);
        }
        if group.is_empty() {
            return Ok(());
        }
        let member = member.map_err(Failed::Aborted)?;
        self.number += 1;
        let made = self.make(group)?;
        self.bytes.clear();
        for (id, frame) in &made.frames {
            *self.bytes.entry(*id).or_default() += frame.len() as u64;
        }
        crate::crash::point("before-transaction");
        let outcome = self.transactions.commit(&member, &made);
        if let Err(Failed::Unknown(_)) = outcome {
            self.unresolved = Some(self.number);
        }
        let ends = outcome?;
        crate::crash::point("after-transaction");
        self.written(group, ends)
    }

    /// The group is durable: the store and whoever waits are told.
    fn written(&self, group: &mut Vec<Submission>, ends: Ends) -> Result<(), Failed> {
        let mut changes = Vec::with_capacity(group.len());
        let mut acks = Vec::with_capacity(group.len());
        for submission in group.drain(..) {
            changes.push(submission.changes);
            acks.push((submission.acks, submission.number));
        }
        let bytes = self.bytes.clone();
        self.hand_on(Applied::Group {
            changes,
            ends,
            bytes,
            acks,
        })
        .map_err(Failed::Refused)
    }

    fn make(&self, group: &[Submission]) -> Result<Group, Failed> {
        let mut made = Group::default();
        let written_ms = self.rules.clock.wall_ms();
        for submission in group {
            let id = submission.changes.partition;
            let position = submission.changes.position.map(|position| CommitPoint {
                next: position.commit_point,
                time_ms: position.time_ms,
            });
            let (Some(owner), Some(committed)) =
                (self.rules.owners.get(&id.topic), position.or(submission.stands))
            else {
                return Err(Failed::Refused(format!(
                    "a group of {id:?} has no changelog or no commit point"
                )));
            };
            let point = position.unwrap_or_else(|| frame::nowhere(committed.time_ms));
            let head = Head {
                owner: *owner,
                session: self.session,
                number: self.number,
                fence: submission.gate.fence(),
                point,
                written_ms,
            };
            let frames = frame::encode(&head, &submission.changes, self.rules.frame_bytes_max);
            made.frames.extend(frames.into_iter().map(|frame| (id, frame)));
            made.letters.extend(submission.letters.iter().cloned());
            made.points.insert(id, committed);
        }
        Ok(made)
    }

    /// Nobody heard how the commit of that number ended: the old producer is ended, and the changelog asked.
    fn find_out(&mut self, group: &[Submission], number: u64) -> Result<Option<Ends>, Failed> {
        tracing::warn!(
            number,
            "nobody knows whether a group was written; the changelog is asked"
        );
        let mut from = Ends::new();
        for submission in group {
            let id = submission.changes.partition;
            // What is applied may lag behind, and is never ahead.
            let known = self.store.visit(id, &mut |_| {});
            let next = known
                .map_err(|error| Failed::Refused(crate::error::chain(&error)))?
                .changelog;
            from.insert(id, next.unwrap_or(0));
        }
        self.transactions.renew().map_err(Failed::Unknown)?;
        self.transactions
            .find(self.session, number, &from)
            .map_err(Failed::Unknown)
    }

    fn hand_on(&self, applied: Applied) -> Result<(), String> {
        // The applier says itself why it has ended.
        self.apply
            .send(applied)
            .map_err(|_| "the store takes no more writes".to_owned())
    }
}

/// Applies what is durable until there is no more, or says why the store takes nothing.
fn apply_all(store: &dyn Store, extents: &Extents, applying: &mpsc::Receiver<Applied>) -> Result<(), String> {
    for applied in applying {
        match applied {
            Applied::Group {
                changes,
                ends,
                bytes,
                acks,
            } => {
                let logged: Vec<_> = ends.into_iter().collect();
                if let Err(error) = store.apply_logged(&changes, &logged) {
                    let why = crate::error::chain(&error);
                    for (acks, _) in acks {
                        acks.fail(Failure::Broken(why.clone()));
                    }
                    return Err(why);
                }
                for (id, next) in logged {
                    let of_it = changes.iter().filter(|changes| changes.partition == id);
                    extents.extend(id, next, bytes.get(&id).copied().unwrap_or(0), of_it);
                }
                for (acks, number) in acks {
                    acks.acknowledge(number);
                }
            }
            Applied::Settle(done) => {
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
    }
    Ok(())
}
