//! hapax

pub mod accounts;
mod assignments;
mod attempt;
pub mod backoff;
pub mod broker;
mod class;
pub mod clock;
mod commits;
pub mod config;
#[cfg(all(feature = "rocks", feature = "kafka"))]
mod consumer;
pub mod crash;
pub mod dead_letter;
pub mod error;
pub mod explain;
pub mod fence;
pub mod handler;
pub mod journal;
pub mod ledger;
mod limits;
pub mod message;
pub mod metrics;
pub mod outcome;
mod partition;
mod pulse;
pub mod record;
#[cfg(all(feature = "rocks", feature = "kafka"))]
mod runtime;
pub mod store;
#[cfg(any(test, all(feature = "rocks", feature = "kafka")))]
mod sweep;
#[cfg(feature = "testing")]
pub mod testing;
pub mod token;
mod trace;
pub mod window;

pub use bytes::Bytes;
pub use class::Class;
pub use class::Class::{Idempotent, NonIdempotent, PotentiallyIdempotent};
#[cfg(all(feature = "rocks", feature = "kafka"))]
pub use consumer::Consumer;
pub use error::Error;
pub use handler::{
    Classify, Context, Decode, DecodeError, Handler, HandlerError, IntoReply, Json, Probe, Reply, Token,
    Topic, Window,
};
pub use message::{NextOffset, Offset, Raw};
#[cfg(all(feature = "rocks", feature = "kafka"))]
pub use runtime::Summary;

#[doc = include_str!("../README.md")]
#[cfg(all(doctest, feature = "rocks", feature = "kafka"))]
struct Readme;
