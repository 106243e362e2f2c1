//! State that moves: in replicated mode a member finds, on an empty disk, what others have done.
//!
//! Each member has a state directory of its own; what one knows of the other went through the changelog.

use std::path::Path;
use std::time::Duration;

use hapax::accounts::Account;
use hapax::config::{AfterFailure, Durability};
use hapax::{Class, Consumer, NonIdempotent, Topic, Window};

use crate::kafka::{self, Broker};
use crate::member::{self, Effects, Member, Message};

struct Fleet {
    brokers: String,
    topic: String,
    class: Class,
}

impl Fleet {
    fn new(broker: &Broker, name: &str, partitions: i32, class: Class) -> Self {
        let topic = kafka::unique(name);
        member::create_topic(broker, &topic, partitions, &[]);
        Self {
            brokers: broker.bootstrap(),
            topic,
            class,
        }
    }

    fn consumer(&self, dir: &Path, effects: &Effects) -> Consumer {
        member::consumer(&self.brokers, &self.topic, dir)
            .with(|layer| layer.durability = Some(Durability::Replicated))
            .handle(
                Topic::bytes(&self.topic, self.class)
                    .state(effects.clone())
                    .after_failure(AfterFailure::Suppress)
                    .retry(1, Duration::from_secs(20))
                    .retry_overall(1, Duration::from_secs(20))
                    .window(Window::hours(1)),
                member::handle,
            )
    }

    fn start(&self, dir: &Path, effects: &Effects) -> Member {
        Member::start(self.consumer(dir, effects))
    }

    async fn send(&self, messages: impl IntoIterator<Item = Message>) {
        member::send(&self.brokers, &self.topic, messages).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.brokers, &self.topic, &self.topic);
    }

    fn letters(&self) -> Vec<member::Found> {
        member::read_all(&self.brokers, &format!("{}.dead-letters", self.topic))
    }
}

fn messages(from: i32, to: i32, say: &str) -> impl Iterator<Item = Message> {
    (from..to).map(move |n| Message::new(n % 4, format!("t-{n}"), format!("{say}-{n}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_disk_knows_what_was_done() {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker, "moves", 4, NonIdempotent);
    let effects = Effects::default();
    fleet.send(messages(0, 400, "first")).await;
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let member = fleet.start(dir.path(), &effects);
        fleet.caught_up();
        let summary = member.stop().await;
        let done = member::total(&summary, Account::Done);
        let duplicates = member::total(&summary, Account::Duplicate);
        let expected = if round == 0 { (400, 0) } else { (0, 400) };
        assert_eq!((done, duplicates), expected, "round {round}");
        fleet.send(messages(0, 400, "again")).await;
    }
    assert_eq!(effects.finished().len(), 400);
}

/// A dead letter becomes visible with its outcome, and a duplicate of it is suppressed on another disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_and_its_outcome_are_one() {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker, "letters-move", 4, hapax::Idempotent);
    let effects = Effects::default();
    fleet.send(messages(0, 8, "fail")).await;
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let member = fleet.start(dir.path(), &effects);
        fleet.caught_up();
        member.stop().await;
        assert_eq!(fleet.letters().len(), 8);
        fleet.send(messages(0, 8, "fail")).await;
    }
}

/// Inv 5 and 2: members come and go while messages and their duplicates flow; nothing is lost, nothing runs twice.
#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker, "comes-and-goes", 4, NonIdempotent);
    let (here, there) = (Effects::default(), Effects::default());
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let stays = fleet.start(dirs[0].path(), &here);
    let mut balances = Vec::new();
    let mut sent = 0;
    for _ in 0..3 {
        let before = there.started().len();
        let guest = fleet.start(dirs[1].path(), &there);
        let deadline = std::time::Instant::now() + 2 * member::SOON;
        while there.started().len() == before {
            assert!(std::time::Instant::now() < deadline, "the guest takes no part");
            fleet.send(messages(sent, sent + 20, "new")).await;
            sent += 20;
            member::nap(std::time::Duration::from_millis(50)).await;
        }
        // What either of them did is known to whoever has the partition now.
        fleet.send(messages(0, sent, "again")).await;
        fleet.caught_up();
        balances.extend(guest.stop().await.balances);
        fleet.send(messages(sent, sent + 50, "alone")).await;
        sent += 50;
        fleet.caught_up();
        kafka::eventually("ready for the next round", member::SOON, || {
            (here.finished().len() + there.finished().len() >= sent as usize).then_some(())
        });
    }
    balances.extend(stays.stop().await.balances);
    let mut effects: Vec<_> = here.finished().into_iter().chain(there.finished()).collect();
    effects.sort_by_key(|call| (call.partition, call.offset));
    let done: u64 = balances.iter().map(|balance| balance.of(Account::Done)).sum();
    assert_eq!((effects.len(), done), (sent as usize, sent as u64));
    assert!(!there.finished().is_empty(), "the guest did nothing");
}
