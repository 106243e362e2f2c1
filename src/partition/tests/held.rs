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
