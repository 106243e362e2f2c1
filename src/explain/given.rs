//! What an outcome keeps and gives back, in words.

use super::Page;
use crate::config::{Durability, Settings, TopicPolicy};

pub(super) fn rows(settings: &Settings, policy: &TopicPolicy, page: &mut Page) {
    page.row(
        "the reply",
        &match policy.store_outcome {
            true => format!(
                "stored up to {}, beyond that its digest",
                settings.limits.outcome_bytes
            ),
            false => "not stored".to_owned(),
        },
    );
    let outputs = &policy.outputs;
    let to = match outputs.topics.as_slice() {
        [] => "any topic, none looked for at start".to_owned(),
        topics => format!("{} and no other", topics.join(", ")),
    };
    let when = match settings.durability {
        Durability::Local => {
            "sent once the outcome is durable, again after a crash in between, with the same token"
        }
        Durability::Replicated => "in the outcome's transaction: seen with it, or not at all",
    };
    page.row(
        "outputs",
        &format!(
            "at most {} and {} of an attempt, to {to}; {when}",
            outputs.max, outputs.bytes
        ),
    );
    let reply = &policy.reply;
    let allowed = || match (&reply.topic, reply.allowed.as_slice()) {
        (Some(topic), []) => topic.clone(),
        (Some(topic), allowed) => format!("{topic}, {}", allowed.join(", ")),
        (None, allowed) => allowed.join(", "),
    };
    let to = match (&reply.header, &reply.topic) {
        (None, None) => None,
        (None, Some(topic)) => Some(format!("to {topic}")),
        (Some(header), None) => Some(format!(
            "to the topic that header `{header}` names, one of {}; without it none",
            allowed()
        )),
        (Some(header), Some(topic)) => Some(format!(
            "to the topic that header `{header}` names, one of {}; without it to {topic}",
            allowed()
        )),
    };
    if let Some(to) = to {
        page.row(
            "replies",
            &format!("{to}; to a duplicate as stored, with header `hapax-replayed`"),
        );
    }
    if let Some(topic) = &policy.receipts.topic {
        page.row(
            "receipts",
            &format!("to {topic}: what was suppressed or refused, and why"),
        );
    }
}
