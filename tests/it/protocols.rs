//! The protocols of a group in replicated mode: whatever the members speak, a partition moves with its window.
//!
//! Method: members of one group in this process, each with a state directory of its own, on a real Kafka. One joins while
//! messages flow, and leaves, and comes back onto its old directory; after each move everything is sent once more. Effects
//! are counted off the handlers' own record, together with the fence that each handler was told. Whatever a protocol is
//! given by, the user states it under `[kafka]`.
//!
//! Seen to fail:
//! - with the drain switched off (`HAPAX_BREAK=drain`), eagerly: "left: (84, 318), right: (180, 468)", done and duplicates

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use hapax::accounts::Account;
use hapax::config::{Durability, Layer, Properties};
use hapax::{Consumer, NonIdempotent, Summary, Topic, Window};
use tempfile::TempDir;

use crate::kafka::{self, eventually};
use crate::member::{self, Call, Effects, Member, Message, SOON};

const PARTITIONS: i32 = 4;

/// A group on one topic, and what its members state under `[kafka]`.
struct Group {
    brokers: String,
    topic: String,
    properties: &'static [(&'static str, &'static str)],
}

const COOPERATIVE: &[(&str, &str)] = &[];
const EAGER: &[(&str, &str)] = &[("partition.assignment.strategy", "range")];
/// KIP-848: the broker decides session and heartbeat, 5 s each at the least.
const BY_BROKER: &[(&str, &str)] = &[("group.protocol", "consumer")];

impl Group {
    fn new(name: &str, properties: &'static [(&'static str, &'static str)]) -> Option<Self> {
        let broker = kafka::broker()?;
        let topic = kafka::unique(name);
        member::create_topic(broker, &topic, PARTITIONS, &[]);
        Some(Self {
            brokers: broker.bootstrap(),
            topic,
            properties,
        })
    }

    fn consumer(&self, dir: &Path, effects: &Effects, instance: Option<&str>) -> Consumer {
        let state = |layer: &mut Layer| {
            layer.durability = Some(Durability::Replicated);
            for (name, value) in self.properties {
                member::property(layer, name, value);
            }
            if self.properties == BY_BROKER {
                let Properties(properties) = &mut layer.kafka;
                properties
                    .retain(|name, _| !["session.timeout.ms", "heartbeat.interval.ms"].contains(&&**name));
            }
            if let Some(instance) = instance {
                member::property(layer, "group.instance.id", instance);
            }
        };
        member::consumer(&self.brokers, &self.topic, dir)
            .with(state)
            .handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(effects.clone())
                    .window(Window::hours(1)),
                member::handle,
            )
    }

    fn start(&self, dir: &TempDir, effects: &Effects, instance: Option<&str>) -> Member {
        Member::start(self.consumer(dir.path(), effects, instance))
    }

    fn caught_up(&self) {
        // A member of a protocol that is slow to hand over may need more than one of these.
        let deadline = Instant::now() + 3 * SOON;
        eventually("commits at the end of the log", 3 * SOON, || {
            assert!(Instant::now() < deadline);
            member::is_caught_up(&self.brokers, &self.topic, &self.topic).then_some(())
        });
    }
}

/// What was sent: every token once, and once more after each move.
struct Sent<'g> {
    group: &'g Group,
    tokens: i32,
    messages: u64,
}

impl Sent<'_> {
    async fn send(&mut self, tokens: std::ops::Range<i32>, say: &str) {
        self.messages += tokens.len() as u64;
        let messages = tokens.map(|n| Message::new(n % PARTITIONS, format!("t-{n}"), format!("{say}-{n}")));
        member::send(&self.group.brokers, &self.group.topic, messages).await;
    }

    async fn send_new(&mut self, count: i32) {
        let tokens = self.tokens..self.tokens + count;
        self.tokens += count;
        self.send(tokens, "new").await;
    }

    async fn send_again(&mut self) {
        self.send(0..self.tokens, "again").await;
    }

    /// That member has so many partitions, and is sent again what another one has done.
    async fn is_known_to(&mut self, effects: &Effects, partitions: usize) {
        self.send_until_it_takes_part(effects, partitions).await;
        self.send_again().await;
        self.group.caught_up();
    }

    /// Sends new messages until that member has started handlers in as many partitions since.
    async fn send_until_it_takes_part(&mut self, effects: &Effects, partitions: usize) {
        let before = effects.started().len();
        let deadline = Instant::now() + 3 * SOON;
        loop {
            let since: BTreeSet<i32> = effects
                .started()
                .drain(before..)
                .map(|call| call.partition)
                .collect();
            if since.len() >= partitions {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "it takes no part: partitions {since:?}"
            );
            self.send_new(PARTITIONS * 2).await;
            member::nap(std::time::Duration::from_millis(100)).await;
        }
    }
}

/// Inv 5: in each partition, in the order of its log, a fence never falls, and rises wherever the member is another.
fn assert_fences_rise(members: &[&Effects]) {
    let mut calls: Vec<(usize, Call)> = Vec::new();
    for (number, effects) in members.iter().enumerate() {
        calls.extend(effects.started().into_iter().map(|call| (number, call)));
    }
    calls.sort_by_key(|(_, call)| (call.partition, call.offset));
    for pair in calls.windows(2) {
        let [(before, earlier), (after, later)] = pair else {
            continue;
        };
        let rises = later.fence > earlier.fence;
        assert!(
            earlier.partition != later.partition
                || rises
                || (later.fence == earlier.fence && before == after),
            "member {before} ran {earlier:?}, then member {after} {later:?}"
        );
    }
}

fn sum(summaries: &[Summary], account: Account) -> u64 {
    summaries
        .iter()
        .map(|summary| member::total(summary, account))
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_moves_with_its_partition_cooperatively() {
    moves("cooperative", COOPERATIVE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_moves_with_its_partition_eagerly() {
    moves("eager", EAGER).await;
}

/// Works, and is called experimental.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_moves_with_its_partition_by_the_broker() {
    moves("by-broker", BY_BROKER).await;
    let said =
        crate::events::all(|said| said.level == tracing::Level::WARN && said.text().contains("KIP-848"));
    assert!(
        said.iter().any(|said| said.text().contains("experimental")),
        "{said:?}"
    );
}

async fn moves(name: &str, properties: &'static [(&'static str, &'static str)]) {
    let Some(group) = Group::new(name, properties) else {
        return;
    };
    let (here, there) = (Effects::default(), Effects::default());
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut sent = Sent {
        group: &group,
        tokens: 0,
        messages: 0,
    };
    let mut summaries = Vec::new();
    sent.send_new(100).await;
    let first = group.start(&dirs[0], &here, None);
    group.caught_up();

    // Another joins, and knows what the first has done.
    let second = group.start(&dirs[1], &there, None);
    sent.is_known_to(&there, 1).await;

    // The first leaves: everything is the other's.
    summaries.push(first.stop().await);
    sent.is_known_to(&there, PARTITIONS as usize).await;

    // It comes back onto a directory that is behind.
    let first = group.start(&dirs[0], &here, None);
    sent.is_known_to(&here, 1).await;
    summaries.push(first.stop().await);
    summaries.push(second.stop().await);

    let mut finished: Vec<(i32, i64)> = here
        .finished()
        .iter()
        .chain(&there.finished())
        .map(|call| (call.partition, call.offset))
        .collect();
    let started = here.started().len() + there.started().len();
    finished.sort_unstable();
    finished.dedup();
    let tokens = usize::try_from(sent.tokens).unwrap();
    assert_eq!(
        (finished.len(), started),
        (tokens, tokens),
        "effects of so many tokens"
    );
    let redelivered = sum(&summaries, Account::Redelivery);
    let (done, duplicates) = (
        sum(&summaries, Account::Done),
        sum(&summaries, Account::Duplicate),
    );
    assert_eq!(
        (done, duplicates),
        (tokens as u64, sent.messages - tokens as u64),
        "{redelivered} redelivered: {summaries:?}"
    );
    assert_fences_rise(&[&here, &there]);
}

/// By partition.
fn fences(calls: &[Call]) -> BTreeMap<i32, BTreeSet<u64>> {
    let mut fences: BTreeMap<i32, BTreeSet<u64>> = BTreeMap::new();
    for call in calls {
        fences.entry(call.partition).or_default().insert(call.fence);
    }
    fences
}

/// A static member that is back within its session finds its partitions, and nobody else has noticed: under `range`, where
/// every rebalance takes all partitions from all members, the other one's fences stay as they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_restarts_without_a_rebalance() {
    const STATIC: &[(&str, &str)] = &[
        ("partition.assignment.strategy", "range"),
        ("session.timeout.ms", "120000"),
    ];
    let Some(group) = Group::new("static", STATIC) else {
        return;
    };
    let (here, there) = (Effects::default(), Effects::default());
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut sent = Sent {
        group: &group,
        tokens: 0,
        messages: 0,
    };
    let stays = group.start(&dirs[1], &there, Some("stays"));
    let restarts = group.start(&dirs[0], &here, Some("restarts"));
    sent.send_until_it_takes_part(&here, 2).await;
    sent.send_until_it_takes_part(&there, 2).await;
    group.caught_up();
    let (mine, others) = (here.started().len(), there.started().len());

    restarts.stop().await;
    sent.send_new(40).await;
    eventually("the other one's share", 2 * SOON, || {
        (there.started().len() == others + 20).then_some(())
    });
    assert!(
        member::lag(&group.brokers, &group.topic, &group.topic)
            .values()
            .filter(|lag| **lag > 0)
            .count()
            == 2,
        "what was the first one's waits for it"
    );

    let restarts = group.start(&dirs[0], &here, Some("restarts"));
    group.caught_up();
    sent.send_again().await;
    sent.send_new(40).await;
    group.caught_up();
    let summaries = [restarts.stop().await, stays.stop().await];

    let (before, after) = (here.started(), there.started());
    let (before, mine) = before.split_at(mine);
    let (undisturbed, others) = after.split_at(others);
    // Of its first assignment, when it was alone, it had all four.
    let last = |calls: &[Call]| -> BTreeMap<i32, u64> {
        calls.iter().map(|call| (call.partition, call.fence)).collect()
    };
    let kept: BTreeMap<i32, BTreeSet<u64>> = fences(others);
    assert_eq!(kept.len(), 2, "{kept:?}");
    for (partition, fences) in &kept {
        assert_eq!(
            *fences,
            BTreeSet::from([last(undisturbed)[partition]]),
            "the other one was disturbed"
        );
    }
    let back = fences(mine);
    assert_eq!(back.len(), 2, "{back:?}");
    for (partition, fences) in &back {
        assert_eq!(fences.len(), 1, "one assignment");
        assert!(
            fences.iter().all(|fence| *fence > last(before)[partition]),
            "{back:?}"
        );
    }
    let finished = here.finished().len() + there.finished().len();
    assert_eq!(finished, usize::try_from(sent.tokens).unwrap());
    assert_eq!(
        summaries
            .iter()
            .map(|summary| member::total(summary, Account::Failed))
            .sum::<u64>(),
        0
    );
    assert_fences_rise(&[&here, &there]);
}

/// Two processes of one instance id: Kafka keeps the later one, and the other one says why it ends.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_one_instance_id_the_later_one_serves() {
    let Some(group) = Group::new("one-instance", EAGER) else {
        return;
    };
    let (earlier, later) = one_instance_twice(&group).await;
    let (survivor, error) = (later, earlier.failure().await);
    assert_instance_is_named(&group, &error);
    survivor.stop().await;
}

/// With KIP-848 it is the earlier one.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_one_instance_id_the_broker_keeps_the_earlier_one() {
    let Some(group) = Group::new("one-instance-by-broker", BY_BROKER) else {
        return;
    };
    let (earlier, later) = one_instance_twice(&group).await;
    let (survivor, error) = (earlier, later.failure().await);
    assert_instance_is_named(&group, &error);
    survivor.stop().await;
}

async fn one_instance_twice(group: &Group) -> (Member, Member) {
    let (here, there) = (Effects::default(), Effects::default());
    // Their directories outlive the test's own.
    let dirs = [TempDir::new().unwrap().keep(), TempDir::new().unwrap().keep()];
    let mut sent = Sent {
        group,
        tokens: 0,
        messages: 0,
    };
    let earlier = Member::start(group.consumer(&dirs[0], &here, Some("twin")));
    sent.send_until_it_takes_part(&here, PARTITIONS as usize).await;
    group.caught_up();
    let later = Member::start(group.consumer(&dirs[1], &there, Some("twin")));
    eventually("the end of one of them", 3 * SOON, || {
        (earlier.has_ended() || later.has_ended()).then_some(())
    });
    // The one that is left serves, and knows what was done before.
    sent.send_again().await;
    sent.send_new(40).await;
    group.caught_up();
    assert_eq!(
        here.started().len() + there.started().len(),
        usize::try_from(sent.tokens).unwrap()
    );
    assert_fences_rise(&[&here, &there]);
    (earlier, later)
}

fn assert_instance_is_named(group: &Group, error: &str) {
    for part in ["group.instance.id", "\"twin\"", &group.topic, "an id of its own"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}
