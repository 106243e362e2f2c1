//! The trim against a log in memory: whatever is done between trims, whoever reads what is left knows what is needed.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::fence::Fence;
use crate::journal::frame::{Owner, Session};
use crate::journal::replicated::{self, Ends, Failed, Group, Replicated, Transactions};
use crate::journal::{Acks, Journal as _, Submission};
use crate::ledger::CommitPoint;
use crate::message::{Kept, NextOffset, Offset};
use crate::outcome::{Closed, End, HeldFor, Open, Stage, Stored};
use crate::recovery::{Recovery, Source};
use crate::store::memory::MemoryStore;
use crate::store::{Changes, Position, Store, TopicSpec};
use crate::token::TokenKey;

const ID: PartitionId = PartitionId {
    topic: TopicId(0),
    partition: 0,
};
const WINDOW_MS: i64 = 400;

mod portions;

/// One partition's changelog. As in Kafka, the end of a transaction takes an offset of its own.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Frames>>);

#[derive(Default)]
struct Frames {
    low: i64,
    next: i64,
    frames: Vec<(i64, Vec<u8>)>,
    uncut: Option<Uncut>,
    cuts: usize,
    on_commit: Option<Hook>,
}

/// Called at each commit.
type Hook = Box<dyn FnMut() + Send>;

impl Transactions for Log {
    type Member = ();

    fn member(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn commit(&mut self, (): &(), group: &Group) -> Result<Ends, Failed> {
        let mut log = self.0.lock().unwrap();
        if let Some(on_commit) = &mut log.on_commit {
            on_commit();
        }
        let mut end = log.next;
        for (_, frame) in &group.frames {
            let at = log.next;
            log.frames.push((at, frame.clone()));
            end = at + 1;
            log.next = end;
        }
        log.next += 1;
        Ok(Ends::from([(ID, end)]))
    }

    fn renew(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn find(&mut self, _: Session, _: u64, _: &Ends) -> Result<Option<Ends>, String> {
        Ok(None)
    }

    fn missing(&mut self, _: &BTreeSet<String>) -> BTreeSet<String> {
        BTreeSet::new()
    }
}

impl Cut for Log {
    fn cut(&mut self, id: PartitionId, below: i64) -> Result<(), Uncut> {
        assert_eq!(id, ID);
        let mut log = self.0.lock().unwrap();
        log.cuts += 1;
        if let Some(uncut) = log.uncut.clone() {
            return Err(uncut);
        }
        assert!(below <= log.next, "{below} is beyond the end {}", log.next);
        log.low = log.low.max(below);
        let low = log.low;
        log.frames.retain(|(at, _)| *at >= low);
        Ok(())
    }

    fn changelog(&self, _: TopicId) -> String {
        "g.orders.hapax".into()
    }
}

fn spec() -> TopicSpec {
    TopicSpec {
        name: "orders".into(),
        window_ms: WINDOW_MS,
    }
}

/// A store with an empty disk that has read the log.
fn restored(log: &Log) -> MemoryStore {
    let (store, extents) = (MemoryStore::new("g", &[spec()]), extents());
    read(&store, &extents, log);
    store
}

fn read(store: &MemoryStore, extents: &Extents, log: &Log) {
    let as_store: Arc<dyn Store> = Arc::new(store.clone());
    let log = log.0.lock().unwrap();
    let (mut recovery, from) = Recovery::begin(
        &as_store,
        extents,
        ID,
        "orders",
        Source {
            changelog: "g.orders.hapax".into(),
            owner: Owner::of("g", "orders"),
        },
        (log.low, log.next),
        1,
    )
    .unwrap();
    for (at, frame) in log.frames.iter().filter(|(at, _)| *at >= from) {
        recovery.message(*at, frame).unwrap();
    }
    recovery.end(log.next).unwrap();
}

fn extents() -> Extents {
    Extents::new(BTreeMap::from([(ID.topic, WINDOW_MS)]))
}

/// An owner: a journal on the log, and a trim that is always due.
struct Rig {
    log: Log,
    store: MemoryStore,
    journal: Replicated,
    trim: Trim,
    gate: Gate,
    time_ms: i64,
    offset: i64,
    rewrites: bool,
    _threads: replicated::Threads,
}

impl Rig {
    /// The next owner of the log, with the disk of the last one or an empty one.
    fn take_over(log: &Log, store: MemoryStore, time_ms: i64, offset: i64) -> Self {
        let extents = extents();
        read(&store, &extents, log);
        let rules = replicated::Rules {
            owners: BTreeMap::from([(ID.topic, Owner::of("g", "orders"))]),
            extents: extents.clone(),
            frame_bytes_max: 300,
            // Each record alone.
            rewrite_bytes: 1,
            give_up: Duration::from_secs(60),
            call_max: Duration::from_secs(600),
            clock: Clock::manual(5),
        };
        let (journal, threads) =
            Replicated::start(log.clone(), Arc::new(store.clone()), rules, |why| panic!("{why}")).unwrap();
        let gate = Gate::mint(Fence(store.load(ID).unwrap().fence));
        let mut rig = Self {
            log: log.clone(),
            store,
            journal,
            trim: Trim::new(Rules {
                windows_ms: BTreeMap::from([(ID.topic, WINDOW_MS)]),
                extents,
                commits: Commits::default(),
            }),
            gate,
            time_ms,
            offset,
            rewrites: true,
            _threads: threads,
        };
        rig.trim.bytes_min = 0;
        rig.trim.rules.commits.assign(ID, &rig.gate, rig.point());
        let fence = rig.gate.fence();
        rig.submit(|changes| changes.fence = Some(fence));
        rig
    }

    fn point(&self) -> CommitPoint {
        CommitPoint {
            next: NextOffset(self.offset),
            time_ms: Some(self.time_ms),
        }
    }

    fn submit(&mut self, change: impl FnOnce(&mut Changes)) {
        let mut changes = Changes::new(ID);
        change(&mut changes);
        changes.position = Some(Position {
            commit_point: NextOffset(self.offset),
            time_ms: Some(self.time_ms),
            acknowledged_ms: Some(self.time_ms),
            written_ms: 5,
        });
        let acks = Arc::new(Acks::default());
        self.journal.submit(Submission {
            gate: self.gate.clone(),
            acks: Arc::clone(&acks),
            number: 1,
            changes,
            letters: Vec::new(),
            stands: None,
        });
        assert!(self.journal.settle());
        assert_eq!(acks.state(), Ok(1));
        self.trim.rules.commits.rules(ID, &self.gate, self.point());
    }

    fn trim(&mut self) {
        self.trim.due.clear();
        // What was written again the last time does not count here.
        self.trim.rewritten.clear();
        let (journal, store, rewrites) = (self.journal.clone(), self.store.clone(), self.rewrites);
        let mut rewrite = |id, gate: &Gate| {
            if rewrites {
                journal.rewrite(&store, id, gate.clone()).recv().ok()
            } else {
                Some(0)
            }
        };
        let mut log = self.log.clone();
        self.trim.pass(clock::now(), &mut rewrite, &mut log);
        assert!(self.journal.settle());
    }

    /// What is missing from what the log still says.
    fn missing(&self, closed: &BTreeMap<u8, i64>) -> Vec<String> {
        let (here, there) = (self.store.load(ID).unwrap(), restored(&self.log));
        let mut missing = Vec::new();
        let known = there.load(ID).unwrap();
        if known.open != here.open {
            missing.push(format!("open: {} of {}", known.open.len(), here.open.len()));
        }
        if (known.position.map(|at| at.commit_point), known.fence)
            != (here.position.map(|at| at.commit_point), here.fence)
        {
            missing.push(format!("stands at {:?}", known.position));
        }
        for (token, seen_ms) in closed {
            if self.time_ms - seen_ms < WINDOW_MS {
                let mut hits = Vec::new();
                there.look_up(ID, i64::MIN, &[key(*token)], &mut hits).unwrap();
                if hits.first().map(|hit| hit.closed.first_seen_ms) != Some(*seen_ms) {
                    missing.push(format!("token {token}, seen {seen_ms}, at {}", self.time_ms));
                }
            }
        }
        missing
    }
}

const fn key(token: u8) -> TokenKey {
    TokenKey([token; 16])
}

fn held(token: u8, offset: i64) -> Open {
    Open {
        keys: vec![key(token)],
        offset: Offset(offset),
        stage: Stage::Held {
            why: HeldFor::InDoubt,
            message: Kept {
                timestamp_ms: None,
                key: None,
                payload: Some(Bytes::from(vec![token; 40])),
                headers: Vec::new(),
            },
            verdict: None,
        },
        first_seen_ms: 0,
        attempts: 1,
        since_ms: 1,
        fingerprint: None,
    }
}

#[derive(Debug, Clone)]
enum Act {
    Close(u8),
    Open(u8),
    Remove(u8),
    Wait(i64),
    Trim,
    /// The next owner comes, with the same disk or an empty one.
    Move(bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0u8..40).prop_map(Act::Close),
        2 => (100u8..110).prop_map(Act::Open),
        2 => (100u8..110).prop_map(Act::Remove),
        4 => (0i64..150).prop_map(Act::Wait),
        3 => Just(Act::Trim),
        1 => any::<bool>().prop_map(Act::Move),
    ];
    proptest::collection::vec(act, 1..120)
}

/// Runs the acts, and says what was missing first, and how often something was deleted.
fn play(acts: &[Act], rewrites: bool) -> (Vec<String>, i64) {
    let log = Log::default();
    let mut rig = Rig::take_over(&log, MemoryStore::new("g", &[spec()]), 1_000, 0);
    rig.rewrites = rewrites;
    let mut closed = BTreeMap::new();
    for act in acts {
        match act {
            Act::Close(token) => {
                rig.offset += 1;
                let (seen_ms, offset) = (rig.time_ms, rig.offset - 1);
                closed.insert(*token, seen_ms);
                rig.submit(|changes| {
                    let end = Closed {
                        end: End::Done(Stored::Nothing),
                        offset: Offset(offset),
                        first_seen_ms: seen_ms,
                        attempts: 1,
                        fingerprint: None,
                    };
                    changes.closed.push((key(*token), end));
                });
            }
            Act::Open(token) => rig.submit(|changes| changes.opened.push(held(*token, i64::from(*token)))),
            Act::Remove(token) => rig.submit(|changes| {
                changes.removed.push((key(*token), Offset(i64::from(*token))));
            }),
            Act::Wait(ms) => {
                rig.time_ms += ms;
                rig.submit(|_| {});
            }
            Act::Trim => rig.trim(),
            Act::Move(same_disk) => {
                let store = if *same_disk {
                    rig.store.flush();
                    rig.store.restart(&[spec()])
                } else {
                    MemoryStore::new("g", &[spec()])
                };
                rig.gate.clear();
                rig = Rig::take_over(&log, store, rig.time_ms, rig.offset);
                rig.rewrites = rewrites;
            }
        }
        let missing = rig.missing(&closed);
        if !missing.is_empty() {
            return (missing, log.0.lock().unwrap().low);
        }
    }
    let low = log.0.lock().unwrap().low;
    (Vec::new(), low)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whoever_reads_what_is_left_knows_what_is_needed(acts in acts()) {
        let (missing, _) = play(&acts, true);
        prop_assert_eq!(missing, Vec::<String>::new());
    }
}

/// The check above can fail: with one held message, and with nothing but where the partition stands.
#[test]
fn deleting_without_writing_again_is_noticed() {
    let fill = |n: u8| (0..n).map(|n| Act::Close(n % 40));
    let mut acts: Vec<Act> = [Act::Open(100)].into_iter().chain(fill(80)).collect();
    acts.extend([Act::Wait(500), Act::Close(1), Act::Trim, Act::Move(false)]);
    assert_eq!(play(&acts, true).0, Vec::<String>::new());
    assert!(play(&acts, true).1 > 80, "the head is gone");
    assert_eq!(play(&acts, false).0, ["open: 0 of 1"]);
    let acts: Vec<Act> = fill(80).chain([Act::Wait(500), Act::Trim]).collect();
    assert_eq!(play(&acts, true).0, Vec::<String>::new());
    let stands = &play(&acts, false).0;
    assert!(stands.iter().any(|text| text == "stands at None"), "{stands:?}");
}

/// Outcomes that are past by now.
fn close_long_ago(rig: &mut Rig) {
    for token in 0..200 {
        rig.submit(|changes| {
            let end = Closed {
                end: End::Done(Stored::Nothing),
                offset: Offset(0),
                first_seen_ms: 1_000,
                attempts: 1,
                fingerprint: None,
            };
            changes.closed.push((key(token), end));
        });
    }
}

fn filled() -> Rig {
    let mut rig = Rig::take_over(&Log::default(), MemoryStore::new("g", &[spec()]), 1_000, 0);
    close_long_ago(&mut rig);
    rig.time_ms = 1_400;
    rig
}

/// Inv 6: what the broker has not acknowledged may come again, and is judged by the older time.
#[test]
fn the_acknowledged_time_rules_to_the_millisecond() {
    let mut rig = filled();
    rig.time_ms = 1_399;
    rig.submit(|_| {});
    rig.trim();
    assert_eq!(rig.log.0.lock().unwrap().low, 0);
    rig.time_ms = 1_400;
    rig.trim();
    assert_eq!(
        rig.log.0.lock().unwrap().low,
        0,
        "nobody has acknowledged that time"
    );
    rig.submit(|_| {});
    rig.trim();
    assert!(rig.log.0.lock().unwrap().low >= 200);
}

/// Inv 5: an assignment that is over writes nothing, so nothing is deleted in its name.
#[test]
fn a_zombie_trims_nothing() {
    let mut rig = filled();
    rig.submit(|_| {});
    let frames = rig.log.0.lock().unwrap().frames.len();
    let gate = rig.gate.clone();
    let mut log = rig.log.clone();
    let (journal, store) = (rig.journal.clone(), rig.store.clone());
    // Lost between the look at what is served and the write.
    let mut rewrite = |id, of: &Gate| {
        gate.clear();
        journal.rewrite(&store, id, of.clone()).recv().ok()
    };
    rig.trim.pass(clock::now(), &mut rewrite, &mut log);
    let log = rig.log.0.lock().unwrap();
    assert_eq!((log.cuts, log.low, log.frames.len()), (0, 0, frames));
}

#[test]
fn a_refused_deletion_is_tried_again_later_and_costs_nothing_but_length() {
    let mut rig = filled();
    rig.submit(|_| {});
    rig.log.0.lock().unwrap().uncut = Some(Uncut::NoRight);
    rig.trim();
    let cuts = |rig: &Rig| rig.log.0.lock().unwrap().cuts;
    assert_eq!(cuts(&rig), 1);
    let mut log = rig.log.clone();
    let mut rewrite = |_, _: &Gate| panic!("not within ten minutes");
    rig.trim
        .pass(clock::now() + Duration::from_secs(590), &mut rewrite, &mut log);
    assert_eq!(cuts(&rig), 1);
    rig.log.0.lock().unwrap().uncut = None;
    rig.trim();
    assert!(rig.log.0.lock().unwrap().low >= 200);
    assert_eq!(rig.missing(&BTreeMap::new()), Vec::<String>::new());
}

/// What is written again must not cost more than what goes.
#[test]
fn a_log_that_is_mostly_open_is_trimmed_less_often() {
    let mut rig = filled();
    rig.submit(|_| {});
    rig.trim.rewritten.insert(ID, 1 << 30);
    let mut log = rig.log.clone();
    let mut rewrite = |_, _: &Gate| panic!("not worth it");
    rig.trim.pass(clock::now(), &mut rewrite, &mut log);
    assert_eq!(log.0.lock().unwrap().cuts, 0);
}
