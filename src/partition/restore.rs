//! Restore: what the store knows of a partition when it is assigned.

use std::sync::Arc;

use super::Partition;
use super::hold::LOAD_MAX;
use super::resting::{Found, Kind};
use super::work::{Claimant, Ending, Holder, Keys, Origin, Phase, Resting, Work, WorkId};
use crate::accounts::Account;
use crate::outcome::{End, HeldFor, Open, Reason, Stage, Stored, Verdict};

impl Partition {
    /// Takes up what an earlier assignment left open. Begun records wait for their message to be delivered again;
    /// held ones rest until they are due, or for a verdict, or too old; a verdict given meanwhile is carried out; a letter
    /// that was not acknowledged is sent again.
    pub(super) fn restore(&mut self, found: Vec<Found>) {
        self.index.reserve(found.len());
        let mut behind = Vec::new();
        for found in found {
            if found.is_behind_its_token() {
                behind.push(found);
            } else {
                self.take_up(found);
            }
        }
        // Whoever is held behind a token comes after the record that holds it, which may have the higher offset: a
        // message can be held that was passed over as a duplicate before.
        let mut keys = Vec::with_capacity(behind.len());
        for found in behind {
            keys.extend_from_slice(found.keys());
            self.take_up(found);
        }
        // Where no record holds it, it is judged next: by the outcome of the work that has it, or by what the store says.
        for key in keys {
            self.free_next(&key, LOAD_MAX);
        }
        self.run_next_of_all();
    }

    fn take_up(&mut self, found: Found) {
        match found.0 {
            Kind::Whole(open) => self.take_up_whole(&open),
            Kind::Resting(resting, bytes) => {
                if resting.is_held() {
                    self.accounts.restore(1);
                    self.count_held(bytes);
                }
                self.rest(resting);
            }
        }
    }

    fn take_up_whole(&mut self, open: &Open) {
        match &open.stage {
            Stage::Begun { not_applied, .. } => {
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
                // Whoever waited behind it waits on: it ran for its retry, and its turn is not over.
                let why = HeldFor::Retry {
                    due_ms: 0,
                    may_have_applied: !not_applied,
                };
                self.hold_up(Some(id), why, open);
                self.ready.push_back(id);
            }
            Stage::Held { why, verdict, .. } => {
                self.count_restored(open);
                let why = *why;
                if let Some(verdict) = verdict {
                    let work = self.carry_out_found(open, *verdict);
                    self.hold_up(work, why, open);
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

    fn rest(&mut self, mut resting: Resting) {
        let is_behind = resting.is_behind_its_token();
        let order = resting.order.take();
        let (keys, at) = (resting.keys.clone(), resting.offset);
        let id = self.resting.insert(resting);
        let who = Holder::Resting(id);
        for key in keys.as_slice() {
            self.index.give(*key, Claimant { at, who });
        }
        if !is_behind {
            self.rest_with_key(id, order);
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
                    work.is_ordered = true;
                    work.forgiven = (work.attempts + 1).saturating_sub(self.bounds.attempts_max);
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
            Stage::Held { message, .. }
            | Stage::Begun {
                message: Some(message),
                ..
            } => self.order_of(message.key.as_deref()),
            _ => None,
        }
    }

    pub(super) fn give_up_restored(&mut self, open: &Open, reason: Reason, error: String) -> Option<WorkId> {
        let id = self.revive(open, Phase::Judging)?;
        if open.is_behind_its_token() {
            self.end_by_position(id);
        }
        self.give_up(id, reason, error);
        Some(id)
    }

    /// It ends under its position, and its token stays what another message makes of it: what is held behind its token, or
    /// refused by a policy, would cover with its own failure what was done.
    pub(super) fn end_by_position(&mut self, id: WorkId) {
        if let Some(work) = self.works.get_mut(id) {
            let position = self.wiring.extractor.position(&work.raw());
            work.refused = Some(Box::new(std::mem::replace(&mut work.keys, Keys::One(position))));
        }
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
        // Whoever was held behind its token has not run, and its key has not waited for it: it is one of its key's messages still.
        let order = match open.is_behind_its_token() {
            true => self.order_of(message.key.as_deref()),
            false => None,
        };
        let id = self.works.insert(Work {
            origin: Origin::Restored,
            phase,
            order,
            batch,
            index: 0,
            has_slot: false,
            owns_key: false,
            blocks: None,
            unblocked_at: u64::MAX,
            judged_ms: self.time.now_ms().unwrap_or(open.first_seen_ms),
            seen_floor_ms: open.first_seen_ms,
            attempts: open.attempts,
            forgiven: 0,
            since_ms: open.since_ms,
            started: None,
            running_since: None,
            open_at: Some((keys.first(), open.offset)),
            may_have_applied: false,
            in_doubt: false,
            suspect: false,
            is_ordered: false,
            fingerprint: open.fingerprint,
            policy: None,
            refused: None,
            behind: Vec::new(),
            original: None,
            answer: None,
            ending: None,
            closing: None,
            held_for: None,
            keys: keys.clone(),
        });
        if open.is_behind_its_token() {
            // Not before whoever has come again since, with a lower offset: it may be what has to be decided first.
            self.claim(id, &keys);
        } else {
            let own = self.works.get(id)?.claimant(id);
            for key in keys.as_slice() {
                self.index.give(*key, own);
            }
        }
        Some(id)
    }
}

const BY_OPERATOR: &str = "an operator resolved it to the dead-letter topic";
