//! The rebuilder: a thread that reads windows back from source topics, so that the poll thread never waits for them.
//!
//! Jobs are done one after the other, and what has come meanwhile is one job. A rebuild that nobody wants any more ends
//! early.

use std::cell::RefCell;
use std::sync::{Arc, mpsc};

use super::changelog::{self, Read, Span};
use super::reach::{Reach, config, reaches, unreadable};
use super::take::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, push};
use crate::clock;
use crate::config::Settings;
use crate::error::Error;
use crate::ledger::CommitPoint;
use crate::message::BatchBuilder;
use crate::pulse::Progress;
use crate::rebuild::{Going, Plan, Rebuild};
use crate::store::{PartitionId, Store};
use crate::wanted::{Ticket, Wanted};
use crate::worker::Worker;

/// A partition's window is whole, or cannot be read.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    pub(crate) id: PartitionId,
    pub(crate) ticket: Ticket,
    /// Where the partition stands with it.
    pub(crate) outcome: Result<CommitPoint, Error>,
}

/// The handle of the thread, which ends when this is dropped.
pub(crate) struct Rebuilder {
    wanted: Wanted,
    thread: Worker<(Plan, Ticket)>,
}

impl Rebuilder {
    /// Starts the thread. `rebuilt` hears of each partition.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(
        settings: Arc<Settings>,
        store: Arc<dyn Store>,
        progress: Progress,
        rebuilt: impl Fn(Rebuilt) + Send + 'static,
    ) -> std::io::Result<Self> {
        let wanted = Wanted::default();
        let known = wanted.clone();
        let thread = Worker::start("hapax-rebuild", move |inbox: mpsc::Receiver<(Plan, Ticket)>| {
            while let Ok(first) = inbox.recv() {
                let mut job = vec![first];
                job.extend(inbox.try_iter());
                job.retain(|(plan, ticket)| known.wants(plan.id, *ticket));
                let told = Told {
                    wanted: &known,
                    progress: &progress,
                    rebuilt: &rebuilt,
                };
                work(&settings, &store, &told, job);
            }
        })?;
        Ok(Self { wanted, thread })
    }

    /// Asks for a partition's window. It is heard of under this ticket, unless it is forgotten before.
    pub(super) fn rebuild(&self, plan: Plan) -> Ticket {
        let ticket = self.wanted.want(plan.id);
        self.thread.send((plan, ticket));
        ticket
    }

    /// Nobody wants that partition any more.
    pub(super) fn forget(&self, id: PartitionId) {
        self.wanted.forget(id);
    }
}

impl Drop for Rebuilder {
    /// What is under way ends soon, since nobody wants it.
    fn drop(&mut self) {
        self.wanted.forget_all();
    }
}

/// Who hears of what.
#[derive(Clone, Copy)]
struct Told<'a> {
    wanted: &'a Wanted,
    progress: &'a Progress,
    rebuilt: &'a dyn Fn(Rebuilt),
}

fn work(settings: &Arc<Settings>, store: &Arc<dyn Store>, told: &Told<'_>, mut left: Vec<(Plan, Ticket)>) {
    loop {
        left.retain(|(plan, ticket)| told.wanted.wants(plan.id, *ticket));
        if left.is_empty() {
            return;
        }
        let ended = RefCell::new(Vec::new());
        let rebuilt = |one: Rebuilt| {
            ended.borrow_mut().push(one.ticket);
            (told.rebuilt)(one);
        };
        let telling = Told {
            rebuilt: &rebuilt,
            ..*told
        };
        let Err(error) = read(settings, store, &telling, &left) else {
            return;
        };
        left.retain(|(_, ticket)| !ended.borrow().contains(ticket));
        let Some((id, ticket)) = left.first().map(|(plan, ticket)| (plan.id, *ticket)) else {
            return;
        };
        // One reason for all that are not whole yet: the consumer stops with it, unless that one has been given away
        // meanwhile. Then the others are still to be rebuilt.
        (told.rebuilt)(Rebuilt {
            id,
            ticket,
            outcome: Err(error),
        });
        told.wanted.await_forgotten(id, ticket);
    }
}

fn read(
    settings: &Arc<Settings>,
    store: &Arc<dyn Store>,
    told: &Told<'_>,
    job: &[(Plan, Ticket)],
) -> Result<(), Error> {
    let wanted = told.wanted;
    let stop = || !job.iter().any(|(plan, ticket)| wanted.wants(plan.id, *ticket));
    let parts: Vec<_> = job.iter().map(|(plan, _)| plan.part()).collect();
    let Some(reaches) = reaches(settings, &parts, &stop)? else {
        return Ok(());
    };
    let mut spans = Vec::with_capacity(job.len());
    let mut of = Vec::with_capacity(job.len());
    for ((plan, ticket), Reach { ms, from }) in job.iter().zip(reaches) {
        let over = || !wanted.wants(plan.id, *ticket);
        let (rebuild, going) = Rebuild::begin(plan.clone(), store, ms, job.len(), &over)?;
        let topic = plan.wiring.topic.to_string();
        let (partition, to) = (plan.id.partition, plan.start.next.0);
        tracing::info!(%topic, partition, from, to, "a window is read back from its topic");
        spans.push(Span {
            topic,
            partition,
            from,
            to,
        });
        told.progress.note(plan.id.topic.0, partition, 0, to - from);
        of.push(match going {
            Going::On => Some(Coming {
                ticket: *ticket,
                from,
                rebuild,
                batch: None,
            }),
            Going::Over => None,
        });
    }
    let mut reading = Reading {
        of,
        told: *told,
        begun: clock::now(),
    };
    changelog::read_with(
        &config(settings, spans.len()),
        &unreadable,
        spans,
        &stop,
        |read| reading.read(read),
    )
    .map(drop)
}

/// A partition that is being read.
struct Coming {
    ticket: Ticket,
    from: i64,
    rebuild: Rebuild,
    batch: Option<BatchBuilder>,
}

struct Reading<'a> {
    /// By span; gone where it is whole, or nobody wants it any more.
    of: Vec<Option<Coming>>,
    told: Told<'a>,
    begun: clock::Instant,
}

impl Reading<'_> {
    fn read(&mut self, read: Read<'_>) -> Result<(), Error> {
        match read {
            Read::Message { span, message } => {
                let Some(Some(coming)) = self.of.get_mut(span) else {
                    return Ok(());
                };
                let plan = coming.rebuild.plan();
                if message.offset().next() > plan.start.next {
                    return Ok(());
                }
                let topic = &plan.wiring.topic;
                let batch = coming.batch.get_or_insert_with(|| {
                    BatchBuilder::new(
                        Arc::clone(topic),
                        message.partition(),
                        BATCH_MESSAGES_MAX,
                        64 << 10,
                    )
                });
                push(batch, message);
                if batch.len() >= BATCH_MESSAGES_MAX || batch.bytes() >= BATCH_BYTES_MAX {
                    self.take(span)?;
                }
                Ok(())
            }
            Read::End { span, .. } => self.end(span),
            Read::Stands { .. } | Read::Rest => Ok(()),
        }
    }

    /// Hands on what is read of one partition.
    fn take(&mut self, span: usize) -> Result<(), Error> {
        let Some(Some(coming)) = self.of.get_mut(span) else {
            return Ok(());
        };
        let Some(batch) = coming.batch.take().map(BatchBuilder::finish) else {
            return Ok(());
        };
        let (id, ticket) = (coming.rebuild.plan().id, coming.ticket);
        let going = coming
            .rebuild
            .take(&batch, &|| !self.told.wanted.wants(id, ticket))?;
        let last = batch.len().checked_sub(1).and_then(|last| batch.get(last));
        let left = last.map_or(0, |last| {
            coming.rebuild.plan().start.next.0 - last.offset().next().0
        });
        crate::metrics::rebuild_left(&coming.rebuild.plan().wiring.topic, id.partition, left);
        let of = coming.rebuild.plan().start.next.0 - coming.from;
        self.told.progress.note(id.topic.0, id.partition, of - left, of);
        if going == Going::Over {
            self.drop(span);
        }
        Ok(())
    }

    /// Nothing is left to be read of one partition.
    fn end(&mut self, span: usize) -> Result<(), Error> {
        self.take(span)?;
        let Some(Coming { ticket, rebuild, .. }) = self.of.get_mut(span).and_then(Option::take) else {
            return Ok(());
        };
        let (id, topic) = (rebuild.plan().id, Arc::clone(&rebuild.plan().wiring.topic));
        let whole = rebuild.end(&|| !self.told.wanted.wants(id, ticket))?;
        crate::metrics::rebuild_left(&topic, id.partition, 0);
        let Some((point, progress)) = whole else {
            return Ok(());
        };
        let took = clock::now().saturating_duration_since(self.begun);
        tracing::info!(
            %topic, partition = id.partition, messages = progress.messages, tokens = progress.tokens, ?took,
            "a window is whole again, read back from its topic"
        );
        (self.told.rebuilt)(Rebuilt {
            id,
            ticket,
            outcome: Ok(point),
        });
        Ok(())
    }

    fn drop(&mut self, span: usize) {
        if let Some(Some(coming)) = self.of.get_mut(span) {
            let plan = coming.rebuild.plan();
            crate::metrics::rebuild_left(&plan.wiring.topic, plan.id.partition, 0);
        }
        if let Some(of) = self.of.get_mut(span) {
            *of = None;
        }
    }
}
