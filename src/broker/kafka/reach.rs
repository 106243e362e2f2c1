//! How far back a window reaches: the first offset whose timestamp may still count, as the broker's own index says.
//!
//! Partition time at the commit point tells which one that is. Where the commit does not say it, it is estimated from the
//! timestamps of the last messages before.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::changelog::{self, Read, Span, Unread};
use super::rights::unanswered;
use crate::broker;
use crate::clock;
use crate::config::Settings;
use crate::error::Error;
use crate::patience::{self, Patience};
use crate::rebuild::{Part, estimate};

/// Messages before a commit point that say what time it is there.
const TAIL: usize = 64;

/// Where that many offsets hold no message (markers, compaction) as many times more are looked at.
const TAIL_GROWS: i64 = 16;

/// Where one partition's reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The earliest timestamp that counts, where there is one to go by.
    pub(crate) ms: Option<i64>,
    /// The first offset that has it, or a later one.
    pub(crate) from: i64,
}

/// Finds where each reading begins. `None` where nobody wants to know any more.
///
/// # Errors
/// Where the broker does not answer.
pub(crate) fn reaches(
    settings: &Settings,
    parts: &[Part],
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<Reach>>, Error> {
    let Some(times) = times(settings, parts, stop)? else {
        return Ok(None);
    };
    let consumer: BaseConsumer = config(settings, parts.len())
        .create()
        .map_err(|error| broker::Error::Config(crate::error::chain(&error)))?;
    let mut list = TopicPartitionList::new();
    for (part, time) in parts.iter().zip(&times) {
        if let Time::At(time_ms) = time {
            let reach = part.reach_ms(*time_ms).max(0);
            list.add_partition_offset(&part.topic, part.partition, KafkaOffset::Offset(reach))
                .map_err(|error| broker::Error::Config(crate::error::chain(&error)))?;
        }
    }
    let found = match list.count() {
        0 => Some(list),
        _ => ask(settings, stop, |at_most| {
            let found = consumer.offsets_for_times(list.clone(), at_most)?;
            for element in found.elements() {
                element.error()?;
            }
            Ok(found)
        })?,
    };
    let Some(found) = found else { return Ok(None) };
    let reach = |(part, time): (&Part, &Time)| {
        let next = part.next.0;
        let (ms, from) = match time {
            Time::Nothing => (None, next),
            Time::Unknown => (None, part.low),
            Time::At(time_ms) => {
                let found = found.find_partition(&part.topic, part.partition);
                let from = match found.map(|element| element.offset()) {
                    Some(KafkaOffset::Offset(from)) => from,
                    // Nothing that is left is as young.
                    _ => next,
                };
                (Some(part.reach_ms(*time_ms)), from)
            }
        };
        Reach {
            ms,
            from: from.clamp(part.low.min(next), next),
        }
    };
    Ok(Some(parts.iter().zip(&times).map(reach).collect()))
}

/// Partition time at a commit point.
#[derive(Debug, Clone, Copy)]
enum Time {
    At(i64),
    /// There is no message below it.
    Nothing,
    /// There are, and they have no timestamps.
    Unknown,
}

/// Partition time at each commit point, by the commit itself or by the last messages before it.
fn times(settings: &Settings, parts: &[Part], stop: &dyn Fn() -> bool) -> Result<Option<Vec<Time>>, Error> {
    let mut times: Vec<Option<Time>> = parts.iter().map(|part| part.time_ms.map(Time::At)).collect();
    let mut tail = TAIL as i64;
    loop {
        let unknown: Vec<usize> = (0..parts.len())
            .filter(|place| times.get(*place).is_some_and(Option::is_none))
            .collect();
        if unknown.is_empty() {
            return Ok(Some(times.into_iter().flatten().collect()));
        }
        let spans: Vec<Span> = unknown
            .iter()
            .filter_map(|place| parts.get(*place))
            .map(|part| Span {
                topic: part.topic.clone(),
                partition: part.partition,
                from: part.next.0.saturating_sub(tail).max(part.low),
                to: part.next.0,
            })
            .collect();
        let froms: Vec<i64> = spans.iter().map(|span| span.from).collect();
        let mut stamps: Vec<VecDeque<Option<i64>>> = vec![VecDeque::new(); spans.len()];
        let whole = changelog::read_with(&config(settings, spans.len()), &unreadable, spans, stop, |read| {
            if let Read::Message { span, message } = read
                && let Some(place) = unknown.get(span)
                && parts
                    .get(*place)
                    .is_some_and(|part| message.offset().next() <= part.next)
                && let Some(stamps) = stamps.get_mut(span)
            {
                if stamps.len() == TAIL {
                    stamps.pop_front();
                }
                stamps.push_back(message.timestamp_ms());
            }
            Ok::<(), Error>(())
        })?;
        if !whole {
            return Ok(None);
        }
        for ((place, from), stamps) in unknown.into_iter().zip(froms).zip(&mut stamps) {
            let is_all = parts.get(place).is_some_and(|part| from <= part.low);
            let time = match estimate(stamps.make_contiguous()) {
                Some(time_ms) => Some(Time::At(time_ms)),
                None if is_all && stamps.is_empty() => Some(Time::Nothing),
                None if is_all => Some(Time::Unknown),
                None => None,
            };
            if let Some(of_part) = times.get_mut(place) {
                *of_part = time;
            }
        }
        tail = tail.saturating_mul(TAIL_GROWS);
    }
}

/// Messages that were read as a rebuild reads them, and how long that took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    pub(crate) messages: u64,
    pub(crate) took: Duration,
}

/// Reads parts from their beginnings for so long at most, to see how fast that goes. Nothing is written.
///
/// # Errors
/// Where they cannot be read.
pub(crate) fn sample(settings: &Settings, spans: Vec<Span>, at_most: Duration) -> Result<Sample, Error> {
    let (begun, mut first, mut messages) = (clock::now(), None, 0);
    let stop = || clock::now().saturating_duration_since(begun) > at_most;
    changelog::read_with(
        &config(settings, spans.len()),
        &unreadable,
        spans,
        &stop,
        |read| {
            if let Read::Message { .. } = read {
                // To connect is no part of what takes longer with more.
                first.get_or_insert_with(clock::now);
                messages += 1;
            }
            Ok::<(), Error>(())
        },
    )?;
    let took = first.map_or(Duration::ZERO, |first| {
        clock::now().saturating_duration_since(first)
    });
    Ok(Sample { messages, took })
}

/// Asks until there is an answer; `None` where nobody wants it any more.
fn ask<T>(
    settings: &Settings,
    stop: &dyn Fn() -> bool,
    question: impl Fn(Duration) -> KafkaResult<T>,
) -> Result<Option<T>, Error> {
    let what = "asking where a window begins";
    let mut patience = Patience::new(clock::now());
    loop {
        let at_most = patience::question(patience.waited(clock::now()), patience::QUESTION_MAX);
        let error = match question(at_most) {
            Ok(answer) => return Ok(Some(answer)),
            Err(_) if stop() => return Ok(None),
            Err(error) => error,
        };
        let why = crate::error::chain(&error);
        let error = Error::from(unanswered(settings, what)(error));
        let now = clock::now();
        if !patience::may_change(&error) || patience.is_spent(now) {
            return Err(error);
        }
        let waited = patience.waited(now);
        if patience.says(now) {
            tracing::warn!(%why, ?waited, "{what} failed, asking again");
        }
        thread::park_timeout(patience::pause(waited));
    }
}

pub(super) fn unreadable(span: &Span, what: Unread<'_>) -> broker::Error {
    let (Unread::Gone(why) | Unread::NoRight(why) | Unread::Failed(why)) = what;
    broker::Error::Rebuild {
        topic: span.topic.clone(),
        partition: span.partition,
        why: why.to_owned(),
    }
}

/// As the consumer itself reads: what it was not shown was not done.
pub(super) fn config(settings: &Settings, spans: usize) -> ClientConfig {
    let mut config = changelog::config(settings, spans);
    if let Some(isolation) = settings.kafka.get("isolation.level") {
        config.set("isolation.level", isolation);
    }
    // What has been deleted since the log's begin was asked for is no part of it.
    config.set("auto.offset.reset", "earliest");
    config
}
