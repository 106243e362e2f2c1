//! The driver: who runs when, and what comes of it.
//!
//! Contestants run one at a time, each over the whole topic, with a fresh group and a fresh state directory. Every
//! second round runs backwards, so that a drift of the machine favours nobody. A ratio is the median of the rounds'
//! own ratios: what was measured in another round, minutes away, is not compared.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::broker::Observer;
use crate::contestants::Measured;
use crate::figures::{self, Figure, median};
use crate::paced::Pace;
use crate::stored::{self, Stored};
use crate::{Result, Run, paced, pairs, process, streams};

/// In the order of the first round.
const CONTESTANTS: [&str; 10] = [
    "bare",
    "local",
    "replicated",
    "streams_alo",
    "non_idempotent",
    "replicated_non_idempotent",
    "bare_defaults",
    "streams_eos",
    "restore",
    "streams_restore",
];
/// What is measured once, after the rounds.
const SINGLE: [&str; 7] = [
    "reopen_10m",
    "rss_200_partitions",
    "latency",
    "rolling_restart",
    "held",
    "duplicates",
    "slow",
];

/// A tenth of what `replicated` makes, where that was not measured in the same run.
const PACE: f64 = 45_000.0;

/// What hapax sets of librdkafka's fetching, for four partitions; the bare loop has the same, its one queue as much as the
/// four of hapax together. (`bare_defaults` is the loop as most would write it: once its queue is full, librdkafka waits
/// for a second before it fetches again.)
const BARE_FETCH: [&str; 3] = [
    "queued.max.messages.kbytes=32768",
    "fetch.queue.backoff.ms=10",
    "fetch.wait.max.ms=50",
];

/// One run of one contestant.
struct Entry {
    round: usize,
    name: &'static str,
    measured: Measured,
    stored: Option<Stored>,
}

/// Runs everything that was asked for; `false` where a figure misses its target.
pub(crate) fn run(run: &Run) -> Result<bool> {
    check(run)?;
    describe(run)?;
    let mut entries = Vec::new();
    for round in 1..=run.rounds {
        let mut names: Vec<_> = CONTESTANTS.into_iter().filter(|name| wanted(run, name)).collect();
        if round % 2 == 0 {
            names.reverse();
        }
        for name in names {
            let entry = contest(run, round, name)?;
            println!("{}", row(&entry));
            entries.push(entry);
        }
    }
    let mut figures = rounds(&entries);
    if wanted(run, "reopen_10m") {
        figures.extend(reopen(run)?);
    }
    if wanted(run, "rss_200_partitions") {
        figures.push(wide(run)?);
    }
    if wanted(run, "latency") {
        figures.extend(latency(run, &figures)?);
    }
    if wanted(run, "rolling_restart") {
        println!();
        let state = State::new(run, "rolling")?;
        figures.extend(paced::rolling(run, &state.0)?);
    }
    for (name, measure) in pairs::ALL {
        if wanted(run, name) {
            println!();
            figures.extend(measure(run)?);
        }
    }
    println!();
    for figure in &figures {
        println!("{}", figures::line(figure));
    }
    let missed = figures::missed(&figures);
    for line in &missed {
        println!("{line}");
    }
    Ok(missed.is_empty())
}

fn wanted(run: &Run, name: &str) -> bool {
    // Two transactions for each batch of slots: minutes for a round, and no target.
    let by_name = name == "replicated_non_idempotent";
    (run.only.is_empty() && !by_name) || run.only.iter().any(|only| only == name)
}

fn check(run: &Run) -> Result<()> {
    let known = |name: &&String| CONTESTANTS.contains(&name.as_str()) || SINGLE.contains(&name.as_str());
    if let Some(name) = run.only.iter().find(|name| !known(name)) {
        return Err(format!("--only {name}: expected one of {CONTESTANTS:?} or {SINGLE:?}").into());
    }
    if run.rounds == 0 {
        return Err("--rounds 0: nothing would be measured".into());
    }
    let (_, held) = Observer::new(&run.brokers, &run.topic, "bench")?.ends()?;
    if held != run.messages {
        return Err(format!("topic {} holds {held} messages, not {}", run.topic, run.messages).into());
    }
    Ok(())
}

fn describe(run: &Run) -> Result<()> {
    let sync = process::sync_time(&run.work)?;
    println!("machine   {}", process::machine());
    println!(
        "disk      4 KiB appended and synced in {:.0} µs (median)",
        sync.as_secs_f64() * 1e6
    );
    println!(
        "topic     {} messages, window 24 h, {} rounds",
        run.messages, run.rounds
    );
    println!(
        "fetch     librdkafka {}; bare and hapax alike: {} in all, queued.min.messages=100000 in all; otherwise defaults",
        rdkafka::util::get_rdkafka_version().1,
        BARE_FETCH.join(", ")
    );
    println!("          Kafka Streams and bare_defaults: the defaults of their clients");
    println!();
    println!(
        "round  contestant          seconds  messages/s  peak MiB  B/key  buckets  busiest threads (CPU)"
    );
    Ok(())
}

fn row(entry: &Entry) -> String {
    let stored = match &entry.stored {
        Some(stored) => format!("{:5.1}  {:7}", bytes_per_key(entry, stored), stored.live_buckets),
        None => format!("{:>5}  {:>7}", "-", "-"),
    };
    let measured = &entry.measured;
    format!(
        "{:5}  {:18}  {:7.2}  {:10.0}  {:8.1}  {stored}  {}",
        entry.round,
        entry.name,
        measured.seconds,
        figures::rate(measured),
        figures::mib(measured),
        figures::busiest(measured, 5)
    )
}

fn bytes_per_key(entry: &Entry, stored: &Stored) -> f64 {
    stored.table_bytes as f64 / entry.measured.count as f64
}

/// A state directory that is there for one run.
pub(crate) struct State(pub(crate) PathBuf);

impl State {
    pub(crate) fn new(run: &Run, name: &str) -> Result<Self> {
        let dir = run.work.join(format!("state-{name}"));
        std::fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("bench: {} is left behind: {error}", self.0.display());
        }
    }
}

fn contest(run: &Run, round: usize, name: &'static str) -> Result<Entry> {
    let state = State::new(run, name)?;
    // A group of its own, also where a broker is measured on twice.
    let group = format!("{name}-{round}-{}", std::process::id());
    let ours = |kind: &str, extra: &[&str]| {
        let mut arguments = vec![
            "--brokers",
            &run.brokers,
            "--topic",
            &run.topic,
            "--group",
            &group,
        ];
        arguments.extend_from_slice(extra);
        contestant(kind, &state.0, run.messages, &arguments)
    };
    let measured = match name {
        "bare" => ours("bare", &BARE_FETCH.map(|property| ["--set", property]).concat())?,
        "bare_defaults" => ours("bare", &[])?,
        "local" => ours("idempotent", &[])?,
        "non_idempotent" => ours("non-idempotent", &[])?,
        "replicated" => ours("replicated", &[])?,
        "replicated_non_idempotent" => ours("replicated-non-idempotent", &[])?,
        "restore" => {
            ours("replicated", &[])?;
            std::fs::remove_dir_all(&state.0)?;
            std::fs::create_dir(&state.0)?;
            ours("restore", &[])?
        }
        "streams_restore" => streams::restore(run, "exactly_once_v2", &state.0)?,
        "streams_alo" => streams::run(run, "at_least_once", &state.0)?,
        _ => streams::run(run, "exactly_once_v2", &state.0)?,
    };
    let stored = match name {
        "local" | "non_idempotent" | "replicated" | "replicated_non_idempotent" | "restore" => {
            Some(stored::look(&state.0)?)
        }
        _ => None,
    };
    Ok(Entry {
        round,
        name,
        measured,
        stored,
    })
}

/// Starts this program again as that contestant, and reads its one line.
pub(crate) fn contestant(kind: &str, state_dir: &Path, count: u64, arguments: &[&str]) -> Result<Measured> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "contestant",
            "--kind",
            kind,
            "--count",
            &count.to_string(),
            "--state-dir",
        ])
        .arg(state_dir)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    if kind == "fill" {
        child.kill()?;
    }
    let status = child.wait()?;
    if line.is_empty() || !(status.success() || kind == "fill") {
        return Err(format!("contestant {kind} failed: {status}").into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// The figures of what ran in rounds.
fn rounds(entries: &[Entry]) -> Vec<Figure> {
    let each = |name: &str, value: &dyn Fn(&Entry) -> Option<f64>| {
        let of_name = entries.iter().filter(|entry| entry.name == name);
        median(of_name.filter_map(value).collect())
    };
    let rate = |name: &str| each(name, &|entry| Some(figures::rate(&entry.measured)));
    let memory = |name: &str| each(name, &|entry| Some(figures::mib(&entry.measured)));
    let stored = |value: &dyn Fn(&Entry, &Stored) -> f64| {
        each("local", &|entry| Some(value(entry, entry.stored.as_ref()?)))
    };
    let ratio = |name: &str, other: &str| {
        each(name, &|entry| {
            let other = entries
                .iter()
                .find(|of| of.round == entry.round && of.name == other)?;
            Some(figures::rate(&entry.measured) / figures::rate(&other.measured))
        })
    };
    let all = [
        ("local_vs_streams", ratio("local", "streams_alo"), "x"),
        ("local_vs_streams_eos", ratio("local", "streams_eos"), "x"),
        ("local_vs_bare", ratio("local", "bare"), "x"),
        (
            "replicated_vs_streams_eos",
            ratio("replicated", "streams_eos"),
            "x",
        ),
        ("replicated_vs_bare", ratio("replicated", "bare"), "x"),
        ("non_idempotent_vs_bare", ratio("non_idempotent", "bare"), "x"),
        ("restore_vs_streams", ratio("restore", "streams_restore"), "x"),
        ("bare", rate("bare"), "msg/s"),
        ("bare_defaults", rate("bare_defaults"), "msg/s"),
        ("local", rate("local"), "msg/s"),
        ("non_idempotent", rate("non_idempotent"), "msg/s"),
        ("replicated", rate("replicated"), "msg/s"),
        (
            "replicated_non_idempotent",
            rate("replicated_non_idempotent"),
            "msg/s",
        ),
        ("streams_alo", rate("streams_alo"), "msg/s"),
        ("streams_eos", rate("streams_eos"), "msg/s"),
        ("restore", rate("restore"), "tokens/s"),
        ("streams_restore", rate("streams_restore"), "tokens/s"),
        (
            "live_buckets",
            stored(&|_, stored| stored.live_buckets as f64),
            "buckets",
        ),
        ("bytes_per_key", stored(&bytes_per_key), "B"),
        ("rss_bare", memory("bare"), "MiB"),
        ("rss_local", memory("local"), "MiB"),
        ("rss_replicated", memory("replicated"), "MiB"),
        ("rss_streams", memory("streams_alo"), "MiB"),
    ];
    let measured = all.into_iter().filter_map(|(name, value, unit)| {
        Some(Figure {
            name,
            value: value?,
            unit,
        })
    });
    measured.collect()
}

/// Fills a store, kills the process that filled it, opens it twice: after the kill, and after a close.
fn reopen(run: &Run) -> Result<Vec<Figure>> {
    let state = State::new(run, "reopen")?;
    let tokens = run.reopen_tokens;
    let filled = contestant("fill", &state.0, tokens, &[])?;
    println!();
    println!(
        "reopen: {tokens} tokens in 5 buckets, written and synced by 8192 at {:.0} a second",
        figures::rate(&filled)
    );
    let killed = contestant("reopen", &state.0, tokens, &[])?;
    let closed = contestant("reopen", &state.0, tokens, &[])?;
    let stored = stored::look(&state.0)?;
    println!(
        "reopen: {:.3} s after a kill, {:.3} s after a close; {:.1} B/key in {} buckets; peak {:.0} MiB",
        killed.seconds,
        closed.seconds,
        stored.table_bytes as f64 / tokens as f64,
        stored.live_buckets,
        figures::mib(&closed)
    );
    let figure = |name, value, unit| Figure { name, value, unit };
    Ok(vec![
        figure("reopen_10m", closed.seconds, "s"),
        figure("reopen_10m_after_kill", killed.seconds, "s"),
    ])
}

/// From append to recorded outcome, at a tenth of what the replicated mode can do.
fn latency(run: &Run, figures: &[Figure]) -> Result<Vec<Figure>> {
    let measured = figures.iter().find(|figure| figure.name == "replicated");
    let rate = measured.map_or(PACE, |figure| figure.value / 10.0);
    println!();
    let mut found = Vec::new();
    for (durability, names) in [
        ("replicated", ["replicated_p50", "replicated_p99"]),
        ("local", ["local_p50", "local_p99"]),
    ] {
        let state = State::new(run, "paced")?;
        let pace = Pace {
            rate: rate as u64,
            tokens: None,
        };
        let times = paced::latency(run, durability, pace, &state.0)?;
        println!(
            "latency: {durability} at {rate:.0} messages/s: {} ms at the median, {} ms at 99 %, from append to recorded outcome",
            times[0], times[1]
        );
        let figures = names.into_iter().zip(times);
        found.extend(figures.map(|(name, value)| Figure {
            name,
            value,
            unit: "ms",
        }));
    }
    Ok(found)
}

/// 200 partitions that all have work, under `memory = "64MiB"`.
fn wide(run: &Run) -> Result<Figure> {
    let state = State::new(run, "wide")?;
    let (ends, messages) = Observer::new(&run.brokers, &run.wide_topic, "bench")?.ends()?;
    let idle = ends.values().filter(|end| **end == 0).count();
    if idle > 0 {
        return Err(format!(
            "{idle} of {} partitions of {} are empty",
            ends.len(),
            run.wide_topic
        )
        .into());
    }
    let arguments = [
        "--brokers",
        &run.brokers,
        "--topic",
        &run.wide_topic,
        "--group",
        "wide",
        "--memory-mib",
        "64",
    ];
    let measured = contestant("idempotent", &state.0, messages, &arguments)?;
    println!();
    println!(
        "wide: {messages} messages in {} partitions, at least {} in each, under memory = \"64MiB\": {:.0} messages/s, peak {:.0} MiB",
        ends.len(),
        ends.values().min().copied().unwrap_or_default(),
        figures::rate(&measured),
        figures::mib(&measured)
    );
    Ok(Figure {
        name: "rss_200_partitions",
        value: figures::mib(&measured),
        unit: "MiB",
    })
}
