//! What operators decide: once, for good, and for as much as they knew.

use std::collections::{BTreeMap, BTreeSet};

use super::replay::Replayed;
use super::{Findings, Part, Rule};
use crate::chaos::frame::Act;
use crate::chaos::operator::{self, Order, Verdict};
use crate::chaos::world::Kind;
use crate::checker::Message;
use crate::checker::record::{BY_OPERATOR, End};

/// Every order that was answered is in a changelog, once; and what is there was ordered.
///
/// An order without an answer may be there or not: the member may have died on either side of the write.
pub(super) fn recorded(orders: &BTreeMap<u32, Order>, acts: &[Act], findings: &mut Findings) {
    let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
    for act in acts {
        let number = operator::number(&act.reason);
        let order = number.and_then(|number| orders.get(&number));
        let fits = order.is_some_and(|order| {
            (&order.topic, order.partition, order.offset) == (&act.topic, act.partition, act.offset)
                && order.verdict.act() == act.act
        });
        if !fits {
            findings.add(
                Rule::Order,
                format!("{act:?} is recorded, and was ordered by nobody: {order:?}"),
            );
        }
        *seen.entry(number.unwrap_or(u32::MAX)).or_default() += 1;
    }
    for (number, order) in orders {
        let times = seen.get(number).copied().unwrap_or(0);
        let is_right = match order.answer.as_deref() {
            Some("done") => times == 1,
            Some(_) => times == 0,
            None => times <= 1,
        };
        if !is_right {
            findings.add(
                Rule::Order,
                format!("order {number} is recorded {times} times: {order:?}"),
            );
        }
    }
}

/// The audit topic has each recorded act, once.
pub(super) fn published(acts: &[Act], audit: &[Message], findings: &mut Findings) {
    let texts: BTreeSet<&str> = acts.iter().map(|act| act.text.as_str()).collect();
    let mut published = BTreeSet::new();
    for message in audit {
        let text = message
            .payload
            .as_deref()
            .map(String::from_utf8_lossy)
            .unwrap_or_default();
        if !texts.contains(text.as_ref()) {
            findings.add(
                Rule::Order,
                format!("the audit topic has an act that no changelog has: {text}"),
            );
        }
        if !published.insert(text.to_string()) {
            findings.add(Rule::Order, format!("the audit topic has an act twice: {text}"));
        }
    }
    for text in texts.iter().filter(|text| !published.contains(**text)) {
        findings.add(Rule::Order, format!("the audit topic does not have {text}"));
    }
}

/// What was decided is what became of the message.
pub(super) fn check(part: &Part<'_>, replayed: &Replayed, findings: &mut Findings) {
    for (offset, orders) in &replayed.orders {
        for order in orders {
            carried_out(part, replayed, *offset, order, findings);
        }
    }
}

fn carried_out(part: &Part<'_>, replayed: &Replayed, offset: i64, order: &Order, findings: &mut Findings) {
    let later = part
        .lines
        .iter()
        .find(|line| line.offset == offset && line.kind == Kind::Begin && line.attempt > order.attempts);
    let is_open = replayed.open.keys().any(|(_, at)| *at == offset);
    let end = replayed
        .closed
        .values()
        .flatten()
        .find(|closed| closed.offset == offset);
    let end = end.map(|closed| closed.end);
    let is_right = match order.verdict {
        Verdict::Run => later.is_some() || is_open,
        Verdict::Done => end == Some(End::Done) || (end.is_none() && is_open),
        Verdict::DeadLetter => end == Some(End::Failed(BY_OPERATOR)) || (end.is_none() && is_open),
    };
    if !is_right {
        findings.add(
            Rule::Order,
            format!("{order:?}, and then {end:?}, open: {is_open}"),
        );
    }
    if order.verdict != Verdict::Run
        && let Some(line) = later
    {
        findings.add(Rule::Order, format!("{order:?}\n    and then {line}"));
    }
}

impl Replayed {
    /// Whether an operator who knew of that attempt, and of none after it before the next one, ordered the next one.
    pub(super) fn was_ordered(&self, offset: i64, attempt: u64, next: u64) -> bool {
        self.orders_to(offset, Verdict::Run)
            .any(|order| (attempt..next).contains(&order.attempts))
    }

    /// Whether an operator decided that of a message.
    pub(super) fn was_decided(&self, offset: i64, verdict: Verdict) -> bool {
        self.orders_to(offset, verdict).next().is_some()
    }

    /// Whether an attempt comes of an order about a message that was in doubt: its key did not wait for that.
    pub(super) fn runs_out_of_turn(&self, offset: i64, attempt: u64) -> bool {
        self.orders_to(offset, Verdict::Run)
            .any(|order| order.was_in_doubt && attempt > order.attempts)
    }

    fn orders_to(&self, offset: i64, verdict: Verdict) -> impl Iterator<Item = &Order> {
        let orders = self.orders.get(&offset).into_iter().flatten();
        orders.filter(move |order| order.verdict == verdict)
    }
}
