//! The member: who this process is in its group, shared by the poll thread, which learns it, and the journal, which has to
//! state it with every transaction.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::RDKafkaErrorCode;

use super::callbacks::Callbacks;
use super::raw::{MemberId, member_id};

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Member(Arc<Mutex<Option<Joined>>>);

struct Joined {
    consumer: Arc<BaseConsumer<Callbacks>>,
    /// Whom the partitions were assigned to.
    member: String,
}

impl Member {
    fn joined(&self) -> MutexGuard<'_, Option<Joined>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Partitions were assigned: whoever this consumer is now owns them.
    pub(super) fn join(&self, consumer: &Arc<BaseConsumer<Callbacks>>) {
        *self.joined() = member_id(consumer).map(|id| Joined {
            consumer: Arc::clone(consumer),
            member: id.member,
        });
    }

    /// Everything is lost, or the consumer closes: nothing is written in its name any more.
    pub(super) fn leave(&self) {
        *self.joined() = None;
    }

    /// The broker refused a transaction with that code: it may be that the group knows this member no more.
    pub(super) fn note(&self, code: Option<RDKafkaErrorCode>) {
        if let Some(joined) = &*self.joined() {
            joined.consumer.context().note_kick(code);
        }
    }

    /// What a transaction states.
    ///
    /// # Errors
    /// Where this process is no member, or not the one that its partitions were assigned to: such metadata would be
    /// accepted for any partition (platform facts in `docs/design.md`).
    pub(super) fn metadata(&self) -> Result<ConsumerGroupMetadata, String> {
        let joined = self.joined();
        let Some(Joined { consumer, member }) = &*joined else {
            return Err("this process is no member of its group".into());
        };
        // The metadata itself does not say what is in it. Generations only grow: the same one before and after is the
        // one in between.
        let before = member_id(consumer);
        let metadata = consumer.group_metadata();
        let after = member_id(consumer);
        match (before, metadata, after) {
            (Some(before), Some(metadata), Some(after)) if before == after => {
                check(&before, member).map(|()| metadata)
            }
            _ => Err("this process is about to become another member of its group".into()),
        }
    }
}

fn check(now: &MemberId, assigned_to: &str) -> Result<(), String> {
    if now.generation < 0 || now.member.is_empty() {
        return Err(format!(
            "this process is no member of its group (generation {}, member {:?})",
            now.generation, now.member
        ));
    }
    if now.member != assigned_to {
        return Err(format!(
            "this process is member {:?}, its partitions were assigned to {assigned_to:?}",
            now.member
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schedule 2: Kafka accepts these unchecked.
    #[test]
    fn metadata_that_fences_nobody_is_refused() {
        let id = |generation, member: &str| MemberId {
            generation,
            member: member.into(),
        };
        assert!(check(&id(3, "a"), "a").is_ok());
        for (now, why) in [
            (id(-1, "a"), "no member"),
            (id(3, ""), "no member"),
            (id(3, "b"), "assigned to"),
        ] {
            assert!(check(&now, "a").unwrap_err().contains(why), "{now:?}");
        }
        assert!(Member::default().metadata().is_err());
    }
}
