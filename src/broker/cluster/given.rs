//! Topics that outcomes are given back to: they are there, and the largest that may be sent to them fits.
//!
//! As with dead letters: where one has nowhere to go, or does not fit, its partition would stand still for ever at the first one
//! (schedule 20), so the start is refused instead.

use super::super::RECEIPT_BYTES_MAX;
use super::{Absent, Cluster, Error, LETTER_HEADER_BYTES_MAX};
use crate::config::{Settings, TopicPolicy};

/// A topic that something is given back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenTo<'a> {
    /// What goes there: `output`, `reply` or `receipt`.
    pub(crate) what: &'static str,
    /// The topic.
    pub(crate) topic: &'a str,
    /// The most bytes that one may have, without hapax's headers.
    bytes: u64,
}

/// Every topic that something of one input is given back to, as far as configuration knows them.
pub(crate) fn given_to(policy: &TopicPolicy) -> Vec<GivenTo<'_>> {
    let output = |topic| GivenTo {
        what: "output",
        topic,
        bytes: policy.outputs.bytes.0,
    };
    let reply = |topic| GivenTo {
        what: "reply",
        ..output(topic)
    };
    let receipt = |topic| GivenTo {
        what: "receipt",
        topic,
        bytes: RECEIPT_BYTES_MAX,
    };
    let replies = policy.reply.topic.iter().chain(&policy.reply.allowed);
    let outputs = policy.outputs.topics.iter().map(String::as_str).map(output);
    outputs
        .chain(replies.map(String::as_str).map(reply))
        .chain(policy.receipts.topic.as_deref().map(receipt))
        .collect()
}

impl Cluster {
    /// Whether what is given back to a topic has somewhere to go, and fits. Says how much the topic takes, or (`Err` inside) why
    /// that is not known.
    ///
    /// # Errors
    /// [`Error::Given`].
    pub(crate) fn takes(&self, input: &str, to: &GivenTo<'_>) -> Result<Result<u64, String>, Error> {
        let needed = to.bytes.saturating_add(LETTER_HEADER_BYTES_MAX);
        let refused = |why: String| Error::Given {
            what: to.what,
            topic: to.topic.to_owned(),
            input: input.to_owned(),
            why,
        };
        match self.topics.get(to.topic).map(|facts| &facts.partitions) {
            Some(Ok(_)) => {}
            Some(Err(Absent::Refused(why))) => {
                return Err(refused(format!(
                    "{why}; grant the right to write and describe it"
                )));
            }
            Some(Err(Absent::Missing)) | None => {
                return Err(refused(format!(
                    "it does not exist; create it (`kafka-topics.sh --create --topic {}`), or mend its name",
                    to.topic
                )));
            }
        }
        match self.message_bytes_max(to.topic) {
            Ok(bytes) if bytes < needed => Err(refused(format!(
                "it takes messages of {bytes} bytes, and one {} may have {} bytes and hapax's headers {LETTER_HEADER_BYTES_MAX}; lower `outputs.bytes` of {input:?}, or raise the topic's limit: \
                 `kafka-configs.sh --alter --entity-type topics --entity-name {} --add-config max.message.bytes={needed}`",
                to.what, to.bytes, to.topic
            ))),
            other => Ok(other),
        }
    }
}

/// The names of all of them.
pub(crate) fn names(settings: &Settings) -> impl Iterator<Item = String> {
    let policies = settings.topics.values();
    policies.flat_map(|policy| given_to(policy).into_iter().map(|to| to.topic.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cluster, facts};
    use super::*;
    use crate::config::settle;

    #[test]
    fn a_topic_for_outputs_is_there_and_takes_the_largest() {
        let settings =
            settle("topics.orders.outputs = { topics = [\"shipments\"], bytes = \"1KiB\" }").unwrap();
        let policy = &settings.topics["orders"];
        let to = given_to(policy);
        assert_eq!(names(&settings).collect::<Vec<_>>(), ["shipments"]);
        let takes = |found| cluster(&[("shipments", found)]).takes("orders", &to[0]);
        let enough = 1_024 + LETTER_HEADER_BYTES_MAX;
        assert_eq!(takes(facts(Ok(1), enough)).unwrap(), Ok(enough));
        let small = takes(facts(Ok(1), enough - 1)).unwrap_err().to_string();
        assert!(small.contains("max.message.bytes=17408"), "{small}");
        let missing = takes(facts(Err(Absent::Missing), 0)).unwrap_err().to_string();
        assert!(
            missing.contains("output topic \"shipments\" of topic \"orders\"")
                && missing.contains("--create"),
            "{missing}"
        );
    }
}
