//! What comes out of a handler and of a probe.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;

/// The answer of a handler: bytes that are stored with the outcome, and given again to whoever sends a duplicate.
///
/// Up to `outcome_bytes` are kept; of a longer one only digest and length are. An empty reply is the same as none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Reply(Bytes);

impl Reply {
    /// No answer: what a handler that returns `()` gives.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Bytes::new())
    }

    /// The bytes as they are. A `Bytes` is shared, not copied.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The value as JSON.
    ///
    /// # Errors
    /// Where the value has no JSON form: a map with keys that are not text, or a `Serialize` that fails. In a
    /// handler `?` on it says *unknown whether applied*, which is right after the effect; before it, add
    /// [`not_applied`](crate::Classify::not_applied) or [`reject`](crate::Classify::reject).
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(value).map(|json| Self(json.into()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, taken out.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Whether there is no answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes stay out: they may hold what no log should.
        write!(f, "Reply({} B)", self.0.len())
    }
}

/// What a handler may return for an answer: `()`, [`Reply`], bytes or text.
#[diagnostic::on_unimplemented(
    message = "a handler cannot answer with `{Self}`",
    label = "this is no reply",
    note = "return `Ok(())`, bytes, text, or `Ok(Reply::json(&value)?)`"
)]
pub trait IntoReply: Send + 'static {
    /// The reply.
    fn into_reply(self) -> Reply;
}

impl IntoReply for Reply {
    fn into_reply(self) -> Reply {
        self
    }
}

impl IntoReply for () {
    fn into_reply(self) -> Reply {
        Reply::empty()
    }
}

impl IntoReply for Bytes {
    fn into_reply(self) -> Reply {
        Reply(self)
    }
}

impl IntoReply for Vec<u8> {
    fn into_reply(self) -> Reply {
        Reply(self.into())
    }
}

impl IntoReply for String {
    fn into_reply(self) -> Reply {
        Reply(self.into())
    }
}

impl IntoReply for &'static str {
    fn into_reply(self) -> Reply {
        Reply(Bytes::from_static(self.as_bytes()))
    }
}

/// What a probe found out about an attempt whose end nobody knows.
///
/// A probe asks the *resource* what became of an attempt: the bank whether it knows the charge with this child
/// token. It is asked only after the attempt's deadline plus `probe_settle`, so that what was sent can land. A probe
/// that fails, panics or runs out of time counts as [`Unknown`](Self::Unknown).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// The attempt was applied. It is recorded as done with this reply, and the handler does not run again.
    Done(Reply),
    /// The attempt was not applied **and can no longer be**: the handler may run again.
    ///
    /// That is more than "not there yet". A request can be under way in a proxy, a queue or a paused process, arrive
    /// after the probe has looked, and then be applied a second time. `NotDone` is true only where the resource itself
    /// refuses the late arrival, in one of two ways:
    ///
    /// - it keeps the [child token](crate::Context::child_token) that each attempt sends, and applies one token once
    ///   (a unique column, an idempotency key): then the late request and the new attempt are one;
    /// - it keeps the highest [fence](crate::Context::fence) it has seen and refuses lower ones: then the probe, which
    ///   shows the current fence first, shuts out every older assignment.
    ///
    /// Where neither holds, answer [`Unknown`](Self::Unknown).
    NotDone,
    /// It cannot be told. A `NonIdempotent` message is held for an operator; a `PotentiallyIdempotent` one runs again
    /// with the same child tokens inside `rerun_within`, and is held after it.
    Unknown,
}

impl Probe {
    /// [`Probe::Done`] with anything that can be a reply.
    #[must_use]
    pub fn done(reply: impl IntoReply) -> Self {
        Self::Done(reply.into_reply())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_kind_of_answer_is_its_bytes() {
        let text = || b"ok".to_vec();
        let replies = [
            text().into_reply(),
            Bytes::from(text()).into_reply(),
            "ok".into_reply(),
            "ok".to_owned().into_reply(),
            Reply::bytes(text()).into_reply(),
        ];
        for reply in replies {
            assert_eq!(reply.as_bytes(), b"ok");
        }
        assert!(().into_reply().is_empty());
        assert_eq!(Probe::done("ok"), Probe::Done(Reply::bytes("ok")));
    }

    #[test]
    fn json_is_compact_and_may_fail() {
        assert_eq!(Reply::json(&[1, 2]).unwrap().into_bytes(), "[1,2]");
        assert!(Reply::json(&BTreeMap::from([((1, 2), 3)])).is_err());
    }

    #[test]
    fn a_reply_does_not_print_its_bytes() {
        assert_eq!(format!("{:?}", Reply::bytes("secret")), "Reply(6 B)");
    }
}
