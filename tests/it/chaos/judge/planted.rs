//! The judge is shown to fail: a small campaign that is sound, written by hand, in which one fault at a time is planted;
//! each is found under its own name.

use std::collections::BTreeMap;

use super::{Evidence, OfTopic, Rule, Violation, judge};
use crate::chaos::fleet::Life;
use crate::chaos::frame::{self, Frame};
use crate::chaos::operator::Order;
use crate::chaos::terms::{TOPICS, Terms, WINDOW};
use crate::chaos::world::{Kind, Line, SENT_MS};
use crate::checker::record::{Closed, End, Open, Stage};
use crate::checker::token::{self, Key};
use crate::checker::{Books, Class, Message};

const GROUP: &str = "run";
const HOUR_MS: i64 = 1_790_000_000_000;

/// A campaign of one partition, before its frames are bytes.
#[derive(Clone)]
pub(super) struct Small {
    pub(super) frames: Vec<Frame>,
    pub(super) of: OfTopic,
    pub(super) lives: BTreeMap<u32, Life>,
    pub(super) orders: BTreeMap<u32, Order>,
    pub(super) audit: Vec<Message>,
    stuck: Vec<String>,
}

pub(super) fn terms(name: &str) -> Terms {
    *TOPICS.iter().find(|terms| terms.name == name).unwrap()
}

/// The stamps of the messages, the last one past a window.
const STAMPS: [i64; 5] = [1_000, 1_100, 1_200, 1_300, 30_000];
const TOKENS: [&str; 5] = ["a", "b", "a", "c", "a"];

fn input() -> Vec<Message> {
    let of = |(offset, token): (usize, &&str)| {
        let header = |name: &str, value: String| (name.to_owned(), Some(value.into_bytes()));
        let at_ms = HOUR_MS + STAMPS[offset];
        Message {
            partition: 0,
            offset: offset as i64,
            timestamp_ms: Some(at_ms),
            key: Some(b"k".to_vec()),
            payload: Some(format!("{token} succeed").into_bytes()),
            headers: vec![
                header(SENT_MS, at_ms.to_string()),
                header("idempotency-key", (*token).to_owned()),
            ],
        }
    };
    TOKENS.iter().enumerate().map(of).collect()
}

impl Small {
    pub(super) fn key(&self, offset: usize) -> Key {
        token::of(&self.of.topic, &self.of.input[offset])
    }

    fn frame(&self, next: i64) -> Frame {
        let stamp = STAMPS.iter().take(next as usize).max();
        Frame {
            owner: frame::owner(GROUP, &self.of.topic),
            session: [1; 16],
            number: self.frames.len() as u64,
            fence: 1,
            next,
            written_ms: HOUR_MS + 500 + stamp.unwrap_or(&0),
            time_ms: stamp.map(|stamp| HOUR_MS + stamp),
            closed: Vec::new(),
            removed: Vec::new(),
            opened: Vec::new(),
            acts: Vec::new(),
        }
    }

    pub(super) fn open(&self, stage: Stage, offset: usize) -> Open {
        let payload = (stage == Stage::Held).then(|| self.of.input[offset].payload.clone().unwrap());
        Open {
            stage,
            keys: vec![self.key(offset)],
            offset: offset as i64,
            attempts: 1,
            payload,
        }
    }

    pub(super) fn closed(&self, end: End, offset: usize) -> (Key, Closed) {
        let closed = Closed {
            end,
            offset: offset as i64,
            first_seen_ms: HOUR_MS + STAMPS[offset],
            attempts: 1,
        };
        (self.key(offset), closed)
    }

    pub(super) fn line(&self, life: u32, offset: usize, kind: Kind) -> Line {
        Line {
            life,
            fence: life.into(),
            offset: offset as i64,
            token: TOKENS[offset].into(),
            attempt: 1,
            kind,
            child: token::child(&self.key(offset), "effect"),
        }
    }

    pub(super) fn lines(&mut self) -> &mut Vec<Line> {
        self.of.world.get_mut(&0).unwrap()
    }

    pub(super) fn letter(&self, offset: usize) -> Message {
        let message = &self.of.input[offset];
        let mut letter = Message {
            partition: 0,
            offset: 0,
            ..message.clone()
        };
        for (name, value) in [
            ("hapax-topic", self.of.topic.clone()),
            ("hapax-partition", "0".to_owned()),
            ("hapax-offset", offset.to_string()),
            ("hapax-reason", "rejected".to_owned()),
            ("hapax-attempts", "1".to_owned()),
        ] {
            letter.headers.push((name.into(), Some(value.into_bytes())));
        }
        letter
    }

    /// Done, dead-lettered, a duplicate, in doubt, and done again after the window.
    pub(super) fn sound(terms: Terms) -> Self {
        let topic = terms.topic(GROUP);
        let mut small = Self {
            frames: Vec::new(),
            of: OfTopic {
                terms,
                input: input(),
                letters: Vec::new(),
                changelog: BTreeMap::new(),
                world: BTreeMap::new(),
                committed: [(0, (5, format!("hapax1 id {}", HOUR_MS + STAMPS[4])))].into(),
                topic,
            },
            lives: BTreeMap::new(),
            orders: BTreeMap::new(),
            audit: Vec::new(),
            stuck: Vec::new(),
        };
        small.frames.push(small.frame(0));
        let mut begun = small.frame(0);
        begun.opened = [0, 1, 3].map(|offset| small.open(Stage::Begun, offset)).into();
        small.frames.push(begun);
        let mut ended = small.frame(3);
        ended.closed = vec![small.closed(End::Done, 0), small.closed(End::Failed(1), 1)];
        ended.removed = vec![(small.key(0), 0), (small.key(1), 1)];
        small.frames.push(ended);
        let mut held = small.frame(4);
        held.opened = vec![small.open(Stage::Held, 3)];
        small.frames.push(held);
        let mut begun = small.frame(4);
        begun.opened = vec![small.open(Stage::Begun, 4)];
        small.frames.push(begun);
        let mut ended = small.frame(5);
        ended.closed = vec![small.closed(End::Done, 4)];
        ended.removed = vec![(small.key(4), 4)];
        small.frames.push(ended);

        let line = |offset, kind| small.line(1, offset, kind);
        let lines = vec![
            line(0, Kind::Begin),
            line(0, Kind::Post),
            line(0, Kind::Ok),
            line(1, Kind::Begin),
            line(1, Kind::Rejected),
            line(3, Kind::Begin),
            line(3, Kind::Post),
            line(3, Kind::Broken),
            line(4, Kind::Begin),
            line(4, Kind::Post),
            line(4, Kind::Ok),
        ];
        small.of.letters = vec![small.letter(1)];
        small.of.world.insert(0, lines);
        let books = Books {
            taken: 5,
            done: 2,
            failed: 1,
            duplicate: 1,
            held: 1,
            ..Books::default()
        };
        let ended = Life {
            books: Some(vec![books]),
            ..Life::default()
        };
        small.lives = [(1, ended.clone()), (2, Life { books: None, ..ended })].into();
        small
    }

    pub(super) fn judged(&self) -> Vec<Violation> {
        let mut of = self.of.clone();
        for (offset, frame) in self.frames.iter().enumerate() {
            of.changelog.insert((0, offset as i64), encode(frame));
        }
        judge(&Evidence {
            group: GROUP.into(),
            topics: vec![of],
            lives: self.lives.clone(),
            orders: self.orders.clone(),
            audit: self.audit.clone(),
            stuck: self.stuck.clone(),
        })
    }
}

// ---- The bytes of a frame, from its layout.

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push((value % 128) as u8 + 128);
        value /= 128;
    }
    out.push(value as u8);
}

fn signed(out: &mut Vec<u8>, value: i64) {
    let twice = value.unsigned_abs() * 2;
    number(out, if value < 0 { twice - 1 } else { twice });
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut out = vec![1];
    out.extend_from_slice(&frame.owner);
    out.extend_from_slice(&frame.session);
    number(&mut out, frame.number);
    number(&mut out, frame.fence);
    signed(&mut out, frame.next);
    signed(&mut out, frame.written_ms);
    out.push(frame.time_ms.is_some().into());
    if let Some(time_ms) = frame.time_ms {
        signed(&mut out, time_ms);
    }
    for (key, closed) in &frame.closed {
        let (state, fields): (u8, &[u8]) = match &closed.end {
            End::Done => (1, &[]),
            End::Failed(reason) => (2, &[5, 1, *reason]),
            End::Invalidated => (3, &[]),
            End::Forgotten => (4, &[]),
        };
        let mut record = vec![0x10 + state];
        signed(&mut record, closed.offset);
        signed(&mut record, closed.first_seen_ms - frame.time_ms.unwrap_or(0));
        number(&mut record, closed.attempts);
        record.extend_from_slice(fields);
        out.push(1);
        out.extend_from_slice(key);
        sized(&mut out, &record);
    }
    for (key, offset) in &frame.removed {
        let mut record = Vec::new();
        signed(&mut record, *offset);
        out.push(2);
        out.extend_from_slice(key);
        sized(&mut out, &record);
    }
    for open in &frame.opened {
        let state = match open.stage {
            Stage::Begun => 8,
            Stage::Held => 9,
            Stage::Settling => 10,
        };
        let mut record = vec![0x10 + state];
        signed(&mut record, open.offset);
        signed(&mut record, 0);
        number(&mut record, open.attempts);
        signed(&mut record, 0);
        record.push(7);
        sized(&mut record, &open.keys.concat());
        if let Some(payload) = &open.payload {
            record.push(13);
            sized(&mut record, payload);
        }
        out.push(3);
        sized(&mut out, &record);
    }
    for act in &frame.acts {
        out.push(4);
        sized(&mut out, act.text.as_bytes());
    }
    out
}

// ---- The faults.

type Plant = fn(&mut Small);

const FAULTS: &[(&str, Rule, Plant)] = &[
    ("the last message is not taken", Rule::Lost, |small| {
        small.frames.truncate(4);
    }),
    ("what was held is gone", Rule::Lost, |small| {
        let name = (small.key(3), 3);
        small.frames[5].removed.push(name);
    }),
    ("nothing was committed", Rule::Lost, |small| {
        small.of.committed.clear();
    }),
    ("a begun message is passed", Rule::Lost, |small| {
        small.frames[3].opened.clear();
    }),
    (
        "an outcome is not recorded before its commit",
        Rule::Suppressed,
        |small| {
            small.frames[2].closed.remove(0);
        },
    ),
    (
        "an outcome that has expired suppresses",
        Rule::Suppressed,
        |small| {
            small.frames.remove(4);
            small.frames[4].closed.clear();
        },
    ),
    ("the commit is past the changelog", Rule::Suppressed, |small| {
        small.frames.truncate(4);
    }),
    ("an outcome is recorded twice", Rule::TwoOutcomes, |small| {
        let again = small.frames[2].closed[0];
        small.frames[5].closed.push(again);
    }),
    (
        "a duplicate has an outcome of its own",
        Rule::TwoOutcomes,
        |small| {
            let second = small.closed(End::Done, 2);
            small.frames[2].closed.push(second);
        },
    ),
    ("a duplicate runs", Rule::DuplicateRan, |small| {
        let ran = small.line(1, 2, Kind::Begin);
        small.lines().push(ran);
    }),
    ("a key runs out of its order", Rule::KeyOrder, |small| {
        let later = small.line(1, 3, Kind::Begin);
        small.lines().insert(3, later);
    }),
    (
        "a key runs out of its order where a partition moves",
        Rule::KeyOrder,
        |small| {
            let again = small.line(2, 1, Kind::Begin);
            small.lines().push(again);
        },
    ),
    ("an effect happens twice", Rule::RepeatedEffect, |small| {
        let again = small.line(1, 0, Kind::Post);
        small.lines().push(again);
    }),
    (
        "a handler starts again in doubt",
        Rule::RestartedInDoubt,
        |small| {
            let again = small.line(2, 3, Kind::Begin);
            small.lines().push(again);
        },
    ),
    ("a begin leaves no record", Rule::RanWithoutBegin, |small| {
        small.frames[1].opened.remove(0);
    }),
    (
        "more is begun than there are slots",
        Rule::TooManyBegun,
        |small| {
            let open = small.frames[1].opened[0].clone();
            let more = 5..5 + i64::from(small.of.terms.slots);
            small.frames[1].opened.extend(more.map(|offset| Open {
                offset,
                ..open.clone()
            }));
        },
    ),
    ("done without an effect", Rule::UntrueRecord, |small| {
        small
            .lines()
            .retain(|line| (line.offset, line.kind) != (0, Kind::Post));
    }),
    ("done, and nobody said so", Rule::UntrueRecord, |small| {
        small
            .lines()
            .retain(|line| (line.offset, line.kind) != (0, Kind::Ok));
    }),
    ("failed without a letter", Rule::UntrueRecord, |small| {
        small.of.letters.clear();
    }),
    ("held with other bytes", Rule::UntrueRecord, |small| {
        small.frames[3].opened[0].payload.as_mut().unwrap().push(b'!');
    }),
    ("a record of no message", Rule::UntrueRecord, |small| {
        small.frames[2].closed[0].0 = [7; 16];
    }),
    ("an old fence writes", Rule::StaleWrite, |small| {
        small.frames[3].fence = 2;
        let mut late = small.frame(4);
        late.number = 99;
        late.fence = 1;
        small.frames.insert(4, late);
    }),
    ("the commit point runs back", Rule::StaleWrite, |small| {
        let mut back = small.frame(0);
        back.number = 99;
        small.frames.insert(3, back);
    }),
    ("another group's frame", Rule::Frame, |small| {
        small.frames[0].owner = frame::owner("other", &small.of.topic);
    }),
    ("partition time was not restored", Rule::Time, |small| {
        small.frames[3].time_ms = Some(HOUR_MS);
    }),
    ("first seen before it was judged", Rule::Time, |small| {
        small.frames[5].closed[0].1.first_seen_ms -= 1;
    }),
    ("the commit carries another time", Rule::Time, |small| {
        small.of.committed.insert(0, (5, "hapax1 id 7".into()));
    }),
    ("a second letter", Rule::Letter, |small| {
        small.of.letters.push(small.letter(1));
    }),
    ("a letter without an outcome", Rule::Letter, |small| {
        small.of.letters.push(small.letter(3));
    }),
    ("a letter with other bytes", Rule::Letter, |small| {
        small.of.letters[0].payload = Some(b"b other".to_vec());
    }),
    ("a letter of no message", Rule::Letter, |small| {
        let header = &mut small.of.letters[0].headers[4];
        assert_eq!(header.0, "hapax-offset");
        header.1 = Some(b"77".to_vec());
    }),
    ("a letter for a reason that cannot be", Rule::Letter, |small| {
        small.lines().retain(|line| line.kind != Kind::Rejected);
    }),
    ("books with a remainder", Rule::Accounts, |small| {
        small.lives.get_mut(&1).unwrap().books.as_mut().unwrap()[0].taken += 1;
    }),
    ("books that end in flight", Rule::Accounts, |small| {
        let books = &mut small.lives.get_mut(&1).unwrap().books.as_mut().unwrap()[0];
        books.taken += 1;
        books.in_flight += 1;
    }),
    ("books of more than was recorded", Rule::Accounts, |small| {
        let books = &mut small.lives.get_mut(&1).unwrap().books.as_mut().unwrap()[0];
        books.taken += 1;
        books.done += 1;
    }),
    ("another child token", Rule::ChildToken, |small| {
        small.lines()[1].child = "0".repeat(32);
    }),
    ("a member ends by itself", Rule::Ended, |small| {
        small.lives.get_mut(&2).unwrap().failed = Some("it gave up".into());
    }),
    ("a member does not end", Rule::Stuck, |small| {
        small.stuck.push("member 1".into());
    }),
];

#[test]
fn what_is_sound_is_not_blamed() {
    for name in ["unprobed", "fenced", "probed"] {
        let found = Small::sound(terms(name)).judged();
        assert!(found.is_empty(), "{name}: {}", show(&found));
    }
}

#[test]
fn each_planted_fault_is_found() {
    for (name, rule, plant) in FAULTS {
        let mut small = Small::sound(terms("unprobed"));
        plant(&mut small);
        let found = small.judged();
        assert!(
            found.iter().any(|violation| violation.rule == *rule),
            "{name}, {rule:?}: {}",
            show(&found)
        );
    }
}

#[test]
fn bytes_that_are_no_frame_are_found() {
    let mut small = Small::sound(terms("unprobed"));
    let bytes = vec![9; 40];
    let sound = small.judged();
    assert!(sound.is_empty());
    small.of.changelog.insert((0, 100), bytes);
    assert_eq!(small.judged()[0].rule, Rule::Frame);
}

/// Whoever is frozen between a probe's question and its effect: a resource that checks fences refuses it, a probe alone
/// cannot know, and without either the second owner may not run it at all.
#[test]
fn a_frozen_handler_goes_on_and_only_a_fence_at_the_resource_stops_it() {
    let thawed = |name: &str| {
        let mut small = Small::sound(terms(name));
        small.lives.get_mut(&1).unwrap().disturbed = true;
        let lines = [
            small.line(1, 0, Kind::Begin),
            small.line(2, 0, Kind::Ask),
            small.line(2, 0, Kind::ProbeNotDone),
            small.line(2, 0, Kind::Begin),
            small.line(2, 0, Kind::Post),
            small.line(2, 0, Kind::Ok),
            small.line(1, 0, Kind::Post),
            small.line(1, 0, Kind::Stale),
        ];
        small.lines().retain(|line| line.offset != 0);
        // What comes later is the second owner's too.
        small.lines().iter_mut().for_each(|line| line.fence = 2);
        small.lines().splice(0..0, lines);
        let mut found: Vec<Rule> = small.judged().iter().map(|violation| violation.rule).collect();
        found.dedup();
        found
    };
    assert_eq!(thawed("fenced"), []);
    assert_eq!(thawed("probed"), []);
    assert_eq!(thawed("unprobed"), [Rule::RepeatedEffect]);
    // Nobody froze it.
    let mut small = Small::sound(terms("probed"));
    let again = small.line(2, 0, Kind::Post);
    small.lines().push(again);
    assert_eq!(small.judged()[0].rule, Rule::RepeatedEffect);
}

/// An outcome at or above the commit point suppresses however old it is (Inv 6); one below it does not.
#[test]
fn what_is_not_passed_does_not_expire() {
    let mut small = Small::sound(terms("unprobed"));
    small.frames.remove(4);
    small.frames[4].closed.clear();
    small.lines().truncate(8);
    // Sent while its token's first message was not passed.
    let sent_ms = (HOUR_MS + STAMPS[0]).to_string().into_bytes();
    small.of.input[4].headers[0].1 = Some(sent_ms);
    small.lives.get_mut(&1).unwrap().books = None;
    let found = small.judged();
    assert!(found.is_empty(), "{}", show(&found));
}

/// A given-up message lets the next of its token run, in the class that may.
#[test]
fn after_a_failure_the_idempotent_class_runs_again() {
    let mut small = Small::sound(terms("idempotent"));
    assert_eq!(small.of.terms.class, Class::Idempotent);
    small.frames[2].closed[0] = small.closed(End::Failed(1), 0);
    let second = small.closed(End::Done, 2);
    small.frames[2].closed.push(second);
    small.of.letters.push(small.letter(0));
    small.lines().retain(|line| line.offset != 0);
    let mut lines = vec![small.line(1, 0, Kind::Begin), small.line(1, 0, Kind::Rejected)];
    lines.extend([Kind::Begin, Kind::Post, Kind::Ok].map(|kind| small.line(1, 2, kind)));
    small.lines().splice(0..0, lines);
    small.lives.get_mut(&1).unwrap().books = None;
    let found = small.judged();
    assert!(found.is_empty(), "{}", show(&found));
    // Nothing is forgotten of that one.
    assert!(STAMPS[4] > STAMPS[2] + WINDOW.as_millis() as i64);
}

pub(super) fn show(found: &[Violation]) -> String {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    format!("found {} violations\n{}", found.len(), lines.join("\n"))
}
