//! What one process has on its disk of one partition, and the four who write to it.
//!
//! A model of its own: what a copy is good for does not depend on what its records say. Frames are written to the
//! changelog one after another, by whoever owns the partition (that two owners never write at once is what the other model
//! shows). Here it is about the copy: its journal applies its own groups when they are committed, the restorer reads
//! from where the copy stands, the standby keeps it up while another owns the partition, the sweep clears it when the
//! partition has left for good. Each of them may stand still between any two of its steps, and go on much later.

use std::fmt;

use stateright::{Model, Property};

use crate::copies_rules::CopyRules;

/// Tokens that frames are about.
const TOKENS: usize = 2;

/// Groups that are committed, and wait for the store.
const APPLYING_MAX: usize = 2;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Frame {
    /// A record of that token.
    Put(usize),
    /// Its record is gone: a restore that has the record and misses this has too much.
    Remove(usize),
    /// Everything that there is, written again, so that what lies before can be deleted.
    Again,
}

/// One bounded world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyWorld {
    pub(crate) name: &'static str,
    /// The frames that are written, in their order. The first is number 1.
    pub(crate) log: &'static [Frame],
    /// Whether this process keeps copies of what others own.
    pub(crate) keeps: bool,
    pub(crate) budget: CopyBudget,
    /// What the checker must have come across.
    pub(crate) sees: &'static [Sight],
}

/// Something that has to be reachable.
pub(crate) type Sight = (&'static str, fn(&Copies, &CopyState) -> bool);

/// How often each kind of trouble may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CopyBudget {
    /// Assignments to this process.
    pub(crate) takes: u8,
    /// Sweeps that find the partition left for longer than its window.
    pub(crate) sweeps: u8,
    pub(crate) crashes: u8,
}

/// Of each token the frame that its record comes from, or 0.
type Records = [u8; TOKENS];

/// What is on the disk of a partition: records, and how far in the changelog that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Copy {
    pub(crate) upto: u8,
    pub(crate) of: Records,
}

/// Whose the partition is, as this process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ours {
    Away,
    /// Assigned, and to be restored.
    Coming,
    Serving,
    /// Its gate is cleared and its commit point forgotten, and the board of copies does not know yet.
    Leaving,
}

/// What the restorer reads: from there, up to there. It writes all of it at once, and so may write when nobody wants it
/// any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reading {
    from: u8,
    target: u8,
    is_wanted: bool,
}

/// What the standby keeps up: applied up to there, read up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tail {
    applied: u8,
    read: u8,
    /// The partition was not here since it began.
    is_of_this_turn: bool,
    /// It was asked whose the copy is, and writes.
    is_writing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CopyState {
    /// Frames that are committed, and the first of them that the broker has still.
    len: u8,
    low: u8,
    ours: Ours,
    /// The other owner has read up to everything before it, and writes.
    other_serves: bool,
    pub(crate) copy: Option<Copy>,
    /// What of it a crash leaves.
    saved: Option<Copy>,
    /// What this assignment may rely on: its restore, and what was acknowledged since.
    floor: u8,
    /// A transaction of this process is open.
    is_open: bool,
    /// Its groups that are committed and not applied.
    applying: Vec<u8>,
    reading: Option<Reading>,
    tail: Option<Tail>,
    /// The sweep has looked, and is about to clear.
    is_clearing: bool,
    pub(crate) left: CopyBudget,
    pub(crate) seen: Seen,
}

/// What was come across.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    /// A restore went on where the copy stood, and had something to read.
    pub(crate) resumed: bool,
    /// A copy that was outside the log was forgotten.
    pub(crate) forgotten: bool,
    /// The standby wrote.
    pub(crate) kept_up: bool,
    /// It was turned away with what it had read.
    pub(crate) shed: bool,
    /// A copy was swept.
    pub(crate) swept: bool,
    /// A group was applied after its partition had left.
    pub(crate) late: bool,
}

/// A world under rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copies {
    pub(crate) world: CopyWorld,
    pub(crate) rules: CopyRules,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Deed {
    /// The partition is assigned here.
    Take,
    /// Its assignment here is over, and another has it.
    Leave,
    /// The board of copies hears of that.
    Left,
    /// The other owner has restored.
    OtherServes,
    OtherWrites,
    /// The owner deletes what lies before a frame that was written again.
    Trim(u8),
    /// The journal begins a transaction.
    Write,
    Commit,
    Abort,
    /// What was committed is applied to the copy.
    Apply(usize),
    /// The restorer looks where the copy stands, and reads on from there.
    Restore,
    Restored,
    /// It sees that nobody wants it any more.
    Unwanted,
    /// The standby looks where the copy stands.
    Keep,
    ReadOn,
    /// It asks whose the copy is.
    Ask,
    KeepUp,
    Sweep,
    Clear,
    /// What the store has in memory reaches the disk.
    Flush,
    Crash,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::Take => "the partition is assigned here",
            Self::Leave => "the assignment here is over, and another has it",
            Self::Left => "the board of copies hears that it is over",
            Self::OtherServes => "the other owner has restored, and serves",
            Self::OtherWrites => "the other owner commits a frame",
            Self::Trim(low) => return write!(f, "the owner deletes the changelog before frame {low}"),
            Self::Write => "the journal begins a transaction",
            Self::Commit => "it is committed",
            Self::Abort => "it is aborted",
            Self::Apply(0) => "the first group that waits is applied to the copy",
            Self::Apply(_) => "a later group than the first is applied to the copy",
            Self::Restore => "the restorer looks where the copy stands, and reads on from there",
            Self::Restored => "the restorer writes what it has read",
            Self::Unwanted => "the restorer sees that nobody wants the partition any more",
            Self::Keep => "the standby looks where the copy stands",
            Self::ReadOn => "the standby reads a frame",
            Self::Ask => "the standby has something to write, and asks whose the copy is",
            Self::KeepUp => "the standby writes what it has read",
            Self::Sweep => "the sweep finds that the partition has left for good",
            Self::Clear => "the sweep clears the copy",
            Self::Flush => "the store flushes",
            Self::Crash => "the process is killed, and starts again",
        })
    }
}

impl CopyState {
    fn new(world: &CopyWorld) -> Self {
        Self {
            len: 0,
            low: 1,
            ours: Ours::Away,
            other_serves: true,
            copy: None,
            saved: None,
            floor: 0,
            is_open: false,
            applying: Vec::new(),
            reading: None,
            tail: None,
            is_clearing: false,
            left: world.budget,
            seen: Seen::default(),
        }
    }

    /// Everything submitted by earlier assignments is in the copy, or will never be.
    fn is_settled(&self) -> bool {
        !self.is_open && self.applying.is_empty()
    }

    /// Where a reader goes on: where the copy stands, if the log still begins before that.
    fn resumes(&mut self, rules: &CopyRules) -> u8 {
        let stands = self.copy.map(|copy| copy.upto);
        let inside = stands.filter(|upto| *upto + 1 >= self.low || !rules.begun_anew_outside_the_log);
        if inside.is_none() {
            self.seen.forgotten |= self.copy.is_some();
            self.copy = None;
        }
        inside.unwrap_or(self.low - 1)
    }
}

impl Copies {
    /// What there is of each token after so many frames.
    fn truth(&self, upto: u8) -> Records {
        let mut records = Records::default();
        for (number, frame) in (1..=upto).zip(self.world.log) {
            match *frame {
                Frame::Put(token) => records[token] = number,
                Frame::Remove(token) => records[token] = 0,
                Frame::Again => {}
            }
        }
        records
    }

    fn apply_frame(&self, records: &mut Records, number: u8) {
        match self.world.log[usize::from(number) - 1] {
            Frame::Put(token) => records[token] = number,
            Frame::Remove(token) => records[token] = 0,
            // It says what there is, and nothing of what there is not.
            Frame::Again => {
                for (record, is) in records.iter_mut().zip(self.truth(number - 1)) {
                    *record = if is == 0 { *record } else { is };
                }
            }
        }
    }

    /// What is read back makes a copy where there is none.
    fn apply_read(&self, state: &mut CopyState, from: u8, upto: u8) {
        let mut copy = state.copy.unwrap_or_default();
        for number in from + 1..=upto {
            self.apply_frame(&mut copy.of, number);
        }
        copy.upto = upto;
        state.copy = Some(copy);
    }

    /// Whoever reads on from where the copy stands has in the end what the changelog says, and no more.
    pub(crate) fn is_whole(&self, state: &CopyState) -> bool {
        let Some(copy) = state.copy else { return true };
        if copy.upto + 1 < state.low && self.rules.begun_anew_outside_the_log {
            return true;
        }
        let mut records = copy.of;
        for number in state.low.max(copy.upto + 1)..=state.len {
            self.apply_frame(&mut records, number);
        }
        records == self.truth(state.len)
    }

    /// What is served has everything that it was restored with, and everything that was acknowledged.
    pub(crate) fn is_served_whole(&self, state: &CopyState) -> bool {
        let has = |copy: &Copy| copy.upto >= state.floor && copy.of == self.truth(copy.upto);
        state.ours != Ours::Serving || state.copy.as_ref().is_some_and(has)
    }

    fn is_free(&self, state: &CopyState) -> bool {
        state.ours == Ours::Away
            && (state.is_settled() || !self.rules.settled_first)
            && (state.reading.is_none() || !self.rules.what_is_read_is_not_free)
    }

    fn may_write_tail(&self, state: &CopyState, tail: &Tail) -> bool {
        !self.rules.the_standby_asks || (self.is_free(state) && tail.is_of_this_turn)
    }

    fn may_be_swept(&self, state: &CopyState) -> bool {
        let is_kept = self.world.keeps && self.rules.a_copy_has_not_left;
        // The board knows of what is unsettled once it has heard that the assignment is over.
        let is_unsettled =
            state.ours == Ours::Away && !state.is_settled() && self.rules.unsettled_is_not_swept;
        let is_read = state.reading.is_some() && self.rules.what_is_read_is_not_free;
        matches!(state.ours, Ours::Away | Ours::Leaving) && !is_kept && !is_unsettled && !is_read
    }
}

impl Model for Copies {
    type State = CopyState;
    type Action = Deed;

    fn init_states(&self) -> Vec<CopyState> {
        vec![CopyState::new(&self.world)]
    }

    fn actions(&self, state: &CopyState, deeds: &mut Vec<Deed>) {
        let rules = &self.rules;
        let mut may = |possible: bool, deed: Deed| deeds.extend(possible.then_some(deed));
        let is_more = usize::from(state.len) < self.world.log.len();
        let is_still = !state.is_clearing || !rules.nobody_comes_while_it_deletes;

        may(
            state.ours == Ours::Away && state.left.takes > 0 && is_still,
            Deed::Take,
        );
        may(matches!(state.ours, Ours::Coming | Ours::Serving), Deed::Leave);
        may(state.ours == Ours::Leaving, Deed::Left);
        let is_elsewhere = matches!(state.ours, Ours::Away | Ours::Leaving);
        may(
            is_elsewhere && !state.other_serves && !state.is_open,
            Deed::OtherServes,
        );
        may(is_elsewhere && state.other_serves && is_more, Deed::OtherWrites);
        let is_served = state.ours == Ours::Serving || (is_elsewhere && state.other_serves);
        for (number, frame) in (1..=state.len).zip(self.world.log) {
            may(
                is_served && *frame == Frame::Again && state.low < number,
                Deed::Trim(number),
            );
        }

        let writes = state.ours == Ours::Serving && is_more && !state.is_open;
        may(writes && state.applying.len() < APPLYING_MAX, Deed::Write);
        may(state.is_open && is_more, Deed::Commit);
        may(state.is_open, Deed::Abort);
        for at in 0..state.applying.len() {
            may(at == 0 || !rules.applied_in_order, Deed::Apply(at));
        }

        let settled = state.applying.is_empty() || !rules.a_restore_settles;
        let waits = rules.the_restorer_waits && state.tail.is_some_and(|tail| tail.is_writing);
        // What is open lies below the target.
        let restores = state.ours == Ours::Coming && state.reading.is_none() && !state.is_open;
        may(restores && settled && !waits, Deed::Restore);
        may(state.reading.is_some(), Deed::Restored);
        may(
            state.reading.is_some_and(|reading| !reading.is_wanted),
            Deed::Unwanted,
        );

        if self.world.keeps {
            may(state.tail.is_none() && self.is_free(state), Deed::Keep);
            if let Some(tail) = state.tail {
                may(!tail.is_writing && tail.read < state.len, Deed::ReadOn);
                may(!tail.is_writing && tail.read > tail.applied, Deed::Ask);
                may(tail.is_writing, Deed::KeepUp);
            }
        }
        let sweeps = state.left.sweeps > 0 && !state.is_clearing && state.copy.is_some();
        may(sweeps && self.may_be_swept(state), Deed::Sweep);
        may(state.is_clearing, Deed::Clear);
        may(state.left.crashes > 0 && state.saved != state.copy, Deed::Flush);
        may(state.left.crashes > 0, Deed::Crash);
    }

    fn next_state(&self, last: &CopyState, deed: Deed) -> Option<CopyState> {
        let mut state = last.clone();
        self.act(&mut state, deed);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::copies_kept::properties(&self.world)
    }
}

impl Copies {
    fn act(&self, state: &mut CopyState, deed: Deed) {
        let rules = &self.rules;
        match deed {
            Deed::Take => {
                state.left.takes -= 1;
                state.ours = Ours::Coming;
                state.other_serves = false;
                if let Some(tail) = &mut state.tail
                    && rules.one_turn
                {
                    tail.is_of_this_turn = false;
                }
            }
            Deed::Leave => {
                state.ours = Ours::Leaving;
                state.other_serves = false;
                state.floor = 0;
                if let Some(reading) = &mut state.reading {
                    reading.is_wanted = false;
                }
            }
            Deed::Left => state.ours = Ours::Away,
            Deed::OtherServes => state.other_serves = true,
            Deed::OtherWrites => state.len += 1,
            Deed::Trim(low) => state.low = low,
            Deed::Write => state.is_open = true,
            Deed::Commit => {
                state.is_open = false;
                state.len += 1;
                state.applying.push(state.len);
                if state.ours == Ours::Serving && !rules.applied_before_acknowledged {
                    state.floor = state.len;
                }
            }
            Deed::Abort => state.is_open = false,
            Deed::Apply(at) => {
                let number = state.applying.remove(at);
                state.seen.late |= matches!(state.ours, Ours::Away | Ours::Leaving) && state.copy.is_some();
                self.apply_own(state, number);
                if state.ours == Ours::Serving {
                    state.floor = state.floor.max(number);
                }
            }
            Deed::Restore => {
                let from = state.resumes(rules);
                let target = state.len;
                state.seen.resumed |= state.copy.is_some() && from < target;
                state.reading = Some(Reading {
                    from,
                    target,
                    is_wanted: true,
                });
            }
            Deed::Restored => {
                if let Some(mut reading) = state.reading.take() {
                    let from = state.low - 1;
                    if reading.from < from && rules.begun_anew_outside_the_log {
                        // Deleted under it.
                        return;
                    }
                    reading.from = reading.from.max(from);
                    self.apply_read(state, reading.from, reading.target);
                    if reading.is_wanted {
                        state.ours = Ours::Serving;
                        state.floor = reading.target;
                    }
                }
            }
            Deed::Unwanted => state.reading = None,
            Deed::Keep => {
                let from = state.resumes(rules);
                state.tail = Some(Tail {
                    applied: from,
                    read: from,
                    is_of_this_turn: true,
                    is_writing: false,
                });
            }
            Deed::ReadOn | Deed::Ask | Deed::KeepUp => self.keep_up(state, deed),
            Deed::Sweep => {
                state.left.sweeps -= 1;
                state.is_clearing = true;
            }
            Deed::Clear => {
                state.is_clearing = false;
                state.seen.swept = true;
                state.copy = None;
            }
            Deed::Flush => state.saved = state.copy,
            Deed::Crash => self.crash(state),
        }
    }

    /// A group of our own. It goes on with a copy; it makes none.
    fn apply_own(&self, state: &mut CopyState, number: u8) {
        let copy = match state.copy {
            None if self.rules.no_part_of_a_copy => return,
            copy => copy.unwrap_or_default(),
        };
        let mut copy = copy;
        self.apply_frame(&mut copy.of, number);
        copy.upto = number;
        state.copy = Some(copy);
    }

    fn keep_up(&self, state: &mut CopyState, deed: Deed) {
        let Some(mut tail) = state.tail.take() else { return };
        match deed {
            Deed::ReadOn => {
                let from = state.low - 1;
                if tail.read < from && self.rules.begun_anew_outside_the_log {
                    // Deleted under it.
                    return;
                }
                if tail.read < from {
                    (tail.applied, tail.read) = (from, from);
                }
                tail.read += 1;
            }
            Deed::Ask => {
                if !self.may_write_tail(state, &tail) {
                    state.seen.shed = true;
                    return;
                }
                tail.is_writing = true;
            }
            _ => {
                self.apply_read(state, tail.applied, tail.read);
                state.seen.kept_up = true;
                tail.applied = tail.read;
                tail.is_writing = false;
            }
        }
        state.tail = Some(tail);
    }

    /// The store is as it was at some earlier moment; everything else is gone.
    fn crash(&self, state: &mut CopyState) {
        let mut saved = state.saved;
        if let (Some(saved), Some(copy)) = (&mut saved, state.copy)
            && !self.rules.position_with_its_records
        {
            saved.upto = copy.upto;
        }
        *state = CopyState {
            ours: Ours::Away,
            other_serves: state.other_serves,
            len: state.len,
            low: state.low,
            copy: saved,
            saved,
            left: CopyBudget {
                crashes: state.left.crashes - 1,
                ..state.left
            },
            seen: state.seen,
            ..CopyState::new(&self.world)
        };
    }
}
