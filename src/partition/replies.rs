//! Replies and receipts: what whoever sent a message is told.
//!
//! A reply is an output of the outcome, and a duplicate is given the outcome again (a *replay*). It is complete only once that is
//! acknowledged, or in the transaction, and it is recorded under its position then: so its redelivery is given nothing.
//!
//! A topic that a header names is hostile input: it chooses among those that are allowed.

use bytes::Bytes;

use super::Partition;
use super::work::{Answer, Ending, WorkId};
use crate::accounts::Account;
use crate::dead_letter;
use crate::error::cut;
use crate::handler::{OWN_NAMES, Reply, TOKEN_HEADER};
use crate::outcome::{Closed, End, Reason, Stored};
use crate::output::Output;
use crate::token;

/// The header by which a client knows its reply; copied as it is.
const CORRELATION: &str = "correlation-id";

/// A key, a token or a correlation id that is longer is left out, or cut: it must fit beside the largest reply.
const BESIDE_BYTES_MAX: usize = 1_024;

impl Partition {
    /// The reply to a message that ran, where it wants one.
    pub(super) fn reply(&mut self, id: WorkId, reply: &Reply) -> Option<Output> {
        let to = self.reply_to(id)?;
        let bytes = reply.as_bytes();
        let (says, payload) = if bytes.len() as u64 > self.wiring.policy.outputs.bytes.0 {
            ("too-large", Bytes::new())
        } else {
            ("whole", Bytes::copy_from_slice(bytes))
        };
        self.told(id, "reply", to, payload, [("reply", says.to_owned())])
    }

    /// Where the reply to a message goes, if it wants one and may have it there.
    fn reply_to(&mut self, id: WorkId) -> Option<String> {
        let replies = &self.wiring.policy.reply;
        let Some(header) = &replies.header else {
            return replies.topic.clone();
        };
        let work = self.works.get(id)?;
        let raw = work.raw();
        let Some(named) = raw.header(header) else {
            return replies.topic.clone();
        };
        let allowed = std::str::from_utf8(named)
            .ok()
            .filter(|named| replies.allows(named));
        if let Some(allowed) = allowed {
            return Some(allowed.to_owned());
        }
        self.wiring.meters.replies_refused.increment(1);
        if self.said.is_due(self.now) {
            let named = String::from_utf8_lossy(named);
            tracing::warn!(
                topic = %self.wiring.topic, partition = self.partition, offset = %raw.offset(), %header,
                named = ?cut(&named, 249),
                "a message wants its reply in a topic that is not allowed, and got none; if it may go there, add the topic to `reply.allowed`"
            );
        }
        None
    }

    /// What a duplicate is told of that outcome; `None` where it is told nothing.
    pub(super) fn answer_to(&mut self, id: WorkId, closed: &Closed) -> Option<Box<Answer>> {
        let reply_to = match closed.end {
            End::Done(_) => self.reply_to(id),
            // There is no reply of a failure; a receipt says what became of it.
            _ => None,
        };
        if reply_to.is_none() && self.wiring.policy.receipts.topic.is_none() {
            return None;
        }
        Some(Box::new(Answer {
            closed: closed.clone(),
            reply_to,
        }))
    }

    /// Its position is new: a duplicate that was not told yet.
    pub(super) fn answered(&mut self, id: WorkId) {
        let Some(Answer { closed, reply_to }) = self
            .works
            .get(id)
            .and_then(|work| work.answer.as_deref().cloned())
        else {
            return;
        };
        let replay = reply_to.and_then(|to| self.replay(id, to, &closed));
        let (verdict, reason) = match closed.end {
            End::Failed(reason) => ("failed", Some(reason)),
            _ => ("duplicate", None),
        };
        let receipt = self.receipt(id, verdict, reason, Some(&closed), None);
        let outputs: Vec<Output> = replay.into_iter().chain(receipt).collect();
        self.record_told(id, Account::Duplicate, End::Done(Stored::Nothing), outputs);
    }

    /// Records a message once somebody has been told: with it, where that is one transaction.
    pub(super) fn record_told(&mut self, id: WorkId, account: Account, end: End, outputs: Vec<Output>) {
        if self.wiring.state_moves() || outputs.is_empty() {
            self.record_with(id, account, end, outputs);
            return;
        }
        // Nothing is durable before they are acknowledged: after a crash it is judged, and told, again.
        if let Some(work) = self.works.get_mut(id) {
            work.ending = Some(Box::new(Ending {
                account,
                end,
                error: String::new(),
                outputs,
                unsent: None,
                failed_sends: 0,
            }));
        }
        self.send(id);
    }

    /// The outcome again, as far as it is stored. What is not there is said, and not made up.
    fn replay(&self, id: WorkId, to: String, closed: &Closed) -> Option<Output> {
        let (says, payload, digest) = match &closed.end {
            End::Done(Stored::Reply(bytes)) if bytes.len() as u64 <= self.wiring.policy.outputs.bytes.0 => {
                ("whole", bytes.clone(), None)
            }
            End::Done(Stored::Reply(_)) => ("too-large", Bytes::new(), None),
            End::Done(Stored::Digest(digest, bytes)) => ("digest", Bytes::new(), Some((digest, bytes))),
            End::Done(Stored::Later(_)) => ("later-version", Bytes::new(), None),
            // Somebody else did it: a rebuild found its message below the commit point.
            End::Done(Stored::Nothing) if closed.attempts == 0 => ("unknown", Bytes::new(), None),
            _ => ("none", Bytes::new(), None),
        };
        let original = closed.offset.to_string();
        let headers = [
            ("reply", says.to_owned()),
            ("replayed", "true".to_owned()),
            ("original-offset", original),
        ];
        let mut replay = self.told(id, "reply", to, payload, headers)?;
        if let Some((digest, bytes)) = digest {
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let headers = [("reply-digest", hex), ("reply-bytes", bytes.to_string())];
            replay.headers.extend(dead_letter::own_headers(headers));
        }
        Some(replay)
    }

    /// The receipt of a message that is given up on.
    pub(super) fn receipt_of_failure(&self, id: WorkId, reason: Reason, error: &str) -> Option<Output> {
        let verdict = match reason {
            Reason::Invalidated
            | Reason::Mismatch
            | Reason::Expired
            | Reason::MissingToken
            | Reason::TokenTooLong
            | Reason::Useless => reason.code(),
            _ => "failed",
        };
        self.receipt(id, verdict, Some(reason), None, Some(error))
    }

    /// One JSON object: what became of a message that did not run, or failed.
    fn receipt(
        &self,
        id: WorkId,
        verdict: &str,
        reason: Option<Reason>,
        closed: Option<&Closed>,
        error: Option<&str>,
    ) -> Option<Output> {
        let to = self.wiring.policy.receipts.topic.clone()?;
        let work = self.works.get(id)?;
        let raw = work.raw();
        let original = closed.map(|closed| closed.offset).or(work.original);
        let token = self.wiring.extractor.text(&raw);
        let said = serde_json::json!({
            "verdict": verdict,
            "reason": reason.map(Reason::code),
            "error": error.map(|error| cut(error, BESIDE_BYTES_MAX)),
            "token": token.as_deref().map(|token| cut(token, BESIDE_BYTES_MAX)),
            "topic": &*self.wiring.topic,
            "partition": self.partition,
            "offset": raw.offset().0,
            "original_offset": original.map(|offset| offset.0),
        });
        self.told(id, "receipt", to, Bytes::from(said.to_string()), [])
    }

    /// A message to whoever sent this one: with its key and its correlation id, and with the lineage.
    fn told<const N: usize>(
        &self,
        id: WorkId,
        what: &str,
        to: String,
        payload: Bytes,
        says: [(&str, String); N],
    ) -> Option<Output> {
        let work = self.works.get(id)?;
        let raw = work.raw();
        let offset = raw.offset();
        let fits = |value: &&[u8]| value.len() <= BESIDE_BYTES_MAX;
        let mut output = Output::to(to).payload(payload);
        output.key = raw.key().filter(fits).map(Bytes::copy_from_slice);
        // Of this message, whatever its token is: each of its duplicates is told by a message of its own.
        let position = self.wiring.extractor.position(&raw);
        let child = token::child(&position, &format!("{OWN_NAMES}{what}"));
        output.headers.push((TOKEN_HEADER.to_owned(), Some(child.into())));
        if let Some(correlation) = raw.header(CORRELATION).filter(fits) {
            let copied = Bytes::copy_from_slice(correlation);
            output.headers.push((CORRELATION.to_owned(), Some(copied)));
        }
        output.headers.extend(dead_letter::own_headers(says));
        if let Some(token) = self.wiring.extractor.text(&raw) {
            let token = cut(&token, BESIDE_BYTES_MAX).to_owned();
            output
                .headers
                .extend(dead_letter::own_headers([("token", token)]));
        }
        let lineage = [
            (
                "id",
                dead_letter::id(&self.wiring.topic, self.partition, offset, what),
            ),
            ("topic", self.wiring.topic.to_string()),
            ("partition", self.partition.to_string()),
            ("offset", offset.to_string()),
        ];
        output.headers.extend(dead_letter::own_headers(lineage));
        Some(output)
    }
}
