//! `hapax held`: what a stopped consumer keeps for later, and what waits for a person.

use std::process::ExitCode;

use super::{Failure, StateDir, Table, count, moment, names, print};
use crate::config::{ByteCount, Durability};
use crate::held::{Entry, State, list};
use crate::outcome::Verdict;

/// List the messages that a stopped consumer holds.
///
/// Those in doubt wait for `hapax resolve`; those behind their token are judged by its outcome.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    dir: StateDir,
    /// Only this topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Also what is open and not held: begun without an outcome, and dead letters not yet acknowledged.
    #[arg(long)]
    all: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = args.dir.open()?;
    let names = names(&store);
    if let Some(topic) = &args.topic
        && !names.values().any(|name| name == topic)
    {
        let known: Vec<_> = names.values().map(String::as_str).collect();
        return Err(Failure::new(format_args!(
            "the store does not know topic {topic:?}; it knows: {}",
            known.join(", ")
        )));
    }
    let of_topic = |entry: &Entry| args.topic.as_ref().is_none_or(|topic| *topic == entry.topic);
    let open: Vec<Entry> = list(&store, &names)?.into_iter().filter(of_topic).collect();
    let shown: Vec<&Entry> = open
        .iter()
        .filter(|entry| args.all || entry.state.is_held())
        .collect();
    if args.json {
        for entry in shown {
            print(&format!("{}\n", json(entry)));
        }
    } else {
        print(&page(&open, &shown));
        print(whose(store.durability()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A replicated store holds what others own too, and does not know whose a partition is by now.
const fn whose(durability: Durability) -> &'static str {
    match durability {
        Durability::Local => "",
        Durability::Replicated => {
            "this store is a copy of changelogs, also of partitions that other members own: what it lists may have ended \
             since it was read, and a verdict counts only if the partition comes back to this member\n"
        }
    }
}

fn page(open: &[Entry], shown: &[&Entry]) -> String {
    let mut text = String::new();
    if !shown.is_empty() {
        let mut table = Table::new([
            "MESSAGE", "TOKEN", "STATE", "SINCE", "ATTEMPTS", "BYTES", "VERDICT",
        ]);
        for entry in shown {
            table.row([
                entry.place(),
                entry.token(),
                match entry.state {
                    State::Retry(due_ms) => format!("to be retried at {}", moment(due_ms)),
                    state => state.to_string(),
                },
                moment(entry.since_ms),
                entry.attempts.to_string(),
                ByteCount(entry.bytes as u64).to_string(),
                entry.verdict.map_or("-", Verdict::code).to_owned(),
            ]);
        }
        text = format!("{table}\n");
    }
    let number = |is: fn(&Entry) -> bool| open.iter().filter(|entry| is(entry)).count();
    let held = number(|entry| entry.state.is_held());
    let waiting = number(|entry| entry.state == State::InDoubt && entry.verdict.is_none());
    let decided = number(|entry| entry.verdict.is_some());
    let retried = number(|entry| matches!(entry.state, State::Retry(_)) && entry.verdict.is_none());
    text.push_str(&format!(
        "{} held: {waiting} in doubt without a verdict, {decided} with one, {retried} to be retried, {} behind their token or key\n",
        count(held, "message"),
        held - waiting - decided - retried
    ));
    let begun = number(|entry| entry.state == State::Begun);
    if begun > 0 {
        text.push_str(&format!(
            "{} begun without an outcome: the next start decides about them by their class\n",
            count(begun, "message")
        ));
    }
    text
}

fn json(entry: &Entry) -> serde_json::Value {
    let behind = match entry.state {
        State::Behind(first) => first.map(|first| first.0),
        _ => None,
    };
    serde_json::json!({
        "topic": entry.topic,
        "partition": entry.id.partition,
        "offset": entry.offset.0,
        "tokens": entry.keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "state": entry.state.name(),
        "behind_offset": behind,
        "since_ms": entry.since_ms,
        "attempts": entry.attempts,
        "bytes": entry.bytes,
        "verdict": entry.verdict.map(Verdict::code),
    })
}
