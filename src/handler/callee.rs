//! The one shape in which the engine calls every handler, and how a topic and its handler take that shape.
//!
//! Nothing is boxed here but a probe's future. A panic of the user's code, also of the part of a closure that comes
//! before its `async` block, comes out of polling a future and never out of making one: whoever polls can catch it.

#![expect(
    clippy::manual_async_fn,
    reason = "that a future is `Send` and borrows nothing is part of the signature"
)]

use std::future::Future;
use std::sync::Arc;

use futures_util::future::{self, FutureExt as _, TryFutureExt as _};

use super::Handler;
use super::context::{Call, Context, raw};
use super::decode::{Decode, DecodeError};
use super::error::HandlerError;
use super::reply::{IntoReply, Probe, Reply};
use super::token::Readers;
use super::topic::{ProbeFn, Topic};
use crate::config::TopicLayer;
use crate::message::Batch;

/// A handler as the engine calls it. Every future owns what it needs.
pub(crate) trait Callee: Send + Sync + 'static {
    type Message: Send + 'static;

    /// Decodes the message at `index` of `batch`.
    fn decode(
        self: Arc<Self>,
        batch: Arc<Batch>,
        index: usize,
    ) -> impl Future<Output = Result<Self::Message, DecodeError>> + Send + 'static;

    /// Calls the handler once. Only polling the future runs code of the user's.
    fn call(
        self: Arc<Self>,
        message: Self::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Reply, HandlerError>> + Send + 'static;

    /// Whether there is anybody to ask; otherwise the answer is [`Probe::Unknown`].
    fn has_probe(&self) -> bool;

    /// Asks the probe once.
    fn probe(
        self: Arc<Self>,
        message: Self::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Probe, HandlerError>> + Send + 'static;
}

/// A topic bound to its handler: what a consumer keeps of both.
pub(crate) struct Binding<C> {
    pub(crate) topic: String,
    /// What code says of the topic: the weakest layer of its configuration.
    pub(crate) layer: TopicLayer,
    pub(crate) readers: Readers,
    pub(crate) callee: Arc<C>,
}

/// Binds a topic to a closure.
pub(crate) fn closure<D, S, F, Fut, R>(topic: Topic<D, S>, handler: F) -> Binding<Closure<D, S, F>>
where
    D: Decode,
    S: Clone + Send + Sync + 'static,
    F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    R: IntoReply,
{
    let Topic {
        name,
        layer,
        readers,
        decode,
        state,
        probe,
    } = topic;
    let callee = Arc::new(Closure {
        decode,
        state,
        probe,
        handler,
    });
    Binding {
        topic: name,
        layer,
        readers,
        callee,
    }
}

/// Binds a topic to a value that handles its messages. A probe of the topic's is asked before the value's own.
pub(crate) fn object<D: Decode, H: Handler<D::Message>>(
    topic: Topic<D>,
    handler: H,
) -> Binding<Object<D, H>> {
    let Topic {
        name,
        layer,
        readers,
        decode,
        probe,
        ..
    } = topic;
    let callee = Arc::new(Object {
        decode,
        probe,
        handler,
    });
    Binding {
        topic: name,
        layer,
        readers,
        callee,
    }
}

/// A closure with the state that it shares.
pub(crate) struct Closure<D: Decode, S, F> {
    decode: D,
    state: S,
    probe: Option<ProbeFn<D::Message, S>>,
    handler: F,
}

impl<D, S, F, Fut, R> Callee for Closure<D, S, F>
where
    D: Decode,
    S: Clone + Send + Sync + 'static,
    F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    R: IntoReply,
{
    type Message = D::Message;

    fn decode(
        self: Arc<Self>,
        batch: Arc<Batch>,
        index: usize,
    ) -> impl Future<Output = Result<D::Message, DecodeError>> + Send + 'static {
        async move { self.decode.decode(raw(&batch, index)).await }
    }

    fn call(
        self: Arc<Self>,
        message: D::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Reply, HandlerError>> + Send + 'static {
        // In an async block the message would lie twice in the future: once captured, once inside the user's future.
        future::lazy(move |_| (self.handler)(message, Context::new(batch, index, call, self.state.clone())))
            .flatten()
            .map_ok(IntoReply::into_reply)
    }

    fn has_probe(&self) -> bool {
        self.probe.is_some()
    }

    fn probe(
        self: Arc<Self>,
        message: D::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Probe, HandlerError>> + Send + 'static {
        async move {
            match &self.probe {
                Some(probe) => probe(message, Context::new(batch, index, call, self.state.clone())).await,
                None => Ok(Probe::Unknown),
            }
        }
    }
}

/// A value that handles messages.
pub(crate) struct Object<D: Decode, H> {
    decode: D,
    probe: Option<ProbeFn<D::Message, ()>>,
    handler: H,
}

impl<D: Decode, H: Handler<D::Message>> Callee for Object<D, H> {
    type Message = D::Message;

    fn decode(
        self: Arc<Self>,
        batch: Arc<Batch>,
        index: usize,
    ) -> impl Future<Output = Result<D::Message, DecodeError>> + Send + 'static {
        async move { self.decode.decode(raw(&batch, index)).await }
    }

    fn call(
        self: Arc<Self>,
        message: D::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Reply, HandlerError>> + Send + 'static {
        async move {
            let cx = Context::new(batch, index, call, ());
            self.handler.handle(message, cx).await.map(IntoReply::into_reply)
        }
    }

    fn has_probe(&self) -> bool {
        // Whether the trait's default was replaced cannot be seen; asked, it answers `Unknown`.
        true
    }

    fn probe(
        self: Arc<Self>,
        message: D::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Probe, HandlerError>> + Send + 'static {
        async move {
            let cx = Context::new(batch, index, call, ());
            match &self.probe {
                Some(probe) => probe(message, cx).await,
                None => self.handler.probe(message, cx).await,
            }
        }
    }
}
