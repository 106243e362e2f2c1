//! The rules of the house that a compiler does not know: layers, one place for each foreign crate, one clock, files of
//! a length that a person can read, words that promise no more than hapax does, and docs that name what exists.
//!
//! Method: the sources are read as text, comments and literals taken out where a rule is about code. Each rule is a
//! function from a file to its violations; beside the test that asks it of the repository stands one that plants a
//! violation and sees it found. It needs no feature: `cargo test --no-default-features --test tidy`.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/rust.rs"]
mod rust;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rust::{before_tests, code, crate_paths, is_word, test_modules};

/// Longer files hide what is in them.
const LINES_MAX: usize = 600;

/// Each foreign crate that a change of version or of mind would reach, and the only places in `src` that name it.
const ONE_PLACE: &[(&str, &[&str])] = &[
    ("rdkafka", &["src/broker/kafka/"]),
    ("rocksdb", &["src/store/rocks/"]),
    ("backoff", &["src/backoff.rs"]),
    ("axum", &["src/admin/"]),
    ("hyper", &["src/admin/serve.rs"]),
    ("hyper_util", &["src/admin/serve.rs"]),
    ("metrics_exporter_prometheus", &["src/admin/"]),
    ("clap", &["src/cli/"]),
    ("ureq", &["src/cli/port.rs"]),
    ("base64", &["src/admin/shapes.rs"]),
    ("metrics", &["src/metrics.rs", "src/admin/"]),
];

/// From below: a module may name those of its own layer and of layers before it.
///
/// An implementation of an edge (`store::rocks`) is not in the layer of its trait: only the surface chooses one, and
/// the engine knows the trait alone. `broker::kafka` is with them because the poll thread in it drives the engine.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "words",
        &[
            "accounts",
            "backoff",
            "breaker",
            "class",
            "clock",
            "config",
            "crash",
            "fence",
            "ledger",
            "limits",
            "message",
            "outcome",
            "output",
            "pulse",
            "record",
            "retry_budget",
            "token",
            "window",
        ],
    ),
    (
        "edges",
        &[
            "broker", "error", "handler", "journal", "metrics", "store", "trace", "worker",
        ],
    ),
    (
        "engine",
        &[
            "act",
            "arrivals",
            "assignments",
            "attempt",
            "commits",
            "desk",
            "copies",
            "dead_letter",
            "partition",
            "patience",
            "recovery",
            "rebuild",
            "standby",
            "sweep",
            "wanted",
        ],
    ),
    (
        "implementations",
        &[
            "broker::kafka",
            "journal::local",
            "journal::replicated",
            "store::conformance",
            "store::memory",
            "store::rocks",
            "trim",
        ],
    ),
    (
        "surface",
        &[
            "admin", "bin", "bound", "cli", "consumer", "demo", "explain", "held", "runtime", "testing",
        ],
    ),
];

/// How a clock is read, or waited on, in code.
const CLOCKS: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "thread::sleep",
    "time::sleep",
    "time::timeout",
    "time::interval",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below those places with one of those endings, as (path from the root, text), in order.
fn files(places: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = places.iter().map(|place| root().join(place)).collect();
    while let Some(path) = folders.pop() {
        if path.is_dir() {
            let inside = fs::read_dir(&path).expect("a folder reads");
            folders.extend(inside.map(|entry| entry.expect("an entry reads").path()));
        } else if endings
            .iter()
            .any(|ending| path.to_string_lossy().ends_with(ending))
        {
            let name = path.strip_prefix(root()).expect("it lies below the root");
            let text = fs::read_to_string(&path).expect("a source is UTF-8");
            found.push((name.to_string_lossy().replace('\\', "/"), text));
        }
    }
    found.sort();
    assert!(
        !found.is_empty(),
        "{places:?} have no file that ends in {endings:?}"
    );
    found
}

fn pages() -> Vec<(String, String)> {
    let tops = fs::read_dir(root()).expect("the root reads");
    let tops: Vec<String> = tops
        .map(|entry| {
            entry
                .expect("an entry reads")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.ends_with(".md"))
        .chain(["docs", "benches", "compose", "tests", "examples"].map(str::to_owned))
        .filter(|name| root().join(name).exists())
        .collect();
    files(&tops.iter().map(String::as_str).collect::<Vec<_>>(), &[".md"])
}

fn sources() -> Vec<(String, String)> {
    let all = files(&["src"], &[".rs"]);
    let tests: BTreeSet<String> = all
        .iter()
        .flat_map(|(path, text)| test_modules(path, text))
        .collect();
    all.into_iter()
        .filter(|(path, _)| {
            !tests
                .iter()
                .any(|test| path == &format!("{test}.rs") || path.starts_with(&format!("{test}/")))
        })
        .map(|(path, text)| (path, code(before_tests(&text))))
        .collect()
}

fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

fn over(files: &[(String, String)], rule: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
    files.iter().flat_map(|(path, text)| rule(path, text)).collect()
}

fn too_long(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    let said = || format!("{path} has {lines} lines, {LINES_MAX} are the limit: split it");
    (lines > LINES_MAX).then(said).into_iter().collect()
}

fn foreign(path: &str, code: &str) -> Vec<String> {
    let own: Vec<String> = crate_paths(code).into_iter().map(|(_, path)| path).collect();
    let elsewhere = ONE_PLACE
        .iter()
        .filter(|(_, places)| !places.iter().any(|place| path.starts_with(place)));
    elsewhere
        // `use crate::metrics;` makes the bare word our own module.
        .filter(|(name, _)| !own.iter().any(|own| own == name))
        .flat_map(|(name, places)| {
            let named = code.match_indices(name).filter(|(at, _)| {
                let (before, after) = (&code[..*at], &code[at + name.len()..]);
                let starts_a_path =
                    !before.ends_with(|c: char| is_word(c) || c == ':') || before.ends_with("use ::");
                starts_a_path
                    && (after.starts_with("::")
                        || (after.starts_with([';', ' ']) && before.ends_with("use ")))
            });
            named.map(move |(at, _)| {
                let line = code[..at].lines().count().max(1);
                format!("{path}:{line} names the crate {name}, which belongs in {places:?} alone")
            })
        })
        .collect()
}

/// The layer of a module path such as `store::rocks::keys`: the longest entry of the table that it begins with.
fn layer_of(module: &str) -> Option<usize> {
    let fits = |entry: &str| module == entry || module.starts_with(&format!("{entry}::"));
    LAYERS
        .iter()
        .enumerate()
        .flat_map(|(layer, (_, entries))| entries.iter().map(move |entry| (layer, *entry)))
        .filter(|(_, entry)| fits(entry))
        .max_by_key(|(_, entry)| entry.len())
        .map(|(layer, _)| layer)
}

fn upward(path: &str, code: &str) -> Vec<String> {
    let Some(own) = path.strip_prefix("src/").filter(|own| *own != "lib.rs") else {
        return Vec::new();
    };
    let own = own
        .trim_end_matches(".rs")
        .trim_end_matches("/mod")
        .replace('/', "::");
    let Some(own_layer) = layer_of(&own) else {
        return vec![format!(
            "{path} has no layer: give its module a place in the table of tests/tidy.rs"
        )];
    };
    let up = crate_paths(code).into_iter().filter_map(|(line, named)| {
        let layer = layer_of(&named).filter(|layer| *layer > own_layer)?;
        let (own, above) = (LAYERS[own_layer].0, LAYERS[layer].0);
        Some(format!(
            "{path}:{line} ({own}) names crate::{named} ({above}): imports go down only"
        ))
    });
    up.collect()
}

fn clocks(path: &str, code: &str) -> Vec<String> {
    if path == "src/clock.rs" {
        return Vec::new();
    }
    let read = CLOCKS.iter().flat_map(|clock| code.match_indices(clock));
    read.map(|(at, clock)| {
        let line = code[..at].lines().count().max(1);
        format!("{path}:{line} has `{clock}`: only src/clock.rs reads a clock (Inv 11)")
    })
    .collect()
}

#[test]
fn files_are_short_enough_to_read() {
    let mut places = vec!["src", "tests", "benches", "examples", "scripts"];
    places.retain(|place| root().join(place).exists());
    let all = files(&places, &[".rs", ".py", ".java", ".sh"]);
    assert_none(over(&all, too_long));
}

#[test]
fn a_long_file_is_found_and_a_short_one_may_not_stay_excused() {
    let lines = |count| "x\n".repeat(count);
    assert!(too_long("src/a.rs", &lines(LINES_MAX)).is_empty());
    assert_eq!(too_long("src/a.rs", &lines(LINES_MAX + 1)).len(), 1);
}

#[test]
fn each_foreign_crate_is_named_in_one_place() {
    assert_none(over(&sources(), foreign));
}

#[test]
fn a_foreign_crate_out_of_place_is_found() {
    for planted in [
        "use rdkafka::ClientConfig;",
        "fn f(x: rdkafka::Offset) {}",
        "use ::rdkafka::Offset;",
        "use rdkafka as kafka;",
    ] {
        assert_eq!(foreign("src/runtime.rs", &code(planted)).len(), 1, "{planted}");
        assert!(foreign("src/broker/kafka/mod.rs", &code(planted)).is_empty());
    }
    assert_eq!(foreign("src/ledger.rs", "metrics::counter!(1)").len(), 1);
    for ours in [
        "crate::metrics::lag()",
        "use crate::metrics; metrics::lag()",
        "mod backoff;",
        "// rdkafka::x",
        "\"rdkafka::x\"",
    ] {
        assert!(foreign("src/runtime.rs", &code(ours)).is_empty(), "{ours}");
    }
}

#[test]
fn imports_go_down_only() {
    let sources = sources();
    let named: usize = sources.iter().map(|(_, code)| crate_paths(code).len()).sum();
    assert!(named > 200, "only {named} imports were read: the reader is blind");
    assert_none(over(&sources, upward));
}

#[test]
fn an_import_that_goes_up_is_found() {
    for (path, planted) in [
        ("src/ledger.rs", "use crate::store::Store;"),
        ("src/token.rs", "use crate::{message::Raw, partition::Partition};"),
        (
            "src/partition/mod.rs",
            "use crate::store::{Store, rocks::RocksStore};",
        ),
        ("src/journal/mod.rs", "fn f() { crate::runtime::run() }"),
        ("src/unheard_of.rs", ""),
    ] {
        assert_eq!(upward(path, &code(planted)).len(), 1, "{path}: {planted}");
    }
    let down =
        "use crate::store::{Hit, lookups::{Found, Answer}, Store};\nuse crate::{accounts, token::TokenKey};";
    assert!(upward("src/partition/judge.rs", &code(down)).is_empty());
    assert_eq!(crate_paths(down).len(), 6, "{:?}", crate_paths(down));
}

#[test]
fn one_file_reads_the_clock() {
    assert_none(over(&sources(), clocks));
}

#[test]
fn a_clock_read_elsewhere_is_found() {
    assert_eq!(clocks("src/ledger.rs", "let t = Instant::now();").len(), 1);
    assert_eq!(clocks("src/ledger.rs", "start.elapsed()").len(), 1);
    assert!(clocks("src/clock.rs", "Instant::now()").is_empty());
    let in_tests = "fn f() {}\n#[cfg(test)]\nmod tests {\nfn g() { Instant::now(); }\n}";
    assert!(clocks("src/ledger.rs", &code(before_tests(in_tests))).is_empty());
    let beside = "fn f() {}\n#[cfg(test)]\nmod tests;\nfn g() { Instant::now(); }";
    assert_eq!(clocks("src/ledger.rs", &code(before_tests(beside))).len(), 1);
    assert_eq!(
        test_modules(
            "src/partition/mod.rs",
            "#[cfg(all(test, unix))]\nmod tests;\nmod work;"
        ),
        ["src/partition/tests"]
    );
}
