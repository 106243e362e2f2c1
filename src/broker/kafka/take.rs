//! Taking: what a partition's queue has, copied into one batch.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use super::callbacks::Callbacks;
use crate::message::{Batch, BatchBuilder, Header, Offset};
use crate::store::PartitionId;

/// Messages of one batch at most: enough to share one look-up and one sync, few enough to stay in the cache.
pub(super) const BATCH_MESSAGES_MAX: usize = 1_024;

/// A batch ends here, or with the message that passes it.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A partition that is fetched.
pub(super) struct Queue {
    pub(super) topic: Arc<str>,
    pub(super) id: PartitionId,
    pub(super) queue: PartitionQueue<Callbacks>,
}

/// A batch, if there was anything, and the error that ended it, if one did.
pub(super) struct Taken {
    pub(super) batch: Option<Batch>,
    pub(super) error: Option<KafkaError>,
}

/// Copies what the queue has, up to a batch.
pub(super) fn take(queue: &Queue, messages_max: usize) -> Taken {
    let mut batch: Option<BatchBuilder> = None;
    let error = loop {
        if batch
            .as_ref()
            .is_some_and(|b| b.len() >= messages_max || b.bytes() >= BATCH_BYTES_MAX)
        {
            break None;
        }
        match queue.queue.poll(Duration::ZERO) {
            None => break None,
            Some(Err(error)) => break Some(error),
            Some(Ok(message)) => {
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
        }
    };
    let batch = batch.filter(|batch| !batch.is_empty()).map(BatchBuilder::finish);
    Taken { batch, error }
}

fn push(batch: &mut BatchBuilder, message: &BorrowedMessage<'_>) {
    let headers = message
        .headers()
        .map(|headers| headers.iter())
        .into_iter()
        .flatten();
    batch.push(
        Offset(message.offset()),
        message.timestamp().to_millis(),
        message.key(),
        message.payload(),
        headers.map(|header| Header {
            name: header.key,
            value: header.value,
        }),
    );
}
