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

impl AuditEntry {
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
