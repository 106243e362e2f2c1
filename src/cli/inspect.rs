//! `hapax inspect`: what is known of one token, or of one message.

use std::process::ExitCode;

use super::held::state;
use super::port::Ports;
use super::{Failure, moment, print};
use crate::admin::shapes::Inspected;
use crate::token::TokenKey;

/// Show what running consumers know of a token or a message: whether it is open, its outcome, what operators did.
///
/// Payloads and replies are not shown.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("subject").required(true).args(["token", "text", "offset"]))]
pub(super) struct Args {
    #[command(flatten)]
    ports: Ports,
    /// The topic.
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// The partition; without it every partition that is served.
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// The token, as `hapax held` prints it: 32 hex digits.
    #[arg(long, value_name = "HEX", value_parser = token)]
    token: Option<TokenKey>,
    /// The token as the message has it.
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Where the text comes from, as `header:NAME`, `key` or `json:POINTER`; by default each source of the topic.
    #[arg(long, value_name = "SOURCE", requires = "text")]
    source: Option<String>,
    /// The message's offset: finds what is open, and what operators did.
    #[arg(long, value_name = "N", requires = "partition")]
    offset: Option<i64>,
    /// JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn token(text: &str) -> Result<TokenKey, String> {
    text.parse()
        .map_err(|()| "a token is 32 hex digits, as `hapax held` prints it".to_owned())
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let query = [
        ("topic", Some(args.topic.clone())),
        ("partition", args.partition.map(|partition| partition.to_string())),
        ("token", args.token.map(|token| token.to_string())),
        ("text", args.text.clone()),
        ("source", args.source.clone()),
        ("offset", args.offset.map(|offset| offset.to_string())),
    ];
    let mut known = false;
    for (_, inspected) in args.ports.get_all::<Inspected>("/v1/inspect", &query)? {
        known |= !inspected.open.is_empty() || !inspected.outcomes.is_empty();
        if args.json {
            let line = serde_json::to_string(&inspected).map_err(Failure::new)?;
            print(&format!("{line}\n"));
        } else {
            print(&page(&args.topic, &inspected));
        }
    }
    if !known && !args.json {
        print("nothing is open, and no outcome is remembered\n");
    }
    Ok(ExitCode::SUCCESS)
}

fn page(topic: &str, inspected: &Inspected) -> String {
    let mut text = String::new();
    for token in &inspected.tokens {
        text.push_str(&format!("token {token}\n"));
    }
    for one in &inspected.open {
        text.push_str(&format!(
            "{}[{}]@{}: {}, {} attempts, since {}\n",
            one.topic,
            one.partition,
            one.offset,
            state(one),
            one.attempts,
            moment(one.since_ms)
        ));
    }
    for outcome in &inspected.outcomes {
        let place = match outcome.offset {
            0.. => format!("{topic}[{}]@{}", outcome.partition, outcome.offset),
            _ => format!("{topic}[{}]", outcome.partition),
        };
        let reason = outcome
            .reason
            .as_ref()
            .map_or(String::new(), |reason| format!(" ({reason})"));
        let reply = outcome
            .reply_bytes
            .map_or(String::new(), |bytes| format!(", a reply of {bytes} bytes"));
        let window = if outcome.in_window {
            ""
        } else {
            ", past its window"
        };
        text.push_str(&format!(
            "{place}: {}{reason} after {} attempts, first seen {}{reply}{window}\n",
            outcome.end,
            outcome.attempts,
            moment(outcome.first_seen_ms)
        ));
    }
    for act in &inspected.acts {
        text.push_str(&format!(
            "{} {} by {}: {}\n",
            moment(act.at_ms),
            act.act,
            act.by,
            act.reason
        ));
    }
    // An operator's words must not break the lines, or drive the terminal.
    text.lines()
        .map(|line| line.replace(char::is_control, " ") + "\n")
        .collect()
}
