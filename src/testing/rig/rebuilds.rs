//! Rebuilds of a rig's partitions, read from its logs.

use std::sync::Arc;

use super::Rig;
use crate::error::Error;
use crate::ledger::CommitPoint;
use crate::message::{Kept, Offset};
use crate::rebuild::{Plan, Rebuild};
use crate::store::Store;

impl Rig {
    /// Reads a window back, message by message; `None` where the process dies before the end.
    pub(super) fn read_back(&self, plan: Plan) -> Result<Option<CommitPoint>, Error> {
        let store: Arc<dyn Store> = Arc::clone(&self.store) as Arc<dyn Store>;
        let (partition, next) = (plan.id.partition, plan.start.next);
        let never = || false;
        // From the first message that may still count on, as it is found by its timestamp.
        let reach_ms = plan.time_ms.map(|time_ms| plan.part().reach_ms(time_ms));
        let is_past = |message: &Kept| {
            message
                .timestamp_ms
                .zip(reach_ms)
                .is_some_and(|(at, reach)| at < reach)
        };
        let (mut rebuild, _) = Rebuild::begin(plan, &store, reach_ms, 1, &never)?;
        let log = self.log.get(&partition).into_iter().flatten();
        let log = log.skip_while(|(_, message)| is_past(message));
        for (read, (offset, message)) in log.enumerate() {
            if self.rebuild_dies_after == Some(read) {
                // What it has read so far is written.
                rebuild.end(&never)?;
                return Ok(None);
            }
            if Offset(*offset).next() <= next {
                let batch = message.into_batch(self.topic.as_str().into(), partition, Offset(*offset));
                rebuild.take(&batch, &never)?;
            }
        }
        Ok(rebuild.end(&never)?.map(|(point, _)| point))
    }
}
