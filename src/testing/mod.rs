//! A harness without a broker and without C++: the same runtime, driven by a scripted log, a memory store and a clock
//! that stands still until it is moved.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
//! use hapax::testing::{Account, Harness, Message};
//! use hapax::{Context, NonIdempotent, Topic, Window};
//!
//! let topic = Topic::json::<u64>("payments", NonIdempotent).window(Window::hours(24));
//! let mut bank = Harness::new(topic, |_cents: u64, _cx: Context| async move { Ok(()) });
//! bank.send(Message::json(&100).token("t-1"));
//! bank.send(Message::json(&100).token("t-1"));
//! bank.start().await?;
//! let books = bank.settle().await?;
//! assert_eq!((books.of(Account::Done), books.of(Account::Duplicate)), (1, 1));
//! # Ok::<(), hapax::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`Harness`] is one consumer of one topic: it is started, crashed, stopped and started again
//! - [`Message`] is what is sent to it
//! - [`exhaust`](exhaust()) tries a handler at every crash there can be, and tells the shortest story in which an effect
//!   repeats or is lost; the handler notes its [`Effects`] in the outside world that it is given
//! - [`Held`] and [`DeadLetter`] are what became of messages that did not end well, [`Produced`] is what handlers emitted,
//!   [`Balance`] is what became of all
//!
//! Start the test with tokio's paused clock, `#[tokio::test(start_paused = true)]` (tokio's feature `test-util`): then
//! waiting costs nothing, and everything that is ready has run when a wait returns. Otherwise it takes as long as it
//! says.
//!
//! What it does not show: the disk (a crash here loses nothing that was recorded), the broker's side of rebalances, and
//! several topics in one consumer.

mod effects;
pub mod exhaust;
mod harness;
mod letterbox;
mod message;
mod rig;
pub(crate) mod script;
mod watched;

pub use crate::accounts::{Account, Balance};
pub use crate::outcome::{Closed, End, HeldFor, Stored, Verdict};
pub use crate::store::memory::Fault;
pub use effects::{Effect, Effects};
pub use exhaust::exhaust;
pub use harness::Harness;
pub use message::{DeadLetter, Held, Message, Produced, Sent};
#[cfg(test)]
pub(crate) use rig::{Arriving, Rig};
