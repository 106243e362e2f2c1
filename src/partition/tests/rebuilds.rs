//! Schedules of rebuilds: a cold window is read back, and then it is a window like any other.

use super::*;
use crate::broker::CommitMark;
use crate::config::Cold;
use crate::message::Offset;
use crate::outcome::{Closed, End, Stored};
use crate::store::StoreId;

const OTHER: CommitMark = CommitMark {
    store_id: StoreId([9; 16]),
    time_ms: Some(START_MS),
};

#[test]
fn a_lost_disk_is_read_back_and_what_was_done_is_done_by_an_unknown_outcome() {
    paused(async {
        for class in [
            Class::NonIdempotent,
            Class::PotentiallyIdempotent,
            Class::Idempotent,
        ] {
            let script = Script::ok();
            let mut rig = rig(class, &script);
            rig.cold = Cold::Rebuild;
            rig.send(0, message("a"));
            rig.send(0, message("b"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            rig.crash();
            rig.lose_the_disk();
            rig.start().await.unwrap();
            for token in ["b", "c", "a"] {
                rig.send(0, message(token));
            }
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), [0, 1, 3], "{class}");
            assert_eq!(
                (rig.account(Account::Duplicate), rig.account(Account::Done)),
                (2, 1)
            );
            let unknown = rig.closed(0, Offset(0)).unwrap().unwrap();
            assert_eq!((unknown.end, unknown.attempts), (End::Done(Stored::Nothing), 0));
        }
    });
}

/// The last duplicate before the disk was lost has renewed the window, though nobody has its record any more. Where none does, 0
/// was past when 2 came, which ran: of those that the rebuild reads, 1 and 2, nobody knows any more which one did.
#[test]
fn a_window_that_was_renewed_is_read_back_as_it_was() {
    use crate::config::Renewal;
    paused(async {
        for (renewal, runs) in [(Renewal::OnDuplicate, vec![0]), (Renewal::Never, vec![0, 2, 4])] {
            let script = Script::ok();
            let mut rig = rig(Class::NonIdempotent, &script);
            rig.policy.renewal = renewal;
            rig.cold = Cold::Rebuild;
            rig.partitions(1);
            rig.start().await.unwrap();
            for step in 0..3 {
                rig.send(0, stamped("a", step * HOUR_MS / 2));
            }
            rig.run_for(A_WHILE).await;
            rig.crash();
            rig.lose_the_disk();
            rig.start().await.unwrap();
            for after_ms in [HOUR_MS + HOUR_MS / 2, 2 * HOUR_MS + HOUR_MS / 4] {
                rig.send(0, stamped("a", after_ms));
                rig.run_for(A_WHILE).await;
            }
            assert_eq!(script.offsets(), runs, "{renewal}");
        }
    });
}

/// Killed when the first of three messages is written. The commits are this store's own, so nothing but its position tells
/// that it is cold, and the position is written last.
#[test]
fn a_rebuild_that_dies_leaves_the_partition_cold() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.start().await.unwrap();
        rig.stop().await;
        for token in ["a", "b", "c"] {
            rig.send(0, message(token));
        }
        let own = CommitMark {
            store_id: rig.store.identity().store_id,
            time_ms: Some(START_MS),
        };
        rig.commit_as(0, 3, Some(own));
        rig.send(0, message("a"));
        rig.send(0, message("c"));

        rig.cold = Cold::Rebuild;
        rig.rebuild_dies_after = Some(1);
        rig.start().await.unwrap();
        assert!(
            rig.closed(0, Offset(0)).unwrap().is_some(),
            "what it read is true"
        );
        rig.crash();
        rig.cold = Cold::Refuse;
        let refused = rig.start().await;
        assert!(refused.is_err_and(|error| crate::error::chain(&error).contains("is cold")));
        rig.crash();

        rig.cold = Cold::Rebuild;
        rig.rebuild_dies_after = None;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), Vec::<i64>::new());
        rig.crash();
        rig.cold = Cold::Refuse;
        rig.start().await.unwrap();
    });
}

/// What was begun here was ended by the member that committed past it: to take it for in doubt would hold its duplicate.
#[test]
fn what_was_begun_below_the_commit_point_is_not_in_doubt() {
    paused(async {
        let script = Script::new(|_, _| never());
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(100)).await;
        rig.crash();
        rig.commit_as(0, 1, Some(OTHER));
        rig.send(0, message("a"));
        rig.cold = Cold::Rebuild;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0]);
        assert_eq!(
            (rig.account(Account::Duplicate), rig.account(Account::Held)),
            (1, 0)
        );
        assert_eq!(rig.open(0).unwrap(), []);
    });
}

/// What is held here below the commit point is decided by nobody yet: its duplicate waits with it.
#[test]
fn what_is_held_stays_held() {
    paused(async {
        let script = Script::new(|_, _| who_knows());
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), 1);
        rig.stop().await;
        rig.commit_as(0, 1, Some(OTHER));
        rig.send(0, message("a"));
        rig.cold = Cold::Rebuild;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), 2);
        assert_eq!(rig.closed(0, Offset(0)).unwrap(), None::<Closed>);
    });
}

/// The window ends exactly where it ends for what was recorded: at partition time, not at the stamp of the message.
#[test]
fn what_is_read_back_expires_by_partition_time() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.cold = Cold::Rebuild;
        rig.send(0, stamped("early", 0));
        rig.send(0, stamped("edge", 1));
        rig.send(0, stamped("last", HOUR_MS));
        // Stamped long ago, and sent now: it has a whole window.
        rig.send(0, stamped("late", 0));
        rig.commit_as(0, 4, None);
        for token in ["early", "edge", "late"] {
            rig.send(0, stamped(token, HOUR_MS));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [4], "the one that is an hour old");
    });
}
