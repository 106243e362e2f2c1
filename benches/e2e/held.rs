//! A million held messages beside the hot path: what they cost it, and how late they start that come due meanwhile.
//!
//! The store is filled as hapax leaves it after so many messages whose attempts in place were spent, an hour's worth of due
//! times from now on. Then the topic is consumed with its defaults, as fast as it goes. So the few that come due while that
//! lasts (280 a second) compete with a hot path that takes all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use hapax::accounts::Account;
use hapax::config::{ByteCount, Durability};
use hapax::message::{Kept, Offset};
use hapax::outcome::{HeldFor, Open, Stage};
use hapax::store::rocks::RocksStore;
use hapax::store::{Changes, PartitionId, Store as _, TopicSpec};
use hapax::{Bytes, Class, Context, Summary, Topic, Window};

use crate::broker::{Ends, Observer};
use crate::contestants::{Ended, HEADER, Measured, Progress, Task, configured, to_the_end};
use crate::figures::Figure;
use crate::paced::{quantile, wall_ms};
use crate::{Result, filled, process};

/// They come due one after another over so long.
const SPREAD_MS: u64 = 3_600_000;
/// The first is due about when the consumer serves: so long after the filling began, and this long after its end. What is
/// overdue by then runs at once, beside the first fresh ones.
const LEAD_MS: i64 = 8_000;
const START_MS: i64 = 2_000;
/// What the payload of a held message begins with; when it is due comes next.
const MARK: &str = "held until ";
const PAYLOAD: usize = 200;
/// Far behind whatever the topic holds, so that none of them is met as a redelivery.
const FIRST_OFFSET: i64 = 1_000_000_000_000;
const BATCH: u64 = 8_192;
const HELD_MAX: usize = 4_000_000;

/// Fills the store of the group with so many held messages.
pub(crate) fn fill(task: &Task) -> Result<Measured> {
    let begun = Instant::now();
    let observer = Observer::new(&task.brokers, &task.topic, &task.group)?;
    let partitions: Vec<i32> = observer.ends()?.0.into_keys().collect();
    let spec = TopicSpec {
        name: task.topic.clone(),
        window_ms: filled::WINDOW_MS,
    };
    let memory = ByteCount::mib(256).0;
    let store = RocksStore::open(&task.state_dir, &task.group, &[spec], memory, Durability::Local)?;
    let topic = store.topic(&task.topic)?;
    let now_ms = wall_ms();
    for from in (0..task.count).step_by(BATCH as usize) {
        let to = task.count.min(from + BATCH);
        let group = partitions.iter().zip(0..).map(|(partition, place)| {
            let mut changes = Changes::new(PartitionId {
                topic,
                partition: *partition,
            });
            let ours = (from..to).filter(|number| number % partitions.len() as u64 == place);
            let due_ms = |number| now_ms + LEAD_MS + (number * SPREAD_MS / task.count) as i64;
            changes.opened = ours
                .map(|number| held(number, now_ms, due_ms(number)))
                .collect::<Result<_>>()?;
            Ok(changes)
        });
        store.apply(&group.collect::<Result<Vec<_>>>()?)?;
    }
    await_compaction()?;
    store.close()?;
    let left_ms = now_ms + LEAD_MS - START_MS - wall_ms();
    std::thread::sleep(std::time::Duration::from_millis(left_ms.max(0) as u64));
    Ok(Measured {
        count: task.count,
        seconds: begun.elapsed().as_secs_f64(),
        rss_kib: process::peak_rss_kib()?,
        cpu: process::cpu_by_thread()?,
        ..Measured::default()
    })
}

/// So many writes at once are compacted for seconds, which would count against whoever comes next.
fn await_compaction() -> Result<()> {
    let mut spent = f64::NAN;
    for _ in 0..60 {
        let now = process::cpu_by_thread()?
            .get("rocksdb:low")
            .copied()
            .unwrap_or_default();
        if now == spent {
            return Ok(());
        }
        spent = now;
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    Err("the store is still compacting after half a minute".into())
}

fn held(number: u64, now_ms: i64, due_ms: i64) -> Result<Open> {
    let mut payload = Vec::with_capacity(PAYLOAD);
    write!(payload, "{MARK}{due_ms} ")?;
    payload.resize(PAYLOAD, b'x');
    let token = format!("held-{number:031x}");
    Ok(Open {
        keys: vec![filled::key(number)],
        offset: Offset(FIRST_OFFSET + number as i64),
        stage: Stage::Held {
            why: HeldFor::Retry {
                due_ms,
                may_have_applied: false,
            },
            message: Kept {
                timestamp_ms: Some(now_ms),
                key: Some(Bytes::from(format!("held-{number}"))),
                payload: Some(payload.into()),
                headers: vec![(HEADER.to_owned(), Some(Bytes::from(token)))],
            },
            verdict: None,
        },
        // Before anything that the topic has, as what is held is. Later than that its outcomes would lie in a bucket of their own,
        // ahead of the time of the topic, and every look-up would ask that one too.
        first_seen_ms: now_ms - filled::WINDOW_MS,
        attempts: 5,
        since_ms: now_ms,
        fingerprint: None,
    })
}

/// A moment of the hot path.
#[derive(Debug)]
struct Moment {
    at: Instant,
    at_ms: i64,
    /// Fresh messages that had run by then.
    ran: u64,
    /// What the threads had spent.
    cpu: BTreeMap<String, f64>,
}

/// What the handler notes.
#[derive(Debug)]
struct Noted {
    fresh: Progress,
    /// Partitions that have not run a fresh message yet.
    unserved: Mutex<BTreeSet<i32>>,
    /// None of them is left: from here on the hot path is all that there is.
    served: OnceLock<Moment>,
    /// Where each partition ends.
    ends: Ends,
    /// The first of them has run its last message. With held messages partitions are served one after another, for which the last
    /// one pays at the end, when it runs alone.
    ended: OnceLock<Moment>,
    /// When each held one was due, and when it started.
    started: Mutex<Vec<(i64, i64)>>,
}

impl Noted {
    fn moment(&self) -> Moment {
        Moment {
            at: Instant::now(),
            at_ms: wall_ms(),
            ran: self.fresh.ran.load(Ordering::Relaxed),
            cpu: process::cpu_by_thread().unwrap_or_default(),
        }
    }

    fn call(&self, payload: &[u8], partition: i32, offset: i64) {
        match payload.strip_prefix(MARK.as_bytes()) {
            None => {
                if self.served.get().is_none() {
                    let mut unserved = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
                    unserved.remove(&partition);
                    if unserved.is_empty() {
                        let _ = self.served.set(self.moment());
                    }
                }
                self.fresh.one();
                if self.ends.get(&partition) == Some(&(offset + 1)) {
                    self.ended.get_or_init(|| self.moment());
                }
            }
            Some(rest) => {
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
                let due_ms = digits.fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
                let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
                started.push((due_ms, wall_ms()));
            }
        }
    }
}

/// Consumes the topic, with whatever the store holds.
pub(crate) fn consume(task: &Task) -> Result<Measured> {
    let observer = Observer::new(&task.brokers, &task.topic, &task.group)?;
    let (ends, messages) = observer.ends()?;
    if messages != task.count {
        return Err(format!(
            "topic {} holds {messages} messages, not {}",
            task.topic, task.count
        )
        .into());
    }
    let noted = Arc::new(Noted {
        fresh: Progress::new(task.count),
        unserved: Mutex::new(ends.keys().copied().collect()),
        served: OnceLock::new(),
        ends: ends.clone(),
        ended: OnceLock::new(),
        started: Mutex::default(),
    });
    let topic = Topic::bytes(&task.topic, Class::Idempotent)
        .window(Window::hours(24))
        .state(Arc::clone(&noted));
    let consumer = configured(task, Durability::Local, |layer| {
        layer.limits.held = Some(HELD_MAX);
        layer.limits.held_bytes = Some(ByteCount::gib(4));
    })?
    .handle(topic, |payload: Bytes, cx: Context<Arc<Noted>>| async move {
        cx.state().call(&payload, cx.partition(), cx.offset().0);
        Ok(())
    });
    let begun = Instant::now();
    let ended = to_the_end(consumer, observer, ends, noted.fresh.all_have_run())?;
    let ran = noted.fresh.ran.load(Ordering::Relaxed);
    let Ended { summary, .. } =
        ended.ok_or_else(|| format!("{ran} of {} handlers have run, and no more came", task.count))?;
    let started = std::mem::take(&mut *noted.started.lock().unwrap_or_else(PoisonError::into_inner));
    check(&summary, task.count, started.len() as u64)?;
    let first = noted.fresh.first.get().ok_or("no handler has run")?;
    let served = noted.served.get().ok_or("a partition had nothing to run")?;
    let ended = noted.ended.get().ok_or("no partition has come to its end")?;
    // Of the hot path alone.
    let mut cpu = ended.cpu.clone();
    for (thread, before) in &served.cpu {
        if let Some(spent) = cpu.get_mut(thread) {
            *spent -= before;
        }
    }
    Ok(Measured {
        count: ended.ran.saturating_sub(served.ran),
        seconds: ended.at.duration_since(served.at).as_secs_f64(),
        start_seconds: first.duration_since(begun).as_secs_f64(),
        rss_kib: process::peak_rss_kib()?,
        cpu,
        // What came due before every partition was served says how long an assignment takes.
        late_ms: started
            .into_iter()
            .filter(|(due_ms, _)| *due_ms >= served.at_ms)
            .map(|(due_ms, at_ms)| at_ms - due_ms)
            .collect(),
        ..Measured::default()
    })
}

/// Every message is done once, and so is every held one that was started; the books balance.
fn check(summary: &Summary, taken: u64, started: u64) -> Result<()> {
    let total = |of: &dyn Fn(&hapax::accounts::Balance) -> u64| summary.balances.iter().map(of).sum::<u64>();
    let found = (
        total(&|balance| balance.taken),
        total(&|balance| balance.of(Account::Done)),
    );
    let balanced = summary.balances.iter().all(|balance| balance.remainder() == 0);
    match balanced && found == (taken, taken + started) {
        true => Ok(()),
        false => Err(format!("{taken} messages and {started} held ones were to be done: {summary:?}").into()),
    }
}

/// Of pairs that ran one after the other, with held messages and without.
pub(crate) fn figures(pairs: &[(Measured, Measured)], held_messages: u64) -> Result<Vec<Figure>> {
    let each = |value: &dyn Fn(&(Measured, Measured)) -> f64| {
        crate::figures::median(pairs.iter().map(value).collect()).unwrap_or_default()
    };
    let mut late_ms: Vec<i64> = pairs
        .iter()
        .flat_map(|(with, _)| with.late_ms.iter().copied())
        .collect();
    late_ms.sort_unstable();
    let seconds: f64 = pairs.iter().map(|(with, _)| with.seconds).sum();
    let expected = seconds * held_messages as f64 / SPREAD_MS as f64 * 1e3;
    if (late_ms.len() as f64) < expected / 2.0 {
        let started = late_ms.len();
        return Err(
            format!("{started} held messages started in {seconds:.1} s, {expected:.0} came due").into(),
        );
    }
    if let Some(early) = late_ms.first().filter(|first| **first < 0) {
        return Err(format!("a held message started {} ms before it was due", -early).into());
    }
    let rate = crate::figures::rate;
    let mib = crate::figures::mib;
    println!(
        "held: {} came due while the hot path ran: late by {} ms at the median, {} ms at 99 %, {} ms at the most",
        late_ms.len(),
        quantile(&late_ms, 0.5),
        quantile(&late_ms, 0.99),
        quantile(&late_ms, 1.0)
    );
    let figure = |name, value, unit| Figure { name, value, unit };
    Ok(vec![
        figure(
            "held_vs_none",
            each(&|(with, without)| rate(with) / rate(without)),
            "x",
        ),
        figure("held_due_p50", quantile(&late_ms, 0.5), "ms"),
        figure("held_due_p99", quantile(&late_ms, 0.99), "ms"),
        figure("held_due_max", quantile(&late_ms, 1.0), "ms"),
        figure(
            "held_start",
            each(&|(with, without)| with.start_seconds - without.start_seconds),
            "s",
        ),
        figure("rss_held", each(&|(with, _)| mib(with)), "MiB"),
        figure("rss_held_none", each(&|(_, without)| mib(without)), "MiB"),
    ])
}
