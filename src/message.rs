//! A batch of messages of one partition: its bytes copied once into one arena, messages as slices of it.
//!
//! The batch is what flows through the runtime. Nothing per message is locked, sent or allocated: a message is
//! an index into its batch, and a handler's `Bytes` are views that keep the arena alive.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A message's position in its partition, as the broker numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub i64);

/// The position to commit: the first offset that has *not* been dealt with. Its own type, because mixing it up
/// with [`Offset`] loses or repeats one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextOffset(pub i64);

impl Offset {
    /// The position to commit once this message is recorded.
    #[must_use]
    pub const fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NextOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A slice of the arena, or nothing (a null key, a tombstone).
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    /// `u32::MAX` stands for null, so that a message stays small.
    len: u32,
}

impl Span {
    const NULL: Self = Self {
        start: 0,
        len: u32::MAX,
    };

    fn of(self, arena: &[u8]) -> Option<&[u8]> {
        if self.len == u32::MAX {
            return None;
        }
        let start = self.start as usize;
        arena.get(start..start + self.len as usize)
    }

    fn share(self, arena: &Bytes) -> Option<Bytes> {
        (self.len != u32::MAX).then(|| {
            let start = self.start as usize;
            arena.slice(start..start + self.len as usize)
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: Offset,
    timestamp_ms: i64,
    key: Span,
    payload: Span,
    headers: Span,
}

/// Messages of one partition in offset order, as they were taken together.
pub struct Batch {
    topic: Arc<str>,
    partition: i32,
    arena: Bytes,
    entries: Vec<Entry>,
    /// Dropped with the batch: what its bytes were counted against.
    #[expect(dead_code, reason = "held, not read")]
    lease: Option<Box<dyn Any + Send + Sync>>,
}

impl Batch {
    /// The number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that the batch keeps in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.entries.len() * size_of::<Entry>()
    }

    /// Ties something to the batch's life, such as its share of `in_flight_bytes`.
    #[must_use]
    pub fn with_lease(self, lease: impl Any + Send + Sync) -> Self {
        Self {
            lease: Some(Box::new(lease)),
            ..self
        }
    }

    /// The topic that the messages came from.
    #[must_use]
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The partition that the messages came from.
    #[must_use]
    pub const fn partition(&self) -> i32 {
        self.partition
    }

    /// The message at `index`, or `None` past the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Raw<'_>> {
        self.entries.get(index).map(|entry| Raw {
            batch: self,
            entry: *entry,
        })
    }

    /// All messages in offset order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Raw<'_>> {
        self.entries.iter().map(|entry| Raw {
            batch: self,
            entry: *entry,
        })
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Batch({}[{}], {} messages)",
            self.topic,
            self.partition,
            self.entries.len()
        )
    }
}

/// One message as the broker gave it: what [`Decode`](crate::Decode) reads.
#[derive(Clone, Copy)]
pub struct Raw<'a> {
    batch: &'a Batch,
    entry: Entry,
}

impl<'a> Raw<'a> {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        &self.batch.topic
    }

    /// The partition.
    #[must_use]
    pub const fn partition(&self) -> i32 {
        self.batch.partition
    }

    /// The offset.
    #[must_use]
    pub const fn offset(&self) -> Offset {
        self.entry.offset
    }

    /// The message's own timestamp in milliseconds since the epoch, or `None` where the broker has none.
    #[must_use]
    pub fn timestamp_ms(&self) -> Option<i64> {
        (self.entry.timestamp_ms >= 0).then_some(self.entry.timestamp_ms)
    }

    /// The key, or `None` for a null key.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.entry.key.of(&self.batch.arena)
    }

    /// The payload, or `None` for a tombstone.
    #[must_use]
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.entry.payload.of(&self.batch.arena)
    }

    /// The payload as shared bytes that keep the batch alive; nothing is copied.
    #[must_use]
    pub fn payload_bytes(&self) -> Option<Bytes> {
        self.entry.payload.share(&self.batch.arena)
    }

    /// The key as shared bytes that keep the batch alive; nothing is copied.
    #[must_use]
    pub fn key_bytes(&self) -> Option<Bytes> {
        self.entry.key.share(&self.batch.arena)
    }

    /// All headers in the order of the message.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        Headers {
            rest: self.entry.headers.of(&self.batch.arena).unwrap_or_default(),
        }
    }

    /// The value of the *last* header of that name (Kafka's convention where a name repeats), `None` where there is
    /// none or its value is null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .filter(|header| header.name == name)
            .last()
            .and_then(|header| header.value)
    }
}

impl fmt::Debug for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payload, key and headers stay out: they may hold what no log should.
        f.debug_struct("Raw")
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .finish_non_exhaustive()
    }
}

/// One header: a name and a value that may be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name.
    pub name: &'a str,
    /// The value; `None` is Kafka's null, which is not the empty value.
    pub value: Option<&'a [u8]>,
}

/// The headers of one message, in its order.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        // Written by `BatchBuilder` below and by nothing else: [name length, value length or MAX][name][value].
        let (name_len, rest) = self.rest.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_len) as usize)?;
        let value_len = u32::from_le_bytes(*value_len);
        let (value, rest) = if value_len == u32::MAX {
            (None, rest)
        } else {
            rest.split_at_checked(value_len as usize)
                .map(|(v, r)| (Some(v), r))?
        };
        self.rest = rest;
        Some(Header {
            name: std::str::from_utf8(name).unwrap_or_default(),
            value,
        })
    }
}

/// Collects messages of one partition into a [`Batch`].
#[derive(Debug)]
pub struct BatchBuilder {
    topic: Arc<str>,
    partition: i32,
    arena: Vec<u8>,
    entries: Vec<Entry>,
}

impl BatchBuilder {
    /// An empty batch of that partition with room for `messages` of about `bytes` in all.
    #[must_use]
    pub fn new(topic: Arc<str>, partition: i32, messages: usize, bytes: usize) -> Self {
        Self {
            topic,
            partition,
            arena: Vec::with_capacity(bytes),
            entries: Vec::with_capacity(messages),
        }
    }

    /// Copies one message in. `timestamp_ms` is `None` where the broker has none.
    pub fn push<'h>(
        &mut self,
        offset: Offset,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: impl IntoIterator<Item = Header<'h>>,
    ) {
        let key = self.copy(key);
        let payload = self.copy(payload);
        let start = self.arena.len();
        for header in headers {
            self.arena
                .extend_from_slice(&len_u32(header.name.len()).to_le_bytes());
            let value_len = header.value.map_or(u32::MAX, |value| len_u32(value.len()));
            self.arena.extend_from_slice(&value_len.to_le_bytes());
            self.arena.extend_from_slice(header.name.as_bytes());
            self.arena.extend_from_slice(header.value.unwrap_or_default());
        }
        let headers = Span {
            start: len_u32(start),
            len: len_u32(self.arena.len() - start),
        };
        self.entries.push(Entry {
            offset,
            timestamp_ms: timestamp_ms.unwrap_or(-1),
            key,
            payload,
            headers,
        });
    }

    fn copy(&mut self, bytes: Option<&[u8]>) -> Span {
        let Some(bytes) = bytes else { return Span::NULL };
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        Span {
            start: len_u32(start),
            len: len_u32(bytes.len()),
        }
    }

    /// The number of messages so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was pushed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes copied so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// The batch.
    #[must_use]
    pub fn finish(self) -> Batch {
        Batch {
            topic: self.topic,
            partition: self.partition,
            arena: Bytes::from(self.arena),
            entries: self.entries,
            lease: None,
        }
    }
}

/// An arena stays far below 4 GiB: a batch ends at `in_flight_bytes`, and one message is at most 2 GiB in Kafka.
fn len_u32(len: usize) -> u32 {
    match u32::try_from(len) {
        Ok(len) if len != u32::MAX => len,
        _ => panic!(
            "a batch arena of {len} bytes is past its limit of {} bytes",
            u32::MAX - 1
        ),
    }
}

/// A message that hapax keeps itself: held, settling, or to be dead-lettered. Owned, bytes intact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The message's own timestamp in milliseconds since the epoch, where it had one.
    pub timestamp_ms: Option<i64>,
    /// The key, `None` for null.
    pub key: Option<Bytes>,
    /// The payload, `None` for a tombstone.
    pub payload: Option<Bytes>,
    /// The headers in order; a value may be null.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Kept {
    /// A copy of its own: a kept message must not pin the arena of the batch it came in.
    #[must_use]
    pub fn copy_of(raw: &Raw<'_>) -> Self {
        Self {
            timestamp_ms: raw.timestamp_ms(),
            key: raw.key().map(Bytes::copy_from_slice),
            payload: raw.payload().map(Bytes::copy_from_slice),
            headers: raw
                .headers()
                .map(|h| (h.name.to_owned(), h.value.map(Bytes::copy_from_slice)))
                .collect(),
        }
    }

    /// No message: nothing, in no header.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            timestamp_ms: None,
            key: None,
            payload: None,
            headers: Vec::new(),
        }
    }

    /// Bytes that count against `held_bytes`.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len))
            .sum();
        headers + self.key.as_ref().map_or(0, Bytes::len) + self.payload.as_ref().map_or(0, Bytes::len)
    }

    /// A batch of this one message, so that work that was kept runs the same way as work that was just taken.
    #[must_use]
    pub fn into_batch(&self, topic: Arc<str>, partition: i32, offset: Offset) -> Batch {
        let mut batch = BatchBuilder::new(topic, partition, 1, self.bytes() + 64);
        let headers = self.headers.iter().map(|(name, value)| Header {
            name,
            value: value.as_deref(),
        });
        batch.push(
            offset,
            self.timestamp_ms,
            self.key.as_deref(),
            self.payload.as_deref(),
            headers,
        );
        batch.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Batch {
        let mut batch = BatchBuilder::new("orders".into(), 3, 2, 64);
        let headers = [
            Header {
                name: "a",
                value: Some(b"1"),
            },
            Header {
                name: "b",
                value: None,
            },
            Header {
                name: "a",
                value: Some(b"2"),
            },
        ];
        batch.push(Offset(7), Some(99), Some(b"k"), Some(b"payload"), headers);
        batch.push(Offset(9), None, None, None, []);
        batch.finish()
    }

    #[test]
    fn a_message_comes_back_as_it_was_pushed() {
        let batch = sample();
        let first = batch.get(0).unwrap();
        assert_eq!((first.offset(), first.timestamp_ms()), (Offset(7), Some(99)));
        assert_eq!(
            (first.key(), first.payload()),
            (Some(&b"k"[..]), Some(&b"payload"[..]))
        );
        assert_eq!(first.headers().count(), 3);
        assert_eq!(
            first.header("a"),
            Some(&b"2"[..]),
            "the last of a repeated name rules"
        );
        assert_eq!(first.header("b"), None);
    }

    #[test]
    fn null_is_not_empty() {
        let batch = sample();
        let second = batch.get(1).unwrap();
        assert_eq!(
            (second.key(), second.payload(), second.timestamp_ms()),
            (None, None, None)
        );
        assert_eq!(second.headers().count(), 0);
    }

    #[test]
    fn kept_work_runs_from_the_same_bytes() {
        let batch = sample();
        for raw in batch.iter() {
            let kept = Kept::copy_of(&raw);
            let again = kept.into_batch("orders".into(), 3, raw.offset());
            assert_eq!(Kept::copy_of(&again.get(0).unwrap()), kept);
        }
    }
}
