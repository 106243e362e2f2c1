//! Parked: submissions with a message for a topic that is not on the cluster.
//!
//! A handler may emit to any topic, and a name can be wrong. A transaction with such a message is never committed, whoever else is in
//! it; so what has one is set aside before, with everything that its partition submits after it, and asked about again and again until
//! the topic is there. That partition waits, as it does in local mode, and the others go on. An assignment that ends takes what it has
//! here with it: nothing of it was written, and what was begun is in doubt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Transactions;
use crate::clock::{self, Instant};
use crate::journal::{Failure, Submission};
use crate::store::PartitionId;

/// Between two questions about a topic that is missing: at first, and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// What one partition waits with.
struct Waiting {
    submissions: VecDeque<Submission>,
    again: Instant,
    wait: Duration,
}

/// See the module.
#[derive(Default)]
pub(super) struct Parked(BTreeMap<PartitionId, Waiting>);

impl Parked {
    /// How long until something is to be asked again; `None` where nothing waits.
    pub(super) fn wait(&self) -> Option<Duration> {
        let next = self.0.values().map(|waiting| waiting.again).min();
        next.map(|again| again.saturating_duration_since(clock::now()))
    }

    /// Takes out of a group what cannot be written, and what may not be written before it.
    pub(super) fn set_aside(&mut self, group: &mut Vec<Submission>, kafka: &mut impl Transactions) {
        self.drop_ended();
        let topics = topics(&*group);
        let missing = match topics.is_empty() {
            true => BTreeSet::new(),
            false => kafka.missing(&topics),
        };
        if self.0.is_empty() && missing.is_empty() {
            return;
        }
        for submission in std::mem::take(group) {
            let id = submission.changes.partition;
            if let Some(waiting) = self.0.get_mut(&id) {
                waiting.submissions.push_back(submission);
                continue;
            }
            let letters = submission.letters.iter();
            let Some(topic) = letters
                .map(|letter| &letter.topic)
                .find(|topic| missing.contains(*topic))
            else {
                group.push(submission);
                continue;
            };
            tracing::warn!(
                partition = id.partition, topic = ?topic,
                "a message goes to a topic that is not on the cluster, so the outcome that it belongs to is not written, and its partition \
                 waits; the others go on. Make the topic; or mend its name in the handler and start again. Topics that are named in \
                 `outputs.topics` are looked for by a start"
            );
            let waiting = Waiting {
                submissions: VecDeque::from([submission]),
                again: clock::now() + AGAIN,
                wait: AGAIN,
            };
            self.0.insert(id, waiting);
        }
    }

    /// Puts into a group what can be written by now.
    pub(super) fn release(&mut self, group: &mut Vec<Submission>, kafka: &mut impl Transactions) {
        self.drop_ended();
        let now = clock::now();
        for waiting in self.0.values_mut().filter(|waiting| waiting.again <= now) {
            if kafka.missing(&topics(&waiting.submissions)).is_empty() {
                group.extend(waiting.submissions.drain(..));
            } else {
                waiting.wait = AGAIN_MAX.min(waiting.wait * 2);
                waiting.again = now + waiting.wait;
            }
        }
        self.0.retain(|_, waiting| !waiting.submissions.is_empty());
    }

    /// What an assignment submitted that is over is never written.
    fn drop_ended(&mut self) {
        for waiting in self.0.values_mut() {
            let ended = |submission: &&Submission| !submission.gate.accepts();
            let fence = |submission: &Submission| submission.acks.fail(Failure::Fenced);
            waiting.submissions.iter().filter(ended).for_each(fence);
            waiting.submissions.retain(|submission| submission.gate.accepts());
        }
        self.0.retain(|_, waiting| !waiting.submissions.is_empty());
    }
}

fn topics<'a>(submissions: impl IntoIterator<Item = &'a Submission>) -> BTreeSet<String> {
    let letters = submissions.into_iter().flat_map(|submission| &submission.letters);
    let named: BTreeSet<&str> = letters.map(|letter| letter.topic.as_str()).collect();
    named.into_iter().map(str::to_owned).collect()
}
