//! The journal against scripted transactions: what it writes, in which order it asks, and what it does when nobody knows.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;
use crate::clock::Clock;
use crate::fence::{Fence, Gate};
use crate::message::NextOffset;
use crate::outcome::{Closed, End, Stored};
use crate::store::memory::MemoryStore;
use crate::store::{Position, TopicSpec};
use crate::token::TokenKey;

const TOPIC: TopicId = TopicId(0);

const fn id(partition: i32) -> PartitionId {
    PartitionId {
        topic: TOPIC,
        partition,
    }
}

/// What the next commit comes to.
enum Next {
    /// As it says; nothing is there.
    Fails(Failed),
    /// Nobody knows, and it is there.
    Lost,
    /// Nobody knows, and it is not there.
    NotThere,
    /// It never returns, until the other end is dropped.
    Hangs(mpsc::Receiver<()>),
}

/// A Kafka of its own: groups that were committed, and what was asked, in order.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Kafka>>);

#[derive(Default)]
struct Kafka {
    next: VecDeque<Next>,
    asked: Vec<&'static str>,
    log: Vec<(Session, u64, Vec<i32>)>,
    letters: usize,
    /// The offset committed with each group's first partition, and the position that its first frame states.
    points: Vec<(NextOffset, Option<NextOffset>)>,
    members: VecDeque<Result<(), String>>,
    /// Cleared while this process is asked who it is.
    lost_while_asked: Option<Gate>,
    renewals_fail: usize,
    missing: BTreeSet<String>,
}

impl Script {
    fn kafka(&self) -> std::sync::MutexGuard<'_, Kafka> {
        self.0.lock().unwrap()
    }

    fn then(&self, next: Next) -> &Self {
        self.kafka().next.push_back(next);
        self
    }

    fn log(&self) -> Vec<Vec<i32>> {
        self.kafka()
            .log
            .iter()
            .map(|(_, _, partitions)| partitions.clone())
            .collect()
    }

    fn write(&self, group: &Group) -> Ends {
        let mut kafka = self.kafka();
        let (first, bytes) = &group.frames[0];
        let (head, changes) = frame::decode(bytes, *first).unwrap();
        let stated = changes.position.map(|position| position.commit_point);
        kafka.points.push((group.points[first].next, stated));
        let partitions = group.points.keys().map(|id| id.partition).collect();
        kafka.log.push((head.session, head.number, partitions));
        kafka.letters += group.letters.len();
        let next = kafka.log.len() as i64;
        group.points.keys().map(|id| (*id, next)).collect()
    }
}

impl Transactions for Script {
    type Member = ();

    fn member(&mut self) -> Result<(), String> {
        let mut kafka = self.kafka();
        kafka.asked.push("member");
        if let Some(gate) = kafka.lost_while_asked.take() {
            gate.clear();
        }
        kafka.members.pop_front().unwrap_or(Ok(()))
    }

    fn commit(&mut self, (): &(), group: &Group) -> Result<Ends, Failed> {
        self.kafka().asked.push("commit");
        let next = self.kafka().next.pop_front();
        match next {
            None => Ok(self.write(group)),
            Some(Next::Fails(failed)) => Err(failed),
            Some(Next::Lost) => {
                self.write(group);
                Err(Failed::Unknown("timed out".into()))
            }
            Some(Next::NotThere) => Err(Failed::Unknown("timed out".into())),
            Some(Next::Hangs(until)) => {
                let _ = until.recv();
                Err(Failed::Unknown("hung".into()))
            }
        }
    }

    fn renew(&mut self) -> Result<(), String> {
        let mut kafka = self.kafka();
        kafka.asked.push("renew");
        if kafka.renewals_fail > 0 {
            kafka.renewals_fail -= 1;
            return Err("no coordinator".into());
        }
        Ok(())
    }

    fn find(&mut self, session: Session, number: u64, from: &Ends) -> Result<Option<Ends>, String> {
        let mut kafka = self.kafka();
        kafka.asked.push("find");
        let place = kafka
            .log
            .iter()
            .position(|(of, at, _)| (*of, *at) == (session, number));
        Ok(place.map(|place| from.keys().map(|id| (*id, place as i64 + 1)).collect()))
    }

    fn missing(&mut self, topics: &BTreeSet<String>) -> BTreeSet<String> {
        let kafka = self.kafka();
        topics.intersection(&kafka.missing).cloned().collect()
    }
}

struct Rig {
    script: Script,
    store: MemoryStore,
    journal: Replicated,
    threads: Threads,
    broken: mpsc::Receiver<String>,
}

impl Rig {
    fn new(script: &Script, call_max: Duration) -> Self {
        let spec = TopicSpec {
            name: "orders".into(),
            window_ms: 3_600_000,
        };
        let store = MemoryStore::new("g", &[spec]);
        // As a restore leaves them.
        let copies = [0, 1, 2, 3].map(|partition| (id(partition), 0));
        store.apply_restored(&[], &copies).unwrap();
        let (break_with, broken) = mpsc::channel();
        let rules = Rules {
            owners: BTreeMap::from([(TOPIC, Owner::of("g", "orders"))]),
            extents: Extents::default(),
            frame_bytes_max: 1_000,
            rewrite_bytes: PORTION_BYTES,
            give_up: Duration::from_secs(60),
            call_max,
            clock: Clock::manual(5),
        };
        let (journal, threads) =
            Replicated::start(script.clone(), Arc::new(store.clone()), rules, move |why| {
                let _ = break_with.send(why);
            })
            .unwrap();
        Self {
            script: script.clone(),
            store,
            journal,
            threads,
            broken,
        }
    }

    fn submit(&self, partition: i32, gate: &Gate, offset: i64) -> Arc<Acks> {
        let mut changes = Changes::new(id(partition));
        changes.closed.push((
            TokenKey([offset as u8; 16]),
            Closed {
                end: End::Done(Stored::Nothing),
                offset: crate::message::Offset(offset),
                first_seen_ms: 1,
                attempts: 1,
                fingerprint: None,
            },
        ));
        changes.position = Some(Position {
            commit_point: NextOffset(offset + 1),
            time_ms: Some(1),
            acknowledged_ms: Some(1),
            written_ms: 5,
        });
        let acks = Arc::new(Acks::default());
        self.journal.submit(Submission {
            gate: gate.clone(),
            acks: Arc::clone(&acks),
            number: 1,
            changes,
            letters: vec![Letter {
                topic: "orders.dead-letters".into(),
                key: None,
                payload: None,
                timestamp_ms: None,
                headers: Vec::new(),
            }],
            stands: None,
        });
        acks
    }

    fn known(&self, partition: i32) -> (Option<i64>, Option<i64>) {
        let known = self.store.load(id(partition)).unwrap();
        (
            known.position.map(|position| position.commit_point.0),
            known.changelog,
        )
    }

    fn asked(&self) -> Vec<&'static str> {
        self.script.kafka().asked.clone()
    }

    /// Why it broke, after everything is written.
    fn end(self) -> Vec<String> {
        drop(self.journal);
        self.threads.join();
        self.broken.try_iter().collect()
    }
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn what_is_acknowledged_is_written_and_in_the_store() {
    let rig = Rig::new(&Script::default(), LONG);
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    assert!(rig.journal.settle());
    assert_eq!((acks.state(), rig.known(0)), (Ok(1), (Some(11), Some(1))));
    assert_eq!((rig.script.log(), rig.script.kafka().letters), (vec![vec![0]], 1));
    assert_eq!(rig.end(), Vec::<String>::new());
}

/// Kafka refuses a rebuild of whoever has lost the partition by the offset in its transactions, which is the one that is
/// committed already. Were it in the frames too, a rebuild that dies would leave a cold partition that reads as warm.
#[test]
fn a_group_of_a_rebuild_states_the_committed_offset_to_kafka_and_none_to_the_changelog() {
    let rig = Rig::new(&Script::default(), LONG);
    let mut changes = Changes::new(id(0));
    changes.fence = Some(Fence(1));
    let acks = Arc::new(Acks::default());
    rig.journal.submit(Submission {
        gate: Gate::mint(Fence(0)),
        acks: Arc::clone(&acks),
        number: 1,
        changes,
        letters: Vec::new(),
        stands: Some(CommitPoint {
            next: NextOffset(70),
            time_ms: None,
        }),
    });
    assert!(rig.journal.settle());
    assert_eq!((acks.state(), rig.known(0)), (Ok(1), (None, Some(1))));
    assert_eq!(rig.script.kafka().points, [(NextOffset(70), None)]);
}

/// Schedule 2: who this process is, then whether the assignments live, then the write. Lost in between, nothing of it is
/// written.
#[test]
fn the_gates_are_asked_after_the_member() {
    let script = Script::default();
    let (kept, lost) = (Gate::mint(Fence(0)), Gate::mint(Fence(0)));
    script.kafka().lost_while_asked = Some(lost.clone());
    let rig = Rig::new(&script, LONG);
    let acks = rig.submit(1, &lost, 20);
    assert!(rig.journal.settle());
    assert_eq!(
        (acks.state(), rig.known(1)),
        (Err(Failure::Fenced), (None, Some(0)))
    );
    let acks = rig.submit(0, &kept, 10);
    assert!(rig.journal.settle());
    assert_eq!((acks.state(), script.log()), (Ok(1), vec![vec![0]]));
}

/// Schedule 2: what Kafka would accept unchecked is not sent.
#[test]
fn nothing_is_written_without_a_member() {
    let script = Script::default();
    script.kafka().members.push_back(Err("generation -1".into()));
    let rig = Rig::new(&script, LONG);
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    assert!(rig.journal.settle());
    assert_eq!(acks.state(), Ok(1));
    assert_eq!(rig.asked(), ["member", "member", "commit"]);
}

#[test]
fn an_aborted_group_is_made_again_without_those_that_are_gone() {
    let script = Script::default();
    let (kept, lost) = (Gate::mint(Fence(0)), Gate::mint(Fence(0)));
    let (hold, held) = mpsc::channel();
    script.then(Next::Hangs(held));
    let rig = Rig::new(&script, LONG);
    // While the first is on its way the others collect into one group, which is aborted.
    let first = rig.submit(2, &kept, 1);
    let (stays, goes) = (rig.submit(0, &kept, 10), rig.submit(1, &lost, 20));
    script.then(Next::Fails(Failed::Aborted("rebalance".into())));
    lost.clear();
    drop(hold);
    assert!(rig.journal.settle());
    assert_eq!((first.state(), stays.state()), (Ok(1), Ok(1)));
    assert_eq!(goes.state(), Err(Failure::Fenced));
    assert!(!script.log().concat().contains(&1), "{:?}", script.log());
    assert_eq!(rig.known(1), (None, Some(0)));
}

/// Schedule 9: what was committed although nobody heard of it is not written twice.
#[test]
fn a_commit_that_nobody_heard_of_is_found_in_the_changelog() {
    let script = Script::default();
    script.then(Next::Lost);
    let rig = Rig::new(&script, LONG);
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    assert!(rig.journal.settle());
    assert_eq!((acks.state(), rig.known(0)), (Ok(1), (Some(11), Some(1))));
    assert_eq!((script.log().len(), script.kafka().letters), (1, 1));
    assert_eq!(rig.asked(), ["member", "commit", "renew", "find"]);
}

#[test]
fn a_commit_that_did_not_happen_is_made_again() {
    let script = Script::default();
    script.then(Next::NotThere);
    let rig = Rig::new(&script, LONG);
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    assert!(rig.journal.settle());
    assert_eq!((acks.state(), script.log().len()), (Ok(1), 1));
    assert_eq!(
        rig.asked(),
        ["member", "commit", "renew", "find", "member", "commit"]
    );
}

/// A stop while the broker is away: nobody can say how the commit ended, and nobody has to.
#[test]
fn a_stop_does_not_wait_for_the_fate_of_what_is_over() {
    let script = Script::default();
    script.then(Next::Lost);
    script.kafka().renewals_fail = usize::MAX;
    let rig = Rig::new(&script, LONG);
    let gate = Gate::mint(Fence(0));
    let acks = rig.submit(0, &gate, 10);
    while !rig.asked().contains(&"renew") {
        thread::yield_now();
    }
    gate.clear();
    assert_eq!(rig.end(), Vec::<String>::new(), "an end in order");
    assert_eq!(acks.state(), Err(Failure::Fenced));
}

/// The group may be there, and its partition is lost before anybody could ask: nothing else is written before it is known,
/// and the store has what the changelog has.
#[test]
fn an_unknown_fate_is_settled_before_anything_else_is_written() {
    let script = Script::default();
    script.then(Next::Lost);
    script.kafka().renewals_fail = 2;
    let rig = Rig::new(&script, LONG);
    let gate = Gate::mint(Fence(0));
    let acks = rig.submit(0, &gate, 10);
    gate.clear();
    assert!(rig.journal.settle());
    // Cleared before the group was taken, it was never written; cleared after, it is in the store.
    match acks.state() {
        Ok(1) => assert_eq!(rig.known(0), (Some(11), Some(1))),
        Err(Failure::Fenced) => assert_eq!((rig.known(0), script.log().len()), ((None, Some(0)), 0)),
        other => panic!("{other:?}"),
    }
    let other = rig.submit(1, &Gate::mint(Fence(0)), 20);
    assert!(rig.journal.settle());
    assert_eq!(other.state(), Ok(1));
}

/// What is written again is what is open when everything before is applied, and it moves nothing.
#[test]
fn what_is_open_is_written_again_behind_everything_before() {
    let rig = Rig::new(&Script::default(), LONG);
    let gate = Gate::mint(Fence(0));
    let acks = rig.submit(0, &gate, 10);
    let rewritten = rig.journal.rewrite(&rig.store, id(0), gate.clone());
    assert!(rewritten.recv().unwrap() > 0);
    assert_eq!(acks.state(), Ok(1));
    assert!(rig.journal.settle());
    assert_eq!(
        (rig.script.log(), rig.known(0)),
        (vec![vec![0]; 2], (Some(11), Some(2)))
    );
    gate.clear();
    assert!(
        rig.journal.rewrite(&rig.store, id(0), gate).recv().is_err(),
        "nothing in the name of what is over"
    );
    let never = rig.journal.rewrite(&rig.store, id(1), Gate::mint(Fence(0)));
    assert!(never.recv().is_err(), "it stands nowhere");
    assert_eq!(rig.script.log().len(), 2);
}

#[test]
fn a_group_that_would_always_fail_ends_the_journal() {
    let script = Script::default();
    script.then(Next::Fails(Failed::Refused("too large".into())));
    let rig = Rig::new(&script, LONG);
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    assert!(!rig.journal.settle());
    assert_eq!(acks.state(), Err(Failure::Broken("too large".into())));
    let late = rig.submit(0, &Gate::mint(Fence(0)), 11);
    assert!(!rig.journal.settle());
    assert_eq!(late.state(), Err(Failure::Broken("too large".into())));
    assert_eq!(rig.end(), ["too large"]);
}

#[test]
fn a_store_that_fails_ends_the_journal_and_nothing_is_acknowledged() {
    let rig = Rig::new(&Script::default(), LONG);
    rig.store.fail_after(0, crate::store::memory::Fault::Lost);
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    assert!(!rig.journal.settle());
    assert!(
        matches!(acks.state(), Err(Failure::Broken(_))),
        "{:?}",
        acks.state()
    );
    assert_eq!(rig.end().len(), 1);
}

/// A call of the client library can outlive its own timeout: whoever waits is told, and the end waits for nobody.
#[test]
fn a_call_that_never_returns_is_noticed() {
    let script = Script::default();
    let (hold, held) = mpsc::channel();
    script.then(Next::Hangs(held));
    let rig = Rig::new(&script, Duration::from_millis(50));
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    let why = rig.broken.recv().unwrap();
    assert!(why.contains("has not returned"), "{why}");
    assert!(
        matches!(acks.state(), Err(Failure::Broken(_))),
        "{:?}",
        acks.state()
    );
    drop(rig.journal);
    rig.threads.join();
    drop(hold);
}

/// Found by the chaos campaign: a process stood still with a group on its way, and the sweep cleared what had left before
/// that group was applied. Its part of the copy was taken for all of it, and what had been begun ran again.
#[test]
fn what_is_committed_late_does_not_bring_back_what_was_swept() {
    let rig = Rig::new(&Script::default(), LONG);
    rig.store.clear(id(0)).unwrap();
    let acks = rig.submit(0, &Gate::mint(Fence(0)), 10);
    assert!(rig.journal.settle());
    assert_eq!((acks.state(), rig.known(0)), (Ok(1), (None, None)));
    assert_eq!(
        rig.script.log(),
        [[0]],
        "in the changelog, where a restore finds it"
    );
}

/// A message for a topic that is not on the cluster holds up its partition, in its order, and nobody else.
#[test]
fn a_topic_that_is_missing_holds_up_its_partition_and_no_other() {
    let rig = Rig::new(&Script::default(), LONG);
    let (one, other) = (Gate::mint(Fence(0)), Gate::mint(Fence(0)));
    let missing = |is_missing: bool| {
        let topics = is_missing.then(|| "orders.dead-letters".to_owned());
        rig.script.kafka().missing = topics.into_iter().collect();
    };
    missing(true);
    let first = rig.submit(0, &one, 10);
    assert!(rig.journal.settle());
    // Behind it, and with no message at all.
    let mut changes = Changes::new(id(0));
    changes.position = Some(Position {
        commit_point: NextOffset(12),
        time_ms: Some(1),
        acknowledged_ms: Some(1),
        written_ms: 5,
    });
    rig.journal.submit(Submission {
        gate: one.clone(),
        acks: Arc::clone(&first),
        number: 2,
        changes,
        letters: Vec::new(),
        stands: None,
    });
    let mut changes = Changes::new(id(1));
    changes.position = Some(Position {
        commit_point: NextOffset(21),
        time_ms: Some(1),
        acknowledged_ms: Some(1),
        written_ms: 5,
    });
    let second = Arc::new(Acks::default());
    rig.journal.submit(Submission {
        gate: other,
        acks: Arc::clone(&second),
        number: 1,
        changes,
        letters: Vec::new(),
        stands: None,
    });
    assert!(rig.journal.settle());
    assert_eq!((first.state(), second.state()), (Ok(0), Ok(1)));
    assert_eq!((rig.known(0).0, rig.known(1).0), (None, Some(21)));
    missing(false);
    let end = clock::now() + LONG;
    while first.state() != Ok(2) {
        assert!(clock::now() < end, "{:?}", first.state());
        thread::yield_now();
    }
    assert_eq!((rig.known(0).0, rig.script.kafka().letters), (Some(12), 1));
    assert_eq!(rig.script.log(), [[1], [0]]);
    assert_eq!(rig.end(), Vec::<String>::new());
}

/// It is never written in the name of an assignment that is over, and the next one does not wait behind it.
#[test]
fn what_waits_for_a_topic_ends_with_its_assignment() {
    let rig = Rig::new(&Script::default(), LONG);
    let gate = Gate::mint(Fence(0));
    rig.script.kafka().missing = BTreeSet::from(["orders.dead-letters".to_owned()]);
    let first = rig.submit(0, &gate, 10);
    assert!(rig.journal.settle());
    gate.clear();
    let mut changes = Changes::new(id(0));
    changes.fence = Some(Fence(1));
    changes.position = Some(Position {
        commit_point: NextOffset(10),
        time_ms: Some(1),
        acknowledged_ms: Some(1),
        written_ms: 5,
    });
    let next = Arc::new(Acks::default());
    rig.journal.submit(Submission {
        gate: Gate::mint(Fence(1)),
        acks: Arc::clone(&next),
        number: 1,
        changes,
        letters: Vec::new(),
        stands: None,
    });
    assert!(rig.journal.settle());
    assert_eq!((first.state(), next.state()), (Err(Failure::Fenced), Ok(1)));
    assert_eq!((rig.known(0).0, rig.script.kafka().letters), (Some(10), 0));
}
