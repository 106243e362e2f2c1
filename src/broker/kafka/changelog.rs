//! Reading changelogs: from where the store stands to the end, everything that was committed.
//!
//! The end is the *uncommitted* high watermark. A reader of committed messages is shown the end of the last transaction
//! that is known to be over; while a dead member's is still open, what others committed after it lies beyond that, hidden
//! (schedule 3). So the target is asked of a client that reads everything, and the committed messages are read until they
//! reach it: the broker ends an abandoned transaction after its timeout.
//!
//! The reader itself reads parts of any topic: a rebuild reads its source with it. A part may have no end: the standby reads
//! on as its owner writes.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::raw::{Message, RawQueue};
use super::rights::{Right, code, missing, unanswered};
use super::signal::Signal;
use super::{ANSWER_MAX, unreachable};
use crate::broker::Error;
use crate::clock;
use crate::config::Settings;
use crate::patience::GIVE_UP;

/// A part of one partition, to be read.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// The topic's name.
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The first offset to read.
    pub(crate) from: i64,
    /// Everything committed below this is read.
    pub(crate) to: i64,
}

impl Span {
    /// For a part without an end.
    pub(crate) const TAIL: i64 = i64::MAX;
}

/// What a reader goes on.
pub(super) enum Read<'a> {
    /// A message of the span of that number.
    Message { span: usize, message: &'a Message<'a> },
    /// Nothing is left of the span of that number; its log goes on at that offset.
    End { span: usize, next: i64 },
    /// Everything that is committed in the span of that number is read for now; its log goes on at that offset.
    Stands { span: usize, next: i64 },
    /// Nothing more has come for now, of any span.
    Rest,
}

/// Why a part cannot be read.
pub(super) enum Unread<'a> {
    /// What is asked for is not in the log any more.
    Gone(&'a str),
    /// It may not be read.
    NoRight(&'a str),
    Failed(&'a str),
}

/// How long the reader rests where nothing wakes it.
const REST: Duration = Duration::from_millis(20);

/// How often a reader that waits says so.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Messages of one look at one partition.
const TAKE: usize = 256;

/// Asks where changelogs begin and end.
pub(crate) struct Ends {
    settings: Arc<Settings>,
    everything: BaseConsumer,
}

impl Ends {
    /// # Errors
    /// [`Error::Config`] where the client refuses a property.
    pub(crate) fn new(settings: &Arc<Settings>) -> Result<Self, Error> {
        let mut config = super::producer::without_consumer_properties(settings);
        config.set("group.id", &settings.group);
        let isolation = if crate::crash::is_off("target") {
            "read_committed"
        } else {
            "read_uncommitted"
        };
        config.set("isolation.level", isolation);
        config.set("allow.auto.create.topics", "false");
        let everything = config
            .create()
            .map_err(|error| Error::Config(crate::error::chain(&error)))?;
        Ok(Self {
            settings: Arc::clone(settings),
            everything,
        })
    }

    /// The first offset that the log has, and the one after its last, committed or not.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where nobody answers, [`Error::Right`] where it may not be asked.
    pub(crate) fn of(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        self.within(topic, partition, ANSWER_MAX)
    }

    /// The same for whoever has less time.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where nobody answers in it.
    pub(super) fn within(&self, topic: &str, partition: i32, at_most: Duration) -> Result<(i64, i64), Error> {
        self.everything
            .fetch_watermarks(topic, partition, at_most)
            .map_err(|error| match missing(code(&error)) {
                Some(Right::Inputs) => {
                    Right::Changelog(topic).error(&self.settings, crate::error::chain(&error))
                }
                _ => unanswered(&self.settings, "asking for the ends of a changelog")(error),
            })
    }

    /// How many partitions a changelog has.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where nobody answers, [`Error::Topic`] where it is not there.
    pub(super) fn partitions(&self, topic: &str, at_most: Duration) -> Result<i32, Error> {
        let asked = self.everything.fetch_metadata(Some(topic), at_most);
        let metadata = asked.map_err(unreachable(&self.settings, "asking for a changelog"))?;
        let found = metadata.topics().first();
        let count = found
            .filter(|found| found.error().is_none())
            .map(|found| found.partitions().len());
        count
            .and_then(|count| i32::try_from(count).ok())
            .ok_or_else(|| Error::Topic {
                topic: topic.to_owned(),
                why: "the broker does not tell of it".to_owned(),
            })
    }
}

struct Quiet;

impl ClientContext for Quiet {}
impl ConsumerContext for Quiet {}

struct Open {
    number: usize,
    span: Span,
    queue: RawQueue<Quiet>,
    /// Wakes the reader, for as long as it is held.
    _split: PartitionQueue<Quiet>,
    next: i64,
}

/// Reads every span of changelogs to its end, in the order of each. `each` hears of messages and ends; an error of its own
/// ends the reading. False where `stop` said so.
///
/// # Errors
/// What `each` said, [`Error::ChangelogTrimmed`] where a span's beginning is gone, or [`Error::ChangelogRead`].
pub(super) fn read<E: From<Error>>(
    settings: &Settings,
    spans: Vec<Span>,
    stop: &dyn Fn() -> bool,
    each: impl FnMut(Read<'_>) -> Result<(), E>,
) -> Result<bool, E> {
    let failed = failed(settings);
    read_with(&config(settings, spans.len()), &failed, spans, stop, each)
}

/// What it means that a changelog cannot be read.
pub(super) fn failed(settings: &Settings) -> impl Fn(&Span, Unread<'_>) -> Error {
    |span, what| {
        let (topic, partition) = (span.topic.clone(), span.partition);
        match what {
            Unread::Gone(_) => Error::ChangelogTrimmed { topic, partition },
            Unread::NoRight(why) => Right::Changelog(&topic).error(settings, why.to_owned()),
            Unread::Failed(why) => Error::ChangelogRead {
                topic,
                partition,
                why: why.to_owned(),
            },
        }
    }
}

/// Reads with a client of that configuration; `failed` makes the error of a span that cannot be read.
///
/// # Errors
/// What `each` or `failed` said.
pub(super) fn read_with<E: From<Error>>(
    config: &rdkafka::ClientConfig,
    failed: &dyn Fn(&Span, Unread<'_>) -> Error,
    spans: Vec<Span>,
    stop: &dyn Fn() -> bool,
    mut each: impl FnMut(Read<'_>) -> Result<(), E>,
) -> Result<bool, E> {
    let mut left = Vec::new();
    for (number, span) in spans.into_iter().enumerate() {
        if span.from >= span.to {
            each(Read::End {
                span: number,
                next: span.from,
            })?;
        } else {
            left.push((number, span));
        }
    }
    if left.is_empty() {
        return Ok(true);
    }
    use RDKafkaErrorCode::{AutoOffsetReset, PartitionEOF, TopicAuthorizationFailed};
    let refused = |error: rdkafka::error::KafkaError| Error::Config(crate::error::chain(&error));
    let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet).map_err(refused)?;
    let consumer = Arc::new(consumer);
    let signal = Arc::new(Signal::default());
    let mut list = TopicPartitionList::new();
    let mut open = Vec::new();
    for (number, span) in left {
        let queues = consumer
            .split_partition_queue(&span.topic, span.partition)
            .zip(RawQueue::new(&consumer, &span.topic, span.partition));
        let Some((mut split, queue)) = queues else {
            return Err(failed(&span, Unread::Failed("it has no queue")).into());
        };
        let wake = Arc::clone(&signal);
        split.set_nonempty_callback(move || wake.raise());
        list.add_partition_offset(&span.topic, span.partition, KafkaOffset::Offset(span.from))
            .map_err(refused)?;
        open.push(Open {
            number,
            next: span.from,
            span,
            queue,
            _split: split,
        });
    }
    consumer.assign(&list).map_err(refused)?;
    let mut said = clock::now();
    let mut heard = said;
    while !open.is_empty() {
        if stop() {
            return Ok(false);
        }
        // Serves the client's own errors; messages do not come this way.
        if let Some(Err(error)) = consumer.poll(Duration::ZERO) {
            tracing::debug!(why = %crate::error::chain(&error), "reading");
            if let (Some(TopicAuthorizationFailed), Some(of)) = (error.rdkafka_error_code(), open.first()) {
                return Err(failed(&of.span, Unread::NoRight(&crate::error::chain(&error))).into());
            }
        }
        let mut read_any = false;
        let mut ended = Vec::new();
        for (place, of) in open.iter_mut().enumerate() {
            for message in of.queue.take(TAKE) {
                read_any = true;
                match message {
                    Ok(message) => {
                        of.next = message.offset().0 + 1;
                        each(Read::Message {
                            span: of.number,
                            message: &message,
                        })?;
                    }
                    Err(at) => match at.error.rdkafka_error_code() {
                        // The end of what is committed, which may have hidden the rest until now.
                        Some(PartitionEOF) => {
                            of.next = of.next.max(at.offset.0);
                            if of.span.to == Span::TAIL {
                                each(Read::Stands {
                                    span: of.number,
                                    next: of.next,
                                })?;
                            }
                        }
                        Some(AutoOffsetReset) => {
                            let why = crate::error::chain(&at.error);
                            return Err(failed(&of.span, Unread::Gone(&why)).into());
                        }
                        Some(TopicAuthorizationFailed) => {
                            let why = crate::error::chain(&at.error);
                            return Err(failed(&of.span, Unread::NoRight(&why)).into());
                        }
                        // What the client cannot mend comes back, and the reader goes on waiting.
                        _ => {
                            tracing::warn!(topic = %of.span.topic, why = %crate::error::chain(&at.error), "reading")
                        }
                    },
                }
            }
            if of.next >= of.span.to {
                ended.push(place);
            }
        }
        for place in ended.into_iter().rev() {
            let of = open.swap_remove(place);
            each(Read::End {
                span: of.number,
                next: of.next,
            })?;
        }
        let now = clock::now();
        if read_any {
            heard = now;
        } else {
            each(Read::Rest)?;
            signal.wait(REST);
        }
        if now.saturating_duration_since(heard) > GIVE_UP
            && let Some(of) = open.iter().find(|of| of.span.to != Span::TAIL)
        {
            let why = format!("nothing of it has come for {GIVE_UP:?}: it stands at {}", of.next);
            return Err(failed(&of.span, Unread::Failed(&why)).into());
        }
        if now.saturating_duration_since(said) > SAY_EVERY {
            said = now;
            for of in open.iter().filter(|of| of.span.to != Span::TAIL) {
                let percent = 100 * (of.next - of.span.from) / (of.span.to - of.span.from).max(1);
                tracing::info!(
                    topic = %of.span.topic, partition = of.span.partition, at = of.next, to = of.span.to, percent,
                    "reading; where it stands still, the brokers are away, or an abandoned transaction has to time out first"
                );
            }
        }
    }
    Ok(true)
}

/// What a reading of so many partitions prefetches, all together.
const PREFETCH_KIB: usize = 64 << 10;

pub(super) fn config(settings: &Settings, spans: usize) -> rdkafka::ClientConfig {
    let mut config = super::producer::without_consumer_properties(settings);
    // Never joined: the client wants the name of a group before it takes an assignment, and this one we may read.
    config.set("group.id", &settings.group);
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "error");
    config.set("isolation.level", "read_committed");
    config.set("enable.partition.eof", "true");
    config.set("allow.auto.create.topics", "false");
    config.set("fetch.queue.backoff.ms", "10");
    config.set("fetch.wait.max.ms", "50");
    // Each partition has a queue of its own, and this counts for each.
    let kib = (PREFETCH_KIB / spans.max(1)).clamp(1_024, 32_768);
    config.set("queued.max.messages.kbytes", kib.to_string());
    config.set("fetch.message.max.bytes", (kib << 10).min(4 << 20).to_string());
    config
}
