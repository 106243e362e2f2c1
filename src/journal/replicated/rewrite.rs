//! Rewrite: what is open in a partition is written to its changelog again, so that no frame before is needed for it.
//!
//! A million messages may be held. What is open is noted by name first, and written in portions of so many bytes; between two
//! portions others write what they have. So a record can end, or become another, before it is written again: each portion is what the
//! store has of it *then*, with everything before applied and nothing after written. What has ended is left out, and cannot come
//! back to life; what has become another since it was noted stands in a later frame anyway.
//!
//! Whoever asked is told when the last portion is committed, and not before: only then nothing needed lies below. A crash between two
//! portions, or an assignment that ends, leaves a longer log.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};

use super::{Applied, Transactions, Writer};
use crate::fence::Gate;
use crate::journal::{Acks, Submission};
use crate::message::Offset;
use crate::outcome::Open;
use crate::store::{self, Changes, PartitionId, Position, Store, first_key};
use crate::token::TokenKey;

/// Open records that are written again in one transaction, in bytes: they wait in memory, and others wait for them.
pub(crate) const PORTION_BYTES: usize = 8 << 20;

/// What a record is called, and how long it was when it was noted.
#[derive(Debug)]
struct Noted {
    name: (TokenKey, Offset),
    bytes: usize,
}

/// What is open in one partition is to be written again.
#[derive(Debug)]
pub(super) struct Rewrite {
    id: PartitionId,
    gate: Gate,
    left: VecDeque<Noted>,
    /// How long the frames were so far.
    bytes: u64,
    /// To be told how many bytes it was, once all of it is committed.
    done: mpsc::Sender<u64>,
}

impl Rewrite {
    /// Notes what is open, in the caller's thread: it may take a while, and nobody waits for it.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn of(
        store: &dyn Store,
        id: PartitionId,
        gate: Gate,
        done: mpsc::Sender<u64>,
    ) -> Result<Self, store::Error> {
        let mut left = VecDeque::new();
        let mut note = |open: Open| {
            left.push_back(Noted {
                name: (first_key(&open), open.offset),
                bytes: open.bytes(),
            });
        };
        store.visit(id, &mut note)?;
        Ok(Self {
            id,
            gate,
            left,
            bytes: 0,
            done,
        })
    }

    /// The next of them that fit into one portion, and one that alone does not.
    fn portion(&mut self, most: usize) -> Vec<(TokenKey, Offset)> {
        let mut names = Vec::new();
        let mut room = most;
        while let Some(noted) = self.left.front() {
            if !names.is_empty() && noted.bytes > room {
                break;
            }
            room = room.saturating_sub(noted.bytes);
            names.push(noted.name);
            self.left.pop_front();
        }
        names
    }
}

impl<T: Transactions> Writer<T> {
    /// Writes one portion of what is to be written again, if anything is.
    pub(super) fn rewrite_some(&mut self) -> Result<(), String> {
        let Some(mut of) = self.rewriting.pop_front() else {
            return Ok(());
        };
        self.settle()?;
        let names = of.portion(self.rules.rewrite_bytes);
        let known = self.store.load_position(of.id).and_then(|position| {
            let opened = self.store.load_open(of.id, &names)?;
            Ok((position, opened))
        });
        let (position, opened) = known.map_err(|error| crate::error::chain(&error))?;
        let Some(position) = position else {
            return Ok(());
        };
        let mut changes = Changes::new(of.id);
        changes.opened = opened;
        // Where it stands already: this moves nothing.
        changes.position = Some(Position {
            written_ms: self.rules.clock.wall_ms(),
            ..position
        });
        let acks = Arc::new(Acks::default());
        let mut group = vec![Submission {
            gate: of.gate.clone(),
            acks: Arc::clone(&acks),
            number: 1,
            changes,
            letters: Vec::new(),
            stands: None,
        }];
        self.write(&mut group)?;
        // Nothing in the name of what is over, and nobody is told that it was written.
        if acks.state().is_err() {
            return Ok(());
        }
        of.bytes += self.bytes.get(&of.id).copied().unwrap_or(0);
        if of.left.is_empty() {
            // Whoever asked may have gone.
            let _ = of.done.send(of.bytes);
        } else {
            self.rewriting.push_back(of);
        }
        Ok(())
    }

    /// Waits until everything that is written is applied: what the store has is what the changelog says.
    fn settle(&self) -> Result<(), String> {
        let (applied, settled) = mpsc::channel();
        self.hand_on(Applied::Settle(applied))?;
        // The applier says itself why it has ended.
        settled
            .recv()
            .map_err(|_| "the store takes no more writes".to_owned())
    }
}
