//! A handler runs inside a span that names its message and attempt and, where the message came with a W3C `traceparent`,
//! the trace that it belongs to. The token is a customer's: its text is in nothing that is said at level info or above.
//!
//! Method: real Kafka, and a subscriber of the tests' own (`events.rs`). The handler says something; what matters is the
//! span that it is said in.
//!
//! Seen to fail with `Span::none()` in place of the attempt's span: every field empty.

use std::time::Duration;

use hapax::{Bytes, Context, Idempotent, Topic, Window};
use tempfile::TempDir;

use crate::member::{self, Effects, Member, Message};
use crate::{events, kafka};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_runs_in_the_span_of_its_attempt() {
    let Some(broker) = kafka::broker() else { return };
    events::listen();
    let (brokers, topic, dir) = (
        broker.bootstrap(),
        kafka::unique("traces"),
        TempDir::new().unwrap(),
    );
    member::create_topic(broker, &topic, 1, &[]);
    let with = |token: &str, traceparent: &str| Message {
        headers: vec![("traceparent".to_owned(), traceparent.as_bytes().to_vec())],
        ..Message::new(0, token, "payload")
    };
    // A secret of its own for each, that no other text could contain.
    let secrets = ["s3cret-alpha", "s3cret-beta", "s3cret-gamma"];
    let messages = [
        with(secrets[0], &format!("00-{TRACE}-{PARENT}-01")),
        with(secrets[1], "00-not-a-traceparent"),
        Message::new(0, secrets[2], "payload"),
        Message::new(0, secrets[0], "payload"),
        Message {
            token: Some(vec![b'x'; 600]),
            ..Message::new(0, "", "payload")
        },
    ];
    member::send(&brokers, &topic, messages).await;
    let bytes = Topic::bytes(&topic, Idempotent)
        .state(Effects::default())
        .window(Window::hours(1))
        .ordered()
        .retry(3, Duration::from_secs(20))
        .retry_overall(3, Duration::from_secs(20))
        .backoff(Duration::from_millis(10), Duration::from_millis(10));
    let member = Member::start(member::consumer(&brokers, &topic, dir.path()).handle(
        bytes,
        |_: Bytes, cx: Context<Effects>| async move {
            // Also after it had to wait, when another poll has gone between.
            member::nap(Duration::from_millis(1)).await;
            tracing::info!(of = cx.topic(), "inside the handler");
            if cx.offset().0 == 1 && cx.attempt() == 1 {
                return Err("not this time".into());
            }
            Ok(())
        },
    ));
    member::await_caught_up(&brokers, &topic, &topic);
    member.stop().await;

    let inside = events::all(|said| said.field("of") == topic);
    let seen: Vec<[&str; 6]> = inside
        .iter()
        .map(|said| {
            ["topic", "partition", "offset", "attempt", "trace_id", "parent_id"]
                .map(|name| said.within.get(name).map_or("", String::as_str))
        })
        .collect();
    let name = topic.as_str();
    assert_eq!(
        seen,
        [
            [name, "0", "0", "1", TRACE, PARENT],
            [name, "0", "1", "1", "", ""],
            [name, "0", "1", "2", "", ""],
            [name, "0", "2", "1", "", ""],
            [name, "0", "4", "1", "", ""],
        ]
    );
    let spans = events::all(|said| said.span == "hapax.attempt" && said.field("topic") == topic);
    assert_eq!(
        spans.len(),
        5,
        "a span for each attempt, and none for the duplicate"
    );
    let told = events::all(|said| said.level <= tracing::Level::INFO);
    for secret in secrets {
        let leak = told.iter().find(|said| said.text().contains(secret));
        assert!(leak.is_none(), "{leak:?}");
    }
}
