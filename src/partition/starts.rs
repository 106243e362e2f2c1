//! Starts: whether an attempt may start now, by the breaker of its handler and the budget of its retries.
//!
//! Both decide *when*, never *whether*. What may not start keeps its place: a message that is ready stays at the head of its
//! queue, one that was begun when the breaker opened waits as if begun ahead, and a retry whose wait is over waits on, with its
//! slot and its key. So order is what it was, nothing is begun that could not start (Inv 3), and a drain finds all of it where it
//! looks anyway. The time that a retry waits here is no time of its own: it does not bring the end of its retries nearer.
//!
//! While the breaker is open the topic takes nothing; what was taken before is judged, and suppressed where it is a duplicate.
//! While it is half-open one task at a time has the trial, and whoever has it gives it back when its message does not come to an
//! attempt after all: given up, held, drained, lost.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::work::{Phase, WorkId};
use super::{Partition, Stop};
use crate::attempt::Ended;
use crate::breaker::{Breaker, Change, State};
use crate::clock::Instant;
use crate::config::TopicPolicy;
use crate::handler::ErrorKind;
use crate::outcome::HeldFor;
use crate::retry_budget::RetryBudget;

/// What the partition tasks of one topic share.
#[derive(Debug)]
pub(crate) struct Starts {
    breaker: Breaker,
    budget: RetryBudget,
    /// Wakes those that wait for the breaker: its state changed, or its trial is free.
    changed: watch::Sender<()>,
}

impl Starts {
    pub(crate) fn new(policy: &TopicPolicy, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            breaker: Breaker::new(policy.breaker, now),
            budget: RetryBudget::new(policy.budget, now),
            changed: watch::Sender::new(()),
        })
    }

    fn try_trial(self: &Arc<Self>) -> Option<Trial> {
        self.breaker.try_trial().then(|| Trial {
            starts: Arc::clone(self),
            of: None,
            has_ended: false,
        })
    }
}

/// The one trial of a half-open breaker, given back when this is dropped.
#[derive(Debug)]
struct Trial {
    starts: Arc<Starts>,
    /// The message that it is made with, once that is known.
    of: Option<WorkId>,
    has_ended: bool,
}

impl Trial {
    fn end(mut self, failed: bool, now: Instant) -> Option<Change> {
        self.has_ended = true;
        self.starts.breaker.trial_ended(failed, now)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !self.has_ended {
            self.starts.breaker.trial_given_back();
        }
        self.starts.changed.send_replace(());
    }
}

/// A retry whose wait is over.
#[derive(Debug)]
struct Postponed {
    id: WorkId,
    since: Instant,
    /// It found the budget spent.
    is_counted: bool,
}

/// What one partition task keeps of it for itself.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) changes: watch::Receiver<()>,
    trial: Option<Trial>,
    /// Retries that may start when they are let, in the order in which they were due.
    postponed: VecDeque<Postponed>,
    /// Messages that were begun when the breaker opened, and since when they wait.
    begun: Vec<(WorkId, Instant)>,
    /// Attempts of this turn that started, and those that did not fail: shared at its end, all at once.
    started: u64,
    passed: u64,
    /// In this turn something was not let start.
    was_refused: bool,
}

impl Own {
    pub(super) fn new(starts: &Starts) -> Self {
        Self {
            changes: starts.changed.subscribe(),
            trial: None,
            postponed: VecDeque::new(),
            begun: Vec::new(),
            started: 0,
            passed: 0,
            was_refused: false,
        }
    }
}

impl Partition {
    /// A turn begins: an open breaker whose time is over is half-open.
    pub(super) fn look_at_breaker(&mut self) {
        self.own.was_refused = false;
        if let Some(change) = self.wiring.starts.breaker.look(self.now) {
            self.tell(change);
        }
    }

    /// A turn ends: what it counted is shared, and a trial that came to no attempt is given back.
    pub(super) fn share_counts(&mut self) {
        self.share_passed();
        let started = std::mem::take(&mut self.own.started);
        self.wiring.starts.budget.started(started, self.now);
        let is_on_its_way = |id| {
            let phase = self.works.get(id).map(|work| work.phase);
            matches!(
                phase,
                Some(Phase::Preparing | Phase::Beginning | Phase::Begun | Phase::Running)
            )
        };
        if let Some(trial) = &self.own.trial
            && !trial.of.is_some_and(is_on_its_way)
        {
            self.own.trial = None;
        }
    }

    fn share_passed(&mut self) {
        let passed = std::mem::take(&mut self.own.passed);
        self.wiring.starts.breaker.passed(passed);
    }

    /// Whether to wait for what others do to the breaker.
    pub(super) fn waits_for_breaker(&self) -> bool {
        self.own.was_refused || !self.wiring.starts.breaker.is_closed()
    }

    /// When time alone lets something start.
    pub(super) fn starts_due(&self) -> Option<Instant> {
        match self.wiring.starts.breaker.state() {
            State::Open(until) => Some(until),
            State::Closed if !self.own.postponed.is_empty() => {
                Some(self.wiring.starts.budget.next_turn(self.now))
            }
            State::Closed | State::HalfOpen => None,
        }
    }

    /// Whether the breaker lets the topic take more: while it is half-open, where there is nothing to make a trial with.
    pub(super) fn may_take(&self) -> bool {
        match self.wiring.starts.breaker.state() {
            State::Closed => true,
            State::Open(_) => false,
            State::HalfOpen => {
                self.ready.is_empty()
                    && self.returned.is_empty()
                    && self.begun.is_empty()
                    && self.own.postponed.is_empty()
            }
        }
    }

    /// Whether another message may be prepared for an attempt. Where that is a trial it is this task's from now on.
    pub(super) fn may_prepare(&mut self) -> bool {
        if self.wiring.starts.breaker.is_closed() {
            return true;
        }
        // What is begun already comes first, and with all slots busy a trial could not start.
        let is_next = self.begun.is_empty() && self.running < self.slots();
        let may = is_next && self.has_trial();
        self.own.was_refused |= !may;
        may
    }

    fn has_trial(&mut self) -> bool {
        if self.own.trial.is_none() {
            self.own.trial = self.wiring.starts.try_trial();
        }
        self.own.trial.as_ref().is_some_and(|trial| trial.of.is_none())
    }

    /// This message is what is tried, if a trial is being made.
    pub(super) fn goes(&mut self, id: WorkId) {
        if let Some(trial) = &mut self.own.trial {
            trial.of.get_or_insert(id);
        }
    }

    /// Whether the attempt of a message that is prepared may start; the breaker may have opened since it was let through.
    pub(super) fn is_let_through(&mut self, id: WorkId) -> bool {
        let own = self.own.trial.as_ref().and_then(|trial| trial.of);
        let is_let = self.wiring.starts.breaker.is_closed() || own == Some(id);
        self.own.was_refused |= !is_let;
        is_let
    }

    /// It is begun, and not let through: it waits as if begun ahead.
    pub(super) fn wait_begun(&mut self, id: WorkId) {
        self.set_phase(id, Phase::Begun);
        self.begun.push_back(id);
        self.own.begun.push((id, self.now));
    }

    /// The first of those that were begun and wait: whether it may start.
    pub(super) fn may_start_begun(&mut self, id: WorkId) -> bool {
        let may = self.is_let_through(id) || self.has_trial();
        if may {
            self.goes(id);
            if let Some(at) = self.own.begun.iter().position(|(waits, _)| *waits == id) {
                let (_, since) = self.own.begun.swap_remove(at);
                self.forgive(id, since);
            }
        }
        may
    }

    /// The time since then was not its own.
    fn forgive(&mut self, id: WorkId, since: Instant) {
        let waited = self.now.saturating_duration_since(since);
        if let Some(work) = self.works.get_mut(id) {
            work.started = work.started.map(|started| started + waited);
        }
    }

    /// The wait of a retry is over: it starts in this turn, unless the breaker or the budget has it wait on.
    pub(super) fn postpone(&mut self, id: WorkId) {
        self.set_phase(id, Phase::Waiting);
        self.own.postponed.push_back(Postponed {
            id,
            since: self.now,
            is_counted: false,
        });
    }

    /// Starts the retries that are due, as far as they are let.
    pub(super) fn start_retries(&mut self) -> Result<(), Stop> {
        while self.draining.is_none() {
            let Some(&Postponed { id, since, .. }) = self.own.postponed.front() else {
                break;
            };
            // A single attempt of a half-open breaker asks no budget: it spares the downstream more than that does.
            if self.wiring.starts.breaker.is_closed() {
                if !self.wiring.starts.budget.take(self.now) {
                    self.count_postponed();
                    break;
                }
            } else if !self.may_prepare() {
                break;
            }
            self.own.postponed.pop_front();
            self.goes(id);
            self.forgive(id, since);
            if self.is_forgotten(id) {
                self.hold(id, HeldFor::InDoubt);
            } else if !self.end_useless(id) {
                self.prepare(id)?;
            }
        }
        Ok(())
    }

    fn count_postponed(&mut self) {
        for postponed in &mut self.own.postponed {
            if !std::mem::replace(&mut postponed.is_counted, true) {
                self.wiring.meters.retries_postponed.increment(1);
            }
        }
    }

    /// Whether a message that was to run again, because the downstream remembered its child tokens, has waited until that may
    /// have forgotten them: it is in doubt again, and nobody may run it.
    pub(super) fn is_forgotten(&self, id: WorkId) -> bool {
        let may_have_applied = self.works.get(id).is_some_and(|work| work.may_have_applied);
        may_have_applied && self.wiring.policy.class.is_guarded() && !self.may_rerun(id)
    }

    /// An attempt starts.
    pub(super) fn count_start(&mut self) {
        self.own.started += 1;
    }

    /// An attempt ended: what that says of the downstream.
    pub(super) fn count_end(&mut self, id: WorkId, ended: &Ended) {
        let failed = match ended {
            Ended::Ok(..) => false,
            Ended::Err(error) => error.kind() != ErrorKind::Reject,
            Ended::Panicked(_) | Ended::TimedOut => true,
        };
        if let Some(trial) = self.own.trial.take_if(|trial| trial.of == Some(id)) {
            if let Some(change) = trial.end(failed, self.now) {
                self.tell(change);
            }
            return;
        }
        if !failed {
            self.own.passed += 1;
            return;
        }
        // In the order in which they ended.
        self.share_passed();
        let started = self.works.get(id).and_then(|work| work.running_since);
        let change = self
            .wiring
            .starts
            .breaker
            .failed(started.unwrap_or(self.now), self.now);
        if let Some(change) = change {
            self.tell(change);
        }
    }

    /// Says what became of the breaker: to those that wait for it, in the log, in its metrics.
    fn tell(&self, change: Change) {
        let (topic, meters) = (&self.wiring.topic, &self.wiring.meters);
        let terms = self.wiring.starts.breaker.terms();
        let open_for = terms.open_for;
        match change {
            Change::Opened { failures, attempts } => {
                meters.breaker_opened.increment(1);
                meters.breaker_state.set(1.0);
                tracing::warn!(
                    %topic, failures, attempts, failure_share = %terms.failure_share, ?open_for,
                    "the breaker opens: too many of the latest attempts failed; the topic takes and starts nothing for that long, and tries single attempts then"
                );
            }
            Change::Reopened => {
                meters.breaker_opened.increment(1);
                meters.breaker_state.set(1.0);
                tracing::warn!(%topic, ?open_for, "the breaker opens again: a single attempt failed");
            }
            Change::HalfOpened => {
                meters.breaker_state.set(2.0);
                tracing::info!(%topic, "the breaker is half-open: single attempts are made, one at a time");
            }
            Change::Closed(after) => {
                meters.breaker_state.set(0.0);
                tracing::info!(%topic, ?after, "the breaker closes: single attempts succeeded; the topic goes on");
            }
        }
        self.wiring.starts.changed.send_replace(());
    }
}
