//! The admin port of a consumer on a real Kafka: what `/metrics` shows after a run that met a bit of everything, and
//! what `/readyz` says on the way.
//!
//! The page is read by a parser of its own, which knows the text format and nothing of hapax; every metric that
//! `hapax::metrics::DEFINITIONS` promises must then be there, with those labels and no others.
//!
//! Seen to fail: with the partition taken from one gauge's labels: "hapax_lag_messages, left: {\"topic\"}".

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hapax::config::Listen;
use hapax::metrics::{DEFINITIONS, Kind};
use hapax::{Consumer, Context, Idempotent, NonIdempotent, Probe, Topic, Window};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::kafka::{self, eventually};

const WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    ask(address, &format!("GET {path}"), None, WITHIN)
}

/// Orders something, as whoever has that token. `None` where no whole answer came: then it is not known what became of it.
pub(crate) fn post(address: SocketAddr, path: &str, token: &str, body: &str) -> Option<(u16, String)> {
    ask(address, &format!("POST {path}"), Some((token, body)), WITHIN)
}

/// Status and body of the answer to that method and path; with a token and a body, where something is changed. `None` where nobody
/// answers in that time.
pub(crate) fn ask(
    address: SocketAddr,
    what: &str,
    change: Option<(&str, &str)>,
    within: Duration,
) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, within).ok()?;
    stream.set_read_timeout(Some(within)).ok()?;
    let (token, body) = change.unwrap_or_default();
    let mut head = format!("{what} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n");
    if change.is_some() {
        head += &format!(
            "authorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    // Long answers come in chunks; the lengths between them are hexadecimal lines of their own.
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Some((head.split(' ').nth(1)?.parse().ok()?, body))
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}

// ---- The text format of Prometheus, version 0.0.4.

#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    /// Name, labels, value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn labels(mut text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match characters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    _ => return Err(format!("an unknown escape in {rest}")),
                },
                Some((_, '\n')) | None => return Err(format!("a value without an end: {rest}")),
                Some((_, other)) => value.push(other),
            }
        };
        if !is_name(name) || found.insert(name.to_owned(), value).is_some() {
            return Err(format!("label {name:?}"));
        }
        text = &rest[end + 1..];
        if !text.is_empty() {
            text = text.strip_prefix(',').ok_or("no comma between labels")?;
        }
    }
    Ok(found)
}

/// Every family of the page, or what is wrong with it.
fn parse(page: &str) -> Result<BTreeMap<String, Family>, String> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut series = BTreeSet::new();
    if !page.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').ok_or(line)?;
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').ok_or(line)?;
            let family = families.entry(name.to_owned()).or_default();
            if !family.kind.is_empty() || !family.samples.is_empty() {
                return Err(format!("a second or late type: {line}"));
            }
            family.kind = kind.to_owned();
        } else if line.starts_with('#') {
            return Err(format!("a comment that is neither help nor type: {line}"));
        } else {
            let (id, value) = line.rsplit_once(' ').ok_or(line)?;
            if !series.insert(id.to_owned()) {
                return Err(format!("twice: {id}"));
            }
            let value = value.parse::<f64>().map_err(|error| format!("{line}: {error}"))?;
            let (name, of) = match id.split_once('{') {
                Some((name, rest)) => (name, labels(rest.strip_suffix('}').ok_or(line)?)?),
                None => (id, BTreeMap::new()),
            };
            let parts = ["_bucket", "_sum", "_count"];
            let family = parts
                .iter()
                .filter_map(|part| name.strip_suffix(part))
                .find(|family| families.get(*family).is_some_and(|f| f.kind == "histogram"))
                .unwrap_or(name);
            if !is_name(name) {
                return Err(format!("not a name: {name}"));
            }
            let family = families
                .get_mut(family)
                .filter(|family| !family.kind.is_empty())
                .ok_or(format!("no type before {line}"))?;
            family.samples.push((name.to_owned(), of, value));
        }
    }
    families
        .iter()
        .filter(|(_, family)| family.kind == "histogram")
        .try_for_each(|(name, family)| histogram(name, family))?;
    Ok(families)
}

/// Buckets must rise, and the last must be the count.
fn histogram(name: &str, family: &Family) -> Result<(), String> {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for (sample, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        let of = format!("{labels:?}");
        match (sample.strip_prefix(name), bound) {
            (Some("_bucket"), Some(bound)) => {
                let bound = bound.parse().map_err(|_| format!("{name}: le={bound}"))?;
                buckets.entry(of).or_default().push((bound, *value));
            }
            (Some("_count"), None) => drop(counts.insert(of, *value)),
            (Some("_sum"), None) => {}
            other => return Err(format!("{name}: {other:?}")),
        }
    }
    for (of, buckets) in buckets {
        let rises = buckets
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let last = buckets.last().copied();
        let total = counts.get(&of).map(|count| (f64::INFINITY, *count));
        if !rises || last != total {
            return Err(format!("{name}{of}: {buckets:?}, count {total:?}"));
        }
    }
    Ok(())
}

#[test]
fn the_parser_finds_what_is_wrong() {
    let good = "# TYPE a histogram\na_bucket{le=\"1\"} 1\na_bucket{le=\"+Inf\"} 2\na_sum 3\na_count 2\n";
    parse(good).unwrap();
    for (bad, why) in [
        (good.trim_end().to_owned(), "no end"),
        (good.replace("} 1", "} 3"), "buckets fall"),
        (
            good.replace("a_count 2", "a_count 3"),
            "the last is not the count",
        ),
        (good.replace("le=\"+Inf\"", "le=\"2\""), "no +Inf"),
        (format!("{good}a_sum 3\n"), "twice"),
        (format!("{good}b 3\n"), "no type"),
        (
            format!("{good}# TYPE b gauge\nb{{x=\"1}} 3\n"),
            "no end of a value",
        ),
        (format!("{good}# TYPE b gauge\nb{{x-y=\"1\"}} 3\n"), "no name"),
        (format!("{good}# TYPE b gauge\nb three\n"), "no number"),
    ] {
        assert!(parse(&bad).is_err(), "{why} was not found");
    }
}

// ---- The run.

/// A row: token, key, payload.
async fn produce(broker: &kafka::Broker, topic: &str, rows: &[(&str, Option<&str>, &str)]) {
    let producer: FutureProducer = broker.client().create().unwrap();
    for (token, key, payload) in rows {
        let headers = OwnedHeaders::new().insert(Header {
            key: "idempotency-key",
            value: Some(*token),
        });
        let mut record = FutureRecord::to(topic).payload(*payload).headers(headers);
        record.key = *key;
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

/// Metrics of what a warm consumer in local mode does not do: restoring from a changelog, rebuilding from a topic, standing
/// by, obeying an operator (`operator.rs`).
fn is_elsewhere(name: &str) -> bool {
    name.starts_with("hapax_restor")
        || name.starts_with("hapax_standby")
        || name.starts_with("hapax_rebuil")
        || name.starts_with("hapax_changelog")
        || name.starts_with("hapax_operator")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scrape_shows_every_metric_that_the_definitions_promise() {
    let Some(broker) = kafka::broker() else { return };
    let (clicks, orders) = (kafka::unique("clicks"), kafka::unique("orders"));
    for topic in [&clicks, &orders] {
        broker.create_topic(topic, 1, &[]);
    }
    // Two clicks, and an order that fails with nobody knowing what it did.
    produce(broker, &clicks, &[("a", Some("k"), "1"), ("b", Some("k"), "1")]).await;
    produce(broker, &orders, &[("c", Some("k"), "1")]).await;
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let consumer = Consumer::local(&clicks, dir.path())
        .brokers(broker.bootstrap())
        .with(|layer| {
            layer.admin.listen = Some(Listen::At(address));
            layer.dead_letter.create = Some(true);
        })
        .handle(
            Topic::bytes(&clicks, Idempotent).window(Window::hours(1)),
            |_, _: Context| async {
                // Not ready at its first poll: only attempts that have to wait are timed.
                tokio::task::yield_now().await;
                Ok(())
            },
        )
        .handle(
            Topic::bytes(&orders, NonIdempotent)
                .window(Window::hours(1))
                .deadline(Duration::from_millis(100))
                .probe_settle(Duration::from_millis(10))
                .probe(|_, _| async { Ok(Probe::Unknown) }),
            |_, _: Context| async { Err("the line went dead".into()) },
        );
    assert!(
        get(address, "/readyz").is_none(),
        "nobody listens before the start"
    );

    let (done, ended) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(consumer.run_until(async {
        let _ = ended.await;
    }));
    let topics = [clicks.clone(), orders.clone()];
    blocking({
        let topics = topics.clone();
        move || {
            eventually("readiness", WITHIN, || match get(address, "/readyz")? {
                (200, text) => (text == "ready\n").then_some(()),
                (status, why) => {
                    let reasons = ["no assignment yet", "until the broker says where to start"];
                    let said = reasons.iter().any(|reason| why.contains(reason));
                    assert_eq!((status, said), (503, true), "{why}");
                    None
                }
            });
            assert_eq!(get(address, "/healthz").unwrap().0, 200);
            eventually("two clicks", WITHIN, || {
                let done = [("outcome", "done")];
                (sample(&page(address)?, "hapax_outcomes_total", &topics[0], &done) == Some(2.0))
                    .then_some(())
            });
        }
    })
    .await;
    // Their duplicates: one as it was; one with another payload, and a null key.
    produce(broker, &clicks, &[("a", Some("k"), "1"), ("b", None, "2")]).await;
    let families = blocking({
        let topics = topics.clone();
        move || {
            let mut last = String::new();
            eventually("the page of a run", WITHIN, || {
                let families = page(address)?;
                let missing: Vec<_> = DEFINITIONS
                    .iter()
                    .map(|definition| definition.name)
                    .filter(|name| !is_elsewhere(name) && !of_topics(&families, name, &topics))
                    .collect();
                // Gauges are set at intervals, and lag comes with the client's statistics.
                let held = sample(&families, "hapax_held_messages", &topics[1], &[]);
                let taken = sample(&families, "hapax_account_taken", &topics[0], &[]);
                let text = format!("missing: {missing:?}, held: {held:?}, taken: {taken:?}");
                if text != last {
                    eprintln!("{text}");
                    last = text;
                }
                let whole = missing.is_empty() && held == Some(1.0) && taken == Some(4.0);
                whole.then_some(families)
            })
        }
    })
    .await;
    for definition in DEFINITIONS
        .iter()
        .filter(|definition| !is_elsewhere(definition.name))
    {
        let family = &families[definition.name];
        let kind = match definition.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!(
            (family.kind.as_str(), family.help.as_str()),
            (kind, definition.help),
            "{}",
            definition.name
        );
        let stated: BTreeSet<&str> = definition.labels.iter().copied().collect();
        for (name, labels, _) in &family.samples {
            let found: BTreeSet<&str> = labels.keys().map(String::as_str).collect();
            let expected: BTreeSet<&str> = match name.ends_with("_bucket") {
                true => stated.iter().copied().chain(["le"]).collect(),
                false => stated.clone(),
            };
            assert_eq!(found, expected, "{name}");
        }
    }
    let clicks = |name: &str, labels: &[(&str, &str)]| sample(&families, name, &topics[0], labels);
    let orders = |name: &str, labels: &[(&str, &str)]| sample(&families, name, &topics[1], labels);
    assert_eq!(clicks("hapax_window_hits_total", &[]), Some(2.0));
    assert_eq!(clicks("hapax_mismatches_total", &[]), Some(1.0));
    assert_eq!(clicks("hapax_null_key_tokens_total", &[]), Some(1.0));
    assert_eq!(clicks("hapax_outcomes_total", &[("outcome", "done")]), Some(2.0));
    assert_eq!(clicks("hapax_handler_seconds_count", &[]), Some(2.0));
    assert!(clicks("hapax_record_seconds_count", &[]).is_some_and(|groups| groups >= 1.0));
    assert_eq!(clicks("hapax_account_remainder", &[]), Some(0.0));
    assert_eq!(orders("hapax_in_doubt_total", &[("cause", "error")]), Some(1.0));
    assert_eq!(orders("hapax_probes_total", &[("answer", "unknown")]), Some(1.0));
    assert_eq!(
        orders("hapax_account_messages", &[("account", "held")]),
        Some(1.0)
    );
    done.send(()).unwrap();
    running.await.unwrap().unwrap();
    blocking(move || {
        eventually("a port that went with its consumer", WITHIN, || {
            get(address, "/readyz").is_none().then_some(())
        });
    })
    .await;
}

/// What is asked without a runtime, off the runtime's workers.
async fn blocking<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(ask).await {
        Ok(answer) => answer,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The page, if somebody answers; what answers must be well formed.
fn page(address: SocketAddr) -> Option<BTreeMap<String, Family>> {
    let (status, page) = get(address, "/metrics")?;
    assert_eq!(status, 200);
    Some(parse(&page).unwrap_or_else(|why| {
        panic!(
            "{why}
{page}"
        )
    }))
}

/// Whether one of the topics has a sample of that metric.
fn of_topics(families: &BTreeMap<String, Family>, name: &str, topics: &[String]) -> bool {
    families.get(name).is_some_and(|family| {
        family
            .samples
            .iter()
            .any(|(_, labels, _)| labels.get("topic").is_some_and(|topic| topics.contains(topic)))
    })
}

fn sample(
    families: &BTreeMap<String, Family>,
    name: &str,
    topic: &str,
    labels: &[(&str, &str)],
) -> Option<f64> {
    families
        .values()
        .flat_map(|family| &family.samples)
        .find(|(sample, of, _)| {
            sample == name
                && of.get("topic").is_some_and(|of| of == topic)
                && labels
                    .iter()
                    .all(|(label, value)| of.get(*label).is_some_and(|of| of == value))
        })
        .map(|(_, _, value)| *value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_refuses_the_start_before_anything_is_opened() {
    let holder = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = holder.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let refused = Consumer::local("billing", &state)
        .brokers("127.0.0.1:1")
        .with(|layer| layer.admin.listen = Some(Listen::At(address)))
        .handle(
            Topic::bytes("orders", Idempotent).window(Window::hours(1)),
            |_, _: Context| async { Ok(()) },
        )
        .run_until(std::future::ready(()))
        .await
        .unwrap_err();
    let text = hapax::error::chain(&refused);
    assert!(
        text.contains(&address.to_string()) && text.contains("admin.listen"),
        "{text}"
    );
    assert!(!state.exists(), "no store was made");
}
