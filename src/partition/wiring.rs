//! What a partition task is made of, and what it is told.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Found, Starts};
use crate::accounts::Accounts;
use crate::act::Order;
use crate::attempt::Factory;
use crate::broker::Letters;
use crate::clock::{Clock, Instant};
use crate::commits::Commits;
use crate::config::{Durability, Limits, TopicPolicy};
use crate::fence::Gate;
use crate::journal::Journal;
use crate::ledger::CommitPoint;
use crate::limits::Budget;
use crate::message::Batch;
use crate::metrics::TopicMeters;
use crate::pulse::Pulse;
use crate::store::PartitionId;
use crate::store::lookups::Lookups;
use crate::token::Extractor;

/// What the partition tasks of one topic share.
pub(crate) struct Wiring {
    pub(crate) topic: Arc<str>,
    pub(crate) policy: TopicPolicy,
    pub(crate) dead_letter_topic: String,
    /// Where acts of operators are written besides the store.
    pub(crate) audit_topic: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) max_clock_jump: Duration,
    pub(crate) commit_every: Duration,
    pub(crate) durability: Durability,
    pub(crate) extractor: Extractor,
    pub(crate) factory: Arc<dyn Factory>,
    pub(crate) clock: Clock,
    pub(crate) lookups: Lookups,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) letters: Arc<dyn Letters>,
    pub(crate) commits: Commits,
    pub(crate) budget: Budget,
    pub(crate) meters: TopicMeters,
    /// Its breaker and the budget of its retries.
    pub(crate) starts: Arc<Starts>,
    pub(crate) seed: u64,
    /// Starts in a row of this store that ended without a clean shutdown.
    pub(crate) unclean_starts: u32,
    /// The poll thread's, or whoever stands in for it.
    pub(crate) pulse: Pulse,
    /// The window is past `window_bytes` and nothing may be shed: the topic stops taking.
    pub(crate) window_full: AtomicBool,
}

impl Wiring {
    /// Whether a partition's state goes where the partition goes: what is held needs no other home then, and a dead letter
    /// becomes visible with its outcome.
    pub(crate) fn state_moves(&self) -> bool {
        self.durability == Durability::Replicated
    }
}

/// One assignment, as its task is started for it.
pub(crate) struct Assignment {
    pub(crate) id: PartitionId,
    pub(crate) gate: Gate,
    pub(crate) start: CommitPoint,
    /// By offset.
    pub(crate) found: Vec<Found>,
    pub(crate) accounts: Accounts,
    pub(crate) batches: mpsc::Receiver<Batch>,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) control: watch::Receiver<Control>,
}

/// What a partition task is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Take and run.
    Run,
    /// Take nothing more, finish what runs until the deadline, record it, end.
    Drain {
        /// What still runs at this instant is abandoned.
        deadline: Instant,
        /// The partition goes to another member, and with it what is held.
        revoked: bool,
    },
    /// The partition is lost: write nothing, end now.
    Cancel,
}
