//! Members that keep copies of what the others own (`standby = "all"`): taking over costs the tail, a copy is what its
//! owner has, and an owner that trims does not shake off whoever stands by.
//!
//! What a restore read is what it says of itself; what a copy holds is read from the stores of members that have stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hapax::accounts::Account;
use hapax::config::{Durability, Standby};
use hapax::store::rocks::RocksStore;
use hapax::store::{Hit, Known, PartitionId, Store as _};
use hapax::token::TokenKey;
use hapax::{Bytes, Consumer, Context, NonIdempotent, Topic, Window};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;

use crate::events;
use crate::kafka::{self, eventually};
use crate::member::{self, Effects, Member, Message};
use crate::process::{self, Process, told};

/// Kills, sessions that end, and open transactions that time out after that.
const SOON: Duration = Duration::from_secs(120);

#[derive(Clone)]
struct Fleet {
    brokers: String,
    topic: String,
    window: Duration,
    /// Every token that a handler of this process ran for.
    keys: Arc<Mutex<BTreeSet<TokenKey>>>,
}

impl Fleet {
    fn new(brokers: String, topic: String, window: Duration) -> Self {
        Self {
            brokers,
            topic,
            window,
            keys: Arc::default(),
        }
    }

    fn changelog(&self) -> String {
        format!("{0}.{0}.hapax", self.topic)
    }

    fn consumer(&self, dir: &Path, effects: &Effects) -> Consumer {
        let keys = Arc::clone(&self.keys);
        member::consumer(&self.brokers, &self.topic, dir)
            .with(|layer| {
                layer.durability = Some(Durability::Replicated);
                layer.standby = Some(Standby::All);
            })
            .handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(effects.clone())
                    .window(Window::from(self.window)),
                move |payload: Bytes, cx: Context<Effects>| {
                    keys.lock().unwrap().insert(cx.token());
                    member::handle(payload, cx)
                },
            )
    }

    fn start(&self, dir: &Path, effects: &Effects) -> Member {
        Member::start(self.consumer(dir, effects))
    }

    async fn send(&self, messages: impl IntoIterator<Item = Message>) {
        member::send(&self.brokers, &self.topic, messages).await;
    }

    fn caught_up(&self) {
        eventually("commits at the end of the log", SOON, || {
            member::is_caught_up(&self.brokers, &self.topic, &self.topic).then_some(())
        });
    }

    fn members(&self, wanted: usize) {
        eventually("a stable group", SOON, || {
            (member::group_state(&self.brokers, &self.topic) == ("Stable".to_owned(), wanted)).then_some(())
        });
    }

    /// What was said of the changelog, in those words, by partition, with that number.
    fn said(&self, message: &str, field: &str) -> BTreeMap<i32, Vec<i64>> {
        let changelog = self.changelog();
        let mut said: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for one in
            events::all(|said| said.field("message") == message && said.field("changelog") == changelog)
        {
            let partition = one.field("partition").parse().unwrap();
            said.entry(partition)
                .or_default()
                .push(one.field(field).parse().unwrap());
        }
        said
    }

    /// Waits until so many copies stand at the ends of their changelogs.
    fn copies_at_the_end(&self, wanted: usize) {
        eventually("copies at the end", SOON, || {
            let at = self.said("a copy is at the end", "next");
            let ends = member::ends(&self.brokers, &self.changelog());
            let are = ends
                .iter()
                .filter(|(partition, (_, high))| at.get(partition).is_some_and(|at| at.contains(high)));
            (are.count() >= wanted).then_some(())
        });
    }

    /// What a stopped member's disk has of each partition.
    fn stored(&self, dir: &Path) -> BTreeMap<i32, (Known, Vec<Hit>)> {
        let store = RocksStore::open_existing_for_cli(dir).unwrap();
        let topic = store.topic(&self.topic).unwrap();
        let keys: Vec<TokenKey> = self.keys.lock().unwrap().iter().copied().collect();
        let mut stored = BTreeMap::new();
        for partition in member::ends(&self.brokers, &self.changelog()).into_keys() {
            let at = PartitionId { topic, partition };
            let mut hits = Vec::new();
            store.look_up(at, i64::MIN, &keys, &mut hits).unwrap();
            stored.insert(partition, (store.load(at).unwrap(), hits));
        }
        stored
    }
}

fn messages(partitions: i32, tokens: std::ops::Range<i32>, say: &str) -> impl Iterator<Item = Message> {
    tokens.map(move |n| Message::new(n % partitions, format!("t-{n}"), format!("{say}-{n}")))
}

// ---- A member that is killed.

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child process of a test in this file"]
async fn child() {
    let fleet = Fleet::new(told("brokers"), told("topic"), Duration::from_secs(3_600));
    let dir = told("dir");
    process::run(fleet.consumer(Path::new(&dir), &Effects::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_over_from_a_member_that_was_killed_costs_the_tail() {
    const PARTITIONS: i32 = 4;
    const TOKENS: i32 = 4_000;
    /// What the owner has recorded when nobody has read it yet, at most.
    const LATE: i32 = 20;
    let Some(broker) = kafka::broker() else { return };
    events::listen();
    let topic = kafka::unique("stands-by");
    member::create_topic(broker, &topic, PARTITIONS, &[]);
    let fleet = Fleet::new(broker.bootstrap(), topic, Duration::from_secs(3_600));
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let effects = Effects::default();

    let orders = [
        ("brokers", fleet.brokers.as_str()),
        ("topic", &fleet.topic),
        ("dir", dirs[0].path().to_str().unwrap()),
    ];
    let owner = Process::start("standby::child", &orders);
    fleet.members(1);
    fleet.send(messages(PARTITIONS, 0..TOKENS, "first")).await;
    fleet.caught_up();
    let other = fleet.start(dirs[1].path(), &effects);
    fleet.members(2);
    // What comes while both are there is done by either.
    fleet
        .send(messages(PARTITIONS, TOKENS..2 * TOKENS, "first"))
        .await;
    fleet.caught_up();
    fleet.copies_at_the_end(2);
    let restored = |fleet: &Fleet, field: &str| -> BTreeMap<i32, i64> {
        let said = fleet.said("restored from the changelog", field);
        said.into_iter()
            .map(|(partition, all)| (partition, all.iter().sum()))
            .collect()
    };
    let (frames, records) = (restored(&fleet, "frames"), restored(&fleet, "records"));
    let own: BTreeSet<i32> = frames.keys().copied().collect();
    assert_eq!(own.len(), 2, "each has half of the partitions: {frames:?}");

    fleet
        .send(messages(PARTITIONS, 2 * TOKENS..2 * TOKENS + LATE, "late"))
        .await;
    drop(owner);
    // Every token again, also those that the killed member alone has run.
    fleet.send(messages(PARTITIONS, 0..2 * TOKENS, "again")).await;
    fleet.caught_up();
    let after = restored(&fleet, "records");
    let taken: BTreeMap<i32, i64> = after
        .into_iter()
        .filter(|(partition, _)| !own.contains(partition))
        .collect();
    assert_eq!(taken.len(), 2, "it has taken over: {taken:?}");
    // A message of a guarded class is begun, ended, and out of what is open: three records.
    let whole = i64::from(2 * TOKENS / PARTITIONS) * 3;
    for (partition, read) in taken {
        assert!(
            read * 10 < whole,
            "partition {partition}: {read} records of about {whole}; before: {records:?}"
        );
    }
    let summary = other.stop().await;
    let again = effects
        .started()
        .into_iter()
        .filter(|call| call.payload.starts_with("again"));
    assert_eq!(
        again.map(|call| call.payload).collect::<Vec<_>>(),
        Vec::<String>::new()
    );
    let duplicates = member::total(&summary, Account::Duplicate);
    assert_eq!(duplicates, 2 * TOKENS as u64);
}

/// The input and its changelog may get partitions at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_the_changelog_has_got_is_copied_too() {
    let Some(broker) = kafka::broker() else { return };
    events::listen();
    let topic = kafka::unique("stands-by-grown");
    member::create_topic(broker, &topic, 1, &[]);
    let fleet = Fleet::new(broker.bootstrap(), topic, Duration::from_secs(3_600));
    let dir = tempfile::tempdir().unwrap();
    let member = fleet.start(dir.path(), &Effects::default());
    fleet.send(messages(1, 0..10, "first")).await;
    fleet.caught_up();
    let admin: AdminClient<DefaultClientContext> = broker.client().create().unwrap();
    let changelog = fleet.changelog();
    let grown = NewPartitions::new(&changelog, 2);
    let made = admin
        .create_partitions([&grown], &AdminOptions::new())
        .await
        .unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    eventually("a copy of the new one", SOON, || {
        let at = fleet.said("a copy is at the end", "next");
        at.contains_key(&1).then_some(())
    });
    let at = fleet.said("a copy is at the end", "next");
    assert_eq!(at[&1], [0], "and nothing is in it");
    member.stop().await;
}

// ---- Copies, and the owner's own.

/// Log time is the messages' own, so a window passes as fast as they can be sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_what_its_owner_has_also_where_the_owner_trims() {
    const PARTITIONS: i32 = 2;
    const TOKENS: i32 = 400;
    const WINDOW: Duration = Duration::from_secs(8);
    const ROUND_MS: i64 = 12_000;
    let Some(broker) = kafka::broker() else { return };
    events::listen();
    let topic = kafka::unique("stands-by-trimmed");
    member::create_topic(broker, &topic, PARTITIONS, &[("retention.ms", "-1")]);
    let fleet = Fleet::new(broker.bootstrap(), topic, WINDOW);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let effects = [Effects::default(), Effects::default()];
    let first = fleet.start(dirs[0].path(), &effects[0]);
    let second = fleet.start(dirs[1].path(), &effects[1]);
    fleet.members(2);

    let round = |round: i32, say: &'static str, tokens: std::ops::Range<i32>| {
        let timestamp_ms = Some(now_ms - 30 * ROUND_MS + i64::from(round) * ROUND_MS);
        tokens.map(move |n| Message {
            timestamp_ms,
            ..Message::new(
                n % PARTITIONS,
                format!("{round}-{n}"),
                format!("{say}-{round}-{n}"),
            )
        })
    };
    // Held for a person, from the first frames on: they are written again with each trim.
    fleet.send(round(0, "fail", TOKENS..TOKENS + PARTITIONS)).await;
    fleet.caught_up();
    let lows = || -> BTreeMap<i32, i64> {
        let ends = member::ends(&fleet.brokers, &fleet.changelog());
        ends.into_iter()
            .map(|(partition, (low, _))| (partition, low))
            .collect()
    };
    let mut before = lows();
    for n in 1..=4 {
        fleet.send(round(n, "run", 0..TOKENS)).await;
        fleet.caught_up();
        if n > 1 {
            eventually("a trim", SOON, || {
                lows()
                    .iter()
                    .all(|(partition, low)| *low > before[partition])
                    .then_some(())
            });
        }
        before = lows();
    }
    fleet.copies_at_the_end(PARTITIONS as usize);
    second.stop().await;
    fleet.members(1);
    first.stop().await;

    let (owned, copied) = (fleet.stored(dirs[0].path()), fleet.stored(dirs[1].path()));
    // The one that the first had all the time: it has not been fenced anew since the other stopped.
    let same: Vec<i32> = owned
        .keys()
        .copied()
        .filter(|partition| owned[partition].0.fence == copied[partition].0.fence)
        .collect();
    assert_eq!(same.len(), 1, "{owned:?} {copied:?}");
    let at = same[0];
    let (known, hits) = &owned[&at];
    let (copy, found) = &copied[&at];
    assert_eq!(copy.open, known.open);
    assert_eq!(known.open.len(), 1, "what is held came along");
    let stands = |known: &Known| {
        known
            .position
            .map(|position| (position.commit_point, position.time_ms))
    };
    assert_eq!(stands(copy), stands(known));
    let in_window = |hits: &[Hit]| -> Vec<Hit> {
        let now_ms = known.position.unwrap().time_ms.unwrap();
        let hits = hits
            .iter()
            .filter(|hit| now_ms - hit.closed.first_seen_ms < WINDOW.as_millis() as i64);
        hits.cloned().collect()
    };
    assert_eq!(in_window(hits).len(), (TOKENS / PARTITIONS) as usize);
    assert_eq!(in_window(found), in_window(hits));
    let runs = effects.iter().flat_map(Effects::finished).count();
    assert_eq!(runs, 4 * TOKENS as usize);
}
