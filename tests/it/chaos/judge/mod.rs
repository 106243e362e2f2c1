//! The judge of a campaign: from what is left it proves the promise, or names what is wrong.
//!
//! It is given the input, the dead letters, every frame of the changelogs (read while they were written), the files of
//! the world, the committed offsets, and what each life said of its accounts. It shares no code with the runtime: frames,
//! records, token keys and the window are written down here a second time. `planted.rs` shows that it can fail: each
//! fault that is planted is found under its own name.

mod effects;
mod letters;
mod planted;
mod planted_orders;
mod replay;
mod verdicts;

use std::collections::BTreeMap;
use std::fmt;

use super::fleet::Life;
use super::frame;
use super::operator::Order;
use super::tail::Log;
use super::terms::{Terms, WINDOW};
use super::world::{self, Kind, Line, SENT_MS};
use crate::checker::record::{Closed, End};
use crate::checker::token::Key;
use crate::checker::{Class, Message, names};

/// What is left of one topic.
#[derive(Debug, Clone)]
pub(crate) struct OfTopic {
    pub(crate) terms: Terms,
    pub(crate) topic: String,
    pub(crate) input: Vec<Message>,
    pub(crate) letters: Vec<Message>,
    pub(crate) changelog: Log,
    /// By partition, in the order of the file.
    pub(crate) world: BTreeMap<i32, Vec<Line>>,
    /// Offset and metadata of each partition's commit.
    pub(crate) committed: BTreeMap<i32, (i64, String)>,
}

/// Everything that is judged.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub(crate) group: String,
    pub(crate) topics: Vec<OfTopic>,
    pub(crate) lives: BTreeMap<u32, Life>,
    /// What operators ordered, by number.
    pub(crate) orders: BTreeMap<u32, Order>,
    /// The topic of their acts.
    pub(crate) audit: Vec<Message>,
    /// What did not come to its end in time, after the last fault.
    pub(crate) stuck: Vec<String>,
}

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// A message was not taken, or what was held of it is gone.
    Lost,
    /// The commit point is past a message that has no outcome, and that no outcome of its token suppresses.
    Suppressed,
    /// Two recorded outcomes of one token within one window.
    TwoOutcomes,
    /// Two messages of one token ran within one window.
    DuplicateRan,
    /// A message ran again, or for the first time, after a later one of its key had run.
    KeyOrder,
    /// A guarded effect happened twice.
    RepeatedEffect,
    /// A guarded handler was started again while nobody had ruled its earlier attempt out.
    RestartedInDoubt,
    /// A guarded handler ran, and no record says that it was begun.
    RanWithoutBegin,
    /// More messages are begun than there are slots.
    TooManyBegun,
    /// A record and the world disagree.
    UntrueRecord,
    /// An assignment that was over has written.
    StaleWrite,
    /// A frame that is none, or somebody else's.
    Frame,
    /// Partition time, or what was first seen then, is not what the timestamps say.
    Time,
    /// A dead letter that should not be, or not twice, or not like this.
    Letter,
    /// Books that do not balance, or say more than was recorded.
    Accounts,
    /// An operator's act that was answered and is not recorded, or twice, or not what became of its message.
    Order,
    /// A child token that is not the formula's.
    ChildToken,
    /// A member ended by itself, with nothing done to its network. A broken disk is no reason: it is a copy.
    Ended,
    /// Something did not come to its end.
    Stuck,
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
struct Findings {
    place: String,
    found: Vec<Violation>,
}

impl Findings {
    fn add(&mut self, rule: Rule, what: impl Into<String>) {
        let what = format!("{}{}", self.place, what.into());
        self.found.push(Violation { rule, what });
    }
}

/// One partition of one topic, sorted for the rules.
struct Part<'a> {
    of: &'a OfTopic,
    partition: i32,
    lives: &'a BTreeMap<u32, Life>,
    orders: &'a BTreeMap<u32, Order>,
    messages: BTreeMap<i64, &'a Message>,
    /// Each message's token, and its position.
    names: BTreeMap<i64, [Key; 2]>,
    /// Partition time after each message.
    times: BTreeMap<i64, i64>,
    lines: &'a [Line],
    /// Whether each line is a post that the resource has taken.
    taken: Vec<bool>,
    letters: BTreeMap<i64, Vec<&'a Message>>,
}

impl<'a> Part<'a> {
    fn new(of: &'a OfTopic, partition: i32, evidence: &'a Evidence) -> Self {
        let messages: BTreeMap<i64, &Message> = of
            .input
            .iter()
            .filter(|message| message.partition == partition)
            .map(|message| (message.offset, message))
            .collect();
        let mut time = i64::MIN;
        let times = messages.iter().map(|(offset, message)| {
            time = time.max(message.timestamp_ms.unwrap());
            (*offset, time)
        });
        let times = times.collect();
        let lines = of.world.get(&partition).map_or(&[][..], Vec::as_slice);
        let mut letters: BTreeMap<i64, Vec<&Message>> = BTreeMap::new();
        for letter in &of.letters {
            if let Some((_, (from, offset))) = letter.origin()
                && from == partition
            {
                letters.entry(offset).or_default().push(letter);
            }
        }
        Self {
            names: messages
                .iter()
                .map(|(offset, message)| (*offset, names(&of.topic, message)))
                .collect(),
            messages,
            times,
            taken: world::taken(lines, of.terms.fenced),
            lines,
            letters,
            of,
            partition,
            lives: &evidence.lives,
            orders: &evidence.orders,
        }
    }

    /// Partition time when everything before that offset was taken.
    fn time_before(&self, next: i64) -> Option<i64> {
        self.times.range(..next).next_back().map(|(_, time)| *time)
    }

    /// The offset after the last.
    fn end(&self) -> i64 {
        self.messages.keys().next_back().map_or(0, |last| last + 1)
    }

    /// Whether what was first seen at that time still counts for the message at that offset.
    fn is_within_window(&self, first_seen_ms: i64, offset: i64) -> bool {
        let window_ms = WINDOW.as_millis() as i64;
        self.times
            .get(&offset)
            .is_some_and(|time| time - first_seen_ms < window_ms)
    }

    /// Whether the class runs the next message of a token after this outcome.
    fn may_follow(&self, closed: &Closed) -> bool {
        self.of.terms.class == Class::Idempotent && matches!(closed.end, End::Failed(_))
    }

    fn sent_ms(&self, offset: i64) -> i64 {
        let sent = self.messages[&offset].header(SENT_MS).unwrap();
        sent.parse().unwrap()
    }

    fn is_disturbed(&self, line: &Line) -> bool {
        self.lives.get(&line.life).is_some_and(|life| life.disturbed)
    }
}

/// What the campaign has come to see, in a few lines: one that saw nothing proves nothing.
pub(crate) fn summary(evidence: &Evidence) -> String {
    let lives = evidence.lives.values();
    let count = |is: fn(&Life) -> bool| lives.clone().filter(|life| is(life)).count();
    let mut text = format!(
        "{} lives: {} killed, {} frozen or cut off, {} ended in order, {} by themselves",
        evidence.lives.len(),
        count(|life| life.killed),
        count(|life| life.disturbed),
        count(|life| life.books.is_some()),
        count(|life| life.failed.is_some()),
    );
    let answered = |answer: Option<&str>| {
        let orders = evidence.orders.values();
        orders.filter(|order| order.answer.as_deref() == answer).count()
    };
    text += &format!(
        "\n{} orders of operators: {} carried out, {} refused, {} without an answer",
        evidence.orders.len(),
        answered(Some("done")),
        answered(Some("refused")),
        answered(None),
    );
    for of in &evidence.topics {
        let lines = || of.world.values().flatten();
        let kinds = [
            ("effects", Kind::Post),
            ("refused as late", Kind::Stale),
            ("probed", Kind::Ask),
        ];
        let counts = kinds.map(|(name, kind)| {
            let count = lines().filter(|line| line.kind == kind).count();
            format!("{count} {name}")
        });
        let again = lines()
            .filter(|line| line.kind == Kind::Begin && line.attempt > 1)
            .count();
        let fences = lines().map(|line| line.fence).max().unwrap_or(0);
        text += &format!(
            "\n{}: {} messages, {}, {again} attempts after the first, {} letters, {} frames, fences up to {fences}",
            of.terms.name,
            of.input.len(),
            counts.join(", "),
            of.letters.len(),
            of.changelog.len(),
        );
    }
    text
}

/// The changelogs as text, for whoever looks for the cause: the cluster is gone by then.
pub(crate) fn write_changelogs(evidence: &Evidence, dir: &std::path::Path) {
    for of in &evidence.topics {
        let lines = of
            .changelog
            .iter()
            .map(|(place, bytes)| format!("{place:?} {:?}\n", frame::decode(bytes)));
        std::fs::write(
            dir.join(format!("changelog-{}", of.terms.name)),
            lines.collect::<String>(),
        )
        .unwrap();
    }
}

/// Judges.
pub(crate) fn judge(evidence: &Evidence) -> Vec<Violation> {
    let mut findings = Findings::default();
    for what in &evidence.stuck {
        findings.add(Rule::Stuck, what);
    }
    for (number, life) in &evidence.lives {
        if let Some(why) = &life.failed
            && !life.may_fail
        {
            findings.add(
                Rule::Ended,
                format!("life {number}, member {}: {why}", life.member),
            );
        }
    }
    let mut recorded = letters::Recorded::default();
    let mut acts = Vec::new();
    for of in &evidence.topics {
        findings.place = format!("{}: ", of.terms.name);
        letters::origins(of, &mut findings);
        let mut partitions: Vec<i32> = of.input.iter().map(|message| message.partition).collect();
        partitions.sort_unstable();
        partitions.dedup();
        for partition in partitions {
            let part = Part::new(of, partition, evidence);
            findings.place = format!("{}/{partition}: ", of.terms.name);
            let replayed = replay::check(&part, &evidence.group, &mut findings);
            effects::check(&part, &replayed, &mut findings);
            letters::check(&part, &replayed, &mut findings);
            verdicts::check(&part, &replayed, &mut findings);
            recorded.add(&replayed);
            acts.extend(replayed.acts);
        }
    }
    findings.place.clear();
    letters::accounts(&evidence.lives, &recorded, &mut findings);
    verdicts::recorded(&evidence.orders, &acts, &mut findings);
    verdicts::published(&acts, &evidence.audit, &mut findings);
    findings.found
}
