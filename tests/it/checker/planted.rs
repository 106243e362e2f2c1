//! The checker is shown to fail: what a real run has left is judged sound, then one fault at a time is planted in it, and
//! each is found under its own name.

use crate::crash::{Run, Until, VARIANTS};
use crate::kafka;

use super::record::{Closed, End, Open, Stage};
use super::{Evidence, Kind, Line, Message, Rule, Store, check, store, token};

type Plant = fn(&mut Evidence);

/// The first life, which was killed.
fn killed(evidence: &mut Evidence) -> &mut Store {
    assert!(evidence.lives[0].killed);
    &mut evidence.lives[0].after.store
}

fn last(evidence: &mut Evidence) -> &mut Store {
    &mut evidence.lives.last_mut().unwrap().after.store
}

/// The first line of that kind for a message whose handler succeeded at once.
fn line(evidence: &Evidence, kind: Kind) -> usize {
    let count = |of: &Line| {
        let same = evidence.effects.iter().filter(|line| line.place() == of.place());
        (
            same.clone().count(),
            same.filter(|line| line.kind == Kind::Ok).count(),
        )
    };
    let at = evidence
        .effects
        .iter()
        .position(|line| line.kind == kind && count(line) == (3, 1));
    at.unwrap_or_else(|| panic!("no line {kind:?}"))
}

/// The first line of an attempt that ended without a word about its effect.
fn broken(evidence: &Evidence) -> &Line {
    let found = evidence.effects.iter().find(|line| line.kind == Kind::Broken);
    found.unwrap()
}

/// A message that came after an earlier one of its token that succeeded.
fn duplicate(evidence: &Evidence) -> Message {
    let ran = |m: &Message| {
        evidence
            .effects
            .iter()
            .any(|line| line.kind == Kind::Ok && line.place() == m.place())
    };
    let same = |a: &Message, b: &Message| {
        a.partition == b.partition && token::text(a).is_some() && token::text(a) == token::text(b)
    };
    let found = evidence.input.iter().find(|later| {
        evidence
            .input
            .iter()
            .any(|first| first.offset < later.offset && same(first, later) && ran(first))
    });
    found.unwrap().clone()
}

/// How two messages of one key were begun, each the first of its token.
fn of_one_key(evidence: &Evidence) -> (Line, Line) {
    let begins: Vec<&Line> = evidence
        .effects
        .iter()
        .filter(|line| line.kind == Kind::Begin)
        .collect();
    let message = |line: &Line| {
        evidence
            .input
            .iter()
            .find(|message| message.place() == line.place())
    };
    let is_one_key = |(earlier, later): &(&Line, &Line)| {
        let (Some(earlier), Some(later)) = (message(earlier), message(later)) else {
            return false;
        };
        earlier.partition == later.partition
            && earlier.offset < later.offset
            && earlier.key.is_some()
            && earlier.key == later.key
    };
    let mut pairs = begins.iter().zip(begins.iter().skip(1)).map(|(a, b)| (*a, *b));
    let (earlier, later) = pairs.find(is_one_key).unwrap();
    (earlier.clone(), later.clone())
}

fn first_done(store: &Store) -> ((i32, token::Key), Closed) {
    let found = store
        .closed
        .iter()
        .find(|(_, records)| records[0].end == End::Done);
    let (token, records) = found.unwrap();
    (*token, records[0])
}

fn set_header(message: &mut Message, name: &str, text: &str) {
    let header = message.headers.iter_mut().find(|(of, _)| of == name);
    header.unwrap().1 = Some(text.as_bytes().to_vec());
}

const FAULTS: &[(&str, Rule, Plant)] = &[
    ("an effect is dropped", Rule::Lost, |evidence| {
        evidence.effects.remove(line(evidence, Kind::End));
    }),
    ("an effect happens twice", Rule::RepeatedEffect, |evidence| {
        let at = line(evidence, Kind::End);
        evidence.effects.insert(at, evidence.effects[at].clone());
    }),
    (
        "a handler starts again in doubt",
        Rule::RestartedInDoubt,
        |evidence| {
            let mut again = broken(evidence).clone();
            again.kind = Kind::Begin;
            again.attempt += 1;
            evidence.effects.push(again);
        },
    ),
    (
        "a message is begun after a later one of its key",
        Rule::KeyOrder,
        |evidence| {
            let (earlier, later) = of_one_key(evidence);
            evidence.effects.extend([later, earlier]);
        },
    ),
    ("a duplicate runs", Rule::DuplicateRan, |evidence| {
        let duplicate = duplicate(evidence);
        let mut ran = evidence.effects[line(evidence, Kind::Begin)].clone();
        (ran.partition, ran.offset) = duplicate.place();
        evidence.effects.push(ran);
    }),
    ("a begin leaves no record", Rule::RanWithoutBegin, |evidence| {
        let started: Vec<_> = evidence
            .effects
            .iter()
            .filter(|line| line.life == 1)
            .map(super::Line::place)
            .collect();
        let store = killed(evidence);
        let at = store
            .open
            .iter()
            .position(|(partition, open)| started.contains(&(*partition, open.offset)));
        store.open.remove(at.unwrap());
    }),
    (
        "more is begun than there are slots",
        Rule::TooManyInDoubt,
        |evidence| {
            let ahead = evidence.terms.slots + evidence.terms.ahead;
            let more = (0..=ahead).map(|n| Open {
                stage: Stage::Begun,
                keys: vec![[n as u8; 16]],
                offset: n as i64,
                attempts: 1,
                payload: None,
            });
            let more: Vec<_> = more.map(|open| (0, open)).collect();
            killed(evidence).open.extend(more);
        },
    ),
    (
        "an attempt has the number of another",
        Rule::Attempts,
        |evidence| {
            let at = line(evidence, Kind::Begin);
            evidence.effects.insert(at, evidence.effects[at].clone());
        },
    ),
    ("a child token is another message's", Rule::Attempts, |evidence| {
        let at = line(evidence, Kind::End);
        evidence.effects[at].child = "0".repeat(32);
    }),
    ("a token has two outcomes", Rule::TwoOutcomes, |evidence| {
        let store = last(evidence);
        let (token, mut closed) = first_done(store);
        closed.offset += 1;
        store.closed.get_mut(&token).unwrap().push(closed);
    }),
    ("an outcome was replaced", Rule::TwoOutcomes, |evidence| {
        let recorded = &mut evidence.lives[0].recorded;
        recorded.push(*recorded.first().unwrap());
    }),
    (
        "an outcome changes from one life to the next",
        Rule::TwoOutcomes,
        |evidence| {
            let (token, _) = first_done(killed(evidence));
            last(evidence).closed.get_mut(&token).unwrap()[0].end = End::Failed(1);
        },
    ),
    ("a message is open and closed", Rule::TwoOutcomes, |evidence| {
        let store = last(evidence);
        let (token, closed) = first_done(store);
        let open = Open {
            stage: Stage::Settling,
            keys: vec![token.1],
            offset: closed.offset,
            attempts: 1,
            payload: None,
        };
        store.open.push((token.0, open));
    }),
    (
        "what failed is recorded as done",
        Rule::UntrueRecord,
        |evidence| {
            for life in &mut evidence.lives {
                let records = life.after.store.closed.values_mut().flatten();
                records
                    .filter(|closed| closed.end == End::Failed(1))
                    .for_each(|closed| closed.end = End::Done);
            }
        },
    ),
    ("what is held has other bytes", Rule::UntrueRecord, |evidence| {
        let held = last(evidence)
            .open
            .iter_mut()
            .find(|(_, open)| open.stage == Stage::Held);
        held.unwrap().1.payload = Some(b"other".to_vec());
    }),
    (
        "an offset is committed too early",
        Rule::CommitPastUnrecorded,
        |evidence| {
            let partition = evidence.input.last().unwrap().partition;
            let end = evidence.input.last().unwrap().offset + 1;
            let committed = &mut evidence.lives[0].after.committed;
            committed.entry(partition).or_default().0 = end;
        },
    ),
    ("a commit names another store", Rule::Mark, |evidence| {
        let committed = &mut evidence.lives.last_mut().unwrap().after.committed;
        let (_, (_, metadata)) = committed.iter_mut().next().unwrap();
        let words: Vec<&str> = metadata.split(' ').collect();
        *metadata = format!("{} {} {}", words[0], "0".repeat(32), words[2]);
    }),
    ("a commit states another time", Rule::Mark, |evidence| {
        let committed = &mut evidence.lives.last_mut().unwrap().after.committed;
        let (_, (_, metadata)) = committed.iter_mut().next().unwrap();
        metadata.push('1');
    }),
    ("a store does not know its own commit", Rule::Mark, |evidence| {
        let positions = &mut last(evidence).positions;
        positions.values_mut().for_each(|position| *position -= 1);
    }),
    ("a dead letter is missing", Rule::Lost, |evidence| {
        // With its repeat, where the kill came between a letter and its record.
        let id = evidence.letters[0].header("hapax-id");
        evidence.letters.retain(|letter| letter.header("hapax-id") != id);
    }),
    (
        "a dead letter comes more often than kills explain",
        Rule::Letter,
        |evidence| {
            let letter = evidence.letters[0].clone();
            evidence.letters.extend([letter.clone(), letter]);
        },
    ),
    ("a dead letter has other bytes", Rule::Letter, |evidence| {
        evidence.letters[0].payload = Some(b"other".to_vec());
    }),
    ("a dead letter has lost a header", Rule::Letter, |evidence| {
        let letter = evidence
            .letters
            .iter_mut()
            .find(|l| l.headers[0].0 == "idempotency-key");
        letter.unwrap().headers.remove(0);
    }),
    (
        "a dead letter states a reason that does not fit",
        Rule::Letter,
        |evidence| {
            set_header(&mut evidence.letters[0], "hapax-reason", "crashed");
        },
    ),
    ("a dead letter has an id of its own", Rule::Letter, |evidence| {
        set_header(&mut evidence.letters[0], "hapax-id", &"0".repeat(32));
    }),
    ("the books count one message twice", Rule::Accounts, |evidence| {
        evidence.lives.last_mut().unwrap().books.as_mut().unwrap()[0].done += 1;
    }),
    (
        "the books count one message in the wrong account",
        Rule::Accounts,
        |evidence| {
            let books = evidence.lives.last_mut().unwrap().books.as_mut().unwrap();
            let books = books.iter_mut().find(|one| one.done > 0).unwrap();
            books.done -= 1;
            books.duplicate += 1;
        },
    ),
    ("a message is in no account", Rule::Accounts, |evidence| {
        // One that was taken, and not found held.
        let found = &evidence.lives[0].after.store.open;
        let is_taken = |line: &Line| !found.iter().any(|(of, open)| (*of, open.offset) == line.place());
        let mut lines = evidence.effects.iter();
        let ok = lines.rposition(|line| line.kind == Kind::Ok && line.life == 2 && is_taken(line));
        evidence.effects.remove(ok.unwrap());
    }),
];

/// The first line of that kind, and where it is.
fn first(evidence: &Evidence, kind: Kind) -> (usize, Line) {
    let at = evidence.effects.iter().position(|line| line.kind == kind);
    let at = at.unwrap_or_else(|| panic!("no line {kind:?}"));
    (at, evidence.effects[at].clone())
}

/// The first verdict to run that was told of a message which had begun before it, and then succeeded; and no other was given
/// about it.
fn first_run(evidence: &Evidence) -> (usize, Line) {
    let refused = super::verdicts::refused(&evidence.effects);
    let is_plain = |told: &Line| {
        let own = || {
            evidence
                .effects
                .iter()
                .filter(|line| line.place() == told.place())
        };
        let has = |kind, attempt| own().any(|line| line.kind == kind && line.attempt == attempt);
        let is_given = |line: &&Line| line.kind.is_asked() && !refused.contains(line.child.as_str());
        own().filter(is_given).count() == 1
            && has(Kind::Begin, told.attempt)
            && has(Kind::Ok, told.attempt + 1)
    };
    let mut lines = evidence.effects.iter().enumerate();
    let found = lines.find(|(_, line)| line.kind == Kind::ToldRun && is_plain(line));
    let (at, told) = found.unwrap();
    (at, told.clone())
}

/// As if the message of that line had been begun at the end.
fn begin_again(evidence: &mut Evidence, line: &Line) {
    let mut again = line.clone();
    again.kind = Kind::Begin;
    again.attempt += 1;
    evidence.effects.push(again);
}

/// What is planted where operators were at work.
const FAULTS_OF_VERDICTS: &[(&str, Rule, Plant)] = &[
    ("what an operator called done runs", Rule::Verdict, |evidence| {
        let (_, told) = first(evidence, Kind::ToldDone);
        begin_again(evidence, &told);
    }),
    ("what an operator gave up runs", Rule::Verdict, |evidence| {
        let (_, told) = first(evidence, Kind::ToldLetter);
        begin_again(evidence, &told);
    }),
    (
        "a verdict permits a second run",
        Rule::RestartedInDoubt,
        |evidence| {
            let (_, told) = first_run(evidence);
            let runs = |line: &&Line| line.kind == Kind::Begin && line.place() == told.place();
            let last = evidence.effects.iter().rfind(runs).unwrap().clone();
            begin_again(evidence, &last);
        },
    ),
    (
        "a run that was refused comes",
        Rule::RestartedInDoubt,
        |evidence| {
            let (at, told) = first_run(evidence);
            evidence.effects[at].kind = Kind::ToldNo;
            // It comes after the answer.
            let began = evidence.effects.iter().position(|line| {
                line.kind == Kind::Begin && line.place() == told.place() && line.attempt > told.attempt
            });
            let began = evidence.effects.remove(began.unwrap());
            evidence.effects.push(began);
        },
    ),
    ("a verdict to run comes to nothing", Rule::Verdict, |evidence| {
        let (_, told) = first_run(evidence);
        let runs = |line: &Line| line.kind == Kind::Begin && line.place() == told.place();
        evidence
            .effects
            .retain(|line| !runs(line) || line.attempt <= told.attempt);
        evidence
            .letters
            .retain(|letter| letter.origin().unwrap().1 != told.place());
        let asked = |line: &Line| line.place() == told.place() && line.child != told.child;
        evidence
            .effects
            .retain(|line| !(asked(line) && line.kind.is_asked()));
    }),
    ("what an operator called done failed", Rule::Verdict, |evidence| {
        let (_, told) = first(evidence, Kind::ToldDone);
        for life in &mut evidence.lives {
            let records = life.after.store.closed.iter_mut();
            records
                .filter(|((partition, _), _)| *partition == told.partition)
                .flat_map(|(_, records)| records)
                .filter(|closed| closed.offset == told.offset)
                .for_each(|closed| closed.end = End::Failed(1));
        }
    }),
    ("an operator's letter is missing", Rule::Verdict, |evidence| {
        let (_, told) = first(evidence, Kind::ToldLetter);
        evidence
            .letters
            .retain(|letter| letter.origin().unwrap().1 != told.place());
    }),
    (
        "an operator's letter has another reason",
        Rule::Verdict,
        |evidence| {
            let (_, told) = first(evidence, Kind::ToldLetter);
            let letters = evidence.letters.iter_mut();
            let own = letters.filter(|letter| letter.origin().unwrap().1 == told.place());
            own.for_each(|letter| set_header(letter, "hapax-reason", "moved"));
        },
    ),
    ("a verdict is resolved and held", Rule::Verdict, |evidence| {
        let (_, told) = first(evidence, Kind::ToldDone);
        let message = evidence
            .input
            .iter()
            .find(|message| message.place() == told.place());
        let message = message.unwrap().clone();
        let open = Open {
            stage: Stage::Held,
            keys: vec![token::of(&evidence.terms.topic, &message)],
            offset: told.offset,
            attempts: told.attempt,
            payload: message.payload,
        };
        last(evidence).open.push((told.partition, open));
    }),
    ("a kill takes an act out of the audit", Rule::Audit, |evidence| {
        let told = |line: &&Line| line.life == 2 && line.kind.is_told() && line.kind != Kind::ToldNo;
        let told = evidence.effects.iter().find(told).unwrap().clone();
        let life = &mut evidence.lives[1];
        assert!(life.killed);
        life.after.store.audit.retain(|entry| entry.reason != told.child);
    }),
    ("an act is in the audit twice", Rule::Audit, |evidence| {
        let audit = &mut last(evidence).audit;
        audit.push(audit[0].clone());
    }),
    (
        "an act that was refused is in the audit",
        Rule::Audit,
        |evidence| {
            let (at, _) = first_run(evidence);
            evidence.effects[at].kind = Kind::ToldNo;
        },
    ),
    ("the audit has another act", Rule::Audit, |evidence| {
        last(evidence).audit[0].act = "forget".into();
    }),
    ("nobody asked for an act", Rule::Audit, |evidence| {
        last(evidence).audit[0].reason = "nobody's".into();
    }),
];

#[test]
fn each_planted_fault_of_a_verdict_is_found() {
    let Some(broker) = kafka::broker() else { return };
    let again = "make test ARGS='--test it planted'";
    let mut run = Run::new(broker, 2, VARIANTS[2], 600, again).operated(2);
    // The first kill leaves some in doubt.
    for until in [Until::Point("inside-handler", 60), Until::Told(3)] {
        assert!(run.live(until), "{}: {until:?}", run.name);
    }
    assert!(!run.live(Until::Everything), "{}", run.name);
    each_is_found(&run, FAULTS_OF_VERDICTS);
}

/// What a run has left is sound, and with each of these it is not. What was sound.
fn each_is_found(run: &Run, faults: &[(&str, Rule, Plant)]) -> Evidence {
    let sound = run.evidence();
    let found = check(&sound);
    assert!(found.is_empty(), "{}: {}", run.name, show(&found));
    for (name, rule, plant) in faults {
        let mut evidence = sound.clone();
        plant(&mut evidence);
        let found = check(&evidence);
        assert!(
            found.iter().any(|violation| violation.rule == *rule),
            "{name}: {}",
            show(&found)
        );
    }
    sound
}

#[test]
fn each_planted_fault_is_found() {
    let Some(broker) = kafka::broker() else { return };
    let again = "make test ARGS='--test it planted'";
    let mut run = Run::new(broker, 1, VARIANTS[2], 120, again).in_order(4);
    assert!(run.live(Until::Point("inside-handler", 30)), "{}", run.name);
    assert!(!run.live(Until::Everything), "{}", run.name);
    let sound = each_is_found(&run, FAULTS);

    // This one is done to the files themselves.
    let (token, _) = first_done(&sound.lives[0].after.store);
    store::delete_closed(&run.last_store(), &token);
    let mut evidence = sound.clone();
    *last(&mut evidence) = Store::read(&run.last_store(), &sound.terms.topic);
    let found = check(&evidence);
    for rule in [Rule::Lost, Rule::CommitPastUnrecorded, Rule::TwoOutcomes] {
        assert!(
            found.iter().any(|violation| violation.rule == rule),
            "a deleted record: {}",
            show(&found)
        );
    }
}

fn show(found: &[super::Violation]) -> String {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    format!("found {} violations\n{}", found.len(), lines.join("\n"))
}
