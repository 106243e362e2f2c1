//! Schedules against the partition task, without a broker: every one of them broke a naive version once.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::accounts::Account;
use crate::attempt::{Terms, Typed};
use crate::class::Class;
use crate::config::{Concurrency, Mismatch, TopicPolicy};
use crate::handler::{Call, Callee, DecodeError, HandlerError, Probe, Reply};
use crate::message::{Batch, Kept, NextOffset};
use crate::testing::Rig;
use crate::token::Reader;

type Answer = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

/// A handler that notes what it was called with, then does what the test says.
#[derive(Clone)]
struct Script {
    calls: Arc<Mutex<Vec<(i64, u32)>>>,
    act: Arc<dyn Fn(i64, Call) -> Answer + Send + Sync>,
    probe: Option<Arc<dyn Fn(i64) -> Probe + Send + Sync>>,
}

impl Script {
    fn new(act: impl Fn(i64, Call) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            calls: Arc::default(),
            act: Arc::new(act),
            probe: None,
        }
    }

    fn ok() -> Self {
        Self::new(|_, _| Box::pin(async { Ok(()) }))
    }

    fn with_probe(self, probe: impl Fn(i64) -> Probe + Send + Sync + 'static) -> Self {
        Self {
            probe: Some(Arc::new(probe)),
            ..self
        }
    }

    fn calls(&self) -> Vec<(i64, u32)> {
        self.calls.lock().unwrap().clone()
    }

    fn offsets(&self) -> Vec<i64> {
        self.calls().iter().map(|(offset, _)| *offset).collect()
    }
}

impl Callee for Script {
    type Message = i64;

    fn decode(
        self: Arc<Self>,
        batch: Arc<Batch>,
        index: usize,
    ) -> impl Future<Output = Result<i64, DecodeError>> + Send + 'static {
        async move {
            let raw = batch.get(index).unwrap();
            match raw.payload() {
                Some(b"undecodable") => Err(DecodeError::malformed("undecodable")),
                _ => Ok(raw.offset().0),
            }
        }
    }

    fn call(
        self: Arc<Self>,
        message: i64,
        _: Arc<Batch>,
        _: usize,
        call: Call,
    ) -> impl Future<Output = Result<Reply, HandlerError>> + Send + 'static {
        self.calls.lock().unwrap().push((message, call.attempt));
        let answer = (self.act)(message, call);
        async move { answer.await.map(|()| Reply::empty()) }
    }

    fn has_probe(&self) -> bool {
        self.probe.is_some()
    }

    fn probe(
        self: Arc<Self>,
        message: i64,
        _: Arc<Batch>,
        _: usize,
        _: Call,
    ) -> impl Future<Output = Result<Probe, HandlerError>> + Send + 'static {
        async move { Ok(self.probe.as_ref().map_or(Probe::Unknown, |probe| probe(message))) }
    }
}

const HOUR_MS: i64 = 3_600_000;
const START_MS: i64 = 1_700_000_000_000;
const A_WHILE: Duration = Duration::from_millis(500);

fn rig_with(class: Class, script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Rig {
    let mut policy = TopicPolicy::new(class, Duration::from_secs(3_600));
    policy.deadline = Duration::from_millis(200);
    policy.probe_settle = Duration::from_millis(50);
    policy.retry.first = Duration::from_millis(10);
    policy.retry.attempts = 3;
    change(&mut policy);
    let terms = Terms {
        deadline: policy.deadline,
        probe_deadline: policy.probe_deadline,
        offload: policy.offload,
    };
    let factory = Arc::new(Typed {
        callee: Arc::new(script.clone()),
        terms,
    });
    Rig::new(
        "orders",
        policy,
        vec![Reader::Header("token".into()), Reader::Header("old".into())],
        factory,
    )
}

fn rig(class: Class, script: &Script) -> Rig {
    rig_with(class, script, |_| {})
}

/// A message with that token, stamped that long after the start.
fn stamped(token: &str, after_ms: i64) -> Kept {
    Kept {
        timestamp_ms: Some(START_MS + after_ms),
        key: Some(Bytes::from_static(b"key")),
        payload: Some(Bytes::from(format!("payload of {token}"))),
        headers: vec![("token".into(), Some(Bytes::copy_from_slice(token.as_bytes())))],
    }
}

fn message(token: &str) -> Kept {
    stamped(token, 0)
}

fn paused<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

/// Runs for ever: a handler in the middle of which the process is killed.
fn never() -> Answer {
    Box::pin(std::future::pending())
}

fn ok() -> Answer {
    Box::pin(async { Ok(()) })
}

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

/// A crash between record and commit: delivered again, known, and silent.
#[test]
fn what_is_delivered_again_after_a_crash_is_not_run_again() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        for token in ["a", "b", "c"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        // Long enough to record, too short for the commit interval.
        rig.run_for(Duration::from_millis(30)).await;
        assert_eq!(
            (script.offsets().len(), rig.committed_offset(0)),
            (3, Some(NextOffset(0)))
        );
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets().len(), 3);
        assert_eq!(rig.account(Account::Redelivery), 3);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(3)));
    });
}

/// Inv 3 and 4, schedule 12. Killed inside the handler: at most as many in doubt as there are slots, and a
/// non-idempotent one is held, never run again.
#[test]
fn a_kill_inside_the_handler_leaves_at_most_one_message_a_slot_in_doubt() {
    paused(async {
        let script = Script::new(|_, _| never());
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(4);
            policy.deadline = Duration::from_secs(60);
        });
        for n in 0..40 {
            rig.send(0, message(&format!("t{n}")));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.crash();
        let script = Script {
            act: Arc::new(|_, _| ok()),
            ..script
        };
        rig.replace(Arc::new(Typed {
            callee: Arc::new(script.clone()),
            terms: TERMS,
        }));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), 4);
        assert_eq!(rig.account(Account::Done), 36);
        let calls: BTreeMap<i64, usize> =
            script
                .offsets()
                .into_iter()
                .fold(BTreeMap::new(), |mut calls, offset| {
                    *calls.entry(offset).or_default() += 1;
                    calls
                });
        assert!(calls.values().all(|calls| *calls == 1), "{calls:?}");
        assert_eq!(rig.committed_offset(0), Some(NextOffset(40)));
    });
}

const TERMS: Terms = Terms {
    deadline: Duration::from_millis(200),
    probe_deadline: Duration::from_millis(200),
    offload: false,
};

/// Schedule 18: the first run of a held token fails later; whoever is behind it is not swallowed.
#[test]
fn a_duplicate_of_a_held_token_is_held_behind_it() {
    paused(async {
        let script = Script::new(|_, _| Box::pin(async { Err("who knows".into()) }));
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), 2);
        assert_eq!(script.offsets(), [0]);
        let known = crate::store::Store::load(&*rig.store, rig.id(0).unwrap()).unwrap();
        assert_eq!(known.open.len(), 2);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
    });
}

#[test]
fn a_probe_decides_what_is_in_doubt() {
    paused(async {
        for (probe, runs, done) in [
            (Probe::done(()), 1, 1),
            (Probe::NotDone, 2, 1),
            (Probe::Unknown, 1, 0),
        ] {
            let answer = Arc::new(Mutex::new(Some(probe)));
            let script = Script::new(|_, call| {
                Box::pin(async move {
                    if call.attempt == 1 {
                        Err("who knows".into())
                    } else {
                        Ok(())
                    }
                })
            })
            .with_probe(move |_| answer.lock().unwrap().take().unwrap_or(Probe::Unknown));
            let mut rig = rig(Class::NonIdempotent, &script);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(1)).await;
            assert_eq!((script.calls().len(), rig.account(Account::Done)), (runs, done));
            assert_eq!(rig.account(Account::Held), 1 - done);
        }
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

/// field.md 19: the dead-letter topic is down. Its partition waits, nothing is skipped.
#[test]
fn a_dead_letter_that_cannot_be_written_stops_its_partition() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            0 => Box::pin(async { Err(HandlerError::reject("no")) }),
            _ => ok(),
        });
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("bad"));
        rig.letterbox.refuse(true);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, message("good"));
        rig.run_for(Duration::from_secs(3)).await;
        assert_eq!(
            (script.offsets(), rig.committed_offset(0)),
            (vec![0], Some(NextOffset(0)))
        );
        rig.letterbox.refuse(false);
        rig.run_for(Duration::from_secs(3)).await;
        assert_eq!(
            (script.offsets(), rig.committed_offset(0)),
            (vec![0, 1], Some(NextOffset(2)))
        );
        assert_eq!(rig.letterbox.reasons().len(), 1);
    });
}

/// A crash between `Settling` and the letter's acknowledgement: it is sent again, and the message is not run again.
#[test]
fn a_letter_that_was_not_acknowledged_is_sent_by_the_next_start() {
    paused(async {
        let script = Script::new(|_, _| Box::pin(async { Err(HandlerError::reject("no")) }));
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("bad"));
        rig.letterbox.refuse(true);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.crash();
        rig.letterbox.refuse(false);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.letterbox.reasons().len(), 1);
        assert_eq!(script.calls().len(), 1);
        assert_eq!(
            (rig.account(Account::Failed), rig.account(Account::Redelivery)),
            (1, 1)
        );
        assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
    });
}

/// Schedule 16. m1 carries {new, old}, m2 only {old}; and the other way round.
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

/// Inv 6, the window's end from both sides, in log time.
#[test]
fn the_window_ends_exactly_in_log_time() {
    paused(async {
        for (gap_ms, runs) in [(HOUR_MS - 1, 1), (HOUR_MS, 2)] {
            let script = Script::ok();
            let mut rig = rig(Class::NonIdempotent, &script);
            rig.send(0, stamped("a", 0));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            rig.send(0, stamped("a", gap_ms));
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets().len(), runs, "{gap_ms}");
        }
    });
}

/// Schedule 6: 0 is slow, Done(T@1), partition time passes the window, a duplicate @3 of a young token is suppressed;
/// crash; everything comes again from 0 and is judged with the time at the commit point.
#[test]
fn the_floor_holds_across_a_restart() {
    paused(async {
        let stuck = Arc::new(AtomicBool::new(true));
        let gate = Arc::clone(&stuck);
        let script = Script::new(move |offset, _| {
            if offset == 0 && gate.load(Ordering::SeqCst) {
                never()
            } else {
                ok()
            }
        });
        let mut rig = rig_with(Class::PotentiallyIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(8);
            policy.deadline = Duration::from_secs(3_600);
        });
        rig.send(0, stamped("slow", 0));
        rig.send(0, stamped("t", 1));
        rig.send(0, stamped("t", 2));
        for step in 1..=8 {
            rig.send(0, stamped(&format!("clock{step}"), step * HOUR_MS / 2));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Done), 9);
        rig.crash();
        stuck.store(false, Ordering::SeqCst);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(20)).await;
        let runs_of_t = script
            .offsets()
            .iter()
            .filter(|offset| [1, 2].contains(*offset))
            .count();
        assert_eq!(runs_of_t, 1, "{:?}", script.calls());
        assert_eq!(rig.committed_offset(0), Some(NextOffset(11)));
    });
}

/// Schedule 8: held at 0, the window passes, a duplicate comes: it must not find nothing.
#[test]
fn open_tokens_never_expire() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            0 => Box::pin(async { Err("who knows".into()) }),
            _ => ok(),
        });
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, stamped("a", 0));
        for step in 1..=6 {
            rig.send(0, stamped(&format!("clock{step}"), step * HOUR_MS / 2));
        }
        rig.send(0, stamped("a", 3 * HOUR_MS));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), 2);
        assert!(!script.offsets().contains(&7));
    });
}

/// Schedule 9's shape inside one process: the same offset delivered twice while the first still runs.
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

/// Schedule 17, the first half: an idempotent message that kills the process is counted and ends.
#[test]
fn a_message_that_kills_the_process_is_given_up_after_its_attempts() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 1 { never() } else { ok() });
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            policy.deadline = Duration::from_secs(60)
        });
        for token in ["a", "killer", "c"] {
            rig.send(0, message(token));
        }
        for _ in 0..5 {
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            rig.crash();
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.letterbox.reasons(), [("1".to_owned(), "crashed".to_owned())]);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(3)));
        assert_eq!(
            script.offsets().iter().filter(|offset| **offset == 1).count(),
            4,
            "one uncounted, three counted"
        );
    });
}

/// Schedule 17, the second half: killed during the wait after "not applied", which was recorded before the wait.
#[test]
fn a_crash_during_the_wait_after_not_applied_is_not_in_doubt() {
    paused(async {
        let script = Script::new(|_, call| {
            Box::pin(async move {
                if call.attempt == 1 {
                    Err(HandlerError::retry_after(Duration::from_secs(5), "busy"))
                } else {
                    Ok(())
                }
            })
        });
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.calls(), [(0, 1), (0, 2)]);
        assert_eq!(rig.account(Account::Done), 1);
    });
}

/// Schedule 10: an empty directory after a loss looks like a first start, but the commit names another store.
#[test]
fn a_lost_disk_is_cold_and_a_guarded_class_is_refused() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.crash();
        rig.lose_the_disk();
        let refused = rig.start().await;
        assert!(refused.is_err_and(|error| crate::error::chain(&error).contains("is cold")));
        rig.cold = crate::config::Cold::Run;
        rig.lose_the_disk();
        rig.start().await.unwrap();
    });
}

/// Inv 9: a failed durable write drops nothing and runs nothing.
#[test]
fn a_failed_write_stops_the_consumer_and_commits_nothing() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.store.fail_after(0, crate::store::memory::Fault::Lost);
        rig.run_for(A_WHILE).await;
        assert!(matches!(rig.failure(), Some(crate::error::Error::Journal(_))));
        assert_eq!(script.offsets(), Vec::<i64>::new(), "its begin was not durable");
        assert_eq!(rig.committed_offset(0), Some(NextOffset(0)));
    });
}

/// Inv 5 inside the process: assigned, ended with work in flight, assigned again. The older assignment's outcome
/// reaches neither store nor commit.
#[test]
fn an_ended_assignment_writes_nothing() {
    paused(async {
        let script = Script::new(|_, call| {
            Box::pin(async move {
                if call.fence.0 == 1 {
                    crate::clock::sleep_until(crate::clock::now() + Duration::from_millis(100)).await;
                }
                Ok(())
            })
        });
        let mut rig = rig(Class::Idempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(20)).await;
        rig.end(0);
        rig.assign(0).unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(
            script.offsets(),
            [0, 0],
            "it runs anew: nothing of the first run was recorded"
        );
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Released)),
            (1, 1)
        );
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

#[test]
fn a_drain_finishes_what_runs_and_starts_nothing_more() {
    paused(async {
        let script = Script::new(|_, _| {
            Box::pin(async {
                crate::clock::sleep_until(crate::clock::now() + Duration::from_millis(100)).await;
                Ok(())
            })
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::Ordered
        });
        for token in ["a", "b", "c"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(50)).await;
        let balances = rig.stop().await;
        assert_eq!(script.offsets(), [0]);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
        assert_eq!(balances.len(), 1);
        assert_eq!(
            (
                balances[0].of(Account::Done),
                balances[0].of(Account::Released),
                balances[0].remainder()
            ),
            (1, 2, 0)
        );
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 2]);
        assert_eq!(
            rig.account(Account::Held),
            0,
            "what had not started is not in doubt"
        );
    });
}

/// What is held when the partition goes to another member exists nowhere else: it is dead-lettered as moved.
#[test]
fn held_work_of_a_revoked_partition_is_moved_to_the_dead_letters() {
    paused(async {
        let script = Script::new(|_, _| Box::pin(async { Err("who knows".into()) }));
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), 1);
        let balances = rig.drain(Duration::from_secs(5), true).await;
        assert_eq!(rig.letterbox.reasons(), [("0".to_owned(), "moved".to_owned())]);
        assert_eq!((balances[0].of(Account::Failed), balances[0].remainder()), (1, 0));
    });
}
