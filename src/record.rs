//! Record format v1: how closed and open tokens look on disk, byte for byte (`docs/design.md`, "Record bytes").
//!
//! A record starts with a byte of version (high nibble) and state (low nibble). A newer version is refused, an
//! unknown optional field is skipped, and a retired tag is never reused: what this version writes, every later one
//! reads (`tests/fixtures/v1`).

use bytes::Bytes;

use crate::message::{Kept, Offset};
use crate::outcome::{Closed, End, Fingerprint, HeldFor, Open, Reason, Stage, Stored, Verdict};
use crate::output::{self, OUTCOME_VERSION};
use crate::token::TokenKey;

use wire::{Reader, put_varint, unzigzag, zigzag};

pub(crate) mod wire;

/// The format version that this code writes.
pub const VERSION: u8 = 1;

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Written by a later hapax. hapax read nothing of it. Run the version that wrote it, or a later one.
    #[error("record format version {0} is newer than {VERSION}")]
    Newer(u8),
    /// What is stored of an outcome that is still to be sent was written by a later hapax. hapax sent nothing of it. Run the
    /// version that wrote it, or a later one.
    #[error("outputs of outcome version {0} are newer than {OUTCOME_VERSION}")]
    NewerOutcome(u8),
    /// The bytes end in the middle of a field. hapax refuses the record. Restore the store from its disk.
    #[error("record is cut short")]
    Short,
    /// A field holds what no version of hapax writes. hapax refuses the record. Restore the store from its disk.
    #[error("record is malformed: {0}")]
    Malformed(&'static str),
}

mod state {
    pub(super) const DONE: u8 = 1;
    pub(super) const FAILED: u8 = 2;
    pub(super) const INVALIDATED: u8 = 3;
    pub(super) const FORGOTTEN: u8 = 4;
    /// Done at the first attempt, no reply, compared by the whole payload: nearly every record there is.
    pub(super) const PLAIN: u8 = 5;
    pub(super) const BEGUN: u8 = 8;
    pub(super) const HELD: u8 = 9;
    pub(super) const SETTLING: u8 = 10;
    /// Settling, with outputs that are still to be sent. A state of its own: whoever does not know it must not read the record
    /// without them.
    pub(super) const SETTLING_OUTPUTS: u8 = 11;
}

/// Optional fields: a tag, a length, that many bytes.
mod tag {
    pub(super) const WHOLE: u8 = 1;
    pub(super) const FIELDS: u8 = 2;
    /// Retired: a reply without its version. Read, and written no more.
    pub(super) const REPLY: u8 = 3;
    pub(super) const DIGEST: u8 = 4;
    pub(super) const REASON: u8 = 5;
    // 6 is kept for a trace id.
    pub(super) const KEYS: u8 = 7;
    pub(super) const NOT_APPLIED: u8 = 8;
    pub(super) const HELD_FOR: u8 = 9;
    pub(super) const VERDICT: u8 = 10;
    pub(super) const TIMESTAMP: u8 = 11;
    pub(super) const MESSAGE_KEY: u8 = 12;
    pub(super) const PAYLOAD: u8 = 13;
    pub(super) const HEADERS: u8 = 14;
    pub(super) const END: u8 = 15;
    pub(super) const ERROR: u8 = 16;
    pub(super) const DUE: u8 = 17;
    pub(super) const MAY_HAVE_APPLIED: u8 = 18;
    pub(super) const WHY: u8 = 19;
    /// A reply, behind its version.
    pub(super) const OUTCOME: u8 = 20;
    pub(super) const OUTPUTS: u8 = 21;
}

/// Why a message is held.
mod held {
    pub(super) const IN_DOUBT: u8 = 1;
    pub(super) const TOKEN: u8 = 2;
    pub(super) const RETRY: u8 = 3;
    pub(super) const KEY: u8 = 4;
}

fn put_field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_fingerprint(out: &mut Vec<u8>, fingerprint: Option<Fingerprint>) {
    match fingerprint {
        None => {}
        Some(Fingerprint::Whole(crc)) => put_field(out, tag::WHOLE, &crc.to_le_bytes()),
        Some(Fingerprint::Fields(hash)) => put_field(out, tag::FIELDS, &hash.to_le_bytes()),
    }
}

fn put_end(out: &mut Vec<u8>, end: &End) {
    match end {
        End::Done(Stored::Nothing) | End::Forgotten => {}
        End::Done(Stored::Reply(bytes)) => {
            put_field(out, tag::OUTCOME, &[&[OUTCOME_VERSION], bytes.as_ref()].concat());
        }
        End::Done(Stored::Later(field)) => put_field(out, tag::OUTCOME, field),
        End::Done(Stored::Digest(digest, len)) => {
            put_field(
                out,
                tag::DIGEST,
                &[digest.as_slice(), &len.to_le_bytes()].concat(),
            );
        }
        End::Failed(reason) => put_field(out, tag::REASON, &[*reason as u8]),
        End::Invalidated(why) if why.is_empty() => {}
        End::Invalidated(why) => put_field(out, tag::WHY, why.as_bytes()),
    }
}

const fn end_state(end: &End) -> u8 {
    match end {
        End::Done(_) => state::DONE,
        End::Failed(_) => state::FAILED,
        End::Invalidated(_) => state::INVALIDATED,
        End::Forgotten => state::FORGOTTEN,
    }
}

/// Writes a closed record. First seen is stored relative to `bucket_ms`, the start of its time bucket.
pub fn encode_closed(closed: &Closed, bucket_ms: i64, out: &mut Vec<u8>) {
    let plain = match closed {
        Closed {
            end: End::Done(Stored::Nothing),
            attempts: 1,
            fingerprint: Some(Fingerprint::Whole(crc)),
            ..
        } => Some(*crc),
        _ => None,
    };
    let state = if plain.is_some() {
        state::PLAIN
    } else {
        end_state(&closed.end)
    };
    out.push(VERSION << 4 | state);
    put_varint(out, zigzag(closed.offset.0));
    put_varint(out, zigzag(closed.first_seen_ms.wrapping_sub(bucket_ms)));
    if let Some(crc) = plain {
        out.extend_from_slice(&crc.to_le_bytes());
        return;
    }
    put_varint(out, u64::from(closed.attempts));
    put_fingerprint(out, closed.fingerprint);
    put_end(out, &closed.end);
}

/// Reads a closed record of the bucket that starts at `bucket_ms`.
///
/// # Errors
/// [`Error`] where the bytes are not a record of this version.
pub fn decode_closed(bytes: &[u8], bucket_ms: i64) -> Result<Closed, Error> {
    let mut reader = Reader::new(bytes);
    let state = reader.state()?;
    let offset = Offset(unzigzag(reader.varint()?));
    let first_seen_ms = unzigzag(reader.varint()?).wrapping_add(bucket_ms);
    if state == state::PLAIN {
        let crc = u16::from_le_bytes([reader.byte()?, reader.byte()?]);
        // What a later version adds is optional.
        reader.fields()?;
        return Ok(Closed {
            end: End::Done(Stored::Nothing),
            offset,
            first_seen_ms,
            attempts: 1,
            fingerprint: Some(Fingerprint::Whole(crc)),
        });
    }
    let attempts = reader.u32()?;
    let fields = reader.fields()?;
    Ok(Closed {
        end: fields.end(state)?,
        offset,
        first_seen_ms,
        attempts,
        fingerprint: fields.fingerprint()?,
    })
}

/// Writes an open record.
pub fn encode_open(open: &Open, out: &mut Vec<u8>) {
    out.push(
        VERSION << 4
            | match &open.stage {
                Stage::Begun { .. } => state::BEGUN,
                Stage::Held { .. } => state::HELD,
                Stage::Settling { outputs, .. } if outputs.is_empty() => state::SETTLING,
                Stage::Settling { .. } => state::SETTLING_OUTPUTS,
            },
    );
    put_varint(out, zigzag(open.offset.0));
    put_varint(out, zigzag(open.first_seen_ms));
    put_varint(out, u64::from(open.attempts));
    put_varint(out, zigzag(open.since_ms));
    put_field(
        out,
        tag::KEYS,
        &open.keys.iter().flat_map(|key| key.0).collect::<Vec<_>>(),
    );
    put_fingerprint(out, open.fingerprint);
    match &open.stage {
        Stage::Begun { not_applied, message } => {
            if *not_applied {
                put_field(out, tag::NOT_APPLIED, &[]);
            }
            if let Some(message) = message {
                put_message(out, message);
            }
        }
        Stage::Held {
            why,
            message,
            verdict,
        } => {
            put_held_for(out, *why);
            if let Some(verdict) = verdict {
                put_field(out, tag::VERDICT, &[*verdict as u8]);
            }
            put_message(out, message);
        }
        Stage::Settling {
            end,
            message,
            error,
            outputs,
        } => {
            put_field(out, tag::END, &[end_state(end)]);
            put_end(out, end);
            put_field(out, tag::ERROR, error.as_bytes());
            put_message(out, message);
            if !outputs.is_empty() {
                let mut field = Vec::new();
                output::encode(outputs, &mut field);
                put_field(out, tag::OUTPUTS, &field);
            }
        }
    }
}

/// Reads an open record.
///
/// # Errors
/// [`Error`] where the bytes are not a record of this version.
pub fn decode_open(bytes: &[u8]) -> Result<Open, Error> {
    let mut reader = Reader::new(bytes);
    let state = reader.state()?;
    let offset = Offset(unzigzag(reader.varint()?));
    let first_seen_ms = unzigzag(reader.varint()?);
    let attempts = reader.u32()?;
    let since_ms = unzigzag(reader.varint()?);
    let fields = reader.fields()?;
    let keys = fields.keys()?;
    let stage = match state {
        state::BEGUN => Stage::Begun {
            not_applied: fields.get(tag::NOT_APPLIED).is_some(),
            message: if fields.get(tag::HEADERS).is_some() {
                Some(fields.message()?)
            } else {
                None
            },
        },
        state::HELD => Stage::Held {
            why: fields.held_for()?,
            message: fields.message()?,
            verdict: match fields.get(tag::VERDICT) {
                None => None,
                Some(_) => Some(
                    Verdict::from_number(fields.byte(tag::VERDICT)?).ok_or(Error::Malformed("verdict"))?,
                ),
            },
        },
        state::SETTLING | state::SETTLING_OUTPUTS => Stage::Settling {
            end: fields.end(fields.byte(tag::END)?)?,
            message: fields.message()?,
            error: String::from_utf8_lossy(fields.get(tag::ERROR).unwrap_or_default()).into_owned(),
            outputs: match (state, fields.get(tag::OUTPUTS)) {
                (state::SETTLING, _) => Vec::new(),
                (_, outputs) => output::decode(outputs.ok_or(Error::Malformed("no outputs"))?)?,
            },
        },
        _ => return Err(Error::Malformed("not an open state")),
    };
    Ok(Open {
        keys,
        offset,
        stage,
        first_seen_ms,
        attempts,
        since_ms,
        fingerprint: fields.fingerprint()?,
    })
}

fn put_held_for(out: &mut Vec<u8>, why: HeldFor) {
    let number = match why {
        HeldFor::InDoubt => held::IN_DOUBT,
        HeldFor::Token => held::TOKEN,
        HeldFor::Retry { .. } => held::RETRY,
        HeldFor::Key => held::KEY,
    };
    put_field(out, tag::HELD_FOR, &[number]);
    if let HeldFor::Retry {
        due_ms,
        may_have_applied,
    } = why
    {
        put_field(out, tag::DUE, &due_ms.to_le_bytes());
        if may_have_applied {
            put_field(out, tag::MAY_HAVE_APPLIED, &[]);
        }
    }
}

fn put_message(out: &mut Vec<u8>, message: &Kept) {
    if let Some(timestamp) = message.timestamp_ms {
        put_field(out, tag::TIMESTAMP, &timestamp.to_le_bytes());
    }
    if let Some(key) = &message.key {
        put_field(out, tag::MESSAGE_KEY, key);
    }
    if let Some(payload) = &message.payload {
        put_field(out, tag::PAYLOAD, payload);
    }
    let mut headers = Vec::new();
    for (name, value) in &message.headers {
        put_varint(&mut headers, name.len() as u64);
        headers.extend_from_slice(name.as_bytes());
        put_nullable(&mut headers, value.as_deref());
    }
    put_field(out, tag::HEADERS, &headers);
}

/// 0 is null, so that the empty value stays apart from it.
pub(crate) fn put_nullable(out: &mut Vec<u8>, value: Option<&[u8]>) {
    put_varint(out, value.map_or(0, |value| value.len() as u64 + 1));
    out.extend_from_slice(value.unwrap_or_default());
}

impl<'a> Reader<'a> {
    fn state(&mut self) -> Result<u8, Error> {
        let byte = self.byte()?;
        match byte >> 4 {
            VERSION => Ok(byte & 0x0f),
            0 => Err(Error::Malformed("version 0")),
            newer => Err(Error::Newer(newer)),
        }
    }

    fn fields(&mut self) -> Result<Fields<'a>, Error> {
        let mut fields = Vec::new();
        while !self.is_at_end() {
            let tag = self.byte()?;
            let len = self.varint()?;
            fields.push((tag, self.take(len)?));
        }
        Ok(Fields(fields))
    }
}

struct Fields<'a>(Vec<(u8, &'a [u8])>);

impl<'a> Fields<'a> {
    fn get(&self, tag: u8) -> Option<&'a [u8]> {
        self.0
            .iter()
            .find(|(found, _)| *found == tag)
            .map(|(_, bytes)| *bytes)
    }

    fn array<const N: usize>(&self, tag: u8) -> Result<Option<[u8; N]>, Error> {
        match self.get(tag) {
            None => Ok(None),
            Some(bytes) => bytes
                .try_into()
                .map(Some)
                .map_err(|_| Error::Malformed("field of another length")),
        }
    }

    fn byte(&self, tag: u8) -> Result<u8, Error> {
        let [byte] = self.array::<1>(tag)?.ok_or(Error::Malformed("field missing"))?;
        Ok(byte)
    }

    fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        if let Some(crc) = self.array(tag::WHOLE)? {
            return Ok(Some(Fingerprint::Whole(u16::from_le_bytes(crc))));
        }
        Ok(self
            .array(tag::FIELDS)?
            .map(|hash| Fingerprint::Fields(u64::from_le_bytes(hash))))
    }

    fn end(&self, state: u8) -> Result<End, Error> {
        match state {
            state::DONE => Ok(End::Done(self.stored()?)),
            state::FAILED => {
                let reason = Reason::from_number(self.byte(tag::REASON)?);
                // A reason of a later minor version still failed: which one is only for people.
                Ok(End::Failed(reason.unwrap_or(Reason::Rejected)))
            }
            state::INVALIDATED => Ok(End::Invalidated(
                String::from_utf8_lossy(self.get(tag::WHY).unwrap_or_default()).into_owned(),
            )),
            state::FORGOTTEN => Ok(End::Forgotten),
            _ => Err(Error::Malformed("not a closed state")),
        }
    }

    fn held_for(&self) -> Result<HeldFor, Error> {
        match self.byte(tag::HELD_FOR)? {
            held::IN_DOUBT => Ok(HeldFor::InDoubt),
            held::TOKEN => Ok(HeldFor::Token),
            held::RETRY => Ok(HeldFor::Retry {
                due_ms: self
                    .array(tag::DUE)?
                    .map(i64::from_le_bytes)
                    .ok_or(Error::Malformed("held until when"))?,
                may_have_applied: self.get(tag::MAY_HAVE_APPLIED).is_some(),
            }),
            held::KEY => Ok(HeldFor::Key),
            _ => Err(Error::Malformed("held for what")),
        }
    }

    fn stored(&self) -> Result<Stored, Error> {
        match self.get(tag::OUTCOME).map(<[u8]>::split_first) {
            Some(Some((&OUTCOME_VERSION, reply))) => {
                return Ok(Stored::Reply(Bytes::copy_from_slice(reply)));
            }
            Some(None | Some((0, _))) => return Err(Error::Malformed("outcome version")),
            // What it means only a later version knows: it is kept as it is.
            Some(Some(_)) => {
                let field = self.get(tag::OUTCOME).unwrap_or_default();
                return Ok(Stored::Later(Bytes::copy_from_slice(field)));
            }
            None => {}
        }
        if let Some(reply) = self.get(tag::REPLY) {
            return Ok(Stored::Reply(Bytes::copy_from_slice(reply)));
        }
        let Some(bytes) = self.array::<40>(tag::DIGEST)? else {
            return Ok(Stored::Nothing);
        };
        let (digest, len) = bytes.split_first_chunk::<32>().ok_or(Error::Short)?;
        let len = len.try_into().map_err(|_| Error::Short)?;
        Ok(Stored::Digest(*digest, u64::from_le_bytes(len)))
    }

    fn keys(&self) -> Result<Vec<TokenKey>, Error> {
        let bytes = self.get(tag::KEYS).ok_or(Error::Malformed("no token key"))?;
        let (keys, rest) = bytes.as_chunks::<16>();
        if keys.is_empty() || !rest.is_empty() {
            return Err(Error::Malformed("token keys of another length"));
        }
        Ok(keys.iter().map(|key| TokenKey(*key)).collect())
    }

    fn message(&self) -> Result<Kept, Error> {
        let mut reader = Reader::new(self.get(tag::HEADERS).ok_or(Error::Malformed("no message"))?);
        let mut headers = Vec::new();
        while !reader.is_at_end() {
            let len = reader.varint()?;
            let name = std::str::from_utf8(reader.take(len)?)
                .map_err(|_| Error::Malformed("header name"))?
                .to_owned();
            let value = match reader.varint()? {
                0 => None,
                len => Some(Bytes::copy_from_slice(reader.take(len - 1)?)),
            };
            headers.push((name, value));
        }
        Ok(Kept {
            timestamp_ms: self.array(tag::TIMESTAMP)?.map(i64::from_le_bytes),
            key: self.get(tag::MESSAGE_KEY).map(Bytes::copy_from_slice),
            payload: self.get(tag::PAYLOAD).map(Bytes::copy_from_slice),
            headers,
        })
    }
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests;
