//! The formulas of token keys and child tokens, a second time.

use super::topics::Message;

/// Sixteen bytes that stand for a token.
pub(crate) type Key = [u8; 16];

/// The source that the tests' topics read.
const HEADER: &str = "idempotency-key";

fn keyed(topic: &str, source: &str, token: &[u8]) -> Key {
    let mut material = (topic.len() as u64).to_le_bytes().to_vec();
    material.extend_from_slice(topic.as_bytes());
    material.extend_from_slice(source.as_bytes());
    let key = blake3::derive_key("hapax 2026-11-25 token key v1", &material);
    half(blake3::keyed_hash(&key, token))
}

fn half(hash: blake3::Hash) -> Key {
    hash.as_bytes()[..16].try_into().unwrap()
}

/// The text of a message's token, where it has one: the last header of the name, unless it is null or empty.
pub(crate) fn text(message: &Message) -> Option<&[u8]> {
    let last = message.headers.iter().rfind(|(name, _)| name == HEADER)?;
    last.1.as_deref().filter(|text| !text.is_empty())
}

/// The key that a message goes by: its token's, or its position's.
pub(crate) fn of(topic: &str, message: &Message) -> Key {
    if let Some(text) = text(message) {
        return keyed(topic, &format!("header:{HEADER}"), text);
    }
    position(topic, message)
}

/// The key of a message's position, that no token can have.
pub(crate) fn position(topic: &str, message: &Message) -> Key {
    let mut position = message.offset.to_le_bytes().to_vec();
    position.extend_from_slice(&message.timestamp_ms.unwrap_or(-1).to_le_bytes());
    if let Some(payload) = &message.payload {
        position.extend_from_slice(blake3::hash(payload).as_bytes());
    }
    keyed(topic, "hapax:position", &position)
}

/// The child token of one step.
pub(crate) fn child(key: &Key, name: &str) -> String {
    let derived = blake3::derive_key("hapax 2026-11-25 child token v1", key);
    hex(&half(blake3::keyed_hash(&derived, name.as_bytes())))
}

/// The key that is written as 32 hex digits.
pub(crate) fn from_hex(text: &str) -> Key {
    u128::from_str_radix(text, 16).unwrap().to_be_bytes()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
