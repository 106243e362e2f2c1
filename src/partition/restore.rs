//! Restore: what the store knows of a partition when it is assigned.

use std::sync::Arc;

use super::Partition;
use super::work::{Ending, Holder, Keys, Origin, Phase, Resting, RestingState, Work, WorkId};
use crate::accounts::Account;
use crate::clock;
use crate::outcome::{End, HeldFor, Open, Reason, Stage, Stored, Verdict};
use crate::store::Known;

impl Partition {
    /// Takes up what an earlier assignment left open. Begun records wait for their message to be delivered again;
    /// held ones rest until a verdict or their age; a verdict given meanwhile is carried out; a letter that was not
    /// acknowledged is sent again.
    pub(super) fn restore(&mut self, known: Known, wall_ms: i64) {
        let (mut behind, first): (Vec<_>, Vec<_>) =
            known.open.into_iter().partition(Open::is_behind_its_token);
        for open in &first {
            self.take_up(open, wall_ms);
        }
        // Whoever is held behind a token comes after the record that holds it, which may have the higher offset: a
        // message can be held that was passed over as a duplicate before. And so on, behind each of these.
        loop {
            let has_holder = |open: &Open| self.holder_of(open).is_some();
            let (next, rest): (Vec<_>, Vec<_>) = behind.into_iter().partition(has_holder);
            let is_last = next.is_empty();
            for open in if is_last { &rest } else { &next } {
                self.take_up(open, wall_ms);
            }
            if is_last {
                break;
            }
            behind = rest;
        }
        self.run_next_of_all();
    }

    fn take_up(&mut self, open: &Open, wall_ms: i64) {
        let too_old = wall_ms.saturating_sub(open.since_ms) >= clock::millis(self.wiring.limits.held_age);
        match &open.stage {
            Stage::Begun {
                not_applied,
                message: None,
            } => {
                let state = RestingState::Begun {
                    not_applied: *not_applied,
                };
                self.rest(open, state);
            }
            Stage::Begun {
                not_applied,
                message: Some(_),
            } => {
                // It was held, an operator said run, and the process died while it ran: in doubt, like any other.
                self.count_restored(open);
                let not_applied = *not_applied;
                let Some(id) = self.revive(open, Phase::Ready) else {
                    return;
                };
                if let Some(work) = self.works.get_mut(id) {
                    work.may_have_applied = !not_applied;
                    work.in_doubt = !not_applied;
                    // Begun again in every class, so that one that keeps killing the process is counted.
                    work.suspect = true;
                }
                self.ready.push_back(id);
            }
            Stage::Held { why, verdict, .. } => {
                self.count_restored(open);
                let why = *why;
                match verdict {
                    // Not beside whoever has its token open, but after it.
                    Some(Verdict::Run) if why == HeldFor::Token => self.rest_or_follow(open, why),
                    Some(verdict) => {
                        let work = self.carry_out_found(open, *verdict);
                        self.hold_up(work, why, open);
                    }
                    None if too_old => {
                        let error = self.held_for_too_long(open.since_ms);
                        let work = self.give_up_restored(open, Reason::HeldTooLong, error);
                        self.hold_up(work, why, open);
                    }
                    None => self.rest_or_follow(open, why),
                }
            }
            Stage::Settling {
                end, error, outputs, ..
            } => {
                self.count_restored(open);
                let ending = Ending {
                    account: match end {
                        End::Done(_) => Account::Done,
                        _ => Account::Failed,
                    },
                    end: end.clone(),
                    error: error.clone(),
                    outputs: outputs.clone(),
                    unsent: None,
                    failed_sends: 0,
                };
                let Some(id) = self.revive(open, Phase::Settling) else {
                    return;
                };
                if let Some(work) = self.works.get_mut(id) {
                    work.ending = Some(Box::new(ending));
                }
                self.send(id);
            }
        }
    }

    pub(super) fn count_restored(&mut self, open: &Open) {
        self.accounts.restore(1);
        self.count_held(open.bytes());
    }

    /// Held behind a token whose own record is being carried out: it follows as work, to be judged by the outcome.
    fn rest_or_follow(&mut self, open: &Open, why: HeldFor) {
        match self.holder_of(open) {
            Some(Holder::Work(first)) => {
                let Some(id) = self.revive(open, Phase::Behind) else {
                    return;
                };
                if let Some(first) = self.works.get_mut(first) {
                    first.behind.push(id);
                }
            }
            Some(Holder::Resting(first)) => {
                let resting = resting_of(open, RestingState::Held(why));
                let id = self.resting.insert(resting);
                if let Some(first) = self.resting.get_mut(first) {
                    first.behind.push(id);
                }
                for key in &open.keys {
                    self.index.entry(*key).or_insert(Holder::Resting(id));
                }
            }
            // The record it was held behind is closed: judge it now.
            None if why == HeldFor::Token => {
                if let Some(id) = self.revive(open, Phase::Judging) {
                    self.enter(id);
                }
            }
            None => self.rest(open, RestingState::Held(why)),
        }
    }

    fn holder_of(&self, open: &Open) -> Option<Holder> {
        open.keys.iter().find_map(|key| self.index.get(key).copied())
    }

    fn rest(&mut self, open: &Open, state: RestingState) {
        let id = self.resting.insert(resting_of(open, state));
        self.rest_with_key(id, self.order_of_open(open));
        for key in &open.keys {
            self.index.entry(*key).or_insert(Holder::Resting(id));
        }
    }

    /// What an operator decided while the consumer was stopped, or before it ended.
    fn carry_out_found(&mut self, open: &Open, verdict: Verdict) -> Option<WorkId> {
        if verdict == Verdict::DeadLetter {
            return self.give_up_restored(open, Reason::Operator, BY_OPERATOR.into());
        }
        let id = self.revive(open, Phase::Judging)?;
        self.carry_out(id, verdict);
        Some(id)
    }

    /// What an operator decided about work that was held. It is durable.
    pub(super) fn carry_out(&mut self, id: WorkId, verdict: Verdict) {
        match verdict {
            Verdict::Done => {
                self.wiring.meters.done.increment(1);
                self.record(id, Account::Done, End::Done(Stored::Nothing));
            }
            Verdict::Run => {
                if let Some(work) = self.works.get_mut(id) {
                    // The operator says that it was not applied; the attempts of before are not counted against it.
                    work.may_have_applied = false;
                    work.attempts = work.attempts.min(self.bounds.attempts_max.saturating_sub(1));
                    work.phase = Phase::Ready;
                }
                self.ready.push_back(id);
            }
            Verdict::DeadLetter => self.give_up(id, Reason::Operator, BY_OPERATOR.into()),
        }
    }

    /// Others of its key wait for it still.
    fn hold_up(&mut self, id: Option<WorkId>, why: HeldFor, open: &Open) {
        let order = self.order_of_open(open).filter(|_| self.blocks(why));
        if let Some(work) = id.and_then(|id| self.works.get_mut(id)) {
            work.blocks = order;
        }
        if let Some(order) = order {
            self.block(order);
        }
    }

    fn order_of_open(&self, open: &Open) -> Option<u64> {
        match &open.stage {
            Stage::Held { message, .. } => self.order_of(message.key.as_deref()),
            _ => None,
        }
    }

    pub(super) fn give_up_restored(&mut self, open: &Open, reason: Reason, error: String) -> Option<WorkId> {
        let id = self.revive(open, Phase::Judging)?;
        if let Stage::Held {
            why: HeldFor::Token, ..
        } = open.stage
            && let Some(work) = self.works.get_mut(id)
        {
            // Held behind its token: that was decided, or will be, by another message. This one ends under its
            // position, or a failure would cover what was done.
            let position = self.wiring.extractor.position(&work.raw());
            work.refused = Some(Box::new(std::mem::replace(&mut work.keys, Keys::One(position))));
        }
        self.give_up(id, reason, error);
        Some(id)
    }

    /// Makes work of an open record that carries its message.
    pub(super) fn revive(&mut self, open: &Open, phase: Phase) -> Option<usize> {
        let (Stage::Held { message, .. }
        | Stage::Settling { message, .. }
        | Stage::Begun {
            message: Some(message),
            ..
        }) = &open.stage
        else {
            return None;
        };
        let batch = Arc::new(message.into_batch(Arc::clone(&self.wiring.topic), self.partition, open.offset));
        let keys = Keys::of(&open.keys);
        let id = self.works.insert(Work {
            origin: Origin::Restored,
            phase,
            order: None,
            batch,
            index: 0,
            has_slot: false,
            owns_key: false,
            blocks: None,
            judged_ms: self.time.now_ms().unwrap_or(open.first_seen_ms),
            seen_floor_ms: open.first_seen_ms,
            attempts: open.attempts,
            since_ms: open.since_ms,
            started: None,
            running_since: None,
            open_at: Some((keys.first(), open.offset)),
            may_have_applied: false,
            in_doubt: false,
            suspect: false,
            fingerprint: open.fingerprint,
            policy: None,
            refused: None,
            behind: Vec::new(),
            original: None,
            answer: None,
            ending: None,
            closing: None,
            held_for: None,
            held_behind: None,
            keys,
        });
        for key in &open.keys {
            self.index.entry(*key).or_insert(Holder::Work(id));
        }
        Some(id)
    }
}

const BY_OPERATOR: &str = "an operator resolved it to the dead-letter topic";

fn resting_of(open: &Open, state: RestingState) -> Resting {
    Resting {
        keys: Keys::of(&open.keys),
        offset: open.offset,
        attempts: open.attempts,
        since_ms: open.since_ms,
        first_seen_ms: open.first_seen_ms,
        state,
        behind: Vec::new(),
        order: None,
    }
}
