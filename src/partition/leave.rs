//! Leave: held messages that nobody will decide about here any more.
//!
//! Their bytes are in the store, so they are loaded first. A partition that goes to another member takes what is held
//! above the commit point with it, because Kafka delivers it again; what is held below exists nowhere else and goes to
//! the dead-letter topic. So does what is held for longer than `held_age`, and whoever is held behind it is judged by
//! that outcome (Inv 2).

use hashbrown::HashMap;

use super::hold::{LOAD_MAX, Loads, Name};
use super::work::{Holder, OpenId, Origin, Phase, Resting, Work, WorkId};
use super::{Draining, Leaving, Partition};
use crate::clock;
use crate::message::Offset;
use crate::outcome::{HeldFor, Open, Reason, Stage};
use crate::token::TokenKey;

impl Partition {
    /// Asks for held messages that are to leave, the oldest first, unless some are on their way already.
    pub(super) fn load_leaving(&mut self, why: Leaving) {
        if self.leaving.is_some()
            || self.leaving_works.len() >= LOAD_MAX
            || (why == Leaving::TooOld && self.draining.is_some())
        {
            return;
        }
        let Some(oldest) = self.resting.held().next() else {
            return;
        };
        let wall_ms = self.wiring.clock.wall_ms();
        let leaves =
            |(since_ms, _): &(i64, OpenId)| why == Leaving::Moved || self.is_too_old(*since_ms, wall_ms);
        if !leaves(&oldest) {
            return;
        }
        let name = |(_, id): (i64, OpenId)| Some((id, self.resting.get(id)?.name()));
        let leaving = self.resting.held().take_while(leaves).take(LOAD_MAX);
        let mut ids: Vec<(OpenId, Name)> = leaving.filter_map(name).collect();
        ids.sort_by_key(|(_, (_, offset))| *offset);
        self.leaving = Some((why, self.load(ids)));
    }

    /// Whether a message that is held since then is held for too long.
    pub(super) fn is_too_old(&self, since_ms: i64, wall_ms: i64) -> bool {
        wall_ms.saturating_sub(since_ms) >= clock::millis(self.wiring.limits.held_age)
    }

    /// Those that were asked for, with their bytes.
    pub(super) fn leave(&mut self, found: &[Open]) {
        let Some((why, Loads { ids, .. })) = self.leaving.take() else {
            return;
        };
        let of = by_message(found);
        // One that has left its rest meanwhile has ended another way.
        let is_there = |id, name| self.resting.get(id).is_some_and(|resting| resting.name() == name);
        let ids: Vec<_> = ids
            .into_iter()
            .filter(|(id, name)| is_there(*id, *name))
            .collect();
        match why {
            Leaving::Moved => self.leave_moved(&ids, &of),
            Leaving::TooOld => self.leave_too_old(&ids, &of),
        }
    }

    fn leave_moved(&mut self, ids: &[(OpenId, Name)], of: &ByMessage<'_>) {
        let point = *self.point_max.get_or_insert(self.ledger.commit_point());
        let commit_point = point.next;
        for (id, name) in ids {
            let Some(open) = of.get(name).copied() else {
                continue;
            };
            self.take_resting(*id);
            if open.offset.0 < commit_point.0 {
                let work = self.give_up_restored(open, Reason::Moved, MOVED.to_owned());
                self.leaving_works.extend(work);
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

    fn leave_too_old(&mut self, ids: &[(OpenId, Name)], of: &ByMessage<'_>) {
        let mut given_up = Vec::new();
        for (id, name) in ids {
            let resting = self.resting.get(*id).filter(|resting| resting.name() == *name);
            let Some(resting) = resting else { continue };
            let is_behind = resting.is_behind_its_token();
            // What it is held behind is ending: it is judged by that.
            let key = resting.keys.first();
            if is_behind && matches!(self.index.get(&key), Some(Holder::Work(_))) {
                if let Some((work, _)) = self.follow(*id, of) {
                    self.leaving_works.insert(work);
                    self.enter(work);
                }
                continue;
            }
            let followed = self.follow(*id, of);
            given_up.extend(followed.map(|(work, since_ms)| (work, since_ms, is_behind)));
        }
        for (id, since_ms, is_behind) in given_up {
            self.leaving_works.insert(id);
            if is_behind {
                self.end_by_position(id);
            }
            self.give_up(id, Reason::HeldTooLong, self.held_for_too_long(since_ms));
        }
    }

    /// Makes work of a record at rest.
    pub(super) fn follow(&mut self, id: OpenId, of: &ByMessage<'_>) -> Option<(WorkId, i64)> {
        let open = of.get(&self.resting.get(id)?.name())?;
        let resting = self.take_resting(id)?;
        let work = self.revive(open, Phase::Judging)?;
        if let Some(work) = self.works.get_mut(work) {
            work.blocks = resting.order;
        }
        Some((work, resting.since_ms))
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
                    Phase::Ready | Phase::BehindKey | Phase::Waiting | Phase::Preparing | Phase::Probing
                );
                work.origin == Origin::Restored && waits
            })
            .map(|(id, _)| id)
            .collect();
        for id in waiting {
            self.timers.retain(|(_, waits)| *waits != id);
            let order = self.works.get(id).and_then(|work| work.order);
            if let Some(queue) = order.and_then(|order| self.busy.get_mut(&order)) {
                // Its number may be another's when the key is free.
                queue.retain(|waits| *waits != id);
            }
            self.attempts.discard(id);
            self.give_up(id, Reason::Moved, MOVED.to_owned());
        }
    }

    /// Whether somebody who was held is being judged: what comes of that decides whether it is given up.
    pub(super) fn judges_held(&self) -> bool {
        let is_held = |work: &Work| work.origin == Origin::Restored && work.phase == Phase::Judging;
        self.works.iter().any(|(_, work)| is_held(work))
    }

    /// Takes a record out of the resting ones, and its keys out of the index.
    pub(super) fn take_resting(&mut self, id: OpenId) -> Option<Resting> {
        let mut resting = self.resting.try_remove(id)?;
        resting.order = self.leave_rest(id, &resting);
        for key in resting.keys.as_slice() {
            self.index.leave(key, resting.claimant(id));
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
