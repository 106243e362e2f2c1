//! One consumer with several topics, each with its own handler, class and window; the three kinds of order; blocking
//! handlers; observe mode; and the end of a process that is asked to stop.
//!
//! Method: real Kafka, one member. Order is asserted from the handlers' own record of starts and ends: two that overlap
//! are seen as such, whatever their timing.
//!
//! Seen to fail: `ByKey` without a key in `order_of` ("left: (0, 300)", 300 of a key at the same time); `Mode::Observe` not
//! asked in `duplicate` ("left: (1, 1)", suppressed); `drain(&ids, true)` at shutdown (what is in doubt dead-lettered, "[1, 1, 1]",
//! and nothing held at the next start).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use hapax::accounts::Account;
use hapax::outcome::{HeldFor, Stage};
use hapax::store::rocks::RocksStore;
use hapax::store::{PartitionId, Store as _};
use hapax::{Bytes, Context, Idempotent, NonIdempotent, PotentiallyIdempotent, Topic, Window};
use tempfile::TempDir;

use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message, SOON};

fn topic(broker: &Broker, name: &str, partitions: i32) -> String {
    let topic = kafka::unique(name);
    member::create_topic(broker, &topic, partitions, &[]);
    topic
}

/// Each topic goes by its own handler, class and window, and the same token in two topics is two tokens.
#[tokio::test(flavor = "multi_thread")]
async fn each_topic_has_its_own_handler_class_and_window() {
    let Some(broker) = kafka::broker() else { return };
    let (brokers, dir) = (broker.bootstrap(), TempDir::new().unwrap());
    let [guarded, harmless, rerun] = ["guarded", "harmless", "rerun"].map(|name| topic(broker, name, 2));
    let effects = [(); 3].map(|()| Effects::default());
    for name in [&guarded, &harmless, &rerun] {
        let messages = (0..20).map(|n| {
            Message::new(
                n % 2,
                format!("token-{}", n / 4),
                if n == 19 { "fail" } else { "quick" },
            )
        });
        member::send(&brokers, name, messages).await;
    }
    let group = kafka::unique("several");
    let member = Member::start(
        member::consumer(&brokers, &group, dir.path())
            .handle(
                Topic::bytes(&guarded, NonIdempotent)
                    .state(effects[0].clone())
                    .window(Window::hours(1)),
                member::handle,
            )
            .handle(
                Topic::bytes(&harmless, Idempotent)
                    .state(effects[1].clone())
                    .window(Window::minutes(1))
                    .retry(2, Duration::from_secs(5))
                    .retry_overall(2, Duration::from_secs(5))
                    .backoff(Duration::from_millis(10), Duration::from_millis(20)),
                member::handle,
            )
            .handle(
                Topic::bytes(&rerun, PotentiallyIdempotent)
                    .state(effects[2].clone())
                    .window(Window::days(7))
                    .rerun_within(Duration::from_secs(3_600))
                    .retry(3, Duration::from_secs(5))
                    .retry_overall(3, Duration::from_secs(5))
                    .backoff(Duration::from_millis(10), Duration::from_millis(20)),
                member::handle,
            ),
    );
    for name in [&guarded, &harmless, &rerun] {
        member::await_caught_up(&brokers, &group, name);
    }
    let summary = member.stop().await;
    // Five tokens, each twice in each of two partitions, which do not know of one another. The last message of each topic
    // repeats a token, so its payload never comes to run.
    for effects in &effects {
        assert_eq!((effects.finished().len(), effects.starts_of("fail")), (10, 0));
    }
    assert_eq!(
        (
            member::total(&summary, Account::Done),
            member::total(&summary, Account::Duplicate)
        ),
        (30, 30)
    );
    let names: BTreeSet<String> = effects
        .iter()
        .flat_map(Effects::finished)
        .map(|call| call.topic)
        .collect();
    assert_eq!(
        names,
        BTreeSet::from([guarded.clone(), harmless.clone(), rerun.clone()])
    );

    let store = RocksStore::open_existing_for_cli(dir.path()).unwrap();
    let windows: BTreeMap<String, i64> = store
        .topics()
        .into_iter()
        .map(|(_, spec)| (spec.name, spec.window_ms))
        .collect();
    assert_eq!(
        windows,
        BTreeMap::from([(guarded, 3_600_000), (harmless, 60_000), (rerun, 7 * 86_400_000)])
    );
}

/// An error that says nothing about what was applied: an idempotent topic tries again, a potentially idempotent one runs
/// again with the same child tokens, a non-idempotent one holds the message.
#[tokio::test(flavor = "multi_thread")]
async fn one_error_ends_by_the_class_of_its_topic() {
    let Some(broker) = kafka::broker() else { return };
    let (brokers, dir) = (broker.bootstrap(), TempDir::new().unwrap());
    let classes = [NonIdempotent, Idempotent, PotentiallyIdempotent];
    let topics = classes.map(|class| topic(broker, class.name(), 1));
    let group = kafka::unique("errors");
    let mut consumer = member::consumer(&brokers, &group, dir.path());
    let tokens: Arc<Mutex<BTreeMap<String, BTreeSet<String>>>> = Arc::default();
    let calls: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    for (name, class) in topics.iter().zip(classes) {
        member::send(&brokers, name, [Message::new(0, "token", "payload")]).await;
        let (tokens, calls) = (Arc::clone(&tokens), Arc::clone(&calls));
        let topic = Topic::bytes(name, class)
            .window(Window::hours(1))
            .retry(3, Duration::from_secs(20))
            .retry_overall(3, Duration::from_secs(20))
            .backoff(Duration::from_millis(10), Duration::from_millis(20));
        consumer = consumer.handle(topic, move |_: Bytes, cx: Context| {
            *calls.lock().unwrap().entry(cx.topic().to_owned()).or_default() += 1;
            tokens
                .lock()
                .unwrap()
                .entry(cx.topic().to_owned())
                .or_default()
                .insert(cx.child_token("charge"));
            async move { Err("nobody knows what was applied".into()) }
        });
    }
    let member = Member::start(consumer);
    for name in &topics {
        member::await_caught_up(&brokers, &group, name);
    }
    let summary = member.stop().await;
    let calls = calls.lock().unwrap();
    assert_eq!(topics.each_ref().map(|name| calls[name]), [1, 3, 3]);
    assert!(
        tokens.lock().unwrap().values().all(|tokens| tokens.len() == 1),
        "the same child token at each attempt"
    );
    let letters = topics
        .each_ref()
        .map(|name| member::read_all(&brokers, &format!("{name}.dead-letters")).len());
    assert_eq!(letters, [0, 1, 1], "retries are spent; what is in doubt is held");
    assert_eq!(
        (
            member::total(&summary, Account::Failed),
            member::total(&summary, Account::Released)
        ),
        (2, 1)
    );
}

/// Observe: everything is judged and recorded, and nothing is suppressed.
#[tokio::test(flavor = "multi_thread")]
async fn observe_mode_runs_duplicates() {
    let Some(broker) = kafka::broker() else { return };
    let (brokers, dir, effects) = (broker.bootstrap(), TempDir::new().unwrap(), Effects::default());
    let topic = topic(broker, "observe", 1);
    let group = topic.clone();
    let run = |observe: bool| {
        let bytes = Topic::bytes(&topic, NonIdempotent)
            .state(effects.clone())
            .window(Window::hours(1));
        let bytes = if observe { bytes.observe() } else { bytes };
        Member::start(member::consumer(&brokers, &group, dir.path()).handle(bytes, member::handle))
    };
    member::send(
        &brokers,
        &topic,
        ["a", "b", "a", "a"].map(|token| Message::new(0, token, token)),
    )
    .await;
    let member = run(true);
    member::await_caught_up(&brokers, &group, &topic);
    let summary = member.stop().await;
    assert_eq!((effects.starts_of("a"), effects.starts_of("b")), (3, 1));
    assert_eq!(
        (
            member::total(&summary, Account::Done),
            member::total(&summary, Account::Duplicate)
        ),
        (4, 0)
    );
    // What it recorded suppresses once the mode is changed.
    member::send(&brokers, &topic, [Message::new(0, "a", "a")]).await;
    let member = run(false);
    member::await_caught_up(&brokers, &group, &topic);
    let summary = member.stop().await;
    assert_eq!(
        (
            effects.starts_of("a"),
            member::total(&summary, Account::Duplicate)
        ),
        (3, 1)
    );
}

/// What ran at the same time, told by the handlers themselves.
#[derive(Clone, Default)]
struct Overlap(Arc<Mutex<Running>>);

#[derive(Default)]
struct Running {
    keys: Vec<Vec<u8>>,
    most: usize,
    same_key: usize,
    order: BTreeMap<Vec<u8>, Vec<i64>>,
}

impl Overlap {
    async fn handle(_: Bytes, cx: Context<Self>) -> Result<(), hapax::HandlerError> {
        let running = Arc::clone(&cx.state().0);
        let key = cx.key().unwrap_or_default().to_vec();
        {
            let mut running = running.lock().unwrap();
            running.same_key += running.keys.iter().filter(|other| **other == key).count();
            running.keys.push(key.clone());
            running.most = running.most.max(running.keys.len());
            running.order.entry(key.clone()).or_default().push(cx.offset().0);
        }
        member::nap(Duration::from_millis(5)).await;
        let mut running = running.lock().unwrap();
        let place = running.keys.iter().position(|other| *other == key).unwrap();
        running.keys.swap_remove(place);
        Ok(())
    }
}

/// `ordered`: one at a time, in offset order. `by_key`: at most so many, never two of a key, each key in offset order.
/// `unordered`: as many as there are slots, whatever their keys.
#[tokio::test(flavor = "multi_thread")]
async fn order_is_what_the_topic_says() {
    let Some(broker) = kafka::broker() else { return };
    let brokers = broker.bootstrap();
    let topics = ["ordered", "by-key", "unordered"].map(|name| topic(broker, name, 1));
    let overlaps = [(); 3].map(|()| Overlap::default());
    // Keys come in runs, so that a key is busy when its next message arrives.
    let messages =
        || (0..200).map(|n| Message::new(0, format!("token-{n}"), "").key(format!("key-{}", (n / 4) % 10)));
    for name in &topics {
        member::send(&brokers, name, messages()).await;
    }
    let (dir, group) = (TempDir::new().unwrap(), kafka::unique("order"));
    let bytes = |which: usize| {
        Topic::bytes(&topics[which], NonIdempotent)
            .state(overlaps[which].clone())
            .window(Window::hours(1))
    };
    let member = Member::start(
        member::consumer(&brokers, &group, dir.path())
            .handle(bytes(0).ordered(), Overlap::handle)
            .handle(bytes(1).by_key(4), Overlap::handle)
            .handle(bytes(2).unordered(4), Overlap::handle),
    );
    for name in &topics {
        member::await_caught_up(&brokers, &group, name);
    }
    member.stop().await;
    let [ordered, by_key, unordered] =
        overlaps.map(|overlap| std::mem::take(&mut *overlap.0.lock().unwrap()));
    assert_eq!((ordered.most, by_key.most, unordered.most), (1, 4, 4));
    assert_eq!((ordered.same_key, by_key.same_key), (0, 0));
    assert!(unordered.same_key > 0, "two of a key ran at the same time");
    for (which, running) in [("ordered", &ordered), ("by_key", &by_key)] {
        assert_eq!(running.order.len(), 10);
        for (key, offsets) in &running.order {
            assert!(
                offsets.is_sorted(),
                "{which} {}: {offsets:?}",
                String::from_utf8_lossy(key)
            );
        }
    }
}

/// Handlers that block their thread, until a certain number of them are inside.
#[derive(Clone)]
struct Meeting {
    inside: Arc<(Mutex<usize>, Condvar)>,
    wanted: usize,
    met: Arc<AtomicUsize>,
}

/// With `offload`, handlers that block their thread hold up neither one another nor anything else: eight of them meet,
/// each standing on a thread of its own, while another topic is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_handlers_are_offloaded() {
    let Some(broker) = kafka::broker() else { return };
    let brokers = broker.bootstrap();
    let (slow, quick) = (topic(broker, "blocking", 1), topic(broker, "beside", 1));
    let (dir, group, effects) = (
        TempDir::new().unwrap(),
        kafka::unique("offload"),
        Effects::default(),
    );
    member::send(
        &brokers,
        &slow,
        (0..8).map(|n| Message::new(0, format!("token-{n}"), "")),
    )
    .await;
    member::send(
        &brokers,
        &quick,
        (0..8).map(|n| Message::new(0, format!("token-{n}"), "quick")),
    )
    .await;
    let meeting = Meeting {
        inside: Arc::default(),
        wanted: 9,
        met: Arc::default(),
    };
    let member = Member::start(
        member::consumer(&brokers, &group, dir.path())
            .handle(
                Topic::bytes(&slow, NonIdempotent)
                    .state(meeting.clone())
                    .window(Window::hours(1))
                    .deadline(2 * SOON)
                    .unordered(8)
                    .offload(true),
                |_: Bytes, cx: Context<Meeting>| async move {
                    let Meeting { inside, wanted, met } = cx.state();
                    let (count, changed) = &**inside;
                    let mut count = count.lock().unwrap();
                    *count += 1;
                    changed.notify_all();
                    let (_count, waited) = changed
                        .wait_timeout_while(count, SOON, |count| *count < *wanted)
                        .unwrap();
                    if !waited.timed_out() {
                        met.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                },
            )
            .handle(
                Topic::bytes(&quick, NonIdempotent)
                    .state(effects.clone())
                    .window(Window::hours(1)),
                member::handle,
            ),
    );
    // The other topic is recorded and committed while all eight stand still.
    eventually("eight blocked handlers", SOON, || {
        (*meeting.inside.0.lock().unwrap() == 8).then_some(())
    });
    member::await_caught_up(&brokers, &group, &quick);
    assert_eq!(
        (effects.finished().len(), meeting.met.load(Ordering::SeqCst)),
        (8, 0)
    );
    *meeting.inside.0.lock().unwrap() += 1;
    meeting.inside.1.notify_all();
    member::await_caught_up(&brokers, &group, &slow);
    member.stop().await;
    assert_eq!(meeting.met.load(Ordering::SeqCst), 8);
}

/// A handler longer than the drain's budget is cut off at shutdown. For a guarded class it is in doubt at the next start:
/// held for a verdict, and not run again; an idempotent one runs again. What finishes in time is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_its_budget_and_not_longer() {
    let Some(broker) = kafka::broker() else { return };
    let brokers = broker.bootstrap();
    for class in [NonIdempotent, Idempotent] {
        let name = topic(broker, "shutdown", 1);
        let (dir, first, second) = (TempDir::new().unwrap(), Effects::default(), Effects::default());
        second.open();
        let start = |effects: &Effects| {
            Member::start(
                member::consumer(&brokers, &name, dir.path())
                    .with(|layer| layer.drain = Some(Duration::from_secs(2)))
                    .handle(
                        Topic::bytes(&name, class)
                            .state(effects.clone())
                            .window(Window::hours(1))
                            .deadline(2 * SOON)
                            .unordered(2),
                        member::handle,
                    ),
            )
        };
        member::send(
            &brokers,
            &name,
            [
                Message::new(0, "long", "wait"),
                Message::new(0, "short", "sleep-300"),
            ],
        )
        .await;
        let member = start(&first);
        eventually("both handlers", SOON, || {
            (first.started().len() == 2).then_some(())
        });
        let summary = member.stop().await;
        assert_eq!(
            (
                member::total(&summary, Account::Done),
                member::total(&summary, Account::Released)
            ),
            (1, 1)
        );
        assert_eq!(first.starts_of("sleep-300"), 1);
        assert_eq!(
            member::committed(&brokers, &name, &name)[&0].0,
            0,
            "the first is not recorded, so nothing is passed"
        );

        let member = start(&second);
        member::await_caught_up(&brokers, &name, &name);
        let summary = member.stop().await;
        assert_eq!(second.starts_of("sleep-300"), 0, "it is known to be done");
        assert_eq!(member::total(&summary, Account::Redelivery), 1);
        let store = RocksStore::open_existing_for_cli(dir.path()).unwrap();
        let at = PartitionId {
            topic: store.topic(&name).unwrap(),
            partition: 0,
        };
        let open = store.load(at).unwrap().open;
        if class == NonIdempotent {
            assert_eq!(
                second.started(),
                [],
                "what may have been applied does not run again"
            );
            let [open] = &open[..] else { panic!("{open:?}") };
            assert!(
                matches!(
                    open.stage,
                    Stage::Held {
                        why: HeldFor::InDoubt,
                        ..
                    }
                ),
                "{open:?}"
            );
        } else {
            assert_eq!((second.starts_of("wait"), open.len()), (1, 0));
        }
    }
}
