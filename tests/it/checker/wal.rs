//! The write-ahead log of a life that was killed: every outcome that was recorded, also one that a later one has
//! replaced. What the families hold shows only the last.
//!
//! The log is read from its files: blocks of 32 KiB, fragments with a header of checksum, length and type, and in the
//! batches that they add up to, the entries with a key of the length that only closed records have.

use std::path::Path;

use super::record::{self, Closed};
use super::token::Key;

const BLOCK: usize = 32 << 10;
/// Partition and token.
const CLOSED_KEY: usize = 20;

/// A closed record as it was written. Its first seen is left relative to its bucket, which the log names by number only.
pub(crate) type Recorded = ((i32, Key), Closed);

/// Every closed record that was written to the logs in `dir`, in their order.
pub(crate) fn recorded(dir: &Path) -> Vec<Recorded> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut logs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    let batches = logs.iter().flat_map(|log| batches(&std::fs::read(log).unwrap()));
    batches.flat_map(|batch| outcomes(&batch)).collect()
}

/// The whole batches of a log. What a kill has cut short at the end was told to nobody.
fn batches(log: &[u8]) -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    let mut parts: Vec<u8> = Vec::new();
    for block in log.chunks(BLOCK) {
        let mut rest = block;
        while let Some((header, after)) = rest.split_first_chunk::<7>() {
            let [_, _, _, _, low, high, kind] = *header;
            let length = usize::from(u16::from_le_bytes([low, high]));
            // The recyclable kinds carry the number of their log as well.
            let (kind, skipped) = if (5..=8).contains(&kind) {
                (kind - 4, 4)
            } else {
                (kind, 0)
            };
            let Some(data) = after.get(skipped..skipped + length) else {
                return whole;
            };
            match kind {
                1 => whole.push(data.to_vec()),
                2 => parts = data.to_vec(),
                3 => parts.extend_from_slice(data),
                4 => {
                    parts.extend_from_slice(data);
                    whole.push(std::mem::take(&mut parts));
                }
                // Zeroes to the end of the block, or something about the log itself.
                0 => break,
                _ => {}
            }
            rest = &after[skipped + length..];
        }
    }
    whole
}

/// The closed records of a batch: after its sequence number and count, entries of a tag, a family, a key and a value.
fn outcomes(batch: &[u8]) -> Vec<Recorded> {
    let mut rest = batch.get(12..).unwrap_or_default();
    let mut found = Vec::new();
    while let Some((tag, after)) = rest.split_first() {
        rest = after;
        let (has_family, has_key, has_value) = match tag {
            0 => (false, true, false),
            1 => (false, true, true),
            4 => (true, true, false),
            5 => (true, true, true),
            // A note in the log, and nothing at all.
            3 => (false, true, false),
            13 => (false, false, false),
            other => panic!("an entry with tag {other} in a batch of {} bytes", batch.len()),
        };
        if has_family {
            let _ = number(&mut rest);
        }
        let key = if has_key { text(&mut rest) } else { &[] };
        let value = if has_value { text(&mut rest) } else { &[] };
        if key.len() == CLOSED_KEY && has_value {
            let (partition, token) = key.split_at(4);
            let partition = i32::from_be_bytes(partition.try_into().unwrap());
            found.push(((partition, token.try_into().unwrap()), record::closed(value, 0)));
        }
    }
    found
}

fn number(rest: &mut &[u8]) -> usize {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, after) = rest.split_first().unwrap();
        *rest = after;
        value |= usize::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            break;
        }
    }
    value
}

fn text<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = number(rest);
    let (bytes, after) = rest.split_at(length);
    *rest = after;
    bytes
}

#[test]
fn a_batch_in_fragments_is_read_whole() {
    let mut batch = vec![0; 12];
    batch.extend_from_slice(&[5, 3, CLOSED_KEY as u8, 0, 0, 0, 2]);
    batch.extend_from_slice(&[9; 16]);
    batch.extend_from_slice(&[4, 0x11, 10, 0, 1]);
    // Deleted, which is no outcome.
    batch.extend_from_slice(&[4, 2, 1, 7]);
    let fragment = |kind: u8, data: &[u8]| [&[0, 0, 0, 0, data.len() as u8, 0, kind], data].concat();
    let (first, last) = batch.split_at(20);
    let log = [
        fragment(2, first),
        fragment(4, last),
        fragment(1, &batch),
        vec![1, 2, 3],
    ]
    .concat();
    let read: Vec<_> = batches(&log).iter().flat_map(|batch| outcomes(batch)).collect();
    let expected = Closed {
        end: record::End::Done,
        offset: 5,
        first_seen_ms: 0,
        attempts: 1,
    };
    assert_eq!(read, [((2, [9; 16]), expected), ((2, [9; 16]), expected)]);
}
