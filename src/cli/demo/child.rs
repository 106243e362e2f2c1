//! The consumer of a demo: one life of it, in a process of its own, so that it can be killed.
//!
//! It is what a user would write: a topic, a handler that is not idempotent, a probe. What the parent cannot see from
//! outside goes to it as lines of JSON on stdout: what the probe answered, and the books at the end.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Plant;
use super::orders::Order;
use super::shop::{self, Shop};
use super::{DEADLINE, SLOTS, WINDOW};
use crate::accounts::Balance;
use crate::config::{ByteCount, Listen};
use crate::handler::{Context, HandlerError, Probe, Topic, Window};
use crate::{Consumer, NonIdempotent, clock};

/// The step of the handler that charges: what the child token is made from.
const STEP: &str = "charge";

/// A charge takes that long before and after the moment in which it happens, so that a kill finds both halves.
const HALF_A_CHARGE: Duration = Duration::from_millis(8);

/// What a life is told by the parent, as JSON in its arguments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) brokers: String,
    pub(super) group: String,
    pub(super) topic: String,
    pub(super) state_dir: PathBuf,
    pub(super) effects: PathBuf,
    /// Counted from 1.
    pub(super) life: u32,
    /// How long the group waits for a member that was killed.
    pub(super) session: Duration,
    /// A fault to make on purpose, and the order to make it with.
    pub(super) plant: Option<(Plant, String)>,
}

/// What a life says to the parent, a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Said {
    /// The probe was asked about an attempt that nobody knows the end of.
    Probed {
        order: String,
        /// Whether the charge is in the file.
        applied: bool,
    },
    /// It ended as it was asked to: the books of each assignment.
    Ended { books: Vec<Books> },
    /// It ended with an error.
    Failed { why: String },
}

/// [`Balance`], as it travels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Books {
    pub(super) taken: u64,
    pub(super) restored: u64,
    pub(super) accounts: [u64; 8],
}

impl From<&Balance> for Books {
    fn from(balance: &Balance) -> Self {
        Self {
            taken: balance.taken,
            restored: balance.restored,
            accounts: balance.accounts,
        }
    }
}

/// One life: runs until SIGTERM, or until it is killed.
pub(super) fn run(told: &str) -> ExitCode {
    let lived = serde_json::from_str(told)
        .map_err(|error| format!("`--child` is for `hapax demo` itself: {error}"))
        .and_then(live);
    let (said, code) = match lived {
        Ok(books) => (Said::Ended { books }, ExitCode::SUCCESS),
        Err(why) => (Said::Failed { why }, ExitCode::FAILURE),
    };
    say(&said);
    code
}

fn live(told: Told) -> Result<Vec<Books>, String> {
    die_with_the_parent()?;
    let shop = Shop::open(&told.effects).map_err(|error| format!("{}: {error}", told.effects.display()))?;
    let consumer = consumer(told, shop);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    let summary = runtime
        .block_on(consumer.run())
        .map_err(|error| crate::error::chain(&error))?;
    Ok(summary.balances.iter().map(Books::from).collect())
}

/// What handler and probe share.
type Shared = Arc<(Told, Shop)>;

fn consumer(told: Told, shop: Shop) -> Consumer {
    let session_ms = told.session.as_millis();
    let topic = Topic::json::<Order>(&told.topic, NonIdempotent)
        .window(Window::of(WINDOW))
        .by_key(SLOTS)
        .deadline(DEADLINE)
        .probe_settle(Duration::from_millis(200));
    Consumer::local(&told.group, &told.state_dir)
        .brokers(&told.brokers)
        .with(|layer| {
            layer.admin.listen = Some(Listen::Off);
            layer.commit_every = Some(Duration::from_millis(300));
            layer.drain = Some(Duration::from_secs(5));
            layer.memory = Some(ByteCount::mib(32));
            // After two unclean starts the first `in_flight` messages of each partition run one at a time.
            layer.limits.in_flight = Some(64);
            layer.kafka = [
                ("session.timeout.ms", session_ms.to_string()),
                ("heartbeat.interval.ms", (session_ms / 6).to_string()),
                // The mock answers an empty fetch only when the wait is over.
                ("fetch.wait.max.ms", "20".to_owned()),
            ]
            .into_iter()
            .collect();
        })
        .handle(
            topic
                .state(Arc::new((told, shop)))
                .probe(|order: Order, cx: Context<Shared>| async move { probe(&order, &cx) }),
            |order: Order, cx: Context<Shared>| async move { charge(&order, &cx).await },
        )
}

/// The handler. It charges once each time it is called: nothing in it could notice that it was called before.
async fn charge(order: &Order, cx: &Context<Shared>) -> Result<(), HandlerError> {
    let (told, shop) = &**cx.state();
    clock::sleep_until(clock::now() + HALF_A_CHARGE).await;
    if !order.is_good() {
        return Err(HandlerError::reject(format!("{} is of 0 cents", order.id)));
    }
    let charges = match &told.plant {
        Some((Plant::Lose, planted)) if *planted == order.id => 0,
        Some((Plant::Repeat, planted)) if *planted == order.id => 2,
        _ => 1,
    };
    for _ in 0..charges {
        shop.charge(&cx.child_token(STEP), order, told.life, cx.attempt())?;
    }
    clock::sleep_until(clock::now() + HALF_A_CHARGE).await;
    Ok(())
}

/// The probe: asks the shop. What makes `NotDone` true is said in [`shop`].
fn probe(order: &Order, cx: &Context<Shared>) -> Result<Probe, HandlerError> {
    let (told, _) = &**cx.state();
    let child = cx.child_token(STEP);
    let applied = shop::read(&told.effects)?
        .iter()
        .any(|effect| effect.child == child);
    say(&Said::Probed {
        order: order.id.clone(),
        applied,
    });
    Ok(if applied { Probe::done(()) } else { Probe::NotDone })
}

fn say(said: &Said) {
    let Ok(mut line) = serde_json::to_string(said) else {
        return;
    };
    line.push('\n');
    // The parent is gone where nobody reads: this process follows.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// The parent holds the other end of stdin. However it ends, the system closes the pipe, and this process goes too:
/// a consumer of a demo that is over must not stay behind.
fn die_with_the_parent() -> Result<(), String> {
    let watch = || {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        std::process::exit(1);
    };
    std::thread::Builder::new()
        .name("hapax-parent".into())
        .spawn(watch)
        .map(drop)
        .map_err(|error| format!("no thread: {error}"))
}
