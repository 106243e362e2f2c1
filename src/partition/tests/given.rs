//! What an outcome gives back: outputs become visible with it, once it is durable, and never without it.

use super::*;
use crate::broker::Letter;
use crate::config::Durability;
use crate::output::Output;
use crate::token::{self, Extractor};

const MODES: [Durability; 2] = [Durability::Local, Durability::Replicated];

/// What one message's attempt emits: an output of that name.
fn emits(call: &Call, name: &str) {
    let output = Output::to("shipments")
        .key("k")
        .payload(format!("{name} of an order"));
    call.emit(name, output).unwrap();
}

fn in_mode(mut rig: Rig, mode: Durability) -> Rig {
    rig.durability = mode;
    rig
}

fn header(letter: &Letter, name: &str) -> String {
    let found: Vec<_> = letter.headers.iter().filter(|(n, _)| n == name).collect();
    assert!(found.len() <= 1, "{name}: {found:?}");
    let value = found
        .first()
        .and_then(|(_, value)| value.clone())
        .unwrap_or_default();
    String::from_utf8(value.to_vec()).unwrap()
}

/// Outputs so far, as `(offset, name)`.
fn outputs(rig: &Rig) -> Vec<(String, String)> {
    let letters = rig.letterbox.letters().into_iter();
    let of = |letter: Letter| (header(&letter, "hapax-offset"), header(&letter, "hapax-output"));
    letters.map(of).filter(|(_, name)| !name.is_empty()).collect()
}

fn named(found: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(offset, name): &(&str, &str)| ((*offset).to_owned(), (*name).to_owned());
    found.iter().map(owned).collect()
}

#[test]
fn outputs_carry_their_child_tokens_and_say_whose_they_are() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|_, call| {
                emits(&call, "ship");
                emits(&call, "bill");
                ok()
            });
            let mut rig = in_mode(rig(Class::NonIdempotent, &script), mode);
            rig.send(0, message("a"));
            // A duplicate emits nothing: what it would emit is there.
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(A_WHILE).await;
            assert_eq!(outputs(&rig), named(&[("0", "ship"), ("0", "bill")]), "{mode}");
            assert_eq!(
                (rig.account(Account::Done), rig.account(Account::Duplicate)),
                (1, 1)
            );
            assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
            let letters = rig.letterbox.letters();
            let key = Extractor::new("orders", vec![Reader::Header("token".into())], 512);
            let mut keys = Vec::new();
            key.read(
                &message("a")
                    .into_batch("orders".into(), 0, crate::Offset(0))
                    .get(0)
                    .unwrap(),
                &mut keys,
            );
            for letter in &letters {
                let name = header(letter, "hapax-output");
                assert_eq!(header(letter, "idempotency-key"), token::child(&keys[0], &name));
                assert_eq!(
                    (letter.topic.as_str(), letter.key.as_deref()),
                    ("shipments", Some(&b"k"[..]))
                );
                assert_eq!(
                    letter.payload.as_deref(),
                    Some(format!("{name} of an order").as_bytes())
                );
                let lineage =
                    ["topic", "partition", "offset"].map(|name| header(letter, &format!("hapax-{name}")));
                assert_eq!(lineage, ["orders", "0", "0"]);
            }
            assert_ne!(header(&letters[0], "hapax-id"), header(&letters[1], "hapax-id"));
        });
    }
}

/// Schedule 19: two emits of one name in one attempt, or token 42 of two topics, would carry one child token: downstream drops the
/// second. A repeated name is an error that nobody can drop; the topic is part of every token.
#[test]
fn schedule_19_child_tokens_do_not_collide() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|_, call| {
                emits(&call, "x");
                // The handler drops the error, and says that all is well.
                let _ = call.emit("x", Output::to("shipments").payload("another"));
                ok()
            });
            let mut rig = in_mode(rig(Class::Idempotent, &script), mode);
            rig.send(0, message("42"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(2)).await;
            assert_eq!(outputs(&rig), [], "{mode}");
            let dead = rig.letterbox.letters();
            assert_eq!(rig.letterbox.reasons(), named(&[("0", "retries-spent")]));
            let error = header(&dead[0], "hapax-error");
            assert!(
                error.contains("output \"x\" was emitted already") && error.contains("\"x-2\""),
                "{error}"
            );
        });
    }
    let child = |topic: &str| {
        let mut keys = Vec::new();
        let kept = message("42").into_batch(topic.into(), 0, crate::Offset(0));
        Extractor::new(topic, vec![Reader::Header("token".into())], 512)
            .read(&kept.get(0).unwrap(), &mut keys);
        token::child(&keys[0], "x")
    };
    assert_ne!(child("orders"), child("refunds"));
}

#[test]
fn an_attempt_that_does_not_end_well_emits_nothing() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|offset, call| {
                emits(&call, &format!("attempt-{}", call.attempt));
                match (offset, call.attempt) {
                    (0, 1) => who_knows(),
                    (1, 1) => Box::pin(async { panic!("as the test says") }),
                    (2, 1) => never(),
                    (3, _) => reject(),
                    _ => ok(),
                }
            });
            let mut rig = in_mode(rig(Class::Idempotent, &script), mode);
            for token in ["a", "b", "c", "d"] {
                rig.send(0, message(token));
            }
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(3)).await;
            let all = [("0", "attempt-2"), ("1", "attempt-2"), ("2", "attempt-2")];
            assert_eq!(outputs(&rig), named(&all), "{mode}");
            assert_eq!((rig.account(Account::Done), rig.account(Account::Failed)), (3, 1));
        });
    }
}

/// `Settling`: in local mode no output leaves before the outcome that it belongs to is durable, and no token closes before its
/// outputs are acknowledged.
#[test]
fn an_output_leaves_after_its_outcome_is_durable_and_before_its_token_closes() {
    paused(async {
        let script = Script::new(|_, call| {
            emits(&call, "ship");
            ok()
        });
        let mut rig = rig(Class::Idempotent, &script);
        rig.sync = Duration::from_secs(5);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(4)).await;
        assert_eq!((script.offsets(), outputs(&rig)), (vec![0], vec![]));
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(outputs(&rig), named(&[("0", "ship")]));
        assert_eq!(
            rig.account(Account::Done),
            0,
            "the token is closed after the output"
        );
        rig.run_for(Duration::from_secs(5)).await;
        assert_eq!(rig.account(Account::Done), 1);
    });
}

/// The process dies between the outcome and its outputs: they are sent by the next one, with the same ids, and the handler does
/// not run again.
#[test]
fn a_crash_before_the_outputs_are_acknowledged_sends_them_again_and_runs_nothing() {
    paused(async {
        let script = Script::new(|_, call| {
            emits(&call, "ship");
            emits(&call, "bill");
            ok()
        });
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.letterbox.refuse_to(Some("shipments"));
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(
            rig.account(Account::InFlight),
            2,
            "neither it nor its duplicate is complete"
        );
        assert_eq!(rig.committed_offset(0), Some(NextOffset(0)));
        rig.crash();
        rig.letterbox.refuse_to(None);
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let first = rig.letterbox.letters();
        assert_eq!(outputs(&rig), named(&[("0", "ship"), ("0", "bill")]));
        assert_eq!(script.calls(), [(0, 1)]);
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Duplicate)),
            (1, 1)
        );
        assert_eq!(rig.books().remainder(), 0);
        assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));

        // Acknowledged, and the process dies before the token is closed: once more, and the same.
        rig.sync = Duration::from_millis(50);
        rig.send(0, message("b"));
        rig.crash();
        rig.start().await.unwrap();
        while outputs(&rig).len() < 4 {
            rig.run_for(Duration::from_millis(10)).await;
        }
        rig.crash();
        rig.sync = Duration::ZERO;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let all = rig.letterbox.letters();
        assert_eq!(all.len(), 6);
        assert_eq!(all[..2], first);
        assert_eq!(all[2..4], all[4..], "every header is the same");
        assert_eq!(script.calls(), [(0, 1), (2, 1)]);
    });
}

/// What cannot be sent is sent again, its partition takes nothing meanwhile, and what was acknowledged is not repeated.
#[test]
fn an_output_that_is_refused_stops_its_partition_and_repeats_no_other() {
    paused(async {
        let script = Script::new(|offset, call| {
            if offset == 0 {
                emits(&call, "ship");
                call.emit("bill", Output::to("bills")).unwrap();
            }
            ok()
        });
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.letterbox.refuse_to(Some("bills"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        rig.send(0, message("b"));
        rig.run_for(Duration::from_secs(10)).await;
        assert_eq!(
            (script.offsets(), outputs(&rig)),
            (vec![0], named(&[("0", "ship")]))
        );
        rig.letterbox.refuse_to(None);
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(outputs(&rig), named(&[("0", "ship"), ("0", "bill")]));
        assert_eq!(script.offsets(), [0, 1]);
        assert_eq!(rig.account(Account::Done), 2);
    });
}

#[test]
fn what_ran_after_a_hold_emits_like_any_other() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|_, call| {
                emits(&call, &format!("attempt-{}", call.attempt));
                match call.attempt {
                    4 => ok(),
                    _ => Box::pin(async { Err(HandlerError::not_applied("busy")) }),
                }
            });
            let held = rig_with(Class::NonIdempotent, &script, |policy| {
                policy.retry.overall.attempts = 8;
                policy.retry.overall.first = Duration::from_millis(100);
            });
            let mut rig = in_mode(held, mode);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            // Its offset is committed: what follows lives on the disk alone.
            while rig.committed_offset(0) != Some(NextOffset(1)) {
                rig.run_for(Duration::from_millis(10)).await;
            }
            rig.run_for(Duration::from_secs(2)).await;
            assert_eq!(outputs(&rig), named(&[("0", "attempt-4")]), "{mode}");
            assert_eq!(open_offsets(&rig), [0i64; 0]);
            assert_eq!(rig.books().remainder(), 0);
        });
    }
}

/// A probe that says done emits what it finds to be missing; one that emits nothing gives an outcome without outputs.
#[test]
fn a_probe_that_says_done_has_the_outputs_that_it_emits_itself() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|_, call| {
                emits(&call, "lost with its attempt");
                who_knows()
            })
            .with_probe(|_| Probe::done("found"));
            let mut rig = in_mode(rig(Class::NonIdempotent, &script), mode);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(2)).await;
            assert_eq!((rig.account(Account::Done), outputs(&rig)), (1, vec![]), "{mode}");
        });
    }
}

/// Inv 5: the assignment ends while the outcome is on its way to the disk.
#[test]
fn nothing_of_an_assignment_that_is_over_is_emitted() {
    for mode in MODES {
        paused(async {
            let script = Script::new(|_, call| {
                emits(&call, "ship");
                ok()
            });
            let mut rig = in_mode(rig(Class::Idempotent, &script), mode);
            rig.sync = Duration::from_millis(200);
            rig.send(0, message("a"));
            rig.start().await.unwrap();
            rig.run_for(Duration::from_millis(100)).await;
            assert_eq!(script.offsets(), [0]);
            rig.end(0);
            rig.run_for(Duration::from_secs(2)).await;
            assert_eq!(outputs(&rig), [], "{mode}");
        });
    }
}
