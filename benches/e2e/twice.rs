//! Duplicates: a topic of unique messages, and then the same ones again, at other offsets of the same partitions.
//!
//! No handler is called for a duplicate. So in both runs messages are counted where their token is read, by a closure of the
//! user's, and the clock runs from the first to the moment at which another client sees the ends of the log committed: then
//! the lag is 0.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hapax::accounts::Account;
use hapax::config::Durability;
use hapax::{Class, Context, Raw, Token, Topic, Window};

use crate::broker::Observer;
use crate::contestants::{COMMITTED_WITHIN, HEADER, Measured, Progress, Task, chain, configured};
use crate::{Result, Run, process};

/// The clock stops at the last commit, and so much of it may be waiting for that.
const COMMIT_EVERY: Duration = Duration::from_millis(10);

/// Fills a topic, or appends the same tokens to it once more.
pub(crate) fn load(run: &Run, topic: &str, again: bool) -> Result<()> {
    let status = Command::new(run.streams.join("load.sh"))
        .args(["--brokers", &run.brokers, "--topic", topic, "--partitions", "4"])
        .args(["--messages", &run.messages.to_string()])
        .args(again.then_some("--again"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("topic {topic} could not be filled: {status}").into()),
    }
}

/// Takes as many messages as are told, all of which have to end in that account.
pub(crate) fn consume(task: &Task, account: Account) -> Result<Measured> {
    let observer = Observer::new(&task.brokers, &task.topic, &task.group)?;
    let ends = observer.ends()?.0;
    let progress = Arc::new(Progress::new(task.count));
    let seen = Arc::clone(&progress);
    let read = move |raw: &Raw<'_>| {
        seen.one();
        raw.header(HEADER).map(<[u8]>::to_vec)
    };
    let topic = Topic::bytes(&task.topic, Class::Idempotent)
        .window(Window::hours(24))
        .token(Token::with("bench", read));
    let consumer = configured(task, Durability::Local, |layer| {
        layer.commit_every = Some(COMMIT_EVERY);
    })?
    .handle(topic, |_payload, _: Context| async { Ok(()) });
    let runtime = tokio::runtime::Runtime::new()?;
    let mut committed = None;
    // Stopped once all of it is committed: at a stop, what was taken and is not decided yet is left.
    let summary = runtime.block_on(consumer.run_until(async {
        if progress.all_have_run().await {
            let awaited = move || observer.await_committed(&ends, COMMITTED_WITHIN);
            committed = tokio::task::spawn_blocking(awaited).await.ok();
        }
    }));
    let summary = summary.map_err(|error| chain(&error))?;
    let seen = progress.ran.load(Ordering::Relaxed);
    let committed = committed
        .ok_or_else(|| format!("{seen} of {} messages were taken, and no more came", task.count))??;
    let cpu = process::cpu_by_thread()?;
    let total: u64 = summary.balances.iter().map(|balance| balance.of(account)).sum();
    let balanced = summary.balances.iter().all(|balance| balance.remainder() == 0);
    if total != task.count || seen != task.count || !balanced {
        return Err(format!("{} messages were to end as {account:?}: {summary:?}", task.count).into());
    }
    let first = progress.first.get().ok_or("nothing was taken")?;
    Ok(Measured {
        count: task.count,
        seconds: committed.duration_since(*first).as_secs_f64(),
        rss_kib: process::peak_rss_kib()?,
        cpu,
        ..Measured::default()
    })
}
