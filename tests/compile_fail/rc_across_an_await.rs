//! Attempts move between threads: what lives across an await must be `Send`.

use std::rc::Rc;

use hapax::handler::handle;
use hapax::{Context, NonIdempotent, Topic};

fn main() {
    handle(Topic::bytes("orders", NonIdempotent), |_order, _cx: Context| async move {
        let total = Rc::new(1);
        std::future::ready(()).await;
        println!("{total}");
        Ok(())
    });
}
