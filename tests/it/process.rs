//! A consumer in a process of its own: this same test binary, started again for one ignored test, which does nothing
//! elsewhere. Whoever starts it kills, freezes and stops it; and when they are gone, it ends.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use hapax::Consumer;

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
