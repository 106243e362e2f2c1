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
