//! Operators: what they order of a consumer that serves the partition, and what it makes of that.
//!
//! An operator may be slow, may order at the wrong consumer, and is never told when the answer is lost. So an order is a
//! single step at any moment, made by somebody who knows of some attempts at a message and perhaps not of the last. Two
//! operators at once are two orders; one who says it again is a second operator who knows no more than the first.

use crate::consumer::{Consumer, Stage, Work};
use crate::records::{Change, Record, Verdict};
use crate::rules::Rules;
use crate::world::{Class, OFFSETS, World};

/// As many orders as any world has.
pub(crate) const ORDERS: usize = 2;

/// Orders by their number.
pub(crate) type Orders = [Option<Order>; ORDERS];

/// An order that was taken, until its partition's task answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Order {
    /// Its number: the operator's name.
    pub(crate) by: u8,
    pub(crate) offset: u8,
    pub(crate) verdict: Verdict,
    /// Attempts at that message that the operator knows of.
    pub(crate) known: u8,
    pub(crate) is_decided: bool,
}

impl Order {
    pub(crate) fn about(&self) -> usize {
        usize::from(self.offset)
    }
}

impl Consumer {
    /// Whether this order would be taken. One that is refused at once changes nothing, so it is no step.
    pub(crate) fn takes_order(&self, rules: &Rules, order: &Order) -> bool {
        let is_free = self.desk == Orders::default() || !rules.one_order_at_a_time;
        self.stage == Stage::Serving && is_free && self.may_be_about(rules, order)
    }

    /// Whether there is a message at rest that the order may be about.
    fn may_be_about(&self, rules: &Rules, order: &Order) -> bool {
        let is_at_rest = matches!(self.work[order.about()], Work::None | Work::Complete);
        let is_meant = match self.window.of[order.about()] {
            Record::Behind => !rules.behind_takes_no_verdict,
            record => record
                .may_be_decided()
                .is_some_and(|attempts| attempts == order.known || !rules.tied_to_attempts),
        };
        is_at_rest && is_meant
    }

    /// Its bytes are here: the verdict is submitted, unless the message has left its rest meanwhile. Says whether it is.
    pub(crate) fn decide(&mut self, rules: &Rules, order: Order) -> bool {
        let place = &mut self.desk[usize::from(order.by)];
        *place = None;
        if rules.looked_at_again && !self.may_be_about(rules, &order) {
            return false;
        }
        self.desk[usize::from(order.by)] = Some(Order {
            is_decided: true,
            ..order
        });
        let work = &mut self.work[order.about()];
        if matches!(*work, Work::Running | Work::Recording) {
            self.stray[order.about()] = *work;
        }
        *work = Work::Deciding(order.verdict);
        if !rules.carried_out_when_durable {
            self.carry_out(order.about(), order.verdict);
        }
        true
    }

    /// What was decided about a message that is held happens.
    pub(crate) fn carry_out(&mut self, offset: usize, verdict: Verdict) {
        self.seen[offset] = self.time;
        self.work[offset] = match verdict {
            Verdict::Done => Work::Recording,
            Verdict::Run if self.stage == Stage::Draining => Work::None,
            Verdict::Run => Work::Queued,
        };
    }

    /// A verdict that was found at an assignment: given to somebody who is gone.
    pub(crate) fn carry_out_found(&mut self, world: &World, rules: &Rules) {
        for offset in 0..world.len() {
            if let Record::Ordered(verdict, _) = self.window.of[offset]
                && rules.found_verdict_is_carried_out
            {
                self.carry_out(offset, verdict);
            }
        }
    }

    /// The orders whose acts go into the next group.
    pub(crate) fn acts(&self) -> Orders {
        self.desk.map(|order| order.filter(|order| order.is_decided))
    }

    /// Those acts are durable, and the orders answered.
    pub(crate) fn answered(&mut self, acts: &Orders) {
        for order in acts.iter().flatten() {
            self.desk[usize::from(order.by)] = None;
        }
    }
}

/// What nobody in the model can ask: whether what becomes visible was permitted, by a first delivery, by an attempt that
/// applied nothing, or by an operator who knew what had happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Permits {
    /// Whether another attempt may be begun, a bit for each offset.
    may_begin: u8,
    /// Attempts that were begun, by offset, whatever any record says.
    begun: [u8; OFFSETS],
    /// Effects beyond the first that operators took upon themselves, by offset.
    pub(crate) runs: [u8; OFFSETS],
    /// An attempt was begun that nobody permitted.
    pub(crate) exceeded: bool,
    /// A durable verdict was followed by something else than itself.
    pub(crate) overruled: bool,
}

impl Permits {
    /// Every message may be begun once; one that is in doubt already was.
    pub(crate) fn new(found: Record) -> Self {
        let may_begin = match found {
            Record::InDoubt(_) => !1,
            _ => !0,
        };
        Self {
            may_begin,
            begun: std::array::from_fn(|offset| if offset == 0 { found.attempts() } else { 0 }),
            runs: [0; OFFSETS],
            exceeded: false,
            overruled: false,
        }
    }

    /// An operator's act becomes visible where the changelog had this record before.
    pub(crate) fn see_act(&mut self, before: Record, order: &Order) {
        let (bit, offset) = (1 << order.offset, order.about());
        match (order.verdict, before) {
            (Verdict::Done, _) => self.may_begin &= !bit,
            // Whoever knows of all attempts at what is in doubt has seen to it, or takes it upon themselves.
            (Verdict::Run, Record::InDoubt(_)) if self.begun[offset] == order.known => {
                self.may_begin |= bit;
                self.runs[offset] += 1;
            }
            (Verdict::Run, _) => {}
        }
    }

    /// A change becomes visible where the changelog had this record before.
    pub(crate) fn see(&mut self, class: Class, offset: usize, before: Record, change: Change) {
        let bit = 1 << offset;
        match change {
            Change::Begin | Change::BeginAgain | Change::BeginAndKeepOrder | Change::BeginUncounted => {
                self.exceeded |= self.may_begin & bit == 0 && class == Class::NonIdempotent;
                self.may_begin &= !bit;
                self.begun[offset] += 1;
            }
            Change::UnBegin | Change::UnBeginAgain => {
                self.may_begin |= bit;
                self.begun[offset] = self.begun[offset].saturating_sub(1);
            }
            Change::HoldForRetry => self.may_begin |= bit,
            _ => {}
        }
        self.overruled |= match (before, change) {
            (_, Change::None) => false,
            (Record::Ordered(Verdict::Done, _), change) => !matches!(change, Change::Done(_)),
            (Record::Ordered(Verdict::Run, _), change) => {
                matches!(change, Change::Order(_) | Change::HoldInDoubt)
            }
            (Record::Done(_), change) => matches!(change, Change::Order(_)),
            _ => false,
        };
    }
}
