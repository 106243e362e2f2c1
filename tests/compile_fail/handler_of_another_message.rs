//! A handler of orders on a topic of payments.

use hapax::handler::handler;
use hapax::{Context, Handler, HandlerError, NonIdempotent, Topic};

#[derive(serde::Deserialize)]
struct Order {}

#[derive(serde::Deserialize)]
struct Payment {}

struct Stock;

impl Handler<Order> for Stock {
    type Reply = ();

    async fn handle(&self, _order: Order, _cx: Context) -> Result<(), HandlerError> {
        Ok(())
    }
}

fn main() {
    handler(Topic::json::<Payment>("payments", NonIdempotent), Stock);
}
