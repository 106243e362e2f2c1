//! Frames: how a group of one partition's changes looks in its changelog, byte for byte (`docs/design.md`, "Frame bytes").
//!
//! One message of the changelog holds a whole group, or a part of a large one, so it costs a message of the input next to
//! nothing. A frame starts with a head that says whose it is and where the partition stands; all frames of one group have
//! the same. Parts are applied in their order, and together they are the group.

use crate::fence::Fence;
use crate::ledger::CommitPoint;
use crate::message::{NextOffset, Offset};
use crate::record::wire::{Reader, put_varint, unzigzag, zigzag};
use crate::record::{self, Error};
use crate::store::{Changes, PartitionId, Position};
use crate::token::TokenKey;

/// The format version that this code writes.
const VERSION: u8 = 1;

/// A head with all its numbers at their longest.
const HEAD_BYTES_MAX: usize = 1 + 8 + 16 + 5 * 10 + 1;

/// Whose changelog it is: the first 8 bytes of blake3 over group and topic, since `a.b` of `c` and `a` of `b.c` would
/// share a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner([u8; 8]);

impl Owner {
    pub(crate) fn of(group: &str, topic: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("hapax 2026-11-25 changelog owner v1");
        hasher.update(&(group.len() as u64).to_le_bytes());
        hasher.update(group.as_bytes());
        hasher.update(topic.as_bytes());
        let hash = hasher.finalize();
        Self(hash.as_bytes().first_chunk().copied().unwrap_or_default())
    }
}

/// One producer's life: a group is known by its session and its number, also after nobody heard how its commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Session(pub(crate) [u8; 16]);

impl Session {
    /// A new one, unlike any other.
    pub(crate) fn create() -> Self {
        Self(fastrand::Rng::new().u128(..).to_be_bytes())
    }
}

/// What every frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) owner: Owner,
    pub(crate) session: Session,
    /// The group's number in the session.
    pub(crate) number: u64,
    /// The assignment that wrote it.
    pub(crate) fence: Fence,
    /// Where the partition stands with this group; [`nowhere`] in a group that does not say.
    pub(crate) point: CommitPoint,
    /// Wall clock when it was made, in milliseconds since the epoch.
    pub(crate) written_ms: i64,
}

/// The point of a group that says nothing about where its partition stands: a part of a rebuild, which leaves the
/// partition as cold as it was. Negative, which no commit point is.
pub(crate) const fn nowhere(time_ms: Option<i64>) -> CommitPoint {
    CommitPoint {
        next: NextOffset(-1),
        time_ms,
    }
}

/// Encodes a group. No frame is longer than `bytes_max`, unless one record is.
pub(crate) fn encode(head: &Head, changes: &Changes, bytes_max: usize) -> Vec<Vec<u8>> {
    let mut frames = Frames {
        head,
        room: bytes_max.saturating_sub(HEAD_BYTES_MAX),
        done: Vec::new(),
        body: Vec::with_capacity(bytes_max.min(64 * changes.closed.len())),
    };
    let base_ms = head.point.time_ms.unwrap_or(0);
    let mut record = Vec::new();
    for (key, closed) in &changes.closed {
        record.clear();
        record::encode_closed(closed, base_ms, &mut record);
        frames.push(entry::CLOSED, Some(key), &record);
    }
    for (key, offset) in &changes.removed {
        record.clear();
        put_varint(&mut record, zigzag(offset.0));
        frames.push(entry::REMOVED, Some(key), &record);
    }
    for open in &changes.opened {
        record.clear();
        record::encode_open(open, &mut record);
        frames.push(entry::OPENED, None, &record);
    }
    for act in &changes.acts {
        // Text and numbers: that has a JSON form.
        let json = serde_json::to_vec(act).unwrap_or_default();
        frames.push(entry::ACT, None, &json);
    }
    frames.finish()
}

/// An entry is its kind, its key where the record has none, and the record behind its length.
mod entry {
    pub(super) const CLOSED: u8 = 1;
    pub(super) const REMOVED: u8 = 2;
    pub(super) const OPENED: u8 = 3;
    pub(super) const ACT: u8 = 4;
}

struct Frames<'a> {
    head: &'a Head,
    room: usize,
    done: Vec<Vec<u8>>,
    body: Vec<u8>,
}

impl Frames<'_> {
    fn push(&mut self, kind: u8, key: Option<&TokenKey>, record: &[u8]) {
        let bytes = record.len() + 1 + 16 + 5;
        if !self.body.is_empty() && self.body.len() + bytes > self.room {
            self.close();
        }
        self.body.push(kind);
        if let Some(key) = key {
            self.body.extend_from_slice(&key.0);
        }
        put_varint(&mut self.body, record.len() as u64);
        self.body.extend_from_slice(record);
    }

    fn close(&mut self) {
        let mut frame = Vec::with_capacity(HEAD_BYTES_MAX + self.body.len());
        put_head(&mut frame, self.head);
        frame.append(&mut self.body);
        self.done.push(frame);
    }

    /// A group without records has a frame all the same: its head.
    fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.body.is_empty() || self.done.is_empty() {
            self.close();
        }
        self.done
    }
}

fn put_head(out: &mut Vec<u8>, head: &Head) {
    out.push(VERSION);
    out.extend_from_slice(&head.owner.0);
    out.extend_from_slice(&head.session.0);
    put_varint(out, head.number);
    put_varint(out, head.fence.0);
    put_varint(out, zigzag(head.point.next.0));
    put_varint(out, zigzag(head.written_ms));
    match head.point.time_ms {
        None => out.push(0),
        Some(time_ms) => {
            out.push(1);
            put_varint(out, zigzag(time_ms));
        }
    }
}

fn read_head(reader: &mut Reader<'_>) -> Result<Head, Error> {
    match reader.byte()? {
        VERSION => {}
        0 => return Err(Error::Malformed("frame version 0")),
        newer => return Err(Error::Newer(newer)),
    }
    let owner = Owner(reader.array()?);
    let session = Session(reader.array()?);
    let number = reader.varint()?;
    let fence = Fence(reader.varint()?);
    let next = NextOffset(unzigzag(reader.varint()?));
    let written_ms = unzigzag(reader.varint()?);
    let time_ms = match reader.byte()? {
        0 => None,
        1 => Some(unzigzag(reader.varint()?)),
        _ => return Err(Error::Malformed("partition time")),
    };
    Ok(Head {
        owner,
        session,
        number,
        fence,
        point: CommitPoint { next, time_ms },
        written_ms,
    })
}

/// Decodes one frame of that partition's changelog. The changes have the frame's fence, and its position where it states
/// one.
///
/// # Errors
/// [`Error`] where the bytes are not a frame that this version reads.
pub(crate) fn decode(bytes: &[u8], partition: PartitionId) -> Result<(Head, Changes), Error> {
    let mut reader = Reader::new(bytes);
    let head = read_head(&mut reader)?;
    let base_ms = head.point.time_ms.unwrap_or(0);
    let mut changes = Changes::new(partition);
    while !reader.is_at_end() {
        match reader.byte()? {
            entry::CLOSED => {
                let key = TokenKey(reader.array()?);
                let closed = record::decode_closed(reader.sized()?, base_ms)?;
                changes.closed.push((key, closed));
            }
            entry::REMOVED => {
                let key = TokenKey(reader.array()?);
                let offset = Offset(unzigzag(Reader::new(reader.sized()?).varint()?));
                changes.removed.push((key, offset));
            }
            entry::OPENED => changes.opened.push(record::decode_open(reader.sized()?)?),
            entry::ACT => {
                let act = serde_json::from_slice(reader.sized()?);
                changes
                    .acts
                    .push(act.map_err(|_| Error::Malformed("an act of an operator"))?);
            }
            _ => return Err(Error::Malformed("an entry of a frame")),
        }
    }
    changes.position = (head.point.next.0 >= 0).then_some(Position {
        commit_point: head.point.next,
        time_ms: head.point.time_ms,
        acknowledged_ms: head.point.time_ms,
        written_ms: head.written_ms,
    });
    changes.fence = Some(head.fence);
    Ok((head, changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Kept;
    use crate::outcome::{Closed, End, Fingerprint, HeldFor, Open, Reason, Stage, Stored};
    use crate::store::{AuditEntry, TopicId};
    use bytes::Bytes;
    use proptest::prelude::*;

    const P3: PartitionId = PartitionId {
        topic: TopicId(1),
        partition: 3,
    };

    fn head(time_ms: Option<i64>) -> Head {
        Head {
            owner: Owner::of("billing", "orders"),
            session: Session([7; 16]),
            number: 300,
            fence: Fence(2),
            point: CommitPoint {
                next: NextOffset(1_000_001),
                time_ms,
            },
            written_ms: 1_795_600_000_123,
        }
    }

    fn closed(offset: i64, first_seen_ms: i64) -> Closed {
        Closed {
            end: if offset % 3 == 0 {
                End::Failed(Reason::Rejected)
            } else {
                End::Done(Stored::Nothing)
            },
            offset: Offset(offset),
            first_seen_ms,
            attempts: 1 + (offset % 2) as u32,
            fingerprint: Some(Fingerprint::Whole(offset as u16)),
        }
    }

    fn open(offset: i64) -> Open {
        Open {
            keys: vec![TokenKey([offset as u8; 16]), TokenKey([9; 16])],
            offset: Offset(offset),
            stage: Stage::Held {
                why: HeldFor::InDoubt,
                message: Kept {
                    timestamp_ms: Some(5),
                    key: None,
                    payload: Some(Bytes::from(vec![offset as u8; 100])),
                    headers: vec![("h".into(), None)],
                },
                verdict: None,
            },
            first_seen_ms: 77,
            attempts: 2,
            since_ms: 70,
            fingerprint: None,
        }
    }

    fn merged(frames: &[Vec<u8>], expected: &Head) -> Changes {
        let mut all = Changes::new(P3);
        for frame in frames {
            let (head, changes) = decode(frame, P3).unwrap();
            assert_eq!(head, *expected);
            all.closed.extend(changes.closed);
            all.removed.extend(changes.removed);
            all.opened.extend(changes.opened);
            all.acts.extend(changes.acts);
            assert_eq!(changes.fence, Some(head.fence));
            assert_eq!(changes.position.unwrap().commit_point, head.point.next);
        }
        all
    }

    proptest! {
        #[test]
        fn a_group_reads_as_it_was_written(
            closes in proptest::collection::vec((any::<[u8; 16]>(), 0i64..1 << 40, any::<i32>()), 0..40),
            removals in proptest::collection::vec((any::<[u8; 16]>(), any::<i64>()), 0..10),
            opens in proptest::collection::vec(0i64..200, 0..6),
            acts in proptest::collection::vec(any::<String>(), 0..3),
            time_ms: Option<i32>,
            bytes_max in 0usize..2_000,
        ) {
            let time_ms = time_ms.map(|time| 1_790_000_000_000 + i64::from(time));
            let mut changes = Changes::new(P3);
            changes.closed = closes.iter().map(|(key, offset, age)| {
                (TokenKey(*key), closed(*offset, 1_790_000_000_000 + i64::from(*age)))
            }).collect();
            changes.removed = removals.iter().map(|(key, offset)| (TokenKey(*key), Offset(*offset))).collect();
            changes.opened = opens.iter().map(|offset| open(*offset)).collect();
            changes.acts = acts.iter().map(|reason| AuditEntry {
                at_ms: 1,
                act: "forget".into(),
                topic: "orders".into(),
                partition: 3,
                offset: -1,
                token: String::new(),
                reason: reason.clone(),
                by: "anna".into(),
            }).collect();
            let frames = encode(&head(time_ms), &changes, bytes_max);
            prop_assert_eq!(merged(&frames, &head(time_ms)), changes.clone());
            let entries = changes.closed.len() + changes.removed.len() + changes.opened.len() + acts.len();
            prop_assert!(frames.len() <= entries.max(1));
            for frame in &frames {
                // One record alone may be longer.
                prop_assert!(frame.len() <= bytes_max.max(1_000));
            }
        }

        #[test]
        fn what_is_cut_short_or_changed_is_an_error_or_another_frame_and_never_a_panic(
            cut in 0usize..400, at in 0usize..400, to: u8,
        ) {
            let mut changes = Changes::new(P3);
            changes.closed = vec![(TokenKey([1; 16]), closed(5, 100))];
            changes.opened = vec![open(6)];
            let [frame] = &encode(&head(Some(3)), &changes, 10_000)[..] else { panic!("one frame") };
            let mut bytes = frame.clone();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            bytes.truncate(cut);
            let _ = decode(&bytes, P3);
        }
    }

    #[test]
    fn a_frame_cut_short_in_a_record_is_refused() {
        let mut changes = Changes::new(P3);
        changes.closed = vec![(TokenKey([1; 16]), closed(5, 100))];
        let frames = encode(&head(Some(3)), &changes, 10_000);
        let frame = &frames[0];
        assert!(decode(&frame[..frame.len() - 1], P3).is_err());
        let mut newer = frame.clone();
        newer[0] = 2;
        assert_eq!(decode(&newer, P3).unwrap_err(), Error::Newer(2));
    }

    /// What this version writes, every later one reads.
    #[test]
    fn frames_are_these_bytes() {
        let mut changes = Changes::new(P3);
        changes.closed = vec![(TokenKey([0xaa; 16]), closed(5, 1_790_000_000_001))];
        changes.removed = vec![(TokenKey([0xbb; 16]), Offset(4))];
        let frames = encode(&head(Some(1_790_000_000_000)), &changes, 10_000);
        let hex: String = frames[0].iter().map(|byte| format!("{byte:02x}")).collect();
        let owner: String = Owner::of("billing", "orders")
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            format!(
                "01{owner}{}ac0202 82897a f691cda1c268 0180b083c59868 01{}0811 0a02 02 01020500 02{}0108",
                "07".repeat(16),
                "aa".repeat(16),
                "bb".repeat(16)
            )
            .replace(' ', "")
        );
    }

    /// Whoever reads such frames, and no other after them, finds the partition as cold as it was.
    #[test]
    fn a_frame_of_a_rebuild_states_no_position() {
        let mut changes = Changes::new(P3);
        changes.closed = vec![(TokenKey([0xaa; 16]), closed(5, 1_790_000_000_001))];
        let head = Head {
            point: nowhere(Some(1_790_000_000_000)),
            ..head(None)
        };
        let frames = encode(&head, &changes, 10_000);
        let (read, found) = decode(&frames[0], P3).unwrap();
        assert_eq!((read, found.position), (head, None));
        assert_eq!((found.closed, found.fence), (changes.closed, Some(head.fence)));
    }

    #[test]
    fn names_that_would_share_a_changelog_are_told_apart() {
        assert_ne!(Owner::of("a.b", "c"), Owner::of("a", "b.c"));
    }
}
