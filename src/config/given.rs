//! What an outcome gives back: outputs, replies and receipts.

use super::units::ByteCount;

/// What a handler may emit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outputs {
    /// The topics that the handler emits to. Each is looked for at start, and asked whether the largest output fits.
    ///
    /// Default: `[]`: any topic but a changelog, and none is looked for at start; one that is missing then stops its partition at
    /// the first output, in replicated mode the consumer. Where some are named, an output to another is an error in the handler.
    /// Metric: `hapax_given_back_total`.
    pub topics: Vec<String>,
    /// The most messages that one attempt may emit.
    ///
    /// Default: `100`. They are kept in memory, and in local mode on disk, until all are acknowledged. One more is an error in the
    /// handler, and the attempt does not end well.
    pub max: usize,
    /// The most bytes that one attempt may emit: keys, payloads, headers and names together.
    ///
    /// Default: `512KiB`. Above what a topic takes as one message an output could never be sent. More is an error in the handler,
    /// and the attempt does not end well. A reply that is longer is not sent: its headers say so.
    pub bytes: ByteCount,
}

impl Default for Outputs {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            max: 100,
            bytes: ByteCount::kib(512),
        }
    }
}

/// Where a handler's replies go, of messages that want one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Replies {
    /// The header in which a message names the topic that its reply goes to.
    ///
    /// Default: none, and no message does. A header is anybody's input: it may name `reply.topic` and what `reply.allowed` lists, and
    /// no other; what names another is counted, and gets no reply. Metric: `hapax_replies_refused_total`.
    pub header: Option<String>,
    /// The topic of replies to messages that name none.
    ///
    /// Default: none, and those get no reply. It is looked for at start, and asked whether the largest reply fits. Metric:
    /// `hapax_given_back_total`.
    pub topic: Option<String>,
    /// The topics that `reply.header` may name, besides `reply.topic`.
    ///
    /// Default: `[]`. Each is looked for at start. Too many, and whoever can write to the input chooses among them.
    pub allowed: Vec<String>,
}

impl Replies {
    /// Whether a message may name that topic.
    pub(crate) fn allows(&self, topic: &str) -> bool {
        self.topic.as_deref() == Some(topic) || self.allowed.iter().any(|allowed| allowed == topic)
    }
}

/// Where whoever sent a message is told that it was suppressed or refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Receipts {
    /// The topic; `{topic}` stands for the name of the topic that the message came from.
    ///
    /// Default: none, and nobody is told. It is looked for at start. Each suppressed message then costs a message, and a record of 32 B
    /// in the window: a stream of duplicates is no longer free. Metric: `hapax_given_back_total`.
    pub topic: Option<String>,
}
