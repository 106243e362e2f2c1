//! The accounts of a life that ended in order, counted a second time from topic, store, effects and letters.
//!
//! Every message that was delivered lies in exactly one account, each found by evidence of its own and none by
//! subtraction; then the sums are what the consumer says of itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::outcomes::{Found, found};
use super::record::Stage;
use super::{Case, Findings, Kind, Life, Moment, Rule};

/// The books of one assignment, as the consumer states them. Also what is counted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Books {
    pub(crate) taken: u64,
    pub(crate) restored: u64,
    pub(crate) in_flight: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) duplicate: u64,
    pub(crate) redelivery: u64,
    pub(crate) held: u64,
    pub(crate) skipped: u64,
    pub(crate) released: u64,
}

impl Books {
    /// The sum of all accounts.
    pub(crate) fn accounts(self) -> u64 {
        self.in_flight
            + self.done
            + self.failed
            + self.duplicate
            + self.redelivery
            + self.held
            + self.skipped
            + self.released
    }

    fn plus(self, other: Self) -> Self {
        Self {
            taken: self.taken + other.taken,
            restored: self.restored + other.restored,
            in_flight: self.in_flight + other.in_flight,
            done: self.done + other.done,
            failed: self.failed + other.failed,
            duplicate: self.duplicate + other.duplicate,
            redelivery: self.redelivery + other.redelivery,
            held: self.held + other.held,
            skipped: self.skipped + other.skipped,
            released: self.released + other.released,
        }
    }
}

pub(super) fn check(case: &Case<'_>, findings: &mut Findings) {
    let nothing = Moment::default();
    let mut before = &nothing;
    for life in &case.evidence.lives {
        if let Some(books) = &life.books {
            for one in books {
                if one.taken + one.restored != one.accounts() {
                    findings.add(
                        Rule::Accounts,
                        format!("life {}: a remainder in {one:?}", life.number),
                    );
                }
            }
            let partitions: BTreeSet<i32> = case.input.keys().map(|(partition, _)| *partition).collect();
            // Where partitions went and came back within the life, deliveries cannot be told from outside.
            if books.len() == partitions.len() && !case.evidence.terms.cold {
                let stated = books.iter().fold(Books::default(), |sum, one| sum.plus(*one));
                let counted = count(case, before, life, findings);
                if stated != counted {
                    let what = format!(
                        "life {}:\n    stated  {stated:?}\n    counted {counted:?}",
                        life.number
                    );
                    findings.add(Rule::Accounts, what);
                }
            }
        }
        before = &life.after;
    }
}

/// Counts a life that took everything from where the group stood.
fn count(case: &Case<'_>, before: &Moment, life: &Life, findings: &mut Findings) -> Books {
    let mut books = Books::default();
    for (partition, open) in &before.store.open {
        let token = (*partition, open.keys[0]);
        match open.stage {
            Stage::Begun => continue,
            Stage::Settling => books.failed += 1,
            Stage::Held if life.after.store.is_held(&token, open.offset) => {}
            Stage::Held => findings.add(
                Rule::Accounts,
                format!(
                    "life {}: {partition}/{} is held no more",
                    life.number, open.offset
                ),
            ),
        }
        books.restored += 1;
    }
    for (message, token) in case.messages() {
        let start = before
            .committed
            .get(&message.partition)
            .map_or(0, |(offset, _)| *offset);
        if message.offset < start {
            continue;
        }
        books.taken += 1;
        let own = || {
            let lines = case.lines_of(&token).iter();
            lines.filter(|line| line.life == life.number && line.place() == message.place())
        };
        let before = found(case, &before.store, message);
        let after = found(case, &life.after.store, message);
        let was_known = matches!(before, Found::Outcome | Found::Held | Found::Settling);
        let succeeded = own().any(|line| matches!(line.kind, Kind::Ok | Kind::ProbeDone));
        let has_letter = case.letters.contains_key(&message.place());
        let mut accounts = Vec::new();
        if was_known {
            accounts.push("redelivery");
            books.redelivery += 1;
        }
        if succeeded {
            accounts.push("done");
            books.done += 1;
        }
        if has_letter && !was_known {
            accounts.push("failed");
            books.failed += 1;
        }
        if after == Found::Held && before != Found::Held {
            accounts.push("held");
            books.held += 1;
        }
        if after == Found::Earlier && !has_letter && own().count() == 0 {
            accounts.push("duplicate");
            books.duplicate += 1;
        }
        if accounts.len() != 1 {
            let what = format!(
                "life {}: {:?} lies in {accounts:?}: {before:?}, then {after:?}",
                life.number,
                message.place()
            );
            findings.add(Rule::Accounts, what);
        }
    }
    // Its end gives back what is held, the old and the new.
    let held = life.after.store.open.iter();
    books.released = held.filter(|(_, open)| open.stage == Stage::Held).count() as u64;
    books.held = 0;
    books
}
