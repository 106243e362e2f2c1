//! hapax

mod class;

pub use class::Class;
