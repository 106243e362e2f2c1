//! Transactions: one producer that writes the groups of the replicated journal.
//!
//! Nothing here waits in slices: the client library's `flush` costs 100 ms a transaction, so this waits for the delivery
//! reports itself, and commits when all of them are there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::changelog::{self, Read, Span};
use super::member::Member;
use super::rights::{Right, code, missing, unanswered};
use crate::broker::{CommitMark, Error};
use crate::clock::{self, Instant};
use crate::config::Settings;
use crate::journal::frame::{self, Session};
use crate::journal::replicated::{Ends, Failed, Group, Transactions};
use crate::store::{PartitionId, StoreId, TopicId};
use deliveries::{Deliveries, send, send_letter, wait};

mod deliveries;

/// Which topic is which.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) input: String,
    pub(crate) changelog: String,
}

/// What the producer is made from.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) settings: Arc<Settings>,
    pub(crate) store_id: StoreId,
    pub(crate) topics: BTreeMap<TopicId, Names>,
    pub(crate) member: Member,
    /// How long the broker keeps a transaction open that nobody ends, and how long one call waits.
    pub(crate) timeout: Duration,
}

/// See the module.
pub(crate) struct KafkaTransactions {
    parts: Parts,
    producer: Option<ThreadedProducer<Deliveries>>,
    /// Of this producer alone.
    unique: [u8; 16],
    /// Up to where each partition of the changelogs was written by this process.
    reached: Mutex<BTreeMap<(String, i32), i64>>,
    /// Topics that were on the cluster when they were asked for.
    there: BTreeSet<String>,
}

/// So often, and in that distance, a topic has to be reported missing before it counts as deleted.
const GONE_ASKED: usize = 5;
const GONE_AGAIN: Duration = Duration::from_millis(500);

impl KafkaTransactions {
    /// Makes the producer and ends whatever the last one of this store left open. Blocks.
    ///
    /// # Errors
    /// [`Error::Config`] where the client refuses a property, [`Error::Unreachable`] where the broker does not answer or
    /// gives no right to transactions.
    pub(crate) fn start(parts: Parts) -> Result<Self, Error> {
        let mut made = Self {
            parts,
            producer: None,
            unique: [0; 16],
            reached: Mutex::default(),
            there: BTreeSet::new(),
        };
        made.init()?;
        Ok(made)
    }

    fn init(&mut self) -> Result<(), Error> {
        // The old one first: two of one name in one process would end each other.
        self.producer = None;
        let Parts {
            settings,
            store_id,
            timeout,
            ..
        } = &self.parts;
        let mut config = super::producer::producer_config(settings);
        config.set("transactional.id", format!("hapax-{}-{store_id}", settings.group));
        let timeout_ms = clock::millis(*timeout).to_string();
        config.set("transaction.timeout.ms", &timeout_ms);
        config.set("delivery.timeout.ms", &timeout_ms);
        // A group is sent as a whole and waited for: lingering would only add to the wait.
        config.set("linger.ms", "0");
        let refused = |error: KafkaError| Error::Config(crate::error::chain(&error));
        let producer: ThreadedProducer<Deliveries> = config
            .create_with_context(Deliveries::default())
            .map_err(refused)?;
        producer
            .init_transactions(*timeout)
            .map_err(unanswered(settings, "preparing transactions"))?;
        self.producer = Some(producer);
        self.unique = Session::create().0;
        Ok(())
    }

    fn write(
        &self,
        producer: &ThreadedProducer<Deliveries>,
        member: &rdkafka::consumer::ConsumerGroupMetadata,
        group: &Group,
        deadline: Instant,
    ) -> Result<Ends, Cause> {
        let deliveries = producer.context();
        let transaction = deliveries.begin();
        producer.begin_transaction()?;
        for (part, (id, frame)) in group.frames.iter().enumerate() {
            let names = self.names(*id)?;
            let key = self.key(transaction, part);
            let record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&names.changelog, transaction)
                .partition(id.partition)
                .key(key.as_slice())
                .payload(frame);
            send(producer, record, deadline)?;
        }
        for letter in &group.letters {
            send_letter(producer, letter, transaction, deadline)?;
        }
        crate::crash::point("in-transaction");
        if !group.letters.is_empty() {
            crate::crash::point("outputs-in-transaction");
        }
        let written = wait(producer, deadline)?;
        self.goes_on(&written)?;
        crate::crash::point("before-offsets");
        if !crate::crash::is_off("offsets") || have_moved(group) {
            producer
                .send_offsets_to_transaction(&self.offsets(group)?, member, left(deadline))
                .map_err(Cause::Offsets)?;
        }
        crate::crash::point("before-commit-transaction");
        producer
            .commit_transaction(left(deadline))
            .map_err(Cause::Commit)?;
        let mut ends = Ends::new();
        for id in group.points.keys() {
            let names = self.names(*id)?;
            if let Some(next) = written.get(&(names.changelog.clone(), id.partition)) {
                ends.insert(*id, *next);
            }
        }
        Ok(ends)
    }

    /// A changelog that has grown has partitions of which this client has not heard, and would not hear for minutes. One
    /// that is not there any more was deleted: why nothing can be written.
    fn look_again(&self, producer: &ThreadedProducer<Deliveries>, cause: &Cause) -> Option<String> {
        if !cause.may_be_a_topic_that_is_gone() {
            return None;
        }
        for names in self.parts.topics.values() {
            let is_gone = || is_there(producer, &names.changelog).map(|is_there| !is_there);
            // A broker that has just started may not have heard of it yet.
            let is_gone = (0..GONE_ASKED).all(|turn| {
                if turn > 0 {
                    thread::park_timeout(GONE_AGAIN);
                }
                is_gone() == Some(true)
            });
            if is_gone {
                return Some(format!(
                    "changelog topic {:?} of topic {:?} is gone: it was deleted while hapax ran, and the outcomes in it with it; \
                     what was not recorded is not committed. A start makes a new one, and finds its partitions cold: set `cold = \
                     \"rebuild\"` to read their past back from {:?} first",
                    names.changelog, names.input, names.input
                ));
            }
        }
        None
    }

    /// Every write lies above what was written before. Where it does not, somebody has deleted the changelog and made it
    /// again: what is in it by now is not the past, and would pass for it.
    fn goes_on(&self, written: &BTreeMap<(String, i32), i64>) -> Result<(), Cause> {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        for ((topic, partition), next) in written {
            let place = (topic.clone(), *partition);
            let is_changelog = self.parts.topics.values().any(|names| names.changelog == *topic);
            let before = reached.get(&place).copied().unwrap_or(0);
            if is_changelog && *next <= before {
                return Err(Cause::Refused(format!(
                    "changelog topic {topic:?} was made again while hapax ran, or has lost its end: partition {partition} goes on at {next}, \
                     and was written up to {before}; nothing was written there. Start again: its partitions are cold, `cold` decides"
                )));
            }
            if is_changelog {
                reached.insert(place, *next);
            }
        }
        Ok(())
    }

    /// Unlike any other: where a changelog is compacted too, a record without a key is refused, and one with the key of
    /// another would replace it.
    fn key(&self, transaction: usize, part: usize) -> [u8; 32] {
        let mut key = [0; 32];
        let (producer, rest) = key.split_at_mut(16);
        let (of, place) = rest.split_at_mut(8);
        producer.copy_from_slice(&self.unique);
        of.copy_from_slice(&(transaction as u64).to_be_bytes());
        place.copy_from_slice(&(part as u64).to_be_bytes());
        key
    }

    /// What went wrong, with the right that is missing where that is it.
    fn why(&self, cause: &Cause, group: &Group) -> String {
        let ids = group.frames.iter().map(|(id, _)| id);
        let changelogs = ids
            .filter_map(|id| self.parts.topics.get(&id.topic))
            .map(|names| &names.changelog);
        let letters = group.letters.iter().map(|letter| &letter.topic);
        let written: BTreeSet<_> = changelogs.chain(letters).map(String::as_str).collect();
        let written: Vec<_> = written.into_iter().collect();
        let right = match (cause, missing(cause.code())) {
            // Offsets take the right to read what they are of; the rest is written.
            (Cause::Kafka(_), Some(Right::Inputs)) => Some(Right::Write(&written)),
            (_, right) => right,
        };
        match right {
            Some(right) => crate::error::chain(&right.error(&self.parts.settings, cause.text())),
            None => cause.text(),
        }
    }

    fn names(&self, id: PartitionId) -> Result<&Names, Cause> {
        let names = self.parts.topics.get(&id.topic);
        names.ok_or_else(|| Cause::Refused(format!("{id:?} has no changelog")))
    }

    fn offsets(&self, group: &Group) -> Result<TopicPartitionList, Cause> {
        let mut list = TopicPartitionList::new();
        for (id, point) in &group.points {
            let mark = CommitMark {
                store_id: self.parts.store_id,
                time_ms: point.time_ms,
            };
            let mut element = list.add_partition(&self.names(*id)?.input, id.partition);
            element.set_offset(KafkaOffset::Offset(point.next.0))?;
            element.set_metadata(mark.to_metadata());
        }
        Ok(list)
    }
}

impl Transactions for KafkaTransactions {
    type Member = rdkafka::consumer::ConsumerGroupMetadata;

    fn member(&mut self) -> Result<Self::Member, String> {
        self.parts.member.metadata()
    }

    fn commit(&mut self, member: &Self::Member, group: &Group) -> Result<Ends, Failed> {
        let Some(producer) = &self.producer else {
            return Err(Failed::Unknown("there is no producer".into()));
        };
        let deadline = clock::now() + self.parts.timeout;
        let cause = match self.write(producer, member, group, deadline) {
            Ok(ends) => return Ok(ends),
            Err(cause) => cause,
        };
        self.parts.member.note(cause.code());
        if cause.may_be_a_topic_that_is_gone() {
            // Each is asked for again before something is written to it.
            self.there.clear();
        }
        let gone = self.look_again(producer, &cause);
        if let Some(why) = gone {
            // Nothing is left that could be aborted, but the offsets; the broker does it.
            return Err(Failed::Refused(why));
        }
        let why = self.why(&cause, group);
        let is_over = match &cause {
            // Begun, and not committed: to be aborted, unless the producer is done for.
            Cause::Kafka(KafkaError::Transaction(error))
            | Cause::Offsets(KafkaError::Transaction(error))
            | Cause::Commit(KafkaError::Transaction(error)) => {
                if error.is_fatal() {
                    return Err(Failed::Unknown(why));
                }
                // A commit that only took too long may still end either way.
                !matches!(cause, Cause::Commit(_)) || error.txn_requires_abort()
            }
            Cause::Commit(_) => false,
            Cause::Kafka(_) | Cause::Offsets(_) | Cause::Refused(_) | Cause::Late(_) => true,
        };
        if !is_over {
            return Err(Failed::Unknown(why));
        }
        let aborted = producer.abort_transaction(self.parts.timeout);
        // Whatever became of it: it was not committed, and would not be the next time.
        if matches!(cause, Cause::Refused(_)) || cause.is_hopeless() {
            return Err(Failed::Refused(why));
        }
        match aborted {
            Ok(()) => Err(Failed::Aborted(why)),
            Err(error) => Err(Failed::Unknown(format!(
                "{why}; then aborting: {}",
                crate::error::chain(&error)
            ))),
        }
    }

    fn missing(&mut self, topics: &BTreeSet<String>) -> BTreeSet<String> {
        let Some(producer) = &self.producer else {
            return BTreeSet::new();
        };
        let mut missing = BTreeSet::new();
        for topic in topics.difference(&self.there.clone()) {
            match is_there(producer, topic) {
                Some(true) => drop(self.there.insert(topic.clone())),
                Some(false) => drop(missing.insert(topic.clone())),
                None => {}
            }
        }
        missing
    }

    fn renew(&mut self) -> Result<(), String> {
        self.init().map_err(|error| crate::error::chain(&error))
    }

    fn find(&mut self, session: Session, number: u64, from: &Ends) -> Result<Option<Ends>, String> {
        let settings = &self.parts.settings;
        let deadline = clock::now() + 2 * self.parts.timeout;
        let ends = changelog::Ends::new(settings).map_err(|error| crate::error::chain(&error))?;
        let (mut spans, mut ids) = (Vec::new(), Vec::new());
        for (id, from) in from {
            let Some(names) = self.parts.topics.get(&id.topic) else {
                return Err(format!("{id:?} has no changelog"));
            };
            let (low, high) = ends
                .of(&names.changelog, id.partition)
                .map_err(|error| crate::error::chain(&error))?;
            spans.push(Span {
                topic: names.changelog.clone(),
                partition: id.partition,
                from: (*from).max(low),
                to: high,
            });
            ids.push(*id);
        }
        let mut found = Ends::new();
        let whole = changelog::read(settings, spans, &|| clock::now() > deadline, |read| {
            if let Read::Message { span, message } = read
                && let Some(id) = ids.get(span)
                && let Ok((head, _)) = frame::decode(message.payload().unwrap_or_default(), *id)
                && (head.session, head.number) == (session, number)
            {
                found.insert(*id, message.offset().0 + 1);
            }
            Ok::<(), Error>(())
        });
        match whole {
            Ok(true) => Ok((!found.is_empty()).then_some(found)),
            Ok(false) => Err("the changelog could not be read to its end in time".into()),
            Err(error) => Err(crate::error::chain(&error)),
        }
    }
}

/// Whether a topic is on the cluster, where that is answered.
fn is_there(producer: &ThreadedProducer<Deliveries>, topic: &str) -> Option<bool> {
    let found = producer
        .client()
        .fetch_metadata(Some(topic), super::ANSWER_MAX)
        .ok()?;
    let error = found.topics().first()?.error().map(RDKafkaErrorCode::from);
    let is_gone = matches!(
        error,
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
    );
    Some(!is_gone)
}

/// Why a transaction was not committed.
enum Cause {
    Kafka(KafkaError),
    /// Stating the offsets.
    Offsets(KafkaError),
    /// The commit itself: it may have happened.
    Commit(KafkaError),
    Refused(String),
    /// Not everything was acknowledged in time.
    Late(String),
}

impl From<KafkaError> for Cause {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}

impl Cause {
    fn code(&self) -> Option<RDKafkaErrorCode> {
        match self {
            Self::Kafka(error) | Self::Offsets(error) | Self::Commit(error) => code(error),
            Self::Refused(_) | Self::Late(_) => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Kafka(error) | Self::Offsets(error) | Self::Commit(error) => crate::error::chain(error),
            Self::Refused(why) | Self::Late(why) => why.clone(),
        }
    }

    /// What a client says that cannot reach a topic: also that nothing of it was acknowledged in time.
    fn may_be_a_topic_that_is_gone(&self) -> bool {
        use RDKafkaErrorCode::{MessageTimedOut, UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
        let codes = [
            MessageTimedOut,
            UnknownPartition,
            UnknownTopic,
            UnknownTopicOrPartition,
        ];
        matches!(self, Self::Late(_)) || self.code().is_some_and(|code| codes.contains(&code))
    }

    /// Whether the same group would fail again, however often it is tried.
    fn is_hopeless(&self) -> bool {
        use RDKafkaErrorCode::{
            GroupAuthorizationFailed, MessageSizeTooLarge, TopicAuthorizationFailed,
            TransactionalIdAuthorizationFailed,
        };
        matches!(
            self.code(),
            Some(
                MessageSizeTooLarge
                    | TopicAuthorizationFailed
                    | GroupAuthorizationFailed
                    | TransactionalIdAuthorizationFailed
            )
        )
    }
}

/// With the rule switched off that every transaction carries offsets: only those that moved a commit point do.
fn have_moved(group: &Group) -> bool {
    static LAST: Mutex<BTreeMap<PartitionId, i64>> = Mutex::new(BTreeMap::new());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    group.points.iter().fold(false, |moved, (id, point)| {
        moved | (last.insert(*id, point.next.0) != Some(point.next.0))
    })
}

fn left(deadline: Instant) -> Duration {
    // 0 would mean "do not wait" to the client, which is another question.
    deadline
        .saturating_duration_since(clock::now())
        .max(Duration::from_millis(1))
}
