//! The cluster: what it said of its topics, and what a start makes of that.
//!
//! Asking is `kafka/admin.rs`; this only judges, so it needs no broker to be tested. The rule it keeps: a message that
//! hapax could take is a message that it can also give up on (schedule 20). Where its dead letter does not fit, or has
//! nowhere to go, the partition would stand still for ever at the first one, so the start is refused instead.
//! What the changelogs of the replicated mode have to be is in `cluster/changelog.rs`.

mod changelog;
mod given;

use std::collections::BTreeMap;

pub(crate) use changelog::{Changelog, NewChangelog};
pub(crate) use given::{given_to, names as given_names};

use super::{Error, LETTER_HEADER_BYTES_MAX};
use crate::config::Settings;

/// What the cluster said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    /// Its id, where the broker states one.
    pub(crate) id: Option<String>,
    /// Every topic asked for.
    pub(crate) topics: BTreeMap<String, TopicFacts>,
}

/// What the cluster said of one topic.
#[derive(Debug, Clone)]
pub(crate) struct TopicFacts {
    /// How many partitions it has.
    pub(crate) partitions: Result<i32, Absent>,
    /// On how many brokers the partition with the fewest copies lies; 0 where that is not known.
    pub(crate) replicas: usize,
    /// Its properties, or why they are not known.
    pub(crate) properties: Result<BTreeMap<String, String>, String>,
}

impl TopicFacts {
    /// One property, or why it is not known.
    fn property(&self, name: &str) -> Result<&str, String> {
        let properties = self.properties.as_ref().map_err(Clone::clone)?;
        let value = properties.get(name).map(String::as_str);
        value.ok_or_else(|| "the broker does not state it".to_owned())
    }

    fn message_bytes_max(&self) -> Result<u64, String> {
        let text = self.property("max.message.bytes")?;
        text.parse().map_err(|_| format!("{text:?} is not a number"))
    }
}

/// Why a topic has no partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It does not exist.
    Missing,
    /// The broker does not say, or not to us.
    Refused(String),
}

/// A dead-letter topic that a start can rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Every message of the input fits, with hapax's headers.
    Proven {
        /// The input's `max.message.bytes`.
        input: u64,
        /// The dead-letter topic's.
        letters: u64,
    },
    /// It exists. Whether everything fits could not be asked.
    Unproven(String),
}

/// A dead-letter topic to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewLetters {
    pub(crate) name: String,
    /// The first of the topics that its letters come from.
    pub(crate) input: String,
    /// As many as the topic that the letters come from.
    pub(crate) partitions: i32,
    /// Its `max.message.bytes`, where that of the input is known.
    pub(crate) message_bytes_max: Option<u64>,
}

impl Cluster {
    /// How many partitions an input topic has.
    ///
    /// # Errors
    /// [`Error::Topic`] where it cannot be consumed.
    pub(crate) fn partitions(&self, topic: &str) -> Result<i32, Error> {
        let why = match self.topics.get(topic).map(|facts| &facts.partitions) {
            Some(Ok(partitions)) => return Ok(*partitions),
            Some(Err(Absent::Refused(why))) => why.clone(),
            Some(Err(Absent::Missing)) | None => "it does not exist".to_owned(),
        };
        Err(Error::Topic {
            topic: topic.to_owned(),
            why,
        })
    }

    /// Whether the dead letters of an input topic have somewhere to go, and fit.
    ///
    /// # Errors
    /// [`Error::NoLetters`], [`Error::Letters`] and [`Error::LettersTooSmall`].
    pub(crate) fn letters(&self, settings: &Settings, input: &str) -> Result<Fit, Error> {
        let topic = settings.dead_letter.topic_of(input);
        let facts = self.topics.get(&topic);
        match facts.map(|facts| &facts.partitions) {
            Some(Ok(_)) => {}
            Some(Err(Absent::Refused(why))) => {
                return Err(Error::Letters {
                    topic,
                    input: input.to_owned(),
                    why: why.clone(),
                });
            }
            Some(Err(Absent::Missing)) | None => {
                let new = self.new_letters(settings, input);
                return Err(Error::NoLetters {
                    input: input.to_owned(),
                    command: new.command(),
                    topic,
                });
            }
        }
        let (from, to) = match (self.message_bytes_max(input), self.message_bytes_max(&topic)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(why), _) | (_, Err(why)) => return Ok(Fit::Unproven(why)),
        };
        let needed = from.saturating_add(LETTER_HEADER_BYTES_MAX);
        if to < needed {
            return Err(Error::LettersTooSmall {
                topic,
                bytes: to,
                input: input.to_owned(),
                input_bytes: from,
                needed,
            });
        }
        Ok(Fit::Proven {
            input: from,
            letters: to,
        })
    }

    /// The largest message that a topic takes, or why that is not known.
    fn message_bytes_max(&self, topic: &str) -> Result<u64, String> {
        match self.topics.get(topic).map(TopicFacts::message_bytes_max) {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(why)) => Err(format!("max.message.bytes of {topic}: {why}")),
            None => Err(format!("max.message.bytes of {topic} was not asked for")),
        }
    }

    /// The dead-letter topics that do not exist, each once, as large as the largest of the topics that share it.
    pub(crate) fn missing_letters(&self, settings: &Settings) -> Vec<NewLetters> {
        let mut missing: BTreeMap<String, NewLetters> = BTreeMap::new();
        for input in settings.topics.keys() {
            let name = settings.dead_letter.topic_of(input);
            let facts = self.topics.get(&name).map(|facts| &facts.partitions);
            if facts != Some(&Err(Absent::Missing)) {
                continue;
            }
            let new = self.new_letters(settings, input);
            missing
                .entry(name)
                .and_modify(|known| {
                    known.partitions = known.partitions.max(new.partitions);
                    known.message_bytes_max = known.message_bytes_max.max(new.message_bytes_max);
                })
                .or_insert(new);
        }
        missing.into_values().collect()
    }

    fn new_letters(&self, settings: &Settings, input: &str) -> NewLetters {
        let partitions = self.topics.get(input).map(|facts| &facts.partitions);
        let bytes = self.message_bytes_max(input).ok();
        NewLetters {
            name: settings.dead_letter.topic_of(input),
            input: input.to_owned(),
            partitions: partitions
                .and_then(|found| found.as_ref().ok().copied())
                .unwrap_or(1),
            message_bytes_max: bytes.map(|bytes| bytes.saturating_add(LETTER_HEADER_BYTES_MAX)),
        }
    }
}

impl NewLetters {
    /// How a person creates it.
    fn command(&self) -> String {
        let size = self.message_bytes_max.map_or_else(String::new, |bytes| {
            format!(" --config max.message.bytes={bytes}")
        });
        format!(
            "kafka-topics.sh --create --topic {} --partitions {}{size}",
            self.name, self.partitions
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settle;

    const ROOM: u64 = LETTER_HEADER_BYTES_MAX;

    pub(super) fn facts(partitions: Result<i32, Absent>, bytes: u64) -> TopicFacts {
        let limit = ("max.message.bytes".to_owned(), bytes.to_string());
        TopicFacts {
            partitions,
            replicas: 1,
            properties: Ok(BTreeMap::from([limit])),
        }
    }

    pub(super) fn cluster(topics: &[(&str, TopicFacts)]) -> Cluster {
        Cluster {
            id: None,
            topics: topics
                .iter()
                .map(|(name, facts)| ((*name).to_owned(), facts.clone()))
                .collect(),
        }
    }

    /// Schedule 20: the input is as large as the dead-letter topic allows.
    #[test]
    fn a_letter_must_fit_with_its_headers() {
        let settings = settle("").unwrap();
        let with = |bytes| {
            cluster(&[
                ("orders", facts(Ok(4), 1_000)),
                ("orders.dead-letters", facts(Ok(1), bytes)),
            ])
        };
        let Err(Error::LettersTooSmall { bytes, needed, .. }) = with(999 + ROOM).letters(&settings, "orders")
        else {
            panic!("one byte too few")
        };
        assert_eq!((bytes, needed), (999 + ROOM, 1_000 + ROOM));
        assert_eq!(
            with(1_000 + ROOM).letters(&settings, "orders").unwrap(),
            Fit::Proven {
                input: 1_000,
                letters: 1_000 + ROOM
            }
        );
    }

    #[test]
    fn what_may_not_be_asked_is_not_refused() {
        let settings = settle("").unwrap();
        let mut cluster = cluster(&[
            ("orders", facts(Ok(4), 1_000)),
            ("orders.dead-letters", facts(Ok(1), 1)),
        ]);
        if let Some(facts) = cluster.topics.get_mut("orders.dead-letters") {
            facts.properties = Err("not authorized".into());
        }
        let Ok(Fit::Unproven(why)) = cluster.letters(&settings, "orders") else {
            panic!("refused")
        };
        assert!(
            why.contains("orders.dead-letters") && why.contains("not authorized"),
            "{why}"
        );
    }

    #[test]
    fn a_missing_topic_for_letters_is_refused_with_the_command_that_makes_it() {
        let settings = settle("").unwrap();
        let cluster = cluster(&[
            ("orders", facts(Ok(4), 1_000)),
            ("orders.dead-letters", facts(Err(Absent::Missing), 0)),
        ]);
        let error = cluster.letters(&settings, "orders").unwrap_err().to_string();
        assert!(
            error.contains("--topic orders.dead-letters --partitions 4 --config max.message.bytes=17384"),
            "{error}"
        );
        assert!(error.contains("dead_letter.create = true"), "{error}");
    }

    #[test]
    fn a_shared_topic_for_letters_is_made_once_and_for_the_largest() {
        let settings = settle(
            "dead_letter.topic = \"dead\"\ntopics.clicks = { class = \"idempotent\", window = \"2h\" }",
        )
        .unwrap();
        let cluster = cluster(&[
            ("orders", facts(Ok(4), 1_000)),
            ("clicks", facts(Ok(9), 10)),
            ("dead", facts(Err(Absent::Missing), 0)),
        ]);
        let expected = NewLetters {
            name: "dead".into(),
            input: "clicks".into(),
            partitions: 9,
            message_bytes_max: Some(1_000 + ROOM),
        };
        assert_eq!(cluster.missing_letters(&settings), [expected]);
    }

    #[test]
    fn an_input_that_is_not_there_is_refused() {
        let cluster = cluster(&[
            ("orders", facts(Err(Absent::Missing), 0)),
            ("refunds", facts(Err(Absent::Refused("not authorized".into())), 0)),
        ]);
        assert!(
            cluster
                .partitions("orders")
                .unwrap_err()
                .to_string()
                .contains("does not exist")
        );
        assert!(
            cluster
                .partitions("refunds")
                .unwrap_err()
                .to_string()
                .contains("not authorized")
        );
    }
}
