//! Attempts: one call of the handler for one message, and what it ended with.
//!
//! A handler cannot fail, it can only produce an end: success, an error with what it says about the world, a caught
//! panic, or the deadline. What follows from an end is the partition's to decide (`partition/ended.rs`).
//!
//! Types are erased once per partition task. A handler that is ready at its first poll is polled in a reusable slot:
//! no spawn and no allocation per message. One that waits moves into a set of its own, and only then a deadline timer
//! is made.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::FutureExt as _;
use futures_util::stream::FuturesUnordered;
use tracing::instrument::Instrumented;
use tracing::{Instrument as _, Span};

use crate::clock::{self, Instant};
use crate::config::Outputs;
use crate::handler::{Call, Callee, DecodeError, Emitted, HandlerError, Outbox, Outboxes, Probe, Reply};
use crate::message::{Batch, Raw};
use crate::trace;

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The handler succeeded, and wants that to be sent with its outcome.
    Ok(Reply, Vec<Emitted>),
    /// It returned an error, which says what is known about the world.
    Err(HandlerError),
    /// It panicked; the text of the panic.
    Panicked(String),
    /// It was still running at its deadline, and was dropped.
    TimedOut,
}

/// What happened to work that was waiting.
#[derive(Debug)]
pub(crate) enum Event {
    /// The payload is decoded, or cannot be.
    Prepared(Result<(), Undecoded>),
    /// The attempt ended.
    Ended(Ended),
    /// The probe answered, and wants that to be sent where the answer is `Done`; an error, a panic or its deadline are `Unknown`.
    Probed(Probe, Vec<Emitted>),
}

/// Why there is no message to call the handler with.
#[derive(Debug)]
pub(crate) enum Undecoded {
    /// The decoder says so.
    Error(DecodeError),
    /// The decoder panicked: as good as malformed, and not in doubt, because nothing was begun.
    Panicked(String),
    /// The decoder did not answer within the deadline: as good as unavailable.
    TimedOut,
}

/// One message, as attempts know it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// Names the work; chosen by the partition, free for reuse once its event is out.
    pub(crate) id: usize,
    pub(crate) batch: Arc<Batch>,
    pub(crate) index: usize,
}

impl Subject {
    fn span(&self, make: impl FnOnce(&Raw<'_>, &Call) -> Span, call: &Call) -> Span {
        self.batch
            .get(self.index)
            .map_or_else(Span::none, |raw| make(&raw, call))
    }
}

/// The attempts of one partition task.
pub(crate) trait Attempts: Send {
    /// Decodes. `None` means that an event will follow.
    fn prepare(&mut self, subject: &Subject) -> Option<Result<(), Undecoded>>;
    /// Calls the handler with what was prepared. `None` means that an event will follow.
    fn run(&mut self, subject: &Subject, call: Call) -> Option<Ended>;
    /// Whether the user gave a probe.
    fn has_probe(&self) -> bool;
    /// Asks the probe, not before that instant. An event follows.
    fn probe(&mut self, subject: &Subject, call: Call, not_before: Instant);
    /// Forgets what was prepared and never run.
    fn discard(&mut self, id: usize);
    /// The next event; pending also when nothing is waited for.
    fn poll_event(&mut self, cx: &mut TaskContext<'_>) -> Poll<(usize, Event)>;
    /// Drops everything that is running: the end of an assignment.
    fn cancel_all(&mut self);
}

/// Makes the attempts of a partition task: the one erased thing that a topic carries.
pub(crate) trait Factory: Send + Sync {
    fn attempts(&self) -> Box<dyn Attempts>;
}

/// How long things may take, and where they run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) deadline: Duration,
    pub(crate) probe_deadline: Duration,
    pub(crate) offload: bool,
}

/// The factory of one topic's handler.
pub(crate) struct Typed<C> {
    pub(crate) callee: Arc<C>,
    pub(crate) terms: Terms,
    pub(crate) outputs: Arc<Outputs>,
}

impl<C: Callee> Factory for Typed<C> {
    fn attempts(&self) -> Box<dyn Attempts> {
        let callee = Arc::clone(&self.callee);
        let decode = {
            let callee = Arc::clone(&callee);
            move |batch, index| C::decode(Arc::clone(&callee), batch, index)
        };
        let run = {
            let callee = Arc::clone(&callee);
            move |message, batch, index, call| C::call(Arc::clone(&callee), message, batch, index, call)
        };
        Box::new(Running {
            callee,
            terms: self.terms,
            decode,
            run,
            decode_slot: Box::pin(None),
            run_slot: Box::pin(None),
            prepared: Vec::new(),
            waiting: FuturesUnordered::new(),
            outboxes: Outboxes::new(&self.outputs),
        })
    }
}

/// A future that is polled in place and made anew in the same memory.
type InPlace<F> = Pin<Box<Option<F>>>;

type Waiting<M> = Pin<Box<dyn Future<Output = (usize, Woken<M>)> + Send>>;

enum Woken<M> {
    Decoded(Result<M, Undecoded>),
    Ended(Ended, Outbox),
    Probed(Probe, Outbox),
}

struct Running<C: Callee, D, DF, R, RF> {
    callee: Arc<C>,
    terms: Terms,
    decode: D,
    run: R,
    decode_slot: InPlace<DF>,
    run_slot: InPlace<Instrumented<RF>>,
    /// Decoded messages by work id: a guarded one waits here until its begin is durable.
    prepared: Vec<Option<C::Message>>,
    waiting: FuturesUnordered<Waiting<C::Message>>,
    outboxes: Outboxes,
}

/// Polls once in place. `Ok` is the output, `Err` means that it waits; the panic, where there was one, is caught.
fn first_poll<F: Future>(slot: &mut InPlace<F>, future: F) -> Option<Result<F::Output, String>> {
    slot.as_mut().set(Some(future));
    // Whoever has to wait is polled again with a real waker, so the first poll needs none.
    let mut cx = TaskContext::from_waker(Waker::noop());
    let polled = catch_unwind(AssertUnwindSafe(|| match slot.as_mut().as_pin_mut() {
        Some(future) => future.poll(&mut cx),
        None => Poll::Pending,
    }));
    match polled {
        Ok(Poll::Pending) => None,
        Ok(Poll::Ready(output)) => {
            slot.as_mut().set(None);
            Some(Ok(output))
        }
        Err(panic) => {
            slot.as_mut().set(None);
            Some(Err(panic_text(&*panic)))
        }
    }
}

/// Goes on with a future that waited at its first poll, in the memory it already has, up to its deadline.
async fn rest<F: Future>(mut slot: InPlace<F>, deadline: Instant) -> Result<F::Output, Cut> {
    let future = std::future::poll_fn(move |cx| match slot.as_mut().as_pin_mut() {
        Some(future) => future.poll(cx),
        None => Poll::Pending,
    });
    tokio::select! {
        biased;
        output = AssertUnwindSafe(future).catch_unwind() => output.map_err(|panic| Cut::Panicked(panic_text(&*panic))),
        () = clock::sleep_until(deadline) => Err(Cut::TimedOut),
    }
}

/// Why a future gave no output.
enum Cut {
    Panicked(String),
    TimedOut,
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}

fn ended(output: Result<Result<Reply, HandlerError>, Cut>, outbox: &mut Outbox) -> Ended {
    // Closed however it ended: what a task of the user's emits from here on belongs to no attempt.
    let emitted = outbox.close();
    match output {
        Ok(Ok(reply)) => match emitted {
            Ok(emitted) => Ended::Ok(reply, emitted),
            Err(refused) => Ended::Err(refused),
        },
        Ok(Err(error)) => Ended::Err(error),
        Err(Cut::Panicked(text)) => Ended::Panicked(text),
        Err(Cut::TimedOut) => Ended::TimedOut,
    }
}

fn decoded<M>(output: Result<Result<M, DecodeError>, Cut>) -> Result<M, Undecoded> {
    match output {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(error)) => Err(Undecoded::Error(error)),
        Err(Cut::Panicked(text)) => Err(Undecoded::Panicked(text)),
        Err(Cut::TimedOut) => Err(Undecoded::TimedOut),
    }
}

impl<C, D, DF, R, RF> Running<C, D, DF, R, RF>
where
    C: Callee,
{
    fn keep(&mut self, id: usize, message: C::Message) {
        if self.prepared.len() <= id {
            self.prepared.resize_with(id + 1, || None);
        }
        if let Some(place) = self.prepared.get_mut(id) {
            *place = Some(message);
        }
    }
}

impl<C, D, DF, R, RF> Attempts for Running<C, D, DF, R, RF>
where
    C: Callee,
    D: Fn(Arc<Batch>, usize) -> DF + Send,
    DF: Future<Output = Result<C::Message, DecodeError>> + Send + 'static,
    R: Fn(C::Message, Arc<Batch>, usize, Call) -> RF + Send,
    RF: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
{
    fn prepare(&mut self, subject: &Subject) -> Option<Result<(), Undecoded>> {
        let future = (self.decode)(Arc::clone(&subject.batch), subject.index);
        match first_poll(&mut self.decode_slot, future) {
            Some(Ok(Ok(message))) => {
                self.keep(subject.id, message);
                Some(Ok(()))
            }
            Some(Ok(Err(error))) => Some(Err(Undecoded::Error(error))),
            Some(Err(panic)) => Some(Err(Undecoded::Panicked(panic))),
            None => {
                let slot = std::mem::replace(&mut self.decode_slot, Box::pin(None));
                let (id, deadline) = (subject.id, clock::now() + self.terms.deadline);
                self.waiting.push(Box::pin(async move {
                    (id, Woken::Decoded(decoded(rest(slot, deadline).await)))
                }));
                None
            }
        }
    }

    fn run(&mut self, subject: &Subject, call: Call) -> Option<Ended> {
        let message = self.prepared.get_mut(subject.id).and_then(Option::take);
        let Some(message) = message else {
            panic!("work {} was run before it was decoded", subject.id)
        };
        let span = subject.span(trace::attempt, &call);
        let mut outbox = self.outboxes.open();
        let call = Call {
            outbox: Some(outbox.clone()),
            ..call
        };
        let future = (self.run)(message, Arc::clone(&subject.batch), subject.index, call).instrument(span);
        let deadline = || clock::now() + self.terms.deadline;
        if self.terms.offload {
            let (id, deadline) = (subject.id, deadline());
            self.waiting.push(Box::pin(async move {
                let ended = ended(offloaded(future, deadline).await, &mut outbox);
                (id, Woken::Ended(ended, outbox))
            }));
            return None;
        }
        match first_poll(&mut self.run_slot, future) {
            Some(output) => {
                let ended = ended(output.map_err(Cut::Panicked), &mut outbox);
                self.outboxes.give_back(outbox);
                Some(ended)
            }
            None => {
                let slot = std::mem::replace(&mut self.run_slot, Box::pin(None));
                let (id, deadline) = (subject.id, deadline());
                self.waiting.push(Box::pin(async move {
                    let ended = ended(rest(slot, deadline).await, &mut outbox);
                    (id, Woken::Ended(ended, outbox))
                }));
                None
            }
        }
    }

    fn has_probe(&self) -> bool {
        self.callee.has_probe()
    }

    fn probe(&mut self, subject: &Subject, call: Call, not_before: Instant) {
        let (callee, subject, limit) = (
            Arc::clone(&self.callee),
            subject.clone(),
            self.terms.probe_deadline,
        );
        let outbox = self.outboxes.open();
        let call = Call {
            outbox: Some(outbox.clone()),
            ..call
        };
        let span = subject.span(trace::probe, &call);
        self.waiting.push(Box::pin(async move {
            clock::sleep_until(not_before).await;
            let id = subject.id;
            let asked = async move {
                let message = C::decode(Arc::clone(&callee), Arc::clone(&subject.batch), subject.index)
                    .await
                    .ok()?;
                C::probe(callee, message, subject.batch, subject.index, call)
                    .await
                    .ok()
            };
            let answer = rest(Box::pin(Some(asked.instrument(span))), clock::now() + limit).await;
            (
                id,
                Woken::Probed(answer.ok().flatten().unwrap_or(Probe::Unknown), outbox),
            )
        }));
    }

    fn discard(&mut self, id: usize) {
        if let Some(place) = self.prepared.get_mut(id) {
            *place = None;
        }
    }

    fn poll_event(&mut self, cx: &mut TaskContext<'_>) -> Poll<(usize, Event)> {
        if self.waiting.is_empty() {
            return Poll::Pending;
        }
        match self.waiting.poll_next_unpin(cx) {
            Poll::Ready(Some((id, woken))) => Poll::Ready((
                id,
                match woken {
                    Woken::Decoded(Ok(message)) => {
                        self.keep(id, message);
                        Event::Prepared(Ok(()))
                    }
                    Woken::Decoded(Err(undecoded)) => Event::Prepared(Err(undecoded)),
                    Woken::Ended(ended, outbox) => {
                        self.outboxes.give_back(outbox);
                        Event::Ended(ended)
                    }
                    Woken::Probed(probe, mut outbox) => {
                        // A refused emit is a probe that failed.
                        let (probe, emitted) = match outbox.close() {
                            Ok(emitted) => (probe, emitted),
                            Err(_) => (Probe::Unknown, Vec::new()),
                        };
                        self.outboxes.give_back(outbox);
                        Event::Probed(probe, emitted)
                    }
                },
            )),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn cancel_all(&mut self) {
        self.waiting = FuturesUnordered::new();
        self.prepared.clear();
    }
}

/// Runs a handler that computes or blocks on a thread of its own, so that its partition's task stays free. A thread
/// cannot be cancelled: at the deadline the attempt counts as timed out while the handler may go on, which is why the
/// class decides what follows.
async fn offloaded<F>(future: F, deadline: Instant) -> Result<F::Output, Cut>
where
    F: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    let thread = tokio::task::spawn_blocking(move || runtime.block_on(future));
    tokio::select! {
        biased;
        joined = thread => match joined {
            Ok(output) => Ok(output),
            Err(error) => Err(Cut::Panicked(match error.try_into_panic() {
                Ok(panic) => panic_text(&*panic),
                Err(error) => format!("the handler's thread ended: {error}"),
            })),
        },
        () = clock::sleep_until(deadline) => Err(Cut::TimedOut),
    }
}
