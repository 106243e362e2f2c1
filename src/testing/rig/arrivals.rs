//! Partitions that arrive: assigned, and served once the broker has said what it knows of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Rig;
use crate::arrivals::{Arrivals, Questions};
use crate::assignments::Facts;
use crate::error::Error;
use crate::store::PartitionId;

/// What the rig's broker answers: nothing of partitions whose commit is in a transaction that is still open.
#[derive(Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    facts: BTreeMap<i32, Facts>,
    unstable: BTreeSet<i32>,
    questions: usize,
}

impl Answers {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction with the partition's commit begins, or is over.
    pub(crate) fn unstable(&self, partition: i32, is_open: bool) {
        let mut known = self.known();
        match is_open {
            true => known.unstable.insert(partition),
            false => known.unstable.remove(&partition),
        };
    }

    /// How often it was asked.
    pub(crate) fn questions(&self) -> usize {
        self.known().questions
    }
}

impl Questions for Answers {
    fn ask(&mut self, ids: &[PartitionId], _: Duration) -> Result<Vec<Facts>, Error> {
        let mut known = self.known();
        known.questions += 1;
        let of = |id: &PartitionId| {
            let stable = !known.unstable.contains(&id.partition);
            let facts = known.facts.get(&id.partition).filter(|_| stable).cloned();
            facts.ok_or_else(|| Error::Internal("UnstableOffsetCommit".into()))
        };
        ids.iter().map(of).collect()
    }
}

/// What the rig has under way.
pub(crate) struct Arriving {
    pub(crate) answers: Answers,
    arrivals: Arrivals,
}

impl Arriving {
    pub(crate) fn new() -> Self {
        let answers = Answers::default();
        let arrivals = Arrivals::start(answers.clone(), || {});
        Self {
            answers,
            arrivals: arrivals.unwrap_or_else(|error| panic!("no thread: {error}")),
        }
    }

    /// Partitions of which nothing is known yet.
    pub(crate) fn waiting(&self) -> usize {
        self.arrivals.waiting().len()
    }
}

impl Rig {
    /// The group assigns those partitions to the running process.
    pub(crate) fn arrive(&mut self, arriving: &mut Arriving, partitions: &[i32]) {
        self.tell(arriving);
        let ids: Vec<_> = partitions
            .iter()
            .filter_map(|partition| self.id(*partition))
            .collect();
        arriving.arrivals.expect(&ids);
    }

    /// The group takes it away again.
    pub(crate) fn depart(&mut self, arriving: &mut Arriving, partition: i32) {
        let ids: Vec<_> = self.id(partition).into_iter().collect();
        arriving.arrivals.forget(&ids);
        self.end(partition);
    }

    /// One turn of what the poll thread does: takes up whatever is known by now.
    pub(crate) fn take_up(&mut self, arriving: &mut Arriving) -> Result<(), Error> {
        for (id, facts) in arriving.arrivals.take()? {
            self.assign_with(id.partition, &facts)?;
        }
        Ok(())
    }

    /// The broker knows what it knows now.
    fn tell(&self, arriving: &Arriving) {
        let mut known = arriving.answers.known();
        known.facts = self
            .log
            .keys()
            .map(|partition| (*partition, self.facts(*partition)))
            .collect();
    }

    /// Partitions that are served.
    pub(crate) fn served(&self) -> Vec<i32> {
        let process = self.process.as_ref();
        let ids = process.map(|process| process.assignments.ids());
        ids.into_iter().flatten().map(|id| id.partition).collect()
    }
}
