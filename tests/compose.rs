//! What `compose/` shows is what hapax has: the metrics and labels of the dashboard and the alarms against
//! `hapax::metrics::DEFINITIONS`, the configuration against the reader of configurations, the compose file against
//! the Compose schema.
//!
//! Method: the files are read as they lie there, and each rule has a test that plants a violation. No container
//! engine is needed, and no feature: `cargo test --no-default-features --test compose`.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hapax::config::{self, Layer};
use hapax::metrics::{DEFINITIONS, Definition, Kind};
use serde_json::Value;

const DASHBOARD: &str = "compose/grafana/dashboards/hapax.json";
const ALARMS: &str = "compose/prometheus/alerts.yml";

/// What a user of the dashboard has to be able to see, in the order in which it was asked for.
const SHOWN: &[&str] = &[
    "hapax_window_hits_total",
    "hapax_window_misses_total",
    "hapax_redeliveries_total",
    "hapax_window_expirations_total",
    "hapax_window_evictions_total",
    "hapax_duplicate_gap_seconds",
    "hapax_attempts_total",
    "hapax_retries_total",
    "hapax_outcomes_total",
    "hapax_in_doubt_total",
    "hapax_oldest_open_token_seconds",
    "hapax_handler_seconds",
    "hapax_record_seconds",
    "hapax_lag_messages",
    "hapax_ledger_gap_messages",
    "hapax_effective_window_seconds",
    "hapax_window_bytes",
    "hapax_null_key_tokens_total",
    "hapax_held_messages",
    "hapax_breaker_state",
    "hapax_breaker_opened_total",
    "hapax_retries_held_total",
    "hapax_retries_postponed_total",
    "hapax_window_renewals_total",
    "hapax_malformed_max_ages_total",
    "hapax_account_messages",
    "hapax_account_taken",
    "hapax_account_restored",
    "hapax_account_remainder",
];

/// What a person has to be told of.
const WATCHED: &[&str] = &[
    "hapax_account_remainder",
    "hapax_cold_partitions",
    "hapax_oldest_open_token_seconds",
    "hapax_breaker_state",
    "hapax_retries_postponed_total",
    "hapax_dead_letter_failures_total",
    "hapax_window_evictions_total",
];

/// What Prometheus makes of one histogram.
const PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Every word that starts with `hapax_`.
fn names(text: &str) -> Vec<&str> {
    text.split(|c: char| !is_name(c))
        .filter(|word| word.starts_with("hapax_"))
        .collect()
}

/// The metric that a series belongs to. A histogram has no series of its bare name.
fn definition(series: &str) -> Result<&'static Definition, String> {
    let of = |name: &str| DEFINITIONS.iter().find(|definition| definition.name == name);
    let histogram = PARTS
        .iter()
        .find_map(|part| of(series.strip_suffix(part)?))
        .filter(|d| d.kind == Kind::Histogram);
    match histogram.or_else(|| of(series)) {
        None => Err(format!("{series} is no metric of hapax")),
        Some(d) if d.kind == Kind::Histogram && d.name == series => Err(format!(
            "{series} is a histogram: its series end in {}",
            PARTS.join(", ")
        )),
        Some(definition) => Ok(definition),
    }
}

/// The words between `open` and the next `close`, for every `open`.
fn between<'a>(text: &'a str, open: &'a str, close: char) -> impl Iterator<Item = &'a str> {
    text.split(open)
        .skip(1)
        .filter_map(move |rest| rest.split(close).next())
}

/// What is wrong with one query and its legend: metrics that do not exist, and labels that its metrics do not have.
fn wrong(expression: &str, legend: &str) -> Vec<String> {
    let (mut found, mut used) = (Vec::new(), Vec::new());
    for series in names(expression) {
        match definition(series) {
            Ok(definition) => used.push(definition),
            Err(why) => found.push(why),
        }
    }
    let grouped: Vec<&str> = between(expression, "by (", ')')
        .flat_map(|list| list.split(", "))
        .collect();
    let matched = between(expression, "{", '}').filter_map(|matcher| matcher.split(['=', '!']).next());
    for label in grouped
        .iter()
        .copied()
        .chain(matched)
        .filter(|label| *label != "le")
    {
        for definition in used
            .iter()
            .filter(|definition| !definition.labels.contains(&label))
        {
            found.push(format!("{} has no label {label}: {expression}", definition.name));
        }
    }
    let shown = between(legend, "{{", '}').map(str::trim);
    for label in shown.filter(|label| !grouped.contains(label)) {
        found.push(format!(
            "the legend shows {label}, the query does not keep it: {expression}"
        ));
    }
    found
}

/// Every query of a dashboard, with its legend.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = vec![dashboard];
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(expression) = fields.get("expr").and_then(Value::as_str) {
                    let legend = fields
                        .get("legendFormat")
                        .and_then(Value::as_str)
                        .unwrap_or_default();
                    found.push((expression.to_owned(), legend.to_owned()));
                }
                rest.extend(fields.values());
            }
            Value::Array(items) => rest.extend(items),
            _ => {}
        }
    }
    found
}

fn dashboard() -> Value {
    serde_json::from_str(&text(DASHBOARD)).expect("the dashboard is JSON")
}

/// What the dashboard should show and does not.
fn unseen(dashboard: &Value) -> Vec<&'static str> {
    let all: Vec<String> = queries(dashboard)
        .into_iter()
        .map(|(expression, _)| expression)
        .collect();
    let shown: Vec<&str> = all
        .iter()
        .flat_map(|expression| names(expression))
        .filter_map(|name| Some(definition(name).ok()?.name))
        .collect();
    SHOWN
        .iter()
        .copied()
        .filter(|name| !shown.contains(name))
        .collect()
}

fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_dashboard_asks_for_metrics_and_labels_that_exist() {
    let queries = queries(&dashboard());
    assert!(
        queries.len() > SHOWN.len(),
        "only {} queries were found",
        queries.len()
    );
    assert_none(
        queries
            .iter()
            .flat_map(|(expression, legend)| wrong(expression, legend))
            .collect(),
    );
    // Whatever else names a metric: a variable, a description.
    let all = text(DASHBOARD);
    assert_none(
        names(&all)
            .into_iter()
            .filter_map(|name| definition(name).err())
            .collect(),
    );
}

#[test]
fn the_dashboard_shows_what_was_asked_for() {
    assert_eq!(unseen(&dashboard()), [""; 0]);
}

#[test]
fn the_alarms_watch_metrics_that_exist() {
    let alarms = text(ALARMS);
    let queries: Vec<&str> = alarms
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .collect();
    assert_eq!(
        queries.len(),
        alarms.matches("- alert:").count(),
        "each alarm has one expression on its line"
    );
    assert_none(queries.iter().flat_map(|query| wrong(query, "")).collect());
    assert_eq!(unwatched(&queries), [""; 0]);
    assert_eq!(
        unwatched(&queries[1..]),
        ["hapax_account_remainder"],
        "one alarm less"
    );
}

/// What no alarm watches, and some should.
fn unwatched(queries: &[&str]) -> Vec<&'static str> {
    let watched: Vec<&str> = queries.iter().flat_map(|query| names(query)).collect();
    let is_unwatched = |name: &&str| !watched.contains(name);
    WATCHED.iter().copied().filter(is_unwatched).collect()
}

#[test]
fn a_metric_or_label_that_does_not_exist_is_found() {
    let rate = |name: &str| format!("sum by (topic) (rate({name}{{topic=~\"$topic\"}}[5m]))");
    assert_eq!(wrong(&rate("hapax_window_hits_total"), "{{topic}}"), [""; 0]);
    assert_eq!(
        wrong(&rate("hapax_window_hit_total"), "").len(),
        1,
        "a metric misspelt"
    );
    assert_eq!(
        wrong(&rate("hapax_window_hits_total_bucket"), "").len(),
        1,
        "a counter has no buckets"
    );
    assert_eq!(
        wrong(&rate("hapax_record_seconds"), "").len(),
        1,
        "a histogram has nothing else"
    );
    assert_eq!(wrong(&rate("hapax_record_seconds_bucket"), ""), [""; 0]);
    assert_eq!(
        wrong("sum by (partition) (hapax_window_hits_total)", "").len(),
        1,
        "a label it has not"
    );
    assert_eq!(
        wrong("hapax_lag_messages{broker=\"1\"}", "").len(),
        1,
        "a matcher it has not"
    );
    assert_eq!(
        wrong("sum(hapax_lag_messages)", "{{topic}}").len(),
        1,
        "a legend that stays empty"
    );
}

#[test]
fn a_metric_that_nobody_can_see_is_found() {
    let mut dashboard = dashboard();
    let panels = dashboard["panels"].as_array_mut().expect("panels");
    panels.retain(|panel| !panel.to_string().contains("hapax_duplicate_gap_seconds"));
    assert_eq!(unseen(&dashboard), ["hapax_duplicate_gap_seconds"]);
}

/// `docs/configuration.md` is held by the configuration's own tests; the other pages name metrics as well.
#[test]
fn the_pages_name_metrics_that_exist() {
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let pages = docs
        .map(|entry| entry.expect("an entry").path())
        .chain([root().join("README.md"), root().join("compose/README.md")])
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    let of_page = |page: PathBuf| {
        let text = fs::read_to_string(&page).expect("a page");
        let names: Vec<String> = names(&text).into_iter().map(str::to_owned).collect();
        let unknown = names
            .into_iter()
            .filter(|name| !DEFINITIONS.iter().any(|d| d.name == name));
        unknown
            .map(|name| format!("{}: {name} is no metric of hapax", page.display()))
            .collect::<Vec<_>>()
    };
    assert_none(pages.flat_map(of_page).collect());
}

#[test]
fn the_consumers_configuration_is_one_that_hapax_runs() {
    let path = root().join("compose/hapax.toml");
    let file = config::file(&path).expect("it reads");
    let settings = config::resolve(Layer::default(), file, Layer::default()).expect("it resolves");
    let compose = text("compose/compose.yaml");
    assert!(
        compose.contains(&format!("bootstrap-server {}", settings.brokers)),
        "the broker's name there"
    );
    assert!(
        compose.contains(&format!("state:{}", settings.state_dir.display())),
        "the volume there"
    );
    assert!(
        compose.contains(&settings.dead_letter.topic_of("payments")),
        "the dead-letter topic there"
    );
}

/// Runs the script on a file; `None` where Python is missing, which CI does not forgive.
fn is_valid(file: &Path) -> Option<bool> {
    let status = Command::new(root().join("scripts/compose-check.sh"))
        .arg(file)
        .status()
        .expect("the script runs");
    match status.code() {
        Some(0) => Some(true),
        Some(1) => Some(false),
        Some(3) if std::env::var("CI").as_deref() != Ok("true") => {
            eprintln!("SKIPPED: python3 with venv is missing, the compose file was not checked");
            None
        }
        other => panic!("scripts/compose-check.sh ended with {other:?}"),
    }
}

#[test]
fn the_compose_file_is_one_by_the_schema_and_a_planted_fault_is_found() {
    let Some(valid) = is_valid(&root().join("compose/compose.yaml")) else {
        return;
    };
    assert!(valid, "compose/compose.yaml: see above");
    let planted = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile()
        .expect("a file");
    let text = text("compose/compose.yaml").replace("stop_grace_period", "stop_grace");
    fs::write(planted.path(), text).expect("it is written");
    assert_eq!(
        is_valid(planted.path()),
        Some(false),
        "an unknown key of a service"
    );
}
