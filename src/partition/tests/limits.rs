//! Inv 10: what bounds the taking, and that work goes on at the bound.

use super::*;

/// Messages in flight: 20 slots that never end, and room for 5.
#[test]
fn no_more_is_taken_than_may_be_in_flight() {
    paused(async {
        let script = Script::new(|_, _| never());
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(20);
            policy.deadline = Duration::from_secs(3_600);
        });
        rig.limits.in_flight = 5;
        for n in 0..20 {
            rig.send(0, message(&format!("t{n}")));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets().len(), rig.account(Account::InFlight)), (5, 5));
    });
}

/// One slow message, and any number of quick ones behind it that are recorded and cannot be committed: the ledger is
/// memory too.
#[test]
fn no_more_is_taken_than_the_ledger_may_hold() {
    paused(async {
        let script = Script::new(|offset, _| if offset == 0 { never() } else { ok() });
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(20);
            policy.deadline = Duration::from_secs(3_600);
        });
        rig.limits.in_flight = 5;
        for n in 0..200 {
            rig.send(0, message(&format!("t{n}")));
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(5)).await;
        let taken = rig.books().taken;
        // Whole batches are taken: at most one more beyond the bound.
        assert!((5..=5 + 5).contains(&taken), "{taken}");
    });
}

/// Held messages, all partitions of the process together: at the bound nothing more is taken, anywhere.
#[test]
fn no_more_is_taken_while_too_much_is_held() {
    paused(async {
        let script = Script::new(|_, _| who_knows());
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(1);
        });
        rig.limits.held = 3;
        rig.limits.in_flight = 2;
        for partition in 0..2 {
            for n in 0..20 {
                rig.send(partition, message(&format!("t{n}")));
            }
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(5)).await;
        let held = rig.account(Account::Held);
        // What was taken already may still be held.
        assert!((3..=3 + 2).contains(&held), "{held}");
    });
}

/// A held message does not stay for ever: `held_age` gives it up, and what waited behind it is judged by that.
#[test]
fn what_is_held_for_too_long_is_dead_lettered() {
    paused(async {
        let script = Script::new(|_, _| who_knows());
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.limits.held_age = Duration::from_secs(60);
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(59)).await;
        assert_eq!(rig.account(Account::Held), 2);
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(
            rig.letterbox.reasons(),
            [("0".to_owned(), "held-too-long".to_owned())]
        );
        assert_eq!(
            (rig.account(Account::Failed), rig.account(Account::Duplicate)),
            (1, 1)
        );
        assert_eq!(open_offsets(&rig), [0i64; 0]);
    });
}
