//! A harness without a broker and without C++: the same runtime, driven by a scripted log, a memory store and a clock
//! that stands still until it is moved.
//!
//! Start the test with tokio's paused clock (`#[tokio::test(start_paused = true)]`): then waiting costs nothing, and
//! everything that is ready has run when a wait returns.

mod rig;

pub(crate) use rig::Rig;
