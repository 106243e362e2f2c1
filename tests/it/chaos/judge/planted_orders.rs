//! The same of what operators decide: a sound order, in which one fault at a time is planted.

use serde_json::json;

use super::Rule;
use super::planted::{Small, show, terms};
use crate::chaos::frame::Act;
use crate::chaos::operator::{Order, Verdict, reason};
use crate::chaos::world::Kind;
use crate::checker::record::{BY_OPERATOR, End, Stage};

/// The message in doubt.
const DOUBTFUL: usize = 3;

fn act(small: &Small, number: u32, verdict: Verdict) -> Act {
    let text = json!({
        "topic": small.of.topic,
        "partition": 0,
        "offset": DOUBTFUL,
        "act": verdict.act(),
        "reason": reason(number),
    });
    Act::parse(text.to_string().as_bytes()).unwrap()
}

/// The topic of acts has what the changelog has.
fn publish(small: &mut Small) {
    let message = small.of.input[DOUBTFUL].clone();
    let acts = small.frames.iter().flat_map(|frame| frame.acts.clone());
    small.audit = acts
        .map(|act| crate::checker::Message {
            payload: Some(act.text.into_bytes()),
            ..message.clone()
        })
        .collect();
}

/// What is in doubt is decided, and that is carried out.
fn ordered(verdict: Verdict) -> Small {
    let mut small = Small::sound(terms("unprobed"));
    let order = Order {
        topic: small.of.topic.clone(),
        partition: 0,
        offset: DOUBTFUL as i64,
        verdict,
        attempts: 1,
        was_in_doubt: true,
        answer: Some("done".into()),
    };
    small.orders.insert(7, order);
    let act = act(&small, 7, verdict);
    small.frames[3].acts.push(act);
    publish(&mut small);
    let end = match verdict {
        Verdict::DeadLetter => End::Failed(BY_OPERATOR),
        Verdict::Done | Verdict::Run => End::Done,
    };
    if verdict == Verdict::Run {
        let mut begun = small.open(Stage::Begun, DOUBTFUL);
        begun.attempts = 2;
        begun.payload = small.open(Stage::Held, DOUBTFUL).payload;
        small.frames[4].opened.push(begun);
        for kind in [Kind::Begin, Kind::Post, Kind::Ok] {
            let mut line = small.line(1, DOUBTFUL, kind);
            line.attempt = 2;
            small.lines().push(line);
        }
    }
    if verdict == Verdict::DeadLetter {
        let mut letter = small.letter(DOUBTFUL);
        for (name, value) in &mut letter.headers {
            if name == "hapax-reason" {
                *value = Some(b"operator".to_vec());
            }
        }
        small.of.letters.push(letter);
    }
    let closed = small.closed(end, DOUBTFUL);
    small.frames[5].closed.push(closed);
    let name = (small.key(DOUBTFUL), DOUBTFUL as i64);
    small.frames[5].removed.push(name);
    small
}

#[test]
fn a_verdict_that_is_carried_out_is_not_blamed() {
    for verdict in [Verdict::Done, Verdict::Run, Verdict::DeadLetter] {
        let found = ordered(verdict).judged();
        assert!(found.is_empty(), "{verdict:?}: {}", show(&found));
        // Nobody heard the answer.
        let mut small = ordered(verdict);
        small.orders.get_mut(&7).unwrap().answer = None;
        assert!(small.judged().is_empty());
        // Not carried out yet, when the members ended.
        let mut small = ordered(verdict);
        small.frames[5].closed.pop();
        small.frames[5].removed.pop();
        small.of.letters.truncate(1);
        let found = small.judged();
        assert!(found.is_empty(), "{verdict:?}: {}", show(&found));
    }
}

type Plant = fn(&mut Small);

const FAULTS: &[(&str, Verdict, Rule, Plant)] = &[
    ("an answered act is lost", Verdict::Run, Rule::Order, |small| {
        small.frames[3].acts.clear();
        publish(small);
    }),
    ("an act is recorded twice", Verdict::Done, Rule::Order, |small| {
        let again = small.frames[3].acts[0].clone();
        small.frames[5].acts.push(again);
    }),
    ("a refused act is recorded", Verdict::Done, Rule::Order, |small| {
        small.orders.get_mut(&7).unwrap().answer = Some("refused".into());
    }),
    (
        "an act that nobody ordered",
        Verdict::Done,
        Rule::Order,
        |small| {
            let invented = act(small, 8, Verdict::Done);
            small.frames[5].acts.push(invented);
            publish(small);
        },
    ),
    (
        "another act than was ordered",
        Verdict::Done,
        Rule::Order,
        |small| {
            small.orders.get_mut(&7).unwrap().verdict = Verdict::DeadLetter;
        },
    ),
    (
        "the audit topic lacks an act",
        Verdict::Done,
        Rule::Order,
        |small| {
            small.audit.clear();
        },
    ),
    (
        "the audit topic has an act twice",
        Verdict::Done,
        Rule::Order,
        |small| {
            small.audit.push(small.audit[0].clone());
        },
    ),
    (
        "the audit topic has an act of an aborted transaction",
        Verdict::Done,
        Rule::Order,
        |small| {
            small.audit[0].payload = Some(act(small, 9, Verdict::Done).text.into_bytes());
        },
    ),
    ("what was called done runs", Verdict::Done, Rule::Order, |small| {
        let mut line = small.line(1, DOUBTFUL, Kind::Begin);
        line.attempt = 2;
        small.lines().push(line);
    }),
    (
        "what was called done is dead-lettered",
        Verdict::Done,
        Rule::Order,
        |small| {
            small.frames[5].closed.last_mut().unwrap().1.end = End::Failed(BY_OPERATOR);
        },
    ),
    (
        "what was to be dead-lettered is done",
        Verdict::DeadLetter,
        Rule::Order,
        |small| {
            small.frames[5].closed.last_mut().unwrap().1.end = End::Done;
        },
    ),
    ("what was to run does not", Verdict::Run, Rule::Order, |small| {
        small.frames[4].opened.pop();
        small.lines().truncate(11);
    }),
    (
        "it runs a second time for one verdict",
        Verdict::Run,
        Rule::RestartedInDoubt,
        |small| {
            let mut line = small.line(1, DOUBTFUL, Kind::Begin);
            line.attempt = 3;
            small.lines().push(line);
        },
    ),
    (
        "it takes effect a second time for one verdict",
        Verdict::Run,
        Rule::RepeatedEffect,
        |small| {
            let mut line = small.line(1, DOUBTFUL, Kind::Post);
            line.attempt = 3;
            small.lines().push(line);
        },
    ),
    (
        "the verdict was about an attempt before",
        Verdict::Run,
        Rule::RestartedInDoubt,
        |small| {
            small.orders.get_mut(&7).unwrap().attempts = 0;
        },
    ),
    (
        "a letter that no operator ordered",
        Verdict::DeadLetter,
        Rule::Letter,
        |small| {
            small.orders.clear();
        },
    ),
    (
        "done, and no operator said so",
        Verdict::Done,
        Rule::UntrueRecord,
        |small| {
            small.frames[3].acts.clear();
            small.lines().retain(|line| line.offset != DOUBTFUL as i64);
        },
    ),
];

#[test]
fn each_planted_fault_about_an_order_is_found() {
    for (name, verdict, rule, plant) in FAULTS {
        let mut small = ordered(*verdict);
        plant(&mut small);
        let found = small.judged();
        assert!(
            found.iter().any(|violation| violation.rule == *rule),
            "{name}, {rule:?}: {}",
            show(&found)
        );
    }
}
