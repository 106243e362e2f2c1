//! `hapax explain`: what the settings mean, in words.
//!
//! Settings in, text out. The decision rows are those of `docs/design.md`, "States, classes, verdicts", narrowed to
//! the class and policies of each topic; whoever changes the table there changes it here.

mod failures;
mod given;
mod life;
mod starts;

use crate::class::Class;
use crate::config::{
    AfterFailure, AfterHold, Cold, Concurrency, Durability, Expired, MissingToken, Mode, OnMismatch,
    OnUseless, Overall, Settings, Standby, Start, TokenSource, TopicPolicy, show_duration, warnings,
};

/// Bytes on disk of one token with a plain outcome; `bench bytes_per_key` measures it.
const TOKEN_BYTES: u64 = 32;

/// The settings as text: each topic's policy, decision table, disk and doubt, then what a failure costs.
#[must_use]
pub fn explain(settings: &Settings) -> String {
    let mut page = Page::default();
    process(settings, &mut page);
    for (name, policy) in &settings.topics {
        topic(settings, name, policy, &mut page);
    }
    failures::failures(settings, &mut page);
    to_look_at(settings, &mut page);
    page.text
}

/// Lines of a label and a text, wrapped under itself.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    const LABEL: usize = 34;
    const WIDTH: usize = 110;

    fn title(&mut self, title: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(title);
        self.text.push('\n');
    }

    fn heading(&mut self, heading: &str) {
        self.text.push_str(&format!("\n  {heading}\n"));
    }

    /// A label longer than its column gets a line of its own.
    fn row(&mut self, label: &str, text: &str) {
        let mut line = format!("    {label:<width$}", width = Self::LABEL - 4);
        if line.chars().count() > Self::LABEL {
            self.line(&line);
            line = " ".repeat(Self::LABEL);
        }
        let mut words = text.split_whitespace();
        line.push_str(words.next().unwrap_or_default());
        for word in words {
            if line.chars().count() + 1 + word.chars().count() > Self::WIDTH {
                self.line(&line);
                line = " ".repeat(Self::LABEL);
            } else {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&line);
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

fn process(settings: &Settings, page: &mut Page) {
    let Settings {
        group,
        brokers,
        state_dir,
        durability,
        ..
    } = settings;
    page.title(&format!(
        "group {group:?} at {brokers}, durability \"{durability}\", state in {}",
        state_dir.display()
    ));
    page.row(
        "without a committed offset",
        match settings.start {
            Start::Earliest => "starts at the first message that the broker still has",
            Start::Latest => "starts at the end; what is there already is never seen",
        },
    );
    page.row(
        "at a rebalance or shutdown",
        &format!("{} to finish what is in flight", show_duration(settings.drain)),
    );
    if settings.durability == Durability::Replicated {
        page.row(
            "a transaction",
            &format!(
                "of states, dead letters and offsets: the broker ends it after {}",
                show_duration(settings.transaction_timeout())
            ),
        );
        page.row("copies of others' windows", failures::copies(settings.standby));
    }
    let limits = &settings.limits;
    page.row(
        "in flight",
        &format!(
            "at most {} messages, {}",
            limits.in_flight, limits.in_flight_bytes
        ),
    );
    page.row(
        "held",
        &format!(
            "at most {} messages, {}, for {}; then dead-lettered",
            limits.held,
            limits.held_bytes,
            show_duration(limits.held_age)
        ),
    );
}

fn topic(settings: &Settings, name: &str, policy: &TopicPolicy, page: &mut Page) {
    page.title(&format!(
        "topic {name:?}: {}, window {}",
        policy.class,
        show_duration(policy.window)
    ));
    page.heading("policy");
    policy_rows(settings, name, policy, page);
    page.heading("what a message finds, and what follows");
    findings(policy, page);
    page.heading("how an attempt ends, and what follows");
    endings(settings, name, policy, page);
    page.heading(&format!(
        "disk: rate x {} x {TOKEN_BYTES} B, and up to a quarter more until the oldest part is dropped",
        show_duration(policy.window)
    ));
    disk(settings, policy, page);
    page.heading("one kill");
    doubt(policy, page);
    let weakenings = weakenings(settings, policy);
    page.heading("what weakens the promise");
    for (label, text) in &weakenings {
        page.row(label, text);
    }
    if weakenings.is_empty() {
        page.row("nothing", "");
    }
}

fn policy_rows(settings: &Settings, name: &str, policy: &TopicPolicy, page: &mut Page) {
    let sources: Vec<String> = policy.token.iter().map(ToString::to_string).collect();
    page.row("token", &sources.join(", and "));
    page.row(
        "without a token",
        match policy.missing_token {
            MissingToken::DeadLetter => "dead-lettered, reason `missing-token`",
            MissingToken::UseOffset => "its position serves: redeliveries are found, duplicates are not",
            MissingToken::Stop => "the partition stops there until somebody looks",
        },
    );
    page.row("another payload", &mismatch(policy));
    life::rows(policy, page);
    let slots = policy.concurrency.slots();
    page.row(
        "runs, a partition",
        &match policy.concurrency {
            Concurrency::Ordered => "one at a time, in offset order".to_owned(),
            Concurrency::ByKey(_) => format!("{slots} at a time, those of one key one after the other"),
            Concurrency::Unordered(_) => format!("{slots} at a time, in any order"),
        },
    );
    let (in_place, overall) = (policy.retry.in_place, policy.retry.overall);
    page.row(
        "an attempt",
        &format!(
            "has {}; at most {} attempts within {}, waiting up to {} and doubling to {}",
            show_duration(policy.deadline),
            in_place.attempts,
            show_duration(in_place.total),
            show_duration(in_place.first),
            show_duration(in_place.max)
        ),
    );
    let after = match policy.after_hold {
        _ if overall.attempts <= in_place.attempts => {
            "the message is dead-lettered: `retry.overall` allows no more".to_owned()
        }
        _ if matches!(policy.concurrency, Concurrency::Unordered(_)) => held_text(&overall),
        AfterHold::BlockKey => format!("{}, and later messages of its key behind it", held_text(&overall)),
        AfterHold::Release => format!("{}; later messages of its key run", held_text(&overall)),
    };
    page.row("when these are spent", &after);
    starts::rows(policy, page);
    given::rows(settings, policy, page);
    page.row("dead letters", &settings.dead_letter.topic_of(name));
    if settings.durability == Durability::Replicated {
        page.row("changelog", &settings.changelog_of(name));
    }
}

fn mismatch(policy: &TopicPolicy) -> String {
    let then = match policy.mismatch.then {
        OnMismatch::DeadLetter => "dead-lettered, reason `mismatch`",
        OnMismatch::Suppress => "counted, and suppressed like any duplicate",
    };
    match policy.mismatch.fields.as_slice() {
        [] => format!("under a known token, any byte differs: {then}"),
        fields => format!("under a known token, {} differs: {then}", fields.join(" or ")),
    }
}

/// The upper decision table, one column of it.
fn findings(policy: &TopicPolicy, page: &mut Page) {
    let idempotent = policy.class == Class::Idempotent;
    page.row(
        "its own offset",
        "complete; nothing runs, unless it is open and ours to finish",
    );
    page.row("nothing", if idempotent { "run" } else { "begin, then run" });
    page.row("in flight here", "wait, and share the durable outcome");
    let within = show_duration(policy.rerun_within);
    page.row("begun, its owner gone", &match policy.class {
        Class::Idempotent => "run again".to_owned(),
        Class::PotentiallyIdempotent => format!(
            "in doubt: probe if there is one; else run again with the same child tokens within {within} of the \
             begin; then hold"
        ),
        Class::NonIdempotent => "in doubt: probe if there is one; else hold for an operator".to_owned(),
    });
    page.row("held", "hold behind it");
    page.row(
        "done",
        match policy.mode {
            Mode::Enforce => "duplicate: suppress, and replay the outcome if asked",
            Mode::Observe => "duplicate: counted, and run all the same",
        },
    );
    page.row(
        "failed",
        match (policy.after_failure, policy.mode) {
            (AfterFailure::Run, _) => "run again",
            (AfterFailure::Suppress, Mode::Enforce) => "duplicate: suppress",
            (AfterFailure::Suppress, Mode::Observe) => "duplicate: counted, and run all the same",
        },
    );
    page.row("invalidated", "dead-letter, with the operator's reason");
}

/// The lower decision table, one column of it.
fn endings(settings: &Settings, name: &str, policy: &TopicPolicy, page: &mut Page) {
    page.row("Ok", "done");
    page.row("an error, nothing applied", "retry");
    let other = if policy.class == Class::Idempotent {
        "retry"
    } else {
        "in doubt, as above"
    };
    page.row("other error, panic, deadline", other);
    let failed = format!(
        "failed, and a dead letter to {}",
        settings.dead_letter.topic_of(name)
    );
    page.row("reject, or retries spent", &failed);
}

fn disk(settings: &Settings, policy: &TopicPolicy, page: &mut Page) {
    for rate in [100, 1_000, 10_000] {
        let bytes = u128::from(TOKEN_BYTES) * rate * u128::from(policy.window.as_secs());
        page.row(&format!("{rate} messages/s"), &size(bytes));
    }
    if let Some(limit) = policy.window_bytes {
        let rate = limit.0 / TOKEN_BYTES / policy.window.as_secs().max(1);
        page.row(
            &format!("the limit of {limit}"),
            &format!("is reached at {rate} messages/s; from there on the window is shorter"),
        );
    }
    if policy.store_outcome {
        page.row("replies", "come on top, where the handler returns some");
    }
    if settings.standby == Standby::All {
        page.row(
            "standby = \"all\"",
            "the rate is that of the whole topic, on the disk of each member; window_bytes counts all of it",
        );
    }
    if settings.durability == Durability::Replicated {
        page.row(
            "the changelog",
            "takes disk at the brokers besides, times its replicas, and is trimmed as the window moves on",
        );
    }
}

fn doubt(policy: &TopicPolicy, page: &mut Page) {
    let (slots, ahead) = (policy.concurrency.slots(), policy.begun_ahead);
    page.row(
        "leaves, a partition",
        &match policy.class {
            Class::Idempotent => format!("nothing in doubt; up to {slots} that were running run again"),
            _ => format!(
                "at most {} in doubt: {slots} running and {ahead} begun ahead",
                slots.saturating_add(ahead)
            ),
        },
    );
}

/// Choices of the user's that take something away from the promise.
fn weakenings(settings: &Settings, policy: &TopicPolicy) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut when = |chosen: bool, label, text: &str| {
        if chosen {
            found.push((label, text.to_owned()))
        }
    };
    when(
        policy.mode == Mode::Observe,
        "mode = observe",
        "every duplicate runs",
    );
    let only_offset = policy.token.iter().all(|source| *source == TokenSource::Offset);
    when(only_offset, "token = offset", "no duplicate is ever found");
    when(
        !only_offset && policy.missing_token == MissingToken::UseOffset,
        "missing_token = use-offset",
        "a duplicate without a token runs",
    );
    when(
        policy.expired == Expired::Run,
        "expired = run",
        "a duplicate older than the window runs, though its token says so",
    );
    when(
        policy.max_age.is_stated() && policy.max_age.then == OnUseless::Skip,
        "max_age.then = skip",
        "what is too old is passed over, and goes nowhere",
    );
    when(
        policy.class.is_guarded() && policy.after_failure == AfterFailure::Run,
        "after_failure = run",
        "a duplicate of a failed message runs",
    );
    when(
        policy.class.is_guarded() && settings.cold == Cold::Run,
        "cold = run",
        match settings.durability {
            Durability::Local => "after a lost disk, or on another process, what the window knew runs again",
            Durability::Replicated => {
                "where a group comes without a changelog, or has lost it, what ran before runs again"
            }
        },
    );
    when(
        policy.begun_ahead > 0 && policy.class.is_guarded(),
        "begun_ahead",
        "messages that never started can be in doubt",
    );
    when(
        policy.window_bytes.is_some(),
        "window_bytes",
        "at the limit the window is shorter than stated: see hapax_effective_window_seconds",
    );
    when(
        policy.window <= settings.max_clock_jump,
        "max_clock_jump",
        "one wrong stamp may end the window",
    );
    found
}

/// What is allowed and probably not meant.
fn to_look_at(settings: &Settings, page: &mut Page) {
    let warnings = warnings(settings);
    if !warnings.is_empty() {
        page.title("to look at");
    }
    for warning in warnings {
        page.row(
            &warning.key,
            &format!("{}: {}; {}", warning.value, warning.why, warning.fix),
        );
    }
}

/// A rough size: three figures are more than the estimate deserves.
fn size(bytes: u128) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut scaled = bytes;
    for unit in units {
        if scaled < 10 * 1_024 {
            return format!("{scaled} {unit}");
        }
        scaled = scaled.div_ceil(1_024);
    }
    format!("{scaled} ZiB")
}

fn held_text(overall: &Overall) -> String {
    format!(
        "held on disk until the next one, {} attempts in all within {}, waiting up to {} and doubling to {}",
        overall.attempts,
        show_duration(overall.total),
        show_duration(overall.first),
        show_duration(overall.max)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{settle, settle_as};

    /// The text under one topic, or under the title that starts with `title`.
    fn part<'t>(text: &'t str, title: &str) -> &'t str {
        let start = text
            .find(title)
            .unwrap_or_else(|| panic!("no {title:?} in\n{text}"));
        let rest = &text[start..];
        rest.find("\n\ntopic")
            .or_else(|| rest.find("\n\nwhat a failure"))
            .map_or(rest, |end| &rest[..end])
    }

    pub(super) fn row<'t>(text: &'t str, label: &str) -> &'t str {
        let line = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(label)?.strip_prefix("  "));
        line.unwrap_or_else(|| panic!("no row {label:?} in\n{text}"))
            .trim()
    }

    #[test]
    fn the_whole_text_is_the_one_in_the_fixtures() {
        let lines = "cold = \"run\"\n\
            [topics.payments]\nclass = \"potentially-idempotent\"\nwindow = \"7d\"\nwindow_bytes = \"20GiB\"\n\
            token = [{ header = \"idempotency-key\" }, { json = \"/id\" }]\nbegun_ahead = 4\nmode = \"observe\"\n\
            mismatch = { fields = [\"/amount\", \"/currency\"] }\n\
            [topics.clicks]\nclass = \"idempotent\"\nwindow = \"2h\"\nconcurrency = { unordered = 64 }\n";
        assert_eq!(
            explain(&settle(lines).unwrap()),
            include_str!("../tests/fixtures/explain.txt")
        );
    }

    #[test]
    fn each_class_has_its_rows() {
        let text = |class| explain(&settle_as(class, "").unwrap());
        let rows = |class, label: &str| row(&text(class), label).to_owned();
        let (free, repeatable, once) = (
            Class::Idempotent,
            Class::PotentiallyIdempotent,
            Class::NonIdempotent,
        );
        assert_eq!(rows(free, "nothing"), "run");
        assert_eq!(rows(once, "nothing"), "begin, then run");
        assert_eq!(rows(free, "begun, its owner gone"), "run again");
        assert!(
            rows(repeatable, "begun, its owner gone")
                .starts_with("in doubt: probe if there is one; else run again")
        );
        assert_eq!(
            rows(once, "begun, its owner gone"),
            "in doubt: probe if there is one; else hold for an operator"
        );
        assert_eq!(rows(free, "failed"), "run again");
        assert_eq!(rows(once, "failed"), "duplicate: suppress");
        assert_eq!(rows(free, "other error, panic, deadline"), "retry");
        assert_eq!(
            rows(repeatable, "other error, panic, deadline"),
            "in doubt, as above"
        );
        assert_eq!(rows(once, "other error, panic, deadline"), "in doubt, as above");
    }

    #[test]
    fn a_kill_leaves_slots_and_begun_ahead_in_doubt_and_nothing_of_an_idempotent_topic() {
        let lines = "topics.orders = { concurrency = { by_key = 8 }, begun_ahead = 3 }";
        let kill = |class| row(&explain(&settle_as(class, lines).unwrap()), "leaves, a partition").to_owned();
        assert_eq!(
            kill(Class::NonIdempotent),
            "at most 11 in doubt: 8 running and 3 begun ahead"
        );
        assert_eq!(
            kill(Class::Idempotent),
            "nothing in doubt; up to 8 that were running run again"
        );
    }

    #[test]
    fn disk_is_rate_times_window_times_bytes() {
        let text = explain(&settle("topics.orders.window_bytes = \"1GiB\"").unwrap());
        // 100 x 86,400 s x 32 B = 276,480,000 B.
        assert_eq!(row(&text, "100 messages/s"), "264 MiB");
        assert_eq!(row(&text, "10000 messages/s"), "26 GiB");
        // 1 GiB / 32 B / 86,400 s = 388.4.
        assert_eq!(
            row(&text, "the limit of 1GiB"),
            "is reached at 388 messages/s; from there on the window is shorter"
        );
        assert_eq!(
            (size(0), size(10_239), size(10_240)),
            ("0 B".into(), "10239 B".into(), "10 KiB".into())
        );
        assert_eq!(size(u128::MAX).split(' ').nth(1), Some("ZiB"));
    }

    #[test]
    fn every_choice_that_weakens_the_promise_is_named_and_nothing_else() {
        let weakened = |lines: &str| {
            let text = explain(&settle(lines).unwrap());
            let (_, rows) = part(&text, "topic \"orders\"")
                .split_once("what weakens the promise\n")
                .unwrap();
            let starts = rows
                .lines()
                .filter_map(|line| line.strip_prefix("    "))
                .filter(|row| !row.starts_with(' '));
            starts
                .map(|row| row.split("  ").next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(weakened(""), ["nothing"]);
        let choices = [
            ("topics.orders.mode = \"observe\"", "mode = observe"),
            ("topics.orders.token = [\"offset\"]", "token = offset"),
            (
                "topics.orders.missing_token = \"use-offset\"",
                "missing_token = use-offset",
            ),
            ("topics.orders.expired = \"run\"", "expired = run"),
            ("topics.orders.after_failure = \"run\"", "after_failure = run"),
            (
                "topics.orders.max_age = { after = \"5m\", then = \"skip\" }",
                "max_age.then = skip",
            ),
            ("cold = \"run\"", "cold = run"),
            ("topics.orders.begun_ahead = 1", "begun_ahead"),
            ("topics.orders.window_bytes = \"1GiB\"", "window_bytes"),
            ("max_clock_jump = \"24h\"", "max_clock_jump"),
        ];
        for (lines, label) in choices {
            assert_eq!(weakened(lines), [label], "{lines}");
        }
    }

    #[test]
    fn the_replicated_mode_names_its_changelogs_and_its_transactions() {
        let text = |lines: &str| explain(&settle(&format!("durability = \"replicated\"\n{lines}")).unwrap());
        assert_eq!(row(&text(""), "changelog"), "g.orders.hapax");
        for (drain, timeout) in [("10s", "after 15s"), ("20s", "after 25s")] {
            let text = text(&format!("drain = \"{drain}\""));
            assert!(row(&text, "a transaction").ends_with(timeout), "{text}");
        }
        let local = explain(&settle("").unwrap());
        assert!(
            !local.contains("g.orders.hapax") && !local.contains("\n    a transaction "),
            "{local}"
        );
    }

    #[test]
    fn a_long_label_does_not_run_into_its_text() {
        let name = "x".repeat(100);
        let lines = format!("topics.{name} = {{ class = \"non-idempotent\", window = \"1h\" }}");
        let text = explain(&settle(&lines).unwrap());
        let warned = text
            .lines()
            .any(|line| line.trim() == format!("topics.{name}.window"));
        assert!(warned, "{text}");
        let mut others = text.lines().filter(|line| !line.contains(&name));
        assert!(
            others.all(|line| line.chars().count() <= Page::WIDTH && line.trim_end() == line),
            "{text}"
        );
    }
}
