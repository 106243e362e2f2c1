//! What a kill leaves behind, and what the next start makes of it.

use super::*;

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

/// Schedule 12: (Inv 3 and 4) killed inside the handler: at most as many in doubt as there are slots, and a
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
            outputs: Arc::default(),
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
