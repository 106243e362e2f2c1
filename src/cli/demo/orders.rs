//! The orders of a demo: which ones there are, and in what order they are sent. Pure, and the same for the same seed.
//!
//! One order in ten is sent twice or three times, half of those at once and half some time later, as a producer does
//! that had no answer. One in fifty is an order of 0 cents, which the shop refuses.

use serde::{Deserialize, Serialize};

/// Customers, which are the keys: a resend has the key of the first message, and so its partition.
const CUSTOMERS: u32 = 200;

/// How far behind the first message a late resend may come, in orders.
const LATE_MAX: u64 = 300;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) cents: u64,
}

impl Order {
    /// Whether the shop takes it.
    pub(super) const fn is_good(&self) -> bool {
        self.cents > 0
    }
}

/// An order and the token that all its messages carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tokened {
    pub(super) order: Order,
    pub(super) token: String,
}

/// Everything that will be sent.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) orders: Vec<Tokened>,
    /// The messages in the order of sending, each the index of its order.
    pub(super) sends: Vec<usize>,
}

impl Plan {
    /// A plan of exactly that many messages.
    pub(super) fn new(messages: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut orders = Vec::new();
        // Sorted by when each is due; ties keep the first message of an order before its resends.
        let mut due = Vec::with_capacity(messages);
        let (mut resent, mut refused) = (0, 0);
        while due.len() < messages {
            let number = orders.len();
            if number % 10 == 0 {
                resent = number + random.usize(0..10);
            }
            if number % 50 == 0 {
                refused = number + random.usize(0..50);
            }
            let cents = random.u64(100..100_000);
            orders.push(Tokened {
                order: Order {
                    id: format!("order-{number:06}"),
                    customer: format!("customer-{:03}", random.u32(0..CUSTOMERS)),
                    cents: if number == refused { 0 } else { cents },
                },
                token: format!("{:016x}", random.u64(..)),
            });
            let copies = if number == resent { random.usize(2..=3) } else { 1 };
            for copy in 0..copies.min(messages - due.len()) {
                let late = match copy {
                    0 => 0,
                    _ if random.bool() => 1,
                    _ => random.u64(2..LATE_MAX),
                };
                due.push((number as u64 + late, number, copy));
            }
        }
        due.sort_unstable();
        Self {
            orders,
            sends: due.into_iter().map(|(_, order, _)| order).collect(),
        }
    }

    /// How many orders are sent more than once.
    pub(super) fn resent(&self) -> usize {
        let mut times = vec![0_usize; self.orders.len()];
        for order in &self.sends {
            if let Some(count) = times.get_mut(*order) {
                *count += 1;
            }
        }
        times.into_iter().filter(|count| *count > 1).count()
    }

    /// How many orders the shop takes.
    pub(super) fn good(&self) -> usize {
        self.orders.iter().filter(|order| order.order.is_good()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_plan_has_what_was_asked_for_and_one_order_in_ten_twice_or_more() {
        for seed in 0..20 {
            let plan = Plan::new(1_000, seed);
            assert_eq!(plan.sends.len(), 1_000, "seed {seed}");
            let tenth = plan.orders.len() / 10;
            assert!(
                (tenth - 2..=tenth + 1).contains(&plan.resent()),
                "seed {seed}: {} of {} are sent again",
                plan.resent(),
                plan.orders.len()
            );
            assert!(plan.good() < plan.orders.len(), "seed {seed}: nothing is refused");
            let tokens: BTreeSet<_> = plan.orders.iter().map(|order| &order.token).collect();
            assert_eq!(tokens.len(), plan.orders.len(), "seed {seed}: a token twice");
            assert_eq!(plan.sends, Plan::new(1_000, seed).sends, "seed {seed}");
        }
    }
}
