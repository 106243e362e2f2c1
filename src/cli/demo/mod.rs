//! `hapax demo`: the main job, with kills, on a broker that needs no installing.
//!
//! A producer sends orders, one in ten twice or more. A consumer in a process of its own charges for them, which is not
//! idempotent, and is killed with SIGKILL in mid-flight and started again, twice. Then the books are kept again from
//! outside ([`books`]) and must balance: the verb fails where they do not, and says which token it is.
//!
//! Everything is bounded: each wait has a limit, and the whole has one too.

mod books;
mod child;
mod life;
mod orders;
mod play;
mod shop;
mod stopped;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::books::{Evidence, Fault, Table};
use crate::broker::kafka::demo::Cluster;
use crate::clock::{self, Instant};

/// Partitions of the demo's topic.
const PARTITIONS: i32 = 4;
/// Handlers at once in each of them.
const SLOTS: u32 = 4;
/// What the token is read from.
const TOKEN_HEADER: &str = "idempotency-key";
/// Longer than any demo.
const WINDOW: Duration = Duration::from_secs(3_600);
/// A handler's: far more than a charge takes, and as long as a probe has to wait.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the group waits for a member that was killed. A real broker takes nothing shorter unless it is told to.
const SESSION: Duration = Duration::from_secs(6);
/// The mock holds a first join for 3 s, and forgets a member that is not heard of for as long as this even while it
/// holds its join.
const EMBEDDED_SESSION: Duration = Duration::from_millis(3_500);
/// A member that joins the mock beside one that was killed waits for a session less a second, and then for the killed
/// one to lead the group. Where it comes this much later, the killed one is forgotten by then, and two seconds are won.
const EMBEDDED_REST: Duration = Duration::from_millis(2_200);
/// The mock keeps 5 MiB of a partition and drops the oldest without a word.
const EMBEDDED_MESSAGES_MAX: u32 = 40_000;

/// Runs the main job before your eyes: duplicates, SIGKILL, restarts, in-doubt messages and a probe.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Use this cluster instead of the broker that is built in. Topics with names of their own are created, and deleted
    /// in the end.
    #[arg(long, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// How many messages are sent.
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    messages: u32,
    /// Which orders there are and which are sent again. The kills are not decided by it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Makes the handler skip or double the effect of one order, to see that the demo notices.
    #[arg(long, hide = true)]
    plant: Option<Plant>,
    /// What the consumer process of a demo is told.
    #[arg(long, hide = true)]
    child: Option<String>,
}

/// A fault made on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Plant {
    /// The handler says that it charged, and did not.
    Lose,
    /// The handler charges twice.
    Repeat,
}

/// Why a demo has no result.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the broker")]
    Broker(#[from] crate::broker::Error),
    #[error("the store of the stopped consumer")]
    Store(#[from] crate::store::Error),
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("life {number} of the consumer {what}; it said: {why}; its log is {log}")]
    Life {
        number: u32,
        what: String,
        why: String,
        log: PathBuf,
    },
    #[error("a dead letter of the demo's topic cannot be read: {0}")]
    Letter(String),
    #[error(
        "the embedded broker keeps at most {EMBEDDED_MESSAGES_MAX} messages; use fewer, or a cluster with --brokers"
    )]
    TooMany,
    #[error(
        "gave up after {after:?}, while waiting for {what}; start it again on a machine with less to do, or with fewer --messages"
    )]
    TooLong { after: Duration, what: String },
    #[error("stopped by a signal")]
    Signal,
    #[error("a part of the demo ended unexpectedly: {0}")]
    Internal(String),
}

/// Runs the verb, or, in the process that a demo starts, one life of its consumer.
pub(crate) fn run(args: Args) -> ExitCode {
    if let Some(told) = &args.child {
        return child::run(told);
    }
    let teller = Teller::new();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            let what = "making a runtime".to_owned();
            return teller.failed(&Error::Io { what, source }, None);
        }
    };
    let code = runtime.block_on(show(&args, &teller));
    // A question to a broker that never answers must not keep the process.
    runtime.shutdown_background();
    code
}

async fn show(args: &Args, teller: &Teller) -> ExitCode {
    let (mut cluster, scratch) = match prepare(args) {
        Ok(prepared) => prepared,
        Err(error) => return teller.failed(&error, None),
    };
    let within = Duration::from_secs(100) + Duration::from_millis(20) * args.messages;
    let group = format!("hapax-demo-{}", scratch.name);
    let played = {
        let stage = play::Stage {
            args,
            teller,
            dir: &scratch.dir,
            group: &group,
        };
        tokio::select! {
            biased;
            () = interrupted() => Err(Error::Signal),
            played = stage.play(&mut cluster) => played,
            () = clock::sleep_until(clock::now() + within) => {
                Err(Error::TooLong { after: within, what: teller.awaited() })
            }
        }
    };
    if let Err(error) = cluster.clean_up(&group).await {
        teller.tell(format_args!(
            "left behind on the cluster: {}",
            crate::error::chain(&error)
        ));
    }
    match played {
        Ok(evidence) => teller.result(&evidence, scratch),
        Err(error) => teller.failed(&error, Some(scratch)),
    }
}

fn prepare(args: &Args) -> Result<(Cluster, Scratch), Error> {
    let cluster = match &args.brokers {
        Some(brokers) => Cluster::real(brokers.clone()),
        None if args.messages > EMBEDDED_MESSAGES_MAX => return Err(Error::TooMany),
        None => Cluster::embedded()?,
    };
    Ok((cluster, Scratch::make()?))
}

/// Ready at SIGINT or SIGTERM; never where the system lets nobody listen.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The folder of one demo.
struct Scratch {
    dir: PathBuf,
    /// Nobody else's: topics and group are named after it.
    name: String,
}

impl Scratch {
    fn make() -> Result<Self, Error> {
        let name = format!("{}-{:08x}", std::process::id(), fastrand::u32(..));
        let dir = std::env::temp_dir().join(format!("hapax-demo-{name}"));
        std::fs::create_dir(&dir).map_err(|source| Error::Io {
            what: format!("making {}", dir.display()),
            source,
        })?;
        Ok(Self { dir, name })
    }
}

/// Tells the audience what happens, a line each, with the time.
struct Teller {
    started: Instant,
    awaited: Mutex<String>,
}

impl Teller {
    fn new() -> Self {
        Self {
            started: clock::now(),
            awaited: Mutex::default(),
        }
    }

    fn tell(&self, line: impl Display) {
        let elapsed = clock::now().duration_since(self.started).as_secs_f64();
        print(&format!("[{elapsed:5.1} s] {line}"));
    }

    /// Says what the demo waits for from now on; told only if it waits too long.
    fn awaits(&self, what: impl Into<String>) {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = what.into();
    }

    fn awaited(&self) -> String {
        self.awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn result(&self, evidence: &Evidence, scratch: Scratch) -> ExitCode {
        let (table, faults) = evidence.balance();
        print_table(&table, evidence);
        let Table {
            messages,
            effects,
            lost,
            repeated,
            ..
        } = table;
        if faults.is_empty() {
            if let Err(error) = std::fs::remove_dir_all(&scratch.dir) {
                self.tell(format_args!("{} is left behind: {error}", scratch.dir.display()));
            }
            print(&format!(
                "demo: accounts balanced, {messages} messages, {effects} effects, {lost} lost, {repeated} repeated"
            ));
            return ExitCode::SUCCESS;
        }
        say_faults(&faults);
        play::keep(evidence, &scratch.dir);
        eprint(&format!(
            "demo: ACCOUNTS NOT BALANCED, {messages} messages, {effects} effects, {lost} lost, {repeated} repeated; \
             everything is kept in {}",
            scratch.dir.display()
        ));
        ExitCode::FAILURE
    }

    fn failed(&self, error: &Error, scratch: Option<Scratch>) -> ExitCode {
        // A folder with nothing in it is nothing to keep.
        let kept = scratch.filter(|scratch| std::fs::remove_dir(&scratch.dir).is_err());
        let kept = kept.map_or_else(String::new, |scratch| {
            format!("; everything is kept in {}", scratch.dir.display())
        });
        eprint(&format!("demo: FAILED: {}{kept}", crate::error::chain(error)));
        ExitCode::FAILURE
    }
}

/// A token can be named by several faults, and there may be many: the first few say enough.
fn say_faults(faults: &[Fault]) {
    const SHOWN: usize = 10;
    for fault in faults.iter().take(SHOWN) {
        eprint(&format!("demo: {fault}"));
    }
    if faults.len() > SHOWN {
        eprint(&format!("demo: and {} more", faults.len() - SHOWN));
    }
}

fn print_table(table: &Table, evidence: &Evidence) {
    let rows = [
        ("messages", table.messages as u64, "sent and acknowledged"),
        ("unique tokens", table.tokens as u64, "orders"),
        ("effects", table.effects as u64, "lines in the file of effects"),
        (
            "duplicates",
            table.duplicates as u64,
            "the same token at another offset: suppressed",
        ),
        (
            "redeliveries",
            table.redeliveries,
            "recorded before a kill, delivered again after it: known by their offset",
        ),
        (
            "in doubt",
            table.in_doubt as u64,
            "begun before a kill, without an outcome: decided by the probe",
        ),
        (
            "dead-lettered",
            table.dead_lettered as u64,
            "orders of 0 cents: refused by the handler",
        ),
    ];
    print("");
    for (name, count, meaning) in rows {
        print(&format!("  {name:<14}{count:>8}   {meaning}"));
    }
    let mut books = child::Books::default();
    for one in &evidence.last_life {
        books.taken += one.taken;
        books.restored += one.restored;
        books
            .accounts
            .iter_mut()
            .zip(one.accounts)
            .for_each(|(sum, count)| *sum += count);
    }
    let balance = crate::accounts::Balance {
        taken: books.taken,
        restored: books.restored,
        accounts: books.accounts,
    };
    let accounts: Vec<String> = crate::accounts::Account::ALL
        .into_iter()
        .filter(|account| balance.of(*account) > 0)
        .map(|account| format!("{} {}", balance.of(account), account.name()))
        .collect();
    print(&format!(
        "\n  the last life's own books: {} taken + {} restored = {}; remainder {}\n",
        balance.taken,
        balance.restored,
        accounts.join(" + "),
        balance.remainder()
    ));
}

/// To stdout; a reader that went away is no reason to stop.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn eprint(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Where a life of the consumer writes its log.
fn log_of(dir: &Path, life: u32) -> PathBuf {
    dir.join(format!("consumer-{life}.log"))
}
