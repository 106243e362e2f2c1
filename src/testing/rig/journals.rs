//! The journals of a rig: one that is durable at once, and one that takes its time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::journal::{Failure, Journal, Submission};
use crate::store::Store;
use crate::testing::letterbox::Letterbox;
use crate::testing::script::{self, Change, Edge, Script, Side};

/// A journal that is durable at once, in the caller's thread.
pub(super) struct Inline {
    pub(super) store: Arc<dyn Store>,
    /// Where the letters of a group go, that has some.
    pub(super) letterbox: Letterbox,
    pub(super) script: Option<Script>,
}

impl Journal for Inline {
    fn submit(&self, submission: Submission) {
        if !submission.gate.accepts() {
            submission.acks.fail(Failure::Fenced);
            return;
        }
        let dies_at = |says: &[Change], side| {
            let script = self.script.as_ref();
            script.is_some_and(|script| script.dies_at(Edge::Group(says.to_vec()), side))
        };
        let says = script::changes(&submission.changes);
        // A process that is gone is answered nothing.
        if dies_at(&says, Side::Before) {
            return;
        }
        #[cfg(test)]
        let submission = self.tampered(submission);
        let applied = self.store.apply(&[submission.changes]);
        if applied.is_ok() {
            self.letterbox.post(submission.letters);
        }
        match applied {
            Ok(()) if dies_at(&says, Side::After) => {}
            Ok(()) => submission.acks.acknowledge(submission.number),
            Err(error) => submission.acks.fail(Failure::Broken(crate::error::chain(&error))),
        }
    }
}

/// A journal that takes its time: what is submitted meanwhile becomes durable together, as one group.
pub(super) struct Late(mpsc::UnboundedSender<Submission>);

impl Late {
    pub(super) fn start(store: Arc<dyn Store>, letterbox: &Letterbox, delay: Duration) -> Self {
        let (submissions, mut inbox) = mpsc::unbounded_channel::<Submission>();
        let journal = Inline {
            store,
            letterbox: letterbox.clone(),
            script: None,
        };
        tokio::spawn(async move {
            while let Some(first) = inbox.recv().await {
                crate::clock::sleep_until(crate::clock::now() + delay).await;
                journal.submit(first);
                while let Ok(next) = inbox.try_recv() {
                    journal.submit(next);
                }
            }
        });
        Self(submissions)
    }
}

impl Journal for Late {
    fn submit(&self, submission: Submission) {
        if let Err(mpsc::error::SendError(submission)) = self.0.send(submission) {
            submission
                .acks
                .fail(Failure::Broken("the journal is gone".into()));
        }
    }
}

#[cfg(test)]
impl Inline {
    /// What of a group is written, where a fault is planted.
    fn tampered(&self, mut submission: Submission) -> Submission {
        if let Some(script) = &self.script {
            script.tamper(&mut submission.changes);
        }
        submission
    }
}
