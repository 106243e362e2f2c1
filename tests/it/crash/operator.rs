//! Operators, who work while a consumer lives and dies: they ask its admin port what is held in doubt, look at the world,
//! and give a verdict on what they have seen.
//!
//! They are honest: `done` only where the effect is there, `run` only where it is not, and now and then they give up on
//! a message. Each verdict is tied to the attempts that they know of, since there are several of them. What they ask for is
//! a line in the file of effects before it is asked, and what they are told another: so the checker knows what came
//! before what.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::admin_port;
use crate::checker::{self, Kind};

/// What the admin port asks of whoever changes something.
pub(crate) const TOKEN: &str = "correct-horse-battery";

/// Two: what one knows may be old by the time that it is said.
const AT_ONCE: usize = 2;

/// Where they work, and on what.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) admin: SocketAddr,
    pub(crate) topic: String,
    pub(crate) life: u32,
    pub(crate) effects: PathBuf,
}

/// The operators of one life. Dropped, they stop.
pub(crate) struct Operators {
    stop: Arc<AtomicBool>,
    told: Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Operators {
    pub(crate) fn start(place: &Place, seed: u64) -> Self {
        let stop = Arc::default();
        let (tell, told) = channel();
        let threads = (0..AT_ONCE).map(|number| {
            let seed = seed ^ (u64::from(place.life) << 8) ^ number as u64;
            let mut one = Operator {
                place: place.clone(),
                number,
                acts: 0,
                random: fastrand::Rng::with_seed(seed),
                stop: Arc::clone(&stop),
                told: tell.clone(),
            };
            std::thread::spawn(move || one.work())
        });
        let threads = threads.collect();
        Self { stop, told, threads }
    }

    /// Waits until the consumer has said of that many verdicts that they are durable. Not for ever.
    pub(crate) fn await_told(&self, wanted: usize, within: Duration) -> bool {
        (0..wanted).all(|_| self.told.recv_timeout(within).is_ok())
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "an operator panicked");
        }
    }
}

/// Messages that are held, as its admin port says: for whatever reason, or for that one. `None` where nobody answers.
pub(crate) fn held(admin: SocketAddr, state: Option<&str>) -> Option<Vec<Value>> {
    let path = match state {
        Some(state) => format!("/v1/held?state={state}"),
        None => "/v1/held".to_owned(),
    };
    list(admin, &path, "held")
}

/// The partitions that it serves.
pub(crate) fn served(admin: SocketAddr) -> Option<Vec<Value>> {
    list(admin, "/v1/status", "partitions")
}

fn list(admin: SocketAddr, path: &str, name: &str) -> Option<Vec<Value>> {
    let (200, text) = admin_port::get(admin, path)? else {
        return None;
    };
    let mut answer: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(answer[name].take()).ok()
}

struct Operator {
    place: Place,
    number: usize,
    acts: u32,
    random: fastrand::Rng,
    stop: Arc<AtomicBool>,
    told: Sender<()>,
}

impl Operator {
    #[expect(
        clippy::disallowed_methods,
        reason = "a person takes real time, and the consumer is another process"
    )]
    fn work(&mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            let mut held = held(self.place.admin, Some("in-doubt")).unwrap_or_default();
            // Of the others it is decided already.
            held.retain(|one| one["verdict"].is_null());
            for one in held {
                // Until it is gone: then there is nobody to ask.
                if self.stop.load(Ordering::SeqCst) || !self.decide(&one) {
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(self.random.u64(5..60)));
        }
    }

    /// Whether there was an answer.
    fn decide(&mut self, one: &Value) -> bool {
        let number = |name: &str| one[name].as_i64().unwrap();
        let (partition, offset) = (number("partition") as i32, number("offset"));
        let attempts = number("attempts");
        let token = one["tokens"][0].as_str().unwrap();
        let kind = match token.as_bytes()[9] {
            // By the token, so that both think the same of it.
            b'0'..=b'3' => Kind::AskedLetter,
            _ if self.has_happened(token) => Kind::AskedDone,
            _ => Kind::AskedRun,
        };
        let (verdict, told) = match kind {
            Kind::AskedLetter => ("dead-letter", Kind::ToldLetter),
            Kind::AskedDone => ("done", Kind::ToldDone),
            _ => ("run", Kind::ToldRun),
        };
        self.acts += 1;
        let Place { topic, life, .. } = &self.place;
        // The reason is the act's name.
        let name = format!("act-{life}-{}-{}", self.number, self.acts);
        let order = json!({
            "which": {"topic": topic, "partition": partition, "offset": offset, "attempts": attempts},
            "verdict": verdict,
            "words": {"reason": name, "by": format!("operator-{}", self.number)},
        });
        let note = |kind: Kind| {
            let line = format!(
                "{life} {topic} {partition} {offset} - {attempts} {} {name}\n",
                kind.name()
            );
            let mut file = File::options().append(true).open(&self.place.effects).unwrap();
            // One call for the line: the consumer writes to the same file.
            file.write_all(line.as_bytes()).unwrap();
        };
        note(kind);
        let answer = admin_port::post(self.place.admin, "/v1/resolve", TOKEN, &order.to_string());
        // No answer: it was killed, and what became of the order is not known.
        let Some((status, text)) = answer else {
            return false;
        };
        let came: Value = serde_json::from_str(&text).unwrap_or_default();
        match came["acts"][0]["answer"].as_str() {
            Some("done") => {
                note(told);
                let _ = self.told.send(());
            }
            // Another one was there first, or it ran; or its partition goes.
            Some("refused") => note(Kind::ToldNo),
            // It has gone.
            _ if status == 421 => note(Kind::ToldNo),
            // It ends, or does not answer in time: not known either.
            _ if matches!(status, 408 | 503) => {}
            _ => panic!("{status}: {text}"),
        }
        true
    }

    /// Whether a message of that token has had its effect, as the world tells.
    fn has_happened(&self, token: &str) -> bool {
        let key = checker::token::from_hex(token);
        let effect = format!(" {} {}", Kind::End.name(), checker::token::child(&key, "effect"));
        let text = std::fs::read_to_string(&self.place.effects).unwrap();
        text.lines().any(|line| line.ends_with(&effect))
    }
}
