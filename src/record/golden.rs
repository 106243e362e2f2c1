//! Golden bytes: what format v1 looks like on disk, in `tests/fixtures/v1/records.txt`. Every later version reads them
//! as the same records; this one writes them as well.

use std::collections::BTreeMap;

use super::*;
use crate::output::Output;

const FILE: &str = include_str!("../../tests/fixtures/v1/records.txt");
const BUCKET_MS: i64 = 1_000_000;
const KEY: TokenKey = TokenKey([7; 16]);

fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = FILE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let record = |line: &'static str| {
        let (name, hex) = line.split_once(' ').unwrap();
        let digits: Vec<u8> = hex
            .chars()
            .filter_map(|digit| digit.to_digit(16))
            .map(|digit| digit as u8)
            .collect();
        (
            name,
            digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect(),
        )
    };
    lines.map(record).collect()
}

fn closed(offset: i64, since_bucket_ms: i64, attempts: u32, end: End) -> Closed {
    Closed {
        end,
        offset: Offset(offset),
        first_seen_ms: BUCKET_MS + since_bucket_ms,
        attempts,
        fingerprint: None,
    }
}

fn closed_records() -> BTreeMap<&'static str, Closed> {
    let done = |stored| End::Done(stored);
    let reply = Stored::Reply(Bytes::from_static(b"ok"));
    BTreeMap::from([
        (
            "plain",
            Closed {
                fingerprint: Some(Fingerprint::Whole(0x0102)),
                ..closed(2_000_000, 21_600_000, 1, done(Stored::Nothing))
            },
        ),
        ("done", closed(2_000_000, 21_600_000, 1, done(Stored::Nothing))),
        (
            "done-outcome",
            Closed {
                fingerprint: Some(Fingerprint::Fields(0x0102_0304_0506_0708)),
                ..closed(0, -1, 0, done(reply))
            },
        ),
        (
            "done-later",
            closed(0, 0, 1, done(Stored::Later(Bytes::from_static(b"\x02new")))),
        ),
        (
            "done-digest",
            closed(0, 0, 1, done(Stored::Digest([0xab; 32], 70_000))),
        ),
        (
            "failed",
            Closed {
                fingerprint: Some(Fingerprint::Whole(0x0102)),
                ..closed(5, 7, 3, End::Failed(Reason::Rejected))
            },
        ),
        ("invalidated", closed(1, 1, 1, End::Invalidated(String::new()))),
        (
            "invalidated-why",
            closed(1, 1, 1, End::Invalidated("recalled".into())),
        ),
        ("forgotten", closed(1, 1, 0, End::Forgotten)),
    ])
}

fn message(payload: Option<&'static [u8]>) -> Kept {
    Kept {
        timestamp_ms: None,
        key: None,
        payload: payload.map(Bytes::from_static),
        headers: Vec::new(),
    }
}

fn open(attempts: u32, stage: Stage) -> Open {
    Open {
        keys: vec![KEY],
        offset: Offset(5),
        stage,
        first_seen_ms: 1_000,
        attempts,
        since_ms: 1_500,
        fingerprint: None,
    }
}

fn open_records() -> BTreeMap<&'static str, Open> {
    let begun = |not_applied, message| Stage::Begun { not_applied, message };
    let full = Kept {
        timestamp_ms: Some(1_500),
        key: Some(Bytes::from_static(b"k")),
        headers: vec![
            ("a".to_owned(), Some(Bytes::from_static(b"x"))),
            ("n".to_owned(), None),
            ("e".to_owned(), Some(Bytes::new())),
        ],
        ..message(Some(b"{}"))
    };
    let in_doubt = Stage::Held {
        why: HeldFor::InDoubt,
        message: full,
        verdict: Some(Verdict::Run),
    };
    let for_token = Stage::Held {
        why: HeldFor::Token,
        message: message(None),
        verdict: None,
    };
    let settling = Stage::Settling {
        end: End::Failed(Reason::Crashed),
        message: message(Some(b"{}")),
        error: "boom".to_owned(),
        outputs: Vec::new(),
    };
    let outputs = vec![
        Output::to("shipments").key("k").payload("{}").header("h", "v"),
        Output {
            headers: vec![("n".to_owned(), None)],
            ..Output::to("t")
        },
    ];
    let settling_outputs = Stage::Settling {
        end: End::Done(Stored::Reply(Bytes::from_static(b"ok"))),
        message: message(None),
        error: String::new(),
        outputs,
    };
    BTreeMap::from([
        ("settling-outputs", open(1, settling_outputs)),
        ("begun", open(1, begun(false, None))),
        ("not-applied", open(2, begun(true, None))),
        (
            "begun-after-hold",
            open(2, begun(false, Some(message(Some(b"{}"))))),
        ),
        (
            "held-in-doubt",
            Open {
                keys: vec![KEY, TokenKey([8; 16])],
                ..open(2, in_doubt)
            },
        ),
        ("held-for-token", open(0, for_token)),
        ("settling", open(5, settling)),
    ])
}

/// What earlier versions wrote, and this one writes no more.
fn retired_records() -> BTreeMap<&'static str, Closed> {
    let mut records = closed_records();
    let reply = records.remove("done-outcome").unwrap();
    BTreeMap::from([("done-reply", reply)])
}

#[test]
fn what_is_written_no_more_is_read_as_ever() {
    for (name, record) in retired_records() {
        assert_eq!(decode_closed(&golden()[name], BUCKET_MS), Ok(record), "{name}");
    }
}

#[test]
fn closed_records_are_these_bytes() {
    let golden = golden();
    for (name, record) in closed_records() {
        let mut out = Vec::new();
        encode_closed(&record, BUCKET_MS, &mut out);
        assert_eq!(out, golden[name], "{name}: written");
        assert_eq!(
            decode_closed(&golden[name], BUCKET_MS),
            Ok(record),
            "{name}: read"
        );
    }
}

#[test]
fn open_records_are_these_bytes() {
    let golden = golden();
    for (name, record) in open_records() {
        let mut out = Vec::new();
        encode_open(&record, &mut out);
        assert_eq!(out, golden[name], "{name}: written");
        assert_eq!(decode_open(&golden[name]), Ok(record), "{name}: read");
    }
}

#[test]
fn every_golden_record_is_asked_about() {
    let asked: Vec<_> = closed_records()
        .into_keys()
        .chain(open_records().into_keys())
        .chain(retired_records().into_keys())
        .collect();
    let missed: Vec<_> = golden()
        .into_keys()
        .filter(|name| !asked.contains(name))
        .collect();
    assert_eq!(missed, [""; 0]);
}
