//! From the bytes of a message to the value that a handler takes.
//!
//! Decoding happens before `Begun` is recorded: a decoder that crashes leaves nothing in doubt. The value goes to the
//! handler by value, so a message is decoded again for each attempt and each probe; nothing here needs `Clone`.

use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::future::{Future, ready};
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::error::{BoxError, chain};
use crate::message::Raw;

/// Reads the value that a handler takes out of a message.
///
/// It may wait, for a schema registry say, and its future may be dropped at any await (a revoked partition): what it
/// starts must be safe to abandon and to start again. It must have no effects: it runs once per attempt and per probe.
///
/// ```
/// use hapax::{Decode, DecodeError};
/// use hapax::message::Raw;
///
/// /// Lines of `id,cents`.
/// struct Csv;
///
/// impl Decode for Csv {
///     type Message = (String, u64);
///
///     async fn decode(&self, raw: Raw<'_>) -> Result<Self::Message, DecodeError> {
///         let line = str::from_utf8(raw.payload().unwrap_or_default()).map_err(DecodeError::malformed)?;
///         let (id, cents) = line.split_once(',').ok_or_else(|| DecodeError::malformed("no comma"))?;
///         Ok((id.to_owned(), cents.parse().map_err(DecodeError::malformed)?))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not decode messages",
    label = "not a decoder",
    note = "use `Topic::json::<T>(..)` or `Topic::bytes(..)`, or implement `Decode`"
)]
pub trait Decode: Send + Sync + 'static {
    /// What the handler takes.
    type Message: Send + 'static;

    /// Reads one message.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] where these bytes will never decode, [`DecodeError::Unavailable`] where they may
    /// later.
    fn decode(&self, raw: Raw<'_>) -> impl Future<Output = Result<Self::Message, DecodeError>> + Send;
}

/// Why a message was not decoded.
///
/// There is no `From`: whether a failure is the message's or the world's must be said each time.
#[derive(Debug)]
pub enum DecodeError {
    /// These bytes will never decode.
    ///
    /// - what happened: the payload is not what the topic's decoder takes; the source says where
    /// - what hapax did: it recorded the message as failed and dead-lettered it with reason `malformed`; the handler
    ///   did not start
    /// - what you do: mend the producer, or the decoder, and redrive the dead letter
    Malformed(Box<dyn Error + Send + Sync + 'static>),
    /// Something needed for decoding is missing at the moment.
    ///
    /// - what happened: a schema registry, or the like, did not answer
    /// - what hapax did: it tries again with backoff, like an attempt that applied nothing
    /// - what you do: bring that service back; messages wait
    Unavailable(Box<dyn Error + Send + Sync + 'static>),
}

impl DecodeError {
    /// [`DecodeError::Malformed`] because of `source`: an error or a text.
    #[must_use]
    pub fn malformed(source: impl Into<BoxError>) -> Self {
        Self::Malformed(source.into())
    }

    /// [`DecodeError::Unavailable`] because of `source`: an error or a text.
    #[must_use]
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable(source.into())
    }

    /// This error and its sources on one line, each said once, cut after 4 KiB. A decoder's error may quote the
    /// payload: it belongs into the dead letter, beside the payload, and not into a log.
    #[must_use]
    pub fn message(&self) -> String {
        chain(self)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed(_) => "the payload is malformed",
            Self::Unavailable(_) => "the payload cannot be decoded at the moment",
        })
    }
}

impl Error for DecodeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Malformed(source) | Self::Unavailable(source) => Some(&**source),
        }
    }
}

/// Payloads as JSON: what [`Topic::json`](crate::Topic::json) decodes with.
///
/// A tombstone (null payload) reads as JSON `null`: with `Json<Option<T>>` it is `None`, with `Json<T>` it is malformed
/// unless `T` takes `null`.
pub struct Json<T>(PhantomData<fn() -> T>);

impl<T> Json<T> {
    /// A decoder for `T`.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for Json<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json<{}>", type_name::<T>())
    }
}

impl<T: DeserializeOwned + Send + 'static> Decode for Json<T> {
    type Message = T;

    fn decode(&self, raw: Raw<'_>) -> impl Future<Output = Result<T, DecodeError>> + Send {
        let payload = raw.payload();
        let decoded = serde_json::from_slice(payload.unwrap_or(b"null"));
        ready(decoded.map_err(|error| match payload {
            Some(_) => DecodeError::malformed(error),
            None => DecodeError::malformed(tombstone(type_name::<T>())),
        }))
    }
}

fn tombstone(message: &str) -> String {
    format!(
        "it is a tombstone (a null payload, read as JSON `null`), and `{message}` is not optional: \
         take it as `Topic::json::<Option<{message}>>(..)`, where a tombstone is `None`"
    )
}

/// Payloads as the bytes they are: what [`Topic::bytes`](crate::Topic::bytes) "decodes" with.
///
/// Nothing is copied: the bytes are a view of the batch that the message came in, and keep that batch in memory as long
/// as they live. Copy what outlives the handler. A tombstone is an empty payload here; where that difference matters,
/// implement [`Decode`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Undecoded;

impl Decode for Undecoded {
    type Message = Bytes;

    fn decode(&self, raw: Raw<'_>) -> impl Future<Output = Result<Bytes, DecodeError>> + Send {
        ready(Ok(raw.payload_bytes().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Batch, BatchBuilder, Offset};
    use futures_util::FutureExt;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Order {
        cents: u64,
    }

    fn batch(payload: Option<&[u8]>) -> Batch {
        let mut batch = BatchBuilder::new("orders".into(), 0, 1, 64);
        batch.push(Offset(1), None, None, payload, []);
        batch.finish()
    }

    fn decode<D: Decode>(decoder: &D, payload: Option<&[u8]>) -> Result<D::Message, DecodeError> {
        decoder
            .decode(batch(payload).get(0).unwrap())
            .now_or_never()
            .unwrap()
    }

    #[test]
    fn json_gives_the_value() {
        assert_eq!(
            decode(&Json::<Order>::new(), Some(br#"{"cents":5}"#)).unwrap(),
            Order { cents: 5 }
        );
    }

    #[test]
    fn json_that_will_never_decode_is_malformed_and_says_where() {
        let error = decode(&Json::<Order>::new(), Some(br#"{"pence":5}"#)).unwrap_err();
        assert!(matches!(error, DecodeError::Malformed(_)));
        assert_eq!(
            error.message(),
            "the payload is malformed: missing field `cents` at line 1 column 11"
        );
        assert!(
            decode(&Json::<Order>::new(), Some(b"")).is_err(),
            "an empty payload is no tombstone"
        );
    }

    #[test]
    fn a_tombstone_is_none_where_the_handler_can_take_it() {
        assert_eq!(decode(&Json::<Option<Order>>::new(), None).unwrap(), None);
        assert_eq!(
            decode(&Json::<serde_json::Value>::new(), None).unwrap(),
            serde_json::Value::Null
        );
    }

    #[test]
    fn a_tombstone_is_malformed_otherwise_and_the_error_names_the_way_out() {
        let message = decode(&Json::<Order>::new(), None).unwrap_err().message();
        assert!(message.contains("tombstone"), "{message}");
        assert!(
            message.contains(&format!("Topic::json::<Option<{}>>(..)", type_name::<Order>())),
            "{message}"
        );
    }

    #[test]
    fn bytes_are_shared_and_not_copied() {
        let batch = batch(Some(b"payload"));
        let raw = batch.get(0).unwrap();
        let bytes = Undecoded.decode(raw).now_or_never().unwrap().unwrap();
        assert_eq!(bytes.as_ptr(), raw.payload().unwrap().as_ptr());
        assert_eq!(decode(&Undecoded, None).unwrap(), Bytes::new());
    }
}
