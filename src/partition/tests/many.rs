//! Many held messages: what an assignment costs, in what order they run, and that nobody is forgotten behind another.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::config::AfterHold;
use crate::outcome::HeldFor;
use crate::partition::find;
use crate::store::memory::MemoryStore;
use crate::store::{self, AuditEntry, Hit, Identity, Known, PastStarts, Store, TopicId, WindowSize};

/// More than are loaded at a time.
const MANY: i64 = 600;

fn held(offset: i64, due_ms: i64, since_ms: i64, message: Kept) -> Open {
    Open {
        keys: vec![TokenKey(u128::to_be_bytes(offset as u128 + 1))],
        offset: Offset(offset),
        stage: Stage::Held {
            why: HeldFor::Retry {
                due_ms,
                may_have_applied: false,
            },
            message,
            verdict: None,
        },
        first_seen_ms: START_MS,
        attempts: 2,
        since_ms,
        fingerprint: None,
    }
}

/// Takes one message, and is stopped; what is held then is put into its store.
async fn prepared(rig: &mut Rig, opened: Vec<Open>) {
    rig.send(0, message("first"));
    rig.start().await.unwrap();
    rig.run_for(A_WHILE).await;
    rig.stop().await;
    in_store(rig, |_, changes| changes.opened = opened);
}

fn one_slot(script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Rig {
    rig_with(Class::Idempotent, script, |policy| {
        policy.concurrency = Concurrency::unordered(1);
        policy.after_hold = AfterHold::Release;
        change(policy);
    })
}

/// Found by reading: due ones were not loaded while more than a handful of fresh ones were ready, so behind a slow handler
/// they waited for its whole backlog.
#[test]
fn what_is_due_does_not_wait_for_the_fresh_ones_that_are_ready() {
    paused(async {
        let script = Script::new(|_, _| after(Duration::from_millis(10)));
        let mut rig = one_slot(&script, |_| {});
        let due_ms = rig.clock.wall_ms() + 2_000;
        let opened = vec![held(1_000_000, due_ms, due_ms, message("held"))];
        prepared(&mut rig, opened).await;
        for n in 0..2 * MANY {
            rig.send(0, message(&format!("t{n}")));
        }
        rig.start().await.unwrap();
        let calls = |script: &Script| script.offsets().contains(&1_000_000);
        while rig.clock.wall_ms() < due_ms {
            assert!(!calls(&script), "it is not due");
            rig.run_for(Duration::from_millis(10)).await;
        }
        rig.run_for(Duration::from_millis(40)).await;
        assert!(calls(&script));
        let fresh = script.offsets().len();
        assert!(fresh < MANY as usize, "{fresh} ran: the backlog was not one");
    });
}

/// By when they are due, not by offset, and also where they are loaded in several turns.
#[test]
fn due_ones_run_in_the_order_in_which_they_were_due() {
    paused(async {
        let script = Script::new(|_, _| after(Duration::from_millis(1)));
        let mut rig = one_slot(&script, |_| {});
        let now_ms = rig.clock.wall_ms();
        let due = |n: i64| (n * 7) % MANY;
        let opened = (0..MANY).map(|n| {
            held(
                1_000 + n,
                now_ms - MANY + due(n),
                now_ms,
                message(&format!("h{n}")),
            )
        });
        let opened = opened.collect();
        prepared(&mut rig, opened).await;
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(5)).await;
        let ran: Vec<i64> = script.offsets()[1..]
            .iter()
            .map(|offset| due(offset - 1_000))
            .collect();
        assert_eq!(ran, (0..MANY).collect::<Vec<_>>());
        assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
    });
}

/// To the millisecond, also where it is due: what is too old does not run once more. And however many they are.
#[test]
fn what_is_too_old_at_an_assignment_is_given_up_and_does_not_run() {
    paused(async {
        let script = Script::ok();
        let mut rig = one_slot(&script, |_| {});
        let age = Duration::from_secs(3_600);
        rig.limits.held_age = age;
        // The rig is started once before they are there.
        let now_ms = rig.clock.wall_ms() + 60_000;
        let since_ms = |offset: i64| now_ms - crate::clock::millis(age) + i64::from(offset >= MANY);
        let opened =
            (0..2 * MANY).map(|n| held(1_000 + n, now_ms - 1, since_ms(n), message(&format!("h{n}"))));
        let opened = opened.collect();
        prepared(&mut rig, opened).await;
        rig.clock
            .advance(Duration::from_millis((now_ms - rig.clock.wall_ms()) as u64));
        rig.start().await.unwrap();
        // The wall clock moves at the end of it.
        rig.run_for(Duration::from_millis(1)).await;
        let mut ran = script.offsets();
        ran.sort_unstable();
        assert_eq!(ran[1..], (1_000 + MANY..1_000 + 2 * MANY).collect::<Vec<_>>());
        rig.run_for(A_WHILE).await;
        let letters = rig.letterbox.reasons();
        let too_old: Vec<_> = (0..MANY)
            .map(|n| ((1_000 + n).to_string(), "held-too-long".to_owned()))
            .collect();
        assert_eq!(letters, too_old);
        assert_eq!((open_offsets(&rig), rig.books().remainder()), (vec![], 0));
    });
}

/// Below the commit point they exist nowhere else: all of them are dead-lettered, however many are loaded at a time.
#[test]
fn all_that_is_held_moves_with_its_partition() {
    paused(async {
        let script = Script::ok();
        let mut rig = one_slot(&script, |_| {});
        let now_ms = rig.clock.wall_ms();
        let opened = (-MANY..0).map(|n| held(n, now_ms + HOUR_MS, now_ms, message(&format!("h{n}"))));
        let opened = opened.collect();
        prepared(&mut rig, opened).await;
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.account(Account::Held), MANY as u64);
        let books = rig.drain(Duration::from_secs(1), true).await;
        let moved: Vec<_> = (-MANY..0).map(|n| (n.to_string(), "moved".to_owned())).collect();
        assert_eq!(rig.letterbox.reasons(), moved);
        assert!(books.iter().all(|balance| balance.remainder() == 0), "{books:?}");
        assert_eq!(script.offsets(), [0]);
    });
}

/// 0 is held for four seconds, and its duplicate comes that long after it; each group is that long on its way to the disk.
async fn a_duplicate_comes(after: Duration, sync: Duration) {
    let script = Script::new(|offset, call| match (offset, call.attempt) {
        (0, 1..=3) => Box::pin(async { Err(HandlerError::not_applied("away")) }),
        _ => ok(),
    });
    let mut rig = one_slot(&script, |policy| {
        policy.retry.overall.attempts = 6;
        policy.retry.overall.first = Duration::from_secs(4);
        policy.retry.overall.max = Duration::from_secs(4);
    });
    rig.sync = sync;
    rig.send(0, message("a"));
    rig.start().await.unwrap();
    rig.run_for(after).await;
    rig.send(0, message("a"));
    rig.run_for(Duration::from_secs(10)).await;
    let accounts = (rig.account(Account::Done), rig.account(Account::Duplicate));
    assert_eq!(
        (accounts, open_offsets(&rig)),
        ((1, 1), vec![]),
        "after {after:?}, with {sync:?} for a group"
    );
}

/// Whoever it was to wait for has left its rest by then, at whatever distance.
#[test]
fn a_duplicate_whose_hold_becomes_durable_after_its_first_has_left_is_judged() {
    paused(async {
        for sync_ms in 100..700 {
            a_duplicate_comes(Duration::from_millis(2_500), Duration::from_millis(sync_ms)).await;
        }
    });
}

/// It is held behind a record that is on its way from the store, and was not asked for with it.
#[test]
fn a_duplicate_that_comes_while_its_first_is_being_loaded_is_judged() {
    paused(async {
        for turn in 0..450 {
            a_duplicate_comes(Duration::from_millis(10 * turn), Duration::ZERO).await;
        }
    });
}

/// A message of a store that says how many of them are alive.
struct Alive(Arc<AtomicUsize>, Vec<u8>);

impl AsRef<[u8]> for Alive {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A store that has so many held messages, and notes how many of them were in memory at once.
struct Counting {
    inner: MemoryStore,
    held: i64,
    alive: Arc<AtomicUsize>,
    most: AtomicUsize,
}

impl Counting {
    fn record(&self, offset: i64) -> Open {
        let alive = self.alive.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(alive, Ordering::SeqCst);
        let payload = Bytes::from_owner(Alive(Arc::clone(&self.alive), vec![7; 200]));
        let message = Kept {
            payload: Some(payload),
            ..message("held")
        };
        held(offset, START_MS, START_MS, message)
    }
}

#[test]
fn an_assignment_has_the_bytes_of_one_held_message_in_memory_at_a_time() {
    let store = Counting {
        inner: MemoryStore::new("test", &[]),
        held: 10_000,
        alive: Arc::default(),
        most: AtomicUsize::new(0),
    };
    let id = PartitionId {
        topic: TopicId(0),
        partition: 0,
    };
    let (_, found) = find(&store, id, Concurrency::by_key(16)).unwrap();
    assert_eq!(found.len(), 10_000);
    assert_eq!(
        (store.most.into_inner(), store.alive.load(Ordering::SeqCst)),
        (1, 0)
    );
}

impl Store for Counting {
    fn visit(&self, _: PartitionId, visit: &mut dyn FnMut(Open)) -> Result<Known, store::Error> {
        (0..self.held).rev().for_each(|offset| visit(self.record(offset)));
        Ok(Known::default())
    }

    fn load(&self, _: PartitionId) -> Result<Known, store::Error> {
        let open = (0..self.held).map(|offset| self.record(offset)).collect();
        Ok(Known {
            open,
            ..Known::default()
        })
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn past(&self) -> PastStarts {
        self.inner.past()
    }

    fn claim_cluster(&self, cluster: &str) -> Result<(), store::Error> {
        self.inner.claim_cluster(cluster)
    }

    fn topic(&self, name: &str) -> Result<TopicId, store::Error> {
        self.inner.topic(name)
    }

    fn load_open(&self, id: PartitionId, names: &[(TokenKey, Offset)]) -> Result<Vec<Open>, store::Error> {
        self.inner.load_open(id, names)
    }

    fn forget_position(&self, id: PartitionId) -> Result<(), store::Error> {
        self.inner.forget_position(id)
    }

    fn seen_until(&self, id: PartitionId) -> Result<Option<i64>, store::Error> {
        self.inner.seen_until(id)
    }

    fn partitions(&self) -> Result<Vec<PartitionId>, store::Error> {
        self.inner.partitions()
    }

    fn look_up(
        &self,
        id: PartitionId,
        since_ms: i64,
        keys: &[TokenKey],
        hits: &mut Vec<Hit>,
    ) -> Result<(), store::Error> {
        self.inner.look_up(id, since_ms, keys, hits)
    }

    fn apply(&self, group: &[Changes]) -> Result<(), store::Error> {
        self.inner.apply(group)
    }

    fn apply_logged(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), store::Error> {
        self.inner.apply_logged(group, logged)
    }

    fn apply_restored(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), store::Error> {
        self.inner.apply_restored(group, logged)
    }

    fn clear(&self, id: PartitionId) -> Result<(), store::Error> {
        self.inner.clear(id)
    }

    fn drop_buckets(&self, topic: TopicId, until_ms: i64) -> Result<usize, store::Error> {
        self.inner.drop_buckets(topic, until_ms)
    }

    fn window_size(&self, topic: TopicId) -> Result<WindowSize, store::Error> {
        self.inner.window_size(topic)
    }

    fn audit(&self, entry: &AuditEntry) -> Result<(), store::Error> {
        self.inner.audit(entry)
    }

    fn audited(&self) -> Result<Vec<AuditEntry>, store::Error> {
        self.inner.audited()
    }

    fn close(&self) -> Result<(), store::Error> {
        self.inner.close()
    }
}
