//! A model of the replicated protocol, checked exhaustively for two consumers and two tokens; and one of the copy that a
//! process has on its disk.
//!
//! Goal: the invariants of the design hold in every order of steps, whatever freezes, dies, is expelled, times out or
//! loses an answer; and each rule that protects them is needed, or it is known why not.
//!
//! Method: the protocol is written down as steps of a broker and two consumers, in words of the design and without its
//! code, and a checker walks through every state that these steps can reach. `kept` has all rules; `broken` leaves one
//! out at a time, demands that a named invariant falls, and shows the shortest way there; the same for operators
//! (`_orders`) and for copies. What is in the model and what is not: `docs/model.md`.
//! It needs neither RocksDB nor Kafka: `cargo test --no-default-features --test model`.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

mod broken;
mod broken_orders;
mod broker;
mod check;
mod consumer;
mod copies;
mod copies_broken;
mod copies_kept;
mod copies_rules;
mod kept;
mod kept_orders;
mod orders;
mod properties;
mod protocol;
mod records;
mod rules;
mod state;
mod world;
