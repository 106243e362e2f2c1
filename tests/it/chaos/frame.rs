//! Frames, decoded a second time from their layout alone (`docs/design.md`, "Frame bytes").
//!
//! A byte of version; 8 bytes that name the owner; 16 of the session; then as varints the group's number, the fence, the
//! next offset and the wall clock (zigzag); a byte that says whether a partition time follows, and it. Then entries to
//! the end: a byte of kind, the key where the kind has one, and a record, or the JSON of an operator's act, behind its length.

use crate::checker::record::{self, Closed, Open};
use crate::checker::token::Key;

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) owner: [u8; 8],
    pub(crate) session: [u8; 16],
    pub(crate) number: u64,
    pub(crate) fence: u64,
    pub(crate) next: i64,
    pub(crate) written_ms: i64,
    pub(crate) time_ms: Option<i64>,
    pub(crate) closed: Vec<(Key, Closed)>,
    pub(crate) removed: Vec<(Key, i64)>,
    pub(crate) opened: Vec<Open>,
    pub(crate) acts: Vec<Act>,
}

/// What an operator did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Act {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) act: String,
    pub(crate) reason: String,
    /// The whole, as it was written.
    pub(crate) text: String,
}

impl Act {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let all: serde_json::Value = serde_json::from_slice(text).ok()?;
        let word = |name| all.get(name)?.as_str().map(str::to_owned);
        Some(Self {
            topic: word("topic")?,
            partition: all.get("partition")?.as_i64()? as i32,
            offset: all.get("offset")?.as_i64()?,
            act: word("act")?,
            reason: word("reason")?,
            text: String::from_utf8(text.to_vec()).ok()?,
        })
    }
}

/// What the first bytes of every frame of that group and topic are.
pub(crate) fn owner(group: &str, topic: &str) -> [u8; 8] {
    let mut material = (group.len() as u64).to_le_bytes().to_vec();
    material.extend_from_slice(group.as_bytes());
    material.extend_from_slice(topic.as_bytes());
    let hash = blake3::derive_key("hapax 2026-11-25 changelog owner v1", &material);
    hash[..8].try_into().unwrap()
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or("cut short")?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N).map(|bytes| bytes.try_into().unwrap())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for place in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte % 128) << place;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("a number without an end".into())
    }

    fn signed(&mut self) -> Result<i64, String> {
        let number = self.number()?;
        let half = (number / 2) as i64;
        Ok(if number.is_multiple_of(2) { half } else { -half - 1 })
    }

    fn sized(&mut self) -> Result<&'a [u8], String> {
        let length = self.number()? as usize;
        self.take(length)
    }
}

/// # Errors
/// What is wrong with the bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Frame, String> {
    let mut cursor = Cursor(bytes);
    let version = cursor.byte()?;
    if version != 1 {
        return Err(format!("version {version}"));
    }
    let mut frame = Frame {
        owner: cursor.array()?,
        session: cursor.array()?,
        number: cursor.number()?,
        fence: cursor.number()?,
        next: cursor.signed()?,
        written_ms: cursor.signed()?,
        time_ms: match cursor.byte()? {
            0 => None,
            1 => Some(cursor.signed()?),
            other => return Err(format!("{other} where a partition time may follow")),
        },
        closed: Vec::new(),
        removed: Vec::new(),
        opened: Vec::new(),
        acts: Vec::new(),
    };
    // First seen is stored relative to this.
    let base_ms = frame.time_ms.unwrap_or(0);
    while !cursor.0.is_empty() {
        match cursor.byte()? {
            1 => {
                let key = cursor.array()?;
                frame.closed.push((key, record::closed(cursor.sized()?, base_ms)));
            }
            2 => {
                let key = cursor.array()?;
                let offset = Cursor(cursor.sized()?).signed()?;
                frame.removed.push((key, offset));
            }
            3 => frame.opened.push(record::open(cursor.sized()?)),
            4 => frame
                .acts
                .push(Act::parse(cursor.sized()?).ok_or("an act that is none")?),
            other => return Err(format!("an entry of kind {other}")),
        }
    }
    Ok(frame)
}

/// The bytes that the runtime's own test says it writes, so that both readings are of one format.
#[test]
fn a_frame_reads_as_its_layout_says() {
    let head = [&[1][..], &owner("billing", "orders"), &[7; 16]].concat();
    let hex = "ac020282897af691cda1c2680180b083c59868";
    let rest = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
    let mut bytes: Vec<u8> = head.into_iter().chain(rest).collect();
    let bare = decode(&bytes).unwrap();
    assert_eq!(
        (bare.number, bare.fence, bare.next, bare.written_ms, bare.time_ms),
        (300, 2, 1_000_001, 1_795_600_000_123, Some(1_790_000_000_000))
    );
    bytes.push(1);
    bytes.extend_from_slice(&[0xaa; 16]);
    bytes.extend_from_slice(&[8, 0x11, 0x0a, 2, 2, 1, 2, 5, 0]);
    bytes.push(2);
    bytes.extend_from_slice(&[0xbb; 16]);
    bytes.extend_from_slice(&[1, 8]);
    let frame = decode(&bytes).unwrap();
    let closed = Closed {
        end: record::End::Done,
        offset: 5,
        first_seen_ms: 1_790_000_000_001,
        attempts: 2,
    };
    assert_eq!(frame.closed, [([0xaa; 16], closed)]);
    assert_eq!(frame.removed, [([0xbb; 16], 4)]);
    assert!(decode(&bytes[..bytes.len() - 1]).is_err());
}
