//! Every metric of hapax: name, unit, labels and meaning, in one table.
//!
//! Nothing else names a metric. A handle is made once per topic or partition; per message it costs one atomic
//! addition at the most. They go to whatever recorder the process has installed for the `metrics` crate.

use metrics::{Counter, Gauge, Histogram, Unit};

/// What kind of metric a definition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

macro_rules! definitions {
    ($($ident:ident = $name:literal, $kind:ident, $unit:ident, [$($label:literal),*], $help:literal;)*) => {
        mod name {
            $(pub(super) const $ident: &str = $name;)*
        }

        /// Every metric that hapax has.
        pub const DEFINITIONS: &[Definition] = &[
            $(Definition { name: $name, kind: Kind::$kind, unit: Unit::$unit, labels: &[$($label),*], help: $help },)*
        ];
    };
}

definitions! {
    HITS = "hapax_window_hits_total", Counter, Count, ["topic"],
        "Messages whose token has an outcome inside the window.";
    MISSES = "hapax_window_misses_total", Counter, Count, ["topic"],
        "Messages whose token is new.";
    EXPIRATIONS = "hapax_window_expirations_total", Counter, Count, ["topic"],
        "Messages whose token has an outcome that is older than the window: they count as new.";
    RENEWALS = "hapax_window_renewals_total", Counter, Count, ["topic"],
        "Windows of tokens that a duplicate started anew, because the topic's `renewal` says so.";
    EVICTIONS = "hapax_window_evictions_total", Counter, Count, ["topic"],
        "Time buckets dropped before they had expired, because of `window_bytes`.";
    DUPLICATE_GAP = "hapax_duplicate_gap_seconds", Histogram, Seconds, ["topic"],
        "Log time between a duplicate and the message whose outcome suppresses it.";
    MISMATCHES = "hapax_mismatches_total", Counter, Count, ["topic"],
        "Duplicates whose payload differs from the first message of the token.";
    REDELIVERIES = "hapax_redeliveries_total", Counter, Count, ["topic"],
        "Offsets delivered again after they were recorded.";
    OBSERVED = "hapax_observed_duplicates_total", Counter, Count, ["topic"],
        "Duplicates that ran because the topic's mode is `observe`.";
    NULL_KEYS = "hapax_null_key_tokens_total", Counter, Count, ["topic"],
        "Messages with a token and a null key: a resend may land in another partition, where it is not known.";
    MISSING_TOKENS = "hapax_missing_tokens_total", Counter, Count, ["topic"],
        "Messages without a token, or with one that is too long.";
    MALFORMED_MAX_AGES = "hapax_malformed_max_ages_total", Counter, Count, ["topic"],
        "Messages whose own maximal age is no number: they go by that of the topic.";
    ATTEMPTS = "hapax_attempts_total", Counter, Count, ["topic"],
        "Calls of the handler.";
    RETRIES = "hapax_retries_total", Counter, Count, ["topic"],
        "Calls of the handler after the first for one message.";
    RETRIES_HELD = "hapax_retries_held_total", Counter, Count, ["topic"],
        "Messages put on disk until their next attempt is due.";
    RETRIES_POSTPONED = "hapax_retries_postponed_total", Counter, Count, ["topic"],
        "Retries that found the retry budget spent, and waited for their turn.";
    BREAKER_STATE = "hapax_breaker_state", Gauge, Count, ["topic"],
        "The breaker of the topic's handler: 0 closed, 1 open, 2 half-open.";
    BREAKER_OPENED = "hapax_breaker_opened_total", Counter, Count, ["topic"],
        "How often the breaker opened, again after a trial that failed included.";
    ACTS = "hapax_operator_acts_total", Counter, Count, ["topic", "act"],
        "Acts of operators that changed something, by act.";
    OUTCOMES = "hapax_outcomes_total", Counter, Count, ["topic", "outcome"],
        "Outcomes recorded: done, or failed with its reason.";
    IN_DOUBT = "hapax_in_doubt_total", Counter, Count, ["topic", "cause"],
        "Messages that came in doubt, by cause: crash, error, panic, deadline.";
    PROBES = "hapax_probes_total", Counter, Count, ["topic", "answer"],
        "Probes asked, by answer.";
    HANDLER = "hapax_handler_seconds", Histogram, Seconds, ["topic"],
        "Time from the start of an attempt that had to wait to its end.";
    RECORD = "hapax_record_seconds", Histogram, Seconds, ["topic"],
        "Time from handing a group to the journal to its acknowledgement.";
    OPEN = "hapax_open_tokens", Gauge, Count, ["topic", "partition"],
        "Tokens with unfinished business.";
    OLDEST_OPEN = "hapax_oldest_open_token_seconds", Gauge, Seconds, ["topic", "partition"],
        "Age of the oldest begun or held token, by the wall clock.";
    HELD = "hapax_held_messages", Gauge, Count, ["topic", "partition"],
        "Messages held.";
    LEDGER_GAP = "hapax_ledger_gap_messages", Gauge, Count, ["topic", "partition"],
        "Messages taken and not yet below the commit point.";
    LAG = "hapax_lag_messages", Gauge, Count, ["topic", "partition"],
        "High watermark less the commit point.";
    COLD = "hapax_cold_partitions", Gauge, Count, ["topic"],
        "Partitions whose window does not cover what it should.";
    REBUILT = "hapax_rebuilt_tokens_total", Counter, Count, ["topic"],
        "Tokens read back from the topic into a cold window, as done with an unknown outcome.";
    REBUILD_LEFT = "hapax_rebuild_left_offsets", Gauge, Count, ["topic", "partition"],
        "Offsets that a rebuild has still to read before it serves the partition.";
    RESTORING = "hapax_restoring_partitions", Gauge, Count, ["topic"],
        "Partitions whose changelog is being read: they are assigned, and not served yet.";
    RESTORE_RECORDS = "hapax_restored_records_total", Counter, Count, ["topic"],
        "Records read from the changelog and written to this disk.";
    RESTORE = "hapax_restore_seconds", Histogram, Seconds, ["topic"],
        "Time to read one partition's changelog, from where this disk stood to its end.";
    STANDBY_LAG = "hapax_standby_lag", Gauge, Count, ["topic", "partition"],
        "Offsets of the changelog between this disk's copy of a window that another member owns and the end.";
    STANDBY_RECORDS = "hapax_standby_records_total", Counter, Count, ["topic"],
        "Records read from the changelog into copies of windows that other members own.";
    STANDBY_STOPPED = "hapax_standby_stopped_partitions", Gauge, Count, ["topic"],
        "Partitions whose copy is not kept up, because their changelog cannot be read.";
    EFFECTIVE_WINDOW = "hapax_effective_window_seconds", Gauge, Seconds, ["topic"],
        "How far back the window reaches now, by log time.";
    WINDOW_BYTES = "hapax_window_bytes", Gauge, Bytes, ["topic"],
        "Bytes of the topic's window on disk.";
    LETTERS_FAILED = "hapax_dead_letter_failures_total", Counter, Count, ["topic"],
        "Dead letters and outputs that were not acknowledged and are tried again; their partition takes nothing meanwhile.";
    GIVEN = "hapax_given_back_total", Counter, Count, ["topic", "kind"],
        "Messages that outcomes gave back, by kind: output, reply, replay, receipt.";
    REPLIES_REFUSED = "hapax_replies_refused_total", Counter, Count, ["topic"],
        "Messages that want their reply in a topic that none may go to, and got none.";
    JUMP = "hapax_clock_jump_pending", Gauge, Count, ["topic", "partition"],
        "1 while a timestamp far ahead waits for a second message to confirm it.";
    TAKEN = "hapax_account_taken", Gauge, Count, ["topic", "partition"],
        "Messages delivered in this assignment.";
    RESTORED = "hapax_account_restored", Gauge, Count, ["topic", "partition"],
        "Held work found at this assignment.";
    ACCOUNTS = "hapax_account_messages", Gauge, Count, ["topic", "partition", "account"],
        "Messages in each account of this assignment.";
    REMAINDER = "hapax_account_remainder", Gauge, Count, ["topic", "partition"],
        "Taken and restored less all accounts: anything but 0 is a bug, and an alarm.";
}

/// The upper bounds of a histogram's buckets, in its unit; empty for what is no histogram.
#[must_use]
pub fn buckets(histogram: &str) -> &'static [f64] {
    const HOUR: f64 = 3_600.0;
    const DAY: f64 = 24.0 * HOUR;
    match histogram {
        // From a producer's retry to a resend after a holiday: it says how long a window has to be.
        name::DUPLICATE_GAP => &[
            0.1,
            1.0,
            10.0,
            60.0,
            600.0,
            HOUR,
            6.0 * HOUR,
            12.0 * HOUR,
            DAY,
            2.0 * DAY,
            4.0 * DAY,
            7.0 * DAY,
            14.0 * DAY,
            30.0 * DAY,
        ],
        // From a local call to the longest deadline that anybody sets.
        name::HANDLER => &[
            0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        ],
        // From a fast disk's sync to one that is about to be replaced.
        name::RECORD => &[
            0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0,
            10.0,
        ],
        // From a tail to a whole window.
        name::RESTORE => &[
            0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0,
        ],
        _ => &[],
    }
}

/// Registers descriptions with the installed recorder.
pub fn describe() {
    for definition in DEFINITIONS {
        match definition.kind {
            Kind::Counter => metrics::describe_counter!(definition.name, definition.unit, definition.help),
            Kind::Gauge => metrics::describe_gauge!(definition.name, definition.unit, definition.help),
            Kind::Histogram => {
                metrics::describe_histogram!(definition.name, definition.unit, definition.help)
            }
        }
    }
}

/// The handles of one topic.
#[derive(Clone)]
pub(crate) struct TopicMeters {
    topic: String,
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) expirations: Counter,
    pub(crate) renewals: Counter,
    pub(crate) evictions: Counter,
    pub(crate) duplicate_gap: Histogram,
    pub(crate) mismatches: Counter,
    pub(crate) redeliveries: Counter,
    pub(crate) observed: Counter,
    pub(crate) null_keys: Counter,
    pub(crate) missing_tokens: Counter,
    pub(crate) malformed_max_ages: Counter,
    pub(crate) attempts: Counter,
    pub(crate) retries: Counter,
    pub(crate) retries_held: Counter,
    pub(crate) retries_postponed: Counter,
    pub(crate) breaker_state: Gauge,
    pub(crate) breaker_opened: Counter,
    pub(crate) done: Counter,
    pub(crate) handler: Histogram,
    pub(crate) record: Histogram,
    pub(crate) letters_failed: Counter,
    pub(crate) outputs: Counter,
    pub(crate) replies: Counter,
    pub(crate) replays: Counter,
    pub(crate) receipts: Counter,
    pub(crate) replies_refused: Counter,
    pub(crate) cold: Gauge,
    pub(crate) rebuilt: Counter,
    pub(crate) effective_window: Gauge,
    pub(crate) window_bytes: Gauge,
}

impl TopicMeters {
    pub(crate) fn new(topic: &str) -> Self {
        let topic = topic.to_owned();
        let counter = |name| metrics::counter!(name, "topic" => topic.clone());
        let gauge = |name| metrics::gauge!(name, "topic" => topic.clone());
        let histogram = |name| metrics::histogram!(name, "topic" => topic.clone());
        let given = |kind| metrics::counter!(name::GIVEN, "topic" => topic.clone(), "kind" => kind);
        Self {
            hits: counter(name::HITS),
            misses: counter(name::MISSES),
            expirations: counter(name::EXPIRATIONS),
            renewals: counter(name::RENEWALS),
            evictions: counter(name::EVICTIONS),
            duplicate_gap: histogram(name::DUPLICATE_GAP),
            mismatches: counter(name::MISMATCHES),
            redeliveries: counter(name::REDELIVERIES),
            observed: counter(name::OBSERVED),
            null_keys: counter(name::NULL_KEYS),
            missing_tokens: counter(name::MISSING_TOKENS),
            malformed_max_ages: counter(name::MALFORMED_MAX_AGES),
            attempts: counter(name::ATTEMPTS),
            retries: counter(name::RETRIES),
            retries_held: counter(name::RETRIES_HELD),
            retries_postponed: counter(name::RETRIES_POSTPONED),
            breaker_state: gauge(name::BREAKER_STATE),
            breaker_opened: counter(name::BREAKER_OPENED),
            done: metrics::counter!(name::OUTCOMES, "topic" => topic.clone(), "outcome" => "done"),
            handler: histogram(name::HANDLER),
            record: histogram(name::RECORD),
            letters_failed: counter(name::LETTERS_FAILED),
            outputs: given("output"),
            replies: given("reply"),
            replays: given("replay"),
            receipts: given("receipt"),
            replies_refused: counter(name::REPLIES_REFUSED),
            cold: gauge(name::COLD),
            rebuilt: counter(name::REBUILT),
            effective_window: gauge(name::EFFECTIVE_WINDOW),
            window_bytes: gauge(name::WINDOW_BYTES),
            topic,
        }
    }

    /// An outcome that is rare enough to look its counter up.
    pub(crate) fn failed(&self, reason: crate::outcome::Reason) {
        metrics::counter!(name::OUTCOMES, "topic" => self.topic.clone(), "outcome" => reason.code())
            .increment(1);
    }

    pub(crate) fn in_doubt(&self, cause: &'static str) {
        metrics::counter!(name::IN_DOUBT, "topic" => self.topic.clone(), "cause" => cause).increment(1);
    }

    /// Rare: an operator did something.
    pub(crate) fn acted(&self, act: &'static str) {
        metrics::counter!(name::ACTS, "topic" => self.topic.clone(), "act" => act).increment(1);
    }

    pub(crate) fn probed(&self, answer: &'static str) {
        metrics::counter!(name::PROBES, "topic" => self.topic.clone(), "answer" => answer).increment(1);
    }
}

/// The gauges of one partition. Set once per commit interval, not per message.
pub(crate) struct PartitionMeters {
    open: Gauge,
    oldest_open: Gauge,
    held: Gauge,
    ledger_gap: Gauge,
    jumps: Gauge,
    taken: Gauge,
    restored: Gauge,
    accounts: Vec<Gauge>,
    remainder: Gauge,
}

/// What the gauges of one partition show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartitionReading {
    pub(crate) open: usize,
    pub(crate) oldest_open_ms: i64,
    pub(crate) held: usize,
    pub(crate) ledger_gap: usize,
    pub(crate) jump_pending: bool,
    pub(crate) balance: crate::accounts::Balance,
}

impl PartitionMeters {
    pub(crate) fn new(topic: &str, partition: i32) -> Self {
        let partition = partition.to_string();
        let gauge =
            |name| metrics::gauge!(name, "topic" => topic.to_owned(), "partition" => partition.clone());
        let account = |account: crate::accounts::Account| metrics::gauge!(name::ACCOUNTS, "topic" => topic.to_owned(), "partition" => partition.clone(), "account" => account.name());
        Self {
            open: gauge(name::OPEN),
            oldest_open: gauge(name::OLDEST_OPEN),
            held: gauge(name::HELD),
            ledger_gap: gauge(name::LEDGER_GAP),
            jumps: gauge(name::JUMP),
            taken: gauge(name::TAKEN),
            restored: gauge(name::RESTORED),
            accounts: crate::accounts::Account::ALL.into_iter().map(account).collect(),
            remainder: gauge(name::REMAINDER),
        }
    }
    pub(crate) fn show(&self, reading: &PartitionReading) {
        self.open.set(reading.open as f64);
        self.oldest_open.set(reading.oldest_open_ms as f64 / 1_000.0);
        self.held.set(reading.held as f64);
        self.ledger_gap.set(reading.ledger_gap as f64);
        self.jumps.set(f64::from(u8::from(reading.jump_pending)));
        self.taken.set(reading.balance.taken as f64);
        self.restored.set(reading.balance.restored as f64);
        for (gauge, count) in self.accounts.iter().zip(reading.balance.accounts) {
            gauge.set(count as f64);
        }
        self.remainder.set(reading.balance.remainder() as f64);
    }
}

/// Sets how much a rebuild has still to read.
pub(crate) fn rebuild_left(topic: &str, partition: i32, offsets: i64) {
    metrics::gauge!(name::REBUILD_LEFT, "topic" => topic.to_owned(), "partition" => partition.to_string())
        .set(offsets as f64);
}

/// One partition that is being restored, counted as such until this is dropped.
pub(crate) struct RestoreMeters {
    restoring: Gauge,
    records: Counter,
    seconds: Histogram,
    counted: u64,
}

impl RestoreMeters {
    pub(crate) fn new(topic: &str) -> Self {
        let restoring = metrics::gauge!(name::RESTORING, "topic" => topic.to_owned());
        restoring.increment(1.0);
        Self {
            restoring,
            records: metrics::counter!(name::RESTORE_RECORDS, "topic" => topic.to_owned()),
            seconds: metrics::histogram!(name::RESTORE, "topic" => topic.to_owned()),
            counted: 0,
        }
    }

    /// So many records of it are in the store by now.
    pub(crate) fn restored(&mut self, records: u64) {
        self.records.increment(records.saturating_sub(self.counted));
        self.counted = records;
    }

    /// It is read to its end.
    pub(crate) fn took(&self, took: std::time::Duration) {
        self.seconds.record(took.as_secs_f64());
    }
}

impl Drop for RestoreMeters {
    fn drop(&mut self) {
        self.restoring.decrement(1.0);
    }
}

/// The copies of one topic's windows that are kept up for others.
#[derive(Clone)]
pub(crate) struct StandbyMeters {
    topic: String,
    pub(crate) records: Counter,
    pub(crate) stopped: Gauge,
}

impl StandbyMeters {
    pub(crate) fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            records: metrics::counter!(name::STANDBY_RECORDS, "topic" => topic.to_owned()),
            stopped: metrics::gauge!(name::STANDBY_STOPPED, "topic" => topic.to_owned()),
        }
    }

    /// How far a copy is behind. 0 for one that is not kept any more, because its partition came here.
    pub(crate) fn lag(&self, partition: i32, offsets: i64) {
        metrics::gauge!(name::STANDBY_LAG, "topic" => self.topic.clone(), "partition" => partition.to_string())
            .set(offsets as f64);
    }
}

/// Sets the lag of a partition, which the broker edge knows from the client's statistics.
pub(crate) fn lag(topic: &str, partition: i32, messages: i64) {
    metrics::gauge!(name::LAG, "topic" => topic.to_owned(), "partition" => partition.to_string())
        .set(messages as f64);
}
