//! What handlers may do to the world: run when they may, and have their effect once.

use std::collections::{BTreeMap, BTreeSet};

use super::replay::Replayed;
use super::{Findings, Part, Rule};
use crate::chaos::operator::Verdict;
use crate::chaos::world::{Kind, Line};
use crate::checker::Class;
use crate::checker::keys;
use crate::checker::record::End;
use crate::checker::token::{self, Key};

pub(super) fn check(part: &Part<'_>, replayed: &Replayed, findings: &mut Findings) {
    if part.of.terms.is_guarded() {
        guarded(part, replayed, findings);
        if part.of.terms.by_key {
            keys_are_in_order(part, replayed, findings);
        }
    }
    child_tokens(part, findings);
    one_message_runs(part, findings);
    records_are_true(part, replayed, findings);
}

/// What is known of one message's attempts so far.
#[derive(Default)]
struct Known<'a> {
    in_doubt: Option<&'a Line>,
    applied: Option<&'a Line>,
}

/// A guarded handler begins with a record, starts again only after a verdict, and has its effect once.
///
/// A probe without a resource that checks fences can be right and still be wrong about whoever was frozen, or cut off,
/// at that moment (schedule 11): there a second effect of such a life is no violation.
fn guarded(part: &Part<'_>, replayed: &Replayed, findings: &mut Findings) {
    let mut known: BTreeMap<i64, Known<'_>> = BTreeMap::new();
    let mut highest = 0;
    for (line, taken) in part.lines.iter().zip(&part.taken) {
        let of = known.entry(line.offset).or_default();
        // Whoever stood still in a handler goes on where it was.
        let is_late = line.fence < highest && part.is_disturbed(line);
        highest = highest.max(line.fence);
        match line.kind {
            Kind::Begin => {
                let was_ordered =
                    |earlier: &Line| replayed.was_ordered(line.offset, earlier.attempt, line.attempt);
                if let Some(earlier) = of.in_doubt.filter(|earlier| !is_late && !was_ordered(earlier)) {
                    let what = format!("{earlier}\n    and then, without a verdict, {line}");
                    findings.add(Rule::RestartedInDoubt, what);
                }
                of.in_doubt = Some(line);
                let begun = replayed.begun.get(&line.offset);
                if begun.is_none_or(|attempts| *attempts < line.attempt) {
                    let what = format!("{line}, and the changelog has begun {begun:?}");
                    findings.add(Rule::RanWithoutBegin, what);
                }
            }
            Kind::Post if *taken => {
                let may_repeat = |earlier: &Line| {
                    part.of.terms.probe
                        && !part.of.terms.fenced
                        && (part.is_disturbed(line) || part.is_disturbed(earlier))
                };
                // The operator has taken it upon themselves.
                let was_ordered =
                    |earlier: &Line| replayed.was_ordered(line.offset, earlier.attempt, line.attempt);
                let is_repeated = |earlier: &&Line| !may_repeat(earlier) && !was_ordered(earlier);
                if let Some(earlier) = of.applied.filter(is_repeated) {
                    let what = format!("{earlier}\n    and again {line}");
                    findings.add(Rule::RepeatedEffect, what);
                }
                of.applied = Some(line);
            }
            // Nobody can tell: a class that may be repeated is, for a while, with the same child tokens.
            Kind::ProbeUnknown if part.of.terms.class == Class::PotentiallyIdempotent => {
                *of = Known::default();
            }
            // The attempt itself says that it has done nothing; or the resource does.
            Kind::Refused | Kind::Stale | Kind::ProbeNotDone => of.in_doubt = None,
            _ => {}
        }
    }
}

/// See [`keys`]. Not asked of whoever stood still at the start of a handler while its partition went on elsewhere,
/// nor of what was in doubt and an operator lets run.
fn keys_are_in_order(part: &Part<'_>, replayed: &Replayed, findings: &mut Findings) {
    let firsts = keys::firsts(part.names.iter().map(|(offset, [token, _])| (*offset, *token)));
    let mut highest = 0;
    let starts = part.lines.iter().filter_map(|line| {
        let is_late = line.fence < highest && part.is_disturbed(line);
        highest = highest.max(line.fence);
        let is_out_of_turn = is_late || replayed.runs_out_of_turn(line.offset, line.attempt);
        let is_asked = line.kind == Kind::Begin && !is_out_of_turn && firsts.contains(&line.offset);
        let key = part
            .messages
            .get(&line.offset)?
            .key
            .as_deref()
            .filter(|_| is_asked)?;
        let offset = line.offset;
        Some(keys::Start { offset, key, line })
    });
    for what in keys::out_of_order(starts) {
        findings.add(Rule::KeyOrder, what);
    }
}

/// Every attempt at a token gives downstream the same child token, the one of the formula.
fn child_tokens(part: &Part<'_>, findings: &mut Findings) {
    for line in part.lines {
        let names = part.names.get(&line.offset);
        let expected = names.map(|[token, _]| token::child(token, "effect"));
        if expected.as_ref() != Some(&line.child) {
            findings.add(
                Rule::ChildToken,
                format!("{line}: the child token is {expected:?}"),
            );
        }
    }
}

/// Of several messages of a token only one runs in a window, unless those before it were given up and the class runs
/// the next.
///
/// Or the later one ran first, under an earlier fence: the earlier one was a duplicate then, of an outcome that had left
/// its window and not yet the commit point, and nothing of either was recorded. A class that is begun knows that the later
/// one has started; any other runs the earlier one.
fn one_message_runs(part: &Part<'_>, findings: &mut Findings) {
    let is_begun = part.of.terms.class != Class::Idempotent;
    // The fences of each one's first and last attempt.
    let mut ran: BTreeMap<Key, BTreeMap<i64, (u64, u64)>> = BTreeMap::new();
    for line in part.lines.iter().filter(|line| line.kind == Kind::Begin) {
        if let Some([token, _]) = part.names.get(&line.offset) {
            let fences = ran.entry(*token).or_default().entry(line.offset);
            let (first, last) = fences.or_insert((line.fence, line.fence));
            (*first, *last) = ((*first).min(line.fence), (*last).max(line.fence));
        }
    }
    for fences in ran.into_values() {
        let offsets: Vec<i64> = fences.keys().copied().collect();
        for pair in offsets.windows(2) {
            let given_up = part.letters.contains_key(&pair[0]);
            let in_turn = fences[&pair[1]].1 >= fences[&pair[0]].0;
            // First seen then, or later.
            if (is_begun || (in_turn && !given_up)) && part.is_within_window(part.times[&pair[0]], pair[1]) {
                let what = format!("{} and {} of one token both ran", pair[0], pair[1]);
                findings.add(Rule::DuplicateRan, what);
            }
        }
    }
}

/// What is recorded as done was done; what is recorded as failed has its letter.
fn records_are_true(part: &Part<'_>, replayed: &Replayed, findings: &mut Findings) {
    let mut was: BTreeMap<i64, Vec<Kind>> = BTreeMap::new();
    // What a probe is asked about is the token's effect, which a message before a window ago may have had.
    let mut effects = BTreeSet::new();
    for (line, taken) in part.lines.iter().zip(&part.taken) {
        if line.kind != Kind::Post || *taken {
            was.entry(line.offset).or_default().push(line.kind);
        }
        if *taken {
            effects.insert(&line.child);
        }
    }
    for (key, history) in &replayed.closed {
        for closed in history {
            let was = was.get(&closed.offset).map_or(&[][..], Vec::as_slice);
            let is_name = part
                .names
                .get(&closed.offset)
                .is_some_and(|names| names.contains(key));
            let what = match closed.end {
                _ if !is_name => "a record of no message",
                // An operator knows better, or says so.
                End::Done if replayed.was_decided(closed.offset, Verdict::Done) => continue,
                End::Done if !effects.contains(&token::child(key, "effect")) => "done without an effect",
                End::Done if was.contains(&Kind::Ok) && !was.contains(&Kind::Post) => {
                    "done by a handler without an effect"
                }
                End::Done if !was.contains(&Kind::Ok) && !was.contains(&Kind::ProbeDone) => {
                    "done, and nobody said that it was"
                }
                End::Failed(_) if !part.letters.contains_key(&closed.offset) => "failed without a letter",
                End::Invalidated | End::Forgotten => "decided by an operator, and there was none",
                End::Done | End::Failed(_) => continue,
            };
            findings.add(Rule::UntrueRecord, format!("{closed:?}: {what}"));
        }
    }
}
