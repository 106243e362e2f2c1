//! The keys of `hapax.toml`: which there are, and which of the layer's fields each one fills.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use toml::de::DeTable;

use super::error::{Error, Place, Problem};
use super::layer::{
    AdminLayer, BoundsLayer, BreakerLayer, BudgetLayer, DeadLetterLayer, Layer, LimitsLayer, Listen,
    MaxAgeLayer, MismatchLayer, OutputsLayer, ReceiptsLayer, RepliesLayer, RetryLayer, TopicLayer,
};
use super::read::{Findings, Section};
use super::settings::Properties;
use super::topic::{Concurrency, TokenSource};
use super::tree::{Table, Value, convert_table, lines};
use super::values::{
    Refusal, address, boolean, bytes, duration, list, number, path, share, single, text, word,
};

/// What the file at `path` says.
///
/// # Errors
/// [`Error::Read`], and those of [`parse`].
pub fn file(path: &Path) -> Result<Layer, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, path)
}

/// What a file with that text says; `path` is only named in problems.
///
/// # Errors
/// [`Error::Syntax`] where it is not TOML, [`Error::Refused`] for unknown keys and values that cannot be
/// read, all of them together.
pub fn parse(text: &str, path: &Path) -> Result<Layer, Error> {
    let place_of = lines(text, &path.to_string_lossy());
    match DeTable::parse(text) {
        Ok(document) => layer(convert_table(document.into_inner(), &place_of)).map_err(Error::refused),
        Err(error) => {
            let place = place_of(error.span().map_or(0, |span| span.start));
            Err(Error::Syntax {
                place,
                message: error.message().to_owned(),
            })
        }
    }
}

/// The layer that a tree of values states, wherever it comes from.
pub(super) fn layer(table: Table) -> Result<Layer, Vec<Problem>> {
    let mut findings = Findings::default();
    let mut section = Section::new("", table, &mut findings);
    let mut layer = top(&mut section);
    section.finish();
    if findings.problems.is_empty() {
        layer.places = findings.places;
        return Ok(layer);
    }
    Err(findings.problems)
}

pub(super) fn top(keys: &mut Section<'_>) -> Layer {
    Layer {
        group: keys.take("group", text),
        brokers: keys.take("brokers", text),
        state_dir: keys.take("state_dir", path),
        durability: keys.take("durability", word),
        cold: keys.take("cold", word),
        start: keys.take("start", word),
        deleted: keys.take("deleted", word),
        drain: keys.take("drain", duration),
        commit_every: keys.take("commit_every", duration),
        memory: keys.take("memory", bytes),
        max_clock_jump: keys.take("max_clock_jump", duration),
        standby: keys.take("standby", word),
        limits: keys.section("limits", |keys| LimitsLayer {
            in_flight: keys.take("in_flight", number),
            in_flight_bytes: keys.take("in_flight_bytes", bytes),
            held: keys.take("held", number),
            held_bytes: keys.take("held_bytes", bytes),
            held_age: keys.take("held_age", duration),
            token_bytes: keys.take("token_bytes", bytes),
            outcome_bytes: keys.take("outcome_bytes", bytes),
        }),
        retry: keys.section("retry", retry),
        breaker: keys.section("breaker", breaker),
        dead_letter: keys.section("dead_letter", |keys| DeadLetterLayer {
            topic: keys.take("topic", text),
            create: keys.take("create", boolean),
        }),
        admin: keys.section("admin", |keys| AdminLayer {
            listen: keys.take("listen", listen),
            token_file: keys.take("token_file", path),
            audit_topic: keys.take("audit_topic", text),
        }),
        kafka: Properties(keys.properties("kafka")),
        topics: keys.each("topics", topic),
        places: BTreeMap::new(),
    }
}

/// The keys of one topic.
pub(super) fn topic(keys: &mut Section<'_>) -> TopicLayer {
    TopicLayer {
        class: keys.take("class", word),
        window: keys.take("window", duration),
        window_bytes: keys.take("window_bytes", bytes),
        renewal: keys.take("renewal", word),
        token: keys.take("token", |value, place| list(value, place, token)),
        concurrency: keys.take("concurrency", concurrency),
        begun_ahead: keys.take("begun_ahead", number),
        deadline: keys.take("deadline", duration),
        probe_deadline: keys.take("probe_deadline", duration),
        probe_settle: keys.take("probe_settle", duration),
        rerun_within: keys.take("rerun_within", duration),
        missing_token: keys.take("missing_token", word),
        mismatch: keys.section("mismatch", |keys| MismatchLayer {
            fields: keys.take("fields", |value, place| list(value, place, text)),
            then: keys.take("then", word),
        }),
        after_failure: keys.take("after_failure", word),
        expired: keys.take("expired", word),
        max_age: keys.section("max_age", |keys| MaxAgeLayer {
            after: keys.take("after", duration),
            header: keys.take("header", text),
            then: keys.take("then", word),
        }),
        mode: keys.take("mode", word),
        store_outcome: keys.take("store_outcome", boolean),
        offload: keys.take("offload", boolean),
        retry: keys.section("retry", retry),
        after_hold: keys.take("after_hold", word),
        after_doubt: keys.take("after_doubt", word),
        outputs: keys.section("outputs", |keys| OutputsLayer {
            topics: keys.take("topics", |value, place| list(value, place, text)),
            max: keys.take("max", number),
            bytes: keys.take("bytes", bytes),
        }),
        reply: keys.section("reply", |keys| RepliesLayer {
            header: keys.take("header", text),
            topic: keys.take("topic", text),
            allowed: keys.take("allowed", |value, place| list(value, place, text)),
        }),
        receipts: keys.section("receipts", |keys| ReceiptsLayer {
            topic: keys.take("topic", text),
        }),
        breaker: keys.section("breaker", breaker),
    }
}

fn retry(keys: &mut Section<'_>) -> RetryLayer {
    RetryLayer {
        in_place: keys.section("in_place", bounds),
        overall: keys.section("overall", bounds),
        budget: keys.section("budget", |keys| BudgetLayer {
            share: keys.take("share", share),
            per_second: keys.take("per_second", number),
        }),
    }
}

fn bounds(keys: &mut Section<'_>) -> BoundsLayer {
    BoundsLayer {
        attempts: keys.take("attempts", number),
        total: keys.take("total", duration),
        first: keys.take("first", duration),
        max: keys.take("max", duration),
    }
}

fn breaker(keys: &mut Section<'_>) -> BreakerLayer {
    BreakerLayer {
        failure_share: keys.take("failure_share", share),
        over: keys.take("over", number),
        open_for: keys.take("open_for", duration),
    }
}

fn listen(value: Value, _: &Place) -> Result<Listen, Refusal> {
    if value.as_text() == Some("off") {
        return Ok(Listen::Off);
    }
    address(&value).map(Listen::At)
}

/// Tokens: `{ header = ".." }`, `{ json = "/.." }`, `"key"`, `"offset"`.
fn token(value: Value, place: &Place) -> Result<TokenSource, Refusal> {
    const FIX: &str = "write { header = \"name\" }, { json = \"/pointer\" }, \"key\" or \"offset\"";
    match value.as_text() {
        Some("key") => return Ok(TokenSource::Key),
        Some("offset") => return Ok(TokenSource::Offset),
        _ => {}
    }
    let unknown = Refusal::new(&value, "it is not a source of tokens", FIX);
    match single(value, place) {
        Some((source, Value::Text(name))) if source == "header" => Ok(TokenSource::Header(name)),
        Some((source, Value::Text(pointer))) if source == "json" => Ok(TokenSource::Json(pointer)),
        Some((source, name)) if source == "code" => Err(Refusal::new(
            &name,
            "a closure is stated in code, where it is",
            FIX,
        )),
        Some((source, _)) => Err(Refusal::new(
            &Value::Text(source),
            "it is not a source of tokens",
            FIX,
        )),
        None => Err(unknown),
    }
}

/// Slots: `"ordered"`, `{ by_key = 16 }`, `{ unordered = 64 }`.
fn concurrency(value: Value, place: &Place) -> Result<Concurrency, Refusal> {
    const FIX: &str = "write \"ordered\", { by_key = 16 } or { unordered = 64 }";
    if value.as_text() == Some("ordered") {
        return Ok(Concurrency::Ordered);
    }
    let unknown = Refusal::new(&value, "it is not a kind of concurrency", FIX);
    let Some((kind, slots)) = single(value, place) else {
        return Err(unknown);
    };
    let zero = Refusal::new(&slots, "with no slot nothing could ever run", FIX);
    let kind = match kind.as_str() {
        "by_key" => Concurrency::ByKey,
        "unordered" => Concurrency::Unordered,
        _ => {
            return Err(Refusal::new(
                &Value::Text(kind),
                "it is not a kind of concurrency",
                FIX,
            ));
        }
    };
    NonZeroU32::new(number(slots, place)?).map(kind).ok_or(zero)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::class::Class;

    fn read(text: &str) -> Result<Layer, String> {
        parse(text, Path::new("hapax.toml")).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(text: &str, message: &str) {
        assert_eq!(read(text).err().as_deref(), Some(message), "{text}");
    }

    #[test]
    fn the_file_of_the_documentation_is_read() {
        let text = r#"
            durability = "local"
            [limits]
            in_flight_bytes = "64MiB"
            token_bytes = 512
            [retry]
            in_place = { attempts = 3, first = "1s" }
            [admin]
            listen = "off"
            [kafka]
            "security.protocol" = "SASL_SSL"
            sasl.mechanism = "PLAIN"
            "session.timeout.ms" = 45000
            [topics.payments]
            class = "non-idempotent"
            token = [{ header = "idempotency-key" }, { json = "/payment_id" }, "key"]
            concurrency = { unordered = 64 }
            mismatch = { fields = ["/amount"], then = "suppress" }
            [topics."a.b"]
            concurrency = "ordered"
        "#;
        let layer = read(text).unwrap();
        assert_eq!(layer.limits.in_flight_bytes.unwrap().0, 64 << 20);
        assert_eq!(layer.limits.token_bytes.unwrap().0, 512);
        assert_eq!(
            (layer.retry.in_place.attempts, layer.retry.in_place.total),
            (Some(3), None)
        );
        assert_eq!(layer.admin.listen, Some(Listen::Off));
        let properties: Vec<_> = layer
            .kafka
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let stated = [
            ("sasl.mechanism", "PLAIN"),
            ("security.protocol", "SASL_SSL"),
            ("session.timeout.ms", "45000"),
        ];
        assert_eq!(properties, stated);
        let payments = &layer.topics["payments"];
        assert_eq!(payments.class, Some(Class::NonIdempotent));
        let [header, json] = [
            TokenSource::Header("idempotency-key".into()),
            TokenSource::Json("/payment_id".into()),
        ];
        assert_eq!(payments.token, Some(vec![header, json, TokenSource::Key]));
        assert_eq!(payments.concurrency, Some(Concurrency::unordered(64)));
        assert_eq!(payments.mismatch.fields, Some(vec!["/amount".to_owned()]));
        assert_eq!(layer.topics["a.b"].concurrency, Some(Concurrency::Ordered));
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_key_that_was_meant() {
        refused(
            "group = \"g\"\n\n[limits]\nin_flght = 5\n",
            "configuration refused: hapax.toml:4: limits.in_flght: unknown key; did you mean `in_flight`?",
        );
        refused(
            "dead_letter.zzz = 1",
            "configuration refused: hapax.toml:1: dead_letter.zzz: unknown key; known here: topic, create",
        );
        refused(
            "[topics.my.orders]\nwindow = \"1h\"",
            "configuration refused: hapax.toml:1: topics.my.orders: unknown key; a topic with a dot in its name is \
             quoted: [topics.\"my.orders\"]",
        );
    }

    #[test]
    fn every_problem_is_told_at_once_line_by_line() {
        refused(
            "grup = 1\ndrain = 10\n[topics.t]\nwindow = \"soon\"\nclass = \"nonidempotent\"\nbegun_ahead = -1\n",
            "configuration refused, 5 problems:\n  \
             hapax.toml:1: grup: unknown key; did you mean `group`?\n  \
             hapax.toml:2: drain = 10: a duration is a text with a unit; write for example \"7d\", \"10s\" or \"100ms\"\n  \
             hapax.toml:4: topics.t.window = \"soon\": it is not a duration (expected number at 0); \
             write for example \"7d\", \"10s\" or \"100ms\"\n  \
             hapax.toml:5: topics.t.class = \"nonidempotent\": unknown value; did you mean \"non-idempotent\"?\n  \
             hapax.toml:6: topics.t.begun_ahead = -1: it is not a whole number in range; write one such as 16, unquoted",
        );
    }

    #[test]
    fn each_value_of_a_wrong_kind_says_what_to_write() {
        let values = [
            ("group = 1", "write it in quotes"),
            ("cold = \"maybe\"", "write \"refuse\" or \"rebuild\" or \"run\""),
            ("durability = \"disk\"", "write \"local\" or \"replicated\""),
            ("standby = \"copies\"", "write \"none\" or \"all\""),
            ("memory = \"64 mebis\"", "\"64MiB\""),
            ("memory = -1", "\"64MiB\""),
            ("memory = 1.5", "\"64MiB\""),
            ("limits = 5", "write [limits]"),
            ("breaker.failure_share = 50", "from 0 to 1"),
            ("breaker.failure_share = \"half\"", "from 0 to 1"),
            ("breaker.over = 0.5", "write one such as 16"),
            ("topics.t.retry.budget.share = -0.1", "from 0 to 1"),
            ("limits.in_flight = \"many\"", "write one such as 16"),
            ("limits.in_flight = 99999999999999999999", "write one such as 16"),
            ("retry.in_place.attempts = 4294967296", "write one such as 16"),
            ("admin.listen = \"localhost\"", "\"127.0.0.1:9464\""),
            ("kafka.\"a.b\" = [1]", "write it in quotes"),
            ("topics = 5", "write [topics]"),
            ("topics.t = 5", "write { key = value }"),
            ("topics.t.offload = \"yes\"", "write true or false"),
            (
                "topics.t.renewal = \"always\"",
                "write \"never\" or \"on-duplicate\"",
            ),
            ("topics.t.max_age = \"5m\"", "write [topics.t.max_age]"),
            (
                "topics.t.max_age.then = \"drop\"",
                "write \"dead-letter\" or \"skip\"",
            ),
            ("topics.t.token = \"key\"", "write [ .. ]"),
            (
                "topics.t.token = [{ header = \"a\", json = \"/b\" }]",
                "write { header = \"name\" }",
            ),
            (
                "topics.t.token = [{ heder = \"a\" }]",
                "write { header = \"name\" }",
            ),
            (
                "topics.t.token = [{ code = \"a\" }]",
                "write { header = \"name\" }",
            ),
            ("topics.t.token = [5]", "write { header = \"name\" }"),
            ("topics.t.concurrency = 16", "write \"ordered\", { by_key = 16 }"),
            (
                "topics.t.concurrency = { by_key = 0 }",
                "write \"ordered\", { by_key = 16 }",
            ),
            (
                "topics.t.concurrency = { by_kee = 1 }",
                "write \"ordered\", { by_key = 16 }",
            ),
            ("topics.t.mismatch.fields = [5]", "write it in quotes"),
        ];
        for (text, fix) in values {
            let error = parse(text, Path::new("f")).unwrap_err();
            let [problem] = error.problems() else {
                panic!("{text}: {error}")
            };
            assert!(problem.fix.contains(fix), "{text}: {problem}");
        }
    }

    #[test]
    fn no_message_repeats_a_password() {
        let files = [
            "[kafka]\n\"sasl.password\" = \"hunter2\n",
            "sasl.password = \"hunter2\"",
            "\"sasl.password\" = \"hunter2\"",
            "kafka = \"hunter2\"",
            "[kafka]\n\"sasl.password\" = hunter2",
            "[kafka]\n\"sasl.password\" = [\"hunter2\"]",
            "[kafka]\nsasl.password = \"hunter2\"\nsasl.password = \"hunter2\"",
        ];
        for text in files {
            let error = parse(text, Path::new("f")).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let layer = read("kafka.\"sasl.password\" = \"hunter2\"").unwrap();
        assert!(!format!("{layer:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_that_is_not_toml_names_its_line() {
        let error = parse("group = \"g\"\ndrain = \"10s\n", Path::new("hapax.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("hapax.toml:2: not TOML: "),
            "{error}"
        );
        let error = parse("group = \"g\"\ngroup = \"h\"", Path::new("hapax.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("hapax.toml:2: not TOML: "),
            "{error}"
        );
        let error = file(Path::new("no/such.toml")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration no/such.toml");
    }

    /// Documents made of the words that the parser knows, so that more than the first character is reached.
    fn documents() -> impl Strategy<Value = String> {
        const WORDS: &[&str] = &[
            "group",
            "limits",
            "topics",
            "orders",
            "kafka",
            "retry",
            "in_place",
            "token",
            "header",
            "concurrency",
            "by_key",
            "mismatch",
            "admin",
            "listen",
            "window",
            "=",
            "=",
            ".",
            "[",
            "]",
            "{",
            "}",
            "\"",
            "\n",
            "\n",
            "\"24h\"",
            "0",
            "-1",
            "99999999999999999999",
            "1e9",
            "true",
            "2026-01-01",
            "[[",
            "'",
            "#",
            "\\u0000",
            "é",
        ];
        prop::collection::vec(prop::sample::select(WORDS), 0..40).prop_map(|words| words.join(" "))
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&String::from_utf8_lossy(&bytes), Path::new("f"));
        }

        #[test]
        fn documents_of_known_words_never_panic(text in documents()) {
            if let Err(error) = parse(&text, Path::new("f")) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_deep_document_is_refused_and_does_not_end_the_stack() {
        let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(parse(&deep, Path::new("f")), Err(Error::Syntax { .. })));
        let dotted = format!("kafka.{} = 1", vec!["a"; 10_000].join("."));
        let _ = parse(&dotted, Path::new("f"));
    }
}
