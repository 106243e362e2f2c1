//! Leave: held messages that nobody will decide about here any more.
//!
//! Their bytes are in the store, so they are loaded first. A partition that goes to another member takes what is held
//! above the commit point with it, because Kafka delivers it again; what is held below exists nowhere else and goes to
//! the dead-letter topic. So does what is held for longer than `held_age`, and whoever was held behind it is judged by
//! that outcome (Inv 2).

use hashbrown::HashMap;

use super::work::{Holder, OpenId, Origin, Phase, Resting, RestingState, WorkId};
use super::{Draining, Leaving, Partition};
use crate::clock;
use crate::outcome::{HeldFor, Open, Reason, Stage};
use crate::store::Known;

impl Partition {
    /// Asks for the held messages, if some are to leave and nobody has asked yet.
    pub(super) fn load_leaving(&mut self, why: Leaving) {
        if self.leaving.is_some() || (why == Leaving::TooOld && self.draining.is_some()) {
            return;
        }
        let leaves = match why {
            Leaving::Moved => self.resting.iter().any(|(_, resting)| is_held(resting)),
            Leaving::TooOld => self.resting.iter().any(|(_, resting)| self.is_too_old(resting)),
        };
        if leaves {
            self.leaving = Some((why, self.wiring.lookups.load(self.id)));
        }
    }

    fn is_too_old(&self, resting: &Resting) -> bool {
        let age_ms = self.wiring.clock.wall_ms().saturating_sub(resting.since_ms);
        is_held(resting) && age_ms >= clock::millis(self.wiring.limits.held_age)
    }

    /// The held messages, with their bytes, in the order of their offsets.
    pub(super) fn leave(&mut self, why: Option<Leaving>, known: Known) {
        match why {
            Some(Leaving::Moved) => self.leave_moved(&known),
            Some(Leaving::TooOld) => self.leave_too_old(&known),
            None => {}
        }
    }

    fn leave_moved(&mut self, known: &Known) {
        let point = *self.point_max.get_or_insert(self.ledger.commit_point());
        let commit_point = point.next;
        for open in &known.open {
            let Some(found) = self.resting_held(open) else {
                continue;
            };
            self.take_resting(found);
            if open.offset.0 < commit_point.0 {
                self.give_up_restored(open, Reason::Moved, MOVED.to_owned());
            } else if matches!(
                &open.stage,
                Stage::Held {
                    why: HeldFor::InDoubt,
                    ..
                }
            ) {
                // The message is the next owner's; that it is in doubt stays known, should it come back here.
                self.changes.opened.push(Open {
                    stage: Stage::Begun {
                        not_applied: false,
                        message: None,
                    },
                    ..open.clone()
                });
            } else if let Some(key) = open.keys.first() {
                // Kafka delivers it to the next owner.
                self.changes.removed.push((*key, open.offset));
            }
        }
    }

    fn leave_too_old(&mut self, known: &Known) {
        let mut first_of: HashMap<OpenId, WorkId> = HashMap::new();
        let mut too_old = Vec::new();
        for open in &known.open {
            let Some(found) = self.resting_held(open) else {
                continue;
            };
            if let Some(first) = first_of.get(&found).copied() {
                let behind = self.take_resting(found).map(|resting| resting.behind);
                if let Some(id) = self.revive(open, Phase::Behind) {
                    self.wait_behind(id, first);
                    first_of.extend(behind.unwrap_or_default().into_iter().map(|behind| (behind, id)));
                }
                continue;
            }
            if !self
                .resting
                .get(found)
                .is_some_and(|resting| self.is_too_old(resting))
            {
                continue;
            }
            let Some(resting) = self.take_resting(found) else {
                continue;
            };
            let Some(id) = self.revive(open, Phase::Judging) else {
                continue;
            };
            first_of.extend(resting.behind.iter().map(|behind| (*behind, id)));
            too_old.push((id, resting.since_ms));
        }
        for (id, since_ms) in too_old {
            self.give_up(id, Reason::HeldTooLong, self.held_for_too_long(since_ms));
        }
    }

    /// What the dead letter says of a message that was held since then.
    pub(super) fn held_for_too_long(&self, since_ms: i64) -> String {
        let held_ms = self.wiring.clock.wall_ms().saturating_sub(since_ms);
        let max_ms = clock::millis(self.wiring.limits.held_age);
        format!("held for {held_ms} ms, `held_age` is {max_ms} ms")
    }

    /// Work that was held, was to run again, and does not run when its partition goes to another member: below the
    /// commit point it exists nowhere else.
    pub(super) fn give_up_moved(&mut self) {
        if self.wiring.state_moves() || !matches!(self.draining, Some(Draining { revoked: true, .. })) {
            return;
        }
        let waiting: Vec<WorkId> = self
            .works
            .iter()
            .filter(|(_, work)| {
                let waits = matches!(
                    work.phase,
                    Phase::Ready | Phase::Waiting | Phase::Preparing | Phase::Probing
                );
                work.origin == Origin::Restored && waits
            })
            .map(|(id, _)| id)
            .collect();
        for id in waiting {
            self.timers.retain(|(_, waits)| *waits != id);
            self.attempts.discard(id);
            self.give_up(id, Reason::Moved, MOVED.to_owned());
        }
    }

    /// The record at rest that is about that held message.
    fn resting_held(&self, open: &Open) -> Option<OpenId> {
        if !matches!(open.stage, Stage::Held { .. }) {
            return None;
        }
        let of_message = |resting: &Resting| {
            is_held(resting) && resting.offset == open.offset && resting.keys.as_slice() == open.keys
        };
        self.resting
            .iter()
            .find(|(_, resting)| of_message(resting))
            .map(|(id, _)| id)
    }

    /// Takes a record out of the resting ones, and its keys out of the index.
    fn take_resting(&mut self, id: OpenId) -> Option<Resting> {
        let resting = self.resting.try_remove(id)?;
        for key in resting.keys.as_slice() {
            if self.index.get(key) == Some(&Holder::Resting(id)) {
                self.index.remove(key);
            }
        }
        Some(resting)
    }
}

const MOVED: &str = "held here when its partition went to another member";

fn is_held(resting: &Resting) -> bool {
    matches!(resting.state, RestingState::Held(_))
}
