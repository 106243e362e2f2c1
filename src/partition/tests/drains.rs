//! Assignments that end: drained, revoked, lost.

use super::*;

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

/// Begun ahead, and not started when the process ends in order: un-begun, and so in nobody's doubt.
#[test]
fn what_was_begun_ahead_is_unbegun_by_a_drain() {
    paused(async {
        let script = Script::new(|_, _| after(Duration::from_millis(100)));
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(1);
            policy.begun_ahead = 2;
        });
        for token in ["a", "b", "c", "d"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(50)).await;
        assert_eq!(open_offsets(&rig), [0, 1, 2], "one runs, two are begun ahead");
        rig.stop().await;
        assert_eq!(open_offsets(&rig), [0i64; 0]);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(1)).await;
        assert_eq!(script.offsets(), [0, 1, 2, 3]);
        assert_eq!(rig.account(Account::Held), 0);
    });
}

/// The budget is spent while 1 runs, and 2, held above it, is left to the next owner; a letter keeps the drain open, and
/// 1 ends after all. What was left to the next owner must be delivered to it.
#[test]
fn what_ends_after_the_budget_does_not_move_the_commit_point_past_what_was_left_behind() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            1 => after(Duration::from_millis(400)),
            _ => who_knows(),
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(4);
            policy.deadline = Duration::from_secs(10);
        });
        for token in ["a", "b", "c"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(50)).await;
        assert_eq!(open_offsets(&rig), [0, 1, 2]);
        rig.letterbox.refuse(true);
        let letterbox = rig.letterbox.clone();
        tokio::spawn(async move {
            wait(Duration::from_millis(500)).await;
            letterbox.refuse(false);
        });
        rig.drain(Duration::from_millis(100), true).await;
        assert_eq!(rig.letterbox.reasons(), [("0".to_owned(), "moved".to_owned())]);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(1)));
        rig.assign(0).unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 2], "1 is done, 2 is still in doubt");
        assert_eq!(open_offsets(&rig), [2]);
    });
}

/// A drain at any moment of a retry: what was begun again and did not start is un-begun, and the attempt before it stays
/// counted.
#[test]
fn attempts_are_counted_across_a_drain_that_catches_a_retry() {
    paused(async {
        let mut caught = 0;
        for pause in 0..40 {
            let script = Script::new(|_, call| match call.attempt {
                1 => Box::pin(async { Err(HandlerError::not_applied("away")) }),
                _ => ok(),
            });
            let mut rig = rig(Class::NonIdempotent, &script);
            rig.sync = Duration::from_millis(50);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(10 * pause)).await;
            rig.stop().await;
            caught += usize::from(script.calls() == [(0, 1)]);
            rig.start().await.unwrap();
            rig.run_for(2 * A_WHILE).await;
            assert_eq!(script.calls(), [(0, 1), (0, 2)], "after {pause}");
        }
        assert!(caught > 0, "no drain came between the two");
    });
}
