//! The handler: what a user writes, and the words it is written in.
//!
//! - a [`Topic`] says where messages come from, what they [`Decode`] to and what repeating the handler would do
//! - the handler is a closure over the message and a [`Context`], or a value that implements [`Handler`]
//! - it cannot fail, it can only produce an outcome: a [`Reply`], or a [`HandlerError`] that says what is known
//! - where that is *nothing*, a [`Probe`] can find out
//!
//! A handler may be called again for one message, its future may be dropped at any await (deadline, revoked partition),
//! and tasks that it spawned go on. What this may do to the world is what its [`Class`](crate::Class) states.

mod callee;
mod context;
mod decode;
mod emit;
mod error;
mod reply;
mod token;
mod topic;

use std::future::Future;

pub(crate) use callee::{Binding, Callee, closure, object};
pub(crate) use context::Call;
pub use context::Context;
pub use decode::{Decode, DecodeError, Json, Undecoded};
pub use emit::EmitError;
pub(crate) use emit::{Emitted, OWN_NAMES, Outbox, Outboxes, TOKEN_HEADER};
pub use error::{Classify, ErrorKind, HandlerError};
pub use reply::{IntoReply, Probe, Reply};
pub(crate) use token::Readers;
pub use token::Token;
pub use topic::{Topic, Window};

/// A value that handles messages of type `M`: for handlers with fields, tests of their own, or a probe beside them.
///
/// ```
/// use hapax::{Classify, Context, Handler, HandlerError, Reply};
///
/// struct Order { sku: String, count: u32 }
///
/// struct Stock { shelves: std::path::PathBuf }
///
/// impl Handler<Order> for Stock {
///     type Reply = Reply;
///
///     async fn handle(&self, order: Order, cx: Context) -> Result<Reply, HandlerError> {
///         let shelf = self.shelves.join(&order.sku);
///         let left: u32 = std::fs::read_to_string(&shelf).not_applied()?.trim().parse().reject()?;
///         let left = left.checked_sub(order.count).ok_or("sold out").reject()?;
///         std::fs::write(shelf, left.to_string())?; // it failed, or it was written: unknown
///         Ok(Reply::json(&(cx.child_token("take"), left))?)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle messages of type `{M}`",
    label = "not a handler of `{M}`",
    note = "implement `Handler<{M}>` for it; a closure goes to `handle` or `handle_reply`"
)]
pub trait Handler<M>: Send + Sync + 'static {
    /// What it answers with; `()` for nothing.
    type Reply: IntoReply;

    /// Handles one message, once. The message comes by value and is decoded again for every attempt.
    ///
    /// Cancel safety: the future is dropped at the topic's deadline, and when the partition is lost. Such an attempt
    /// counts as one that may have applied something.
    ///
    /// # Errors
    /// [`HandlerError`], which says what is known about what was applied; `?` says *unknown*.
    fn handle(
        &self,
        message: M,
        cx: Context,
    ) -> impl Future<Output = Result<Self::Reply, HandlerError>> + Send;

    /// Finds out what became of an attempt whose end nobody knows: see [`Probe`]. An error, a panic and a time-out
    /// count as [`Probe::Unknown`], which is also what this answers where it is not implemented.
    ///
    /// # Errors
    /// Any; they mean [`Probe::Unknown`].
    fn probe(&self, message: M, cx: Context) -> impl Future<Output = Result<Probe, HandlerError>> + Send {
        let _ = (message, cx);
        async { Ok(Probe::Unknown) }
    }
}

/// The bounds of `Consumer::handle` without a consumer: what the compile-fail tests are held against.
#[doc(hidden)]
pub fn handle<D, S, F, Fut>(topic: Topic<D, S>, handler: F)
where
    D: Decode,
    S: Clone + Send + Sync + 'static,
    F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    let _ = closure(topic, handler);
}

/// The bounds of `Consumer::handle_reply`.
#[doc(hidden)]
pub fn handle_reply<D, S, F, Fut, R>(topic: Topic<D, S>, handler: F)
where
    D: Decode,
    S: Clone + Send + Sync + 'static,
    F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    R: IntoReply,
{
    let _ = closure(topic, handler);
}

/// The bounds of `Consumer::handler`.
#[doc(hidden)]
pub fn handler<D: Decode, H: Handler<D::Message>>(topic: Topic<D>, handler: H) {
    let _ = object(topic, handler);
}

#[cfg(test)]
mod tests;
