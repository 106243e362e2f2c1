//! The consumer process: this same test binary, started again for one ignored test that does nothing elsewhere.
//!
//! Its handler writes a line to the file of effects for everything it does, synced before it goes on: what a kill leaves
//! there is what the world saw.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hapax::config::{Layer, Listen, Share};
use hapax::{Bytes, Class, Consumer, Context, HandlerError, Probe, Topic, Window};
use serde::{Deserialize, Serialize};

use super::plan::Act;
use super::{ATTEMPTS_MAX, IN_PLACE};
use crate::process;

/// Names the file with the [`Spec`]; absent wherever this is not a consumer process.
pub(crate) const VARIABLE: &str = "HAPAX_CRASH_CHILD";
/// The name of the test that is the consumer process.
pub(crate) const TEST: &str = "crash::child::consumer_process";

/// What a consumer process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    /// By its name in the configuration.
    pub(crate) class: String,
    pub(crate) probe: bool,
    pub(crate) slots: u32,
    pub(crate) by_key: bool,
    pub(crate) ahead: usize,
    /// Whether what handlers call is away now and then.
    pub(crate) flaps: bool,
    pub(crate) cold_runs: bool,
    pub(crate) session_ms: u64,
    pub(crate) life: u32,
    /// Where its admin port listens, and the file with the token.
    pub(crate) admin: SocketAddr,
    pub(crate) token: PathBuf,
    /// A rule of the runtime that is switched off.
    pub(crate) broken: Option<String>,
    pub(crate) state_dir: PathBuf,
    pub(crate) effects: PathBuf,
    /// Made when the process listens for SIGTERM.
    pub(crate) ready: PathBuf,
    /// Where the accounts are written at an orderly end.
    pub(crate) books: PathBuf,
}

impl Spec {
    pub(crate) fn class(&self) -> Class {
        match self.class.as_str() {
            "idempotent" => Class::Idempotent,
            "potentially-idempotent" => Class::PotentiallyIdempotent,
            "non-idempotent" => Class::NonIdempotent,
            other => panic!("no class {other}"),
        }
    }
}

/// How much handlers write while what they call is there, or away: of three such stretches it is away in the second.
const STRETCH_BYTES: u64 = 6 << 10;

/// What the handlers of one process write to, and how.
struct World {
    life: u32,
    flaps: bool,
    path: PathBuf,
    file: Mutex<File>,
}

type Cx = Context<Arc<World>>;

impl World {
    fn open(spec: &Spec) -> Self {
        let path = &spec.effects;
        let file = File::options().append(true).create(true).open(path).unwrap();
        Self {
            life: spec.life,
            flaps: spec.flaps,
            path: path.to_owned(),
            file: Mutex::new(file),
        }
    }

    /// One line, durable when this returns.
    fn write(&self, cx: &Cx, kind: &str) {
        let token = cx.header("idempotency-key").unwrap_or(b"-");
        let line = format!(
            "{} {} {} {} {} {} {kind} {}\n",
            self.life,
            cx.topic(),
            cx.partition(),
            cx.offset(),
            String::from_utf8_lossy(token),
            cx.attempt(),
            cx.child_token("effect"),
        );
        let mut file = self.file.lock().unwrap();
        // One call for the line: another process may be writing to the same file.
        file.write_all(line.as_bytes()).unwrap();
        file.sync_data().unwrap();
    }

    /// Whether what the handler calls is away: for four of five calls, and so long as has been written so much. Each message
    /// comes through at one attempt of five.
    fn is_away(&self, cx: &Cx) -> bool {
        let pick = u32::from(cx.token().0[1]) + 7 * cx.attempt();
        let written = self.file.lock().unwrap().metadata().unwrap().len();
        self.flaps && written / STRETCH_BYTES % 3 == 1 && !pick.is_multiple_of(5)
    }

    /// Whether the effect with this child token has happened: what the resource itself knows.
    fn has_happened(&self, cx: &Cx) -> bool {
        let text = std::fs::read_to_string(&self.path).unwrap();
        let effect = format!(" end {}", cx.child_token("effect"));
        text.lines().any(|line| line.ends_with(&effect))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a handler that takes real time, in a process that is killed in real time"
)]
async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn handle(payload: Bytes, cx: Cx) -> Result<(), HandlerError> {
    let world = Arc::clone(cx.state());
    let act = Act::of(&payload);
    world.write(&cx, "begin");
    if world.is_away(&cx) {
        world.write(&cx, "refused");
        return Err(HandlerError::not_applied("what it calls is away"));
    }
    if let Act::Wait(ms) = act {
        wait(Duration::from_millis(ms)).await;
    }
    hapax::crash::point("inside-handler");
    match act {
        Act::Reject => {
            world.write(&cx, "rejected");
            return Err(HandlerError::reject("it can never succeed"));
        }
        Act::Refuse if cx.attempt() == 1 => {
            world.write(&cx, "refused");
            return Err(HandlerError::not_applied("not yet"));
        }
        Act::BreakBefore if cx.attempt() == 1 => {
            world.write(&cx, "broken");
            return Err(HandlerError::unknown("who knows"));
        }
        Act::BreakAfter if cx.attempt() == 1 => {
            world.write(&cx, "end");
            world.write(&cx, "broken");
            return Err(HandlerError::unknown("who knows"));
        }
        _ => {}
    }
    world.write(&cx, "end");
    world.write(&cx, "ok");
    Ok(())
}

/// Asks the file of effects, and for one in eight tokens says that it cannot tell.
async fn probe(_: Bytes, cx: Cx) -> Result<Probe, HandlerError> {
    let world = Arc::clone(cx.state());
    if cx.token().0[0].is_multiple_of(8) {
        world.write(&cx, "probe-unknown");
        return Ok(Probe::Unknown);
    }
    if world.has_happened(&cx) {
        world.write(&cx, "probe-done");
        return Ok(Probe::done(""));
    }
    // It can no longer happen: the effect comes in one call, and whoever made it is gone or was cancelled.
    world.write(&cx, "probe-not-done");
    Ok(Probe::NotDone)
}

fn settings(spec: &Spec, layer: &mut Layer) {
    let session = spec.session_ms.to_string();
    let heartbeat = (spec.session_ms / 6).to_string();
    layer.kafka = [
        ("session.timeout.ms", session.as_str()),
        ("heartbeat.interval.ms", heartbeat.as_str()),
        ("fetch.wait.max.ms", "20"),
        ("reconnect.backoff.max.ms", "200"),
    ]
    .into_iter()
    .collect();
    layer.commit_every = Some(Duration::from_millis(100));
    layer.drain = Some(Duration::from_secs(4));
    layer.admin.listen = Some(Listen::At(spec.admin));
    layer.admin.token_file = Some(spec.token.clone());
    if spec.cold_runs {
        layer.cold = Some(hapax::config::Cold::Run);
    }
}

fn consumer(spec: &Spec) -> Consumer {
    let world = Arc::new(World::open(spec));
    let mut topic = Topic::bytes(&spec.topic, spec.class())
        .state(world)
        .window(Window::hours(24))
        // The last ones from the disk.
        .retry(IN_PLACE, Duration::from_secs(20))
        .retry_overall(ATTEMPTS_MAX, Duration::from_secs(600))
        .backoff(Duration::from_millis(5), Duration::from_millis(40))
        .backoff_overall(Duration::from_millis(400), Duration::from_secs(1))
        // Small enough to open while what it calls is away, and not before others have met it.
        .breaker(Share::percent(50), 40, Duration::from_millis(200))
        .begun_ahead(spec.ahead)
        .deadline(Duration::from_secs(3));
    if spec.probe {
        topic = topic
            .probe(probe)
            .deadline(Duration::from_millis(1_200))
            .probe_settle(Duration::from_millis(100));
    }
    topic = if spec.by_key {
        topic.by_key(spec.slots)
    } else {
        topic.unordered(spec.slots)
    };
    Consumer::local(&spec.topic, &spec.state_dir)
        .brokers(&spec.brokers)
        .with(|layer| settings(spec, layer))
        .handle(topic, handle)
}

#[test]
#[ignore = "a consumer process, started by the crash tests"]
fn consumer_process() {
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    let spec: Spec = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    process::is_a_child();
    process::live(consumer(&spec), &spec.ready, &spec.books);
}
