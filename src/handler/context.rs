//! What a handler knows about its message and its attempt.
//!
//! There is no `ack` and no `commit` here: a handler returns an outcome, and what that permits is decided elsewhere.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::emit::{EmitError, Outbox};
use crate::class::Class;
use crate::fence::Fence;
use crate::message::{Batch, Headers, Offset, Raw};
use crate::output::Output;
use crate::token::{self, TokenKey};

/// What the runtime says about one call of a handler or a probe.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The first of the message's token keys, as recorded when it was first begun.
    pub(crate) token: TokenKey,
    /// Counted from 1, also across restarts. For a probe: the attempt it asks about.
    pub(crate) attempt: u32,
    /// The current assignment.
    pub(crate) fence: Fence,
    /// The topic's class.
    pub(crate) class: Class,
    /// An earlier attempt ended, or vanished, without saying that it applied nothing.
    pub(crate) may_have_applied: bool,
    /// Where its outputs are collected; `None` before it is called.
    pub(crate) outbox: Option<Outbox>,
}

impl Call {
    /// See [`Context::emit`].
    pub(crate) fn emit(&self, name: &str, output: Output) -> Result<(), EmitError> {
        match &self.outbox {
            Some(outbox) => outbox.emit(name, output),
            None => Err(EmitError::NoAttempt {
                name: name.to_owned(),
            }),
        }
    }
}

/// One message, one attempt, and the state of the topic's handler.
///
/// It is given by value; borrows from it may live across awaits. It keeps the batch that its message came in, so it is
/// not for keeping after the handler has returned.
pub struct Context<S = ()> {
    batch: Arc<Batch>,
    index: usize,
    call: Call,
    state: S,
}

impl<S> Context<S> {
    /// Allocates nothing; what `state` cost to clone was paid by the caller.
    pub(crate) const fn new(batch: Arc<Batch>, index: usize, call: Call, state: S) -> Self {
        Self {
            batch,
            index,
            call,
            state,
        }
    }

    /// The same without the state, for a probe that was stated before there was any.
    pub(super) fn without_state(self) -> Context {
        Context {
            batch: self.batch,
            index: self.index,
            call: self.call,
            state: (),
        }
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.batch.topic()
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.batch.partition()
    }

    /// The offset.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.raw().offset()
    }

    /// The message's own timestamp to the millisecond, as producer or broker set it; `None` where it has none.
    #[must_use]
    pub fn timestamp(&self) -> Option<SystemTime> {
        let since_epoch = u64::try_from(self.raw().timestamp_ms()?).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(since_epoch))
    }

    /// The key, `None` for a null key.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.raw().key()
    }

    /// The value of the last header of that name; `None` where there is none, or its value is null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.raw().header(name)
    }

    /// All headers, in the order of the message.
    #[must_use]
    pub fn headers(&self) -> Headers<'_> {
        self.raw().headers()
    }

    /// Which attempt at this message this is, from 1, counted across restarts and rebalances. In a probe: the attempt
    /// that is asked about.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.call.attempt
    }

    /// Whether an earlier attempt at this message may have applied something: it failed without saying otherwise, ran
    /// out of time, or its process died.
    ///
    /// Always false at the first attempt. In a `NonIdempotent` handler it is never true: there a probe or an operator
    /// has ruled the earlier attempt out. In the other classes it is where looking first pays. In a probe it is true.
    #[must_use]
    pub const fn may_have_applied(&self) -> bool {
        self.call.may_have_applied
    }

    /// The key of the message's token: 16 bytes that print as 32 hex digits, for logs and for `hapax inspect`. It is a
    /// digest; the token's own text is where the message has it.
    #[must_use]
    pub const fn token(&self) -> TokenKey {
        self.call.token
    }

    /// The token for one step of this handler, 32 hex digits: the same at every attempt at this message's token, in
    /// every process, and in the probe; another for every other `name`, token or topic.
    ///
    /// Send it downstream as the idempotency key. A `name` stands for one effect: two charges in one handler need two
    /// names (`"charge-1"`, `"charge-2"`), and renaming a step makes its effect a new one.
    #[must_use]
    pub fn child_token(&self, name: &str) -> String {
        token::child(&self.call.token, name)
    }

    /// Makes a message part of this message's outcome: it becomes visible where the attempt ends well, and with no attempt that
    /// does not.
    ///
    /// `name` stands for one output of this handler, as in [`child_token`](Self::child_token), and that child token travels with it
    /// as the header `idempotency-key`: a hapax downstream reads it as its token, and whatever is sent twice is taken once there.
    /// So each output of one attempt has a name of its own (`"line-1"`, `"line-2"`). Headers `hapax-topic`, `hapax-partition`,
    /// `hapax-offset`, `hapax-output` and `hapax-id` say whose it is.
    ///
    /// In replicated mode outputs are in the transaction of the outcome: seen with it, or not at all. In local mode the outcome and
    /// its outputs are made durable first and sent then; a crash in between sends them again, with the same headers. A duplicate
    /// emits nothing.
    ///
    /// A probe that answers [`Done`](crate::Probe::Done) emits what the attempt it asks about would have emitted, under the same
    /// names: what that attempt emitted went with it. Where it emits nothing, there are no outputs.
    ///
    /// Limits: `outputs.max` (100) and `outputs.bytes` (512 KiB) of the topic, for all outputs of one attempt.
    ///
    /// ```
    /// use hapax::{Context, HandlerError, Output};
    ///
    /// async fn ship(order: String, cx: Context) -> Result<(), HandlerError> {
    ///     cx.emit("shipment", Output::to("shipments").key(order.clone()).payload(order))?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`EmitError`]: a repeated name, a limit, a topic or header that is hapax's own. The attempt does not end well then, whatever
    /// the handler returns, so that no output is lost unseen; `?` says *unknown whether applied*, which is right after an effect.
    pub fn emit(&self, name: &str, output: Output) -> Result<(), EmitError> {
        self.call.emit(name, output)
    }

    /// The number of the current assignment of this partition. A resource that keeps the highest one and refuses lower
    /// ones shuts out attempts of assignments that are over.
    ///
    /// Comparable between processes with `durability = "replicated"` only. With `"local"` it grows within one
    /// `state_dir`: two members of a group have numbers of their own.
    #[must_use]
    pub const fn fence(&self) -> u64 {
        self.call.fence.0
    }

    /// The topic's operation class.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.call.class
    }

    /// What [`Topic::state`](crate::Topic::state) was given; a clone of its own for each call.
    #[must_use]
    pub const fn state(&self) -> &S {
        &self.state
    }

    fn raw(&self) -> Raw<'_> {
        raw(&self.batch, self.index)
    }
}

impl<S> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}

/// The message at `index`, which the runtime took out of this very batch.
pub(super) fn raw(batch: &Batch, index: usize) -> Raw<'_> {
    match batch.get(index) {
        Some(raw) => raw,
        None => panic!("message {index} of a batch of {}", batch.len()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::message::{BatchBuilder, Header};

    /// Two messages; the second one has everything.
    pub(in crate::handler) fn batch(payload: &[u8]) -> Arc<Batch> {
        let mut batch = BatchBuilder::new("orders".into(), 3, 2, 64);
        batch.push(Offset(7), None, None, None, []);
        let headers = [
            Header {
                name: "trace",
                value: Some(b"t1"),
            },
            Header {
                name: "none",
                value: None,
            },
        ];
        batch.push(Offset(9), Some(1_500), Some(b"k"), Some(payload), headers);
        Arc::new(batch.finish())
    }

    pub(in crate::handler) const CALL: Call = Call {
        token: TokenKey([7; 16]),
        attempt: 2,
        fence: Fence(5),
        class: Class::PotentiallyIdempotent,
        may_have_applied: true,
        outbox: None,
    };

    #[test]
    fn a_context_shows_its_own_message() {
        let cx = Context::new(batch(b"{}"), 1, CALL, "state");
        assert_eq!(
            (cx.topic(), cx.partition(), cx.offset()),
            ("orders", 3, Offset(9))
        );
        assert_eq!(
            cx.timestamp(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500))
        );
        assert_eq!(
            (cx.key(), cx.header("trace")),
            (Some(&b"k"[..]), Some(&b"t1"[..]))
        );
        assert_eq!(
            (cx.header("none"), cx.header("other"), cx.headers().count()),
            (None, None, 2)
        );
        assert_eq!(*cx.state(), "state");
    }

    #[test]
    fn what_a_message_lacks_is_none() {
        let cx = Context::new(batch(b"{}"), 0, CALL, ());
        assert_eq!((cx.timestamp(), cx.key(), cx.headers().count()), (None, None, 0));
    }

    #[test]
    fn a_context_shows_its_own_attempt() {
        let cx = Context::new(batch(b"{}"), 1, CALL, ());
        assert_eq!((cx.attempt(), cx.may_have_applied(), cx.fence()), (2, true, 5));
        assert_eq!(cx.class(), Class::PotentiallyIdempotent);
        assert_eq!(cx.token().to_string(), "07".repeat(16));
    }

    #[test]
    fn a_child_token_is_the_same_at_every_attempt_of_every_assignment() {
        let later = Call {
            attempt: 9,
            fence: Fence(6),
            may_have_applied: false,
            ..CALL
        };
        let first = Context::new(batch(b"{}"), 1, CALL, ()).child_token("charge");
        assert_eq!(
            Context::new(batch(b"{}"), 0, later, ()).child_token("charge"),
            first
        );
        let other = Call {
            token: TokenKey([8; 16]),
            ..CALL
        };
        assert_ne!(
            Context::new(batch(b"{}"), 1, other, ()).child_token("charge"),
            first
        );
    }

    #[test]
    #[should_panic(expected = "message 2 of a batch of 2")]
    fn a_message_outside_its_batch_is_a_broken_invariant() {
        let _ = Context::new(batch(b"{}"), 2, CALL, ()).offset();
    }
}
