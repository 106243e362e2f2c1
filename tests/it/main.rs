//! Integration tests: one binary, so that RocksDB is linked once. One claim a file, named after behaviour.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod bad_input;
mod bad_store;
mod events;
mod foreign;
mod frozen;
mod kafka;
mod member;
mod memory;
mod mock;
mod rebalance;
mod several_topics;
mod smoke;
mod traces;
