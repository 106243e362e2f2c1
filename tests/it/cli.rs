//! The command line: each verb, run as a person runs it, against a store on disk.
//!
//! The binary is started as a process of its own; what it said and how it ended is judged, and what it left in the
//! store is read with the library. Only `check` meets a broker.
//!
//! Seen to fail: with every verdict written anew (`held.rs`, `decide`): "to say it twice is one act, left: 2"; with the
//! room for headers taken out (`broker/cluster.rs`): `check` ended with 0.

use std::path::Path;
use std::process::Command;

use hapax::Bytes;
use hapax::config::Durability;
use hapax::message::{Kept, NextOffset, Offset};
use hapax::outcome::{HeldFor, Open, Stage, Verdict};
use hapax::store::rocks::RocksStore;
use hapax::store::{Changes, PartitionId, Position, Store, TopicSpec};
use hapax::token::TokenKey;
use tempfile::TempDir;

use crate::kafka;

pub(crate) struct Said {
    code: i32,
    out: String,
    err: String,
}

pub(crate) fn hapax(args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hapax"));
    // The verdict's author is a default, and a log would be read as an answer.
    command.args(args).env("USER", "tester").env_remove("RUST_LOG");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

impl Said {
    #[track_caller]
    pub(crate) fn ended(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn says(&self, what: &str) -> &Self {
        let both = format!("{}{}", self.out, self.err);
        assert!(both.contains(what), "{what:?} is not in: {both}");
        self
    }
}

// ---- A store with held work.

fn key(number: u8) -> TokenKey {
    TokenKey([number; 16])
}

fn hex(number: u8) -> String {
    key(number).to_string()
}

fn message() -> Kept {
    Kept {
        timestamp_ms: Some(5),
        key: Some(Bytes::from_static(b"k")),
        payload: Some(Bytes::from_static(b"12 cents\xff")),
        headers: vec![("idempotency-key".into(), Some(Bytes::from_static(b"t")))],
    }
}

fn open(offset: i64, token: u8, stage: Stage) -> Open {
    Open {
        keys: vec![key(token), key(token + 100)],
        offset: Offset(offset),
        stage,
        first_seen_ms: 1_700_000_000_000,
        attempts: 2,
        since_ms: 1_700_000_000_123,
        fingerprint: None,
    }
}

fn held(offset: i64, token: u8, why: HeldFor) -> Open {
    open(
        offset,
        token,
        Stage::Held {
            why,
            message: message(),
            verdict: None,
        },
    )
}

fn begun(offset: i64, token: u8) -> Open {
    open(
        offset,
        token,
        Stage::Begun {
            not_applied: false,
            message: None,
        },
    )
}

const ORDERS: &str = "orders";

fn specs() -> [TopicSpec; 2] {
    [ORDERS, "refunds"].map(|name| TopicSpec {
        name: name.into(),
        window_ms: 3_600_000,
    })
}

fn start(dir: &Path) -> RocksStore {
    RocksStore::open(dir, "billing", &specs(), 32 << 20, Durability::Local).unwrap()
}

fn partition(store: &RocksStore, topic: &str, partition: i32) -> PartitionId {
    PartitionId {
        topic: store.topic(topic).unwrap(),
        partition,
    }
}

/// A stopped consumer's directory: in doubt are orders[3]@17 (with @21 behind it), orders[4]@8 and refunds[0]@2, which
/// share a token; orders[3]@30 is begun.
fn stopped() -> TempDir {
    let dir = TempDir::new().unwrap();
    let store = start(dir.path());
    let opened = [
        (
            partition(&store, ORDERS, 3),
            vec![
                held(17, 1, HeldFor::InDoubt),
                held(21, 1, HeldFor::Token),
                begun(30, 3),
            ],
        ),
        (partition(&store, ORDERS, 4), vec![held(8, 2, HeldFor::InDoubt)]),
        (
            partition(&store, "refunds", 0),
            vec![held(2, 2, HeldFor::InDoubt)],
        ),
    ];
    for (id, opened) in opened {
        let mut changes = Changes::new(id);
        changes.opened = opened;
        changes.position = Some(Position {
            commit_point: NextOffset(40),
            time_ms: Some(1_700_000_000_000),
            acknowledged_ms: Some(1_700_000_000_000),
            written_ms: 1_700_000_000_000,
        });
        store.apply(&[changes]).unwrap();
    }
    store.close().unwrap();
    dir
}

/// The verdict of each held message, in the order of topic, partition and offset.
fn verdicts(dir: &Path) -> Vec<(i64, Option<Verdict>)> {
    let store = RocksStore::open_existing_for_cli(dir).unwrap();
    let mut found = Vec::new();
    for id in store.partitions().unwrap() {
        for open in store.load(id).unwrap().open {
            if let Stage::Held {
                verdict,
                message: kept,
                ..
            } = open.stage
            {
                assert_eq!(kept, message(), "the bytes stay as they were");
                found.push((open.offset.0, verdict));
            }
        }
    }
    found
}

fn acts(dir: &Path) -> usize {
    RocksStore::open_existing_for_cli(dir)
        .unwrap()
        .audited()
        .unwrap()
        .len()
}

fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

// ---- held

#[test]
fn held_lists_what_waits_and_why() {
    let dir = stopped();
    let said = hapax(&["held", "--state-dir", path(&dir)]);
    said.ended(0);
    let lines: Vec<Vec<&str>> = said.out.lines().map(|line| line.split("  ").collect()).collect();
    assert_eq!(said.out.lines().filter(|line| line.contains('@')).count(), 4);
    let first: Vec<&str> = lines[1].iter().copied().filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        first.iter().map(|cell| cell.trim()).collect::<Vec<_>>(),
        [
            "orders[3]@17",
            &hex(1),
            "in doubt",
            "2023-11-14T22:13:20.123Z",
            "2",
            "26B",
            "-"
        ]
    );
    said.says("behind its token, open at 17")
        .says("4 messages held: 3 in doubt without a verdict, 0 with one, 0 to be retried, 1 behind their token or key")
        .says("1 message begun without an outcome");
    assert!(!said.out.contains("orders[3]@30"), "begun is not held");

    let all = hapax(&["held", "--state-dir", path(&dir), "--all", "--topic", ORDERS]);
    all.ended(0).says("orders[3]@30");
    assert!(!all.out.contains("refunds"));
    hapax(&["held", "--state-dir", path(&dir), "--topic", "other"])
        .ended(1)
        .says("it knows: orders, refunds");
}

#[test]
fn held_as_json_is_one_object_a_line() {
    let dir = stopped();
    let said = hapax(&["held", "--state-dir", path(&dir), "--json", "--all"]);
    said.ended(0);
    let lines: Vec<serde_json::Value> = said
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let states: Vec<&str> = lines.iter().map(|line| line["state"].as_str().unwrap()).collect();
    assert_eq!(
        states,
        ["in-doubt", "behind-token", "begun", "in-doubt", "in-doubt"]
    );
    let first = &lines[0];
    assert_eq!(
        (&first["topic"], &first["partition"], &first["offset"]),
        (&ORDERS.into(), &3.into(), &17.into())
    );
    assert_eq!(first["tokens"], serde_json::json!([hex(1), hex(101)]));
    assert_eq!((&first["bytes"], &first["attempts"]), (&26.into(), &2.into()));
    assert_eq!(lines[1]["behind_offset"], 17);
    assert_eq!(first["verdict"], serde_json::Value::Null);
}

// ---- resolve

#[test]
fn resolve_writes_the_verdict_and_the_act_once() {
    let dir = stopped();
    let resolve = |verdict: &str| {
        let place = ["--topic", ORDERS, "--partition", "3", "--offset", "17"];
        let mut args = vec!["resolve", "--state-dir", path(&dir), verdict];
        args.extend(place);
        args.extend(["--reason", "the bank shows it", "--by", "anna"]);
        hapax(&args)
    };
    resolve("--done")
        .ended(0)
        .says("orders[3]@17: --done")
        .says("1 message held behind it: judged by its outcome")
        .says("1 verdict written; carried out when the consumer starts next");
    let done = Some(Verdict::Done);
    assert_eq!(
        verdicts(dir.path()),
        [(17, done), (21, None), (8, None), (2, None)]
    );

    resolve("--done")
        .ended(0)
        .says("was given before, nothing changed");
    assert_eq!(acts(dir.path()), 1, "to say it twice is one act");

    resolve("--run").ended(0).says("--run, in place of --done");
    assert_eq!(verdicts(dir.path())[0], (17, Some(Verdict::Run)));

    let audit = hapax(&["audit", "--state-dir", path(&dir)]);
    audit.ended(0);
    let lines: Vec<&str> = audit.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", audit.out);
    for (line, act) in [(lines[1], "resolve --done"), (lines[2], "resolve --run")] {
        for part in [act, "orders[3]@17", &hex(1), "anna", "the bank shows it"] {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
    }
    let json = hapax(&["audit", "--state-dir", path(&dir), "--json"]);
    let act: serde_json::Value = serde_json::from_str(json.out.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&act["act"], &act["by"], &act["offset"]),
        (&"resolve --done".into(), &"anna".into(), &17.into())
    );
    // A visit is neither a start nor an end of the consumer.
    assert_eq!(start(dir.path()).past().unclean, 0);
}

#[test]
fn resolve_by_token_and_all_at_once() {
    let dir = stopped();
    let resolve = |target: &[&str], verdict: &str| {
        let mut args = vec!["resolve", "--state-dir", path(&dir), verdict, "--reason", "asked"];
        args.extend(target);
        hapax(&args)
    };
    // Under its second source; the one behind it is not meant.
    resolve(&["--token", &hex(101)], "--dead-letter")
        .ended(0)
        .says("orders[3]@17: --dead-letter");
    resolve(&["--token", &hex(2)], "--run")
        .ended(1)
        .says("is held at orders[4]@8, refunds[0]@2; name one of them");
    resolve(&["--token", &hex(9)], "--run")
        .ended(1)
        .says("no message with token");
    let before = acts(dir.path());
    resolve(&["--all-in-doubt"], "--run")
        .ended(0)
        .says("2 verdicts would be written; nothing was done: give --yes to do it");
    assert_eq!(acts(dir.path()), before);
    resolve(&["--all-in-doubt", "--yes"], "--run")
        .ended(0)
        .says("2 verdicts written");
    assert_eq!(acts(dir.path()), before + 2);
    let (dead, run) = (Some(Verdict::DeadLetter), Some(Verdict::Run));
    assert_eq!(verdicts(dir.path()), [(17, dead), (21, None), (8, run), (2, run)]);
    resolve(&["--all-in-doubt"], "--run")
        .ended(0)
        .says("nothing is in doubt without a verdict");
    let audit = hapax(&["audit", "--state-dir", path(&dir)]);
    audit.ended(0).says("tester");
}

#[test]
fn resolve_refuses_what_takes_no_verdict_and_writes_nothing() {
    let dir = stopped();
    let resolve = |partition: &str, offset: &str| {
        let place = ["--topic", ORDERS, "--partition", partition, "--offset", offset];
        let mut args = vec!["resolve", "--state-dir", path(&dir), "--run", "--reason", "asked"];
        args.extend(place);
        hapax(&args)
    };
    resolve("3", "21")
        .ended(1)
        .says("open at offset 17; resolve that one");
    resolve("3", "30").ended(1).says("is begun and not held");
    resolve("3", "18")
        .ended(1)
        .says("no message is open at orders[3]@18");
    assert!(verdicts(dir.path()).iter().all(|(_, verdict)| verdict.is_none()));
    assert_eq!(acts(dir.path()), 0);

    // Wrong usage: no target, two of them, no verdict, two of them, no reason, an empty one, half a place, no hex.
    let target = ["--token", &hex(1)];
    for args in [
        &["--run", "--reason", "r"][..],
        &["--run", "--reason", "r", target[0], target[1], "--all-in-doubt"],
        &["--reason", "r", target[0], target[1]],
        &["--run", "--done", "--reason", "r", target[0], target[1]],
        &["--run", target[0], target[1]],
        &["--run", "--reason", " ", target[0], target[1]],
        &["--run", "--reason", "r", "--topic", ORDERS, "--offset", "17"],
        &["--run", "--reason", "r", "--token", "12"],
        &[
            "--run",
            "--reason",
            "r",
            "--token",
            "+1234567890123456789012345678901",
        ],
    ] {
        let mut all = vec!["resolve", "--state-dir", path(&dir)];
        all.extend(args);
        assert_eq!(hapax(&all).code, 2, "{args:?}");
    }
    assert_eq!(acts(dir.path()), 0);
}

#[test]
fn a_store_that_is_in_use_or_not_there_is_refused() {
    let dir = stopped();
    let running = start(dir.path());
    for verb in [
        &["held"][..],
        &["audit"],
        &["resolve", "--all-in-doubt", "--run", "--reason", "r"],
    ] {
        let mut args = verb.to_vec();
        args.extend(["--state-dir", path(&dir)]);
        hapax(&args)
            .ended(1)
            .says("is in use by a running consumer: leave --state-dir out");
    }
    drop(running);
    let nowhere = TempDir::new().unwrap();
    hapax(&["held", "--state-dir", path(&nowhere)])
        .ended(1)
        .says("there is no store in");
    assert_eq!(nowhere.path().read_dir().unwrap().count(), 0, "nothing is made");
}

// ---- explain and check

/// A configuration in that directory, with the store beside it.
fn configure(dir: &Path, brokers: &str, topic: &str, more: &str) -> String {
    let file = dir.join("hapax.toml");
    let text = format!(
        "group = \"billing\"\nbrokers = \"{brokers}\"\nstate_dir = \"{}\"\ndurability = \"local\"\nadmin.listen = \"127.0.0.1:0\"\n{more}\n[topics.{topic}]\nclass = \"non-idempotent\"\nwindow = \"24h\"\n",
        dir.join("state").display()
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn explain_says_what_the_configuration_means() {
    let dir = TempDir::new().unwrap();
    let file = configure(dir.path(), "k:9092", ORDERS, "cold = \"run\"");
    hapax(&["explain", "--config", &file])
        .ended(0)
        .says("group \"billing\" at k:9092")
        .says("topic \"orders\": non-idempotent, window 24h")
        .says("what weakens the promise");
    let missing = dir.path().join("other.toml");
    hapax(&["explain", "--config", missing.to_str().unwrap()])
        .ended(1)
        .says("cannot read the configuration");
}

#[test]
fn check_says_everything_that_is_wrong_with_a_configuration() {
    let dir = TempDir::new().unwrap();
    let file = configure(
        dir.path(),
        "k:9092",
        ORDERS,
        "drain = \"0s\"\nlimits.held = 0\nmemroy = \"1GiB\"",
    );
    let said = hapax(&["check", "--config", &file]);
    said.ended(1).says("memroy").says("did you mean");
    let file = configure(dir.path(), "k:9092", ORDERS, "drain = \"0s\"\nlimits.held = 0");
    let said = hapax(&["check", "--config", &file]);
    said.ended(1).says("2 problems, 0 warnings");
    let failed: Vec<&str> = said
        .out
        .lines()
        .filter(|line| line.starts_with("fail  "))
        .collect();
    assert_eq!(failed.len(), 2, "{}", said.out);
    assert!(failed[0].contains("drain") && failed[1].contains("limits.held"));
}

#[test]
fn check_without_a_broker_still_looks_at_the_rest() {
    let dir = TempDir::new().unwrap();
    let file = configure(
        dir.path(),
        "127.0.0.1:1",
        ORDERS,
        "cold = \"run\"\nlimits.in_flight = 15",
    );
    let store = RocksStore::open(
        &dir.path().join("state"),
        "other",
        &specs(),
        32 << 20,
        Durability::Local,
    )
    .unwrap();
    let said = hapax(&["check", "--config", &file]);
    said.ended(1)
        .says("fail  broker: no answer from brokers \"127.0.0.1:1\"")
        .says("is in use by another process")
        .says("topics.orders.concurrency")
        .says("2 problems, 2 warnings");
    drop(store);
    hapax(&["check", "--config", &file])
        .ended(1)
        .says("belongs to group \"other\", not \"billing\"");
}

#[test]
fn check_against_a_real_broker() {
    let Some(broker) = kafka::broker() else { return };
    let (topic, bytes) = (kafka::unique("check"), 1_000_000);
    let letters = format!("{topic}.dead-letters");
    broker.create_topic(&topic, 3, &[("max.message.bytes", &bytes.to_string())]);
    let dir = TempDir::new().unwrap();
    let file = configure(dir.path(), &broker.bootstrap(), &topic, "");
    let check = || hapax(&["check", "--config", &file]);
    check()
        .ended(1)
        .says(&format!("ok    topic \"{topic}\": 3 partitions"))
        .says(&format!("fail  dead-letter topic \"{letters}\" of topic"))
        .says("--partitions 3 --config max.message.bytes=1016384")
        .says("store: none in")
        .says("1 problem, 0 warnings");
    assert!(!dir.path().join("state").exists(), "a check makes nothing");

    // Schedule 20: as large as the input is too small.
    broker.create_topic(&letters, 1, &[("max.message.bytes", "1016383")]);
    check()
        .ended(1)
        .says("takes messages of 1016383 bytes")
        .says("of up to 1000000: with hapax's headers 1016384 are needed");

    let other = kafka::unique("check");
    broker.create_topic(&other, 1, &[]);
    let file = configure(
        dir.path(),
        &broker.bootstrap(),
        &other,
        "dead_letter.create = true",
    );
    let said = hapax(&["check", "--config", &file]);
    said.ended(0)
        .says("does not exist, the start creates it")
        .says("not proven: reading messages")
        .says("0 problems, 0 warnings");
    let missing = kafka::unique("missing");
    let file = configure(dir.path(), &broker.bootstrap(), &missing, "");
    hapax(&["check", "--config", &file]).ended(1).says(&format!(
        "topic \"{missing}\" cannot be consumed: it does not exist"
    ));
}

// ---- the help, as the documentation shows it

/// The blocks of a page that begin with `$ hapax … --help`: the arguments, and what follows.
fn help_blocks(page: &str) -> Vec<(Vec<String>, String)> {
    let mut blocks = Vec::new();
    for block in page.split("```").skip(1).step_by(2) {
        let lines = block.split_once('\n').map_or("", |(_, lines)| lines);
        let Some((command, shown)) = lines.split_once('\n') else {
            continue;
        };
        let Some(args) = command
            .strip_prefix("$ hapax ")
            .filter(|args| args.ends_with("--help"))
        else {
            continue;
        };
        blocks.push((args.split(' ').map(str::to_owned).collect(), shown.to_owned()));
    }
    blocks
}

#[test]
fn the_help_in_the_documentation_is_the_help_of_the_command() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut shown = Vec::new();
    for name in ["README.md", "docs/cli.md"] {
        let page = std::fs::read_to_string(root.join(name)).unwrap_or_default();
        for (args, expected) in help_blocks(&page) {
            let said = hapax(&args.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(said.code, 0);
            assert_eq!(
                said.out.trim_end(),
                expected.trim_end(),
                "{name} shows another `hapax {}`",
                args.join(" ")
            );
            shown.push(args.join(" "));
        }
    }
    for verb in [
        "check",
        "explain",
        "status",
        "held",
        "inspect",
        "resolve",
        "invalidate",
        "forget",
        "redrive",
        "audit",
    ] {
        assert!(
            shown.contains(&format!("{verb} --help")),
            "docs/cli.md does not show `hapax {verb} --help`"
        );
    }
}
