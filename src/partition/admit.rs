//! Admit: the ledger answers repeated offsets, and the index makes every token single-flight.

use std::ops::Range;
use std::sync::Arc;

use super::work::{Claimant, Holder, Keys, Origin, Phase, Work, WorkId};
use super::{Asked, Partition, Who};
use crate::accounts::Account;
use crate::config::{Concurrency, MissingToken, Mode};
use crate::ledger::{Admitted, Slot};
use crate::message::{Batch, Raw};
use crate::outcome::Reason;
use crate::token::{Found, TokenKey};

/// Messages that are worth a second question while one is under way.
const ASK_LEAST: usize = 4_096;

/// What is read of a message before it is taken.
struct Read {
    policy: Result<Option<(Reason, String)>, String>,
    /// Where its keys are.
    keys: Range<usize>,
    order: Option<u64>,
    /// A record at rest has one of its keys.
    meets_rest: bool,
    /// Its key is held up.
    is_blocked: bool,
}

impl Partition {
    /// Takes a batch of delivered messages.
    pub(super) fn admit(&mut self, batch: Batch) {
        let batch = Arc::new(batch);
        let mut all_keys: Vec<TokenKey> = Vec::with_capacity(batch.len());
        let blocks = self.blocks;
        let reads = self.read(&batch, &mut all_keys);
        for ((index, raw), read) in batch.iter().enumerate().zip(reads) {
            if self.stopped.is_some() {
                // Not taken: it lies behind the message that stopped the partition, and Kafka keeps it.
                self.released_budget += 1;
                continue;
            }
            let keys = all_keys.get(read.keys).unwrap_or_default();
            let policy = match read.policy {
                Ok(policy) => policy,
                Err(why) => {
                    self.stop(raw.offset(), why);
                    self.released_budget += 1;
                    continue;
                }
            };
            let token = keys.first().copied().unwrap_or(TokenKey([0; 16]));
            let judged_ms = self.time.take(raw.timestamp_ms(), &token);
            match self.ledger.admit(raw.offset(), judged_ms) {
                Admitted::New(slot) => {
                    self.accounts.take(1);
                    let id = self
                        .works
                        .insert(taken(slot, &batch, index, keys, read.order, judged_ms, policy));
                    if let Some(work) = self.works.get_mut(id).filter(|_| !read.is_blocked) {
                        work.unblocked_at = blocks;
                    }
                    self.count_suspect(id);
                    if read.meets_rest {
                        self.enter(id);
                    } else {
                        self.enter_fresh(id);
                    }
                }
                Admitted::Repeat => {
                    // Whatever became of the first delivery answers for this one too (Inv 1: it is not completed twice).
                    self.accounts.take(1);
                    self.accounts.shift(Account::InFlight, Account::Redelivery);
                    self.wiring.meters.redeliveries.increment(1);
                    self.released_budget += 1;
                }
                Admitted::OutOfOrder { highest } => {
                    let why = format!("it was delivered after offset {highest}: the source broke its order");
                    self.stop(raw.offset(), why);
                    self.released_budget += 1;
                }
            }
        }
    }

    /// Reads every token first, and asks for all of them together what a million held messages make slow to ask: whether
    /// a record at rest has it, and whether its key is held up. Each answer lies at a place that no cache has, and in a row
    /// they are waited for together.
    fn read(&self, batch: &Batch, keys: &mut Vec<TokenKey>) -> Vec<Read> {
        let mut reads = Vec::with_capacity(batch.len());
        for raw in batch.iter() {
            let start = keys.len();
            let policy = self.read_token(&raw, keys);
            reads.push(Read {
                policy,
                keys: start..keys.len(),
                order: self.order_of(raw.key()),
                meets_rest: false,
                is_blocked: false,
            });
        }
        if self.index.is_free() && self.blocked.is_empty() {
            return reads;
        }
        // Where to look is worked out first. Then there is nothing between one look and the next, nor does one depend on another.
        let places = reads.iter().map(|read| {
            let token = keys.get(read.keys.start).map(|key| self.index.place(key));
            let order = read.order.map(|order| self.blocked_sieve.place(order));
            (token.unwrap_or_default(), order.unwrap_or_default())
        });
        let places: Vec<_> = places.collect();
        for (read, (token, order)) in reads.iter_mut().zip(&places) {
            read.meets_rest = self.index.may_rest(*token);
            read.is_blocked = self.blocked_sieve.may_have(*order);
        }
        let has_lines = self.index.has_lines();
        for read in &mut reads {
            if !(read.meets_rest | read.is_blocked | has_lines) && read.keys.len() == 1 {
                continue;
            }
            let own = keys.get(read.keys.clone()).unwrap_or_default();
            read.meets_rest = own.iter().any(|key| self.index.rests(key));
            read.is_blocked = read.order.is_some_and(|order| self.blocked.contains_key(&order));
        }
        reads
    }

    /// Reads the token, and what a policy says of a message without a usable one. Such a message goes by its
    /// position.
    fn read_token(
        &self,
        raw: &Raw<'_>,
        keys: &mut Vec<TokenKey>,
    ) -> Result<Option<(Reason, String)>, String> {
        let (reason, text) = match self.wiring.extractor.read(raw, keys) {
            Found::Tokens => {
                if raw.key().is_none() {
                    self.wiring.meters.null_keys.increment(1);
                }
                return Ok(None);
            }
            Found::Missing => (Reason::MissingToken, "no source has a token".to_owned()),
            Found::TooLong { source, bytes } => {
                let max = self.wiring.limits.token_bytes.0;
                (
                    Reason::TokenTooLong,
                    format!("{source} has {bytes} bytes, `token_bytes` is {max}"),
                )
            }
        };
        self.wiring.meters.missing_tokens.increment(1);
        keys.push(self.wiring.extractor.position(raw));
        match self.wiring.policy.missing_token {
            MissingToken::UseOffset => Ok(None),
            _ if self.wiring.policy.mode == Mode::Observe => Ok(None),
            MissingToken::DeadLetter => Ok(Some((reason, text))),
            MissingToken::Stop => Err(format!("{text}, and `missing_token = \"stop\"`")),
        }
    }

    pub(super) fn order_of(&self, key: Option<&[u8]>) -> Option<u64> {
        order_of(self.wiring.policy.concurrency, key)
    }

    /// After an unclean start the first messages are begun in every class, so that one that kills the process is
    /// counted.
    fn count_suspect(&mut self, id: WorkId) {
        if self.suspects_left > 0 {
            self.suspects_left -= 1;
            if let Some(work) = self.works.get_mut(id) {
                work.suspect = true;
            }
        }
    }

    /// Brings work to its token: behind whoever has it open, else into the next look-up.
    ///
    /// The index is entered *before* the look-up is asked for, and left only after the outcome is durable: so a
    /// second message of the token either finds the first here, or its look-up finds the outcome.
    pub(super) fn enter(&mut self, id: WorkId) {
        let Some(work) = self.works.get(id) else { return };
        let keys = work.keys.clone();
        match self.claim(id, &keys) {
            None => self.ask_for(id, &keys, None),
            Some(Holder::Work(first)) => self.wait_behind(id, first),
            Some(Holder::Resting(open)) if self.is_about(open, id) => self.meets_resting(id, open),
            // A lower offset of the same token may have been decided before that record was opened, and comes again
            // because nothing was committed since: its own outcome answers for it, under its token or its position.
            Some(Holder::Resting(_)) => {
                let position = self
                    .works
                    .get(id)
                    .map(|work| self.wiring.extractor.position(&work.raw()));
                self.ask_for(id, &keys, position);
            }
        }
    }

    /// The same for a message none of whose keys a record at rest had when its batch was taken: none has come to rest since.
    fn enter_fresh(&mut self, id: WorkId) {
        let Some(work) = self.works.get(id) else { return };
        let Keys::One(key) = work.keys else {
            return self.enter(id);
        };
        match self.index.claim_fresh(key, work.offset(), id) {
            None => self.ask_for(id, &Keys::One(key), None),
            Some(Holder::Work(first)) => self.wait_behind(id, first),
            Some(Holder::Resting(_)) => self.enter(id),
        }
    }

    /// Enters every key that nobody holds, and returns who holds another: work in flight before a record at rest. In the line of
    /// those it has its place, or a later message that has only one of them would be decided before it.
    pub(super) fn claim(&mut self, id: WorkId, keys: &Keys) -> Option<Holder> {
        let by = self.works.get(id)?.claimant(id);
        let is_one = matches!(keys, Keys::One(_));
        let mut holder = None;
        for key in keys.as_slice() {
            // Also where it waits behind another key: a third message that has only this one must wait for it.
            let Some(mut found) = self.index.claim(*key, by).filter(|found| *found != by.who) else {
                continue;
            };
            if let Holder::Work(other) = found
                && let Some(owner) = self.who_gives_way(other, by)
            {
                self.index.pass(*key, owner, by);
                continue;
            }
            // Not held behind that record before somebody who waits for work, and cannot be held yet: after a crash the one that
            // is held would be judged before the other has come again.
            if let Holder::Resting(open) = found
                && !self.is_about(open, id)
            {
                found = self.index.stalled_before(key, by).unwrap_or(found);
            }
            let knows_it = is_one && matches!(found, Holder::Work(_));
            if !knows_it {
                self.index.wait(*key, by);
            }
            match (found, holder) {
                (_, None) | (Holder::Work(_), Some(Holder::Resting(_))) => holder = Some(found),
                _ => {}
            }
        }
        if !is_one {
            let is_stalled = matches!(holder, Some(Holder::Work(_)));
            for key in keys.as_slice() {
                self.index.stall(key, by, is_stalled);
            }
        }
        holder
    }

    /// Who has a key, and only waits for another of its own, gives way to a lower offset that has come again: or that one would get
    /// the other key first, and each would wait for the other.
    fn who_gives_way(&self, other: WorkId, by: Claimant) -> Option<Claimant> {
        let work = self.works.get(other)?;
        let waits = work.phase == Phase::Behind && work.refused.is_none();
        Some(work.claimant(other)).filter(|owner| waits && *owner > by)
    }

    pub(super) fn wait_behind(&mut self, id: WorkId, first: WorkId) {
        self.set_phase(id, Phase::Behind);
        if let Some(first) = self.works.get_mut(first) {
            first.behind.push(id);
        }
    }

    fn ask_for(&mut self, id: WorkId, keys: &Keys, position: Option<TokenKey>) {
        self.ask_keys.extend_from_slice(keys.as_slice());
        self.ask_keys.extend(position);
        let count = keys.as_slice().len() + usize::from(position.is_some());
        self.ask_ids.push((id, count));
        self.set_phase(id, Phase::Judging);
    }

    /// Hands the collected keys to the look-up thread, one question for all of them.
    pub(super) fn ask(&mut self) {
        // While one question is under way the next one collects: the more keys in it, the less each of them costs.
        if self.ask_ids.is_empty() || (!self.asked.is_empty() && self.ask_ids.len() < ASK_LEAST) {
            return;
        }
        let since_ms = self.remembered_since();
        let keys = std::mem::replace(&mut self.ask_keys, std::mem::take(&mut self.spare_keys));
        let ids = std::mem::take(&mut self.ask_ids);
        let answer = self.wiring.lookups.ask(self.id, since_ms, keys);
        self.asked.push_back(Asked {
            answer,
            who: Who::Works(ids),
        });
    }

    /// What was first seen before is past, whoever asks.
    pub(super) fn remembered_since(&self) -> i64 {
        self.ledger
            .commit_point()
            .time_ms
            .map_or(i64::MIN, |time| self.window.reach_ms(time))
    }

    pub(super) fn set_phase(&mut self, id: WorkId, phase: Phase) {
        if let Some(work) = self.works.get_mut(id) {
            work.phase = phase;
        }
    }
}

/// What orders a message, if anything does.
pub(super) fn order_of(concurrency: Concurrency, key: Option<&[u8]>) -> Option<u64> {
    match concurrency {
        // A null key says nothing about order; two keys of one hash are ordered needlessly, never wrongly.
        Concurrency::ByKey(_) => key.map(|key| u64::from(crc32fast::hash(key)) << 32 | key.len() as u64),
        // The partition is one key: what is begun ahead waits for what comes before it.
        Concurrency::Ordered => Some(0),
        Concurrency::Unordered(_) => None,
    }
}

fn taken(
    slot: Slot,
    batch: &Arc<Batch>,
    index: usize,
    keys: &[TokenKey],
    order: Option<u64>,
    judged_ms: i64,
    policy: Option<(Reason, String)>,
) -> Work {
    Work {
        origin: Origin::Taken(slot),
        phase: Phase::Judging,
        batch: Arc::clone(batch),
        index: index as u32,
        keys: Keys::of(keys),
        order,
        has_slot: false,
        owns_key: false,
        blocks: None,
        unblocked_at: u64::MAX,
        judged_ms,
        seen_floor_ms: i64::MIN,
        attempts: 0,
        forgiven: 0,
        since_ms: 0,
        started: None,
        running_since: None,
        open_at: None,
        may_have_applied: false,
        in_doubt: false,
        suspect: false,
        is_ordered: false,
        fingerprint: None,
        policy,
        refused: None,
        behind: Vec::new(),
        original: None,
        answer: None,
        ending: None,
        closing: None,
        held_for: None,
    }
}
