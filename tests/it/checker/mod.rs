//! The checker: an independent judge of what a consumer did to the world.
//!
//! It is given what is left after a run: the input topic, the dead-letter topic, the file of effects that the handlers
//! wrote, and, as it was after each life of the consumer, its store and its committed offsets. From these it proves, or
//! names what is wrong.
//!
//! It shares no code with the runtime: not the decoding of records, not the formula of token keys, not one decision. The
//! layouts are written down here a second time, from `docs/design.md`; where the two disagree, one of them is wrong.
//! `planted.rs` shows that it can fail: each fault that is planted is found under its own name.

mod accounts;
mod effects;
pub(crate) mod keys;
mod letters;
mod outcomes;
mod planted;
pub(crate) mod record;
mod rules;
mod store;
pub(crate) mod token;
mod topics;
mod verdicts;
mod wal;

use std::collections::BTreeMap;
use std::fmt;

pub(crate) use accounts::Books;
pub(crate) use effects::{Kind, Line, read_lines};
pub(crate) use store::Store;
pub(crate) use topics::{Message, committed, ends, read_topic};
pub(crate) use wal::{Recorded, recorded};

/// What repeating the handler would do to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Idempotent,
    PotentiallyIdempotent,
    NonIdempotent,
}

impl Class {
    fn is_guarded(self) -> bool {
        self != Self::Idempotent
    }
}

/// The terms under which the consumer ran.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) topic: String,
    pub(crate) class: Class,
    /// Handlers of one partition that run at a time.
    pub(crate) slots: usize,
    /// Messages of one partition that are begun beyond them.
    pub(crate) ahead: usize,
    /// Messages of one key run one after the other.
    pub(crate) by_key: bool,
    /// Attempts before a message is held.
    pub(crate) in_place: u32,
    /// Attempts of one message at most, those after it was held with them.
    pub(crate) attempts_max: u32,
    /// Partitions went to another member and came back: what is held may be dead-lettered as moved.
    pub(crate) moves: bool,
    /// Another store has served partitions of this group without their past.
    pub(crate) cold: bool,
}

/// What stood on disk and in the group when a life was over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moment {
    pub(crate) store: Store,
    /// Offset and metadata of each partition's commit.
    pub(crate) committed: BTreeMap<i32, (i64, String)>,
}

/// One life of the consumer process.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) number: u32,
    /// It ended by SIGKILL.
    pub(crate) killed: bool,
    /// What it says of its own accounts: one entry for each assignment. `None` where it was killed.
    pub(crate) books: Option<Vec<Books>>,
    /// Every outcome in its write-ahead log, also those replaced later. An orderly end may leave none.
    pub(crate) recorded: Vec<Recorded>,
    /// When it was over.
    pub(crate) after: Moment,
}

/// Everything that is judged.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub(crate) terms: Terms,
    pub(crate) input: Vec<Message>,
    pub(crate) letters: Vec<Message>,
    /// In the order of the file.
    pub(crate) effects: Vec<Line>,
    /// In the order of time. The last one took everything and ended in order.
    pub(crate) lives: Vec<Life>,
    /// Stores of other members of the group.
    pub(crate) others: Vec<Store>,
}

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// A message has no effect, no dead letter, and is not held.
    Lost,
    /// A non-idempotent effect happened twice with no verdict between.
    RepeatedEffect,
    /// A non-idempotent handler was started again while nobody had ruled its earlier attempt out.
    RestartedInDoubt,
    /// A guarded handler ran, and no record says that it was begun.
    RanWithoutBegin,
    /// A message was begun after a later one of its key.
    KeyOrder,
    /// A second message of a token ran although the first one was not given up.
    DuplicateRan,
    /// Two outcomes of one token, or one that changed.
    TwoOutcomes,
    /// A record and the world disagree.
    UntrueRecord,
    /// More messages begun and not ended than there are slots.
    TooManyInDoubt,
    /// The group's offset is past a message that is not recorded.
    CommitPastUnrecorded,
    /// The metadata of a commit is not this store's, or its time is wrong.
    Mark,
    /// A dead letter that should not be, or not twice, or not like this.
    Letter,
    /// A message in no account, in two, or books that say something else.
    Accounts,
    /// Attempts or child tokens that do not fit together.
    Attempts,
    /// What an operator was told, and what came of it.
    Verdict,
    /// An act that is not in the audit, or not once, or that nobody asked for.
    Audit,
}

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// Collects what is wrong.
#[derive(Debug, Default)]
struct Findings(Vec<Violation>);

impl Findings {
    fn add(&mut self, rule: Rule, what: impl Into<String>) {
        self.0.push(Violation {
            rule,
            what: what.into(),
        });
    }
}

/// A token within its partition.
type TokenOf = (i32, token::Key);

/// The evidence, sorted for the rules.
struct Case<'a> {
    evidence: &'a Evidence,
    /// Each message's token key, in the order of the input.
    keys: BTreeMap<(i32, i64), token::Key>,
    input: BTreeMap<(i32, i64), &'a Message>,
    letters: BTreeMap<(i32, i64), Vec<&'a Message>>,
    lines: BTreeMap<TokenOf, Vec<&'a Line>>,
}

impl<'a> Case<'a> {
    fn new(evidence: &'a Evidence, findings: &mut Findings) -> Self {
        let keys: BTreeMap<_, _> = evidence
            .input
            .iter()
            .map(|message| (message.place(), token::of(&evidence.terms.topic, message)))
            .collect();
        let mut letters: BTreeMap<(i32, i64), Vec<&Message>> = BTreeMap::new();
        for letter in &evidence.letters {
            match letter.origin() {
                Some((topic, place)) if topic == evidence.terms.topic && keys.contains_key(&place) => {
                    letters.entry(place).or_default().push(letter);
                }
                origin => findings.add(Rule::Letter, format!("a letter of no message: {origin:?}")),
            }
        }
        let mut lines: BTreeMap<TokenOf, Vec<&Line>> = BTreeMap::new();
        for line in &evidence.effects {
            match keys.get(&line.place()) {
                Some(key) => lines.entry((line.partition, *key)).or_default().push(line),
                None => findings.add(Rule::Lost, format!("an effect of no message: {line}")),
            }
        }
        Self {
            evidence,
            keys,
            input: evidence.input.iter().map(|m| (m.place(), m)).collect(),
            letters,
            lines,
        }
    }

    /// The messages with their keys.
    fn messages(&self) -> impl Iterator<Item = (&'a Message, TokenOf)> {
        self.input
            .values()
            .zip(self.keys.iter())
            .map(|(message, ((partition, _), key))| (*message, (*partition, *key)))
    }

    /// What a message is recorded under: its token, and where it was refused apart from its token, its position.
    fn names(&self, message: &Message) -> [TokenOf; 2] {
        names(&self.evidence.terms.topic, message).map(|key| (message.partition, key))
    }

    /// Whether the message at that place is recorded under that name.
    fn is_name(&self, place: (i32, i64), name: &TokenOf) -> bool {
        let message = self.input.get(&place);
        message.is_some_and(|message| self.names(message).contains(name))
    }

    fn lines_of(&self, token: &TokenOf) -> &[&'a Line] {
        self.lines.get(token).map_or(&[], Vec::as_slice)
    }

    /// Whether the handler said that it had succeeded with that message, in a life that was not killed before it could note it.
    fn has_told(&self, token: &TokenOf, place: (i32, i64)) -> bool {
        let was_killed = |line: &Line| {
            let mut lives = self.evidence.lives.iter();
            lives.any(|life| life.killed && life.number == line.life)
        };
        let mut lines = self.lines_of(token).iter();
        lines.any(|line| line.place() == place && line.kind == Kind::Ok && !was_killed(line))
    }

    /// The stores of a moment: the consumer's own, and those of other members.
    fn stores<'b>(&'b self, moment: &'b Moment) -> impl Iterator<Item = &'b Store> {
        std::iter::once(&moment.store).chain(&self.evidence.others)
    }
}

/// What a message can be recorded under: its token, and its position.
pub(crate) fn names(topic: &str, message: &Message) -> [token::Key; 2] {
    [token::of(topic, message), token::position(topic, message)]
}

/// Judges.
pub(crate) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut findings = Findings::default();
    let case = Case::new(evidence, &mut findings);
    rules::check(&case, &mut findings);
    outcomes::check(&case, &mut findings);
    letters::check(&case, &mut findings);
    accounts::check(&case, &mut findings);
    verdicts::check(&case, &mut findings);
    findings.0
}
