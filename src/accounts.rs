//! The accounts of one assignment: every message lies in exactly one (Inv 7).
//!
//! Double entry: a message enters by `take` or `restore` and is moved from one account to another where the thing
//! happens. No account is ever computed from the others, so that a message forgotten by the code shows as a
//! *remainder*, which is an alarm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a message can lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Account {
    /// Taken, and not yet decided or not yet durable.
    InFlight = 0,
    /// The handler succeeded, or a probe or an operator said that it had.
    Done = 1,
    /// Given up on, for a reason.
    Failed = 2,
    /// The same token at another offset, suppressed.
    Duplicate = 3,
    /// The same offset again, of something recorded.
    Redelivery = 4,
    /// Kept durably for later.
    Held = 5,
    /// Passed over for a stated reason.
    Skipped = 6,
    /// In flight or held when the partition went.
    Released = 7,
}

impl Account {
    /// Every account.
    pub const ALL: [Self; 8] = [
        Self::InFlight,
        Self::Done,
        Self::Failed,
        Self::Duplicate,
        Self::Redelivery,
        Self::Held,
        Self::Skipped,
        Self::Released,
    ];

    /// The label in metrics and in the demo's table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Duplicate => "duplicate",
            Self::Redelivery => "redelivery",
            Self::Held => "held",
            Self::Skipped => "skipped",
            Self::Released => "released",
        }
    }
}

/// The books of one assignment. Written by its partition task alone, read by anyone.
#[derive(Debug, Clone, Default)]
pub struct Accounts(Arc<Books>);

#[derive(Debug, Default)]
struct Books {
    taken: AtomicU64,
    restored: AtomicU64,
    accounts: [AtomicU64; 8],
}

/// One reading of the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Messages delivered, repeats included.
    pub taken: u64,
    /// Held work found at assignment.
    pub restored: u64,
    /// What lies in each account, in the order of [`Account::ALL`].
    pub accounts: [u64; 8],
}

impl Balance {
    /// What lies in one account.
    #[must_use]
    pub fn of(&self, account: Account) -> u64 {
        self.accounts.get(account as usize).copied().unwrap_or_default()
    }

    /// Several books as one: the assignments of a process, for example.
    #[must_use]
    pub fn sum<'a>(balances: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for balance in balances {
            sum.taken += balance.taken;
            sum.restored += balance.restored;
            for (to, from) in sum.accounts.iter_mut().zip(balance.accounts) {
                *to += from;
            }
        }
        sum
    }

    /// Entered less accounted for: 0, or an alarm.
    #[must_use]
    pub fn remainder(&self) -> i64 {
        let entered = self.taken + self.restored;
        entered as i64 - self.accounts.iter().sum::<u64>() as i64
    }
}

impl Accounts {
    fn cell(&self, account: Account) -> Option<&AtomicU64> {
        self.0.accounts.get(account as usize)
    }

    fn add(&self, account: Account, count: u64) {
        if let Some(cell) = self.cell(account) {
            // One writer: a plain load and store is enough, and needs no locked instruction per message.
            cell.store(cell.load(Ordering::Relaxed) + count, Ordering::Relaxed);
        }
    }

    /// Messages delivered: they enter in flight.
    pub fn take(&self, count: u64) {
        self.0
            .taken
            .store(self.0.taken.load(Ordering::Relaxed) + count, Ordering::Relaxed);
        self.add(Account::InFlight, count);
    }

    /// Held work found at assignment: it enters held.
    pub fn restore(&self, count: u64) {
        self.0
            .restored
            .store(self.0.restored.load(Ordering::Relaxed) + count, Ordering::Relaxed);
        self.add(Account::Held, count);
    }

    /// Moves one message.
    ///
    /// # Panics
    /// When there is none in `from`: a message was moved twice.
    pub fn shift(&self, from: Account, to: Account) {
        let Some(cell) = self.cell(from) else { return };
        let count = cell.load(Ordering::Relaxed);
        assert!(
            count > 0,
            "a message moved from {} to {} twice",
            from.name(),
            to.name()
        );
        cell.store(count - 1, Ordering::Relaxed);
        self.add(to, 1);
    }

    /// The partition went: what is in flight or held is released.
    pub fn release(&self) {
        for account in [Account::InFlight, Account::Held] {
            if let Some(cell) = self.cell(account) {
                self.add(Account::Released, cell.swap(0, Ordering::Relaxed));
            }
        }
    }

    /// Reads the books.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let mut balance = Balance {
            taken: self.0.taken.load(Ordering::Relaxed),
            restored: self.0.restored.load(Ordering::Relaxed),
            ..Balance::default()
        };
        for (to, from) in balance.accounts.iter_mut().zip(&self.0.accounts) {
            *to = from.load(Ordering::Relaxed);
        }
        balance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_lies_in_one_account() {
        let accounts = Accounts::default();
        accounts.take(5);
        accounts.restore(1);
        accounts.shift(Account::InFlight, Account::Done);
        accounts.shift(Account::InFlight, Account::Held);
        accounts.shift(Account::Held, Account::Failed);
        assert_eq!(accounts.balance().remainder(), 0);
        accounts.release();
        let balance = accounts.balance();
        assert_eq!(
            (
                balance.of(Account::Released),
                balance.of(Account::InFlight),
                balance.remainder()
            ),
            (4, 0, 0)
        );
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_message_is_moved_once() {
        let accounts = Accounts::default();
        accounts.take(1);
        accounts.shift(Account::InFlight, Account::Done);
        accounts.shift(Account::InFlight, Account::Failed);
    }

    #[test]
    fn a_forgotten_message_shows_as_a_remainder() {
        let mut balance = Balance {
            taken: 3,
            ..Balance::default()
        };
        balance.accounts[Account::Done as usize] = 2;
        assert_eq!(balance.remainder(), 1);
    }
}
