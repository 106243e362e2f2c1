//! Does a crash charge anybody twice? `exhaust` tries every crash there can be: it finds the naive handler's, tells the
//! story, and finds nothing in the two that are mended.
//!
//! `cargo run --example test_a_handler --no-default-features --features testing`
//!
//! In your crate the three functions below `main` are each a `#[test]`; docs/testing.md explains the kit.

use hapax::testing::exhaust::{Error, Wrong};
use hapax::testing::{Effects, Harness, Message, exhaust};
use hapax::{Context, HandlerError, Idempotent, NonIdempotent, PotentiallyIdempotent, Probe, Topic, Window};

#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    cents: u64,
}

/// The bank, as the tests have it: what it is told is noted in the outside world, which outlives the process. In
/// production it is a client of the real one.
#[derive(Clone)]
struct Bank(Effects);

impl Bank {
    /// Charges; where it knows the token already it charges nothing.
    async fn charge(&self, token: &str, cents: u64) -> Result<(), HandlerError> {
        tokio::task::yield_now().await; // the request is on its way
        if !self.0.contains("charge", token) {
            self.0.note("charge", token);
            *self.taken().lock().map_err(|_| "poisoned")? += cents;
        }
        tokio::task::yield_now().await; // the answer is
        Ok(())
    }

    /// An older interface of it, without tokens.
    async fn charge_anew(&self, cents: u64) -> Result<(), HandlerError> {
        self.0.note("charge", format_args!("of {cents}"));
        *self.taken().lock().map_err(|_| "poisoned")? += cents;
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn knows(&self, token: &str) -> bool {
        tokio::task::yield_now().await;
        self.0.contains("charge", token)
    }

    fn taken(&self) -> std::sync::Arc<std::sync::Mutex<u64>> {
        self.0.shared()
    }
}

fn orders(class: hapax::Class, world: &Effects) -> Topic<hapax::Json<Order>, Bank> {
    Topic::json("orders", class)
        .window(Window::hours(24))
        .state(Bank(world.clone()))
}

/// Three messages, two orders.
fn messages() -> [Message; 3] {
    [("o-1", 500), ("o-2", 700), ("o-1", 500)].map(|(id, cents)| Message::json(&Order { cents }).token(id))
}

fn taken(world: &Effects) -> u64 {
    Bank(world.clone()).taken().lock().map_or(0, |taken| *taken)
}

fn main() -> Result<(), Error> {
    the_naive_handler_charges_twice();
    one_that_sends_a_child_token_does_not()?;
    one_that_asks_the_bank_does_not()?;
    println!("test_a_handler: 3 tests passed");
    Ok(())
}

fn the_naive_handler_charges_twice() {
    let tried = exhaust(
        |world| {
            Harness::new(
                orders(Idempotent, world),
                |order: Order, cx: Context<Bank>| async move { cx.state().charge_anew(order.cents).await },
            )
        },
        messages(),
    )
    .final_state(taken)
    .run();
    let Err(Error::Violated(found)) = tried else {
        panic!("a crash after the charge has to be found: {tried:?}")
    };
    println!("{found}\n");
    assert!(matches!(&found.wrong, Wrong::Differs { expected, .. } if expected == "1200"));
}

fn one_that_sends_a_child_token_does_not() -> Result<(), Error> {
    let tried = exhaust(
        |world| {
            Harness::new(
                orders(PotentiallyIdempotent, world),
                |order: Order, cx: Context<Bank>| async move {
                    cx.state().charge(&cx.child_token("charge"), order.cents).await
                },
            )
        },
        messages(),
    )
    .final_state(taken)
    .nothing_held()
    .crashes(2)
    .run()?;
    println!(
        "with child tokens: {} schedules, nothing wrong",
        tried.schedules()
    );
    Ok(())
}

fn one_that_asks_the_bank_does_not() -> Result<(), Error> {
    let tried = exhaust(
        |world| {
            let topic = orders(NonIdempotent, world).probe(|_, cx: Context<Bank>| async move {
                Ok(match cx.state().knows(&cx.child_token("charge")).await {
                    true => Probe::done(""),
                    false => Probe::NotDone,
                })
            });
            Harness::new(topic, |order: Order, cx: Context<Bank>| async move {
                cx.state().charge(&cx.child_token("charge"), order.cents).await
            })
        },
        messages(),
    )
    .final_state(taken)
    .nothing_held()
    .run()?;
    println!("with a probe: {} schedules, nothing wrong", tried.schedules());
    Ok(())
}
