//! Rebuilds of a rig's partitions, read from its logs.

use std::sync::Arc;

use super::Rig;
use crate::error::Error;
use crate::ledger::CommitPoint;
use crate::message::Offset;
use crate::rebuild::{Plan, Rebuild};
use crate::store::Store;

impl Rig {
    /// Reads a window back, message by message; `None` where the process dies before the end.
    pub(super) fn read_back(&self, plan: Plan) -> Result<Option<CommitPoint>, Error> {
        let store: Arc<dyn Store> = Arc::clone(&self.store) as Arc<dyn Store>;
        let (partition, next) = (plan.id.partition, plan.start.next);
        let never = || false;
        let (mut rebuild, _) = Rebuild::begin(plan, &store, None, 1, &never)?;
        let log = self.log.get(&partition).into_iter().flatten();
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
