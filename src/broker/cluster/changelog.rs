//! The changelog topics of the replicated mode: what each has to be, and what a start makes of what is there.
//!
//! The invariant: **the broker deletes nothing of a changelog by itself**. Its only copy of what is open may be a year
//! old, so nothing may go by age, size or key: hapax trims what is expired, with DeleteRecords, and that takes the
//! policy `delete` (ADR 13). Every state has to fit as well: a message that can be held must fit into the changelog
//! with what hapax says of it, or each transaction with it would fail, for ever (schedule 20).

use std::fmt::Write as _;

use super::{Absent, Cluster, TopicFacts};
use crate::broker::Error;
use crate::config::Settings;

/// What a state adds to the message that it keeps, at most.
const STATE_BYTES_MAX: u64 = 16 << 10;

/// Frames of many small states are not longer, so no changelog takes less than one of them.
const FRAME_BYTES_MAX: u64 = 1 << 20;

/// What has one value only: property, value.
const FIXED: [(&str, &str); 3] = [
    ("cleanup.policy", "delete"),
    ("retention.ms", "-1"),
    ("retention.bytes", "-1"),
];

const SIZE: &str = "max.message.bytes";

/// What was found of the changelog of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changelog {
    /// It is what it has to be, as far as it could be asked.
    Kept(Kept),
    /// It does not exist.
    Missing(NewChangelog),
    /// It is what it has to be, but for partitions that the input has got since.
    Short {
        /// How many it has.
        has: i32,
        /// What it would be.
        wanted: NewChangelog,
    },
}

/// A changelog that a start can rely on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Kept {
    /// How many partitions it has.
    pub(crate) partitions: i32,
    /// Its `max.message.bytes`; 0 where that is not known.
    pub(crate) message_bytes_max: u64,
    /// What could not be asked, and why.
    pub(crate) unproven: Vec<String>,
    /// What is allowed and may lose state, with what to do about it.
    pub(crate) weak: Vec<String>,
}

/// A changelog as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewChangelog {
    pub(crate) name: String,
    /// The topic whose states it holds.
    pub(crate) input: String,
    /// As many as the input: partition p holds the states of partition p.
    pub(crate) partitions: i32,
    /// Its `max.message.bytes`.
    pub(crate) message_bytes_max: u64,
}

impl Cluster {
    /// What the changelog of an input topic is, and whether states are safe in it.
    ///
    /// # Errors
    /// [`Error::NoChangelog`] where the broker does not tell of it, [`Error::Changelog`] with everything that is wrong.
    pub(crate) fn changelog(&self, settings: &Settings, input: &str) -> Result<Changelog, Error> {
        let wanted = self.new_changelog(settings, input)?;
        let Some(facts) = self.topics.get(&wanted.name) else {
            return Ok(Changelog::Missing(wanted));
        };
        let has = match &facts.partitions {
            Ok(has) => *has,
            Err(Absent::Missing) => return Ok(Changelog::Missing(wanted)),
            Err(Absent::Refused(why)) => return Err(wanted.refused(why.clone())),
        };
        let mut judged = Judged::default();
        for (property, value) in FIXED {
            judged.fixed(facts, property, value);
        }
        judged.size(self, &wanted);
        judged.partitions(has, &wanted);
        if !judged.wrong.is_empty() {
            return Err(judged.into_error(&wanted));
        }
        if has < wanted.partitions {
            return Ok(Changelog::Short { has, wanted });
        }
        Ok(Changelog::Kept(Kept {
            partitions: has,
            message_bytes_max: facts.message_bytes_max().unwrap_or(0),
            weak: weak(facts, &wanted),
            unproven: judged.unproven,
        }))
    }

    fn new_changelog(&self, settings: &Settings, input: &str) -> Result<NewChangelog, Error> {
        let largest = self.message_bytes_max(input).unwrap_or(0).max(FRAME_BYTES_MAX);
        Ok(NewChangelog {
            name: settings.changelog_of(input),
            input: input.to_owned(),
            partitions: self.partitions(input)?,
            message_bytes_max: largest.saturating_add(STATE_BYTES_MAX),
        })
    }
}

/// What is wrong with a changelog, and what mends it.
#[derive(Default)]
struct Judged {
    wrong: Vec<String>,
    /// Properties with the values that they must have.
    alter: Vec<String>,
    /// Other mends.
    mends: Vec<String>,
    unproven: Vec<String>,
}

impl Judged {
    fn fixed(&mut self, facts: &TopicFacts, property: &str, wanted: &str) {
        match facts.property(property) {
            Ok(found) if found == wanted => {}
            // Frames have keys of their own, so compaction finds nothing to delete.
            Ok(found)
                if property == "cleanup.policy" && found.split(',').any(|policy| policy.trim() == wanted) => {
            }
            Ok(found) => self.property(property, found, wanted, wanted),
            Err(why) => self.unproven.push(format!("{property} = {wanted}: {why}")),
        }
    }

    fn size(&mut self, cluster: &Cluster, wanted: &NewChangelog) {
        let needed = wanted.message_bytes_max;
        match (
            cluster.message_bytes_max(&wanted.name),
            cluster.message_bytes_max(&wanted.input),
        ) {
            (Ok(takes), Ok(input)) if takes < needed => {
                let why = format!(
                    "at least {needed}, since {:?} has messages of up to {input} bytes",
                    wanted.input
                );
                self.property(SIZE, &takes.to_string(), &why, &needed.to_string());
            }
            (Ok(takes), Err(_)) if takes < needed => {
                self.property(
                    SIZE,
                    &takes.to_string(),
                    &format!("at least {needed}"),
                    &needed.to_string(),
                );
            }
            (Ok(_), Ok(_)) => {}
            (Err(why), _) | (_, Err(why)) => self.unproven.push(format!("that every state fits: {why}")),
        }
    }

    /// Fewer partitions than the input has are no fault by themselves: the input has grown.
    fn partitions(&mut self, has: i32, wanted: &NewChangelog) {
        let NewChangelog {
            name,
            input,
            partitions,
            ..
        } = wanted;
        if has == *partitions || (has < *partitions && self.wrong.is_empty()) {
            return;
        }
        self.wrong.push(format!(
            "it has {has} partitions and must have {partitions}, as {input:?} has"
        ));
        self.mends.push(if has < *partitions {
            format!("`{}`", wanted.grow_command())
        } else {
            format!(
                "no topic can lose partitions: if {input:?} was made again, the states in {name:?} are those of other messages; \
                 use another group, or delete {name:?} and the group's offsets"
            )
        });
    }

    fn property(&mut self, property: &str, found: &str, wanted: &str, value: &str) {
        self.wrong
            .push(format!("{property} is {found:?} and must be {wanted}"));
        self.alter.push(format!("{property}={value}"));
    }

    fn into_error(mut self, wanted: &NewChangelog) -> Error {
        if !self.alter.is_empty() {
            self.mends.insert(
                0,
                format!("`{}`", alter_command(&wanted.name, &self.alter.join(","))),
            );
        }
        Error::Changelog {
            topic: wanted.name.clone(),
            input: wanted.input.clone(),
            wrong: self.wrong.join("; "),
            mend: self.mends.join("; "),
        }
    }
}

/// What a start allows, and a person should know.
fn weak(facts: &TopicFacts, wanted: &NewChangelog) -> Vec<String> {
    if facts.replicas == 1 {
        return vec![
            "it has one replica: when that broker's disk is lost, every state is; raise its replication factor with \
             `kafka-reassign-partitions.sh`"
                .to_owned(),
        ];
    }
    match facts.property("min.insync.replicas") {
        Ok("1") => vec![format!(
            "min.insync.replicas is 1: a state that only one broker has yet can be lost with it; `{}`",
            alter_command(&wanted.name, "min.insync.replicas=2")
        )],
        _ => Vec::new(),
    }
}

impl NewChangelog {
    /// The properties that it is created with. The replication factor is the cluster's.
    pub(crate) fn properties(&self) -> Vec<(&'static str, String)> {
        let fixed = FIXED.map(|(property, value)| (property, value.to_owned()));
        let size = (SIZE, self.message_bytes_max.to_string());
        fixed.into_iter().chain([size]).collect()
    }

    /// What it has to be, in words.
    pub(crate) fn words(&self) -> String {
        let mut words = match self.partitions {
            1 => "1 partition".to_owned(),
            partitions => format!("{partitions} partitions"),
        };
        for (property, value) in self.properties() {
            let _ = write!(words, ", {property} = {value}");
        }
        words
    }

    /// It cannot be used, or not be made, for that reason.
    pub(crate) fn refused(&self, why: String) -> Error {
        let mut command = format!(
            "kafka-topics.sh --create --topic {} --partitions {}",
            self.name, self.partitions
        );
        for (property, value) in self.properties() {
            let _ = write!(command, " --config {property}={value}");
        }
        Error::NoChangelog {
            topic: self.name.clone(),
            input: self.input.clone(),
            why,
            needed: self.words(),
            command,
        }
    }

    /// It has too few partitions, and could not be given more for that reason.
    pub(crate) fn not_grown(&self, has: i32, why: &str) -> Error {
        Error::Changelog {
            topic: self.name.clone(),
            input: self.input.clone(),
            wrong: format!(
                "it has {has} partitions and {:?} has grown to {}; adding them was refused: {why}",
                self.input, self.partitions
            ),
            mend: format!("`{}`", self.grow_command()),
        }
    }

    fn grow_command(&self) -> String {
        format!(
            "kafka-topics.sh --alter --topic {} --partitions {}",
            self.name, self.partitions
        )
    }
}

fn alter_command(topic: &str, properties: &str) -> String {
    format!("kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {properties}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::settle;

    const NAME: &str = "g.orders.hapax";
    /// Room for a message of a megabyte and its state.
    const ROOM: u64 = FRAME_BYTES_MAX + STATE_BYTES_MAX;

    fn facts(partitions: Result<i32, Absent>, properties: &[(&str, &str)]) -> TopicFacts {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        TopicFacts {
            partitions,
            replicas: 3,
            properties: Ok(properties.iter().map(owned).collect::<BTreeMap<_, _>>()),
        }
    }

    /// A changelog as hapax creates it, with some of its properties changed.
    fn made(partitions: i32, changed: &[(&str, &str)]) -> TopicFacts {
        let room = ROOM.to_string();
        let mut properties = vec![
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("max.message.bytes", &room),
            ("min.insync.replicas", "2"),
        ];
        properties.retain(|(name, _)| changed.iter().all(|(other, _)| other != name));
        properties.extend(changed);
        facts(Ok(partitions), &properties)
    }

    /// What is made of a changelog beside an input of 4 partitions that takes messages of that many bytes.
    fn judge(input_bytes: u64, changelog: Option<TopicFacts>) -> Result<Changelog, Error> {
        let mut cluster = Cluster::default();
        let bytes = input_bytes.to_string();
        let input = facts(Ok(4), &[("max.message.bytes", &bytes)]);
        cluster.topics.insert("orders".into(), input);
        cluster
            .topics
            .extend(changelog.map(|facts| (NAME.to_owned(), facts)));
        cluster.changelog(&settle("durability = \"replicated\"").unwrap(), "orders")
    }

    fn refused(input_bytes: u64, changelog: TopicFacts) -> String {
        judge(input_bytes, Some(changelog)).unwrap_err().to_string()
    }

    fn kept(changelog: TopicFacts) -> Kept {
        match judge(1_000, Some(changelog)).unwrap() {
            Changelog::Kept(kept) => kept,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_hapax_creates_is_what_it_accepts() {
        for input_bytes in [1, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, 50_000_000] {
            let Changelog::Missing(new) = judge(input_bytes, None).unwrap() else {
                panic!("it is not there")
            };
            assert_eq!((new.name.as_str(), new.partitions), (NAME, 4));
            assert_eq!(
                new.message_bytes_max,
                input_bytes.max(FRAME_BYTES_MAX) + STATE_BYTES_MAX
            );
            let properties = new.properties();
            let created: Vec<_> = properties
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let found = judge(input_bytes, Some(facts(Ok(new.partitions), &created)));
            let Ok(Changelog::Kept(kept)) = found else {
                panic!("{found:?}")
            };
            assert_eq!((kept.partitions, kept.unproven), (4, Vec::<String>::new()));
        }
        let missing = facts(Err(Absent::Missing), &[]);
        assert!(matches!(judge(1, Some(missing)), Ok(Changelog::Missing(_))));
    }

    /// Schedule 4: whatever the broker deletes by itself is a state that somebody needs.
    #[test]
    fn everything_by_which_the_broker_would_delete_is_named_at_once() {
        let changed = [
            ("cleanup.policy", "compact"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1000"),
            ("max.message.bytes", "1048588"),
        ];
        let told = refused(1_048_588, made(5, &changed));
        for part in [
            NAME,
            "cleanup.policy is \"compact\" and must be delete",
            "retention.ms is \"604800000\" and must be -1",
            "retention.bytes is \"1000\" and must be -1",
            "max.message.bytes is \"1048588\" and must be at least 1064972, since \"orders\" has messages of up to 1048588",
            "it has 5 partitions and must have 4",
            "--entity-name g.orders.hapax --add-config cleanup.policy=delete,retention.ms=-1,retention.bytes=-1,\
             max.message.bytes=1064972`",
            "no topic can lose partitions",
        ] {
            assert!(told.contains(part), "{part:?} is not in: {told}");
        }
    }

    #[test]
    fn compaction_is_accepted_beside_deletion_and_not_instead_of_it() {
        for policy in ["delete", "compact,delete", "delete, compact"] {
            kept(made(4, &[("cleanup.policy", policy)]));
        }
        for policy in ["compact", "", "deleted"] {
            let told = refused(1, made(4, &[("cleanup.policy", policy)]));
            assert!(told.contains("cleanup.policy is"), "{told}");
            assert!(!told.contains("retention.ms"), "nothing else is wrong: {told}");
        }
    }

    /// Schedule 20: the input is as large as the changelog allows.
    #[test]
    fn a_state_must_fit_with_its_message() {
        let takes = |bytes: u64| made(4, &[("max.message.bytes", &bytes.to_string())]);
        let large = 2_000_000;
        let told = refused(large, takes(large + STATE_BYTES_MAX - 1));
        assert!(told.contains("must be at least 2016384"), "{told}");
        assert!(judge(large, Some(takes(large + STATE_BYTES_MAX))).is_ok());
        // Frames need their room whatever the messages are.
        let told = refused(1, takes(ROOM - 1));
        assert!(told.contains("must be at least 1064960"), "{told}");
        assert!(judge(1, Some(takes(ROOM))).is_ok());
    }

    #[test]
    fn a_changelog_grows_with_its_input_and_never_shrinks() {
        let found = judge(1, Some(made(3, &[]))).unwrap();
        let Changelog::Short { has: 3, wanted } = &found else {
            panic!("{found:?}")
        };
        assert_eq!(wanted.partitions, 4);
        let told = wanted.not_grown(3, "not authorized").to_string();
        for part in [
            "it has 3 partitions and \"orders\" has grown to 4",
            "not authorized",
            "`kafka-topics.sh --alter --topic g.orders.hapax --partitions 4`",
        ] {
            assert!(told.contains(part), "{part:?} is not in: {told}");
        }
        let told = refused(1, made(5, &[]));
        assert!(told.contains("use another group"), "{told}");
        // Nothing is added to a topic that is not a changelog.
        let told = refused(1, made(3, &[("cleanup.policy", "compact")]));
        assert!(told.contains("it has 3 partitions and must have 4"), "{told}");
        assert!(told.contains("--add-config cleanup.policy=delete`"), "{told}");
        assert!(told.contains("--partitions 4`"), "{told}");
    }

    #[test]
    fn what_may_not_be_asked_is_said_to_be_unproven() {
        let mut changelog = made(4, &[]);
        changelog.properties = Err("not authorized".into());
        let unproven = kept(changelog).unproven;
        let about = [
            "cleanup.policy = delete",
            "retention.ms = -1",
            "retention.bytes = -1",
            "every state fits",
        ];
        assert_eq!(unproven.len(), about.len(), "{unproven:?}");
        for (text, about) in unproven.iter().zip(about) {
            assert!(text.contains(about) && text.contains("not authorized"), "{text}");
        }
    }

    #[test]
    fn a_broker_that_does_not_tell_is_told_everything_that_is_needed() {
        let told = refused(1, facts(Err(Absent::Refused("not authorized".into())), &[]));
        for part in [
            "g.orders.hapax",
            "not authorized",
            "4 partitions, cleanup.policy = delete, retention.ms = -1, retention.bytes = -1, max.message.bytes = 1064960",
            "`kafka-topics.sh --create --topic g.orders.hapax --partitions 4 --config cleanup.policy=delete --config \
             retention.ms=-1 --config retention.bytes=-1 --config max.message.bytes=1064960`",
        ] {
            assert!(told.contains(part), "{part:?} is not in: {told}");
        }
    }

    #[test]
    fn a_state_on_one_broker_is_worth_a_warning() {
        assert_eq!(kept(made(4, &[])).weak, Vec::<String>::new());
        let [weak] = &kept(made(4, &[("min.insync.replicas", "1")])).weak[..] else {
            panic!("no warning")
        };
        assert!(weak.contains("--add-config min.insync.replicas=2"), "{weak}");
        let mut alone = made(4, &[]);
        alone.replicas = 1;
        let [weak] = &kept(alone).weak[..] else {
            panic!("no warning")
        };
        assert!(weak.contains("one replica"), "{weak}");
    }
}
