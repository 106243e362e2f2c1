//! The sweep: time buckets that nobody can ask for any more are dropped whole.
//!
//! A bucket goes when every partition of its topic is past it by the time at its *acknowledged* commit point: what
//! Kafka can still deliver again is judged with that time (Inv 6). A partition that has left is waited for one window
//! of the wall clock, counted from the start of this process, because downtime ages nothing; then its position is
//! forgotten before its buckets go, so that it is cold if it comes back (Inv 8). A byte limit drops the oldest bucket
//! that lies below every commit point, counted and shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::clock::{self, Clock};
use crate::commits::Commits;
use crate::partition::Wiring;
use crate::store::{Error, PartitionId, Store, TopicId, bucket_ms};

/// How often the sweep runs. Buckets are a quarter of a window long: nothing is lost by being a little late.
const EVERY: Duration = Duration::from_secs(5);

/// The sweeper's thread, which ends when this is dropped.
pub(crate) struct Sweeper {
    /// Closed by being dropped, which ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Sweeper {
    /// Waits for a sweep that is under way: the thread holds the store, and its directory is free only without it.
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A sweeper that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl Sweeper {
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        topics: Vec<(TopicId, Arc<Wiring>)>,
        commits: Commits,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("hapax-sweep".into()).spawn(move || {
            let started_ms = clock.wall_ms();
            while stopped.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                for (topic, wiring) in &topics {
                    if let Err(error) = sweep(&*store, *topic, wiring, &commits, &clock, started_ms) {
                        // Deletion is late, nothing else: the journal meets a broken store by itself.
                        tracing::warn!(topic = %wiring.topic, why = %crate::error::chain(&error), "the sweep failed");
                    }
                }
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

fn sweep(
    store: &dyn Store,
    topic: TopicId,
    wiring: &Wiring,
    commits: &Commits,
    clock: &Clock,
    started_ms: i64,
) -> Result<(), Error> {
    let window_ms = clock::millis(wiring.policy.window);
    let left_ms = clock.wall_ms().saturating_sub(window_ms);
    // Nobody comes while this deletes: what is restored or rebuilt lies in buckets that nobody else may need.
    let coming = commits.coming();
    let Some(oldest_time) = oldest_time(
        store,
        topic,
        commits,
        &coming,
        started_ms,
        left_ms,
        wiring.state_moves(),
    )?
    else {
        return Ok(());
    };
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
    let reach_ms = size
        .oldest_ms
        .map_or(0, |start| (oldest_time - start).clamp(0, window_ms));
    wiring.meters.effective_window.set(reach_ms as f64 / 1_000.0);
    Ok(())
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

/// The earliest partition time that a message of this topic can still be judged at. `None` before the first commit,
/// and while a partition has no time: then nothing can be said to be past.
fn oldest_time(
    store: &dyn Store,
    topic: TopicId,
    commits: &Commits,
    coming: &BTreeSet<PartitionId>,
    started_ms: i64,
    left_ms: i64,
    state_moves: bool,
) -> Result<Option<i64>, Error> {
    let mut times: BTreeMap<PartitionId, Option<i64>> = commits
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
    for id in store.partitions()?.into_iter().filter(|id| id.topic == topic) {
        if times.contains_key(&id) {
            continue;
        }
        let Some(position) = store.load_position(id)? else {
            continue;
        };
        if position.written_ms.max(started_ms) <= left_ms {
            if state_moves {
                // Of a topic that goes on elsewhere a part would be left: if it comes back all of it is read anew.
                store.clear(id)?;
            } else {
                store.forget_position(id)?;
            }
        } else {
            // Not its position's own time: what the broker had not acknowledged comes again.
            times.insert(id, position.acknowledged_ms);
        }
    }
    let mut oldest = None;
    for time in times.into_values() {
        let Some(time) = time else { return Ok(None) };
        oldest = Some(oldest.map_or(time, |oldest: i64| oldest.min(time)));
    }
    Ok(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::{Fence, Gate};
    use crate::ledger::CommitPoint;
    use crate::message::NextOffset;
    use crate::store::memory::MemoryStore;
    use crate::store::{Changes, Position, TopicSpec};

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

    #[test]
    fn what_the_broker_acknowledged_rules_and_the_slowest_partition_decides() {
        let (store, commits) = (store(), Commits::default());
        put(&store, 0, 9_000, Some(5_000), 1_000);
        put(&store, 1, 9_000, Some(8_000), 1_000);
        let oldest = |commits: &Commits| {
            oldest_time(&store, TOPIC, commits, &commits.coming(), 1_000, 600, false).unwrap()
        };
        assert_eq!(
            oldest(&commits),
            Some(5_000),
            "0 is not assigned yet: its last acknowledged time"
        );
        let point = CommitPoint {
            next: NextOffset(9),
            time_ms: Some(9_000),
        };
        commits.assign(id(0), &Gate::mint(Fence(0)), point);
        assert_eq!(oldest(&commits), Some(8_000));
        put(&store, 2, 9_000, None, 1_000);
        assert_eq!(oldest(&commits), None, "nothing can be said of 2 yet");
    }

    /// Inv 6 and 8: downtime ages nothing, and whoever is swept is cold.
    #[test]
    fn a_partition_that_left_is_forgotten_one_window_after_the_start_and_not_before() {
        let (store, commits) = (store(), Commits::default());
        put(&store, 0, 9_000, Some(9_000), 0);
        let oldest = |now_ms: i64| {
            oldest_time(
                &store,
                TOPIC,
                &commits,
                &commits.coming(),
                10_000,
                now_ms - 400,
                false,
            )
            .unwrap()
        };
        assert_eq!(
            oldest(10_399),
            Some(9_000),
            "written long ago, but this process has only just started"
        );
        assert_eq!(oldest(10_400), None);
        assert_eq!(store.load(id(0)).unwrap().position, None);
    }

    /// Inv 8: what was restored a moment ago has last been written by its owner before, perhaps a window ago.
    #[test]
    fn a_partition_that_is_coming_is_not_taken_for_one_that_has_left() {
        let (store, commits) = (store(), Commits::default());
        put(&store, 0, 9_000, Some(9_000), 0);
        put(&store, 1, 20_000, Some(20_000), 30_000);
        let oldest = |state_moves| {
            oldest_time(
                &store,
                TOPIC,
                &commits,
                &commits.coming(),
                10_000,
                29_600,
                state_moves,
            )
            .unwrap()
        };
        commits.expect(id(0));
        assert_eq!(oldest(true), Some(9_000));
        // Nothing is known of a partition that has only just begun to be read.
        commits.expect(id(2));
        assert_eq!(oldest(true), None);
        commits.forget(id(2));
        commits.forget(id(0));
        assert_eq!(oldest(true), Some(20_000), "now it has left");
        assert_eq!(store.load(id(0)).unwrap().position, None);
    }
}
