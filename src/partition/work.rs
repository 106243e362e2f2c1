//! Work: one message on its way through a partition task, and the index of every open token.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::sieve::{Place, Sieve};
use crate::accounts::Account;
use crate::broker::Letter;
use crate::clock::Instant;
use crate::ledger::Slot;
use crate::message::{Batch, Offset, Raw};
use crate::outcome::{Closed, End, Fingerprint, HeldFor, Reason, Verdict};
use crate::output::Output;
use crate::token::TokenKey;

/// Names one piece of work; reused once it is complete.
pub(super) type WorkId = usize;

/// Names one open record that no work is about.
pub(super) type OpenId = usize;

/// The keys of one message: nearly always one, and then without an allocation.
#[derive(Debug, Clone)]
pub(super) enum Keys {
    One(TokenKey),
    Many(Box<[TokenKey]>),
}

impl Keys {
    pub(super) fn of(keys: &[TokenKey]) -> Self {
        match keys {
            [one] => Self::One(*one),
            many => Self::Many(many.into()),
        }
    }

    pub(super) fn as_slice(&self) -> &[TokenKey] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }

    /// The key of the first source: names the open record.
    pub(super) fn first(&self) -> TokenKey {
        match self {
            Self::One(key) => *key,
            Self::Many(keys) => keys.first().copied().unwrap_or(TokenKey([0; 16])),
        }
    }
}

/// Where a piece of work is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its look-up is under way.
    Judging,
    /// Another message of its token is in flight here: it waits for that outcome, without a slot.
    Behind,
    /// Judged, to be run when there is a slot.
    Ready,
    /// Its key is busy with an earlier message.
    BehindKey,
    /// Being decoded.
    Preparing,
    /// Its begin is on the way to the disk.
    Beginning,
    /// Begun ahead, or prepared when the breaker opened: durable, and waiting for a slot or for the breaker.
    Begun,
    /// The handler runs.
    Running,
    /// "Not applied" is on the way to the disk; the wait comes after.
    Noting,
    /// Waiting for the next attempt.
    Waiting,
    /// The probe is asked.
    Probing,
    /// An operator's verdict about it is on the way to the disk.
    Deciding(Verdict),
    /// Its outcome is on the way to the disk.
    Recording,
    /// Its hold is on the way to the disk.
    Holding,
    /// Its outcome, with what is to be sent of it, is on the way to the disk.
    Settling,
    /// Its dead letter and its outputs are on the way to the broker.
    Sending,
    /// They could not be sent before the partition is left.
    Unsent,
}

/// How a piece of work came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Delivered, at that place in the ledger.
    Taken(Slot),
    /// Found in the store at assignment: it lies in no ledger.
    Restored,
}

/// One message on its way.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) origin: Origin,
    pub(super) phase: Phase,
    pub(super) batch: Arc<Batch>,
    pub(super) index: u32,
    pub(super) keys: Keys,
    /// The message key's hash for `by_key`; `None` where nothing orders it.
    pub(super) order: Option<u64>,
    /// Whether it holds a slot.
    pub(super) has_slot: bool,
    /// Whether its key is its own, so that later messages of the key wait.
    pub(super) owns_key: bool,
    /// The key whose other messages are held until this one has ended.
    pub(super) blocks: Option<u64>,
    /// How many keys had been held up so far when its own was found not to be: until there are more, it is not.
    pub(super) unblocked_at: u64,
    /// Partition time when it was judged.
    pub(super) judged_ms: i64,
    /// Not before this are its records first seen: a token that ran again must not lie below its older record.
    pub(super) seen_floor_ms: i64,
    /// Attempts started or begun so far, also in earlier processes.
    pub(super) attempts: u32,
    /// Those of them that are not counted against it, since an operator said run. Their numbers are not given again: a
    /// verdict is about the attempts that whoever gives it knows of.
    pub(super) forgiven: u32,
    /// Wall clock of its first begin, 0 before.
    pub(super) since_ms: i64,
    /// When its first attempt here started.
    pub(super) started: Option<Instant>,
    /// When its latest attempt here started.
    pub(super) running_since: Option<Instant>,
    /// The open record that this work has to remove when it ends: its name and offset.
    pub(super) open_at: Option<(TokenKey, Offset)>,
    /// An earlier attempt may have applied something.
    pub(super) may_have_applied: bool,
    /// That is to be decided before it runs: its class's row comes first.
    pub(super) in_doubt: bool,
    /// It is begun in every class: the process died while messages like this one ran.
    pub(super) suspect: bool,
    /// An operator said run: it is not asked whether it is too old.
    pub(super) is_ordered: bool,
    pub(super) fingerprint: Option<Fingerprint>,
    /// What a policy says of it, once it is known to be new.
    pub(super) policy: Option<(Reason, String)>,
    /// The keys of its token, where a policy refused it and it goes by its position.
    pub(super) refused: Option<Box<Keys>>,
    /// Messages of its token that wait for its outcome, in offset order.
    pub(super) behind: Vec<WorkId>,
    /// The offset whose outcome decided about this message.
    pub(super) original: Option<Offset>,
    /// It is a duplicate that is told so, and goes by its position.
    pub(super) answer: Option<Box<Answer>>,
    /// The end whose letter is to be sent first.
    pub(super) ending: Option<Box<Ending>>,
    /// The outcome that is on its way to the disk, and the account that the message then lies in.
    pub(super) closing: Option<(Account, Closed)>,
    /// Why it is being held.
    pub(super) held_for: Option<HeldFor>,
}

/// What a duplicate is told.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// The outcome that suppresses it.
    pub(super) closed: Closed,
    /// Where its reply goes.
    pub(super) reply_to: Option<String>,
}

/// An end on its way.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) account: Account,
    pub(super) end: End,
    pub(super) error: String,
    /// What is to be sent besides a dead letter.
    pub(super) outputs: Vec<Output>,
    /// What is left of all that, once a send has failed.
    pub(super) unsent: Option<Vec<Letter>>,
    /// Sends that failed so far.
    pub(super) failed_sends: u32,
}

impl Work {
    /// Attempts that count towards what a message may have.
    pub(super) const fn counted(&self) -> u32 {
        self.attempts.saturating_sub(self.forgiven)
    }

    pub(super) fn raw(&self) -> Raw<'_> {
        match self.batch.get(self.index as usize) {
            Some(raw) => raw,
            None => panic!(
                "work points at message {} of a batch of {}",
                self.index,
                self.batch.len()
            ),
        }
    }

    pub(super) fn offset(&self) -> Offset {
        self.raw().offset()
    }

    pub(super) fn first_seen_ms(&self) -> i64 {
        self.judged_ms.max(self.seen_floor_ms)
    }

    /// Whether it is a duplicate by that very outcome, and ends as one.
    pub(super) fn shares(&self, closed: &Closed) -> bool {
        let own = match (&self.closing, &self.answer) {
            (Some((Account::Duplicate, own)), _) => own,
            (None, Some(answer)) => &answer.closed,
            _ => return false,
        };
        (own.offset, own.first_seen_ms) == (closed.offset, closed.first_seen_ms)
    }

    /// As who it claims its tokens, under that number.
    pub(super) fn claimant(&self, id: WorkId) -> Claimant {
        Claimant {
            at: self.offset(),
            who: Holder::Work(id),
        }
    }
}

/// An open record that no work is about: begun by somebody who is gone, or held. Its bytes stay in the store.
#[derive(Debug)]
pub(super) struct Resting {
    pub(super) keys: Keys,
    pub(super) offset: Offset,
    pub(super) attempts: u32,
    pub(super) since_ms: i64,
    pub(super) first_seen_ms: i64,
    pub(super) state: RestingState,
    /// The key that it holds up, or waits for.
    pub(super) order: Option<u64>,
    /// It waited for its key, or behind its token, and is on its way from the store.
    pub(super) is_its_turn: bool,
}

impl Resting {
    /// Whether it is kept for later, and not only begun by somebody who is gone.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.state, RestingState::Held(_))
    }

    /// Whether it is judged by what becomes of its token.
    pub(super) fn is_behind_its_token(&self) -> bool {
        self.state == RestingState::Held(HeldFor::Token)
    }

    /// What its record is called.
    pub(super) fn name(&self) -> (TokenKey, Offset) {
        (self.keys.first(), self.offset)
    }

    /// As who it has its tokens, under that number.
    pub(super) fn claimant(&self, id: OpenId) -> Claimant {
        Claimant {
            at: self.offset,
            who: Holder::Resting(id),
        }
    }
}

/// What an open record without work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestingState {
    /// Its owner is gone.
    Begun {
        /// The last attempt is known to have changed nothing.
        not_applied: bool,
    },
    /// Kept for later.
    Held(HeldFor),
    /// No message: an operator has decided about its token, and that is on its way to the disk.
    Decided,
}

/// Who has a token open. Of one message the record comes before the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// A record at rest.
    Resting(OpenId),
    /// Work in flight.
    Work(WorkId),
}

/// Whoever wants a token, in the order in which it is theirs: the lower offset comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub(super) at: Offset,
    pub(super) who: Holder,
}

/// Every open token of the partition, who has it, and who has it next.
///
/// A message of several tokens may have one of them while others are still somebody else's. It is in the line of those, so that
/// a later message does not pass it there: 9 has the tokens n and o and waits for n, o is free, and 11 has o. If 11 ran, 9 would
/// find its token closed above itself, and pass for a redelivery of what was decided before.
///
/// Records at rest lie apart from work in flight: there may be a million of them, and every message enters the index and
/// leaves it again. In one map it would do so at a place that no cache has.
#[derive(Debug, Default)]
pub(super) struct Index {
    works: HashMap<TokenKey, WorkId, Uniform>,
    /// Never a key that is in the other one.
    resting: HashMap<TokenKey, u32, Uniform>,
    /// Says of nearly every key that none of those has it.
    sieve: Sieve,
    /// Who waits for a key, whoever has it. Not whoever waits for work that has it and wants no other: work knows who waits behind it.
    lines: HashMap<TokenKey, BTreeSet<Claimant>, Uniform>,
    /// Those in a line that wait for work, and are asked about nothing until that has ended.
    stalled: HashMap<TokenKey, BTreeSet<Claimant>, Uniform>,
}

#[cfg(test)]
thread_local! {
    /// What tests count instead of time: how often an index of this thread was changed, or asked for a change.
    pub(super) static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn step() {
    #[cfg(test)]
    STEPS.set(STEPS.get() + 1);
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.works.len() + self.resting.len()
    }

    /// Makes room for so many records at rest.
    pub(super) fn reserve(&mut self, records: usize) {
        self.resting.reserve(records);
    }

    /// Who has a key, or is the first in its line.
    pub(super) fn get(&self, key: &TokenKey) -> Option<Holder> {
        self.owner(key)
            .or_else(|| self.line(key).next().map(|first| first.who))
    }

    fn owner(&self, key: &TokenKey) -> Option<Holder> {
        let resting = || self.resting.get(key).map(|id| Holder::Resting(*id as OpenId));
        self.works.get(key).map(|id| Holder::Work(*id)).or_else(resting)
    }

    /// Who waits for a key, in their order.
    pub(super) fn line(&self, key: &TokenKey) -> impl Iterator<Item = Claimant> {
        self.lines.get(key).into_iter().flatten().copied()
    }

    /// Whether anybody is in the line of a key.
    pub(super) fn has_line(&self, key: &TokenKey) -> bool {
        !self.lines.is_empty() && self.lines.contains_key(key)
    }

    /// Whether a record of that offset waits for a key.
    pub(super) fn waits_at(&self, key: &TokenKey, at: Offset) -> bool {
        let first = |who| Claimant { at, who };
        let records = first(Holder::Resting(0))..first(Holder::Work(0));
        let line = self.lines.get(key);
        line.is_some_and(|line| line.range(records).next().is_some())
    }

    /// No record is at rest, and nobody waits.
    pub(super) fn is_free(&self) -> bool {
        self.resting.is_empty() && self.lines.is_empty()
    }

    /// Whether anybody is in any line.
    pub(super) fn has_lines(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Where the sieve of the records at rest has that key.
    pub(super) fn place(&self, key: &TokenKey) -> Place {
        self.sieve.place(prefix(key))
    }

    /// Whether a record at rest may have the key of that place. `false` is sure.
    pub(super) fn may_rest(&self, place: Place) -> bool {
        self.sieve.may_have(place)
    }

    /// Whether a record at rest has that key, or somebody waits for it.
    pub(super) fn rests(&self, key: &TokenKey) -> bool {
        self.resting.contains_key(key) || self.has_line(key)
    }

    /// The same as [`claim`](Self::claim), for work, of a key that no record at rest had, and nobody waited for.
    pub(super) fn claim_fresh(&mut self, key: TokenKey, at: Offset, id: WorkId) -> Option<Holder> {
        let who = Holder::Work(id);
        if self.has_line(&key) {
            return self.claim(key, Claimant { at, who });
        }
        match self.works.entry(key) {
            Entry::Occupied(entry) => Some(Holder::Work(*entry.get())),
            Entry::Vacant(entry) => {
                entry.insert(id);
                None
            }
        }
    }

    /// Gives a key that nobody has, or waits for before it, to that one; who does, else.
    pub(super) fn claim(&mut self, key: TokenKey, by: Claimant) -> Option<Holder> {
        step();
        let first = || self.line(&key).next().filter(|first| *first < by);
        if let Some(before) = self.owner(&key).or_else(|| first().map(|first| first.who)) {
            return Some(before);
        }
        self.put(key, by);
        None
    }

    /// Gives a key that nobody has to that one, whoever waits for it; into its line, else.
    pub(super) fn give(&mut self, key: TokenKey, to: Claimant) {
        step();
        match self.owner(&key) {
            None => self.put(key, to),
            Some(owner) if owner == to.who => {}
            Some(_) => self.wait(key, to),
        }
    }

    fn put(&mut self, key: TokenKey, owner: Claimant) {
        self.leave_line(&key, owner);
        match owner.who {
            Holder::Work(id) => {
                self.works.insert(key, id);
            }
            Holder::Resting(id) => {
                self.sieve.add(prefix(&key), self.resting.keys().map(prefix));
                self.resting.insert(key, number(id));
            }
        }
    }

    /// Into the line of a key.
    pub(super) fn wait(&mut self, key: TokenKey, by: Claimant) {
        step();
        self.lines.entry(key).or_default().insert(by);
    }

    /// Notes whether one in the line of a key waits for work.
    pub(super) fn stall(&mut self, key: &TokenKey, by: Claimant, is_stalled: bool) {
        if is_stalled && self.lines.get(key).is_some_and(|line| line.contains(&by)) {
            self.stalled.entry(*key).or_default().insert(by);
        } else {
            strike(&mut self.stalled, key, by);
        }
    }

    /// Who is stalled in the line of a key, and comes before that one.
    pub(super) fn stalled_before(&self, key: &TokenKey, by: Claimant) -> Option<Holder> {
        if self.stalled.is_empty() {
            return None;
        }
        let first = self.stalled.get(key)?.first().filter(|first| **first < by);
        first.map(|first| first.who)
    }

    /// Gives a key to one that comes before its owner. That one waits in its line from now on, and for work.
    pub(super) fn pass(&mut self, key: TokenKey, owner: Claimant, by: Claimant) {
        self.hand_over(key, owner, by);
        self.wait(key, owner);
        self.stall(&key, owner, true);
    }

    fn leave_line(&mut self, key: &TokenKey, from: Claimant) {
        strike(&mut self.lines, key, from);
        strike(&mut self.stalled, key, from);
    }

    /// Takes the key, or the place in its line, away from that one.
    pub(super) fn leave(&mut self, key: &TokenKey, from: Claimant) {
        step();
        match from.who {
            Holder::Work(id) => match self.works.entry(*key) {
                Entry::Occupied(entry) if *entry.get() == id => {
                    entry.remove();
                }
                _ => self.leave_line(key, from),
            },
            Holder::Resting(id) => match self.resting.entry(*key) {
                Entry::Occupied(entry) if *entry.get() == number(id) => {
                    entry.remove();
                }
                _ => self.leave_line(key, from),
            },
        }
    }

    /// One becomes the other: the key, or the place in its line, is the other's.
    pub(super) fn hand_over(&mut self, key: TokenKey, from: Claimant, to: Claimant) {
        let owner = self.owner(&key);
        self.leave(&key, from);
        if owner == Some(from.who) {
            self.put(key, to);
        } else if owner != Some(to.who) {
            self.wait(key, to);
        }
    }
}

fn strike(lines: &mut HashMap<TokenKey, BTreeSet<Claimant>, Uniform>, key: &TokenKey, one: Claimant) {
    if lines.is_empty() {
        return;
    }
    if let Entry::Occupied(mut line) = lines.entry(*key) {
        line.get_mut().remove(&one);
        if line.get().is_empty() {
            line.remove();
        }
    }
}

/// As the index keeps it: four bytes less for each held message.
pub(super) fn number(id: OpenId) -> u32 {
    match u32::try_from(id) {
        Ok(number) => number,
        Err(_) => panic!("{id} records at rest in one partition"),
    }
}

fn prefix(key: &TokenKey) -> u64 {
    key.0
        .first_chunk()
        .map_or(0, |prefix| u64::from_le_bytes(*prefix))
}

/// Token keys are uniform already: their first eight bytes are the hash.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Uniform;

impl std::hash::BuildHasher for Uniform {
    type Hasher = Prefix;

    fn build_hasher(&self) -> Prefix {
        Prefix(0)
    }
}

/// See [`Uniform`].
#[derive(Debug)]
pub(super) struct Prefix(u64);

impl std::hash::Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(prefix) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*prefix);
        }
    }

    // A derived `Hash` of an array writes its length first; it says nothing here.
    fn write_usize(&mut self, _: usize) {}
}
