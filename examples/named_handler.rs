//! A handler that is a value: fields of its own, a probe beside it, tests without hapax.
//!
//! Needs no broker: `cargo run --example named_handler --no-default-features --features testing`

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hapax::testing::{Account, Harness, Message};
use hapax::{Context, Handler, HandlerError, NonIdempotent, Probe, Reply, Topic, Window};

#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    sku: String,
    count: u32,
}

#[derive(Default)]
struct Shelves {
    left: BTreeMap<String, u32>,
    /// Child tokens of what was taken: how a probe knows.
    taken: BTreeMap<String, u32>,
}

/// The handler. It is shared by all attempts, so what changes lies behind a lock or in a database.
#[derive(Clone)]
struct Stock {
    shelves: Arc<Mutex<Shelves>>,
}

impl Stock {
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work itself, which a unit test can call.
    fn take(&self, order: &Order, token: String) -> Result<u32, HandlerError> {
        let mut shelves = self.shelves();
        let left = shelves.left.get(&order.sku).copied().unwrap_or_default();
        let Some(left) = left.checked_sub(order.count) else {
            return Err(HandlerError::reject(format!("only {left} of {}", order.sku)));
        };
        shelves.left.insert(order.sku.clone(), left);
        shelves.taken.insert(token, left);
        Ok(left)
    }
}

impl Handler<Order> for Stock {
    type Reply = Reply;

    async fn handle(&self, order: Order, cx: Context) -> Result<Reply, HandlerError> {
        let left = self.take(&order, cx.child_token("take"))?;
        if order.sku == "glass" && cx.attempt() == 1 {
            return Err("the shelf shook".into()); // it was taken, and the error does not say so: in doubt
        }
        Ok(Reply::json(&left)?)
    }

    async fn probe(&self, _order: Order, cx: Context) -> Result<Probe, HandlerError> {
        Ok(match self.shelves().taken.get(&cx.child_token("take")) {
            Some(left) => Probe::done(Reply::json(left)?),
            None => Probe::NotDone,
        })
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    let stock = Stock {
        shelves: Arc::default(),
    };
    stock
        .shelves()
        .left
        .extend([("rope".to_owned(), 5), ("glass".to_owned(), 5)]);

    // With a broker: `Consumer::local(..).handler(topic, stock)`.
    let topic = Topic::json::<Order>("stock", NonIdempotent).window(Window::hours(24));
    let mut consumer = Harness::with_handler(topic, stock.clone());
    let order = |sku: &str, count| {
        let sku = sku.to_owned();
        Message::json(&Order { sku, count })
    };
    consumer.send(order("rope", 3).token("o-1"));
    consumer.send(order("rope", 3).token("o-2")); // sold out
    consumer.send(order("glass", 2).token("o-3")); // in doubt, until the probe finds it

    consumer.start().await?;
    let books = consumer.settle().await?;
    assert_eq!((books.of(Account::Done), books.of(Account::Failed)), (2, 1));
    for letter in consumer.dead_letters() {
        println!("{}: {}", letter.reason(), letter.error());
        assert_eq!((letter.reason(), letter.error()), ("rejected", "only 2 of rope"));
    }
    let left: Vec<_> = stock.shelves().left.clone().into_iter().collect();
    assert_eq!(
        left,
        [("glass".to_owned(), 3), ("rope".to_owned(), 2)],
        "each was taken once"
    );
    println!("named_handler: 2 orders done, 1 rejected, glass taken once");
    Ok(())
}
