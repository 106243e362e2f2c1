//! Rights that the broker does not give: named, with the resource and the command that grants them.
//!
//! A refusal comes back as often as it is asked, so whoever meets one stops and says so, where any other error of the
//! client would be waited out.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::unreachable;
use crate::broker::Error;
use crate::config::Settings;

/// What was asked for.
pub(super) enum Right<'a> {
    /// To be a member of the group, and to commit its offsets.
    Group,
    /// To read the topics that are consumed.
    Inputs,
    /// To read a changelog.
    Changelog(&'a str),
    /// To write to one of these topics: the client says which in its own words.
    Write(&'a [&'a str]),
    /// To write under hapax's transactional ids.
    Transactions,
}

impl Right<'_> {
    /// The error, with what the client said.
    pub(super) fn error(&self, settings: &Settings, why: String) -> Error {
        let topics = |names: &[&str]| {
            let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
            let options: Vec<_> = names.iter().map(|name| format!("--topic {name}")).collect();
            (quoted.join(" or "), options.join(" "))
        };
        let inputs: Vec<_> = settings.topics.keys().map(String::as_str).collect();
        let group = &settings.group;
        let (what, options) = match self {
            Self::Group => (
                format!("read group {group:?}"),
                format!("--operation Read --group {group}"),
            ),
            Self::Inputs => {
                let (names, options) = topics(&inputs);
                (
                    format!("read topic {names}"),
                    format!("--operation Read {options}"),
                )
            }
            Self::Changelog(name) => (
                format!("read changelog topic {name:?}"),
                format!("--operation Read --topic {name}"),
            ),
            Self::Write(names) => {
                let (names, options) = topics(names);
                (
                    format!("write to topic {names}"),
                    format!("--operation Write {options}"),
                )
            }
            Self::Transactions => (
                format!("write under transactional ids that begin with \"hapax-{group}-\""),
                format!(
                    "--operation Write --transactional-id hapax-{group}- --resource-pattern-type prefixed"
                ),
            ),
        };
        Error::Right {
            what,
            why,
            command: format!("kafka-acls.sh --add --allow-principal User:<name> {options}"),
        }
    }
}

/// Whose right is missing, by the code of the client's error; what is written is not known here.
pub(super) fn missing(code: Option<RDKafkaErrorCode>) -> Option<Right<'static>> {
    match code? {
        RDKafkaErrorCode::GroupAuthorizationFailed => Some(Right::Group),
        RDKafkaErrorCode::TopicAuthorizationFailed => Some(Right::Inputs),
        RDKafkaErrorCode::TransactionalIdAuthorizationFailed => Some(Right::Transactions),
        _ => None,
    }
}

/// The code of an error; those of transactions carry theirs elsewhere.
pub(super) fn code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        error => error.rdkafka_error_code(),
    }
}

/// A question without an answer: nobody was there, or nobody may ask.
pub(super) fn unanswered(settings: &Settings, what: &'static str) -> impl FnOnce(KafkaError) -> Error {
    move |error| match missing(code(&error)) {
        Some(right) => right.error(settings, crate::error::chain(&error)),
        None => unreachable(settings, what)(error),
    }
}
