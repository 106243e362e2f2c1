//! Schedules of the list in `docs/design.md` that show best at the partition and are no other file's matter.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::broker::CommitMark;
use crate::config::{Cold, MissingToken};
use crate::store::StoreId;
use crate::token::{self, Extractor};

fn header(name: &str) -> Reader {
    Reader::Header(name.into())
}

/// Schedule 5: two members that start together, and one that starts next year, know a token by the same key. A secret,
/// or a seed, made by either would show here: the key is spelt out.
#[test]
fn a_token_has_the_same_key_in_every_process() {
    let batch = message("order-42").into_batch("orders".into(), 0, crate::message::Offset(7));
    let key = || {
        let mut keys = Vec::new();
        let extractor = Extractor::new("orders", [header("token")], 512);
        extractor.read(&batch.get(0).unwrap(), &mut keys);
        keys
    };
    assert_eq!(key(), key());
    assert_eq!(key()[0].to_string(), "a435da036fd2e50023441ef7c7a437f5");
}

/// Schedule 7: partition time has run ahead, an outbox message comes three windows late, and then its duplicate.
#[test]
fn a_late_message_and_its_duplicate_run_once() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, stamped("clock", 0));
        rig.send(0, stamped("late", -3 * HOUR_MS));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, stamped("late", -3 * HOUR_MS + 1));
        rig.send(0, stamped("late", HOUR_MS - 1));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1]);
        assert_eq!(rig.account(Account::Duplicate), 2);
    });
}

/// Counts the attempts that are alive.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn one(alive: &Arc<AtomicUsize>, most: &Arc<AtomicUsize>) -> Self {
        let now = alive.fetch_add(1, Ordering::SeqCst) + 1;
        most.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(alive))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Schedule 9: the partition is revoked (or lost) while the handler runs, comes back to the same process, and the
/// probe truthfully says "not done". No second attempt runs beside the first, and none before its deadline.
#[test]
fn an_attempt_of_this_process_is_over_before_the_next_one_starts() {
    paused(async {
        for lost in [false, true] {
            let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (effects, starts) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
            let script = {
                let (effects, starts, most) = (Arc::clone(&effects), Arc::clone(&starts), Arc::clone(&most));
                Script::new(move |_, _| {
                    starts.lock().unwrap().push(crate::clock::now());
                    let guard = Alive::one(&alive, &most);
                    let effects = Arc::clone(&effects);
                    Box::pin(async move {
                        wait(Duration::from_millis(150)).await;
                        effects.fetch_add(1, Ordering::SeqCst);
                        drop(guard);
                        Ok(())
                    })
                })
            };
            let asked = Arc::clone(&effects);
            let script = script.with_probe(move |_| match asked.load(Ordering::SeqCst) {
                0 => Probe::NotDone,
                _ => Probe::done(()),
            });
            let mut rig = rig(Class::NonIdempotent, &script);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(50)).await;
            if lost {
                rig.end(0);
            } else {
                rig.drain(Duration::from_millis(10), true).await;
            }
            rig.assign(0).unwrap();
            rig.run_for(Duration::from_secs(2)).await;
            assert_eq!(
                most.load(Ordering::SeqCst),
                1,
                "never two at a time; lost: {lost}"
            );
            assert_eq!(effects.load(Ordering::SeqCst), 1, "lost: {lost}");
            let starts = starts.lock().unwrap();
            assert_eq!(starts.len(), 2);
            let apart = starts[1] - starts[0];
            assert!(
                apart >= Duration::from_millis(250),
                "deadline and settle time of the first attempt: {apart:?}"
            );
            assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
        }
    });
}

/// Schedule 10, the sticky return: another member served the partition in between and died before it committed more
/// than its first mark. This store looks whole, and is not.
#[test]
fn a_partition_that_another_store_served_is_cold() {
    paused(async {
        for (class, is_served) in [(Class::NonIdempotent, false), (Class::Idempotent, true)] {
            let script = Script::ok();
            let mut rig = rig(class, &script);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            rig.stop().await;
            rig.send(0, message("b"));
            let of_another = CommitMark {
                store_id: StoreId([9; 16]),
                time_ms: Some(START_MS),
            };
            rig.commit_as(0, 1, Some(of_another));
            let started = rig.start().await;
            assert_eq!(started.is_ok(), is_served, "{class}");
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets().len(), 1 + usize::from(is_served), "{class}");
            if !is_served {
                rig.cold = Cold::Run;
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                assert_eq!(script.offsets(), [0, 1], "the user said run");
            }
        }
    });
}

/// Schedule 13: the topic lags by seven days, the window is an hour, and one producer's clock says today.
#[test]
fn one_message_from_the_future_expires_nothing() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, stamped("a", 0));
        rig.send(0, stamped("from the future", 7 * 24 * HOUR_MS));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, stamped("a", 1));
        rig.send(0, stamped("from the future", 7 * 24 * HOUR_MS + 1));
        rig.run_for(A_WHILE).await;
        rig.send(0, stamped("a", 2));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1]);
        assert_eq!(rig.account(Account::Duplicate), 3);
    });
}

/// Schedule 14: the topic is deleted and made again, and the group is set to its start. The positions 0 and 1 are known
/// to the store as done; the new messages at them are others.
#[test]
fn a_recreated_topic_is_not_taken_for_the_old_one() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            policy.missing_token = MissingToken::UseOffset
        });
        let without_token = |after_ms| Kept {
            headers: Vec::new(),
            ..stamped("", after_ms)
        };
        for after_ms in [0, 1] {
            rig.send(0, without_token(after_ms));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        rig.recreate();
        // The same at 0, as a redelivery would be; another stamp at 1.
        for after_ms in [0, 2] {
            rig.send(0, without_token(after_ms));
        }
        rig.commit_as(0, 0, None);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 1]);
        assert_eq!(rig.account(Account::Redelivery), 1);
    });
}

/// Schedule 14, the other half: the commit has vanished and the log is shorter than what this store has seen. Nothing
/// is guessed.
#[test]
fn a_log_that_ends_before_the_known_position_is_refused() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::Idempotent, &script);
        for token in ["a", "b"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        rig.recreate();
        rig.send(0, message("c"));
        assert!(rig.start().await.is_err());
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1]);
    });
}

/// Schedule 19: token 42 of two topics, one topic's 42 in two sources, and two names of one step: four child tokens.
#[test]
fn child_tokens_do_not_collide() {
    let child = |topic: &str, source: &str, name: &str| {
        let kept = Kept {
            headers: vec![(source.into(), Some(Bytes::from_static(b"42")))],
            ..message("")
        };
        let batch = kept.into_batch(topic.into(), 0, crate::message::Offset(0));
        let mut keys = Vec::new();
        Extractor::new(topic, [header(source)], 512).read(&batch.get(0).unwrap(), &mut keys);
        token::child(&keys[0], name)
    };
    let all = [
        child("orders", "token", "x"),
        child("refunds", "token", "x"),
        child("orders", "old", "x"),
        child("orders", "token", "y"),
    ];
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "{all:?}");
    assert_eq!(
        all[0],
        child("orders", "token", "x"),
        "and each is always the same"
    );
}
