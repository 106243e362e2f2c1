//! Wake: what a partition task waits for, the most urgent first.

use tokio::sync::oneshot::error::RecvError;

use super::Partition;
use super::record::Unsent;
use super::work::WorkId;
use crate::act::Order;
use crate::attempt::Event;
use crate::clock;
use crate::message::Batch;
use crate::outcome::Open;
use crate::store::Error;
use crate::store::lookups::Found;

use futures_util::StreamExt as _;

/// Held messages with their bytes.
type Records = Result<Result<Vec<Open>, Error>, RecvError>;

/// What wakes a partition task.
pub(super) enum Wake {
    /// Something was ordered, or (`false`) whoever orders is gone.
    Control(bool),
    Durable,
    Judged(Result<Result<Found, Error>, RecvError>),
    Attempt(WorkId, Event),
    Sent(WorkId, Result<(), Unsent>),
    Leaving(Records),
    Held(Records),
    /// The held messages that verdicts are about.
    Decided(Records),
    Order(Order),
    Timer,
    Batch(Option<Batch>),
}

impl Partition {
    pub(super) async fn next_wake(&mut self) -> Wake {
        let takes = self.takes();
        let due = self.next_due();
        let waits = self.waits_for_breaker();
        let takes_orders = self.takes_orders();
        let attempts = &mut self.attempts;
        let asked = &mut self.asked;
        let leaving = &mut self.leaving;
        let loads = &mut self.loads;
        let verdicts = self.acting.as_mut().and_then(|acting| acting.loading.as_mut());
        let breaker = &mut self.own.changes;
        tokio::select! {
            biased;
            changed = self.control.changed() => Wake::Control(changed.is_ok()),
            () = self.acks.changed(), if !self.submitted.is_empty() => Wake::Durable,
            answer = async { match asked.front_mut() { Some(asked) => (&mut asked.answer).await, None => std::future::pending().await } } => Wake::Judged(answer),
            held = async { match leaving { Some((_, loads)) => (&mut loads.answer).await, None => std::future::pending().await } } => Wake::Leaving(held),
            held = async { match loads { Some(loads) => (&mut loads.answer).await, None => std::future::pending().await } } => Wake::Held(held),
            held = async { match verdicts { Some(loading) => (&mut loading.loads.answer).await, None => std::future::pending().await } } => Wake::Decided(held),
            Some(order) = self.orders.recv(), if takes_orders => Wake::Order(order),
            (id, event) = std::future::poll_fn(|cx| attempts.poll_event(cx)) => Wake::Attempt(id, event),
            Some((id, result)) = self.sending.next(), if !self.sending.is_empty() => Wake::Sent(id, result),
            _ = breaker.changed(), if waits => Wake::Timer,
            batch = self.batches.recv(), if takes => Wake::Batch(batch),
            () = clock::sleep_until(due) => Wake::Timer,
        }
    }
}
