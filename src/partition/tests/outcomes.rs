//! One outcome for each token, and what suppresses: ends, keys, sources, policies.

use super::*;

#[test]
fn one_outcome_for_each_token_and_every_message_in_one_account() {
    paused(async {
        for class in [
            Class::Idempotent,
            Class::PotentiallyIdempotent,
            Class::NonIdempotent,
        ] {
            let script = Script::ok();
            let mut rig = rig(class, &script);
            for token in ["a", "b", "a", "c", "a", "b"] {
                rig.send(0, message(token));
            }
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), [0, 1, 3], "{class}");
            assert_eq!(
                (rig.account(Account::Done), rig.account(Account::Duplicate)),
                (3, 3),
                "{class}"
            );
            assert_eq!(rig.books().remainder(), 0);
            assert_eq!(rig.committed_offset(0), Some(NextOffset(6)));
            let balances = rig.stop().await;
            assert!(
                balances
                    .iter()
                    .all(|balance| balance.remainder() == 0 && balance.of(Account::Released) == 0)
            );
        }
    });
}

/// Inv 1. The commit point waits for the slow first message, whatever finished behind it.
#[test]
fn nothing_is_committed_past_a_message_that_is_not_recorded() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 0 { never() } else { ok() });
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(8);
            policy.deadline = Duration::from_secs(60);
        });
        for token in ["slow", "b", "c"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Done), 2);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(0)));
    });
}

#[test]
fn retries_are_bounded_and_end_in_a_dead_letter() {
    paused(async {
        for class in [
            Class::Idempotent,
            Class::PotentiallyIdempotent,
            Class::NonIdempotent,
        ] {
            let script = Script::new(|_, _| Box::pin(async { Err(HandlerError::not_applied("busy")) }));
            let mut rig = rig(class, &script);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(1)).await;
            assert_eq!(script.calls(), [(0, 1), (0, 2), (0, 3)], "{class}");
            assert_eq!(
                rig.letterbox.reasons(),
                [("0".to_owned(), "retries-spent".to_owned())],
                "{class}"
            );
            assert_eq!(rig.account(Account::Failed), 1);
            assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
        }
    });
}

#[test]
fn a_rejected_or_undecodable_message_is_dead_lettered_at_once() {
    paused(async {
        let script = Script::new(|_, _| Box::pin(async { Err(HandlerError::reject("no such account")) }));
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.send(
            0,
            Kept {
                payload: Some(Bytes::from_static(b"undecodable")),
                ..message("b")
            },
        );
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let mut reasons = rig.letterbox.reasons();
        reasons.sort();
        assert_eq!(
            reasons,
            [("0".into(), "rejected".into()), ("1".into(), "malformed".into())]
        );
        assert_eq!(script.offsets(), [0]);
    });
}

#[test]
fn panics_and_deadlines_are_ends_like_any_other() {
    paused(async {
        for what in ["panic", "hang"] {
            let script = Script::new(move |_, call| match (what, call.attempt) {
                ("panic", 1) => Box::pin(async { panic!("as the test says") }),
                (_, 1) => never(),
                _ => ok(),
            });
            let mut rig = rig(Class::PotentiallyIdempotent, &script);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(1)).await;
            assert_eq!(script.calls(), [(0, 1), (0, 2)], "{what}");
            assert_eq!(rig.account(Account::Done), 1);
        }
    });
}

#[test]
fn a_key_keeps_its_order_and_other_keys_pass() {
    paused(async {
        let script = Script::new(|offset, _| {
            Box::pin(async move {
                if offset == 0 {
                    crate::clock::sleep_until(crate::clock::now() + Duration::from_millis(50)).await;
                }
                Ok(())
            })
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::by_key(4)
        });
        for (token, key) in [("a", "k"), ("b", "k"), ("c", "other"), ("d", "k")] {
            rig.send(
                0,
                Kept {
                    key: Some(Bytes::from(key)),
                    ..message(token)
                },
            );
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 2, 1, 3]);
    });
}

/// A rewind inside one assignment: the same offset delivered twice while the first still runs.
#[test]
fn the_same_offset_delivered_twice_runs_once() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::Idempotent, &script);
        for token in ["a", "b"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.deliver_again(0, 0);
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1]);
        assert_eq!(
            (rig.account(Account::Redelivery), rig.books().remainder()),
            (2, 0)
        );
    });
}

#[test]
fn a_duplicate_with_other_chosen_fields_is_dead_lettered_and_its_redelivery_is_silent() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.mismatch = Mismatch::fields(["/amount"])
        });
        let with = |amount: i64| Kept {
            payload: Some(Bytes::from(format!(r#"{{"amount":{amount}}}"#))),
            ..message("a")
        };
        rig.send(0, with(1));
        rig.send(0, with(1));
        rig.send(0, with(2));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(50)).await;
        assert_eq!(rig.letterbox.reasons(), [("2".to_owned(), "mismatch".to_owned())]);
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.letterbox.reasons().len(), 1);
        assert_eq!(script.offsets(), [0]);
    });
}

/// Schedule 16: m1 carries {new, old}, m2 only {old}; and the other way round.
#[test]
fn a_rotated_token_is_known_under_every_source() {
    paused(async {
        let both = Kept {
            headers: vec![
                ("token".into(), Some(Bytes::from_static(b"n"))),
                ("old".into(), Some(Bytes::from_static(b"o"))),
            ],
            ..message("")
        };
        let old = Kept {
            headers: vec![("old".into(), Some(Bytes::from_static(b"o")))],
            ..message("")
        };
        let new = Kept {
            headers: vec![("token".into(), Some(Bytes::from_static(b"n")))],
            ..message("")
        };
        for order in [[&both, &old, &new], [&old, &both, &new]] {
            let script = Script::ok();
            let mut rig = rig(Class::NonIdempotent, &script);
            for message in order {
                rig.send(0, message.clone());
            }
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), [0]);
            assert_eq!(rig.account(Account::Duplicate), 2);
        }
    });
}

/// Schedule 15: a failure whose commit was lost comes again, and "run again" must not give a second dead letter.
#[test]
fn the_redelivery_of_a_failure_is_silent() {
    paused(async {
        let script = Script::new(|_, _| Box::pin(async { Err(HandlerError::reject("no")) }));
        let mut rig = rig(Class::Idempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(30)).await;
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.letterbox.reasons().len(), 1);
        assert_eq!(rig.account(Account::Redelivery), 1);
        assert_eq!(script.calls().len(), 1);
    });
}
