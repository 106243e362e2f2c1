//! placeholder
mod context;
mod decode;
mod error;
mod reply;
use crate::message::Batch;
pub(crate) use context::Call;
pub use context::Context;
pub use decode::*;
pub use error::*;
pub use reply::*;
use std::sync::Arc;
pub(crate) trait Callee: Send + Sync + 'static {
    type Message: Send + 'static;
    fn decode(
        self: Arc<Self>,
        batch: Arc<Batch>,
        index: usize,
    ) -> impl Future<Output = Result<Self::Message, DecodeError>> + Send + 'static;
    fn call(
        self: Arc<Self>,
        message: Self::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Reply, HandlerError>> + Send + 'static;
    fn has_probe(&self) -> bool;
    fn probe(
        self: Arc<Self>,
        message: Self::Message,
        batch: Arc<Batch>,
        index: usize,
        call: Call,
    ) -> impl Future<Output = Result<Probe, HandlerError>> + Send + 'static;
}
