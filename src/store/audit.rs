//! The audit: what operators did, by when it was done.

/// One act of an operator, kept for whoever asks later.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AuditEntry {
    /// Wall clock, in milliseconds since the epoch.
    pub at_ms: i64,
    /// What was done: `resolve --done`, `forget`, …
    pub act: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The message; −1 where the act is about a token and no message of it is known.
    pub offset: i64,
    /// The first token key, in hex.
    pub token: String,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who did it, as they named themselves. Empty in what was noted before this was asked.
    #[serde(default)]
    pub by: String,
}

/// Where an act stands among all: by its moment. The same in every store that has the act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditMark(pub(super) [u8; 16]);

impl std::fmt::Display for AuditMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for AuditMark {
    type Err = NoMark;

    fn from_str(text: &str) -> Result<Self, NoMark> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        number.map(|number| Self(number.to_be_bytes())).ok_or(NoMark)
    }
}

/// What was given is the mark of no act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a mark has 32 hex digits, as the answer before gave it")]
pub struct NoMark;

impl AuditEntry {
    /// Where it stands among all.
    #[must_use]
    pub fn mark(&self) -> AuditMark {
        AuditMark(self.key())
    }

    /// What it is filed under: the moment, and a digest of the whole. So acts read in their order, and one that is read a
    /// second time, from a changelog, is not a second act.
    pub(super) fn key(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_derive_key("hapax 2026-11-25 act of an operator v1");
        let Self {
            at_ms,
            act,
            topic,
            partition,
            offset,
            token,
            reason,
            by,
        } = self;
        for text in [act, topic, token, reason, by] {
            // The lengths keep neighbours apart.
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&partition.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        let mut key = [0; 16];
        let (moment, digest) = key.split_at_mut(8);
        moment.copy_from_slice(&(*at_ms).max(0).to_be_bytes());
        digest.copy_from_slice(hasher.finalize().as_bytes().first_chunk::<8>().unwrap_or(&[0; 8]));
        key
    }
}
