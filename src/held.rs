//! Held: what an operator can see of open work, and which of it a verdict can be given to.
//!
//! It reads a store and decides nothing by itself: the verdict is an operator's, and it is written into the open
//! record, where the partition's owner finds it and carries it out (`partition/restore.rs`). Only a message that is
//! held in doubt takes a verdict. What is held behind its token waits for that token's outcome and is judged by it,
//! so a verdict on it would decide about a message that may be a duplicate.

use std::collections::BTreeMap;
use std::fmt;

use hashbrown::HashMap;

use crate::act::Said;
use crate::message::Offset;
use crate::outcome::{HeldFor, Open, Stage, Verdict};
use crate::store::{self, Changes, PartitionId, Store, TopicId, first_key};
use crate::token::TokenKey;

/// One open record, without the bytes of its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) topic: String,
    pub(crate) id: PartitionId,
    pub(crate) offset: Offset,
    /// The first source's first.
    pub(crate) keys: Vec<TokenKey>,
    pub(crate) state: State,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) since_ms: i64,
    pub(crate) attempts: u32,
    pub(crate) bytes: usize,
}

/// Why it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// An attempt was begun and nobody wrote how it ended. Not held: the class's rule decides at the next start.
    Begun,
    /// Held, because nobody knows whether it was applied.
    InDoubt,
    /// Held, because an earlier message of its token is open: that one's offset, while it still is.
    Behind(Option<Offset>),
    /// Held until its next attempt is due: the wall clock then, in milliseconds since the epoch.
    Retry(i64),
    /// Held, because an earlier message of its key is.
    BehindKey,
    /// Decided; its dead letter, or what its outcome gives back, is not yet acknowledged.
    Settling,
}

impl State {
    /// Every name.
    pub(crate) const NAMES: [&'static str; 6] = [
        "begun",
        "in-doubt",
        "behind-token",
        "retry",
        "behind-key",
        "settling",
    ];

    /// The name in `--json`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::InDoubt => "in-doubt",
            Self::Behind(_) => "behind-token",
            Self::Retry(_) => "retry",
            Self::BehindKey => "behind-key",
            Self::Settling => "settling",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun => f.write_str("begun"),
            Self::InDoubt => f.write_str("in doubt"),
            Self::Behind(Some(first)) => write!(f, "behind its token, open at {first}"),
            Self::Behind(None) => f.write_str("behind its token, now closed"),
            Self::Retry(_) => f.write_str("to be retried"),
            Self::BehindKey => f.write_str("behind its key"),
            Self::Settling => f.write_str("settling"),
        }
    }
}

impl Entry {
    /// Where the message is: `orders[3]@17`.
    pub(crate) fn place(&self) -> String {
        format!("{}[{}]@{}", self.topic, self.id.partition, self.offset)
    }

    fn is_at(&self, topic: &str, partition: i32, offset: i64) -> bool {
        self.topic == topic && self.id.partition == partition && self.offset.0 == offset
    }
}

/// Every open record of the topics named, by topic, partition and offset.
///
/// # Errors
/// Those of the store.
pub(crate) fn list(store: &dyn Store, names: &BTreeMap<TopicId, String>) -> Result<Vec<Entry>, store::Error> {
    list_some(store, names, |_| true)
}

/// The same of some partitions.
///
/// # Errors
/// Those of the store.
pub(crate) fn list_some(
    store: &dyn Store,
    names: &BTreeMap<TopicId, String>,
    is_asked: impl Fn(PartitionId) -> bool,
) -> Result<Vec<Entry>, store::Error> {
    let mut entries = Vec::new();
    for id in store.partitions()? {
        let Some(topic) = names.get(&id.topic).filter(|_| is_asked(id)) else {
            continue;
        };
        // A million messages may be held: their bytes are not in memory at once.
        let mut own = Vec::new();
        store.visit(id, &mut |open| own.push(entry(topic, id, &open)))?;
        // Who has a token open may have the higher offset (`partition/restore.rs`).
        let first_of: HashMap<TokenKey, Offset> = own
            .iter()
            .filter(|entry| !matches!(entry.state, State::Behind(_)))
            .flat_map(|entry| entry.keys.iter().map(|key| (*key, entry.offset)))
            .collect();
        for entry in &mut own {
            if let State::Behind(first) = &mut entry.state {
                *first = entry.keys.iter().find_map(|key| first_of.get(key).copied());
            }
        }
        entries.append(&mut own);
    }
    entries.sort_by(|a, b| (&a.topic, a.id, a.offset).cmp(&(&b.topic, b.id, b.offset)));
    Ok(entries)
}

fn entry(topic: &str, id: PartitionId, open: &Open) -> Entry {
    let (state, verdict) = match &open.stage {
        Stage::Begun { .. } => (State::Begun, None),
        Stage::Settling { .. } => (State::Settling, None),
        Stage::Held { why, verdict, .. } => match why {
            HeldFor::InDoubt => (State::InDoubt, *verdict),
            HeldFor::Token => (State::Behind(None), *verdict),
            HeldFor::Retry { due_ms, .. } => (State::Retry(*due_ms), *verdict),
            HeldFor::Key => (State::BehindKey, *verdict),
        },
    };
    Entry {
        topic: topic.to_owned(),
        id,
        offset: open.offset,
        keys: open.keys.clone(),
        state,
        verdict,
        since_ms: open.since_ms,
        attempts: open.attempts,
        bytes: open.bytes(),
    }
}

/// Which held messages an operator means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The one at that place.
    Message {
        topic: String,
        partition: i32,
        offset: i64,
    },
    /// The one with that token.
    Token(TokenKey),
    /// Every one that is in doubt and has no verdict.
    AllInDoubt,
}

/// Why a verdict cannot be given. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "no message is open at {0}; `hapax held --all` lists those that are. If it was open before, it has its outcome by now"
    )]
    NoMessage(String),
    #[error(
        "no message with token {0} is open; `hapax held --all` lists those that are. If it was open before, it has its outcome by now"
    )]
    NoToken(TokenKey),
    #[error("token {token} is held at {places}; name one of them with --topic, --partition and --offset")]
    Several { token: TokenKey, places: String },
    #[error(
        "{place} is held behind its token, which is open at offset {first}; resolve that one: {place} is judged by its outcome"
    )]
    Behind { place: String, first: Offset },
    #[error(
        "{0} is held behind its token, which has its outcome by now: it is judged by that at the next start, and takes no verdict"
    )]
    BehindClosed(String),
    #[error(
        "{0} is begun and not held: the next start decides about it by its class, and holds it where nobody can know. Start the consumer once, then look again"
    )]
    Begun(String),
    #[error("{0} is decided already: the next start sends its dead letter, or what its outcome gives back")]
    Settling(String),
}

/// The messages that the target means, each of them held in doubt.
///
/// # Errors
/// A [`Refusal`] where there is none, where it is not clear which, and where it takes no verdict.
pub(crate) fn choose<'a>(entries: &'a [Entry], target: &Target) -> Result<Vec<&'a Entry>, Refusal> {
    match target {
        Target::AllInDoubt => Ok(entries
            .iter()
            .filter(|entry| entry.state == State::InDoubt && entry.verdict.is_none())
            .collect()),
        Target::Message {
            topic,
            partition,
            offset,
        } => {
            let found = entries
                .iter()
                .find(|entry| entry.is_at(topic, *partition, *offset));
            match found {
                Some(entry) => takes_verdict(entry).map(|entry| vec![entry]),
                None => Err(Refusal::NoMessage(format!("{topic}[{partition}]@{offset}"))),
            }
        }
        Target::Token(token) => {
            let of_token: Vec<&Entry> = entries
                .iter()
                .filter(|entry| entry.keys.contains(token))
                .collect();
            let first = of_token
                .iter()
                .copied()
                .filter(|entry| !matches!(entry.state, State::Behind(_)));
            let first: Vec<&Entry> = first.collect();
            match (first.as_slice(), of_token.first()) {
                ([one], _) => takes_verdict(one).map(|entry| vec![entry]),
                ([], Some(behind)) => takes_verdict(behind).map(|entry| vec![entry]),
                ([], None) => Err(Refusal::NoToken(*token)),
                (several, _) => Err(Refusal::Several {
                    token: *token,
                    places: several
                        .iter()
                        .map(|entry| entry.place())
                        .collect::<Vec<_>>()
                        .join(", "),
                }),
            }
        }
    }
}

fn takes_verdict(entry: &Entry) -> Result<&Entry, Refusal> {
    let place = entry.place();
    match entry.state {
        State::InDoubt | State::Retry(_) | State::BehindKey => Ok(entry),
        State::Behind(Some(first)) => Err(Refusal::Behind { place, first }),
        State::Behind(None) => Err(Refusal::BehindClosed(place)),
        State::Begun => Err(Refusal::Begun(place)),
        State::Settling => Err(Refusal::Settling(place)),
    }
}

/// Messages that are read and written at a time, in bytes: a million may be decided about at once.
const PORTION_BYTES: usize = 8 << 20;

/// Writes the verdict into the open records, with the acts to be kept with them, and says how many it was given to. A message that
/// has this verdict already is left alone: to say the same thing twice is not another act.
///
/// A portion of them after another, each durable as a whole: where one cannot be written, those before it have their verdict, and to
/// say it again gives it to the others.
///
/// # Errors
/// Those of the store.
pub(crate) fn decide(
    store: &dyn Store,
    chosen: &[&Entry],
    verdict: Verdict,
    said: &Said,
) -> Result<usize, store::Error> {
    decide_in(PORTION_BYTES, store, chosen, verdict, said)
}

fn decide_in(
    most: usize,
    store: &dyn Store,
    chosen: &[&Entry],
    verdict: Verdict,
    said: &Said,
) -> Result<usize, store::Error> {
    let mut of_partition: BTreeMap<PartitionId, Vec<&Entry>> = BTreeMap::new();
    for entry in chosen.iter().filter(|entry| entry.verdict != Some(verdict)) {
        of_partition.entry(entry.id).or_default().push(entry);
    }
    let mut given = 0;
    for (id, entries) in of_partition {
        let mut left = entries.as_slice();
        while !left.is_empty() {
            let (portion, rest) = left.split_at(portion(left, most));
            left = rest;
            given += decide_some(store, id, portion, verdict, said)?;
        }
    }
    Ok(given)
}

/// How many of the first fit: at least one.
fn portion(entries: &[&Entry], most: usize) -> usize {
    let mut bytes = 0_usize;
    let fits = |entry: &&&Entry| {
        bytes = bytes.saturating_add(entry.bytes);
        bytes <= most
    };
    entries.iter().take_while(fits).count().max(1)
}

fn decide_some(
    store: &dyn Store,
    id: PartitionId,
    entries: &[&Entry],
    verdict: Verdict,
    said: &Said,
) -> Result<usize, store::Error> {
    let named = entries
        .iter()
        .filter_map(|entry| Some(((*entry.keys.first()?, entry.offset), *entry)));
    let named: HashMap<(TokenKey, Offset), &Entry> = named.collect();
    let names: Vec<_> = named.keys().copied().collect();
    let mut changes = Changes::new(id);
    for mut open in store.load_open(id, &names)? {
        let meant = named.get(&(first_key(&open), open.offset));
        let (Some(entry), Stage::Held { verdict: given, .. }) = (meant, &mut open.stage) else {
            continue;
        };
        *given = Some(verdict);
        changes.acts.push(said.act(
            &format!("resolve --{}", verdict.code()),
            (&entry.topic, id.partition, open.offset),
            first_key(&open),
        ));
        changes.opened.push(open);
    }
    let given = changes.acts.len();
    store.apply(&[changes])?;
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Kept;
    use crate::store::TopicSpec;
    use crate::store::memory::MemoryStore;

    const KEPT: Kept = Kept {
        timestamp_ms: None,
        key: None,
        payload: None,
        headers: Vec::new(),
    };

    fn open(offset: i64, token: u8, stage: Stage) -> Open {
        Open {
            keys: vec![TokenKey([token; 16])],
            offset: Offset(offset),
            stage,
            first_seen_ms: 0,
            attempts: 1,
            since_ms: 0,
            fingerprint: None,
        }
    }

    fn held(offset: i64, token: u8, why: HeldFor) -> Open {
        open(
            offset,
            token,
            Stage::Held {
                why,
                message: KEPT,
                verdict: None,
            },
        )
    }

    fn begun(offset: i64, token: u8) -> Open {
        open(
            offset,
            token,
            Stage::Begun {
                not_applied: false,
                message: None,
            },
        )
    }

    /// A store of `orders` with those records in each of its partitions.
    fn store(partitions: &[&[Open]]) -> (MemoryStore, Vec<Entry>) {
        let topic = TopicSpec {
            name: "orders".into(),
            window_ms: 1_000,
        };
        let store = MemoryStore::new("billing", &[topic]);
        let id = store.topic("orders").unwrap();
        for (partition, opened) in partitions.iter().enumerate() {
            let mut changes = Changes::new(PartitionId {
                topic: id,
                partition: partition as i32,
            });
            changes.opened = opened.to_vec();
            store.apply(&[changes]).unwrap();
        }
        let entries = list(&store, &BTreeMap::from([(id, "orders".to_owned())])).unwrap();
        (store, entries)
    }

    fn at(partition: i32, offset: i64) -> Target {
        Target::Message {
            topic: "orders".into(),
            partition,
            offset,
        }
    }

    fn said() -> Said {
        Said {
            reason: "asked the bank".into(),
            by: "anna".into(),
            at_ms: 7,
        }
    }

    #[test]
    fn only_what_is_held_in_doubt_takes_a_verdict() {
        let behind = held(9, 1, HeldFor::Token);
        let orphan = held(10, 3, HeldFor::Token);
        let (_, entries) = store(&[&[held(5, 1, HeldFor::InDoubt), begun(6, 2), behind, orphan]]);
        assert_eq!(choose(&entries, &at(0, 5)).unwrap()[0].offset, Offset(5));
        let place = |offset| format!("orders[0]@{offset}");
        assert_eq!(choose(&entries, &at(0, 6)), Err(Refusal::Begun(place(6))));
        let first = Offset(5);
        assert_eq!(
            choose(&entries, &at(0, 9)),
            Err(Refusal::Behind {
                place: place(9),
                first
            })
        );
        assert_eq!(
            choose(&entries, &at(0, 10)),
            Err(Refusal::BehindClosed(place(10)))
        );
        assert_eq!(choose(&entries, &at(0, 7)), Err(Refusal::NoMessage(place(7))));
        assert!(choose(&entries, &at(1, 5)).is_err(), "another partition");
    }

    #[test]
    fn a_token_means_the_first_message_that_has_it() {
        let (_, entries) = store(&[
            &[held(5, 1, HeldFor::InDoubt), held(9, 1, HeldFor::Token)],
            &[held(5, 2, HeldFor::InDoubt)],
            &[held(8, 2, HeldFor::InDoubt)],
        ]);
        let token = |n| Target::Token(TokenKey([n; 16]));
        assert_eq!(choose(&entries, &token(1)).unwrap(), [&entries[0]]);
        let several = Refusal::Several {
            token: TokenKey([2; 16]),
            places: "orders[1]@5, orders[2]@8".into(),
        };
        assert_eq!(choose(&entries, &token(2)), Err(several));
        assert_eq!(
            choose(&entries, &token(3)),
            Err(Refusal::NoToken(TokenKey([3; 16])))
        );
    }

    #[test]
    fn a_verdict_said_twice_is_written_once_and_may_be_changed() {
        let (store, entries) = store(&[
            &[held(5, 1, HeldFor::InDoubt), held(9, 1, HeldFor::Token)],
            &[held(7, 2, HeldFor::InDoubt)],
        ]);
        let names = BTreeMap::from([(entries[0].id.topic, "orders".to_owned())]);
        let chosen = choose(&entries, &Target::AllInDoubt).unwrap();
        assert_eq!(decide(&store, &chosen, Verdict::Done, &said()).unwrap(), 2);
        let mut acts: Vec<_> = store.audited().unwrap().iter().map(|act| act.offset).collect();
        acts.sort_unstable();
        assert_eq!(acts, [5, 7], "not 9: it waits behind 5");

        let entries = list(&store, &names).unwrap();
        assert_eq!(
            entries.iter().map(|entry| entry.verdict).collect::<Vec<_>>(),
            [Some(Verdict::Done), None, Some(Verdict::Done)]
        );
        assert_eq!(choose(&entries, &Target::AllInDoubt), Ok(vec![]));
        let one = choose(&entries, &at(0, 5)).unwrap();
        assert_eq!(decide(&store, &one, Verdict::Done, &said()).unwrap(), 0);
        assert_eq!(store.audited().unwrap().len(), 2);
        assert_eq!(decide(&store, &one, Verdict::Run, &said()).unwrap(), 1);
        let acts = store.audited().unwrap();
        assert!(acts.iter().any(|act| act.act == "resolve --run"), "{acts:?}");
    }

    /// Each portion is durable as a whole, with its acts; where one cannot be written the others can be given their verdict later.
    #[test]
    fn verdicts_on_many_are_given_a_portion_at_a_time() {
        let stage = || Stage::Held {
            why: HeldFor::InDoubt,
            message: Kept {
                payload: Some(bytes::Bytes::from_static(b"0123456789")),
                ..KEPT
            },
            verdict: None,
        };
        let held: Vec<Open> = (0..9).map(|n| open(n, n as u8, stage())).collect();
        let (store, entries) = store(&[&held]);
        let names = BTreeMap::from([(entries[0].id.topic, "orders".to_owned())]);
        let chosen = choose(&entries, &Target::AllInDoubt).unwrap();
        let of_four = entries[..4].iter().map(|entry| entry.bytes).sum();
        store.fail_after(1, crate::store::memory::Fault::Lost);
        assert!(decide_in(of_four, &store, &chosen, Verdict::Done, &said()).is_err());
        let store = store.restart(&[TopicSpec {
            name: "orders".into(),
            window_ms: 1_000,
        }]);
        let entries = list(&store, &names).unwrap();
        let decided = entries.iter().filter(|entry| entry.verdict.is_some()).count();
        assert_eq!((decided, store.audited().unwrap().len()), (4, 4));
        let chosen = choose(&entries, &Target::AllInDoubt).unwrap();
        assert_eq!(
            decide_in(of_four, &store, &chosen, Verdict::Done, &said()).unwrap(),
            5
        );
        assert_eq!(store.audited().unwrap().len(), 9);
        // One that is longer than a portion is one.
        let entries = list(&store, &names).unwrap();
        let all: Vec<&Entry> = entries.iter().collect();
        assert_eq!(decide_in(0, &store, &all, Verdict::Run, &said()).unwrap(), 9);
    }
}
