//! Redrive: a message that was given up on is held again, as due (`acts.rs`).

use super::Partition;
use super::acts::Acting;
use super::work::{Holder, Phase};
use crate::act::{Answer, Redriven};
use crate::outcome::{Closed, End, HeldFor, Open, Reason, Stage};
use crate::token::{Found, TokenKey};

impl Partition {
    /// The tokens of a dead letter, where it can be held again.
    pub(super) fn may_redrive(&self, redriven: &Redriven) -> Result<Vec<TokenKey>, Answer> {
        let offset = redriven.offset;
        let point = self.ledger.commit_point().next;
        if offset.0 < 0 || offset.0 >= point.0 {
            return Err(Answer::Refused(format!(
                "offset {offset} is not below the commit point {point}: no letter of this partition can have it"
            )));
        }
        if self.wiring.budget.is_held_full() {
            return Err(Answer::Refused(
                "`limits.held` or `limits.held_bytes` is reached: nothing more is held".to_owned(),
            ));
        }
        let batch =
            redriven
                .message
                .into_batch(std::sync::Arc::clone(&self.wiring.topic), self.partition, offset);
        let Some(raw) = batch.get(0) else {
            return Err(Answer::Refused("it has no message".to_owned()));
        };
        let mut keys = Vec::new();
        if !matches!(self.wiring.extractor.read(&raw, &mut keys), Found::Tokens) {
            keys.push(self.wiring.extractor.position(&raw));
        }
        let is_held = |key| match self.index.get(key) {
            Some(Holder::Resting(open)) => self.resting.get(open).is_some_and(|open| open.offset == offset),
            Some(Holder::Work(id)) => self.works.get(id).is_some_and(|work| work.offset() == offset),
            None => false,
        };
        if keys.iter().any(is_held) {
            return Err(Answer::Unchanged("it is held, or runs, already".to_owned()));
        }
        match self.open_at(&keys) {
            Some(open) => Err(open),
            None => Ok(keys),
        }
    }

    pub(super) fn redrive(
        &mut self,
        acting: &mut Acting,
        index: usize,
        redriven: &Redriven,
        keys: &[TokenKey],
        known: &[&Closed],
    ) -> Answer {
        let offset = redriven.offset;
        let mut given_up = redriven.reason;
        for closed in known {
            match &closed.end {
                End::Done(_) => {
                    return Answer::Unchanged(format!("its token is done, at offset {}", closed.offset));
                }
                End::Invalidated(why) => {
                    return Answer::Refused(format!("its token is invalidated ({why}): forget it first"));
                }
                End::Failed(_) if closed.offset > offset => {
                    return Answer::Refused(format!(
                        "a later message of its token failed, at offset {}: redrive that one",
                        closed.offset
                    ));
                }
                End::Failed(reason) => given_up = Some(*reason),
                End::Forgotten => {}
            }
        }
        let was_in_doubt = given_up.is_none_or(Reason::leaves_doubt);
        if self.wiring.policy.class.is_guarded() && was_in_doubt && !redriven.not_applied {
            return Answer::Refused(format!(
                "it was given up as {:?}, and may have been applied: say --not-applied where it was not",
                given_up.map_or("unknown", Reason::code)
            ));
        }
        if acting.dry_run {
            return Answer::Done("it would be held, and run at once".to_owned());
        }
        let wall_ms = self.wiring.clock.wall_ms();
        let why = HeldFor::Retry {
            due_ms: wall_ms,
            may_have_applied: false,
        };
        let open = Open {
            keys: keys.to_vec(),
            offset,
            stage: Stage::Held {
                why,
                message: redriven.message.clone(),
                verdict: None,
            },
            first_seen_ms: self.time.now_ms().unwrap_or(0),
            // Its life begins anew.
            attempts: 0,
            since_ms: wall_ms,
            fingerprint: None,
        };
        self.count_restored(&open);
        let Some(work) = self.revive(&open, Phase::Judging) else {
            return Answer::Refused("it has no message".to_owned());
        };
        if let Some(work) = self.works.get_mut(work) {
            // There is no record of it yet.
            work.open_at = None;
        }
        self.hold(work, why);
        self.note_act(
            acting,
            index,
            offset,
            keys.first().copied().unwrap_or(TokenKey([0; 16])),
        );
        Answer::Done("it is held, and runs at once".to_owned())
    }
}
