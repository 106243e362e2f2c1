//! Whether a trace keeps the order: record written, log synced, then the commit leaves; begun written, log synced, then
//! the handler begins.

use std::collections::BTreeMap;

use super::trace::Call;
use crate::checker::{self, Evidence, Kind, Line, Message};

/// What a trace was judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// Offsets in OffsetCommit requests.
    pub(super) commits: usize,
    /// Messages below them, counted for each.
    pub(super) messages: usize,
    /// Begins of guarded handlers.
    pub(super) begins: usize,
}

/// The first byte of a record: version 1, and a state.
const DONE: u8 = 0x11;
const FAILED: u8 = 0x12;
/// Done, in the short form.
const PLAIN: u8 = 0x15;
const BEGUN: u8 = 0x18;
const HELD: u8 = 0x19;

/// One block of RocksDB's log: within it a batch lies in one piece.
const BLOCK: usize = 32 << 10;

/// The bytes of a log, and for each write how far they went and when it had returned.
type Log = (Vec<u8>, Vec<(usize, usize)>);

/// The write-ahead logs as they were written: their bytes, and when each was there and synced.
struct Logs<'a> {
    files: BTreeMap<&'a str, Log>,
    calls: &'a [Call],
}

impl<'a> Logs<'a> {
    fn read(calls: &'a [Call]) -> Result<Self, String> {
        let mut files: BTreeMap<&str, Log> = BTreeMap::new();
        for call in calls {
            if call.target.ends_with(".log") && !call.bytes.is_empty() {
                let (bytes, ends) = files.entry(&call.target).or_default();
                bytes.extend_from_slice(&call.bytes);
                ends.push((bytes.len(), call.end));
            }
        }
        match files.iter().find(|(_, (bytes, _))| bytes.len() > BLOCK) {
            Some((name, (bytes, _))) => Err(format!("{name} has {} bytes, more than one block", bytes.len())),
            None => Ok(Self { files, calls }),
        }
    }

    /// Whether a record with this key and one of these states was synced before that moment.
    fn is_synced(&self, key: &[u8], states: &[u8], before: usize) -> bool {
        // A key in a batch: its length, its bytes; then the value's length as a varint, and the value.
        let mut needle = vec![key.len() as u8];
        needle.extend_from_slice(key);
        self.files.iter().any(|(name, (bytes, ends))| {
            let places = bytes.windows(needle.len()).enumerate();
            let found = places
                .filter(|(_, window)| *window == needle)
                .filter_map(|(place, _)| {
                    let value = &bytes[place + needle.len()..];
                    let length = value.iter().take_while(|byte| **byte >= 0x80).count() + 1;
                    states
                        .contains(value.get(length)?)
                        .then_some(place + needle.len() + length)
                });
            found.into_iter().any(|place| {
                let written = ends
                    .iter()
                    .find(|(end, _)| *end > place)
                    .map(|(_, written)| *written);
                written.is_some_and(|written| {
                    let mut syncs = self
                        .calls
                        .iter()
                        .filter(|call| call.is_sync() && call.target == **name);
                    syncs.any(|sync| sync.start > written && sync.end < before)
                })
            })
        })
    }
}

/// The one topic of a store has number 0.
fn open_key(message: &Message, name: &[u8; 16]) -> Vec<u8> {
    let mut key = vec![0, 0];
    key.extend_from_slice(&message.partition.to_be_bytes());
    key.extend_from_slice(name);
    key.extend_from_slice(&(message.offset as u64 ^ 1 << 63).to_be_bytes());
    key
}

fn closed_key(message: &Message, name: &[u8; 16]) -> Vec<u8> {
    [&message.partition.to_be_bytes()[..], name].concat()
}

/// Judges a trace by what the run has left.
pub(super) fn judge(calls: &[Call], evidence: &Evidence) -> Result<Seen, String> {
    let logs = Logs::read(calls)?;
    let topic = &evidence.terms.topic;
    let mut seen = Seen::default();
    for (start, partition, offset) in commits(calls, topic) {
        seen.commits += 1;
        let below = |message: &&Message| message.partition == partition && message.offset < offset;
        for message in evidence.input.iter().filter(below) {
            seen.messages += 1;
            let is_recorded = checker::names(topic, message).iter().any(|name| {
                logs.is_synced(&closed_key(message, name), &[DONE, FAILED, PLAIN], start)
                    || logs.is_synced(&open_key(message, name), &[HELD], start)
            });
            if !is_recorded {
                return Err(format!(
                    "line {start}: {partition}/{offset} is committed, and the record of {} was not synced before",
                    message.offset
                ));
            }
        }
    }
    if evidence.terms.class == checker::Class::Idempotent {
        return Ok(seen);
    }
    let by_place: BTreeMap<_, _> = evidence.input.iter().map(|m| (m.place(), m)).collect();
    for call in calls {
        let text = String::from_utf8_lossy(&call.bytes);
        let Some(line) = Line::parse(text.trim_end()).filter(|line| line.kind == Kind::Begin) else {
            continue;
        };
        seen.begins += 1;
        let message = by_place[&line.place()];
        let mut names = checker::names(topic, message).into_iter();
        if !names.any(|name| logs.is_synced(&open_key(message, &name), &[BEGUN], call.start)) {
            return Err(format!(
                "line {}: it began, and its begin was not synced: {line}",
                call.start
            ));
        }
    }
    Ok(seen)
}

/// Every committed offset of the group: when its request left, partition, offset.
fn commits(calls: &[Call], group: &str) -> Vec<(usize, i32, i64)> {
    // A request may leave in pieces, each socket its own stream.
    let mut streams: BTreeMap<&str, (usize, Vec<u8>)> = BTreeMap::new();
    let mut found = Vec::new();
    for call in calls
        .iter()
        .filter(|call| call.name.starts_with("send") && !call.bytes.is_empty())
    {
        let (start, bytes) = streams.entry(&call.target).or_default();
        if bytes.is_empty() {
            *start = call.start;
        }
        bytes.extend_from_slice(&call.bytes);
        while let Some((size, _)) = bytes.split_first_chunk::<4>() {
            let length = 4 + u32::from_be_bytes(*size) as usize;
            if bytes.len() < length {
                break;
            }
            let request: Vec<u8> = bytes.drain(..length).skip(4).collect();
            found.extend(
                offset_commit(&request, group)
                    .into_iter()
                    .map(|(p, o)| (*start, p, o)),
            );
            *start = call.start;
        }
    }
    found
}

const OFFSET_COMMIT: i16 = 8;
/// From this version on lengths are varints, and tagged fields may follow.
const FLEXIBLE: i16 = 8;

/// A Kafka request, read from the front.
struct Request<'a> {
    rest: &'a [u8],
    flexible: bool,
}

impl<'a> Request<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        bytes
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    fn varint(&mut self) -> usize {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = self.take(1)[0];
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    /// Also for null, as the empty text.
    fn text(&mut self) -> String {
        let length = if self.flexible {
            self.varint().saturating_sub(1)
        } else {
            usize::try_from(self.i16()).unwrap_or(0)
        };
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn count(&mut self) -> usize {
        if self.flexible {
            self.varint().saturating_sub(1)
        } else {
            self.i32() as usize
        }
    }

    fn tags(&mut self) {
        if self.flexible {
            for _ in 0..self.varint() {
                let _ = self.varint();
                let length = self.varint();
                self.take(length);
            }
        }
    }
}

/// Partitions and offsets of an OffsetCommit request of that group (Kafka protocol, versions 2 to 9); of another one none.
fn offset_commit(request: &[u8], group: &str) -> Vec<(i32, i64)> {
    let mut request = Request {
        rest: request,
        flexible: false,
    };
    if request.rest.len() < 8 || request.i16() != OFFSET_COMMIT {
        return Vec::new();
    }
    let version = request.i16();
    assert!((2..=9).contains(&version), "OffsetCommit of version {version}");
    let _correlation = request.i32();
    let _client = request.text();
    request.flexible = version >= FLEXIBLE;
    request.tags();
    if request.text() != group {
        return Vec::new();
    }
    let _generation = request.i32();
    let _member = request.text();
    if version >= 7 {
        let _instance = request.text();
    }
    if version <= 4 {
        let _retention = request.i64();
    }
    let mut offsets = Vec::new();
    for _ in 0..request.count() {
        let _topic = request.text();
        for _ in 0..request.count() {
            let partition = request.i32();
            offsets.push((partition, request.i64()));
            if version >= 6 {
                let _leader_epoch = request.i32();
            }
            let _metadata = request.text();
            request.tags();
        }
        request.tags();
    }
    offsets
}

/// Traces of one message, in the right order and in wrong ones.
mod planted {
    use super::super::trace::parse;
    use super::*;
    use crate::checker::{Class, Terms};

    const LOG: &str = "/s/000004.log";

    fn evidence() -> Evidence {
        let token = ("idempotency-key".to_owned(), Some(b"t".to_vec()));
        let message = Message {
            partition: 2,
            offset: 5,
            timestamp_ms: Some(1),
            key: None,
            payload: Some(b"p".to_vec()),
            headers: vec![token],
        };
        Evidence {
            terms: Terms {
                topic: "orders".to_owned(),
                class: Class::NonIdempotent,
                slots: 1,
                ahead: 0,
                by_key: false,
                in_place: 5,
                attempts_max: 5,
                moves: false,
                cold: false,
            },
            input: vec![message],
            letters: Vec::new(),
            effects: Vec::new(),
            lives: Vec::new(),
            others: Vec::new(),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    fn line(name: &str, target: &str, bytes: &[u8]) -> String {
        let (target, length) = (hex(target.as_bytes()), bytes.len());
        format!("7 {name}(5<{target}>, \"{}\", {length}) = {length}", hex(bytes))
    }

    fn sync(target: &str) -> String {
        format!("7 fdatasync(5<{}>) = 0", hex(target.as_bytes()))
    }

    /// The record as it lies in a batch, after something else.
    fn record(key: &[u8], state: u8) -> String {
        let bytes = [b"before", &[key.len() as u8][..], key, &[1, state]].concat();
        line("write", LOG, &bytes)
    }

    fn done() -> String {
        let evidence = evidence();
        let [name, _] = checker::names("orders", &evidence.input[0]);
        record(&closed_key(&evidence.input[0], &name), DONE)
    }

    fn begun() -> String {
        let evidence = evidence();
        let [name, _] = checker::names("orders", &evidence.input[0]);
        record(&open_key(&evidence.input[0], &name), BEGUN)
    }

    fn begins() -> String {
        line("write", "/effects", b"1 orders 2 5 t 1 begin c\n")
    }

    /// An OffsetCommit of version 9 for partition 2 at offset 6.
    fn request() -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&8i16.to_be_bytes());
        body.extend_from_slice(&9i16.to_be_bytes());
        body.extend_from_slice(&77i32.to_be_bytes());
        body.extend_from_slice(&2i16.to_be_bytes());
        body.extend_from_slice(b"me");
        body.push(0);
        body.extend_from_slice(b"\x07orders");
        body.extend_from_slice(&3i32.to_be_bytes());
        body.extend_from_slice(b"\x03id\x00");
        body.extend_from_slice(b"\x02\x07orders\x02");
        body.extend_from_slice(&2i32.to_be_bytes());
        body.extend_from_slice(&6i64.to_be_bytes());
        body.extend_from_slice(&(-1i32).to_be_bytes());
        body.extend_from_slice(b"\x05mark\x00\x00\x00");
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    }

    fn commit() -> String {
        line("sendmsg", "socket:[3]", &request())
    }

    fn judged(lines: &[String]) -> Result<Seen, String> {
        judge(&parse(&lines.join("\n")), &evidence())
    }

    #[test]
    fn written_synced_committed_is_the_order() {
        let seen = Seen {
            commits: 1,
            messages: 1,
            begins: 0,
        };
        assert_eq!(judged(&[done(), sync(LOG), commit()]), Ok(seen));
    }

    #[test]
    fn a_commit_before_the_sync_is_found() {
        assert!(judged(&[done(), commit(), sync(LOG)]).is_err());
        assert!(judged(&[done(), commit()]).is_err());
        assert!(
            judged(&[sync(LOG), done(), commit()]).is_err(),
            "synced before it was written"
        );
        assert!(
            judged(&[done(), sync("/s/LOG"), commit()]).is_err(),
            "another file was synced"
        );
        assert!(judged(&[sync(LOG), commit()]).is_err(), "no record");
        assert!(judged(&[begun(), sync(LOG), commit()]).is_err(), "only begun");
    }

    #[test]
    fn a_sync_that_has_not_returned_or_failed_is_none() {
        let log = hex(LOG.as_bytes());
        let started = format!("7 fdatasync(5<{log}> <unfinished ...>");
        let returned = "7 <... fdatasync resumed>) = 0".to_owned();
        let failed = format!("7 fdatasync(5<{log}>) = -1 EIO (Input/output error)");
        let other = commit().replacen('7', "8", 1);
        assert!(judged(&[done(), started.clone(), returned.clone(), other.clone()]).is_ok());
        assert!(judged(&[done(), started.clone(), other.clone(), returned.clone()]).is_err());
        assert!(judged(&[started, done().replacen('7', "8", 1), returned, other.clone()]).is_err());
        assert!(judged(&[done(), failed, other]).is_err());
    }

    #[test]
    fn a_handler_that_begins_before_its_begun_is_synced_is_found() {
        assert!(judged(&[begun(), sync(LOG), begins()]).is_ok_and(|seen| seen.begins == 1));
        assert!(judged(&[begun(), begins(), sync(LOG)]).is_err());
        assert!(judged(&[done(), sync(LOG), begins()]).is_err());
    }

    #[test]
    fn a_request_in_two_pieces_leaves_with_the_first() {
        let request = request();
        let (first, rest) = request.split_at(9);
        let [first, rest] = [first, rest].map(|piece| line("sendmsg", "socket:[3]", piece));
        let sync = sync(LOG);
        assert!(judged(&[done(), sync.clone(), first.clone(), rest.clone()]).is_ok());
        assert!(judged(&[done(), first, sync, rest]).is_err());
    }
}
