//! Integration tests: one binary, so that RocksDB is linked once. One claim a file, named after behaviour.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod admin_port;
mod checker;
mod cli;
mod crash;
mod crash_points;
mod crash_random;
mod examples;
mod kafka;
mod killed_store;
mod resolved;
mod smoke;
mod start;
mod sync_order;
