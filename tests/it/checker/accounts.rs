//! The accounts of a life that ended in order, counted a second time from topic, store, effects and letters.
//!
//! Every message that was delivered lies in exactly one account, each found by evidence of its own and none by
//! subtraction; then the sums are what the consumer says of itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::outcomes::{Found, found};
use super::record::{End, Stage};
use super::{Case, Findings, Kind, Life, Message, Moment, Rule, Store};

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
                let (counted, either) = count(case, before, life, findings);
                if !is_same(stated, counted, either) {
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

/// Whether these are the same, so many redeliveries being perhaps duplicates.
fn is_same(stated: Books, counted: Books, either: u64) -> bool {
    let more = stated.duplicate.saturating_sub(counted.duplicate);
    let counted = Books {
        duplicate: counted.duplicate + more,
        redelivery: counted.redelivery.saturating_sub(more),
        ..counted
    };
    more <= either && stated == counted
}

/// Counts a life that took everything from where the group stood. Also how many redeliveries may be duplicates: what was held
/// behind its token, and was a duplicate before it came again, has left no record of its own.
fn count(case: &Case<'_>, before: &Moment, life: &Life, findings: &mut Findings) -> (Books, u64) {
    let (mut books, mut either) = (Books::default(), 0);
    restored(case, before, life, &mut books, findings);
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
        // By itself, or by an operator's word; he may have been refused.
        let succeeded = own().any(|line| matches!(line.kind, Kind::Ok | Kind::ProbeDone))
            || (own().any(|line| line.kind == Kind::AskedDone) && is_done(case, &life.after.store, message));
        let has_letter = case.letters.contains_key(&message.place());
        let mut accounts = Vec::new();
        if was_known {
            accounts.push("redelivery");
            books.redelivery += 1;
            either += u64::from(before == Found::Held && after == Found::Earlier);
        }
        if succeeded && !was_known {
            accounts.push("done");
            books.done += 1;
        }
        if has_letter && !was_known {
            accounts.push("failed");
            books.failed += 1;
        }
        if after == Found::Held && !was_known {
            accounts.push("held");
        }
        if after == Found::Earlier && !was_known && !has_letter && own().count() == 0 {
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
    books.released = life.after.store.held() as u64;
    (books, either)
}

/// What the life before had left with its message, and what became of it in this one.
fn restored(case: &Case<'_>, before: &Moment, life: &Life, books: &mut Books, findings: &mut Findings) {
    for (partition, open) in &before.store.open {
        if open.stage == Stage::Begun && !open.is_kept() {
            continue;
        }
        books.restored += 1;
        let place = (*partition, open.offset);
        let message = case.input[&place];
        let store = &life.after.store;
        match found(case, store, message) {
            Found::Held => {}
            Found::Earlier => books.duplicate += 1,
            Found::Outcome if is_done(case, store, message) => books.done += 1,
            Found::Outcome => books.failed += 1,
            now => {
                let what = format!("life {}: {place:?} was kept, and is {now:?}", life.number);
                findings.add(Rule::Accounts, what);
            }
        }
    }
}

/// Whether the outcome of this very message is that it was done.
fn is_done(case: &Case<'_>, store: &Store, message: &Message) -> bool {
    let names = case.names(message);
    let mut closed = names.iter().filter_map(|name| store.closed(name));
    closed.any(|closed| closed.offset == message.offset && closed.end == End::Done)
}
