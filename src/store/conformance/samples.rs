//! What the claims are made with.

use bytes::Bytes;

use super::{GROUP, Medium, WINDOW_MS};
use crate::message::{Kept, NextOffset, Offset};
use crate::outcome::{Closed, End, Fingerprint, HeldFor, Open, Reason, Stage, Stored, Verdict};
use crate::store::{Changes, Hit, PartitionId, Position, Store, TopicSpec};
use crate::token::TokenKey;

pub(super) fn start<M: Medium>(medium: &mut M, topics: &[&str]) -> M::Store {
    let topics: Vec<TopicSpec> = topics
        .iter()
        .map(|name| TopicSpec {
            name: (*name).to_owned(),
            window_ms: WINDOW_MS,
        })
        .collect();
    medium.start(GROUP, &topics).unwrap()
}

pub(super) fn partition(store: &dyn Store, topic: &str, partition: i32) -> PartitionId {
    PartitionId {
        topic: store.topic(topic).unwrap(),
        partition,
    }
}

pub(super) fn apply(store: &dyn Store, partition: PartitionId, change: impl FnOnce(&mut Changes)) {
    let mut changes = Changes::new(partition);
    change(&mut changes);
    store.apply(&[changes]).unwrap();
}

pub(super) fn find(store: &dyn Store, partition: PartitionId, since_ms: i64, keys: &[TokenKey]) -> Vec<Hit> {
    let mut hits = Vec::new();
    store.look_up(partition, since_ms, keys, &mut hits).unwrap();
    hits
}

pub(super) fn offsets(hits: &[Hit]) -> Vec<i64> {
    hits.iter().map(|hit| hit.closed.offset.0).collect()
}

pub(super) const fn key(number: u8) -> TokenKey {
    TokenKey([number; 16])
}

pub(super) fn position(commit_point: i64, time_ms: Option<i64>) -> Position {
    Position {
        commit_point: NextOffset(commit_point),
        time_ms,
        acknowledged_ms: None,
        written_ms: 1_700_000_000_000,
    }
}

pub(super) fn done(offset: i64, first_seen_ms: i64) -> Closed {
    Closed {
        end: End::Done(Stored::Nothing),
        offset: Offset(offset),
        first_seen_ms,
        attempts: 1,
        fingerprint: None,
    }
}

pub(super) fn begun(number: u8, offset: i64) -> Open {
    Open {
        keys: vec![key(number)],
        offset: Offset(offset),
        stage: Stage::Begun {
            not_applied: false,
            message: None,
        },
        first_seen_ms: 1_000,
        attempts: 1,
        since_ms: 1_700_000_000_000,
        fingerprint: None,
    }
}

pub(super) fn every_closed() -> Vec<(TokenKey, Closed)> {
    let ends = [
        End::Done(Stored::Nothing),
        End::Done(Stored::Reply(Bytes::from_static(b"receipt 9"))),
        End::Done(Stored::Digest([7; 32], 1 << 20)),
        End::Failed(Reason::RetriesSpent),
        End::Invalidated("recalled".into()),
        End::Forgotten,
    ];
    let closed = ends.into_iter().zip(1u8..).map(|(end, number)| {
        let closed = Closed {
            end,
            offset: Offset(i64::from(number) * 1_000),
            first_seen_ms: 1_000 + 60 * i64::from(number),
            attempts: u32::from(number),
            fingerprint: Some(Fingerprint::Fields(u64::MAX)),
        };
        (key(number), closed)
    });
    closed.collect()
}

pub(super) fn every_open() -> Vec<Open> {
    let message = Kept {
        timestamp_ms: Some(-1),
        key: Some(Bytes::from_static(b"customer 4")),
        payload: None,
        headers: vec![
            ("a".into(), None),
            ("a".into(), Some(Bytes::new())),
            ("b".into(), Some(Bytes::from_static(&[0xff; 300]))),
        ],
    };
    let held = |why, verdict| Stage::Held {
        why,
        message: message.clone(),
        verdict,
    };
    let stages = [
        Stage::Begun {
            not_applied: true,
            message: None,
        },
        Stage::Begun {
            not_applied: false,
            message: Some(message.clone()),
        },
        held(HeldFor::InDoubt, None),
        held(HeldFor::Token, Some(Verdict::DeadLetter)),
        Stage::Settling {
            end: End::Failed(Reason::Rejected),
            message: message.clone(),
            error: "no such customer".into(),
            outputs: Vec::new(),
        },
    ];
    let open = stages.into_iter().zip(1u8..).map(|(stage, number)| Open {
        keys: vec![key(number), key(100 + number)],
        stage,
        fingerprint: Some(Fingerprint::Whole(9)),
        ..begun(number, i64::from(number))
    });
    open.collect()
}
