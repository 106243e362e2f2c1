//! Rebuilding: what the poll thread does with partitions that are cold and are to be rebuilt.
//!
//! Prepared, not served: its window is read back by another thread, then its position is written, then it goes on like any
//! other: by way of its first commit, or of its fence in the changelog. Until then nothing of it is taken from its queue.

use std::sync::mpsc;

use super::consumer::PollThread;
use super::rebuilder::{Rebuilder, Rebuilt};
use crate::assignments::{Assignments, Prepared};
use crate::error::Error;
use crate::store::PartitionId;
use crate::wanted::Ticket;

/// What a consumer that rebuilds has besides.
pub(crate) struct Rebuilding {
    rebuilder: Rebuilder,
    rebuilt: mpsc::Receiver<Rebuilt>,
    waiting: Vec<(Ticket, Prepared)>,
}

impl Rebuilding {
    pub(crate) fn new(rebuilder: Rebuilder, rebuilt: mpsc::Receiver<Rebuilt>) -> Self {
        Self {
            rebuilder,
            rebuilt,
            waiting: Vec::new(),
        }
    }

    /// Partitions that wait for their windows: they are ours, and not served.
    pub(super) fn ids(&self) -> Vec<PartitionId> {
        self.waiting.iter().map(|(_, prepared)| prepared.id).collect()
    }

    /// They are given away, or lost: what is still written in their name is refused.
    pub(super) fn go(&mut self, assignments: &mut Assignments, ids: &[PartitionId]) {
        for id in ids {
            self.rebuilder.forget(*id);
        }
        for (_, gone) in self
            .waiting
            .extract_if(.., |(_, prepared)| ids.contains(&prepared.id))
        {
            assignments.abandon(gone);
        }
    }
}

impl PollThread {
    /// Brings a prepared partition on its way to be served.
    pub(super) fn go_on(&mut self, prepared: Prepared) -> Result<(), Error> {
        let Some(plan) = prepared.rebuild().cloned() else {
            self.come_to_serve(prepared);
            return Ok(());
        };
        let Some(rebuilding) = &mut self.rebuilding else {
            return Err(Error::Internal(format!(
                "{:?} has nobody to rebuild it",
                prepared.id
            )));
        };
        let ticket = rebuilding.rebuilder.rebuild(plan);
        rebuilding.waiting.push((ticket, prepared));
        Ok(())
    }

    /// Goes on with whatever has been rebuilt.
    pub(super) fn serve_rebuilt(&mut self) -> Result<(), Error> {
        while let Some(rebuilding) = &mut self.rebuilding
            && let Ok(Rebuilt { id, ticket, outcome }) = rebuilding.rebuilt.try_recv()
        {
            let is_it = |(wish, prepared): &mut (Ticket, Prepared)| *wish == ticket && prepared.id == id;
            let Some((_, mut prepared)) = rebuilding.waiting.extract_if(.., is_it).next() else {
                continue;
            };
            self.assignments.rebuilt(&mut prepared, outcome?)?;
            self.come_to_serve(prepared);
            self.report();
        }
        Ok(())
    }
}
