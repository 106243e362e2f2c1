//! In doubt, held, and what waits behind it.

use super::*;

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

/// Inv 2 and schedule 18: held, a second message comes, and the first one fails for a reason that says that nothing was
/// applied. The second is the legitimate retry: it runs.
#[test]
fn whoever_was_held_behind_a_failure_is_judged_again() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, 1) => who_knows(),
            (0, _) => reject(),
            _ => ok(),
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = crate::config::AfterFailure::Run
        });
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        resolve(&mut rig, 0, Verdict::Run);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 0, 1]);
        assert_eq!((rig.account(Account::Failed), rig.account(Account::Done)), (1, 1));
        assert_eq!(open_offsets(&rig), [0i64; 0]);
    });
}

/// The same in memory: the second waits for the first, which fails.
#[test]
fn whoever_waited_behind_a_failure_is_judged_again() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            0 => Box::pin(async {
                wait(Duration::from_millis(50)).await;
                Err(HandlerError::reject("no"))
            }),
            _ => ok(),
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.after_failure = crate::config::AfterFailure::Run
        });
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(40)).await;
        assert_eq!(script.offsets(), [0]);
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1]);
        assert_eq!((rig.account(Account::Failed), rig.account(Account::Done)), (1, 1));
    });
}

/// 3 is a duplicate of 1, which has left its window, and not yet the commit point. That moves past 1, so 4 runs; it is in
/// doubt when the process dies. 3 comes again, and is held behind 4.
async fn held_behind_a_later_one(script: &Script) -> Rig {
    held_behind_a_later_one_of(script, 10_000).await
}

/// The same where that many are taken at once after the restart.
async fn held_behind_a_later_one_of(script: &Script, in_flight: usize) -> Rig {
    let mut rig = rig_with(Class::NonIdempotent, script, |policy| {
        policy.concurrency = Concurrency::unordered(4);
        policy.deadline = Duration::from_secs(3_600);
    });
    rig.max_clock_jump = Duration::from_secs(5 * 3_600);
    rig.limits.held_age = Duration::from_secs(60);
    let late_ms = 2 * HOUR_MS;
    for message in [
        message("slow"),
        message("a"),
        message("endless"),
        stamped("a", late_ms),
    ] {
        rig.send(0, message);
    }
    rig.start().await.unwrap();
    rig.run_for(Duration::from_millis(400)).await;
    assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
    rig.send(0, stamped("a", late_ms));
    rig.run_for(Duration::from_millis(100)).await;
    assert_eq!(script.offsets(), [0, 1, 2, 4]);
    rig.crash();
    rig.limits.in_flight = in_flight;
    rig.start().await.unwrap();
    rig.run_for(A_WHILE).await;
    assert_eq!((script.offsets().len(), open_offsets(&rig)), (4, vec![2, 3, 4]));
    rig
}

fn held_behind_a_later_one_script() -> Script {
    Script::new(|offset, _| match offset {
        0 => after(Duration::from_millis(100)),
        1 => ok(),
        2 => never(),
        _ => who_knows(),
    })
}

/// Found by the chaos campaign: 3 was judged before the record that it waits for was there, and what is in doubt was gone.
#[test]
fn whoever_is_held_behind_a_later_one_waits_for_it_after_a_restart_too() {
    paused(async {
        let script = held_behind_a_later_one_script();
        let mut rig = held_behind_a_later_one(&script).await;
        rig.stop().await;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets().len(), open_offsets(&rig)), (4, vec![2, 3, 4]));
        rig.stop().await;
        resolve(&mut rig, 4, Verdict::Done);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets().len(), open_offsets(&rig)), (4, vec![2]));
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Duplicate)),
            (1, 1)
        );
    });
}

/// 4 was begun when the process died, and comes again: 3, which is held behind it, is judged by how it ends, and not at the
/// next start.
#[test]
fn whoever_is_held_behind_what_was_begun_is_judged_by_how_that_ends() {
    paused(async {
        let script = held_behind_a_later_one_script();
        // 3 is held before 4 is taken.
        let mut rig = held_behind_a_later_one_of(&script, 2).await;
        let act = Act::Resolve {
            offset: Offset(4),
            verdict: Verdict::Done,
            attempts: None,
        };
        let asked = ordered(&rig, vec![act], "seen", false);
        rig.run_for(A_WHILE).await;
        assert!(asked.await.unwrap().is_ok());
        assert_eq!((script.offsets().len(), open_offsets(&rig)), (4, vec![2]));
        assert_eq!(rig.account(Account::Duplicate), 1);
    });
}

#[test]
fn whoever_is_held_behind_a_later_one_is_judged_when_that_is_too_old() {
    paused(async {
        let script = held_behind_a_later_one_script();
        let mut rig = held_behind_a_later_one(&script).await;
        rig.run_for(2 * rig.limits.held_age).await;
        assert_eq!(open_offsets(&rig), [0i64; 0]);
        let reasons = ["2", "4"].map(|offset| (offset.to_owned(), "held-too-long".to_owned()));
        assert_eq!(
            rig.letterbox.reasons(),
            reasons,
            "3 is a duplicate of what was given up"
        );
        assert_eq!((script.offsets().len(), rig.books().remainder()), (4, 0));
    });
}
