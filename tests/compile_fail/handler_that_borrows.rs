//! The message goes by value: it is decoded again for each attempt.

use hapax::handler::handle;
use hapax::{Context, NonIdempotent, Topic};

#[derive(serde::Deserialize)]
struct Order {
    cents: u64,
}

fn main() {
    handle(Topic::json::<Order>("orders", NonIdempotent), |order: &Order, _cx: Context| async move {
        println!("{}", order.cents);
        Ok(())
    });
}
