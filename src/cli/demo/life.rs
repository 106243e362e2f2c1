//! One life of the consumer, seen from the parent: started, listened to, killed or asked to end.
//!
//! A life never outlives this value: dropping it kills.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Error;
use super::child::{Said, Told};
use crate::clock;

/// After SIGKILL the system only has to take the process apart.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// A drain takes its budget at the most, then the consumer and the store close.
const ENDED_WITHIN: Duration = Duration::from_secs(25);

/// How often a process is asked whether it is still there.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A child process.
pub(super) struct Life {
    number: u32,
    process: Child,
    said: Arc<Mutex<Vec<Said>>>,
    listener: Option<JoinHandle<()>>,
    log: PathBuf,
}

impl Life {
    /// Starts one. What it writes to stderr goes to `log`.
    pub(super) fn start(told: &Told, log: PathBuf) -> Result<Self, Error> {
        let starting = |source| Error::Io {
            what: "starting the consumer process".to_owned(),
            source,
        };
        let told_text = serde_json::to_string(told).map_err(|error| starting(error.into()))?;
        let mut command = Command::new(std::env::current_exe().map_err(starting)?);
        command
            .args(["demo", "--child", &told_text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(starting)?)
            .env("NO_COLOR", "1");
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "hapax=info");
        }
        // The environment is the strongest layer of hapax's configuration: what is meant for another consumer of this
        // user must not reach this one.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HAPAX_") {
                command.env_remove(name);
            }
        }
        let mut process = command.spawn().map_err(starting)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let listener = process.stdout.take().map(|stdout| {
            let said = Arc::clone(&said);
            std::thread::spawn(move || listen(stdout, &said))
        });
        Ok(Self {
            number: told.life,
            process,
            said,
            listener,
            log,
        })
    }

    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has said so far.
    pub(super) fn said(&self) -> Vec<Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing, while it lives.
    ///
    /// # Errors
    /// [`Error::Life`] with what it said last.
    pub(super) fn must_live(&mut self) -> Result<(), Error> {
        match self.look()? {
            None => Ok(()),
            Some(status) => Err(self.failed(&format!("ended by itself, {status}"))),
        }
    }

    /// SIGKILL, and everything that it had said.
    pub(super) async fn kill(mut self) -> Result<Vec<Said>, Error> {
        self.process.kill().map_err(|source| Error::Io {
            what: format!("sending SIGKILL to pid {}", self.pid()),
            source,
        })?;
        self.gone(GONE_WITHIN).await?;
        Ok(self.said())
    }

    /// SIGTERM, and everything that it had said. It must end in time, and well.
    pub(super) async fn end(mut self) -> Result<Vec<Said>, Error> {
        // A shell has `kill` built in; the program of that name is not everywhere.
        let pid = self.pid().to_string();
        let sent = Command::new("sh").args(["-c", "kill -s TERM $0", &pid]).status();
        if !sent.is_ok_and(|status| status.success()) {
            return Err(self.failed("got no SIGTERM: `sh -c kill` failed"));
        }
        let status = self.gone(ENDED_WITHIN).await?;
        if status.success() {
            Ok(self.said())
        } else {
            Err(self.failed(&format!("did not end well, {status}")))
        }
    }

    /// Waits until the process is gone and its last line is read.
    async fn gone(&mut self, within: Duration) -> Result<ExitStatus, Error> {
        let until = clock::now() + within;
        loop {
            if let Some(status) = self.look()? {
                // The pipe has no other writer, so its end is near.
                if let Some(listener) = self.listener.take() {
                    let _ = listener.join();
                }
                return Ok(status);
            }
            if clock::now() >= until {
                return Err(self.failed(&format!("is still there {within:?} after the signal")));
            }
            clock::sleep_until(clock::now() + LOOK_EVERY).await;
        }
    }

    fn look(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.process.try_wait().map_err(|source| Error::Io {
            what: format!("asking about pid {}", self.process.id()),
            source,
        })
    }

    fn failed(&self, what: &str) -> Error {
        let why = self.said().into_iter().rev().find_map(|said| match said {
            Said::Failed { why } => Some(why),
            _ => None,
        });
        Error::Life {
            number: self.number,
            what: what.to_owned(),
            why: why.unwrap_or_else(|| "it said nothing".to_owned()),
            log: self.log.clone(),
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A line that is cut off by a kill is nothing that was said.
fn listen(stdout: ChildStdout, said: &Mutex<Vec<Said>>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if let Ok(one) = serde_json::from_str(&line) {
            said.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        }
    }
}
