//! The runtime: everything that a consumer is made of, put together, run, and taken apart again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::accounts::Balance;
use crate::admin::{self, Readiness};
use crate::assignments::{Assignments, Parts};
use crate::bound::Handled;
use crate::broker::Letters;
use crate::broker::cluster::{Changelog, Cluster, Fit};
use crate::broker::kafka;
use crate::broker::kafka::consumer::{Before, PollThread};
use crate::broker::kafka::member::Member;
use crate::broker::kafka::producer::Producer;
use crate::broker::kafka::properties::session_max;
use crate::broker::kafka::rebuilder::Rebuilder;
use crate::broker::kafka::rebuilding::Rebuilding;
use crate::broker::kafka::replication::Replication;
use crate::broker::kafka::restorer::{self, Restorer};
use crate::broker::kafka::signal::Signal;
use crate::broker::kafka::transactions::{self, KafkaTransactions, Names};
use crate::clock::{self, Clock};
use crate::commits::Commits;
use crate::config::{Cold, Durability, Settings};
use crate::error::Error;
use crate::journal::Journal;
use crate::journal::frame::Owner;
use crate::journal::local::Local;
use crate::journal::replicated::{self, Replicated};
use crate::limits::{Budget, Waker};
use crate::metrics::TopicMeters;
use crate::partition::Wiring;
use crate::pulse::Pulse;
use crate::store::lookups::Lookups;
use crate::store::rocks::RocksStore;
use crate::store::{Store, TopicSpec};
use crate::sweep::Sweeper;
use crate::token::Extractor;

/// What a consumer came to: the books of each of its assignments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Summary {
    /// One reading for each assignment of each partition.
    pub balances: Vec<Balance>,
}

/// Opens the store, asks the broker, starts the threads, and runs until `stop` is ready or something ends it.
///
/// Dropped, it asks for the same end and does not wait for it.
pub(crate) async fn run(
    settings: Settings,
    handled: BTreeMap<String, Handled>,
    stop: impl Future<Output = ()>,
) -> Result<Summary, Error> {
    let settings = Arc::new(settings);
    let (reported_cold, cold) = watch::channel(0);
    let readiness = Arc::new(Readiness::new(cold));
    // Before the first metric is made: what was made under no recorder is nobody's.
    let admin = match settings.admin.listen {
        Some(listen) => Some(admin::Server::start(listen, Arc::clone(&readiness)).await?),
        None => None,
    };
    if let Some(server) = &admin {
        tracing::info!(address = %server.address(), "metrics, health and readiness");
    }
    crate::metrics::describe();
    let opening = {
        let settings = Arc::clone(&settings);
        // Opening is not cancellable: on a blocking thread a dropped future leaves it to finish and close by itself.
        tokio::task::spawn_blocking(move || open(&settings))
    };
    let (store, partitions) = opening
        .await
        .map_err(|error| Error::Internal(format!("opening the store: {error}")))??;

    let (failures, mut failed) = mpsc::unbounded_channel();
    let pulse = Pulse::new(clock::now(), session_max(&settings));
    readiness.feel(pulse.clone());
    let poll = Poll {
        partitions,
        pulse,
        reported_cold,
        failures,
    };
    let (mut running, poll) = start(&settings, handled, store, poll)?;
    tokio::pin!(poll);
    tokio::pin!(stop);
    let mut failure = None;
    let outcome = tokio::select! {
        outcome = &mut poll => outcome,
        () = &mut stop => {
            readiness.stop();
            running.signal.stop();
            (&mut poll).await
        }
        Some(error) = failed.recv() => {
            failure = Some(error);
            readiness.stop();
            running.signal.stop();
            (&mut poll).await
        }
    };
    readiness.stop();
    let outcome = outcome.unwrap_or_else(|_| Err(Error::Internal("the poll thread ended by a panic".into())));
    while let Ok(error) = failed.try_recv() {
        failure.get_or_insert(error);
    }
    let closed = match running.ending.take() {
        Some(ending) => tokio::task::spawn_blocking(move || ending.end())
            .await
            .map_err(|error| Error::Internal(format!("closing the store: {error}")))?,
        None => Ok(()),
    };
    match (failure, outcome) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(error),
        (None, Ok(balances)) => closed.map(|()| Summary { balances }).map_err(Error::from),
    }
}

/// A consumer that runs. Dropped with its future, it stops in the background as it would have stopped in the
/// foreground: what runs may finish within `drain`, is recorded and committed, and the store is closed.
struct Running {
    signal: Arc<Signal>,
    ending: Option<Ending>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal.stop();
        let Some(ending) = self.ending.take() else {
            return;
        };
        // Not on the runtime: it may be on its way out as well.
        let thread = thread::Builder::new().name("hapax-end".into()).spawn(move || {
            if let Err(error) = ending.end() {
                tracing::warn!(why = %crate::error::chain(&error), "the store was not closed; the next start counts this one as killed");
            }
        });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread to end with; the next start counts this one as killed");
        }
    }
}

/// What has to come to its end before the store is closed, in this order.
struct Ending {
    poll: thread::JoinHandle<()>,
    sweeper: Sweeper,
    journal: JournalThread,
    lookups: thread::JoinHandle<()>,
    store: Unclosed,
}

impl Ending {
    /// The threads end with their last handle; the store closes when nobody can write to it any more. Blocks.
    fn end(self) -> Result<(), crate::store::Error> {
        let _ = self.poll.join();
        drop(self.sweeper);
        self.journal.join();
        let _ = self.lookups.join();
        self.store.close()
    }
}

/// The threads of the journal, of either mode.
enum JournalThread {
    Local(thread::JoinHandle<()>),
    Replicated(replicated::Threads),
}

impl JournalThread {
    fn join(self) {
        match self {
            Self::Local(thread) => drop(thread.join()),
            Self::Replicated(threads) => threads.join(),
        }
    }
}

/// An open store that closes at the latest when this is dropped: a start that was refused, or whose future was dropped,
/// must not count as one that was killed.
struct Unclosed(Option<Arc<dyn Store>>);

impl Unclosed {
    fn new(store: impl Store) -> Self {
        Self(Some(Arc::new(store)))
    }

    fn close(mut self) -> Result<(), crate::store::Error> {
        self.0.take().map_or(Ok(()), |store| store.close())
    }
}

impl Drop for Unclosed {
    fn drop(&mut self) {
        if let Some(store) = self.0.take()
            && let Err(error) = store.close()
        {
            tracing::warn!(why = %crate::error::chain(&error), "the store was not closed; the next start counts this one as killed");
        }
    }
}

type Polled = oneshot::Receiver<Result<Vec<Balance>, Error>>;

/// What the poll thread starts with.
struct Poll {
    /// How many partitions the topics have in all.
    partitions: usize,
    pulse: Pulse,
    reported_cold: watch::Sender<usize>,
    /// Why the consumer has to stop, from whichever thread met it first.
    failures: mpsc::UnboundedSender<Error>,
}

/// Starts the threads.
fn start(
    settings: &Arc<Settings>,
    handled: BTreeMap<String, Handled>,
    unclosed: Unclosed,
    poll: Poll,
) -> Result<(Running, Polled), Error> {
    let Some(store) = unclosed.0.clone() else {
        return Err(Error::Internal("the store was closed before it was used".into()));
    };
    let Poll {
        partitions,
        pulse,
        reported_cold,
        failures,
    } = poll;
    let no_thread = |what| move |source| Error::Thread { what, source };
    let signal = Arc::new(Signal::default());
    let broken = failures.clone();
    let broken = move |why| {
        let _ = broken.send(Error::Journal(why));
    };
    let (journal, journal_thread, replication) = match settings.durability {
        Durability::Local => {
            let started = Local::start(Arc::clone(&store), broken);
            let (journal, thread) = started.map_err(no_thread("the journal"))?;
            let journal: Arc<dyn Journal> = Arc::new(journal);
            (journal, JournalThread::Local(thread), None)
        }
        Durability::Replicated => {
            let (journal, threads, replication) = replicate(settings, &store, &signal, broken)?;
            let journal: Arc<dyn Journal> = Arc::new(journal);
            (journal, JournalThread::Replicated(threads), Some(replication))
        }
    };
    let before = Before {
        replication,
        rebuilding: match settings.cold {
            Cold::Rebuild => Some(rebuild(settings, &store, &signal)?),
            Cold::Refuse | Cold::Run => None,
        },
    };
    let (lookups, lookups_thread) = Lookups::start(Arc::clone(&store)).map_err(no_thread("look-ups"))?;
    let letters: Arc<dyn Letters> = Arc::new(Producer::new(settings)?);
    let wake = Arc::clone(&signal);
    let waker = Waker::new(move || wake.raise());
    let budget = Budget::new(&settings.limits, waker);
    let commits = Commits::default();
    let common = Common {
        settings: Arc::clone(settings),
        lookups,
        journal,
        letters,
        commits: commits.clone(),
        budget: budget.clone(),
        unclean_starts: store.past().unclean,
        pulse: pulse.clone(),
    };
    let mut topics = BTreeMap::new();
    for (name, handled) in handled {
        let id = store.topic(&name)?;
        topics.insert(name.clone(), (id, Arc::new(common.wire(&name, handled)?)));
    }
    drop(common);
    let wirings: Vec<_> = topics
        .values()
        .map(|(id, wiring)| (*id, Arc::clone(wiring)))
        .collect();
    let sweeper = Sweeper::start(Arc::clone(&store), wirings, commits.clone(), Clock::system())
        .map_err(no_thread("the sweeper"))?;
    let parts = Parts {
        topics,
        store,
        commits,
        budget,
        clock: Clock::system(),
        cold: settings.cold,
        start: settings.start,
        deleted: settings.deleted,
        durability: settings.durability,
        runtime: Handle::current(),
        failures,
    };
    let (done, polled) = oneshot::channel();
    let poll = {
        let (settings, signal) = (Arc::clone(settings), Arc::clone(&signal));
        thread::Builder::new().name("hapax-poll".into()).spawn(move || {
            let assignments = Assignments::new(parts);
            let outcome = PollThread::new(
                settings,
                partitions,
                assignments,
                signal,
                pulse,
                reported_cold,
                before,
            )
            .and_then(PollThread::run);
            // Nobody listens any more where the future was dropped.
            let _ = done.send(outcome);
        })
    };
    let ending = Ending {
        poll: poll.map_err(no_thread("polling"))?,
        sweeper,
        journal: journal_thread,
        lookups: lookups_thread,
        store: unclosed,
    };
    let running = Running {
        signal,
        ending: Some(ending),
    };
    Ok((running, polled))
}

/// The journal of the replicated mode, and what the poll thread needs for it.
fn replicate(
    settings: &Arc<Settings>,
    store: &Arc<dyn Store>,
    signal: &Arc<Signal>,
    broken: impl Fn(String) + Send + Sync + 'static,
) -> Result<(Replicated, replicated::Threads, Replication), Error> {
    let no_thread = |what| move |source| Error::Thread { what, source };
    let mut topics = BTreeMap::new();
    let mut owners = BTreeMap::new();
    for input in settings.topics.keys() {
        let id = store.topic(input)?;
        let changelog = settings.changelog_of(input);
        owners.insert(id, Owner::of(&settings.group, input));
        topics.insert(
            id,
            Names {
                input: input.clone(),
                changelog,
            },
        );
    }
    let member = Member::default();
    let timeout = settings.transaction_timeout();
    let transactions = KafkaTransactions::start(transactions::Parts {
        settings: Arc::clone(settings),
        store_id: store.identity().store_id,
        topics: topics.clone(),
        member: member.clone(),
        timeout,
    })?;
    let rules = replicated::Rules {
        owners,
        frame_bytes_max: FRAME_BYTES_MAX,
        give_up: 4 * timeout,
        // A turn is at most: renewing, finding, writing and aborting.
        call_max: 6 * timeout,
        clock: Clock::system(),
    };
    let (journal, threads) = Replicated::start(transactions, Arc::clone(store), rules, broken)
        .map_err(no_thread("the journal"))?;
    let (tell, restored) = std::sync::mpsc::channel();
    let wake = Arc::clone(signal);
    let restorer = Restorer::start(
        restorer::Parts {
            settings: Arc::clone(settings),
            store: Arc::clone(store),
            journal: journal.clone(),
            topics,
        },
        move |one| {
            // Nobody listens any more where the consumer has stopped.
            let _ = tell.send(one);
            wake.raise();
        },
    )
    .map_err(no_thread("restoring"))?;
    Ok((journal, threads, Replication::new(member, restorer, restored)))
}

/// What the poll thread needs to have cold windows read back.
fn rebuild(
    settings: &Arc<Settings>,
    store: &Arc<dyn Store>,
    signal: &Arc<Signal>,
) -> Result<Rebuilding, Error> {
    let (tell, rebuilt) = std::sync::mpsc::channel();
    let wake = Arc::clone(signal);
    let rebuilder = Rebuilder::start(Arc::clone(settings), Arc::clone(store), move |one| {
        // Nobody listens any more where the consumer has stopped.
        let _ = tell.send(one);
        wake.raise();
    });
    let rebuilder = rebuilder.map_err(|source| Error::Thread {
        what: "rebuilding",
        source,
    })?;
    Ok(Rebuilding::new(rebuilder, rebuilt))
}

/// Frames stay well below what a topic takes by default, 1 MiB.
const FRAME_BYTES_MAX: usize = 512 << 10;

/// The store, and how many partitions the topics have in all.
fn open(settings: &Settings) -> Result<(Unclosed, usize), Error> {
    let specs: Vec<_> = settings
        .topics
        .iter()
        .map(|(name, policy)| TopicSpec {
            name: name.clone(),
            window_ms: clock::millis(policy.window),
        })
        .collect();
    let store = RocksStore::open(
        &settings.state_dir,
        &settings.group,
        &specs,
        settings.memory.0,
        settings.durability,
    )?;
    let claimed = claim(settings, &store);
    let store = Unclosed::new(store);
    claimed.map(|partitions| (store, partitions))
}

/// What the cluster has to be for this store and these settings. Returns how many partitions the topics have in all.
fn claim(settings: &Settings, store: &RocksStore) -> Result<usize, Error> {
    let mut cluster = kafka::admin::ask(settings)?;
    if let Some(id) = &cluster.id {
        store.claim_cluster(id)?;
    }
    let mut all = 0;
    for topic in settings.topics.keys() {
        let partitions = cluster.partitions(topic)?;
        all += usize::try_from(partitions).unwrap_or(0);
        if let Some(known) = store.claim_partitions(topic, partitions)? {
            tracing::warn!(
                %topic, known, partitions,
                "the topic has grown: a token may come back in another partition, where it is not known, for one window"
            );
        }
    }
    let missing = cluster.missing_letters(settings);
    if settings.dead_letter.create && !missing.is_empty() {
        for new in &missing {
            kafka::admin::create(settings, new)?;
            tracing::info!(topic = %new.name, partitions = new.partitions, "dead-letter topic created");
        }
        cluster = kafka::admin::ask(settings)?;
    }
    for topic in settings.topics.keys() {
        if let Fit::Unproven(why) = cluster.letters(settings, topic)? {
            tracing::warn!(%topic, %why, "not proven that every message fits into the dead-letter topic with hapax's headers");
        }
    }
    if settings.durability == Durability::Replicated {
        claim_changelogs(settings, cluster)?;
    }
    Ok(all)
}

/// Every topic has a changelog that keeps its states safe: one that is missing is created, one whose input has grown
/// grows with it, and one that is something else is refused as it is.
fn claim_changelogs(settings: &Settings, mut cluster: Cluster) -> Result<(), Error> {
    let mut changed = false;
    for topic in settings.topics.keys() {
        match cluster.changelog(settings, topic)? {
            Changelog::Kept(_) => {}
            Changelog::Missing(new) => {
                kafka::admin::create_changelog(settings, &new)?;
                tracing::info!(topic = %new.name, partitions = new.partitions, "changelog topic created");
                changed = true;
            }
            Changelog::Short { has, wanted } => {
                kafka::admin::grow(settings, has, &wanted)?;
                tracing::info!(topic = %wanted.name, has, partitions = wanted.partitions, "the input has grown, and its changelog with it");
                changed = true;
            }
        }
    }
    // What another member made at the same time is judged like anybody's.
    if changed {
        cluster = kafka::admin::ask(settings)?;
    }
    for topic in settings.topics.keys() {
        match cluster.changelog(settings, topic)? {
            Changelog::Kept(kept) => {
                let changelog = settings.changelog_of(topic);
                if !kept.unproven.is_empty() {
                    let unproven = kept.unproven.join("; ");
                    tracing::warn!(%topic, %changelog, %unproven, "not proven that the changelog keeps its states: the broker does not tell what it does with them");
                }
                for why in kept.weak {
                    tracing::warn!(%topic, %changelog, %why, "the changelog may lose states");
                }
            }
            Changelog::Missing(wanted) => {
                return Err(wanted.refused("it was made, and is gone again".to_owned()).into());
            }
            Changelog::Short { has, wanted } => {
                return Err(wanted
                    .not_grown(has, "they were added, and are gone again")
                    .into());
            }
        }
    }
    Ok(())
}

/// What the wirings of all topics share.
struct Common {
    settings: Arc<Settings>,
    lookups: Lookups,
    journal: Arc<dyn Journal>,
    letters: Arc<dyn Letters>,
    commits: Commits,
    budget: Budget,
    unclean_starts: u32,
    pulse: Pulse,
}

impl Common {
    fn wire(&self, name: &str, handled: Handled) -> Result<Wiring, Error> {
        let settings = &self.settings;
        let Some(policy) = settings.topics.get(name) else {
            return Err(Error::Internal(format!(
                "topic {name} has a handler and no policy"
            )));
        };
        let clock = Clock::system();
        Ok(Wiring {
            topic: name.into(),
            policy: policy.clone(),
            dead_letter_topic: settings.dead_letter.topic_of(name),
            limits: settings.limits.clone(),
            max_clock_jump: settings.max_clock_jump,
            commit_every: settings.commit_every,
            durability: settings.durability,
            extractor: Extractor::new(name, handled.readers, settings.limits.token_bytes.0 as usize),
            factory: handled.factory,
            lookups: self.lookups.clone(),
            journal: Arc::clone(&self.journal),
            letters: Arc::clone(&self.letters),
            commits: self.commits.clone(),
            budget: self.budget.clone(),
            meters: TopicMeters::new(name),
            // Jitter only has to differ between processes.
            seed: clock.wall_ms() as u64 ^ u64::from(std::process::id()) << 32,
            unclean_starts: self.unclean_starts,
            pulse: self.pulse.clone(),
            window_full: AtomicBool::new(false),
            clock,
        })
    }
}
