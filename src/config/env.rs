//! The environment's layer: `HAPAX_LIMITS__IN_FLIGHT=500`, `HAPAX_TOPICS__orders__WINDOW=48h`.
//!
//! Two underscores stand for the dot between keys. Topic names and, where they hold lower case, librdkafka
//! properties are taken verbatim. Lists and tables are written as in the file:
//! `HAPAX_TOPICS__orders__TOKEN='[{ header = "id" }]'`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::{Error, Place, Problem};
use super::keys;
use super::layer::Layer;
use super::read::{Findings, Section};
use super::tree::{Node, Table, Value};

const PREFIX: &str = "HAPAX_";

/// Beginnings of names under the same prefix that are no configuration, so they are nobody's typing error. Kubernetes
/// sets the first two in every pod of a namespace that has a service named `hapax`; the rest belong to logging, tests
/// and the Makefile.
const OTHERS: [&str; 8] = [
    "HAPAX_SERVICE_",
    "HAPAX_PORT",
    "HAPAX_LOG",
    "HAPAX_TEST_",
    "HAPAX_CRASH_",
    "HAPAX_BREAK",
    "HAPAX_CACHE",
    "HAPAX_PEER_",
];

/// What the environment says; variables without the prefix `HAPAX_` are none of ours.
///
/// # Errors
/// [`Error::Refused`] for unknown keys and values that cannot be read, all together.
pub fn env(variables: impl IntoIterator<Item = (String, String)>) -> Result<Layer, Error> {
    let mut tree = Table::new();
    let mut problems = Vec::new();
    for (name, value) in variables {
        let Some(key) = name.strip_prefix(PREFIX).filter(|key| !key.is_empty()) else {
            continue;
        };
        // Whole words: `HAPAX_BREAKER` is a key, and not `HAPAX_BREAK`.
        let is_other =
            |rest: &str, other: &str| other.ends_with('_') || rest.is_empty() || rest.starts_with('_');
        if OTHERS
            .iter()
            .any(|other| name.strip_prefix(other).is_some_and(|rest| is_other(rest, other)))
        {
            continue;
        }
        let place = Place::Env {
            name: Arc::from(name.as_str()),
        };
        if !insert(&mut tree, &place, &path(key), value) {
            // The value stays out of the message: it may be a password.
            let why = "another variable states this key, or a part of it, as well";
            problems.push(Problem::new(path(key).join("."), "", why, "keep one of them").at(&place));
        }
    }
    let layer = keys::layer(tree).unwrap_or_else(|more| {
        problems.extend(more);
        Layer::default()
    });
    if problems.is_empty() {
        Ok(layer)
    } else {
        Err(Error::refused(problems))
    }
}

/// The keys from the outermost to the innermost.
fn path(key: &str) -> Vec<String> {
    let parts: Vec<&str> = key.split("__").collect();
    match parts.as_slice() {
        ["TOPICS", rest @ ..] => topic_path(rest),
        ["KAFKA", rest @ ..] if !rest.is_empty() => vec!["kafka".to_owned(), property(&rest.join("__"))],
        parts => parts.iter().map(|part| part.to_lowercase()).collect(),
    }
}

/// A topic's name may hold two underscores itself, so it ends where the first key of a topic begins.
fn topic_path(parts: &[&str]) -> Vec<String> {
    let known = topic_keys();
    let is_key = |part: &&str| known.iter().any(|key| key.to_uppercase() == **part);
    let at = parts
        .iter()
        .skip(1)
        .position(is_key)
        .map_or(parts.len().saturating_sub(1), |at| at + 1);
    let (name, keys) = parts.split_at_checked(at.max(1)).unwrap_or((parts, &[]));
    let mut path = vec!["topics".to_owned(), name.join("__")];
    path.extend(keys.iter().map(|key| key.to_lowercase()));
    path
}

/// The keys that a topic has: those that reading an empty one asks for.
fn topic_keys() -> BTreeSet<String> {
    let mut findings = Findings::default();
    keys::topic(&mut Section::new("", Table::new(), &mut findings));
    let outermost = |key: &String| key.split('.').next().unwrap_or_default().to_uppercase();
    findings.asked.iter().map(outermost).collect()
}

/// `SASL_PASSWORD` is `sasl.password`, since no shell can name a variable with dots; a name with lower case is taken
/// as it is.
fn property(name: &str) -> String {
    if name.chars().any(|c| c.is_ascii_lowercase()) {
        name.to_owned()
    } else {
        name.to_lowercase().replace('_', ".")
    }
}

/// Puts a value at its place in the tree; false where something is there already.
fn insert(tree: &mut Table, place: &Place, path: &[String], value: String) -> bool {
    let Some((key, rest)) = path.split_first() else {
        return false;
    };
    if rest.is_empty() {
        let node = Node {
            place: place.clone(),
            value: Value::Untyped(value),
        };
        return tree.insert(key.clone(), node).is_none();
    }
    let table = || Node {
        place: place.clone(),
        value: Value::Table(Table::new()),
    };
    match &mut tree.entry(key.clone()).or_insert_with(table).value {
        Value::Table(table) => insert(table, place, rest, value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{ByteCount, Concurrency, TokenSource};

    fn read(variables: &[(&str, &str)]) -> Result<Layer, Error> {
        env(variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn variables_name_keys_topics_and_properties() {
        let layer = read(&[
            ("HAPAX_STATE_DIR", "/state"),
            ("HAPAX_LIMITS__IN_FLIGHT", "500"),
            ("HAPAX_MEMORY", "1GiB"),
            ("HAPAX_RETRY__IN_PLACE__ATTEMPTS", "3"),
            ("HAPAX_DEAD_LETTER__CREATE", "true"),
            ("HAPAX_TOPICS__orders__WINDOW", "48h"),
            ("HAPAX_TOPICS__orders.v2__CONCURRENCY", "{ unordered = 8 }"),
            ("HAPAX_TOPICS__a__b__CONCURRENCY__BY_KEY", "4"),
            ("HAPAX_TOPICS__a__b__TOKEN", "[{ header = \"id\" }, \"key\"]"),
            ("HAPAX_TOPICS__a__b__RETRY__IN_PLACE__FIRST", "2s"),
            ("HAPAX_TOPICS__WINDOW__WINDOW", "1h"),
            ("HAPAX_KAFKA__SASL_PASSWORD", "{not = toml"),
            ("HAPAX_KAFKA__client.id", "a_b"),
            ("PATH", "/bin"),
        ])
        .unwrap();
        assert_eq!(layer.state_dir.unwrap().to_str(), Some("/state"));
        assert_eq!(
            (layer.limits.in_flight, layer.memory),
            (Some(500), Some(ByteCount::gib(1)))
        );
        assert_eq!(
            (layer.retry.in_place.attempts, layer.dead_letter.create),
            (Some(3), Some(true))
        );
        assert_eq!(
            layer.topics["orders"].window,
            Some(Duration::from_secs(48 * 3_600))
        );
        assert_eq!(
            layer.topics["orders.v2"].concurrency,
            Some(Concurrency::unordered(8))
        );
        let topic = &layer.topics["a__b"];
        assert_eq!(topic.concurrency, Some(Concurrency::by_key(4)));
        assert_eq!(
            topic.token,
            Some(vec![TokenSource::Header("id".into()), TokenSource::Key])
        );
        assert_eq!(topic.retry.in_place.first, Some(Duration::from_secs(2)));
        assert_eq!(layer.topics["WINDOW"].window, Some(Duration::from_secs(3_600)));
        assert_eq!(layer.kafka["sasl.password"], "{not = toml");
        assert_eq!(layer.kafka["client.id"], "a_b");
    }

    #[test]
    fn a_typing_error_in_a_name_is_refused_by_that_name() {
        let cases = [
            (
                "HAPAX_LIMITS__IN_FLGHT",
                "limits.in_flght",
                "did you mean `in_flight`?",
            ),
            (
                "HAPAX_TOPICS__orders__WINDW",
                "topics.orders.windw",
                "did you mean `window`?",
            ),
            ("HAPAX_TOPICS__orders", "topics.orders", "write { key = value }"),
            ("HAPAX_KAFKA", "kafka", "write [kafka]"),
            ("HAPAX_BREAKER", "breaker", "write [breaker]"),
            ("HAPAX_RETRY__OVERALL", "retry.overall", "write [retry.overall]"),
            (
                "HAPAX_LIMITS__IN_FLIGHT__MORE",
                "limits.in_flight",
                "write one such as 16, unquoted",
            ),
        ];
        for (name, key, fix) in cases {
            let error = read(&[(name, "x")]).unwrap_err();
            let [problem] = error.problems() else {
                panic!("{name}: {error}")
            };
            assert_eq!(
                (problem.key.as_str(), problem.fix.as_str()),
                (key, fix),
                "{problem}"
            );
            assert!(
                problem.to_string().starts_with(&format!("environment {name}: ")),
                "{problem}"
            );
        }
    }

    #[test]
    fn two_variables_for_one_key_are_refused() {
        for pair in [
            ["HAPAX_DRAIN", "HAPAX_drain"],
            ["HAPAX_LIMITS", "HAPAX_LIMITS__HELD"],
        ] {
            let error = read(&[(pair[0], "1s"), (pair[1], "1s")]).unwrap_err();
            assert!(
                error.to_string().contains("another variable states this key"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_named_hapax_is_no_configuration() {
        let layer = read(&[
            ("HAPAX_SERVICE_HOST", "10.0.0.1"),
            ("HAPAX_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ]);
        assert!(layer.is_ok(), "{layer:?}");
    }

    proptest! {
        #[test]
        fn no_variable_panics(name in "(HAPAX_)?(TOPICS|KAFKA|LIMITS)?[_A-Za-z.]{0,20}", value: String) {
            let _ = env([(name, value)]);
        }
    }
}
