//! The trim on a real Kafka: a changelog stays bounded however much goes through it, and whoever reads what is left of it
//! knows every token inside the window and everything that is open.
//!
//! Log time is the messages' own, so a window passes as fast as they can be sent.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hapax::accounts::Account;
use hapax::config::Durability;
use hapax::store::rocks::RocksStore;
use hapax::store::{Store as _, TopicSpec};
use hapax::{Consumer, NonIdempotent, Topic, Window};

use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message};

const PARTITIONS: i32 = 2;
const WINDOW: Duration = Duration::from_secs(8);
/// Of log time, between two rounds: more than a window.
const ROUND_MS: i64 = 12_000;
const TOKENS: i32 = 400;
/// The trim is asked every few seconds.
const SOON: Duration = Duration::from_secs(60);

struct Input {
    brokers: String,
    topic: String,
    /// Log time of the first round: in the past, which no broker refuses.
    start_ms: i64,
}

impl Input {
    fn new(broker: &Broker) -> Self {
        let topic = kafka::unique("trimmed");
        member::create_topic(broker, &topic, PARTITIONS, &[("retention.ms", "-1")]);
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        Self {
            brokers: broker.bootstrap(),
            topic,
            start_ms: now_ms - 30 * ROUND_MS,
        }
    }

    fn changelog(&self) -> String {
        format!("{0}.{0}.hapax", self.topic)
    }

    fn consumer(&self, dir: &Path, effects: &Effects) -> Consumer {
        member::consumer(&self.brokers, &self.topic, dir)
            .with(|layer| layer.durability = Some(Durability::Replicated))
            .handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(effects.clone())
                    .window(Window::from(WINDOW)),
                member::handle,
            )
    }

    /// The tokens of one round, at its time.
    async fn send(&self, round: i32, say: &str, tokens: impl IntoIterator<Item = i32>) {
        let timestamp_ms = Some(self.start_ms + i64::from(round) * ROUND_MS);
        let messages = tokens.into_iter().map(|n| Message {
            timestamp_ms,
            ..Message::new(
                n % PARTITIONS,
                format!("{round}-{n}"),
                format!("{say}-{round}-{n}"),
            )
        });
        member::send(&self.brokers, &self.topic, messages).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.brokers, &self.topic, &self.topic);
    }

    /// The first offset of each partition of the changelog.
    fn lows(&self) -> BTreeMap<i32, i64> {
        let ends = member::ends(&self.brokers, &self.changelog());
        ends.into_iter()
            .map(|(partition, (low, _))| (partition, low))
            .collect()
    }

    /// What is in the changelog, in bytes.
    fn bytes(&self) -> usize {
        let found = member::read_all(&self.brokers, &self.changelog());
        found
            .iter()
            .map(|found| found.payload.as_ref().map_or(0, Vec::len))
            .sum()
    }

    /// Waits until every partition is trimmed past those offsets.
    fn trimmed_past(&self, before: &BTreeMap<i32, i64>) {
        eventually("a trim", SOON, || {
            let lows = self.lows();
            lows.iter()
                .all(|(partition, low)| *low > before[partition])
                .then_some(())
        });
    }

    /// What a stopped member's disk has open, with the bytes of what is held.
    fn open(&self, dir: &Path) -> Vec<(i64, usize)> {
        let spec = TopicSpec {
            name: self.topic.clone(),
            window_ms: WINDOW.as_millis() as i64,
        };
        let store = RocksStore::open(dir, &self.topic, &[spec], 32 << 20, Durability::Replicated).unwrap();
        let mut open = Vec::new();
        for id in store.partitions().unwrap() {
            let known = store.load(id).unwrap();
            open.extend(known.open.iter().map(|open| (open.offset.0, open.bytes())));
        }
        store.close().unwrap();
        open.sort_unstable();
        open
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_stays_bounded_and_nothing_that_is_needed_goes() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker);
    let effects = Effects::default();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());

    // Two messages that nobody knows the end of: held for a person, from the first frames on.
    input.send(0, "fail", [TOKENS, TOKENS + 1]).await;
    let member = Member::start(input.consumer(first.path(), &effects));
    let mut sizes = Vec::new();
    let mut lows = input.lows();
    for round in 1..=6 {
        input.send(round, "run", 0..TOKENS).await;
        input.caught_up();
        if round > 1 {
            input.trimmed_past(&lows);
        }
        lows = input.lows();
        sizes.push(input.bytes());
    }
    // One window and what has not gone yet: it does not grow with the rounds.
    let last = sizes[sizes.len() - 1];
    assert!(last < 2 * sizes[1], "{sizes:?}");
    let held = effects
        .started()
        .iter()
        .filter(|call| call.payload.starts_with("fail"))
        .count();
    assert_eq!(held, 2);
    member.stop().await;

    // On an empty disk: duplicates of the last round are known, those of an earlier one are past.
    let member = Member::start(input.consumer(second.path(), &effects));
    input.send(6, "again", 0..TOKENS).await;
    input.caught_up();
    let summary = member.stop().await;
    let of = |account| member::total(&summary, account);
    assert_eq!((of(Account::Duplicate), of(Account::Done)), (TOKENS as u64, 0));
    let restored: u64 = summary.balances.iter().map(|balance| balance.restored).sum();
    assert_eq!(restored, 2, "what was held came along");
    let open = input.open(second.path());
    assert_eq!(open.len(), 2, "{open:?}");
    assert!(
        open.iter()
            .all(|(offset, bytes)| *offset == 0 && *bytes > "fail-0-400".len()),
        "{open:?}"
    );
    assert_eq!(open, input.open(first.path()), "and is what it was");
}

/// A process that dies between the two steps of a trim has written what is open once more, and deleted nothing; the log is
/// whole, and the next owner trims it.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_lies_before_the_log_is_read_anew() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker);
    let effects = Effects::default();
    let (old, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    input.send(0, "fail", [TOKENS, TOKENS + 1]).await;
    input.send(1, "run", 0..TOKENS).await;
    let member = Member::start(input.consumer(old.path(), &effects));
    input.caught_up();
    member.stop().await;
    let before = input.lows();

    let member = Member::start(input.consumer(other.path(), &effects));
    for round in 2..=3 {
        input.send(round, "run", 0..TOKENS).await;
        input.caught_up();
    }
    // Past everything that the first disk has read.
    let ends: BTreeMap<i32, i64> = before.keys().map(|partition| (*partition, 8)).collect();
    input.trimmed_past(&ends);
    member.stop().await;

    let member = Member::start(input.consumer(old.path(), &effects));
    input.send(3, "again", 0..TOKENS).await;
    input.caught_up();
    let summary = member.stop().await;
    let of = |account| member::total(&summary, account);
    assert_eq!((of(Account::Duplicate), of(Account::Done)), (TOKENS as u64, 0));
    assert_eq!(input.open(old.path()).len(), 2);
    assert_eq!(input.open(old.path()), input.open(other.path()));
}
