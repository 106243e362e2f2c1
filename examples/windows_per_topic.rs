//! A window for each topic, from `windows_per_topic.toml`: a duplicate that comes two hours late is one in `payments`
//! (7 days), and a new message in `clicks` (1 hour). Age is log time: the timestamps of the messages.
//!
//! Needs no broker: `cargo run --example windows_per_topic --no-default-features --features testing`
//!
//! In production one consumer has both: `Consumer::from_file("windows_per_topic.toml")?.handle(..).handle(..)`.

use std::time::Duration;

use hapax::testing::{Account, Harness, Message};
use hapax::{Class, Context, Idempotent, NonIdempotent, Topic};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/windows_per_topic.toml");

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    assert_eq!(runs_of_a_late_duplicate("payments", NonIdempotent).await?, 1);
    assert_eq!(runs_of_a_late_duplicate("clicks", Idempotent).await?, 2);
    println!("windows_per_topic: two hours are inside the one window, and outside the other");
    Ok(())
}

/// How often a message runs that comes again after two hours.
async fn runs_of_a_late_duplicate(topic: &str, class: Class) -> Result<u64, hapax::Error> {
    // The class belongs to the handler and is stated in code; the window is in the file.
    let topic = Topic::bytes(topic, class);
    let mut consumer = Harness::new(topic, |_, _: Context| async { Ok(()) }).file(FILE)?;
    consumer.send(Message::bytes("a").token("a"));
    // Time passes with the other messages of the topic.
    let others = 4;
    for other in 0..others {
        consumer.advance(Duration::from_secs(1_800));
        consumer.send(Message::bytes("other").token(format!("other-{other}")));
    }
    consumer.send(Message::bytes("a").token("a"));
    consumer.start().await?;
    let books = consumer.settle().await?;
    assert_eq!(books.of(Account::Done) + books.of(Account::Duplicate), others + 2);
    Ok(books.of(Account::Done) - others)
}
