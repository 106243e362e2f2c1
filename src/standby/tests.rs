//! Copies over the memory store, with the frames that an owner's journal would have written.

use std::cell::Cell;
use std::sync::mpsc;

use super::*;
use crate::fence::Fence;
use crate::journal::extents::Extents;
use crate::journal::frame::{self, Head, Owner, Session};
use crate::ledger::CommitPoint;
use crate::message::{NextOffset, Offset};
use crate::outcome::{Closed, End, HeldFor, Open, Stage, Stored};
use crate::recovery::Recovery;
use crate::store::memory::MemoryStore;
use crate::store::{Changes, Known, TopicSpec};
use crate::token::TokenKey;

const TOPIC: TopicId = TopicId(0);
const ID: PartitionId = PartitionId {
    topic: TOPIC,
    partition: 0,
};

fn key(n: i64) -> TokenKey {
    TokenKey((n as u128).to_be_bytes())
}

fn open(n: i64) -> Open {
    Open {
        keys: vec![key(n)],
        offset: Offset(n),
        first_seen_ms: n,
        attempts: 1,
        since_ms: n,
        fingerprint: None,
        stage: Stage::Begun {
            not_applied: false,
            message: None,
        },
    }
}

/// Frame `n` ends message `n - 1`, which frame `n - 1` has begun, and begins message `n`.
fn frame_of(owner: Owner, n: i64) -> Vec<u8> {
    let mut changes = Changes::new(ID);
    if n > 0 {
        let closed = Closed {
            end: End::Done(Stored::Nothing),
            offset: Offset(n - 1),
            first_seen_ms: n - 1,
            attempts: 1,
            fingerprint: None,
        };
        changes.closed.push((key(n - 1), closed));
        changes.removed.push((key(n - 1), Offset(n - 1)));
    }
    changes.opened.push(open(n));
    let head = Head {
        owner,
        session: Session([1; 16]),
        number: n as u64,
        fence: Fence(1),
        point: CommitPoint {
            next: NextOffset(n),
            time_ms: Some(n),
        },
        written_ms: n,
    };
    frame::encode(&head, &changes, usize::MAX).remove(0)
}

fn owner() -> Owner {
    Owner::of("g", "orders")
}

fn source() -> Source {
    Source {
        changelog: "g.orders.hapax".into(),
        owner: owner(),
    }
}

struct World {
    memory: MemoryStore,
    store: Arc<dyn Store>,
    copies: Copies,
    standby: Standby,
}

fn spec() -> TopicSpec {
    TopicSpec {
        name: "orders".into(),
        window_ms: 1_000_000,
    }
}

fn world() -> World {
    on(MemoryStore::new("g", &[spec()]))
}

fn on(memory: MemoryStore) -> World {
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let copies = Copies::new(true);
    let of = Of {
        source: source(),
        meters: StandbyMeters::new("orders"),
    };
    let standby = Standby::new(Arc::clone(&store), copies.clone(), BTreeMap::from([(TOPIC, of)]));
    World {
        memory,
        store,
        copies,
        standby,
    }
}

impl World {
    fn read(&mut self, offsets: std::ops::Range<i64>) {
        for n in offsets {
            self.standby.message(ID, n, &frame_of(owner(), n)).unwrap();
        }
    }

    fn known(&self) -> Known {
        self.store.load(ID).unwrap()
    }

    /// What a restore makes of the log, from where the store stands.
    fn restore(&self, log: (i64, i64)) -> u64 {
        restore(&self.store, log)
    }

    /// Assigned here, served, and left again, with everything applied.
    fn serve(&self) {
        self.copies.take(ID);
        let (applied, settled) = mpsc::channel();
        let settled = Cell::new(Some(settled));
        self.copies.leave(&[ID], || settled.take().unwrap());
        applied.send(()).unwrap();
    }
}

fn restore(store: &Arc<dyn Store>, log: (i64, i64)) -> u64 {
    let extents = Extents::new(BTreeMap::from([(TOPIC, 1_000_000)]));
    let (mut recovery, from) = Recovery::begin(store, &extents, ID, "orders", source(), log, 1).unwrap();
    for n in from..log.1 {
        recovery.message(n, &frame_of(owner(), n)).unwrap();
    }
    recovery.end(log.1).unwrap().frames
}

/// What the store has of the log's first `n` frames, by one restore of them.
fn whole(n: i64) -> (Known, Vec<crate::store::Hit>) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new("g", &[spec()]));
    restore(&store, (0, n));
    (store.load(ID).unwrap(), hits(&store))
}

fn hits(store: &Arc<dyn Store>) -> Vec<crate::store::Hit> {
    let keys: Vec<_> = (0..100).map(key).collect();
    let mut hits = Vec::new();
    store.look_up(ID, i64::MIN, &keys, &mut hits).unwrap();
    hits
}

#[test]
fn a_copy_is_what_a_restore_would_have_made_and_a_restore_goes_on_where_it_stands() {
    let mut world = world();
    assert!(world.standby.lacks(ID));
    world.standby.begin(ID, (0, 50)).unwrap();
    assert!(!world.standby.lacks(ID));
    assert_eq!(world.standby.tails(), [(ID, "g.orders.hapax".to_owned(), 0)]);
    world.read(0..40);
    world.standby.end(ID, 40).unwrap();
    assert_eq!((world.known(), hits(&world.store)), whole(40));
    assert_eq!(world.standby.late(), []);
    world.copies.take(ID);
    assert_eq!(world.restore((0, 50)), 10);
    assert_eq!((world.known(), hits(&world.store)), whole(50));
}

/// The end of a transaction has an offset too, and no frame.
#[test]
fn a_copy_stands_where_the_reading_does() {
    let mut world = world();
    world.standby.begin(ID, (0, 4)).unwrap();
    world.read(0..3);
    world.standby.end(ID, 4).unwrap();
    assert_eq!(world.known().changelog, Some(4));
    world.standby.end(ID, 4).unwrap();
    assert_eq!(world.standby.tails()[0].2, 4);
}

#[test]
fn what_waits_is_applied_when_nothing_more_comes() {
    let mut world = world();
    world.standby.begin(ID, (0, 0)).unwrap();
    world.read(0..3);
    assert_eq!(world.known().changelog, None, "it waits for more");
    assert_eq!(world.standby.late(), [ID]);
    world.standby.rest().unwrap();
    assert_eq!(world.known().changelog, Some(3));
}

#[test]
fn a_long_frame_does_not_wait() {
    let mut world = world();
    world.standby.begin(ID, (0, 0)).unwrap();
    let mut changes = Changes::new(ID);
    let mut held = open(0);
    held.stage = Stage::Held {
        why: HeldFor::InDoubt,
        verdict: None,
        message: crate::message::Kept {
            key: None,
            payload: Some(vec![7; MOST.bytes].into()),
            headers: Vec::new(),
            timestamp_ms: None,
        },
    };
    changes.opened.push(held);
    let head = frame::decode(&frame_of(owner(), 0), ID).unwrap().0;
    let frame = frame::encode(&head, &changes, usize::MAX).remove(0);
    world.standby.message(ID, 0, &frame).unwrap();
    assert_eq!(world.known().changelog, Some(1));
}

/// The hand-over, Inv 5: frames that were read before the partition came here, and not applied, are not applied after.
#[test]
fn what_was_read_before_a_partition_came_is_not_applied_after() {
    let mut world = world();
    world.standby.begin(ID, (0, 0)).unwrap();
    world.read(0..10);
    world.standby.rest().unwrap();
    world.read(10..20);
    world.copies.take(ID);
    // Read to 30, and more written since by its owner, who is here now.
    assert_eq!(world.restore((0, 30)), 20);
    let at = world.known();
    world.standby.rest().unwrap();
    world.standby.end(ID, 20).unwrap();
    world.read(20..25);
    assert_eq!(world.known(), at, "an old write onto the owner's");
    assert_eq!(world.standby.tails(), []);
    assert!(!world.standby.lacks(ID));
}

/// Assigned here and left between two looks: the copy is another one by then, and what was read for the old one is dropped.
#[test]
fn a_copy_goes_on_from_where_its_owner_left_it() {
    let mut world = world();
    world.standby.begin(ID, (0, 0)).unwrap();
    world.read(0..10);
    world.standby.rest().unwrap();
    world.read(10..12);
    world.copies.take(ID);
    assert_eq!(world.restore((0, 30)), 20);
    let at = world.known();
    world.serve();
    // The old reading goes on until it is looked at; what it has read is behind what the store knows by now.
    world.read(12..14);
    world.standby.rest().unwrap();
    world.standby.end(ID, 14).unwrap();
    assert_eq!(world.known(), at);
    assert_eq!(world.standby.tails(), []);
    world.standby.begin(ID, (0, 40)).unwrap();
    assert_eq!(world.standby.tails()[0].2, 30);
    world.read(30..40);
    world.standby.rest().unwrap();
    assert_eq!((world.known(), hits(&world.store)), whole(40));
}

#[test]
fn a_copy_resumes_after_a_restart_and_after_a_kill() {
    let mut first = world();
    first.standby.begin(ID, (0, 0)).unwrap();
    first.read(0..10);
    first.standby.rest().unwrap();
    first.memory.flush();
    first.read(10..20);
    first.standby.rest().unwrap();
    // Killed: what was not flushed is gone, and the offset with it.
    let mut second = on(first.memory.restart(&[spec()]));
    second.standby.begin(ID, (0, 20)).unwrap();
    assert_eq!(second.standby.tails()[0].2, 10);
    second.read(10..20);
    second.standby.rest().unwrap();
    assert_eq!((second.known(), hits(&second.store)), whole(20));
    second.store.close().unwrap();
    let mut third = on(second.memory.restart(&[spec()]));
    third.standby.begin(ID, (0, 20)).unwrap();
    assert_eq!(third.standby.tails()[0].2, 20);
}

/// The owner has trimmed past it, or the topic was made again: what is there is forgotten, since a removal may lie in what
/// was missed.
#[test]
fn a_copy_outside_the_log_is_read_anew() {
    for log in [(15, 30), (0, 5)] {
        let mut world = world();
        world.standby.begin(ID, (0, 0)).unwrap();
        world.read(0..10);
        world.standby.rest().unwrap();
        world.read(10..12);
        world.standby.shed(ID);
        assert!(world.standby.lacks(ID));
        world.standby.begin(ID, log).unwrap();
        assert_eq!(world.standby.tails()[0].2, log.0);
        assert_eq!((world.known(), hits(&world.store)), (Known::default(), vec![]));
    }
}

/// Another group's frame, or bytes that are no frame: that copy stops where it is, and nothing else does.
#[test]
fn what_cannot_be_read_stops_its_own_copy_only() {
    let other = PartitionId { partition: 1, ..ID };
    for bytes in [
        frame_of(Owner::of("other", "orders"), 5),
        vec![9, 9, 9],
        Vec::new(),
    ] {
        let mut world = world();
        world.standby.begin(ID, (0, 9)).unwrap();
        world.standby.begin(other, (0, 9)).unwrap();
        world.read(0..5);
        world.standby.rest().unwrap();
        world.standby.message(ID, 5, &bytes).unwrap();
        world.read(6..9);
        world.standby.rest().unwrap();
        assert_eq!(world.known().changelog, Some(5));
        assert!(!world.standby.lacks(ID), "not tried again and again");
        assert_eq!(world.standby.tails().len(), 1);
        assert_eq!(world.copies.stopped_of(TOPIC), 1);
        // A restore of the same log says the same, as an error.
        world.serve();
        assert!(world.standby.lacks(ID), "it may have been mended since");
        assert_eq!(world.copies.stopped_of(TOPIC), 0);
    }
}

#[test]
fn a_store_that_fails_is_said() {
    let mut world = world();
    world.standby.begin(ID, (0, 9)).unwrap();
    world.read(0..5);
    world.memory.fail_after(0, crate::store::memory::Fault::Lost);
    assert!(matches!(world.standby.rest(), Err(Error::Store(_))));
}
