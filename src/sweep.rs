//! The sweep: time buckets that nobody can ask for any more are dropped whole.
//!
//! A bucket goes when every partition of its topic is past it by the time at its *acknowledged* commit point: what
//! Kafka can still deliver again is judged with that time (Inv 6). A partition that has left is waited for one window
//! of the wall clock, counted from the start of this process, because downtime ages nothing; then its position is
//! forgotten before its buckets go, so that it is cold if it comes back (Inv 8). A byte limit drops the oldest bucket
//! that lies below every commit point, counted and shown.
//!
//! A copy that is kept up for another member ([`crate::standby`]) has not left, however long nothing was written to it. It
//! is judged by the time at its own position, which is behind its owner's or the same: so it keeps what it may still need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::clock::{self, Clock};
use crate::commits::Commits;
use crate::copies::Copies;
use crate::partition::Wiring;
use crate::store::{Error, PartitionId, Store, TopicId, bucket_ms};
use crate::worker::Worker;

/// How often the sweep runs. Buckets are a quarter of a window long: nothing is lost by being a little late.
const EVERY: Duration = Duration::from_secs(5);

/// The sweeper's thread, which ends when this is dropped, after a sweep that is under way.
pub(crate) struct Sweeper {
    _thread: Worker,
}

impl Sweeper {
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        topics: Vec<(TopicId, Arc<Wiring>)>,
        commits: Commits,
        copies: Copies,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let thread = Worker::start("hapax-sweep", move |stopped| {
            let sweeping = Sweeping {
                store,
                commits,
                copies,
                started_ms: clock.wall_ms(),
                clock,
            };
            while stopped.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                for (topic, wiring) in &topics {
                    if let Err(error) = sweeping.sweep(*topic, wiring) {
                        // Deletion is late, nothing else: the journal meets a broken store by itself.
                        tracing::warn!(topic = %wiring.topic, why = %crate::error::chain(&error), "the sweep failed");
                    }
                }
            }
        })?;
        Ok(Self { _thread: thread })
    }
}

/// What the thread works with.
struct Sweeping {
    store: Arc<dyn Store>,
    commits: Commits,
    copies: Copies,
    clock: Clock,
    started_ms: i64,
}

/// The earliest partition times that matter for one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Oldest {
    /// That a message can still be judged at, here or, of a copy, elsewhere.
    any_ms: i64,
    /// The same without copies that are kept up for others.
    ours_ms: Option<i64>,
}

impl Sweeping {
    fn sweep(&self, topic: TopicId, wiring: &Wiring) -> Result<(), Error> {
        let store = &self.store;
        let window_ms = clock::millis(wiring.policy.window);
        let left_ms = self.clock.wall_ms().saturating_sub(window_ms);
        // No copy moves while this looks and deletes: what is read into an old bucket meanwhile would go with it.
        let _still = self.copies.still();
        // Nobody comes while this deletes: what is restored or rebuilt lies in buckets that nobody else may need.
        let coming = self.commits.coming();
        let Some(oldest) = self.oldest(topic, &coming, left_ms, wiring.state_moves())? else {
            return Ok(());
        };
        let oldest_time = oldest.any_ms;
        store.drop_buckets(topic, oldest_time.saturating_sub(window_ms))?;
        let mut size = store.window_size(topic)?;
        if let Some(max) = wiring.policy.window_bytes {
            while size.bytes > max.0 {
                // Only what lies below every commit point may go: the bucket of the oldest time is still needed.
                let Some(end) = size
                    .oldest_ms
                    .map(|start| start + bucket_ms(window_ms))
                    .filter(|end| *end <= oldest_time)
                else {
                    break;
                };
                let dropped = store.drop_buckets(topic, end)?;
                if dropped == 0 {
                    break;
                }
                wiring.meters.evictions.increment(dropped as u64);
                size = store.window_size(topic)?;
            }
        }
        note_full(wiring, size.bytes);
        wiring.meters.window_bytes.set(size.bytes as f64);
        // A copy that is late makes no window of ours shorter.
        let time = oldest.ours_ms.unwrap_or(oldest_time);
        let reach_ms = size
            .oldest_ms
            .map_or(0, |start| (time - start).clamp(0, window_ms));
        wiring.meters.effective_window.set(reach_ms as f64 / 1_000.0);
        Ok(())
    }

    /// `None` before the first commit, and while a partition has no time: then nothing can be said to be past.
    fn oldest(
        &self,
        topic: TopicId,
        coming: &BTreeSet<PartitionId>,
        left_ms: i64,
        state_moves: bool,
    ) -> Result<Option<Oldest>, Error> {
        let store = &self.store;
        let mut times: BTreeMap<PartitionId, Option<i64>> = self
            .commits
            .acknowledged()
            .into_iter()
            .filter(|(id, _)| id.topic == topic)
            .map(|(id, point)| (id, point.time_ms))
            .collect();
        for id in coming.iter().filter(|id| id.topic == topic) {
            // Nothing is known of how far back its window reaches: nothing is past.
            times.insert(
                *id,
                store
                    .load_position(*id)?
                    .and_then(|position| position.acknowledged_ms),
            );
        }
        let mut copies = Vec::new();
        for id in store.partitions()?.into_iter().filter(|id| id.topic == topic) {
            if times.contains_key(&id) {
                continue;
            }
            let position = store.load_position(id)?;
            if self.copies.are_kept(id) {
                let time = position.and_then(|position| position.acknowledged_ms);
                // One without a record in any bucket needs none of them; one with some, and no time yet, may need all.
                if time.is_some() || store.seen_until(id)?.is_some() {
                    copies.push(time);
                }
                continue;
            }
            match position {
                // A part of a rebuild: without a position it counts for nothing, and with what comes after it would pass
                // for whole.
                None if state_moves => store.clear(id)?,
                None => {}
                Some(position) if position.written_ms.max(self.started_ms) > left_ms => {
                    // Not its position's own time: what the broker had not acknowledged comes again.
                    times.insert(id, position.acknowledged_ms);
                }
                // Of a topic that goes on elsewhere a part would be left: if it comes back all of it is read anew.
                Some(_) if state_moves => store.clear(id)?,
                Some(_) => store.forget_position(id)?,
            }
        }
        let ours: Option<Vec<i64>> = times.into_values().collect();
        let copies: Option<Vec<i64>> = copies.into_iter().collect();
        let (Some(ours), Some(copies)) = (ours, copies) else {
            return Ok(None);
        };
        let ours_ms = ours.into_iter().min();
        let any_ms = copies.into_iter().chain(ours_ms).min();
        Ok(any_ms.map(|any_ms| Oldest { any_ms, ours_ms }))
    }
}

/// Past its bytes with nothing left to shed, a topic stops taking: forgetting what Kafka can still repeat is no choice.
fn note_full(wiring: &Wiring, bytes: u64) {
    let max = wiring.policy.window_bytes.map_or(u64::MAX, |max| max.0);
    let is_full = bytes > max;
    let was_full = wiring.window_full.swap(is_full, Ordering::Relaxed);
    if is_full && !was_full {
        tracing::error!(
            topic = %wiring.topic, bytes, window_bytes = max,
            "the window is past `window_bytes`, and none of it may be shed: the topic takes nothing; raise the limit"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::{Fence, Gate};
    use crate::ledger::CommitPoint;
    use crate::message::{NextOffset, Offset};
    use crate::outcome::{Closed, End, Stored};
    use crate::store::memory::MemoryStore;
    use crate::store::{Changes, Known, Position, TopicSpec};
    use crate::token::TokenKey;

    const TOPIC: TopicId = TopicId(0);

    fn id(partition: i32) -> PartitionId {
        PartitionId {
            topic: TOPIC,
            partition,
        }
    }

    fn store() -> MemoryStore {
        let spec = TopicSpec {
            name: "orders".into(),
            window_ms: 400,
        };
        MemoryStore::new("g", &[spec])
    }

    fn put(store: &MemoryStore, partition: i32, time_ms: i64, acknowledged_ms: Option<i64>, written_ms: i64) {
        let mut changes = Changes::new(id(partition));
        changes.position = Some(Position {
            commit_point: NextOffset(9),
            time_ms: Some(time_ms),
            acknowledged_ms,
            written_ms,
        });
        store.apply(&[changes]).unwrap();
    }

    fn sweeping(store: &MemoryStore, commits: &Commits, copies: &Copies, started_ms: i64) -> Sweeping {
        Sweeping {
            store: Arc::new(store.clone()),
            commits: commits.clone(),
            copies: copies.clone(),
            clock: Clock::system(),
            started_ms,
        }
    }

    impl Sweeping {
        fn oldest_ms(&self, left_ms: i64, state_moves: bool) -> Option<i64> {
            let coming = self.commits.coming();
            let oldest = self.oldest(TOPIC, &coming, left_ms, state_moves).unwrap();
            oldest.map(|oldest| oldest.any_ms)
        }
    }

    #[test]
    fn what_the_broker_acknowledged_rules_and_the_slowest_partition_decides() {
        let (store, commits) = (store(), Commits::default());
        put(&store, 0, 9_000, Some(5_000), 1_000);
        put(&store, 1, 9_000, Some(8_000), 1_000);
        let sweeping = sweeping(&store, &commits, &Copies::default(), 1_000);
        assert_eq!(
            sweeping.oldest_ms(600, false),
            Some(5_000),
            "0 is not assigned yet: its last acknowledged time"
        );
        let point = CommitPoint {
            next: NextOffset(9),
            time_ms: Some(9_000),
        };
        commits.assign(id(0), &Gate::mint(Fence(0)), point);
        assert_eq!(sweeping.oldest_ms(600, false), Some(8_000));
        put(&store, 2, 9_000, None, 1_000);
        assert_eq!(
            sweeping.oldest_ms(600, false),
            None,
            "nothing can be said of 2 yet"
        );
    }

    /// Inv 6 and 8: downtime ages nothing, and whoever is swept is cold.
    #[test]
    fn a_partition_that_left_is_forgotten_one_window_after_the_start_and_not_before() {
        let (store, commits) = (store(), Commits::default());
        put(&store, 0, 9_000, Some(9_000), 0);
        let sweeping = sweeping(&store, &commits, &Copies::default(), 10_000);
        assert_eq!(
            sweeping.oldest_ms(10_399 - 400, false),
            Some(9_000),
            "written long ago, but this process has only just started"
        );
        assert_eq!(sweeping.oldest_ms(10_400 - 400, false), None);
        assert_eq!(store.load(id(0)).unwrap().position, None);
    }

    /// Inv 8: what was restored a moment ago has last been written by its owner before, perhaps a window ago.
    #[test]
    fn a_partition_that_is_coming_is_not_taken_for_one_that_has_left() {
        let (store, commits) = (store(), Commits::default());
        put(&store, 0, 9_000, Some(9_000), 0);
        put(&store, 1, 20_000, Some(20_000), 30_000);
        let sweeping = sweeping(&store, &commits, &Copies::default(), 10_000);
        commits.expect(id(0));
        assert_eq!(sweeping.oldest_ms(29_600, true), Some(9_000));
        // Nothing is known of a partition that has only just begun to be read.
        commits.expect(id(2));
        assert_eq!(sweeping.oldest_ms(29_600, true), None);
        commits.forget(id(2));
        commits.forget(id(0));
        assert_eq!(sweeping.oldest_ms(29_600, true), Some(20_000), "now it has left");
        assert_eq!(store.load(id(0)).unwrap().position, None);
    }

    /// Inv 6: a copy that is kept for another member may be all that a take-over has, however quiet its owner is.
    #[test]
    fn a_copy_that_is_kept_up_has_not_left() {
        let (store, commits) = (store(), Commits::default());
        let copies = Copies::new(true);
        put(&store, 0, 9_000, Some(9_000), 0);
        put(&store, 1, 20_000, Some(20_000), 30_000);
        let sweeping = sweeping(&store, &commits, &copies, 10_000);
        commits.assign(
            id(1),
            &Gate::mint(Fence(0)),
            CommitPoint {
                next: NextOffset(9),
                time_ms: Some(20_000),
            },
        );
        let oldest = sweeping.oldest(TOPIC, &commits.coming(), 29_600, true).unwrap();
        let expected = Oldest {
            any_ms: 9_000,
            ours_ms: Some(20_000),
        };
        assert_eq!(oldest, Some(expected));
        assert!(store.load(id(0)).unwrap().position.is_some());
        // One that nobody can keep up has left, like any.
        copies.stop(id(0));
        assert_eq!(sweeping.oldest_ms(29_600, true), Some(20_000));
        assert_eq!(store.load(id(0)).unwrap(), Known::default());
    }

    /// A copy without any record keeps no bucket for ever; one whose records came without a position keeps them all.
    #[test]
    fn a_copy_counts_by_what_it_has_in_the_buckets() {
        let (store, commits) = (store(), Commits::default());
        let copies = Copies::new(true);
        put(&store, 0, 9_000, Some(9_000), 30_000);
        let sweeping = sweeping(&store, &commits, &copies, 10_000);
        store.apply_restored(&[], &[(id(1), 7)]).unwrap();
        assert_eq!(sweeping.oldest_ms(29_600, true), Some(9_000), "it was empty");
        let mut changes = Changes::new(id(1));
        changes.closed.push((TokenKey([1; 16]), closed(100)));
        store.apply_logged(&[changes], &[(id(1), 8)]).unwrap();
        assert_eq!(
            sweeping.oldest_ms(29_600, true),
            None,
            "a rebuild that is not whole"
        );
    }

    /// Inv 8: what a process that is let go of may still write onto a copy, it may not write onto one that was swept.
    #[test]
    fn a_copy_that_somebody_may_still_write_to_is_not_swept() {
        let (store, commits) = (store(), Commits::default());
        let copies = Copies::new(false);
        let sweeping = sweeping(&store, &commits, &copies, 10_000);
        let (applied, settled) = mpsc::channel();
        let settled = std::cell::Cell::new(Some(settled));
        put(&store, 0, 9_000, Some(9_000), 0);
        copies.take(id(0));
        copies.leave(&[id(0)], || settled.take().unwrap());
        assert_eq!(sweeping.oldest_ms(29_600, true), Some(9_000), "the journal");
        let restoring = copies.restore(id(0));
        applied.send(()).unwrap();
        assert_eq!(sweeping.oldest_ms(29_600, true), Some(9_000), "the restorer");
        drop(restoring);
        assert_eq!(sweeping.oldest_ms(29_600, true), None);
        assert_eq!(store.load(id(0)).unwrap(), Known::default());
    }

    fn closed(first_seen_ms: i64) -> Closed {
        Closed {
            end: End::Done(Stored::Nothing),
            offset: Offset(0),
            first_seen_ms,
            attempts: 1,
            fingerprint: None,
        }
    }
}
