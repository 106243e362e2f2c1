//! The partition task: the way of a message, for one assignment of one partition.
//!
//! One task owns everything about its partition, so nothing here is locked. A message goes through the files of this
//! folder in one direction:
//!
//! | step | file | what happens |
//! |---|---|---|
//! | admit | `admit.rs` | the ledger answers repeats, the index makes tokens single-flight |
//! | judge | `judge.rs` | one look-up for the batch, then the row of the decision table |
//! | begin | `begin.rs` | a slot, decoding, and for a guarded class a durable `Begun` |
//! | (starts) | `starts.rs` | whether an attempt may start: the breaker, the budget of retries |
//! | attempt | `crate::attempt` | the handler |
//! | (ended) | `ended.rs` | what an attempt's end means for its class: done, again, in doubt, given up |
//! | (life) | `life.rs` | a duplicate that starts a window anew, a message that is too old to be of use |
//! | (given) | `given.rs` | what an outcome gives back: outputs, as messages that become visible with it |
//! | (replies) | `replies.rs` | replies, replays and receipts: what whoever sent a message is told |
//! | (acts) | `acts.rs`, `redrive.rs` | what an operator decides about what is held, or about a token |
//! | (held) | `hold.rs` | what is kept on disk for an attempt later, and what of its key is kept behind it |
//! | record | `record.rs` | groups to the journal, and what their acknowledgement completes |
//! | complete | `record.rs` | ledger, accounts, whoever waited behind it, the commit point |
//!
//! What comes back is only durable acknowledgements, back-pressure and the commit point.

mod acts;
mod admit;
mod begin;
mod counts;
mod ended;
mod given;
mod hold;
mod judge;
mod leave;
mod life;
mod record;
mod redrive;
mod replies;
mod resting;
mod restore;
mod sieve;
mod starts;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod wake;
mod wiring;
mod work;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::FuturesUnordered;
use hashbrown::{HashMap, HashSet};
use slab::Slab;
use tokio::sync::{mpsc, watch};

use crate::accounts::Accounts;
use crate::act::Order;
use crate::attempt::Attempts;
use crate::backoff::{Bounds, Waits};
use crate::broker::Letter;
use crate::clock::{self, Instant};
use crate::error::Error;
use crate::fence::Gate;
use crate::journal::{Acks, Failure};
use crate::ledger::{CommitPoint, Ledger};
use crate::message::Batch;
use crate::metrics::PartitionMeters;
use crate::patience::Said;
use crate::store::lookups::Answer;
use crate::store::{Changes, PartitionId};
use crate::token::TokenKey;
use crate::window::{PartitionTime, Window};
use hold::{Blocked, Loads, Name};
pub(crate) use life::is_renewed;
use record::{Submitted, Unsent};
use resting::Rests;
pub(crate) use resting::{Found, find};
pub(crate) use starts::Starts;
use wake::Wake;
pub(crate) use wiring::{Assignment, Control, Wiring};
use work::{Index, OpenId, Work, WorkId};

/// Waiting for one batch of look-ups.
struct Asked {
    answer: Answer,
    who: Who,
}

/// Who asked, and for how many keys.
enum Who {
    Works(Vec<(WorkId, usize)>),
    /// Acts of the order under way, by their place in it.
    Order(Vec<(usize, usize)>),
}

/// Groups of one partition on their way to the disk at once: while one becomes durable, the next collects.
const SUBMITTED_MAX: usize = 2;

/// Look-ups of one partition on their way at once.
const ASKED_MAX: usize = 2;

/// How long past a drain's deadline held messages may take on their way to the dead-letter topic.
const MOVING_MAX: Duration = Duration::from_secs(3);

/// How often a task that found the pulse stale looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// See the module.
pub(crate) struct Partition {
    wiring: Arc<Wiring>,
    id: PartitionId,
    partition: i32,
    gate: Gate,
    window: Window,
    bounds: Bounds,
    accounts: Accounts,
    meters: PartitionMeters,
    now: Instant,
    assigned_at: Instant,
    /// The same by the wall clock.
    assigned_ms: i64,

    // Words: what is known of this partition.
    ledger: Ledger,
    time: PartitionTime,
    works: Slab<Work>,
    resting: Rests,
    index: Index,
    held: usize,
    held_bytes: usize,
    suspects_left: usize,

    // Judge.
    ask_keys: Vec<TokenKey>,
    ask_ids: Vec<(WorkId, usize)>,
    asked: VecDeque<Asked>,
    spare_keys: Vec<TokenKey>,

    // Begin and attempt.
    ready: VecDeque<WorkId>,
    busy: HashMap<u64, VecDeque<WorkId>>,
    begun: VecDeque<WorkId>,
    slots_used: usize,
    running: usize,
    attempts: Box<dyn Attempts>,
    waits: Waits,
    timers: BTreeSet<(Instant, WorkId)>,
    /// Work whose wait is over.
    due: Vec<WorkId>,
    own: starts::Own,

    // Hold.
    /// Held messages by when they are due, by the wall clock, in milliseconds since the epoch.
    retry_due: BTreeSet<(i64, OpenId)>,
    /// Keys of which a message is held.
    blocked: HashMap<u64, Blocked>,
    blocked_sieve: sieve::Sieve,
    /// How often one more key came to be held up.
    blocks: u64,
    /// Held messages whose key is theirs now.
    freed: VecDeque<(OpenId, Name)>,
    loads: Option<Loads>,
    /// Held messages that are loaded, in the order in which they run, before what has come since.
    returned: VecDeque<WorkId>,
    /// Held messages that are given up without another attempt, and have not ended yet.
    leaving_works: HashSet<WorkId>,

    // Acts.
    acting: Option<acts::Acting>,
    orders: mpsc::Receiver<Order>,

    // Record and complete.
    changes: Changes,
    /// Dead letters that are written with the group.
    letters: Vec<Letter>,
    changed: Vec<WorkId>,
    submitted: VecDeque<Submitted>,
    next_number: u64,
    acks: Arc<Acks>,
    sending: FuturesUnordered<futures_util::future::BoxFuture<'static, (WorkId, Result<(), Unsent>)>>,
    letters_failing: usize,
    /// That a message names a topic that no reply may go to was said.
    said: Said,
    published: CommitPoint,
    publish_due: Instant,
    publish_now: bool,
    /// Nothing past this is published any more: what is held above it was left to Kafka to deliver again.
    point_max: Option<CommitPoint>,
    released_budget: usize,

    batches: mpsc::Receiver<Batch>,
    control: watch::Receiver<Control>,
    draining: Option<Draining>,
    /// Held messages on their way from the store, to be given up.
    leaving: Option<(Leaving, Loads)>,
    stopped: Option<Error>,
}

/// A drain under way.
#[derive(Debug, Clone, Copy)]
struct Draining {
    deadline: Instant,
    /// The partition goes to another member, and with it what is held.
    revoked: bool,
}

/// Why held messages are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Their partition goes to another member.
    Moved,
    /// They are held for longer than `held_age`.
    TooOld,
}

impl Partition {
    pub(crate) fn new(wiring: Arc<Wiring>, assignment: Assignment) -> Self {
        let Assignment {
            id,
            gate,
            start,
            found,
            accounts,
            batches,
            orders,
            control,
        } = assignment;
        let now = clock::now();
        let retry = wiring.policy.retry.in_place;
        let bounds = Bounds {
            attempts_max: retry.attempts,
            total: retry.total,
            first: retry.first,
            wait_max: retry.max,
        };
        let seed = wiring.seed ^ (id.partition as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let suspects_left = if wiring.unclean_starts > 0 {
            wiring.limits.in_flight
        } else {
            0
        };
        let wall_ms = wiring.clock.wall_ms();
        let mut partition = Self {
            window: Window::of_ms(clock::millis(wiring.policy.window)),
            meters: PartitionMeters::new(&wiring.topic, id.partition),
            ledger: Ledger::new(start),
            time: PartitionTime::new(start.time_ms, wall_ms, clock::millis(wiring.max_clock_jump)),
            attempts: wiring.factory.attempts(),
            id,
            partition: id.partition,
            gate,
            bounds,
            accounts,
            now,
            assigned_at: now,
            assigned_ms: wall_ms,
            works: Slab::new(),
            resting: Rests::default(),
            index: Index::default(),
            held: 0,
            held_bytes: 0,
            suspects_left,
            ask_keys: Vec::new(),
            ask_ids: Vec::new(),
            asked: VecDeque::new(),
            spare_keys: Vec::new(),
            ready: VecDeque::new(),
            busy: HashMap::new(),
            begun: VecDeque::new(),
            slots_used: 0,
            running: 0,
            waits: Waits::seeded(seed),
            timers: BTreeSet::new(),
            due: Vec::new(),
            retry_due: BTreeSet::new(),
            blocked: HashMap::new(),
            blocked_sieve: sieve::Sieve::default(),
            blocks: 0,
            freed: VecDeque::new(),
            loads: None,
            acting: None,
            orders,
            returned: VecDeque::new(),
            leaving_works: HashSet::new(),
            own: starts::Own::new(&wiring.starts),
            changes: Changes::new(id),
            letters: Vec::new(),
            changed: Vec::new(),
            submitted: VecDeque::new(),
            next_number: 1,
            acks: Arc::new(Acks::default()),
            sending: FuturesUnordered::new(),
            letters_failing: 0,
            said: Said::default(),
            published: start,
            publish_due: now + wiring.commit_every,
            publish_now: false,
            point_max: None,
            released_budget: 0,
            batches,
            control,
            draining: None,
            leaving: None,
            stopped: None,
            wiring,
        };
        partition.restore(found);
        partition
    }

    /// Runs until it is drained, lost, or cannot go on.
    ///
    /// # Errors
    /// Where a policy says stop, or a durable write or a look-up failed: the whole consumer stops.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let outcome = self.serve().await;
        self.attempts.cancel_all();
        self.release_all();
        match outcome {
            // The next owner's messages: nothing of this assignment was written after its end.
            Err(Stop::Fenced) | Ok(()) => Ok(()),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    async fn serve(&mut self) -> Result<(), Stop> {
        loop {
            self.now = clock::now();
            if self.wiring.pulse.is_stale(self.now) {
                self.wait_for_the_pulse().await?;
                continue;
            }
            self.advance()?;
            if self.is_finished()? {
                return Ok(());
            }
            match self.next_wake().await {
                Wake::Control(true) => self.controlled()?,
                Wake::Control(false) => return Err(Stop::Fenced),
                Wake::Durable => {}
                Wake::Judged(answer) => self.judged(answer)?,
                Wake::Attempt(id, event) => self.attempt_event(id, event)?,
                Wake::Sent(id, result) => self.sent(id, result),
                Wake::Leaving(held) => {
                    let held = held.map_err(|_| gone())?;
                    self.leave(&held.map_err(|error| Stop::Error(Error::Store(error)))?);
                }
                Wake::Held(held) => {
                    let held = held.map_err(|_| gone())?;
                    self.loaded(&held.map_err(|error| Stop::Error(Error::Store(error)))?);
                }
                Wake::Decided(held) => {
                    let held = held.map_err(|_| gone())?;
                    self.resolve_loaded(&held.map_err(|error| Stop::Error(Error::Store(error)))?);
                }
                Wake::Order(order) => self.order(order),
                Wake::Timer => {}
                Wake::Batch(Some(batch)) => {
                    // There is room for another now, and whoever fetches may be waiting for it.
                    self.wiring.budget.wake();
                    self.admit(batch);
                }
                Wake::Batch(None) => self.drain(self.now, false),
            }
        }
    }

    /// The process stood still for longer than a session: nothing is started and no handler is polled until the poll
    /// thread has turned, which ends this assignment where the partition is lost.
    async fn wait_for_the_pulse(&mut self) -> Result<(), Stop> {
        tokio::select! {
            biased;
            changed = self.control.changed() => match changed {
                Ok(()) => self.controlled(),
                Err(_) => Err(Stop::Fenced),
            },
            () = clock::sleep_until(self.now + LOOK_AGAIN) => Ok(()),
        }
    }

    /// Everything that needs no waiting, until nothing is left to do.
    fn advance(&mut self) -> Result<(), Stop> {
        self.look_at_breaker();
        self.acknowledged()?;
        self.fire_timers();
        for id in std::mem::take(&mut self.due) {
            self.try_again(id)?;
        }
        self.drain_attempt_events()?;
        self.load_leaving(Leaving::TooOld);
        self.load_due();
        self.ask();
        self.start_begun()?;
        self.start_retries()?;
        self.fill_slots()?;
        self.share_counts();
        self.give_up_moved();
        self.publish();
        self.submit();
        self.give_back_budget();
        Ok(())
    }

    /// Attempts that ended meanwhile, without a wake for each.
    fn drain_attempt_events(&mut self) -> Result<(), Stop> {
        loop {
            let attempts = &mut self.attempts;
            match std::future::poll_fn(|cx| attempts.poll_event(cx)).now_or_never() {
                Some((id, event)) => self.attempt_event(id, event)?,
                None => return Ok(()),
            }
        }
    }

    /// Whether another batch may be taken: back-pressure towards the poll thread is not taking.
    fn takes(&self) -> bool {
        self.draining.is_none()
            && self.may_take()
            && self.stopped.is_none()
            && self.letters_failing == 0
            && self.asked.len() < ASKED_MAX
            && !self.wiring.budget.is_held_full()
            && !self.wiring.window_full.load(Ordering::Relaxed)
            && self.ledger.len() < self.wiring.limits.in_flight
    }

    fn next_due(&self) -> Instant {
        let mut due = self.publish_due;
        if let Some((timer, _)) = self.timers.first() {
            due = due.min(*timer);
        }
        if let Some(wait) = self.next_load() {
            due = due.min(self.now + wait);
        }
        due = self.starts_due().map_or(due, |starts| due.min(starts));
        match self.draining {
            Some(Draining { deadline, .. }) if deadline > self.now => due.min(deadline),
            Some(Draining { deadline, .. }) if deadline + MOVING_MAX > self.now => {
                due.min(deadline + MOVING_MAX)
            }
            _ => due,
        }
    }

    fn fire_timers(&mut self) {
        while let Some(&(due, id)) = self.timers.first() {
            if due > self.now {
                return;
            }
            self.timers.pop_first();
            self.timer_due(id);
        }
    }

    fn controlled(&mut self) -> Result<(), Stop> {
        let control = *self.control.borrow_and_update();
        match control {
            Control::Run => {}
            Control::Drain { deadline, revoked } => self.drain(deadline, revoked),
            Control::Cancel => return Err(Stop::Fenced),
        }
        Ok(())
    }

    /// Takes nothing more; what was begun and not started is un-begun.
    fn drain(&mut self, deadline: Instant, revoked: bool) {
        if self.draining.is_none() {
            self.draining = Some(Draining { deadline, revoked });
            self.unbegin();
        }
    }

    /// Whether the task has nothing left that it may finish.
    fn is_finished(&mut self) -> Result<bool, Stop> {
        let busy_on_disk = !self.submitted.is_empty() || !self.changes.is_empty();
        if let Some(Draining { deadline, revoked }) = self.draining {
            let moves = revoked && !self.wiring.state_moves();
            let ends = busy_on_disk
                || self.running > 0
                || !self.sending.is_empty()
                || self.has_waiting_ends()
                || (moves && self.judges_held());
            // Not before everything else has ended, or has run out of time: what still runs may be held, and may move
            // the commit point past what is held already.
            if moves && (!ends || self.now >= deadline) {
                self.load_leaving(Leaving::Moved);
            }
            let busy = ends || self.leaving.is_some();
            let limit = if self.point_max.is_some() || self.leaving.is_some() {
                deadline + MOVING_MAX
            } else {
                deadline
            };
            if busy && self.now < limit {
                return Ok(false);
            }
            if busy && busy_on_disk {
                // What is decided is recorded even past the deadline: the journal answers in milliseconds or fails.
                return Ok(false);
            }
            if !self.is_published() {
                self.publish_now = true;
                self.publish();
                self.submit();
                return Ok(self.submitted.is_empty());
            }
            return Ok(true);
        }
        if self.stopped.is_some() && !busy_on_disk && self.works.is_empty() {
            if self.is_published() {
                return self
                    .stopped
                    .take()
                    .map_or(Ok(true), |error| Err(Stop::Error(error)));
            }
            self.publish_now = true;
            self.publish();
            self.submit();
        }
        Ok(false)
    }

    fn stop(&mut self, offset: crate::message::Offset, why: impl Into<String>) {
        if self.stopped.is_none() {
            self.stopped = Some(Error::Stopped {
                topic: self.wiring.topic.to_string(),
                partition: self.partition,
                offset: offset.0,
                why: why.into(),
            });
        }
    }
}

/// The look-up thread ended before its questions did.
fn gone() -> Stop {
    Stop::Error(Error::Internal("the look-up thread is gone".into()))
}

/// Why a task ends before it is drained.
enum Stop {
    /// The assignment is over; nothing more of it is written.
    Fenced,
    /// The consumer stops with this.
    Error(Error),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Fenced => Self::Fenced,
            Failure::Broken(why) => Self::Error(Error::Journal(why)),
        }
    }
}
