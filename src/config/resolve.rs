//! Laying the layers over one another, over the defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::check;
use super::error::{Error, Place, Problem};
use super::layer::{Layer, Listen, RetryLayer, TopicLayer};
use super::read::segment;
use super::settings::{Durability, Settings};
use super::topic::{Mismatch, Retry, TopicPolicy};
use super::units::show_duration;
use crate::class::Class;

/// The settings that follow from three layers: environment over file over code over default.
///
/// A topic's own `retry` and `breaker` are stronger than the common ones, whichever layer any of them is in.
///
/// # Errors
/// [`Error::Refused`] with every problem there is: what is required and stated nowhere, a class that two layers
/// state differently, and all that [`check`](super::check()) finds.
pub fn resolve(env: Layer, file: Layer, code: Layer) -> Result<Settings, Error> {
    let mut problems = class_conflicts(&[&env, &file, &code]);
    let merged = env.merge(file).merge(code);
    let settings = fill_in(&merged, &mut problems);

    // What stands in for a missing key is refused by `check` as well, and that is not news.
    let found = check::check(&settings)
        .into_iter()
        .filter(|new| problems.iter().all(|old| old.key != new.key));
    let found: Vec<_> = found.collect();
    problems.extend(found);
    if problems.is_empty() {
        return Ok(settings);
    }
    for problem in &mut problems {
        problem.place = place_of(&problem.key, &merged.places);
    }
    Err(Error::refused(problems))
}

/// Where the key was stated, or else the table that it belongs to.
fn place_of(key: &str, places: &BTreeMap<String, Place>) -> Place {
    let holds = |table: &str| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
    let table = || {
        places
            .iter()
            .find(|(table, _)| holds(table))
            .map(|(_, place)| place)
    };
    places.get(key).or_else(table).cloned().unwrap_or_default()
}

/// The class says what the handler *does*, and the handler is code: a layer that says otherwise is not stronger, it
/// is wrong.
fn class_conflicts(layers: &[&Layer]) -> Vec<Problem> {
    let mut stated: BTreeMap<&str, Vec<Class>> = BTreeMap::new();
    for layer in layers {
        for (name, topic) in &layer.topics {
            stated.entry(name).or_default().extend(topic.class);
        }
    }
    let conflict = |(name, classes): (&str, Vec<Class>)| {
        let strongest = classes.first()?;
        let other = classes.iter().find(|class| *class != strongest)?;
        Some(Problem::new(
            format!("topics.{}.class", segment(name)),
            format!("\"{strongest}\""),
            format!("a weaker layer says \"{other}\", and the class belongs to the handler"),
            "state the same class in both, or only in code",
        ))
    };
    stated.into_iter().filter_map(conflict).collect()
}

/// The one choice that nobody can make for the user, with what each comes to.
const DURABILITIES: &str = "durability = \"local\" (the window is on this machine's disk) or durability = \"replicated\" \
                            (it is in Kafka, and moves with its partition); `hapax explain` says what each loses";

fn put<T: Clone>(setting: &mut T, stated: &Option<T>) {
    if let Some(stated) = stated {
        setting.clone_from(stated);
    }
}

fn fill_in(layer: &Layer, problems: &mut Vec<Problem>) -> Settings {
    let mut required = |key: &str, example: &str| {
        problems.push(Problem::new(
            key,
            "",
            "it is stated nowhere, and has no default",
            format!("add {example}"),
        ));
    };
    let group = layer.group.clone().unwrap_or_else(|| {
        required("group", "group = \"billing\"");
        String::new()
    });
    let brokers = layer.brokers.clone().unwrap_or_else(|| {
        required("brokers", "brokers = \"localhost:9092\"");
        String::new()
    });
    let state_dir = layer.state_dir.clone().unwrap_or_else(|| {
        required("state_dir", "state_dir = \"/var/lib/hapax\"");
        PathBuf::new()
    });
    let durability = layer.durability.unwrap_or_else(|| {
        required("durability", DURABILITIES);
        Durability::Local
    });

    let mut settings = Settings::new(group, brokers, state_dir, durability);
    put(&mut settings.cold, &layer.cold);
    put(&mut settings.start, &layer.start);
    put(&mut settings.deleted, &layer.deleted);
    put(&mut settings.drain, &layer.drain);
    put(&mut settings.commit_every, &layer.commit_every);
    put(&mut settings.memory, &layer.memory);
    put(&mut settings.max_clock_jump, &layer.max_clock_jump);
    put(&mut settings.standby, &layer.standby);
    settings.kafka.clone_from(&layer.kafka);

    let limits = &mut settings.limits;
    put(&mut limits.in_flight, &layer.limits.in_flight);
    put(&mut limits.in_flight_bytes, &layer.limits.in_flight_bytes);
    put(&mut limits.held, &layer.limits.held);
    put(&mut limits.held_bytes, &layer.limits.held_bytes);
    put(&mut limits.held_age, &layer.limits.held_age);
    put(&mut limits.token_bytes, &layer.limits.token_bytes);
    put(&mut limits.outcome_bytes, &layer.limits.outcome_bytes);

    put(&mut settings.dead_letter.topic, &layer.dead_letter.topic);
    put(&mut settings.dead_letter.create, &layer.dead_letter.create);
    match layer.admin.listen {
        Some(Listen::At(address)) => settings.admin.listen = Some(address),
        Some(Listen::Off) => settings.admin.listen = None,
        None => {}
    }
    settings.admin.token_file.clone_from(&layer.admin.token_file);
    settings.admin.audit_topic.clone_from(&layer.admin.audit_topic);

    for (name, topic) in &layer.topics {
        settings
            .topics
            .insert(name.clone(), fill_in_topic(name, topic, layer, problems));
    }
    settings
}

fn fill_in_topic(name: &str, layer: &TopicLayer, common: &Layer, problems: &mut Vec<Problem>) -> TopicPolicy {
    let topic = format!("topics.{}", segment(name));
    let mut required = |key: &str, example: &str| {
        let fix = format!("add {key} = {example}  # under [{topic}]");
        problems.push(Problem::new(
            format!("{topic}.{key}"),
            "",
            "it is stated nowhere, and has no default",
            fix,
        ));
    };
    // What stands in for a missing value never runs: it lets the other keys be checked in the same round.
    let class = layer.class.unwrap_or_else(|| {
        required("class", "\"non-idempotent\"");
        Class::PotentiallyIdempotent
    });
    let window = layer.window.unwrap_or_else(|| {
        required("window", "\"24h\"");
        Duration::from_secs(86_400)
    });
    if let Some(rerun_within) = layer
        .rerun_within
        .filter(|_| class != Class::PotentiallyIdempotent)
    {
        problems.push(Problem::new(
            format!("{topic}.rerun_within"),
            format!("\"{}\"", show_duration(rerun_within)),
            format!("nothing of class \"{class}\" is run again by it"),
            "remove it, or declare the class \"potentially-idempotent\"",
        ));
    }

    let mut policy = TopicPolicy::new(class, window);
    policy.window_bytes = layer.window_bytes.or(policy.window_bytes);
    put(&mut policy.renewal, &layer.renewal);
    put(&mut policy.token, &layer.token);
    put(&mut policy.concurrency, &layer.concurrency);
    put(&mut policy.begun_ahead, &layer.begun_ahead);
    put(&mut policy.deadline, &layer.deadline);
    put(&mut policy.probe_deadline, &layer.probe_deadline);
    put(&mut policy.probe_settle, &layer.probe_settle);
    put(&mut policy.rerun_within, &layer.rerun_within);
    put(&mut policy.missing_token, &layer.missing_token);
    // Naming fields is a wish to be told, so it changes the default of what follows.
    policy.mismatch = layer
        .mismatch
        .fields
        .clone()
        .filter(|fields| !fields.is_empty())
        .map_or_else(Mismatch::default, Mismatch::fields);
    put(&mut policy.mismatch.then, &layer.mismatch.then);
    put(&mut policy.after_failure, &layer.after_failure);
    put(&mut policy.expired, &layer.expired);
    policy.max_age.after = layer.max_age.after.or(policy.max_age.after);
    policy.max_age.header = layer.max_age.header.clone().or(policy.max_age.header);
    put(&mut policy.max_age.then, &layer.max_age.then);
    put(&mut policy.mode, &layer.mode);
    put(&mut policy.store_outcome, &layer.store_outcome);
    put(&mut policy.offload, &layer.offload);
    policy.retry = fill_in_retry(&layer.retry, &common.retry);
    for budget in [&common.retry.budget, &layer.retry.budget] {
        put(&mut policy.budget.share, &budget.share);
        put(&mut policy.budget.per_second, &budget.per_second);
    }
    for breaker in [&common.breaker, &layer.breaker] {
        put(&mut policy.breaker.failure_share, &breaker.failure_share);
        put(&mut policy.breaker.over, &breaker.over);
        put(&mut policy.breaker.open_for, &breaker.open_for);
    }
    put(&mut policy.after_hold, &layer.after_hold);
    put(&mut policy.after_doubt, &layer.after_doubt);
    put(&mut policy.outputs.topics, &layer.outputs.topics);
    put(&mut policy.outputs.max, &layer.outputs.max);
    put(&mut policy.outputs.bytes, &layer.outputs.bytes);
    policy.reply.header.clone_from(&layer.reply.header);
    policy.reply.topic.clone_from(&layer.reply.topic);
    put(&mut policy.reply.allowed, &layer.reply.allowed);
    let receipts = layer.receipts.topic.as_ref();
    policy.receipts.topic = receipts.map(|topic| topic.replace("{topic}", name));
    policy
}

fn fill_in_retry(topic: &RetryLayer, common: &RetryLayer) -> Retry {
    let mut retry = Retry::default();
    for layer in [common, topic] {
        put(&mut retry.in_place.attempts, &layer.in_place.attempts);
        put(&mut retry.in_place.total, &layer.in_place.total);
        put(&mut retry.in_place.first, &layer.in_place.first);
        put(&mut retry.in_place.max, &layer.in_place.max);
        put(&mut retry.overall.attempts, &layer.overall.attempts);
        put(&mut retry.overall.total, &layer.overall.total);
        put(&mut retry.overall.first, &layer.overall.first);
        put(&mut retry.overall.max, &layer.overall.max);
    }
    retry
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{self, Concurrency, MissingToken, OnMismatch, settle};

    fn layer(text: &str) -> Layer {
        config::parse(text, Path::new("hapax.toml")).unwrap()
    }

    #[test]
    fn the_environment_is_over_the_file_over_code_over_the_default() {
        let drain = |text: &str| {
            if text.is_empty() {
                String::new()
            } else {
                format!("drain = \"{text}\"")
            }
        };
        // Environment, file, code: what counts.
        let table = [
            ("1s", "2s", "3s", 1),
            ("1s", "2s", "", 1),
            ("1s", "", "3s", 1),
            ("1s", "", "", 1),
            ("", "2s", "3s", 2),
            ("", "2s", "", 2),
            ("", "", "3s", 3),
            ("", "", "", 10),
        ];
        let base = "group = \"g\"\nbrokers = \"k\"\nstate_dir = \"s\"\ndurability = \"local\"";
        for (env, file, code, seconds) in table {
            let code = layer(&format!("{base}\n{}", drain(code)));
            let settings = resolve(layer(&drain(env)), layer(&drain(file)), code).unwrap();
            assert_eq!(settings.drain, Duration::from_secs(seconds), "{env:?} {file:?}");
        }
    }

    #[test]
    fn a_topic_is_laid_over_key_by_key() {
        let code = "topics.orders.concurrency = \"ordered\"\ntopics.orders.deadline = \"9s\"";
        let file = "topics.orders.deadline = \"5s\"\nkafka.\"a\" = \"file\"\nkafka.\"b\" = \"file\"";
        let merged = layer("kafka.\"a\" = \"env\"")
            .merge(layer(file))
            .merge(layer(code));
        let topic = &merged.topics["orders"];
        assert_eq!(topic.concurrency, Some(Concurrency::Ordered));
        assert_eq!(topic.deadline, Some(Duration::from_secs(5)));
        assert_eq!(
            (merged.kafka["a"].as_str(), merged.kafka["b"].as_str()),
            ("env", "file")
        );
    }

    #[test]
    fn what_is_required_and_stated_nowhere_is_asked_for_with_the_line_to_add() {
        let code = layer("topics.orders.class = \"non-idempotent\"\ntopics.orders.deadline = \"0s\"");
        let error = resolve(
            Layer::default(),
            Layer::default(),
            Layer {
                places: BTreeMap::new(),
                ..code
            },
        )
        .unwrap_err();
        let told: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "brokers: it is stated nowhere, and has no default; add brokers = \"localhost:9092\"",
                "durability: it is stated nowhere, and has no default; add durability = \"local\" (the window is on this \
                 machine's disk) or durability = \"replicated\" (it is in Kafka, and moves with its partition); \
                 `hapax explain` says what each loses",
                "group: it is stated nowhere, and has no default; add group = \"billing\"",
                "state_dir: it is stated nowhere, and has no default; add state_dir = \"/var/lib/hapax\"",
                "topics.orders.deadline = \"0s\": it would be over before it began; write at least \"1ms\"",
                "topics.orders.window: it is stated nowhere, and has no default; \
                 add window = \"24h\"  # under [topics.orders]",
            ]
        );
    }

    #[test]
    fn a_class_that_two_layers_state_differently_is_refused() {
        let error = settle("topics.orders.class = \"idempotent\"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "configuration refused: hapax.toml:1: topics.orders.class = \"idempotent\": a weaker layer says \
             \"non-idempotent\", and the class belongs to the handler; state the same class in both, or only in code"
        );
        assert!(settle("topics.orders.class = \"non-idempotent\"").is_ok());
    }

    #[test]
    fn the_class_decides_the_defaults_of_its_policies() {
        use crate::config::AfterFailure::{Run, Suppress};
        use MissingToken::{DeadLetter, UseOffset};
        let day = Duration::from_secs(86_400);
        let table = [
            (Class::Idempotent, UseOffset, Run),
            (Class::PotentiallyIdempotent, UseOffset, Suppress),
            (Class::NonIdempotent, DeadLetter, Suppress),
        ];
        for (class, missing_token, after_failure) in table {
            let policy = TopicPolicy::new(class, day * 7);
            assert_eq!(
                (policy.missing_token, policy.after_failure),
                (missing_token, after_failure),
                "{class}"
            );
            assert_eq!(policy.rerun_within, day);
            assert_eq!(TopicPolicy::new(class, day / 24).rerun_within, day / 24);
        }
    }

    #[test]
    fn naming_fields_is_a_wish_to_be_told_of_a_mismatch() {
        let then = |lines: &str| settle(lines).unwrap().topics["orders"].mismatch.then;
        assert_eq!(then(""), OnMismatch::Suppress);
        assert_eq!(
            then("topics.orders.mismatch.fields = [\"/a\"]"),
            OnMismatch::DeadLetter
        );
        assert_eq!(
            then("topics.orders.mismatch = { fields = [\"/a\"], then = \"suppress\" }"),
            OnMismatch::Suppress
        );
    }

    #[test]
    fn a_topic_overrides_the_common_retry_key_by_key() {
        let lines =
            "retry.in_place = { attempts = 9, total = \"20s\" }\ntopics.orders.retry.in_place.attempts = 2";
        let retry = settle(lines).unwrap().topics["orders"].retry.in_place;
        let rest = Retry::default().in_place;
        assert_eq!((retry.attempts, retry.total), (2, Duration::from_secs(20)));
        assert_eq!((retry.first, retry.max), (rest.first, rest.max));
    }

    #[test]
    fn a_topic_overrides_the_common_breaker_and_budget_key_by_key() {
        let lines = "breaker = { over = 50, open_for = \"5s\" }\nretry.budget = { share = 0.1, per_second = 3 }\n\
                     topics.orders.breaker.open_for = \"1s\"\ntopics.orders.retry.budget.share = 0.4";
        let settings = settle(lines).unwrap();
        let policy = &settings.topics["orders"];
        let breaker = (policy.breaker.over, policy.breaker.open_for);
        assert_eq!(breaker, (50, Duration::from_secs(1)));
        assert_eq!(policy.breaker.failure_share, config::Share::percent(50));
        assert_eq!(
            (policy.budget.share, policy.budget.per_second),
            (config::Share::percent(40), 3)
        );
    }

    /// A transaction takes longer than a sync: more wait for it.
    #[test]
    fn what_is_in_flight_follows_from_the_durability_unless_it_is_stated() {
        let in_flight = |lines: &str| settle(lines).unwrap().limits.in_flight;
        assert_eq!(in_flight(""), 40_000);
        assert_eq!(in_flight("durability = \"replicated\""), 80_000);
        assert_eq!(
            in_flight("durability = \"replicated\"\nlimits.in_flight = 40000"),
            40_000
        );
    }

    #[test]
    fn a_problem_found_after_merging_still_names_its_line() {
        let error = settle("\n\n[limits]\nin_flight = 0").unwrap_err();
        assert_eq!(error.problems()[0].place.to_string(), "hapax.toml:4");
        // The key itself is stated nowhere, so its table is named.
        let lines = "\ntopics.clicks.class = \"idempotent\"";
        let error = settle(lines).unwrap_err();
        assert_eq!(error.problems()[0].place.to_string(), "hapax.toml:2", "{error}");
    }
}
