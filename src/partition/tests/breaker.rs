//! The breaker and the budget of retries: when attempts start, never whether, and in no other order.

use super::*;
use crate::breaker::{LEAST, TRIALS};

const OPEN_FOR: Duration = Duration::from_secs(10);

/// A downstream that can be taken away, and what it was asked meanwhile.
#[derive(Clone, Default)]
struct Downstream {
    is_away: Arc<AtomicBool>,
    asked_away: Arc<Mutex<Vec<i64>>>,
    served: Arc<Mutex<Vec<i64>>>,
}

impl Downstream {
    fn script(&self) -> Script {
        let downstream = self.clone();
        Script::new(move |offset, _| {
            if downstream.is_away.load(Ordering::SeqCst) {
                downstream.asked_away.lock().unwrap().push(offset);
                return Box::pin(async { Err(HandlerError::not_applied("away")) });
            }
            downstream.served.lock().unwrap().push(offset);
            ok()
        })
    }

    fn away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
    }

    fn asked_away(&self) -> usize {
        self.asked_away.lock().unwrap().len()
    }

    fn served(&self) -> Vec<i64> {
        self.served.lock().unwrap().clone()
    }
}

fn guarded_by_breaker(class: Class, script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Rig {
    rig_with(class, script, |policy| {
        policy.breaker.over = 100;
        policy.breaker.open_for = OPEN_FOR;
        policy.retry.in_place.attempts = 20;
        policy.retry.in_place.first = Duration::from_millis(50);
        policy.retry.in_place.total = Duration::from_secs(5);
        change(policy);
    })
}

/// `count` messages of eight keys, one token each.
fn send(rig: &mut Rig, partition: i32, from: i64, count: i64) {
    for n in from..from + count {
        let mut message = message(&format!("{partition}-{n}"));
        message.key = Some(Bytes::from(format!("k{}", n % 8)));
        rig.send(partition, message);
    }
}

/// Of each key in the order of its offsets, each once.
fn assert_in_order(served: &[i64], count: i64) {
    let mut sorted = served.to_vec();
    sorted.sort_unstable();
    let wrong = (0..count).find(|offset| sorted.iter().filter(|served| *served == offset).count() != 1);
    assert_eq!((wrong, sorted.len() as i64), (None, count), "each once");
    for key in 0..8 {
        let of_key: Vec<_> = served.iter().filter(|offset| **offset % 8 == key).collect();
        assert!(of_key.is_sorted(), "key {key}: {of_key:?}");
    }
}

/// Away for a minute, which is far more than retries in place have: it is asked some twenty times, and once every ten seconds
/// after that; nothing is given up, lost or out of order, and commits go on afterwards.
#[test]
fn a_downstream_that_is_away_for_a_minute_is_left_in_peace() {
    paused(async {
        for class in [Class::Idempotent, Class::NonIdempotent] {
            let downstream = Downstream::default();
            let mut rig = guarded_by_breaker(class, &downstream.script(), |_| {});
            send(&mut rig, 0, 0, 100);
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(downstream.served().len(), 100);
            downstream.away(true);
            send(&mut rig, 0, 100, 200);
            rig.run_for(Duration::from_secs(60)).await;
            let asked = downstream.asked_away();
            assert!((50..=120).contains(&asked), "{asked}");
            let committed = rig.committed_offset(0);
            assert_eq!(
                committed,
                Some(NextOffset(100)),
                "nothing passes what has not ended"
            );
            downstream.away(false);
            assert!(rig.settle(Duration::from_secs(60)).await);
            assert_in_order(&downstream.served(), 300);
            assert_eq!(rig.committed_offset(0), Some(NextOffset(300)));
            assert_eq!(rig.letterbox.reasons(), []);
            assert_eq!((rig.account(Account::Done), rig.books().remainder()), (300, 0));
        }
    });
}

/// While it is open nothing at all is asked, and the topic takes nothing: what else is sent stays where it is.
#[test]
fn while_it_is_open_nothing_starts_and_nothing_is_taken() {
    paused(async {
        let downstream = Downstream::default();
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &downstream.script(), |_| {});
        downstream.away(true);
        send(&mut rig, 0, 0, 50);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(2)).await;
        let (asked, taken) = (downstream.asked_away(), rig.books().taken);
        assert_eq!(asked as u64, LEAST);
        send(&mut rig, 0, 50, 500);
        rig.run_for(Duration::from_secs(7)).await;
        assert_eq!((downstream.asked_away(), rig.books().taken), (asked, taken));
        // Half-open: one trial, which fails.
        rig.run_for(Duration::from_secs(3)).await;
        assert_eq!(downstream.asked_away(), asked + 1);
        downstream.away(false);
        assert!(rig.settle(Duration::from_secs(60)).await);
        assert_in_order(&downstream.served(), 550);
    });
}

/// What is begun is only what is let: a kill while it is open leaves nothing more in doubt than what had begun when it opened,
/// and what was noted as not applied is not among it.
#[test]
fn nothing_is_begun_while_it_is_open_and_a_kill_puts_nothing_in_doubt() {
    paused(async {
        let downstream = Downstream::default();
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &downstream.script(), |_| {});
        rig.sync = Duration::from_millis(7);
        downstream.away(true);
        send(&mut rig, 0, 0, 100);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(5)).await;
        rig.crash();
        downstream.away(false);
        rig.start().await.unwrap();
        assert!(rig.settle(Duration::from_secs(60)).await);
        // Begun when it opened, and not started: at most one a slot, and never run by anybody.
        let held = rig.account(Account::Held) as i64;
        assert!(held <= 16, "{held}");
        let mut ran = downstream.served();
        ran.extend(open_offsets(&rig));
        ran.sort_unstable();
        assert_eq!(ran, (0..100).collect::<Vec<_>>());
    });
}

/// Begun and on its way to the disk when the breaker opens: it does not start, and starts first when the breaker lets it.
#[test]
fn what_was_begun_when_it_opened_waits_and_goes_first() {
    paused(async {
        let downstream = Downstream::default();
        let script = downstream.script();
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(40);
        });
        rig.sync = Duration::from_millis(50);
        downstream.away(true);
        send(&mut rig, 0, 0, 60);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(5)).await;
        assert_eq!(downstream.asked_away() as u64, LEAST);
        assert_eq!(open_offsets(&rig).len(), 40, "those with a slot");
        downstream.away(false);
        rig.run_for(Duration::from_secs(6)).await;
        assert_eq!(downstream.served()[..TRIALS as usize], [20, 21, 22]);
        assert!(rig.settle(Duration::from_secs(60)).await);
        let mut served = downstream.served();
        served.sort_unstable();
        assert_eq!(served, (0..60).collect::<Vec<_>>());
        assert_eq!(rig.account(Account::Held), 0);
    });
}

#[test]
fn a_drain_while_it_is_open_leaves_nothing_in_doubt_and_the_next_owner_runs_it() {
    paused(async {
        for revoked in [false, true] {
            for half_open in [false, true] {
                let downstream = Downstream::default();
                let mut rig = guarded_by_breaker(Class::NonIdempotent, &downstream.script(), |policy| {
                    policy.concurrency = Concurrency::unordered(40);
                });
                rig.sync = Duration::from_millis(50);
                downstream.away(true);
                send(&mut rig, 0, 0, 60);
                rig.start().await.unwrap();
                // The trial's begin is on its way to the disk at 10.05 s and later.
                let time = if half_open { 10_300 } else { 5_000 };
                rig.run_for(Duration::from_millis(time)).await;
                let before = crate::clock::now();
                let balances = rig.drain(Duration::from_secs(9), revoked).await;
                let took = crate::clock::now() - before;
                assert!(took < Duration::from_secs(1), "nothing is waited for: {took:?}");
                assert_eq!((balances[0].remainder(), balances[0].of(Account::Failed)), (0, 0));
                downstream.away(false);
                rig.stop().await;
                rig.start().await.unwrap();
                assert!(rig.settle(Duration::from_secs(60)).await);
                let mut served = downstream.served();
                served.sort_unstable();
                assert_eq!(served, (0..60).collect::<Vec<_>>(), "revoked {revoked}");
                assert_eq!(rig.account(Account::Held), 0);
                assert_eq!(rig.letterbox.reasons(), []);
            }
        }
    });
}

/// Killed at any moment of it: closed, open, half-open with a trial under way.
#[test]
fn a_kill_at_any_time_loses_and_repeats_nothing() {
    paused(async {
        for time in (0..12_000).step_by(377) {
            let downstream = Downstream::default();
            let mut rig = guarded_by_breaker(Class::Idempotent, &downstream.script(), |policy| {
                policy.retry.in_place.attempts = 1_000;
            });
            rig.sync = Duration::from_millis(20);
            downstream.away(true);
            send(&mut rig, 0, 0, 60);
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(time)).await;
            rig.crash();
            downstream.away(false);
            rig.start().await.unwrap();
            assert!(
                rig.settle(Duration::from_secs(60)).await,
                "killed after {time} ms"
            );
            assert_in_order(&downstream.served(), 60);
        }
    });
}

/// A partition has the trial and goes: another one makes it.
#[test]
fn a_trial_that_is_under_way_when_its_partition_is_lost_is_made_by_another() {
    paused(async {
        let away = Arc::new(AtomicBool::new(true));
        let running = Arc::new(Mutex::new(Vec::new()));
        let script = {
            let (away, running) = (Arc::clone(&away), Arc::clone(&running));
            Script::new(move |offset, _| {
                if away.load(Ordering::SeqCst) {
                    return Box::pin(async { Err(HandlerError::not_applied("away")) });
                }
                running.lock().unwrap().push(offset);
                after(Duration::from_secs(30))
            })
        };
        let mut rig = guarded_by_breaker(Class::Idempotent, &script, |policy| {
            policy.deadline = Duration::from_secs(60);
        });
        for partition in 0..2 {
            send(&mut rig, partition, 0, 30);
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(5)).await;
        away.store(false, Ordering::SeqCst);
        rig.run_for(Duration::from_secs(7)).await;
        assert_eq!(
            running.lock().unwrap().len(),
            1,
            "one trial, of whichever partition"
        );
        let open = |rig: &Rig, partition| rig.open(partition).unwrap().len();
        assert_eq!((open(&rig, 0), open(&rig, 1)), (0, 0));
        rig.end(0);
        rig.run_for(Duration::from_secs(1)).await;
        let first_had_it = running.lock().unwrap().len() == 2;
        rig.end(1);
        rig.assign(0).unwrap();
        rig.run_for(Duration::from_secs(1)).await;
        let trials = running.lock().unwrap().len();
        assert_eq!(trials, if first_had_it { 3 } else { 2 }, "it is made again");
    });
}

/// Up and down every few seconds: whatever it does, each message ends once and in order.
#[test]
fn a_downstream_that_flaps_delays_and_changes_nothing() {
    paused(async {
        for seed in 0..10 {
            let mut random = fastrand::Rng::with_seed(seed);
            let downstream = Downstream::default();
            let mut rig = guarded_by_breaker(Class::NonIdempotent, &downstream.script(), |policy| {
                policy.breaker.open_for = Duration::from_secs(2);
                policy.retry.in_place.attempts = 1_000;
                policy.retry.in_place.total = Duration::from_secs(3_600);
                policy.retry.in_place.max = Duration::from_secs(1);
            });
            rig.sync = Duration::from_millis(random.u64(0..30));
            rig.start().await.unwrap();
            rig.partitions(1);
            rig.assign(0).unwrap();
            for turn in 0..20 {
                downstream.away(turn % 2 == 0);
                send(&mut rig, 0, turn * 40, 40);
                rig.run_for(Duration::from_millis(random.u64(10..6_000))).await;
            }
            downstream.away(false);
            assert!(rig.settle(Duration::from_secs(300)).await, "seed {seed}");
            assert_in_order(&downstream.served(), 800);
            assert_eq!(rig.letterbox.reasons(), [], "seed {seed}");
            let asked = downstream.asked_away();
            assert!(asked < 10 * 60 + 100, "seed {seed}: {asked}");
        }
    });
}

/// Taken before it opened: what is done already is suppressed while nothing may start.
#[test]
fn duplicates_of_what_is_done_are_suppressed_while_it_is_open() {
    paused(async {
        let downstream = Downstream::default();
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &downstream.script(), |policy| {
            policy.concurrency = Concurrency::unordered(16);
        });
        send(&mut rig, 0, 0, 10);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        downstream.away(true);
        // In one batch: some that fail, and ten duplicates behind them.
        send(&mut rig, 0, 10, 30);
        send(&mut rig, 0, 0, 10);
        rig.run_for(Duration::from_secs(5)).await;
        assert_eq!(downstream.asked_away(), 10, "half of twenty");
        assert_eq!(rig.account(Account::Duplicate), 10);
        assert_eq!(rig.account(Account::InFlight), 30);
        downstream.away(false);
        assert!(rig.settle(Duration::from_secs(60)).await);
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Duplicate)),
            (40, 10)
        );
    });
}

/// Two partitions of one topic share the breaker; another topic's goes on.
#[test]
fn partitions_of_a_topic_share_it_and_another_topic_does_not() {
    paused(async {
        let downstream = Downstream::default();
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &downstream.script(), |_| {});
        let other = Script::ok();
        let mut other_rig = guarded_by_breaker(Class::NonIdempotent, &other, |_| {});
        downstream.away(true);
        send(&mut rig, 0, 0, 60);
        rig.partitions(2);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(downstream.asked_away() as u64, LEAST);
        send(&mut rig, 1, 0, 60);
        send(&mut other_rig, 0, 0, 60);
        other_rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(5)).await;
        other_rig.run_for(A_WHILE).await;
        assert_eq!(
            downstream.asked_away() as u64,
            LEAST,
            "the other partition asks nothing either"
        );
        assert_eq!(other.calls().len(), 60);
        downstream.away(false);
        assert!(rig.settle(Duration::from_secs(60)).await);
        assert_eq!(rig.account(Account::Done), 120);
    });
}

/// A message that is refused by the handler says nothing about the downstream.
#[test]
fn rejected_messages_open_nothing() {
    paused(async {
        let script = Script::new(|offset, _| if offset < 100 { reject() } else { ok() });
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &script, |_| {});
        send(&mut rig, 0, 0, 101);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(
            (rig.account(Account::Failed), rig.account(Account::Done)),
            (100, 1)
        );
    });
}

/// Panics and deadlines are failures, too.
#[test]
fn panics_and_deadlines_open_it() {
    paused(async {
        let ends: [fn() -> Answer; 2] = [
            || Box::pin(async { std::panic::resume_unwind(Box::new("a panic of the handler's")) }),
            never,
        ];
        for end in ends {
            let script = Script::new(move |_, _| end());
            let mut rig = guarded_by_breaker(Class::NonIdempotent, &script, |policy| {
                policy.concurrency = Concurrency::unordered(20);
            });
            send(&mut rig, 0, 0, 100);
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(5)).await;
            let calls = script.calls().len();
            // All slots had started when the twentieth deadline passed.
            assert!((LEAST as usize..LEAST as usize + 20).contains(&calls), "{calls}");
        }
    });
}

/// What may run again only while the downstream remembers its child tokens, and waited longer than that for the breaker.
#[test]
fn what_the_downstream_has_forgotten_meanwhile_is_held_and_not_run_again() {
    paused(async {
        for (within, held) in [(Duration::from_secs(5), 20), (Duration::from_secs(50), 0)] {
            let away = Arc::new(AtomicBool::new(true));
            let script = {
                let away = Arc::clone(&away);
                Script::new(move |_, _| {
                    if away.load(Ordering::SeqCst) {
                        who_knows()
                    } else {
                        ok()
                    }
                })
            };
            let mut rig = guarded_by_breaker(Class::PotentiallyIdempotent, &script, |policy| {
                policy.rerun_within = within;
                policy.concurrency = Concurrency::unordered(40);
            });
            send(&mut rig, 0, 0, 30);
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(2)).await;
            assert_eq!(script.calls().len() as u64, LEAST);
            away.store(false, Ordering::SeqCst);
            assert!(rig.settle(Duration::from_secs(60)).await);
            assert_eq!(rig.account(Account::Held), held, "{within:?}");
            assert_eq!(rig.account(Account::Done), 30 - held);
            let again = script.calls().iter().filter(|(_, attempt)| *attempt > 1).count();
            assert_eq!(again as u64, 20 - held, "{within:?}");
        }
    });
}

/// The time that a retry waits for the breaker is not its own: retries in place have five seconds here, and it is open for ten.
#[test]
fn what_waits_for_the_breaker_or_the_budget_is_not_given_up_for_it() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, 1..=3) => Box::pin(async { Err(HandlerError::not_applied("busy")) }),
            (_, 1) if offset < 20 => Box::pin(async { Err(HandlerError::not_applied("busy")) }),
            _ => ok(),
        });
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &script, |policy| {
            policy.concurrency = Concurrency::unordered(40);
        });
        send(&mut rig, 0, 0, 40);
        rig.start().await.unwrap();
        assert!(rig.settle(Duration::from_secs(120)).await);
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Failed)),
            (40, 0)
        );
        assert_eq!(rig.letterbox.reasons(), []);
    });
}

/// Everything fails, and nothing but the budget limits it: within any ten seconds retries are a fifth of the attempts and the
/// floor, and each message has all of its attempts in the end.
#[test]
fn retries_beyond_the_budget_wait_and_are_all_made() {
    paused(async {
        let times = Arc::new(Mutex::new(Vec::new()));
        let script = {
            let times = Arc::clone(&times);
            Script::new(move |_, call| {
                times.lock().unwrap().push((crate::clock::now(), call.attempt));
                Box::pin(async { Err(HandlerError::not_applied("busy")) })
            })
        };
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.budget.share = Share::percent(20);
            policy.budget.per_second = 1;
            policy.retry.in_place.attempts = 5;
            policy.retry.in_place.total = Duration::from_secs(30);
            policy.concurrency = Concurrency::unordered(40);
        });
        let start = crate::clock::now();
        send(&mut rig, 0, 0, 40);
        rig.start().await.unwrap();
        assert!(rig.settle(Duration::from_secs(3_600)).await);
        let times = times.lock().unwrap().clone();
        assert_eq!(times.len(), 40 * 5, "none is given up for the budget");
        assert!(
            rig.letterbox
                .reasons()
                .iter()
                .all(|(_, reason)| reason == "retries-spent")
        );
        // Buckets are whole seconds, so any ten whole seconds are a window.
        let second = |at: crate::clock::Instant| (at - start).as_secs();
        let last = times.iter().map(|(at, _)| second(*at)).max().unwrap();
        for end in 0..=last {
            let inside = times
                .iter()
                .filter(|(at, _)| (end.saturating_sub(9)..=end).contains(&second(*at)));
            let (attempts, retries) = inside.fold((0, 0), |(attempts, retries), (_, attempt)| {
                (attempts + 1, retries + usize::from(*attempt > 1))
            });
            assert!(
                retries <= 10 + attempts / 5,
                "second {end}: {retries} of {attempts}"
            );
        }
        assert!(last > 100, "160 retries at about 1.25 a second: {last}");
    });
}

/// A retry that waits for its turn holds up its own key and its own slot, and nobody else.
#[test]
fn a_retry_that_waits_for_the_budget_holds_up_nothing_else() {
    paused(async {
        let script = Script::new(|offset, call| {
            if offset % 8 == 0 && call.attempt < 3 {
                Box::pin(async { Err(HandlerError::not_applied("busy")) })
            } else {
                ok()
            }
        });
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.budget.share = Share::percent(0);
            policy.budget.per_second = 1;
            policy.retry.in_place.total = Duration::from_secs(30);
        });
        send(&mut rig, 0, 0, 160);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(2)).await;
        // Ten retries at once: five messages of the first key.
        let of_others = script.offsets().iter().filter(|offset| **offset % 8 != 0).count();
        assert_eq!(of_others, 140);
        assert!(rig.account(Account::InFlight) > 0);
        assert!(rig.settle(Duration::from_secs(120)).await);
        let mut first_calls = Vec::new();
        for (offset, attempt) in script.calls() {
            if attempt == 1 {
                first_calls.push(offset);
            }
        }
        assert_in_order(&first_calls, 160);
    });
}

/// Retries that were begun, and on their way to the disk, when the breaker opened: the time that they wait like that is not
/// theirs either.
#[test]
fn a_retry_that_was_begun_when_it_opened_is_not_given_up_for_the_wait() {
    paused(async {
        let downstream = Downstream::default();
        let mut rig = guarded_by_breaker(Class::NonIdempotent, &downstream.script(), |policy| {
            policy.concurrency = Concurrency::unordered(19);
            policy.retry.in_place.first = Duration::from_millis(1);
            policy.retry.in_place.max = Duration::from_millis(1);
        });
        rig.sync = Duration::from_millis(50);
        downstream.away(true);
        send(&mut rig, 0, 0, 19);
        rig.start().await.unwrap();
        // Each has failed once, and all begin again together: the first of them opens it.
        rig.run_for(Duration::from_secs(7)).await;
        assert_eq!(downstream.asked_away() as u64, LEAST);
        // Their trials fail for longer than retries have, and each has a retry left after that.
        rig.run_for(Duration::from_secs(30)).await;
        downstream.away(false);
        assert!(rig.settle(Duration::from_secs(60)).await);
        assert_eq!(rig.letterbox.reasons(), []);
        assert_eq!(downstream.served().len(), 19);
    });
}
