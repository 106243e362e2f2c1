//! The consumer's properties: what hapax sets itself, and what follows from them.

use std::time::Duration;

use rdkafka::ClientConfig;

use crate::config::{Settings, is_by_broker};

/// librdkafka's default, where the user states nothing.
const SESSION: Duration = Duration::from_secs(45);

/// A member hears of a rebalance with its next heartbeat, and everybody waits for the last one: with librdkafka's 3 s that
/// is most of the time for which partitions stand still in a rolling restart.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// With KIP-848 the broker decides both and tells neither: the shortest session and the longest heartbeat that a broker
/// lets a group have, unless its own bounds were moved. (The shortest session is [`SESSION`] there, too.)
const HEARTBEAT_BY_BROKER: Duration = Duration::from_secs(15);

/// Bounds of one partition's prefetch: below the first a fetch brings single messages, above the second nothing is
/// gained.
const PREFETCH_KIB: std::ops::RangeInclusive<u64> = 64..=8_192;

/// The consumer's own properties; the user cannot set these. `partitions` is how many it may come to own.
pub(super) fn consumer_config(settings: &Settings, partitions: usize) -> ClientConfig {
    let mut config = super::client_config(settings);
    config.set("group.id", &settings.group);
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    // Every start is an explicit offset. Where it is out of the log's range somebody has to decide.
    config.set("auto.offset.reset", "error");
    config.set("statistics.interval.ms", "5000");
    if config.get("partition.assignment.strategy").is_none() && !is_by_broker(&settings.kafka) {
        config.set("partition.assignment.strategy", "cooperative-sticky");
    }
    // Both count per partition once queues are split: the defaults would be 64 MiB for each of them. What is
    // prefetched waits beside what is in flight, within the same bound once more.
    let share = settings.limits.in_flight_bytes.0 / 1_024 / partitions.max(1) as u64;
    let kib = share.clamp(*PREFETCH_KIB.start(), *PREFETCH_KIB.end());
    config.set("queued.max.messages.kbytes", kib.to_string());
    // What is asked for at a time counts too: the limit above is looked at only before a fetch. The client raises the
    // first by itself where a message is larger.
    if config.get("fetch.message.max.bytes").is_none() && config.get("max.partition.fetch.bytes").is_none() {
        let bytes = (kib * 1_024).clamp(64 << 10, 1 << 20);
        config.set("fetch.message.max.bytes", bytes.to_string());
    }
    // A partition whose prefetch is full is asked for again after this. The default, a second, would hold each partition
    // to one prefetch a second.
    if config.get("fetch.queue.backoff.ms").is_none() {
        config.set("fetch.queue.backoff.ms", "10");
    }
    // While a broker waits to answer a fetch of partitions that have nothing new, the client asks it for no other: one
    // whose prefetch was full and has been emptied stands still for up to this. The default is half a second.
    if config.get("fetch.wait.max.ms").is_none() {
        config.set("fetch.wait.max.ms", "50");
    }
    if config.get("heartbeat.interval.ms").is_none() && !is_by_broker(&settings.kafka) {
        config.set(
            "heartbeat.interval.ms",
            heartbeat(settings).as_millis().to_string(),
        );
    }
    let messages = (100_000 / partitions.max(1)).max(1_000);
    config.set("queued.min.messages", messages.to_string());
    config
}

/// How long the group waits for a member before it gives its partitions away.
pub(super) fn session(settings: &Settings) -> Duration {
    stated(settings, "session.timeout.ms", SESSION)
}

/// How often this member tells the group that it lives: a third of a short session at most.
fn heartbeat(settings: &Settings) -> Duration {
    stated(
        settings,
        "heartbeat.interval.ms",
        HEARTBEAT.min(session(settings) / 3),
    )
}

fn stated(settings: &Settings, name: &str, default: Duration) -> Duration {
    let text = settings.kafka.get(name).and_then(|text| text.trim().parse().ok());
    text.map_or(default, Duration::from_millis)
}

/// How long this process may stand still before its partitions count as lost: the group's session less one heartbeat,
/// since the last one that the group saw may be that old.
pub(crate) fn session_max(settings: &Settings) -> Duration {
    let session = session(settings);
    let heartbeat = match is_by_broker(&settings.kafka) {
        true => HEARTBEAT_BY_BROKER,
        false => heartbeat(settings),
    };
    session.saturating_sub(heartbeat).max(session / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Durability, Properties};

    fn settings(kafka: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::new("g", "b:1", "s", Durability::Local);
        settings.kafka = kafka.iter().copied().collect::<Properties>();
        settings
    }

    #[test]
    fn the_prefetch_is_divided_by_the_partitions() {
        let kib = |partitions| {
            let config = consumer_config(&settings(&[]), partitions);
            config
                .get("queued.max.messages.kbytes")
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        assert_eq!(kib(1), 8_192);
        assert_eq!(kib(64), 1_024);
        assert_eq!(kib(100_000), 64);
    }

    #[test]
    fn the_waits_of_a_fetch_are_short_and_the_user_may_have_others() {
        let wait = |kafka: &[(&str, &str)]| {
            let config = consumer_config(&settings(kafka), 4);
            ["fetch.queue.backoff.ms", "fetch.wait.max.ms"].map(|name| config.get(name).unwrap().to_owned())
        };
        assert_eq!(wait(&[]), ["10", "50"]);
        let own = [("fetch.queue.backoff.ms", "7"), ("fetch.wait.max.ms", "500")];
        assert_eq!(wait(&own), ["7", "500"]);
    }

    #[test]
    fn a_freeze_counts_from_the_session_less_a_heartbeat() {
        let seconds = Duration::from_secs;
        assert_eq!(session_max(&settings(&[])), seconds(44));
        assert_eq!(
            session_max(&settings(&[("session.timeout.ms", "2400")])),
            Duration::from_millis(1_600)
        );
        let own = [("session.timeout.ms", "2000"), ("heartbeat.interval.ms", "1500")];
        assert_eq!(session_max(&settings(&own)), seconds(1), "at least half of it");
        let by_broker = settings(&[("group.protocol", "consumer")]);
        assert_eq!(session_max(&by_broker), seconds(30), "45 s less 15 s");
    }
}
