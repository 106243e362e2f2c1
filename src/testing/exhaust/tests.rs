//! Exhaust finds what is planted, and nothing in handlers that are right.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::handler::{HandlerError, Probe, Topic, Undecoded};
use crate::{Classify as _, Context, Idempotent, NonIdempotent, PotentiallyIdempotent, Window};

mod planted;

type World = Context<Effects>;

fn topic(class: Class, world: &Effects) -> Topic<Undecoded, Effects> {
    Topic::bytes("payments", class)
        .window(Window::hours(24))
        .state(world.clone())
}

/// Five messages, four tokens.
fn messages() -> Vec<Message> {
    ["a", "b", "a", "c", "d"].map(message).into()
}

fn message(token: &str) -> Message {
    Message::bytes(token.to_owned()).token(token.to_owned())
}

/// A handler that waits, applies its effect, and waits again.
async fn charge(token: String, cx: &World) {
    tokio::task::yield_now().await;
    cx.state().note("charge", token);
    tokio::task::yield_now().await;
}

fn text(payload: &bytes::Bytes) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

fn found<T>(tried: Result<T, Error>) -> Violation {
    match tried {
        Err(Error::Violated(violation)) => *violation,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("nothing was found"),
    }
}

fn effect(name: &str, token: &str) -> Effect {
    Effect {
        name: name.to_owned(),
        token: token.to_owned(),
    }
}

#[test]
fn nothing_is_found_in_handlers_that_are_right() {
    let non_idempotent = exhaust(
        |world| {
            Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                if cx.attempt() == 1 && &payload[..] == b"b" {
                    Err("the bank is closed").not_applied()?;
                }
                charge(text(&payload), &cx).await;
                Ok(())
            })
        },
        messages(),
    )
    .run()
    .unwrap();
    let held: Vec<_> = non_idempotent.held().iter().map(|(_, of)| of.offset.0).collect();
    assert!(held.contains(&0) && held.contains(&4), "{held:?}");

    let potentially = exhaust(
        |world| {
            Harness::new(
                topic(PotentiallyIdempotent, world),
                |payload, cx: World| async move {
                    charge(cx.child_token("charge"), &cx).await;
                    if cx.attempt() == 1 && &payload[..] == b"b" {
                        Err("no answer")?;
                    }
                    Ok(())
                },
            )
        },
        messages(),
    )
    .nothing_held()
    .run()
    .unwrap();

    let idempotent = exhaust(
        |world| {
            Harness::new(topic(Idempotent, world), |payload, cx: World| async move {
                charge(text(&payload), &cx).await;
                let table = cx.state().shared::<Mutex<BTreeMap<String, u32>>>();
                table.lock().unwrap().insert(text(&payload), 1);
                Ok(())
            })
        },
        messages(),
    )
    .nothing_held()
    .final_state(|world| {
        world
            .shared::<Mutex<BTreeMap<String, u32>>>()
            .lock()
            .unwrap()
            .clone()
    })
    .run()
    .unwrap();

    for tried in [non_idempotent, potentially, idempotent] {
        assert_eq!(tried.schedules(), tried.edges() + 1);
        assert!(tried.edges() > 20, "{} edges", tried.edges());
    }
}

/// With a probe that tells the truth nothing is held, and nothing repeats.
#[test]
fn nothing_is_found_with_a_probe_that_is_right() {
    let tried = exhaust(
        |world| {
            let topic = topic(NonIdempotent, world).probe(|payload, cx: World| async move {
                tokio::task::yield_now().await;
                Ok(match cx.state().contains("charge", text(&payload)) {
                    true => Probe::done(""),
                    false => Probe::NotDone,
                })
            });
            Harness::new(topic, |payload, cx: World| async move {
                charge(text(&payload), &cx).await;
                Ok(())
            })
        },
        [message("a"), message("b")],
    )
    .nothing_held()
    .crashes(2)
    .run()
    .unwrap();
    assert!(
        tried.schedules() > tried.edges() * 10,
        "a second crash at every edge after the first: {tried:?}"
    );
}

/// What a process remembers by itself is gone with it: the handler's own list of what was charged does not survive.
#[test]
fn the_memory_of_a_process_does_not_survive() {
    let found = found(
        exhaust(
            |world| {
                let charged = Arc::new(Mutex::new(Vec::new()));
                Harness::new(
                    topic(Idempotent, world),
                    move |payload: bytes::Bytes, cx: World| {
                        let charged = Arc::clone(&charged);
                        async move {
                            let is_new = !charged.lock().unwrap().contains(&payload);
                            if is_new {
                                charged.lock().unwrap().push(payload.clone());
                                charge(text(&payload), &cx).await;
                            }
                            Ok(())
                        }
                    },
                )
            },
            [message("a")],
        )
        .final_state(|world| world.times("charge"))
        .run(),
    );
    assert!(matches!(found.wrong, Wrong::Differs { .. }), "{found}");
}

#[test]
fn what_is_held_is_wrong_only_where_nothing_is_to_be() {
    let payments = || {
        exhaust(
            |world| {
                Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                    charge(text(&payload), &cx).await;
                    Ok(())
                })
            },
            [message("a")],
        )
    };
    let tried = payments().run().unwrap();
    assert!(!tried.held().is_empty());
    let found = found(payments().nothing_held().run());
    assert_eq!(found.schedule, tried.held()[0].0, "{found}");
    assert!(matches!(found.wrong, Wrong::Held { .. }), "{found}");
    assert!(found.story.contains("give the topic a probe"), "{found}");
}

/// Everything that becomes durable is an edge, on both sides of it; so is every await.
#[test]
fn every_place_to_die_is_tried() {
    let all = exhaust(
        |world| {
            Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                charge(text(&payload), &cx).await;
                if &payload[..] == b"no" {
                    Err("no such card").reject()?;
                }
                Err("who knows".into())
            })
        },
        [message("a"), message("no")],
    );
    let Replayed { story, held, .. } = all.replay(&Schedule::default()).unwrap();
    assert_eq!(held.len(), 1, "{story}");
    for said in [
        "durable: start of partition 0",
        "durable: message [0]@0: attempt 1 begun",
        "message [0]@0: attempt 1 starts",
        "message [0]@0: attempt 1 waits at its await 1",
        "message [0]@0: attempt 1 waits at its await 2",
        "message [0]@0: attempt 1 ends with an end that leaves open what was applied: who knows",
        "durable: message [0]@0: held in doubt",
        "message [0]@1: given up, its dead letter is to be sent",
        "durable: dead letter of message @1 (rejected)",
        "message [0]@1: failed (rejected)",
        "durable: commit of offset 2 of partition 0",
    ] {
        assert!(story.contains(said), "{said:?} is missing in\n{story}");
    }
    assert!(!story.contains("await 3"), "each await counts once:\n{story}");
    let tried = all.run().unwrap();
    let crashes: Vec<String> = (1..=tried.edges())
        .map(|edge| {
            let story = all.replay(&Schedule::default().and(edge)).unwrap().story;
            let crash = story.lines().find(|line| line.contains("CRASH")).unwrap();
            crash.to_owned()
        })
        .collect();
    for said in [
        "attempt 1 begun",
        "held in doubt",
        "dead letter of",
        "commit of offset 2",
        "start of partition",
    ] {
        for side in ["before this was durable", "after this was durable"] {
            let dies = |crash: &&String| crash.contains(said) && crash.contains(side);
            assert!(
                crashes.iter().find(dies).is_some(),
                "no crash {side}: {said}\n{crashes:#?}"
            );
        }
    }
}

#[test]
fn schedules_are_data_and_are_replayed_alone() {
    let payments = exhaust(
        |world| {
            Harness::new(topic(Idempotent, world), |payload, cx: World| async move {
                charge(text(&payload), &cx).await;
                Ok(())
            })
        },
        [message("a")],
    )
    .final_state(|world| world.times("charge"));
    let first = found(payments.run());
    let text = first.schedule.to_string();
    assert!(
        first.story.contains(&format!(".replay(&\"{text}\".parse()?)")),
        "{first}"
    );
    let again = found(payments.replay(&text.parse().unwrap()));
    assert_eq!((&again.wrong, &again.schedule), (&first.wrong, &first.schedule));
    for text in ["none", "7", "7,3"] {
        assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
    }
    assert!("7,x".parse::<Schedule>().is_err());
    let beyond = payments.replay(&"1000".parse().unwrap());
    assert!(matches!(beyond, Err(Error::NoSuchCrash { .. })), "{beyond:?}");
}

#[test]
fn the_same_handler_gives_the_same_report() {
    let run = || {
        let tried = exhaust(
            |world| {
                Harness::new(topic(Idempotent, world), |payload, cx: World| async move {
                    charge(text(&payload), &cx).await;
                    Ok(())
                })
            },
            messages(),
        )
        .final_state(|world| world.times("charge"))
        .run();
        found(tried).story
    };
    assert_eq!(run(), run());
}

#[test]
fn more_schedules_than_allowed_are_refused_with_their_number() {
    let payments = exhaust(
        |world| {
            Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                charge(text(&payload), &cx).await;
                Ok(())
            })
        },
        messages(),
    )
    .crashes(2)
    .at_most(200);
    match payments.run() {
        Err(Error::TooMany {
            needed,
            tried,
            limit: 200,
        }) => assert!(tried > 20 && needed > 200, "{tried} {needed}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_refused_without_a_crash_is_said() {
    let tried = exhaust(
        |world| {
            let topic = Topic::bytes("payments", NonIdempotent).state(world.clone());
            Harness::new(topic, |_, _: World| async { Ok(()) })
        },
        [message("a")],
    )
    .run();
    let Err(error) = tried else { panic!("{tried:?}") };
    assert!(
        format!("{error:?}").contains("topics.payments.window"),
        "{error:?}"
    );
}

/// Inside an async test too, whatever its runtime.
#[tokio::test]
async fn it_works_in_an_async_test() {
    let tried = exhaust(
        |world| {
            Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                charge(text(&payload), &cx).await;
                Ok(())
            })
        },
        [message("a")],
    )
    .run();
    assert!(tried.is_ok(), "{tried:?}");
}

#[test]
fn a_handler_that_panics_is_followed() {
    let tried = exhaust(
        |world| {
            Harness::new(topic(PotentiallyIdempotent, world), |_, cx: World| async move {
                charge(cx.child_token("charge"), &cx).await;
                assert!(cx.attempt() > 1, "the first attempt panics");
                Ok(())
            })
        },
        [message("a")],
    );
    tried.run().unwrap();
    let story = tried.replay(&Schedule::default()).unwrap().story;
    assert!(story.contains("a panic, the first attempt panics"), "{story}");
}

/// Whenever the process dies, what was given up is a dead letter or waits for a verdict.
#[test]
fn no_dead_letter_is_lost_by_a_crash() {
    let rejects = exhaust(
        |world| {
            Harness::new(topic(NonIdempotent, world), |_, _: World| async move {
                Err("no").reject()?;
                Ok(())
            })
        },
        [message("a")],
    );
    let edges = rejects.run().unwrap().edges();
    for edge in 1..=edges {
        let replayed = rejects.replay(&Schedule::default().and(edge)).unwrap();
        let is_letter = replayed.story.contains("is a dead letter (rejected)");
        assert!(is_letter != (replayed.held.len() == 1), "{}", replayed.story);
    }
}

/// From the moment of its death a process runs no code of the user's, whatever was ready to run.
#[test]
fn a_dead_process_polls_nothing() {
    let ran = Mutex::new(Vec::new());
    let ran = Arc::new(ran);
    let payments = exhaust(
        |world| {
            let ran = Arc::clone(&ran);
            Harness::new(
                topic(Idempotent, world),
                move |payload: bytes::Bytes, _: World| {
                    ran.lock().unwrap().push(text(&payload));
                    async { Ok(()) }
                },
            )
        },
        [message("a"), message("b")],
    );
    let story = payments.replay(&Schedule::default()).unwrap().story;
    assert!(
        story.find("@1: attempt 1 starts") < story.find("@0: attempt 1 ends"),
        "they run beside each other:\n{story}"
    );
    let edges = payments.run().unwrap().edges();
    let dies = (1..=edges).map(|edge| Schedule::default().and(edge));
    let before_the_first = dies.filter(|schedule| {
        let story = payments.replay(schedule).unwrap().story;
        story.contains("just before: message [0]@0: attempt 1 starts")
    });
    let before_the_first: Vec<_> = before_the_first.collect();
    assert_eq!(before_the_first.len(), 1);
    ran.lock().unwrap().clear();
    payments.replay(&before_the_first[0]).unwrap();
    // Twice without a crash, then the process that dies, which ran nothing, and the one after it.
    let expected = ["a", "b", "a", "b", "a", "b"];
    let mut found = ran.lock().unwrap().clone();
    found.chunks_mut(2).for_each(<[String]>::sort);
    assert_eq!(found, expected);
}

/// A kill runs no destructor; dropping what is left of a process does, and what those say is not heard.
#[test]
fn what_a_dead_process_says_is_not_heard() {
    struct Undo(Effects, String);
    impl Drop for Undo {
        fn drop(&mut self) {
            self.0.note("undo", &self.1);
        }
    }
    let tried = exhaust(
        |world| {
            Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                let undo = Undo(cx.state().clone(), text(&payload));
                charge(text(&payload), &cx).await;
                std::mem::forget(undo);
                Ok(())
            })
        },
        [message("a")],
    )
    .run();
    assert!(tried.is_ok(), "{tried:?}");
}
