//! Integration tests: one binary, so that RocksDB is linked once. One claim a file, named after behaviour.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod checker;
mod crash;
mod crash_points;
mod crash_random;
mod kafka;
mod smoke;
mod sync_order;
