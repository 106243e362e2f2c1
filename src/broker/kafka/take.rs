//! Taking: what a partition's queue has, copied into one batch.

use std::sync::Arc;

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;

use super::callbacks::Callbacks;
use super::raw::{Message, RawQueue};
use crate::message::{Batch, BatchBuilder};
use crate::store::PartitionId;

/// Messages of one batch at most: enough to share one look-up and one sync, few enough to stay in the cache.
pub(super) const BATCH_MESSAGES_MAX: usize = 1_024;

/// A batch ends about here: how many messages still fit is told from those it has.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// Messages of a batch's first call, while nothing is known of their size.
const FIRST_CALL: usize = 8;

/// A partition that is fetched.
pub(super) struct Queue {
    pub(super) topic: Arc<str>,
    pub(super) id: PartitionId,
    /// Split from the consumer's queue for as long as this is held, and wakes the poll thread.
    pub(super) _split: PartitionQueue<Callbacks>,
    pub(super) raw: RawQueue<Callbacks>,
}

/// A batch, if there was anything, and the first error among what was taken.
pub(super) struct Taken {
    pub(super) batch: Option<Batch>,
    pub(super) error: Option<KafkaError>,
}

/// Copies what the queue has, up to a batch.
pub(super) fn take(queue: &mut Queue, messages_max: usize) -> Taken {
    let mut batch: Option<BatchBuilder> = None;
    let mut error = None;
    loop {
        let fit = batch
            .as_ref()
            .map_or(FIRST_CALL, fitting)
            .min(messages_max - batch.as_ref().map_or(0, BatchBuilder::len));
        if fit == 0 {
            break;
        }
        let mut found = 0;
        for message in queue.raw.take(fit) {
            found += 1;
            match message {
                Ok(message) => {
                    let batch = batch.get_or_insert_with(|| {
                        BatchBuilder::new(
                            Arc::clone(&queue.topic),
                            message.partition(),
                            messages_max.min(256),
                            64 << 10,
                        )
                    });
                    push(batch, &message);
                }
                // What was taken after it is no worse for it, and would be lost if it were left.
                Err(failed) => error = error.or(Some(failed.error)),
            }
        }
        if found < fit || error.is_some() {
            break;
        }
    }
    let batch = batch.filter(|batch| !batch.is_empty()).map(BatchBuilder::finish);
    Taken { batch, error }
}

/// How many more messages of the size of those that it has a batch has room for.
fn fitting(batch: &BatchBuilder) -> usize {
    let each = (batch.bytes() / batch.len().max(1)).max(1);
    BATCH_BYTES_MAX.saturating_sub(batch.bytes()).div_ceil(each)
}

pub(super) fn push(batch: &mut BatchBuilder, message: &Message<'_>) {
    batch.push(
        message.offset(),
        message.timestamp_ms(),
        message.key(),
        message.payload(),
        message.headers(),
    );
}
