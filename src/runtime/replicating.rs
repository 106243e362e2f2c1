//! What the replicated mode, a rebuild, and what comes before serving are made of, put together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::opening::{Counts, Growth};
use crate::arrivals::Arrivals;
use crate::broker::kafka::arriving::Arriving;
use crate::broker::kafka::asker::{self, Asker};
use crate::broker::kafka::cutter::Cutter;
use crate::broker::kafka::member::Member;
use crate::broker::kafka::rebuilder::Rebuilder;
use crate::broker::kafka::rebuilding::Rebuilding;
use crate::broker::kafka::replication::Replication;
use crate::broker::kafka::restorer::{self, Restorer};
use crate::broker::kafka::signal::Signal;
use crate::broker::kafka::standby::{self, StandbyThread};
use crate::broker::kafka::transactions::{self, KafkaTransactions, Names};
use crate::clock::{self, Clock};
use crate::commits::Commits;
use crate::config::{Settings, Standby};
use crate::copies::Copies;
use crate::error::Error;
use crate::journal::extents::Extents;
use crate::journal::frame::Owner;
use crate::journal::replicated::{self, Replicated};
use crate::pulse::Progress;
use crate::store::Store;
use crate::trim::{self, Trimmer};

/// The threads of the journal, of either mode.
pub(super) enum JournalThread {
    Local(thread::JoinHandle<()>),
    Replicated(replicated::Threads),
}

impl JournalThread {
    pub(super) fn join(self) {
        match self {
            Self::Local(thread) => drop(thread.join()),
            Self::Replicated(threads) => threads.join(),
        }
    }
}

/// The journal of the replicated mode, and what the poll thread needs for it.
pub(super) fn replicate(
    settings: &Arc<Settings>,
    store: &Arc<dyn Store>,
    signal: &Arc<Signal>,
    commits: &Commits,
    copies: &Copies,
    progress: &Progress,
    broken: impl Fn(String) + Send + Sync + 'static,
) -> Result<(Replicated, replicated::Threads, Replication, Helpers), Error> {
    let no_thread = |what| move |source| Error::Thread { what, source };
    let mut topics = BTreeMap::new();
    let mut owners = BTreeMap::new();
    let mut windows = BTreeMap::new();
    for (input, policy) in &settings.topics {
        let id = store.topic(input)?;
        let changelog = settings.changelog_of(input);
        owners.insert(id, Owner::of(&settings.group, input));
        windows.insert(id, clock::millis(policy.window));
        topics.insert(
            id,
            Names {
                input: input.clone(),
                changelog,
            },
        );
    }
    let extents = Extents::new(windows.clone());
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
        extents: extents.clone(),
        frame_bytes_max: FRAME_BYTES_MAX,
        rewrite_bytes: replicated::PORTION_BYTES,
        // Brokers that are away for minutes come back; whoever waits for longer wants somebody to look.
        give_up: Duration::from_secs(600).max(4 * timeout),
        // A turn is at most: renewing, finding, writing and aborting.
        call_max: 6 * timeout,
        clock: Clock::system(),
    };
    let (journal, threads) = Replicated::start(transactions, Arc::clone(store), rules, broken)
        .map_err(no_thread("the journal"))?;
    let rules = trim::Rules {
        windows_ms: windows,
        extents: extents.clone(),
        commits: commits.clone(),
    };
    let cutter = Cutter::new(Arc::clone(settings), topics.clone());
    let (rewriting, open) = (journal.clone(), Arc::clone(store));
    let rewrite = move |id, gate| rewriting.rewrite(&*open, id, gate);
    let trimmer = Trimmer::start(rules, rewrite, cutter).map_err(no_thread("trimming"))?;
    let (tell, restored) = std::sync::mpsc::channel();
    let wake = Arc::clone(signal);
    let restorer = Restorer::start(
        restorer::Parts {
            settings: Arc::clone(settings),
            store: Arc::clone(store),
            journal: journal.clone(),
            extents,
            copies: copies.clone(),
            topics: topics.clone(),
            progress: progress.clone(),
        },
        move |one| {
            // Nobody listens any more where the consumer has stopped.
            let _ = tell.send(one);
            wake.raise();
        },
    )
    .map_err(no_thread("restoring"))?;
    let replication = Replication::new(member, restorer, restored, copies.clone(), journal.clone());
    let standby = match settings.standby {
        Standby::None => None,
        Standby::All => Some(StandbyThread::start(standby::Parts {
            settings: Arc::clone(settings),
            store: Arc::clone(store),
            copies: copies.clone(),
            topics,
            signal: Arc::clone(signal),
        })),
    };
    let helpers = Helpers {
        _standby: standby.transpose().map_err(no_thread("keeping copies"))?,
        _trimmer: trimmer,
    };
    Ok((journal, threads, replication, helpers))
}

/// Threads beside the journal, which end with this.
pub(super) struct Helpers {
    _standby: Option<StandbyThread>,
    _trimmer: Trimmer,
}

/// What the poll thread needs to have the broker asked about partitions that are assigned.
pub(super) fn arrive(
    settings: &Arc<Settings>,
    store: &Arc<dyn Store>,
    signal: &Arc<Signal>,
    counts: Counts,
    growth: Growth,
) -> Result<Arriving, Error> {
    let mut topics = BTreeMap::new();
    for input in settings.topics.keys() {
        topics.insert(store.topic(input)?, input.clone());
    }
    let wake = Arc::clone(signal);
    let parts = asker::Parts {
        settings: Arc::clone(settings),
        topics,
        counts,
        grow: Box::new(move || growth.claim()),
    };
    let arrivals = Arrivals::start(Asker::new(parts)?, move || wake.raise());
    arrivals.map(Arriving::new).map_err(|source| Error::Thread {
        what: "asking about partitions",
        source,
    })
}

/// What the poll thread needs to have cold windows read back.
pub(super) fn rebuild(
    settings: &Arc<Settings>,
    store: &Arc<dyn Store>,
    signal: &Arc<Signal>,
    progress: &Progress,
) -> Result<Rebuilding, Error> {
    let (tell, rebuilt) = std::sync::mpsc::channel();
    let wake = Arc::clone(signal);
    let (settings, store) = (Arc::clone(settings), Arc::clone(store));
    let rebuilder = Rebuilder::start(settings, store, progress.clone(), move |one| {
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
