//! The settings of one process, resolved: what every layer said, with the weaker ones filled in.
//!
//! The constructors hold the defaults, and nothing else does.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use super::topic::TopicPolicy;
use super::units::{ByteCount, words};

/// Everything that one process of a group was told. Made by [`resolve`](super::resolve), which checks it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The consumer group. It is part of the store's identity: under another name every partition starts cold.
    ///
    /// Required.
    pub group: String,
    /// Brokers to ask first, `host:port` separated by commas. One is enough to find the others, two survive its
    /// absence.
    ///
    /// Required.
    pub brokers: String,
    /// The directory of the window. One process at a time; what is in it decides what is a duplicate.
    ///
    /// Required. On a disk that does not outlive the process (a container's own file system) every restart is cold.
    pub state_dir: PathBuf,
    /// Where states are made durable before an offset is committed.
    ///
    /// Required: each mode survives other failures, which `hapax explain` lists.
    pub durability: Durability,
    /// What hapax does on a partition whose window does not cover what it should.
    ///
    /// Default: `refuse`. Of a guarded class the partition is not served, the others are, and `/readyz` says no. With
    /// `rebuild` one window before the commit point is read back from the topic first, which takes its time: a window
    /// of a week is a week of messages. With `run` a duplicate of anything that the lost window knew runs again: a
    /// customer is charged twice. In replicated mode cold is only a partition whose offset somebody else committed and
    /// whose changelog does not know it. Metric: `hapax_cold_partitions`.
    pub cold: Cold,
    /// Where a group without any committed offset starts on a partition.
    ///
    /// Default: `earliest`. With `latest`, what was produced before the first start is never seen, and that includes
    /// what arrives at a new partition before the group notices it. A committed offset that has vanished is another
    /// matter: hapax resumes from its own position, or stops.
    pub start: Start,
    /// What hapax does on a partition whose log begins after its commit point: the broker has deleted messages that
    /// nobody took.
    ///
    /// Default: `refuse`. The partition is not served, the others are, `/readyz` says no, and the error names both
    /// offsets. With `skip` hapax says the same and goes on with the first message that is left: whatever was deleted
    /// is lost without a trace, as after three days down under a `retention.ms` of two.
    pub deleted: Deleted,
    /// How long a revoked partition, or a shutdown, may finish what is in flight.
    ///
    /// Default: `10s`. The broker delivers nothing to this member while it lasts, not even for partitions that it
    /// keeps, so at `60s` one rolling restart of ten members stalls each of them for minutes. Too small, and guarded
    /// handlers are cut off in the middle: at `1s` with handlers of 3 s, every slot is in doubt after each rebalance.
    /// At the limit what still runs is cancelled and takes its class's rule. Keep it at or above the longest
    /// `deadline`, and below the orchestrator's grace. In replicated mode
    /// [`transaction_timeout`](Self::transaction_timeout) follows from it. Metric: `hapax_in_doubt_total` grows at
    /// rebalances.
    pub drain: Duration,
    /// How often the commit point is committed to Kafka; also done at every drain.
    ///
    /// Default: `1s`. It is no durability: a message is recorded before it may be committed. At `1m` and 10,000
    /// messages a second, a kill brings 600,000 redeliveries, each answered from the window in about a microsecond.
    /// It does nothing in replicated mode, where every transaction commits. Metric: `hapax_redeliveries_total`.
    pub commit_every: Duration,
    /// Memory for the store's cache and write buffers, all partitions together.
    ///
    /// Default: `256MiB`. Too small, and look-ups of old tokens read the disk: see `hapax_record_seconds`. At the
    /// limit blocks are evicted and buffers flushed early; nothing is lost.
    pub memory: ByteCount,
    /// How far one message may move partition time ahead by itself. A farther stamp counts only once a message with
    /// another token confirms it.
    ///
    /// Default: `1h`. Too large, and one producer with a wrong clock expires the window: a stamp of next week would
    /// end every window of a day. Too small, and a quiet topic waits for a second message before time moves; nothing
    /// is lost by that, windows only last longer. Metric:
    /// `hapax_clock_jump_pending`.
    pub max_clock_jump: Duration,
    /// Whether this process also keeps copies of the windows that others own.
    ///
    /// Default: `none`. With `all`, which needs replicated mode, it reads the changelog of every partition of its topics
    /// all the time, so that a partition that comes here is served once the tail is read, and not the whole window.
    /// Every process then has every window on its disk, and reads and writes what all of them record together: with ten
    /// members ten times the disk and the reading. `window_bytes` counts the copies too. Metrics: `hapax_standby_lag`,
    /// `hapax_standby_records_total`, `hapax_standby_stopped_partitions`.
    pub standby: Standby,
    /// What hapax may hold in memory and on disk.
    pub limits: Limits,
    /// Where messages go that are given up on.
    pub dead_letter: DeadLetter,
    /// The port for metrics, health and status.
    pub admin: Admin,
    /// Properties passed through to librdkafka. Those that hapax must set itself are refused.
    ///
    /// Default: none.
    pub kafka: Properties,
    /// One policy per topic.
    pub topics: BTreeMap<String, TopicPolicy>,
}

impl Settings {
    /// Settings with every default and no topic.
    #[must_use]
    pub fn new(
        group: impl Into<String>,
        brokers: impl Into<String>,
        state_dir: impl Into<PathBuf>,
        durability: Durability,
    ) -> Self {
        Self {
            group: group.into(),
            brokers: brokers.into(),
            state_dir: state_dir.into(),
            durability,
            cold: Cold::Refuse,
            start: Start::Earliest,
            deleted: Deleted::Refuse,
            drain: Duration::from_secs(10),
            commit_every: Duration::from_secs(1),
            memory: ByteCount::mib(256),
            max_clock_jump: Duration::from_secs(3_600),
            standby: Standby::None,
            limits: Limits::of(durability),
            dead_letter: DeadLetter::default(),
            admin: Admin::default(),
            kafka: Properties::default(),
            topics: BTreeMap::new(),
        }
    }

    /// The changelog topic of an input topic in replicated mode: `<group>.<topic>.hapax`.
    #[must_use]
    pub fn changelog_of(&self, topic: &str) -> String {
        format!("{}.{topic}.hapax", self.group)
    }

    /// How long a transaction of the replicated mode may stay open before the broker ends it: 15 s, or 5 s more than
    /// `drain` where that is longer. Were it shorter than a drain, the broker could end what the drain still records.
    ///
    /// It is also how long the transaction of a process that died may keep the next owner of its partitions waiting.
    #[must_use]
    pub fn transaction_timeout(&self) -> Duration {
        let above_drain = self.drain.saturating_add(Duration::from_secs(5));
        above_drain.max(Duration::from_secs(15))
    }
}

/// Where states are made durable. The choice has no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// On the local disk, synced before the offset is committed. Survives the process, not the disk; a partition
    /// that moves to another process starts cold there.
    Local,
    /// In Kafka: states, dead letters and offsets in one transaction on a changelog topic. Survives the disk too, and a
    /// partition that moves to another process finds its state there. The local disk is a copy of it.
    Replicated,
}

/// What is done on a cold window (Inv 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cold {
    /// The partition is not served, and `/readyz` says no.
    Refuse,
    /// The window is read back from the topic first: what lies before the commit point was done, by what outcome is not
    /// known. Then the partition is served. Of every class.
    Rebuild,
    /// The partition is served as if nothing had ever been done before its commit point.
    Run,
}

/// Where a group without a committed offset starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Start {
    /// At the first message that the broker still has.
    Earliest,
    /// At the end: nothing that is there already is taken.
    Latest,
}

/// What hapax does where messages were deleted before it took them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deleted {
    /// The partition is not served, and `/readyz` says no.
    Refuse,
    /// The partition is served from the first message that is left.
    Skip,
}

/// Which windows of others a process keeps copies of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Standby {
    /// None: a partition that comes is read from its changelog then.
    None,
    /// Those of every partition of its topics.
    All,
}

words! {
    Durability { Local = "local", Replicated = "replicated" }
    Cold { Refuse = "refuse", Rebuild = "rebuild", Run = "run" }
    Start { Earliest = "earliest", Latest = "latest" }
    Deleted { Refuse = "refuse", Skip = "skip" }
    Standby { None = "none", All = "all" }
}

/// Limits of one process, all topics and partitions together (Inv 10).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Messages taken from the broker and not yet recorded.
    ///
    /// Default: `40000` in local mode, `80000` in replicated mode, where a transaction takes longer than a sync and more wait
    /// for it. Too small, and groups are small too: every write to the window costs more, a sixth of the rate
    /// at 10,000; with 8 partitions of 16 slots each, below 128 some slots never fill. Too large, and a kill brings back
    /// that many messages. At the limit partitions are not polled until some are recorded. Metric:
    /// `hapax_ledger_gap_messages`.
    pub in_flight: usize,
    /// Bytes of the same messages.
    ///
    /// Default: `64MiB`. At the limit partitions are not polled; a message larger than what is left is still taken
    /// when nothing else is in flight.
    pub in_flight_bytes: ByteCount,
    /// Messages held on disk for a verdict, or behind their token.
    ///
    /// Default: `100000`. At the limit the partition that would hold one more stops taking, until an operator decides
    /// or `held_age` does. Metric: `hapax_held_messages`.
    pub held: usize,
    /// Bytes of held messages.
    ///
    /// Default: `1GiB`. At the limit as for `held`.
    pub held_bytes: ByteCount,
    /// How long a message may be held.
    ///
    /// Default: `7d`. Too small, and a long weekend turns in-doubt work into dead letters; too large, and forgotten work
    /// fills `held`. At the limit it is dead-lettered with reason `held-too-long`. Metric:
    /// `hapax_oldest_open_token_seconds`.
    pub held_age: Duration,
    /// The longest token that is read.
    ///
    /// Default: `512B`. A longer one is treated as a missing one (`missing_token`): a hostile producer cannot make
    /// hapax hash megabytes. Metric: `hapax_missing_tokens_total`.
    pub token_bytes: ByteCount,
    /// The longest reply that is stored with an outcome.
    ///
    /// Default: `16KiB`. A longer one is recorded by its digest only, so a duplicate cannot be answered with it. It
    /// counts in every window: at 1,000 replies a second of 16 KiB, a day takes 1.3 TiB. Metric:
    /// `hapax_window_bytes`.
    pub outcome_bytes: ByteCount,
}

impl Limits {
    /// The defaults in that mode.
    #[must_use]
    pub fn of(durability: Durability) -> Self {
        Self {
            in_flight: match durability {
                Durability::Local => 40_000,
                Durability::Replicated => 80_000,
            },
            in_flight_bytes: ByteCount::mib(64),
            held: 100_000,
            held_bytes: ByteCount::gib(1),
            held_age: Duration::from_secs(7 * 86_400),
            token_bytes: ByteCount(512),
            outcome_bytes: ByteCount::kib(16),
        }
    }
}

/// Where messages go that are given up on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The topic's name; `{topic}` stands for the name of the topic that the message came from.
    ///
    /// Default: `{topic}.dead-letters`. While one cannot be written its partition stops: it is never skipped. Where its
    /// `max.message.bytes` is below that of the topic itself plus 16 KiB for hapax's headers, the start is refused: the
    /// largest message could never be given up on.
    /// Metrics: `hapax_outcomes_total` by its
    /// reason, `hapax_dead_letter_failures_total`.
    pub topic: String,
    /// Whether hapax creates the topic where it is missing: with as many partitions as the topic itself, room for its
    /// largest message and hapax's headers, and the cluster's replication factor.
    ///
    /// Default: `false`: a missing topic is refused at start, because a topic made by the way has the retention of
    /// nobody's choosing.
    pub create: bool,
}

impl DeadLetter {
    /// The dead-letter topic of messages from `topic`.
    #[must_use]
    pub fn topic_of(&self, topic: &str) -> String {
        self.topic.replace("{topic}", topic)
    }
}

impl Default for DeadLetter {
    fn default() -> Self {
        Self {
            topic: "{topic}.dead-letters".to_owned(),
            create: false,
        }
    }
}

/// The port for metrics, health and status.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admin {
    /// Address and port, or `None` for `"off"`.
    ///
    /// Default: `127.0.0.1:9464`. Beyond loopback anybody who reaches it reads topics, groups and counts. Port 0 lets
    /// the system choose. A port that is taken is refused at start.
    pub listen: Option<SocketAddr>,
    /// The file with the token that whoever changes something has to show, as `authorization: bearer TOKEN`.
    ///
    /// Default: none; then nothing can be changed by the port, only read. The file holds one line of 16 characters at least,
    /// is read once at start, and should be readable by its owner alone.
    pub token_file: Option<PathBuf>,
    /// A topic to which acts of operators are written besides the store.
    ///
    /// Default: none. It has to exist. With `durability = "replicated"` an act is there if it happened, and only then; with
    /// `"local"` it is sent once it is durable in the store, and whoever acts is told where that failed.
    pub audit_topic: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))),
            token_file: None,
            audit_topic: None,
        }
    }
}

/// librdkafka properties. Read like a map; printed without values, since some are passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(pub BTreeMap<String, String>);

impl Deref for Properties {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Properties {
    type Item = (&'a String, &'a String);
    type IntoIter = std::collections::btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        )
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
