//! `hapax resolve`: a person says what became of a message that is held.
//!
//! The verdict and the act that it is kept as are one durable write. A running consumer carries it out at once; of a stopped one
//! it is written into the store, and carried out when the partition is assigned next.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::inspect::token;
use super::port::{Act, Ports, show};
use super::{Failure, count, names, open, print};
use crate::act::Said;
use crate::admin::shapes::{Resolve, Which};
use crate::clock::Clock;
use crate::held::{Entry, State, Target, choose, decide, list};
use crate::outcome::Verdict;
use crate::store::Store as _;
use crate::token::TokenKey;

/// Decide about messages that are held: of running consumers, or of a stopped one with --state-dir.
///
/// The verdict is kept durably with who gave it and why (`hapax audit`). A running consumer carries it out at once, a stopped
/// one at its next start; until then another verdict replaces it. To say it twice changes nothing. What is said of many at
/// once is only shown, until --yes is given.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["topic", "token", "all_in_doubt", "all"]))]
#[command(group = clap::ArgGroup::new("verdict").required(true).args(["done", "run", "dead_letter"]))]
pub(super) struct Args {
    #[command(flatten)]
    ports: Ports,
    /// The state directory of a stopped consumer. Run this as the user that the consumer runs as.
    #[arg(long, value_name = "DIR", conflicts_with = "admin")]
    state_dir: Option<PathBuf>,

    /// The message's topic; with --partition and --offset.
    #[arg(long, value_name = "TOPIC", requires = "partition", requires = "offset")]
    topic: Option<String>,
    /// The message's partition.
    #[arg(long, value_name = "N", requires = "topic")]
    partition: Option<i32>,
    /// The message's offset.
    #[arg(long, value_name = "N", requires = "topic")]
    offset: Option<i64>,
    /// Refuse where it has had another number of attempts than `hapax held` showed: what became of a later one is not known.
    #[arg(long, value_name = "N", requires = "offset", conflicts_with = "state_dir")]
    attempts: Option<u32>,
    /// The message's token, as `hapax held` prints it: 32 hex digits.
    #[arg(long, value_name = "HEX", value_parser = token)]
    token: Option<TokenKey>,
    /// Every message that is in doubt and has no verdict; with --yes.
    #[arg(long)]
    all_in_doubt: bool,
    /// Every message of running consumers that is held for that reason: in-doubt, retry or behind-key; with --yes.
    #[arg(long, value_name = "STATE", value_parser = ["in-doubt", "retry", "behind-key"], conflicts_with = "state_dir")]
    all: Option<String>,
    /// Of many: those of this topic.
    #[arg(long, value_name = "TOPIC", requires = "all")]
    of_topic: Option<String>,
    /// Of many: those held since then or later. RFC 3339, or how long ago: "2h".
    #[arg(long, value_name = "TIME", requires = "all", value_parser = moment_ms)]
    since: Option<i64>,
    /// Of many: those held since before then.
    #[arg(long, value_name = "TIME", requires = "all", value_parser = moment_ms)]
    until: Option<i64>,
    /// Do it, where many are meant.
    #[arg(long)]
    yes: bool,

    /// It was applied: record it as done, without a reply.
    #[arg(long)]
    done: bool,
    /// It was not applied, and can no longer be: run it.
    #[arg(long)]
    run: bool,
    /// Give up on it: send it to the dead-letter topic with reason `operator`.
    #[arg(long)]
    dead_letter: bool,

    #[command(flatten)]
    act: Act,
}

/// A moment, or how long ago it was, in milliseconds since the epoch.
pub(super) fn moment_ms(text: &str) -> Result<i64, String> {
    if let Ok(moment) = humantime::parse_rfc3339_weak(text) {
        let since_epoch = moment.duration_since(std::time::UNIX_EPOCH);
        return since_epoch
            .map(crate::clock::millis)
            .map_err(|error| error.to_string());
    }
    let ago = humantime::parse_duration(text)
        .map_err(|_| "neither a moment (2026-01-31T12:00:00Z) nor how long ago (90m)".to_owned())?;
    Ok(Clock::system().wall_ms() - crate::clock::millis(ago))
}

impl Args {
    const fn verdict(&self) -> Verdict {
        match (self.done, self.run) {
            (true, _) => Verdict::Done,
            (_, true) => Verdict::Run,
            _ => Verdict::DeadLetter,
        }
    }

    /// Whether it is about many, and is not to be done yet.
    fn shows_only(&self) -> bool {
        self.act.dry_run || ((self.all_in_doubt || self.all.is_some()) && !self.yes)
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Some(dir) = &args.state_dir {
        return stopped(args, dir);
    }
    let which = Which {
        topic: args.topic.clone().or_else(|| args.of_topic.clone()),
        partition: args.partition,
        offset: args.offset,
        attempts: args.attempts,
        token: args.token.map(|token| token.to_string()),
        state: match args.all_in_doubt {
            true => Some(State::InDoubt.name().to_owned()),
            false => args.all.clone(),
        },
        since_ms: args.since,
        until_ms: args.until,
        limit: None,
    };
    let body = Resolve {
        which,
        verdict: args.verdict().code().to_owned(),
        words: args.act.words(args.shows_only()),
    };
    let answers = args.ports.post("/v1/resolve", &args.act, &body)?;
    let code = show(&answers);
    if args.shows_only() && !args.act.dry_run {
        print("give --yes to do it\n");
    }
    Ok(code)
}

fn stopped(args: &Args, dir: &Path) -> Result<ExitCode, Failure> {
    let target = match (&args.topic, args.partition, args.offset, args.token) {
        (Some(topic), Some(partition), Some(offset), _) => Target::Message {
            topic: topic.clone(),
            partition,
            offset,
        },
        (_, _, _, Some(token)) => Target::Token(token),
        _ => Target::AllInDoubt,
    };
    let verdict = args.verdict();
    let said = Said {
        reason: args.act.reason.clone(),
        by: args.act.by(),
        at_ms: Clock::system().wall_ms(),
    };
    let store = open(dir)?;
    let entries = list(&store, &names(&store))?;
    let chosen = choose(&entries, &target).map_err(Failure::new)?;
    let mut given = 0;
    if !args.shows_only() {
        given = decide(&store, &chosen, verdict, &said)?;
    }
    store.close()?;
    for entry in &chosen {
        print(&written(entry, verdict, &entries));
    }
    print(&match (chosen.len(), given) {
        (0, _) => "nothing is in doubt without a verdict\n".to_owned(),
        (chosen, _) if args.shows_only() => format!(
            "{} would be written; nothing was done{}\n",
            count(chosen, "verdict"),
            if args.act.dry_run {
                ""
            } else {
                ": give --yes to do it"
            }
        ),
        (_, 0) => String::new(),
        (_, given) => format!(
            "{} written; carried out when the consumer starts next and has the partition\n",
            count(given, "verdict")
        ),
    });
    Ok(ExitCode::SUCCESS)
}

fn written(entry: &Entry, verdict: Verdict, entries: &[Entry]) -> String {
    let (place, word) = (entry.place(), verdict.code());
    let behind = entries
        .iter()
        .filter(|other| other.id == entry.id && other.state == State::Behind(Some(entry.offset)))
        .count();
    let mut text = match entry.verdict {
        Some(before) if before == verdict => format!("{place}: --{word} was given before, nothing changed\n"),
        Some(before) => format!("{place}: --{word}, in place of --{}\n", before.code()),
        None => format!("{place}: --{word}\n"),
    };
    if behind > 0 {
        text.push_str(&format!(
            "  {} held behind it: judged by its outcome\n",
            count(behind, "message")
        ));
    }
    text
}
