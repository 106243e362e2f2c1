//! Judge: the row of the decision table that an arriving message meets (`docs/design.md`, "States, classes,
//! verdicts").
//!
//! A redelivery completes silently *before* any policy is asked: the same offset was decided once, whatever the
//! decision was. Only an outcome suppresses (Inv 2).

use super::work::{Claimant, Holder, Keys, OpenId, Origin, Phase, RestingState, Work, WorkId};
use super::{Partition, Stop, Who};
use crate::accounts::Account;
use crate::config::{AfterFailure, Expired, Mode, OnMismatch};
use crate::error::Error;
use crate::message::{Offset, Raw};
use crate::outcome::{Closed, End, Fingerprint, HeldFor, Reason};
use crate::store::Hit;
use crate::store::lookups::Found;
use crate::token::TokenKey;

impl Partition {
    /// The answer to the oldest look-up.
    pub(super) fn judged(
        &mut self,
        answer: Result<Result<Found, crate::store::Error>, tokio::sync::oneshot::error::RecvError>,
    ) -> Result<(), Stop> {
        let Some(asked) = self.asked.pop_front() else {
            return Ok(());
        };
        let Found { mut keys, hits } = match answer {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(Stop::Error(Error::Store(error))),
            Err(_) => return Err(super::gone()),
        };
        let ids = match asked.who {
            Who::Works(ids) => ids,
            Who::Order(acts) => {
                self.acts_judged(&acts, &keys, &hits);
                return Ok(());
            }
        };
        let mut hits = hits.into_iter().peekable();
        let mut first_key = 0;
        let mut own: Vec<Hit> = Vec::new();
        for (id, count) in ids {
            first_key += count;
            own.clear();
            while let Some(hit) = hits.next_if(|hit| hit.key < first_key) {
                let key = hit.key + count - first_key;
                own.push(Hit { key, ..hit });
            }
            self.meets(id, &own, count);
        }
        keys.clear();
        self.spare_keys = keys;
        Ok(())
    }

    /// What the look-up found for one message, which asked for that many keys.
    fn meets(&mut self, id: WorkId, hits: &[Hit], asked: usize) {
        let Some(work) = self.works.get(id) else { return };
        let keys = work.keys.clone();
        // With its position: while a record of its token was at rest.
        let met_a_record = asked > keys.as_slice().len();
        if let Some(closed) = self.ruling_hit(id, hits) {
            if self.is_redelivery_of(id, &closed) {
                self.redelivered(id, &closed);
                return;
            }
            // `enter` gave it all of its keys where it met no record, and only its own end takes them away.
            if !met_a_record || self.was_suppressed(id, &closed, &keys) {
                self.meets_closed(id, &closed, Some(hits));
                return;
            }
        } else if !met_a_record {
            self.meets_nothing(id);
            return;
        }
        // Whoever holds the token now is met after all.
        match self.claim(id, &keys) {
            // That record has left since, and what it ended with may be younger than this answer.
            None => self.enter(id),
            Some(Holder::Work(first)) => self.wait_behind(id, first),
            Some(Holder::Resting(open)) => self.meets_resting(id, open),
        }
    }

    /// Of several records of one message's tokens the one that decided this delivery rules; else one that suppresses,
    /// since a failure under one token does not undo what was done under another; else the latest.
    fn ruling_hit(&self, id: WorkId, hits: &[Hit]) -> Option<Closed> {
        let work = self.works.get(id)?;
        let commit_point = self.ledger.commit_point().next;
        let rank = |closed: &Closed| {
            let is_inside = self.counts(work.judged_ms, closed, commit_point);
            let decides = self.suppresses(closed) || matches!(closed.end, End::Invalidated(_));
            (
                self.is_redelivery_of(id, closed),
                is_inside && decides,
                is_inside,
                closed.offset,
            )
        };
        hits.iter()
            .max_by_key(|hit| rank(&hit.closed))
            .map(|hit| hit.closed.clone())
    }

    /// Whether it was passed over as a duplicate before the record that it meets was opened: by a later message of its token, for
    /// which that outcome was past. It comes again, and is what it was.
    fn was_suppressed(&self, id: WorkId, closed: &Closed, keys: &Keys) -> bool {
        let Some(work) = self.works.get(id) else {
            return false;
        };
        let is_later = |key: &TokenKey| match self.index.get(key) {
            Some(Holder::Resting(open)) => {
                let resting = self.resting.get(open);
                resting.is_some_and(|resting| resting.offset > work.offset())
            }
            _ => false,
        };
        let commit_point = self.ledger.commit_point().next;
        self.suppresses(closed)
            && self.counts(work.judged_ms, closed, commit_point)
            && keys.as_slice().iter().all(is_later)
    }

    /// Closed at its own offset, or (after a run by `after_failure`) at a higher one: this delivery was decided before. So was what
    /// was held, and goes by its position, where that has a record: it was delivered again, and decided as that.
    fn is_redelivery_of(&self, id: WorkId, closed: &Closed) -> bool {
        let is_meant = |work: &Work| matches!(work.origin, Origin::Taken(_)) || work.refused.is_some();
        self.works
            .get(id)
            .is_some_and(|work| is_meant(work) && closed.offset >= work.offset())
    }

    fn redelivered(&mut self, id: WorkId, closed: &Closed) {
        self.wiring.meters.redeliveries.increment(1);
        let open = self
            .works
            .get_mut(id)
            .and_then(|work| Some((work.open_at.take()?, work)));
        let Some((name, work)) = open else {
            return self.finish(id, Account::Redelivery, Some(closed));
        };
        // Its record goes, or every start would judge it again.
        work.phase = Phase::Recording;
        work.closing = Some((Account::Redelivery, closed.clone()));
        self.changes.removed.push(name);
        self.changed.push(id);
    }

    /// Its token is closed. `hits` are the records of its keys, `None` where it shares an outcome of its one key.
    pub(super) fn meets_closed(&mut self, id: WorkId, closed: &Closed, hits: Option<&[Hit]>) {
        if self.is_redelivery_of(id, closed) {
            self.redelivered(id, closed);
            return;
        }
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        // A later record must not lie in an older bucket than this one, where the look-up would not see it first.
        work.seen_floor_ms = work.seen_floor_ms.max(closed.first_seen_ms);
        let judged_ms = work.judged_ms;
        if !self.counts(judged_ms, closed, self.ledger.commit_point().next) {
            self.wiring.meters.expirations.increment(1);
            self.meets_nothing(id);
            return;
        }
        self.wiring.meters.hits.increment(1);
        match &closed.end {
            End::Done(_) => self.duplicate(id, closed, hits),
            End::Failed(reason) if self.runs_after(*reason) => self.run_anew(id),
            End::Failed(_) => self.duplicate(id, closed, hits),
            End::Invalidated(_) if self.wiring.policy.mode == Mode::Observe => self.run_observed(id),
            End::Invalidated(why) => {
                let error = format!("an operator invalidated its token: {why}");
                self.refuse_for(id, Some(closed.offset), Reason::Invalidated, error);
            }
            End::Forgotten => self.run_anew(id),
        }
    }

    /// Whether a message runs whose token failed for that reason. What was given up *in doubt* may have been applied:
    /// no policy runs that again for a guarded class. What was useless has applied nothing, and says nothing of a later message.
    fn runs_after(&self, reason: Reason) -> bool {
        if reason == Reason::Useless {
            return true;
        }
        let policy = &self.wiring.policy;
        let is_open_to_doubt = policy.class.is_guarded() && reason.leaves_doubt();
        policy.after_failure == AfterFailure::Run && !is_open_to_doubt
    }

    /// Whether a later message of its token does not run, and is no failure either.
    pub(super) fn suppresses(&self, closed: &Closed) -> bool {
        match &closed.end {
            End::Done(_) => true,
            End::Failed(reason) => !self.runs_after(*reason),
            End::Invalidated(_) | End::Forgotten => false,
        }
    }

    /// Whether this work shares a durable outcome of its only token now: nobody has the token, or has it as a duplicate of the
    /// same outcome. Those are recorded together, and not one after another: there may be thousands.
    pub(super) fn may_share(&mut self, id: WorkId, closed: &Closed) -> bool {
        // One that goes by its position is asked about that.
        let Some(work) = self.works.get(id).filter(|work| work.refused.is_none()) else {
            return false;
        };
        let Keys::One(key) = work.keys else { return false };
        let (by, judged_ms) = (work.claimant(id), work.judged_ms);
        match self.index.claim(key, by) {
            None => true,
            Some(Holder::Work(other)) => {
                let commit_point = self.ledger.commit_point().next;
                let is_duplicate = self.suppresses(closed) && self.counts(judged_ms, closed, commit_point);
                let shares = is_duplicate && self.works.get(other).is_some_and(|other| other.shares(closed));
                if shares {
                    // The token is open until it is complete too, however long it takes to tell it.
                    self.index.wait(key, by);
                }
                shares
            }
            Some(Holder::Resting(_)) => false,
        }
    }

    /// Its token is new, or as good as new.
    fn meets_nothing(&mut self, id: WorkId) {
        if self.works.get(id).is_some_and(|work| work.answer.is_some()) {
            return self.answered(id);
        }
        self.wiring.meters.misses.increment(1);
        let Some(work) = self.works.get(id) else { return };
        if let Some((reason, error)) = work.policy.clone() {
            self.give_up(id, reason, error);
            return;
        }
        if self.wiring.policy.expired == Expired::DeadLetter && self.wiring.policy.mode == Mode::Enforce {
            let window_ms = self.window.length_ms();
            let raw = work.raw();
            if let Some(birth) = self
                .wiring
                .extractor
                .birth_ms(&raw)
                .filter(|birth| work.judged_ms - birth >= window_ms)
            {
                let age_ms = work.judged_ms - birth;
                let error = format!("its token was made {age_ms} ms before, the window is {window_ms} ms");
                self.refuse_for(id, None, Reason::Expired, error);
                return;
            }
        }
        self.run_anew(id);
    }

    fn run_anew(&mut self, id: WorkId) {
        self.set_phase(id, Phase::Ready);
        self.ready.push_back(id);
    }

    /// The same token at another offset, inside the window.
    fn duplicate(&mut self, id: WorkId, closed: &Closed, hits: Option<&[Hit]>) {
        let Some(work) = self.works.get(id) else { return };
        #[expect(clippy::cast_precision_loss, reason = "a histogram takes floats")]
        self.wiring
            .meters
            .duplicate_gap
            .record((work.judged_ms - closed.first_seen_ms) as f64 / 1_000.0);
        let fields = &self.wiring.policy.mismatch.fields;
        if let Some(first) = closed.fingerprint
            && self
                .fingerprint(&work.raw(), matches!(first, Fingerprint::Fields(_)))
                .is_some_and(|own| own.differs(first))
        {
            self.wiring.meters.mismatches.increment(1);
            if matches!(first, Fingerprint::Fields(_))
                && self.wiring.policy.mismatch.then == OnMismatch::DeadLetter
                && self.wiring.policy.mode == Mode::Enforce
            {
                let error = format!(
                    "{} differ from the message at offset {}",
                    fields.join(", "),
                    closed.offset
                );
                self.refuse_for(id, Some(closed.offset), Reason::Mismatch, error);
                return;
            }
        }
        if self.wiring.policy.mode == Mode::Observe {
            self.run_observed(id);
            return;
        }
        let is_held = work.open_at.is_some();
        let written = self.written_by(id, closed, hits);
        if let Some(mut answer) = self.answer_to(id, closed) {
            if let Some(written) = written {
                answer.closed = self.write_for_duplicate(written);
            }
            return self.by_position(id, |work| work.answer = Some(answer));
        }
        if written.is_none() && !is_held {
            self.finish(id, Account::Duplicate, Some(closed));
            return;
        }
        // Recorded before this message completes. Held until now: its open record goes, or every start would judge it again.
        self.record(id, Account::Duplicate, closed.end.clone());
        let mut shared = closed.clone();
        if let Some(written) = written {
            shared = self.write_for_duplicate(written);
        }
        if let Some(work) = self.works.get_mut(id) {
            // Whoever waits behind it shares the first outcome, not the moment of this duplicate.
            work.closing = Some((Account::Duplicate, shared));
        }
    }

    /// What would be suppressed or refused runs, and is counted.
    fn run_observed(&mut self, id: WorkId) {
        self.wiring.meters.observed.increment(1);
        self.run_anew(id);
    }

    /// A policy gives up on this message, not on its token: the outcome is recorded under its position, and looked
    /// up there first, so that a redelivery of it is silent too.
    ///
    /// Its token stays in the index until that is durable. Otherwise: 10 is refused, 12 of the same token runs and is
    /// recorded, the process dies, 10 comes again and finds its token closed at 12, which reads as a redelivery, and
    /// nobody ever dead-letters 10.
    fn refuse_for(&mut self, id: WorkId, original: Option<Offset>, reason: Reason, error: String) {
        self.by_position(id, |work| {
            work.original = original;
            work.policy = Some((reason, error));
        });
    }

    /// From here on the message goes by its position. Its token stays its own until it is complete.
    fn by_position(&mut self, id: WorkId, note: impl FnOnce(&mut Work)) {
        self.end_by_position(id);
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        note(work);
        self.enter(id);
    }

    /// What later messages of the token are compared with.
    pub(super) fn fingerprint(&self, raw: &Raw<'_>, of_fields: bool) -> Option<Fingerprint> {
        match of_fields {
            true => Fingerprint::of_fields(raw, &self.wiring.policy.mismatch.fields),
            false => Some(Fingerprint::of_whole(raw)),
        }
    }

    /// Whether an open record is about this very message.
    pub(super) fn is_about(&self, open: OpenId, id: WorkId) -> bool {
        let offset = self.works.get(id).map(super::work::Work::offset);
        self.resting
            .get(open)
            .is_some_and(|resting| Some(resting.offset) == offset)
    }

    /// Its token is open, and no work here is about it.
    pub(super) fn meets_resting(&mut self, id: WorkId, open: OpenId) {
        let Some(resting) = self.resting.get(open) else {
            return;
        };
        match resting.state {
            RestingState::Begun { .. } => self.take_over(id, open),
            RestingState::Decided => self.wait_for_act(id),
            // Recorded, and so complete.
            RestingState::Held(_) if self.is_held_already(id) => {
                self.wiring.meters.redeliveries.increment(1);
                self.finish(id, Account::Redelivery, None);
            }
            RestingState::Held(_) => self.hold(id, HeldFor::Token),
        }
    }

    /// Whether a record at rest keeps this very message: one that has its token, or one that waits for it.
    pub(super) fn is_held_already(&self, id: WorkId) -> bool {
        let Some(work) = self.works.get(id) else {
            return false;
        };
        let offset = work.offset();
        let is_there = |key: &TokenKey| {
            let has_it = match self.index.get(key) {
                Some(Holder::Resting(open)) => self.resting.get(open),
                _ => None,
            };
            let has_it = has_it.is_some_and(|resting| resting.is_held() && resting.offset == offset);
            has_it || self.index.waits_at(key, offset)
        };
        work.keys.as_slice().iter().any(is_there)
    }

    /// Begun, and its owner is gone: this message takes the in-doubt row.
    fn take_over(&mut self, id: WorkId, open: OpenId) {
        let Some(resting) = self.resting.try_remove(open) else {
            return;
        };
        let RestingState::Begun { not_applied } = resting.state else {
            return;
        };
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        work.attempts = resting.attempts;
        work.since_ms = resting.since_ms;
        work.open_at = Some((resting.keys.first(), resting.offset));
        work.seen_floor_ms = work.seen_floor_ms.max(resting.first_seen_ms);
        work.may_have_applied = !not_applied;
        work.in_doubt = !not_applied;
        // The record's own keys first: child tokens are made of the first, and must be those of the attempt before.
        let mut keys = resting.keys.as_slice().to_vec();
        let own = work.keys.as_slice().iter();
        keys.extend(own.filter(|key| !resting.keys.as_slice().contains(key)));
        work.keys = Keys::of(&keys);
        let own = work.claimant(id);
        self.hand_over(&keys, resting.claimant(open), own);
        if !not_applied {
            self.wiring.meters.in_doubt("crash");
        }
        self.run_anew(id);
    }

    /// Gives the keys that `from` holds, and its places in the lines of others, to another.
    pub(super) fn hand_over(&mut self, keys: &[TokenKey], from: Claimant, to: Claimant) {
        for key in keys {
            self.index.hand_over(*key, from, to);
        }
    }

    /// Takes every key that this work holds, or waits for, out of the index.
    pub(super) fn leave_index(&mut self, id: WorkId) {
        let Some(work) = self.works.get(id) else { return };
        let own = work.claimant(id);
        let refused = work.refused.as_ref().map_or(&[][..], |keys| keys.as_slice());
        for key in work.keys.as_slice().iter().chain(refused) {
            self.index.leave(key, own);
        }
    }
}
