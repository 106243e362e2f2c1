//! The token: the idempotency key read from a message, and the 16 bytes that stand for it.
//!
//! A token is hostile input, so it is never compared by a weak hash: its key is blake3 keyed by topic and source
//! (Definitions in `docs/design.md`). The offset of a message without a token serves as one in a source of its own,
//! which no header, key or payload can name.
//!
//! Reading tokens changes nothing and asks no policy: what a missing or oversized token means is decided where
//! verdicts are (`partition/judge.rs`).

use std::fmt;
use std::sync::Arc;

use crate::config::TokenSource;
use crate::message::Raw;

/// A token's name in the window: 16 bytes of blake3 over topic, source and token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey(pub [u8; 16]);

impl TokenKey {
    /// The first eight bytes as a number: already uniform, so a hash table needs no second hash.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for TokenKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(number) if digits => Ok(Self(number.to_be_bytes())),
            _ => Err(()),
        }
    }
}

/// Reads a token out of a message with the user's own code. `None` means that the message has none.
pub type TokenFn = Arc<dyn Fn(&Raw<'_>) -> Option<Vec<u8>> + Send + Sync>;

/// Where tokens are read.
#[derive(Clone)]
pub enum Reader {
    /// The value of the last header of that name.
    Header(String),
    /// The message key.
    Key,
    /// A JSON pointer into the payload; strings give their text, numbers and booleans their JSON form.
    Json(String),
    /// The message's own position: no duplicate is ever found, but redeliveries are.
    Offset,
    /// The user's closure, under a name that must stay the same across releases.
    Code(String, TokenFn),
}

impl Reader {
    /// The source's name, part of every token key: a token found in a header is not the same token found in a key.
    #[must_use]
    pub fn name(&self) -> String {
        self.source().name()
    }

    /// The source as configuration names it.
    pub(crate) fn source(&self) -> TokenSource {
        match self {
            Self::Header(name) => TokenSource::Header(name.clone()),
            Self::Key => TokenSource::Key,
            Self::Json(pointer) => TokenSource::Json(pointer.clone()),
            Self::Offset => TokenSource::Offset,
            Self::Code(name, _) => TokenSource::Code(name.clone()),
        }
    }
}

/// For people: as configuration names it.
impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source().fmt(f)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// What a message says of its own token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// One or more sources had a token; keys were appended in the order of the sources.
    Tokens,
    /// No source had one.
    Missing,
    /// The named source had one of that many bytes, more than `token_bytes`.
    TooLong {
        /// Which source.
        source: String,
        /// How many bytes it had.
        bytes: usize,
    },
}

/// Reads the tokens of one topic's messages.
#[derive(Debug)]
pub struct Extractor {
    sources: Vec<Source>,
    offset: Keyed,
    bytes_max: usize,
}

#[derive(Debug)]
struct Source {
    reader: Reader,
    keyed: Keyed,
}

/// A blake3 key for one topic and source, so that a token costs one keyed hash of its own bytes.
struct Keyed([u8; 32]);

impl Keyed {
    fn new(topic: &str, source: &str) -> Self {
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        let material = [
            &(topic.len() as u64).to_le_bytes(),
            topic.as_bytes(),
            source.as_bytes(),
        ]
        .concat();
        Self(blake3::derive_key("hapax 2026-11-25 token key v1", &material))
    }

    fn key(&self, token: &[u8]) -> TokenKey {
        first_half(blake3::keyed_hash(&self.0, token).as_bytes())
    }
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyed")
    }
}

/// 128 bits: two of 2^40 tokens share a key with a probability of about 2^-49.
fn first_half(hash: &[u8; 32]) -> TokenKey {
    let mut half = [0; 16];
    half.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    TokenKey(half)
}

impl Extractor {
    /// An extractor for `topic`. Tokens longer than `bytes_max` are not tokens.
    #[must_use]
    pub fn new(topic: &str, readers: impl IntoIterator<Item = Reader>, bytes_max: usize) -> Self {
        let sources = readers
            .into_iter()
            .map(|reader| Source {
                keyed: Keyed::new(topic, &reader.name()),
                reader,
            })
            .collect();
        Self {
            sources,
            offset: Keyed::new(topic, "hapax:position"),
            bytes_max,
        }
    }

    /// Appends the keys of every source that has a token. On [`Found::Missing`] and [`Found::TooLong`] nothing is
    /// appended.
    ///
    /// An empty token, like a null one, is no token: producers that fill a template with nothing would otherwise
    /// make duplicates of one another.
    pub fn read(&self, raw: &Raw<'_>, keys: &mut Vec<TokenKey>) -> Found {
        let start = keys.len();
        let mut json = LazyJson::default();
        for source in &self.sources {
            let owned;
            let token = match &source.reader {
                Reader::Header(name) => raw.header(name),
                Reader::Key => raw.key(),
                Reader::Json(pointer) => {
                    owned = json.token(raw, pointer);
                    owned.as_deref()
                }
                Reader::Code(_, read) => {
                    owned = read(raw);
                    owned.as_deref()
                }
                Reader::Offset => {
                    keys.push(self.position(raw));
                    continue;
                }
            };
            let Some(token) = token.filter(|token| !token.is_empty()) else {
                continue;
            };
            if token.len() > self.bytes_max {
                keys.truncate(start);
                return Found::TooLong {
                    source: source.reader.to_string(),
                    bytes: token.len(),
                };
            }
            keys.push(source.keyed.key(token));
        }
        if keys.len() > start {
            Found::Tokens
        } else {
            Found::Missing
        }
    }

    /// The token that a message has by its position alone. Timestamp and digest are part of it, so that a topic
    /// deleted and made again does not take the new message at an offset for the old one.
    #[must_use]
    pub fn position(&self, raw: &Raw<'_>) -> TokenKey {
        let digest = raw.payload().map(blake3::hash);
        let mut token = Vec::with_capacity(48);
        token.extend_from_slice(&raw.offset().0.to_le_bytes());
        token.extend_from_slice(&raw.timestamp_ms().unwrap_or(-1).to_le_bytes());
        if let Some(digest) = &digest {
            token.extend_from_slice(digest.as_bytes());
        }
        self.offset.key(&token)
    }

    /// When the message says its token was made, in milliseconds since the epoch: the `created` header (decimal
    /// milliseconds), else the timestamp inside a UUIDv7 token in a header or key.
    #[must_use]
    pub fn birth_ms(&self, raw: &Raw<'_>) -> Option<i64> {
        if let Some(created) = raw
            .header("created")
            .and_then(|v| std::str::from_utf8(v).ok()?.trim().parse().ok())
        {
            return Some(created);
        }
        self.sources.iter().find_map(|source| match &source.reader {
            Reader::Header(name) => raw.header(name).and_then(uuid_v7_ms),
            Reader::Key => raw.key().and_then(uuid_v7_ms),
            _ => None,
        })
    }

    /// The text of the first token present, for dead letters and the handler's context; lossy where it is not
    /// UTF-8. Costs an allocation: not for the hot path.
    #[must_use]
    pub fn text(&self, raw: &Raw<'_>) -> Option<String> {
        let mut json = LazyJson::default();
        self.sources.iter().find_map(|source| {
            let token = match &source.reader {
                Reader::Header(name) => raw.header(name).map(<[u8]>::to_vec),
                Reader::Key => raw.key().map(<[u8]>::to_vec),
                Reader::Json(pointer) => json.token(raw, pointer),
                Reader::Code(_, read) => read(raw),
                Reader::Offset => None,
            };
            token
                .filter(|token| !token.is_empty())
                .map(|token| String::from_utf8_lossy(&token).into_owned())
        })
    }
}

/// The key of a token's text, from the source of that [name](Reader::name).
pub(crate) fn key_of(topic: &str, source: &str, token: &[u8]) -> TokenKey {
    Keyed::new(topic, source).key(token)
}

/// A payload parsed at the first JSON pointer that asks, and at most once.
#[derive(Default)]
struct LazyJson(Option<Option<serde_json::Value>>);

impl LazyJson {
    fn token(&mut self, raw: &Raw<'_>, pointer: &str) -> Option<Vec<u8>> {
        let value = self
            .0
            .get_or_insert_with(|| raw.payload().and_then(|bytes| serde_json::from_slice(bytes).ok()));
        match value.as_ref()?.pointer(pointer)? {
            serde_json::Value::String(text) => Some(text.clone().into_bytes()),
            value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => {
                Some(value.to_string().into_bytes())
            }
            // Null is no token; the text of an array or object depends on the order its producer wrote it in.
            _ => None,
        }
    }
}

/// RFC 9562, section 5.7: the first 48 bits are Unix milliseconds, the version nibble follows them. A time before 2020
/// is no birth: UUIDv7 was not written down then, and what looks like one is random digits.
fn uuid_v7_ms(token: &[u8]) -> Option<i64> {
    // Version and variant both: of tokens that only look like a UUID one in 16 has a 7 where the version is.
    let has_variant = token.get(19).is_some_and(|digit| b"89abAB".contains(digit));
    if token.len() != 36 || token.get(14) != Some(&b'7') || !has_variant {
        return None;
    }
    if ![8, 13, 18, 23].iter().all(|&dash| token.get(dash) == Some(&b'-')) {
        return None;
    }
    let text = std::str::from_utf8(token).ok()?;
    let high = i64::from_str_radix(text.get(..8)?, 16).ok()?;
    let low = i64::from_str_radix(text.get(9..13)?, 16).ok()?;
    Some((high << 16) | low).filter(|birth| *birth >= YEAR_2020_MS)
}

const YEAR_2020_MS: i64 = 1_577_836_800_000;

/// A child token: the name of one step of the handler, the same at every attempt of one message's token.
///
/// `blake3("hapax 2026-11-25 child token v1", topic, token, name)` as 32 hex digits. The topic is part of it, so
/// that token 42 of two topics does not collide downstream.
#[must_use]
pub fn child(token: &TokenKey, name: &str) -> String {
    // The token key already holds topic and source.
    let key = blake3::derive_key("hapax 2026-11-25 child token v1", &token.0);
    first_half(blake3::keyed_hash(&key, name.as_bytes()).as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Batch, BatchBuilder, Header, Offset};

    fn message(key: Option<&[u8]>, payload: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> Batch {
        let mut batch = BatchBuilder::new("orders".into(), 0, 1, 256);
        let headers = headers.iter().map(|&(name, value)| Header { name, value });
        batch.push(Offset(5), Some(1_000), key, payload, headers);
        batch.finish()
    }

    fn read(readers: Vec<Reader>, batch: &Batch) -> (Found, Vec<TokenKey>) {
        let mut keys = Vec::new();
        let found = Extractor::new("orders", readers, 16).read(&batch.get(0).unwrap(), &mut keys);
        (found, keys)
    }

    fn header(name: &str) -> Reader {
        Reader::Header(name.into())
    }

    #[test]
    fn one_token_in_two_sources_is_two_tokens() {
        let batch = message(Some(b"t"), Some(br#"{"id":"t"}"#), &[("a", Some(b"t"))]);
        let (found, keys) = read(vec![header("a"), Reader::Key, Reader::Json("/id".into())], &batch);
        assert_eq!(found, Found::Tokens);
        assert_eq!(keys.len(), 3);
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    }

    #[test]
    fn every_source_present_counts_and_absent_ones_do_not() {
        let both = message(None, None, &[("new", Some(b"n")), ("old", Some(b"o"))]);
        let old = message(None, None, &[("old", Some(b"o"))]);
        let (_, of_both) = read(vec![header("new"), header("old")], &both);
        let (_, of_old) = read(vec![header("new"), header("old")], &old);
        assert_eq!(of_both.len(), 2);
        assert_eq!(of_old, of_both[1..]);
    }

    #[test]
    fn empty_null_and_absent_tokens_are_missing() {
        for headers in [&[][..], &[("a", None)], &[("a", Some(&b""[..]))]] {
            assert_eq!(
                read(vec![header("a")], &message(None, None, headers)).0,
                Found::Missing
            );
        }
        for json in [
            &b"{}"[..],
            b"not json",
            br#"{"id":null}"#,
            br#"{"id":[1]}"#,
            br#"{"id":""}"#,
        ] {
            let batch = message(None, Some(json), &[]);
            assert_eq!(
                read(vec![Reader::Json("/id".into())], &batch).0,
                Found::Missing,
                "{json:?}"
            );
        }
    }

    #[test]
    fn a_token_at_the_limit_is_read_and_one_byte_more_is_not() {
        let fits = message(None, None, &[("a", Some(&[b'x'; 16]))]);
        assert_eq!(read(vec![header("a")], &fits).0, Found::Tokens);
        let longer = message(Some(b"k"), None, &[("a", Some(&[b'x'; 17]))]);
        let (found, keys) = read(vec![Reader::Key, header("a")], &longer);
        assert_eq!(
            found,
            Found::TooLong {
                source: "header `a`".into(),
                bytes: 17
            }
        );
        assert!(keys.is_empty(), "no alias of a refused message may be looked up");
    }

    #[test]
    fn a_header_cannot_forge_a_position() {
        let batch = message(None, Some(b"p"), &[]);
        let extractor = Extractor::new("orders", [], 16);
        let position = extractor.position(&batch.get(0).unwrap());
        // The bytes of the position token, sent as a header of any name the user might configure.
        let mut forged = 5i64.to_le_bytes().to_vec();
        forged.extend_from_slice(&1_000i64.to_le_bytes());
        forged.extend_from_slice(blake3::hash(b"p").as_bytes());
        let forging = message(None, None, &[("hapax:position", Some(&forged))]);
        let (_, keys) = {
            let mut keys = Vec::new();
            let reader = header("hapax:position");
            (
                Extractor::new("orders", [reader], 512).read(&forging.get(0).unwrap(), &mut keys),
                keys,
            )
        };
        assert_ne!(keys[0], position);
    }

    #[test]
    fn a_position_differs_by_timestamp_and_by_payload() {
        let extractor = Extractor::new("orders", [], 16);
        let at = |timestamp, payload: &[u8]| {
            let mut batch = BatchBuilder::new("orders".into(), 0, 1, 64);
            batch.push(Offset(17), Some(timestamp), None, Some(payload), []);
            extractor.position(&batch.finish().get(0).unwrap())
        };
        assert_eq!(at(1, b"a"), at(1, b"a"));
        assert_ne!(at(1, b"a"), at(2, b"a"));
        assert_ne!(at(1, b"a"), at(1, b"b"));
    }

    #[test]
    fn birth_is_read_from_the_header_and_from_uuid_v7() {
        let extractor = Extractor::new("orders", [header("idempotency-key")], 64);
        let birth = |headers: &[(&str, Option<&[u8]>)]| {
            extractor.birth_ms(&message(None, None, headers).get(0).unwrap())
        };
        assert_eq!(
            birth(&[("created", Some(b"1700000000123"))]),
            Some(1_700_000_000_123)
        );
        // 0x018bcfe5687b = 1_700_000_000_123
        let v7: &[u8] = b"018bcfe5-687b-7000-8000-000000000000";
        assert_eq!(birth(&[("idempotency-key", Some(v7))]), Some(1_700_000_000_123));
        for other in [
            &b"018bcfe5-687b-4000-8000-000000000000"[..],
            b"018bcfe5-687b-7000-c000-000000000000",
            b"008bcfe5-687b-7000-8000-000000000000",
        ] {
            assert_eq!(
                birth(&[("idempotency-key", Some(other))]),
                None,
                "another version, variant or age"
            );
        }
        assert_eq!(
            birth(&[(
                "idempotency-key",
                Some(b"018b\xffcfe5-687b-7000-8000-00000000000")
            )]),
            None
        );
    }

    #[test]
    fn child_tokens_differ_by_name_and_by_token() {
        let (a, b) = (TokenKey([1; 16]), TokenKey([2; 16]));
        assert_eq!(child(&a, "charge"), child(&a, "charge"));
        assert_ne!(child(&a, "charge"), child(&a, "refund"));
        assert_ne!(child(&a, "charge"), child(&b, "charge"));
    }
}
