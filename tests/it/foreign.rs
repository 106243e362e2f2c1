//! A producer that is not ours, in another language, with another client: flights as JSON, with keys, null keys, repeated
//! tokens and messages without one.
//!
//! Method: `tests/foreign/run.sh` sends and prints what it sent, counted on its own side. A hapax consumer adds up the
//! distances by token. What was sent, what the topic holds (read by this test's own client) and what was done agree. Without
//! Python or PyPI the test says that it is skipped; with `CI=true` that is a failure.
//!
//! Seen to fail with letters that lose their payload; `bad_input.rs` too ("the bytes are intact, left: None").

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use hapax::accounts::Account;
use hapax::{Context, NonIdempotent, Topic, Window};
use tempfile::TempDir;

use crate::kafka;
use crate::member::{self, Member};

const ROWS: u64 = 4_000;
const SEED: u64 = 7;

#[derive(serde::Deserialize)]
struct Flight {
    distance: u64,
    tailnum: Option<String>,
}

/// What the producer says that it sent.
#[derive(Debug, serde::Deserialize)]
struct Sent {
    rows: u64,
    messages: u64,
    unique_tokens: u64,
    repeats: u64,
    without_token: u64,
    null_keys: u64,
    distance_of_tokens: u64,
    distance_without_token: u64,
}

/// Distances by token, and how often a handler ran.
#[derive(Clone, Default)]
struct Miles(Arc<Mutex<Flown>>);

#[derive(Default)]
struct Flown {
    by_token: BTreeMap<Vec<u8>, u64>,
    runs: u64,
}

fn producer() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/run.sh"));
    command.stdin(Stdio::null());
    command
}

/// Says so, or panics in CI, where the producer cannot be had.
fn is_available() -> bool {
    let why = match producer().arg("--help").output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "no foreign producer, and CI=true: {why}"
    );
    // Not `eprintln!`, which the test harness hides when a test passes.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: foreign: no producer in Python: {why}"
    );
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_client_sent_is_handled_once_by_token() {
    let Some(broker) = kafka::broker() else { return };
    if !is_available() {
        return;
    }
    let (brokers, topic, dir) = (
        broker.bootstrap(),
        kafka::unique("flights"),
        TempDir::new().unwrap(),
    );
    member::create_topic(broker, &topic, 3, &[]);
    let miles = Miles::default();
    // It runs while the producer sends.
    let member = Member::start(
        member::consumer(&brokers, &topic, dir.path()).handle(
            Topic::json::<Flight>(&topic, NonIdempotent)
                .state(miles.clone())
                .window(Window::days(1)),
            |flight: Flight, cx: Context<Miles>| async move {
                let token = cx.header("idempotency-key").unwrap_or_default().to_vec();
                assert_eq!(
                    flight.tailnum.as_deref().map(str::as_bytes),
                    cx.key(),
                    "the key is the aircraft"
                );
                let mut miles = cx.state().0.lock().unwrap();
                miles.by_token.insert(token, flight.distance);
                miles.runs += 1;
                Ok(())
            },
        ),
    );
    let output = producer()
        .args([
            "--brokers",
            &brokers,
            "--topic",
            &topic,
            "--rows",
            &ROWS.to_string(),
            "--seed",
            &SEED.to_string(),
        ])
        .args(["--repeat-share", "0.2", "--bare-share", "0.02"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let sent: Sent = serde_json::from_slice(&output.stdout).unwrap();
    println!("seed {SEED}: {sent:?}");
    member::await_caught_up(&brokers, &topic, &topic);
    let summary = member.stop().await;

    // The topic as it is. A token is scoped by its partition, and a null key lets a repeat land in another one.
    let found = member::read_all(&brokers, &topic);
    let token = |found: &member::Found| found.headers.get("idempotency-key").cloned();
    let scoped: BTreeSet<_> = found
        .iter()
        .filter_map(|found| Some((found.partition, token(found)?)))
        .collect();
    let elsewhere = scoped.len() as u64 - sent.unique_tokens;
    let null_repeats = found
        .iter()
        .filter(|found| found.key.is_none() && token(found).is_some())
        .count() as u64;
    assert!(elsewhere <= null_repeats, "{elsewhere} of {null_repeats}");
    assert_eq!(found.len() as u64, sent.messages);
    assert_eq!(
        found.iter().filter(|found| found.key.is_none()).count() as u64,
        sent.null_keys
    );
    assert!(
        sent.null_keys > 0 && sent.repeats > 0 && sent.without_token > 0,
        "there is something to see: {sent:?}"
    );

    let Flown { by_token, runs } = &*miles.0.lock().unwrap();
    assert_eq!(by_token.len() as u64, sent.unique_tokens);
    assert_eq!(by_token.values().sum::<u64>(), sent.distance_of_tokens);
    assert_eq!(*runs, sent.unique_tokens + elsewhere);
    let account = |account| member::total(&summary, account);
    assert_eq!(account(Account::Done), *runs);
    assert_eq!(account(Account::Duplicate), sent.repeats - elsewhere);
    assert_eq!(account(Account::Failed), sent.without_token);
    assert_eq!(member::taken(&summary), sent.messages);
    assert_eq!(sent.rows, ROWS);

    // What has no token was given up on by policy, whole.
    let letters = member::read_all(&brokers, &format!("{topic}.dead-letters"));
    let mut without = 0;
    for letter in &letters {
        assert_eq!(letter.header("hapax-reason"), "missing-token");
        let flight: Flight = serde_json::from_slice(letter.payload.as_deref().unwrap()).unwrap();
        without += flight.distance;
    }
    assert_eq!(
        (letters.len() as u64, without),
        (sent.without_token, sent.distance_without_token)
    );
}
