//! Raw calls of librdkafka, where the client library's own surface lacks them: the only unsafe code of hapax.
//!
//! A partition queue polled message by message costs two reads of the clock for each; taken in batches it costs two for
//! all of them, a third of what a poll costs (`docs/performance.md`). Only for *partition* queues: on the consumer's own
//! queue the same call can return past a rebalance. And the client library hides which generation and member a commit
//! states, which has to be checked before each transaction (schedule 2).
#![expect(unsafe_code, reason = "see the module")]

use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use rdkafka::bindings::rd_kafka_timestamp_type_t as RDKafkaTimestampType;
use rdkafka::bindings::{
    rd_kafka_consume_batch_queue, rd_kafka_consumer_group_metadata, rd_kafka_consumer_group_metadata_destroy,
    rd_kafka_consumer_group_metadata_generation_id, rd_kafka_consumer_group_metadata_member_id,
    rd_kafka_header_get_all, rd_kafka_message_destroy, rd_kafka_message_headers, rd_kafka_message_timestamp,
    rd_kafka_queue_destroy, rd_kafka_queue_get_partition,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{IsError as _, KafkaError};
use rdkafka::types::{RDKafkaHeaders, RDKafkaMessage, RDKafkaQueue, RDKafkaRespErr};

use crate::message::{Header, Offset};

/// Messages that one call asks for at most: their pointers lie on the stack.
const CALL_MAX: usize = 256;

/// One more handle of a partition's queue.
pub(super) struct RawQueue<C: ConsumerContext + 'static> {
    queue: NonNull<RDKafkaQueue>,
    /// The queue's client, which has to live for longer.
    _consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues are made for use from any thread; `take` needs `&mut self`, so there is one at a time.
unsafe impl<C: ConsumerContext> Send for RawQueue<C> {}

impl<C: ConsumerContext> RawQueue<C> {
    /// The queue of that partition, `None` where the client has none. It is not split from the consumer's here.
    pub(super) fn new(consumer: &Arc<BaseConsumer<C>>, topic: &str, partition: i32) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client is alive (we hold the consumer) and the name is a C string; what comes back is a handle of
        // our own, or null.
        let queue = unsafe {
            rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition)
        };
        Some(Self {
            queue: NonNull::new(queue)?,
            _consumer: Arc::clone(consumer),
        })
    }

    /// What the queue has now, up to `messages_max` (and [`CALL_MAX`]), without waiting for more.
    pub(super) fn take(&mut self, messages_max: usize) -> Messages<'_> {
        let mut found = [ptr::null_mut(); CALL_MAX];
        let messages_max = messages_max.min(CALL_MAX);
        // SAFETY: the array has room for as many pointers as are asked for.
        let count =
            unsafe { rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, found.as_mut_ptr(), messages_max) };
        Messages {
            found,
            // Negative only where the queue is of another kind; then nothing was written.
            count: usize::try_from(count).unwrap_or(0),
            next: 0,
            queue: PhantomData,
        }
    }
}

impl<C: ConsumerContext> Drop for RawQueue<C> {
    fn drop(&mut self) {
        // SAFETY: our own handle, used by nobody after this.
        unsafe { rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// What one call took. Each message is given back to librdkafka when it, or the rest of them with this, is dropped.
pub(super) struct Messages<'q> {
    found: [*mut RDKafkaMessage; CALL_MAX],
    count: usize,
    next: usize,
    queue: PhantomData<&'q ()>,
}

impl<'q> Iterator for Messages<'q> {
    type Item = Result<Message<'q>, Failed>;

    fn next(&mut self) -> Option<Self::Item> {
        let pointer = self.found.get(..self.count)?.get(self.next)?;
        self.next += 1;
        let message = Message {
            message: NonNull::new(*pointer)?,
            queue: PhantomData,
        };
        // SAFETY: librdkafka wrote this pointer, and nobody else has it.
        let error = unsafe { message.message.as_ref() }.err;
        Some(match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(message),
            error => Err(Failed {
                offset: message.offset(),
                error: KafkaError::MessageConsumption(error.into()),
            }),
        })
    }
}

impl Drop for Messages<'_> {
    fn drop(&mut self) {
        for rest in self {
            drop(rest);
        }
    }
}

/// What a queue has besides messages.
#[derive(Debug)]
pub(super) struct Failed {
    /// Where it happened; for the end of a partition that is the offset of what comes next.
    pub(super) offset: Offset,
    pub(super) error: KafkaError,
}

/// One message, in the memory of librdkafka.
pub(super) struct Message<'q> {
    message: NonNull<RDKafkaMessage>,
    queue: PhantomData<&'q ()>,
}

impl Message<'_> {
    fn message(&self) -> &RDKafkaMessage {
        // SAFETY: ours until it is destroyed in `drop`.
        unsafe { self.message.as_ref() }
    }

    pub(super) fn partition(&self) -> i32 {
        self.message().partition
    }

    pub(super) fn offset(&self) -> Offset {
        Offset(self.message().offset)
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        let message = self.message();
        // SAFETY: key and length belong together, and live as long as the message.
        unsafe { bytes(message.key, message.key_len) }
    }

    pub(super) fn payload(&self) -> Option<&[u8]> {
        let message = self.message();
        // SAFETY: as for the key.
        unsafe { bytes(message.payload, message.len) }
    }

    /// Milliseconds since the epoch, `None` where the broker has none.
    pub(super) fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = RDKafkaTimestampType::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive, and `kind` is written to only during the call.
        let timestamp_ms = unsafe { rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (kind != RDKafkaTimestampType::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && timestamp_ms != -1)
            .then_some(timestamp_ms)
    }

    /// The headers in the order of the message. A name that is not UTF-8 becomes the replacement character: no source
    /// can name it, and it is nothing that the whole partition should stop for.
    pub(super) fn headers(&self) -> impl Iterator<Item = Header<'_>> {
        let mut headers: *mut RDKafkaHeaders = ptr::null_mut();
        // SAFETY: the message is alive and used by one thread; the list that it fills in lives as long as it.
        let error = unsafe { rd_kafka_message_headers(self.message.as_ptr(), &raw mut headers) };
        let list = NonNull::new(headers).filter(|_| !error.is_error());
        (0..).map_while(move |index| header(list?, index))
    }
}

impl Drop for Message<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, and nothing borrowed from it is left.
        unsafe { rd_kafka_message_destroy(self.message.as_ptr()) }
    }
}

/// The header at that place. The caller holds the message that `list` belongs to for `'m`.
fn header<'m>(list: NonNull<RDKafkaHeaders>, index: usize) -> Option<Header<'m>> {
    let mut name = ptr::null();
    let mut value: *const c_void = ptr::null();
    let mut len = 0;
    // SAFETY: the list is alive; the three are written to where the answer is no error.
    let error =
        unsafe { rd_kafka_header_get_all(list.as_ptr(), index, &raw mut name, &raw mut value, &raw mut len) };
    if error.is_error() {
        return None;
    }
    // SAFETY: librdkafka ends every name with a NUL, and a value's length is its own.
    let (name, value) = unsafe { (CStr::from_ptr(name), bytes(value, len)) };
    Some(Header {
        name: name.to_str().unwrap_or("\u{fffd}"),
        value,
    })
}

/// Which member of its group a consumer is at this moment, by the number of the generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberId {
    /// Negative where it is no member: Kafka accepts the commit of such a one unchecked.
    pub(super) generation: i32,
    pub(super) member: String,
}

/// What a commit of that consumer would state now; `None` where it has no group.
pub(super) fn member_id<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<MemberId> {
    // SAFETY: the client is alive. What comes back is ours, or null.
    let metadata = NonNull::new(unsafe { rd_kafka_consumer_group_metadata(consumer.client().native_ptr()) })?;
    // SAFETY: alive until it is destroyed below; the id is a C string inside it, and is copied.
    unsafe {
        let generation = rd_kafka_consumer_group_metadata_generation_id(metadata.as_ptr());
        let member = rd_kafka_consumer_group_metadata_member_id(metadata.as_ptr());
        let member = if member.is_null() {
            String::new()
        } else {
            CStr::from_ptr(member).to_string_lossy().into_owned()
        };
        rd_kafka_consumer_group_metadata_destroy(metadata.as_ptr());
        Some(MemberId { generation, member })
    }
}

/// Null is nothing, which is not the same as empty.
///
/// # Safety
/// Where it is not null, `start` points at `len` bytes that live for `'m` and do not change.
unsafe fn bytes<'m>(start: *const c_void, len: usize) -> Option<&'m [u8]> {
    // SAFETY: the caller's promise.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), len) })
}
