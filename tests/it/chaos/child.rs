//! The consumer process: this same test binary, started again for one ignored test that does nothing elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hapax::config::{Listen, Share, Standby};
use hapax::{Bytes, Class, Consumer, Context, HandlerError, Probe, Topic, Window};
use serde::{Deserialize, Serialize};

use super::operator;
use super::plan::SESSION_MS;
use super::terms::{ATTEMPTS_MAX, TOPICS, Terms, WINDOW};
use super::world::{self, Act, Kind, Line};
use crate::checker;
use crate::process;

/// Names the file with the [`Spec`]; absent wherever this is not a consumer process.
pub(crate) const VARIABLE: &str = "HAPAX_TEST_CHAOS_CHILD";
/// The name of the test that is the consumer process.
pub(crate) const TEST: &str = "chaos::child::consumer_process";

/// What a consumer process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) brokers: String,
    /// Names the group and the topics.
    pub(crate) run: String,
    pub(crate) life: u32,
    pub(crate) state_dir: PathBuf,
    /// Whether it keeps copies of what the others own.
    pub(crate) stands_by: bool,
    /// The folder of the world's files.
    pub(crate) world: PathBuf,
    /// Made when the process listens for SIGTERM.
    pub(crate) ready: PathBuf,
    /// Where operators speak to it.
    pub(crate) port: u16,
    /// The file with the token of that port.
    pub(crate) token_file: PathBuf,
    /// Where the accounts are written at an orderly end.
    pub(crate) books: PathBuf,
}

/// What the handlers of one topic go by.
#[derive(Clone)]
struct Of {
    life: u32,
    world: PathBuf,
    terms: Terms,
}

type Cx = Context<Of>;

fn path(cx: &Cx) -> PathBuf {
    world::file(&cx.state().world, cx.topic(), cx.partition())
}

fn line(cx: &Cx, kind: Kind) -> Line {
    let token = cx.header("idempotency-key").unwrap_or(b"-");
    Line {
        life: cx.state().life,
        fence: cx.fence(),
        offset: cx.offset().0,
        token: String::from_utf8_lossy(token).into_owned(),
        attempt: cx.attempt().into(),
        kind,
        child: cx.child_token("effect"),
    }
}

fn note(cx: &Cx, kind: Kind) {
    world::append(&path(cx), &line(cx, kind));
}

/// Calls the resource. Whether it has taken the call.
fn post(cx: &Cx) -> bool {
    let own = line(cx, Kind::Post);
    world::append(&path(cx), &own);
    if !cx.state().terms.fenced {
        return true;
    }
    let lines = world::read(&path(cx));
    let taken = world::taken(&lines, true);
    let at = lines.iter().rposition(|line| *line == own).unwrap();
    taken[at]
}

#[expect(
    clippy::disallowed_methods,
    reason = "a handler that takes real time, in a process that is killed in real time"
)]
async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Whether what it calls is away: for four of five calls, while it flaps.
fn is_away(cx: &Cx) -> bool {
    let pick = u32::from(cx.token().0[1]) + 7 * cx.attempt();
    world::flapping(&cx.state().world).exists() && !pick.is_multiple_of(5)
}

async fn handle(payload: Bytes, cx: Cx) -> Result<(), HandlerError> {
    let act = Act::of(&payload);
    note(&cx, Kind::Begin);
    if is_away(&cx) {
        note(&cx, Kind::Refused);
        return Err(HandlerError::not_applied("what it calls is away"));
    }
    if let Act::Wait(ms) = act {
        wait(Duration::from_millis(ms)).await;
    }
    hapax::crash::point("inside-handler");
    let is_first = cx.attempt() == 1;
    match act {
        Act::Reject => {
            note(&cx, Kind::Rejected);
            return Err(HandlerError::reject("it can never succeed"));
        }
        Act::Refuse if is_first => {
            note(&cx, Kind::Refused);
            return Err(HandlerError::not_applied("not yet"));
        }
        Act::BreakBefore if is_first => {
            note(&cx, Kind::Broken);
            return Err(HandlerError::unknown("who knows"));
        }
        _ => {}
    }
    if !post(&cx) {
        note(&cx, Kind::Stale);
        return Err(HandlerError::not_applied("somebody with a later fence was there"));
    }
    if act == Act::BreakAfter && is_first {
        note(&cx, Kind::Broken);
        return Err(HandlerError::unknown("who knows"));
    }
    note(&cx, Kind::Ok);
    Ok(())
}

/// Asks the resource, and for one in eight tokens says that it cannot tell.
async fn probe(_: Bytes, cx: Cx) -> Result<Probe, HandlerError> {
    let own = line(&cx, Kind::Ask);
    // From here on a resource that checks fences takes nothing from whoever was there before.
    world::append(&path(&cx), &own);
    if cx.token().0[0].is_multiple_of(8) {
        note(&cx, Kind::ProbeUnknown);
        return Ok(Probe::Unknown);
    }
    let lines = world::read(&path(&cx));
    let taken = world::taken(&lines, cx.state().terms.fenced);
    let has_happened = lines
        .iter()
        .zip(&taken)
        .any(|(line, taken)| *taken && line.child == own.child);
    if has_happened {
        note(&cx, Kind::ProbeDone);
        return Ok(Probe::done(""));
    }
    note(&cx, Kind::ProbeNotDone);
    Ok(Probe::NotDone)
}

fn class(class: checker::Class) -> Class {
    match class {
        checker::Class::Idempotent => Class::Idempotent,
        checker::Class::PotentiallyIdempotent => Class::PotentiallyIdempotent,
        checker::Class::NonIdempotent => Class::NonIdempotent,
    }
}

fn topic(spec: &Spec, terms: Terms) -> Topic<hapax::handler::Undecoded, Of> {
    let of = Of {
        life: spec.life,
        world: spec.world.clone(),
        terms,
    };
    let mut topic = Topic::bytes(terms.topic(&spec.run), class(terms.class))
        .state(of)
        .window(Window::seconds(WINDOW.as_secs()))
        // The last ones from the disk.
        .retry(ATTEMPTS_MAX - 2, Duration::from_secs(20))
        .retry_overall(ATTEMPTS_MAX, Duration::from_secs(600))
        .backoff(Duration::from_millis(5), Duration::from_millis(40))
        .backoff_overall(Duration::from_millis(200), Duration::from_secs(1))
        // Small enough to open within a flap, and to close soon after it.
        .breaker(Share::percent(50), 40, Duration::from_millis(800))
        .deadline(Duration::from_secs(3));
    if terms.probe {
        topic = topic
            .probe(probe)
            .probe_deadline(Duration::from_millis(1_500))
            .probe_settle(Duration::from_millis(100));
    }
    if terms.by_key {
        topic.by_key(terms.slots)
    } else {
        topic.unordered(terms.slots)
    }
}

fn consumer(spec: &Spec) -> Consumer {
    let mut consumer = Consumer::replicated(&spec.run, &spec.state_dir)
        .brokers(&spec.brokers)
        .with(|layer| {
            layer.kafka = [
                ("session.timeout.ms", SESSION_MS.to_string().as_str()),
                ("heartbeat.interval.ms", "500"),
                ("fetch.wait.max.ms", "20"),
                ("reconnect.backoff.max.ms", "200"),
            ]
            .into_iter()
            .collect();
            layer.commit_every = Some(Duration::from_millis(100));
            layer.drain = Some(Duration::from_secs(4));
            layer.admin.listen = Some(Listen::At(SocketAddr::from(([127, 0, 0, 1], spec.port))));
            layer.admin.token_file = Some(spec.token_file.clone());
            layer.admin.audit_topic = Some(operator::audit_topic(&spec.run));
            layer.standby = spec.stands_by.then_some(Standby::All);
        });
    for terms in TOPICS {
        consumer = consumer.handle(topic(spec, terms), handle);
    }
    consumer
}

#[test]
#[ignore = "a consumer process, started by the chaos campaign"]
fn consumer_process() {
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    let spec: Spec = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    process::is_a_child();
    process::live(consumer(&spec), &spec.ready, &spec.books);
}
