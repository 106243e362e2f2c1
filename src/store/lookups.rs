//! Look-ups off the async runtime: a thread or a few, each of which answers a batch of keys at a time.
//!
//! No RocksDB call runs on a runtime's worker: a read that meets a slow disk would starve every task beside it.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use super::{Error, Hit, PartitionId, Store};
use crate::message::Offset;
use crate::outcome::Open;
use crate::token::TokenKey;

/// What was found for one batch; the keys come back so that their buffer can serve again.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) keys: Vec<TokenKey>,
    pub(crate) hits: Vec<Hit>,
}

/// The answer to one batch.
pub(crate) type Answer = oneshot::Receiver<Result<Found, Error>>;

/// The answer to [`Lookups::load_open`].
pub(crate) type LoadingOpen = oneshot::Receiver<Result<Vec<Open>, Error>>;

enum Question {
    LookUp {
        partition: PartitionId,
        since_ms: i64,
        keys: Vec<TokenKey>,
        reply: oneshot::Sender<Result<Found, Error>>,
    },
    LoadOpen {
        partition: PartitionId,
        names: Vec<(TokenKey, Offset)>,
        reply: oneshot::Sender<Result<Vec<Open>, Error>>,
    },
}

/// Threads at most. Where every token is known a look-up costs more than all else of its message, and one thread would be
/// what the consumer waits for.
const THREADS_MAX: usize = 4;

/// The handle of the threads, which end with its last handle. The questions of one partition are answered in order.
#[derive(Clone)]
pub(crate) struct Lookups(Kind);

#[derive(Clone)]
enum Kind {
    Threads(Arc<[mpsc::Sender<Question>]>),
    #[cfg(feature = "testing")]
    Inline(Arc<dyn Store>),
    #[cfg(all(test, feature = "testing"))]
    Late(Arc<dyn Store>, std::time::Duration),
}

fn answer(store: &dyn Store, question: Question) {
    // Nobody waits any more where the assignment ended meanwhile.
    match question {
        Question::LookUp {
            partition,
            since_ms,
            keys,
            reply,
        } => {
            let mut hits = Vec::new();
            let answer = store.look_up(partition, since_ms, &keys, &mut hits);
            let _ = reply.send(answer.map(|()| Found { keys, hits }));
        }
        Question::LoadOpen {
            partition,
            names,
            reply,
        } => {
            let _ = reply.send(store.load_open(partition, &names));
        }
    }
}

#[cfg(all(test, feature = "testing"))]
fn answer_late(store: &dyn Store, mut question: Question, delay: std::time::Duration) {
    fn put_off<T: Send + 'static>(reply: &mut oneshot::Sender<T>, delay: std::time::Duration) {
        let (now, answered) = oneshot::channel();
        let reply = std::mem::replace(reply, now);
        let until = crate::clock::now() + delay;
        tokio::spawn(async move {
            crate::clock::sleep_until(until).await;
            if let Ok(answer) = answered.await {
                let _ = reply.send(answer);
            }
        });
    }
    match &mut question {
        Question::LookUp { reply, .. } => put_off(reply, delay),
        Question::LoadOpen { reply, .. } => put_off(reply, delay),
    }
    answer(store, question);
}

impl Lookups {
    /// Starts the threads on that store: one for each processor, up to four.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(store: &Arc<dyn Store>) -> std::io::Result<(Self, Vec<thread::JoinHandle<()>>)> {
        let count = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
        let (mut inlets, mut threads) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for _ in 0..count {
            let (questions, inbox) = mpsc::channel::<Question>();
            let store = Arc::clone(store);
            let thread = thread::Builder::new()
                .name("hapax-lookups".into())
                .spawn(move || inbox.into_iter().for_each(|question| answer(&*store, question)))?;
            inlets.push(questions);
            threads.push(thread);
        }
        Ok((Self(Kind::Threads(inlets.into())), threads))
    }

    /// Answers in the caller's thread: for a memory store, and for tests that want one order of events.
    #[cfg(feature = "testing")]
    pub(crate) fn inline(store: Arc<dyn Store>) -> Self {
        Self(Kind::Inline(store))
    }

    /// The same, and each answer comes that much later: what it says was true when it was asked.
    #[cfg(all(test, feature = "testing"))]
    pub(crate) fn late(store: Arc<dyn Store>, delay: std::time::Duration) -> Self {
        Self(Kind::Late(store, delay))
    }

    fn put(&self, partition: PartitionId, question: Question) {
        match &self.0 {
            Kind::Threads(threads) => {
                let number = usize::from(partition.topic.0) + partition.partition.unsigned_abs() as usize;
                // Where the thread is gone the question is dropped, and with it the sender that somebody waits for.
                if let Some(questions) = threads.get(number % threads.len()) {
                    drop(questions.send(question));
                }
            }
            #[cfg(feature = "testing")]
            Kind::Inline(store) => answer(&**store, question),
            #[cfg(all(test, feature = "testing"))]
            Kind::Late(store, delay) => answer_late(&**store, question, *delay),
        }
    }

    /// Asks for one batch. The answer is an error of the channel where the thread is gone.
    pub(crate) fn ask(&self, partition: PartitionId, since_ms: i64, keys: Vec<TokenKey>) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.put(
            partition,
            Question::LookUp {
                partition,
                since_ms,
                keys,
                reply,
            },
        );
        answer
    }

    /// Asks for some held messages, with their bytes.
    pub(crate) fn load_open(&self, partition: PartitionId, names: Vec<(TokenKey, Offset)>) -> LoadingOpen {
        let (reply, answer) = oneshot::channel();
        self.put(
            partition,
            Question::LoadOpen {
                partition,
                names,
                reply,
            },
        );
        answer
    }
}
