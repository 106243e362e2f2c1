//! What an outcome gives back: outputs, replies and receipts.

use super::units::ByteCount;

/// What a handler may emit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outputs {
    /// The topics that the handler emits to. Each is looked for at start, and asked whether the largest output fits.
    ///
    /// Default: `[]`: any topic but a changelog, and none is looked for at start; one that is missing then stops its partition at
    /// the first output. Where some are named, an output to another is an error in the handler. Metric:
    /// `hapax_given_back_total`.
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
