//! `hapax redrive`: dead letters go back to the member that has their partition, which holds them and runs them.
//!
//! Nothing is produced to the topic: a message that came again at another offset would be a duplicate, or a second effect.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::port::{Act, Ports, show};
use super::resolve::moment_ms;
use super::{ConfigFile, Failure, count, print};
use crate::admin::shapes::{Answers, Letter, Redrive, to_text};
use crate::broker::kafka::letters::{self, Found};
use crate::error::chain;

/// Letters of one request: half of what the port takes, since bytes are longer in base64.
const REQUEST_BYTES: usize = 6 << 20;
const REQUEST_LETTERS: usize = 500;

/// Letters that are kept in memory at the most.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// Run dead letters again: each goes to the member that has its partition, is held there, and runs at once.
///
/// Read from the dead-letter topic of the configuration; of several letters of one message the last counts. What is done since, or
/// held already, stays as it is. Without --yes nothing is done: it says what would be.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    ports: Ports,
    /// The topic that the messages came from.
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// Only of this partition.
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// Only the message at this offset.
    #[arg(long, value_name = "N", requires = "partition")]
    offset: Option<i64>,
    /// Only those given up on for that reason: rejected, retries-spent, malformed, …
    #[arg(long, value_name = "REASON")]
    of_reason: Option<String>,
    /// Only messages stamped then or later. RFC 3339, or how long ago: "2h".
    #[arg(long, value_name = "TIME", value_parser = moment_ms)]
    since: Option<i64>,
    /// Only messages stamped before then.
    #[arg(long, value_name = "TIME", value_parser = moment_ms)]
    until: Option<i64>,
    /// Not more than so many; the rest is said.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
    /// No attempt at them has applied anything: needed for guarded classes where that is in doubt (crashed, moved, held-too-long,
    /// operator).
    #[arg(long)]
    not_applied: bool,
    /// Do it.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    act: Act,
}

impl Args {
    fn means(&self, letter: &Found) -> bool {
        let stamp = letter.message.timestamp_ms;
        letter.topic == self.topic
            && self
                .partition
                .is_none_or(|partition| partition == letter.partition)
            && self.offset.is_none_or(|offset| offset == letter.offset)
            && self
                .of_reason
                .as_ref()
                .is_none_or(|reason| letter.reason.as_ref() == Some(reason))
            && self
                .since
                .is_none_or(|since| stamp.is_some_and(|stamp| stamp >= since))
            && self
                .until
                .is_none_or(|until| stamp.is_some_and(|stamp| stamp < until))
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let settings = args.config.settings()?;
    let topic = settings.dead_letter.topic_of(&args.topic);
    let mut chosen: BTreeMap<(i32, i64), Found> = BTreeMap::new();
    let (mut more, mut bytes) = (0_usize, 0_usize);
    let others = letters::read(&settings, &topic, |letter| {
        if !args.means(&letter) {
            return;
        }
        let of = (letter.partition, letter.offset);
        let has_room = chosen.len() < args.limit && bytes < KEPT_BYTES_MAX;
        if !has_room && !chosen.contains_key(&of) {
            more += 1;
            return;
        }
        bytes += letter.message.bytes();
        if let Some(earlier) = chosen.insert(of, letter) {
            bytes -= earlier.message.bytes();
        }
    })
    .map_err(|error| Failure(chain(&error)))?;
    if others > 0 {
        print(&format!(
            "{topic}: {} no letters of hapax, and passed over\n",
            count(others as usize, "message")
        ));
    }
    let dry_run = !args.yes;
    let mut all = Answers {
        dry_run: dry_run || args.act.dry_run,
        more: more > 0,
        ..Answers::default()
    };
    for (partition, letters) in requests(chosen) {
        let body = Redrive {
            topic: args.topic.clone(),
            partition,
            letters,
            not_applied: args.not_applied,
            words: args.act.words(dry_run),
        };
        let answers = args.ports.post("/v1/redrive", &args.act, &body)?;
        all.acts.extend(answers.acts);
        all.warning = answers.warning.or(all.warning);
    }
    let code = show(&all);
    if dry_run && !args.act.dry_run && !all.acts.is_empty() {
        print("give --yes to do it\n");
    }
    Ok(code)
}

/// Letters by partition, in parts that fit into a request.
fn requests(chosen: BTreeMap<(i32, i64), Found>) -> Vec<(i32, Vec<Letter>)> {
    let mut requests: Vec<(i32, Vec<Letter>)> = Vec::new();
    let mut bytes = 0;
    for ((partition, _), found) in chosen {
        let own = found.message.bytes();
        let fits = requests.last().is_some_and(|(of, letters)| {
            *of == partition && letters.len() < REQUEST_LETTERS && bytes + own <= REQUEST_BYTES
        });
        if !fits {
            requests.push((partition, Vec::new()));
            bytes = 0;
        }
        bytes += own;
        if let Some((_, letters)) = requests.last_mut() {
            letters.push(letter(found));
        }
    }
    requests
}

fn letter(found: Found) -> Letter {
    let text = |bytes: bytes::Bytes| to_text(&bytes);
    let message = found.message;
    Letter {
        offset: found.offset,
        reason: found.reason,
        timestamp_ms: message.timestamp_ms,
        key: message.key.map(text),
        payload: message.payload.map(text),
        headers: message
            .headers
            .into_iter()
            .map(|(name, value)| (name, value.map(text)))
            .collect(),
    }
}
