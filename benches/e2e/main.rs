//! End to end, side by side: one broker, one topic, and each contestant in a process of its own.
//!
//! `scripts/bench.sh` is how to run it: that starts the broker and fills the topics. The driver starts this program
//! again for each contestant that is ours, and `benches/peers/` for Kafka Streams, in rounds, so that what the machine
//! does meanwhile falls on all of them. A contestant that did not do the whole work has no figure: its error ends the
//! bench.

#![allow(
    clippy::disallowed_methods,
    reason = "a bench reads the clock: that is what it is for"
)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::contestants::Task;

mod broker;
mod contestants;
mod driver;
mod figures;
#[path = "../filled/mod.rs"]
mod filled;
mod held;
mod paced;
mod pairs;
mod process;
mod serve;
mod slow;
mod stored;
mod streams;
mod twice;

/// Every error ends the bench, with its text.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "Measures hapax beside a bare loop and Kafka Streams. Run it through scripts/bench.sh.")]
struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// All contestants in rounds, then the table and one line for each figure.
    Run(Run),
    /// One contestant, in this process.
    #[command(hide = true)]
    Contestant(Task),
}

/// What the driver is told.
#[derive(Debug, Clone, clap::Args)]
struct Run {
    #[arg(long)]
    brokers: String,
    /// Filled with unique tokens.
    #[arg(long)]
    topic: String,
    /// Filled likewise, with 200 partitions.
    #[arg(long)]
    wide_topic: String,
    /// Messages in `--topic`; asked of the broker, too.
    #[arg(long)]
    messages: u64,
    /// How often each contestant runs.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Tokens of the store that is reopened.
    #[arg(long, default_value_t = 10_000_000)]
    reopen_tokens: u64,
    /// Where state directories are made and removed: the disk that is measured.
    #[arg(long)]
    work: PathBuf,
    /// The folder of the Kafka Streams application.
    #[arg(long)]
    streams: PathBuf,
    /// The folder of the application of Parallel Consumer.
    #[arg(long)]
    parallel: PathBuf,
    /// Filled with unique tokens, for handlers that are slow.
    #[arg(long)]
    slow_topic: String,
    /// Messages in `--slow-topic`.
    #[arg(long, default_value_t = 200_000)]
    slow_messages: u64,
    /// Held messages.
    #[arg(long, default_value_t = 1_000_000)]
    held_messages: u64,
    /// Only these contestants: bare, bare_defaults, local, replicated, non_idempotent, replicated_non_idempotent, streams_alo, streams_eos, restore, streams_restore, reopen_10m, rss_200_partitions, latency, rolling_restart, held, duplicates, slow.
    #[arg(long)]
    only: Vec<String>,
}

fn main() -> ExitCode {
    // `cargo bench` runs every bench with this flag; this one needs a broker.
    if std::env::args().nth(1).as_deref() == Some("--bench") {
        println!("e2e: needs a broker and filled topics: run scripts/bench.sh");
        return ExitCode::SUCCESS;
    }
    let outcome = match Args::parse().part {
        Part::Run(run) => driver::run(&run),
        Part::Contestant(task) => contestants::run(task).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
