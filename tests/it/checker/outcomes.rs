//! What is recorded: every message, once, truly, and before its offset is committed.

use std::collections::BTreeMap;

use super::record::{Closed, End, Open, Stage};
use super::{Case, Class, Findings, Kind, Life, Message, Moment, Rule, Store, TokenOf};

pub(super) fn check(case: &Case<'_>, findings: &mut Findings) {
    let Some(last) = case.evidence.lives.last() else {
        return findings.add(Rule::Lost, "nothing has lived");
    };
    nothing_is_lost(case, &last.after, findings);
    records_are_true(case, &last.after, findings);
    let mut before: Option<&Life> = None;
    for life in &case.evidence.lives {
        one_outcome(case, life, findings);
        recorded_once(case, before.map(|life| &life.after.store), life, findings);
        if let Some(before) = before {
            nothing_changes(case, before, life, findings);
        }
        committed(case, life, findings);
        before = Some(life);
    }
}

/// What a store says of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Its own outcome, or that of a later message of its token.
    Outcome,
    /// The outcome of an earlier message of its token.
    Earlier,
    Held,
    Begun,
    Settling,
    Nothing,
}

pub(super) fn found(case: &Case<'_>, store: &Store, message: &Message) -> Found {
    let offset = message.offset;
    let names = case.names(message);
    let open = names.iter().find_map(|name| store.open(name, offset));
    match open.map(|open| open.stage) {
        _ if open.is_some_and(Open::is_kept) => return Found::Held,
        Some(Stage::Held) => return Found::Held,
        Some(Stage::Begun) => return Found::Begun,
        Some(Stage::Settling) => return Found::Settling,
        None => {}
    }
    let closed = names.iter().filter_map(|name| store.closed(name));
    match closed.max_by_key(|closed| (closed.offset == offset, closed.offset)) {
        Some(closed) if closed.offset == offset => Found::Outcome,
        // The next message of a token runs only after this one was given up.
        Some(closed) if closed.offset > offset && case.letters.contains_key(&message.place()) => {
            Found::Outcome
        }
        Some(closed) if closed.offset < offset && !may_follow(case, closed) => Found::Earlier,
        _ => Found::Nothing,
    }
}

/// Whether a commit may pass it.
fn is_recorded(found: Found) -> bool {
    matches!(found, Found::Outcome | Found::Earlier | Found::Held)
}

/// Whether a message may have been held and run from the disk. Then its letter is on its way below the commit point.
fn was_held(case: &Case<'_>, message: &Message) -> bool {
    let terms = &case.evidence.terms;
    let names = case.names(message);
    let is_held = |life: &Life| {
        let store = &life.after.store;
        names.iter().any(|name| store.is_held(name, message.offset))
    };
    // Behind another of its key.
    (terms.by_key && message.key.is_some())
        || case.evidence.lives.iter().any(is_held)
        || case.lines_of(&names[0]).iter().any(|line| {
            let is_spent = line.kind == Kind::Begin && line.attempt >= u64::from(terms.in_place);
            line.place() == message.place() && (is_spent || line.kind.is_asked())
        })
}

/// At the end every message has an outcome or is held, and every token has left something in the world.
fn nothing_is_lost(case: &Case<'_>, last: &Moment, findings: &mut Findings) {
    for (message, token) in case.messages() {
        let place = message.place();
        let is_there = case
            .stores(last)
            .any(|store| is_recorded(found(case, store, message)));
        if !is_there {
            let found = found(case, &last.store, message);
            findings.add(
                Rule::Lost,
                format!("{place:?} is not recorded at the end: {found:?}"),
            );
        }
        let has_effect = case.lines_of(&token).iter().any(|line| line.kind == Kind::End);
        let first = case
            .messages()
            .find(|(_, other)| *other == token)
            .map_or(place, |(first, _)| first.place());
        let has_letter = case.letters.contains_key(&first);
        let is_held = case.stores(last).any(|store| store.is_held(&token, first.1));
        if first == place && !has_effect && !has_letter && !is_held {
            findings.add(
                Rule::Lost,
                format!("{place:?} has no effect, no letter, and is not held"),
            );
        }
    }
}

/// What is recorded as done was done; what is recorded as failed has its letter; what is held has its bytes.
fn records_are_true(case: &Case<'_>, last: &Moment, findings: &mut Findings) {
    for store in case.stores(last) {
        for (token, closed) in &store.closed {
            for closed in closed {
                let place = (token.0, closed.offset);
                let lines = case.lines_of(token);
                let was = |kind| lines.iter().any(|l| l.place() == place && l.kind == kind);
                let what = match closed.end {
                    _ if !case.is_name(place, token) => "a record of no message",
                    End::Done if !was(Kind::End) => "done without an effect",
                    End::Done if !was(Kind::Ok) && !was(Kind::ProbeDone) && !was(Kind::AskedDone) => {
                        "done, and nobody said that it was"
                    }
                    End::Failed(_) if !case.letters.contains_key(&place) => "failed without a letter",
                    // Where the kill came before that was recorded, nobody knew.
                    End::Failed(_) if case.has_told(token, place) => "failed, and its handler succeeded",
                    End::Invalidated | End::Forgotten => "decided by an operator, and there was none",
                    End::Done | End::Failed(_) => continue,
                };
                findings.add(Rule::UntrueRecord, format!("{place:?} {closed:?}: {what}"));
            }
        }
        for (partition, open) in store.open.iter().filter(|(_, open)| open.is_kept()) {
            let message = case.input.get(&(*partition, open.offset));
            if message.is_none_or(|message| message.payload != open.payload) {
                let what = format!("held at {partition}/{} with other bytes", open.offset);
                findings.add(Rule::UntrueRecord, what);
            }
        }
    }
}

/// Whether the class runs the next message of a token after this outcome.
fn may_follow(case: &Case<'_>, closed: &Closed) -> bool {
    case.evidence.terms.class == Class::Idempotent && matches!(closed.end, End::Failed(_))
}

/// One token has one record, and none that is open and closed for one message.
fn one_outcome(case: &Case<'_>, life: &Life, findings: &mut Findings) {
    let store = &life.after.store;
    for (token, records) in &store.closed {
        let mut records: Vec<&Closed> = records.iter().collect();
        records.sort_by_key(|closed| closed.offset);
        for pair in records.windows(2) {
            if pair[0].offset == pair[1].offset || !may_follow(case, pair[0]) {
                let what = format!(
                    "life {}, partition {}: {:?} and {:?}",
                    life.number, token.0, pair[0], pair[1]
                );
                findings.add(Rule::TwoOutcomes, what);
            }
        }
        for closed in records {
            if let Some(open) = store.open(token, closed.offset) {
                let what = format!(
                    "life {}, partition {}: {open:?} and {closed:?}",
                    life.number, token.0
                );
                findings.add(Rule::TwoOutcomes, what);
            }
        }
    }
}

/// Nothing is recorded a second time, not even the same: what the log holds, and was replaced, shows too.
fn recorded_once(case: &Case<'_>, before: Option<&Store>, life: &Life, findings: &mut Findings) {
    let mut known: BTreeMap<TokenOf, Closed> = BTreeMap::new();
    for (token, closed) in &life.recorded {
        let earlier = known.get(token).or_else(|| before?.closed(token));
        if let Some(earlier) = earlier.filter(|earlier| !may_follow(case, earlier)) {
            let what = format!(
                "life {}, partition {}: recorded {earlier:?}, and then {closed:?}",
                life.number, token.0
            );
            findings.add(Rule::TwoOutcomes, what);
        }
        known.insert(*token, *closed);
    }
}

/// An outcome that was recorded in one life stays in every later one.
fn nothing_changes(case: &Case<'_>, before: &Life, life: &Life, findings: &mut Findings) {
    for token in before.after.store.closed.keys() {
        let (Some(earlier), now) = (before.after.store.closed(token), life.after.store.closed(token)) else {
            continue;
        };
        let is_same = now.is_some_and(|now| {
            (now.end, now.offset) == (earlier.end, earlier.offset)
                || (may_follow(case, earlier) && now.offset > earlier.offset)
        });
        if !is_same {
            let what = format!(
                "partition {}: {earlier:?} after life {}, {now:?} after life {}",
                token.0, before.number, life.number
            );
            findings.add(Rule::TwoOutcomes, what);
        }
    }
}

/// Below the group's offset everything is recorded, and the commit says by whom and until when.
fn committed(case: &Case<'_>, life: &Life, findings: &mut Findings) {
    let moment = &life.after;
    for (partition, (committed, metadata)) in &moment.committed {
        let below = |message: &Message| message.partition == *partition && message.offset < *committed;
        for (message, _) in case.messages().filter(|(message, _)| below(message)) {
            let states: Vec<Found> = case
                .stores(moment)
                .map(|store| found(case, store, message))
                .collect();
            let may_pass =
                |state: &Found| is_recorded(*state) || (*state == Found::Settling && was_held(case, message));
            if !states.iter().any(may_pass) {
                let what = format!(
                    "life {}: committed {partition}/{committed}, and {} is {:?}",
                    life.number,
                    message.offset,
                    states.first()
                );
                findings.add(Rule::CommitPastUnrecorded, what);
            }
        }
        let says = |what: &str| {
            format!(
                "life {}, {partition}/{committed}: {metadata:?} {what}",
                life.number
            )
        };
        let words: Vec<&str> = metadata.split(' ').collect();
        let ["hapax1", id, time] = words[..] else {
            findings.add(Rule::Mark, says("is not a mark"));
            continue;
        };
        if !case.stores(moment).any(|store| store.id == id) {
            findings.add(Rule::Mark, says("names no store that is here"));
        }
        let stamps = case.input.values().filter(|m| below(m));
        let latest = stamps.filter_map(|message| message.timestamp_ms).max();
        if !case.evidence.terms.cold && time != latest.map_or("-".to_owned(), |ms| ms.to_string()) {
            findings.add(
                Rule::Mark,
                says(&format!("and the latest stamp below it is {latest:?}")),
            );
        }
        let known = moment.store.positions.get(partition);
        if moment.store.id == id && known.is_none_or(|known| known < committed) {
            findings.add(Rule::Mark, says(&format!("and the store knows only {known:?}")));
        }
    }
}
