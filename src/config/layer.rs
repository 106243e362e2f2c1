//! What one layer says: environment, file or code. What it leaves open is left to the weaker ones.
//!
//! Code writes one by struct update: `Layer { group: Some(group), ..Layer::default() }`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::breaker::Share;
use super::error::Place;
use super::life::{OnUseless, Renewal};
use super::settings::{Cold, Deleted, Durability, Properties, Standby, Start};
use super::topic::{
    AfterFailure, AfterHold, Concurrency, Expired, MissingToken, Mode, OnMismatch, TokenSource,
};
use super::units::ByteCount;
use crate::class::Class;

/// Laying one statement over a weaker one.
pub(super) trait Over {
    /// This, where it says something; otherwise the weaker one.
    #[must_use]
    fn over(self, weaker: Self) -> Self;
}

impl<T> Over for Option<T> {
    fn over(self, weaker: Self) -> Self {
        self.or(weaker)
    }
}

impl Over for Properties {
    fn over(self, mut weaker: Self) -> Self {
        weaker.0.extend(self.0);
        weaker
    }
}

impl Over for BTreeMap<String, TopicLayer> {
    fn over(self, mut weaker: Self) -> Self {
        for (name, topic) in self {
            let below = weaker.remove(&name).unwrap_or_default();
            weaker.insert(name, topic.over(below));
        }
        weaker
    }
}

impl Over for BTreeMap<String, Place> {
    fn over(self, mut weaker: Self) -> Self {
        weaker.extend(self);
        weaker
    }
}

/// A struct whose fields are laid over one another one by one.
macro_rules! layers {
    ($(
        $(#[$doc:meta])*
        $name:ident of $settings:literal {
            $($field:ident: $type:ty),+ $(,)?
            $(; $($(#[$extra_doc:meta])* $extra:ident: $extra_type:ty),+ $(,)?)?
        }
    )+) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Default)]
        #[non_exhaustive]
        pub struct $name {
            $(
                #[doc = concat!(
                    "What this layer says of [`", $settings, "::", stringify!($field), "`]",
                    "(super::", $settings, "::", stringify!($field), ").",
                )]
                pub $field: $type,
            )+
            $($(
                $(#[$extra_doc])*
                pub $extra: $extra_type,
            )+)?
        }

        impl Over for $name {
            fn over(self, weaker: Self) -> Self {
                Self {
                    $($field: self.$field.over(weaker.$field),)+
                    $($($extra: self.$extra.over(weaker.$extra),)+)?
                }
            }
        }
    )+ };
}

layers! {
    /// What one layer says of the whole process.
    Layer of "Settings" {
        group: Option<String>,
        brokers: Option<String>,
        state_dir: Option<PathBuf>,
        durability: Option<Durability>,
        cold: Option<Cold>,
        start: Option<Start>,
        deleted: Option<Deleted>,
        drain: Option<Duration>,
        commit_every: Option<Duration>,
        memory: Option<ByteCount>,
        max_clock_jump: Option<Duration>,
        standby: Option<Standby>,
        limits: LimitsLayer,
        dead_letter: DeadLetterLayer,
        admin: AdminLayer,
        kafka: Properties,
        topics: BTreeMap<String, TopicLayer>;
        /// What this layer says of the retries of every topic that says nothing itself.
        retry: RetryLayer,
        /// What this layer says of the breaker of every topic that says nothing itself.
        breaker: BreakerLayer,
        /// Where each key was stated, so that a problem found after merging still names its line.
        places: BTreeMap<String, Place>,
    }
    /// What one layer says of the limits.
    LimitsLayer of "Limits" {
        in_flight: Option<usize>,
        in_flight_bytes: Option<ByteCount>,
        held: Option<usize>,
        held_bytes: Option<ByteCount>,
        held_age: Option<Duration>,
        token_bytes: Option<ByteCount>,
        outcome_bytes: Option<ByteCount>,
    }
    /// What one layer says of retries, for one topic or for all.
    RetryLayer of "Retry" {
        in_place: BoundsLayer,
        overall: BoundsLayer;
        /// What this layer says of the budget.
        budget: BudgetLayer,
    }
    /// What one layer says of the retries in place, or of all.
    BoundsLayer of "InPlace" {
        attempts: Option<u32>,
        total: Option<Duration>,
        first: Option<Duration>,
        max: Option<Duration>,
    }
    /// What one layer says of the budget of retries, for one topic or for all.
    BudgetLayer of "RetryBudget" {
        share: Option<Share>,
        per_second: Option<u32>,
    }
    /// What one layer says of breakers, for one topic or for all.
    BreakerLayer of "Breaker" {
        failure_share: Option<Share>,
        over: Option<u32>,
        open_for: Option<Duration>,
    }
    /// What one layer says of dead letters.
    DeadLetterLayer of "DeadLetter" {
        topic: Option<String>,
        create: Option<bool>,
    }
    /// What one layer says of the admin port.
    AdminLayer of "Admin" {
        listen: Option<Listen>,
        token_file: Option<PathBuf>,
        audit_topic: Option<String>,
    }
    /// What one layer says of one topic.
    TopicLayer of "TopicPolicy" {
        class: Option<Class>,
        window: Option<Duration>,
        window_bytes: Option<ByteCount>,
        renewal: Option<Renewal>,
        token: Option<Vec<TokenSource>>,
        concurrency: Option<Concurrency>,
        begun_ahead: Option<usize>,
        deadline: Option<Duration>,
        probe_deadline: Option<Duration>,
        probe_settle: Option<Duration>,
        rerun_within: Option<Duration>,
        missing_token: Option<MissingToken>,
        mismatch: MismatchLayer,
        after_failure: Option<AfterFailure>,
        expired: Option<Expired>,
        max_age: MaxAgeLayer,
        mode: Option<Mode>,
        store_outcome: Option<bool>,
        offload: Option<bool>,
        retry: RetryLayer,
        after_hold: Option<AfterHold>,
        after_doubt: Option<AfterHold>,
        outputs: OutputsLayer,
        reply: RepliesLayer,
        receipts: ReceiptsLayer,
        breaker: BreakerLayer,
    }
    /// What one layer says of messages that are too old.
    MaxAgeLayer of "MaxAge" {
        after: Option<Duration>,
        header: Option<String>,
        then: Option<OnUseless>,
    }
    /// What one layer says of what a handler emits.
    OutputsLayer of "Outputs" {
        topics: Option<Vec<String>>,
        max: Option<usize>,
        bytes: Option<ByteCount>,
    }
    /// What one layer says of replies.
    RepliesLayer of "Replies" {
        header: Option<String>,
        topic: Option<String>,
        allowed: Option<Vec<String>>,
    }
    /// What one layer says of receipts.
    ReceiptsLayer of "Receipts" {
        topic: Option<String>,
    }
    /// What one layer says of payload mismatches.
    MismatchLayer of "Mismatch" {
        fields: Option<Vec<String>>,
        then: Option<OnMismatch>,
    }
}

impl Layer {
    /// This layer laid over a weaker one: what this one leaves open, the weaker one fills in, key by key.
    #[must_use]
    pub fn merge(self, weaker: Self) -> Self {
        self.over(weaker)
    }
}

/// What a layer says of the admin port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Listen there.
    At(SocketAddr),
    /// Do not listen: `"off"`.
    Off,
}
