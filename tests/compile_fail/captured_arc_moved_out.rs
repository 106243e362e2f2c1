//! The handler is called again and again: what it captures cannot be moved into one call. `Topic::state` gives each
//! call its own clone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hapax::handler::handle;
use hapax::{Context, NonIdempotent, Topic};

fn main() {
    let total = Arc::new(AtomicU64::new(0));
    handle(Topic::bytes("orders", NonIdempotent), move |_order, _cx: Context| async move {
        total.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
}
