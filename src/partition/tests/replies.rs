//! Replies and receipts: the reply goes where the message says, as far as that is allowed; a duplicate is given the outcome again, and
//! whoever is suppressed or refused is told why.

use super::*;
use crate::broker::Letter;
use crate::config::{Durability, MissingToken, OnMismatch};
use crate::outcome::{Closed, End, Stored};
use crate::token::Extractor;

type Change = fn(&mut Rig);

const MODES: [Durability; 2] = [Durability::Local, Durability::Replicated];

fn header(letter: &Letter, name: &str) -> String {
    let found: Vec<_> = letter.headers.iter().filter(|(n, _)| n == name).collect();
    assert!(found.len() <= 1, "{name}: {found:?}");
    let value = found
        .first()
        .and_then(|(_, value)| value.clone())
        .unwrap_or_default();
    String::from_utf8(value.to_vec()).unwrap()
}

fn asking(token: &str, to: &str, correlation: &str) -> Kept {
    let mut message = message(token);
    for (name, value) in [("reply-to", to), ("correlation-id", correlation)] {
        message
            .headers
            .push((name.into(), Some(Bytes::copy_from_slice(value.as_bytes()))));
    }
    message
}

fn replying(class: Class, mode: Durability, script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Rig {
    let mut rig = rig_with(class, script, |policy| {
        policy.reply.header = Some("reply-to".into());
        policy.reply.allowed = vec!["alice".into(), "bob".into()];
        change(policy);
    });
    rig.durability = mode;
    rig
}

/// What was sent to a topic.
fn sent(rig: &Rig, topic: &str) -> Vec<Letter> {
    let letters = rig.letterbox.letters().into_iter();
    letters.filter(|letter| letter.topic == topic).collect()
}

fn payload(letter: &Letter) -> &str {
    std::str::from_utf8(letter.payload.as_deref().unwrap()).unwrap()
}

/// The first message is answered, and so is each of its duplicates: the same bytes, to its own topic, with its own correlation id.
#[test]
fn a_duplicate_is_given_the_outcome_again() {
    for mode in MODES {
        paused(async {
            let script = Script::ok().replying("receipt 7");
            let mut rig = replying(Class::NonIdempotent, mode, &script, |_| {});
            rig.send(0, asking("a", "alice", "c-0"));
            rig.send(0, asking("a", "bob", "c-1"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            let (first, again) = (sent(&rig, "alice"), sent(&rig, "bob"));
            assert_eq!(
                (first.len(), again.len(), script.offsets()),
                (1, 1, vec![0]),
                "{mode}"
            );
            let told = |letter: &Letter| {
                let of = |name| header(letter, name);
                (
                    payload(letter).to_owned(),
                    of("correlation-id"),
                    of("hapax-reply"),
                    of("hapax-replayed"),
                    of("hapax-offset"),
                )
            };
            let told_as = |correlation: &str, replayed: &str, offset: &str| {
                let owned = str::to_owned;
                (
                    owned("receipt 7"),
                    owned(correlation),
                    owned("whole"),
                    owned(replayed),
                    owned(offset),
                )
            };
            assert_eq!(told(&first[0]), told_as("c-0", "", "0"));
            assert_eq!(told(&again[0]), told_as("c-1", "true", "1"));
            assert_eq!(header(&again[0], "hapax-original-offset"), "0");
            assert_eq!(header(&again[0], "hapax-token"), "a");
            assert_ne!(
                header(&again[0], "idempotency-key"),
                header(&first[0], "idempotency-key")
            );
            assert_eq!(
                (rig.account(Account::Done), rig.account(Account::Duplicate)),
                (1, 1)
            );
            assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
            assert_eq!(rig.books().remainder(), 0);
        });
    }
}

/// A header is hostile input: it chooses among the topics that are allowed, and makes hapax write nowhere else.
#[test]
fn a_reply_goes_only_where_it_is_allowed_to() {
    for mode in MODES {
        paused(async {
            let script = Script::ok().replying("secret");
            let mut rig = replying(Class::Idempotent, mode, &script, |policy| {
                policy.reply.topic = Some("replies".into());
            });
            for to in ["mallory", "billing.orders.hapax", "orders", "", "alice\n"] {
                rig.send(0, asking("a", to, "c"));
            }
            rig.send(0, asking("b", "replies", "c"));
            rig.send(0, message("c"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            let topics: Vec<_> = rig
                .letterbox
                .letters()
                .into_iter()
                .map(|letter| letter.topic)
                .collect();
            assert_eq!(
                topics,
                ["replies", "replies"],
                "{mode}: of the one that names it, and of the one that names none"
            );
            assert_eq!(
                (rig.account(Account::Done), rig.account(Account::Duplicate)),
                (3, 4)
            );
        });
    }
}

#[test]
fn what_is_not_stored_whole_is_said_and_not_made_up() {
    let cases: [(&str, Change, &str); 3] = [
        (
            "a long reply",
            |rig| rig.limits.outcome_bytes = crate::config::ByteCount(4),
            "digest",
        ),
        ("private", |rig| rig.policy.store_outcome = false, "none"),
        ("", |_| {}, "none"),
    ];
    for mode in MODES {
        for (reply, change, says) in &cases {
            paused(async {
                let script = Script::ok().replying(reply);
                let mut rig = replying(Class::NonIdempotent, mode, &script, |_| {});
                change(&mut rig);
                rig.send(0, asking("a", "alice", "c-0"));
                rig.send(0, asking("a", "bob", "c-1"));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                let (first, again) = (sent(&rig, "alice"), sent(&rig, "bob"));
                assert_eq!(
                    (payload(&first[0]), header(&first[0], "hapax-reply").as_str()),
                    (*reply, "whole")
                );
                assert_eq!(
                    (payload(&again[0]), header(&again[0], "hapax-reply").as_str()),
                    ("", *says)
                );
                if *says == "digest" {
                    let digest = blake3::hash(reply.as_bytes()).to_hex().to_string();
                    assert_eq!(header(&again[0], "hapax-reply-digest"), digest);
                    assert_eq!(header(&again[0], "hapax-reply-bytes"), reply.len().to_string());
                }
            });
        }
    }
}

/// The duplicate is complete only after its replay is acknowledged: a crash before loses nothing.
#[test]
fn a_replay_is_not_lost_at_a_crash_before_it_is_acknowledged() {
    paused(async {
        let script = Script::ok().replying("receipt 7");
        let mut rig = replying(Class::NonIdempotent, Durability::Local, &script, |_| {});
        rig.letterbox.refuse_to(Some("bob"));
        rig.send(0, asking("a", "alice", "c-0"));
        rig.send(0, asking("a", "bob", "c-1"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(
            (rig.account(Account::Duplicate), rig.account(Account::InFlight)),
            (0, 1)
        );
        assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
        rig.crash();
        rig.letterbox.refuse_to(None);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((sent(&rig, "alice").len(), sent(&rig, "bob").len()), (1, 1));
        assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
        assert_eq!(script.offsets(), [0]);
    });
}

/// What is recorded and not yet committed comes again after a crash: neither replies nor receipts are sent once more.
#[test]
fn a_redelivery_is_given_nothing() {
    for mode in MODES {
        paused(async {
            let script =
                Script::new(|offset, _| if offset == 0 { never() } else { ok() }).replying("receipt 7");
            let mut rig = replying(Class::Idempotent, mode, &script, |policy| {
                policy.receipts.topic = Some("receipts".into());
                policy.deadline = Duration::from_secs(3_600);
                policy.concurrency = Concurrency::unordered(4);
            });
            // The first never ends, so that nothing behind it is committed.
            rig.send(0, message("slow"));
            rig.send(0, asking("a", "alice", "c-1"));
            rig.send(0, asking("a", "bob", "c-2"));
            rig.send(0, asking("a", "bob", "c-3"));
            rig.start().await.unwrap();
            for _ in 0..3 {
                rig.run_for(A_WHILE).await;
                assert_eq!(rig.committed_offset(0), Some(NextOffset(0)));
                let correlations: Vec<_> = sent(&rig, "bob")
                    .iter()
                    .map(|letter| header(letter, "correlation-id"))
                    .collect();
                assert_eq!(
                    (sent(&rig, "alice").len(), correlations),
                    (1, vec!["c-2".to_owned(), "c-3".to_owned()]),
                    "{mode}"
                );
                assert_eq!(sent(&rig, "receipts").len(), 2);
                assert_eq!(rig.books().remainder(), 0);
                rig.crash();
                rig.start().await.unwrap();
            }
            rig.run_for(A_WHILE).await;
            assert_eq!(rig.account(Account::Redelivery), 3);
        });
    }
}

/// A duplicate held behind its token is answered too, once that has ended.
#[test]
fn a_duplicate_that_was_held_behind_its_token_is_answered() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|_, call| match call.attempt {
                4 => ok(),
                _ => Box::pin(async { Err(HandlerError::not_applied("busy")) }),
            })
            .replying("late");
            let mut rig = replying(Class::NonIdempotent, mode, &script, |policy| {
                policy.retry.overall.attempts = 8;
                policy.retry.overall.first = Duration::from_millis(600);
                policy.retry.overall.max = Duration::from_millis(600);
            });
            rig.send(0, asking("a", "alice", "c-0"));
            rig.start().await.unwrap();
            while rig.committed_offset(0) != Some(NextOffset(1)) {
                rig.run_for(Duration::from_millis(10)).await;
            }
            rig.send(0, asking("a", "bob", "c-1"));
            rig.run_for(Duration::from_secs(3)).await;
            assert_eq!(
                (sent(&rig, "alice").len(), sent(&rig, "bob").len()),
                (1, 1),
                "{mode}"
            );
            assert_eq!(payload(&sent(&rig, "bob")[0]), "late");
            assert_eq!(open_offsets(&rig), [0i64; 0]);
            assert_eq!(rig.books().remainder(), 0);
        });
    }
}

#[test]
fn whoever_is_suppressed_or_refused_is_told_why() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|offset, _| if offset == 2 { reject() } else { ok() });
            let mut rig = replying(Class::NonIdempotent, mode, &script, |policy| {
                policy.receipts.topic = Some("receipts".into());
                policy.missing_token = MissingToken::DeadLetter;
                policy.mismatch = Mismatch::fields(["/cents"]).then(OnMismatch::DeadLetter);
            });
            let paying = |token: &str, cents: u32| Kept {
                payload: Some(Bytes::from(format!("{{\"cents\":{cents}}}"))),
                ..asking(token, "nobody", "c")
            };
            rig.send(0, paying("a", 1));
            rig.send(0, paying("a", 1));
            rig.send(0, paying("b", 1));
            rig.send(0, paying("b", 1));
            rig.send(0, paying("a", 2));
            rig.send(0, rotated(None, None));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            let mut told: Vec<_> = sent(&rig, "receipts")
                .iter()
                .map(|letter| {
                    let value: serde_json::Value =
                        serde_json::from_slice(letter.payload.as_deref().unwrap()).unwrap();
                    assert_eq!(value["offset"].to_string(), header(letter, "hapax-offset"));
                    let of = |name: &str| value[name].to_string().replace('"', "");
                    ["offset", "verdict", "reason", "original_offset", "token"]
                        .map(of)
                        .join(" ")
                })
                .collect();
            told.sort();
            let expected = [
                "1 duplicate null 0 a",
                "2 failed rejected null b",
                "3 failed rejected 2 b",
                "4 mismatch mismatch 0 a",
                "5 missing-token missing-token null null",
            ];
            assert_eq!(told, expected, "{mode}");
            assert_eq!(rig.letterbox.reasons().len(), 3);
            assert_eq!(rig.committed_offset(0), Some(NextOffset(6)));
            assert_eq!(rig.books().remainder(), 0);
        });
    }
}

/// What a later hapax wrote of an outcome suppresses as ever, and is not guessed at.
#[test]
fn what_a_later_version_wrote_is_not_given_back() {
    paused(async {
        let script = Script::ok().replying("receipt 7");
        let mut rig = replying(Class::NonIdempotent, Durability::Local, &script, |_| {});
        rig.send(0, asking("a", "alice", "c-0"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let known = rig.closed(0, crate::Offset(0)).unwrap().unwrap();
        let mut keys = Vec::new();
        let batch = message("a").into_batch("orders".into(), 0, crate::Offset(0));
        Extractor::new("orders", vec![Reader::Header("token".into())], 512)
            .read(&batch.get(0).unwrap(), &mut keys);
        let mut changes = Changes::new(rig.id(0).unwrap());
        let later = Closed {
            end: End::Done(Stored::Later(Bytes::from_static(b"\x02receipt 7"))),
            ..known
        };
        changes.closed.push((keys[0], later));
        rig.store.apply(&[changes]).unwrap();
        rig.send(0, asking("a", "bob", "c-1"));
        rig.run_for(A_WHILE).await;
        let again = sent(&rig, "bob");
        assert_eq!(
            (payload(&again[0]), header(&again[0], "hapax-reply").as_str()),
            ("", "later-version")
        );
        assert_eq!(script.offsets(), [0]);
    });
}
