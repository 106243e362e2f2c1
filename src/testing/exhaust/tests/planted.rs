//! What is planted is found: handlers that are wrong for their class, probes and errors that lie, an engine that
//! forgets.

use super::*;

/// (a) It charges before an await, and says that it may be repeated freely.
#[test]
fn a_handler_that_is_not_idempotent_is_found() {
    let found = found(
        exhaust(
            |world| {
                Harness::new(topic(Idempotent, world), |payload, cx: World| async move {
                    cx.state().note("charge", text(&payload));
                    tokio::task::yield_now().await;
                    Ok(())
                })
            },
            [message("a")],
        )
        .final_state(|world| world.times("charge"))
        .run(),
    );
    let expected = Wrong::Differs {
        expected: "1".to_owned(),
        found: "2".to_owned(),
    };
    assert_eq!(found.wrong, expected);
    let story = &found.story;
    for said in [
        "Topic payments is idempotent",
        "CRASH at edge",
        "while: message [0]@0: attempt 1 waits at its await 1",
        "process 2 starts",
        "effect: charge a (process 2, attempt 1)",
        "declare the topic `PotentiallyIdempotent`",
    ] {
        assert!(story.contains(said), "{said:?} is missing in\n{story}");
    }
    assert_eq!(story.matches("effect: charge a").count(), 2, "{story}");
    assert_eq!(found.schedule.crashes().len(), 1);
    assert!(
        found.tried <= found.schedule.crashes()[0] + 1,
        "the first schedule that shows it: {} tried\n{story}",
        found.tried
    );
}

/// (b) An engine that does not remember what it has begun.
#[test]
fn an_engine_without_begins_is_found() {
    let found = found(
        exhaust(
            |world| {
                Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                    charge(text(&payload), &cx).await;
                    Ok(())
                })
            },
            [message("a")],
        )
        .losing_begins()
        .run(),
    );
    let expected = Wrong::Repeated {
        effect: effect("charge", "a"),
        times: 2,
    };
    assert_eq!(found.wrong, expected, "{found}");
    assert!(
        found
            .story
            .contains("hapax ran the handler again where it must not"),
        "{found}"
    );
}

/// (c) It says that nothing was applied, and that is not true. No crash is needed to see it.
#[test]
fn an_error_that_lies_is_found() {
    let found = found(
        exhaust(
            |world| {
                Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                    charge(text(&payload), &cx).await;
                    if cx.attempt() == 1 {
                        Err("no receipt").not_applied()?;
                    }
                    Ok(())
                })
            },
            [message("a")],
        )
        .run(),
    );
    assert_eq!(found.schedule, Schedule::default());
    assert!(matches!(found.wrong, Wrong::Repeated { times: 2, .. }), "{found}");
    assert!(
        found.story.contains("say `not_applied` and `retry_after` only"),
        "{found}"
    );
    assert!(found.story.contains("without any crash"), "{found}");
}

#[test]
fn a_token_of_the_attempt_is_found() {
    let found = found(
        exhaust(
            |world| {
                Harness::new(
                    topic(PotentiallyIdempotent, world),
                    |payload, cx: World| async move {
                        charge(format!("{}-{}", text(&payload), cx.attempt()), &cx).await;
                        Ok(())
                    },
                )
            },
            [message("a")],
        )
        .run(),
    );
    let effect = effect("charge", "a-2");
    assert_eq!(found.wrong, Wrong::OneTooMany { effect }, "{found}");
    assert!(found.story.contains("send `cx.child_token(name)`"), "{found}");
}

/// It returns before what it has spawned is done: recorded, and never applied.
#[test]
fn an_effect_left_to_a_task_is_found() {
    let found = found(
        exhaust(
            |world| {
                Harness::new(topic(NonIdempotent, world), |payload, cx: World| async move {
                    tokio::spawn(async move { charge(text(&payload), &cx).await });
                    Ok(())
                })
            },
            [message("a")],
        )
        .run(),
    );
    let effect = effect("charge", "a");
    assert_eq!(found.wrong, Wrong::Lost { effect }, "{found}");
    assert!(found.story.contains("await what it spawns"), "{found}");
}

/// What a probe gets wrong, in both directions.
#[test]
fn a_probe_that_lies_is_found() {
    let with = |answer: fn() -> Probe| {
        exhaust(
            move |world: &Effects| {
                let probe = move |_, _: World| async move { Ok::<_, HandlerError>(answer()) };
                Harness::new(
                    topic(NonIdempotent, world).probe(probe),
                    |payload, cx: World| async move {
                        charge(text(&payload), &cx).await;
                        Ok(())
                    },
                )
            },
            [message("a")],
        )
        .run()
    };
    let again = found(with(|| Probe::NotDone));
    assert!(matches!(again.wrong, Wrong::Repeated { .. }), "{again}");
    assert!(again.story.contains("the probe answered `NotDone`"), "{again}");
    let never = found(with(|| Probe::done("")));
    assert!(matches!(never.wrong, Wrong::Lost { .. }), "{never}");
    assert!(never.story.contains("the probe answered `Done`"), "{never}");
}

#[test]
fn chance_in_a_token_is_found_out() {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let tried = exhaust(
        |world| {
            Harness::new(topic(PotentiallyIdempotent, world), |_, cx: World| async move {
                let random = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                charge(random.to_string(), &cx).await;
                Ok(())
            })
        },
        [message("a")],
    )
    .run();
    let Err(Error::NotDeterministic { expected, found }) = tried else {
        panic!("{tried:?}")
    };
    assert_eq!((&*expected, &*found), ("effect: charge 0", "effect: charge 1"));
}
