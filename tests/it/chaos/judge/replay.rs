//! A partition's changelog, frame by frame: who may write, what is an outcome, and what the commit point may pass.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, Part, Rule};
use crate::chaos::frame::{self, Act, Frame};
use crate::chaos::operator::{self, Order};
use crate::checker::record::{Closed, Open, Stage};
use crate::checker::token::Key;

/// What the changelog comes to.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// Every outcome, in the order in which they were recorded.
    pub(super) closed: BTreeMap<Key, Vec<Closed>>,
    /// What is open at the end, by token and offset.
    pub(super) open: BTreeMap<(Key, i64), Open>,
    /// The attempts that were begun, by offset.
    pub(super) begun: BTreeMap<i64, u64>,
    /// What operators did, and what it was ordered as, by offset.
    pub(super) acts: Vec<Act>,
    pub(super) orders: BTreeMap<i64, Vec<Order>>,
    /// The fence that each of them was begun under.
    begun_by: BTreeMap<(Key, i64), u64>,
    /// When the commit point passed which offset: offset after the last, and the wall clock of its group.
    passed: Vec<(i64, i64)>,
    point: i64,
    fence: u64,
}

pub(super) fn check(part: &Part<'_>, group: &str, findings: &mut Findings) -> Replayed {
    let mut replayed = Replayed::default();
    let owner = frame::owner(group, &part.of.topic);
    let mut frames = Vec::new();
    let log = part
        .of
        .changelog
        .range((part.partition, i64::MIN)..=(part.partition, i64::MAX));
    for ((_, offset), bytes) in log {
        match frame::decode(bytes) {
            Ok(frame) if frame.owner == owner => frames.push(frame),
            Ok(_) => findings.add(Rule::Frame, format!("the frame at {offset} has another owner")),
            Err(why) => findings.add(Rule::Frame, format!("the frame at {offset}: {why}")),
        }
    }
    // A large group is several frames.
    for group in frames.chunk_by(|a, b| (a.session, a.number) == (b.session, b.number)) {
        replayed.apply(part, group, findings);
    }
    at_the_end(part, &replayed, findings);
    replayed
}

impl Replayed {
    fn apply(&mut self, part: &Part<'_>, group: &[Frame], findings: &mut Findings) {
        let head = &group[0];
        if head.fence < self.fence {
            let what = format!("a group of fence {} after fence {}", head.fence, self.fence);
            findings.add(Rule::StaleWrite, what);
        }
        self.fence = self.fence.max(head.fence);
        if head.next < self.point {
            let what = format!("the commit point runs back from {} to {}", self.point, head.next);
            findings.add(Rule::StaleWrite, what);
        }
        if head.time_ms != part.time_before(head.next) {
            let what = format!(
                "partition time {:?} at {}, and the latest stamp below it is {:?}",
                head.time_ms,
                head.next,
                part.time_before(head.next)
            );
            findings.add(Rule::Time, what);
        }
        for act in group.iter().flat_map(|frame| &frame.acts) {
            let order = operator::number(&act.reason).and_then(|number| part.orders.get(&number));
            if let Some(order) = order {
                self.orders.entry(act.offset).or_default().push(order.clone());
            }
            self.acts.push(act.clone());
        }
        for (key, closed) in group.iter().flat_map(|frame| &frame.closed) {
            self.close(part, *key, *closed, findings);
        }
        let mut gone = BTreeSet::new();
        for name in group.iter().flat_map(|frame| &frame.removed) {
            if self.open.remove(name).is_some_and(|open| is_kept(&open)) {
                gone.insert(*name);
            }
        }
        for open in group.iter().flat_map(|frame| &frame.opened) {
            if open.stage == Stage::Begun {
                let begun = self.begun.entry(open.offset).or_default();
                *begun = open.attempts.max(*begun);
                self.begun_by.insert((open.keys[0], open.offset), head.fence);
            }
            self.open.insert((open.keys[0], open.offset), open.clone());
        }
        // What an earlier assignment has left is in doubt, and begun by nobody now.
        let is_begun = |(name, open): (&(Key, i64), &Open)| {
            open.stage == Stage::Begun && self.begun_by.get(name) == Some(&head.fence)
        };
        let count = self.open.iter().filter(|entry| is_begun(*entry)).count();
        if count > part.of.terms.slots as usize {
            let what = format!(
                "{count} are begun at a time, there are {} slots",
                part.of.terms.slots
            );
            findings.add(Rule::TooManyBegun, what);
        }
        // Held below the commit point, Kafka does not deliver it again.
        for (key, offset) in gone {
            let is_open = self.open.contains_key(&(key, offset));
            if !is_open && !self.is_decided(part, offset) {
                let what = format!("{offset} was held, and is neither held nor recorded any more");
                findings.add(Rule::Lost, what);
            }
        }
        for offset in part
            .messages
            .range(self.point..head.next.max(self.point))
            .map(|(offset, _)| *offset)
        {
            self.pass(part, offset, findings);
        }
        if head.next > self.point {
            self.point = head.next;
            self.passed.push((head.next, head.written_ms));
        }
    }

    fn close(&mut self, part: &Part<'_>, key: Key, closed: Closed, findings: &mut Findings) {
        for earlier in self.closed.get(&key).into_iter().flatten() {
            let is_second = earlier.offset == closed.offset
                || (!part.may_follow(earlier) && part.is_within_window(earlier.first_seen_ms, closed.offset));
            if is_second {
                let what = format!("recorded {earlier:?}, and then {closed:?}");
                findings.add(Rule::TwoOutcomes, what);
            }
        }
        let latest = part.time_before(i64::MAX);
        let seen = part.times.get(&closed.offset).copied();
        if seen.is_none_or(|seen| closed.first_seen_ms < seen) || latest < Some(closed.first_seen_ms) {
            let what = format!("{closed:?} cannot be first seen then: it was judged at {seen:?}");
            findings.add(Rule::Time, what);
        }
        self.closed.entry(key).or_default().push(closed);
    }

    fn closed_of(&self, part: &Part<'_>, offset: i64) -> impl Iterator<Item = &Closed> {
        let names = part.names.get(&offset).copied().unwrap_or_default();
        names
            .into_iter()
            .filter_map(|name| self.closed.get(&name))
            .flatten()
    }

    /// Whether an outcome decides about the message, its own or its token's.
    fn is_decided(&self, part: &Part<'_>, offset: i64) -> bool {
        self.closed_of(part, offset)
            .any(|closed| closed.offset == offset || !part.may_follow(closed))
    }

    /// The commit point passes a message.
    fn pass(&self, part: &Part<'_>, offset: i64, findings: &mut Findings) {
        let names = part.names[&offset];
        let stage = |name: Key| self.open.get(&(name, offset)).map(|open| open.stage);
        let is_kept = |name: Key| self.open.get(&(name, offset)).is_some_and(is_kept);
        let has_own = self.closed_of(part, offset).any(|closed| closed.offset == offset);
        if has_own || names.iter().any(|name| is_kept(*name)) {
            return;
        }
        let mut of_token = self
            .closed_of(part, offset)
            .filter(|closed| !part.may_follow(closed));
        let is_duplicate = of_token.any(|closed| {
            part.is_within_window(closed.first_seen_ms, offset)
                // At and above the commit point nothing expires.
                || !self.was_passed_before(closed.offset, part.sent_ms(offset))
        });
        if !is_duplicate {
            let known: Vec<_> = self.closed_of(part, offset).collect();
            let stages = names.map(stage);
            let what = format!("{offset} is passed, and its token has {known:?}, it itself {stages:?}");
            findings.add(Rule::Suppressed, what);
        }
    }

    /// Whether the commit point was past that offset before that moment.
    fn was_passed_before(&self, offset: i64, wall_ms: i64) -> bool {
        self.passed
            .iter()
            .any(|(next, written_ms)| *next > offset && *written_ms < wall_ms)
    }
}

/// Whether its message is in the record: held, or begun again from there.
const fn is_kept(open: &Open) -> bool {
    matches!(open.stage, Stage::Held) || open.payload.is_some()
}

fn at_the_end(part: &Part<'_>, replayed: &Replayed, findings: &mut Findings) {
    let end = part.end();
    if replayed.point < end {
        let what = format!("taken until {}, and {end} were sent", replayed.point);
        findings.add(Rule::Lost, what);
    }
    let committed = part.of.committed.get(&part.partition);
    match committed {
        Some((offset, metadata)) => {
            if *offset > replayed.point {
                let what = format!(
                    "committed {offset}, and the changelog stands at {}",
                    replayed.point
                );
                findings.add(Rule::Suppressed, what);
            }
            let time = part
                .time_before(*offset)
                .map_or("-".to_owned(), |time| time.to_string());
            if metadata.split(' ').nth(2) != Some(time.as_str()) {
                let what = format!("committed {offset} with {metadata:?}, and partition time was {time}");
                findings.add(Rule::Time, what);
            }
        }
        None => findings.add(Rule::Lost, "nothing is committed"),
    }
    for open in replayed.open.values() {
        let payload = part
            .messages
            .get(&open.offset)
            .and_then(|message| message.payload.clone());
        if is_kept(open) && open.payload != payload {
            let what = format!("{} is held with other bytes", open.offset);
            findings.add(Rule::UntrueRecord, what);
        }
        if !is_kept(open) && open.offset < replayed.point {
            let what = format!(
                "{} is {:?} at the end, below the commit point",
                open.offset, open.stage
            );
            findings.add(Rule::Lost, what);
        }
    }
}
