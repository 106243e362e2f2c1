//! The policy of one topic: how a message's token is read, how long it is remembered, and what each finding means.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use super::breaker::{Breaker, RetryBudget};
use super::given::{Outputs, Receipts, Replies};
use super::life::{MaxAge, Renewal};
use super::units::{ByteCount, words};
use crate::class::Class;

/// What hapax does with the messages of one topic.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TopicPolicy {
    /// What repeating the handler would do to the world.
    ///
    /// Required, and never guessed.
    pub class: Class,
    /// How long, in log time, the outcome of a token is remembered.
    ///
    /// Required: no default fits. Too small, and a duplicate that comes later runs again: a producer that retries for
    /// six hours after an outage needs more than six hours. Too large, and the disk pays: 32 B a token, so 10,000 a
    /// second for 30 days take 772 GiB. Downtime ages nothing. Metrics: `hapax_duplicate_gap_seconds` shows how late
    /// duplicates come, `hapax_window_expirations_total` what came later.
    pub window: Duration,
    /// The most disk that the window may take, all partitions of the process together.
    ///
    /// Default: none; the disk itself is the limit. At the limit the window is shortened, oldest bucket first, which
    /// is counted and alarmed; where nothing may be shed the topic stops taking.
    /// Metrics: `hapax_window_bytes`, `hapax_effective_window_seconds`.
    pub window_bytes: Option<ByteCount>,
    /// Whether a suppressed duplicate starts the window of its token anew.
    ///
    /// Default: `never`. With `on-duplicate` a token that is resent again and again stays known, to within a quarter of the
    /// window after the last time, and its record is written again for it, at most four times a window.
    /// Metric: `hapax_window_renewals_total`.
    pub renewal: Renewal,
    /// Where a message's token is read; every source that is present counts.
    ///
    /// Default: `[{ header = "idempotency-key" }]`. Several sources are for a change of producers: name the new one
    /// beside the old until one window has passed. Renaming a source forgets what was recorded under its old name.
    pub token: Vec<TokenSource>,
    /// How many messages of one partition run at a time, and which wait for one another.
    ///
    /// Default: `{ by_key = 16 }`. Each slot of a guarded class is one message that a kill can leave in doubt. Too few,
    /// and a handler of 50 ms on one slot does 20 messages a second a partition. Metric: `hapax_lag_messages`.
    pub concurrency: Concurrency,
    /// Messages beyond the slots whose begin is made durable ahead of time, so that a freed slot starts at once.
    ///
    /// Default: `0`. Each one ahead is one more message that a kill can leave in doubt, though it never started.
    pub begun_ahead: usize,
    /// How long one attempt may take.
    ///
    /// Default: `10s`. At the limit the handler's future is cancelled and the attempt counts as one that may have
    /// applied something; tasks that it spawned go on. Too small, and a slow downstream puts every message in doubt.
    /// Too large, and a stuck handler keeps its slot. Metric: `hapax_handler_seconds`.
    pub deadline: Duration,
    /// How long one probe may take.
    ///
    /// Default: `5s`. At the limit the probe counts as `Unknown`, and the message is held in doubt. Metric:
    /// `hapax_probes_total`.
    pub probe_deadline: Duration,
    /// How long after the deadline of an attempt hapax waits before it probes, so that what the attempt sent can land.
    ///
    /// Default: `1s`. Too small, and a probe says "not done" of a request that is still on its way: it is then done
    /// twice.
    pub probe_settle: Duration,
    /// How long after its begin an attempt of unknown end may be run again with the same child tokens: as long as the
    /// downstream remembers them. Read for `potentially-idempotent` only.
    ///
    /// Default: `window`, at most `24h`. Too large, and the downstream has forgotten the child token: the second run
    /// is applied again. Too small, and work is held for an operator that could have run by itself.
    /// Metric: `hapax_in_doubt_total`.
    pub rerun_within: Duration,
    /// What becomes of a message without a token.
    ///
    /// Default: `dead-letter` for `non-idempotent`, otherwise `use-offset`. Metric: `hapax_missing_tokens_total`.
    pub missing_token: MissingToken,
    /// What of the payload must be equal under one token, and what becomes of a message where it is not.
    ///
    /// Unless fields are named, the whole payload is compared, counted and suppressed. Metric: `hapax_mismatches_total`.
    pub mismatch: Mismatch,
    /// What becomes of a duplicate whose first message failed.
    ///
    /// Default: `run` for `idempotent`, otherwise `suppress`.
    pub after_failure: AfterFailure,
    /// What becomes of a message whose token states a birth (UUIDv7, or a `created` header) before the window.
    ///
    /// Default: `dead-letter` with reason `expired`. With `run` a duplicate that late runs again.
    /// Metric: `hapax_outcomes_total`.
    pub expired: Expired,
    /// When a message is too old to be of use.
    pub max_age: MaxAge,
    /// Whether verdicts are enforced.
    ///
    /// Default: `enforce`. With `observe` messages are judged, recorded and counted, and nothing is suppressed: for
    /// the first days of a topic, to see what would be. Metric: `hapax_observed_duplicates_total`.
    pub mode: Mode,
    /// Whether the reply of the handler is stored with the outcome, up to `limits.outcome_bytes`.
    ///
    /// Default: `true`. Without it a plain outcome costs 32 B, and a duplicate cannot be answered with the reply.
    pub store_outcome: bool,
    /// Whether the handler runs on threads of its own rather than in the partition's task.
    ///
    /// Default: `false`. For handlers that block or compute: one that blocks for 200 ms stalls its partition's task,
    /// and with it every other slot.
    pub offload: bool,
    /// How attempts that applied nothing, or may be repeated, are repeated.
    pub retry: Retry,
    /// What becomes of later messages of a key while one of them is held for a retry.
    ///
    /// Default: `block-key`. They are held behind it, on disk, and run in their order once it has ended; under `ordered`
    /// the partition is one key, under `unordered` nothing waits. With `release` they run before it.
    /// Metric: `hapax_held_messages`.
    pub after_hold: AfterHold,
    /// What becomes of later messages of a key while one of them is held in doubt.
    ///
    /// Default: `release`: it waits for a person, and they run before it. With `block-key` they are held behind it.
    /// Metric: `hapax_held_messages`.
    pub after_doubt: AfterHold,
    /// What the handler may emit.
    pub outputs: Outputs,
    /// Where its replies go.
    pub reply: Replies,
    /// Where whoever sent a message is told that it was suppressed or refused.
    pub receipts: Receipts,
    /// How many retries in place there may be.
    pub budget: RetryBudget,
    /// When attempts stop, because too many fail.
    pub breaker: Breaker,
}

impl TopicPolicy {
    /// The policy of that class and window with every default.
    #[must_use]
    pub fn new(class: Class, window: Duration) -> Self {
        let idempotent = class == Class::Idempotent;
        Self {
            class,
            window,
            window_bytes: None,
            renewal: Renewal::Never,
            token: vec![TokenSource::Header("idempotency-key".to_owned())],
            concurrency: Concurrency::by_key(16),
            begun_ahead: 0,
            deadline: Duration::from_secs(10),
            probe_deadline: Duration::from_secs(5),
            probe_settle: Duration::from_secs(1),
            rerun_within: window.min(Duration::from_secs(86_400)),
            missing_token: if class == Class::NonIdempotent {
                MissingToken::DeadLetter
            } else {
                MissingToken::UseOffset
            },
            mismatch: Mismatch::default(),
            after_failure: if idempotent {
                AfterFailure::Run
            } else {
                AfterFailure::Suppress
            },
            expired: Expired::DeadLetter,
            max_age: MaxAge::default(),
            mode: Mode::Enforce,
            store_outcome: true,
            offload: false,
            retry: Retry::default(),
            after_hold: AfterHold::BlockKey,
            after_doubt: AfterHold::Release,
            outputs: Outputs::default(),
            reply: Replies::default(),
            receipts: Receipts::default(),
            budget: RetryBudget::default(),
            breaker: Breaker::default(),
        }
    }
}

/// A place where a token is read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TokenSource {
    /// The header of that name: `{ header = "idempotency-key" }`.
    Header(String),
    /// The message key: `"key"`.
    Key,
    /// A value in the payload by its JSON pointer: `{ json = "/payment/id" }`.
    Json(String),
    /// The message's own position: `"offset"`. Finds redeliveries and no duplicates.
    Offset,
    /// A closure in code, under a name that stays the same across releases. No file can name one.
    Code(String),
}

impl TokenSource {
    /// Part of every token key.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Header(name) => format!("header:{name}"),
            Self::Key => "key".to_owned(),
            Self::Json(pointer) => format!("json:{pointer}"),
            Self::Offset => "offset".to_owned(),
            Self::Code(name) => format!("code:{name}"),
        }
    }
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header `{name}`"),
            Self::Key => f.write_str("the message key"),
            Self::Json(pointer) => write!(f, "JSON `{pointer}`"),
            Self::Offset => f.write_str("the message's position"),
            Self::Code(name) => write!(f, "code `{name}`"),
        }
    }
}

/// How many messages of one partition run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Concurrency {
    /// One at a time, in offset order: `"ordered"`.
    Ordered,
    /// That many, and messages of one key one after the other: `{ by_key = 16 }`.
    ByKey(NonZeroU32),
    /// That many, in any order: `{ unordered = 64 }`.
    Unordered(NonZeroU32),
}

impl Concurrency {
    /// That many slots, messages of one key one after the other.
    ///
    /// # Panics
    /// Where `slots` is 0: nothing could ever run.
    #[must_use]
    pub const fn by_key(slots: u32) -> Self {
        match NonZeroU32::new(slots) {
            Some(slots) => Self::ByKey(slots),
            None => panic!("concurrency by_key(0): nothing could ever run"),
        }
    }

    /// That many slots, in any order.
    ///
    /// # Panics
    /// Where `slots` is 0: nothing could ever run.
    #[must_use]
    pub const fn unordered(slots: u32) -> Self {
        match NonZeroU32::new(slots) {
            Some(slots) => Self::Unordered(slots),
            None => panic!("concurrency unordered(0): nothing could ever run"),
        }
    }

    /// Slots a partition: the messages that run at the same time.
    #[must_use]
    pub const fn slots(self) -> usize {
        match self {
            Self::Ordered => 1,
            Self::ByKey(slots) | Self::Unordered(slots) => slots.get() as usize,
        }
    }
}

impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordered => f.write_str("\"ordered\""),
            Self::ByKey(slots) => write!(f, "{{ by_key = {slots} }}"),
            Self::Unordered(slots) => write!(f, "{{ unordered = {slots} }}"),
        }
    }
}

/// What becomes of a message without a token, or with one that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissingToken {
    /// It is dead-lettered with reason `missing-token`.
    DeadLetter,
    /// Its position serves as token: its redeliveries are found, its duplicates are not.
    UseOffset,
    /// The partition stops there until somebody looks.
    Stop,
}

/// Which part of a payload belongs to its token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Mismatch {
    /// JSON pointers to the fields that must be equal; none means the whole payload, byte by byte.
    ///
    /// Default: `[]`. Whole bytes differ where a producer only reorders its keys, so they are no reason to refuse.
    pub fields: Vec<String>,
    /// What becomes of a message that differs.
    ///
    /// Default: `suppress` where no fields are named, otherwise `dead-letter`.
    pub then: OnMismatch,
}

impl Mismatch {
    /// Compares the fields at those JSON pointers, and dead-letters a message that differs.
    #[must_use]
    pub fn fields<S: Into<String>>(pointers: impl IntoIterator<Item = S>) -> Self {
        Self {
            fields: pointers.into_iter().map(Into::into).collect(),
            then: OnMismatch::DeadLetter,
        }
    }

    /// The same fields, with another consequence.
    #[must_use]
    pub fn then(self, then: OnMismatch) -> Self {
        Self { then, ..self }
    }
}

impl Default for Mismatch {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            then: OnMismatch::Suppress,
        }
    }
}

/// What becomes of a message that has a known token and another payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnMismatch {
    /// It is dead-lettered with reason `mismatch`.
    DeadLetter,
    /// It is a duplicate like any other, and counted.
    Suppress,
}

/// What becomes of a duplicate whose first message failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AfterFailure {
    /// It runs.
    Run,
    /// It is suppressed like a duplicate of a success.
    Suppress,
}

/// What becomes of a message whose token was born before the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expired {
    /// It is dead-lettered with reason `expired`: nobody can tell whether it ran before.
    DeadLetter,
    /// It runs.
    Run,
}

/// Whether verdicts are enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// What is judged a duplicate does not run.
    Enforce,
    /// Everything runs; verdicts are recorded and counted.
    Observe,
}

/// What becomes of later messages of a key while one of them is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AfterHold {
    /// They are held behind it.
    BlockKey,
    /// They run.
    Release,
}

words! {
    AfterHold { BlockKey = "block-key", Release = "release" }
    MissingToken { DeadLetter = "dead-letter", UseOffset = "use-offset", Stop = "stop" }
    OnMismatch { DeadLetter = "dead-letter", Suppress = "suppress" }
    AfterFailure { Run = "run", Suppress = "suppress" }
    Expired { DeadLetter = "dead-letter", Run = "run" }
    Mode { Enforce = "enforce", Observe = "observe" }
}

/// How attempts are repeated: first while the message keeps its slot, then from the disk. Waits grow by doubling, with full
/// jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Retry {
    /// In place: the message keeps its slot.
    pub in_place: InPlace,
    /// In all: once those in place are spent, the message is held on disk until the next one is due.
    pub overall: Overall,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            in_place: InPlace {
                attempts: 5,
                total: Duration::from_secs(30),
                first: Duration::from_millis(100),
                max: Duration::from_secs(10),
            },
            overall: Overall {
                attempts: 20,
                total: Duration::from_secs(86_400),
                first: Duration::from_secs(30),
                max: Duration::from_secs(3_600),
            },
        }
    }
}

/// The bounds of retries in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct InPlace {
    /// Attempts in place, the first one included, counted across restarts.
    ///
    /// Default: `5`. At the limit the message is held for a retry later, as far as `overall` allows, and dead-lettered
    /// otherwise. With `1` nothing is repeated in place. Metric: `hapax_retries_total`.
    pub attempts: u32,
    /// How long after the first attempt the last one in place may start.
    ///
    /// Default: `30s`. The slot is kept all the while, and under `ordered` the partition: 16 messages of a dead
    /// downstream stop 16 slots for that long. At the limit as for `attempts`.
    pub total: Duration,
    /// The longest wait before the second attempt.
    ///
    /// Default: `100ms`. Too small, and a downstream that is restarting meets every attempt within its first second.
    pub first: Duration,
    /// The longest wait between two attempts in place.
    ///
    /// Default: `10s`.
    pub max: Duration,
}

/// The bounds of all retries, those in place included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Overall {
    /// Attempts in all, the first one included, counted across restarts.
    ///
    /// Default: `20`. At the limit the message fails and is dead-lettered. At or below `in_place.attempts` nothing is
    /// held for a retry. Metric: `hapax_retries_total`.
    pub attempts: u32,
    /// How long after the first begin or the first hold the last attempt may be due.
    ///
    /// Default: `24h`. At the limit as for `attempts`.
    pub total: Duration,
    /// The longest wait before the first attempt after those in place.
    ///
    /// Default: `30s`. Too small, and the disk is written for a wait that a slot could have kept.
    pub first: Duration,
    /// The longest wait between two attempts.
    ///
    /// Default: `1h`. Too large, and work that could go on waits for an hour after its downstream is back.
    pub max: Duration,
}
