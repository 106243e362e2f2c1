//! Everything at one moment, and the steps that more than one side takes part in.

use crate::broker::{Broker, CONSUMERS, Fate, Frame, Metadata, Reader};
use crate::consumer::{Consumer, Group, Life, Stage, Step, Trim, Work};
use crate::records::{Change, Changes, Record, Records};
use crate::rules::Rules;
use crate::world::{Budget, OFFSETS, World};

/// What really happened, which nobody in the model can ask. The properties are about this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Happened {
    /// Effects of the handler by offset; two stands for more.
    pub(crate) effects: [u8; OFFSETS],
    /// Outcomes that became visible in the changelog by offset; two stands for more.
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
        let idle = Consumer {
            metadata: Metadata::Fresh,
            ..Consumer::default()
        };
        let serving = Consumer {
            stage: Stage::Serving,
            gate: true,
            fence: 1,
            window: broker.stable,
            ..idle.clone()
        };
        Self {
            broker,
            consumers: [serving, idle],
            left: world.budget,
            happened: Happened::default(),
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
    pub(crate) fn restored(&mut self, rules: &Rules, c: usize, records: Records) {
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

    /// A group is made of what is submitted: metadata and gate are looked at.
    pub(crate) fn check(&mut self, world: &World, rules: &Rules, c: usize) {
        let consumer = &mut self.consumers[c];
        let changes = consumer.submitted(rules);
        let fence = if consumer.fence_due { consumer.fence } else { 0 };
        let outcome = changes.iter().any(|change| matches!(change, Change::Done(_)));
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
            carries: rules.offsets_in_every_transaction || outcome || empty,
            metadata: rules.metadata_before_gate.then_some(consumer.metadata),
            orphan: false,
            again,
        };
    }

    pub(crate) fn produce(&mut self, world: &World, rules: &Rules, c: usize) {
        if self.broker.fenced[c] {
            return self.recover(world, rules, c);
        }
        let group = &mut self.consumers[c].group;
        group.step = Step::Produced;
        let (changes, fence, again) = (group.changes, group.fence, group.again);
        self.broker.tail.push(Frame {
            by: c,
            fate: Fate::Open,
            changes,
            fence,
            again,
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
        for changes in self.broker.end(world, c, Fate::Committed) {
            for (offset, change) in changes.iter().enumerate() {
                if matches!(change, Change::Done(_)) {
                    bump(&mut self.happened.outcomes[offset]);
                }
            }
        }
        if answered {
            self.acknowledge(world, rules, c);
        } else {
            self.consumers[c].group.step = Step::Unknown(true);
        }
    }

    fn acknowledge(&mut self, world: &World, rules: &Rules, c: usize) {
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

fn bump(count: &mut u8) {
    *count = (*count + 1).min(2);
}
