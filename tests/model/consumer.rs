//! One consumer: what its client, its partition task and its journal know. It sees the broker only through steps.

use crate::broker::{Mark, Metadata};
use crate::orders::Orders;
use crate::records::{Change, Changes, Record, Records, Verdict};
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
    /// In doubt, and that it is held is submitted.
    Holding,
    /// The same of one that is held behind its token.
    HoldingBehind,
    /// An operator's verdict about it is submitted.
    Deciding(Verdict),
    /// It was held behind its token, and is a duplicate: that is submitted.
    Closing,
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
    /// Operators' acts, to be kept with what they change.
    pub(crate) acts: Orders,
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
    /// What an operator orders, until it is answered.
    pub(crate) desk: Orders,
}

/// How a message was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Redelivery,
    Wait,
    HeldBehind,
    InDoubt,
    Duplicate,
    New,
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
        if self.window.of[offset].is_kept() && self.work[offset] != Work::None {
            // Delivered again while it runs again, or is decided about: its offset is recorded.
            return false;
        }
        self.seen[offset] = self.time;
        self.judge(world, rules, offset)
    }

    fn judge(&mut self, world: &World, rules: &Rules, offset: usize) -> bool {
        let judged = self.judged(world, rules, offset);
        self.work[offset] = match judged {
            Judged::Redelivery | Judged::Duplicate => Work::Complete,
            Judged::Wait => Work::Behind,
            Judged::HeldBehind => Work::HoldingBehind,
            Judged::InDoubt => Work::Holding,
            Judged::New => Work::Queued,
        };
        judged == Judged::Duplicate
    }

    fn judged(&self, world: &World, rules: &Rules, offset: usize) -> Judged {
        let outcome = self.window.outcome(world, world.token(offset));
        if self.window.of[offset].is_kept() || outcome.is_some_and(|(at, _)| at >= offset) {
            return Judged::Redelivery;
        }
        self.judged_by_its_token(world, rules, offset)
    }

    fn judged_by_its_token(&self, world: &World, rules: &Rules, offset: usize) -> Judged {
        let token = world.token(offset);
        let outcome = self.window.outcome(world, token);
        let in_flight = (0..offset).any(|lower| {
            world.token(lower) == token && !matches!(self.work[lower], Work::None | Work::Complete)
        });
        if in_flight || self.window.holds_another(world, rules, offset) {
            return match (rules.open_does_not_suppress, in_flight) {
                (false, _) => Judged::Duplicate,
                (true, true) => Judged::Wait,
                (true, false) => Judged::HeldBehind,
            };
        }
        // Begun, and whoever began it is gone.
        if self.window.of[offset] == Record::Begun {
            return Judged::InDoubt;
        }
        match outcome {
            Some((_, seen)) if self.seen[offset].saturating_sub(seen) < WINDOW => Judged::Duplicate,
            _ => Judged::New,
        }
    }

    /// Judges again what was held behind its token, once nothing of that token is open before it. Says whether it was
    /// suppressed as a duplicate.
    fn judge_held_behind(&mut self, world: &World, rules: &Rules, offset: usize) -> bool {
        self.seen[offset] = self.time;
        match self.judged_by_its_token(world, rules, offset) {
            Judged::Duplicate => self.work[offset] = Work::Closing,
            Judged::New => self.work[offset] = Work::Queued,
            _ => {}
        }
        self.work[offset] == Work::Closing
    }

    /// Gives free slots to what waits for one, and judges again whoever waited for a token that is at rest now. Says
    /// which offsets were suppressed as duplicates.
    pub(crate) fn settle(&mut self, world: &World, rules: &Rules) -> Vec<usize> {
        let mut suppressed = Vec::new();
        for offset in 0..world.len() {
            let is_at_rest = matches!(self.work[offset], Work::None | Work::Complete);
            let is_suppressed = match self.window.of[offset] {
                Record::Behind if is_at_rest => self.judge_held_behind(world, rules, offset),
                _ => self.work[offset] == Work::Behind && self.judge(world, rules, offset),
            };
            suppressed.extend(is_suppressed.then_some(offset));
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
        let in_doubt =
            matches!(self.window.of[offset], Record::Again(_)) && world.class == Class::NonIdempotent;
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
            ) && is_begun(self.window.of[*offset])
        };
        u8::try_from((0..OFFSETS).filter(ours).count()).unwrap_or(u8::MAX)
    }

    /// Takes nothing more; what has not started is given back.
    pub(crate) fn drain(&mut self) {
        self.stage = Stage::Draining;
        for offset in 0..OFFSETS {
            let submitted = is_begin(self.group.changes[offset]) && self.group.step != Step::None;
            self.work[offset] = match self.work[offset] {
                Work::Behind | Work::Queued => Work::None,
                Work::Beginning if !submitted => Work::None,
                Work::Ready if is_begun(self.window.of[offset]) => Work::UnBeginning,
                Work::Ready => Work::None,
                other => other,
            };
        }
    }

    /// What would be submitted now.
    pub(crate) fn submitted(&self, rules: &Rules) -> Changes {
        std::array::from_fn(|offset| match (self.work[offset], self.window.of[offset]) {
            _ if self.stray[offset] == Work::Recording => Change::Done(self.seen[offset]),
            (Work::Beginning, Record::Ordered(..)) if !rules.verdict_is_spent => Change::BeginAndKeepOrder,
            (Work::Beginning, Record::Ordered(..)) if !rules.attempts_go_on => Change::BeginUncounted,
            (Work::Beginning, record) if record.is_kept() => Change::BeginAgain,
            (Work::Beginning, _) => Change::Begin,
            (Work::UnBeginning, record) if record.is_kept() && rules.unbegun_stays_held => {
                Change::UnBeginAgain
            }
            (Work::UnBeginning, _) => Change::UnBegin,
            (Work::Postponing, _) => Change::HoldForRetry,
            (Work::Holding, _) => Change::HoldInDoubt,
            (Work::HoldingBehind, _) => Change::HoldBehind,
            (Work::Deciding(verdict), _) => Change::Order(verdict),
            (Work::Closing, _) => Change::Close,
            (Work::Recording, _) => Change::Done(self.seen[offset]),
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
                Change::HoldInDoubt | Change::HoldBehind | Change::HoldForRetry | Change::Done(_)
            );
            // It lies in no ledger any more.
            let record = self.window.of[offset];
            let recorded =
                recorded || record.returns() || (record.is_kept() && self.work[offset] != Work::None);
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
        self.answered(&group.acts);
        let draining = self.stage == Stage::Draining;
        for offset in 0..world.len() {
            if let (Change::Order(verdict), Work::Deciding(_)) = (group.changes[offset], self.work[offset]) {
                self.carry_out(offset, verdict);
                continue;
            }
            let stray = &mut self.stray[offset];
            if *stray == Work::Recording && matches!(group.changes[offset], Change::Done(_)) {
                *stray = Work::None;
                continue;
            }
            let work = &mut self.work[offset];
            *work = match (group.changes[offset], *work) {
                (begin, Work::Beginning) if is_begin(begin) && draining => Work::UnBeginning,
                (begin, Work::Beginning) if is_begin(begin) => Work::Ready,
                (Change::UnBegin | Change::UnBeginAgain, Work::UnBeginning) => Work::None,
                (Change::HoldInDoubt, Work::Holding)
                | (Change::HoldBehind, Work::HoldingBehind)
                | (Change::Close, Work::Closing)
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

fn is_begin(change: Change) -> bool {
    matches!(
        change,
        Change::Begin | Change::BeginAgain | Change::BeginAndKeepOrder | Change::BeginUncounted
    )
}

fn is_begun(record: Record) -> bool {
    matches!(record, Record::Begun | Record::Again(_))
}

fn count(work: &[Work; OFFSETS], which: impl Fn(Work) -> bool) -> u8 {
    u8::try_from(work.iter().filter(|work| which(**work)).count()).unwrap_or(u8::MAX)
}
