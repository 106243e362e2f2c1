//! What an operator does while the partition is served: what is refused, what a crash leaves of it, and who waits.

use super::*;
use crate::act::{Answer as Came, Redriven};
use crate::outcome::{Closed, End, Reason};
use crate::store::AuditEntry;

const SYNC: Duration = Duration::from_millis(50);

/// Orders while time passes.
async fn order_as(rig: &mut Rig, acts: Vec<Act>, dry_run: bool) -> Result<Vec<Came>, Unanswered> {
    let asked = ordered(rig, acts, "asked the bank", dry_run);
    rig.run_for(A_WHILE).await;
    asked.await.unwrap().map(|answered| answered.answers)
}

async fn order(rig: &mut Rig, acts: Vec<Act>) -> Vec<Came> {
    order_as(rig, acts, false).await.unwrap()
}

async fn one(rig: &mut Rig, act: Act) -> Came {
    order(rig, vec![act]).await.remove(0)
}

const fn resolved(offset: i64, verdict: Verdict) -> Act {
    Act::Resolve {
        offset: Offset(offset),
        verdict,
        attempts: None,
    }
}

fn token(rig: &Rig, text: &str) -> TokenKey {
    token_of(rig, &message(text))
}

fn acts_of(rig: &Rig) -> Vec<(String, i64)> {
    let acts = rig.store.audited().unwrap();
    acts.iter()
        .map(|act: &AuditEntry| (act.act.clone(), act.offset))
        .collect()
}

fn end_of(rig: &Rig, offset: i64) -> Option<End> {
    let closed = rig.closed(0, Offset(offset)).unwrap();
    closed.map(|closed: Closed| closed.end)
}

/// 0 is held in doubt, 1 is of another token, 2 waits behind 0.
async fn in_doubt(script: &Script, change: impl FnOnce(&mut Rig)) -> Rig {
    let mut rig = rig(Class::NonIdempotent, script);
    change(&mut rig);
    for token in ["a", "b", "a"] {
        rig.send(0, message(token));
    }
    rig.start().await.unwrap();
    rig.run_for(2 * A_WHILE).await;
    assert_eq!(open_offsets(&rig), [0, 2]);
    rig
}

fn doubtful_once() -> Script {
    Script::new(|offset, call| match (offset, call.attempt) {
        (0, 1) => who_knows(),
        _ => ok(),
    })
}

#[test]
fn a_verdict_is_carried_out_at_once_and_whoever_waits_is_judged_by_it() {
    paused(async {
        for (verdict, runs, accounts) in [
            (Verdict::Done, vec![0, 1], (2, 0, 1)),
            (Verdict::Run, vec![0, 1, 0], (2, 0, 1)),
            (Verdict::DeadLetter, vec![0, 1], (1, 1, 1)),
        ] {
            let script = doubtful_once();
            let mut rig = in_doubt(&script, |_| {}).await;
            let answer = one(&mut rig, resolved(0, verdict)).await;
            assert!(matches!(answer, Came::Done(_)), "{answer:?}");
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets(), runs, "{verdict:?}");
            let of = |account| rig.account(account);
            let found = (of(Account::Done), of(Account::Failed), of(Account::Duplicate));
            assert_eq!(found, accounts, "{verdict:?}");
            assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
            let act = format!("resolve --{}", verdict.code());
            assert_eq!(acts_of(&rig), [(act, 0)]);
        }
    });
}

#[test]
fn what_takes_no_verdict_is_refused_and_nothing_is_written() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            0 => who_knows(),
            3 => after(Duration::from_secs(3_600)),
            _ => ok(),
        });
        let long = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.deadline = Duration::from_secs(7_200);
        });
        let mut rig = in_doubt(&script, |rig| *rig = long).await;
        rig.send(0, message("slow"));
        rig.run_for(A_WHILE).await;
        for (offset, says) in [
            (1, "not held"),
            (2, "behind its token"),
            (3, "in flight"),
            (9, "not held"),
        ] {
            let answer = one(&mut rig, resolved(offset, Verdict::Done)).await;
            assert!(
                matches!(&answer, Came::Refused(why) if why.contains(says)),
                "{offset}: {answer:?}"
            );
        }
        let dry = order_as(&mut rig, vec![resolved(0, Verdict::Done)], true)
            .await
            .unwrap();
        assert!(matches!(dry[0], Came::Done(_)));
        assert_eq!((acts_of(&rig), open_offsets(&rig)), (vec![], vec![0, 2, 3]));
    });
}

/// Two operators at once: one verdict counts, and the other one is told.
#[test]
fn of_two_operators_one_decides() {
    paused(async {
        for sync in [Duration::ZERO, SYNC] {
            let script = doubtful_once();
            let mut rig = in_doubt(&script, |rig| rig.sync = sync).await;
            let ask = |verdict| {
                let asked = ordered(&rig, vec![resolved(0, verdict)], "asked", false);
                async move { asked.await.unwrap().unwrap().answers.remove(0) }
            };
            let (first, second) = (ask(Verdict::Done), ask(Verdict::Run));
            rig.run_for(2 * A_WHILE).await;
            let answers = [first.await, second.await];
            let done = answers
                .iter()
                .filter(|came| matches!(came, Came::Done(_)))
                .count();
            assert_eq!(done, 1, "{answers:?}");
            assert_eq!((script.offsets(), acts_of(&rig).len()), (vec![0, 1], 1));
            // And the same once more: it is so already.
            let again = one(&mut rig, resolved(0, Verdict::Done)).await;
            assert!(matches!(again, Came::Refused(_)), "{again:?}");
            assert_eq!(acts_of(&rig).len(), 1);
        }
    });
}

/// Both looked, and both say run. It ran, and is in doubt again: the second one did not know of that attempt.
#[test]
fn a_verdict_is_about_the_attempts_that_whoever_gives_it_knows_of() {
    paused(async {
        let script = Script::new(|offset, _| match offset {
            0 => who_knows(),
            _ => ok(),
        });
        let mut rig = in_doubt(&script, |_| {}).await;
        let run = Act::Resolve {
            offset: Offset(0),
            verdict: Verdict::Run,
            attempts: Some(1),
        };
        assert!(matches!(one(&mut rig, run.clone()).await, Came::Done(_)));
        assert_eq!(
            (script.offsets(), open_offsets(&rig)),
            (vec![0, 1, 0], vec![0, 2])
        );
        let answer = one(&mut rig, run).await;
        assert!(
            matches!(&answer, Came::Refused(why) if why.contains("2 attempts")),
            "{answer:?}"
        );
        assert_eq!(script.offsets(), [0, 1, 0]);
    });
}

/// The same where all attempts in place were made: those before the verdict are not counted against it, and the next one has a
/// number of its own.
#[test]
fn a_run_that_an_operator_ordered_has_a_number_that_no_attempt_had() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, 1 | 2) => Box::pin(async { Err(HandlerError::not_applied("not yet")) }),
            (0, _) => who_knows(),
            _ => ok(),
        });
        let mut rig = in_doubt(&script, |_| {}).await;
        let run = |attempts| Act::Resolve {
            offset: Offset(0),
            verdict: Verdict::Run,
            attempts: Some(attempts),
        };
        assert!(matches!(one(&mut rig, run(3)).await, Came::Done(_)));
        let answer = one(&mut rig, run(3)).await;
        assert!(
            matches!(&answer, Came::Refused(why) if why.contains("4 attempts")),
            "{answer:?}"
        );
        let calls = script.calls();
        let attempts = calls.iter().filter(|(offset, _)| *offset == 0);
        let attempts: Vec<u32> = attempts.map(|(_, attempt)| *attempt).collect();
        assert_eq!(attempts, [1, 2, 3, 4]);
    });
}

/// A kill after the verdict is durable and before it is carried out.
#[test]
fn a_verdict_outlives_a_kill() {
    paused(async {
        for verdict in [Verdict::Done, Verdict::Run, Verdict::DeadLetter] {
            let mut seen = [false; 2];
            for pause in 0..12 {
                let script = doubtful_once();
                let mut rig = in_doubt(&script, |rig| rig.sync = SYNC).await;
                let acts = vec![resolved(0, verdict)];
                let asked = ordered(&rig, acts, "asked", false);
                rig.run_for(Duration::from_millis(15 * pause)).await;
                rig.crash();
                let answered = asked.await.unwrap();
                let was_given = !acts_of(&rig).is_empty();
                assert!(was_given || answered.is_err(), "answered before it was durable");
                seen[usize::from(was_given)] = true;
                rig.sync = Duration::ZERO;
                rig.start().await.unwrap();
                rig.run_for(2 * A_WHILE).await;
                let runs = script.offsets().iter().filter(|offset| **offset == 0).count();
                assert!(runs <= 1 + usize::from(verdict == Verdict::Run && was_given));
                // Killed while it ran as it was told to, it is in doubt once more.
                let ends = was_given && (verdict != Verdict::Run || end_of(&rig, 0).is_some());
                assert_eq!(open_offsets(&rig).is_empty(), ends, "{verdict:?} after {pause}");
                assert!(!was_given || ends || runs == 2, "{verdict:?} after {pause}");
                assert_eq!(rig.books().remainder(), 0);
            }
            assert_eq!(seen, [true; 2], "{verdict:?}: both sides of the write are met");
        }
    });
}

/// A drain catches the order at any moment: it is carried out, or it is as if nobody had asked, and whoever asked knows.
#[test]
fn a_verdict_that_a_rebalance_catches_is_whole_or_was_not() {
    paused(async {
        for pause in 0..12 {
            let script = doubtful_once();
            let mut rig = in_doubt(&script, |rig| rig.sync = SYNC).await;
            let acts = vec![resolved(0, Verdict::Done)];
            let asked = ordered(&rig, acts, "asked", false);
            rig.run_for(Duration::from_millis(10 * pause)).await;
            rig.drain(Duration::from_secs(5), true).await;
            let given = !acts_of(&rig).is_empty();
            match asked.await.unwrap() {
                Ok(answered) => assert_eq!(matches!(answered.answers[0], Came::Done(_)), given),
                Err(why) => assert!(matches!(why, Unanswered::Gone | Unanswered::NotHere), "{why}"),
            }
            // Given away with a verdict it is done, without one it is moved.
            let moved = ("0".to_owned(), "moved".to_owned());
            assert_eq!(!rig.letterbox.reasons().contains(&moved), given, "after {pause}");
            assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0, 1], vec![]));
        }
    });
}

#[test]
fn an_invalidated_token_is_dead_lettered_with_the_operators_words() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let tokens = ["a", "new"].map(|text| token(&rig, text));
        for token in tokens {
            let answer = one(&mut rig, Act::Invalidate { token }).await;
            assert!(matches!(answer, Came::Done(_)), "{answer:?}");
            let again = one(&mut rig, Act::Invalidate { token }).await;
            assert!(matches!(again, Came::Unchanged(_)), "{again:?}");
        }
        assert_eq!(acts_of(&rig).len(), 2);
        rig.send(0, message("a"));
        rig.send(0, message("new"));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0]);
        let letters = rig.letterbox.reasons();
        assert_eq!(
            letters,
            ["1", "2"].map(|at| (at.to_owned(), "invalidated".to_owned()))
        );
        let letters = rig.letterbox.letters();
        let error = |letter: &crate::broker::Letter| {
            let found = letter.headers.iter().find(|(name, _)| name == "hapax-error");
            String::from_utf8(found.unwrap().1.clone().unwrap().to_vec()).unwrap()
        };
        let errors: Vec<String> = letters.iter().map(error).collect();
        assert!(
            errors.iter().all(|error| error.contains("asked the bank")),
            "{errors:?}"
        );
        // What was delivered before is a redelivery, whatever an operator has said since.
        rig.commit_as(0, 0, rig.committed(0).unwrap().mark);
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets(), rig.letterbox.reasons().len()), (vec![0], 2));
        assert_eq!(rig.account(Account::Redelivery), 3);
    });
}

#[test]
fn forget_is_refused_where_kafka_may_deliver_again_and_while_the_token_is_open() {
    paused(async {
        let script = doubtful_once();
        let mut rig = in_doubt(&script, |_| {}).await;
        let (open, closed, unknown) = (token(&rig, "a"), token(&rig, "b"), token(&rig, "c"));
        let answers = order(
            &mut rig,
            vec![Act::Forget { token: open }, Act::Forget { token: unknown }],
        )
        .await;
        assert!(
            matches!(&answers[0], Came::Refused(why) if why.contains("open at offset 0")),
            "{answers:?}"
        );
        assert!(matches!(answers[1], Came::Unchanged(_)), "{answers:?}");
        assert!(matches!(
            one(&mut rig, Act::Invalidate { token: open }).await,
            Came::Refused(_)
        ));
        // It is done and committed: the next message of the token runs, and the one before does not run again.
        assert!(matches!(
            one(&mut rig, Act::Forget { token: closed }).await,
            Came::Done(_)
        ));
        assert!(matches!(
            one(&mut rig, Act::Forget { token: closed }).await,
            Came::Unchanged(_)
        ));
        rig.send(0, message("b"));
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 3]);
        rig.commit_as(0, 1, rig.committed(0).unwrap().mark);
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 3]);
        assert_eq!(acts_of(&rig).len(), 1);
    });
}

/// 1 was suppressed before its token was forgotten: delivered again it is a redelivery, and not the next message.
#[test]
fn what_was_delivered_before_a_token_was_forgotten_does_not_run() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let act = Act::Forget {
            token: token(&rig, "a"),
        };
        assert!(matches!(one(&mut rig, act).await, Came::Done(_)));
        rig.commit_as(0, 1, rig.committed(0).unwrap().mark);
        rig.crash();
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!((script.offsets(), rig.account(Account::Redelivery)), (vec![0], 1));
    });
}

#[test]
fn forget_waits_for_the_commit() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.commit_every = Duration::from_secs(3_600);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let act = Act::Forget {
            token: token(&rig, "a"),
        };
        let answer = one(&mut rig, act).await;
        assert!(
            matches!(&answer, Came::Refused(why) if why.contains("not below")),
            "{answer:?}"
        );
        assert_eq!(acts_of(&rig), []);
    });
}

/// While an act is on its way to the disk its token is nobody's: a message that comes meanwhile is judged after it.
#[test]
fn a_message_that_comes_while_its_token_is_decided_about_waits() {
    paused(async {
        for pause in [0, 1, 2, 5, 20, 40, 60, 90] {
            let script = Script::ok();
            let mut rig = rig(Class::NonIdempotent, &script);
            rig.sync = SYNC;
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            let acts = vec![Act::Invalidate {
                token: token(&rig, "new"),
            }];
            let asked = ordered(&rig, acts, "recalled", false);
            rig.run_for(Duration::from_millis(pause)).await;
            rig.send(0, message("new"));
            rig.run_for(A_WHILE).await;
            let answer = asked.await.unwrap().unwrap().answers.remove(0);
            let ran = script.offsets() == [0, 1];
            assert_eq!(
                matches!(answer, Came::Refused(_)),
                ran,
                "after {pause} ms: {answer:?}"
            );
            if !ran {
                assert_eq!(
                    rig.letterbox.reasons(),
                    [("1".to_owned(), "invalidated".to_owned())]
                );
            }
            rig.send(0, message("new"));
            rig.run_for(A_WHILE).await;
            assert_eq!(script.offsets().len(), 1 + usize::from(ran), "after {pause} ms");
            assert_eq!(rig.books().remainder(), 0);
        }
    });
}

fn redriven(offset: i64, message: Kept) -> Act {
    Act::Redrive(Box::new(Redriven {
        offset: Offset(offset),
        reason: None,
        not_applied: false,
        message,
    }))
}

#[test]
fn a_dead_letter_is_held_and_runs_once_however_often_it_is_redriven() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, _) => reject(),
            _ => ok(),
        });
        let mut rig = rig(Class::NonIdempotent, &script);
        for token in ["a", "b", "c"] {
            rig.send(0, message(token));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(end_of(&rig, 0), Some(End::Failed(Reason::Rejected)));
        rig.crash();
        // It is mended.
        let script = Script::ok();
        rig.replace(Arc::new(Typed {
            callee: Arc::new(script.clone()),
            terms: TERMS,
            outputs: Arc::default(),
        }));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let answers = order(
            &mut rig,
            vec![
                redriven(0, message("a")),
                redriven(1, message("b")),
                redriven(7, message("z")),
            ],
        )
        .await;
        assert!(matches!(answers[0], Came::Done(_)), "{answers:?}");
        assert!(
            matches!(&answers[1], Came::Unchanged(why) if why.contains("done")),
            "{answers:?}"
        );
        assert!(
            matches!(&answers[2], Came::Refused(why) if why.contains("commit point")),
            "{answers:?}"
        );
        rig.run_for(A_WHILE).await;
        let again = one(&mut rig, redriven(0, message("a"))).await;
        assert!(matches!(again, Came::Unchanged(_)), "{again:?}");
        assert_eq!(script.offsets(), [0]);
        assert!(matches!(end_of(&rig, 0), Some(End::Done(_))));
        assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
        assert_eq!(acts_of(&rig), [("redrive".to_owned(), 0)]);
    });
}

/// What was given up in doubt may have been applied: an operator says that it was not, or it does not run.
#[test]
fn what_may_have_been_applied_is_not_redriven_without_a_word() {
    paused(async {
        let first = AtomicBool::new(true);
        let script = Script::new(move |offset, _| match offset {
            0 if first.swap(false, Ordering::Relaxed) => who_knows(),
            _ => ok(),
        });
        let mut rig = in_doubt(&script, |_| {}).await;
        one(&mut rig, resolved(0, Verdict::DeadLetter)).await;
        rig.run_for(A_WHILE).await;
        let answer = one(&mut rig, redriven(0, message("a"))).await;
        assert!(
            matches!(&answer, Came::Refused(why) if why.contains("--not-applied")),
            "{answer:?}"
        );
        let Act::Redrive(mut letter) = redriven(0, message("a")) else {
            unreachable!()
        };
        letter.not_applied = true;
        let answer = one(&mut rig, Act::Redrive(letter)).await;
        assert!(matches!(answer, Came::Done(_)), "{answer:?}");
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [0, 1, 0]);
        assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
    });
}

/// Held and not yet run, it outlives a kill; nothing of it is lost, and it runs once.
#[test]
fn a_redriven_message_outlives_a_kill() {
    paused(async {
        for pause in 0..12 {
            let script = Script::new(|offset, _| match offset {
                0 => reject(),
                _ => ok(),
            });
            let mut rig = rig(Class::PotentiallyIdempotent, &script);
            rig.sync = SYNC;
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            let acts = vec![redriven(0, message("a"))];
            let asked = ordered(&rig, acts, "mended", false);
            rig.run_for(Duration::from_millis(15 * pause)).await;
            rig.crash();
            let answered = asked.await.unwrap().is_ok();
            let given = !acts_of(&rig).is_empty();
            assert!(given || !answered);
            rig.start().await.unwrap();
            rig.run_for(2 * A_WHILE).await;
            assert_eq!(script.offsets().len() > 1, given, "after {pause}");
            assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
        }
    });
}
