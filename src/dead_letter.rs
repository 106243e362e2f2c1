//! Dead letters: the message as it was, and where it came from.
//!
//! Bytes, key, headers and timestamp stay as they were; `hapax-` headers say why and whence. A header of that prefix
//! that the message already had (a dead letter that fails again) is replaced, so that the lineage speaks of the last
//! stop. The `hapax-id` is the same each time one message is dead-lettered for one reason: sending is at least once,
//! and a reader can drop the repeat by it.

use bytes::Bytes;

use crate::broker::Letter;
use crate::class::Class;
use crate::error::cut;
use crate::message::{Kept, Offset};
use crate::outcome::Reason;
use crate::output::Output;

/// Where a dead letter came from, and why.
#[derive(Debug, Clone)]
pub struct Lineage<'a> {
    /// Why.
    pub reason: Reason,
    /// What was said, in words.
    pub error: &'a str,
    /// Attempts made.
    pub attempts: u32,
    /// The topic's class.
    pub class: Class,
    /// The token as text, where the message had one.
    pub token: Option<&'a str>,
    /// The topic it was consumed from.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
}

/// The prefix of every header that hapax adds.
pub const PREFIX: &str = "hapax-";

/// An error text longer than this is cut: a letter must fit where its message fitted.
const ERROR_BYTES_MAX: usize = 1_024;

/// A token longer than this is cut, for the same reason: it may be refused because it is longer still.
const TOKEN_BYTES_MAX: usize = 1_024;

/// Builds the letter.
#[must_use]
pub fn letter(to: &str, message: &Kept, lineage: &Lineage<'_>) -> Letter {
    let mut headers: Vec<_> = message
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with(PREFIX))
        .cloned()
        .collect();
    let mut add =
        |name: &str, value: String| headers.push((format!("{PREFIX}{name}"), Some(Bytes::from(value))));
    let Lineage {
        topic,
        partition,
        offset,
        reason,
        ..
    } = *lineage;
    add("id", id(topic, partition, offset, reason.code()));
    add("reason", lineage.reason.code().to_owned());
    add("error", cut(lineage.error, ERROR_BYTES_MAX).to_owned());
    add("attempts", lineage.attempts.to_string());
    add("class", lineage.class.to_string());
    if let Some(token) = lineage.token {
        // Whole it could be as long as the message, and the letter too long to be taken.
        add("token", cut(token, TOKEN_BYTES_MAX).to_owned());
    }
    add("topic", lineage.topic.to_owned());
    add("partition", lineage.partition.to_string());
    add("offset", lineage.offset.to_string());
    Letter {
        topic: to.to_owned(),
        key: message.key.clone(),
        payload: message.payload.clone(),
        timestamp_ms: message.timestamp_ms,
        headers,
    }
}

/// An output as it is sent: what its handler emitted, with its lineage.
pub(crate) fn output(output: Output) -> Letter {
    let Output {
        topic,
        key,
        payload,
        headers,
    } = output;
    Letter {
        topic,
        key,
        payload,
        // The broker's, or the producer's, when it is sent.
        timestamp_ms: None,
        headers,
    }
}

/// Headers of hapax's own.
pub(crate) fn own_headers<const N: usize>(
    values: [(&str, String); N],
) -> impl Iterator<Item = (String, Option<Bytes>)> {
    values
        .map(|(name, value)| (format!("{PREFIX}{name}"), Some(Bytes::from(value))))
        .into_iter()
}

/// The first 16 bytes of blake3 over topic, partition, offset and what it is (a reason, or an output's name), in hex.
pub(crate) fn id(topic: &str, partition: i32, offset: Offset, what: &str) -> String {
    let text = format!("{topic}\n{partition}\n{offset}\n{what}");
    let mut hex = blake3::hash(text.as_bytes()).to_hex().to_string();
    hex.truncate(32);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::LETTER_HEADER_BYTES_MAX;

    fn lineage() -> Lineage<'static> {
        Lineage {
            reason: Reason::Rejected,
            error: "no such account",
            attempts: 2,
            class: Class::NonIdempotent,
            token: Some("t-1"),
            topic: "orders",
            partition: 3,
            offset: Offset(17),
        }
    }

    #[test]
    fn the_message_stays_as_it_was_and_says_where_it_came_from() {
        let message = Kept {
            timestamp_ms: Some(5),
            key: None,
            payload: Some(Bytes::from_static(b"\xff\x00")),
            headers: vec![
                ("trace".into(), None),
                ("hapax-reason".into(), Some(Bytes::from_static(b"crashed"))),
            ],
        };
        let letter = letter("orders.dead-letters", &message, &lineage());
        assert_eq!(
            (&letter.key, &letter.payload, letter.timestamp_ms),
            (&None, &message.payload, Some(5))
        );
        let of = |name: &str| {
            let found: Vec<_> = letter.headers.iter().filter(|(n, _)| n == name).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0]
                .1
                .as_deref()
                .map(|v| String::from_utf8(v.to_vec()).unwrap())
        };
        assert_eq!(of("trace"), None);
        assert_eq!(of("hapax-reason").unwrap(), "rejected");
        assert_eq!(of("hapax-offset").unwrap(), "17");
        assert_eq!(of("hapax-token").unwrap(), "t-1");
    }

    #[test]
    fn sent_again_it_has_the_same_id() {
        let other = Lineage {
            offset: Offset(18),
            ..lineage()
        };
        let id = |lineage: &Lineage<'_>| {
            let message = Kept::empty();
            let found = letter("dead", &message, lineage).headers;
            found.into_iter().find(|(name, _)| name == "hapax-id")
        };
        assert!(id(&lineage()).is_some());
        assert_eq!(id(&lineage()), id(&lineage()));
        assert_ne!(id(&lineage()), id(&other));
    }

    #[test]
    fn a_letter_is_no_longer_than_its_message_and_the_room_for_headers() {
        let message = Kept {
            timestamp_ms: None,
            key: None,
            payload: None,
            headers: Vec::new(),
        };
        let long = "é".repeat(1 << 20);
        let topic = "t".repeat(249);
        let lineage = Lineage {
            error: &long,
            token: Some(&long),
            topic: &topic,
            ..lineage()
        };
        let letter = letter("orders.dead-letters", &message, &lineage);
        let bytes: usize = letter
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len))
            .sum();
        assert!(bytes as u64 <= LETTER_HEADER_BYTES_MAX, "{bytes}");
    }
}
