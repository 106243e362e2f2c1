//! What handlers may do: when one may run, when again, and how many may be begun at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::record::Stage;
use super::{Case, Class, Findings, Kind, Life, Line, Rule, Store, TokenOf, keys, token, verdicts};

pub(super) fn check(case: &Case<'_>, findings: &mut Findings) {
    for (token, lines) in &case.lines {
        if case.evidence.terms.class == Class::NonIdempotent {
            repeats(lines, findings);
        }
        one_message_runs(case, token, lines, findings);
        attempts(case, lines, findings);
        child_tokens(&token.1, lines, findings);
    }
    if case.evidence.terms.by_key && case.evidence.terms.class.is_guarded() {
        keys_are_in_order(case, findings);
    }
    let nothing = Store::default();
    let mut before = &nothing;
    for life in &case.evidence.lives {
        if life.killed {
            in_doubt(case, before, life, findings);
            begun(case, life, findings);
        }
        before = &life.after.store;
    }
}

/// A non-idempotent effect happens twice, or a handler starts again after an attempt that may have applied something,
/// only where a probe said that it was not applied; or an operator, who knew of that attempt and of no later one: then once.
fn repeats(lines: &[&Line], findings: &mut Findings) {
    let mut applied: Option<&Line> = None;
    let mut in_doubt: Option<&Line> = None;
    let mut asked: Vec<&Line> = Vec::new();
    for line in lines {
        match line.kind {
            Kind::Begin => {
                let permits = |earlier: &Line, asked: &&Line| {
                    let known = earlier.attempt..line.attempt;
                    asked.offset == line.offset && known.contains(&asked.attempt)
                };
                if let Some(earlier) = in_doubt
                    && !asked.iter().any(|asked| permits(earlier, asked))
                {
                    let what = format!("{earlier}\n    and then, without a verdict, {line}");
                    findings.add(Rule::RestartedInDoubt, what);
                }
                in_doubt = Some(line);
                asked.retain(|asked| asked.attempt >= line.attempt);
            }
            Kind::AskedRun => asked.push(line),
            Kind::ToldNo => asked.retain(|asked| asked.child != line.child),
            Kind::End => {
                if let Some(earlier) = applied {
                    let what = format!("{earlier}\n    and again {line}");
                    findings.add(Rule::RepeatedEffect, what);
                }
                applied = Some(line);
            }
            // The attempt itself says so, and has done nothing.
            Kind::Refused => in_doubt = None,
            Kind::ProbeNotDone => {
                in_doubt = None;
                applied = None;
            }
            _ => {}
        }
    }
}

/// Of several messages of a token only one runs, unless those before it were given up and the class runs the next.
fn one_message_runs(case: &Case<'_>, token: &TokenOf, lines: &[&Line], findings: &mut Findings) {
    if case.evidence.terms.cold {
        return;
    }
    let begins = lines.iter().filter(|line| line.kind == Kind::Begin);
    let ran: BTreeSet<i64> = begins.map(|line| line.offset).collect();
    let mut earlier: Option<i64> = None;
    for offset in ran {
        if let Some(earlier) = earlier {
            let given_up = case.letters.contains_key(&(token.0, earlier));
            if !given_up || case.evidence.terms.class != Class::Idempotent {
                let what = format!(
                    "partition {}: offsets {earlier} and {offset} of one token both ran",
                    token.0
                );
                findings.add(Rule::DuplicateRan, what);
            }
        }
        earlier = Some(offset);
    }
}

/// See [`keys`]. What an operator has run has no place in the order from then on.
fn keys_are_in_order(case: &Case<'_>, findings: &mut Findings) {
    let refused = verdicts::refused(&case.evidence.effects);
    let mut by_word = BTreeSet::new();
    let mut of_partition: BTreeMap<i32, Vec<&Line>> = BTreeMap::new();
    for line in &case.evidence.effects {
        of_partition.entry(line.partition).or_default().push(line);
    }
    for (partition, lines) in of_partition {
        let messages = case.keys.range((partition, 0)..(partition + 1, 0));
        let firsts = keys::firsts(messages.map(|((_, offset), token)| (*offset, *token)));
        let starts = lines.into_iter().filter_map(|line| {
            if line.kind == Kind::AskedRun && !refused.contains(line.child.as_str()) {
                by_word.insert(line.place());
            }
            let message = case.input.get(&line.place())?;
            let is_asked =
                line.kind == Kind::Begin && firsts.contains(&line.offset) && !by_word.contains(&line.place());
            let key = message.key.as_deref().filter(|_| is_asked)?;
            let offset = line.offset;
            Some(keys::Start { offset, key, line })
        });
        for what in keys::out_of_order(starts) {
            findings.add(Rule::KeyOrder, what);
        }
    }
}

/// Attempts of one message are counted from 1 and across restarts, as far as the class counts them.
fn attempts(case: &Case<'_>, lines: &[&Line], findings: &mut Findings) {
    let terms = &case.evidence.terms;
    let guarded = terms.class.is_guarded() && !terms.cold;
    // What has no record is counted within one assignment. A life has several where partitions go and come back: refused
    // at its first attempt, a message that waits is left to the next assignment, which counts from 1 again.
    let counts = |last: &Line, line: &Line| guarded || (last.life == line.life && !terms.moves);
    let mut last: Option<&Line> = None;
    for line in lines.iter().filter(|line| line.kind == Kind::Begin) {
        if let Some(last) = last.filter(|last| last.offset == line.offset)
            && counts(last, line)
            && last.attempt >= line.attempt
        {
            findings.add(Rule::Attempts, format!("{last}, and then {line}"));
        }
        if line.attempt == 0 {
            findings.add(Rule::Attempts, format!("{line}"));
        }
        last = Some(line);
    }
}

/// Every attempt at a token gives downstream the same child token, the one of the formula.
fn child_tokens(key: &token::Key, lines: &[&Line], findings: &mut Findings) {
    let expected = token::child(key, "effect");
    let is_handlers = |line: &Line| !line.kind.is_asked() && !line.kind.is_told();
    let handlers = lines.iter().filter(|line| is_handlers(line));
    for line in handlers.filter(|line| line.child != expected) {
        findings.add(Rule::Attempts, format!("{line}: the child token is {expected}"));
    }
}

/// A kill leaves at most what had a slot, or was begun ahead, in doubt.
fn in_doubt(case: &Case<'_>, before: &Store, life: &Life, findings: &mut Findings) {
    let terms = &case.evidence.terms;
    let partitions: BTreeSet<i32> = case.input.keys().map(|(partition, _)| *partition).collect();
    for partition in partitions {
        let begun = life.after.store.open.iter().filter(|(of, open)| {
            let known = before
                .open(&(partition, open.keys[0]), open.offset)
                .is_some_and(|earlier| earlier.attempts == open.attempts);
            *of == partition && open.stage == Stage::Begun && !known
        });
        let offsets: Vec<i64> = begun.map(|(_, open)| open.offset).collect();
        if offsets.len() > terms.slots + terms.ahead {
            let what = format!(
                "life {}, partition {partition}: {} begun, {} slots and {} ahead: {offsets:?}",
                life.number,
                offsets.len(),
                terms.slots,
                terms.ahead
            );
            findings.add(Rule::TooManyInDoubt, what);
        }
    }
}

/// Whatever a guarded handler started with in a life that was killed has left a record.
fn begun(case: &Case<'_>, life: &Life, findings: &mut Findings) {
    if !case.evidence.terms.class.is_guarded() {
        return;
    }
    let started = case
        .evidence
        .effects
        .iter()
        .filter(|line| line.life == life.number && line.kind == Kind::Begin);
    for line in started {
        let token = (line.partition, case.keys[&line.place()]);
        let store = &life.after.store;
        let open = store.open(&token, line.offset).map(|open| open.attempts);
        let closed = store.closed(&token).map(|closed| closed.attempts);
        match open.or(closed) {
            Some(attempts) if attempts >= line.attempt => {}
            found => {
                let what = format!("{line}, and after the kill the store has attempts {found:?}");
                findings.add(Rule::RanWithoutBegin, what);
            }
        }
    }
}
