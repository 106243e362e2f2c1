//! The restorer: a thread that reads the changelogs of partitions that were assigned, so that the poll thread never waits
//! for them.
//!
//! Jobs are done one after the other: a partition that goes and comes back meanwhile is read by one of them at a time. A
//! job that nobody wants any more ends early; what it has written is true all the same, and the next one resumes there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use super::changelog::{self, Ends, Read, Span};
use super::transactions::Names;
use crate::broker;
use crate::config::Settings;
use crate::copies::{Copies, Restoring};
use crate::error::Error;
use crate::journal::extents::Extents;
use crate::journal::frame::Owner;
use crate::journal::replicated::Replicated;
use crate::pulse::Progress;
use crate::recovery::{Recovery, Source};
use crate::store::{PartitionId, Store, TopicId};

/// Names one wish to have a partition read. A later wish for the same partition has another.
pub(crate) type Ticket = u64;

/// A partition is read, or cannot be.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) id: PartitionId,
    pub(crate) ticket: Ticket,
    pub(crate) outcome: Result<(), Error>,
}

/// What the thread works with.
pub(crate) struct Parts {
    pub(crate) settings: Arc<Settings>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) journal: Replicated,
    pub(crate) extents: Extents,
    pub(crate) copies: Copies,
    pub(crate) topics: BTreeMap<TopicId, Names>,
    pub(crate) progress: Progress,
}

/// The handle of the thread, which ends when this is dropped.
pub(crate) struct Restorer {
    jobs: Option<mpsc::Sender<Vec<(PartitionId, Ticket)>>>,
    wanted: Wanted,
    next: Ticket,
    thread: Option<thread::JoinHandle<()>>,
}

/// Which partitions are still wanted, under which ticket.
#[derive(Clone, Default)]
pub(super) struct Wanted(Arc<Mutex<BTreeMap<PartitionId, Ticket>>>);

impl Wanted {
    pub(super) fn map(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Ticket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wants(&self, id: PartitionId, ticket: Ticket) -> bool {
        self.map().get(&id) == Some(&ticket)
    }
}

impl Restorer {
    /// Starts the thread. `restored` hears of each partition.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(parts: Parts, restored: impl Fn(Restored) + Send + 'static) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Vec<(PartitionId, Ticket)>>();
        let wanted = Wanted::default();
        let known = wanted.clone();
        let thread = thread::Builder::new()
            .name("hapax-restore".into())
            .spawn(move || {
                for job in inbox {
                    work(&parts, &known, &job, &restored);
                }
            })?;
        Ok(Self {
            jobs: Some(jobs),
            wanted,
            next: 1,
            thread: Some(thread),
        })
    }

    /// Asks for partitions to be read. Each is heard of under its ticket, unless it is forgotten before.
    pub(crate) fn restore(&mut self, ids: &[PartitionId]) -> Vec<(PartitionId, Ticket)> {
        let mut job = Vec::with_capacity(ids.len());
        for id in ids {
            self.wanted.map().insert(*id, self.next);
            job.push((*id, self.next));
            self.next += 1;
        }
        if let Some(jobs) = &self.jobs {
            // A thread that is gone has panicked, and said so.
            let _ = jobs.send(job.clone());
        }
        job
    }

    /// Nobody wants that partition any more.
    pub(crate) fn forget(&self, id: PartitionId) {
        self.wanted.map().remove(&id);
    }
}

impl Drop for Restorer {
    /// Waits for its end: the thread holds the store.
    fn drop(&mut self) {
        self.jobs = None;
        self.wanted.map().clear();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

fn work(parts: &Parts, wanted: &Wanted, job: &[(PartitionId, Ticket)], restored: &dyn Fn(Restored)) {
    let mut left: Vec<_> = job.to_vec();
    for turn in 1.. {
        left.retain(|(id, ticket)| wanted.wants(*id, *ticket));
        if left.is_empty() {
            return;
        }
        let mut reading = Reading {
            ids: Vec::new(),
            of: Vec::new(),
            spans: Vec::new(),
            progress: &parts.progress,
            restored,
        };
        let outcome = begin(parts, &left, &mut reading).and_then(|spans| {
            let stop = || !left.iter().any(|(id, ticket)| wanted.wants(*id, *ticket));
            changelog::read(&parts.settings, spans, &stop, |read| reading.read(read))
        });
        let error = match outcome {
            Ok(_) => return,
            Err(error) => error,
        };
        if turn < TURNS_MAX && matches!(error, Error::Broker(broker::Error::ChangelogTrimmed { .. })) {
            tracing::info!(why = %crate::error::chain(&error), "reading it anew");
            left = reading.unread();
            continue;
        }
        // One reason for whichever is not read yet: the consumer stops with it.
        if let Some((id, ticket)) = left.first().copied() {
            restored(Restored {
                id,
                ticket,
                outcome: Err(error),
            });
        }
        return;
    }
}

/// The last owner trims once more at most after it has lost a partition; another owner may come in between.
const TURNS_MAX: usize = 10;

/// What is to be read, from the store's copies on.
fn begin(
    parts: &Parts,
    left: &[(PartitionId, Ticket)],
    reading: &mut Reading<'_>,
) -> Result<Vec<Span>, Error> {
    // What an earlier assignment of ours has written is in the store, or will never be (re-assignment to oneself).
    if !parts.journal.settle() {
        return Err(Error::Internal(
            "the journal ended while a partition was to be restored".into(),
        ));
    }
    let ends = Ends::new(&parts.settings)?;
    let mut spans = Vec::with_capacity(left.len());
    for (id, ticket) in left {
        let Some(names) = parts.topics.get(&id.topic) else {
            return Err(Error::Internal(format!("{id:?} has no changelog")));
        };
        // Before it is asked where the copy stands, and until all of it is read: nobody else writes to it.
        let restoring = parts.copies.restore(*id);
        let log = ends.of(&names.changelog, id.partition)?;
        let source = Source {
            changelog: names.changelog.clone(),
            owner: Owner::of(&parts.settings.group, &names.input),
        };
        let begun = Recovery::begin(
            &parts.store,
            &parts.extents,
            *id,
            &names.input,
            source,
            log,
            left.len(),
        );
        let (recovery, from) = begun?;
        spans.push(Span {
            topic: names.changelog.clone(),
            partition: id.partition,
            from,
            to: log.1,
        });
        reading.ids.push((*id, *ticket));
        reading.of.push(Some((recovery, restoring)));
        reading.spans.push((from, log.1));
        parts.progress.note(id.topic.0, id.partition, 0, log.1 - from);
    }
    Ok(spans)
}

struct Reading<'a> {
    ids: Vec<(PartitionId, Ticket)>,
    of: Vec<Option<(Recovery, Restoring)>>,
    /// What is read, from where to where.
    spans: Vec<(i64, i64)>,
    progress: &'a Progress,
    restored: &'a dyn Fn(Restored),
}

impl Reading<'_> {
    fn unread(&self) -> Vec<(PartitionId, Ticket)> {
        let both = self.ids.iter().zip(&self.of);
        both.filter(|(_, of)| of.is_some()).map(|(id, _)| *id).collect()
    }

    fn read(&mut self, read: Read<'_>) -> Result<(), Error> {
        match read {
            Read::Message { span, message } => match self.of.get_mut(span) {
                Some(Some((recovery, _))) => {
                    let place = self.ids.get(span).zip(self.spans.get(span));
                    if let Some(((id, _), (from, to))) = place {
                        let read = message.offset().0 + 1 - from;
                        self.progress.note(id.topic.0, id.partition, read, to - from);
                    }
                    recovery.message(message.offset().0, message.payload().unwrap_or_default())
                }
                _ => Ok(()),
            },
            Read::End { span, next } => {
                let recovery = self.of.get_mut(span).and_then(Option::take);
                let (Some((recovery, restoring)), Some((id, ticket))) =
                    (recovery, self.ids.get(span).copied())
                else {
                    return Ok(());
                };
                recovery.end(next)?;
                drop(restoring);
                (self.restored)(Restored {
                    id,
                    ticket,
                    outcome: Ok(()),
                });
                Ok(())
            }
            Read::Stands { .. } | Read::Rest => Ok(()),
        }
    }
}
