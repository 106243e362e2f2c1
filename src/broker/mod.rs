//! The broker edge: what the runtime asks of Kafka, in its own words.
//!
//! `kafka/` is the one place that names the client library. A scripted source (`testing.rs`) drives the same
//! runtime without a broker.

#[cfg(any(test, feature = "kafka"))]
pub(crate) mod cluster;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::message::NextOffset;
use crate::store::StoreId;

/// What a committed offset says besides its number: whose window stands behind it, and partition time there.
///
/// Written as `hapax1 <store id> <partition time in ms, or ->`. Anything else was committed by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitMark {
    /// The store that holds the outcomes below the offset.
    pub store_id: StoreId,
    /// Partition time at the offset, in milliseconds since the epoch; `None` before the first message.
    pub time_ms: Option<i64>,
}

impl CommitMark {
    /// The metadata of the commit.
    #[must_use]
    pub fn to_metadata(&self) -> String {
        match self.time_ms {
            Some(time_ms) => format!("hapax1 {} {time_ms}", self.store_id),
            None => format!("hapax1 {} -", self.store_id),
        }
    }

    /// Reads a commit's metadata; `None` where it was not hapax that committed.
    #[must_use]
    pub fn from_metadata(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (version, id, time, end) = (words.next()?, words.next()?, words.next()?, words.next());
        if version != "hapax1" || end.is_some() {
            return None;
        }
        let time_ms = match time {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        Some(Self {
            store_id: id.parse().ok()?,
            time_ms,
        })
    }
}

/// What the broker knows of a partition when it is assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The committed offset.
    pub next: NextOffset,
    /// Its mark, `None` where it was not hapax that committed.
    pub mark: Option<CommitMark>,
}

/// What hapax adds to a message that it dead-letters at most, in bytes: an error and a token at their limits, and the
/// rest with the names. A dead-letter topic must take its input's largest message and this much more.
pub const LETTER_HEADER_BYTES_MAX: u64 = 16 << 10;

/// The longest receipt: a token and an error at their limits, every byte of them escaped.
pub(crate) const RECEIPT_BYTES_MAX: u64 = 16 << 10;

/// A message that hapax sends: to the dead-letter topic, or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Where it goes.
    pub topic: String,
    /// The key, as it was.
    pub key: Option<Bytes>,
    /// The payload, as it was.
    pub payload: Option<Bytes>,
    /// The timestamp, as it was, in milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
    /// The headers as they were, and the lineage.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// A send under way.
pub type Sending = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Sends dead letters and outputs. A send is over when the broker has acknowledged it with all replicas in sync.
pub trait Letters: Send + Sync + 'static {
    /// Sends one. Dropping the future does not unsend it.
    fn send(&self, letter: Letter) -> Sending;
}

/// What can go wrong with a broker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client refused its configuration. Nothing was connected to. Mend the property under `[kafka]`.
    #[error("kafka client: {0}")]
    Config(String),
    /// No broker answered within the time. hapax stopped; nothing is lost. Mend `brokers` or the network.
    #[error("no answer from brokers {brokers:?} while {what}: {why}")]
    Unreachable {
        /// What was asked for.
        brokers: String,
        /// What was being done.
        what: &'static str,
        /// What the client said.
        why: String,
    },
    /// The broker gives hapax's user no right to what it needs. hapax stopped, or did not start; what is recorded stays.
    /// Grant the right.
    #[error("no right to {what}: {why}; grant it to hapax's user: `{command}`")]
    Right {
        /// The right and its resource.
        what: String,
        /// What the client said.
        why: String,
        /// A command that grants it.
        command: String,
    },
    /// A topic does not exist, or may not be read. Nothing runs. Create it, or mend its name.
    #[error(
        "topic {topic:?} cannot be consumed: {why}; create it, mend its name, or grant the right to read it"
    )]
    Topic {
        /// The topic.
        topic: String,
        /// What the broker said.
        why: String,
    },
    /// A topic's dead-letter topic does not exist. Nothing runs: the first message to be given up on would stop its
    /// partition. Create it, or let hapax do it.
    #[error(
        "dead-letter topic {topic:?} of topic {input:?} does not exist; create it (`{command}`), or set `dead_letter.create = true`"
    )]
    NoLetters {
        /// The dead-letter topic.
        topic: String,
        /// The topic that the letters come from.
        input: String,
        /// A command that creates it.
        command: String,
    },
    /// The broker does not tell of a dead-letter topic, or did not create it. Nothing runs. Grant the right, or create
    /// it with your own tools.
    #[error(
        "dead-letter topic {topic:?} of topic {input:?} cannot be used: {why}; grant the right, or create it yourself"
    )]
    Letters {
        /// The dead-letter topic.
        topic: String,
        /// The topic that the letters come from.
        input: String,
        /// What the broker said.
        why: String,
    },
    /// The largest message of a topic does not fit into its dead-letter topic once hapax's headers are added (schedule
    /// 20). Nothing runs: such a message could never be given up on. Raise the limit of the dead-letter topic.
    #[error(
        "dead-letter topic {topic:?} takes messages of {bytes} bytes, and {input:?} has them of up to {input_bytes}: with hapax's headers {needed} are needed; \
         `kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config max.message.bytes={needed}`"
    )]
    LettersTooSmall {
        /// The dead-letter topic.
        topic: String,
        /// Its `max.message.bytes`.
        bytes: u64,
        /// The topic that the letters come from.
        input: String,
        /// Its `max.message.bytes`.
        input_bytes: u64,
        /// What the dead-letter topic would have to take.
        needed: u64,
    },
    /// A topic that outcomes are given back to does not exist, may not be asked about, or does not take the largest of them.
    /// Nothing runs: the first one would stop its partition. Mend what is named.
    #[error("{what} topic {topic:?} of topic {input:?} cannot be used: {why}")]
    Given {
        /// What goes there.
        what: &'static str,
        /// The topic.
        topic: String,
        /// The topic whose outcomes they are.
        input: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A changelog topic is missing and was not created, or the broker does not tell of it. Nothing runs: states would
    /// have nowhere to go. Grant the right, or create it with your own tools.
    #[error(
        "changelog topic {topic:?} of topic {input:?} cannot be used: {why}; it needs {needed}; grant the right to create and describe it, or create it yourself: `{command}`"
    )]
    NoChangelog {
        /// The changelog topic.
        topic: String,
        /// The topic whose states it holds.
        input: String,
        /// What the broker said.
        why: String,
        /// Everything that it has to be.
        needed: String,
        /// A command that creates it.
        command: String,
    },
    /// A changelog topic is not what it has to be, so states would be lost in it or not fit. Nothing runs. Mend what is
    /// named; hapax alters no topic that is there, except that it adds partitions where the input has got some.
    #[error(
        "changelog topic {topic:?} of topic {input:?} does not keep its states safe: {wrong}; to mend it: {mend}"
    )]
    Changelog {
        /// The changelog topic.
        topic: String,
        /// The topic whose states it holds.
        input: String,
        /// Everything that is wrong: what it is, and what it must be.
        wrong: String,
        /// What to do.
        mend: String,
    },
    /// A dead letter or an output was not acknowledged. hapax keeps it and tries again; its partition takes nothing meanwhile.
    #[error("what was sent to {topic:?} was not acknowledged: {why}")]
    Letter {
        /// Its topic.
        topic: String,
        /// What the broker said.
        why: String,
    },
    /// A guarded topic's partition is cold and `cold = "refuse"`. It is not served, the others are.
    #[error(
        "{topic}[{partition}] is cold: {why}; set `cold = \"rebuild\"` to read its past back from the topic first, or `cold = \"run\"` to serve it without"
    )]
    Cold {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// What is missing.
        why: String,
    },
    /// The log begins after the commit point: the broker has deleted messages that nobody took, and
    /// `deleted = "refuse"`. The partition is not served, the others are.
    #[error(
        "{topic}[{partition}] has lost messages: the commit point is {next}, and the log begins at {low}: the broker deleted {} offsets before hapax took them; the partition is not served; to go on with what is left, set `deleted = \"skip\"`", low - next
    )]
    Deleted {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The commit point.
        next: i64,
        /// The first offset that is left.
        low: i64,
    },
    /// The log ends before the commit point: the topic was made again under its name, or has lost its end. The
    /// partition is not served, the others are.
    #[error(
        "{topic}[{partition}] ends at {high}, before the commit point {next}: the topic was made again, or has lost its end; the partition is not served; reset the group's offset on purpose, or use another group"
    )]
    BeyondEnd {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The commit point.
        next: i64,
        /// The offset after the last.
        high: i64,
    },
    /// A changelog cannot be read. Nothing is served without it: the consumer stops. See the reason.
    #[error("changelog {topic}[{partition}] cannot be read: {why}")]
    ChangelogRead {
        /// The changelog.
        topic: String,
        /// The partition.
        partition: i32,
        /// What is wrong.
        why: String,
    },
    /// The window of a cold partition cannot be read back from its topic. Nothing is served without it: the consumer
    /// stops. See the reason.
    #[error("{topic}[{partition}] is cold, and its window cannot be read back: {why}")]
    Rebuild {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// What is wrong.
        why: String,
    },
    /// A changelog was trimmed by its last owner while it was read. hapax reads it anew.
    #[error("changelog {topic}[{partition}] was trimmed while it was read")]
    ChangelogTrimmed {
        /// The changelog.
        topic: String,
        /// The partition.
        partition: i32,
    },
    /// Another process has joined the group under the same `group.instance.id`, and Kafka keeps one of the two. This one
    /// stopped; what it has recorded stays. Give each process an id of its own.
    #[error(
        "another process of group {group:?} has the same `kafka.\"group.instance.id\"`, {instance:?}, and Kafka keeps only one of them ({why}): this one has stopped; give each process an id of its own"
    )]
    Instance {
        /// The group.
        group: String,
        /// The id that both state.
        instance: String,
        /// What the broker said.
        why: String,
    },
    /// The client failed for good. hapax stopped with everything recorded; start it again.
    #[error("kafka client failed: {0}")]
    Fatal(String),
}

impl Error {
    /// Whether it keeps one partition from being served, and nothing else.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Cold { .. } | Self::Deleted { .. } | Self::BeyondEnd { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mark_reads_as_it_was_written(id: [u8; 16], time_ms: Option<i64>) {
            let mark = CommitMark { store_id: StoreId(id), time_ms };
            prop_assert_eq!(CommitMark::from_metadata(&mark.to_metadata()), Some(mark));
        }

        #[test]
        fn what_others_committed_is_not_a_mark(text in ".{0,60}") {
            prop_assert_eq!(CommitMark::from_metadata(&text), None);
        }
    }
}
