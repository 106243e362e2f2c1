//! Everything at one moment, and the steps that more than one side takes part in.

use crate::broker::{Broker, CONSUMERS, Fate, Frame, Metadata, Reader};
use crate::consumer::{Consumer, Group, Life, Stage, Step, Trim, Work};
use crate::orders::{ORDERS, Order, Orders, Permits};
use crate::records::{Change, Changes, Record, Records, Verdict};
use crate::rules::Rules;
use crate::world::{Budget, OFFSETS, World};

/// Nothing is counted further than this.
const MORE: u8 = 4;

/// What really happened, which nobody in the model can ask. The properties are about this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Happened {
    /// Effects of the handler by offset.
    pub(crate) effects: [u8; OFFSETS],
    /// Outcomes that became visible in the changelog by offset.
    pub(crate) outcomes: [u8; OFFSETS],
    /// A message was suppressed whose token had no outcome.
    pub(crate) swallowed: bool,
    /// Fences that a handler could see, a bit each.
    pub(crate) fences: u8,
    /// Two assignments showed the same one.
    pub(crate) fence_shared: bool,
    /// A handler of a duplicate started because the earlier outcome was older than the window.
    pub(crate) expired: bool,
    /// The broker aborted a transaction that was open for too long.
    pub(crate) aborted_late: bool,
    /// The broker refused a commit for its generation.
    pub(crate) refused: bool,
    /// An attempt applied nothing, and its message was to be held for another one.
    pub(crate) postponed: bool,
    /// What operators and first deliveries permit, and whether it was kept to.
    pub(crate) permits: Permits,
    /// Acts of each order in the changelog.
    pub(crate) acts: [u8; ORDERS],
    pub(crate) answered: [Option<Verdict>; ORDERS],
    /// An attempt that somebody ordered started before that order was in the changelog.
    pub(crate) unaudited: bool,
    /// A message had left its rest when its bytes were here, and the order about it was refused.
    pub(crate) turned_away: bool,
}

impl Happened {
    fn new(found: Record) -> Self {
        let applied = u8::from(matches!(found, Record::InDoubt(_)));
        Self {
            // What is in doubt was applied: where it was not there is one effect less.
            effects: std::array::from_fn(|offset| if offset == 0 { applied } else { 0 }),
            outcomes: [0; OFFSETS],
            swallowed: false,
            fences: 0,
            fence_shared: false,
            expired: false,
            aborted_late: false,
            refused: false,
            postponed: false,
            permits: Permits::new(found),
            acts: [0; ORDERS],
            answered: [None; ORDERS],
            unaudited: false,
            turned_away: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) broker: Broker,
    pub(crate) consumers: [Consumer; CONSUMERS],
    pub(crate) left: Budget,
    pub(crate) happened: Happened,
}

impl State {
    /// The first consumer owns the partition, and its first fence is committed. That it is the first and not the second
    /// is no loss: until then they are alike.
    pub(crate) fn new(world: &World) -> Self {
        let mut broker = Broker::new();
        broker.owner = Some(0);
        broker.stable.fence = 1;
        broker.stable.of[0] = world.found;
        broker.committed.offset = u8::from(world.found != Record::None);
        let idle = Consumer {
            metadata: Metadata::Fresh,
            ..Consumer::default()
        };
        let serving = Consumer {
            stage: Stage::Serving,
            gate: true,
            fence: 1,
            window: broker.stable,
            acknowledged: broker.committed,
            next: broker.committed.offset,
            ..idle.clone()
        };
        Self {
            broker,
            consumers: [serving, idle],
            left: world.budget,
            happened: Happened::new(world.found),
        }
    }

    /// A new generation. Every member is there and learns of it; what was taken down before is stale.
    pub(crate) fn rebalance(&mut self) {
        for (member, consumer) in self.broker.member.into_iter().zip(&mut self.consumers) {
            if consumer.group.metadata == Some(Metadata::Fresh) {
                consumer.group.metadata = Some(Metadata::Stale);
            }
            if member {
                consumer.metadata = Metadata::Fresh;
            }
        }
    }

    /// The group goes on only when every member answers, or was expelled.
    pub(crate) fn all_members_answer(&self) -> bool {
        let mut members = self
            .consumers
            .iter()
            .zip(self.broker.member)
            .filter(|(_, member)| *member);
        members.all(|(consumer, _)| consumer.life == Life::Up)
    }

    /// The session of this member ran out.
    pub(crate) fn expel(&mut self, c: usize) {
        self.broker.member[c] = false;
        if self.broker.owner == Some(c) {
            self.broker.owner = None;
        }
        let consumer = &mut self.consumers[c];
        if consumer.metadata == Metadata::Fresh {
            consumer.metadata = Metadata::Stale;
        }
        if consumer.group.metadata == Some(Metadata::Fresh) {
            consumer.group.metadata = Some(Metadata::Stale);
        }
    }

    /// It joins, anew: after a start, or after it has heard that it was expelled.
    pub(crate) fn join(&mut self, world: &World, rules: &Rules, c: usize) {
        if self.consumers[c].life == Life::Down {
            // The producer of the new process has the same id, and ends what the old one left open.
            self.broker.end(world, c, Fate::Aborted);
            self.broker.fenced[c] = false;
            self.consumers[c] = Consumer::default();
        } else if rules.gate_before_unassign {
            self.end_assignment(c);
        }
        self.broker.member[c] = true;
        self.rebalance();
    }

    pub(crate) fn end_assignment(&mut self, c: usize) {
        self.consumers[c].end_assignment();
        self.broker.readers[c] = Reader::None;
    }

    /// What was read becomes the window, and a new fence is minted.
    pub(crate) fn restored(&mut self, world: &World, rules: &Rules, c: usize, records: Records) {
        let consumer = &mut self.consumers[c];
        if !rules.offsets_before_target {
            consumer.acknowledged = self.broker.committed;
        }
        consumer.window = records;
        consumer.next = consumer.acknowledged.offset;
        consumer.time = consumer.acknowledged.time;
        consumer.fence = records.fence + 1;
        consumer.fence_due = true;
        consumer.gate = true;
        consumer.carry_out_found(world, rules);
        consumer.stage = if rules.fence_before_handler {
            Stage::Fencing
        } else {
            Stage::Serving
        };
        self.broker.readers[c] = Reader::None;
    }

    pub(crate) fn take(&mut self, world: &World, rules: &Rules, c: usize) {
        let offset = usize::from(self.consumers[c].next);
        if self.consumers[c].take(world, rules) {
            self.suppressed(world, offset);
        }
        self.settle(world, rules, c);
    }

    fn settle(&mut self, world: &World, rules: &Rules, c: usize) {
        if self.consumers[c].stage == Stage::Serving {
            for offset in self.consumers[c].settle(world, rules) {
                self.suppressed(world, offset);
            }
        }
    }

    fn suppressed(&mut self, world: &World, offset: usize) {
        let had_outcome =
            (0..offset).any(|other| world.repeats(other, offset) && self.happened.outcomes[other] > 0);
        self.happened.swallowed |= !had_outcome;
    }

    pub(crate) fn start(&mut self, world: &World, c: usize, offset: usize) {
        let consumer = &mut self.consumers[c];
        consumer.work[offset] = Work::Running;
        for order in consumer.acts().iter().flatten() {
            self.happened.unaudited |=
                order.about() == offset && self.happened.acts[usize::from(order.by)] == 0;
        }
        if !consumer.started {
            consumer.started = true;
            let bit = 1 << consumer.fence;
            self.happened.fence_shared |= self.happened.fences & bit != 0;
            self.happened.fences |= bit;
        }
        let again = (0..offset).any(|other| {
            world.token(other) == world.token(offset)
                && self.happened.outcomes[other] > 0
                && !world.repeats(other, offset)
        });
        self.happened.expired |= again;
    }

    /// The handler's effect happens, and it ends well.
    pub(crate) fn finish(&mut self, world: &World, rules: &Rules, c: usize, offset: usize) {
        let consumer = &mut self.consumers[c];
        let attempt = if consumer.stray[offset] == Work::Running {
            &mut consumer.stray
        } else {
            &mut consumer.work
        };
        attempt[offset] = Work::Recording;
        bump(&mut self.happened.effects[offset]);
        self.settle(world, rules, c);
    }

    /// The attempt applied nothing, says the handler, and another one comes later.
    pub(crate) fn refuse(&mut self, world: &World, rules: &Rules, c: usize, offset: usize) {
        self.consumers[c].work[offset] = Work::Postponing;
        self.happened.postponed = true;
        self.settle(world, rules, c);
    }

    /// A held message is due.
    pub(crate) fn give_back(&mut self, world: &World, rules: &Rules, c: usize, offset: usize) {
        self.consumers[c].give_back(world, rules, offset);
        self.settle(world, rules, c);
    }

    /// An operator's order is taken.
    pub(crate) fn order(&mut self, c: usize, order: Order) {
        self.left.orders -= 1;
        self.consumers[c].desk[usize::from(order.by)] = Some(order);
    }

    /// The message that the order is about is here, with its bytes.
    pub(crate) fn decide(&mut self, world: &World, rules: &Rules, c: usize, order: Order) {
        if !self.consumers[c].decide(rules, order) {
            self.happened.turned_away = true;
        } else if !rules.answered_when_durable {
            self.answer(self.consumers[c].acts());
        }
        self.settle(world, rules, c);
    }

    fn answer(&mut self, acts: Orders) {
        for order in acts.iter().flatten() {
            self.happened.answered[usize::from(order.by)] = Some(order.verdict);
        }
    }

    /// A group is made of what is submitted: metadata and gate are looked at.
    pub(crate) fn check(&mut self, world: &World, rules: &Rules, c: usize) {
        let consumer = &mut self.consumers[c];
        let changes = consumer.submitted(rules);
        let fence = if consumer.fence_due { consumer.fence } else { 0 };
        let acts = consumer.acts();
        let outcome = changes.iter().any(|change| matches!(change, Change::Done(_)));
        let verdict_alone = changes
            .iter()
            .all(|change| matches!(change, Change::None | Change::Order(_)));
        let apart = acts != Orders::default() && verdict_alone && !rules.verdict_with_its_group;
        let empty = changes == Changes::default() && fence == 0;
        let mark = consumer.commit_point(world, rules, &changes);
        let again = (consumer.trim == Trim::Wanted).then(|| {
            let mut needed = consumer.window;
            needed.apply(world, &changes, fence);
            for offset in 0..usize::from(mark.offset) {
                // Below the commit point, what is older than the window is not needed.
                if matches!(needed.of[offset], Record::Done(seen) if mark.time > seen) {
                    needed.of[offset] = Record::None;
                }
            }
            needed
        });
        if again.is_some() {
            consumer.trim = Trim::None;
        }
        consumer.group = Group {
            step: Step::Checked,
            changes,
            fence,
            mark,
            carries: (rules.offsets_in_every_transaction && !apart) || outcome || empty,
            metadata: rules.metadata_before_gate.then_some(consumer.metadata),
            orphan: false,
            again,
            acts,
        };
    }

    pub(crate) fn produce(&mut self, world: &World, rules: &Rules, c: usize) {
        if self.broker.fenced[c] {
            return self.recover(world, rules, c);
        }
        let group = &mut self.consumers[c].group;
        group.step = Step::Produced;
        let (changes, fence, again, acts) = (group.changes, group.fence, group.again, group.acts);
        self.broker.tail.push(Frame {
            by: c,
            fate: Fate::Open,
            changes,
            fence,
            again,
            acts,
        });
    }

    pub(crate) fn send_offsets(&mut self, world: &World, rules: &Rules, c: usize) {
        if self.broker.fenced[c] {
            return self.recover(world, rules, c);
        }
        let metadata = self.consumers[c].metadata;
        let group = &mut self.consumers[c].group;
        let shown = group.metadata.unwrap_or(metadata);
        let refused_by_us = shown == Metadata::MinusOne && rules.refuse_minus_one;
        if !group.carries || (!refused_by_us && self.broker.accept(c, shown, group.mark)) {
            group.step = Step::Sent;
        } else {
            // An abortable error: what its assignment still wants is submitted again.
            self.happened.refused |= shown == Metadata::Stale;
            self.consumers[c].group = Group::default();
            self.broker.end(world, c, Fate::Aborted);
        }
    }

    pub(crate) fn commit(&mut self, world: &World, rules: &Rules, c: usize, answered: bool) {
        if self.broker.fenced[c] {
            return self.recover(world, rules, c);
        }
        let mut before = self.broker.truth(world);
        for (changes, acts) in self.broker.end(world, c, Fate::Committed) {
            self.happened.see(world, &before, &changes, &acts);
            before.apply(world, &changes, 0);
        }
        if answered {
            self.acknowledge(world, rules, c);
        } else {
            self.consumers[c].group.step = Step::Unknown(true);
        }
    }

    fn acknowledge(&mut self, world: &World, rules: &Rules, c: usize) {
        let consumer = &self.consumers[c];
        if consumer.gate && !consumer.group.orphan {
            self.answer(consumer.group.acts);
        }
        for offset in self.consumers[c].acknowledge(world, rules) {
            self.suppressed(world, offset);
        }
    }

    /// A new producer with the same id: it ends what the old one left open, and looks what became of the group.
    pub(crate) fn recover(&mut self, world: &World, rules: &Rules, c: usize) {
        self.broker.end(world, c, Fate::Aborted);
        self.broker.fenced[c] = false;
        if self.consumers[c].group.step == Step::Unknown(true) && rules.look_up_unknown_fate {
            self.acknowledge(world, rules, c);
        }
        self.consumers[c].group = Group::default();
        if self.consumers[c].gate && !rules.keep_what_runs {
            let (window, committed) = (self.broker.truth(world), self.broker.committed);
            self.consumers[c].forget_what_runs(window, committed);
        }
    }
}

impl Happened {
    /// A group becomes visible where the changelog said that before.
    fn see(&mut self, world: &World, before: &Records, changes: &Changes, acts: &Orders) {
        for order in acts.iter().flatten() {
            bump(&mut self.acts[usize::from(order.by)]);
            self.permits.see_act(before.of[order.about()], order);
        }
        for (offset, change) in changes.iter().enumerate() {
            self.permits.see(world.class, offset, before.of[offset], *change);
            if matches!(change, Change::Done(_)) {
                bump(&mut self.outcomes[offset]);
            }
        }
    }
}

fn bump(count: &mut u8) {
    *count = (*count + 1).min(MORE);
}
