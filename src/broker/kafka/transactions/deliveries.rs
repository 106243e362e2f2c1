//! Sending the messages of one transaction, and waiting for their delivery reports.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};

use super::Cause;
use crate::broker::Letter;
use crate::clock::{self, Instant};

/// Between two looks at whether the client has given a transaction up.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits until everything that was sent is acknowledged, and says where each partition goes on. A client that has given the
/// transaction up, as where a topic may not be written to, keeps the messages or purges them, and says why when it is asked.
pub(super) fn wait(
    producer: &ThreadedProducer<Deliveries>,
    deadline: Instant,
) -> Result<BTreeMap<(String, i32), i64>, Cause> {
    loop {
        let now = clock::now();
        let cause = match producer.context().wait(deadline.min(now + LOOK_EVERY)) {
            Ok(written) => return Ok(written),
            Err(cause) => cause,
        };
        // It cannot begin inside a transaction; what it answers tells how that one is.
        match producer.begin_transaction() {
            Err(KafkaError::Transaction(error)) if error.is_fatal() || error.txn_requires_abort() => {
                return Err(Cause::Kafka(KafkaError::Transaction(error)));
            }
            _ if matches!(cause, Cause::Late(_)) && now < deadline => {}
            _ => return Err(cause),
        }
    }
}

pub(super) fn send(
    producer: &ThreadedProducer<Deliveries>,
    mut record: BaseRecord<'_, [u8], [u8], usize>,
    deadline: Instant,
) -> Result<(), Cause> {
    let deliveries = producer.context();
    loop {
        deliveries.sent();
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), same)) => {
                deliveries.unsent();
                deliveries.wait_for_one(deadline)?;
                record = same;
            }
            Err((error, _)) => {
                deliveries.unsent();
                return Err(error.into());
            }
        }
    }
}

pub(super) fn send_letter(
    producer: &ThreadedProducer<Deliveries>,
    letter: &Letter,
    transaction: usize,
    deadline: Instant,
) -> Result<(), Cause> {
    let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len());
    for (key, value) in &letter.headers {
        headers = headers.insert(Header {
            key,
            value: value.as_deref(),
        });
    }
    let mut record =
        BaseRecord::<[u8], [u8], usize>::with_opaque_to(&letter.topic, transaction).headers(headers);
    record.key = letter.key.as_deref();
    record.payload = letter.payload.as_deref();
    record.timestamp = letter.timestamp_ms;
    send(producer, record, deadline)
}

/// The delivery reports of one transaction.
#[derive(Default)]
pub(crate) struct Deliveries {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    transaction: usize,
    outstanding: usize,
    failed: Option<KafkaError>,
    /// The offset after the last, by topic and partition.
    next: BTreeMap<(String, i32), i64>,
}

impl Deliveries {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new transaction, and the number that its reports come with: those of one that was aborted may come late.
    pub(super) fn begin(&self) -> usize {
        let mut state = self.state();
        *state = State {
            transaction: state.transaction + 1,
            ..State::default()
        };
        state.transaction
    }

    fn sent(&self) {
        self.state().outstanding += 1;
    }

    fn unsent(&self) {
        self.state().outstanding -= 1;
    }

    fn wait_for_one(&self, deadline: Instant) -> Result<(), Cause> {
        let state = self.state();
        let before = state.outstanding;
        self.wait_while(state, deadline, |state| {
            state.outstanding >= before && state.failed.is_none() && before > 0
        })
        .map(drop)
    }

    /// Waits until everything that was sent is acknowledged, and says where each partition goes on.
    fn wait(&self, deadline: Instant) -> Result<BTreeMap<(String, i32), i64>, Cause> {
        let state = self.state();
        let mut state = self.wait_while(state, deadline, |state| {
            state.outstanding > 0 && state.failed.is_none()
        })?;
        match state.failed.take() {
            Some(error) => Err(error.into()),
            None => Ok(std::mem::take(&mut state.next)),
        }
    }

    fn wait_while<'s>(
        &self,
        mut state: MutexGuard<'s, State>,
        deadline: Instant,
        waits: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'s, State>, Cause> {
        while waits(&state) {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Err(Cause::Late(format!(
                    "{} messages were not acknowledged in time",
                    state.outstanding
                )));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state)
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, transaction: usize) {
        let mut state = self.state();
        if state.transaction != transaction {
            return;
        }
        state.outstanding = state.outstanding.saturating_sub(1);
        match result {
            Ok(message) => {
                let next = state
                    .next
                    .entry((message.topic().to_owned(), message.partition()))
                    .or_default();
                *next = (*next).max(message.offset() + 1);
            }
            Err((error, _)) => {
                state.failed.get_or_insert_with(|| error.clone());
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}
