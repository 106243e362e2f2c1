//! Ended: what an attempt's end means for its class.
//!
//! A guarded attempt that may have applied something is *in doubt*, and what follows is the class's rule (Inv 4): the
//! probe if there is one; else `PotentiallyIdempotent` runs again with the same child tokens while the downstream
//! remembers them; else the message is held for a verdict.

use std::time::Duration;

use super::work::{Origin, Phase, WorkId};
use super::{Partition, Stop};
use crate::accounts::Account;
use crate::attempt::Ended;
use crate::class::Class;
use crate::clock;
use crate::handler::{Emitted, ErrorKind, Probe, Reply};
use crate::outcome::{End, HeldFor, Reason, Stored};

impl Partition {
    pub(super) fn attempt_ended(&mut self, id: WorkId, ended: Ended) -> Result<(), Stop> {
        self.running -= 1;
        self.count_end(id, &ended);
        crate::crash::point("after-handler");
        match ended {
            Ended::Ok(reply, emitted) => self.succeed(id, reply, emitted),
            Ended::Err(error) => match error.kind() {
                ErrorKind::Reject => self.give_up(id, Reason::Rejected, error.message()),
                ErrorKind::NotApplied => self.not_applied(id, None, &error.message()),
                ErrorKind::RetryAfter(wait) => self.not_applied(id, Some(wait), &error.message()),
                ErrorKind::Unknown => self.may_have_applied(id, "error", &error.message()),
            },
            Ended::Panicked(text) => {
                self.may_have_applied(id, "panic", &format!("the handler panicked: {text}"))
            }
            Ended::TimedOut => {
                let deadline = self.wiring.policy.deadline;
                self.may_have_applied(
                    id,
                    "deadline",
                    &format!("the handler was still running after {deadline:?}"),
                );
            }
        }
        self.start_begun()
    }

    fn succeed(&mut self, id: WorkId, reply: Reply, emitted: Vec<Emitted>) {
        let mut outputs = self.outputs(id, emitted);
        outputs.extend(self.reply(id, &reply));
        let stored = self.stored(reply);
        self.close(id, Account::Done, End::Done(stored), outputs);
    }

    /// The reply as far as it is kept: whole up to `outcome_bytes`, then its digest; nothing for private data.
    fn stored(&self, reply: Reply) -> Stored {
        let bytes = reply.into_bytes();
        if bytes.is_empty() || !self.wiring.policy.store_outcome {
            Stored::Nothing
        } else if bytes.len() as u64 <= self.wiring.limits.outcome_bytes.0 {
            Stored::Reply(bytes)
        } else {
            Stored::Digest(*blake3::hash(&bytes).as_bytes(), bytes.len() as u64)
        }
    }

    /// Nothing was applied: again after a wait, as long as attempts and time allow. For a guarded class that is made
    /// durable *before* the wait, or a crash during it would be in doubt for nothing.
    fn not_applied(&mut self, id: WorkId, asked: Option<Duration>, why: &str) {
        let Some(wait) = self.next_wait(id, asked) else {
            return self.spent(id, asked, why.to_owned());
        };
        self.timers.insert((self.now + wait, id));
        let has_record = self.works.get(id).is_some_and(|work| work.open_at.is_some());
        if has_record {
            self.set_phase(id, Phase::Noting);
            // This attempt applied nothing; one before it may have.
            let clean = self.works.get(id).is_some_and(|work| !work.may_have_applied);
            self.write_begun(id, clean);
        } else {
            self.set_phase(id, Phase::Waiting);
        }
    }

    fn next_wait(&mut self, id: WorkId, asked: Option<Duration>) -> Option<Duration> {
        let work = self.works.get(id)?;
        let elapsed = work
            .started
            .map_or(Duration::ZERO, |started| self.now.duration_since(started));
        self.waits.next(&self.bounds, work.counted(), elapsed, asked)
    }

    /// "Not applied" is durable. Where the wait is over already, the next attempt starts now.
    pub(super) fn noted(&mut self, id: WorkId) -> Result<(), Stop> {
        let waits = self.timers.iter().any(|(_, waiting)| *waiting == id);
        self.set_phase(id, Phase::Waiting);
        if waits { Ok(()) } else { self.try_again(id) }
    }

    pub(super) fn timer_due(&mut self, id: WorkId) {
        // While its note is still on the way to the disk, `noted` goes on instead.
        if self
            .works
            .get(id)
            .is_some_and(|work| work.phase == Phase::Waiting)
        {
            self.due.push(id);
        }
    }

    /// The wait is over. A drain starts nothing more: the message goes to the next owner.
    pub(super) fn try_again(&mut self, id: WorkId) -> Result<(), Stop> {
        if self.draining.is_none() {
            self.postpone(id);
        }
        Ok(())
    }

    /// The decoder's registry is away: nothing was begun, so every class may try again.
    pub(super) fn decode_again(&mut self, id: WorkId, why: &str) {
        if let Some(work) = self.works.get_mut(id) {
            work.attempts += 1;
            work.started.get_or_insert(self.now);
        }
        match self.next_wait(id, None) {
            Some(wait) => {
                self.timers.insert((self.now + wait, id));
                self.set_phase(id, Phase::Waiting);
            }
            None => self.spent(
                id,
                None,
                format!("the payload could not be decoded in time: {why}"),
            ),
        }
    }

    /// An attempt of this process ended, and nobody knows what it did.
    fn may_have_applied(&mut self, id: WorkId, cause: &'static str, why: &str) {
        if let Some(work) = self.works.get_mut(id) {
            work.may_have_applied = true;
        }
        if self.wiring.policy.class == Class::Idempotent {
            return self.run_again(id, why);
        }
        self.wiring.meters.in_doubt(cause);
        if self.attempts.has_probe() {
            return self.ask_probe(id);
        }
        if self.may_rerun(id) {
            return self.run_again(id, why);
        }
        self.hold(id, HeldFor::InDoubt);
    }

    /// Whether the downstream still remembers the child tokens of the first attempt.
    pub(super) fn may_rerun(&self, id: WorkId) -> bool {
        let Some(work) = self.works.get(id) else {
            return false;
        };
        let within_ms = clock::millis(self.wiring.policy.rerun_within);
        self.wiring.policy.class == Class::PotentiallyIdempotent
            && self.wiring.clock.wall_ms().saturating_sub(work.since_ms) < within_ms
    }

    fn run_again(&mut self, id: WorkId, why: &str) {
        match self.next_wait(id, None) {
            Some(wait) => {
                self.timers.insert((self.now + wait, id));
                self.set_phase(id, Phase::Waiting);
            }
            None => self.spent(id, None, why.to_owned()),
        }
    }

    /// Begun by a process that is gone; it has a slot now. The class's row, with crashes counted as attempts.
    pub(super) fn after_crash(&mut self, id: WorkId) -> Result<(), Stop> {
        let guarded = self.wiring.policy.class.is_guarded();
        if guarded && self.attempts.has_probe() {
            self.ask_probe(id);
            return Ok(());
        }
        if guarded && !self.may_rerun(id) {
            self.hold(id, HeldFor::InDoubt);
            return Ok(());
        }
        if self.spent_by_crashes(id) {
            return Ok(());
        }
        self.prepare(id)
    }

    /// A message that keeps killing the process is given up after its attempts.
    fn spent_by_crashes(&mut self, id: WorkId) -> bool {
        let Some(work) = self.works.get(id) else {
            return true;
        };
        let attempts = work.attempts;
        let attempts_max = match work.origin {
            Origin::Taken(_) => self.bounds.attempts_max,
            // Held before: some of its attempts ended by themselves.
            Origin::Restored => self
                .bounds
                .attempts_max
                .max(self.wiring.policy.retry.overall.attempts),
        };
        if attempts < attempts_max {
            return false;
        }
        self.give_up(
            id,
            Reason::Crashed,
            format!("the process ended during each of its {attempts} attempts"),
        );
        true
    }

    /// Not before the deadline of the attempt in question and `probe_settle`: what it sent may still arrive.
    fn ask_probe(&mut self, id: WorkId) {
        let (Some(subject), Some(call), Some(work)) =
            (self.subject(id), self.call(id), self.works.get_mut(id))
        else {
            return;
        };
        work.phase = Phase::Probing;
        let policy = &self.wiring.policy;
        let settle = policy.deadline + policy.probe_settle;
        let not_before = match work.running_since {
            Some(started) => started + settle,
            // By another process, and the record dates only its first attempt: this one may have started just before
            // the process ended.
            None if work.attempts > 1 => self.assigned_at + settle,
            // By another process, at an instant that only the wall clock dates.
            None => {
                let since = Duration::from_millis(
                    self.wiring.clock.wall_ms().saturating_sub(work.since_ms).max(0) as u64,
                );
                self.assigned_at + policy.probe_settle.max(settle.saturating_sub(since))
            }
        };
        self.attempts.probe(&subject, call, not_before);
    }

    pub(super) fn probed(&mut self, id: WorkId, probe: Probe, emitted: Vec<Emitted>) -> Result<(), Stop> {
        if self.works.get(id).is_none_or(|work| work.phase != Phase::Probing) {
            // Given up meanwhile, because its partition goes.
            return Ok(());
        }
        match probe {
            Probe::Done(reply) => {
                self.wiring.meters.probed("done");
                self.succeed(id, reply, emitted);
            }
            Probe::NotDone => {
                self.wiring.meters.probed("not-done");
                let Some(work) = self.works.get_mut(id) else {
                    return Ok(());
                };
                work.may_have_applied = false;
                if work.counted() >= self.bounds.attempts_max {
                    let why = format!("not done after {} attempts, says the probe", work.attempts);
                    self.spent(id, None, why);
                } else {
                    return self.try_again(id);
                }
            }
            Probe::Unknown => {
                self.wiring.meters.probed("unknown");
                if self.may_rerun(id) {
                    self.run_again(id, "the probe does not know");
                } else {
                    self.hold(id, HeldFor::InDoubt);
                }
            }
        }
        Ok(())
    }

    /// Whether something is still to come that a drain waits for.
    pub(super) fn has_waiting_ends(&self) -> bool {
        self.works.iter().any(|(_, work)| {
            matches!(
                work.phase,
                Phase::Recording
                    | Phase::Deciding(_)
                    | Phase::Holding
                    | Phase::Settling
                    | Phase::Sending
                    | Phase::Noting
            )
        })
    }
}
