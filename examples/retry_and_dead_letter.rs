//! What a handler says of a failed attempt decides what follows: another attempt, or a dead letter with its reason.
//!
//! Needs no broker: `cargo run --example retry_and_dead_letter --no-default-features --features testing`

use std::time::Duration;

use hapax::testing::{Account, Harness, Message};
use hapax::{Classify, Context, HandlerError, NonIdempotent, Topic, Window};

#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    id: String,
    cents: u64,
}

/// A price service that is down for the first two attempts, and never knows the price of a unicorn.
fn price(order: &Order, attempt: u32) -> Result<u64, String> {
    match order.id.as_str() {
        "unicorn" => Err("no such service".to_owned()),
        _ if attempt <= 2 => Err("connection refused".to_owned()),
        _ => Ok(order.cents),
    }
}

async fn handle(order: Order, cx: Context) -> Result<(), HandlerError> {
    if order.cents == 0 {
        // It will be wrong at every attempt: no other one, and a dead letter at once.
        return Err(HandlerError::reject("an order of nothing"));
    }
    // A read that failed has applied nothing, so even this class may try again. `?` alone would say that nobody knows.
    let price = price(&order, cx.attempt()).not_applied()?;
    println!("{} for {price}, at attempt {}", order.id, cx.attempt());
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    let topic = Topic::json::<Order>("orders", NonIdempotent)
        .window(Window::hours(24))
        .retry(5, Duration::from_secs(30))
        .retry_overall(5, Duration::from_secs(30))
        .backoff(Duration::from_millis(100), Duration::from_secs(5));
    let mut orders = Harness::new(topic, handle);
    let order = |id: &str, cents| {
        let id = id.to_owned();
        Message::json(&Order { id, cents })
    };
    let apples = orders.send(order("apples", 100).token("t-1"));
    orders.send(order("nothing", 0).token("t-2"));
    orders.send(order("unicorn", 9).token("t-3"));
    orders.send(Message::bytes("not JSON").token("t-4").key("k"));

    orders.start().await?;
    let books = orders.settle().await?;
    assert_eq!((books.of(Account::Done), books.of(Account::Failed)), (1, 3));
    assert_eq!(orders.outcome(apples)?.map(|outcome| outcome.attempts), Some(3));

    // A dead letter is the message as it was, and headers that say why and whence.
    let mut told = Vec::new();
    for letter in orders.dead_letters() {
        println!("{}: {}: {}", letter.topic(), letter.reason(), letter.error());
        told.push((
            letter.header("hapax-offset").map(<[u8]>::to_vec),
            letter.header("hapax-attempts").map(<[u8]>::to_vec),
            letter.reason().to_owned(),
        ));
        if letter.reason() == "malformed" {
            assert_eq!(
                (letter.key(), letter.payload()),
                (Some(&b"k"[..]), Some(&b"not JSON"[..]))
            );
        }
    }
    told.sort();
    let wanted = [
        ("1", "1", "rejected"),
        ("2", "5", "retries-spent"),
        ("3", "0", "malformed"),
    ];
    let wanted = wanted.map(|(offset, attempts, reason)| {
        let header = |text: &str| Some(text.as_bytes().to_vec());
        (header(offset), header(attempts), reason.to_owned())
    });
    assert_eq!(told, wanted);
    println!("retry_and_dead_letter: 1 done at its third attempt, 3 dead letters");
    Ok(())
}
