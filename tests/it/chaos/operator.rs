//! The operator of a campaign: looks at what is held, thinks for a while, and decides about some of it, whatever happens to
//! the members meanwhile.
//!
//! Two of them act at a time, and neither knows of the other. What they say is tied to the attempts that they saw, as the
//! command line does it for whoever acts in bulk. The reason of each order is its number, so that the audit says which one it was.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::admin_port;

/// As long as somebody waits for a member that may stand still.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// The pause between two looks.
const PAUSE_MS: std::ops::Range<u64> = 50..400;
/// How long an operator thinks about what they saw.
const THINKS_MS: std::ops::Range<u64> = 0..1_500;
const OPERATORS: u64 = 2;
const TOKEN: &str = "correct-horse-battery";

/// The file with the token of the port.
pub(crate) fn token_file(dir: &Path) -> PathBuf {
    dir.join("admin-token")
}

/// Where the acts go besides.
pub(crate) fn audit_topic(run: &str) -> String {
    format!("{run}.audit")
}

/// What can be said of a held message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    Run,
    DeadLetter,
}

impl Verdict {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Done, "done"),
        (Self::Run, "run"),
        (Self::DeadLetter, "dead-letter"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(verdict, _)| *verdict == self).unwrap().1
    }

    /// As the audit writes it.
    pub(crate) fn act(self) -> String {
        format!("resolve --{}", self.name())
    }
}

/// One order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) verdict: Verdict,
    /// Attempts at the message that the operator knew of.
    pub(crate) attempts: u64,
    /// It was in doubt, not only held for another attempt.
    pub(crate) was_in_doubt: bool,
    /// What the member said: `done`, `unchanged`, `refused`. `None` where nobody answered, or not that.
    pub(crate) answer: Option<String>,
}

/// The reason of an order, which names it.
pub(crate) fn reason(number: u32) -> String {
    format!("order {number}")
}

/// The order of which that is the reason.
pub(crate) fn number(reason: &str) -> Option<u32> {
    reason.strip_prefix("order ")?.parse().ok()
}

#[derive(Default)]
struct Desk {
    stop: AtomicBool,
    next: AtomicU32,
    orders: Mutex<Vec<(u32, Order)>>,
}

/// See the module. Dropped, nobody orders any more.
pub(crate) struct Operators {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
}

impl Operators {
    pub(crate) fn start(ports: &[SocketAddr], seed: u64) -> Self {
        let desk = Arc::new(Desk::default());
        let threads = (0..OPERATORS).map(|who| {
            let (desk, ports) = (Arc::clone(&desk), ports.to_vec());
            let random = fastrand::Rng::with_seed(seed ^ (0x6f70_6572 + who));
            thread::spawn(move || act(&desk, &ports, random))
        });
        Self {
            threads: threads.collect(),
            desk,
        }
    }

    /// What they have ordered, by number.
    pub(crate) fn stop(mut self) -> std::collections::BTreeMap<u32, Order> {
        self.desk.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.desk.orders.lock().unwrap().drain(..).collect()
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        self.desk.stop.store(true, Ordering::SeqCst);
    }
}

/// Makes the file with the token.
pub(crate) fn write_token(dir: &Path) {
    std::fs::write(token_file(dir), TOKEN).unwrap();
}

fn act(desk: &Desk, ports: &[SocketAddr], mut random: fastrand::Rng) {
    let wait = |ms| thread::sleep(Duration::from_millis(ms));
    while !desk.stop.load(Ordering::SeqCst) {
        wait(random.u64(PAUSE_MS));
        let port = ports[random.usize(0..ports.len())];
        let Some(mut held) = held(port) else { continue };
        random.shuffle(&mut held);
        held.truncate(3);
        wait(random.u64(THINKS_MS));
        for mut order in held {
            order.verdict = Verdict::ALL[random.usize(0..3)].0;
            let number = desk.next.fetch_add(1, Ordering::SeqCst);
            order.answer = ask(port, number, &order);
            desk.orders.lock().unwrap().push((number, order));
        }
    }
}

/// What takes a verdict, at one member. Nine of ten that are held for another attempt are left to that.
fn held(port: SocketAddr) -> Option<Vec<Order>> {
    let (_, body) = admin_port::ask(port, "GET /v1/held", None, ANSWER_WITHIN)?;
    let body: Value = serde_json::from_str(&body).ok()?;
    let held = body.get("held")?.as_array()?.iter().filter_map(|one| {
        let state = one.get("state")?.as_str()?;
        let offset = one.get("offset")?.as_i64()?;
        let is_left = state == "retry" && offset % 10 != 0;
        if !matches!(state, "in-doubt" | "retry") || is_left || !one.get("verdict")?.is_null() {
            return None;
        }
        Some(Order {
            topic: one.get("topic")?.as_str()?.to_owned(),
            partition: one.get("partition")?.as_i64()? as i32,
            offset,
            verdict: Verdict::Done,
            attempts: one.get("attempts")?.as_u64()?,
            was_in_doubt: state == "in-doubt",
            answer: None,
        })
    });
    Some(held.collect())
}

fn ask(port: SocketAddr, number: u32, order: &Order) -> Option<String> {
    let body = json!({
        "which": {
            "topic": order.topic,
            "partition": order.partition,
            "offset": order.offset,
            "attempts": order.attempts,
        },
        "verdict": order.verdict.name(),
        "words": { "reason": reason(number), "by": "chaos" },
    });
    let (_, answer) = admin_port::ask(
        port,
        "POST /v1/resolve",
        Some((TOKEN, &body.to_string())),
        ANSWER_WITHIN,
    )?;
    let answer: Value = serde_json::from_str(&answer).ok()?;
    let [act] = answer.get("acts")?.as_array()?.as_slice() else {
        return None;
    };
    Some(act.get("answer")?.as_str()?.to_owned())
}
