//! A lock that is held across an await stops every other attempt: drop the guard before, or use tokio's mutex.

use std::sync::{Arc, Mutex};

use hapax::handler::handle;
use hapax::{Context, NonIdempotent, Topic};

fn main() {
    let total = Arc::new(Mutex::new(0));
    let topic = Topic::bytes("orders", NonIdempotent).state(total);
    handle(topic, |_order, cx: Context<Arc<Mutex<u64>>>| async move {
        let mut total = cx.state().lock().unwrap();
        std::future::ready(()).await;
        *total += 1;
        Ok(())
    });
}
