//! Record format v1, decoded a second time, from the layout alone.
//!
//! A byte of version (high nibble) and state (low nibble), then varints, then fields of tag, length and bytes. A test's
//! evidence is never malformed: where it is, this panics with what it found.

use super::token::Key;

/// How a token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    /// With the number of its reason.
    Failed(u8),
    Invalidated,
    Forgotten,
}

/// The number of the reason `operator`.
pub(crate) const BY_OPERATOR: u8 = 12;

/// A closed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) end: End,
    pub(crate) offset: i64,
    pub(crate) first_seen_ms: i64,
    pub(crate) attempts: u64,
}

/// What an open record is open for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Begun,
    Held,
    Settling,
}

/// An open record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) stage: Stage,
    pub(crate) keys: Vec<Key>,
    pub(crate) offset: i64,
    pub(crate) attempts: u64,
    /// The kept payload, of held and settling ones, and of one that was begun again after it was held.
    pub(crate) payload: Option<Vec<u8>>,
}

impl Open {
    /// Whether its message is in the record, whatever Kafka delivers: held, or begun again from there.
    pub(crate) const fn is_kept(&self) -> bool {
        match self.stage {
            Stage::Held => true,
            Stage::Begun => self.payload.is_some(),
            Stage::Settling => false,
        }
    }
}

/// Done at the first attempt, with no reply and a fingerprint of the whole: the short form.
const PLAIN: u8 = 5;
const KEYS: u8 = 7;
const REASON: u8 = 5;
const PAYLOAD: u8 = 13;

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> u8 {
        let byte = self.0[0];
        self.0 = &self.0[1..];
        byte
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    fn number(&mut self) -> u64 {
        let mut value = 0;
        let mut place = 0;
        loop {
            let byte = self.byte();
            value |= u64::from(byte % 128) << place;
            if byte < 128 {
                return value;
            }
            place += 7;
        }
    }

    /// Zigzag: 0, -1, 1, -2, 2 and so on.
    fn signed(&mut self) -> i64 {
        let number = self.number();
        let half = (number / 2) as i64;
        if number.is_multiple_of(2) { half } else { -half - 1 }
    }

    fn state(&mut self) -> u8 {
        let byte = self.byte();
        assert_eq!(byte / 16, 1, "a record of format version {}", byte / 16);
        byte % 16
    }

    fn fields(mut self) -> Vec<(u8, &'a [u8])> {
        let mut fields = Vec::new();
        while !self.0.is_empty() {
            let tag = self.byte();
            let length = self.number() as usize;
            let (bytes, rest) = self.0.split_at(length);
            fields.push((tag, bytes));
            self.0 = rest;
        }
        fields
    }
}

fn field<'a>(fields: &[(u8, &'a [u8])], tag: u8) -> Option<&'a [u8]> {
    fields
        .iter()
        .find(|(found, _)| *found == tag)
        .map(|(_, bytes)| *bytes)
}

/// A closed record of the bucket that starts at `bucket_ms`.
pub(crate) fn closed(bytes: &[u8], bucket_ms: i64) -> Closed {
    let mut cursor = Cursor(bytes);
    let state = cursor.state();
    let offset = cursor.signed();
    let first_seen_ms = cursor.signed() + bucket_ms;
    if state == PLAIN {
        let _fingerprint = [cursor.byte(), cursor.byte()];
        let _later = cursor.fields();
        return Closed {
            end: End::Done,
            offset,
            first_seen_ms,
            attempts: 1,
        };
    }
    let attempts = cursor.number();
    let fields = cursor.fields();
    let end = match state {
        1 => End::Done,
        2 => End::Failed(field(&fields, REASON).expect("a failure without a reason")[0]),
        3 => End::Invalidated,
        4 => End::Forgotten,
        other => panic!("state {other} is not closed"),
    };
    Closed {
        end,
        offset,
        first_seen_ms,
        attempts,
    }
}

/// An open record.
pub(crate) fn open(bytes: &[u8]) -> Open {
    let mut cursor = Cursor(bytes);
    let stage = match cursor.state() {
        8 => Stage::Begun,
        9 => Stage::Held,
        10 | 11 => Stage::Settling,
        other => panic!("state {other} is not open"),
    };
    let offset = cursor.signed();
    let _first_seen_ms = cursor.signed();
    let attempts = cursor.number();
    let _since_ms = cursor.signed();
    let fields = cursor.fields();
    let keys = field(&fields, KEYS).expect("an open record without a key");
    assert_eq!(keys.len() % 16, 0, "{} bytes of keys", keys.len());
    Open {
        stage,
        keys: keys.chunks(16).map(|key| key.try_into().unwrap()).collect(),
        offset,
        attempts,
        payload: field(&fields, PAYLOAD).map(<[u8]>::to_vec),
    }
}

#[test]
fn a_done_record_reads_as_its_layout_says() {
    // Version 1, done; offset 3; first seen 10 ms into the bucket; 1 attempt; a fingerprint of 2 bytes.
    let long = [0x11, 6, 20, 1, 1, 2, 9, 9];
    let short = [0x15, 6, 20, 9, 9];
    let expected = Closed {
        end: End::Done,
        offset: 3,
        first_seen_ms: 1_010,
        attempts: 1,
    };
    assert_eq!(closed(&long, 1_000), expected);
    assert_eq!(closed(&short, 1_000), expected);
}

#[test]
fn numbers_past_a_byte_and_below_zero_are_read() {
    assert_eq!(Cursor(&[0x80, 0x01]).number(), 128);
    assert_eq!(Cursor(&[0xff, 0xff, 0x03]).number(), 65_535);
    assert_eq!([0, 1, 2, 3].map(|byte| Cursor(&[byte]).signed()), [0, -1, 1, -2]);
}
