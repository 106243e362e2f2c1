//! What is durable, and what only looks like it: nothing is complete before its group is, nothing of an assignment that
//! is over is written, and a write that failed is the last one.

use std::sync::mpsc;

use super::*;
use crate::fence::{Fence, Gate};
use crate::journal::local::Local;
use crate::journal::{Acks, Failure, Journal as _, Submission};
use crate::message::NextOffset;
use crate::store::Position;
use crate::store::memory::{Fault, MemoryStore};

/// Inv 1. The handler is done, its record is on its way: nothing counts, nobody is answered, nothing is committed.
#[test]
fn nothing_is_complete_before_it_is_durable() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::Idempotent, &script);
        rig.sync = Duration::from_secs(5);
        rig.send(0, message("a"));
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(4)).await;
        assert_eq!(script.offsets(), [0]);
        assert_eq!(
            (
                rig.account(Account::Done),
                rig.account(Account::Duplicate),
                rig.account(Account::InFlight)
            ),
            (0, 0, 2)
        );
        assert_eq!(rig.committed_offset(0), Some(NextOffset(0)));
        rig.run_for(Duration::from_secs(12)).await;
        assert_eq!(
            (rig.account(Account::Done), rig.account(Account::Duplicate)),
            (1, 1)
        );
        assert_eq!(rig.committed_offset(0), Some(NextOffset(2)));
    });
}

/// Inv 3. The begin is on its way: the handler has not started.
#[test]
fn a_guarded_handler_starts_after_its_begin_is_durable() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::NonIdempotent, &script);
        rig.sync = Duration::from_secs(5);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(4)).await;
        assert_eq!(script.offsets(), [0i64; 0]);
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(script.offsets(), [0]);
    });
}

/// `Settling`: no dead letter leaves before the outcome that it belongs to is durable.
#[test]
fn a_letter_leaves_after_its_outcome_is_durable() {
    paused(async {
        let script = Script::new(|_, _| reject());
        let mut rig = rig(Class::Idempotent, &script);
        rig.sync = Duration::from_secs(5);
        rig.send(0, message("a"));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(4)).await;
        assert_eq!((script.offsets(), rig.letterbox.reasons()), (vec![0], vec![]));
        rig.run_for(Duration::from_secs(2)).await;
        assert_eq!(rig.letterbox.reasons().len(), 1);
        assert_eq!(
            rig.account(Account::Failed),
            0,
            "the token is closed after the letter"
        );
        rig.run_for(Duration::from_secs(5)).await;
        assert_eq!(rig.account(Account::Failed), 1);
    });
}

const ID: PartitionId = PartitionId {
    topic: crate::store::TopicId(0),
    partition: 0,
};

/// The local journal on a memory store, and what it says when it breaks.
struct Journalled {
    store: MemoryStore,
    journal: Local,
    thread: std::thread::JoinHandle<()>,
    broken: mpsc::Receiver<String>,
    acks: Arc<Acks>,
    next: u64,
}

impl Journalled {
    fn new() -> Self {
        let store = MemoryStore::new(
            "test",
            &[TopicSpec {
                name: "orders".into(),
                window_ms: HOUR_MS,
            }],
        );
        let (break_with, broken) = mpsc::channel();
        let (journal, thread) = Local::start(Arc::new(store.clone()), move |why| {
            break_with.send(why).unwrap();
        })
        .unwrap();
        Self {
            store,
            journal,
            thread,
            broken,
            acks: Arc::default(),
            next: 1,
        }
    }

    fn submit(&mut self, gate: &Gate, commit_point: i64) {
        let mut changes = Changes::new(ID);
        changes.position = Some(Position {
            commit_point: NextOffset(commit_point),
            time_ms: None,
            acknowledged_ms: None,
            written_ms: 0,
        });
        self.journal.submit(Submission {
            gate: gate.clone(),
            acks: Arc::clone(&self.acks),
            number: self.next,
            changes,
            letters: Vec::new(),
            stands: None,
        });
        self.next += 1;
    }

    /// Lets the journal finish, and says how far it was durable and what the store then knows.
    fn end(self) -> (Result<u64, Failure>, Option<i64>, Vec<String>) {
        drop(self.journal);
        self.thread.join().unwrap();
        let position = self.store.load(ID).unwrap().position;
        (
            self.acks.state(),
            position.map(|position| position.commit_point.0),
            self.broken.try_iter().collect(),
        )
    }
}

/// Inv 5, inside the process: what an assignment submitted before it ended, and what is still in the queue.
#[test]
fn the_journal_writes_nothing_of_an_assignment_that_is_over() {
    let gate = Gate::mint(Fence(0));
    let mut journalled = Journalled::new();
    gate.clear();
    journalled.submit(&gate, 7);
    assert_eq!(journalled.end(), (Err(Failure::Fenced), None, Vec::new()));
}

/// Inv 9: the write that failed is not acknowledged, and no later one is written over the gap.
#[test]
fn the_journal_writes_nothing_after_a_write_that_failed() {
    for fault in [Fault::Lost, Fault::Survives] {
        let gate = Gate::mint(Fence(0));
        let mut journalled = Journalled::new();
        journalled.store.fail_after(0, fault);
        journalled.submit(&gate, 7);
        // The next one comes when the journal has said that it is broken, so it is a write of its own.
        let why = journalled.broken.recv_timeout(Duration::from_secs(20)).unwrap();
        journalled.submit(&gate, 8);
        let (state, position, _) = journalled.end();
        assert!(matches!(state, Err(Failure::Broken(_))), "{state:?}, {why}");
        let expected = (fault == Fault::Survives).then_some(7);
        assert_eq!(
            position, expected,
            "nothing may be relied on, and nothing was added"
        );
    }
}
