//! What hapax says when it cannot go on: one error type over those of each operation.

use std::error::Error as StdError;
use std::fmt::Write as _;

/// Why a consumer did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is not one that hapax can run. Nothing was connected to. Mend what the message names.
    #[error("configuration")]
    Config(#[from] crate::config::Error),
    /// A topic is configured and no handler serves it. Nothing was connected to. Add the handler, or remove the topic.
    #[error("topic {topic:?} is configured and has no handler; add one, or remove the topic")]
    NoHandler {
        /// The topic.
        topic: String,
    },
    /// Two handlers were given for one topic. Nothing was connected to. Keep one.
    #[error("topic {topic:?} has two handlers; keep one")]
    TwoHandlers {
        /// The topic.
        topic: String,
    },
    /// The configuration names a token closure that code does not have. Nothing was connected to. Add it with
    /// `Token::with`, or mend the name.
    #[error(
        "topic {topic:?} reads its token with {name:?}, which code does not define; add it with `Token::with`"
    )]
    NoTokenCode {
        /// The topic.
        topic: String,
        /// The closure's name.
        name: String,
    },
    /// The store refused to open or failed. Nothing runs. See the store's error.
    #[error("store")]
    Store(#[from] crate::store::Error),
    /// The broker refused or is away. Nothing was committed past what is recorded. See the broker's error.
    #[error("broker")]
    Broker(#[from] crate::broker::Error),
    /// A partition met a policy that says stop. Everything before that message is recorded. Mend the message's
    /// producer, or choose another policy.
    #[error("{topic}[{partition}] stopped at offset {offset}: {why}")]
    Stopped {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The message that is not taken.
        offset: i64,
        /// Which policy, and what it met.
        why: String,
    },
    /// A durable write failed. Nothing was dropped and nothing more ran (Inv 9). Mend the disk and start again.
    #[error("a durable write failed, hapax stopped: {0}")]
    Journal(String),
    /// A changelog holds what is not this consumer's, or what this version cannot read. Nothing runs without it. See the
    /// reason.
    #[error("changelog {topic}[{partition}] cannot be used, at offset {offset}: {why}")]
    Changelog {
        /// The changelog.
        topic: String,
        /// The partition.
        partition: i32,
        /// The message.
        offset: i64,
        /// What is wrong with it.
        why: String,
    },
    /// The admin port cannot be listened on, most often because another process has it. Nothing runs. Stop the other,
    /// or set `admin.listen` to another address, to port 0, or to `"off"`.
    #[error(
        "the admin port {listen} cannot be listened on; set `admin.listen` to another one, or to \"off\""
    )]
    Admin {
        /// What was asked for.
        listen: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The token of the admin port cannot be used. Nothing runs. Write one into the file, or leave `admin.token_file` out.
    #[error(
        "the token of the admin port cannot be read from {}: {why}; make one with `head -c 24 /dev/urandom | base64`, or leave `admin.token_file` out",
        path.display()
    )]
    AdminToken {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system gave no thread. Nothing runs. Raise the limit on threads.
    #[error("no thread for {what}")]
    Thread {
        /// Which one.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A part of hapax ended unexpectedly: a bug. Nothing was committed past what is recorded.
    #[error("internal: {0}")]
    Internal(String),
}

/// An error and its sources in one line, each said once.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    for _ in 0..SOURCES_MAX {
        let Some(source) = next else { break };
        let said = source.to_string();
        // Some libraries print their source inside their own message.
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        next = source.source();
    }
    text
}

/// A chain may be a circle.
const SOURCES_MAX: usize = 16;

/// At most `max` bytes of `text`, ending between characters.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("", 3), "");
    }
}
