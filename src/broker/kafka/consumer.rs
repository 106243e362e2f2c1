//! The poll thread: one OS thread that owns one consumer, for life.
//!
//! It serves the main queue (rebalances happen only there), takes batches from the split queue of every partition that
//! has room, and commits what is due. Back-pressure is not polling a partition's queue: `pause` would throw away what
//! was prefetched. Any poll keeps the membership alive, so Kafka never notices a stuck handler; deadlines do.
//!
//! A rebalance callback only records its event. The thread applies it later, after draining, because waiting inside
//! the callback for work that needs this thread would deadlock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::{ANSWER_MAX, unreachable};
use crate::assignments::{Assignments, Facts, Prepared};
use crate::broker::{self, CommitMark, Committed};
use crate::clock::{self, Instant};
use crate::config::Settings;
use crate::error::Error;
use crate::ledger::CommitPoint;
use crate::message::{BatchBuilder, Header, NextOffset, Offset};
use crate::store::PartitionId;

/// Messages of one batch at most: enough to share one look-up and one sync, few enough to stay in the cache.
const BATCH_MESSAGES_MAX: usize = 1_024;

/// A batch ends here, or with the message that passes it.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// How long the thread rests where nothing wakes it: bounds how late the main queue is served.
const REST: Duration = Duration::from_millis(10);

/// Closing a consumer can hang where Kafka is away: after this it is left behind.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// A signal that the poll thread waits for.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Signal {
    /// Wakes the poll thread.
    pub(crate) fn raise(&self) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    /// Asks the poll thread to drain and end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.raise();
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wait(&self, at_most: Duration) {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(raised, at_most, |raised| !*raised);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// What a rebalance callback saw.
#[derive(Debug)]
enum Event {
    Assigned(Vec<(String, i32)>),
    Revoked {
        partitions: Vec<(String, i32)>,
        lost: bool,
    },
}

/// The consumer's callbacks.
struct Callbacks {
    events: Mutex<VecDeque<Event>>,
    /// While the consumer closes, an unassign is applied at once, or the close never ends.
    closing: AtomicBool,
    /// The group no longer knows this member: whatever `assignment_lost` says, everything is lost.
    kicked: AtomicBool,
    /// What the broker said of commits.
    answers: mpsc::Sender<(String, i32, i64, bool)>,
}

impl ClientContext for Callbacks {
    fn stats(&self, statistics: Statistics) {
        for (topic, of_topic) in &statistics.topics {
            for (partition, of_partition) in of_topic
                .partitions
                .iter()
                .filter(|(partition, _)| **partition >= 0)
            {
                if of_partition.hi_offset >= 0 && of_partition.committed_offset >= 0 {
                    let lag = of_partition.hi_offset - of_partition.committed_offset;
                    crate::metrics::lag(topic, *partition, lag.max(0));
                }
            }
        }
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.closing.load(Ordering::Acquire) {
            let applied = match consumer.rebalance_protocol() {
                RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
                _ => consumer.unassign(),
            };
            // The consumer is on its way out: there is nobody left to tell.
            drop(applied);
            return;
        }
        let partitions = list
            .elements()
            .iter()
            .map(|e| (e.topic().to_owned(), e.partition()))
            .collect();
        let event = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assigned(partitions),
            _ => Event::Revoked {
                partitions,
                lost: consumer.assignment_lost(),
            },
        };
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(event);
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if let Err(error) = &result {
            self.note_kick(error);
        }
        for element in offsets.elements() {
            let accepted = result.is_ok() && element.error().is_ok();
            if let KafkaOffset::Offset(next) = element.offset() {
                let _ = self
                    .answers
                    .send((element.topic().to_owned(), element.partition(), next, accepted));
            }
        }
    }
}

impl Callbacks {
    fn note_kick(&self, error: &KafkaError) {
        use RDKafkaErrorCode::{FencedInstanceId, UnknownMemberId};
        if matches!(
            error.rdkafka_error_code(),
            Some(UnknownMemberId | FencedInstanceId)
        ) {
            self.kicked.store(true, Ordering::Release);
        }
    }

    fn next_event(&self) -> Option<Event> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// A partition that is fetched.
struct Queue {
    topic: Arc<str>,
    id: PartitionId,
    queue: PartitionQueue<Callbacks>,
}

/// See the module.
pub(crate) struct PollThread {
    consumer: Arc<BaseConsumer<Callbacks>>,
    settings: Arc<Settings>,
    assignments: Assignments,
    signal: Arc<Signal>,
    answers: mpsc::Receiver<(String, i32, i64, bool)>,
    queues: Vec<Queue>,
    next_queue: usize,
    /// Prepared, assigned, and waiting for their first commit to be acknowledged.
    uncommitted: Vec<Prepared>,
    /// Assigned by the group and not served, because they are cold.
    refused: Vec<(String, i32)>,
    last_turn: Instant,
    session: Duration,
    seen_first_assignment: bool,
    strays: Vec<PartitionId>,
    reported_cold: tokio::sync::watch::Sender<usize>,
}

/// The consumer's own properties; the user cannot set these.
fn consumer_config(settings: &Settings) -> rdkafka::ClientConfig {
    let mut config = super::client_config(settings);
    config.set("group.id", &settings.group);
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    // Every start is an explicit offset. Where it is out of the log's range somebody has to decide.
    config.set("auto.offset.reset", "error");
    config.set("statistics.interval.ms", "5000");
    if config.get("partition.assignment.strategy").is_none()
        && config.get("group.protocol") != Some("consumer")
    {
        config.set("partition.assignment.strategy", "cooperative-sticky");
    }
    // The prefetch counts per partition once queues are split: the defaults would be 64 MiB for each.
    config.set("queued.max.messages.kbytes", "8192");
    config
}

impl PollThread {
    /// Makes the consumer and subscribes.
    ///
    /// # Errors
    /// Where the client refuses its configuration.
    pub(crate) fn new(
        settings: Arc<Settings>,
        assignments: Assignments,
        signal: Arc<Signal>,
        reported_cold: tokio::sync::watch::Sender<usize>,
    ) -> Result<Self, Error> {
        let config = consumer_config(&settings);
        let session = config
            .get("session.timeout.ms")
            .and_then(|text| text.parse().ok())
            .unwrap_or(45_000);
        let (answer, answers) = mpsc::channel();
        let callbacks = Callbacks {
            events: Mutex::default(),
            closing: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            answers: answer,
        };
        let refused = |error: KafkaError| broker::Error::Config(crate::error::chain(&error));
        let consumer: BaseConsumer<Callbacks> = config.create_with_context(callbacks).map_err(refused)?;
        let topics: Vec<&str> = settings.topics.keys().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(refused)?;
        Ok(Self {
            consumer: Arc::new(consumer),
            settings,
            assignments,
            signal,
            answers,
            queues: Vec::new(),
            next_queue: 0,
            uncommitted: Vec::new(),
            refused: Vec::new(),
            last_turn: clock::now(),
            session: Duration::from_millis(session),
            seen_first_assignment: false,
            strays: Vec::new(),
            reported_cold,
        })
    }

    /// Runs until it is asked to stop, then drains, commits and closes.
    ///
    /// # Errors
    /// Where the broker or the store ends it. Everything recorded is committed first where that is still possible.
    pub(crate) fn run(mut self) -> Result<Vec<crate::accounts::Balance>, Error> {
        let outcome = self.serve();
        let ended = self.shut_down();
        let balances = self.assignments.balances();
        outcome.and(ended).map(|()| balances)
    }

    fn serve(&mut self) -> Result<(), Error> {
        while !self.signal.is_stopping() {
            self.notice_a_freeze();
            self.serve_main_queue(Duration::ZERO)?;
            while let Some(event) = self.consumer.context().next_event() {
                self.apply(event)?;
            }
            self.serve_uncommitted()?;
            self.commit_due();
            if self.take_all()? == 0 {
                self.signal.wait(REST);
            }
        }
        Ok(())
    }

    /// A process that stood still for longer than its session has lost everything, before anything else starts:
    /// another member may be running what this one believes is its own.
    fn notice_a_freeze(&mut self) {
        let now = clock::now();
        let stood_still = now.duration_since(self.last_turn);
        self.last_turn = now;
        let kicked = self.consumer.context().kicked.swap(false, Ordering::AcqRel);
        if stood_still <= self.session && !kicked {
            return;
        }
        tracing::warn!(
            ?stood_still,
            kicked,
            "the group has given this member's partitions away: all are lost"
        );
        self.lose_all();
        // Where the broker has not noticed, the partitions would stay assigned and unserved: join anew.
        let topics: Vec<&str> = self.settings.topics.keys().map(String::as_str).collect();
        self.consumer.unsubscribe();
        if let Err(error) = self.consumer.subscribe(&topics) {
            tracing::error!(error = %crate::error::chain(&error), "subscribing again failed");
        }
    }

    fn lose_all(&mut self) {
        let ids = self.assignments.ids();
        self.assignments.end(&ids);
        self.queues.clear();
        self.uncommitted.clear();
    }

    /// Serves callbacks. Messages do not come this way: their queues were split off before they were assigned.
    fn serve_main_queue(&mut self, at_most: Duration) -> Result<(), Error> {
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
        while let Ok((topic, partition, next, accepted)) = self.answers.try_recv() {
            if let Some(id) = self.assignments.id(&topic, partition) {
                self.assignments
                    .commits()
                    .answered(id, NextOffset(next), accepted);
                if accepted {
                    crate::crash::point("after-commit");
                }
            }
        }
        Ok(())
    }

    fn client_error(&mut self, error: &KafkaError) -> Result<(), Error> {
        use RDKafkaErrorCode::{AutoOffsetReset, PollExceeded};
        let why = crate::error::chain(error);
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

    fn apply(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Assigned(partitions) => self.assigned(partitions),
            Event::Revoked { partitions, lost } => self.revoked(&partitions, lost),
        }
    }

    fn assigned(&mut self, partitions: Vec<(String, i32)>) -> Result<(), Error> {
        let facts = self.facts(&partitions)?;
        let mut list = TopicPartitionList::new();
        for ((topic, partition), facts) in partitions.into_iter().zip(facts) {
            let Some(id) = self.assignments.id(&topic, partition) else {
                continue;
            };
            match self.assignments.prepare(id, &facts) {
                Ok(prepared) => {
                    let queue = self.consumer.split_partition_queue(&topic, partition);
                    let Some(mut queue) = queue else {
                        return Err(Error::Internal(format!("{topic}[{partition}] has no queue")));
                    };
                    let signal = Arc::clone(&self.signal);
                    queue.set_nonempty_callback(move || signal.raise());
                    add(&mut list, &topic, partition, prepared.start.next)?;
                    self.queues.push(Queue {
                        topic: topic.as_str().into(),
                        id,
                        queue,
                    });
                    self.uncommitted.push(prepared);
                }
                Err(Error::Broker(cold @ broker::Error::Cold { .. })) => {
                    tracing::error!("{cold}");
                    self.refused.push((topic, partition));
                }
                Err(error) => return Err(error),
            }
        }
        self.reported_cold.send_replace(self.refused.len());
        let applied = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&list),
            _ => self.consumer.assign(&list),
        };
        applied.map_err(|error| broker::Error::Fatal(crate::error::chain(&error)))?;
        if !self.seen_first_assignment {
            self.seen_first_assignment = true;
            self.serve_uncommitted()?;
            self.strays = self.assignments.move_strays(self.settings.drain)?;
        }
        Ok(())
    }

    /// What the broker knows of the partitions. A time-out is asked again: to fall back to the start of the log would
    /// run everything again.
    fn facts(&self, partitions: &[(String, i32)]) -> Result<Vec<Facts>, Error> {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            list.add_partition(topic, *partition);
        }
        let committed = loop {
            match self.consumer.committed_offsets(list.clone(), ANSWER_MAX) {
                Ok(committed) => break committed,
                Err(error) if self.signal.is_stopping() => {
                    return Err(unreachable(&self.settings, "asking for committed offsets")(error).into());
                }
                Err(error) => {
                    tracing::warn!(why = %crate::error::chain(&error), "committed offsets are not to be had yet, asking again");
                }
            }
        };
        let mut facts = Vec::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            let (low, high) = self
                .consumer
                .fetch_watermarks(topic, *partition, ANSWER_MAX)
                .map_err(unreachable(&self.settings, "asking for the ends of the log"))?;
            let found = committed.find_partition(topic, *partition);
            let committed = found.and_then(|element| match element.offset() {
                KafkaOffset::Offset(next) => Some(Committed {
                    next: NextOffset(next),
                    mark: CommitMark::from_metadata(element.metadata()),
                }),
                _ => None,
            });
            facts.push(Facts { committed, low, high });
        }
        Ok(facts)
    }

    /// Before its first handler an owner commits once, with its store's mark: whoever comes after this one, even
    /// after a crash, sees that another store has served the partition (schedule 10).
    fn serve_uncommitted(&mut self) -> Result<(), Error> {
        if self.uncommitted.is_empty() {
            return Ok(());
        }
        let points: Vec<_> = self
            .uncommitted
            .iter()
            .map(|prepared| (prepared.id, prepared.start))
            .collect();
        match self.commit(&points, CommitMode::Sync) {
            Ok(()) => {
                for prepared in self.uncommitted.drain(..) {
                    self.assignments.serve(prepared);
                }
            }
            Err(error) => {
                self.consumer.context().note_kick(&error);
                tracing::warn!(why = %crate::error::chain(&error), "the first commit of an assignment is tried again");
                self.signal.wait(REST);
            }
        }
        Ok(())
    }

    fn revoked(&mut self, partitions: &[(String, i32)], lost: bool) -> Result<(), Error> {
        let ids: Vec<_> = partitions
            .iter()
            .filter_map(|(t, p)| self.assignments.id(t, *p))
            .collect();
        self.uncommitted.retain(|prepared| !ids.contains(&prepared.id));
        if lost {
            tracing::warn!(partitions = ids.len(), "partitions lost");
        } else {
            crate::crash::point("during-rebalance");
            self.drain(&ids, true)?;
        }
        // The fence comes down before unassign: from there on another member may own the partition (Inv 5).
        self.assignments.end(&ids);
        self.queues.retain(|queue| !ids.contains(&queue.id));
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            if !self.refused.contains(&(topic.clone(), *partition)) {
                list.add_partition(topic, *partition);
            }
        }
        self.refused.retain(|refused| !partitions.contains(refused));
        self.reported_cold.send_replace(self.refused.len());
        let applied = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_unassign(&list),
            _ => self.consumer.unassign(),
        };
        applied.map_err(|error| broker::Error::Fatal(crate::error::chain(&error)).into())
    }

    /// Lets what runs finish, up to the budget, while the main queue is served; then commits what is recorded.
    fn drain(&mut self, ids: &[PartitionId], revoked: bool) -> Result<(), Error> {
        // A task records what it decided even past the deadline: the disk has this much longer.
        let deadline = self.assignments.drain(ids, self.settings.drain, revoked) + Duration::from_secs(5);
        while !self.assignments.are_drained(ids) && clock::now() < deadline {
            self.serve_main_queue(Duration::from_millis(1))?;
            self.last_turn = clock::now();
        }
        let due = self.assignments.commits().take_last(ids);
        crate::crash::point("before-commit");
        match self.commit(&due, CommitMode::Sync) {
            Ok(()) => {
                for (id, point) in due {
                    self.assignments.commits().answered(id, point.next, true);
                }
                crate::crash::point("after-commit");
            }
            // Recorded all the same: whoever comes next is delivered it again, and knows it where the store moves
            // with it.
            Err(error) => {
                tracing::warn!(why = %crate::error::chain(&error), "the commit of a drain was refused")
            }
        }
        Ok(())
    }

    fn commit_due(&mut self) {
        let due = self.assignments.commits().take_due();
        if due.is_empty() {
            return;
        }
        crate::crash::point("before-commit");
        if let Err(error) = self.commit(&due, CommitMode::Async) {
            self.consumer.context().note_kick(&error);
            self.assignments.commits().all_failed();
        }
    }

    fn commit(&self, points: &[(PartitionId, CommitPoint)], mode: CommitMode) -> KafkaResult<()> {
        if points.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(points.len());
        for (id, point) in points {
            let Some(topic) = self.assignments.topic(*id) else {
                continue;
            };
            let mut element = list.add_partition(topic, id.partition);
            element.set_offset(KafkaOffset::Offset(point.next.0))?;
            element.set_metadata(self.assignments.mark(*point));
        }
        self.consumer.commit(&list, mode)
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
            let Some(queue) = self.queues.get((self.next_queue + turn) % count) else {
                continue;
            };
            if !self.assignments.has_room(queue.id) {
                continue;
            }
            match take(queue, room.min(BATCH_MESSAGES_MAX)) {
                Ok(None) => {}
                Ok(Some(batch)) => {
                    taken += batch.len();
                    self.assignments.offer(queue.id, batch);
                }
                Err((batch, error)) => {
                    if let Some(batch) = batch {
                        taken += batch.len();
                        self.assignments.offer(queue.id, batch);
                    }
                    self.client_error(&error)?;
                    break;
                }
            }
        }
        self.next_queue = self.next_queue.wrapping_add(1);
        Ok(taken)
    }

    fn shut_down(&mut self) -> Result<(), Error> {
        let ids = self.assignments.ids();
        crate::crash::point("at-shutdown");
        let drained = self.drain(&ids, false);
        self.assignments.end(&ids);
        self.queues.clear();
        self.uncommitted.clear();
        self.consumer.context().closing.store(true, Ordering::Release);
        while let Some(event) = self.consumer.context().next_event() {
            // A revoke recorded before the flag was set is applied now, or the close waits for it for ever.
            if let Event::Revoked { .. } = event {
                let _ = self.consumer.unassign();
            }
        }
        let consumer = Arc::clone(&self.consumer);
        drained.and_then(|()| self.close(consumer))
    }

    /// Closes on a thread of its own: a close that hangs must not hang the process.
    fn close(&mut self, consumer: Arc<BaseConsumer<Callbacks>>) -> Result<(), Error> {
        let (closed, done) = mpsc::channel();
        let thread = thread::Builder::new().name("hapax-close".into()).spawn(move || {
            consumer.unsubscribe();
            let _ = consumer.close_queue();
            while !consumer.closed() {
                let _ = consumer.poll(Duration::from_millis(10));
            }
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
            // Its last handle would wait as long again.
            std::mem::forget(Arc::clone(&self.consumer));
        }
        Ok(())
    }
}

fn add(list: &mut TopicPartitionList, topic: &str, partition: i32, next: NextOffset) -> Result<(), Error> {
    list.add_partition_offset(topic, partition, KafkaOffset::Offset(next.0))
        .map_err(|error| broker::Error::Fatal(crate::error::chain(&error)).into())
}

type Taken = Result<Option<crate::message::Batch>, (Option<crate::message::Batch>, KafkaError)>;

/// Copies what the queue has, up to a batch.
fn take(queue: &Queue, messages_max: usize) -> Taken {
    let mut batch: Option<BatchBuilder> = None;
    let error = loop {
        if batch
            .as_ref()
            .is_some_and(|b| b.len() >= messages_max || b.bytes() >= BATCH_BYTES_MAX)
        {
            break None;
        }
        match queue.queue.poll(Duration::ZERO) {
            None => break None,
            Some(Err(error)) => break Some(error),
            Some(Ok(message)) => {
                let batch = batch.get_or_insert_with(|| {
                    BatchBuilder::new(
                        Arc::clone(&queue.topic),
                        message.partition(),
                        messages_max.min(256),
                        64 << 10,
                    )
                });
                push(batch, &message);
            }
        }
    };
    let batch = batch.filter(|batch| !batch.is_empty()).map(BatchBuilder::finish);
    match error {
        None => Ok(batch),
        Some(error) => Err((batch, error)),
    }
}

fn push(batch: &mut BatchBuilder, message: &BorrowedMessage<'_>) {
    let headers = message
        .headers()
        .map(|headers| headers.iter())
        .into_iter()
        .flatten();
    batch.push(
        Offset(message.offset()),
        message.timestamp().to_millis(),
        message.key(),
        message.payload(),
        headers.map(|header| Header {
            name: header.key,
            value: header.value,
        }),
    );
}
