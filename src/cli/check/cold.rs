//! What a start would find cold, and how much of its topic it would read back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Report, count, visit};
use crate::assignments::Rules;
use crate::broker::Error as BrokerError;
use crate::broker::cluster::Cluster;
use crate::broker::kafka::changelog::{Ends, Span};
use crate::broker::kafka::reach::Sample;
use crate::broker::kafka::{asker, reach};
use crate::clock;
use crate::config::{Cold, Durability, Settings};
use crate::error::{Error, chain};
use crate::rebuild::Part;
use crate::store::{PartitionId, Position, Store as _, StoreId};

/// One line for each topic that has a cold partition, or one that there is none.
pub(super) fn partitions(settings: &Settings, cluster: &Cluster, report: &mut Report) {
    match find(settings, cluster) {
        Ok(found) if found.is_empty() => report.ok(format_args!(
            "cold: no partition, as far as this store and the group's commits say"
        )),
        Ok(found) => {
            for (topic, parts) in found {
                let sample = reach::sample(settings, spans(&topic, &parts), SAMPLE);
                let pace = sample.map_or_else(
                    |error| format!("how long that takes is not known: {}", chain(&error)),
                    |sample| pace(sample, total(&parts)),
                );
                say(settings, &topic, &parts, &pace, report);
            }
        }
        // Whether a start would be refused for it is said by the line of rights.
        Err(error) => report.warn(format_args!(
            "cold: not proven that no partition is: {}",
            chain(&error)
        )),
    }
}

/// A partition that is cold, and the offsets that a rebuild would read.
struct Found {
    partition: i32,
    from: i64,
    to: i64,
}

/// How long check reads to see how fast that goes.
const SAMPLE: Duration = Duration::from_secs(2);

fn spans(topic: &str, parts: &[Found]) -> Vec<Span> {
    let span = |part: &Found| Span {
        topic: topic.to_owned(),
        partition: part.partition,
        from: part.from,
        to: part.to,
    };
    parts.iter().map(span).collect()
}

fn total(parts: &[Found]) -> u64 {
    let total: i64 = parts.iter().map(|part| part.to - part.from).sum();
    u64::try_from(total).unwrap_or(0)
}

/// How long it takes to read so many messages, at the pace of a sample.
fn pace(sample: Sample, total: u64) -> String {
    let Sample { messages, took } = sample;
    if messages == 0 {
        return "how long that takes is not known: none of them could be read in the time of a sample"
            .to_owned();
    }
    let took = took.max(Duration::from_millis(1));
    let second = messages as f64 / took.as_secs_f64();
    let seconds = (total as f64 / second).ceil().max(1.0);
    let whole = Duration::from_secs(seconds as u64);
    format!(
        "to read them takes about {}, by a sample of {messages} that were read now, at {second:.0}/s; to record them comes on top",
        humantime::format_duration(whole)
    )
}

fn say(settings: &Settings, topic: &str, parts: &[Found], pace: &str, report: &mut Report) {
    let total = count(usize::try_from(total(parts)).unwrap_or(0), "message");
    let each: Vec<_> = parts
        .iter()
        .map(|part| {
            format!(
                "[{}] {} ({}..{})",
                part.partition,
                part.to - part.from,
                part.from,
                part.to
            )
        })
        .collect();
    let (each, cold) = (each.join(", "), count(parts.len(), "partition"));
    let guarded = settings
        .topics
        .get(topic)
        .is_some_and(|policy| policy.class.is_guarded());
    match settings.cold {
        Cold::Rebuild => report.ok(format_args!(
            "cold: {cold} of topic {topic:?}; before they are served the start reads back at most {total}: {each}; {pace}"
        )),
        Cold::Refuse if guarded => report.warn(format_args!(
            "cold: {cold} of topic {topic:?} would not be served; with `cold = \"rebuild\"` the start would read back at most {total}: {each}; {pace}"
        )),
        Cold::Refuse | Cold::Run => report.warn(format_args!(
            "cold: {cold} of topic {topic:?} would be served without their past; with `cold = \"rebuild\"` the start would read back at most {total}: {each}; {pace}"
        )),
    }
}

fn find(settings: &Settings, cluster: &Cluster) -> Result<BTreeMap<String, Vec<Found>>, Error> {
    let mut asked = Vec::new();
    for topic in settings.topics.keys() {
        let known = cluster.topics.get(topic);
        let partitions = known.and_then(|facts| facts.partitions.clone().ok()).unwrap_or(0);
        asked.extend((0..partitions).map(|partition| (topic.clone(), partition)));
    }
    if asked.is_empty() {
        return Ok(BTreeMap::new());
    }
    let facts = asker::committed(settings, &asked)?;
    let known = match settings.durability {
        Durability::Local => of_the_store(settings, &asked)?,
        Durability::Replicated => Known {
            store_id: StoreId([0; 16]),
            positions: of_the_changelogs(settings, cluster, &asked)?,
        },
    };
    let rules = Rules {
        store_id: known.store_id,
        first: settings.start,
        deleted: settings.deleted,
        durability: settings.durability,
    };
    let mut parts = Vec::new();
    for (((topic, partition), facts), position) in asked.into_iter().zip(facts).zip(known.positions) {
        let time_ms = facts
            .committed
            .as_ref()
            .and_then(|committed| committed.mark?.time_ms);
        let (start, cold) = rules.start(position, &facts);
        let Some(policy) = settings.topics.get(&topic).filter(|_| cold.is_some()) else {
            continue;
        };
        parts.push(Part {
            window_ms: clock::millis(policy.window),
            topic,
            partition,
            next: start.next,
            low: facts.low,
            time_ms,
        });
    }
    let since = clock::now();
    let reaches = reach::reaches(settings, &parts, &|| clock::now() > since + WAIT)?;
    let Some(reaches) = reaches else {
        return Err(BrokerError::Unreachable {
            brokers: settings.brokers.clone(),
            what: "asking where a window begins",
            why: format!("no answer within {WAIT:?}"),
        }
        .into());
    };
    let mut found: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    for (part, reach) in parts.into_iter().zip(reaches) {
        found.entry(part.topic).or_default().push(Found {
            partition: part.partition,
            from: reach.from,
            to: part.next.0,
        });
    }
    Ok(found)
}

/// How long the broker may take to tell where windows begin.
const WAIT: Duration = Duration::from_secs(30);

struct Known {
    store_id: StoreId,
    positions: Vec<Option<Position>>,
}

/// A store that is not there yet knows nothing, and nobody has committed with it.
fn of_the_store(settings: &Settings, asked: &[(String, i32)]) -> Result<Known, Error> {
    if !settings.state_dir.join("CURRENT").exists() {
        return Ok(Known {
            store_id: StoreId([0; 16]),
            positions: vec![None; asked.len()],
        });
    }
    let store = visit(&settings.state_dir)?;
    let mut positions = Vec::with_capacity(asked.len());
    for (topic, partition) in asked {
        positions.push(match store.topic(topic) {
            Ok(topic) => store.load_position(PartitionId {
                topic,
                partition: *partition,
            })?,
            Err(_) => None,
        });
    }
    Ok(Known {
        store_id: store.identity().store_id,
        positions,
    })
}

/// What an empty changelog knows is nothing; one that has something is taken to know the commit: to be sure it would have
/// to be read.
fn of_the_changelogs(
    settings: &Settings,
    cluster: &Cluster,
    asked: &[(String, i32)],
) -> Result<Vec<Option<Position>>, Error> {
    let ends = Ends::new(&std::sync::Arc::new(settings.clone()))?;
    let mut positions = Vec::with_capacity(asked.len());
    for (topic, partition) in asked {
        let changelog = settings.changelog_of(topic);
        let facts = cluster.topics.get(&changelog);
        let partitions = facts.and_then(|facts| facts.partitions.clone().ok()).unwrap_or(0);
        let is_empty = *partition >= partitions || {
            let (low, high) = ends.of(&changelog, *partition)?;
            low >= high
        };
        positions.push((!is_empty).then_some(Position {
            commit_point: crate::message::NextOffset(i64::MAX),
            time_ms: None,
            acknowledged_ms: None,
            written_ms: 0,
        }));
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_tells_how_long_all_of_it_takes() {
        let sample = |messages, millis| Sample {
            messages,
            took: Duration::from_millis(millis),
        };
        assert_eq!(
            pace(sample(400_000, 2_000), 60_000_000),
            "to read them takes about 5m, by a sample of 400000 that were read now, at 200000/s; to record them comes on top"
        );
        assert!(pace(sample(7, 0), 7).contains("about 1s, by a sample of 7 "));
        assert!(pace(sample(0, 0), 7).contains("is not known"));
    }
}
