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
use crate::message::Offset;
use crate::outcome::{HeldFor, Open, Reason, Stage};
use crate::store::Known;
use crate::token::TokenKey;

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
        let held = self.held_by_message();
        for open in &known.open {
            let Some(found) = message_of(open).and_then(|message| held.get(&message)) else {
                continue;
            };
            self.take_resting(*found);
            if open.offset.0 < commit_point.0 {
                self.give_up_restored(open, Reason::Moved, MOVED.to_owned());
            } else if let Some(not_applied) = has_run(&open.stage) {
                // The message is the next owner's; what became of its attempts stays known, should it come back here.
                self.changes.opened.push(Open {
                    stage: Stage::Begun {
                        not_applied,
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
        let held = self.held_by_message();
        let of = by_message(&known.open);
        // In the order of their offsets.
        let too_old: Vec<OpenId> = known
            .open
            .iter()
            .filter_map(|open| held.get(&message_of(open)?).copied())
            .filter(|id| {
                self.resting
                    .get(*id)
                    .is_some_and(|resting| self.is_too_old(resting))
            })
            .collect();
        let mut given_up = Vec::new();
        for id in too_old {
            // It may have followed another already.
            if let Some((work, since_ms)) = self.follow(id, &of) {
                given_up.push((work, since_ms));
            }
        }
        for (id, since_ms) in given_up {
            self.give_up(id, Reason::HeldTooLong, self.held_for_too_long(since_ms));
        }
    }

    /// Makes work of a record at rest, and of whatever is held behind it.
    pub(super) fn follow(&mut self, id: OpenId, of: &ByMessage<'_>) -> Option<(WorkId, i64)> {
        let mut follows = vec![(id, None)];
        let mut work_of_first = None;
        while let Some((id, first)) = follows.pop() {
            let name = self.resting.get(id).map(Resting::name);
            let Some(open) = name.and_then(|name| of.get(&name)) else {
                continue;
            };
            let Some(resting) = self.take_resting(id) else {
                continue;
            };
            let phase = first.map_or(Phase::Judging, |_| Phase::Behind);
            let Some(work) = self.revive(open, phase) else {
                continue;
            };
            if let Some(work) = self.works.get_mut(work) {
                work.blocks = resting.order;
            }
            if let Some(first) = first {
                self.wait_behind(work, first);
            }
            work_of_first.get_or_insert((work, resting.since_ms));
            follows.extend(
                resting
                    .behind
                    .into_iter()
                    .rev()
                    .map(|behind| (behind, Some(work))),
            );
        }
        work_of_first
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

    /// The held records at rest, by the message that they are about.
    fn held_by_message(&self) -> HashMap<(TokenKey, Offset), OpenId> {
        let held = self.resting.iter().filter(|(_, resting)| is_held(resting));
        held.map(|(id, resting)| ((resting.keys.first(), resting.offset), id))
            .collect()
    }

    /// Takes a record out of the resting ones, and its keys out of the index.
    fn take_resting(&mut self, id: OpenId) -> Option<Resting> {
        let mut resting = self.resting.try_remove(id)?;
        resting.order = self.leave_rest(id, &resting);
        for key in resting.keys.as_slice() {
            if self.index.get(key) == Some(&Holder::Resting(id)) {
                self.index.remove(key);
            }
        }
        Some(resting)
    }
}

const MOVED: &str = "held here when its partition went to another member";

/// Held records by what they are about.
pub(super) type ByMessage<'a> = HashMap<(TokenKey, Offset), &'a Open>;

pub(super) fn by_message(open: &[Open]) -> ByMessage<'_> {
    open.iter()
        .filter_map(|open| Some((message_of(open)?, open)))
        .collect()
}

/// Whether a held message that has run is known to have applied nothing.
fn has_run(stage: &Stage) -> Option<bool> {
    match stage {
        Stage::Held {
            why: HeldFor::InDoubt,
            ..
        } => Some(false),
        Stage::Held {
            why: HeldFor::Retry { may_have_applied, .. },
            ..
        } => Some(!may_have_applied),
        _ => None,
    }
}

/// What a held record is about.
fn message_of(open: &Open) -> Option<(TokenKey, Offset)> {
    match open.stage {
        Stage::Held { .. } => Some((*open.keys.first()?, open.offset)),
        _ => None,
    }
}

fn is_held(resting: &Resting) -> bool {
    matches!(resting.state, RestingState::Held(_))
}
