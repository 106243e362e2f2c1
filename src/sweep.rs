//! The sweep: time buckets that nobody can ask for any more are dropped whole.
//!
//! A bucket goes when every partition of its topic is past it by the time at its *acknowledged* commit point: what
//! Kafka can still deliver again is judged with that time (Inv 6). A partition that has left is waited for one window
//! of the wall clock. A byte limit drops the oldest bucket that lies below every commit point, counted and shown.

use std::collections::BTreeMap;
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
    _stop: mpsc::Sender<()>,
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
        thread::Builder::new().name("hapax-sweep".into()).spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                for (topic, wiring) in &topics {
                    if let Err(error) = sweep(&*store, *topic, wiring, &commits, &clock) {
                        // Deletion is late, nothing else: the journal meets a broken store by itself.
                        tracing::warn!(topic = %wiring.topic, why = %crate::error::chain(&error), "the sweep failed");
                    }
                }
            }
        })?;
        Ok(Self { _stop: stop })
    }
}

fn sweep(
    store: &dyn Store,
    topic: TopicId,
    wiring: &Wiring,
    commits: &Commits,
    clock: &Clock,
) -> Result<(), Error> {
    let window_ms = clock::millis(wiring.policy.window);
    let Some(oldest_time) = oldest_time(store, topic, window_ms, commits, clock)? else {
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
    window_ms: i64,
    commits: &Commits,
    clock: &Clock,
) -> Result<Option<i64>, Error> {
    let mut times: BTreeMap<PartitionId, Option<i64>> = BTreeMap::new();
    for id in store.partitions()?.into_iter().filter(|id| id.topic == topic) {
        let Some(position) = store.load_position(id)? else {
            continue;
        };
        if clock.wall_ms().saturating_sub(position.written_ms) < window_ms {
            times.insert(id, position.time_ms);
        }
    }
    for (id, point) in commits
        .acknowledged()
        .into_iter()
        .filter(|(id, _)| id.topic == topic)
    {
        times.insert(id, point.time_ms);
    }
    let mut oldest = None;
    for time in times.into_values() {
        let Some(time) = time else { return Ok(None) };
        oldest = Some(oldest.map_or(time, |oldest: i64| oldest.min(time)));
    }
    Ok(oldest)
}
