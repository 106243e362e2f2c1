//! The local journal: the store's own write-ahead log, synced once per group commit.
//!
//! One thread takes whatever has been submitted, writes it as one batch with one sync, and acknowledges. While a
//! group becomes durable the next one collects; nobody waits on a fixed tick. A write that fails is the end: nothing
//! is dropped, nothing more is acknowledged, and the runtime stops with the reason (Inv 9).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::{Failure, Journal, Submission};
use crate::attempt::panic_text;
use crate::fence::Gate;
use crate::store::Store;

/// The handle of the journal's thread. The thread ends when the last handle is gone and everything submitted is
/// written.
#[derive(Debug, Clone)]
pub struct Local {
    submissions: mpsc::Sender<Submission>,
}

/// How many submissions share one sync at most: bounds the batch that RocksDB holds in memory.
const GROUP_MAX: usize = 64;

impl Local {
    /// Starts the journal's thread on that store. `broken` is called once, with the reason, when a write fails.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(
        store: Arc<dyn Store>,
        broken: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (submissions, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("hapax-journal".into())
            .spawn(move || {
                let served = catch_unwind(AssertUnwindSafe(|| serve(&*store, &inbox)));
                let why = match served {
                    Ok(Ok(())) => return,
                    Ok(Err(why)) => why,
                    Err(panic) => format!("the journal's thread ended by a panic: {}", panic_text(&*panic)),
                };
                broken(why.clone());
                // What is submitted from here on is refused until every handle is gone.
                for submission in inbox {
                    submission.acks.fail(Failure::Broken(why.clone()));
                }
            })?;
        Ok((Self { submissions }, thread))
    }
}

impl Journal for Local {
    fn submit(&self, submission: Submission) {
        if let Err(mpsc::SendError(submission)) = self.submissions.send(submission) {
            submission
                .acks
                .fail(Failure::Broken("the journal's thread is gone".into()));
        }
    }
}

/// Writes until every handle is gone, or says why it writes no more.
fn serve(store: &dyn Store, inbox: &mpsc::Receiver<Submission>) -> Result<(), String> {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while let Ok(first) = inbox.recv() {
        group.push(first);
        group.extend(inbox.try_iter().take(GROUP_MAX - 1));
        if let Err(why) = write(store, &mut group) {
            for submission in group.drain(..) {
                submission.acks.fail(Failure::Broken(why.clone()));
            }
            return Err(why);
        }
    }
    Ok(())
}

/// Writes one group; on success it is acknowledged and `group` is empty.
fn write(store: &dyn Store, group: &mut Vec<Submission>) -> Result<(), String> {
    // Whatever an assignment submitted before it ended and is still in this queue must not reach the store (Inv 5).
    // Its gate stays entered until the write is done: asked beforehand, it could be cleared in between.
    let mut gates: Vec<Gate> = Vec::with_capacity(group.len());
    for submission in &*group {
        if !gates.iter().any(|gate| gate.is(&submission.gate)) {
            gates.push(submission.gate.clone());
        }
    }
    let entered: Vec<_> = gates.iter().map(|gate| (gate, gate.enter())).collect();
    let is_open = |asked: &Gate| {
        entered
            .iter()
            .any(|(gate, entered)| gate.is(asked) && entered.is_some())
    };
    let mut numbers = Vec::with_capacity(group.len());
    let mut changes = Vec::with_capacity(group.len());
    for submission in group.drain(..) {
        if is_open(&submission.gate) {
            numbers.push((submission.acks, submission.number));
            changes.push(submission.changes);
        } else {
            submission.acks.fail(Failure::Fenced);
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    match store.apply(&changes) {
        Ok(()) => {
            for (acks, number) in numbers {
                acks.acknowledge(number);
            }
            Ok(())
        }
        Err(error) => {
            let why = crate::error::chain(&error);
            for (acks, _) in numbers {
                acks.fail(Failure::Broken(why.clone()));
            }
            Err(why)
        }
    }
}
