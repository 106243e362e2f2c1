//! Replication: what the poll thread does besides, where the state of a partition moves with it.
//!
//! Assigned at once, served later: assigned -> its changelog is read, by another thread -> where it starts is decided, and
//! its fence goes through the journal -> served, when that is durable. Until then nothing of it is taken from its queue.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::topic_partition_list::Offset as KafkaOffset;

use super::consumer::PollThread;
use super::member::Member;
use super::restorer::{Restored, Restorer};
use crate::assignments::{Facts, Prepared};
use crate::copies::Copies;
use crate::error::Error;
use crate::journal::Acks;
use crate::journal::replicated::Replicated;
use crate::message::NextOffset;
use crate::store::PartitionId;
use crate::wanted::Ticket;

/// What a replicated consumer has besides.
pub(crate) struct Replication {
    pub(super) member: Member,
    pub(super) restorer: Restorer,
    pub(super) restored: mpsc::Receiver<Restored>,
    copies: Copies,
    journal: Replicated,
    coming: BTreeMap<PartitionId, Coming>,
    fencing: Vec<Fencing>,
}

/// Its changelog is being read.
struct Coming {
    ticket: Ticket,
    facts: Facts,
    /// Where its fetching has begun.
    expected: NextOffset,
}

/// Its fence is on the way to the changelog.
struct Fencing {
    prepared: Prepared,
    acks: Arc<Acks>,
}

/// How long the client may take to fetch from elsewhere.
const SEEK_MAX: Duration = Duration::from_secs(10);

impl Replication {
    pub(crate) fn new(
        member: Member,
        restorer: Restorer,
        restored: mpsc::Receiver<Restored>,
        copies: Copies,
        journal: Replicated,
    ) -> Self {
        Self {
            member,
            restorer,
            restored,
            copies,
            journal,
            coming: BTreeMap::new(),
            fencing: Vec::new(),
        }
    }

    /// The partition is assigned here: from now on its copy is not kept up for another.
    pub(super) fn take(&self, id: PartitionId) {
        self.copies.take(id);
    }

    /// They are not ours any more, and their gates are closed.
    pub(super) fn leave(&self, ids: &[PartitionId]) {
        self.copies.leave(ids, || self.journal.settling());
    }

    /// The same of everything.
    pub(super) fn leave_all(&self) {
        self.leave(&self.copies.ours());
    }

    /// Asks for partitions to be restored, which were assigned from those offsets on.
    pub(super) fn come(&mut self, assigned: Vec<(PartitionId, Facts, NextOffset)>) {
        let ids: Vec<_> = assigned.iter().map(|(id, ..)| *id).collect();
        let tickets = self.restorer.restore(&ids);
        for ((id, facts, expected), (_, ticket)) in assigned.into_iter().zip(tickets) {
            let coming = Coming {
                ticket,
                facts,
                expected,
            };
            self.coming.insert(id, coming);
        }
    }

    /// Partitions that are assigned, and not served yet.
    pub(super) fn pending(&self) -> usize {
        self.coming.len() + self.fencing.len()
    }

    /// They are given away, or lost.
    pub(super) fn go(&mut self, ids: &[PartitionId]) {
        for id in ids {
            self.restorer.forget(*id);
            self.coming.remove(id);
        }
        // Its gate was never opened to anybody: what is on its way is refused.
        for gone in self
            .fencing
            .extract_if(.., |fencing| ids.contains(&fencing.prepared.id))
        {
            gone.prepared.give_up();
        }
    }

    /// Its fence goes to the changelog, and its position with it.
    pub(super) fn raise_fence(&mut self, mut prepared: Prepared) {
        let acks = prepared.raise_fence();
        self.fencing.push(Fencing { prepared, acks });
    }

    pub(super) fn go_all(&mut self) {
        let ids: Vec<_> = self
            .coming
            .keys()
            .copied()
            .chain(self.fencing.iter().map(|fencing| fencing.prepared.id))
            .collect();
        self.go(&ids);
    }
}

impl PollThread {
    /// Goes on with whatever has been restored, and serves what is fenced.
    pub(super) fn serve_restored(&mut self) -> Result<(), Error> {
        let Some(replication) = &mut self.replication else {
            return Ok(());
        };
        let mut restored = Vec::new();
        while let Ok(Restored { id, ticket, outcome }) = replication.restored.try_recv() {
            if replication
                .coming
                .get(&id)
                .is_some_and(|coming| coming.ticket == ticket)
            {
                outcome?;
                restored.extend(replication.coming.remove(&id).map(|coming| (id, coming)));
            }
        }
        for (id, coming) in restored {
            self.fence(id, &coming)?;
        }
        let Some(replication) = &mut self.replication else {
            return Ok(());
        };
        let mut served = 0;
        for Fencing { prepared, .. } in replication
            .fencing
            .extract_if(.., |fencing| fencing.acks.durable() > 0)
        {
            self.assignments.serve(prepared);
            served += 1;
        }
        if served > 0 {
            self.report();
        }
        Ok(())
    }

    fn fence(&mut self, id: PartitionId, coming: &Coming) -> Result<(), Error> {
        let topic = self.assignments.topic(id).unwrap_or_default().to_owned();
        let prepared = match self.assignments.prepare(id, &coming.facts) {
            Ok(prepared) => prepared,
            Err(Error::Broker(refusal)) if refusal.is_refusal() => {
                self.refuse(id, &refusal);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let start = prepared.start.next;
        if start != coming.expected {
            // The broker has forgotten the commit, and the changelog has not.
            self.consumer
                .seek(&topic, id.partition, KafkaOffset::Offset(start.0), SEEK_MAX)
                .map_err(super::rebalance::fatal)?;
        }
        self.go_on(prepared)
    }
}
