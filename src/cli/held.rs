//! `hapax held`: what consumers keep for later, and what waits for a person.

use std::path::PathBuf;
use std::process::ExitCode;

use super::port::Ports;
use super::{Failure, Table, count, moment, names, open, print};
use crate::admin::shapes::{HeldList, HeldOne};
use crate::config::{ByteCount, Durability};
use crate::held::{Entry, State, list};

/// List the messages that consumers hold.
///
/// Those in doubt wait for `hapax resolve`; those behind their token are judged by its outcome. Of running consumers, or of a
/// stopped one with --state-dir.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ports: Ports,
    /// The state directory of a stopped consumer. Run this as the user that the consumer runs as.
    #[arg(long, value_name = "DIR", conflicts_with = "admin")]
    state_dir: Option<PathBuf>,
    /// Only this topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Also what is open and not held: begun without an outcome, and dead letters not yet acknowledged.
    #[arg(long)]
    all: bool,
    /// Of running consumers: not more than so many of each.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut more = false;
    let (found, whose) = match &args.state_dir {
        Some(_) => stopped(args)?,
        None => {
            let query = [
                ("topic", args.topic.clone()),
                ("limit", Some(args.limit.to_string())),
            ];
            let mut found = Vec::new();
            for (_, answer) in args.ports.get_all::<HeldList>("/v1/held", &query)? {
                more |= answer.more;
                found.extend(answer.held);
            }
            (found, "")
        }
    };
    let shown = found.iter().filter(|one| args.all || is_held(one));
    if args.json {
        for one in shown {
            let line = serde_json::to_string(one).map_err(Failure::new)?;
            print(&format!("{line}\n"));
        }
    } else {
        print(&page(&found, &shown.collect::<Vec<_>>()));
        print(whose);
        if more {
            print("there are more than these: give --topic, or a larger --limit\n");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn stopped(args: &Args) -> Result<(Vec<HeldOne>, &'static str), Failure> {
    let store = open(&args.state_dir.clone().unwrap_or_default())?;
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
    let of_topic = |entry: &&Entry| args.topic.as_ref().is_none_or(|topic| *topic == entry.topic);
    let open = list(&store, &names)?;
    let found = open.iter().filter(of_topic).map(HeldOne::of).collect();
    Ok((found, whose(store.durability())))
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

fn is_held(one: &HeldOne) -> bool {
    one.state != State::Begun.name() && one.state != State::Settling.name()
}

/// Its state as people read it.
pub(super) fn state(one: &HeldOne) -> String {
    match (one.state.as_str(), one.due_ms, one.behind_offset) {
        ("in-doubt", _, _) => "in doubt".to_owned(),
        ("retry", Some(due_ms), _) => format!("to be retried at {}", moment(due_ms)),
        ("behind-token", _, Some(first)) => format!("behind its token, open at {first}"),
        ("behind-token", _, None) => "behind its token, now closed".to_owned(),
        ("behind-key", _, _) => "behind its key".to_owned(),
        (other, _, _) => other.to_owned(),
    }
}

fn page(open: &[HeldOne], shown: &[&HeldOne]) -> String {
    let mut text = String::new();
    if !shown.is_empty() {
        let mut table = Table::new([
            "MESSAGE", "TOKEN", "STATE", "SINCE", "ATTEMPTS", "BYTES", "VERDICT",
        ]);
        for one in shown {
            table.row([
                format!("{}[{}]@{}", one.topic, one.partition, one.offset),
                one.tokens.first().cloned().unwrap_or_default(),
                state(one),
                moment(one.since_ms),
                one.attempts.to_string(),
                ByteCount(one.bytes as u64).to_string(),
                one.verdict.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        text = format!("{table}\n");
    }
    let number = |is: fn(&HeldOne) -> bool| open.iter().filter(|one| is(one)).count();
    let held = number(is_held);
    let waiting = number(|one| one.state == State::InDoubt.name() && one.verdict.is_none());
    let decided = number(|one| one.verdict.is_some());
    let retried = number(|one| one.state == State::Retry(0).name() && one.verdict.is_none());
    text.push_str(&format!(
        "{} held: {waiting} in doubt without a verdict, {decided} with one, {retried} to be retried, {} behind their token or key\n",
        count(held, "message"),
        held - waiting - decided - retried
    ));
    let begun = number(|one| one.state == State::Begun.name());
    if begun > 0 {
        text.push_str(&format!(
            "{} begun without an outcome: their class decides, at the next start or when Kafka delivers them again\n",
            count(begun, "message")
        ));
    }
    text
}
