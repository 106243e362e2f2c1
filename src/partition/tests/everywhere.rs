//! Not one schedule but all of them: the process dies at every edge, and at every edge after that once more.
//!
//! Inv 3 and 4 from outside: what a handler's outside world saw, by class, whatever the handler ends with.

use crate::handler::{HandlerError, Topic, Undecoded};
use crate::testing::{Effects, Harness, Message, exhaust};
use crate::{Class, Classify as _, Context, NonIdempotent, Output, PotentiallyIdempotent, Probe, Window};

type Payments = Topic<Undecoded>;

/// The ways in which messages may run beside each other.
const WAYS: [fn(Payments) -> Payments; 3] = [
    |topic| topic.ordered(),
    |topic| topic.by_key(2),
    |topic| topic.unordered(2),
];

fn topic(class: Class, way: fn(Payments) -> Payments, world: &Effects) -> Topic<Undecoded, Effects> {
    way(Topic::bytes("payments", class).window(Window::hours(24))).state(world.clone())
}

/// What its payload says that it ends with, at its first attempt.
async fn pays(payload: bytes::Bytes, cx: Context<Effects>) -> Result<(), HandlerError> {
    let is_first = cx.attempt() == 1;
    if is_first && &payload[..] == b"closed" {
        Err("the bank is closed").not_applied()?;
    }
    tokio::task::yield_now().await;
    cx.state().note("charge", cx.child_token("charge"));
    tokio::task::yield_now().await;
    match &payload[..] {
        b"no answer" if is_first => Err("no answer".into()),
        _ => Ok(()),
    }
}

fn messages(payloads: &[&'static str]) -> Vec<Message> {
    let of = |payload: &&'static str| Message::bytes(*payload).token(*payload).key("k");
    payloads.iter().map(of).collect()
}

#[test]
fn a_handler_that_must_not_repeat_repeats_nowhere() {
    for way in WAYS {
        for payloads in [
            &["closed", "fine", "closed"][..],
            &["no answer", "fine", "no answer"],
        ] {
            let tried = exhaust(
                move |world| Harness::new(topic(NonIdempotent, way, world), pays),
                messages(payloads),
            )
            .crashes(2)
            .run()
            .unwrap();
            assert!(tried.schedules() > 150, "{payloads:?}: {}", tried.schedules());
        }
    }
}

#[test]
fn child_tokens_are_the_same_wherever_it_dies() {
    for way in WAYS {
        exhaust(
            move |world| Harness::new(topic(PotentiallyIdempotent, way, world), pays),
            messages(&["closed", "no answer", "closed"]),
        )
        .crashes(2)
        .nothing_held()
        .run()
        .unwrap();
    }
}

/// What it emits is part of its outcome: wherever the process dies, an output is sent once or more, under one token, and with no
/// attempt that did not end well.
async fn ships(payload: bytes::Bytes, cx: Context<Effects>) -> Result<(), HandlerError> {
    let is_first = cx.attempt() == 1;
    tokio::task::yield_now().await;
    if is_first && &payload[..] == b"no answer" {
        cx.emit("lost", Output::to("shipments"))?;
        Err("no answer")?;
    }
    cx.emit("ship", Output::to("shipments").payload(payload.clone()))?;
    tokio::task::yield_now().await;
    cx.emit("bill", Output::to("bills").payload(payload))?;
    Ok(())
}

#[test]
fn no_output_is_lost_and_none_is_of_a_failed_attempt() {
    for class in [Class::Idempotent, PotentiallyIdempotent] {
        for way in WAYS {
            exhaust(
                move |world| Harness::new(topic(class, way, world), ships),
                messages(&["no answer", "fine", "no answer"]),
            )
            .crashes(2)
            .nothing_held()
            .run()
            .unwrap();
        }
    }
}

/// A probe that says done, and emits what the attempt had: nothing is lost, though the handler never runs again.
#[test]
fn a_probe_emits_what_its_attempt_had() {
    for way in WAYS {
        exhaust(
            move |world| {
                let topic = topic(NonIdempotent, way, world).probe(
                    |payload: bytes::Bytes, cx: Context<Effects>| async move {
                        cx.emit("ship", Output::to("shipments").payload(payload.clone()))?;
                        cx.emit("bill", Output::to("bills").payload(payload))?;
                        Ok(Probe::done(()))
                    },
                );
                Harness::new(topic, ships)
            },
            messages(&["fine", "fine too"]),
        )
        .crashes(2)
        .nothing_held()
        .run()
        .unwrap();
    }
}
