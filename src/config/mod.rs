//! Configuration: environment over file over code over default, resolved into one [`Settings`], checked whole.
//!
//! - a [`Layer`] is what one of the three says; [`file()`] and [`env()`] read theirs, code writes its own
//! - [`resolve`] lays them over one another, fills in the defaults, and refuses what cannot work
//! - nothing is ignored: an unknown key, and one that contradicts another are refused, all of them together, each with
//!   what to write instead
//!
//! Reading the file is the only I/O. Whether a broker, a topic or a directory exists is for the runtime to find out,
//! and so is a topic that the file names and no handler serves.

mod breaker;
mod check;
mod env;
mod error;
mod given;
mod kafka;
mod keys;
mod layer;
mod life;
mod read;
mod resolve;
mod settings;
mod topic;
mod tree;
mod units;
mod values;

pub use breaker::{Breaker, RetryBudget, Share};
pub(crate) use check::legal;
pub use check::{check, warnings};
pub use env::env;
pub use error::{Error, Place, Problem};
pub use given::{Outputs, Receipts, Replies};
#[cfg(feature = "kafka")]
pub(crate) use kafka::is_by_broker;
pub use keys::{file, parse};
pub use layer::{
    AdminLayer, BoundsLayer, BreakerLayer, BudgetLayer, DeadLetterLayer, Layer, LimitsLayer, Listen,
    MaxAgeLayer, MismatchLayer, OutputsLayer, ReceiptsLayer, RepliesLayer, RetryLayer, TopicLayer,
};
pub use life::{MaxAge, OnUseless, Renewal};
pub use resolve::resolve;
pub use settings::{
    Admin, Cold, DeadLetter, Deleted, Durability, Limits, Properties, Settings, Standby, Start,
};
pub use topic::{
    AfterFailure, AfterHold, Concurrency, Expired, InPlace, Mismatch, MissingToken, Mode, OnMismatch,
    Overall, Retry, TokenSource, TopicPolicy,
};
pub use units::ByteCount;
pub(crate) use units::show_duration;

#[cfg(test)]
mod docs;

/// Settings of those lines over the ones that every file needs, and a topic `orders` of class `non-idempotent`.
#[cfg(test)]
pub(crate) fn settle(lines: &str) -> Result<Settings, Error> {
    settle_as(crate::class::Class::NonIdempotent, lines)
}

/// The same with another class.
#[cfg(test)]
pub(crate) fn settle_as(class: crate::class::Class, lines: &str) -> Result<Settings, Error> {
    let base = format!(
        "group = \"g\"\nbrokers = \"k:9092\"\nstate_dir = \"s\"\ndurability = \"local\"\n\
         topics.orders.class = \"{class}\"\ntopics.orders.window = \"24h\""
    );
    let path = std::path::Path::new("hapax.toml");
    resolve(Layer::default(), parse(lines, path)?, parse(&base, path)?)
}
