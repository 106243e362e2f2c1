//! Given: what an outcome gives back, as messages that become visible with it.
//!
//! Where letters are written with outcomes (`replicated`), they are in the group of the outcome. Else the outcome and they are made
//! durable as `Settling`, then they are sent, then the token is closed: a crash in between sends them again, with the same headers.

use super::Partition;
use super::work::{Ending, Phase, WorkId};
use crate::accounts::Account;
use crate::dead_letter;
use crate::handler::{Emitted, TOKEN_HEADER};
use crate::message::Kept;
use crate::outcome::{End, Stage};
use crate::output::Output;
use crate::token;

impl Partition {
    /// The token ends like that, and this becomes visible with it.
    pub(super) fn close(&mut self, id: WorkId, account: Account, end: End, outputs: Vec<Output>) {
        if outputs.is_empty() || self.wiring.state_moves() {
            self.record_with(id, account, end, outputs);
        } else {
            self.settle(id, account, end, String::new(), outputs);
        }
    }

    /// Closes the token, with what becomes visible in the same group.
    pub(super) fn record_with(&mut self, id: WorkId, account: Account, end: End, outputs: Vec<Output>) {
        self.count_given(&outputs);
        self.letters.extend(outputs.into_iter().map(dead_letter::output));
        // A duplicate is no outcome of its own.
        if account != Account::Duplicate {
            self.count_closed(&end);
        }
        self.record(id, account, end);
    }

    /// What is decided, and what is to be sent of it, on the way to the disk; sent once that is durable.
    pub(super) fn settle(
        &mut self,
        id: WorkId,
        account: Account,
        end: End,
        error: String,
        outputs: Vec<Output>,
    ) {
        self.take_fingerprint(id);
        self.free_slot(id);
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        // Only a dead letter is made of the message.
        let message = match end {
            End::Failed(_) => Kept::copy_of(&work.raw()),
            _ => Kept::empty(),
        };
        work.phase = Phase::Settling;
        work.ending = Some(Box::new(Ending {
            account,
            end: end.clone(),
            error: error.clone(),
            outputs: outputs.clone(),
            unsent: None,
            failed_sends: 0,
        }));
        let stage = Stage::Settling {
            end,
            message,
            error,
            outputs,
        };
        if let Some(open) = self.open_record(id, stage) {
            self.write_open(id, open);
        }
    }

    /// What a handler emitted, with the headers that say whose it is.
    pub(super) fn outputs(&self, id: WorkId, emitted: Vec<Emitted>) -> Vec<Output> {
        let Some(work) = self.works.get(id).filter(|_| !emitted.is_empty()) else {
            return Vec::new();
        };
        let (token, offset) = (work.keys.first(), work.offset());
        let with_lineage = |Emitted { name, mut output }: Emitted| {
            let child = token::child(&token, &name);
            output.headers.push((TOKEN_HEADER.to_owned(), Some(child.into())));
            let id = dead_letter::id(
                &self.wiring.topic,
                self.partition,
                offset,
                &format!("output\n{name}"),
            );
            let lineage = [
                ("id", id),
                ("output", name),
                ("topic", self.wiring.topic.to_string()),
                ("partition", self.partition.to_string()),
                ("offset", offset.to_string()),
            ];
            output.headers.extend(dead_letter::own_headers(lineage));
            output
        };
        emitted.into_iter().map(with_lineage).collect()
    }

    pub(super) fn count_given(&self, outputs: &[Output]) {
        let has = |output: &Output, name: &str| output.headers.iter().any(|(found, _)| found == name);
        for output in outputs {
            let meters = &self.wiring.meters;
            let counter = match output {
                output if has(output, "hapax-output") => &meters.outputs,
                output if has(output, "hapax-replayed") => &meters.replays,
                output if has(output, "hapax-reply") => &meters.replies,
                _ => &meters.receipts,
            };
            counter.increment(1);
        }
    }

    pub(super) fn count_closed(&self, end: &End) {
        match end {
            End::Done(_) => self.wiring.meters.done.increment(1),
            End::Failed(reason) => self.wiring.meters.failed(*reason),
            End::Invalidated(_) | End::Forgotten => {}
        }
    }
}
