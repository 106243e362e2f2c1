//! What an outcome gives back: an output for the next topic, a reply to whoever asked, the same reply again to a duplicate, and a
//! receipt for it.
//!
//! Needs no broker: `cargo run --release --features testing --example emit_and_reply`.

use hapax::testing::{Harness, Message, Produced};
use hapax::{Context, NonIdempotent, Output, Reply, Topic, Window};

#[derive(serde::Deserialize)]
struct Order {
    id: String,
}

fn order(id: &str, asked_by: &str) -> Message {
    Message::bytes(format!(r#"{{"id":"{id}"}}"#))
        .token(format!("order-{id}"))
        .header("reply-to", "shop.replies")
        .header("correlation-id", asked_by.to_owned())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    let topic = Topic::json::<Order>("orders", NonIdempotent)
        .window(Window::hours(24))
        .outputs(["shipments"])
        .reply_to("reply-to", ["shop.replies"])
        .receipts("orders.receipts");
    let mut shop = Harness::with_reply(topic, |order: Order, cx: Context| async move {
        // Part of the outcome: sent where this attempt ends well, under a token of its own.
        cx.emit("shipment", Output::to("shipments").payload(order.id.clone()))?;
        Ok(Reply::bytes(format!("{} are on their way", order.id)))
    });
    shop.send(order("apples", "call-1"));
    shop.send(order("apples", "call-2")); // the client heard no answer, and asked again
    shop.start().await?;
    shop.settle().await?;

    let all = shop.outputs();
    let to =
        |topic: &str| -> Vec<&Produced> { all.iter().filter(|output| output.topic() == topic).collect() };
    for output in &all {
        let payload = String::from_utf8_lossy(output.payload().unwrap_or_default()).into_owned();
        println!("{}: {payload}", output.topic());
    }
    let [shipment] = to("shipments")[..] else {
        panic!("a duplicate ships nothing: {all:?}")
    };
    assert_eq!(shipment.payload(), Some(&b"apples"[..]));
    assert_eq!(shipment.header("idempotency-key").len(), 32, "its child token");
    let [first, again] = to("shop.replies")[..] else {
        panic!("a reply to each call: {all:?}")
    };
    for (reply, call, replayed) in [(first, "call-1", ""), (again, "call-2", "true")] {
        assert_eq!(reply.payload(), Some(&b"apples are on their way"[..]));
        assert_eq!(reply.header("correlation-id"), call);
        assert_eq!(reply.header("hapax-replayed"), replayed);
    }
    let [receipt] = to("orders.receipts")[..] else {
        panic!("a receipt for the duplicate: {all:?}")
    };
    let receipt = String::from_utf8_lossy(receipt.payload().unwrap_or_default());
    assert!(receipt.contains(r#""verdict":"duplicate""#), "{receipt}");
    println!("emit_and_reply: 1 shipment, a reply to each of 2 calls, and a receipt for the duplicate");
    Ok(())
}
