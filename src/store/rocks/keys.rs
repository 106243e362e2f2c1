//! Names and keys on disk: what is filed where, byte for byte.
//!
//! Numbers are big-endian, so that the order of the bytes is the order of the numbers. The keys of `meta` are words
//! that a person can read with RocksDB's own tools.

use crate::message::Offset;
use crate::store::bucket::Bucket;
use crate::store::{PartitionId, TopicId};
use crate::token::TokenKey;

/// Identity, positions, fences.
pub(super) const META: &str = "meta";
/// Open records of all partitions, with their bytes.
pub(super) const OPEN: &str = "open";
/// Acts of operators.
pub(super) const AUDIT: &str = "audit";

pub(super) const FORMAT: &str = "format";
pub(super) const STORE_ID: &str = "store-id";
pub(super) const GROUP: &str = "group";
pub(super) const CLUSTER: &str = "cluster";
/// Present from a start to its clean end.
pub(super) const RUNNING: &str = "running";
pub(super) const UNCLEAN: &str = "unclean";
pub(super) const TOPIC: &str = "topic/";
pub(super) const POSITION: &str = "position/";
pub(super) const CHANGELOG: &str = "changelog/";
/// The durability mode. Absent in stores that are older than the second one, which are local.
pub(super) const DURABILITY: &str = "durability";
/// How many partitions a topic had when it was last asked about.
pub(super) const PARTITIONS: &str = "partitions/";

/// The family of one bucket. Both its ends are in the name, so that a store opened with another window length still
/// knows what lies where.
pub(super) fn bucket(topic: TopicId, bucket: Bucket) -> String {
    format!("w/{}/{}/{}", topic.0, bucket.start_ms, bucket.end_ms)
}

/// What a family of closed records holds, `None` for one of another name.
pub(super) fn parse_bucket(name: &str) -> Option<(TopicId, Bucket)> {
    let mut parts = name.strip_prefix("w/")?.split('/');
    let topic = TopicId(parts.next()?.parse().ok()?);
    let bucket = Bucket {
        start_ms: parts.next()?.parse().ok()?,
        end_ms: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some((topic, bucket))
}

pub(super) fn topic(topic: TopicId) -> String {
    format!("{TOPIC}{}", topic.0)
}

pub(super) fn partitions(topic: TopicId) -> String {
    format!("{PARTITIONS}{}", topic.0)
}

pub(super) fn position(partition: PartitionId) -> String {
    format!("{POSITION}{}/{}", partition.topic.0, partition.partition)
}

pub(super) fn fence(partition: PartitionId) -> String {
    format!("fence/{}/{}", partition.topic.0, partition.partition)
}

/// The changelog's next offset.
pub(super) fn changelog(partition: PartitionId) -> String {
    format!("{CHANGELOG}{}/{}", partition.topic.0, partition.partition)
}

/// The partition of a key in `meta` that begins so.
pub(super) fn parse_partition(key: &[u8], prefix: &str) -> Option<PartitionId> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    let (topic, partition) = rest.split_once('/')?;
    Some(PartitionId {
        topic: TopicId(topic.parse().ok()?),
        partition: partition.parse().ok()?,
    })
}

/// A closed record, within the family of its topic and bucket.
pub(super) type ClosedKey = [u8; 20];

pub(super) fn closed(partition: i32, token: &TokenKey) -> ClosedKey {
    let mut key = [0; 20];
    let (head, tail) = key.split_at_mut(4);
    head.copy_from_slice(&partition.to_be_bytes());
    tail.copy_from_slice(&token.0);
    key
}

/// All closed records of one partition, in any one bucket: from the first to beyond the last.
pub(super) fn closed_range(partition: i32) -> ([u8; 4], [u8; 21]) {
    let mut end = [u8::MAX; 21];
    let (prefix, _) = end.split_at_mut(4);
    prefix.copy_from_slice(&partition.to_be_bytes());
    (partition.to_be_bytes(), end)
}

/// The open records of one partition.
pub(super) type OpenPrefix = [u8; 6];

pub(super) fn open_prefix(partition: PartitionId) -> OpenPrefix {
    let mut key = [0; 6];
    let (topic, number) = key.split_at_mut(2);
    topic.copy_from_slice(&partition.topic.0.to_be_bytes());
    number.copy_from_slice(&partition.partition.to_be_bytes());
    key
}

/// One open record.
pub(super) fn open(partition: PartitionId, first: &TokenKey, offset: Offset) -> [u8; 30] {
    let mut key = [0; 30];
    let (prefix, rest) = key.split_at_mut(6);
    let (token, number) = rest.split_at_mut(16);
    prefix.copy_from_slice(&open_prefix(partition));
    token.copy_from_slice(&first.0);
    // With the sign flipped negative offsets come first.
    number.copy_from_slice(&(offset.0 as u64 ^ 1 << 63).to_be_bytes());
    key
}

/// After every open record of one partition, before those of the next.
pub(super) fn open_end(partition: PartitionId) -> [u8; 31] {
    let mut key = [u8::MAX; 31];
    let (prefix, _) = key.split_at_mut(6);
    prefix.copy_from_slice(&open_prefix(partition));
    key
}

/// The partition of an open record's key.
pub(super) fn parse_open(key: &[u8]) -> Option<PartitionId> {
    let (topic, rest) = key.split_first_chunk::<2>()?;
    let (partition, _) = rest.split_first_chunk::<4>()?;
    Some(PartitionId {
        topic: TopicId(u16::from_be_bytes(*topic)),
        partition: i32::from_be_bytes(*partition),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS_3: PartitionId = PartitionId {
        topic: TopicId(258),
        partition: 3,
    };

    #[test]
    fn a_bucket_is_known_by_its_name() {
        let of = Bucket {
            start_ms: -500,
            end_ms: 250,
        };
        let name = bucket(TopicId(7), of);
        assert_eq!(name, "w/7/-500/250");
        assert_eq!(parse_bucket(&name), Some((TopicId(7), of)));
        for other in ["meta", "w/7/0", "w/7/0/1/2", "w/70000/0/1", "w/x/0/1", "w/7/0/"] {
            assert_eq!(parse_bucket(other), None, "{other}");
        }
    }

    #[test]
    fn keys_read_back_as_the_partition_they_were_made_for() {
        let key = open(ORDERS_3, &TokenKey([9; 16]), Offset(1));
        assert_eq!(parse_open(&key), Some(ORDERS_3));
        assert!(key.starts_with(&open_prefix(ORDERS_3)));
        let last = open(ORDERS_3, &TokenKey([u8::MAX; 16]), Offset(i64::MAX));
        assert!(last[..] < open_end(ORDERS_3)[..]);
        assert_eq!(
            parse_partition(position(ORDERS_3).as_bytes(), POSITION),
            Some(ORDERS_3)
        );
        assert_eq!(parse_partition(b"fence/258/3", POSITION), None);
    }

    #[test]
    fn the_range_of_a_partition_holds_its_closed_records_and_no_others() {
        for partition in [0, 1, 255, 256, i32::MAX, -1] {
            let (start, end) = closed_range(partition);
            let within = |other, byte| {
                let key = closed(other, &TokenKey([byte; 16]));
                start[..] <= key[..] && key[..] < end[..]
            };
            assert!(within(partition, 0) && within(partition, u8::MAX), "{partition}");
            for other in [partition.wrapping_sub(1), partition.wrapping_add(1)] {
                assert!(
                    !within(other, 0) && !within(other, u8::MAX),
                    "{partition} {other}"
                );
            }
        }
    }

    #[test]
    fn keys_are_these_bytes() {
        assert_eq!(
            closed(3, &TokenKey([9; 16])),
            *b"\0\0\0\x03\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t"
        );
        let open = open(ORDERS_3, &TokenKey([9; 16]), Offset(1));
        assert_eq!(open[..6], *b"\x01\x02\0\0\0\x03");
        assert_eq!(open[6..22], [9; 16]);
        assert_eq!(open[22..], *b"\x80\0\0\0\0\0\0\x01");
    }
}
