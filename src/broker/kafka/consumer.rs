//! The poll thread: one OS thread that owns one consumer, for life.
//!
//! It serves the main queue (rebalances happen only there), takes batches from the split queue of every partition that
//! has room, and commits what is due. Back-pressure is not polling a partition's queue: `pause` would throw away what
//! was prefetched. Any poll keeps the membership alive, so Kafka never notices a stuck handler; deadlines do.
//!
//! A rebalance callback only records its event. The thread applies it later, after draining, because waiting inside
//! the callback for work that needs this thread would deadlock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;

use super::arriving::Arriving;
use super::callbacks::{Answered, Callbacks};
use super::committer::{Committer, Order};
use super::properties::consumer_config;
use super::rebalance::{First, Strays};
use super::rebuilding::Rebuilding;
use super::replication::Replication;
use super::rights::missing;
use super::signal::Signal;
use super::take::{BATCH_MESSAGES_MAX, Queue, Taken, take};
use crate::assignments::Assignments;
use crate::broker;
use crate::clock;
use crate::commits::Due;
use crate::config::Settings;
use crate::error::Error;
use crate::pulse::{JoinAnew, Progress, Pulse, Unserved};
use crate::store::PartitionId;

/// How long the thread rests where nothing wakes it: bounds how late the main queue is served.
const REST: Duration = Duration::from_millis(10);

/// How long tasks that were cancelled may take to close their books. One whose handler blocks its thread takes longer.
const ENDING_MAX: Duration = Duration::from_secs(2);

/// Closing a consumer can hang where Kafka is away: after this it is left behind.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct PollThread {
    pub(super) consumer: Arc<BaseConsumer<Callbacks>>,
    pub(super) settings: Arc<Settings>,
    pub(super) assignments: Assignments,
    pub(super) signal: Arc<Signal>,
    pub(super) pulse: Pulse,
    committer: Committer,
    answers: mpsc::Receiver<Answered>,
    pub(super) queues: Vec<Queue>,
    next_queue: usize,
    /// Assigned by the group, and nothing is known of them yet.
    pub(super) arriving: Arriving,
    pub(super) uncommitted: Vec<First>,
    /// Assigned, and not served, because what they need is not there; with the reason.
    pub(super) refused: BTreeMap<PartitionId, String>,
    pub(super) replication: Option<Replication>,
    /// Where cold partitions are to be rebuilt.
    pub(super) rebuilding: Option<Rebuilding>,
    pub(super) strays: Strays,
    /// Everything was lost, and the group is to be joined anew.
    joins_anew: Option<JoinAnew>,
    /// What the group has given to this member, by what the client has told: also what is arriving, or refused.
    pub(super) of_group: BTreeSet<(String, i32)>,
    pub(super) reported: tokio::sync::watch::Sender<Unserved>,
    progress: Progress,
}

/// What it is made from.
pub(crate) struct Parts {
    pub(crate) settings: Arc<Settings>,
    /// How many the topics have in all.
    pub(crate) partitions: usize,
    pub(crate) signal: Arc<Signal>,
    pub(crate) pulse: Pulse,
    pub(crate) reported: tokio::sync::watch::Sender<Unserved>,
    pub(crate) progress: Progress,
    pub(crate) arriving: Arriving,
    pub(crate) replication: Option<Replication>,
    pub(crate) rebuilding: Option<Rebuilding>,
}

impl PollThread {
    /// Makes the consumer and subscribes.
    ///
    /// # Errors
    /// Where the client refuses its configuration.
    pub(crate) fn new(parts: Parts, assignments: Assignments) -> Result<Self, Error> {
        let Parts {
            settings,
            partitions,
            signal,
            pulse,
            reported,
            progress,
            arriving,
            replication,
            rebuilding,
        } = parts;
        let (answer, answers) = mpsc::channel();
        let answered = Arc::clone(&signal);
        let refused = |error: KafkaError| broker::Error::Config(crate::error::chain(&error));
        let consumer: BaseConsumer<Callbacks> = consumer_config(&settings, partitions)
            .create_with_context(Callbacks::default())
            .map_err(refused)?;
        let consumer = Arc::new(consumer);
        let topics: Vec<&str> = settings.topics.keys().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(refused)?;
        let committer = Committer::start(Arc::clone(&consumer), answer, move || answered.raise());
        let committer = committer.map_err(|source| Error::Thread {
            what: "committing",
            source,
        })?;
        pulse.beat(clock::now());
        Ok(Self {
            consumer,
            committer,
            settings,
            assignments,
            signal,
            pulse,
            answers,
            queues: Vec::new(),
            next_queue: 0,
            arriving,
            uncommitted: Vec::new(),
            refused: BTreeMap::new(),
            progress,
            replication,
            rebuilding,
            strays: Strays::Unknown,
            joins_anew: None,
            of_group: BTreeSet::new(),
            reported,
        })
    }

    /// Runs until it is asked to stop, then drains, commits and closes.
    ///
    /// # Errors
    /// Where the broker or the store ends it. Everything recorded is committed first where that is still possible.
    pub(crate) fn run(mut self) -> Result<Vec<crate::accounts::Balance>, Error> {
        let outcome = self.serve();
        let drained = self.drain_all();
        let balances = self.assignments.balances();
        let closed = self.close();
        outcome.and(drained).and(closed).map(|()| balances)
    }

    fn serve(&mut self) -> Result<(), Error> {
        while !self.signal.is_stopping() {
            self.notice_a_freeze();
            self.serve_main_queue(Duration::ZERO)?;
            while let Some(event) = self.consumer.context().next_event() {
                self.apply(event)?;
            }
            self.join_anew();
            self.serve_arrived()?;
            self.commit_first();
            self.serve_restored()?;
            self.serve_rebuilt()?;
            self.move_strays()?;
            self.commit_due();
            if self.take_all()? == 0 {
                self.signal.wait(REST);
            }
        }
        Ok(())
    }

    /// Tells what of the assignment is not served.
    pub(super) fn report(&self) {
        let unserved = Unserved {
            refused: self.refused.values().cloned().collect(),
            arriving: self.arriving.ids().len(),
            restoring: self.replication.as_ref().map_or(0, Replication::pending),
            rebuilding: self
                .rebuilding
                .as_ref()
                .map_or(0, |rebuilding| rebuilding.ids().len()),
        };
        if unserved.restoring + unserved.rebuilding == 0 {
            self.progress.clear();
        }
        self.reported.send_replace(unserved);
    }

    /// Beats the pulse; false, and no beat, where it is stale already: then the partitions have to be lost first, or a
    /// task would take the beat for the news that all is well.
    pub(super) fn turned(&self) -> bool {
        let now = clock::now();
        let fresh = !self.pulse.is_stale(now);
        if fresh {
            self.pulse.beat(now);
        }
        fresh
    }

    /// A process that stood still for longer than its session has lost everything, before anything else starts:
    /// another member may be running what this one believes is its own.
    fn notice_a_freeze(&mut self) {
        let kicked = self.consumer.context().kicked.swap(false, Ordering::AcqRel);
        if self.turned() && !kicked {
            return;
        }
        self.lose_all();
        let stood_still = self.pulse.beat(clock::now());
        tracing::warn!(
            ?stood_still,
            kicked,
            "the group has given this member's partitions away: all are lost"
        );
        // Where the broker has not noticed, the partitions would stay assigned and unserved: join anew.
        self.consumer.unsubscribe();
        self.joins_anew = Some(JoinAnew::new(clock::now()));
    }

    /// Subscribes again, where everything was lost and it is time.
    fn join_anew(&mut self) {
        let Some(joins) = &self.joins_anew else { return };
        let held = self.consumer.assignment().ok().map(|list| list.count());
        // What was still arriving the client does not hold, and would be given the same, unheard.
        let held = held.map(|held| held.max(self.of_group.len()));
        if !joins.is_due(held, clock::now()) {
            return;
        }
        self.joins_anew = None;
        let topics: Vec<&str> = self.settings.topics.keys().map(String::as_str).collect();
        if let Err(error) = self.consumer.subscribe(&topics) {
            tracing::error!(error = %crate::error::chain(&error), "subscribing again failed");
        }
    }

    fn lose_all(&mut self) {
        let ids = self.assignments.ids();
        self.assignments.end(&ids);
        self.assignments.commits().coming().clear();
        self.queues.clear();
        self.arriving.forget_all();
        self.uncommitted.clear();
        self.refused.clear();
        if let Some(replication) = &mut self.replication {
            replication.go_all();
            replication.member.leave();
        }
        self.rebuild_nothing();
        if let Some(replication) = &self.replication {
            replication.leave_all();
        }
    }

    /// Serves callbacks. Messages do not come this way: their queues were split off before they were assigned.
    pub(super) fn serve_main_queue(&mut self, at_most: Duration) -> Result<(), Error> {
        let consumer = Arc::clone(&self.consumer);
        match consumer.poll(at_most) {
            None => {}
            Some(Ok(message)) => {
                let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
                return Err(Error::Internal(format!(
                    "{topic}[{partition}]@{offset} came through the main queue, past its own: its order is unknown"
                )));
            }
            Some(Err(error)) => self.client_error(&error)?,
        }
        while let Ok(answered) = self.answers.try_recv() {
            self.answered(&answered);
        }
        Ok(())
    }

    fn client_error(&mut self, error: &KafkaError) -> Result<(), Error> {
        use RDKafkaErrorCode::{AutoOffsetReset, PollExceeded};
        let why = crate::error::chain(error);
        // What is handed over says that it is fatal; the client knows why.
        if let Some((code, why)) = self.consumer.client().fatal_error() {
            return Err(self.failed_for_good(code, why).into());
        }
        if let Some(right) = missing(error.rdkafka_error_code()) {
            return Err(right.error(&self.settings, why).into());
        }
        match (error, error.rdkafka_error_code()) {
            (KafkaError::MessageConsumptionFatal(_), _) => Err(broker::Error::Fatal(why).into()),
            (_, Some(AutoOffsetReset)) => Err(broker::Error::Fatal(format!(
                "{why}: the committed offset is outside the log; reset the group's offset on purpose, or restore the topic"
            ))
            .into()),
            (_, Some(PollExceeded)) => {
                self.lose_all();
                Ok(())
            }
            _ => {
                // The client goes on trying by itself; what it cannot mend comes back as fatal.
                tracing::warn!(%why, "kafka");
                Ok(())
            }
        }
    }

    fn failed_for_good(&self, code: RDKafkaErrorCode, why: String) -> broker::Error {
        use RDKafkaErrorCode::{FencedInstanceId, UnreleasedInstanceId};
        match (code, self.settings.kafka.get("group.instance.id")) {
            // The classic protocol keeps the later one, KIP-848 the earlier.
            (FencedInstanceId | UnreleasedInstanceId, Some(instance)) => broker::Error::Instance {
                group: self.settings.group.clone(),
                instance: instance.clone(),
                why,
            },
            (code, _) => match missing(Some(code)) {
                Some(right) => right.error(&self.settings, why),
                None => broker::Error::Fatal(why),
            },
        }
    }

    fn commit_due(&mut self) {
        let due = self.assignments.commits().take_due(clock::now());
        if !due.is_empty() {
            crate::crash::point("before-commit");
            self.commit(&due);
        }
    }

    /// Hands the points to the committer; [`answered`](Self::answered) hears what became of them.
    pub(super) fn commit(&self, due: &[Due]) {
        let order = |due: &Due| {
            Some(Order {
                topic: self.assignments.topic(due.id)?.to_owned(),
                partition: due.id.partition,
                next: due.point.next,
                mark: self.assignments.mark(due.point),
                gate: due.gate.clone(),
            })
        };
        self.committer.commit(due.iter().filter_map(order).collect());
    }

    /// Takes one batch from every partition that has room, beginning with another one each turn.
    fn take_all(&mut self) -> Result<usize, Error> {
        let mut taken = 0;
        let count = self.queues.len();
        for turn in 0..count {
            let room = self.assignments.budget().room();
            if room == 0 {
                break;
            }
            let Some(queue) = self.queues.get_mut((self.next_queue + turn) % count) else {
                continue;
            };
            if !self.assignments.has_room(queue.id) {
                continue;
            }
            let Taken { batch, error } = take(queue, room.min(BATCH_MESSAGES_MAX));
            if let Some(batch) = batch {
                taken += batch.len();
                self.assignments.offer(queue.id, batch);
            }
            if let Some(error) = error {
                self.client_error(&error)?;
                break;
            }
        }
        self.next_queue = self.next_queue.wrapping_add(1);
        Ok(taken)
    }

    /// What was to be rebuilt is not ours any more.
    fn rebuild_nothing(&mut self) {
        if let Some(rebuilding) = &mut self.rebuilding {
            let ids = rebuilding.ids();
            rebuilding.go(&mut self.assignments, &ids);
        }
    }

    fn drain_all(&mut self) -> Result<(), Error> {
        self.rebuild_nothing();
        let ids = self.assignments.ids();
        crate::crash::point("at-shutdown");
        let drained = self.drain(&ids, false);
        self.assignments.end(&ids);
        // What they did not finish is released in their books by the tasks themselves.
        let deadline = clock::now() + ENDING_MAX;
        while !self.assignments.are_over() && clock::now() < deadline {
            self.signal.wait(Duration::from_millis(1));
        }
        drained
    }

    /// Closes on a thread of its own: a close that hangs must not hang the process. Dropping the last handle is what
    /// closes, so every other one goes first; a commit that is still waited for has one.
    fn close(mut self) -> Result<(), Error> {
        self.queues.clear();
        if let Some(mut replication) = self.replication.take() {
            // A fence on its way would be tried again for as long as a broker may be away.
            replication.go_all();
            replication.member.leave();
        }
        self.rebuilding = None;
        self.apply_at_close();
        let Self {
            consumer, committer, ..
        } = self;
        let (closed, done) = mpsc::channel();
        let thread = thread::Builder::new().name("hapax-close".into()).spawn(move || {
            drop(committer);
            drop(consumer);
            // Whoever waited may have gone on without it.
            let _ = closed.send(());
        });
        thread.map_err(|source| Error::Thread {
            what: "closing the consumer",
            source,
        })?;
        if done.recv_timeout(CLOSE_MAX).is_err() {
            tracing::warn!(
                "the consumer did not close within {CLOSE_MAX:?}; the group notices by its session timeout"
            );
        }
        Ok(())
    }
}
