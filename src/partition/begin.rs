//! Begin: a slot, the decoded message, and for a guarded class a durable `Begun` (Inv 3).
//!
//! Only what has a slot is begun (plus `begun_ahead`), so a kill leaves at most that many messages in doubt. Decoding
//! comes first: a payload that crashes its decoder was never begun.

use std::time::Duration;

use super::work::{Origin, Phase, WorkId};
use super::{Partition, Stop};
use crate::attempt::{Event, Subject, Undecoded};
use crate::handler::{Call, DecodeError};
use crate::message::Kept;
use crate::outcome::{HeldFor, Open, Reason, Stage};

impl Partition {
    /// Handlers that may run at once.
    pub(super) fn slots(&self) -> usize {
        // From the second unclean start on suspects run alone, so that an innocent does not share the count of the
        // one that kills the process.
        if self.wiring.unclean_starts >= 2
            && (self.suspects_left > 0 || self.works.iter().any(|(_, w)| w.suspect))
        {
            return 1;
        }
        self.wiring.policy.concurrency.slots()
    }

    /// Starts what may start, in offset order.
    pub(super) fn fill_slots(&mut self) -> Result<(), Stop> {
        if self.ready.is_empty() && self.returned.is_empty() {
            return Ok(());
        }
        let slots = if crate::crash::is_off("slots") {
            usize::from(u16::MAX)
        } else {
            self.slots()
        };
        let ahead = if self.wiring.policy.class.is_guarded() {
            self.wiring.policy.begun_ahead
        } else {
            0
        };
        while self.draining.is_none() && self.slots_used < slots + ahead {
            let nothing = self.ready.is_empty() && self.returned.is_empty();
            if nothing || !self.may_prepare() {
                break;
            }
            // However many fresh ones are ready: what was held has waited longer.
            let next = self.returned.pop_front().or_else(|| self.ready.pop_front());
            let Some(id) = next else { break };
            if self.end_useless(id) {
                continue;
            }
            let Some(work) = self.works.get_mut(id) else {
                continue;
            };
            // What was begun before goes by its own row: a hold behind its key would not say that it may have run.
            // Of those from the disk only one that was held behind its token has an order: it has not run.
            let has_run = work.open_at.is_some() && work.origin != Origin::Restored;
            let may_be_blocked = !has_run && work.unblocked_at != self.blocks;
            if may_be_blocked && work.order.is_some_and(|order| self.blocked.contains_key(&order)) {
                self.hold(id, HeldFor::Key);
                continue;
            }
            if let Some(order) = work.order.filter(|_| !work.owns_key) {
                match self.busy.get_mut(&order) {
                    Some(queue) => {
                        queue.push_back(id);
                        work.phase = Phase::BehindKey;
                        continue;
                    }
                    None => {
                        self.busy.insert(order, std::collections::VecDeque::new());
                    }
                }
                work.owns_key = true;
            }
            work.has_slot = true;
            self.slots_used += 1;
            let in_doubt = std::mem::take(&mut work.in_doubt);
            self.goes(id);
            if in_doubt {
                self.after_crash(id)?;
            } else {
                self.prepare(id)?;
            }
        }
        Ok(())
    }

    /// Gives the slot and the key back.
    pub(super) fn free_slot(&mut self, id: WorkId) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        if std::mem::take(&mut work.has_slot) {
            self.slots_used -= 1;
        }
        if !std::mem::take(&mut work.owns_key) {
            return;
        }
        let Some(order) = work.order else { return };
        let next = self
            .busy
            .get_mut(&order)
            .and_then(std::collections::VecDeque::pop_front);
        let Some(next) = next else {
            self.busy.remove(&order);
            return;
        };
        // The key goes straight to the next of its messages, before whatever became ready since.
        if let Some(next) = self.works.get_mut(next) {
            next.owns_key = true;
            next.phase = Phase::Ready;
        }
        self.ready.push_front(next);
    }

    /// Decodes, and goes on at once where the decoder did not have to wait.
    pub(super) fn prepare(&mut self, id: WorkId) -> Result<(), Stop> {
        self.set_phase(id, Phase::Preparing);
        let Some(subject) = self.subject(id) else {
            return Ok(());
        };
        match self.attempts.prepare(&subject) {
            Some(decoded) => self.prepared(id, decoded),
            None => Ok(()),
        }
    }

    fn prepared(&mut self, id: WorkId, decoded: Result<(), Undecoded>) -> Result<(), Stop> {
        if self
            .works
            .get(id)
            .is_none_or(|work| work.phase != Phase::Preparing)
        {
            // Given up meanwhile, because its partition goes.
            self.attempts.discard(id);
            return Ok(());
        }
        match decoded {
            Ok(()) => {}
            Err(Undecoded::Error(DecodeError::Malformed(why))) => {
                self.give_up(id, Reason::Malformed, why.to_string());
                return Ok(());
            }
            Err(Undecoded::Panicked(text)) => {
                self.give_up(id, Reason::Malformed, format!("the decoder panicked: {text}"));
                return Ok(());
            }
            Err(Undecoded::Error(DecodeError::Unavailable(why))) => {
                self.decode_again(id, &why.to_string());
                return Ok(());
            }
            Err(Undecoded::TimedOut) => {
                self.decode_again(id, "the decoder did not answer within the deadline");
                return Ok(());
            }
        }
        let Some(work) = self.works.get_mut(id) else {
            return Ok(());
        };
        if self.draining.is_some() {
            // Its decoder had to wait, and meanwhile the partition began to go: nothing more is begun.
            work.phase = Phase::Ready;
            self.attempts.discard(id);
            return Ok(());
        }
        if self.wiring.policy.class.is_guarded() || work.suspect {
            self.begin(id);
            return Ok(());
        }
        self.start(id)
    }

    /// Writes `Begun`; the handler starts when that is durable.
    fn begin(&mut self, id: WorkId) {
        let wall_ms = self.wiring.clock.wall_ms();
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        work.attempts += 1;
        if work.since_ms == 0 {
            work.since_ms = wall_ms;
        }
        work.phase = Phase::Beginning;
        crate::crash::point("before-begin");
        self.write_begun(id, false);
    }

    /// Puts the open record of this work into the group.
    pub(super) fn write_begun(&mut self, id: WorkId, not_applied: bool) {
        let Some(work) = self.works.get(id) else { return };
        let message = (work.origin == Origin::Restored).then(|| Kept::copy_of(&work.raw()));
        let Some(open) = self.open_record(id, Stage::Begun { not_applied, message }) else {
            return;
        };
        self.write_open(id, open);
    }

    pub(super) fn open_record(&self, id: WorkId, stage: Stage) -> Option<Open> {
        let work = self.works.get(id)?;
        Some(Open {
            keys: work.keys.as_slice().to_vec(),
            offset: work.offset(),
            stage,
            first_seen_ms: work.first_seen_ms(),
            attempts: work.attempts,
            since_ms: work.since_ms,
            fingerprint: work.fingerprint,
        })
    }

    /// Replaces whatever open record this work had.
    pub(super) fn write_open(&mut self, id: WorkId, open: Open) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        let name = (work.keys.first(), open.offset);
        if let Some(earlier) = work.open_at.filter(|earlier| *earlier != name) {
            self.changes.removed.push(earlier);
        }
        work.open_at = Some(name);
        self.changes.opened.push(open);
        self.changed.push(id);
    }

    /// Its begin is durable.
    pub(super) fn begun(&mut self, id: WorkId) -> Result<(), Stop> {
        crate::crash::point("after-begin");
        if self.draining.is_some() {
            self.unbegin_one(id);
            return Ok(());
        }
        if self.running < self.slots() {
            return self.start(id);
        }
        self.set_phase(id, Phase::Begun);
        self.begun.push_back(id);
        Ok(())
    }

    /// Calls the handler.
    fn start(&mut self, id: WorkId) -> Result<(), Stop> {
        if !self.is_let_through(id) {
            self.wait_begun(id);
            return Ok(());
        }
        let Some(work) = self.works.get_mut(id) else {
            return Ok(());
        };
        work.phase = Phase::Running;
        let begun = work.open_at.is_some() && (self.wiring.policy.class.is_guarded() || work.suspect);
        if !begun {
            work.attempts += 1;
        }
        if work.attempts > 1 {
            self.wiring.meters.retries.increment(1);
        }
        work.started.get_or_insert(self.now);
        work.running_since = Some(self.now);
        self.running += 1;
        self.wiring.meters.attempts.increment(1);
        self.count_start();
        let (Some(subject), Some(call)) = (self.subject(id), self.call(id)) else {
            return Ok(());
        };
        match self.attempts.run(&subject, call) {
            Some(ended) => self.attempt_ended(id, ended),
            None => Ok(()),
        }
    }

    /// A handler ended, or the breaker did something: another message that was begun ahead may start.
    pub(super) fn start_begun(&mut self) -> Result<(), Stop> {
        while self.draining.is_none() && !self.begun.is_empty() && self.running < self.slots() {
            let Some(&id) = self.begun.front() else { break };
            if !self.may_start_begun(id) {
                break;
            }
            self.begun.pop_front();
            if self.is_forgotten(id) {
                self.attempts.discard(id);
                self.hold(id, HeldFor::InDoubt);
            } else if self.end_useless(id) {
                self.attempts.discard(id);
            } else {
                self.start(id)?;
            }
        }
        Ok(())
    }

    pub(super) fn subject(&self, id: WorkId) -> Option<Subject> {
        let work = self.works.get(id)?;
        Some(Subject {
            id,
            batch: std::sync::Arc::clone(&work.batch),
            index: work.index as usize,
        })
    }

    pub(super) fn call(&self, id: WorkId) -> Option<Call> {
        let work = self.works.get(id)?;
        Some(Call {
            token: work.keys.first(),
            attempt: work.attempts,
            fence: self.gate.fence(),
            class: self.wiring.policy.class,
            may_have_applied: work.may_have_applied,
            outbox: None,
        })
    }

    pub(super) fn attempt_event(&mut self, id: WorkId, event: Event) -> Result<(), Stop> {
        match event {
            Event::Prepared(decoded) => self.prepared(id, decoded),
            Event::Ended(ended) => {
                let since = self.works.get(id).and_then(|work| work.running_since);
                let took = since.map_or(Duration::ZERO, |since| self.now.duration_since(since));
                self.wiring.meters.handler.record(took.as_secs_f64());
                self.attempt_ended(id, ended)
            }
            Event::Probed(probe, emitted) => self.probed(id, probe, emitted),
        }
    }

    /// A drain: what was begun and has not started did not happen.
    pub(super) fn unbegin(&mut self) {
        for id in std::mem::take(&mut self.begun) {
            self.unbegin_one(id);
        }
    }

    fn unbegin_one(&mut self, id: WorkId) {
        self.attempts.discard(id);
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        // An earlier attempt that may have applied something stays in doubt, whatever this one did not do.
        if work.may_have_applied {
            return;
        }
        work.phase = Phase::Ready;
        // This one did not happen; those before it are counted.
        work.attempts = work.attempts.saturating_sub(1);
        if work.origin == Origin::Restored || work.attempts > 0 {
            // Held, its record is the only copy of the message.
            self.write_begun(id, true);
        } else if let Some(name) = work.open_at.take() {
            self.changes.removed.push(name);
        }
    }
}
