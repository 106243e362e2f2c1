//! What the port and the command line say to each other: JSON, field by field.
//!
//! A field that is not known is refused where something is changed: a `dry-run` that is not understood must not become an act.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::held::{Entry, State};
use crate::store::{self, AuditEntry, AuditMark, Store};

/// Which messages an order is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Which {
    /// One topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) topic: Option<String>,
    /// One partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) partition: Option<i32>,
    /// One message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<i64>,
    /// So many attempts at that message are known: it is refused where it has had others since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attempts: Option<u32>,
    /// One token: 32 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Held for that reason: `in-doubt`, `retry`, `behind-key`, `behind-token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<String>,
    /// Held at this moment or later, in milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since_ms: Option<i64>,
    /// Held before this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until_ms: Option<i64>,
    /// Not more than so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<usize>,
}

/// Who acts, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Words {
    pub(crate) reason: String,
    pub(crate) by: String,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// `POST /v1/resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Resolve {
    pub(crate) which: Which,
    /// `done`, `run` or `dead-letter`.
    pub(crate) verdict: String,
    pub(crate) words: Words,
}

/// `POST /v1/invalidate` and `POST /v1/forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Tokens {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// 32 hex digits each.
    pub(crate) tokens: Vec<String>,
    pub(crate) words: Words,
}

/// `POST /v1/redrive`: letters of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Redrive {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) letters: Vec<Letter>,
    /// The operator says that no attempt at them has applied anything.
    #[serde(default)]
    pub(crate) not_applied: bool,
    pub(crate) words: Words,
}

/// A dead letter, without the headers that made it one. Bytes are in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Letter {
    pub(crate) offset: i64,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) timestamp_ms: Option<i64>,
    #[serde(default)]
    pub(crate) key: Option<String>,
    #[serde(default)]
    pub(crate) payload: Option<String>,
    #[serde(default)]
    pub(crate) headers: Vec<(String, Option<String>)>,
}

/// Bytes as they are in a [`Letter`].
pub(crate) fn to_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of such a text.
///
/// # Errors
/// What of it is not base64.
pub(crate) fn to_bytes(text: &str) -> Result<Bytes, String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    Ok(bytes.into())
}

/// What came of one act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Came {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The message; absent where the act is about a token.
    pub(crate) offset: Option<i64>,
    pub(crate) token: Option<String>,
    pub(crate) act: String,
    /// `done`, `unchanged`, `refused`, or `unknown` where nobody answered.
    pub(crate) answer: String,
    /// What that means.
    pub(crate) text: String,
}

/// The answer to an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Answers {
    pub(crate) dry_run: bool,
    pub(crate) acts: Vec<Came>,
    /// There are more that this order would be about: ask again.
    pub(crate) more: bool,
    /// What was not done besides: the audit topic that took no letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<String>,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) error: String,
    /// Who has the partition, where this is another and it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
}

/// One message that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldOne {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) tokens: Vec<String>,
    pub(crate) state: String,
    pub(crate) behind_offset: Option<i64>,
    pub(crate) due_ms: Option<i64>,
    pub(crate) since_ms: i64,
    pub(crate) attempts: u32,
    pub(crate) bytes: usize,
    pub(crate) verdict: Option<String>,
}

impl HeldOne {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            topic: entry.topic.clone(),
            partition: entry.id.partition,
            offset: entry.offset.0,
            tokens: entry.keys.iter().map(ToString::to_string).collect(),
            state: entry.state.name().to_owned(),
            behind_offset: match entry.state {
                State::Behind(first) => first.map(|first| first.0),
                _ => None,
            },
            due_ms: match entry.state {
                State::Retry(due_ms) => Some(due_ms),
                _ => None,
            },
            since_ms: entry.since_ms,
            attempts: entry.attempts,
            bytes: entry.bytes,
            verdict: entry.verdict.map(|verdict| verdict.code().to_owned()),
        }
    }
}

/// `GET /v1/held`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldList {
    pub(crate) held: Vec<HeldOne>,
    /// There are more than these.
    pub(crate) more: bool,
}

/// The outcome of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) partition: i32,
    /// `done`, `failed`, `invalidated` or `forgotten`.
    pub(crate) end: String,
    /// Why it failed, or was invalidated.
    pub(crate) reason: Option<String>,
    /// The message that it ended for.
    pub(crate) offset: i64,
    pub(crate) first_seen_ms: i64,
    pub(crate) attempts: u32,
    /// Bytes of its reply, whole or as a digest; the bytes themselves are not shown.
    pub(crate) reply_bytes: Option<u64>,
    /// Whether it still suppresses, by the log time of its partition.
    pub(crate) in_window: bool,
}

/// `GET /v1/inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inspected {
    pub(crate) tokens: Vec<String>,
    pub(crate) open: Vec<HeldOne>,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) acts: Vec<AuditEntry>,
}

/// `GET /v1/audit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acts {
    /// Oldest first.
    pub(crate) acts: Vec<AuditEntry>,
    /// There are older ones than these.
    pub(crate) more: bool,
    /// What to ask for as `before`, to be told those.
    #[serde(default)]
    pub(crate) before: Option<String>,
}

impl Acts {
    /// The newest of some acts, and of those not more than that. One at a time is read.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) fn page(
        store: &dyn Store,
        before: Option<AuditMark>,
        limit: usize,
        is_meant: impl Fn(&AuditEntry) -> bool,
    ) -> Result<Self, store::Error> {
        let (mut acts, mut more) = (Vec::new(), false);
        store.visit_audit(before, &mut |act| {
            more = acts.len() >= limit.max(1) && is_meant(&act);
            if !more {
                acts.extend(Some(act).filter(&is_meant));
            }
            !more
        })?;
        acts.reverse();
        Ok(Self::of(acts, more))
    }

    /// What members have, as one page of not more than that: what is replicated more than one of them may have.
    pub(crate) fn together(pages: impl IntoIterator<Item = Self>, limit: usize) -> Self {
        let (mut acts, mut reach): (Vec<AuditEntry>, _) = (Vec::new(), None);
        for page in pages {
            let oldest = page.acts.first().filter(|_| page.more);
            reach = reach.max(oldest.map(AuditEntry::mark));
            acts.extend(page.acts);
        }
        // As far as everybody has said what there is.
        acts.retain(|act| reach.is_none_or(|reach| act.mark() >= reach));
        acts.sort_by_key(AuditEntry::mark);
        acts.dedup();
        let surplus = acts.len().saturating_sub(limit.max(1));
        Self::of(acts.split_off(surplus), reach.is_some() || surplus > 0)
    }

    fn of(acts: Vec<AuditEntry>, more: bool) -> Self {
        let oldest = acts.first().filter(|_| more);
        let before = oldest.map(|oldest| oldest.mark().to_string());
        Self { acts, more, before }
    }
}

/// `GET /v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) group: String,
    pub(crate) durability: String,
    pub(crate) store_id: Option<String>,
    /// Why it does not serve everything that it was given.
    pub(crate) unready: Option<String>,
    pub(crate) partitions: Vec<Served>,
}

/// A partition that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) commit_point: Option<i64>,
    /// Partition time there.
    pub(crate) time_ms: Option<i64>,
    pub(crate) in_flight: u64,
    pub(crate) held: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) duplicates: u64,
}
