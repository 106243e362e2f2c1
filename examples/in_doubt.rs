//! Killed in the middle of a handler that must not run twice: the message is in doubt. hapax does not guess, it holds
//! the message, and a person decides.
//!
//! Needs no broker: `cargo run --example in_doubt --no-default-features --features testing`

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hapax::testing::{Account, Harness, HeldFor, Message, Verdict};
use hapax::{Context, HandlerError, NonIdempotent, Topic, Window};

/// How many letters were posted. Nobody can ask a letter box whether one of them was ours.
type LetterBox = Arc<AtomicU32>;

async fn post(_letter: hapax::Bytes, cx: Context<LetterBox>) -> Result<(), HandlerError> {
    let posted = cx.state().fetch_add(1, Ordering::SeqCst) + 1;
    if posted == 2 {
        // The letter is in the box, and the process dies before it can say so.
        pending::<()>().await;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    let letter_box = LetterBox::default();
    let topic = Topic::bytes("letters", NonIdempotent)
        .window(Window::hours(24))
        .ordered()
        .state(Arc::clone(&letter_box));
    let mut letters = Harness::new(topic, post);
    letters.send(Message::bytes("to Ann").token("l-1"));
    let to_ben = letters.send(Message::bytes("to Ben").token("l-2"));
    letters.send(Message::bytes("to Cat").token("l-3"));

    letters.start().await?;
    letters.run_for(std::time::Duration::from_secs(1)).await?;
    letters.crash();

    // The next start finds that Ben's was begun and has no outcome. The others go on.
    letters.start().await?;
    let books = letters.settle().await?;
    assert_eq!((books.of(Account::Done), books.of(Account::Held)), (1, 1));
    for held in letters.held()? {
        let text = String::from_utf8_lossy(held.payload.as_deref().unwrap_or_default()).into_owned();
        println!(
            "in doubt: {text:?} at offset {}, after {} attempt",
            held.of.offset, held.attempts
        );
        assert_eq!((held.of, held.why), (to_ben, HeldFor::InDoubt));
    }

    // Somebody looks into the box: Ben's is there. In production:
    // `hapax resolve --topic letters --partition 0 --offset 1 --done --reason "it is in the box"`
    letters.stop().await;
    letters.decide(to_ben, Verdict::Done);
    letters.send(Message::bytes("to Ben").token("l-2")); // the producer tries once more
    letters.start().await?;
    let books = letters.settle().await?;
    assert_eq!((books.of(Account::Done), books.of(Account::Duplicate)), (1, 1));
    assert_eq!(letters.held()?, []);
    assert_eq!(letter_box.load(Ordering::SeqCst), 3, "each was posted once");
    println!("in_doubt: 3 letters posted, none twice; the one in doubt was decided by a person");
    Ok(())
}
