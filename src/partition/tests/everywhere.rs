//! Not one schedule but all of them: the process dies at every edge, and at every edge after that once more.
//!
//! Inv 3 and 4 from outside: what a handler's outside world saw, by class, whatever the handler ends with.

use crate::handler::{HandlerError, Topic, Undecoded};
use crate::testing::{Effects, Harness, Message, exhaust};
use crate::{Class, Classify as _, Context, NonIdempotent, PotentiallyIdempotent, Window};

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
