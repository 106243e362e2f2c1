//! The runtime: everything that a consumer is made of, put together, run, and taken apart again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::accounts::Balance;
use crate::assignments::{Assignments, Parts};
use crate::attempt::Factory;
use crate::broker::Letters;
use crate::broker::kafka::admin;
use crate::broker::kafka::consumer::PollThread;
use crate::broker::kafka::producer::Producer;
use crate::broker::kafka::properties::session_max;
use crate::broker::kafka::signal::Signal;
use crate::clock::{self, Clock};
use crate::commits::Commits;
use crate::config::Settings;
use crate::error::Error;
use crate::journal::Journal;
use crate::journal::local::Local;
use crate::limits::{Budget, Waker};
use crate::metrics::TopicMeters;
use crate::partition::Wiring;
use crate::pulse::Pulse;
use crate::store::lookups::Lookups;
use crate::store::rocks::RocksStore;
use crate::store::{Store, TopicSpec};
use crate::sweep::Sweeper;
use crate::token::{Extractor, Reader};

/// A topic with its handler, ready to be run.
pub(crate) struct Handled {
    pub(crate) factory: Arc<dyn Factory>,
    pub(crate) readers: Vec<Reader>,
}

/// What a consumer came to: the books of each of its assignments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Summary {
    /// One reading for each assignment of each partition.
    pub balances: Vec<Balance>,
}

/// Opens the store, asks the broker, starts the threads, and runs until `stop` is ready or something ends it.
pub(crate) async fn run(
    settings: Settings,
    handled: BTreeMap<String, Handled>,
    stop: impl Future<Output = ()>,
) -> Result<Summary, Error> {
    let settings = Arc::new(settings);
    let opening = {
        let settings = Arc::clone(&settings);
        // Opening is not cancellable: on a blocking thread a dropped future leaves it to finish and close by itself.
        tokio::task::spawn_blocking(move || open(&settings))
    };
    let (store, partitions) = opening
        .await
        .map_err(|error| Error::Internal(format!("opening the store: {error}")))??;
    let store: Arc<dyn Store> = Arc::new(store);

    let signal = Arc::new(Signal::default());
    let (failures, mut failed) = mpsc::unbounded_channel();
    let broken = failures.clone();
    let (journal, journal_thread) = Local::start(Arc::clone(&store), move |why| {
        let _ = broken.send(Error::Journal(why));
    })
    .map_err(|source| Error::Thread {
        what: "the journal",
        source,
    })?;
    let (lookups, lookups_thread) = Lookups::start(Arc::clone(&store)).map_err(|source| Error::Thread {
        what: "look-ups",
        source,
    })?;
    let letters: Arc<dyn Letters> = Arc::new(Producer::new(&settings)?);
    let wake = Arc::clone(&signal);
    let waker = Waker::new(move || wake.raise());
    let limits = &settings.limits;
    let budget = Budget::new(limits, waker);
    let commits = Commits::default();
    let pulse = Pulse::new(clock::now(), session_max(&settings));
    let common = Common {
        settings: Arc::clone(&settings),
        lookups,
        journal: Arc::new(journal),
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
    let sweeper =
        Sweeper::start(Arc::clone(&store), wirings, commits.clone(), Clock::system()).map_err(|source| {
            Error::Thread {
                what: "the sweeper",
                source,
            }
        })?;

    let (reported_cold, _cold) = watch::channel(0);
    let parts = Parts {
        topics,
        store: Arc::clone(&store),
        commits,
        budget,
        clock: Clock::system(),
        cold: settings.cold,
        start: settings.start,
        deleted: settings.deleted,
        runtime: Handle::current(),
        failures,
    };
    let poll = {
        let (settings, signal) = (Arc::clone(&settings), Arc::clone(&signal));
        let (done, finished) = tokio::sync::oneshot::channel();
        thread::Builder::new()
            .name("hapax-poll".into())
            .spawn(move || {
                let assignments = Assignments::new(parts);
                let outcome =
                    PollThread::new(settings, partitions, assignments, signal, pulse, reported_cold)
                        .and_then(PollThread::run);
                let _ = done.send(outcome);
            })
            .map_err(|source| Error::Thread {
                what: "polling",
                source,
            })?;
        finished
    };
    tokio::pin!(poll);
    tokio::pin!(stop);
    let mut failure = None;
    let outcome = loop {
        tokio::select! {
            outcome = &mut poll => break outcome,
            () = &mut stop => { signal.stop(); break (&mut poll).await }
            Some(error) = failed.recv() => {
                failure.get_or_insert(error);
                signal.stop();
                break (&mut poll).await;
            }
        }
    };
    let outcome = outcome.unwrap_or_else(|_| Err(Error::Internal("the poll thread ended by a panic".into())));
    while let Ok(error) = failed.try_recv() {
        failure.get_or_insert(error);
    }
    // The threads end with their last handle; the store closes when nobody can write to it any more.
    let closing = tokio::task::spawn_blocking(move || {
        drop(sweeper);
        let _ = (journal_thread.join(), lookups_thread.join());
        store.close()
    });
    let closed = closing
        .await
        .map_err(|error| Error::Internal(format!("closing the store: {error}")))?;
    match (failure, outcome) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(error),
        (None, Ok(balances)) => closed.map(|()| Summary { balances }).map_err(Error::from),
    }
}

/// The store, and how many partitions the topics have in all.
fn open(settings: &Settings) -> Result<(RocksStore, usize), Error> {
    let specs: Vec<_> = settings
        .topics
        .iter()
        .map(|(name, policy)| TopicSpec {
            name: name.clone(),
            window_ms: clock::millis(policy.window),
        })
        .collect();
    let store = RocksStore::open(&settings.state_dir, &settings.group, &specs, settings.memory.0)?;
    let cluster = admin::ask(settings, settings.topics.keys().cloned())?;
    if let Some(id) = cluster.id {
        store.claim_cluster(&id)?;
    }
    let partitions: i32 = cluster.partitions.values().sum();
    Ok((store, usize::try_from(partitions).unwrap_or(0)))
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
