//! Schedules against the partition task, without a broker: every one of them broke a naive version once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::manual_async_fn,
    reason = "a test may panic"
)]

mod acts;
mod arrivals;
mod behind;
mod breaker;
mod crashes;
mod drains;
mod everywhere;
mod given;
mod held;
mod holds;
mod journal;
mod life;
mod limits;
mod lines;
mod many;
mod outcomes;
mod random;
mod rebuilds;
mod replies;
mod review;
mod schedules;
mod tokens;
mod window;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::accounts::Account;
use crate::act::{Act, Answered, Said};
use crate::attempt::{Terms, Typed};
use crate::class::Class;
use crate::config::{Concurrency, Mismatch, Share, TopicPolicy};
use crate::desk::Unanswered;
use crate::handler::{Call, Callee, DecodeError, HandlerError, Probe, Reply};
use crate::message::{Batch, Kept, NextOffset, Offset};
use crate::outcome::{Open, Stage, Verdict};
use crate::store::{Changes, PartitionId, Store as _, TopicSpec};
use crate::testing::Rig;
use crate::token::{Reader, TokenKey};

type Answer = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

/// A handler that notes what it was called with, then does what the test says.
#[derive(Clone)]
struct Script {
    calls: Arc<Mutex<Vec<(i64, u32)>>>,
    act: Arc<dyn Fn(i64, Call) -> Answer + Send + Sync>,
    probe: Option<Arc<dyn Fn(i64) -> Probe + Send + Sync>>,
    reply: String,
}

impl Script {
    fn new(act: impl Fn(i64, Call) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            calls: Arc::default(),
            act: Arc::new(act),
            probe: None,
            reply: String::new(),
        }
    }

    fn ok() -> Self {
        Self::new(|_, _| Box::pin(async { Ok(()) }))
    }

    fn with_probe(self, probe: impl Fn(i64) -> Probe + Send + Sync + 'static) -> Self {
        Self {
            probe: Some(Arc::new(probe)),
            ..self
        }
    }

    fn replying(self, reply: &str) -> Self {
        Self {
            reply: reply.to_owned(),
            ..self
        }
    }

    fn calls(&self) -> Vec<(i64, u32)> {
        self.calls.lock().unwrap().clone()
    }

    fn offsets(&self) -> Vec<i64> {
        self.calls().iter().map(|(offset, _)| *offset).collect()
    }
}

impl Callee for Script {
    type Message = i64;

    async fn decode(self: Arc<Self>, batch: Arc<Batch>, index: usize) -> Result<i64, DecodeError> {
        let raw = batch.get(index).unwrap();
        match raw.payload() {
            Some(b"undecodable") => Err(DecodeError::malformed("undecodable")),
            Some(b"decodes slowly") => {
                wait(Duration::from_millis(50)).await;
                Ok(raw.offset().0)
            }
            _ => Ok(raw.offset().0),
        }
    }

    fn call(
        self: Arc<Self>,
        message: i64,
        _: Arc<Batch>,
        _: usize,
        call: Call,
    ) -> impl Future<Output = Result<Reply, HandlerError>> + Send + 'static {
        self.calls.lock().unwrap().push((message, call.attempt));
        let answer = (self.act)(message, call);
        let reply = Reply::bytes(self.reply.clone());
        async move { answer.await.map(|()| reply) }
    }

    fn has_probe(&self) -> bool {
        self.probe.is_some()
    }

    async fn probe(
        self: Arc<Self>,
        message: i64,
        _: Arc<Batch>,
        _: usize,
        _: Call,
    ) -> Result<Probe, HandlerError> {
        Ok(self.probe.as_ref().map_or(Probe::Unknown, |probe| probe(message)))
    }
}

const HOUR_MS: i64 = 3_600_000;
const START_MS: i64 = 1_700_000_000_000;
const A_WHILE: Duration = Duration::from_millis(500);

fn rig_with(class: Class, script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Rig {
    let mut policy = TopicPolicy::new(class, Duration::from_secs(3_600));
    policy.deadline = Duration::from_millis(200);
    policy.probe_settle = Duration::from_millis(50);
    policy.retry.in_place.first = Duration::from_millis(10);
    policy.retry.in_place.attempts = 3;
    // What is not about holding ends in place.
    policy.retry.overall.attempts = 3;
    // What is not about them goes without.
    policy.breaker.over = 0;
    policy.budget.share = Share::ALL;
    change(&mut policy);
    let terms = Terms {
        deadline: policy.deadline,
        probe_deadline: policy.probe_deadline,
        offload: policy.offload,
    };
    let factory = Arc::new(Typed {
        callee: Arc::new(script.clone()),
        terms,
        outputs: Arc::default(),
    });
    Rig::new(
        "orders",
        policy,
        vec![Reader::Header("token".into()), Reader::Header("old".into())],
        factory,
    )
}

fn rig(class: Class, script: &Script) -> Rig {
    rig_with(class, script, |_| {})
}

/// A message with that token, stamped that long after the start.
fn stamped(token: &str, after_ms: i64) -> Kept {
    Kept {
        timestamp_ms: Some(START_MS + after_ms),
        key: Some(Bytes::from_static(b"key")),
        payload: Some(Bytes::from(format!("payload of {token}"))),
        headers: vec![("token".into(), Some(Bytes::copy_from_slice(token.as_bytes())))],
    }
}

fn message(token: &str) -> Kept {
    stamped(token, 0)
}

fn paused<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

async fn wait(time: Duration) {
    crate::clock::sleep_until(crate::clock::now() + time).await;
}

/// A handler that succeeds after that long.
fn after(time: Duration) -> Answer {
    Box::pin(async move {
        wait(time).await;
        Ok(())
    })
}

/// An end that says nothing about the world.
fn who_knows() -> Answer {
    Box::pin(async { Err("who knows".into()) })
}

fn reject() -> Answer {
    Box::pin(async { Err(HandlerError::reject("no")) })
}

/// What an operator decides about a held message while the consumer is stopped.
fn resolve(rig: &mut Rig, offset: i64, verdict: Verdict) {
    in_store(rig, |open, changes| {
        let mut open = open.into_iter().find(|open| open.offset.0 == offset).unwrap();
        match &mut open.stage {
            Stage::Held { verdict: given, .. } => *given = Some(verdict),
            other => panic!("{offset} is not held: {other:?}"),
        }
        changes.opened.push(open);
    });
}

/// Changes what the store of a consumer that is stopped has of partition 0, by what is open there.
fn in_store(rig: &mut Rig, change: impl FnOnce(Vec<Open>, &mut Changes)) {
    let store = rig.store.restart(&[TopicSpec {
        name: "orders".into(),
        window_ms: HOUR_MS,
    }]);
    let mut changes = Changes::new(PartitionId {
        topic: store.topic("orders").unwrap(),
        partition: 0,
    });
    change(store.load(changes.partition).unwrap().open, &mut changes);
    store.apply(&[changes]).unwrap();
    store.close().unwrap();
    rig.store = Arc::new(store);
}

/// Orders something of partition 0. The answer comes while time passes.
fn ordered(
    rig: &Rig,
    acts: Vec<Act>,
    reason: &str,
    dry_run: bool,
) -> tokio::task::JoinHandle<Result<Answered, Unanswered>> {
    let (desk, id) = (rig.desk.clone(), rig.id(0).unwrap());
    let said = Said {
        reason: reason.to_owned(),
        by: "anna".into(),
        at_ms: START_MS,
    };
    tokio::spawn(async move { desk.order(id, acts, said, dry_run).await })
}

/// The first token of a message.
fn token_of(rig: &Rig, message: &Kept) -> TokenKey {
    let batch = message.into_batch("orders".into(), 0, Offset(0));
    let mut keys = Vec::new();
    rig.extractor().read(&batch.get(0).unwrap(), &mut keys);
    keys[0]
}

/// The offsets of the records that the store has open.
fn open_offsets(rig: &Rig) -> Vec<i64> {
    let known = rig.store.load(rig.id(0).unwrap()).unwrap();
    known.open.iter().map(|open| open.offset.0).collect()
}

/// A message of the same token under a new source, an old one, or both.
fn rotated(new: Option<&str>, old: Option<&str>) -> Kept {
    let header = |name: &str, value: &str| (name.into(), Some(Bytes::copy_from_slice(value.as_bytes())));
    Kept {
        headers: new
            .map(|value| header("token", value))
            .into_iter()
            .chain(old.map(|value| header("old", value)))
            .collect(),
        ..message("")
    }
}

/// Runs for ever: a handler in the middle of which the process is killed.
fn never() -> Answer {
    Box::pin(std::future::pending())
}

fn ok() -> Answer {
    Box::pin(async { Ok(()) })
}

const TERMS: Terms = Terms {
    deadline: Duration::from_millis(200),
    probe_deadline: Duration::from_millis(200),
    offload: false,
};
