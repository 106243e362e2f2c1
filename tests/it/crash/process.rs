//! One consumer process.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::child::{self, Spec};

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ended {
    /// By SIGKILL.
    Killed,
    /// By itself, with everything drained.
    InOrder,
    /// In any other way.
    Badly(ExitStatus),
}

/// A consumer process that runs. Dropped, it is killed; and where this process ends without dropping it, it ends
/// itself, because it reads the other end of its standard input.
pub(crate) struct Process {
    child: Child,
    started: Instant,
    log: PathBuf,
    ready: PathBuf,
    asked: bool,
}

impl Process {
    /// Starts this test binary for the one test that is a consumer.
    pub(crate) fn start(dir: &Path, spec: &Spec, armed: Option<&str>) -> Self {
        let binary = std::env::current_exe().unwrap();
        Self::start_under(Command::new(binary), dir, spec, armed)
    }

    /// The same with another program in front, which is given the binary as its last argument.
    pub(crate) fn start_under(mut command: Command, dir: &Path, spec: &Spec, armed: Option<&str>) -> Self {
        let told = dir.join(format!("spec-{}", spec.life));
        std::fs::write(&told, serde_json::to_vec(spec).unwrap()).unwrap();
        // What an earlier life has left says nothing of this one.
        let _ = std::fs::remove_file(&spec.ready);
        let log = dir.join(format!("log-{}", spec.life));
        let out = File::create(&log).unwrap();
        command
            .args([
                child::TEST,
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(child::VARIABLE, &told)
            .env_remove("HAPAX_CRASH_AT")
            .stdin(Stdio::piped())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        if let Some(armed) = armed {
            command.env("HAPAX_CRASH_AT", armed);
        }
        match &spec.broken {
            Some(rule) => command.env("HAPAX_BREAK", rule),
            None => command.env_remove("HAPAX_BREAK"),
        };
        Self {
            child: command.spawn().unwrap(),
            started: now(),
            log,
            ready: spec.ready.clone(),
            asked: false,
        }
    }

    pub(crate) fn age(&self) -> Duration {
        now().duration_since(self.started)
    }

    /// How it ended, `None` while it runs.
    pub(crate) fn ended(&mut self) -> Option<Ended> {
        let status = self.child.try_wait().unwrap()?;
        Some(match (status.code(), status.signal()) {
            (Some(0), _) => Ended::InOrder,
            (_, Some(9)) => Ended::Killed,
            _ => Ended::Badly(status),
        })
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// SIGTERM, once. Nothing before the process listens for it: ask again.
    pub(crate) fn terminate(&mut self) {
        if self.ready.exists() && !std::mem::replace(&mut self.asked, true) {
            let pid = self.child.id().to_string();
            // A shell has `kill` built in; the program of that name is not everywhere.
            let sent = Command::new("sh").args(["-c", "kill -s TERM $0", &pid]).status();
            assert!(sent.unwrap().success(), "SIGTERM was not sent to pid {pid}");
        }
    }

    /// Whether its log has this text.
    pub(crate) fn says(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).is_ok_and(|log| log.contains(text))
    }

    /// The last lines that it said.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.split_at(lines.len().saturating_sub(30)).1.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the life of another process is measured"
)]
fn now() -> Instant {
    Instant::now()
}
