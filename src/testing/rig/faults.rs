//! What can go wrong around a rig's process, besides its own end.

use std::time::Duration;

use super::{Rig, SETTLED_AFTER, STEP};
use crate::message::Offset;
use crate::store::memory::Fault;
use crate::testing::script::Script;

impl Rig {
    /// Delivers messages of a partition again, from that index of its log on: a rewind inside one assignment.
    pub(crate) fn deliver_again(&mut self, partition: i32, from: usize) {
        if let Some(next) = self
            .process
            .as_mut()
            .and_then(|process| process.next.get_mut(&partition))
        {
            *next = from;
        }
    }

    /// Where a message lies in the log of its partition.
    pub(crate) fn index_of(&self, partition: i32, offset: Offset) -> Option<usize> {
        let log = self.log.get(&partition)?;
        log.iter().position(|(at, _)| *at == offset.0)
    }

    /// Takes a partition away without a drain: it is lost.
    pub(crate) fn end(&mut self, partition: i32) {
        let Some(id) = self.id(partition) else { return };
        if let Some(process) = &mut self.process {
            process.assignments.end(&[id]);
            process.next.remove(&partition);
        }
    }

    /// Takes a partition away as a rebalance does: it is drained, and what is held of it goes with it.
    pub(crate) async fn revoke(&mut self, partition: i32, budget: Duration) {
        let Some(id) = self.id(partition) else { return };
        if let Some(process) = &mut self.process {
            process.next.remove(&partition);
        }
        self.drain_some(&[id], budget, true).await;
    }

    /// Whether a partition is served.
    pub(crate) fn serves(&self, partition: i32) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| process.next.contains_key(&partition))
    }

    /// As `settle`, in strides that grow while nothing happens: a schedule is one of hundreds, and most of its time is
    /// waiting.
    pub(crate) async fn run_out(&mut self, within: Duration) -> bool {
        const STRIDE_MAX: Duration = Duration::from_millis(160);
        let (mut left, mut stride, mut settled, mut reached) = (within, STEP, 0, 0);
        while settled < SETTLED_AFTER {
            if left.is_zero() || self.has_failed() {
                return false;
            }
            self.turn(stride).await;
            left = left.saturating_sub(stride);
            settled = if self.is_settled() { settled + 1 } else { 0 };
            let now = self.script.as_ref().map_or(0, Script::reached);
            stride = if now == reached && settled == 0 {
                (stride * 2).min(STRIDE_MAX)
            } else {
                STEP
            };
            reached = now;
        }
        true
    }

    /// The write after so many more fails; where no process runs, those of the next one are counted.
    pub(crate) fn fail_write(&mut self, after: u64, fault: Fault) {
        if self.is_running() {
            self.store.fail_after(after, fault);
        } else {
            self.fails = Some((after, fault));
        }
    }
}
