//! The runtime: everything that a consumer is made of, put together, run, and taken apart again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::accounts::Balance;
use crate::admin::{self, Office, Readiness};
use crate::assignments::{Assignments, Parts};
use crate::bound::Handled;
use crate::broker::Letters;
use crate::broker::kafka::consumer::{self, PollThread};
use crate::broker::kafka::owners;
use crate::broker::kafka::producer::Producer;
use crate::broker::kafka::properties::session_max;
use crate::broker::kafka::signal::Signal;
use crate::clock::{self, Clock};
use crate::commits::Commits;
use crate::config::{Cold, Durability, Settings, Standby};
use crate::copies::Copies;
use crate::desk::Desk;
use crate::error::Error;
use crate::journal::Journal;
use crate::journal::local::Local;
use crate::limits::{Budget, Waker};
use crate::metrics::TopicMeters;
use crate::partition::{Starts, Wiring};
use crate::pulse::{Progress, Pulse, Unserved};
use crate::store::lookups::Lookups;
use crate::sweep::Sweeper;
use crate::token::Extractor;
use bar::Bar;
use opening::{Counts, Growth, Opened, Unclosed, open, without_corrupt_copy};
use replicating::{Helpers, JournalThread, arrive, rebuild, replicate};

mod bar;
mod opening;
mod replicating;

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
    for odd in crate::config::warnings(&settings) {
        tracing::warn!("{odd}");
    }
    let settings = Arc::new(settings);
    let (reported, unserved) = watch::channel(Unserved::default());
    let readiness = Arc::new(Readiness::new(unserved));
    // Before the first metric is made: what was made under no recorder is nobody's.
    let desk = Desk::default();
    let owners: admin::Owners = {
        let settings = Arc::clone(&settings);
        Box::new(move |topic, partition| owners::owner(&settings, topic, partition))
    };
    let office = Office::new(
        Arc::clone(&settings),
        Arc::clone(&readiness),
        desk.clone(),
        owners,
    )?;
    let office = Arc::new(office);
    let admin = match settings.admin.listen {
        Some(listen) => Some(admin::Server::start(listen, Arc::clone(&office)).await?),
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
    let Opened {
        store,
        counts,
        growth,
    } = opening
        .await
        .map_err(|error| Error::Internal(format!("opening the store: {error}")))??;

    let (failures, mut failed) = mpsc::unbounded_channel();
    let pulse = Pulse::new(clock::now(), session_max(&settings));
    readiness.feel(pulse.clone());
    let poll = Poll {
        counts,
        growth,
        pulse,
        progress: readiness.progress(),
        reported,
        failures,
        office,
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
        (Some(error), _) | (None, Err(error)) => Err(without_corrupt_copy(&settings, error)),
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
    bar: Option<Bar>,
    helpers: Option<Helpers>,
    journal: JournalThread,
    lookups: Vec<thread::JoinHandle<()>>,
    store: Unclosed,
}

impl Ending {
    /// The threads end with their last handle; the store closes when nobody can write to it any more. Blocks.
    fn end(self) -> Result<(), crate::store::Error> {
        let _ = self.poll.join();
        drop(self.sweeper);
        drop(self.bar);
        drop(self.helpers);
        self.journal.join();
        for thread in self.lookups {
            let _ = thread.join();
        }
        self.store.close()
    }
}

type Polled = oneshot::Receiver<Result<Vec<Balance>, Error>>;

/// What the poll thread starts with.
struct Poll {
    counts: Counts,
    growth: Growth,
    pulse: Pulse,
    progress: Progress,
    reported: watch::Sender<Unserved>,
    /// Why the consumer has to stop, from whichever thread met it first.
    failures: mpsc::UnboundedSender<Error>,
    office: Arc<Office>,
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
        counts,
        growth,
        pulse,
        progress,
        reported,
        failures,
        office,
    } = poll;
    let partitions = counts
        .values()
        .map(|count| usize::try_from(*count).unwrap_or(0))
        .sum();
    let no_thread = |what| move |source| Error::Thread { what, source };
    let signal = Arc::new(Signal::default());
    let broken = failures.clone();
    let broken = move |why| {
        let _ = broken.send(Error::Journal(why));
    };
    let commits = Commits::default();
    let copies = Copies::new(settings.standby == Standby::All);
    let (journal, journal_thread, replication, helpers) = match settings.durability {
        Durability::Local => {
            let started = Local::start(Arc::clone(&store), broken);
            let (journal, thread) = started.map_err(no_thread("the journal"))?;
            let journal: Arc<dyn Journal> = Arc::new(journal);
            (journal, JournalThread::Local(thread), None, None)
        }
        Durability::Replicated => {
            let made = replicate(settings, &store, &signal, &commits, &copies, &progress, broken)?;
            let (journal, threads, replication, helpers) = made;
            let journal: Arc<dyn Journal> = Arc::new(journal);
            let threads = JournalThread::Replicated(threads);
            (journal, threads, Some(replication), Some(helpers))
        }
    };
    let rebuilding = match settings.cold {
        Cold::Rebuild => Some(rebuild(settings, &store, &signal, &progress)?),
        Cold::Refuse | Cold::Run => None,
    };
    let arriving = arrive(settings, &store, &signal, counts, growth)?;
    let (lookups, lookups_threads) = Lookups::start(&store).map_err(no_thread("look-ups"))?;
    let letters: Arc<dyn Letters> = Arc::new(Producer::new(settings)?);
    office.open(&store, &letters)?;
    let wake = Arc::clone(&signal);
    let waker = Waker::new(move || wake.raise());
    let budget = Budget::new(&settings.limits, waker);
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
    let sweeper = Sweeper::start(
        Arc::clone(&store),
        wirings,
        commits.clone(),
        copies,
        Clock::system(),
    )
    .map_err(no_thread("the sweeper"))?;
    let parts = Parts {
        topics,
        store,
        commits,
        budget,
        desk: office.desk(),
        clock: Clock::system(),
        cold: settings.cold,
        start: settings.start,
        deleted: settings.deleted,
        durability: settings.durability,
        runtime: Handle::current(),
        failures,
    };
    let bar = Bar::start(progress.clone()).map_err(no_thread("the bar"))?;
    let (done, polled) = oneshot::channel();
    let poll = {
        let (settings, signal) = (Arc::clone(settings), Arc::clone(&signal));
        thread::Builder::new().name("hapax-poll".into()).spawn(move || {
            let assignments = Assignments::new(parts);
            let parts = consumer::Parts {
                settings,
                partitions,
                signal,
                pulse,
                reported,
                progress,
                arriving,
                replication,
                rebuilding,
            };
            let outcome = PollThread::new(parts, assignments).and_then(PollThread::run);
            // Nobody listens any more where the future was dropped.
            let _ = done.send(outcome);
        })
    };
    let ending = Ending {
        poll: poll.map_err(no_thread("polling"))?,
        sweeper,
        bar,
        helpers,
        journal: journal_thread,
        lookups: lookups_threads,
        store: unclosed,
    };
    let running = Running {
        signal,
        ending: Some(ending),
    };
    Ok((running, polled))
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
            audit_topic: settings.admin.audit_topic.clone(),
            limits: settings.limits.clone(),
            max_clock_jump: settings.max_clock_jump,
            commit_every: settings.commit_every,
            durability: settings.durability,
            extractor: Extractor::new(name, handled.readers, settings.limits.token_bytes.0 as usize),
            factory: handled.factory,
            starts: Starts::new(policy, clock::now()),
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
