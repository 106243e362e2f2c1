//! Resting: the open records that no work is about, and how those of an assignment are found.
//!
//! A million messages may be held. Their bytes stay in the store: at an assignment one record at a time is read, and its
//! message is dropped before the next one comes. Whole are only those that become work at once. What a partition task asks
//! at each turn (is one of them too old, how old is the oldest?) costs the same however many there are.

use std::collections::BTreeSet;

use slab::Slab;

use super::work::{Keys, OpenId, Resting, RestingState, number};
use crate::config::Concurrency;
use crate::message::Offset;
use crate::outcome::{HeldFor, Open, Stage, Verdict};
use crate::store::{self, Known, PartitionId, Store};
use crate::token::TokenKey;

/// Every record at rest, and which are the oldest.
#[derive(Debug, Default)]
pub(super) struct Rests {
    records: Slab<Resting>,
    /// The wall clock since when each is open, and its number; the held ones apart from those that were begun.
    held: BTreeSet<(i64, u32)>,
    begun: BTreeSet<(i64, u32)>,
}

impl Rests {
    pub(super) fn insert(&mut self, resting: Resting) -> OpenId {
        let (is_held, since_ms) = (resting.is_held(), resting.since_ms);
        let id = self.records.insert(resting);
        self.ages(is_held).insert((since_ms, number(id)));
        id
    }

    fn ages(&mut self, is_held: bool) -> &mut BTreeSet<(i64, u32)> {
        if is_held { &mut self.held } else { &mut self.begun }
    }

    pub(super) fn try_remove(&mut self, id: OpenId) -> Option<Resting> {
        let resting = self.records.try_remove(id)?;
        let age = (resting.since_ms, number(id));
        let was_there = self.ages(resting.is_held()).remove(&age);
        assert!(was_there, "record {id} at rest had no age: {resting:?}");
        Some(resting)
    }

    pub(super) fn get(&self, id: OpenId) -> Option<&Resting> {
        self.records.get(id)
    }

    /// What it is held for may change, not whether it is held, nor since when.
    pub(super) fn get_mut(&mut self, id: OpenId) -> Option<&mut Resting> {
        self.records.get_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (OpenId, &Resting)> {
        self.records.iter()
    }

    /// The wall clock since when the oldest of all is open.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        let oldest = self.held.first().into_iter().chain(self.begun.first());
        oldest.map(|(since_ms, _)| *since_ms).min()
    }

    /// Held records and since when each is open, the oldest first.
    pub(super) fn held(&self) -> impl Iterator<Item = (i64, OpenId)> {
        self.held.iter().map(|(since_ms, id)| (*since_ms, *id as OpenId))
    }
}

/// An open record as it is found at an assignment.
#[derive(Debug)]
pub(crate) struct Found(pub(super) Kind);

/// See [`Found`].
#[derive(Debug)]
pub(super) enum Kind {
    /// With its message, where it has one: it is work at once, or a letter to be sent.
    Whole(Box<Open>),
    /// Without: it rests. The bytes of its message count against `held_bytes`.
    Resting(Resting, usize),
}

impl Found {
    /// Drops what a record at rest has no use for.
    pub(super) fn of(open: Open, concurrency: Concurrency) -> Self {
        let state = match &open.stage {
            Stage::Begun {
                not_applied,
                message: None,
            } => RestingState::Begun {
                not_applied: *not_applied,
            },
            Stage::Held {
                why, verdict: None, ..
            } => RestingState::Held(*why),
            // Not beside whoever has its token open, but after it.
            Stage::Held {
                why: HeldFor::Token,
                verdict: Some(Verdict::Run),
                ..
            } => RestingState::Held(HeldFor::Token),
            _ => return Self(Kind::Whole(Box::new(open))),
        };
        let order = match &open.stage {
            Stage::Held { message, .. } => super::admit::order_of(concurrency, message.key.as_deref()),
            _ => None,
        };
        let bytes = open.bytes();
        let resting = Resting {
            keys: Keys::of(&open.keys),
            offset: open.offset,
            attempts: open.attempts,
            since_ms: open.since_ms,
            first_seen_ms: open.first_seen_ms,
            state,
            order,
            is_its_turn: false,
        };
        Self(Kind::Resting(resting, bytes))
    }

    pub(super) fn is_behind_its_token(&self) -> bool {
        match &self.0 {
            Kind::Whole(open) => open.is_behind_its_token(),
            Kind::Resting(resting, _) => resting.is_behind_its_token(),
        }
    }

    fn offset(&self) -> Offset {
        match &self.0 {
            Kind::Whole(open) => open.offset,
            Kind::Resting(resting, _) => resting.offset,
        }
    }

    pub(super) fn keys(&self) -> &[TokenKey] {
        match &self.0 {
            Kind::Whole(open) => &open.keys,
            Kind::Resting(resting, _) => resting.keys.as_slice(),
        }
    }

    /// Whether Kafka has the message still: it was begun, and no more is kept of it.
    pub(crate) fn is_with_kafka(&self) -> bool {
        matches!(
            self.0,
            Kind::Resting(
                Resting {
                    state: RestingState::Begun { .. },
                    ..
                },
                _
            )
        )
    }
}

/// What the store knows of a partition; its open records by offset, and apart from the rest.
///
/// # Errors
/// Those of the store.
pub(crate) fn find(
    store: &dyn Store,
    id: PartitionId,
    concurrency: Concurrency,
) -> Result<(Known, Vec<Found>), store::Error> {
    let mut found = Vec::new();
    let known = store.visit(id, &mut |open| found.push(Found::of(open, concurrency)))?;
    // One offset may have two records: held behind its token, and its own.
    found.sort_unstable_by_key(|found: &Found| (found.offset(), found.keys().first().copied()));
    Ok((known, found))
}
