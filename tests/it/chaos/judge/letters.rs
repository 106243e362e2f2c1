//! Dead letters, which become visible with their outcomes, and the accounts.

use std::collections::{BTreeMap, BTreeSet};

use super::replay::Replayed;
use super::{Findings, Life, OfTopic, Part, Rule};
use crate::chaos::operator::Verdict;
use crate::chaos::terms::ATTEMPTS_MAX;
use crate::chaos::world::Kind;
use crate::checker::record::{Closed, End};
use crate::checker::{Books, Class, Message, token};

/// Every letter is of a message.
pub(super) fn origins(of: &OfTopic, findings: &mut Findings) {
    let places: BTreeSet<(i32, i64)> = of.input.iter().map(Message::place).collect();
    for letter in &of.letters {
        match letter.origin() {
            Some((topic, place)) if topic == of.topic && places.contains(&place) => {}
            origin => findings.add(Rule::Letter, format!("a letter of no message: {origin:?}")),
        }
    }
}

/// Outcome and letter are one: there is the one exactly where there is the other, and both once.
pub(super) fn check(part: &Part<'_>, replayed: &Replayed, findings: &mut Findings) {
    let failed: BTreeSet<i64> = replayed
        .closed
        .values()
        .flatten()
        .filter(|closed| matches!(closed.end, End::Failed(_)))
        .map(|closed| closed.offset)
        .collect();
    for (offset, letters) in &part.letters {
        let Some(message) = part.messages.get(offset) else {
            continue;
        };
        if letters.len() > 1 {
            findings.add(Rule::Letter, format!("{offset} has {} letters", letters.len()));
        }
        if !failed.contains(offset) {
            findings.add(
                Rule::Letter,
                format!("{offset} has a letter, and is not recorded as failed"),
            );
        }
        for letter in letters {
            if content(letter) != content(message) {
                findings.add(Rule::Letter, format!("{letter:?} is not {message:?}"));
            }
            if let Err(why) = fits(part, replayed, message, letter) {
                findings.add(Rule::Letter, format!("{offset}: {why}"));
            }
        }
    }
}

type Content = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Option<i64>,
    Vec<(String, Option<Vec<u8>>)>,
);

/// Key, payload, timestamp and own headers.
fn content(of: &Message) -> Content {
    let own = of.headers.iter().filter(|(name, _)| !name.starts_with("hapax-"));
    (
        of.key.clone(),
        of.payload.clone(),
        of.timestamp_ms,
        own.cloned().collect(),
    )
}

/// The reason is one that this message can have.
fn fits(part: &Part<'_>, replayed: &Replayed, message: &Message, letter: &Message) -> Result<(), String> {
    let reason = letter.header("hapax-reason").unwrap_or_default();
    let attempts: Option<u32> = letter.header("hapax-attempts").and_then(|text| text.parse().ok());
    let was = |kind| {
        let mut lines = part.lines.iter();
        lines.any(|line| line.offset == message.offset && line.kind == kind)
    };
    let does_fit = match reason.as_str() {
        "operator" => replayed.was_decided(message.offset, Verdict::DeadLetter),
        "rejected" => was(Kind::Rejected),
        "missing-token" => {
            part.of.terms.class == Class::NonIdempotent && token::text(message).is_none() && !was(Kind::Begin)
        }
        "retries-spent" => attempts.is_some_and(|attempts| attempts >= ATTEMPTS_MAX),
        // Two of them are made from the disk, where a message is held; one that was not has those in place.
        "crashed" => attempts.is_some_and(|attempts| attempts >= ATTEMPTS_MAX - 2),
        _ => false,
    };
    if does_fit {
        Ok(())
    } else {
        Err(format!(
            "reason {reason:?} after {attempts:?} attempts does not fit"
        ))
    }
}

/// What the changelogs record, counted.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    done: u64,
    failed: u64,
}

impl Recorded {
    pub(super) fn add(&mut self, replayed: &Replayed) {
        let all: Vec<&Closed> = replayed.closed.values().flatten().collect();
        let done = all.iter().filter(|closed| closed.end == End::Done).count() as u64;
        self.done += done;
        self.failed += all.len() as u64 - done;
    }
}

/// Books balance, and together they say no more than was recorded: one life's outcome is no other life's.
pub(super) fn accounts(lives: &BTreeMap<u32, Life>, recorded: &Recorded, findings: &mut Findings) {
    let mut sum = Recorded::default();
    for (number, life) in lives {
        for one in life.books.iter().flatten() {
            let Books {
                taken,
                restored,
                in_flight,
                ..
            } = *one;
            if taken + restored != one.accounts() || in_flight > 0 {
                findings.add(Rule::Accounts, format!("life {number}: a remainder in {one:?}"));
            }
            sum.done += one.done;
            sum.failed += one.failed;
        }
    }
    if sum.done > recorded.done || sum.failed > recorded.failed {
        let what =
            format!("the books of the lives that ended in order say {sum:?}, the changelogs {recorded:?}");
        findings.add(Rule::Accounts, what);
    }
}
