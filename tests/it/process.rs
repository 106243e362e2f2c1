//! A consumer in a process of its own: this same test binary, started again for one ignored test, which does nothing
//! elsewhere. Whoever starts it kills, freezes and stops it; and when they are gone, it ends.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hapax::Consumer;
use hapax::accounts::{Account, Balance};
use tokio::signal::unix::{SignalKind, signal};

use crate::checker::Books;
use crate::kafka::eventually;
use crate::member::SOON;

/// A child, killed with the test that started it.
pub(crate) struct Process(Child);

impl Process {
    /// Starts the test of that name. The child finds what it is told with [`told`].
    pub(crate) fn start(test: &str, orders: &[(&str, &str)]) -> Self {
        Self::start_crashing(test, orders, None)
    }

    /// The same. It kills itself at that point, where there is one.
    pub(crate) fn start_crashing(test: &str, orders: &[(&str, &str)], point: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env_remove("HAPAX_CRASH_AT")
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        for (name, value) in orders {
            command.env(variable(name), value);
        }
        if let Some(point) = point {
            command.env("HAPAX_CRASH_AT", point);
        }
        Self(command.spawn().unwrap())
    }

    pub(crate) fn signal(&self, name: &str) {
        // A shell has `kill` built in; the program of that name is not everywhere.
        let sent = Command::new("sh")
            .args(["-c", "kill -s $0 $1", name, &self.0.id().to_string()])
            .status();
        assert!(sent.unwrap().success(), "SIG{name}");
    }

    /// Waits until it has killed itself.
    pub(crate) fn dies(mut self) {
        let status = eventually("the child's death", SOON, || self.0.try_wait().unwrap());
        assert!(!status.success(), "it went past the point: {status}");
    }

    /// Asks it to stop, by closing its input, and waits for a clean end.
    pub(crate) fn stop(mut self) {
        drop(self.0.stdin.take());
        let status = eventually("the child's end", SOON, || self.0.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn variable(name: &str) -> String {
    format!("IT_{}", name.to_uppercase())
}

/// In the child: what it is told under that name.
pub(crate) fn told(name: &str) -> String {
    std::env::var(variable(name)).expect("a child process, started by another test")
}

/// In the child: says what it does on stderr, and ends at once when whoever started it is gone: they hold the other end of its
/// input.
pub(crate) fn is_a_child() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::abort();
    });
    tracing_subscriber::fmt()
        .with_env_filter("hapax=info,warn")
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}

/// In the child: consumes until SIGTERM comes, which may be sent once the file `ready` is there. Its accounts, one entry for
/// each assignment, are in the file `books` then.
pub(crate) fn live(consumer: Consumer, ready: &Path, books: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let running = runtime.block_on(async {
        let mut asked = signal(SignalKind::terminate()).unwrap();
        // Before this nobody may ask: the signal would end the process in the middle of its start.
        std::fs::write(ready, "").unwrap();
        let stop = async move {
            asked.recv().await;
        };
        consumer.run_until(stop).await
    });
    let summary = match running {
        Ok(summary) => summary,
        Err(error) => panic!("the consumer ended: {}", hapax::error::chain(&error)),
    };
    let stated: Vec<Books> = summary.balances.iter().map(stated).collect();
    std::fs::write(books, serde_json::to_vec(&stated).unwrap()).unwrap();
}

fn stated(balance: &Balance) -> Books {
    Books {
        taken: balance.taken,
        restored: balance.restored,
        in_flight: balance.of(Account::InFlight),
        done: balance.of(Account::Done),
        failed: balance.of(Account::Failed),
        duplicate: balance.of(Account::Duplicate),
        redelivery: balance.of(Account::Redelivery),
        held: balance.of(Account::Held),
        skipped: balance.of(Account::Skipped),
        released: balance.of(Account::Released),
    }
}

/// In the child: consumes until the test stops it, or is gone. Then its books balance.
pub(crate) async fn run(consumer: Consumer) {
    // Its end of the pipe closes.
    let stopped = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let summary = consumer
        .run_until(async move {
            let _ = stopped.await;
        })
        .await
        .unwrap_or_else(|error| panic!("{}", hapax::error::chain(&error)));
    let mut balances = summary.balances.iter();
    assert!(balances.all(|balance| balance.remainder() == 0), "{summary:?}");
}
