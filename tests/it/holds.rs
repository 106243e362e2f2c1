//! Held for an attempt later, on a real Kafka: across a restart, and across a move to another disk.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::accounts::Account;
use hapax::config::Durability;
use hapax::{Bytes, Consumer, Context, HandlerError, NonIdempotent, Topic, Window};

use crate::kafka::{self, Broker};
use crate::member::{self, Member, Message};

/// A downstream that is away for one of the keys, and what it was told.
#[derive(Clone, Default)]
struct World {
    calls: Arc<Mutex<Vec<Call>>>,
    is_back: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
struct Call {
    partition: i32,
    offset: i64,
    attempt: u32,
}

impl World {
    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

async fn handle(payload: Bytes, cx: Context<World>) -> Result<(), HandlerError> {
    let world = cx.state().clone();
    let is_away = payload.starts_with(b"away") && !world.is_back.load(Ordering::SeqCst);
    if is_away {
        return Err(HandlerError::not_applied("the downstream is away"));
    }
    world.calls.lock().unwrap().push(Call {
        partition: cx.partition(),
        offset: cx.offset().0,
        attempt: cx.attempt(),
    });
    Ok(())
}

struct Case {
    brokers: String,
    topic: String,
    durability: Durability,
}

impl Case {
    fn new(broker: &Broker, durability: Durability) -> Self {
        let topic = kafka::unique("holds");
        member::create_topic(broker, &topic, 2, &[]);
        Self {
            brokers: broker.bootstrap(),
            topic,
            durability,
        }
    }

    fn consumer(&self, dir: &Path, world: &World) -> Consumer {
        member::consumer(&self.brokers, &self.topic, dir)
            .with(|layer| layer.durability = Some(self.durability))
            .handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(world.clone())
                    .window(Window::hours(1))
                    .retry(2, Duration::from_secs(10))
                    .backoff(Duration::from_millis(5), Duration::from_millis(5))
                    .retry_overall(10_000, Duration::from_secs(3_600))
                    .backoff_overall(Duration::from_millis(300), Duration::from_millis(300)),
                handle,
            )
    }
}

/// The first of a key is held until its downstream is back, whoever has it then; what came after it in its key runs after
/// it, what came for other keys has run long before. Each once.
async fn held_until_the_downstream_is_back(durability: Durability) {
    let Some(broker) = kafka::broker() else { return };
    let case = Case::new(broker, durability);
    let world = World::default();
    let mut messages = Vec::new();
    for partition in 0..2 {
        let keyed = |n: i32, key: &str, say: &str| {
            let message = Message::new(
                partition,
                format!("t-{partition}-{n}"),
                format!("{say}-{partition}-{n}"),
            );
            message.key(key)
        };
        messages.push(keyed(0, "slow", "away"));
        messages.extend((1..4).map(|n| keyed(n, "slow", "behind")));
        messages.extend((4..20).map(|n| keyed(n, "quick", "other")));
    }
    member::send(&case.brokers, &case.topic, messages).await;

    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let member = Member::start(case.consumer(dirs[0].path(), &world));
    // Everything is committed, with four of each partition held.
    member::await_caught_up(&case.brokers, &case.topic, &case.topic);
    kafka::eventually("what is not held", member::SOON, || {
        (world.calls().len() == 32).then_some(())
    });
    let summary = member.stop().await;
    assert_eq!(member::total(&summary, Account::Done), 32);

    // On its own disk in local mode; on another one where the state moves.
    let dir = match durability {
        Durability::Local => &dirs[0],
        _ => &dirs[1],
    };
    let member = Member::start(case.consumer(dir.path(), &world));
    world.is_back.store(true, Ordering::SeqCst);
    kafka::eventually("what was held", member::SOON, || {
        (world.calls().len() >= 40).then_some(())
    });
    let summary = member.stop().await;
    let balances = &summary.balances;
    let restored: u64 = balances.iter().map(|balance| balance.restored).sum();
    assert_eq!(
        (restored, member::total(&summary, Account::Done)),
        (8, 8),
        "{balances:?}"
    );
    let calls = world.calls();
    assert_eq!(calls.len(), 40, "each once");
    for partition in 0..2 {
        let of_key: Vec<i64> = calls
            .iter()
            .filter(|call| call.partition == partition && call.offset < 4)
            .map(|call| call.offset)
            .collect();
        assert_eq!(of_key, [0, 1, 2, 3], "in the order of their key");
    }
    let first = calls.iter().find(|call| call.offset == 0).unwrap();
    assert!(first.attempt > 2, "{first:?}");
    let letters = member::read_all(&case.brokers, &format!("{}.dead-letters", case.topic));
    assert_eq!(letters.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_runs_once_its_downstream_is_back_local() {
    held_until_the_downstream_is_back(Durability::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_runs_once_its_downstream_is_back_on_another_disk() {
    held_until_the_downstream_is_back(Durability::Replicated).await;
}
