//! The `hapax` command: a file per verb, and what they share. `clap` is named in this folder only.
//!
//! Exit codes: 0 for done and good, 1 for a problem that was found or met, 2 for wrong usage.

mod audit;
mod check;
mod demo;
mod explain;
mod held;
mod inspect;
mod port;
mod redrive;
mod resolve;
mod status;
mod tokens;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Parser, Subcommand};

use crate::config::{self, Layer, Settings};
use crate::error::chain;
use crate::store::rocks::RocksStore;
use crate::store::{self, TopicId};

/// A Kafka consumer runtime whose effects happen once.
///
/// Exit codes: 0 good, 1 a problem was found, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "hapax", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Check(check::Args),
    Explain(explain::Args),
    Status(status::Args),
    Held(held::Args),
    Inspect(inspect::Args),
    Resolve(resolve::Args),
    Invalidate(tokens::Invalidate),
    Forget(tokens::Forget),
    Redrive(redrive::Args),
    Audit(audit::Args),
}

/// The whole command, as the binary runs it.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { verb } = Cli::parse();
    log_to_stderr();
    let (name, outcome) = match verb {
        Verb::Demo(args) => return demo::run(args),
        Verb::Check(args) => ("check", check::run(&args)),
        Verb::Explain(args) => ("explain", explain::run(&args)),
        Verb::Status(args) => ("status", status::run(&args)),
        Verb::Held(args) => ("held", held::run(&args)),
        Verb::Inspect(args) => ("inspect", inspect::run(&args)),
        Verb::Resolve(args) => ("resolve", resolve::run(&args)),
        Verb::Invalidate(args) => ("invalidate", tokens::invalidate(&args)),
        Verb::Forget(args) => ("forget", tokens::forget(&args)),
        Verb::Redrive(args) => ("redrive", redrive::run(&args)),
        Verb::Audit(args) => ("audit", audit::run(&args)),
    };
    outcome.unwrap_or_else(|Failure(why)| {
        say(&format!("hapax {name}: {why}\n"));
        ExitCode::FAILURE
    })
}

/// Nothing, unless `RUST_LOG` asks for it: what a verb has to say it prints.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing_subscriber::filter::LevelFilter::OFF.into())
        .from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Whoever calls this as a library may have one already.
    let _ = log.try_init();
}

/// Why a verb did not do what it was asked.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self(chain(&error))
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self(chain(&error))
    }
}

/// Says something that is no answer, beside it.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Prints, and does not mind a reader that has gone: `hapax held | head`.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration; HAPAX_ variables override it.
    #[arg(long, value_name = "FILE", default_value = "hapax.toml")]
    config: PathBuf,
}

impl ConfigFile {
    fn settings(&self) -> Result<Settings, config::Error> {
        let file = config::file(&self.config)?;
        // Variables that are not Unicode are nobody's setting of ours.
        let unicode = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        config::resolve(config::env(unicode)?, file, Layer::default())
    }
}

/// Opens the store of a stopped consumer.
fn open(dir: &Path) -> Result<RocksStore, Failure> {
    visit(dir).map_err(|error| match error {
        store::Error::Locked { path } => Failure::new(format_args!(
            "{} is in use by a running consumer: leave --state-dir out and ask that one by its admin port, or stop it",
            path.display()
        )),
        store::Error::Directory { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::new(format_args!(
                "there is no store in {}; give --state-dir the `state_dir` of the consumer",
                path.display()
            ))
        }
        other => other.into(),
    })
}

fn visit(dir: &Path) -> Result<RocksStore, store::Error> {
    RocksStore::open_existing_for_cli(dir)
}

/// The names of every topic that the store knows.
fn names(store: &RocksStore) -> BTreeMap<TopicId, String> {
    let topics = store.topics().into_iter();
    topics.map(|(id, spec)| (id, spec.name)).collect()
}

/// A moment as people read it, in UTC.
fn moment(at_ms: i64) -> String {
    match u64::try_from(at_ms) {
        Ok(ms) => humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms.min(MOMENT_MAX_MS)))
            .to_string(),
        // Before 1970 no clock was ours.
        Err(_) => format!("{at_ms} ms"),
    }
}

/// The end of the year 9999, past which RFC 3339 has no text.
const MOMENT_MAX_MS: u64 = 253_402_300_799_999;

/// Columns as wide as their widest cell.
struct Table(Vec<Vec<String>>);

impl Table {
    fn new<const N: usize>(titles: [&str; N]) -> Self {
        Self(vec![titles.map(str::to_owned).into()])
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        // A topic's name or an operator's words must not break the lines, or drive the terminal.
        let clean = cells.map(|cell| cell.replace(char::is_control, " "));
        self.0.push(clean.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.0.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.0 {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// "1 message", "2 messages".
fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_moment_is_read_as_utc_at_any_number() {
        assert_eq!(moment(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(moment(i64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(moment(-1), "-1 ms");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["A", "B"]);
        table.row(["é1234".into(), String::new()]);
        assert_eq!(table.to_string(), "A      B\né1234\n");
    }
}
