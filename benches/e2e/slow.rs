//! Slow handlers, by key, beside Confluent's Parallel Consumer: how much of what the slots could do is done.
//!
//! At best, slots / handler time messages end in a second. A handler that sleeps for 5 ms takes longer than that, since no timer
//! is exact, so the time is measured inside it, in the same way on both sides. With a handler that does nothing the same is a
//! measure of what a message costs.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hapax::config::Durability;
use hapax::{Class, Context, Topic, Window};

use crate::broker::Observer;
use crate::contestants::{Ended, Measured, Progress, Task, check, configured, to_the_end};
use crate::{Result, Run, process};

/// What a slow handler waits for.
pub(crate) const SLEEP: Duration = Duration::from_millis(5);
/// In the whole process: hapax counts them by partition.
pub(crate) const SLOTS: u32 = 100;

#[derive(Debug)]
struct Noted {
    progress: Progress,
    inside_ns: AtomicU64,
}

/// hapax; the clock stops at the end of the last handler, as the peer's does.
pub(crate) fn consume(task: &Task, sleep: Duration) -> Result<Measured> {
    let observer = Observer::new(&task.brokers, &task.topic, &task.group)?;
    let ends = observer.ends()?.0;
    let slots = SLOTS / u32::try_from(ends.len())?;
    let noted = Arc::new(Noted {
        progress: Progress::new(task.count),
        inside_ns: AtomicU64::new(0),
    });
    let topic = Topic::bytes(&task.topic, Class::Idempotent)
        .window(Window::hours(24))
        .by_key(slots)
        .state(Arc::clone(&noted));
    let first: Arc<std::sync::OnceLock<Instant>> = Arc::default();
    let begun = Arc::clone(&first);
    let consumer = configured(task, Durability::Local, |_| {})?.handle(
        topic,
        move |_payload, cx: Context<Arc<Noted>>| {
            let begun = Arc::clone(&begun);
            async move {
                let start = Instant::now();
                begun.get_or_init(|| start);
                if !sleep.is_zero() {
                    tokio::time::sleep(sleep).await;
                }
                let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                cx.state().inside_ns.fetch_add(took, Ordering::Relaxed);
                cx.state().progress.one();
                Ok(())
            }
        },
    );
    let ended = to_the_end(consumer, observer, ends, noted.progress.all_have_run())?;
    let ran = noted.progress.ran.load(Ordering::Relaxed);
    let Ended { summary, cpu, .. } =
        ended.ok_or_else(|| format!("{ran} of {} handlers have run, and no more came", task.count))?;
    check(&summary, task.count)?;
    let last = noted.progress.last.get().ok_or("no handler has run")?;
    let first = first.get().ok_or("no handler has run")?;
    let inside = Duration::from_nanos(noted.inside_ns.load(Ordering::Relaxed));
    Ok(Measured {
        count: task.count,
        seconds: last.duration_since(*first).as_secs_f64(),
        handler_seconds: inside.as_secs_f64() / task.count as f64,
        rss_kib: process::peak_rss_kib()?,
        cpu,
        ..Measured::default()
    })
}

/// Runs the peer over the topic, with as many slots.
pub(crate) fn peer(run: &Run, topic: &str, messages: u64, sleep: Duration) -> Result<Measured> {
    let output = Command::new(run.parallel.join("run.sh"))
        .args(["--brokers", &run.brokers, "--topic", topic])
        .args(["--messages", &messages.to_string(), "--slots", &SLOTS.to_string()])
        .args(["--sleep-ms", &sleep.as_millis().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("Parallel Consumer failed: {}\n{text}", output.status).into());
    }
    parse(&text).ok_or_else(|| format!("Parallel Consumer said: {text:?}").into())
}

/// `parallel slots S messages N seconds T handler_us H rss_kb K`
fn parse(text: &str) -> Option<Measured> {
    let line = text.lines().find(|line| line.starts_with("parallel "))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    Some(Measured {
        count: after("messages")?.parse().ok()?,
        seconds: after("seconds")?.parse().ok()?,
        handler_seconds: after("handler_us")?.parse::<f64>().ok()? / 1e6,
        rss_kib: after("rss_kb")?.parse().ok()?,
        ..Measured::default()
    })
}

/// What was done of what the slots could have done in the time that the handlers took.
pub(crate) fn of_ideal(measured: &Measured) -> f64 {
    crate::figures::rate(measured) * measured.handler_seconds / f64::from(SLOTS)
}
