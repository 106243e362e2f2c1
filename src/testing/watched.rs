//! A handler that is watched: each moment at which its future is not being polled is an edge of the script.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use super::message::Sent;
use super::script::{At, Attempt, Code, Edge, Said, Script, Side};
use crate::attempt::panic_text;
use crate::handler::{Call, Callee, DecodeError, ErrorKind, HandlerError, Probe, Reply};
use crate::message::{Batch, Offset};

/// Who watches a harness's handler. Nobody, until a script is given.
#[derive(Clone, Default)]
pub(super) struct Watch(Arc<Mutex<Option<Script>>>);

impl Watch {
    pub(super) fn by(&self, script: Script) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(script);
    }

    fn over(&self, code: Code, batch: &Batch, index: usize, call: &Call) -> Option<Seen> {
        let script = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let offset = batch.get(index).map_or(Offset(0), |raw| raw.offset());
        let of = Sent {
            partition: batch.partition(),
            offset,
        };
        let of = script.attempt(of, call.attempt);
        Some(Seen {
            script,
            code,
            of,
            has_started: false,
            awaits: 0,
        })
    }
}

/// A handler, watched.
pub(super) struct Watched<C> {
    pub(super) callee: Arc<C>,
    pub(super) watch: Watch,
}

/// One call that is watched.
struct Seen {
    script: Script,
    code: Code,
    of: Attempt,
    has_started: bool,
    awaits: u32,
}

impl Seen {
    fn dies_at(&self, at: At) -> bool {
        let (code, of) = (self.code, self.of);
        self.script.dies_at(Edge::Code { code, of, at }, Side::Before)
    }

    fn poll<F: Future>(
        &mut self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
        said: impl Fn(&F::Output) -> Said,
    ) -> Poll<F::Output> {
        // A process that is dead polls nothing, whoever wakes it.
        if self.script.is_dead() {
            return Poll::Pending;
        }
        if !self.has_started {
            self.has_started = true;
            // The engine polls once without a waker, and again at once: the same await would count twice.
            if !self.dies_at(At::Start) {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        let poll = || catch_unwind(AssertUnwindSafe(|| future.poll(cx)));
        let polled = self.script.run(self.of, poll);
        let at = match &polled {
            Ok(Poll::Pending) => {
                self.awaits += 1;
                At::Await(self.awaits)
            }
            Ok(Poll::Ready(output)) => At::End(said(output)),
            Err(panic) => At::End(Said::Unknown(format!("a panic, {}", panic_text(&**panic)))),
        };
        if self.dies_at(at) {
            return Poll::Pending;
        }
        match polled {
            Ok(polled) => polled,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Polls a call, under the eyes of whoever watches it.
async fn follow<F: Future>(future: F, seen: Option<Seen>, said: impl Fn(&F::Output) -> Said) -> F::Output {
    let Some(mut seen) = seen else {
        return future.await;
    };
    let mut future = pin!(future);
    std::future::poll_fn(|cx| seen.poll(future.as_mut(), cx, &said)).await
}

fn said_by_handler(output: &Result<Reply, HandlerError>) -> Said {
    match output {
        Ok(_) => Said::Ok,
        Err(error) => match error.kind() {
            ErrorKind::Unknown => Said::Unknown(error.message()),
            ErrorKind::NotApplied | ErrorKind::RetryAfter(_) => Said::NotApplied(error.message()),
            ErrorKind::Reject => Said::Reject(error.message()),
        },
    }
}

fn said_by_probe(output: &Result<Probe, HandlerError>) -> Said {
    match output {
        Ok(Probe::Done(_)) => Said::ProbeDone,
        Ok(Probe::NotDone) => Said::ProbeNotDone,
        Ok(Probe::Unknown) | Err(_) => Said::ProbeUnknown,
    }
}

impl<C: Callee> Callee for Watched<C> {
    type Message = C::Message;

    fn decode(
        self: Arc<Self>,
        batch: Arc<Batch>,
        index: usize,
    ) -> impl Future<Output = Result<Self::Message, DecodeError>> + Send + 'static {
        C::decode(Arc::clone(&self.callee), batch, index)
    }

    fn call(
        self: Arc<Self>,
        message: Self::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Reply, HandlerError>> + Send + 'static {
        let seen = self.watch.over(Code::Handler, &batch, index, &call);
        let future = C::call(Arc::clone(&self.callee), message, batch, index, call);
        follow(future, seen, said_by_handler)
    }

    fn has_probe(&self) -> bool {
        self.callee.has_probe()
    }

    fn probe(
        self: Arc<Self>,
        message: Self::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Probe, HandlerError>> + Send + 'static {
        let seen = self.watch.over(Code::Probe, &batch, index, &call);
        let future = C::probe(Arc::clone(&self.callee), message, batch, index, call);
        follow(future, seen, said_by_probe)
    }
}
