//! *hapax*, a thing said once: a Kafka consumer runtime that pulls messages, checks each one's token against a local
//! window of outcomes, calls your handler with retry, and commits an offset only after the outcome is recorded.
//!
//! # The promise, word for word
//!
//! > At-least-once delivery. At most one **recorded outcome** per token, within one partition and one window. A handler
//! > declared non-idempotent is never started again for a token after an attempt that *may have applied* something,
//! > unless an operator, or the user's own probe, says that it did not. What the outside world saw, hapax cannot undo;
//! > where it cannot know, it says *in doubt*.
//!
//! What weakens it (`run` policies, shed windows, observe-only, cold starts accepted by the user) is a stated choice,
//! shown by `hapax explain` and counted.
//!
//! # Hello
//!
//! ```no_run
//! # #[cfg(all(feature = "rocks", feature = "kafka"))] mod hello {
//! use hapax::{Consumer, Context, NonIdempotent, Topic, Window};
//!
//! #[derive(serde::Deserialize)]
//! struct Order { id: String, cents: u64 }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), hapax::Error> {
//!     Consumer::local("billing", "./state")
//!         .brokers("localhost:9092")
//!         .handle(
//!             Topic::json::<Order>("orders", NonIdempotent).window(Window::hours(24)),
//!             |order: Order, _cx: Context| async move {
//!                 println!("charging {} for {}", order.cents, order.id);
//!                 Ok(())
//!             },
//!         )
//!         .run()
//!         .await?; // until SIGTERM or SIGINT
//!     Ok(())
//! }
//! # }
//! # fn main() {}
//! ```
//!
//! Three things have no default, because each is a decision: the operation [`Class`], the [`Window`], and where outcomes
//! are made durable, which is the constructor's name. The folder `examples/` goes on from here; `consumer_binary` is the
//! one to copy.
//!
//! # What a handler can say
//!
//! A handler cannot fail, it can only produce an outcome. `Ok` is one. An error with `?` alone says that nobody knows
//! whether anything was applied; [`Classify`] says more: [`not_applied`](Classify::not_applied) is tried again,
//! [`reject`](Classify::reject) goes to the dead-letter topic. What nobody knows is retried, asked of the
//! [probe](Topic::probe), or held for a person, by the class:
//!
//! | class | repeating it | in doubt |
//! |---|---|---|
//! | [`Idempotent`] | changes nothing | runs again |
//! | [`PotentiallyIdempotent`] | is harmless with the same [child tokens](Context::child_token), while the downstream remembers them | probe; else again within `rerun_within`; then held |
//! | [`NonIdempotent`] | must never happen unknowingly | probe; else held |
//!
//! # Testing a handler
//!
//! With the feature `testing`, `hapax::testing::Harness` runs it without a broker and without C++: send, crash, restart,
//! and read what became of each message. `hapax::testing::exhaust` does that at every place where a process can die, and
//! tells the shortest story in which an effect repeats or is lost. docs/testing.md shows both.
//!
//! # The modules
//!
//! What an application names is re-exported here. The modules hold the rest, from the words up:
//!
//! | | |
//! |---|---|
//! | words: pure, time is an argument | [`message`], [`token`], [`outcome`], [`output`], [`record`], [`window`], [`ledger`], [`accounts`], [`fence`], [`backoff`], [`clock`], [`mod@error`] |
//! | what one can be told | [`config`], and [`explain`], which says what a configuration means |
//! | edges: a trait, then who may name the foreign crate | [`handler`], [`store`], [`broker`], [`journal`] |
//! | around them | [`dead_letter`], [`metrics`] with every name, unit and label, [`crash`] points for tests |
//!
//! # Features
//!
//! | feature | default | what it brings |
//! |---|---|---|
//! | `rocks` | yes | the window on disk. Without it the memory store is the only one |
//! | `kafka` | yes | the broker. `Consumer` needs both |
//! | `cli` | yes | the binary `hapax`; a library's user leaves it out |
//! | `tls` | no | TLS and SCRAM to the broker (needs libssl-dev) |
//! | `testing` | no | the harness, the store's conformance suite, and named crash points |

// Without the broker or the disk parts of the engine have no caller; what is dead with both is dead.
#![cfg_attr(
    not(all(feature = "rocks", feature = "kafka")),
    allow(dead_code, unused_imports)
)]

pub mod accounts;
mod act;
#[cfg(any(test, all(feature = "rocks", feature = "kafka")))]
mod admin;
mod arrivals;
mod assignments;
mod attempt;
pub mod backoff;
#[cfg(any(feature = "testing", all(feature = "rocks", feature = "kafka")))]
mod bound;
mod breaker;
pub mod broker;
mod class;
#[cfg(feature = "cli")]
pub mod cli;
pub mod clock;
mod commits;
pub mod config;
#[cfg(all(feature = "rocks", feature = "kafka"))]
mod consumer;
#[cfg(any(test, feature = "kafka"))]
mod copies;
pub mod crash;
pub mod dead_letter;
mod desk;
pub mod error;
pub mod explain;
pub mod fence;
pub mod handler;
#[cfg(any(test, feature = "testing", all(feature = "rocks", feature = "kafka")))]
mod held;
pub mod journal;
pub mod ledger;
mod limits;
pub mod message;
pub mod metrics;
pub mod outcome;
pub mod output;
mod partition;
mod patience;
mod pulse;
#[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "driven by the rebuilder"))]
mod rebuild;
pub mod record;
#[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "driven by the restorer"))]
mod recovery;
mod retry_budget;
#[cfg(all(feature = "rocks", feature = "kafka"))]
mod runtime;
#[cfg(any(test, feature = "kafka"))]
mod standby;
pub mod store;
#[cfg(any(test, all(feature = "rocks", feature = "kafka")))]
mod sweep;
#[cfg(feature = "testing")]
pub mod testing;
pub mod token;
mod trace;
#[cfg(any(test, all(feature = "rocks", feature = "kafka")))]
mod trim;
mod wanted;
pub mod window;
#[cfg(any(test, feature = "kafka"))]
mod worker;

pub use bytes::Bytes;
pub use class::Class;
pub use class::Class::{Idempotent, NonIdempotent, PotentiallyIdempotent};
#[cfg(all(feature = "rocks", feature = "kafka"))]
pub use consumer::Consumer;
pub use error::Error;
pub use handler::{
    Classify, Context, Decode, DecodeError, EmitError, Handler, HandlerError, IntoReply, Json, Probe, Reply,
    Token, Topic, Window,
};
pub use message::{NextOffset, Offset, Raw};
pub use output::Output;
#[cfg(all(feature = "rocks", feature = "kafka"))]
pub use runtime::Summary;

#[doc = include_str!("../README.md")]
#[cfg(all(doctest, feature = "rocks", feature = "kafka"))]
struct Readme;

#[doc = include_str!("../docs/testing.md")]
#[cfg(all(doctest, feature = "testing"))]
struct TestingPage;
