//! SIGTERM in the middle of the work: what runs may finish, is recorded and committed; the next start goes on behind it.
//!
//! Needs a broker: `make kafka`, then `cargo run --release --example graceful_shutdown` (or `-- HOST:PORT`).

mod kafka;

use std::error::Error;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use hapax::accounts::{Account, Balance};
use hapax::{Consumer, Context, NonIdempotent, Topic, Window};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A slow downstream: what it has shipped, and whether it answers yet.
#[derive(Clone)]
struct Depot {
    shipped: Arc<Mutex<Vec<String>>>,
    started: Arc<watch::Sender<bool>>,
    answers: Arc<watch::Sender<bool>>,
}

impl Depot {
    async fn ship(&self, order: String) {
        self.started.send_replace(true);
        // It never errs: the sender lives as long as we do.
        let _ = self.answers.subscribe().wait_for(|answers| *answers).await;
        self.shipped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(order);
    }

    fn shipped(&self) -> Vec<String> {
        self.shipped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let brokers = kafka::brokers();
    let topic = format!("graceful-shutdown-{}", std::process::id());
    let orders = ["a", "b", "c", "d"];
    kafka::topic(&brokers, &topic, &orders.map(|order| (order, order.to_owned()))).await?;

    let state_dir = tempfile::tempdir()?;
    let depot = Depot {
        shipped: Arc::default(),
        started: Arc::new(watch::channel(false).0),
        answers: Arc::new(watch::channel(false).0),
    };
    let consumer = || {
        let topic = Topic::bytes(&topic, NonIdempotent)
            .window(Window::hours(24))
            .ordered()
            .state(depot.clone());
        Consumer::local("shipping", state_dir.path())
            .brokers(&brokers)
            .handle(topic, |order, cx: Context<Depot>| async move {
                cx.state()
                    .ship(String::from_utf8_lossy(&order).into_owned())
                    .await;
                Ok(())
            })
    };

    // While the first order is being shipped, this process is told to end. `run` hears it; so do we, to let the depot
    // answer only then.
    let mut told = signal(SignalKind::terminate())?;
    let interrupted = async {
        depot.started.subscribe().wait_for(|started| *started).await?;
        let kill = format!("kill -s TERM {}", std::process::id());
        assert!(Command::new("sh").args(["-c", &kill]).status()?.success());
        told.recv().await;
        depot.answers.send_replace(true);
        Ok::<_, Box<dyn Error>>(())
    };
    let running = async { Ok(consumer().run().await?) };
    let (summary, ()) = tokio::try_join!(running, interrupted)?;
    let books = Balance::sum(&summary.balances);
    let first = depot.shipped();
    println!(
        "SIGTERM: {first:?} shipped, {} messages left for the next start",
        books.of(Account::Released)
    );
    assert!(!first.is_empty(), "what ran was allowed to finish");
    assert_eq!(books.of(Account::Done), first.len() as u64, "and was recorded");
    assert_eq!(
        (books.of(Account::Held), books.remainder()),
        (0, 0),
        "nothing is in doubt"
    );

    // The next start goes on where this one stopped.
    let rest = async {
        while depot.shipped().len() < orders.len() {
            tokio::task::yield_now().await;
        }
    };
    consumer().run_until(rest).await?;
    assert_eq!(depot.shipped(), orders, "each once, in order");
    println!("graceful_shutdown: 4 orders shipped once each, by two starts");
    Ok(())
}
