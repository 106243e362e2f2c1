//! The desk: where an operator's orders find the task that serves a partition.
//!
//! Only a partition that is served here has a place. Between the end of one assignment and the next an order finds
//! nobody, and says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::accounts::{Accounts, Balance};
use crate::act::{Act, Answered, Order, Said};
use crate::clock;
use crate::store::PartitionId;

/// Orders of one partition that wait for its task.
const ORDERS_WAITING: usize = 4;

/// How long an answer may take. A partition that is being given away, or whose journal stands still, answers later or never.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk(Arc<Mutex<BTreeMap<PartitionId, Place>>>);

#[derive(Debug)]
struct Place {
    orders: mpsc::Sender<Order>,
    accounts: Accounts,
}

/// Why an order was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("this member does not serve the partition now")]
    NotHere,
    #[error("{ORDERS_WAITING} orders wait for the partition already; nothing was done: try again")]
    Busy,
    #[error(
        "the partition was given away before the order was answered: whether it was carried out is not known; look (`hapax held`, `hapax inspect`), and say it again where it is served now: what is done already stays as it is"
    )]
    Gone,
    #[error(
        "no answer within {} s: whether the order is carried out is not known yet; look (`hapax held`, `hapax inspect`), and say it again: what is done already stays as it is",
        ANSWER_MAX.as_secs()
    )]
    Late,
}

impl Desk {
    fn places(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition's task begins: the orders that it gets.
    pub(crate) fn open(&self, id: PartitionId, accounts: Accounts) -> mpsc::Receiver<Order> {
        let (orders, inbox) = mpsc::channel(ORDERS_WAITING);
        self.places().insert(id, Place { orders, accounts });
        inbox
    }

    /// Its assignment is over.
    pub(crate) fn close(&self, id: PartitionId) {
        self.places().remove(&id);
    }

    /// The partitions that are served here.
    pub(crate) fn served(&self) -> Vec<PartitionId> {
        self.places().keys().copied().collect()
    }

    /// The books of each of them.
    pub(crate) fn balances(&self) -> Vec<(PartitionId, Balance)> {
        let places = self.places();
        places
            .iter()
            .map(|(id, place)| (*id, place.accounts.balance()))
            .collect()
    }

    /// Whether that partition is served here.
    pub(crate) fn serves(&self, id: PartitionId) -> bool {
        self.places().contains_key(&id)
    }

    /// Hands acts to the partition's task and waits for what came of them.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub(crate) async fn order(
        &self,
        id: PartitionId,
        acts: Vec<Act>,
        said: Said,
        dry_run: bool,
    ) -> Result<Answered, Unanswered> {
        let orders = self.places().get(&id).map(|place| place.orders.clone());
        let orders = orders.ok_or(Unanswered::NotHere)?;
        let (answer, answered) = oneshot::channel();
        let order = Order {
            acts,
            said,
            dry_run,
            answer,
        };
        orders.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unanswered::Busy,
            mpsc::error::TrySendError::Closed(_) => Unanswered::NotHere,
        })?;
        // Or the channel would live as long as this wait, and its task's end not be heard.
        drop(orders);
        tokio::select! {
            answered = answered => answered.map_err(|_| Unanswered::Gone),
            () = clock::sleep_until(clock::now() + ANSWER_MAX) => Err(Unanswered::Late),
        }
    }
}
