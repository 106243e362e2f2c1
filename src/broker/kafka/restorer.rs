//! The restorer: a thread that reads the changelogs of partitions that were assigned, so that the poll thread never waits
//! for them.
//!
//! Jobs are done one after the other: a partition that goes and comes back meanwhile is read by one of them at a time. A
//! job that nobody wants any more ends early; what it has written is true all the same, and the next one resumes there.
//! Brokers that do not answer are asked again: the partitions wait, and those that are served already are served on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::changelog::{self, Ends, Read, Span};
use super::transactions::Names;
use crate::broker;
use crate::clock;
use crate::config::Settings;
use crate::copies::{Copies, Restoring};
use crate::error::Error;
use crate::journal::extents::Extents;
use crate::journal::frame::Owner;
use crate::journal::replicated::Replicated;
use crate::patience::{self, Patience};
use crate::pulse::Progress;
use crate::recovery::{Recovery, Source};
use crate::store::{PartitionId, Store, TopicId};
use crate::wanted::{LOOK, Ticket, Wanted};
use crate::worker::Worker;

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
    wanted: Wanted,
    thread: Worker<Vec<(PartitionId, Ticket)>>,
}

impl Restorer {
    /// Starts the thread. `restored` hears of each partition.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(parts: Parts, restored: impl Fn(Restored) + Send + 'static) -> std::io::Result<Self> {
        let wanted = Wanted::default();
        let known = wanted.clone();
        let thread = Worker::start(
            "hapax-restore",
            move |inbox: mpsc::Receiver<Vec<(PartitionId, Ticket)>>| {
                for job in inbox {
                    work(&parts, &known, &job, &restored);
                }
            },
        )?;
        Ok(Self { wanted, thread })
    }

    /// Asks for partitions to be read. Each is heard of under its ticket, unless it is forgotten before.
    pub(crate) fn restore(&self, ids: &[PartitionId]) -> Vec<(PartitionId, Ticket)> {
        let job: Vec<_> = ids.iter().map(|id| (*id, self.wanted.want(*id))).collect();
        self.thread.send(job.clone());
        job
    }

    /// Nobody wants that partition any more.
    pub(crate) fn forget(&self, id: PartitionId) {
        self.wanted.forget(id);
    }
}

impl Drop for Restorer {
    /// What is under way ends soon, since nobody wants it.
    fn drop(&mut self) {
        self.wanted.forget_all();
    }
}

fn work(parts: &Parts, wanted: &Wanted, job: &[(PartitionId, Ticket)], restored: &dyn Fn(Restored)) {
    let mut left: Vec<_> = job.to_vec();
    let waiting = Waiting::new();
    let (mut ends, mut trimmed) = (None, 0);
    loop {
        left.retain(|(id, ticket)| wanted.wants(*id, *ticket));
        if left.is_empty() {
            return;
        }
        let ended = RefCell::new(Vec::new());
        let tell = |one: Restored| {
            ended.borrow_mut().push(one.ticket);
            restored(one);
        };
        let turn = Turn {
            parts,
            wanted,
            left: &left,
            waiting: &waiting,
        };
        let outcome = turn.read(&mut ends, &tell);
        left.retain(|(_, ticket)| !ended.borrow().contains(ticket));
        let Some((id, ticket)) = left.first().copied() else {
            return;
        };
        let error = match outcome {
            // Nobody wants it any more; or it stands still, and where it ends is asked anew.
            Ok(()) => continue,
            Err(error) => error,
        };
        if trimmed < TRIMMED_MAX && matches!(error, Error::Broker(broker::Error::ChangelogTrimmed { .. })) {
            trimmed += 1;
            tracing::info!(why = %crate::error::chain(&error), "reading it anew");
            continue;
        }
        if waiting.goes_on(&error, left.len()) {
            continue;
        }
        // One reason for whichever is not read yet: the consumer stops with it, unless that one has been given away
        // meanwhile. Then the others are still to be read.
        restored(Restored {
            id,
            ticket,
            outcome: Err(error),
        });
        wanted.await_forgotten(id, ticket);
    }
}

/// The last owner trims once more at most after it has lost a partition; another owner may come in between.
const TRIMMED_MAX: usize = 10;

/// Longer than it takes the broker to end an abandoned transaction: a log that stands still for so long may have lost its end
/// with a broker.
const STANDS_MAX: Duration = Duration::from_secs(60);

/// How long a job has waited, and for what.
struct Waiting {
    patience: Cell<Patience>,
    furthest: RefCell<BTreeMap<PartitionId, i64>>,
}

impl Waiting {
    fn new() -> Self {
        Self {
            patience: Cell::new(Patience::new(clock::now())),
            furthest: RefCell::default(),
        }
    }

    /// That partition is read up to there. What is read once more is no news.
    fn reach(&self, id: PartitionId, next: i64) {
        let mut all = self.furthest.borrow_mut();
        let furthest = all.entry(id).or_insert(-1);
        if next > *furthest {
            *furthest = next;
            let mut patience = self.patience.get();
            patience.hear(clock::now());
            self.patience.set(patience);
        }
    }

    fn question(&self) -> Duration {
        patience::question(self.patience.get().waited(clock::now()), patience::QUESTION_MAX)
    }

    /// Whether it is worth while to ask again, which it is after a pause.
    fn goes_on(&self, error: &Error, partitions: usize) -> bool {
        let (now, mut patience) = (clock::now(), self.patience.get());
        if !patience::may_change(error) || patience.is_spent(now) {
            return false;
        }
        let waited = patience.waited(now);
        if patience.says(now) {
            tracing::warn!(
                why = %crate::error::chain(error), partitions, ?waited,
                "partitions that are to be restored have to wait; their changelogs are asked for again, and the others are served"
            );
        }
        self.patience.set(patience);
        thread::park_timeout(patience::pause(waited));
        true
    }
}

/// One try to read what is left of a job.
struct Turn<'a> {
    parts: &'a Parts,
    wanted: &'a Wanted,
    left: &'a [(PartitionId, Ticket)],
    waiting: &'a Waiting,
}

impl Turn<'_> {
    fn is_over(&self) -> bool {
        !self
            .left
            .iter()
            .any(|(id, ticket)| self.wanted.wants(*id, *ticket))
    }

    fn read(&self, ends: &mut Option<Ends>, restored: &dyn Fn(Restored)) -> Result<(), Error> {
        let begun = clock::now();
        let mut reading = Reading {
            ids: Vec::new(),
            of: Vec::new(),
            spans: Vec::new(),
            progress: &self.parts.progress,
            waiting: self.waiting,
            restored,
        };
        let Some(spans) = self.begin(ends, &mut reading)? else {
            return Ok(());
        };
        let stands = || {
            let now = clock::now();
            let since = self.waiting.patience.get().waited(now);
            since.min(now.saturating_duration_since(begun)) > STANDS_MAX
        };
        let stop = || stands() || self.is_over();
        let settings = &self.parts.settings;
        let whole = changelog::read(settings, spans, &stop, |read| reading.read(read))?;
        let unread = reading.of.iter().position(Option::is_some);
        if let (false, Some((id, _)), false) = (
            whole,
            unread.and_then(|place| reading.ids.get(place)),
            self.is_over(),
        ) {
            let names = self.parts.topics.get(&id.topic);
            return Err(broker::Error::ChangelogRead {
                topic: names.map_or_else(String::new, |names| names.changelog.clone()),
                partition: id.partition,
                why: format!("nothing of it has come for {STANDS_MAX:?}"),
            }
            .into());
        }
        Ok(())
    }

    /// What an earlier assignment of ours has written is in the store, or will never be (re-assignment to oneself). False where
    /// nobody wants to know any more.
    fn settle(&self) -> Result<bool, Error> {
        let settled = self.parts.journal.settling();
        loop {
            match settled.recv_timeout(LOOK) {
                Ok(()) => return Ok(true),
                Err(mpsc::RecvTimeoutError::Timeout) if self.is_over() => return Ok(false),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Internal(
                        "the journal ended while a partition was to be restored".into(),
                    ));
                }
            }
        }
    }

    /// What is to be read, from the store's copies on; `None` where nobody wants it any more.
    fn begin(&self, ends: &mut Option<Ends>, reading: &mut Reading<'_>) -> Result<Option<Vec<Span>>, Error> {
        if !self.settle()? {
            return Ok(None);
        }
        let parts = self.parts;
        let ends = match ends {
            Some(ends) => ends,
            none => none.insert(Ends::new(&parts.settings)?),
        };
        let mut asked = Vec::with_capacity(self.left.len());
        for (id, ticket) in self.left {
            if self.is_over() {
                return Ok(None);
            }
            let Some(names) = parts.topics.get(&id.topic) else {
                return Err(Error::Internal(format!("{id:?} has no changelog")));
            };
            // Before it is asked where the copy stands, and until all of it is read: nobody else writes to it.
            let restoring = parts.copies.restore(*id);
            let log = ends.within(&names.changelog, id.partition, self.waiting.question())?;
            asked.push((*id, *ticket, names, restoring, log));
        }
        let mut spans = Vec::with_capacity(asked.len());
        for (id, ticket, names, restoring, log) in asked {
            let source = Source {
                changelog: names.changelog.clone(),
                owner: Owner::of(&parts.settings.group, &names.input),
            };
            let begun = Recovery::begin(
                &parts.store,
                &parts.extents,
                id,
                &names.input,
                source,
                log,
                self.left.len(),
            );
            let (recovery, from) = begun?;
            spans.push(Span {
                topic: names.changelog.clone(),
                partition: id.partition,
                from,
                to: log.1,
            });
            reading.ids.push((id, ticket));
            reading.of.push(Some((recovery, restoring)));
            reading.spans.push((from, log.1));
            parts.progress.note(id.topic.0, id.partition, 0, log.1 - from);
        }
        Ok(Some(spans))
    }
}

struct Reading<'a> {
    ids: Vec<(PartitionId, Ticket)>,
    of: Vec<Option<(Recovery, Restoring)>>,
    /// What is read, from where to where.
    spans: Vec<(i64, i64)>,
    progress: &'a Progress,
    waiting: &'a Waiting,
    restored: &'a dyn Fn(Restored),
}

impl Reading<'_> {
    fn read(&mut self, read: Read<'_>) -> Result<(), Error> {
        match read {
            Read::Message { span, message } => match self.of.get_mut(span) {
                Some(Some((recovery, _))) => {
                    let place = self.ids.get(span).zip(self.spans.get(span));
                    if let Some(((id, _), (from, to))) = place {
                        let read = message.offset().0 + 1 - from;
                        self.progress.note(id.topic.0, id.partition, read, to - from);
                        self.waiting.reach(*id, message.offset().0 + 1);
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
                self.waiting.reach(id, next);
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
