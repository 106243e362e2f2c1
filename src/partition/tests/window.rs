//! The window in log time, its floor, and the clock.

use super::*;
use crate::config::Durability;

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

/// Inv 6: partition time travels with the commit. After a restart a late message is seen *now*, not at its own stamp.
#[test]
fn partition_time_is_restored_with_the_commit() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, stamped("clock", 0));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.stop().await;
        rig.send(0, stamped("late", -3 * HOUR_MS));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, stamped("clock2", 1));
        rig.send(0, stamped("late", 2));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 2]);
        assert_eq!(rig.account(Account::Duplicate), 1);
    });
}

/// Every step of a window that spans several buckets, across a restart each: inside up to the last millisecond.
#[test]
fn the_window_ends_exactly_in_every_bucket_and_across_restarts() {
    paused(async {
        for first_ms in [0, HOUR_MS / 4 - 1, HOUR_MS / 4, HOUR_MS / 2 + 1] {
            for (gap_ms, runs) in [(HOUR_MS - 1, 1), (HOUR_MS, 2)] {
                let script = Script::ok();
                let mut rig = rig(Class::NonIdempotent, &script);
                rig.send(0, stamped("clock", 0));
                rig.send(0, stamped("a", first_ms));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                rig.stop().await;
                rig.send(0, stamped("a", first_ms + gap_ms));
                rig.start().await.unwrap();
                rig.run_for(A_WHILE).await;
                assert_eq!(script.offsets().len(), 1 + runs, "{first_ms} and {gap_ms}");
            }
        }
    });
}

/// A window that is made shorter or longer between two starts is exact at once: old buckets keep their ends.
#[test]
fn a_window_of_another_length_is_exact_from_its_first_start() {
    paused(async {
        for (hours, gap_ms, runs) in [
            (0.5, HOUR_MS / 2 - 1, 1),
            (0.5, HOUR_MS / 2, 2),
            (2.0, 2 * HOUR_MS - 1, 1),
            (2.0, 2 * HOUR_MS, 2),
        ] {
            let script = Script::ok();
            let mut rig = rig(Class::NonIdempotent, &script);
            rig.send(0, stamped("a", 0));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            rig.stop().await;
            rig.policy.window = Duration::from_secs(3_600).mul_f64(hours);
            // In steps that are no jumps of the clock.
            rig.send(0, stamped("clock", gap_ms / 2));
            rig.send(0, stamped("a", gap_ms));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets().len(), 1 + runs, "{hours} h, {gap_ms} ms");
        }
    });
}

/// Random stamps (late, equal, ahead), kills, clean ends and sweeps by the acknowledged commit, against a model of three
/// lines: a message runs unless its token has an outcome that was first seen less than a window ago. Exact, in every
/// schedule, and nothing runs twice because of a kill. `SEED=<n>` runs one alone.
#[test]
fn every_message_runs_as_the_model_of_the_window_says() {
    let one = std::env::var("SEED")
        .ok()
        .map(|seed| seed.parse::<u64>().unwrap());
    for seed in one.map_or(0..300, |seed| seed..seed + 1) {
        paused(window_campaign(seed));
    }
}

async fn window_campaign(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let script = Script::ok();
    let class = [Class::Idempotent, Class::NonIdempotent][random.usize(0..2)];
    let window_ms = random.i64(1..2_000);
    let mut rig = rig_with(class, &script, |policy| {
        policy.window = Duration::from_millis(window_ms as u64);
    });
    let mut first_seen: BTreeMap<u32, i64> = BTreeMap::new();
    let (mut now_ms, mut expected) = (0, Vec::new());
    rig.send(0, stamped("start", 0));
    expected.push(0);
    rig.start().await.unwrap();
    for _ in 0..random.u32(5..80) {
        match random.u8(0..10) {
            0 => {
                rig.crash();
                rig.start().await.unwrap();
            }
            1 => {
                rig.stop().await;
                rig.start().await.unwrap();
            }
            2 => {
                // As the sweeper does: by the time at the acknowledged commit.
                let mark = rig.committed(0).and_then(|committed| committed.mark);
                if let Some(time_ms) = mark.and_then(|mark| mark.time_ms) {
                    let topic = rig.id(0).unwrap().topic;
                    rig.store.drop_buckets(topic, time_ms - window_ms).unwrap();
                }
            }
            _ => {
                for _ in 0..random.u32(1..4) {
                    let token = random.u32(0..5);
                    let stamp = now_ms + random.i64(-2 * window_ms..window_ms + 2);
                    let offset = rig.send(0, stamped(&format!("t{token}"), stamp));
                    now_ms = now_ms.max(stamp);
                    let known = first_seen
                        .get(&token)
                        .is_some_and(|seen| now_ms - seen < window_ms);
                    if !known {
                        first_seen.insert(token, now_ms);
                        expected.push(offset);
                    }
                }
            }
        }
        rig.run_for(Duration::from_millis(random.u64(30..200))).await;
    }
    rig.run_for(A_WHILE).await;
    let mut offsets = script.offsets();
    offsets.sort_unstable();
    assert_eq!(
        offsets, expected,
        "SEED={seed}, {class}, a window of {window_ms} ms"
    );
    assert_eq!(rig.books().remainder(), 0, "SEED={seed}");
}

/// 2 is a duplicate of 0; 3 comes after the window, and is begun when the process dies. 1 has kept the commit point back, so 2 comes
/// again, and meets the record of 3: that is not about it.
#[test]
fn a_duplicate_that_comes_again_is_no_part_of_what_a_later_message_has_begun() {
    paused(async {
        for durability in [Durability::Local, Durability::Replicated] {
            let script = Script::new(|offset, _| if offset == 0 { ok() } else { never() });
            let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
                policy.concurrency = Concurrency::unordered(8);
                policy.deadline = Duration::from_secs(3_600);
            });
            rig.durability = durability;
            rig.max_clock_jump = Duration::from_secs(7_200);
            for (token, after_ms) in [("t", 0), ("slow", 1), ("t", HOUR_MS / 2), ("t", 2 * HOUR_MS)] {
                rig.send(0, stamped(token, after_ms));
            }
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), [0, 1, 3], "{durability}");
            rig.crash();
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            let accounts = [Account::Duplicate, Account::Held].map(|account| rig.account(account));
            assert_eq!(accounts, [1, 2], "{durability}");
            let mut open = open_offsets(&rig);
            open.sort_unstable();
            assert_eq!(open, [1, 3], "{durability}");
        }
    });
}
