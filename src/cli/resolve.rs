//! `hapax resolve`: a person says what became of a message that is held in doubt.
//!
//! The verdict and the act that it is kept as are one durable write. It is carried out by the consumer: at its next
//! start, when the partition is assigned to it.

use std::process::ExitCode;

use super::{Failure, StateDir, count, names, print};
use crate::act::Said;
use crate::clock::Clock;
use crate::held::{State, Target, choose, decide, list};
use crate::outcome::Verdict;
use crate::store::Store as _;
use crate::token::TokenKey;

/// Decide about messages that are held in doubt, in the store of a stopped consumer.
///
/// The verdict is kept durably with who gave it and why (`hapax audit`), and carried out at the next start. To say it
/// twice changes nothing; until that start another verdict replaces it.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["topic", "token", "all_in_doubt"]))]
#[command(group = clap::ArgGroup::new("verdict").required(true).args(["done", "run", "dead_letter"]))]
pub(super) struct Args {
    #[command(flatten)]
    dir: StateDir,

    /// The message's topic; with --partition and --offset.
    #[arg(long, value_name = "TOPIC", requires = "partition", requires = "offset")]
    topic: Option<String>,
    /// The message's partition.
    #[arg(long, value_name = "N", requires = "topic")]
    partition: Option<i32>,
    /// The message's offset.
    #[arg(long, value_name = "N", requires = "topic")]
    offset: Option<i64>,
    /// The message's token, as `hapax held` prints it: 32 hex digits.
    #[arg(long, value_name = "HEX", value_parser = token)]
    token: Option<TokenKey>,
    /// Every message that is in doubt and has no verdict.
    #[arg(long)]
    all_in_doubt: bool,

    /// It was applied: record it as done, without a reply.
    #[arg(long)]
    done: bool,
    /// It was not applied, and can no longer be: run it.
    #[arg(long)]
    run: bool,
    /// Give up on it: send it to the dead-letter topic with reason `operator`.
    #[arg(long)]
    dead_letter: bool,

    /// Why, for whoever asks later.
    #[arg(long, value_name = "TEXT", value_parser = said)]
    reason: String,
    /// Who decides [default: $USER].
    #[arg(long, value_name = "WHO", value_parser = said)]
    by: Option<String>,
}

fn token(text: &str) -> Result<TokenKey, String> {
    let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(number) if digits => Ok(TokenKey(number.to_be_bytes())),
        _ => Err("a token is 32 hex digits, as `hapax held` prints it".to_owned()),
    }
}

fn said(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

impl Args {
    fn target(&self) -> Option<Target> {
        if let (Some(topic), Some(partition), Some(offset)) = (&self.topic, self.partition, self.offset) {
            return Some(Target::Message {
                topic: topic.clone(),
                partition,
                offset,
            });
        }
        match self.token {
            Some(token) => Some(Target::Token(token)),
            None => self.all_in_doubt.then_some(Target::AllInDoubt),
        }
    }

    const fn verdict(&self) -> Verdict {
        match (self.done, self.run) {
            (true, _) => Verdict::Done,
            (_, true) => Verdict::Run,
            _ => Verdict::DeadLetter,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Some(target) = args.target() else {
        return Err(Failure::new(
            "name a message: --topic, --partition and --offset, or --token, or --all-in-doubt",
        ));
    };
    let verdict = args.verdict();
    let said = Said {
        reason: args.reason.clone(),
        by: args
            .by
            .clone()
            .or_else(|| std::env::var("USER").ok().filter(|user| !user.is_empty()))
            .unwrap_or_else(|| "unknown".to_owned()),
        at_ms: Clock::system().wall_ms(),
    };
    let store = args.dir.open()?;
    let entries = list(&store, &names(&store))?;
    let chosen = choose(&entries, &target).map_err(Failure::new)?;
    let group = decide(&store, &chosen, verdict, &said)?;
    if !group.is_empty() {
        store.apply(&group)?;
    }
    store.close()?;

    let given = group.iter().map(|changes| changes.acts.len()).sum::<usize>();
    let word_of = verdict.code();
    for entry in &chosen {
        let place = entry.place();
        let behind = entries
            .iter()
            .filter(|other| other.id == entry.id && other.state == State::Behind(Some(entry.offset)))
            .count();
        print(&match entry.verdict {
            Some(before) if before == verdict => {
                format!("{place}: --{word_of} was given before, nothing changed\n")
            }
            Some(before) => format!("{place}: --{word_of}, in place of --{}\n", before.code()),
            None => format!("{place}: --{word_of}\n"),
        });
        if behind > 0 {
            print(&format!(
                "  {} held behind it: judged by its outcome\n",
                count(behind, "message")
            ));
        }
    }
    print(&match (chosen.len(), given) {
        (0, _) => "nothing is in doubt without a verdict\n".to_owned(),
        (_, 0) => String::new(),
        (_, given) => format!(
            "{} written; carried out when the consumer starts next and has the partition\n",
            count(given, "verdict")
        ),
    });
    Ok(ExitCode::SUCCESS)
}
