//! Schedules that an adversary found: each one lost, repeated or misjudged a message once.

use super::*;
use crate::config::AfterFailure;

/// 0 runs, 1 is held in doubt above the commit point; the drain ends 0, and the commit point passes both.
#[test]
fn what_the_commit_point_passes_during_a_drain_is_moved_and_not_dropped() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            0 => after(Duration::from_millis(100)),
            _ => who_knows(),
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(4);
        });
        for token in ["a", "b"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(50)).await;
        assert_eq!(rig.account(Account::Held), 1);
        rig.drain(Duration::from_secs(5), true).await;
        assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
        assert_eq!(rig.letterbox.reasons(), [("1".to_owned(), "moved".to_owned())]);
    });
}

/// An operator said run; the begin was on its way when a drain came. Its record is the only copy of the message.
#[test]
fn a_drain_does_not_drop_what_an_operator_sent_back() {
    paused(async {
        let script = Script::new(|_, call| if call.attempt == 1 { who_knows() } else { ok() });
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
        resolve(&mut rig, 0, Verdict::Run);
        rig.start().await.unwrap();
        rig.stop().await;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(
            script.calls().len(),
            2,
            "it ran in doubt, and once more by the verdict"
        );
        assert_eq!(open_offsets(&rig), [0i64; 0]);
    });
}

/// Schedule 15 with a higher offset of the token open: 0 failed and was dead-lettered, 1 was begun; crash before the
/// commit; 0 comes again and was decided.
#[test]
fn a_decided_message_does_not_take_over_what_a_later_one_began() {
    paused(async {
        for class in [Class::Idempotent, Class::PotentiallyIdempotent] {
            let script = Script::new(|offset, _| if offset == 0 { reject() } else { never() });
            let mut rig = rig_with(class, &script, |policy| {
                policy.after_failure = AfterFailure::Run;
                policy.deadline = Duration::from_secs(60);
            });
            rig.send(0, message("a"));
            rig.send(0, message("a"));
            // An unclean start makes suspects of the first messages: they are begun in every class.
            rig.start().await.unwrap();
            rig.crash();
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(40)).await;
            assert_eq!(script.offsets(), [0, 1], "{class}");
            rig.crash();
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets().iter().filter(|o| **o == 0).count(), 1, "{class}");
            assert_eq!(rig.letterbox.reasons().len(), 1, "{class}");
            assert_eq!(rig.account(Account::Redelivery), 1, "{class}");
        }
    });
}

/// The same with the later one held.
#[test]
fn a_decided_message_is_not_held_behind_a_later_one() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 0 { reject() } else { who_knows() });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = AfterFailure::Run
        });
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(40)).await;
        assert_eq!(open_offsets(&rig), [1]);
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(open_offsets(&rig), [1]);
        assert_eq!(rig.account(Account::Redelivery), 2);
    });
}

/// Attempt 1 may have applied something. That attempt 2 did not changes nothing about attempt 1.
#[test]
fn not_applied_speaks_of_its_own_attempt_only() {
    paused(async {
        let told = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&told);
        let script = Script::new(move |_, call| {
            noted.lock().unwrap().push(call.may_have_applied);
            match call.attempt {
                1 => who_knows(),
                2 => Box::pin(async { Err(HandlerError::not_applied("busy")) }),
                _ => ok(),
            }
        });
        let mut rig = rig(Class::PotentiallyIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(*told.lock().unwrap(), [false, true, true]);
    });
}

/// When attempt 2 started, and when the probe was asked.
fn timed(second: fn() -> Answer) -> (Script, Arc<Mutex<Vec<crate::clock::Instant>>>) {
    let times = Arc::new(Mutex::new(Vec::new()));
    let (of_run, of_probe) = (Arc::clone(&times), Arc::clone(&times));
    let script = Script::new(move |_, call| match call.attempt {
        1 => Box::pin(async { Err(HandlerError::retry_after(Duration::from_secs(2), "busy")) }),
        2 => {
            of_run.lock().unwrap().push(crate::clock::now());
            second()
        }
        _ => ok(),
    })
    .with_probe(move |_| {
        of_probe.lock().unwrap().push(crate::clock::now());
        Probe::NotDone
    });
    (script, times)
}

/// No probe before the deadline of the attempt *in question* plus `probe_settle`: what it sent may still arrive.
#[test]
fn a_probe_waits_for_the_latest_attempt() {
    paused(async {
        let (script, times) = timed(who_knows);
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(3)).await;
        let times = times.lock().unwrap();
        assert_eq!(times.len(), 2, "one second attempt, one probe");
        let waited = times[1] - times[0];
        assert!(waited >= Duration::from_millis(250), "{waited:?}");
    });
}

/// The same for an attempt of a process that was killed.
#[test]
fn a_probe_waits_for_the_latest_attempt_of_a_killed_process() {
    paused(async {
        let (script, times) = timed(never);
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(2_030)).await;
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(1)).await;
        let times = times.lock().unwrap();
        assert_eq!(times.len(), 2, "one second attempt, one probe");
        let waited = times[1] - times[0];
        assert!(waited >= Duration::from_millis(250), "{waited:?}");
    });
}

/// A partition that ends by a panic would stand still for ever, with its member alive.
#[test]
fn a_partition_that_panics_stops_the_consumer() {
    paused(async {
        let script = Script::ok();
        let mut rig = Rig::new(
            "orders",
            TopicPolicy::new(Class::Idempotent, Duration::from_secs(3_600)),
            vec![Reader::Code(
                "broken".into(),
                Arc::new(|_| panic!("as the test says")),
            )],
            Arc::new(Typed {
                callee: Arc::new(script.clone()),
                terms: TERMS,
                outputs: Arc::default(),
            }),
        );
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let failure = rig.failure().map(|error| crate::error::chain(&error));
        assert!(failure.is_some_and(|why| why.contains("as the test says")));
    });
}

/// Schedule 16 with the first in doubt: {new, old} is held behind {old}, so `new` is open too.
#[test]
fn every_source_of_a_message_that_is_held_behind_another_is_open() {
    paused(async {
        let script = Script::new(|_, _| who_knows());
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, rotated(None, Some("o")));
        rig.send(0, rotated(Some("n"), Some("o")));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, rotated(Some("n"), None));
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0], vec![0, 1, 2]));
        rig.crash();
        rig.start().await.unwrap();
        rig.send(0, rotated(Some("n"), None));
        rig.run_for(A_WHILE).await;
        assert_eq!(
            (script.offsets(), open_offsets(&rig)),
            (vec![0], vec![0, 1, 2, 3]),
            "after a restart"
        );
    });
}

/// A failure under one source does not hide a success under the other.
#[test]
fn a_success_under_any_source_suppresses() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 1 { reject() } else { ok() });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = AfterFailure::Run
        });
        rig.send(0, rotated(None, Some("o")));
        rig.send(0, rotated(Some("n"), None));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, rotated(Some("n"), Some("o")));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1]);
    });
}

/// A new source is put first while a message is in doubt: the downstream must see the child tokens that it knows.
#[test]
fn an_attempt_after_a_crash_has_the_token_of_the_one_before() {
    paused(async {
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&tokens);
        let script = Script::new(move |_, call| {
            noted.lock().unwrap().push(call.token);
            if call.attempt == 1 { never() } else { ok() }
        });
        let mut rig = rig(Class::PotentiallyIdempotent, &script);
        rig.read_by(vec![Reader::Header("old".into())]);
        rig.send(0, rotated(Some("n"), Some("o")));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(30)).await;
        rig.crash();
        rig.read_by(vec![Reader::Header("token".into()), Reader::Header("old".into())]);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let tokens = tokens.lock().unwrap();
        assert_eq!(tokens.len(), 2);
        assert_eq!(tokens[0], tokens[1]);
    });
}

/// 1 is a duplicate of 0 just inside the window and adds an alias; 2 waited behind it and lies just outside.
#[test]
fn a_waiter_is_judged_by_the_first_outcome_and_not_by_the_duplicate_before_it() {
    paused(async {
        let at = |message: Kept, after_ms: i64| Kept {
            timestamp_ms: Some(START_MS + after_ms),
            ..message
        };
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, at(rotated(None, Some("o")), 0));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, at(rotated(Some("n"), Some("o")), HOUR_MS - 1));
        rig.send(0, at(rotated(None, Some("o")), HOUR_MS));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 2]);
    });
}

/// A decoder that waited must not start a handler after the drain began.
#[test]
fn nothing_starts_in_a_drain_because_its_decoder_was_slow() {
    paused(async {
        for class in [Class::Idempotent, Class::NonIdempotent] {
            let script = Script::new(|_, _| after(Duration::from_millis(150)));
            let mut rig = rig_with(class, &script, |policy| {
                policy.concurrency = Concurrency::unordered(4);
            });
            rig.send(0, message("a"));
            rig.send(
                0,
                Kept {
                    payload: Some(Bytes::from_static(b"decodes slowly")),
                    ..message("b")
                },
            );
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(20)).await;
            rig.stop().await;
            assert_eq!(script.offsets(), [0], "{class}");
            assert_eq!(open_offsets(&rig), [0i64; 0], "{class}");
        }
    });
}

/// The dead-letter topic is away when the partition goes, and back before the budget is spent.
#[test]
fn a_letter_is_sent_again_during_a_drain() {
    paused(async {
        let script = Script::new(|_, _| who_knows());
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.letterbox.refuse(true);
        let letterbox = rig.letterbox.clone();
        tokio::spawn(async move {
            wait(Duration::from_secs(2)).await;
            letterbox.refuse(false);
        });
        rig.drain(Duration::from_secs(8), true).await;
        assert_eq!(rig.letterbox.reasons(), [("0".to_owned(), "moved".to_owned())]);
    });
}

/// Sent back by an operator, killed while it ran, to be probed: then the partition goes to another member.
#[test]
fn what_waits_for_a_probe_is_moved_with_its_partition() {
    paused(async {
        let script = Script::new(|_, call| if call.attempt == 1 { who_knows() } else { never() })
            .with_probe(|_| Probe::Unknown);
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.deadline = Duration::from_secs(60);
            policy.probe_settle = Duration::from_secs(60);
        });
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(150)).await;
        assert_eq!(rig.account(Account::Held), 1);
        rig.stop().await;
        resolve(&mut rig, 0, Verdict::Run);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(50)).await;
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(50)).await;
        assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
        rig.drain(Duration::from_secs(5), true).await;
        assert_eq!(rig.letterbox.reasons(), [("0".to_owned(), "moved".to_owned())]);
    });
}

/// 0 was done, says the operator, and 1, held behind it, is to be dead-lettered: that ends 1 and not the token.
#[test]
fn giving_up_on_a_message_behind_its_token_does_not_end_the_token() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 0 { who_knows() } else { ok() });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = AfterFailure::Run
        });
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        resolve(&mut rig, 0, Verdict::Done);
        resolve(&mut rig, 1, Verdict::DeadLetter);
        rig.start().await.unwrap();
        rig.send(0, message("a"));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0], "the token is done");
        assert_eq!(rig.letterbox.reasons(), [("1".to_owned(), "operator".to_owned())]);
    });
}

/// What was held behind a token and turns out a duplicate is over: nothing of it stays open.
#[test]
fn a_restored_duplicate_leaves_no_record_behind() {
    paused(async {
        let script = Script::new(|_, _| who_knows());
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        resolve(&mut rig, 0, Verdict::Done);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Duplicate)),
            (1, 1)
        );
        assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
    });
}

/// 1 waits twice behind 0: found in the store, and delivered again because the crash came before the commit. 0 is held
/// again, and 1 with it: once.
#[test]
fn a_message_that_waits_twice_is_held_once() {
    paused(async {
        // Long enough for the delivery to come while the second attempt runs.
        let script = Script::new(|_, call| {
            Box::pin(async move {
                wait(Duration::from_millis(20 * u64::from(call.attempt - 1))).await;
                Err("who knows".into())
            })
        });
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(30)).await;
        rig.crash();
        resolve(&mut rig, 0, Verdict::Run);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0, 0], vec![0, 1]));
        assert_eq!(
            (rig.account(Account::Held), rig.account(Account::Redelivery)),
            (2, 2)
        );
        rig.drain(Duration::from_secs(5), true).await;
        assert_eq!(rig.letterbox.reasons().len(), 2);
    });
}

/// An operator says run of 1, which is held behind 0, and 0 is not decided: it runs after 0, not beside it.
#[test]
fn a_verdict_on_a_message_behind_its_token_does_not_run_it_beside_the_token() {
    paused(async {
        let script = Script::new(|_, call| {
            if call.attempt == 1 {
                who_knows()
            } else {
                after(Duration::from_millis(50))
            }
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(4)
        });
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        for offset in [0, 1] {
            resolve(&mut rig, offset, Verdict::Run);
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 0], "1 is a duplicate of what 0 has done");
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Duplicate)),
            (1, 1)
        );
    });
}

/// 0 runs, 1 is in doubt, and the partition goes before 0 is done; then it comes back to this very store.
#[test]
fn a_doubt_above_the_commit_point_outlives_a_revocation() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 0 { never() } else { who_knows() });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(4);
            policy.deadline = Duration::from_secs(60);
        });
        for token in ["a", "b"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.drain(Duration::from_millis(100), true).await;
        assert_eq!(rig.committed_offset(0), Some(NextOffset(0)));
        rig.assign(0).unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1], "neither ran again: both are in doubt");
        assert_eq!(open_offsets(&rig), [0, 1]);
    });
}

/// `ordered` means it, also where the next message is begun ahead and the first one decodes slowly.
#[test]
fn what_is_begun_ahead_keeps_its_order() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::Ordered;
            policy.begun_ahead = 2;
        });
        rig.send(
            0,
            Kept {
                payload: Some(Bytes::from_static(b"decodes slowly")),
                ..message("a")
            },
        );
        for token in ["b", "c"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 2]);
    });
}

/// In doubt, and given up because its partition went. `after_failure = "run"` speaks of failures, and not of doubts.
#[test]
fn what_was_given_up_in_doubt_is_not_run_again_as_a_failure() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 0 { who_knows() } else { ok() });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = AfterFailure::Run
        });
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.drain(Duration::from_secs(5), true).await;
        assert_eq!(rig.letterbox.reasons(), [("0".to_owned(), "moved".to_owned())]);
        rig.assign(0).unwrap();
        rig.send(0, message("a"));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0]);
    });
}

/// Two sources with an outcome each: whoever waits for one of them is not told the other's.
#[test]
fn a_waiter_is_told_the_outcome_of_its_own_source() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            1 | 4 => reject(),
            // Keeps the commit point below what follows.
            2 => never(),
            _ => ok(),
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = AfterFailure::Run;
            policy.concurrency = Concurrency::unordered(4);
            policy.deadline = Duration::from_secs(60);
        });
        rig.send(0, rotated(Some("n"), None));
        rig.send(0, rotated(None, Some("o")));
        rig.send(0, message("slow"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        // 3 is a duplicate of 0, and 4 runs because `old` has only failed.
        rig.send(0, rotated(Some("n"), Some("o")));
        rig.run_for(A_WHILE).await;
        rig.send(0, rotated(None, Some("o")));
        rig.run_for(A_WHILE).await;
        assert_eq!(
            (script.offsets(), rig.committed_offset(0)),
            (vec![0, 1, 2, 4], Some(NextOffset(2)))
        );
        rig.crash();
        rig.send(0, rotated(Some("n"), None));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(
            script.offsets(),
            [0, 1, 2, 4],
            "5 waited behind 3, and `new` is done"
        );
    });
}
