//! Hold: messages that are kept on disk for an attempt later, and those of their key that are kept behind them.
//!
//! What is held costs no slot, and in memory no bytes: a record at rest, and when it is due. A due one is loaded, and is work
//! like any other from then on. While a message of a key is held, a later one is held behind it *when it would run*: what a
//! duplicate or a policy decides needs no order.

use std::collections::VecDeque;
use std::time::Duration;

use super::Partition;
use super::leave::by_message;
use super::work::{Holder, Keys, OpenId, Phase, Resting, RestingState, WorkId};
use crate::backoff::Bounds;
use crate::clock;
use crate::config::AfterHold;
use crate::message::Offset;
use crate::outcome::{HeldFor, Open, Reason};
use crate::store::lookups::LoadingOpen;
use crate::token::TokenKey;

/// Held messages that are loaded at a time. More are due than that after an outage, and they wait on the disk.
pub(super) const LOAD_MAX: usize = 256;

/// What a record at rest is called. Its number alone may be another's by the time that it is looked at again.
pub(super) type Name = (TokenKey, Offset);

/// A key of which a message is held. Nearly always nobody is behind it, and then it is small: there may be as many as there
/// are held messages.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    /// Those that the others wait for, and that have not ended. Mostly one; several where some of them are in doubt.
    waiting: u32,
    behind: Option<Box<Behind>>,
}

/// Messages that are held behind another of their key.
#[derive(Debug, Default)]
struct Behind {
    /// On their way to the disk.
    holding: usize,
    /// Held, in the order in which they run. One that has left its rest meanwhile is passed over.
    queue: VecDeque<(OpenId, Name)>,
}

impl Blocked {
    fn behind(&mut self) -> &mut Behind {
        self.behind.get_or_insert_default()
    }
}

/// Held messages on their way from the store.
pub(super) struct Loads {
    pub(super) ids: Vec<(OpenId, Name)>,
    pub(super) answer: LoadingOpen,
}

impl Partition {
    /// The attempts in place are spent: held for another one later, or given up where there is none.
    pub(super) fn spent(&mut self, id: WorkId, asked: Option<Duration>, why: String) {
        let Some(wait) = self.next_hold(id, asked) else {
            return self.give_up(id, Reason::RetriesSpent, why);
        };
        let may_have_applied = self.works.get(id).is_some_and(|work| work.may_have_applied);
        self.wiring.meters.retries_held.increment(1);
        let due_ms = self.wiring.clock.wall_ms().saturating_add(clock::millis(wait));
        let why = HeldFor::Retry {
            due_ms,
            may_have_applied,
        };
        self.hold(id, why);
    }

    /// How long a message is held for its next attempt. The doubling starts after those in place.
    fn next_hold(&mut self, id: WorkId, asked: Option<Duration>) -> Option<Duration> {
        let work = self.works.get(id)?;
        let (in_place, overall) = (
            self.wiring.policy.retry.in_place,
            self.wiring.policy.retry.overall,
        );
        if overall.attempts <= in_place.attempts || work.counted() >= overall.attempts {
            return None;
        }
        let bounds = Bounds {
            // Asked above: what is counted below are holds.
            attempts_max: u32::MAX,
            total: overall.total,
            first: overall.first,
            wait_max: overall.max,
        };
        let wall_ms = self.wiring.clock.wall_ms();
        let since_ms = if work.since_ms == 0 {
            wall_ms
        } else {
            work.since_ms
        };
        let elapsed = Duration::from_millis(wall_ms.saturating_sub(since_ms).max(0) as u64);
        // The first hold may come before all attempts in place were made: their time was spent.
        let held = (work.counted() + 1).saturating_sub(in_place.attempts).max(1);
        self.waits.next(&bounds, held, elapsed, asked)
    }

    /// Whether later messages of its key wait for a message that is held for that.
    pub(super) fn blocks(&self, why: HeldFor) -> bool {
        if crate::crash::is_off("key") {
            return false;
        }
        let policy = &self.wiring.policy;
        match why {
            HeldFor::Retry { .. } => policy.after_hold == AfterHold::BlockKey,
            HeldFor::InDoubt => policy.after_doubt == AfterHold::BlockKey,
            HeldFor::Token | HeldFor::Key => false,
        }
    }

    /// A message is about to be held: what that means for its key. Decided now, since the next of the key could start
    /// before the hold is durable.
    pub(super) fn note_hold(&mut self, id: WorkId, why: HeldFor) {
        let blocks = self.blocks(why);
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        if why == HeldFor::Key {
            if let Some(order) = work.order {
                self.blocked_of(order).behind().holding += 1;
            }
            return;
        }
        match (blocks, work.blocks.or(work.order)) {
            (true, Some(order)) => {
                // One that held it up before, and is held again, counts once.
                if work.blocks.replace(order).is_none() {
                    self.block(order);
                }
            }
            _ => self.end_block(id),
        }
    }

    /// The hold of a message behind its key is durable.
    pub(super) fn held_behind_key(&mut self, order: Option<u64>, open: OpenId) {
        let Some(order) = order else { return };
        if let Some(blocked) = self.blocked.get_mut(&order) {
            let behind = blocked.behind();
            behind.holding -= 1;
            behind
                .queue
                .extend(self.resting.get(open).map(|resting| (open, resting.name())));
            self.run_next_of(order);
        }
    }

    /// A record was found in the store: when it is due, and the key that it holds up, or waits for.
    pub(super) fn rest_with_key(&mut self, id: OpenId, order: Option<u64>) {
        let Some(resting) = self.resting.get(id) else {
            return;
        };
        let name = resting.name();
        let RestingState::Held(why) = resting.state else {
            return;
        };
        if let HeldFor::Retry { due_ms, .. } = why {
            self.retry_due.insert((due_ms, id));
        }
        let waits = why == HeldFor::Key;
        let order = order.filter(|_| waits || self.blocks(why));
        if let Some(resting) = self.resting.get_mut(id) {
            resting.order = order;
        }
        match order {
            Some(order) if waits => {
                let blocked = self.blocked_of(order);
                blocked.behind().queue.push_back((id, name));
            }
            Some(order) => self.block(order),
            // Its topic orders nothing any more: nobody is waited for.
            None if waits => self.freed.push_back((id, name)),
            None => {}
        }
    }

    /// Others of that key are held until somebody says that it is over.
    pub(super) fn block(&mut self, order: u64) {
        self.blocked_of(order).waiting += 1;
    }

    fn blocked_of(&mut self, order: u64) -> &mut Blocked {
        if !self.blocked.contains_key(&order) {
            self.blocks += 1;
            self.blocked_sieve.add(order, self.blocked.keys().copied());
        }
        self.blocked.entry(order).or_default()
    }

    /// Everything is taken up: whoever waits for nobody runs.
    pub(super) fn run_next_of_all(&mut self) {
        let idle = self.blocked.iter().filter(|(_, blocked)| blocked.waiting == 0);
        let mut orders: Vec<u64> = idle.map(|(order, _)| *order).collect();
        orders.sort_unstable();
        for order in orders {
            self.run_next_of(order);
        }
    }

    /// The message that others of its key wait for has ended, or holds them up no more.
    pub(super) fn end_block(&mut self, id: WorkId) {
        let Some(order) = self.works.get_mut(id).and_then(|work| work.blocks.take()) else {
            return;
        };
        if let Some(blocked) = self.blocked.get_mut(&order) {
            blocked.waiting = blocked.waiting.saturating_sub(1);
            self.run_next_of(order);
        }
    }

    fn run_next_of(&mut self, order: u64) {
        let Some(blocked) = self
            .blocked
            .get_mut(&order)
            .filter(|blocked| blocked.waiting == 0)
        else {
            return;
        };
        let behind = blocked.behind();
        while let Some((next, name)) = behind.queue.pop_front() {
            let resting = self.resting.get_mut(next);
            if let Some(resting) = resting.filter(|resting| resting.name() == name) {
                resting.is_its_turn = true;
                blocked.waiting = 1;
                self.freed.push_back((next, name));
                return;
            }
        }
        if behind.holding == 0 {
            self.blocked.remove(&order);
        }
    }

    /// A record leaves its rest: it is due no more, and passed over in every queue. Whose key whoever takes it over has to
    /// free at its end.
    pub(super) fn leave_rest(&mut self, id: OpenId, resting: &Resting) -> Option<u64> {
        match resting.state {
            RestingState::Held(HeldFor::Retry { due_ms, .. }) => {
                self.retry_due.remove(&(due_ms, id));
                resting.order
            }
            RestingState::Held(HeldFor::Key) => resting.order.filter(|_| resting.is_its_turn),
            _ => resting.order,
        }
    }

    /// How long until held messages are to be loaded, where some are.
    pub(super) fn next_load(&self) -> Option<Duration> {
        if !self.may_load() {
            return None;
        }
        let (due_ms, _) = self.retry_due.first()?;
        let wait_ms = due_ms.saturating_sub(self.wiring.clock.wall_ms()).max(0);
        Some(Duration::from_millis(wait_ms as u64))
    }

    /// What is loaded already runs first. However many fresh ones are ready: what is due does not wait for them.
    fn may_load(&self) -> bool {
        self.loads.is_none() && self.draining.is_none() && self.returned.len() < LOAD_MAX
    }

    /// Loads what is due, and what its key has been freed for.
    pub(super) fn load_due(&mut self) {
        if (self.freed.is_empty() && self.retry_due.is_empty()) || !self.may_load() {
            return;
        }
        let wall_ms = self.wiring.clock.wall_ms();
        let mut ids = Vec::new();
        while ids.len() < LOAD_MAX {
            let next = match self.freed.pop_front() {
                Some(freed) => Some(freed),
                None => self.next_due_retry(wall_ms),
            };
            let Some((id, name)) = next else { break };
            let resting = self.resting.get(id).filter(|resting| resting.name() == name);
            // One that is too old is given up, and does not run before that.
            if resting.is_some_and(|resting| !self.is_too_old(resting.since_ms, wall_ms)) {
                ids.push((id, name));
            }
        }
        if !ids.is_empty() {
            self.loads = Some(self.load(ids));
        }
    }

    fn next_due_retry(&mut self, wall_ms: i64) -> Option<(OpenId, Name)> {
        let (due_ms, id) = *self.retry_due.first()?;
        if due_ms > wall_ms {
            return None;
        }
        self.retry_due.pop_first();
        self.resting.get(id).map(|resting| (id, resting.name()))
    }

    /// Asks for their bytes.
    pub(super) fn load(&self, ids: Vec<(OpenId, Name)>) -> Loads {
        let names = ids.iter().map(|(_, name)| *name).collect();
        let answer = self.wiring.lookups.load_open(self.id, names);
        Loads { ids, answer }
    }

    /// Somebody has left that token, or its line: whoever is held behind it and has it next is judged, by how that ended; so many
    /// at a time, and the others when these have ended.
    pub(super) fn free_next(&mut self, key: &TokenKey, most: usize) {
        let Some(Holder::Resting(first)) = self.index.get(key) else {
            return;
        };
        if !self.may_be_freed(first) {
            return;
        }
        let line = self.index.line(key).map(|next| next.who);
        let others = line.filter(|who| *who != Holder::Resting(first));
        let others = others.map_while(|who| match who {
            Holder::Resting(id) if self.waits_for_one(id) => Some(id),
            _ => None,
        });
        let ids: Vec<OpenId> = std::iter::once(first).chain(others).take(most).collect();
        for id in ids {
            if let Some(resting) = self.resting.get_mut(id) {
                resting.is_its_turn = true;
                self.freed.push_back((id, resting.name()));
            }
        }
    }

    /// Whether it is held behind its token, and everyone before it in the line of each of its keys has left.
    fn may_be_freed(&self, id: OpenId) -> bool {
        let Some(resting) = self.resting.get(id) else {
            return false;
        };
        let is_next = |key: &TokenKey| self.index.get(key) == Some(Holder::Resting(id));
        resting.is_behind_its_token() && !resting.is_its_turn && resting.keys.as_slice().iter().all(is_next)
    }

    /// Whether it is held behind its only token.
    fn waits_for_one(&self, id: OpenId) -> bool {
        let resting = self.resting.get(id).filter(|resting| !resting.is_its_turn);
        resting.is_some_and(|resting| resting.is_behind_its_token() && matches!(resting.keys, Keys::One(_)))
    }

    /// What was due is here.
    pub(super) fn loaded(&mut self, found: &[Open]) {
        let Some(Loads { ids, .. }) = self.loads.take() else {
            return;
        };
        if self.draining.is_some() {
            // The next owner's, or the next start's: nothing was changed.
            return;
        }
        let of = by_message(found);
        // In the order in which they were due.
        for (id, name) in ids {
            // One that has left its rest meanwhile was given up.
            let Some(resting) = self.resting.get(id).filter(|resting| resting.name() == name) else {
                continue;
            };
            let state = resting.state;
            let Some((work, since_ms)) = self.follow(id, &of) else {
                continue;
            };
            match state {
                // The record that it was held behind is closed, or is work by now: judged by how that ended, or ends.
                RestingState::Held(HeldFor::Token) => self.enter(work),
                _ => self.run_held(work, state, since_ms),
            }
        }
    }

    /// A held message runs again.
    fn run_held(&mut self, id: WorkId, state: RestingState, since_ms: i64) {
        let (due_ms, may_have_applied) = match state {
            RestingState::Held(HeldFor::Retry {
                due_ms,
                may_have_applied,
            }) => (due_ms, may_have_applied),
            _ => (since_ms, false),
        };
        // It may be what ended the process.
        let is_suspect = self.wiring.unclean_starts > 0 && due_ms <= self.assigned_ms;
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        work.suspect = is_suspect;
        work.may_have_applied = may_have_applied;
        work.phase = Phase::Ready;
        let in_doubt = self.is_forgotten(id);
        if let Some(work) = self.works.get_mut(id) {
            work.in_doubt = in_doubt;
        }
        self.returned.push_back(id);
    }
}
