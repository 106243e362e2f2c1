//! Output: a message that belongs to an outcome, and becomes visible with it.
//!
//! A handler [emits](crate::Context::emit) it by a name of its own; hapax adds the headers that say whose it is. What is kept of
//! it on disk, until the broker has acknowledged it, has a version byte of its own: bytes of a later version are refused, never
//! misread.

use bytes::Bytes;
use serde::Serialize;

use crate::record::wire::{Reader, put_varint};
use crate::record::{self, Error};

/// The version of what is stored of an outcome: its reply, and its outputs.
pub const OUTCOME_VERSION: u8 = 1;

/// A message for another topic, made by a handler.
///
/// ```
/// use hapax::Output;
///
/// let shipment = Output::to("shipments").key("order-7").payload("{\"sku\":\"tea\"}").header("region", "eu");
/// # let _ = shipment;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an output is nothing until it is emitted"]
pub struct Output {
    pub(crate) topic: String,
    pub(crate) key: Option<Bytes>,
    pub(crate) payload: Option<Bytes>,
    pub(crate) headers: Vec<(String, Option<Bytes>)>,
}

impl Output {
    /// A message for that topic, with a null key, a null payload and no header.
    pub fn to(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            key: None,
            payload: None,
            headers: Vec::new(),
        }
    }

    /// With that key. Default: null, and any partition.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With those bytes for payload. Default: null, which a compacted topic takes for a deletion.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = Some(payload.into());
        self
    }

    /// With the value as JSON for payload.
    ///
    /// # Errors
    /// Where the value has no JSON form.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(value).map(|json| self.payload(json))
    }

    /// With one more header. `idempotency-key` and names that begin with `hapax-` are hapax's own, and refused by
    /// [`emit`](crate::Context::emit).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// Bytes of key, payload and headers.
    pub(crate) fn bytes(&self) -> usize {
        let of = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        let headers = self.headers.iter().map(|(name, value)| name.len() + of(value));
        of(&self.key) + of(&self.payload) + headers.sum::<usize>()
    }
}

/// Writes outputs as one field of an open record.
pub(crate) fn encode(outputs: &[Output], out: &mut Vec<u8>) {
    out.push(OUTCOME_VERSION);
    for output in outputs {
        put_sized(out, output.topic.as_bytes());
        record::put_nullable(out, output.key.as_deref());
        record::put_nullable(out, output.payload.as_deref());
        put_varint(out, output.headers.len() as u64);
        for (name, value) in &output.headers {
            put_sized(out, name.as_bytes());
            record::put_nullable(out, value.as_deref());
        }
    }
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`Error::NewerOutcome`] of a later version: what it says is to be sent is not to be guessed.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Output>, Error> {
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        OUTCOME_VERSION => {}
        0 => return Err(Error::Malformed("outcome version 0")),
        newer => return Err(Error::NewerOutcome(newer)),
    }
    let mut outputs = Vec::new();
    while !reader.is_at_end() {
        let topic = text(reader.sized()?)?;
        let (key, payload) = (nullable(&mut reader)?, nullable(&mut reader)?);
        let mut headers = Vec::new();
        for _ in 0..reader.varint()? {
            headers.push((text(reader.sized()?)?, nullable(&mut reader)?));
        }
        outputs.push(Output {
            topic,
            key,
            payload,
            headers,
        });
    }
    Ok(outputs)
}

fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Malformed("text of an output"))?;
    Ok(text.to_owned())
}

fn nullable(reader: &mut Reader<'_>) -> Result<Option<Bytes>, Error> {
    Ok(match reader.varint()? {
        0 => None,
        len => Some(Bytes::copy_from_slice(reader.take(len - 1)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Option<Bytes>> {
        prop::option::of(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from))
    }

    fn outputs() -> impl Strategy<Value = Vec<Output>> {
        let headers = prop::collection::vec((".{0,8}", values()), 0..4);
        let output =
            (".{0,8}", values(), values(), headers).prop_map(|(topic, key, payload, headers)| Output {
                topic,
                key,
                payload,
                headers,
            });
        prop::collection::vec(output, 0..4)
    }

    proptest! {
        #[test]
        fn outputs_read_as_they_were_written(outputs in outputs()) {
            let mut out = Vec::new();
            encode(&outputs, &mut out);
            prop_assert_eq!(decode(&out), Ok(outputs));
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read_but_never_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode(&[&[OUTCOME_VERSION][..], &bytes].concat());
        }
    }

    #[test]
    fn outputs_of_a_later_version_are_refused_and_not_guessed() {
        let mut out = Vec::new();
        encode(&[Output::to("t")], &mut out);
        out[0] = OUTCOME_VERSION + 1;
        assert_eq!(decode(&out), Err(Error::NewerOutcome(OUTCOME_VERSION + 1)));
    }
}
