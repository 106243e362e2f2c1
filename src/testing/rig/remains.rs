//! What is found in a rig's store, while a process runs and after it, and what an operator's tool does there.

use super::Rig;
use crate::act::Said;
use crate::error::{Error, chain};
use crate::held;
use crate::message::Offset;
use crate::outcome::{Closed, Open, Verdict};
use crate::store::Store;

impl Rig {
    /// Every open record of a partition, by offset. Also when the process is gone.
    pub(crate) fn open(&self, partition: i32) -> Result<Vec<Open>, Error> {
        let Some(id) = self.id(partition) else {
            return Ok(Vec::new());
        };
        Ok(self.store.load(id)?.open)
    }

    /// The latest record of a message's tokens, inside its window or not.
    pub(crate) fn closed(&self, partition: i32, offset: Offset) -> Result<Option<Closed>, Error> {
        let (Some(id), Some(message)) = (self.id(partition), self.message(partition, offset)) else {
            return Ok(None);
        };
        let batch = message.into_batch(self.topic.as_str().into(), partition, offset);
        let Some(raw) = batch.get(0) else { return Ok(None) };
        let extractor = self.extractor();
        let mut keys = Vec::new();
        extractor.read(&raw, &mut keys);
        // What a policy gave up on is recorded under its position.
        keys.push(extractor.position(&raw));
        let mut hits = Vec::new();
        self.store.look_up(id, i64::MIN, &keys, &mut hits)?;
        let latest = hits
            .into_iter()
            .max_by_key(|hit| (hit.closed.offset == offset, hit.closed.offset));
        Ok(latest.map(|hit| hit.closed))
    }

    /// Writes a verdict beside what is held at that offset, as `hapax resolve` does. The next start carries it out.
    ///
    /// # Errors
    /// Why it cannot be given, in the words of the command line.
    pub(crate) fn decide(&mut self, partition: i32, offset: Offset, verdict: Verdict) -> Result<(), String> {
        let store = &*self.store;
        let names = store.topic(&self.topic).map(|id| (id, self.topic.clone()));
        let entries = held::list(store, &names.into_iter().collect()).map_err(|error| chain(&error))?;
        let target = held::Target::Message {
            topic: self.topic.clone(),
            partition,
            offset: offset.0,
        };
        let chosen = held::choose(&entries, &target).map_err(|refusal| refusal.to_string())?;
        let said = Said {
            reason: "the test says so".to_owned(),
            by: "the test".to_owned(),
            at_ms: self.clock.wall_ms(),
        };
        let written = held::decide(store, &chosen, verdict, &said);
        written.map(drop).map_err(|error| chain(&error))
    }
}
