//! The line of a token: nobody waits for ever, nobody is passed, and nobody is judged by what was known before the last one left it.

use super::*;
use crate::act::Answer as Came;
use crate::broker::Letter;
use crate::config::{AfterFailure, AfterHold};
use crate::handler::HandlerError;

fn retry_after(seconds: u64) -> Answer {
    Box::pin(async move { Err(HandlerError::retry_after(Duration::from_secs(seconds), "later")) })
}

fn reject_after(seconds: u64) -> Answer {
    Box::pin(async move {
        wait(Duration::from_secs(seconds)).await;
        Err(HandlerError::reject("no"))
    })
}

fn held_once(policy: &mut TopicPolicy) {
    policy.after_failure = AfterFailure::Run;
    policy.deadline = Duration::from_secs(60);
    policy.concurrency = Concurrency::unordered(4);
    policy.retry.in_place.attempts = 1;
    policy.retry.overall.attempts = 2;
}

/// 2 is held and has `n`; 3 is held behind it, and has `n` and `o`. The process dies. 2 runs for its retry while 3 is held for too
/// long: 3 waits for it, with `o` in its hands. 1, which has both and was decided, comes again now, and waits for 2 as well. Once 2
/// has ended, `n` is 1's: if 3 kept `o`, each would wait for the other.
#[test]
fn whoever_waits_gives_way_to_a_lower_offset_that_comes_again() {
    paused(async {
        let is_killed = Arc::new(AtomicBool::new(false));
        let of_script = Arc::clone(&is_killed);
        let script = Script::new(move |offset, call| match (offset, call.attempt) {
            (0, _) if !of_script.load(Ordering::SeqCst) => never(),
            (0, _) => after(Duration::from_secs(29)),
            (1, _) => reject(),
            (2, 1) => retry_after(20),
            (2, _) => reject_after(20),
            _ => ok(),
        });
        let mut rig = rig_with(Class::Idempotent, &script, held_once);
        rig.limits.held_age = Duration::from_secs(25);
        for message in [
            message("z"),
            rotated(Some("n"), Some("o")),
            rotated(Some("n"), None),
            rotated(Some("n"), Some("o")),
        ] {
            rig.send(0, message);
            if rig.is_running() {
                rig.run_for(Duration::from_millis(50)).await;
            } else {
                rig.start().await.unwrap();
            }
        }
        rig.run_for(A_WHILE).await;
        assert_eq!(open_offsets(&rig), [2, 3]);
        rig.crash();
        is_killed.store(true, Ordering::SeqCst);
        // Nothing is taken before 0 has ended.
        rig.limits.in_flight = 1;
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(60)).await;
        let of = |account| rig.account(account);
        assert_eq!(
            (of(Account::InFlight), of(Account::Held), open_offsets(&rig)),
            (0, 0, vec![]),
            "{:?}",
            script.calls()
        );
        assert_eq!(script.offsets(), [0, 1, 2, 0, 2, 3]);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(4)));
        assert_eq!(rig.books().remainder(), 0);
    });
}

/// 1 is held, and a later message of its token asks what is known of it: that 0 failed, so that it may run. Before the answer is
/// here 1 has run and is done: the answer is of no more use.
#[test]
fn an_answer_that_is_older_than_the_end_of_who_was_held_is_asked_for_again() {
    // At one of these instants 1 is on its way from the store, and not here yet.
    for at_ms in (4_900..5_200).step_by(10) {
        paused(async {
            let script = Script::new(|offset, call| match (offset, call.attempt) {
                (0, _) => reject(),
                (1, 1) => retry_after(5),
                _ => ok(),
            });
            let mut rig = rig_with(Class::Idempotent, &script, held_once);
            rig.answers_after = Duration::from_millis(60);
            rig.send(0, message("a"));
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(at_ms)).await;
            rig.send(0, message("a"));
            rig.run_for(Duration::from_secs(5)).await;
            assert_eq!(script.calls(), [(0, 1), (1, 1), (1, 2)], "{at_ms}");
            assert_eq!(rig.account(Account::Duplicate), 1, "{at_ms}");
            assert_eq!(
                (open_offsets(&rig), rig.books().remainder()),
                (vec![], 0),
                "{at_ms}"
            );
        });
    }
}

fn asking(to: &'static str) -> Kept {
    let mut message = message("a");
    let header = ("reply-to".into(), Some(Bytes::from_static(to.as_bytes())));
    message.headers.push(header);
    message
}

/// 1 and 2 are duplicates of 0, and each is told; 2 cannot be told yet. An act about their token would be found above it, and 2 would
/// pass for a redelivery after a crash: it is in flight until it is told.
#[test]
fn a_duplicate_that_is_not_told_yet_has_its_token() {
    paused(async {
        let script = Script::new(|_, _| after(Duration::from_millis(100))).replying("receipt");
        let mut rig = rig_with(Class::NonIdempotent, &script, |policy| {
            policy.reply.header = Some("reply-to".into());
            policy.reply.allowed = vec!["alice".into(), "bob".into()];
        });
        rig.letterbox.refuse_to(Some("bob"));
        for to in ["alice", "alice", "bob"] {
            rig.send(0, asking(to));
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
        let token = token_of(&rig, &message("a"));
        let asked = ordered(&rig, vec![Act::Forget { token }], "again", false);
        rig.run_for(Duration::from_secs(1)).await;
        let answers = asked.await.unwrap().unwrap().answers;
        rig.crash();
        rig.letterbox.refuse_to(None);
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(2)).await;
        let letters: Vec<Letter> = rig.letterbox.letters();
        let told = |to: &str| letters.iter().filter(|letter| letter.topic == to).count();
        assert_eq!((told("alice"), told("bob")), (2, 1), "{answers:?}");
        let is_refused = |why: &String| why.contains("in flight, at offset 2");
        assert!(
            matches!(answers.as_slice(), [Came::Refused(why)] if is_refused(why)),
            "{answers:?}"
        );
    });
}

/// 1 is held behind 0, which fails: it is to run, and is on its way to be judged when the partition goes to another member. It lies
/// below the committed offset, so nobody else has it.
#[test]
fn who_is_being_judged_is_not_left_behind_by_a_revocation() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, 1) => retry_after(5),
            (0, _) => reject(),
            _ => ok(),
        });
        let mut rig = rig_with(Class::Idempotent, &script, held_once);
        rig.answers_after = Duration::from_millis(200);
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(3)).await;
        assert_eq!(
            (open_offsets(&rig), rig.committed_offset(0)),
            (vec![0, 1], Some(NextOffset(2)))
        );
        while script.calls().len() < 2 {
            rig.run_for(Duration::from_millis(10)).await;
        }
        rig.run_for(Duration::from_millis(300)).await;
        rig.revoke(0, Duration::from_secs(5)).await;
        let reasons = [("0", "rejected"), ("1", "moved")];
        assert_eq!(
            rig.letterbox.reasons(),
            reasons.map(|(at, why)| (at.into(), why.into()))
        );
        assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
    });
}

/// The same where its key is busy with a later message, which does not end in time.
#[test]
fn who_waits_for_its_key_is_not_left_behind_by_a_revocation() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, 1) => retry_after(5),
            (0, _) => reject(),
            (2, _) => never(),
            _ => ok(),
        });
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            held_once(policy);
            policy.concurrency = Concurrency::by_key(4);
            policy.after_hold = AfterHold::Release;
        });
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(3)).await;
        rig.send(0, message("b"));
        rig.run_for(Duration::from_secs(10)).await;
        assert_eq!(
            (script.offsets(), rig.committed_offset(0)),
            (vec![0, 2, 0], Some(NextOffset(2)))
        );
        rig.revoke(0, Duration::from_secs(5)).await;
        let reasons = [("0", "rejected"), ("1", "moved")];
        assert_eq!(
            rig.letterbox.reasons(),
            reasons.map(|(at, why)| (at.into(), why.into()))
        );
        assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
    });
}

/// 0 is held and has `n`. An operator invalidates `o`; 3 has both, and is held behind 0 while that act is on its way to the disk. So
/// is what 0 ends with: once all of it is durable nobody is before 3 any more.
#[test]
fn whoever_is_held_behind_an_act_is_freed_by_it() {
    paused(async {
        let script = Script::new(|offset, call| match (offset, call.attempt) {
            (0, 1) => retry_after(5),
            _ => ok(),
        });
        let mut rig = rig_with(Class::Idempotent, &script, held_once);
        rig.sync = Duration::from_millis(200);
        rig.send(0, rotated(Some("n"), None));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_millis(4_900)).await;
        let step = Duration::from_millis(20);
        // So many groups as may be on their way.
        for token in ["y", "z"] {
            rig.send(0, message(token));
            rig.run_for(step).await;
        }
        let token = token_of(&rig, &rotated(None, Some("o")));
        let asked = ordered(&rig, vec![Act::Invalidate { token }], "leaked", false);
        rig.run_for(step).await;
        rig.send(0, rotated(Some("n"), Some("o")));
        rig.run_for(Duration::from_secs(5)).await;
        let answers = asked.await.unwrap().unwrap().answers;
        assert!(matches!(answers.as_slice(), [Came::Done(_)]), "{answers:?}");
        assert_eq!((script.offsets(), open_offsets(&rig)), (vec![0, 1, 2, 0], vec![]));
        assert_eq!((rig.account(Account::Held), rig.books().remainder()), (0, 0));
    });
}
