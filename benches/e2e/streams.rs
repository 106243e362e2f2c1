//! The Kafka Streams contestant: `benches/peers/streams/run.sh`, in a process of its own, and what it prints.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::contestants::Measured;
use crate::{Result, Run};

/// Runs the application over the topic, with a thread for each of two cores. It checks by itself that every message
/// was forwarded and committed.
pub(crate) fn run(run: &Run, guarantee: &str, state_dir: &Path) -> Result<Measured> {
    start(run, guarantee, state_dir, &[], "streams")
}

/// Runs it, deletes its state, starts it again: how long its changelog takes to be restored.
pub(crate) fn restore(run: &Run, guarantee: &str, state_dir: &Path) -> Result<Measured> {
    start(run, guarantee, state_dir, &["--restore"], "streams_restore")
}

fn start(run: &Run, guarantee: &str, state_dir: &Path, extra: &[&str], what: &str) -> Result<Measured> {
    let output = Command::new(run.streams.join("run.sh"))
        .args(["--brokers", &run.brokers, "--topic", &run.topic])
        .args(["--messages", &run.messages.to_string()])
        .args(["--guarantee", guarantee, "--threads", "2", "--window-hours", "24"])
        .args(extra)
        .arg("--state-dir")
        .arg(state_dir)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("Kafka Streams ({guarantee}) failed: {}\n{text}", output.status).into());
    }
    parse(&text, what, guarantee).ok_or_else(|| format!("Kafka Streams ({guarantee}) said: {text:?}").into())
}

/// `streams GUARANTEE messages N seconds S rate R rss_kb K`, or `streams_restore GUARANTEE entries N seconds …`
fn parse(text: &str, what: &str, guarantee: &str) -> Option<Measured> {
    let line = text.lines().find(|line| line.split(' ').next() == Some(what))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    (after(what)? == guarantee).then_some(())?;
    Some(Measured {
        count: after("messages").or_else(|| after("entries"))?.parse().ok()?,
        seconds: after("seconds")?.parse().ok()?,
        rss_kib: after("rss_kb")?.parse().ok()?,
        ..Measured::default()
    })
}
