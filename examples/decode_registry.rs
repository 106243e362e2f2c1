//! A payload format of your own, whose schemas lie in a registry that can be away. `Unavailable` is tried again and
//! costs nothing but time; `Malformed` is dead-lettered.
//!
//! Needs no broker: `cargo run --example decode_registry --no-default-features --features testing`

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hapax::message::Raw;
use hapax::testing::{Account, Harness, Message};
use hapax::{Context, Decode, DecodeError, HandlerError, NonIdempotent, Topic, Window};

#[derive(Debug)]
struct Payment {
    cents: u64,
    currency: String,
}

/// What the registry says of a schema: version 1 had no currency.
struct Schema {
    has_currency: bool,
}

/// A registry that is down for the first questions.
struct Registry {
    asked: AtomicU32,
    down_for: u32,
}

impl Registry {
    async fn schema(&self, id: u32) -> Result<Schema, DecodeError> {
        if self.asked.fetch_add(1, Ordering::SeqCst) < self.down_for {
            return Err(DecodeError::unavailable("the registry does not answer"));
        }
        match id {
            1 => Ok(Schema { has_currency: false }),
            2 => Ok(Schema { has_currency: true }),
            _ => Err(DecodeError::malformed(format!("schema {id} is not registered"))),
        }
    }
}

/// `0x00`, schema id (4 bytes, big-endian), cents (8 bytes, big-endian), currency (3 bytes, from schema 2 on).
struct Registered(Arc<Registry>);

impl Decode for Registered {
    type Message = Payment;

    async fn decode(&self, raw: Raw<'_>) -> Result<Payment, DecodeError> {
        let short = || DecodeError::malformed("the payload ends too early");
        let payload = raw
            .payload()
            .ok_or_else(|| DecodeError::malformed("a tombstone"))?;
        let rest = payload
            .strip_prefix(&[0])
            .ok_or_else(|| DecodeError::malformed("it does not begin with 0x00"))?;
        let (id, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let schema = self.0.schema(u32::from_be_bytes(*id)).await?;
        let (cents, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let currency = match (schema.has_currency, rest) {
            (false, []) => "EUR",
            (true, [_, _, _]) => str::from_utf8(rest).map_err(DecodeError::malformed)?,
            _ => {
                return Err(DecodeError::malformed(format!(
                    "{} bytes of currency",
                    rest.len()
                )));
            }
        };
        Ok(Payment {
            cents: u64::from_be_bytes(*cents),
            currency: currency.to_owned(),
        })
    }
}

fn encoded(schema: u32, cents: u64, currency: &str) -> Message {
    let parts = [
        &[0][..],
        &schema.to_be_bytes(),
        &cents.to_be_bytes(),
        currency.as_bytes(),
    ];
    Message::bytes(parts.concat())
}

async fn pay(payment: Payment, cx: Context) -> Result<String, HandlerError> {
    println!("offset {}: {payment:?}", cx.offset());
    Ok(format!("{} {}", payment.cents, payment.currency))
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), hapax::Error> {
    let registry = Arc::new(Registry {
        asked: AtomicU32::new(0),
        down_for: 3,
    });
    let decode = Registered(Arc::clone(&registry));
    let topic = Topic::with("payments", NonIdempotent, decode)
        .window(Window::hours(24))
        .ordered();
    let mut payments = Harness::with_reply(topic, pay);
    payments.send(encoded(1, 100, "").token("p-1")); // waits for the registry
    payments.send(encoded(2, 200, "CHF").token("p-2"));
    payments.send(encoded(3, 300, "").token("p-3"));
    payments.send(Message::bytes("{\"cents\":400}").token("p-4"));

    payments.start().await?;
    let books = payments.settle().await?;
    assert_eq!((books.of(Account::Done), books.of(Account::Failed)), (2, 2));
    assert_eq!(
        registry.asked.load(Ordering::SeqCst),
        3 + 3,
        "asked again until it answered"
    );
    let letters = payments.dead_letters();
    let told: Vec<_> = letters
        .iter()
        .map(|letter| (letter.reason(), letter.error()))
        .collect();
    assert_eq!(
        told,
        [
            ("malformed", "schema 3 is not registered"),
            ("malformed", "it does not begin with 0x00"),
        ]
    );
    println!("decode_registry: 2 paid, one of them after the registry came back, 2 malformed");
    Ok(())
}
