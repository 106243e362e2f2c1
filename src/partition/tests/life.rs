//! The life of a token: renewal, rotation, and messages that are useless after a while, in both durability modes.

use super::*;
use crate::config::{AfterFailure, Durability, OnUseless, Renewal};
use crate::handler::HandlerError;
use crate::message::Offset;
use crate::outcome::{End, Reason};

const MODES: [Durability; 2] = [Durability::Local, Durability::Replicated];
const QUARTER_MS: i64 = HOUR_MS / 4;

fn renewing(durability: Durability, script: &Script) -> Rig {
    let mut rig = rig_with(Class::NonIdempotent, script, |policy| {
        policy.renewal = Renewal::OnDuplicate
    });
    rig.durability = durability;
    rig.partitions(1);
    rig
}

/// Sends one message and lets it be decided.
async fn deliver(rig: &mut Rig, message: Kept) {
    rig.send(0, message);
    rig.run_for(A_WHILE).await;
}

/// With a restart after each, by a kill or not: what a duplicate has renewed is durable before it is complete.
#[test]
fn a_duplicate_starts_the_window_anew() {
    paused(async {
        for durability in MODES {
            for (renewal, runs) in [(Renewal::Never, vec![0, 2]), (Renewal::OnDuplicate, vec![0])] {
                for kills in [false, true] {
                    let script = Script::ok();
                    let mut rig = renewing(durability, &script);
                    rig.policy.renewal = renewal;
                    // Each half an hour after the one before: the third is a whole window after the first.
                    for step in 0..4 {
                        rig.start().await.unwrap();
                        deliver(&mut rig, stamped("a", step * HOUR_MS / 2)).await;
                        if kills {
                            rig.crash();
                        } else {
                            rig.stop().await;
                        }
                    }
                    assert_eq!(script.offsets(), runs, "{durability}, {renewal}, {kills}");
                    let closed = rig.closed(0, Offset(0)).unwrap().unwrap();
                    assert_eq!(closed.offset.0, runs[runs.len() - 1], "it keeps its own offset");
                }
            }
        }
    });
}

/// The window of a renewed token ends as exactly as any.
#[test]
fn a_renewed_window_ends_one_window_after_its_last_renewal() {
    paused(async {
        for durability in MODES {
            for (gap_ms, runs) in [(HOUR_MS - 1, 1), (HOUR_MS, 2)] {
                let script = Script::ok();
                let mut rig = renewing(durability, &script);
                rig.start().await.unwrap();
                deliver(&mut rig, stamped("a", 0)).await;
                deliver(&mut rig, stamped("a", QUARTER_MS)).await;
                deliver(&mut rig, stamped("a", QUARTER_MS + gap_ms)).await;
                assert_eq!(script.offsets().len(), runs, "{durability}, {gap_ms}");
            }
        }
    });
}

/// Of a stream that has nothing but duplicates few write.
#[test]
fn a_window_is_renewed_once_in_a_quarter_of_it() {
    paused(async {
        let script = Script::ok();
        let mut rig = renewing(Durability::Local, &script);
        rig.start().await.unwrap();
        let mut written = std::collections::BTreeSet::new();
        for step in 0..=60 {
            for _ in 0..5 {
                rig.send(0, stamped("a", step * HOUR_MS / 30));
            }
            rig.run_for(Duration::from_millis(100)).await;
            written.insert(rig.closed(0, Offset(0)).unwrap().unwrap().first_seen_ms);
        }
        assert_eq!(script.offsets(), [0]);
        assert_eq!(written.len(), 1 + 7, "two hours, and 16 minutes at the nearest");
        assert_eq!(rig.account(Account::Duplicate), 61 * 5 - 1);
    });
}

/// Several in flight at once: they share the record as the first of them has left it.
#[test]
fn whoever_waits_behind_a_renewal_renews_no_more() {
    paused(async {
        let script = Script::ok();
        let mut rig = renewing(Durability::Local, &script);
        rig.sync = Duration::from_millis(20);
        rig.start().await.unwrap();
        deliver(&mut rig, stamped("a", 0)).await;
        for step in 0..20 {
            rig.send(0, stamped("a", QUARTER_MS + step));
        }
        rig.run_for(A_WHILE).await;
        let closed = rig.closed(0, Offset(0)).unwrap().unwrap();
        assert_eq!(closed.first_seen_ms, START_MS + QUARTER_MS);
        assert_eq!(rig.account(Account::Duplicate), 20);
    });
}

/// Schedule 6 with a renewed window: everything comes again, judged by the time at the commit point.
#[test]
fn redeliveries_of_a_renewed_token_are_what_they_were() {
    paused(async {
        for durability in MODES {
            let stuck = Arc::new(AtomicBool::new(true));
            let gate = Arc::clone(&stuck);
            let script = Script::new(move |offset, _| match offset {
                0 if gate.load(Ordering::SeqCst) => never(),
                _ => ok(),
            });
            let mut rig = renewing(durability, &script);
            rig.policy.concurrency = Concurrency::unordered(8);
            rig.policy.deadline = Duration::from_secs(3_600);
            rig.send(0, stamped("slow", 0));
            for step in 0..12 {
                rig.send(0, stamped("t", step * HOUR_MS / 2));
            }
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(rig.account(Account::Duplicate), 11, "{durability}");
            rig.crash();
            stuck.store(false, Ordering::SeqCst);
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(5)).await;
            let runs = script.offsets().iter().filter(|offset| **offset > 0).count();
            assert_eq!(runs, 1, "{durability}: {:?}", script.calls());
        }
    });
}

/// Schedule 16, and on: what was recorded under one source is found under the other, as long as its window lasts.
#[test]
fn a_token_that_changes_its_source_runs_once() {
    paused(async {
        for durability in MODES {
            for ways in [
                [(Some("1"), Some("a")), (None, Some("a")), (Some("1"), None)],
                [(None, Some("a")), (Some("1"), Some("a")), (Some("1"), None)],
                [(Some("1"), None), (Some("1"), Some("a")), (None, Some("a"))],
            ] {
                let script = Script::ok();
                let mut rig = renewing(durability, &script);
                for (new, old) in ways {
                    rig.start().await.unwrap();
                    deliver(&mut rig, rotated(new, old)).await;
                    rig.crash();
                }
                assert_eq!(script.offsets(), [0], "{durability}, {ways:?}");
            }
        }
    });
}

/// 0 has the old source only, long ago; 1 the new one only; 2 has both, and says that they are one token. 3, with the old one,
/// must find what 1 has done, though there is a record of its own source: one that is past.
#[test]
fn a_record_that_is_past_is_no_alias() {
    // Past, and not out of reach of a look-up.
    const LATER_MS: i64 = HOUR_MS + 60_000;
    paused(async {
        for durability in MODES {
            let script = Script::ok();
            let mut rig = renewing(durability, &script);
            rig.policy.renewal = Renewal::Never;
            rig.max_clock_jump = Duration::from_secs(7_200);
            rig.start().await.unwrap();
            for (new, old, after_ms) in [
                (None, Some("a"), 0),
                (Some("1"), None, LATER_MS),
                (Some("1"), Some("a"), LATER_MS),
                (None, Some("a"), LATER_MS),
            ] {
                let mut message = rotated(new, old);
                message.timestamp_ms = Some(START_MS + after_ms);
                deliver(&mut rig, message).await;
            }
            assert_eq!(script.offsets(), [0, 1], "{durability}");
        }
    });
}

fn with_header(mut message: Kept, value: &str) -> Kept {
    let value = Bytes::copy_from_slice(value.as_bytes());
    message.headers.push(("useless-after".into(), Some(value)));
    message
}

/// Useless after a minute, of a class that is begun.
fn short_lived(durability: Durability, script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Rig {
    let mut rig = rig_with(Class::NonIdempotent, script, |policy| {
        policy.max_age.after = Some(Duration::from_secs(60));
        policy.max_age.header = Some("useless-after".into());
        change(policy);
    });
    rig.durability = durability;
    rig
}

#[test]
fn a_message_is_useless_from_one_millisecond_past_its_age_on() {
    paused(async {
        for durability in MODES {
            for then in [OnUseless::DeadLetter, OnUseless::Skip] {
                // How old it is, what its header says, and whether it runs.
                for (age_ms, own, runs) in [
                    (60_000, None, true),
                    (60_001, None, false),
                    (60_001, Some("70000"), true),
                    (70_001, Some("70000"), false),
                    (1_001, Some("1000"), false),
                    (60_000, Some("soon"), true),
                    (60_001, Some("-5"), false),
                    (-60_001, None, true),
                    (60_001, Some("18446744073709551615"), true),
                ] {
                    let script = Script::ok();
                    let mut rig = short_lived(durability, &script, |policy| policy.max_age.then = then);
                    rig.clock.advance(Duration::from_secs(100));
                    let message = stamped("a", 100_000 - age_ms);
                    let message = match own {
                        Some(own) => with_header(message, own),
                        None => message,
                    };
                    rig.send(0, message);
                    rig.start().await.unwrap();
                    rig.run_for(Duration::from_millis(300)).await;
                    let said = format!("{durability}, {then}, {age_ms}, {own:?}");
                    assert_eq!(script.offsets().len(), usize::from(runs), "{said}");
                    assert_eq!(rig.committed_offset(0), Some(NextOffset(1)), "{said}");
                    let account = match (runs, then) {
                        (true, _) => Account::Done,
                        (false, OnUseless::Skip) => Account::Skipped,
                        _ => Account::Failed,
                    };
                    assert_eq!(rig.account(account), 1, "{said}");
                    let is_sent = account == Account::Failed;
                    let letters = [("0".to_owned(), "useless".to_owned())];
                    assert_eq!(
                        rig.letterbox.reasons(),
                        &letters[..usize::from(is_sent)],
                        "{said}"
                    );
                    assert_eq!(rig.books().remainder(), 0, "{said}");
                }
            }
        }
    });
}

/// A message that is skipped has an outcome, and its redelivery is silent, whatever is configured by then.
#[test]
fn what_was_useless_is_decided_once() {
    paused(async {
        for durability in MODES {
            for then in [OnUseless::DeadLetter, OnUseless::Skip] {
                let script = Script::new(|offset, _| if offset == 0 { never() } else { ok() });
                let mut rig = short_lived(durability, &script, |policy| {
                    policy.max_age.then = then;
                    policy.deadline = Duration::from_secs(3_600);
                    policy.concurrency = Concurrency::unordered(8);
                });
                rig.clock.advance(Duration::from_secs(100));
                rig.send(0, stamped("slow", 100_000));
                rig.send(0, stamped("a", 0));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                rig.crash();
                rig.policy.max_age.after = None;
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                assert_eq!(script.offsets(), [0], "{durability}, {then}");
                assert_eq!(rig.account(Account::Redelivery), 1, "{durability}, {then}");
                assert_eq!(
                    rig.letterbox.letters().len(),
                    usize::from(then == OnUseless::DeadLetter)
                );
                let closed = rig.closed(0, Offset(1)).unwrap().unwrap();
                assert_eq!(closed.end, End::Failed(Reason::Useless));
            }
        }
    });
}

/// It has applied nothing: whoever sends it again, with a timestamp of its own, is heard, whatever `after_failure` says.
#[test]
fn a_resend_of_what_was_useless_runs() {
    paused(async {
        for durability in MODES {
            for then in [OnUseless::DeadLetter, OnUseless::Skip] {
                let script = Script::ok();
                let mut rig = short_lived(durability, &script, |policy| {
                    policy.max_age.then = then;
                    policy.after_failure = AfterFailure::Suppress;
                });
                rig.clock.advance(Duration::from_secs(100));
                // Both at once: the second waits for the first.
                rig.send(0, stamped("a", 0));
                rig.send(0, stamped("a", 100_000));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                deliver(&mut rig, stamped("a", 100_000)).await;
                assert_eq!(script.offsets(), [1], "{durability}, {then}");
                assert_eq!(rig.account(Account::Duplicate), 1);
            }
        }
    });
}

/// Held for a retry after attempts that applied nothing: asked again when it is due. Its key goes on.
#[test]
fn a_held_retry_is_useless_when_it_comes_too_late() {
    paused(async {
        for durability in MODES {
            for then in [OnUseless::DeadLetter, OnUseless::Skip] {
                let script = Script::new(|offset, _| match offset {
                    0 => Box::pin(async { Err(HandlerError::not_applied("away")) }),
                    _ => ok(),
                });
                let mut rig = short_lived(durability, &script, |policy| {
                    policy.max_age.then = then;
                    policy.retry.overall.attempts = 20;
                    policy.retry.overall.first = Duration::from_secs(50);
                    policy.retry.overall.max = Duration::from_secs(50);
                });
                rig.send(0, message("a"));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                rig.send(0, with_header(message("b"), "3600000"));
                rig.run_for(A_WHILE).await;
                assert_eq!(rig.account(Account::Held), 2, "{durability}, {then}");
                rig.run_for(Duration::from_secs(300)).await;
                let offsets = script.offsets();
                assert_eq!(offsets.last(), Some(&1), "{durability}, {then}: {offsets:?}");
                assert!(offsets.len() < 20, "{offsets:?}");
                assert_eq!(open_offsets(&rig), [0i64; 0]);
                let failed = [Account::Failed, Account::Skipped].map(|account| rig.account(account));
                let is_skipped = u64::from(then == OnUseless::Skip);
                assert_eq!(failed, [1 - is_skipped, is_skipped], "{durability}");
                assert_eq!(rig.books().remainder(), 0);
            }
        }
    });
}

/// Inv 4: an attempt may have applied something. However old it is, its class decides, and then a person.
#[test]
fn what_is_in_doubt_is_never_useless() {
    paused(async {
        for durability in MODES {
            for then in [OnUseless::DeadLetter, OnUseless::Skip] {
                let script = Script::new(|_, call| if call.attempt == 1 { never() } else { ok() });
                let mut rig = short_lived(durability, &script, |policy| {
                    policy.max_age.then = then;
                    policy.deadline = Duration::from_secs(3_600);
                });
                rig.send(0, message("a"));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                rig.crash();
                rig.clock.advance(Duration::from_secs(3_600));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                assert_eq!(rig.account(Account::Held), 1, "{durability}, {then}");
                rig.stop().await;
                // Who says run has seen how old it is.
                resolve(&mut rig, 0, Verdict::Run);
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                assert_eq!(script.calls(), [(0, 1), (0, 2)], "{durability}, {then}");
                assert_eq!(rig.letterbox.reasons(), []);
            }
        }
        // The same where it would run again by itself.
        for class in [Class::Idempotent, Class::PotentiallyIdempotent] {
            let script = Script::new(|_, call| if call.attempt < 3 { who_knows() } else { ok() });
            let mut rig = short_lived(Durability::Local, &script, |policy| {
                policy.class = class;
                policy.rerun_within = Duration::from_secs(3_600);
                policy.max_age.after = Some(Duration::from_millis(1));
            });
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.calls(), [(0, 1), (0, 2), (0, 3)], "{class}");
        }
    });
}

/// Begun ahead, and too old when its slot is free: it did not run, so it is not in doubt.
#[test]
fn what_was_begun_ahead_is_asked_again_before_it_runs() {
    paused(async {
        for durability in MODES {
            let script = Script::new(|offset, _| match offset {
                0 => after(Duration::from_secs(90)),
                _ => ok(),
            });
            let mut rig = short_lived(durability, &script, |policy| {
                policy.deadline = Duration::from_secs(3_600);
                policy.concurrency = Concurrency::unordered(1);
                policy.begun_ahead = 2;
            });
            rig.send(0, message("a"));
            rig.send(0, message("b"));
            rig.send(0, with_header(message("c"), "3600000"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(100)).await;
            assert_eq!(script.offsets(), [0, 2], "{durability}");
            let useless = [("1".to_owned(), "useless".to_owned())];
            assert_eq!(rig.letterbox.reasons(), useless, "{durability}");
            assert_eq!(open_offsets(&rig), [0i64; 0]);
        }
    });
}
