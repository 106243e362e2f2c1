//! Whether the consumer is well, and whether it serves all that it was given: the reasons in words.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::clock::Instant;
use crate::pulse::{Progress, Pulse, Unserved};

/// What the port says of one consumer. The poll thread holds the other end of the channel: it reports at every
/// assignment how many partitions it does not serve, and it is gone when the thread is.
#[derive(Debug)]
pub(crate) struct Readiness {
    unserved: watch::Receiver<Unserved>,
    pulse: OnceLock<Pulse>,
    progress: Progress,
    stopping: AtomicBool,
}

impl Readiness {
    /// Not ready until the first report comes.
    pub(crate) fn new(unserved: watch::Receiver<Unserved>) -> Self {
        Self {
            unserved,
            progress: Progress::default(),
            pulse: OnceLock::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Where whoever reads for a partition notes how far that is.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The poll thread starts, and beats this pulse once a turn.
    pub(crate) fn feel(&self, pulse: Pulse) {
        // There is one poll thread in the life of a consumer.
        let _ = self.pulse.set(pulse);
    }

    /// From here on it takes nothing more.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Why the process should be started again, if it should.
    pub(super) fn unhealthy(&self, now: Instant) -> Option<String> {
        if self.unserved.has_changed().is_err() {
            return Some("the poll thread has ended".to_owned());
        }
        // At the end it waits for the group to let it go, which has its own limit.
        let turns = self.stopping.load(Ordering::Acquire)
            || self.pulse.get().is_none_or(|pulse| !pulse.is_stale(now));
        (!turns).then(|| "the poll thread has not turned for longer than the group's session".to_owned())
    }

    /// Why it does not serve everything that it was given, if it does not.
    pub(super) fn unready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("stopping: it finishes what runs and takes nothing more".to_owned());
        }
        match self.unserved.has_changed() {
            Err(_) => Some("the poll thread has ended".to_owned()),
            // Never marked as seen here, so it stays changed after the first report.
            Ok(false) => Some("no assignment yet: it opens the store, or waits for its group".to_owned()),
            Ok(true) => {
                let unserved = self.unserved.borrow().clone();
                let reasons: Vec<_> = refused(&unserved)
                    .into_iter()
                    .chain(self.coming(&unserved))
                    .collect();
                (!reasons.is_empty()).then(|| reasons.join("\n"))
            }
        }
    }

    fn coming(&self, unserved: &Unserved) -> Option<String> {
        let Unserved {
            arriving,
            restoring,
            rebuilding,
            ..
        } = *unserved;
        let mut parts = Vec::new();
        if arriving > 0 {
            parts.push(format!(
                "{arriving} until the broker says where to start (it is away, or an earlier owner's transaction is still open)"
            ));
        }
        if restoring > 0 {
            parts.push(format!("{restoring} until the changelog is read"));
        }
        if rebuilding > 0 {
            parts.push(format!(
                "{rebuilding} until the window is read back from the topic"
            ));
        }
        if parts.is_empty() {
            return None;
        }
        let (read, of) = self.progress.total();
        let progress = match of {
            1.. if restoring + rebuilding > 0 => {
                format!("; {} % of {of} offsets are read", 100 * read / of)
            }
            _ => String::new(),
        };
        Some(format!(
            "{} not served yet: {}{progress}",
            partitions(arriving + restoring + rebuilding),
            parts.join(", ")
        ))
    }
}

fn refused(unserved: &Unserved) -> Option<String> {
    let first = unserved.refused.first()?;
    let others = match unserved.refused.len() {
        1 => String::new(),
        all => format!(" (and {} more: the log says which)", all - 1),
    };
    Some(format!(
        "{} refused: {first}{others}",
        partitions(unserved.refused.len())
    ))
}

fn partitions(count: usize) -> String {
    match count {
        1 => "1 partition is".to_owned(),
        several => format!("{several} partitions are"),
    }
}
