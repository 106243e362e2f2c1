//! The surface as it reads in a user's code: it compiles without annotations, and the engine's shape calls it.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};

use super::context::tests::{CALL, batch};
use super::*;
use crate::class::Class::{Idempotent, NonIdempotent, PotentiallyIdempotent};
use crate::message::{Batch, Raw};

/// `Consumer` as far as its bounds: what it accepts, the engine can call.
#[derive(Default)]
struct Consumer(Vec<String>);

impl Consumer {
    fn handle<D, S, F, Fut>(self, topic: Topic<D, S>, handler: F) -> Self
    where
        D: Decode,
        S: Clone + Send + Sync + 'static,
        F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.bind(closure(topic, handler))
    }

    fn handle_reply<D, S, F, Fut, R>(self, topic: Topic<D, S>, handler: F) -> Self
    where
        D: Decode,
        S: Clone + Send + Sync + 'static,
        F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
        R: IntoReply,
    {
        self.bind(closure(topic, handler))
    }

    fn handler<D: Decode, H: Handler<D::Message>>(self, topic: Topic<D>, handler: H) -> Self {
        self.bind(object(topic, handler))
    }

    fn bind<C: Callee>(mut self, binding: Binding<C>) -> Self {
        self.0.push(binding.topic);
        self
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: String,
    cents: u64,
}

const ORDER: &[u8] = br#"{"id":"a","cents":5}"#;

/// A downstream that keeps one charge per child token. Its errors wrap one another the way `anyhow`'s do: no `Error`.
#[derive(Clone, Default)]
struct Bank(Arc<Mutex<BTreeMap<String, u64>>>);

#[derive(Debug)]
struct Anyhow(String);

impl From<Anyhow> for Box<dyn Error + Send + Sync> {
    fn from(error: Anyhow) -> Self {
        error.0.into()
    }
}

impl Bank {
    async fn find(&self, token: &str) -> Result<Option<u64>, io::Error> {
        Ok(self.0.lock().unwrap().get(token).copied())
    }

    async fn price(&self, id: &str) -> Result<u64, Anyhow> {
        id.len().try_into().map_err(|_| Anyhow("too long".to_owned()))
    }

    async fn charge(&self, token: &str, cents: u64) -> Result<u64, io::Error> {
        if cents == 0 {
            return Err(io::Error::other("nothing to charge"));
        }
        Ok(*self.0.lock().unwrap().entry(token.to_owned()).or_insert(cents))
    }
}

struct Stock {
    bank: Bank,
}

impl Handler<Order> for Stock {
    type Reply = ();

    async fn handle(&self, order: Order, cx: Context) -> Result<(), HandlerError> {
        self.bank.charge(&cx.child_token("take"), order.cents).await?;
        Ok(())
    }
}

fn classify(error: io::Error) -> HandlerError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => HandlerError::not_applied(error),
        io::ErrorKind::TimedOut => HandlerError::unknown(error),
        _ => HandlerError::reject(error),
    }
}

#[test]
fn the_first_sample_compiles() {
    let consumer = Consumer::default().handle(
        Topic::json::<Order>("orders", NonIdempotent).window(Window::hours(24)),
        |order: Order, _cx: Context| async move {
            println!("charging {} for {}", order.id, order.cents);
            Ok(())
        },
    );
    assert_eq!(consumer.0, ["orders"]);
}

#[test]
fn the_second_sample_compiles_without_annotations() {
    let bank = Bank::default();
    let consumer = Consumer::default()
        .handle_reply(
            Topic::json::<Order>("payments", NonIdempotent)
                .state(bank.clone())
                .probe(|_, cx| async move {
                    Ok(match cx.state().find(&cx.child_token("charge")).await? {
                        Some(charge) => Probe::done(Reply::json(&charge)?),
                        None => Probe::NotDone,
                    })
                }),
            |order, cx| async move {
                let token = cx.child_token("charge");
                let charge = cx.state().charge(&token, order.cents).await.map_err(classify)?;
                Ok(Reply::json(&charge)?)
            },
        )
        .handle(
            Topic::json::<Order>("orders", PotentiallyIdempotent).state(bank.clone()),
            |order, cx| async move {
                let price = cx.state().price(&order.id).await.not_applied()?;
                cx.state().charge(&cx.child_token("charge"), price).await?;
                Ok(())
            },
        )
        .handler(Topic::json::<Order>("stock", NonIdempotent), Stock { bank });
    assert_eq!(consumer.0, ["payments", "orders", "stock"]);
}

#[test]
fn every_error_goes_through_a_question_mark() {
    fn text() -> Result<(), &'static str> {
        Ok(())
    }
    fn wrapped() -> Result<(), Anyhow> {
        Ok(())
    }
    fn classified() -> Result<(), HandlerError> {
        Ok(())
    }
    Consumer::default().handle(Topic::bytes("o", Idempotent), |bytes, _cx| async move {
        std::str::from_utf8(&bytes)?;
        io::Result::Ok(())?;
        text()?;
        wrapped()?;
        classified()?;
        if bytes.is_empty() {
            Err("empty")?;
        }
        Ok(())
    });
}

#[test]
fn handlers_of_other_shapes_compile() {
    async fn named(_order: Order, _cx: Context) -> Result<(), HandlerError> {
        Ok(())
    }
    struct Twice;
    impl Decode for Twice {
        type Message = (usize, usize);
        async fn decode(&self, raw: Raw<'_>) -> Result<Self::Message, DecodeError> {
            let bytes = raw
                .payload()
                .ok_or_else(|| DecodeError::malformed("a tombstone"))?;
            std::future::ready(()).await;
            Ok((bytes.len(), bytes.len()))
        }
    }
    let seen = Arc::new(AtomicUsize::new(0));
    Consumer::default()
        .handle(Topic::json::<Order>("a", Idempotent), named)
        .handle(Topic::json::<Option<Order>>("b", Idempotent), async |_, _| Ok(()))
        .handle_reply(Topic::with("c", Idempotent, Twice), |(one, _), _| async move {
            Ok(one.to_string())
        })
        .handle(Topic::bytes("d", Idempotent), move |_, _| {
            let seen = Arc::clone(&seen);
            async move {
                seen.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .handle(Topic::bytes("e", Idempotent), |_, _| async move {
            let local = Rc::new(1);
            drop(local);
            Err(HandlerError::reject("an Rc that no await sees is fine"))
        });
}

/// Decodes and calls the way the engine does, with futures that are ready at once.
fn call<C: Callee>(binding: &Binding<C>, payload: &[u8]) -> Result<Reply, HandlerError> {
    let batch = batch(payload);
    let message = decode(binding, &batch).unwrap();
    binding
        .callee
        .clone()
        .call(message, batch, 1, CALL)
        .now_or_never()
        .unwrap()
}

fn probe<C: Callee>(binding: &Binding<C>, payload: &[u8]) -> Result<Probe, HandlerError> {
    let batch = batch(payload);
    let message = decode(binding, &batch).unwrap();
    binding
        .callee
        .clone()
        .probe(message, batch, 1, CALL)
        .now_or_never()
        .unwrap()
}

fn decode<C: Callee>(binding: &Binding<C>, batch: &Arc<Batch>) -> Result<C::Message, DecodeError> {
    binding
        .callee
        .clone()
        .decode(Arc::clone(batch), 1)
        .now_or_never()
        .unwrap()
}

#[test]
fn a_closure_is_called_with_its_message_its_context_and_its_state() {
    let topic = Topic::json::<Order>("orders", PotentiallyIdempotent).state(Bank::default());
    let binding = closure(topic, |order, cx| async move {
        assert_eq!((cx.offset().0, cx.attempt(), cx.may_have_applied()), (9, 2, true));
        cx.state().charge(&cx.child_token("charge"), order.cents).await?;
        Ok(Reply::json(&order)?)
    });
    assert_eq!(
        call(&binding, ORDER).unwrap(),
        Reply::json(&Order {
            id: "a".into(),
            cents: 5
        })
        .unwrap()
    );
    let nothing = br#"{"id":"a","cents":0}"#;
    assert_eq!(call(&binding, nothing).unwrap_err().kind(), ErrorKind::Unknown);
}

#[test]
fn what_does_not_decode_says_so() {
    let binding = closure(Topic::json::<Order>("orders", NonIdempotent), |_, _| async {
        Ok(())
    });
    assert!(matches!(
        decode(&binding, &batch(b"{")),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn without_a_probe_the_answer_is_unknown() {
    let binding = closure(Topic::json::<Order>("orders", NonIdempotent), |_, _| async {
        Ok(())
    });
    assert!(!binding.callee.has_probe());
    assert_eq!(probe(&binding, ORDER).unwrap(), Probe::Unknown);
}

#[test]
fn a_probe_sees_the_child_token_and_the_state_of_the_attempt() {
    let topic = Topic::json::<Order>("orders", NonIdempotent).state(Bank::default());
    let topic = topic.probe(|_, cx| async move {
        Ok(match cx.state().find(&cx.child_token("charge")).await? {
            Some(charge) => Probe::done(charge.to_string()),
            None => Probe::NotDone,
        })
    });
    let binding = closure(topic, |order, cx| async move {
        cx.state().charge(&cx.child_token("charge"), order.cents).await?;
        Ok(())
    });
    assert!(binding.callee.has_probe());
    assert_eq!(probe(&binding, ORDER).unwrap(), Probe::NotDone);
    call(&binding, ORDER).unwrap();
    assert_eq!(probe(&binding, ORDER).unwrap(), Probe::done("5"));
}

#[test]
fn a_probe_that_was_stated_before_the_state_is_kept() {
    let topic = Topic::json::<Order>("orders", NonIdempotent)
        .probe(|order, cx| async move { Ok(Probe::done(format!("{} at {}", order.id, cx.offset()))) })
        .state(Bank::default());
    let binding = closure(topic, |_, _| async { Ok(()) });
    assert_eq!(probe(&binding, ORDER).unwrap(), Probe::done("a at 9"));
}

#[test]
fn a_value_is_called_and_its_own_probe_is_asked() {
    struct Probing;
    impl Handler<Order> for Probing {
        type Reply = &'static str;
        async fn handle(&self, _: Order, _: Context) -> Result<&'static str, HandlerError> {
            Ok("handled")
        }
        async fn probe(&self, _: Order, _: Context) -> Result<Probe, HandlerError> {
            Ok(Probe::done("its own"))
        }
    }
    let topic = || Topic::json::<Order>("stock", NonIdempotent);
    let binding = object(topic(), Probing);
    assert_eq!(call(&binding, ORDER).unwrap(), Reply::bytes("handled"));
    assert_eq!(probe(&binding, ORDER).unwrap(), Probe::done("its own"));

    let with_both = object(
        topic().probe(|_, _| async { Ok(Probe::done("the topic's")) }),
        Probing,
    );
    assert_eq!(probe(&with_both, ORDER).unwrap(), Probe::done("the topic's"));

    let with_none = object(
        topic(),
        Stock {
            bank: Bank::default(),
        },
    );
    assert_eq!(probe(&with_none, ORDER).unwrap(), Probe::Unknown);
}

#[test]
fn a_panic_before_the_async_block_comes_from_the_poll() {
    let topic = Topic::json::<Order>("orders", NonIdempotent);
    let binding = closure(topic, |order, _| {
        assert!(order.cents > 5, "too little");
        async { Ok(()) }
    });
    let batch = batch(ORDER);
    let message = decode(&binding, &batch).unwrap();
    let future = binding.callee.clone().call(message, batch, 1, CALL);
    let polled = std::panic::AssertUnwindSafe(future)
        .catch_unwind()
        .now_or_never()
        .unwrap();
    assert_eq!(*polled.unwrap_err().downcast_ref::<&str>().unwrap(), "too little");
}

#[test]
fn a_message_lies_once_in_its_future() {
    struct Page;
    impl Decode for Page {
        type Message = [u8; 4096];
        async fn decode(&self, _: Raw<'_>) -> Result<[u8; 4096], DecodeError> {
            Ok([0; 4096])
        }
    }
    let binding = closure(Topic::with("pages", Idempotent, Page), |page, _| async move {
        std::future::ready(()).await;
        Ok(page.to_vec())
    });
    let future = binding.callee.clone().call([0; 4096], batch(b""), 1, CALL);
    assert!(
        size_of_val(&future) < 4096 + 512,
        "{} bytes",
        size_of_val(&future)
    );
}
