//! Integration tests: one binary, so that RocksDB is linked once. One claim a file, named after behaviour.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic, and bounds its waits by the clock of the machine"
)]

mod admin_port;
mod arrivals;
mod away;
mod bad_input;
mod bad_store;
mod changelog_gone;
mod changelog_topics;
mod chaos;
mod checker;
mod cli;
mod crash;
mod crash_points;
mod crash_random;
mod demo;
mod edges;
mod events;
mod examples;
mod foreign;
mod frozen;
mod holds;
mod kafka;
mod killed_logged;
mod killed_store;
mod member;
mod memory;
mod mock;
mod operator;
mod outcomes;
mod process;
mod protocols;
mod rebalance;
mod rebuild;
mod replicated;
mod resets;
mod resolved;
mod restores;
mod rights;
mod several_topics;
mod smoke;
mod standby;
mod start;
mod store;
mod sync_order;
mod together;
mod traces;
mod trim;
