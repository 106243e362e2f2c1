//! Held for an attempt later: when, in what order, and what a crash, a drain or a limit makes of it.

use super::*;
use crate::config::AfterHold;
use crate::handler::HandlerError;

/// How long whoever is held waits at most.
const MINUTES: Duration = Duration::from_secs(600);

fn not_applied() -> Answer {
    Box::pin(async { Err(HandlerError::not_applied("the downstream is away")) })
}

/// Two attempts in place and six in all, held for up to four seconds at a time.
fn patient(class: Class, script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Rig {
    rig_with(class, script, |policy| {
        policy.retry.in_place.attempts = 2;
        policy.retry.overall.attempts = 6;
        policy.retry.overall.first = Duration::from_secs(4);
        policy.retry.overall.max = Duration::from_secs(4);
        policy.retry.overall.total = Duration::from_secs(3_600);
        change(policy);
    })
}

fn keyed(key: &'static str, token: &str) -> Kept {
    Kept {
        key: Some(Bytes::from_static(key.as_bytes())),
        ..message(token)
    }
}

/// A downstream that is back after so many calls for a message.
fn back_after(calls: u32) -> Script {
    Script::new(move |offset, call| match offset {
        0 if call.attempt <= calls => not_applied(),
        _ => ok(),
    })
}

#[test]
fn a_message_whose_attempts_in_place_are_spent_is_held_and_runs_later() {
    paused(async {
        for class in [
            Class::Idempotent,
            Class::PotentiallyIdempotent,
            Class::NonIdempotent,
        ] {
            let script = back_after(4);
            let mut rig = patient(class, &script, |_| {});
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(rig.account(Account::Held), 1, "{class}");
            assert_eq!(rig.committed_offset(0), Some(NextOffset(1)), "it stops nobody");
            let in_place = script.calls().len();
            assert!((2..=4).contains(&in_place), "{in_place}");
            rig.run_for(Duration::from_secs(30)).await;
            let attempts: Vec<_> = script.calls().iter().map(|(_, attempt)| *attempt).collect();
            assert_eq!(attempts, [1, 2, 3, 4, 5], "{class}");
            assert_eq!((rig.account(Account::Done), rig.account(Account::Held)), (1, 0));
            assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
        }
    });
}

#[test]
fn attempts_and_time_in_all_end_it() {
    paused(async {
        let mut letters = Vec::new();
        for total in [Duration::from_secs(3_600), Duration::from_secs(5)] {
            let script = back_after(u32::MAX);
            let mut rig = patient(Class::NonIdempotent, &script, |policy| {
                policy.retry.overall.total = total
            });
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(60)).await;
            assert_eq!(
                rig.letterbox.reasons(),
                [("0".to_owned(), "retries-spent".to_owned())]
            );
            letters.push(script.calls().len());
        }
        assert_eq!(letters[0], 6);
        assert!(letters[1] < 6, "{letters:?}");
    });
}

/// Also where the time in place is spent before its attempts are.
#[test]
fn nothing_is_held_for_a_retry_where_all_attempts_are_in_place() {
    paused(async {
        for (overall, is_held) in [(4, false), (5, false), (6, true)] {
            let script = back_after(u32::MAX);
            let mut rig = patient(Class::NonIdempotent, &script, |policy| {
                policy.retry.in_place.attempts = 5;
                policy.retry.in_place.total = Duration::from_millis(1);
                policy.retry.overall.attempts = overall;
            });
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert!(script.calls().len() < 5, "{:?}", script.calls());
            let spent = [("0".to_owned(), "retries-spent".to_owned())];
            let letters = if is_held { &[][..] } else { &spent };
            assert_eq!(rig.letterbox.reasons(), letters, "{overall}");
            assert_eq!(rig.account(Account::Held), u64::from(is_held), "{overall}");
        }
    });
}

/// Order per key: 1 is of the key of 0, 2 is not; 3 is a duplicate of 2, and what a duplicate decides needs no order.
#[test]
fn later_messages_of_its_key_are_held_behind_it_and_run_in_order() {
    paused(async {
        for (after, order) in [
            (AfterHold::BlockKey, vec![2, 0, 1, 4, 5]),
            (AfterHold::Release, vec![2, 1, 4, 5, 0]),
        ] {
            let script = back_after(2);
            let mut rig = patient(Class::NonIdempotent, &script, |policy| policy.after_hold = after);
            for (key, token) in [
                ("k", "a"),
                ("k", "b"),
                ("other", "c"),
                ("k", "c"),
                ("k", "d"),
                ("k", "e"),
            ] {
                rig.send(0, keyed(key, token));
            }
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(10)).await;
            let ran: Vec<i64> = script.offsets();
            let last: Vec<i64> = order
                .iter()
                .copied()
                .filter(|offset| ran.contains(offset))
                .collect();
            assert_eq!(last.len(), 5);
            let mut seen: Vec<i64> = ran.iter().rev().copied().collect();
            // By the last attempt of each.
            let mut by_last = Vec::new();
            for offset in seen.drain(..) {
                if !by_last.contains(&offset) {
                    by_last.insert(0, offset);
                }
            }
            assert_eq!(by_last, order, "{after:?}");
            assert_eq!(
                (rig.account(Account::Done), rig.account(Account::Duplicate)),
                (5, 1)
            );
            assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
        }
    });
}

/// What comes after one of its token, or of its key, has come to rest waits for that as well.
#[test]
fn what_comes_to_a_key_or_a_token_at_rest_is_held_behind_it() {
    paused(async {
        for after in [AfterHold::BlockKey, AfterHold::Release] {
            let script = back_after(2);
            let mut rig = patient(Class::NonIdempotent, &script, |policy| {
                policy.after_hold = after;
                policy.retry.overall.first = MINUTES;
                policy.retry.overall.max = MINUTES;
                policy.retry.overall.total = 100 * MINUTES;
            });
            rig.send(0, keyed("k", "a"));
            rig.start().await.unwrap();
            rig.run_for(10 * A_WHILE).await;
            assert_eq!(rig.account(Account::Held), 1);
            for (key, token) in [("k", "b"), ("other", "a"), ("other", "c")] {
                rig.send(0, keyed(key, token));
            }
            rig.run_for(A_WHILE).await;
            let held = 2 + u64::from(after == AfterHold::BlockKey);
            assert_eq!(rig.account(Account::Held), held, "{after:?}");
            rig.run_for(2 * MINUTES).await;
            let order = match after {
                AfterHold::BlockKey => vec![0, 0, 3, 0, 1],
                AfterHold::Release => vec![0, 0, 1, 3, 0],
            };
            assert_eq!(script.offsets(), order, "{after:?}");
            assert_eq!(rig.account(Account::Duplicate), 1);
        }
    });
}

#[test]
fn ordered_treats_the_partition_as_one_key() {
    paused(async {
        let script = back_after(2);
        let mut rig = patient(Class::Idempotent, &script, |policy| {
            policy.concurrency = Concurrency::Ordered
        });
        for (key, token) in [("k", "a"), ("l", "b"), ("m", "c")] {
            rig.send(0, keyed(key, token));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets(), rig.account(Account::Held)), (vec![0, 0], 3));
        rig.run_for(Duration::from_secs(10)).await;
        assert_eq!(script.offsets(), [0, 0, 0, 1, 2]);
        assert_eq!(rig.account(Account::Done), 3);
    });
}

/// Kills and clean stops, at any time: each goes on where the last one was, in the same order, and no attempt more.
#[test]
fn what_is_held_for_a_retry_survives_stops_and_kills() {
    paused(async {
        for (class, kills) in [
            (Class::NonIdempotent, false),
            (Class::NonIdempotent, true),
            (Class::Idempotent, false),
        ] {
            let script = back_after(4);
            let mut rig = patient(class, &script, |_| {});
            for token in ["a", "b", "c"] {
                rig.send(0, message(token));
            }
            for _ in 0..20 {
                rig.start().await.unwrap();
                rig.run_for(Duration::from_millis(700)).await;
                if kills {
                    rig.crash();
                } else {
                    rig.stop().await;
                }
            }
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(10)).await;
            let calls = script.calls();
            assert_eq!(
                calls,
                [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 1), (2, 1)],
                "{class}, {kills}"
            );
            assert_eq!(open_offsets(&rig), [0i64; 0]);
        }
    });
}

/// Schedule 18: the first run of a held token fails for good; a duplicate behind it is the legitimate retry.
#[test]
fn a_duplicate_behind_a_held_token_runs_when_that_fails() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, 1 | 2) => not_applied(),
            (0, _) => reject(),
            _ => ok(),
        });
        let mut rig = patient(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = crate::config::AfterFailure::Run;
            policy.after_hold = AfterHold::Release;
        });
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), 2);
        rig.run_for(Duration::from_secs(10)).await;
        assert_eq!(script.offsets(), [0, 0, 0, 1]);
        assert_eq!((rig.account(Account::Failed), rig.account(Account::Done)), (1, 1));
        assert_eq!(open_offsets(&rig), [0i64; 0]);
    });
}

/// The legitimate retry is a message of its key like any other: after those that waited before it, and not beside them.
#[test]
fn a_duplicate_that_runs_after_all_waits_for_its_key() {
    paused(async {
        for class in [Class::Idempotent, Class::NonIdempotent] {
            let script = Script::new(|offset, call| match (offset, call.attempt) {
                (0, 1 | 2) => not_applied(),
                (0, _) => reject(),
                _ => after(Duration::from_millis(100)),
            });
            let mut rig = patient(class, &script, |policy| {
                policy.after_failure = crate::config::AfterFailure::Run;
            });
            for token in ["a", "b", "a", "c"] {
                rig.send(0, keyed("k", token));
            }
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(rig.account(Account::Held), 4);
            rig.run_for(Duration::from_secs(10)).await;
            let mut ran = script.offsets();
            ran.dedup();
            assert_eq!(ran, [0, 1, 3, 2], "{class}");
            assert_eq!((rig.account(Account::Failed), rig.account(Account::Done)), (1, 3));
            assert_eq!(open_offsets(&rig), [0i64; 0]);
        }
    });
}

/// After the downstream has forgotten its child token, what may have been applied is in doubt, and waits for a person.
#[test]
fn what_may_have_been_applied_is_run_again_only_while_it_is_remembered() {
    paused(async {
        for (within, runs) in [(Duration::from_secs(60), 3), (Duration::from_millis(1), 2)] {
            let script = Script::new(|_, call| if call.attempt <= 2 { who_knows() } else { ok() });
            let mut rig = patient(Class::PotentiallyIdempotent, &script, |policy| {
                policy.rerun_within = within.max(Duration::from_millis(100))
            });
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(90)).await;
            rig.run_for(Duration::from_secs(10)).await;
            assert_eq!(script.calls().len(), runs, "{within:?}");
            assert_eq!(rig.account(Account::Held), u64::from(runs == 2));
        }
    });
}

#[test]
fn a_key_is_free_when_the_one_that_held_it_up_is_given_up() {
    paused(async {
        let script = back_after(u32::MAX);
        let mut rig = patient(Class::NonIdempotent, &script, |policy| {
            policy.retry.overall.first = Duration::from_secs(3_000);
            policy.retry.overall.max = Duration::from_secs(3_000);
        });
        rig.limits.held_age = Duration::from_secs(20);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(10)).await;
        rig.send(0, message("b"));
        rig.run_for(Duration::from_secs(5)).await;
        assert_eq!((script.offsets(), rig.account(Account::Held)), (vec![0, 0], 2));
        rig.run_for(Duration::from_secs(10)).await;
        assert_eq!(
            rig.letterbox.reasons(),
            [("0".to_owned(), "held-too-long".to_owned())]
        );
        assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0, 0, 1], vec![]));
    });
}

/// A message that is in doubt waits for a person: it holds its key up only where that is said.
#[test]
fn what_is_in_doubt_holds_its_key_up_where_the_topic_says_so() {
    paused(async {
        for (after, ran) in [(AfterHold::Release, vec![0, 1]), (AfterHold::BlockKey, vec![0])] {
            let script = Script::new(|offset, _| if offset == 0 { who_knows() } else { ok() });
            let mut rig = patient(Class::NonIdempotent, &script, |policy| policy.after_doubt = after);
            rig.send(0, message("a"));
            rig.send(0, message("b"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), ran, "{after:?}");
            rig.stop().await;
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), ran, "{after:?}");
            rig.stop().await;
            resolve(&mut rig, 0, Verdict::Done);
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0, 1], vec![]));
        }
    });
}

/// Schedule 17 for what is held: a retry that kills the process is counted, and ends.
#[test]
fn a_held_message_that_kills_the_process_is_given_up_after_its_attempts() {
    paused(async {
        let script = Script::new(|_, call| if call.attempt <= 2 { not_applied() } else { never() });
        let mut rig = patient(Class::Idempotent, &script, |policy| {
            policy.deadline = Duration::from_secs(3_600);
        });
        rig.send(0, message("a"));
        for _ in 0..10 {
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(10)).await;
            rig.crash();
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.letterbox.reasons(), [("0".to_owned(), "crashed".to_owned())]);
        assert!(script.calls().len() <= 8, "{:?}", script.calls());
    });
}

/// 1 has run while 0 was in doubt; then the topic says that doubt holds its key up. 1 stays in doubt itself.
#[test]
fn what_was_begun_is_in_doubt_though_its_key_is_held_up_now() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 0 { who_knows() } else { never() });
        let mut rig = patient(Class::NonIdempotent, &script, |policy| {
            policy.deadline = Duration::from_secs(60);
        });
        rig.send(0, message("a"));
        rig.send(0, message("b"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1]);
        rig.crash();
        rig.policy.after_doubt = AfterHold::BlockKey;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        resolve(&mut rig, 0, Verdict::Done);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(10)).await;
        assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0, 1], vec![1]));
    });
}

/// 0 is held for a retry, 1 behind its key; the process dies while 0 runs again. It did not apply, says whoever can tell: it is
/// still before 1, and before 2, which comes after that.
#[test]
fn a_key_stays_held_up_when_the_process_dies_in_a_held_retry() {
    paused(async {
        for class in [
            Class::Idempotent,
            Class::PotentiallyIdempotent,
            Class::NonIdempotent,
        ] {
            let is_again = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&is_again);
            let script = Script::new(move |offset, call| match (offset, call.attempt) {
                (0, 1 | 2) => not_applied(),
                (0, _) if !seen.load(Ordering::SeqCst) => never(),
                _ => after(Duration::from_millis(50)),
            })
            .with_probe(|_| Probe::NotDone);
            let mut rig = patient(class, &script, |policy| {
                policy.deadline = Duration::from_secs(30);
            });
            rig.send(0, message("a"));
            rig.send(0, message("b"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(6)).await;
            assert_eq!(script.offsets(), [0, 0, 0], "{class}");
            rig.crash();
            is_again.store(true, Ordering::SeqCst);
            rig.send(0, message("c"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(60)).await;
            assert_eq!(script.offsets(), [0, 0, 0, 0, 1, 2], "{class}");
            assert_eq!(open_offsets(&rig), [0i64; 0], "{class}");
        }
    });
}

/// Two of one key are in doubt, which releases it; then the topic says that doubt holds it up. Each of them does.
#[test]
fn a_key_is_free_when_everyone_who_held_it_up_has_ended() {
    paused(async {
        let script = Script::new(|offset, _| if offset < 2 { who_knows() } else { ok() });
        let mut rig = patient(Class::NonIdempotent, &script, |_| {});
        rig.send(0, message("a"));
        rig.send(0, message("b"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        rig.policy.after_doubt = AfterHold::BlockKey;
        rig.send(0, message("c"));
        for decided in [0, 1] {
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), [0, 1], "{decided} is not decided");
            rig.stop().await;
            resolve(&mut rig, decided, Verdict::Done);
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0, 1, 2], vec![]));
    });
}
