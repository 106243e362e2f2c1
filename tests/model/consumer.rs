//! One consumer: what its client, its partition task and its journal know. It sees the broker only through steps.

use crate::broker::{Mark, Metadata};
use crate::records::{Change, Changes, Record, Records};
use crate::rules::Rules;
use crate::world::{Class, OFFSETS, WINDOW, World};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    #[default]
    Up,
    /// It takes no step and hears nothing; the broker does not wait for it.
    Frozen,
    Down,
}

/// Where an assignment stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// No assignment, or none that it has looked at.
    #[default]
    Idle,
    /// The committed offset is known.
    Asked,
    /// The changelog is being read.
    Reading,
    /// The fence is on its way into the changelog.
    Fencing,
    Serving,
    /// Revoked politely: nothing new is taken.
    Draining,
}

/// What became of the message at one offset, in this assignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// Not taken, or given back.
    #[default]
    None,
    /// Waits for a message of its token that is in flight here.
    Behind,
    /// New, and no slot is free.
    Queued,
    /// `Begun` is submitted.
    Beginning,
    /// It may start.
    Ready,
    Running,
    /// The handler has ended well; the outcome is submitted.
    Recording,
    /// `Held` is submitted.
    Holding,
    /// Its attempt applied nothing, and it is to be held until the next one is due: that is submitted.
    Postponing,
    /// Begun, not started, and to be un-begun for a drain.
    UnBeginning,
    /// Recorded, or needs no record.
    Complete,
}

/// Where the journal stands with its transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    #[default]
    None,
    /// Metadata and gate were looked at.
    Checked,
    /// The frames are in the changelog.
    Produced,
    /// The offsets are accepted.
    Sent,
    /// The answer to the commit did not come; whether the broker committed.
    Unknown(bool),
}

/// One group, from the look at the gate to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) step: Step,
    pub(crate) changes: Changes,
    /// The fence that it raises, or 0.
    pub(crate) fence: u8,
    pub(crate) mark: Mark,
    /// Whether it carries the mark.
    pub(crate) carries: bool,
    /// Taken at the check, if the rules say so.
    pub(crate) metadata: Option<Metadata>,
    /// Its assignment is over: nobody waits for its acknowledgement.
    pub(crate) orphan: bool,
    pub(crate) again: Option<Records>,
}

/// Trimming: the head is deleted when the frame that stands for it is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Trim {
    #[default]
    None,
    Wanted,
    Due,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Consumer {
    pub(crate) life: Life,
    pub(crate) metadata: Metadata,
    pub(crate) stage: Stage,
    /// Whether what this assignment submits is still taken.
    pub(crate) gate: bool,
    /// The fence of this assignment, and whether the changelog still has to learn of it.
    pub(crate) fence: u8,
    pub(crate) fence_due: bool,
    /// A handler of this assignment has started, and could see the fence.
    pub(crate) started: bool,
    pub(crate) window: Records,
    /// The commit point that was restored, and then the last one that was acknowledged.
    pub(crate) acknowledged: Mark,
    /// What is delivered next.
    pub(crate) next: u8,
    /// Partition time.
    pub(crate) time: u8,
    pub(crate) work: [Work; OFFSETS],
    /// Partition time when the message was judged.
    pub(crate) seen: [u8; OFFSETS],
    /// Attempts that run on after they were forgotten (only without the rule `keep_what_runs`).
    pub(crate) stray: [Work; OFFSETS],
    pub(crate) group: Group,
    pub(crate) trim: Trim,
}

/// How a message was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Redelivery,
    Wait,
    Hold,
    Duplicate,
    Run,
}

impl Consumer {
    /// The partition is no longer ours. The journal's transaction goes on, and nobody waits for it.
    pub(crate) fn end_assignment(&mut self) {
        let group = Group {
            orphan: true,
            ..self.group
        };
        *self = Self {
            life: self.life,
            metadata: self.metadata,
            group: if group.step == Step::None {
                Group::default()
            } else {
                group
            },
            // The thread that trims asks no gate.
            trim: if self.trim == Trim::Due {
                Trim::Due
            } else {
                Trim::None
            },
            ..Self::default()
        };
    }

    /// Takes the next message and judges it. Says whether it was suppressed as a duplicate.
    pub(crate) fn take(&mut self, world: &World, rules: &Rules) -> bool {
        let offset = usize::from(self.next);
        self.next += 1;
        self.time = self.time.max(world.log[offset].stamp);
        if self.window.of[offset].returns() && self.work[offset] != Work::None {
            // Delivered again while it runs again: its offset is recorded.
            return false;
        }
        self.seen[offset] = self.time;
        self.judge(world, rules, offset)
    }

    fn judge(&mut self, world: &World, rules: &Rules, offset: usize) -> bool {
        let verdict = self.verdict(world, rules, offset);
        self.work[offset] = match verdict {
            Verdict::Redelivery | Verdict::Duplicate => Work::Complete,
            Verdict::Wait => Work::Behind,
            Verdict::Hold => Work::Holding,
            Verdict::Run => Work::Queued,
        };
        verdict == Verdict::Duplicate
    }

    fn verdict(&self, world: &World, rules: &Rules, offset: usize) -> Verdict {
        let token = world.token(offset);
        let outcome = self.window.outcome(world, token);
        if self.window.of[offset].is_kept() || outcome.is_some_and(|(at, _)| at >= offset) {
            return Verdict::Redelivery;
        }
        let in_flight = (0..offset).any(|lower| {
            world.token(lower) == token && !matches!(self.work[lower], Work::None | Work::Complete)
        });
        if in_flight || self.window.holds_another(world, rules, offset) {
            return match (rules.open_does_not_suppress, in_flight) {
                (false, _) => Verdict::Duplicate,
                (true, true) => Verdict::Wait,
                (true, false) => Verdict::Hold,
            };
        }
        // Begun, and whoever began it is gone.
        if self.window.of[offset] == Record::Begun {
            return Verdict::Hold;
        }
        match outcome {
            Some((_, seen)) if self.seen[offset].saturating_sub(seen) < WINDOW => Verdict::Duplicate,
            _ => Verdict::Run,
        }
    }

    /// Gives free slots to what waits for one, and judges again whoever waited for a token that is at rest now. Says
    /// which offsets were suppressed as duplicates.
    pub(crate) fn settle(&mut self, world: &World, rules: &Rules) -> Vec<usize> {
        let mut suppressed = Vec::new();
        for offset in 0..world.len() {
            if self.work[offset] == Work::Behind && self.judge(world, rules, offset) {
                suppressed.push(offset);
            }
        }
        for offset in 0..world.len() {
            if self.work[offset] == Work::Queued
                && (self.slots_taken() < world.slots || !rules.slot_wise_begin)
            {
                self.work[offset] = match world.class {
                    Class::NonIdempotent => Work::Beginning,
                    Class::Idempotent => Work::Ready,
                };
            }
        }
        suppressed
    }

    /// Whether a held message may become due, or its turn be decided after a restart.
    pub(crate) fn may_return(&self, offset: usize) -> bool {
        self.window.of[offset].returns() && matches!(self.work[offset], Work::None | Work::Complete)
    }

    /// A held message is due. One whose attempt was begun by somebody who is gone is in doubt.
    pub(crate) fn give_back(&mut self, world: &World, rules: &Rules, offset: usize) {
        let in_doubt = self.window.of[offset] == Record::Again && world.class == Class::NonIdempotent;
        self.seen[offset] = self.time;
        self.work[offset] = match in_doubt && rules.begun_again_is_in_doubt {
            true => Work::Holding,
            false => Work::Queued,
        };
    }

    fn slots_taken(&self) -> u8 {
        count(&self.work, |work| {
            matches!(
                work,
                Work::Beginning | Work::Ready | Work::Running | Work::UnBeginning
            )
        })
    }

    pub(crate) fn may_start(&self, world: &World, offset: usize) -> bool {
        self.work[offset] == Work::Ready && count(&self.work, |work| work == Work::Running) < world.slots
    }

    /// Messages that a kill at this moment would leave in doubt.
    pub(crate) fn would_be_in_doubt(&self) -> u8 {
        let ours = |offset: &usize| {
            matches!(
                self.work[*offset],
                Work::Ready | Work::Running | Work::Recording | Work::UnBeginning | Work::Postponing
            ) && matches!(self.window.of[*offset], Record::Begun | Record::Again)
        };
        u8::try_from((0..OFFSETS).filter(ours).count()).unwrap_or(u8::MAX)
    }

    /// Takes nothing more; what has not started is given back.
    pub(crate) fn drain(&mut self) {
        self.stage = Stage::Draining;
        for offset in 0..OFFSETS {
            let begins = matches!(self.group.changes[offset], Change::Begin | Change::BeginAgain);
            let submitted = begins && self.group.step != Step::None;
            self.work[offset] = match self.work[offset] {
                Work::Behind | Work::Queued => Work::None,
                Work::Beginning if !submitted => Work::None,
                Work::Ready if matches!(self.window.of[offset], Record::Begun | Record::Again) => {
                    Work::UnBeginning
                }
                Work::Ready => Work::None,
                other => other,
            };
        }
    }

    /// What would be submitted now.
    pub(crate) fn submitted(&self, rules: &Rules) -> Changes {
        let returns = |offset: usize| self.window.of[offset].returns();
        std::array::from_fn(|offset| match self.work[offset] {
            _ if self.stray[offset] == Work::Recording => Change::Done(self.seen[offset]),
            Work::Beginning if returns(offset) => Change::BeginAgain,
            Work::Beginning => Change::Begin,
            Work::UnBeginning if returns(offset) && rules.unbegun_stays_held => Change::UnBeginAgain,
            Work::UnBeginning => Change::UnBegin,
            Work::Postponing => Change::HoldForRetry,
            Work::Holding => Change::Hold,
            Work::Recording => Change::Done(self.seen[offset]),
            _ => Change::None,
        })
    }

    /// The commit point once these changes are durable, with the time that goes with it.
    pub(crate) fn commit_point(&self, world: &World, rules: &Rules, changes: &Changes) -> Mark {
        let mut mark = self.acknowledged;
        while usize::from(mark.offset) < world.len() {
            let offset = usize::from(mark.offset);
            let recorded = matches!(
                changes[offset],
                Change::Hold | Change::HoldForRetry | Change::Done(_)
            );
            // It lies in no ledger any more.
            let recorded = recorded || self.window.of[offset].returns();
            if self.work[offset] != Work::Complete && !recorded {
                break;
            }
            mark.offset += 1;
            mark.time = mark.time.max(world.log[offset].stamp);
        }
        if !rules.restored_time {
            mark.time = self.time;
        }
        mark
    }

    /// The group is durable. Says which offsets were suppressed with it.
    pub(crate) fn acknowledge(&mut self, world: &World, rules: &Rules) -> Vec<usize> {
        let group = std::mem::take(&mut self.group);
        if group.orphan || !self.gate {
            return Vec::new();
        }
        self.window.apply(world, &group.changes, group.fence);
        if group.carries {
            self.acknowledged = group.mark;
        }
        if group.fence != 0 {
            self.fence_due = false;
            if self.stage == Stage::Fencing {
                self.stage = Stage::Serving;
            }
        }
        if group.again.is_some() {
            self.trim = Trim::Due;
        }
        let draining = self.stage == Stage::Draining;
        for offset in 0..world.len() {
            let stray = &mut self.stray[offset];
            if *stray == Work::Recording && matches!(group.changes[offset], Change::Done(_)) {
                *stray = Work::None;
                continue;
            }
            let work = &mut self.work[offset];
            *work = match (group.changes[offset], *work) {
                (Change::Begin | Change::BeginAgain, Work::Beginning) if draining => Work::UnBeginning,
                (Change::Begin | Change::BeginAgain, Work::Beginning) => Work::Ready,
                (Change::UnBegin | Change::UnBeginAgain, Work::UnBeginning) => Work::None,
                (Change::Hold, Work::Holding)
                | (Change::HoldForRetry, Work::Postponing)
                | (Change::Done(_), Work::Recording) => Work::Complete,
                (_, other) => other,
            };
        }
        if self.stage == Stage::Serving {
            self.settle(world, rules)
        } else {
            Vec::new()
        }
    }

    /// What a new producer would do that forgets what runs: everything is read again, and attempts go on by themselves.
    pub(crate) fn forget_what_runs(&mut self, window: Records, committed: Mark) {
        for offset in 0..OFFSETS {
            if matches!(self.work[offset], Work::Running | Work::Recording) {
                self.stray[offset] = self.work[offset];
            }
            self.work[offset] = Work::None;
        }
        self.window = window;
        self.acknowledged = committed;
        self.next = committed.offset;
        self.time = committed.time;
    }
}

fn count(work: &[Work; OFFSETS], which: impl Fn(Work) -> bool) -> u8 {
    u8::try_from(work.iter().filter(|work| which(**work)).count()).unwrap_or(u8::MAX)
}
