//! What the docs say of each key against what the code does: `docs/configuration.md`, the doc comments of the
//! resolved types, and the file of all keys.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::read::{Findings, Section};
use super::tree::{convert_table, lines};
use super::{Layer, Settings, keys, parse, resolve, settle_as};
use crate::class::Class;

const PAGE: &str = include_str!("../../docs/configuration.md");
const FILE: &str = include_str!("../../tests/fixtures/hapax.full.toml");
const SOURCES: [&str; 5] = [
    include_str!("settings.rs"),
    include_str!("topic.rs"),
    include_str!("breaker.rs"),
    include_str!("life.rs"),
    include_str!("given.rs"),
];

/// Every key that is read, with `NAME` for the topic.
fn known() -> BTreeSet<String> {
    let table = toml::de::DeTable::parse("topics.NAME = {}").unwrap().into_inner();
    let mut findings = Findings::default();
    keys::top(&mut Section::new(
        "",
        convert_table(table, &lines("", "f")),
        &mut findings,
    ));
    findings.asked.into_iter().collect()
}

/// Key and what its line says of the default.
fn page() -> BTreeMap<&'static str, &'static str> {
    let mut keys = BTreeMap::new();
    let mut key = None;
    for line in PAGE.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            key = Some(heading.trim_matches('`'));
        } else if line.starts_with("Default: ") || line == "Required." {
            keys.insert(key.take().expect(line), line);
        }
    }
    keys
}

/// Key and what the doc comment of its field says of the default.
fn comments() -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let (mut prefix, mut default) = ("", None);
    for line in SOURCES.iter().flat_map(|source| source.lines()) {
        let line = line.trim();
        match line
            .strip_prefix("pub struct ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            Some("Settings") => prefix = "",
            Some("Limits") => prefix = "limits.",
            Some("DeadLetter") => prefix = "dead_letter.",
            Some("Admin") => prefix = "admin.",
            Some("TopicPolicy") => prefix = "topics.NAME.",
            Some("MaxAge") => prefix = "topics.NAME.max_age.",
            Some("Mismatch") => prefix = "topics.NAME.mismatch.",
            Some("Outputs") => prefix = "topics.NAME.outputs.",
            Some("Replies") => prefix = "topics.NAME.reply.",
            Some("Receipts") => prefix = "topics.NAME.receipts.",
            Some("Retry") => prefix = "retry.",
            Some("InPlace") => prefix = "retry.in_place.",
            Some("Overall") => prefix = "retry.overall.",
            Some("RetryBudget") => prefix = "retry.budget.",
            Some("Breaker") => prefix = "breaker.",
            Some(other) => panic!("fields of {other} belong to no key"),
            None => {}
        }
        if let Some(said) = line
            .strip_prefix("/// ")
            .filter(|said| said.starts_with("Default: ") || said.starts_with("Required"))
        {
            default = Some(said.to_owned());
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
            keys.extend(default.take().map(|said| (format!("{prefix}{field}"), said)));
        }
    }
    keys
}

/// The default that a line states for that class, as TOML: doc comments leave out the quotes.
fn default(said: &str, class: Class) -> Option<String> {
    let mut parts = said.strip_prefix("Default: `")?.split('`');
    let first = parts.next()?;
    let value = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(" for "), Some(name), Some(", otherwise "), Some(other)) if name != class.name() => other,
        _ => first,
    };
    let is_toml = toml::de::DeValue::parse(value).is_ok();
    Some(if is_toml {
        value.to_owned()
    } else {
        format!("{value:?}")
    })
}

fn with(class: Class, key: &str, value: &str) -> Settings {
    let line = format!("{} = {value}", key.replace("NAME", "orders"));
    settle_as(class, &line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Stating a default changes nothing, in any class. Returns how many keys had one to state.
fn assert_stated<'a>(lines: impl IntoIterator<Item = (&'a str, &'a str)>) -> usize {
    let mut stated = 0;
    for (key, said) in lines {
        for class in [
            Class::Idempotent,
            Class::PotentiallyIdempotent,
            Class::NonIdempotent,
        ] {
            // It follows from the window: `resolve` tests it.
            let Some(value) = default(said, class).filter(|_| key != "topics.NAME.rerun_within") else {
                continue;
            };
            assert_eq!(
                with(class, key, &value),
                settle_as(class, "").unwrap(),
                "{class}: {key}: {said}"
            );
            stated += 1;
        }
    }
    stated / 3
}

#[test]
fn every_key_is_on_the_page_and_nothing_else() {
    assert_eq!(
        page().into_keys().map(str::to_owned).collect::<BTreeSet<_>>(),
        known()
    );
}

/// The backticked names of metrics in a text.
fn metrics_of(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').filter(|word| word.starts_with("hapax_"))
}

#[test]
fn every_metric_that_the_docs_name_exists() {
    let exists = |name: &str| {
        crate::metrics::DEFINITIONS
            .iter()
            .any(|metric| metric.name == name)
    };
    let named: Vec<_> = [PAGE].into_iter().chain(SOURCES).flat_map(metrics_of).collect();
    assert!(named.len() > 20, "{named:?}");
    assert_eq!(
        named.into_iter().filter(|name| !exists(name)).collect::<Vec<_>>(),
        Vec::<&str>::new()
    );
}

#[test]
fn the_page_states_the_defaults_of_the_code() {
    let stated = assert_stated(page());
    assert_eq!(stated, 53, "of the keys of the page");
}

#[test]
fn the_doc_comments_state_the_defaults_of_the_code() {
    let comments = comments();
    let stated = assert_stated(comments.iter().map(|(key, said)| (key.as_str(), said.as_str())));
    assert_eq!(stated, 53, "of the commented fields");
    // Those of a topic's own retry and breaker are the fields of the common ones.
    let fields = known()
        .into_iter()
        .filter(|key| !key.starts_with("topics.NAME.retry.") && !key.starts_with("topics.NAME.breaker."));
    assert_eq!(comments.into_keys().collect::<BTreeSet<_>>(), fields.collect());
}

#[test]
fn the_file_of_all_keys_states_each_one_at_its_default() {
    let layer = |text| parse(text, Path::new("hapax.full.toml")).unwrap();
    let required = [
        "group = \"billing\"",
        "brokers = \"localhost:9092\"",
        "state_dir = \"/var/lib/hapax\"",
        "durability = \"local\"",
    ];
    let topic = "topics.orders = { class = \"potentially-idempotent\", window = \"24h\" }";
    let least = format!("{}\n{topic}", required.join("\n"));
    let resolved = |text| resolve(Layer::default(), layer(text), Layer::default()).unwrap();
    assert_eq!(resolved(FILE), resolved(&least));

    let mut absent = known();
    layer(FILE).places.keys().for_each(|key| {
        absent.remove(&key.replace("orders", "NAME"));
    });
    let without_default = [
        "admin.audit_topic",
        "admin.token_file",
        "kafka",
        "topics.NAME.window_bytes",
        "topics.NAME.max_age.after",
        "topics.NAME.max_age.header",
        "topics.NAME.reply.header",
        "topics.NAME.reply.topic",
        "topics.NAME.receipts.topic",
    ]
    .map(str::to_owned);
    assert_eq!(absent, BTreeSet::from(without_default));
}

#[test]
fn every_key_reaches_its_setting() {
    let other = [
        ("group", "\"other\""),
        ("brokers", "\"other:1\""),
        ("state_dir", "\"other\""),
        ("durability", "\"replicated\""),
        ("cold", "\"run\""),
        ("start", "\"latest\""),
        ("deleted", "\"skip\""),
        ("drain", "\"7s\""),
        ("commit_every", "\"7s\""),
        ("memory", "\"77MiB\""),
        ("max_clock_jump", "\"7m\""),
        ("limits.in_flight", "777"),
        ("limits.in_flight_bytes", "\"7MiB\""),
        ("limits.held", "7"),
        ("limits.held_bytes", "7"),
        ("limits.held_age", "\"8d\""),
        ("limits.token_bytes", "7"),
        ("limits.outcome_bytes", "7"),
        ("retry.in_place.attempts", "7"),
        ("retry.in_place.total", "\"7s\""),
        ("retry.in_place.first", "\"7ms\""),
        ("retry.in_place.max", "\"7s\""),
        ("retry.overall.attempts", "7"),
        ("retry.overall.total", "\"7h\""),
        ("retry.overall.first", "\"7s\""),
        ("retry.overall.max", "\"7h\""),
        ("retry.budget.share", "0.7"),
        ("retry.budget.per_second", "7"),
        ("breaker.failure_share", "0.7"),
        ("breaker.over", "7"),
        ("breaker.open_for", "\"7s\""),
        ("dead_letter.topic", "\"other\""),
        ("dead_letter.create", "true"),
        ("admin.listen", "\"off\""),
        ("admin.token_file", "\"other\""),
        ("admin.audit_topic", "\"other\""),
        ("kafka", "{ \"client.id\" = \"7\" }"),
        ("topics.NAME.window", "\"7d\""),
        ("topics.NAME.window_bytes", "\"7GiB\""),
        ("topics.NAME.renewal", "\"on-duplicate\""),
        ("topics.NAME.token", "[\"key\"]"),
        ("topics.NAME.concurrency", "\"ordered\""),
        ("topics.NAME.begun_ahead", "7"),
        ("topics.NAME.deadline", "\"7s\""),
        ("topics.NAME.probe_deadline", "\"7s\""),
        ("topics.NAME.probe_settle", "\"7s\""),
        ("topics.NAME.missing_token", "\"stop\""),
        ("topics.NAME.mismatch.fields", "[\"/a\"]"),
        ("topics.NAME.after_failure", "\"run\""),
        ("topics.NAME.expired", "\"run\""),
        ("topics.NAME.max_age.after", "\"7m\""),
        ("topics.NAME.max_age.header", "\"useless-after\""),
        ("topics.NAME.max_age.then", "\"skip\""),
        ("topics.NAME.mode", "\"observe\""),
        ("topics.NAME.store_outcome", "false"),
        ("topics.NAME.offload", "true"),
        ("topics.NAME.retry.in_place.attempts", "7"),
        ("topics.NAME.retry.in_place.total", "\"7s\""),
        ("topics.NAME.retry.in_place.first", "\"7ms\""),
        ("topics.NAME.retry.in_place.max", "\"7s\""),
        ("topics.NAME.retry.overall.attempts", "7"),
        ("topics.NAME.retry.overall.total", "\"7h\""),
        ("topics.NAME.retry.overall.first", "\"7s\""),
        ("topics.NAME.retry.overall.max", "\"7h\""),
        ("topics.NAME.after_hold", "\"release\""),
        ("topics.NAME.after_doubt", "\"block-key\""),
        ("topics.NAME.outputs.topics", "[\"other\"]"),
        ("topics.NAME.outputs.max", "7"),
        ("topics.NAME.outputs.bytes", "\"7KiB\""),
        ("topics.NAME.reply.topic", "\"other\""),
        ("topics.NAME.reply.allowed", "[\"other\"]"),
        ("topics.NAME.receipts.topic", "\"other\""),
        ("topics.NAME.retry.budget.share", "0.7"),
        ("topics.NAME.retry.budget.per_second", "7"),
        ("topics.NAME.breaker.failure_share", "0.7"),
        ("topics.NAME.breaker.over", "7"),
        ("topics.NAME.breaker.open_for", "\"7s\""),
    ];
    let class = Class::NonIdempotent;
    let defaults = settle_as(class, "").unwrap();
    let mut untried = known();
    for (key, value) in other {
        assert_ne!(with(class, key, value), defaults, "{key}");
        untried.remove(key);
    }
    // One value only, decided by code, or tried where its own rule is tested.
    let elsewhere = [
        "topics.NAME.class",
        "topics.NAME.rerun_within",
        "topics.NAME.mismatch.then",
        "topics.NAME.reply.header",
        "standby",
    ];
    assert_eq!(untried, BTreeSet::from(elsewhere.map(str::to_owned)));
}
