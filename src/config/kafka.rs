//! librdkafka's properties: which of them hapax owns, and why.

use std::time::Duration;

use super::error::Problem;
use super::read::segment;
use super::settings::{Durability, Properties};

/// Properties that hapax sets itself: name, why, what to use instead.
const OWNED: &[(&str, &str, &str)] = &[
    (
        "enable.auto.commit",
        "an offset is committed only after its outcome is recorded",
        REMOVE,
    ),
    (
        "auto.commit.enable",
        "an offset is committed only after its outcome is recorded",
        REMOVE,
    ),
    (
        "auto.commit.interval.ms",
        "hapax commits by itself",
        "use `commit_every`",
    ),
    (
        "enable.auto.offset.store",
        "a message that librdkafka handed over is not yet recorded",
        REMOVE,
    ),
    (
        "auto.offset.reset",
        "it would also answer for a committed offset that has vanished",
        "use `start`",
    ),
    (
        "offset.store.method",
        "offsets are kept by the broker, with the store's id beside them",
        REMOVE,
    ),
    (
        "offset.store.path",
        "offsets are kept by the broker, with the store's id beside them",
        REMOVE,
    ),
    (
        "group.id",
        "the group is part of the store's identity",
        "use `group`",
    ),
    (
        "bootstrap.servers",
        "consumer, producer and admin client ask the same brokers",
        "use `brokers`",
    ),
    (
        "metadata.broker.list",
        "consumer, producer and admin client ask the same brokers",
        "use `brokers`",
    ),
    (
        "enable.partition.eof",
        "hapax asks for the high watermark where it needs it",
        REMOVE,
    ),
    (
        "queued.min.messages",
        "it counts for each partition, so hapax divides by those assigned",
        "use `limits.in_flight`",
    ),
    (
        "queued.max.messages.kbytes",
        "it counts for each partition, so hapax divides by those assigned",
        "use `limits.in_flight_bytes`",
    ),
    (
        "transactional.id",
        "transactions belong to the durability mode",
        REMOVE,
    ),
    (
        "transaction.timeout.ms",
        "it is 15 s, or 5 s more than `drain` where that is longer",
        "use `drain`",
    ),
    (
        "acks",
        "a dead letter counts as written when all replicas have it",
        REMOVE,
    ),
    (
        "request.required.acks",
        "a dead letter counts as written when all replicas have it",
        REMOVE,
    ),
    (
        "enable.idempotence",
        "a retry inside the producer must not write a dead letter twice",
        REMOVE,
    ),
    (
        "statistics.interval.ms",
        "lag and broker metrics are read from the statistics",
        REMOVE,
    ),
    ("opaque", "it is a pointer, not a text", REMOVE),
    ("default_topic_conf", "it is a pointer, not a text", REMOVE),
];

const REMOVE: &str = "remove it";

/// librdkafka's own default: a member that does not poll for longer is put out of the group.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// `max.poll.interval.ms`, or librdkafka's default.
pub(super) fn max_poll_interval(properties: &Properties) -> Duration {
    let stated = properties
        .get("max.poll.interval.ms")
        .and_then(|text| text.trim().parse().ok());
    stated.map_or(MAX_POLL_INTERVAL, Duration::from_millis)
}

/// Whether the broker decides who owns what (KIP-848), and session and heartbeat with it.
pub(crate) fn is_by_broker(properties: &Properties) -> bool {
    let protocol = properties.get("group.protocol");
    protocol.is_some_and(|protocol| protocol == "consumer")
}

/// What is passed through, and worth a word.
pub(super) fn warn(properties: &Properties) -> Vec<Problem> {
    let key = format!("kafka.{}", segment("group.protocol"));
    let (why, fix) = (
        "the protocol of KIP-848 works and is experimental here: the client library has known faults in it",
        "remove it, unless you mean to try it",
    );
    let experimental = is_by_broker(properties).then(|| Problem::new(key, "\"consumer\"", why, fix));
    experimental.into_iter().collect()
}

/// The properties that cannot be passed through. Values stay out of it: some are passwords.
pub(super) fn check(properties: &Properties, durability: Durability) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |name: &str, value: &str, why: &str, fix: &str| {
        problems.push(Problem::new(format!("kafka.{}", segment(name)), value, why, fix));
    };
    for (name, value) in properties {
        let owned = OWNED.iter().find(|(owned, ..)| owned == name);
        if let Some((_, why, fix)) = owned {
            refuse(name, "", &format!("hapax sets it itself: {why}"), fix);
        } else if name.ends_with("_cb") {
            refuse(name, "", "it is a function, not a text", REMOVE);
        } else if name == "partition.assignment.strategy" {
            check_strategy(value, &mut |why, fix| {
                refuse(name, &format!("{value:?}"), why, fix)
            });
        } else if name == "max.poll.interval.ms" && value.trim().parse::<u64>().is_err() {
            refuse(
                name,
                &format!("{value:?}"),
                "it is not a number of milliseconds",
                "write for example 300000",
            );
        } else if name == "isolation.level"
            && durability == Durability::Replicated
            && value != "read_committed"
        {
            refuse(
                name,
                &format!("{value:?}"),
                "in replicated mode a message or a state of a transaction that never was would be taken for one that was",
                "remove it, or write \"read_committed\"",
            );
        }
    }
    if is_by_broker(properties) {
        for name in [
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "partition.assignment.strategy",
        ] {
            if properties.contains_key(name) {
                refuse(
                    name,
                    "",
                    "with group.protocol = \"consumer\" the broker decides it",
                    "remove one of the two",
                );
            }
        }
    }
    problems
}

fn check_strategy(value: &str, refuse: &mut dyn FnMut(&str, &str)) {
    const FIX: &str = "write \"cooperative-sticky\", \"range\", \"roundrobin\" or \"range,roundrobin\"";
    let strategies: Vec<&str> = value.split(',').map(str::trim).collect();
    if strategies
        .iter()
        .any(|name| !["cooperative-sticky", "range", "roundrobin"].contains(name))
    {
        refuse("librdkafka has no such strategy", FIX);
    } else if strategies.len() > 1 && strategies.contains(&"cooperative-sticky") {
        refuse(
            "a cooperative strategy cannot be offered together with an eager one",
            FIX,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(pairs: &[(&str, &str)]) -> Vec<Problem> {
        check(&pairs.iter().copied().collect(), Durability::Local)
    }

    #[test]
    fn every_property_that_hapax_owns_is_refused_with_its_reason() {
        for (name, why, fix) in OWNED {
            let [problem] = &problems(&[(name, "x")])[..] else {
                panic!("{name} is passed through")
            };
            assert_eq!(problem.key, format!("kafka.{}", segment(name)));
            assert!(problem.why.contains(why) && problem.fix == *fix, "{problem}");
        }
        for name in [
            "enable.auto.commit",
            "enable.auto.offset.store",
            "auto.offset.reset",
            "group.id",
        ] {
            assert_eq!(problems(&[(name, "x")]).len(), 1, "{name}");
        }
        assert_eq!(problems(&[("rebalance_cb", "x")]).len(), 1);
    }

    #[test]
    fn what_users_tune_is_passed_through() {
        let tuned = [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.password", "hunter2"),
            ("ssl.ca.location", "/ca.pem"),
            ("session.timeout.ms", "45000"),
            ("heartbeat.interval.ms", "3000"),
            ("max.poll.interval.ms", "300000"),
            ("group.instance.id", "a-1"),
            ("client.id", "billing"),
            ("client.rack", "eu-1"),
            ("fetch.max.bytes", "52428800"),
            ("isolation.level", "read_uncommitted"),
            ("partition.assignment.strategy", "range,roundrobin"),
        ];
        assert_eq!(problems(&tuned), []);
    }

    #[test]
    fn values_that_contradict_are_refused() {
        assert_eq!(problems(&[("partition.assignment.strategy", "sticky")]).len(), 1);
        assert_eq!(
            problems(&[("partition.assignment.strategy", "cooperative-sticky,range")]).len(),
            1
        );
        assert_eq!(problems(&[("max.poll.interval.ms", "5m")]).len(), 1);
        assert_eq!(
            problems(&[("group.protocol", "consumer"), ("session.timeout.ms", "45000")]).len(),
            1
        );
        assert_eq!(
            problems(&[("group.protocol", "classic"), ("session.timeout.ms", "45000")]),
            []
        );
    }

    #[test]
    fn what_was_never_committed_is_not_read_in_replicated_mode() {
        let problems = |level| {
            let properties = [("isolation.level", level)].into_iter().collect();
            check(&properties, Durability::Replicated)
        };
        let [problem] = &problems("read_uncommitted")[..] else {
            panic!("it is passed through")
        };
        assert_eq!(
            problem.to_string(),
            "kafka.\"isolation.level\" = \"read_uncommitted\": in replicated mode a message or a state of a transaction \
             that never was would be taken for one that was; remove it, or write \"read_committed\""
        );
        assert_eq!(problems("read_committed"), []);
    }

    #[test]
    fn no_problem_shows_a_password() {
        let shown = format!(
            "{:?}",
            problems(&[("sasl.password", "hunter2"), ("group.id", "hunter2")])
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
