//! Where a token is read: header, JSON field, closure, several at once while producers change over.
//!
//! Needs no broker: `cargo run --example token_sources --no-default-features --features testing`

use hapax::message::Raw;
use hapax::testing::{Account, Harness, Message};
use hapax::{Context, HandlerError, NonIdempotent, Token, Topic, Window};
use serde_json::{Value, json};

/// The third source: no single field is unique, customer and invoice number together are.
fn invoice(raw: &Raw<'_>) -> Option<Vec<u8>> {
    let (customer, number) = (raw.key()?, raw.header("invoice")?);
    Some([customer, b"/", number].concat())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    let topic = Topic::json::<Value>("payments", NonIdempotent)
        .window(Window::days(7))
        .token(Token::header("idempotency-key")) // what producers are to send from now on
        .token(Token::json("/payment_id")) // what they have sent so far: kept for one window
        .token(Token::with("invoice", invoice));
    let mut payments = Harness::new(topic, handle);

    // Every source that a message has counts, so a change of producers lets nothing through twice.
    let old = json!({ "payment_id": "p-1" });
    let first = payments.send(Message::json(&old)); // an old producer
    payments.send(Message::json(&old).token("k-1")); // the same payment, from one in between: known by its id
    payments.send(Message::json(&json!({})).token("k-1")); // from a new one: known by the token of the one before

    // The closure's token.
    let paid = json!({ "paid": true });
    let second = payments.send(Message::json(&paid).key("acme").header("invoice", "17"));
    payments.send(Message::json(&paid).key("acme").header("invoice", "17"));
    let third = payments.send(Message::json(&paid).key("acme").header("invoice", "18"));

    // No source has anything: for a non-idempotent handler that is a dead letter (`missing_token`).
    payments.send(Message::json(&json!({})));

    payments.start().await?;
    let books = payments.settle().await?;
    assert_eq!((books.of(Account::Done), books.of(Account::Duplicate)), (3, 3));
    for ran in [first, second, third] {
        let outcome = payments.outcome(ran)?;
        assert!(
            outcome.is_some_and(|outcome| outcome.offset == ran.offset),
            "{ran:?} ran"
        );
    }
    let letters = payments.dead_letters();
    let reasons: Vec<_> = letters.iter().map(|letter| letter.reason()).collect();
    assert_eq!(reasons, ["missing-token"]);
    println!("token_sources: 7 messages, 3 payments, 3 duplicates, 1 without a token");
    Ok(())
}

async fn handle(payment: Value, cx: Context) -> Result<(), HandlerError> {
    println!("offset {}: paying {payment}, token {}", cx.offset(), cx.token());
    Ok(())
}
