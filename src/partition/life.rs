//! Life: a duplicate that starts the window of its token anew, and a message that is too old to be of use.
//!
//! The first is written before the duplicate completes: what was suppressed counts, or it will not be after a crash. The
//! second is an outcome like any other. It is asked when an attempt is about to start, and of a message of which no attempt
//! may have applied anything: what is in doubt goes by its class, however old it is (Inv 4).

use super::Partition;
use super::work::WorkId;
use crate::accounts::Account;
use crate::config::{MaxAge, Mode, OnUseless, Renewal};
use crate::message::{NextOffset, Raw};
use crate::outcome::{Closed, End, Reason};
use crate::store::Hit;
use crate::token::TokenKey;
use crate::window::Window;

/// A record is written again when it is so old: a part of the window, and as long as a time bucket. Nearer duplicates would only
/// write each message of a stream that has nothing else.
const RENEWED_AFTER: i64 = 4;

/// Whether a duplicate seen then starts the window of a record anew.
pub(crate) const fn is_renewed(renewal: Renewal, window: Window, first_seen_ms: i64, seen_ms: i64) -> bool {
    let quarter_ms = window.length_ms() / RENEWED_AFTER;
    matches!(renewal, Renewal::OnDuplicate) && seen_ms.saturating_sub(first_seen_ms) >= quarter_ms
}

/// What a duplicate writes under which keys.
pub(super) struct Written {
    pub(super) closed: Closed,
    pub(super) keys: Vec<TokenKey>,
    pub(super) is_renewed: bool,
}

impl Partition {
    /// What a duplicate has to write of the record that it met: with a window that starts anew, and under each of its keys that
    /// has no record. `hits` are what the look-up found, `None` where it shares the outcome of the message before it.
    pub(super) fn written_by(&self, id: WorkId, closed: &Closed, hits: Option<&[Hit]>) -> Option<Written> {
        let work = self.works.get(id)?;
        let seen_ms = work.first_seen_ms();
        let renewal = self.wiring.policy.renewal;
        let is_renewed = is_renewed(renewal, self.window, closed.first_seen_ms, seen_ms);
        let closed = Closed {
            first_seen_ms: if is_renewed { seen_ms } else { closed.first_seen_ms },
            ..closed.clone()
        };
        let commit_point = self.ledger.commit_point().next;
        let keys = work.keys.as_slice().iter().enumerate();
        let keys = keys.filter(|(at, _)| {
            let Some(hits) = hits else { return is_renewed };
            match hits.iter().find(|hit| hit.key == *at) {
                // Rotation: a third message with only the other source finds it there.
                None => true,
                Some(hit) if hit.closed.offset == closed.offset => is_renewed,
                // Another message's: it stands while it counts, and a younger one would be found first anyway.
                Some(hit) => {
                    let own = &hit.closed;
                    !self.counts(work.judged_ms, own, commit_point)
                        && own.first_seen_ms <= closed.first_seen_ms
                }
            }
        });
        let keys: Vec<_> = keys.map(|(_, key)| *key).collect();
        (!keys.is_empty()).then_some(Written {
            closed,
            keys,
            is_renewed,
        })
    }

    /// Writes it, and returns the record as it is now.
    pub(super) fn write_for_duplicate(&mut self, written: Written) -> Closed {
        let renewed = u64::from(written.is_renewed);
        self.wiring.meters.renewals.increment(renewed);
        let keys = written.keys.iter();
        let records = keys.map(|key| (*key, written.closed.clone()));
        self.changes.closed.extend(records);
        written.closed
    }

    /// Whether a record counts for a message judged then.
    pub(super) fn counts(&self, judged_ms: i64, closed: &Closed, commit_point: NextOffset) -> bool {
        self.window
            .holds(judged_ms, closed.first_seen_ms, closed.offset, commit_point)
    }

    /// Ends a message that is about to be tried, where it is too old to be of use.
    pub(super) fn end_useless(&mut self, id: WorkId) -> bool {
        let Some(error) = self.useless(id) else {
            return false;
        };
        match self.wiring.policy.max_age.then {
            OnUseless::DeadLetter => self.give_up(id, Reason::Useless, error),
            OnUseless::Skip => {
                let receipt = self.receipt_of_failure(id, Reason::Useless, &error);
                let outputs = receipt.into_iter().collect();
                self.record_told(id, Account::Skipped, End::Failed(Reason::Useless), outputs);
            }
        }
        true
    }

    /// Why it is too old, where it is.
    fn useless(&self, id: WorkId) -> Option<String> {
        let max_age = &self.wiring.policy.max_age;
        if !max_age.is_stated() || self.wiring.policy.mode == Mode::Observe {
            return None;
        }
        let work = self.works.get(id)?;
        if work.may_have_applied || work.in_doubt || work.is_ordered {
            return None;
        }
        let raw = work.raw();
        let age_ms = self.wiring.clock.wall_ms().saturating_sub(raw.timestamp_ms()?);
        let (max_ms, is_malformed) = limit_of(max_age, &raw);
        if is_malformed && work.attempts == 0 {
            self.wiring.meters.malformed_max_ages.increment(1);
        }
        let max_ms = max_ms.filter(|max_ms| age_ms > *max_ms)?;
        Some(format!("it is {age_ms} ms old, and useless after {max_ms} ms"))
    }
}

/// How old a message may be, and whether it stated that in a way that nobody can read.
fn limit_of(max_age: &MaxAge, raw: &Raw<'_>) -> (Option<i64>, bool) {
    let common = max_age.after.map(crate::clock::millis);
    let stated = max_age.header.as_ref().and_then(|name| raw.header(name));
    let Some(stated) = stated else {
        return (common, false);
    };
    let number = std::str::from_utf8(stated)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match number {
        Some(own_ms) => (Some(i64::try_from(own_ms).unwrap_or(i64::MAX)), false),
        None => (common, true),
    }
}
