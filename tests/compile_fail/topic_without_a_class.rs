//! What repeating the handler does to the world is stated, never guessed.

use hapax::Topic;

fn main() {
    let _ = Topic::bytes("orders");
}
