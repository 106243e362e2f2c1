//! The harness: one consumer of one topic, and the world around it.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::message::{DeadLetter, Held, Message, Produced, Sent};
use super::rig::Rig;
use super::script::Script;
use super::watched::{Watch, Watched};
use crate::accounts::Balance;
use crate::bound::{Bound, Handled};
use crate::broker::Letter;
use crate::class::Class;
use crate::config::{self, Durability, Layer, TopicPolicy};
use crate::error::Error;
use crate::handler::{self, Binding, Callee, Context, Decode, Handler, HandlerError, IntoReply, Topic};
use crate::message::NextOffset;
use crate::outcome::{Closed, Verdict};
use crate::store::memory::Fault;

/// How long [`Harness::settle`] waits at most, in the time of the paused clock.
const SETTLE_WITHIN: Duration = Duration::from_secs(600);

/// How long what runs may take to end when its partition is revoked: the default of `drain`.
const REVOKE_WITHIN: Duration = Duration::from_secs(10);

/// How often a consumer under a script commits, unless code or file say otherwise.
const COMMIT_EVERY: Duration = Duration::from_millis(20);

/// One consumer of one topic, without a broker.
///
/// Made of what a [`Consumer`](crate::Consumer) is given: a topic and its handler. Messages are sent to it, it is
/// started, crashed, stopped and started again, and what became of each message is read from outside. What was sent,
/// recorded, committed and dead-lettered outlives the process; so does the clock.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// use hapax::testing::{Account, Harness, Message, Verdict};
/// use hapax::{Context, NonIdempotent, Topic, Window};
///
/// let topic = Topic::bytes("payments", NonIdempotent).window(Window::hours(24));
/// let mut bank = Harness::new(topic, |_, cx: Context| async move {
///     match cx.attempt() {
///         1 => Err("the bank did not answer".into()), // unknown whether anything was applied
///         _ => Ok(()),
///     }
/// });
/// let payment = bank.send(Message::bytes("100").token("t-1"));
/// bank.start().await?;
/// bank.settle().await?;
/// assert_eq!(bank.held()?[0].of, payment); // in doubt, and nobody to ask: held for a verdict
///
/// bank.stop().await;
/// bank.decide(payment, Verdict::Run); // as `hapax resolve --run` does
/// bank.start().await?;
/// let books = bank.settle().await?;
/// assert_eq!(books.of(Account::Done), 1);
/// # Ok::<(), hapax::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a harness does nothing until it is started"]
pub struct Harness {
    topic: String,
    bound: Bound,
    file: Layer,
    code: Layer,
    partitions: i32,
    rig: Rig,
    watch: Watch,
    /// The books of the process that ran last.
    books: Balance,
}

impl Harness {
    /// A topic with a handler that answers nothing: what [`Consumer::handle`](crate::Consumer::handle) takes.
    pub fn new<D, S, F, Fut>(topic: Topic<D, S>, handler: F) -> Self
    where
        D: Decode,
        S: Clone + Send + Sync + 'static,
        F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self::bind(handler::closure(topic, handler))
    }

    /// A topic with a handler whose reply is kept with the outcome: what
    /// [`Consumer::handle_reply`](crate::Consumer::handle_reply) takes.
    pub fn with_reply<D, S, F, Fut, R>(topic: Topic<D, S>, handler: F) -> Self
    where
        D: Decode,
        S: Clone + Send + Sync + 'static,
        F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
        R: IntoReply,
    {
        Self::bind(handler::closure(topic, handler))
    }

    /// A topic with a value that implements [`Handler`]: what [`Consumer::handler`](crate::Consumer::handler) takes.
    pub fn with_handler<D: Decode, H: Handler<D::Message>>(topic: Topic<D>, handler: H) -> Self {
        Self::bind(handler::object(topic, handler))
    }

    fn bind<C: Callee>(binding: Binding<C>) -> Self {
        let Binding {
            topic,
            layer,
            readers,
            callee,
        } = binding;
        let watch = Watch::default();
        let watched = Watched {
            callee,
            watch: watch.clone(),
        };
        let bound = Bound::new(Arc::new(watched), readers);
        // `start` replaces what stands here by what the settings say.
        let class = layer.class.unwrap_or(crate::Class::NonIdempotent);
        let policy = TopicPolicy::new(class, Duration::ZERO);
        let factory = bound.factory(&policy);
        let rig = Rig::new(&topic, policy, Vec::new(), factory);
        let code = Layer {
            group: Some("harness".to_owned()),
            brokers: Some("harness:9092".to_owned()),
            state_dir: Some("harness".into()),
            durability: Some(Durability::Local),
            topics: [(topic.clone(), layer)].into(),
            ..Layer::default()
        };
        let harness = Self {
            topic,
            bound,
            file: Layer::default(),
            code,
            partitions: 1,
            rig,
            watch,
            books: Balance::default(),
        };
        harness.partitions(1)
    }

    /// Lays a `hapax.toml` over what code says, as in production. Other topics in it are left out. The environment is
    /// not asked: a test must not depend on it.
    ///
    /// # Errors
    /// [`Error::Config`] where the file cannot be read, or says something that hapax does not know.
    pub fn file(mut self, path: impl AsRef<Path>) -> Result<Self, Error> {
        self.file = config::file(path.as_ref())?;
        self.file.topics.retain(|name, _| *name == self.topic);
        Ok(self)
    }

    /// Changes what code says of the settings that have no method of their own, as
    /// [`Consumer::with`](crate::Consumer::with) does.
    pub fn with(mut self, change: impl FnOnce(&mut Layer)) -> Self {
        change(&mut self.code);
        self
    }

    /// The topic has that many partitions. Default: 1.
    pub fn partitions(mut self, count: i32) -> Self {
        self.partitions = self.partitions.max(count);
        self.rig.partitions(count);
        self
    }

    /// Appends a message to its partition. It is delivered while time passes: [`settle`](Self::settle),
    /// [`run_for`](Self::run_for).
    ///
    /// # Panics
    /// Where the topic has no such [partition](Self::partitions).
    #[track_caller]
    pub fn send(&mut self, message: Message) -> Sent {
        let Message { partition, mut kept } = message;
        assert!(
            (0..self.partitions).contains(&partition),
            "a message to partition {partition} of a topic with {}",
            self.partitions
        );
        kept.timestamp_ms.get_or_insert(self.rig.clock.wall_ms());
        let offset = crate::message::Offset(self.rig.send(partition, kept));
        Sent { partition, offset }
    }

    /// Starts the consumer on what the last one left. Does nothing where one runs.
    ///
    /// # Errors
    /// What `run` would refuse: the configuration, or a window that is cold.
    pub async fn start(&mut self) -> Result<(), Error> {
        if self.rig.is_running() {
            return Ok(());
        }
        let settings = config::resolve(Layer::default(), self.file.clone(), self.code.clone())?;
        let Some(policy) = settings.topics.get(&self.topic) else {
            return Err(Error::Internal(format!("topic {} has no policy", self.topic)));
        };
        let mut policy = policy.clone();
        // A thread of the handler's own would outlive a crash, and come to its edges in no order.
        policy.offload &= self.rig.script.is_none();
        let Handled { factory, readers } = self.bound.ready(&self.topic, &policy)?;
        self.rig.replace(factory);
        self.rig.read_by(readers);
        self.rig.policy = policy;
        self.rig.dead_letter_topic = settings.dead_letter.topic_of(&self.topic);
        self.rig.max_clock_jump = settings.max_clock_jump;
        self.rig.commit_every = settings.commit_every;
        self.rig.limits = settings.limits;
        self.rig.cold = settings.cold;
        self.rig.start().await
    }

    /// Lets that much time pass, and meanwhile delivers, runs, records and commits.
    ///
    /// # Errors
    /// What stopped the consumer: a policy that says stop, for example. It has ended cleanly, as in production.
    pub async fn run_for(&mut self, time: Duration) -> Result<(), Error> {
        self.rig.run_for(time).await;
        self.failed().await
    }

    /// Lets time pass until everything sent is decided and committed, and returns the [books](Self::books).
    ///
    /// It waits for retries, deadlines and probes, and not for a person: what is held stays held. It gives up after 10
    /// minutes; what is still in flight then lies in [`Account::InFlight`](super::Account::InFlight).
    ///
    /// # Errors
    /// What stopped the consumer: a policy that says stop, for example. It has ended cleanly, as in production.
    pub async fn settle(&mut self) -> Result<Balance, Error> {
        self.rig.settle(SETTLE_WITHIN).await;
        self.failed().await?;
        Ok(self.books())
    }

    async fn failed(&mut self) -> Result<(), Error> {
        let Some(failure) = self.rig.failure() else {
            return Ok(());
        };
        self.stop().await;
        Err(failure)
    }

    /// Kills the consumer where it stands. What it has recorded stays, what it was doing is in doubt.
    ///
    /// The handler's futures are dropped, where SIGKILL would not even do that.
    pub fn crash(&mut self) {
        self.books = self.books();
        self.rig.crash();
    }

    /// Stops the consumer as SIGTERM does: what runs may finish, is recorded and committed. Returns the
    /// [books](Self::books).
    pub async fn stop(&mut self) -> Balance {
        if self.rig.is_running() {
            self.books = Balance::sum(&self.rig.stop().await);
        }
        self.books
    }

    /// [Stops](Self::stop) it, where it runs, and [starts](Self::start) it again.
    ///
    /// # Errors
    /// See [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop().await;
        self.start().await
    }

    /// The books of the consumer that runs, or ran last. Each start opens new ones.
    #[must_use]
    pub fn books(&self) -> Balance {
        if self.rig.is_running() {
            self.rig.books()
        } else {
            self.books
        }
    }

    /// What is held, by partition and offset: for a verdict, or behind its token.
    ///
    /// # Errors
    /// [`Error::Store`] where a record cannot be read.
    pub fn held(&self) -> Result<Vec<Held>, Error> {
        let mut held = Vec::new();
        for partition in 0..self.partitions {
            let open = self.rig.open(partition)?;
            held.extend(
                open.into_iter()
                    .filter_map(|open| Held::from_open(partition, open)),
            );
        }
        Ok(held)
    }

    /// Decides about a held message, as `hapax resolve` does: on a consumer that does not run, and carried out at its
    /// next start.
    ///
    /// Only what is held in doubt takes a verdict; what is held behind its token is judged by that one's outcome.
    ///
    /// # Panics
    /// Where the consumer runs, or the message takes no verdict; in the words of `hapax resolve`.
    #[track_caller]
    pub fn decide(&mut self, of: Sent, verdict: Verdict) {
        assert!(
            !self.rig.is_running(),
            "a verdict is given while the consumer is stopped: stop or crash it first"
        );
        if let Err(refusal) = self.rig.decide(of.partition, of.offset, verdict) {
            panic!("{refusal}");
        }
    }

    /// The outcome that a message's token has, with the reply where one was kept; `None` while it has none.
    ///
    /// # Errors
    /// [`Error::Store`] where a record cannot be read.
    pub fn outcome(&self, of: Sent) -> Result<Option<Closed>, Error> {
        self.rig.closed(of.partition, of.offset)
    }

    /// What was given up on, oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let letters = self.rig.letterbox.letters().into_iter();
        letters.filter(is_dead).map(DeadLetter).collect()
    }

    /// What was produced besides: what handlers [emitted](crate::Context::emit), oldest first. What a crash sent twice is here
    /// twice, with the same `idempotency-key`.
    #[must_use]
    pub fn outputs(&self) -> Vec<Produced> {
        let letters = self.rig.letterbox.letters().into_iter();
        letters.filter(|letter| !is_dead(letter)).map(Produced).collect()
    }

    /// Whether every topic refuses what it is sent, dead letters and outputs, as a broker that is away does. Default: false.
    pub fn refuse_dead_letters(&self, refuse: bool) {
        self.rig.letterbox.refuse(refuse);
    }

    /// The store's next write fails after `after` more that succeed: 0 fails the very next one. Where no consumer runs,
    /// those of the next start are counted, of which assigning its partitions makes the first. A store that has failed
    /// takes nothing more of that start, so [`run_for`](Self::run_for), [`settle`](Self::settle) or
    /// [`start`](Self::start) say [`Error::Journal`] or [`Error::Store`], and the next start goes on with what is
    /// there: without the group (`Fault::Lost`), or with it (`Fault::Survives`).
    pub fn fail_write(&mut self, after: u64, fault: Fault) {
        self.rig.fail_write(after, fault);
    }

    /// Delivers that message again, and every later one of its partition: a rewind inside one assignment. Does nothing
    /// where no consumer runs, or the partition is away.
    pub fn redeliver(&mut self, from: Sent) {
        if let Some(index) = self.rig.index_of(from.partition, from.offset) {
            self.rig.deliver_again(from.partition, index);
        }
    }

    /// A rebalance takes a partition away, politely: what runs has 10 s to end and be recorded, the commit point is
    /// committed, and what is held below it goes to the dead-letter topic with the reason `moved`. The consumer goes on
    /// with the others. Does nothing where it is away already.
    ///
    /// # Errors
    /// What stopped the consumer.
    pub async fn revoke(&mut self, partition: i32) -> Result<(), Error> {
        if self.rig.serves(partition) {
            self.rig.revoke(partition, REVOKE_WITHIN).await;
        }
        self.failed().await
    }

    /// A partition is lost: the group has gone on without this consumer. What runs is dropped where it stands, nothing
    /// more is recorded or committed.
    pub fn lose(&mut self, partition: i32) {
        self.rig.end(partition);
    }

    /// A rebalance gives a partition (back) to the consumer that runs; it goes on from what is committed. Does nothing
    /// where it is here already.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    ///
    /// # Panics
    /// Where the topic has no such [partition](Self::partitions).
    #[track_caller]
    pub fn assign(&mut self, partition: i32) -> Result<(), Error> {
        assert!(
            (0..self.partitions).contains(&partition),
            "partition {partition} of a topic with {} is assigned",
            self.partitions
        );
        if self.rig.serves(partition) {
            return Ok(());
        }
        self.rig.assign(partition)
    }

    /// The offset committed for a partition, `None` before the first start.
    #[must_use]
    pub fn committed(&self, partition: i32) -> Option<NextOffset> {
        self.rig.committed_offset(partition)
    }

    /// The wall clock: it moves while time passes in the harness, and stands still otherwise.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let since_epoch = u64::try_from(self.rig.clock.wall_ms()).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_millis(since_epoch)
    }

    /// Moves the wall clock ahead, and nothing else: messages sent from now on are stamped that much later, and that
    /// is how log time passes. One message moves it by `max_clock_jump` (1 h) at most, until another confirms it.
    pub fn advance(&self, by: Duration) {
        self.rig.clock.advance(by);
    }
}

/// What [`exhaust`](super::exhaust()) does with it.
impl Harness {
    /// The consumer of a script's first process, with those messages sent.
    pub(super) fn sent(mut self, messages: &[Message]) -> Self {
        for message in messages {
            self.send(message.clone());
        }
        self
    }

    /// The next process: the other's handler and settings, on what this one has left behind.
    pub(super) fn reborn(self, fresh: Self) -> Self {
        Self {
            topic: self.topic,
            rig: self.rig,
            partitions: self.partitions,
            books: self.books,
            bound: fresh.bound,
            file: fresh.file,
            code: fresh.code,
            watch: fresh.watch,
        }
    }

    /// From its next start on it dies by that script.
    pub(super) fn watched_by(&mut self, script: &Script) {
        // A commit for every few milliseconds: each is an edge, and the end comes sooner.
        self.code.commit_every.get_or_insert(COMMIT_EVERY);
        self.rig.script = Some(script.clone());
        self.watch.by(script.clone());
    }

    /// As [`settle`](Self::settle); false where something is still in flight.
    pub(super) async fn run_out(&mut self) -> Result<bool, Error> {
        let has_settled = self.rig.run_out(SETTLE_WITHIN).await;
        self.failed().await?;
        Ok(has_settled)
    }

    pub(super) const fn class(&self) -> Class {
        self.rig.policy.class
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }
}

/// A dead letter says why.
fn is_dead(letter: &Letter) -> bool {
    letter.headers.iter().any(|(name, _)| name == "hapax-reason")
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness")
            .field("topic", &self.topic)
            .field("running", &self.rig.is_running())
            .field("books", &self.books())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
