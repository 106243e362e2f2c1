//! The cutter: deletes the head of a changelog with DeleteRecords. Kafka moves the start of the log at once, and frees the
//! disk by whole segments.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::transactions::Names;
use super::{ANSWER_MAX, admin};
use crate::broker::Error;
use crate::config::Settings;
use crate::store::{PartitionId, TopicId};
use crate::trim::{Cut, Uncut};

/// See the module.
pub(crate) struct Cutter {
    settings: Arc<Settings>,
    topics: BTreeMap<TopicId, Names>,
    /// Made for the first request: a window is long.
    client: Option<AdminClient<DefaultClientContext>>,
}

impl Cutter {
    pub(crate) const fn new(settings: Arc<Settings>, topics: BTreeMap<TopicId, Names>) -> Self {
        Self {
            settings,
            topics,
            client: None,
        }
    }

    fn client(&mut self) -> Result<&AdminClient<DefaultClientContext>, Error> {
        let made = match self.client.take() {
            Some(client) => client,
            None => admin::admin(&self.settings)?,
        };
        Ok(self.client.insert(made))
    }
}

impl Cut for Cutter {
    fn cut(&mut self, id: PartitionId, below: i64) -> Result<(), Uncut> {
        let failed = |error: &(dyn std::error::Error + 'static)| Uncut::Failed(crate::error::chain(error));
        let changelog = self.changelog(id.topic);
        let mut until = TopicPartitionList::new();
        until
            .add_partition_offset(&changelog, id.partition, KafkaOffset::Offset(below))
            .map_err(|error| failed(&error))?;
        let client = self.client().map_err(|error| failed(&error))?;
        let options = AdminOptions::new()
            .request_timeout(Some(ANSWER_MAX))
            .operation_timeout(Some(ANSWER_MAX));
        let answer =
            admin::block_on(client.delete_records(&until, &options)).map_err(|error| failed(&error))?;
        let answered = answer.and_then(|answer| answer.elements().iter().try_for_each(|one| one.error()));
        answered.map_err(|error| refusal(&error))
    }

    fn changelog(&self, topic: TopicId) -> String {
        // Made from the same topics as whatever is trimmed.
        self.topics
            .get(&topic)
            .map_or_else(String::new, |names| names.changelog.clone())
    }
}

fn refusal(error: &KafkaError) -> Uncut {
    use RDKafkaErrorCode::{PolicyViolation, TopicAuthorizationFailed};
    match error.rdkafka_error_code() {
        Some(TopicAuthorizationFailed) => Uncut::NoRight,
        Some(PolicyViolation) => Uncut::Failed(
            "the broker deletes no records of a topic whose cleanup.policy is \"compact\" alone".to_owned(),
        ),
        _ => Uncut::Failed(crate::error::chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inside an answer about several partitions an error looks like one about an offset.
    #[test]
    fn a_missing_right_is_told_from_what_passes() {
        let no_right = KafkaError::OffsetFetch(RDKafkaErrorCode::TopicAuthorizationFailed);
        assert_eq!(refusal(&no_right), Uncut::NoRight);
        let later = KafkaError::OffsetFetch(RDKafkaErrorCode::NotLeaderForPartition);
        assert!(matches!(refusal(&later), Uncut::Failed(_)));
    }
}
