//! One consumer process, and the guard that ends it with this one.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::child::{self, Spec};

/// How a process ended.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    /// By SIGKILL.
    Killed,
    /// By itself, with everything drained.
    InOrder,
    /// In any other way: what it said last.
    Badly(String),
}

/// A consumer process that runs, perhaps frozen. Dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    ready: PathBuf,
    asked: bool,
}

impl Process {
    /// Starts this test binary for the one test that is a consumer.
    pub(crate) fn start(
        dir: &Path,
        spec: &Spec,
        variables: &[(&str, Option<&str>)],
        guard: &mut Guard,
    ) -> Self {
        let told = dir.join(format!("spec-{}", spec.life));
        std::fs::write(&told, serde_json::to_vec(spec).unwrap()).unwrap();
        let log = dir.join(format!("log-{}", spec.life));
        let out = File::create(&log).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                child::TEST,
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(child::VARIABLE, &told)
            .stdin(Stdio::piped())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let child = command.spawn().unwrap();
        guard.watch(child.id());
        Self {
            child,
            log,
            ready: spec.ready.clone(),
            asked: false,
        }
    }

    /// How it ended, `None` while it runs.
    pub(crate) fn ended(&mut self) -> Option<Ended> {
        let status = self.child.try_wait().unwrap()?;
        Some(match (status.code(), status.signal()) {
            (Some(0), _) => Ended::InOrder,
            (_, Some(9)) => Ended::Killed,
            _ => Ended::Badly(format!("{status}: {}", self.last_words())),
        })
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// SIGTERM, once. Nothing before the process listens for it: ask again.
    pub(crate) fn terminate(&mut self) {
        if !self.asked && self.ready.exists() {
            self.asked = true;
            self.signal("TERM");
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.exists()
    }

    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// Whether it stands still, perhaps by its own hand.
    pub(crate) fn is_frozen(&self) -> bool {
        let pid = self.child.id();
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            // The state comes after the name, which is in brackets and may hold anything.
            return text
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'));
        }
        let asked = Command::new("ps")
            .args(["-o", "stat=", "-p", &pid.to_string()])
            .output();
        asked.is_ok_and(|answer| answer.stdout.trim_ascii_start().starts_with(b"T"))
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        // A shell has `kill` built in; the program of that name is not everywhere.
        let sent = Command::new("sh")
            .args(["-c", "kill -s $0 $1", name, &pid])
            .status();
        assert!(sent.unwrap().success(), "SIG{name} was not sent to pid {pid}");
    }

    /// The last lines that it said.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines.split_at(lines.len().saturating_sub(12)).1.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that frozen children do not outlive: it reads a pipe whose other end is held here, and once that is closed,
/// however this process ended, it kills whichever of them still runs. One that is not frozen ends by itself.
pub(crate) struct Guard {
    shell: Child,
    pids: File,
}

impl Guard {
    pub(crate) fn start(dir: &Path) -> Self {
        let path = dir.join("pids");
        let pids = File::create(&path).unwrap();
        // A number may have been handed out again: only a process that was started for the campaign is ended.
        let script = r#"trap '' INT TERM HUP
            cat >/dev/null
            while read -r pid; do
                if grep -qs "$1" "/proc/$pid/cmdline"; then kill -s KILL "$pid"; fi
            done <"$0""#;
        let shell = Command::new("sh")
            .args(["-c", script])
            .arg(&path)
            .arg(child::TEST)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { shell, pids }
    }

    fn watch(&mut self, pid: u32) {
        writeln!(self.pids, "{pid}").unwrap();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
