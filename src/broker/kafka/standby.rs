//! The standby's thread: reads the changelogs of partitions that are not ours, all the time.
//!
//! One reading goes on until the partitions that it reads are not those to be read any more, because some have come here,
//! were left, or are new; then another begins where the copies stand. Whatever fails is tried again, after longer and longer
//! rests; only a store that takes nothing more ends the thread, and then the journal says so and stops the consumer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::changelog::{self, Ends, Read, Span};
use super::signal::Signal;
use super::transactions::Names;
use crate::broker;
use crate::clock::{self, Instant};
use crate::config::Settings;
use crate::copies::Copies;
use crate::error::Error;
use crate::journal::frame::Owner;
use crate::metrics::StandbyMeters;
use crate::recovery::Source;
use crate::standby::{Of, Standby};
use crate::store::{PartitionId, Store, TopicId};
use crate::worker::Worker;

/// What the thread works with.
pub(crate) struct Parts {
    pub(crate) settings: Arc<Settings>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) copies: Copies,
    pub(crate) topics: BTreeMap<TopicId, Names>,
    /// Says that the consumer stops.
    pub(crate) signal: Arc<Signal>,
}

/// The handle of the thread, which ends when this is dropped. Where it panicked copies are late.
pub(crate) struct StandbyThread {
    _thread: Worker,
}

/// How soon it is noticed that other partitions are to be read.
const LOOK: Duration = Duration::from_millis(100);

/// How often it is asked whether a changelog has got partitions, and how far it has gone where a copy is behind.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// How long one question may take: the thread ends promptly.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Between two tries of what failed: at first, and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(10);

impl StandbyThread {
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(parts: Parts) -> std::io::Result<Self> {
        let thread = Worker::start("hapax-standby", move |stopped| Work::new(parts, stopped).run())?;
        Ok(Self { _thread: thread })
    }
}

struct Work {
    settings: Arc<Settings>,
    signal: Arc<Signal>,
    stopped: mpsc::Receiver<Infallible>,
    standby: Standby,
    changelogs: BTreeMap<TopicId, String>,
    /// How many partitions each changelog has, as far as that is known.
    counts: BTreeMap<TopicId, i32>,
    ends: Option<Ends>,
}

impl Work {
    fn new(parts: Parts, stopped: mpsc::Receiver<Infallible>) -> Self {
        let Parts {
            settings,
            store,
            copies,
            topics,
            signal,
        } = parts;
        let of = |names: Names| Of {
            source: Source {
                owner: Owner::of(&settings.group, &names.input),
                changelog: names.changelog,
            },
            meters: StandbyMeters::new(&names.input),
        };
        let topics = topics.into_iter().map(|(id, names)| (id, of(names))).collect();
        let standby = Standby::new(store, copies, topics);
        Self {
            settings,
            signal,
            stopped,
            changelogs: standby.changelogs(),
            standby,
            counts: BTreeMap::new(),
            ends: None,
        }
    }

    fn stops(&self) -> bool {
        self.signal.is_stopping() || self.stopped.try_recv() == Err(mpsc::TryRecvError::Disconnected)
    }

    fn rest(&self, at_most: Duration) {
        let until = clock::now() + at_most;
        while !self.stops() && clock::now() < until {
            // Nothing is ever sent: it wakes when the other end is dropped.
            let _ = self.stopped.recv_timeout(LOOK.min(at_most));
        }
    }

    fn run(mut self) {
        let mut again = AGAIN;
        let mut last = None;
        while !self.stops() {
            match self.turn(again) {
                Ok(()) => {
                    again = AGAIN;
                    last = None;
                }
                Err(error @ Error::Store(_)) => {
                    tracing::error!(why = %crate::error::chain(&error), "copies of other members' windows are not kept up any more");
                    return;
                }
                Err(error) => {
                    let why = crate::error::chain(&error);
                    if last.as_ref() != Some(&why) {
                        tracing::warn!(%why, "copies of other members' windows are late; it is tried again until it works");
                    }
                    last = Some(why);
                    // Its connections may be what is wrong.
                    self.ends = None;
                    self.rest(again);
                    again = AGAIN_MAX.min(again * 2);
                }
            }
        }
    }

    /// Begins what is to be read, and reads until that is something else.
    fn turn(&mut self, again: Duration) -> Result<(), Error> {
        let failed = self.begin()?;
        let spans = self.standby.tails();
        let ids: Vec<_> = spans.iter().map(|(id, ..)| *id).collect();
        let of = |(id, topic, from): (PartitionId, String, i64)| Span {
            topic,
            partition: id.partition,
            from,
            to: Span::TAIL,
        };
        let spans: Vec<_> = spans.into_iter().map(of).collect();
        let until = failed.as_ref().map(|_| clock::now() + again);
        let read = if spans.is_empty() {
            self.rest(LOOK);
            Ok(())
        } else {
            self.read(spans, &ids, until)
        };
        match (read, failed) {
            (Err(Error::Broker(broker::Error::ChangelogTrimmed { topic, partition })), _) => {
                tracing::info!(
                    changelog = topic,
                    partition,
                    "its owner has trimmed what a copy was to read next; it is read anew"
                );
                let of = ids.into_iter().filter(|id| id.partition == partition);
                for id in of.filter(|id| self.changelogs.get(&id.topic) == Some(&topic)) {
                    self.standby.shed(id);
                }
                Ok(())
            }
            (Err(error), _) | (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => Ok(()),
        }
    }

    /// Begins copies of whatever has none. What could not be asked is said, and what could be is begun.
    fn begin(&mut self) -> Result<Option<Error>, Error> {
        let ends = match &self.ends {
            Some(ends) => ends,
            None => self.ends.insert(Ends::new(&self.settings)?),
        };
        for (topic, changelog) in &self.changelogs {
            match ends.partitions(changelog, ANSWER_MAX) {
                Ok(count) => drop(self.counts.insert(*topic, count)),
                // Whoever does not answer one question does not answer the next one sooner.
                Err(error) => return Ok(Some(error.into())),
            }
        }
        for id in ids(&self.counts) {
            if !self.standby.lacks(id) {
                continue;
            }
            let changelog = self.changelogs.get(&id.topic).map_or("", String::as_str);
            match ends.within(changelog, id.partition, ANSWER_MAX) {
                Ok(log) => self.standby.begin(id, log)?,
                Err(error) => return Ok(Some(error.into())),
            }
        }
        Ok(None)
    }

    fn read(&mut self, spans: Vec<Span>, ids: &[PartitionId], until: Option<Instant>) -> Result<(), Error> {
        let config = config(&self.settings, spans.len());
        let (ends, counts, changelogs) = (&self.ends, &self.counts, &self.changelogs);
        let (signal, stopped) = (&self.signal, &self.stopped);
        let standby = RefCell::new(&mut self.standby);
        let looked = RefCell::new((clock::now(), clock::now()));
        let stop = || {
            if signal.is_stopping() || stopped.try_recv() == Err(mpsc::TryRecvError::Disconnected) {
                return true;
            }
            let now = clock::now();
            let mut looked = looked.borrow_mut();
            if now.saturating_duration_since(looked.0) < LOOK {
                return false;
            }
            looked.0 = now;
            if until.is_some_and(|until| now > until) {
                return true;
            }
            let mut standby = standby.borrow_mut();
            if standby.tails().len() < ids.len() || self::ids(counts).any(|id| standby.lacks(id)) {
                return true;
            }
            if now.saturating_duration_since(looked.1) < ASK_EVERY {
                return false;
            }
            looked.1 = now;
            let Some(ends) = ends else { return false };
            // What is not answered is asked again: it says how late a copy is, and not what is in it.
            for id in standby.late() {
                let changelog = changelogs.get(&id.topic).map_or("", String::as_str);
                match ends.within(changelog, id.partition, ANSWER_MAX) {
                    Ok((_, high)) => standby.behind(id, high),
                    Err(_) => return false,
                }
            }
            changelogs.iter().any(|(topic, changelog)| {
                let count = ends.partitions(changelog, ANSWER_MAX);
                count.is_ok_and(|count| counts.get(topic) != Some(&count))
            })
        };
        let of = |span: usize| ids.get(span).copied();
        let each = |read: Read<'_>| {
            let mut standby = standby.borrow_mut();
            match read {
                Read::Message { span, message } => of(span).map_or(Ok(()), |id| {
                    standby.message(id, message.offset().0, message.payload().unwrap_or_default())
                }),
                Read::Stands { span, next } => of(span).map_or(Ok(()), |id| standby.end(id, next)),
                Read::Rest => standby.rest(),
                Read::End { .. } => Ok(()),
            }
        };
        let failed = changelog::failed(&self.settings);
        changelog::read_with(&config, &failed, spans, &stop, each).map(drop)
    }
}

fn ids(counts: &BTreeMap<TopicId, i32>) -> impl Iterator<Item = PartitionId> {
    let of = |(topic, count): (&TopicId, &i32)| {
        let topic = *topic;
        (0..*count).map(move |partition| PartitionId { topic, partition })
    };
    counts.iter().flat_map(of)
}

/// What all copies together prefetch.
const PREFETCH_KIB: usize = 16 << 10;

/// A reader that is in no hurry: it is there all the time, and takes little from those that serve.
fn config(settings: &Settings, spans: usize) -> rdkafka::ClientConfig {
    let mut config = changelog::config(settings, spans);
    config.set("fetch.wait.max.ms", "500");
    config.set("fetch.queue.backoff.ms", "100");
    let kib = (PREFETCH_KIB / spans.max(1)).clamp(128, 4_096);
    config.set("queued.max.messages.kbytes", kib.to_string());
    config.set("fetch.message.max.bytes", (kib << 10).min(1 << 20).to_string());
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;
    use crate::store::TopicSpec;
    use crate::store::memory::MemoryStore;

    /// Whoever stops a consumer whose brokers are away waits for no question of this thread's.
    #[test]
    fn it_ends_promptly_while_no_broker_answers() {
        let spec = TopicSpec {
            name: "orders".into(),
            window_ms: 1_000,
        };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new("g", &[spec]));
        let names = Names {
            input: "orders".into(),
            changelog: "g.orders.hapax".into(),
        };
        // Nobody listens at that port.
        let settings = Settings::new("g", "127.0.0.1:1", "unused", Durability::Replicated);
        let parts = Parts {
            settings: Arc::new(settings),
            store: Arc::clone(&store),
            copies: Copies::new(true),
            topics: BTreeMap::from([(TopicId(0), names)]),
            signal: Arc::default(),
        };
        let thread = StandbyThread::start(parts).unwrap();
        // By now it is in the middle of a question, which takes longer than this.
        std::thread::park_timeout(ANSWER_MAX / 4);
        let since = clock::now();
        drop(thread);
        let took = clock::now().saturating_duration_since(since);
        assert!(took < 5 * ANSWER_MAX, "{took:?}");
        assert_eq!(Arc::strong_count(&store), 1, "and holds the store no more");
    }
}
