//! A reply is bytes: a value says how it becomes them.

use hapax::handler::handle_reply;
use hapax::{Context, NonIdempotent, Topic};

fn main() {
    handle_reply(Topic::bytes("orders", NonIdempotent), |_order, _cx: Context| async move { Ok(5_u64) });
}
