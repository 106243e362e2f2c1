//! Testing your own handler: the runtime that production runs, on a memory store, a scripted log and a clock that moves
//! when you say so. No broker, no C++ to build, no waiting.
//!
//! `cargo run --example test_without_broker --no-default-features --features testing`
//!
//! In your crate:
//!
//! ```toml
//! [dev-dependencies]
//! hapax = { version = "0.1", features = ["testing"] }
//! tokio = { version = "1", features = ["test-util", "macros", "rt"] }
//! ```
//!
//! and each of the functions below is a `#[tokio::test(start_paused = true)]`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hapax::testing::{Account, Harness, Message};
use hapax::{Classify, Context, HandlerError, Json, NonIdempotent, Topic, Window};

// What production has: a topic, and its handler.

#[derive(serde::Serialize, serde::Deserialize)]
struct Payment {
    cents: u64,
}

type Till = Arc<AtomicU64>;

fn payments(till: &Till) -> Topic<Json<Payment>, Till> {
    Topic::json("payments", NonIdempotent)
        .window(Window::hours(24))
        .state(Arc::clone(till))
}

async fn pay(payment: Payment, cx: Context<Till>) -> Result<(), HandlerError> {
    if payment.cents == 13 && cx.attempt() == 1 {
        Err("the bank is closed").not_applied()?;
    }
    cx.state().fetch_add(payment.cents, Ordering::SeqCst);
    Ok(())
}

// What a test has.

/// The consumer under test, and the till that it pays into.
fn consumer() -> (Harness, Till) {
    let till = Till::default();
    (Harness::new(payments(&till), pay), till)
}

fn payment(cents: u64) -> Message {
    Message::json(&Payment { cents })
}

async fn a_duplicate_is_paid_once() -> Result<(), hapax::Error> {
    let (mut consumer, till) = consumer();
    consumer.send(payment(100).token("p-1"));
    consumer.send(payment(100).token("p-1"));
    consumer.start().await?;
    let books = consumer.settle().await?;
    assert_eq!(till.load(Ordering::SeqCst), 100);
    assert_eq!((books.of(Account::Done), books.of(Account::Duplicate)), (1, 1));
    Ok(())
}

async fn a_crash_before_the_commit_repeats_nothing() -> Result<(), hapax::Error> {
    let (mut consumer, till) = consumer();
    consumer.send(payment(100).token("p-1"));
    consumer.start().await?;
    consumer.run_for(Duration::from_millis(20)).await?; // recorded, and not yet committed
    consumer.crash();
    assert_eq!(consumer.committed(0).map(|next| next.0), Some(0));
    consumer.start().await?;
    let books = consumer.settle().await?;
    assert_eq!(
        (books.of(Account::Redelivery), till.load(Ordering::SeqCst)),
        (1, 100)
    );
    assert_eq!(consumer.committed(0).map(|next| next.0), Some(1));
    Ok(())
}

async fn a_closed_bank_is_tried_again() -> Result<(), hapax::Error> {
    let (mut consumer, till) = consumer();
    let sent = consumer.send(payment(13).token("p-1"));
    consumer.start().await?;
    consumer.settle().await?; // the wait between the attempts takes no time here
    assert_eq!(till.load(Ordering::SeqCst), 13);
    assert_eq!(consumer.outcome(sent)?.map(|outcome| outcome.attempts), Some(2));
    Ok(())
}

async fn a_payment_without_a_token_is_not_made() -> Result<(), hapax::Error> {
    let (mut consumer, till) = consumer();
    consumer.send(payment(100));
    consumer.start().await?;
    consumer.settle().await?;
    let letters = consumer.dead_letters();
    let reasons: Vec<_> = letters.iter().map(|letter| letter.reason()).collect();
    assert_eq!((reasons, till.load(Ordering::SeqCst)), (vec!["missing-token"], 0));
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    a_duplicate_is_paid_once().await?;
    a_crash_before_the_commit_repeats_nothing().await?;
    a_closed_bank_is_tried_again().await?;
    a_payment_without_a_token_is_not_made().await?;
    println!("test_without_broker: 4 tests passed");
    Ok(())
}
