//! What cannot work, found before anything starts: limits of zero, values beyond reason, and settings that
//! contradict one another.
//!
//! Every bound states its reason, since a bound without one is the first thing a user works around.

mod bound;
mod replicated;
mod topic;

pub(crate) use topic::legal;

use std::time::Duration;

use self::bound::Found;
use super::error::Problem;
use super::kafka;
use super::settings::{Cold, Durability, Limits, Settings, Standby};
use super::units::{ByteCount, show_duration};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Nobody remembers longer, and every sum of such times stays far from overflow.
const CENTURY: Duration = Duration::from_secs(36_525 * 86_400);

/// Every problem that the settings have; an empty list means that they can be run with.
#[must_use]
pub fn check(settings: &Settings) -> Vec<Problem> {
    let mut found = Found::default();
    process(settings, &mut found);
    limits(&settings.limits, &mut found);
    found
        .problems
        .extend(kafka::check(&settings.kafka, settings.durability));
    for (name, policy) in &settings.topics {
        topic::check(settings, name, policy, &mut found);
    }
    if settings.durability == Durability::Replicated {
        replicated::check(settings, &mut found);
    }
    found.problems
}

/// What is allowed and probably not meant: `hapax check` lists it, and nothing is refused.
#[must_use]
pub fn warnings(settings: &Settings) -> Vec<Problem> {
    let mut found = Found::default();
    let (why, fix) = (
        "what a lost window knew runs again",
        "set \"refuse\" once the window is whole",
    );
    found
        .key("cold", settings.cold.name())
        .when(settings.cold == Cold::Run, why, fix);
    found.problems.extend(kafka::warn(&settings.kafka));
    if settings.durability == Durability::Replicated {
        replicated::warn(settings, &mut found);
    }
    for (name, policy) in &settings.topics {
        topic::warn(settings, name, policy, &mut found);
    }
    found.problems
}

fn process(settings: &Settings, found: &mut Found) {
    let group = settings.group.as_str();
    found.key("group", group).when(
        group.trim().is_empty(),
        "a group has a name",
        "write for example \"billing\"",
    );

    let brokers = settings.brokers.as_str();
    let address = |broker: &str| !broker.trim().is_empty() && !broker.trim().contains(char::is_whitespace);
    let (why, fix) = (
        "it is not a list of host:port",
        "write for example \"k1:9092,k2:9092\"",
    );
    found
        .key("brokers", brokers)
        .when(!brokers.split(',').all(address), why, fix);

    let nowhere = settings.state_dir.as_os_str().is_empty();
    let (why, fix) = (
        "the window needs a directory",
        "write for example \"/var/lib/hapax\"",
    );
    found.key("state_dir", "").when(nowhere, why, fix);

    let poll = kafka::max_poll_interval(&settings.kafka);
    let given_away = format!(
        "the broker gives the partitions away after {} (max.poll.interval.ms)",
        show_duration(poll)
    );
    found
        .key("drain", settings.drain)
        .least(
            Duration::from_millis(1),
            "every handler in flight would be cut off at each rebalance",
        )
        .when(settings.drain >= poll, given_away, "write for example \"10s\"");
    found
        .key("commit_every", settings.commit_every)
        .least(Duration::from_millis(1), "a commit takes longer than that")
        .most(
            Duration::from_secs(600),
            "a kill would bring back everything since the last commit",
        );
    found
        .key("memory", settings.memory)
        .least(ByteCount::mib(16), "the write buffers alone need that much")
        .most(ByteCount::gib(16 << 10), "no machine has so much");
    found
        .key("max_clock_jump", settings.max_clock_jump)
        .least(
            SECOND,
            "every message of a quiet topic would have to be confirmed by another",
        )
        .most(CENTURY, "it would stop nothing");
    let (why, fix) = (
        "a copy of another's window is read from its changelog, which only the replicated mode has",
        "remove it, or set durability = \"replicated\"",
    );
    found.key("standby", settings.standby.name()).when(
        settings.standby == Standby::All && settings.durability == Durability::Local,
        why,
        fix,
    );
}

fn limits(limits: &Limits, found: &mut Found) {
    found
        .key("limits.in_flight", limits.in_flight)
        .least(1, "nothing could ever be taken")
        .most(100_000_000, "no ledger holds so many in memory");
    found
        .key("limits.in_flight_bytes", limits.in_flight_bytes)
        .least(ByteCount::kib(64), "messages would be taken one by one")
        .most(ByteCount::gib(2), "one batch could outgrow its arena");
    found
        .key("limits.held", limits.held)
        .least(1, "what is in doubt has to be held");
    found
        .key("limits.held_bytes", limits.held_bytes)
        .least(ByteCount(1), "what is in doubt has to be held");
    found
        .key("limits.held_age", limits.held_age)
        .least(
            SECOND,
            "what is in doubt would be dead-lettered before anybody could look",
        )
        .most(CENTURY, "it would never be reached");
    found
        .key("limits.token_bytes", limits.token_bytes)
        .least(ByteCount(1), "no message would have a token")
        .most(ByteCount::kib(64), "that is no key but a document");
    found
        .key("limits.outcome_bytes", limits.outcome_bytes)
        .least(
            ByteCount(1),
            "no reply could be stored, which `store_outcome = false` says",
        )
        .most(ByteCount::mib(1), "every reply is kept for a whole window");
}

#[cfg(test)]
mod tests {
    use crate::config::{settle, warnings};

    /// Each line is refused under its key, alone, and with that reason.
    #[track_caller]
    fn refused(table: &[(&str, &str, &str)]) {
        for (lines, key, why) in table {
            let error = settle(lines).expect_err(lines);
            let [problem] = error.problems() else {
                panic!("{lines}: {error}")
            };
            assert_eq!(problem.key, *key, "{error}");
            assert!(problem.why.contains(why), "{error}");
            assert!(!problem.fix.is_empty(), "{error}");
        }
    }

    #[test]
    fn what_cannot_work_for_the_process_is_refused() {
        refused(&[
            ("group = \" \"", "group", "a group has a name"),
            ("brokers = \"\"", "brokers", "host:port"),
            ("brokers = \"k1:9092,,k2:9092\"", "brokers", "host:port"),
            ("brokers = \"k1:9092 k2:9092\"", "brokers", "host:port"),
            ("state_dir = \"\"", "state_dir", "needs a directory"),
            ("drain = \"0s\"", "drain", "cut off"),
            ("drain = \"5m\"", "drain", "after 5m (max.poll.interval.ms)"),
            (
                "drain = \"1m\"\nkafka.\"max.poll.interval.ms\" = 60000",
                "drain",
                "after 1m",
            ),
            ("commit_every = \"0s\"", "commit_every", "takes longer"),
            ("commit_every = \"1h\"", "commit_every", "bring back"),
            ("memory = \"15MiB\"", "memory", "write buffers"),
            ("memory = \"1EiB\"", "memory", "no machine"),
            ("max_clock_jump = \"0s\"", "max_clock_jump", "confirmed"),
            ("max_clock_jump = \"101y\"", "max_clock_jump", "stop nothing"),
            (
                "dead_letter.topic = \"{topic}\"",
                "dead_letter.topic",
                "the topic itself",
            ),
            (
                "dead_letter.topic = \"orders\"",
                "dead_letter.topic",
                "the topic itself",
            ),
            (
                "dead_letter.topic = \"{group}.dead\"",
                "dead_letter.topic",
                "made of letters",
            ),
            (
                "dead_letter.topic = \"\"",
                "dead_letter.topic",
                "a topic has a name",
            ),
        ]);
    }

    #[test]
    fn a_limit_of_zero_or_beyond_reason_is_refused() {
        refused(&[
            (
                "limits.in_flight = 0",
                "limits.in_flight",
                "nothing could ever be taken",
            ),
            ("limits.in_flight = 1000000000", "limits.in_flight", "no ledger"),
            (
                "limits.in_flight_bytes = 0",
                "limits.in_flight_bytes",
                "one by one",
            ),
            (
                "limits.in_flight_bytes = \"3GiB\"",
                "limits.in_flight_bytes",
                "arena",
            ),
            ("limits.held = 0", "limits.held", "has to be held"),
            ("limits.held_bytes = 0", "limits.held_bytes", "has to be held"),
            (
                "limits.held_age = \"0s\"",
                "limits.held_age",
                "anybody could look",
            ),
            (
                "limits.held_age = \"1000y\"",
                "limits.held_age",
                "never be reached",
            ),
            (
                "limits.token_bytes = 0",
                "limits.token_bytes",
                "no message would have a token",
            ),
            ("limits.token_bytes = 65537", "limits.token_bytes", "a document"),
            (
                "limits.outcome_bytes = 0",
                "limits.outcome_bytes",
                "store_outcome",
            ),
            (
                "limits.outcome_bytes = \"2MiB\"",
                "limits.outcome_bytes",
                "whole window",
            ),
        ]);
    }

    #[test]
    fn what_is_refused_is_refused_from_the_first_step_past_the_bound() {
        for lines in [
            "limits.token_bytes = 65536",
            "limits.in_flight_bytes = \"2GiB\"",
            "limits.outcome_bytes = \"1MiB\"",
            "memory = \"16MiB\"",
            "drain = \"299999ms\"",
            "topics.orders.window = \"1s\"",
            "topics.orders.window = \"36525d\"",
            "topics.orders.window_bytes = \"1MiB\"",
            "topics.orders.retry.in_place = { first = \"10s\", max = \"10s\" }",
            "topics.orders.retry.in_place = { attempts = 1, total = \"0s\" }",
        ] {
            assert!(settle(lines).is_ok(), "{lines}: {:?}", settle(lines));
        }
    }

    #[test]
    fn all_problems_are_told_in_one_round() {
        let error = settle("drain = \"0s\"\nlimits.held = 0\ntopics.orders.deadline = \"0s\"").unwrap_err();
        let keys: Vec<_> = error
            .problems()
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(keys, ["drain", "limits.held", "topics.orders.deadline"]);
    }

    #[test]
    fn the_defaults_are_worth_no_warning_and_odd_choices_are() {
        assert_eq!(warnings(&settle("").unwrap()), []);
        let odd = [
            ("cold = \"run\"", "cold"),
            (
                "kafka.\"group.protocol\" = \"consumer\"",
                "kafka.\"group.protocol\"",
            ),
            ("topics.orders.deadline = \"11s\"", "topics.orders.deadline"),
            ("topics.orders.window = \"1h\"", "topics.orders.window"),
            ("topics.orders.mode = \"observe\"", "topics.orders.mode"),
            ("limits.in_flight = 15", "topics.orders.concurrency"),
            (
                "limits.in_flight = 16\ntopics.orders.begun_ahead = 1",
                "topics.orders.concurrency",
            ),
        ];
        for (lines, key) in odd {
            let keys: Vec<_> = warnings(&settle(lines).unwrap())
                .into_iter()
                .map(|warning| warning.key)
                .collect();
            assert_eq!(keys, [key]);
        }
        let clicks = "topics.clicks = { class = \"idempotent\", window = \"2h\", begun_ahead = 1 }";
        assert_eq!(
            warnings(&settle(clicks).unwrap())[0].key,
            "topics.clicks.begun_ahead"
        );
    }
}
