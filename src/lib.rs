//! hapax

mod class;
pub mod fence;
pub mod message;
pub mod outcome;
pub mod record;
pub mod store;
pub mod token;
pub mod window;

pub use class::Class;
