//! What operators decide while the consumer lives and dies.
//!
//! What they were told is durable survives every kill: what is done, or given up, never runs again and has that outcome; what
//! is to run does. The audit has it once. What they were not told, because a kill came first, has happened whole or not at all:
//! the audit has it once or not. (That a verdict permits one run is in `rules.rs`: it is what makes a second start one that may be.)

use std::collections::{BTreeMap, BTreeSet};

use super::record::{BY_OPERATOR, End};
use super::{Case, Findings, Kind, Life, Line, Rule, Store};

/// What was asked, and what was answered to it, each with its place in the file.
struct Act<'a> {
    asked_at: usize,
    asked: &'a Line,
    answer: Option<(usize, &'a Line)>,
}

impl Act<'_> {
    fn is_told(&self) -> bool {
        self.answer.is_some_and(|(_, line)| line.kind != Kind::ToldNo)
    }

    /// As the audit names it.
    fn verb(&self) -> &'static str {
        match self.asked.kind {
            Kind::AskedDone => "resolve --done",
            Kind::AskedRun => "resolve --run",
            _ => "resolve --dead-letter",
        }
    }
}

pub(super) fn check(case: &Case<'_>, findings: &mut Findings) {
    let acts = acts(case, findings);
    for life in &case.evidence.lives {
        audited(&acts, life, findings);
    }
    let Some(last) = case.evidence.lives.last() else {
        return;
    };
    for act in acts.values().filter(|act| act.is_told()) {
        carried_out(case, &acts, act, &last.after.store, findings);
    }
}

/// By their names, which are in their lines where others have the child token.
fn acts<'a>(case: &Case<'a>, findings: &mut Findings) -> BTreeMap<&'a str, Act<'a>> {
    let mut acts: BTreeMap<&str, Act<'_>> = BTreeMap::new();
    for (at, line) in case.evidence.effects.iter().enumerate() {
        if line.kind.is_asked() {
            let act = Act {
                asked_at: at,
                asked: line,
                answer: None,
            };
            acts.insert(&line.child, act);
        } else if line.kind.is_told() {
            match acts.get_mut(line.child.as_str()) {
                Some(act) => act.answer = Some((at, line)),
                None => findings.add(Rule::Verdict, format!("an answer to nobody: {line}")),
            }
        }
    }
    acts
}

/// The names of acts of which nothing was done.
pub(super) fn refused(effects: &[Line]) -> BTreeSet<&str> {
    let refused = effects.iter().filter(|line| line.kind == Kind::ToldNo);
    refused.map(|line| line.child.as_str()).collect()
}

/// After each life the audit has what was told by then, once, and nothing that nobody asked for.
fn audited(acts: &BTreeMap<&str, Act<'_>>, life: &Life, findings: &mut Findings) {
    let audit = &life.after.store.audit;
    let says = |what: &str, line: &Line| format!("after life {}: {line} is {what} in the audit", life.number);
    for act in acts.values().filter(|act| act.asked.life <= life.number) {
        let name = &act.asked.child;
        let entries: Vec<_> = audit.iter().filter(|entry| entry.reason == *name).collect();
        let is_refused = act.answer.is_some_and(|(_, line)| line.kind == Kind::ToldNo);
        match entries[..] {
            [] if act.is_told() => findings.add(Rule::Audit, says("not", act.asked)),
            [_, _, ..] => findings.add(Rule::Audit, says("more than once", act.asked)),
            [_] if is_refused => findings.add(Rule::Audit, says("refused, and", act.asked)),
            [entry] if (entry.partition, entry.offset) != act.asked.place() || entry.act != act.verb() => {
                findings.add(Rule::Audit, says(&format!("{entry:?}"), act.asked));
            }
            _ => {}
        }
    }
    for entry in audit
        .iter()
        .filter(|entry| !acts.contains_key(entry.reason.as_str()))
    {
        let what = format!("after life {}: nobody asked for {entry:?}", life.number);
        findings.add(Rule::Audit, what);
    }
}

/// What came of a verdict that was told.
fn carried_out(
    case: &Case<'_>,
    acts: &BTreeMap<&str, Act<'_>>,
    act: &Act<'_>,
    last: &Store,
    findings: &mut Findings,
) {
    let (asked, place) = (act.asked, act.asked.place());
    let token = (place.0, case.keys[&place]);
    let begins_after = |at: usize| {
        let after = case.evidence.effects.iter().skip(at);
        let is_one = |line: &&Line| line.kind == Kind::Begin && line.partition == place.0;
        after
            .filter(is_one)
            .find(|line| case.keys.get(&line.place()) == Some(&token.1))
    };
    if last.is_held(&token, place.1) {
        findings.add(
            Rule::Verdict,
            format!("{asked} was told, and it is held at the end"),
        );
    }
    let end = last.closed(&token).filter(|closed| closed.offset == place.1);
    let end = end.map(|closed| closed.end);
    let letters = case.letters.get(&place).map_or(&[][..], Vec::as_slice);
    match asked.kind {
        Kind::AskedRun => {
            let is_decided_again = acts
                .values()
                .any(|other| other.asked.place() == place && other.asked_at > act.asked_at);
            if begins_after(act.asked_at).is_none() && letters.is_empty() && !is_decided_again {
                findings.add(Rule::Verdict, format!("{asked} was told, and it did not run"));
            }
            return;
        }
        Kind::AskedDone if end != Some(End::Done) => {
            findings.add(Rule::Verdict, format!("{asked} was told, and it is {end:?}"));
        }
        Kind::AskedLetter => {
            let is_operators =
                |letter: &&super::Message| letter.header("hapax-reason").as_deref() == Some("operator");
            if end != Some(End::Failed(BY_OPERATOR))
                || letters.is_empty()
                || !letters.iter().all(is_operators)
            {
                let what = format!("{asked} was told, and it is {end:?} with {letters:?}");
                findings.add(Rule::Verdict, what);
            }
        }
        _ => {}
    }
    if let Some(line) = act.answer.and_then(|(told_at, _)| begins_after(told_at)) {
        findings.add(Rule::Verdict, format!("{asked} was told, and then {line}"));
    }
}
