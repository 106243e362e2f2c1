//! The smallest consumer: three orders, one of them sent twice, each charged once.
//!
//! Needs a broker: `make kafka`, then `cargo run --release --example hello` (or `-- HOST:PORT`).

mod kafka;

use hapax::accounts::{Account, Balance};
use hapax::{Consumer, Context, NonIdempotent, Topic, Window};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[derive(serde::Deserialize)]
struct Order {
    id: String,
    cents: u64,
}

fn order(id: &str, cents: u64) -> String {
    format!(r#"{{"id":"{id}","cents":{cents}}}"#)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let brokers = kafka::brokers();
    let topic = format!("hello-{}", std::process::id());
    let sent = [
        ("t-1", order("apples", 100)),
        ("t-2", order("pears", 200)),
        ("t-1", order("apples", 100)), // the producer heard no answer, and sent it again
        ("t-3", order("plums", 300)),
    ];
    kafka::topic(&brokers, &topic, &sent).await?;

    let state_dir = tempfile::tempdir()?; // in production: a directory that outlives the process
    let (charge, mut charged) = unbounded_channel();
    let mut total = 0;
    let summary = Consumer::local("hello", state_dir.path())
        .brokers(brokers)
        .handle(
            Topic::json::<Order>(topic, NonIdempotent)
                .window(Window::hours(24))
                .state(charge),
            |order: Order, cx: Context<UnboundedSender<u64>>| async move {
                println!("charging {} for {}", order.cents, order.id);
                cx.state().send(order.cents)?;
                Ok(())
            },
        )
        // In production `run()`, which ends at SIGTERM or SIGINT.
        .run_until(async {
            while total < 600 {
                total += charged.recv().await.unwrap_or(600);
            }
        })
        .await?;

    let books = Balance::sum(&summary.balances);
    assert_eq!(total, 600);
    assert!(charged.try_recv().is_err(), "something was charged twice");
    assert_eq!((books.of(Account::Done), books.of(Account::Duplicate)), (3, 1));
    assert_eq!(books.remainder(), 0, "every message lies in one account");
    println!("hello: 4 messages, 3 charges, 1 duplicate suppressed");
    Ok(())
}
