//! Counts: what a partition task shows of itself, holds of the process's budgets, and gives back at its end.

use super::Partition;
use super::work::Origin;
use crate::metrics::PartitionReading;

impl Partition {
    /// Shows the gauges; called once per commit interval.
    pub(super) fn show(&self) {
        let wall_ms = self.wiring.clock.wall_ms();
        let oldest = self
            .works
            .iter()
            .map(|(_, work)| work.since_ms)
            .filter(|since| *since > 0)
            .chain(self.resting.oldest_ms())
            .min();
        self.meters.show(&PartitionReading {
            open: self.index.len(),
            oldest_open_ms: oldest.map_or(0, |since| wall_ms - since),
            held: self.held,
            ledger_gap: self.ledger.len(),
            jump_pending: self.time.is_jump_pending(),
            balance: self.accounts.balance(),
        });
    }

    pub(super) fn count_held(&mut self, bytes: usize) {
        self.held += 1;
        self.held_bytes += bytes;
        self.wiring.budget.hold(bytes);
    }

    pub(super) fn uncount_held(&mut self, bytes: usize) {
        self.held -= 1;
        self.held_bytes -= bytes;
        self.wiring.budget.let_go(1, bytes);
    }

    pub(super) fn give_back_budget(&mut self) {
        if self.released_budget > 0 {
            self.wiring.budget.give_back(self.released_budget);
            self.released_budget = 0;
        }
    }

    /// The end of the assignment: what is in flight or held goes to the next owner.
    pub(super) fn release_all(&mut self) {
        let in_flight = self
            .works
            .iter()
            .filter(|(_, work)| matches!(work.origin, Origin::Taken(_)))
            .count();
        let mut undelivered = 0;
        while let Ok(batch) = self.batches.try_recv() {
            undelivered += batch.len();
        }
        self.accounts.take(undelivered as u64);
        self.wiring
            .budget
            .give_back(in_flight + undelivered + self.released_budget);
        self.released_budget = 0;
        self.wiring.budget.let_go(self.held, self.held_bytes);
        self.accounts.release();
        self.show();
    }
}
