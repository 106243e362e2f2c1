//! Assignments: what happens between the broker saying that a partition is ours and its task running, and back.
//!
//! The source of messages (the poll thread, or a script) calls these in order. Assigned: decide where to start and
//! whether the window is cold (Inv 8) → raise the fence and note the position → commit once → serve. Revoked: drain
//! within a budget → commit → clear the fence → unassign. Lost: clear the fence, cancel, commit nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::accounts::{Accounts, Balance};
use crate::attempt::panic_text;
use crate::broker::{self, CommitMark, Committed};
use crate::clock::{self, Clock, Instant};
use crate::commits::{Commits, Due};
use crate::config::{Cold, Deleted, Durability, Start};
use crate::desk::Desk;
use crate::error::Error;
use crate::fence::{Fence, Gate};
use crate::journal::{Acks, Submission};
use crate::ledger::CommitPoint;
use crate::limits::Budget;
use crate::message::Batch;
use crate::partition::{Assignment, Control, Found, Partition, Wiring, find};
use crate::rebuild::Plan;
use crate::store::{Changes, PartitionId, Position, Store, StoreId, TopicId};
pub(crate) use start::Rules;

mod start;

/// Batches of one partition that wait for its task.
const BATCHES_WAITING: usize = 2;

/// The assignments of one consumer.
pub(crate) struct Assignments {
    topics: BTreeMap<String, (TopicId, Arc<Wiring>)>,
    store: Arc<dyn Store>,
    store_id: StoreId,
    commits: Commits,
    budget: Budget,
    desk: Desk,
    clock: Clock,
    cold: Cold,
    rules: Rules,
    runtime: Handle,
    live: BTreeMap<PartitionId, Live>,
    /// Assigned with a window that does not cover what it should, served or not.
    cold_ids: BTreeSet<PartitionId>,
    /// Why the consumer has to stop, from whichever task met it first.
    failures: mpsc::UnboundedSender<Error>,
    /// What the ended assignments of this consumer came to, for the last line of its life.
    ended: Vec<Accounts>,
    /// Tasks of ended assignments, some of which are still on their way out.
    ending: Vec<JoinHandle<()>>,
}

struct Live {
    gate: Gate,
    accounts: Accounts,
    batches: mpsc::Sender<Batch>,
    control: watch::Sender<Control>,
    task: JoinHandle<()>,
}

/// A partition that is to be served, before its task starts.
pub(crate) struct Prepared {
    pub(crate) id: PartitionId,
    pub(crate) start: CommitPoint,
    gate: Gate,
    found: Vec<Found>,
    /// Its fence and position, where they are not written yet: where they have to go into the changelog, and where the
    /// window has to be rebuilt before.
    raise: Option<Changes>,
    /// It is cold, and is to be rebuilt before it is served.
    rebuild: Option<Plan>,
    wiring: Arc<Wiring>,
}

impl Prepared {
    /// The commit that its task waits for: of its start, with this store's mark.
    pub(crate) fn first_commit(&self) -> Due {
        Due {
            id: self.id,
            point: self.start,
            gate: self.gate.clone(),
        }
    }

    /// What has to be read back of its window first.
    pub(crate) const fn rebuild(&self) -> Option<&Plan> {
        self.rebuild.as_ref()
    }

    /// It is not served after all: what is on its way in its name is refused.
    pub(crate) fn give_up(self) {
        self.gate.clear();
    }

    /// Hands its fence to the journal. It is served once what this returns is durable.
    pub(crate) fn raise_fence(&mut self) -> Arc<Acks> {
        let acks = Arc::new(Acks::default());
        if let Some(changes) = self.raise.take() {
            self.wiring.journal.submit(Submission {
                gate: self.gate.clone(),
                acks: Arc::clone(&acks),
                number: 1,
                changes,
                letters: Vec::new(),
                stands: None,
            });
        }
        acks
    }
}

/// What a decision about a partition needs to know besides the store.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) committed: Option<Committed>,
    /// The first offset that the log still has.
    pub(crate) low: i64,
    /// The offset after the last.
    pub(crate) high: i64,
}

/// Everything that the assignments are made of.
pub(crate) struct Parts {
    pub(crate) topics: BTreeMap<String, (TopicId, Arc<Wiring>)>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) commits: Commits,
    pub(crate) budget: Budget,
    pub(crate) desk: Desk,
    pub(crate) clock: Clock,
    pub(crate) cold: Cold,
    pub(crate) deleted: Deleted,
    pub(crate) start: Start,
    pub(crate) durability: Durability,
    pub(crate) runtime: Handle,
    pub(crate) failures: mpsc::UnboundedSender<Error>,
}

impl Assignments {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            topics,
            store,
            commits,
            budget,
            desk,
            clock,
            cold,
            deleted,
            start,
            durability,
            runtime,
            failures,
        } = parts;
        let store_id = store.identity().store_id;
        Self {
            topics,
            store,
            store_id,
            commits,
            budget,
            desk,
            clock,
            cold,
            rules: Rules {
                store_id,
                first: start,
                deleted,
                durability,
            },
            runtime,
            live: BTreeMap::new(),
            cold_ids: BTreeSet::new(),
            failures,
            ended: Vec::new(),
            ending: Vec::new(),
        }
    }

    /// The number of a topic's partition, `None` for a topic that this consumer has no handler for.
    pub(crate) fn id(&self, topic: &str, partition: i32) -> Option<PartitionId> {
        self.topics.get(topic).map(|(id, _)| PartitionId {
            topic: *id,
            partition,
        })
    }

    /// The name of the partition's topic.
    pub(crate) fn topic(&self, id: PartitionId) -> Option<&str> {
        self.topics
            .iter()
            .find(|(_, (topic, _))| *topic == id.topic)
            .map(|(name, _)| name.as_str())
    }

    pub(crate) const fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) const fn commits(&self) -> &Commits {
        &self.commits
    }

    /// The metadata of a commit of this store.
    pub(crate) fn mark(&self, point: CommitPoint) -> String {
        CommitMark {
            store_id: self.store_id,
            time_ms: point.time_ms,
        }
        .to_metadata()
    }

    /// Decides where an assigned partition starts, raises its fence and notes its position, durably. Where it has to be
    /// [rebuilt](Prepared::rebuild) first, neither is written yet: with its position it would pass for warm.
    ///
    /// # Errors
    /// [`broker::Error::Cold`] where a guarded class may not run without its past: that partition is not served.
    /// Any other error stops the consumer.
    pub(crate) fn prepare(&mut self, id: PartitionId, facts: &Facts) -> Result<Prepared, Error> {
        let Some((topic, wiring)) = self.topics.iter().find(|(_, (topic, _))| *topic == id.topic) else {
            return Err(Error::Internal(format!(
                "partition of unknown topic {:?}",
                id.topic
            )));
        };
        let (topic, wiring) = (topic.clone(), Arc::clone(&wiring.1));
        let (known, found) = find(&*self.store, id, wiring.policy.concurrency)?;
        let (start, cold) = self.rules.start(known.position, facts);
        let start = self.rules.within_the_log(&topic, id.partition, start, facts)?;
        let rebuilds = cold.is_some() && self.cold == Cold::Rebuild;
        if let Some(why) = cold {
            self.cold_ids.insert(id);
            self.show_cold();
            if wiring.policy.class.is_guarded() && self.cold == Cold::Refuse {
                return Err(broker::Error::Cold {
                    topic,
                    partition: id.partition,
                    why,
                }
                .into());
            }
            if rebuilds {
                tracing::warn!(%topic, partition = id.partition, %why, "the window is cold; it is read back from the topic, and the partition served after that");
            } else {
                tracing::warn!(%topic, partition = id.partition, %why, "the window is cold, and served as such");
            }
        }
        if let Some(from) = self.rules.set_back(known.position, facts) {
            let to = start.next;
            tracing::warn!(
                %topic, partition = id.partition, %from, %to, messages = from.0 - to.0,
                "the group's offset was set back: those messages come again; whatever has an outcome that is still remembered \
                 is suppressed as a redelivery or a duplicate, and the rest runs; to have all of them run again, set the offsets \
                 of another group, and run under its name: it remembers nothing"
            );
        }
        let gate = Gate::mint(Fence(known.fence));
        let rebuild = rebuilds.then(|| Plan {
            id,
            start,
            time_ms: facts
                .committed
                .as_ref()
                .and_then(|committed| committed.mark?.time_ms),
            low: facts.low,
            gate: gate.clone(),
            wiring: Arc::clone(&wiring),
        });
        let mut changes = Changes::new(id);
        changes.fence = Some(gate.fence());
        changes.position = Some(Position {
            commit_point: start.next,
            time_ms: start.time_ms,
            acknowledged_ms: start.time_ms,
            written_ms: self.clock.wall_ms(),
        });
        let raise = if rebuild.is_some() {
            // Known with no time, so that the sweep leaves the topic's buckets alone: old ones are about to be filled.
            let unknown = CommitPoint {
                time_ms: None,
                ..start
            };
            self.commits.assign(id, &gate, unknown);
            Some(changes)
        } else if wiring.state_moves() {
            Some(changes)
        } else {
            self.store.apply(&[changes])?;
            None
        };
        Ok(Prepared {
            id,
            start,
            gate,
            found,
            raise,
            rebuild,
            wiring,
        })
    }

    /// The window of a prepared partition is whole again, and it stands there. Only now is its position written.
    ///
    /// # Errors
    /// A store that fails.
    pub(crate) fn rebuilt(&mut self, prepared: &mut Prepared, point: CommitPoint) -> Result<(), Error> {
        crate::crash::point("before-rebuilt");
        prepared.start = point;
        prepared.rebuild = None;
        if let Some(position) = prepared
            .raise
            .as_mut()
            .and_then(|changes| changes.position.as_mut())
        {
            position.time_ms = point.time_ms;
            position.acknowledged_ms = point.time_ms;
            position.written_ms = self.clock.wall_ms();
        }
        if !prepared.wiring.state_moves()
            && let Some(changes) = prepared.raise.take()
        {
            self.store.apply(&[changes])?;
        }
        // What was begun below the commit point is gone.
        let concurrency = prepared.wiring.policy.concurrency;
        prepared.found = find(&*self.store, prepared.id, concurrency)?.1;
        self.cold_ids.remove(&prepared.id);
        self.show_cold();
        Ok(())
    }

    /// A partition that was to be rebuilt is given away, or lost.
    pub(crate) fn abandon(&mut self, prepared: Prepared) {
        let id = prepared.id;
        prepared.give_up();
        self.commits.forget(id);
        self.cold_ids.remove(&id);
        self.show_cold();
    }

    /// Where fetching begins, before it is known what the changelog has: nothing of it is taken until then.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare), as far as it is known.
    pub(crate) fn expect(&self, id: PartitionId, facts: &Facts) -> Result<CommitPoint, Error> {
        let position = self.store.load_position(id)?;
        let (start, _) = self.rules.start(position, facts);
        self.rules
            .within_the_log(self.topic(id).unwrap_or_default(), id.partition, start, facts)
    }

    fn show_cold(&self) {
        for (id, wiring) in self.topics.values() {
            let count = self.cold_ids.iter().filter(|cold| cold.topic == *id).count();
            wiring.meters.cold.set(count as f64);
        }
    }

    /// Starts the task of a partition whose start the broker has committed with this store's mark.
    pub(crate) fn serve(&mut self, prepared: Prepared) {
        let Prepared {
            id,
            start,
            gate,
            found,
            wiring,
            ..
        } = prepared;
        self.commits.assign(id, &gate, start);
        let (batches, inbox) = mpsc::channel(BATCHES_WAITING);
        let (control, orders) = watch::channel(Control::Run);
        let accounts = Accounts::default();
        let asked = self.desk.open(id, accounts.clone());
        let assignment = Assignment {
            id,
            gate: gate.clone(),
            start,
            found,
            accounts: accounts.clone(),
            batches: inbox,
            orders: asked,
            control: orders,
        };
        let failures = self.failures.clone();
        let task = self.runtime.spawn(async move {
            let (topic, partition) = (Arc::clone(&wiring.topic), id.partition);
            let served = async { Partition::new(wiring, assignment).run().await };
            let ended = AssertUnwindSafe(served)
                .catch_unwind()
                .await
                .unwrap_or_else(|panic| {
                    // A closure of the user's that reads tokens, or an assertion of ours. A partition that stands still
                    // in silence would be worse than a consumer that stops.
                    let text = panic_text(&*panic);
                    Err(Error::Internal(format!(
                        "{topic}[{partition}] ended by a panic: {text}"
                    )))
                });
            if let Err(error) = ended {
                // Nobody listens any more where the consumer is stopping already.
                let _ = failures.send(error);
            }
        });
        self.live.insert(
            id,
            Live {
                gate,
                accounts,
                batches,
                control,
                task,
            },
        );
    }

    /// Whether the partition's task takes a batch now.
    pub(crate) fn has_room(&self, id: PartitionId) -> bool {
        self.live.get(&id).is_some_and(|live| live.batches.capacity() > 0)
    }

    /// Hands over a batch; the caller has asked [`has_room`](Self::has_room).
    pub(crate) fn offer(&self, id: PartitionId, batch: Batch) {
        let lease = self.budget.take(batch.len(), batch.bytes());
        let messages = batch.len();
        let sent = self
            .live
            .get(&id)
            .map(|live| live.batches.try_send(batch.with_lease(lease)));
        if !matches!(sent, Some(Ok(()))) {
            // Its task has ended: the messages are the next owner's.
            self.budget.give_back(messages);
        }
    }

    /// Tells the tasks to take nothing more and finish what runs.
    pub(crate) fn drain(&self, ids: &[PartitionId], budget: Duration, revoked: bool) -> Instant {
        let deadline = clock::now() + budget;
        for live in ids.iter().filter_map(|id| self.live.get(id)) {
            live.control.send_replace(Control::Drain { deadline, revoked });
        }
        deadline
    }

    /// Whether the tasks have ended.
    pub(crate) fn are_drained(&self, ids: &[PartitionId]) -> bool {
        ids.iter()
            .filter_map(|id| self.live.get(id))
            .all(|live| live.task.is_finished())
    }

    /// Ends the assignments: from here on nothing of them is written. `lost` ones are cancelled where they stand.
    pub(crate) fn end(&mut self, ids: &[PartitionId]) {
        for id in ids {
            if self.cold_ids.remove(id) {
                self.show_cold();
            }
            let Some(live) = self.live.remove(id) else {
                continue;
            };
            live.gate.clear();
            self.desk.close(*id);
            live.control.send_replace(Control::Cancel);
            self.commits.forget(*id);
            self.ended.push(live.accounts);
            self.ending.retain(|task| !task.is_finished());
            self.ending.push(live.task);
        }
    }

    /// Whether the tasks of what has ended are over, and their books closed.
    pub(crate) fn are_over(&self) -> bool {
        self.ending.iter().all(JoinHandle::is_finished)
    }

    /// Every partition that is served.
    pub(crate) fn ids(&self) -> Vec<PartitionId> {
        self.live.keys().copied().collect()
    }

    /// Held messages of partitions that are not ours after the first assignment: their bytes are nowhere else, so
    /// they go to the dead-letter topic, by tasks that do nothing but that. Those of `ours` stay.
    pub(crate) fn move_strays(
        &mut self,
        budget: Duration,
        ours: &[PartitionId],
    ) -> Result<Vec<PartitionId>, Error> {
        let mut strays = Vec::new();
        for id in self.store.partitions()? {
            if self.live.contains_key(&id) || ours.contains(&id) {
                continue;
            }
            let Some((_, wiring)) = self.topics.values().find(|(topic, _)| *topic == id.topic) else {
                continue;
            };
            let (known, found) = find(&*self.store, id, wiring.policy.concurrency)?;
            let is_kept = found.iter().any(|found| !found.is_with_kafka());
            let Some(position) = known.position.filter(|_| is_kept) else {
                continue;
            };
            let start = CommitPoint {
                next: position.commit_point,
                time_ms: position.time_ms,
            };
            let gate = Gate::mint(Fence(known.fence));
            self.serve(Prepared {
                id,
                start,
                gate,
                found,
                raise: None,
                rebuild: None,
                wiring: Arc::clone(wiring),
            });
            strays.push(id);
        }
        self.drain(&strays, budget, true);
        Ok(strays)
    }

    /// The books of every assignment, ended ones first.
    pub(crate) fn balances(&self) -> Vec<Balance> {
        self.ended
            .iter()
            .chain(self.live.values().map(|live| &live.accounts))
            .map(Accounts::balance)
            .collect()
    }
}
