//! Rebuild: the window of a cold partition is read back from the source topic.
//!
//! Below the commit point everything was recorded by whoever committed it (Inv 1); by what outcome is not known. So each
//! message of one window before the commit point is recorded as done with 0 attempts, which says *outcome unknown*, and a
//! duplicate of it is suppressed like any other, and renews its window: whichever of the two ran, it is remembered for as long as
//! the later one. What is known already stays as it is: an outcome with its reply, a failure, what is held here.
//!
//! A partition is cold until its position says otherwise, so the position is written last, by whoever serves it, and
//! nothing of a rebuild carries one. A crash in the middle leaves records that are true, and the partition as cold as it
//! was; the next rebuild reads again and finds them. In replicated mode the records go through the journal with the fence
//! of this assignment; each transaction states the offset that is committed already, so that Kafka refuses it once the
//! partition is another's, while the frames in it say that the partition stands nowhere
//! ([`nowhere`](crate::journal::frame::nowhere)).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hashbrown::HashMap;

use crate::clock;
use crate::error::Error;
use crate::fence::Gate;
use crate::journal::{Acks, Failure, Submission};
use crate::ledger::CommitPoint;
use crate::message::{Batch, NextOffset, Offset, Raw};
use crate::outcome::{Closed, End, Fingerprint, Stage, Stored};
use crate::partition::{Wiring, is_renewed};
use crate::store::{Changes, Hit, PartitionId, Store};
use crate::token::{Found, TokenKey};
use crate::window::{PartitionTime, Window};

/// Records written at a time at most, all partitions of a reading together: enough to share a write, few enough to be
/// held in memory.
const WRITE: usize = 20_000;

/// And of one partition at least.
const WRITE_MIN: usize = 1_000;

/// How often a rebuild looks whether the journal has written.
const LOOK: Duration = Duration::from_millis(1);

/// One cold partition, as it was assigned.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) id: PartitionId,
    /// Where it is served from: what lies below is read.
    pub(crate) start: CommitPoint,
    /// Partition time there, where the commit says so.
    pub(crate) time_ms: Option<i64>,
    /// The first offset that the log still has.
    pub(crate) low: i64,
    /// The partition belongs to this assignment for as long as this is open.
    pub(crate) gate: Gate,
    pub(crate) wiring: Arc<Wiring>,
}

impl Plan {
    pub(crate) fn part(&self) -> Part {
        Part {
            topic: self.wiring.topic.to_string(),
            partition: self.id.partition,
            next: self.start.next,
            low: self.low,
            time_ms: self.time_ms,
            window_ms: clock::millis(self.wiring.policy.window),
        }
    }
}

/// The part of a log that a window lies in.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// Where it ends: the commit point.
    pub(crate) next: NextOffset,
    /// The first offset that the log still has.
    pub(crate) low: i64,
    /// Partition time at the commit point, where the commit says so.
    pub(crate) time_ms: Option<i64>,
    pub(crate) window_ms: i64,
}

impl Part {
    /// The earliest timestamp of what may still count at that partition time. The first message that has it or a later
    /// one is where partition time came into the window: whatever is older lies before it, and whatever comes late after.
    pub(crate) const fn reach_ms(&self, time_ms: i64) -> i64 {
        time_ms.saturating_sub(self.window_ms) + 1
    }
}

/// Partition time at the commit point, where nobody has said it, by the timestamps of the last messages before it: at
/// least half of them reach it. A few from the future or from the past do not decide; of a few the earliest does.
pub(crate) fn estimate(stamps: &[Option<i64>]) -> Option<i64> {
    let mut stamps: Vec<i64> = stamps.iter().copied().flatten().collect();
    stamps.sort_unstable();
    stamps.get(stamps.len().saturating_sub(1) / 2).copied()
}

/// How far a rebuild is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Messages read.
    pub(crate) messages: u64,
    /// Tokens recorded, those known before not counted.
    pub(crate) tokens: u64,
}

/// Whether it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Going {
    /// The assignment lives.
    On,
    /// It is over, or nobody wants it any more: nothing more is written.
    Over,
}

/// See the module.
pub(crate) struct Rebuild {
    plan: Plan,
    store: Arc<dyn Store>,
    window: Window,
    time: PartitionTime,
    wall_ms: i64,
    /// Offsets that are held here: their outcome is not decided.
    held: BTreeSet<Offset>,
    changes: Changes,
    /// The newest record of each token in `changes`.
    collected: HashMap<TokenKey, Closed>,
    write_max: usize,
    acks: Arc<Acks>,
    submitted: u64,
    progress: Progress,
    /// Tokens of `changes`, those that are written again not counted.
    tokens: u64,
    // Scratch.
    keys: Vec<TokenKey>,
    hits: Vec<Hit>,
}

/// One message on its way into the window.
struct Read {
    offset: Offset,
    first_seen_ms: i64,
    fingerprint: Option<Fingerprint>,
    /// The end of its keys in the batch's.
    keys_end: usize,
}

impl Rebuild {
    /// Raises the fence. What is begun here below the commit point was ended by another member: it goes. The first
    /// message that is read is not older than `reach_ms`, and `partitions` are read at once.
    ///
    /// # Errors
    /// A store or a journal that fails.
    pub(crate) fn begin(
        plan: Plan,
        store: &Arc<dyn Store>,
        reach_ms: Option<i64>,
        partitions: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Self, Going), Error> {
        let wiring = &plan.wiring;
        let wall_ms = wiring.clock.wall_ms();
        let mut changes = Changes::new(plan.id);
        changes.fence = Some(plan.gate.fence());
        let mut held = BTreeSet::new();
        for open in store.load(plan.id)?.open {
            if open.offset.next() > plan.start.next {
                continue;
            }
            match (&open.stage, open.keys.first()) {
                (Stage::Begun { message: None, .. }, Some(first)) => {
                    changes.removed.push((*first, open.offset));
                }
                _ => {
                    held.insert(open.offset);
                }
            }
        }
        let mut rebuild = Self {
            window: Window::of_ms(clock::millis(wiring.policy.window)),
            time: PartitionTime::new(
                reach_ms.map(|reach| reach - 1),
                wall_ms,
                clock::millis(wiring.max_clock_jump),
            ),
            wall_ms,
            held,
            changes,
            collected: HashMap::new(),
            write_max: (WRITE / partitions.max(1)).max(WRITE_MIN),
            acks: Arc::default(),
            submitted: 0,
            progress: Progress::default(),
            tokens: 0,
            keys: Vec::new(),
            hits: Vec::new(),
            store: Arc::clone(store),
            plan,
        };
        let going = rebuild.write(stop)?;
        Ok((rebuild, going))
    }

    pub(crate) const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes messages in the order of the log; those from the commit point on are not its own.
    ///
    /// # Errors
    /// A store or a journal that fails.
    pub(crate) fn take(&mut self, batch: &Batch, stop: &dyn Fn() -> bool) -> Result<Going, Error> {
        self.keys.clear();
        let mut messages = Vec::with_capacity(batch.len());
        let next = self.plan.start.next;
        for raw in batch.iter().filter(|raw| raw.offset().next() <= next) {
            self.progress.messages += 1;
            messages.push(self.read(&raw));
        }
        let reach_ms = self
            .time
            .now_ms()
            .map_or(i64::MIN, |now| self.window.reach_ms(now));
        self.hits.clear();
        self.store
            .look_up(self.plan.id, reach_ms, &self.keys, &mut self.hits)?;
        let hits = std::mem::take(&mut self.hits);
        let keys = std::mem::take(&mut self.keys);
        let mut left = hits.as_slice();
        let mut start = 0;
        for message in messages {
            let count = left.partition_point(|hit| hit.key < message.keys_end);
            let (own, rest) = left.split_at(count);
            left = rest;
            let own_keys = keys.get(start..message.keys_end).unwrap_or_default();
            self.decide(&message, own_keys, own, start);
            start = message.keys_end;
        }
        (self.hits, self.keys) = (hits, keys);
        if self.changes.closed.len() >= self.write_max {
            return self.write(stop);
        }
        Ok(Going::On)
    }

    /// Everything is read. Returns where the partition stands with it: to be written as its position, by whoever serves
    /// it. `None` where the assignment is over.
    ///
    /// # Errors
    /// A store or a journal that fails.
    pub(crate) fn end(mut self, stop: &dyn Fn() -> bool) -> Result<Option<(CommitPoint, Progress)>, Error> {
        if self.write(stop)? == Going::Over {
            return Ok(None);
        }
        let point = CommitPoint {
            next: self.plan.start.next,
            time_ms: self
                .plan
                .time_ms
                .or(self.plan.start.time_ms.max(self.time.now_ms())),
        };
        Ok(Some((point, self.progress)))
    }

    /// Token, fingerprint and time of one message. Whatever a policy says of a message without a token, it was decided
    /// under its position.
    fn read(&mut self, raw: &Raw<'_>) -> Read {
        let wiring = &self.plan.wiring;
        let start = self.keys.len();
        match wiring.extractor.read(raw, &mut self.keys) {
            Found::Tokens => {}
            Found::Missing | Found::TooLong { .. } => self.keys.push(wiring.extractor.position(raw)),
        }
        let first = self.keys.get(start).copied().unwrap_or(TokenKey([0; 16]));
        let judged_ms = self.time.take(raw.timestamp_ms(), &first);
        // A message after a gap is a jump that the next one confirms; it is not older than it says itself.
        let own_ms = raw.timestamp_ms().unwrap_or(judged_ms).min(self.wall_ms);
        let fields = &wiring.policy.mismatch.fields;
        Read {
            offset: raw.offset(),
            first_seen_ms: judged_ms.max(own_ms),
            fingerprint: match fields.is_empty() {
                true => Some(Fingerprint::of_whole(raw)),
                false => Fingerprint::of_fields(raw, fields),
            },
            keys_end: self.keys.len(),
        }
    }

    /// What becomes of one message, of which the store has those records, by index of the batch's keys.
    fn decide(&mut self, message: &Read, keys: &[TokenKey], hits: &[Hit], first_key: usize) {
        if self.held.contains(&message.offset) {
            return;
        }
        let stored = |at: usize| {
            hits.iter()
                .find(|hit| hit.key == first_key + at)
                .map(|hit| &hit.closed)
        };
        let known: Vec<Option<Closed>> = keys
            .iter()
            .enumerate()
            .map(|(at, key)| self.collected.get(key).or_else(|| stored(at)).cloned())
            .collect();
        let closed = match ruling(known.iter().flatten(), message, self.window) {
            Ruling::Known => return,
            Ruling::Duplicate(first) => self.renewed(first, message),
            Ruling::New { first_seen_ms } => Closed {
                end: End::Done(Stored::Nothing),
                offset: message.offset,
                first_seen_ms,
                attempts: 0,
                fingerprint: message.fingerprint,
            },
        };
        let is_new = closed.offset == message.offset;
        for (key, known) in keys.iter().zip(&known) {
            // Of a duplicate the aliases that have no record get the first one's, and so does its own where it is renewed.
            let is_stale =
                |known: &Closed| known.offset == closed.offset && known.first_seen_ms < closed.first_seen_ms;
            if is_new || known.as_ref().is_none_or(is_stale) {
                let is_renewed = !is_new && known.is_some();
                self.tokens += u64::from(!is_renewed);
                self.changes.closed.push((*key, closed.clone()));
                self.collected.insert(*key, closed.clone());
            }
        }
    }

    /// The record that a duplicate met, with its window as that left it. Of two messages that were read here either may be the one
    /// that ran, the first being past by then: the window of the second is the longer one (Inv 6).
    fn renewed(&self, first: Closed, message: &Read) -> Closed {
        let (seen_ms, renewal) = (message.first_seen_ms, self.plan.wiring.policy.renewal);
        let is_unknown = first.attempts == 0 && seen_ms > first.first_seen_ms;
        match is_unknown || is_renewed(renewal, self.window, first.first_seen_ms, seen_ms) {
            true => Closed {
                first_seen_ms: seen_ms,
                ..first
            },
            false => first,
        }
    }

    /// Makes durable what is collected. The records that the store then has are found there.
    fn write(&mut self, stop: &dyn Fn() -> bool) -> Result<Going, Error> {
        if stop() {
            return Ok(Going::Over);
        }
        if self.changes.is_empty() {
            return Ok(Going::On);
        }
        let changes = std::mem::replace(&mut self.changes, Changes::new(self.plan.id));
        let has_records = !changes.closed.is_empty();
        let tokens = std::mem::take(&mut self.tokens);
        self.progress.tokens += tokens;
        self.plan.wiring.meters.rebuilt.increment(tokens);
        self.collected.clear();
        let going = match self.plan.wiring.state_moves() {
            true => self.submit(changes, stop)?,
            false => self.apply(changes)?,
        };
        if has_records {
            crate::crash::point("during-rebuild");
        }
        Ok(going)
    }

    /// Entered: what an older assignment has read must not land behind a later one's back (Inv 5).
    fn apply(&self, changes: Changes) -> Result<Going, Error> {
        let Some(_entered) = self.plan.gate.enter() else {
            return Ok(Going::Over);
        };
        self.store.apply(&[changes])?;
        Ok(Going::On)
    }

    fn submit(&mut self, changes: Changes, stop: &dyn Fn() -> bool) -> Result<Going, Error> {
        self.submitted += 1;
        self.plan.wiring.journal.submit(Submission {
            gate: self.plan.gate.clone(),
            acks: Arc::clone(&self.acks),
            number: self.submitted,
            changes,
            letters: Vec::new(),
            stands: Some(self.plan.start),
        });
        loop {
            match self.acks.state() {
                Ok(durable) if durable >= self.submitted => return Ok(Going::On),
                Ok(_) if stop() => return Ok(Going::Over),
                Ok(_) => thread::park_timeout(LOOK),
                Err(Failure::Fenced) => return Ok(Going::Over),
                Err(Failure::Broken(why)) => return Err(Error::Journal(why)),
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Ruling {
    /// Its own outcome is known, or a later one of its token.
    Known,
    /// It was one of that message.
    Duplicate(Closed),
    /// Nothing suppressed it, as far as is known here: somebody did it.
    New {
        /// Not before an earlier record of the token: a look-up finds the newest bucket first.
        first_seen_ms: i64,
    },
}

fn ruling<'a>(known: impl Iterator<Item = &'a Closed> + Clone, message: &Read, window: Window) -> Ruling {
    if known.clone().any(|closed| closed.offset >= message.offset) {
        return Ruling::Known;
    }
    let suppresses = |closed: &&Closed| {
        matches!(closed.end, End::Done(_) | End::Invalidated(_))
            && message.first_seen_ms - closed.first_seen_ms < window.length_ms()
    };
    if let Some(first) = known
        .clone()
        .filter(suppresses)
        .max_by_key(|closed| closed.offset)
    {
        return Ruling::Duplicate(first.clone());
    }
    let floor = known.map(|closed| closed.first_seen_ms).max();
    Ruling::New {
        first_seen_ms: floor.map_or(message.first_seen_ms, |floor| floor.max(message.first_seen_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn done(offset: i64, first_seen_ms: i64) -> Closed {
        Closed {
            end: End::Done(Stored::Nothing),
            offset: Offset(offset),
            first_seen_ms,
            attempts: 1,
            fingerprint: None,
        }
    }

    fn ruled(known: &[Closed], offset: i64, first_seen_ms: i64) -> Ruling {
        let message = Read {
            offset: Offset(offset),
            first_seen_ms,
            fingerprint: None,
            keys_end: 1,
        };
        ruling(known.iter(), &message, Window::of_ms(HOUR))
    }

    #[test]
    fn what_is_known_stays_and_a_duplicate_does_not_begin_a_window_of_its_own() {
        assert_eq!(ruled(&[], 5, 7), Ruling::New { first_seen_ms: 7 });
        assert_eq!(ruled(&[done(5, 0)], 5, 7), Ruling::Known, "read before");
        assert_eq!(ruled(&[done(9, 0)], 5, 7), Ruling::Known, "decided later");
        let first = done(2, 0);
        assert_eq!(
            ruled(std::slice::from_ref(&first), 5, HOUR - 1),
            Ruling::Duplicate(first.clone())
        );
        assert_eq!(
            ruled(&[first], 5, HOUR),
            Ruling::New { first_seen_ms: HOUR },
            "past the window"
        );
    }

    #[test]
    fn after_a_failure_or_a_forgotten_outcome_somebody_may_have_done_it() {
        for end in [End::Failed(crate::outcome::Reason::Rejected), End::Forgotten] {
            let known = Closed { end, ..done(2, 50) };
            assert_eq!(ruled(&[known], 5, 40), Ruling::New { first_seen_ms: 50 });
        }
        let known = Closed {
            end: End::Invalidated("recalled".into()),
            ..done(2, 50)
        };
        assert_eq!(
            ruled(std::slice::from_ref(&known), 5, 60),
            Ruling::Duplicate(known)
        );
    }

    #[test]
    fn time_is_estimated_low_enough_and_not_by_one_message() {
        assert_eq!(estimate(&[]), None);
        assert_eq!(estimate(&[None, Some(5)]), Some(5));
        assert_eq!(estimate(&[Some(9), Some(5)]), Some(5), "of two the earlier");
        let usual = (100..110).map(Some);
        let with_future: Vec<_> = usual.clone().chain([Some(i64::MAX); 3]).collect();
        let with_past: Vec<_> = usual.chain([Some(0); 3]).collect();
        for stamps in [with_future, with_past] {
            assert!((100..110).contains(&estimate(&stamps).unwrap()));
        }
    }
}
