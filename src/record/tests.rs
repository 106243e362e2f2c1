//! What is written is read as it was, and nothing else is.

use super::*;
use crate::output::Output;
use proptest::prelude::*;

fn ends() -> impl Strategy<Value = End> {
    prop_oneof![
        Just(End::Done(Stored::Nothing)),
        any::<Vec<u8>>().prop_map(|bytes| End::Done(Stored::Reply(bytes.into()))),
        (2u8.., any::<Vec<u8>>()).prop_map(|(version, rest)| {
            End::Done(Stored::Later([&[version][..], &rest].concat().into()))
        }),
        any::<([u8; 32], u64)>().prop_map(|(digest, len)| End::Done(Stored::Digest(digest, len))),
        prop::sample::select(&Reason::ALL).prop_map(End::Failed),
        any::<String>().prop_map(End::Invalidated),
        Just(End::Forgotten),
    ]
}

fn fingerprints() -> impl Strategy<Value = Option<Fingerprint>> {
    prop_oneof![
        Just(None),
        any::<u16>().prop_map(|crc| Some(Fingerprint::Whole(crc))),
        any::<u64>().prop_map(|hash| Some(Fingerprint::Fields(hash))),
    ]
}

fn bytes() -> impl Strategy<Value = Option<Bytes>> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from))
}

fn messages() -> impl Strategy<Value = Kept> {
    let headers = prop::collection::vec((".{0,8}", bytes()), 0..4);
    (prop::option::of(any::<i64>()), bytes(), bytes(), headers).prop_map(
        |(timestamp_ms, key, payload, headers)| Kept {
            timestamp_ms,
            key,
            payload,
            headers,
        },
    )
}

fn outputs() -> impl Strategy<Value = Vec<Output>> {
    let output = (".{0,8}", bytes(), bytes()).prop_map(|(topic, key, payload)| Output {
        topic,
        key,
        payload,
        headers: vec![("h".to_owned(), None)],
    });
    prop::collection::vec(output, 0..3)
}

fn stages() -> impl Strategy<Value = Stage> {
    let verdicts = prop::option::of(prop::sample::select(&[
        Verdict::Done,
        Verdict::Run,
        Verdict::DeadLetter,
    ]));
    let retry = any::<(i64, bool)>().prop_map(|(due_ms, may_have_applied)| HeldFor::Retry {
        due_ms,
        may_have_applied,
    });
    let why = prop_oneof![
        Just(HeldFor::InDoubt),
        Just(HeldFor::Token),
        retry,
        Just(HeldFor::Key),
    ];
    prop_oneof![
        (any::<bool>(), prop::option::of(messages()))
            .prop_map(|(not_applied, message)| Stage::Begun { not_applied, message }),
        (why, messages(), verdicts).prop_map(|(why, message, verdict)| Stage::Held {
            why,
            message,
            verdict
        }),
        (ends(), messages(), ".{0,20}", outputs()).prop_map(|(end, message, error, outputs)| {
            Stage::Settling {
                end,
                message,
                error,
                outputs,
            }
        }),
    ]
}

proptest! {
    #[test]
    fn a_closed_record_reads_as_it_was_written(
        end in ends(), offset: i64, first_seen_ms: i64, bucket_ms: i64, attempts: u32, fingerprint in fingerprints(),
    ) {
        let closed = Closed { end, offset: Offset(offset), first_seen_ms, attempts, fingerprint };
        let mut out = Vec::new();
        encode_closed(&closed, bucket_ms, &mut out);
        prop_assert_eq!(decode_closed(&out, bucket_ms), Ok(closed));
    }

    #[test]
    fn an_open_record_reads_as_it_was_written(
        stage in stages(), keys in prop::collection::vec(any::<[u8; 16]>().prop_map(TokenKey), 1..4),
        offset: i64, first_seen_ms: i64, since_ms: i64, attempts: u32, fingerprint in fingerprints(),
    ) {
        let open = Open { keys, offset: Offset(offset), stage, first_seen_ms, attempts, since_ms, fingerprint };
        let mut out = Vec::new();
        encode_open(&open, &mut out);
        prop_assert_eq!(decode_open(&out), Ok(open));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read_but_never_panic(bytes: Vec<u8>, first in 0x10u8..0x1f) {
        let _ = (decode_closed(&bytes, 0), decode_open(&bytes));
        let versioned = [&[first][..], &bytes].concat();
        let _ = (decode_closed(&versioned, 0), decode_open(&versioned));
    }

    #[test]
    fn a_record_cut_anywhere_never_reads_as_another_end(end in ends(), cut: prop::sample::Index) {
        let closed = Closed { end, offset: Offset(300), first_seen_ms: 7, attempts: 1, fingerprint: None };
        let mut out = Vec::new();
        encode_closed(&closed, 0, &mut out);
        let cut = cut.index(out.len());
        if let Ok(read) = decode_closed(&out[..cut], 0) {
            // Only a cut between fields reads at all; then the state is the same and a field is missing.
            prop_assert_eq!(end_state(&read.end), end_state(&closed.end));
        }
    }
}

#[test]
fn a_plain_done_is_small() {
    let closed = Closed {
        end: End::Done(Stored::Nothing),
        offset: Offset(2_000_000),
        first_seen_ms: 21_600_000,
        attempts: 1,
        fingerprint: Some(Fingerprint::Whole(7)),
    };
    let mut out = Vec::new();
    encode_closed(&closed, 0, &mut out);
    assert_eq!(
        out.len(),
        11,
        "state, 4 bytes of offset, 4 of time, 2 of checksum"
    );
}

#[test]
fn an_unknown_field_is_skipped_and_a_newer_version_refused() {
    let closed = Closed {
        end: End::Failed(Reason::Crashed),
        offset: Offset(1),
        first_seen_ms: 2,
        attempts: 3,
        fingerprint: Some(Fingerprint::Whole(4)),
    };
    let mut out = Vec::new();
    encode_closed(&closed, 0, &mut out);
    put_field(&mut out, 200, b"of a later version");
    assert_eq!(decode_closed(&out, 0), Ok(closed));
    out[0] = 2 << 4 | state::FAILED;
    assert_eq!(decode_closed(&out, 0), Err(Error::Newer(2)));
}
