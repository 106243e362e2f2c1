//! In doubt, and there is somebody to ask: the probe looks the charge up at the bank, and hapax goes on by itself.
//!
//! Needs no broker: `cargo run --example probe --no-default-features --features testing`

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hapax::testing::{Account, End, Harness, Message, Stored};
use hapax::{Context, HandlerError, NonIdempotent, Probe, Topic, Window};

#[derive(serde::Serialize, serde::Deserialize)]
struct Payment {
    cents: u64,
    /// Where the process is killed: `"before"` or `"after"` the bank has heard of it.
    killed: String,
}

/// The bank: charges by the idempotency key that they were sent with. It applies one key once, also when it comes late:
/// that is what makes "not done" a true answer.
#[derive(Clone, Default)]
struct Bank(Arc<Mutex<BTreeMap<String, u64>>>);

impl Bank {
    fn charges(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn charge(payment: Payment, cx: Context<Bank>) -> Result<String, HandlerError> {
    let first = cx.attempt() == 1;
    if first && payment.killed == "before" {
        pending::<()>().await;
    }
    // The same at every attempt at this message's token.
    let key = cx.child_token("charge");
    cx.state().charges().insert(key.clone(), payment.cents);
    if first && payment.killed == "after" {
        pending::<()>().await;
    }
    Ok(key)
}

async fn ask(_payment: Payment, cx: Context<Bank>) -> Result<Probe, HandlerError> {
    let key = cx.child_token("charge");
    Ok(match cx.state().charges().get(&key) {
        Some(_) => Probe::done(key), // recorded as done, with the reply that the attempt would have given
        None => Probe::NotDone,      // it runs again
    })
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    let bank = Bank::default();
    let topic = Topic::json::<Payment>("payments", NonIdempotent)
        .window(Window::hours(24))
        .state(bank.clone())
        .probe(ask);
    let mut payments = Harness::with_reply(topic, charge);
    let payment = |cents, killed: &str| {
        let killed = killed.to_owned();
        Message::json(&Payment { cents, killed })
    };
    let known = payments.send(payment(100, "after").token("p-1").key("a"));
    let unknown = payments.send(payment(200, "before").token("p-2").key("b"));

    payments.start().await?;
    payments.run_for(Duration::from_secs(1)).await?;
    assert_eq!(bank.charges().len(), 1, "the bank has heard of one of the two");
    payments.crash();

    payments.start().await?;
    let books = payments.settle().await?;
    assert_eq!((books.of(Account::Done), books.of(Account::Held)), (2, 0));
    for (sent, attempts) in [(known, 1), (unknown, 2)] {
        let Some(outcome) = payments.outcome(sent)? else {
            panic!("{sent:?} has no outcome")
        };
        println!(
            "offset {}: {} attempt(s), {:?}",
            sent.offset, outcome.attempts, outcome.end
        );
        assert_eq!(outcome.attempts, attempts);
        assert!(matches!(outcome.end, End::Done(Stored::Reply(_))));
    }
    assert_eq!(bank.charges().values().sum::<u64>(), 300, "each was charged once");
    println!("probe: 2 payments in doubt, 1 found done, 1 run again, nobody was asked");
    Ok(())
}
