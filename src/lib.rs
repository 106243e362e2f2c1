//! hapax

pub mod accounts;
pub mod backoff;
mod class;
pub mod clock;
pub mod fence;
pub mod ledger;
pub mod message;
pub mod outcome;
pub mod record;
pub mod store;
pub mod token;
pub mod window;

pub use class::Class;
