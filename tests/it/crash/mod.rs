//! Crash tests: a consumer process is killed with SIGKILL at a named point or at any moment, started again on the same
//! store, and at the end everything that is left goes to the checker.
//!
//! A run is made from a seed: what is sent, what handlers do, which slots there are, when it is killed. A run that
//! fails says how to repeat it, and keeps its folder. What a kill interrupts depends on the machine as well: the same
//! seed is the same intent, not the same schedule.

pub(crate) mod child;
mod operator;
pub(crate) mod plan;
mod process;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::checker::{self, Class, Evidence, Life, Moment, Store, Terms};
use crate::kafka::{self, Broker};
use child::Spec;
use operator::Operators;
use process::{Ended, Process};

const PARTITIONS: i32 = 3;
/// How long a killed member keeps its partitions from the next life.
const SESSION: Duration = Duration::from_millis(2_000);
/// One life, on a busy machine.
const LIFE_WITHIN: Duration = Duration::from_secs(60);
/// Attempts before a message is held for the rest of them.
const IN_PLACE: u32 = 3;
const ATTEMPTS_MAX: u32 = 5;

/// A class as it is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) class: Class,
    pub(crate) probe: bool,
}

/// Each class, and the one that never repeats also with somebody to ask.
pub(crate) const VARIANTS: [Variant; 4] = [
    Variant {
        class: Class::Idempotent,
        probe: false,
    },
    Variant {
        class: Class::PotentiallyIdempotent,
        probe: false,
    },
    Variant {
        class: Class::NonIdempotent,
        probe: false,
    },
    Variant {
        class: Class::NonIdempotent,
        probe: true,
    },
];

impl Variant {
    pub(crate) fn name(self) -> &'static str {
        match (self.class, self.probe) {
            (Class::Idempotent, _) => "idempotent",
            (Class::PotentiallyIdempotent, _) => "potentially-idempotent",
            (Class::NonIdempotent, false) => "non-idempotent",
            (Class::NonIdempotent, true) => "non-idempotent-with-probe",
        }
    }

    fn class_name(self) -> &'static str {
        match self.class {
            Class::Idempotent => "idempotent",
            Class::PotentiallyIdempotent => "potentially-idempotent",
            Class::NonIdempotent => "non-idempotent",
        }
    }
}

/// When a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// It kills itself at that point, the n-th time it comes there.
    Point(&'static str, u32),
    /// It is asked to end once its handlers have written that many lines, and kills itself at that point.
    Asked(usize, &'static str, u32),
    /// It is killed so long after its start.
    Start(Duration),
    /// It is killed so long after its handlers began to write.
    Work(Duration),
    /// It is killed once operators were told that many verdicts are durable.
    Told(usize),
    /// Everything is committed, and nothing is held that runs by itself, or that an operator is there for; then it ends in order.
    Everything,
}

/// A consumer that lives several times.
pub(crate) struct Run {
    /// What fails with it, in one line.
    pub(crate) name: String,
    again: String,
    dir: tempfile::TempDir,
    client: ClientConfig,
    /// Asks for the group's offsets, and is no member.
    watcher: BaseConsumer,
    spec: Spec,
    /// Of the operators; `None` where there are none.
    operated: Option<u64>,
    operators: Option<Operators>,
    terms: Terms,
    ends: BTreeMap<i32, i64>,
    lives: Vec<Life>,
    others: Vec<PathBuf>,
}

impl Run {
    /// Makes the topics and sends the plan of that seed. `again` is the test to run again, with its variables.
    pub(crate) fn new(broker: &Broker, seed: u64, variant: Variant, messages: usize, again: &str) -> Self {
        let topic = kafka::unique(&format!("crash-{seed}-{}", variant.name()));
        broker.create_topic(&topic, PARTITIONS, &[]);
        // Larger than the input: a letter has headers of its own.
        broker.create_topic(&letters(&topic), 1, &[("max.message.bytes", "2000000")]);
        let sent = plan::plan(seed, messages, PARTITIONS, now_ms());
        send(broker, &topic, &sent);
        let dir = tempfile::Builder::new()
            .prefix(&format!("{topic}-"))
            .tempdir()
            .unwrap();
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let slots = [1, 2, 4, 8][random.usize(0..4)];
        let ahead = if variant.class != Class::Idempotent && random.bool() {
            random.usize(1..4)
        } else {
            0
        };
        let by_key = random.bool();
        let spec = Spec {
            brokers: broker.bootstrap(),
            topic: topic.clone(),
            class: variant.class_name().to_owned(),
            probe: variant.probe,
            slots,
            by_key,
            ahead,
            flaps: true,
            cold_runs: false,
            session_ms: SESSION.as_millis() as u64,
            life: 0,
            admin: free_address(),
            token: dir.path().join("token"),
            broken: None,
            state_dir: dir.path().join("state"),
            effects: dir.path().join("effects"),
            ready: dir.path().join("ready"),
            books: dir.path().join("books"),
        };
        std::fs::write(&spec.token, operator::TOKEN).unwrap();
        let client = broker.client();
        let mut config = client.clone();
        config.set("group.id", &topic).set("enable.auto.commit", "false");
        Self {
            name: format!("seed {seed}, {}, {spec:?}", variant.name()),
            again: again.to_owned(),
            client,
            watcher: config.create().unwrap(),
            terms: Terms {
                topic: topic.clone(),
                class: variant.class,
                slots: slots as usize,
                ahead,
                by_key,
                in_place: IN_PLACE,
                attempts_max: ATTEMPTS_MAX,
                moves: false,
                cold: false,
            },
            ends: checker::ends(&broker.client(), &topic, PARTITIONS),
            spec,
            operated: None,
            operators: None,
            dir,
            lives: Vec::new(),
            others: Vec::new(),
        }
    }

    /// What handlers call is always there.
    pub(crate) fn calm(mut self) -> Self {
        self.spec.flaps = false;
        self
    }

    /// Messages of one key run one after the other, whatever the seed says, and so many of other keys beside them.
    pub(crate) fn in_order(mut self, slots: u32) -> Self {
        (self.spec.by_key, self.spec.slots) = (true, slots);
        (self.terms.by_key, self.terms.slots) = (true, slots as usize);
        self
    }

    /// With operators, who decide what is in doubt.
    pub(crate) fn operated(mut self, seed: u64) -> Self {
        self.operated = Some(seed);
        self
    }

    /// With that rule of the runtime switched off.
    pub(crate) fn without(mut self, rule: &str) -> Self {
        self.spec.broken = Some(rule.to_owned());
        self
    }

    /// Lives once. Returns whether the life ended by SIGKILL.
    pub(crate) fn live(&mut self, until: Until) -> bool {
        let mut process = self.start(until);
        let ended = self.attend(&mut process, until);
        self.buried(&process, ended)
    }

    /// Starts the next life.
    pub(crate) fn start(&mut self, until: Until) -> Process {
        self.spec.life += 1;
        let armed = match until {
            Until::Point(name, count) | Until::Asked(_, name, count) => Some(format!("{name}:{count}")),
            Until::Start(_) | Until::Work(_) | Until::Told(_) | Until::Everything => None,
        };
        self.spec.admin = free_address();
        let process = Process::start(self.dir.path(), &self.spec, armed.as_deref());
        self.operators = self.operated.map(|seed| {
            let place = operator::Place {
                admin: self.spec.admin,
                topic: self.spec.topic.clone(),
                life: self.spec.life,
                effects: self.spec.effects.clone(),
            };
            Operators::start(&place, seed)
        });
        process
    }

    /// The same under another program, which is given the binary as its last argument.
    pub(crate) fn start_under(&mut self, program: Command) -> Process {
        self.spec.life += 1;
        Process::start_under(program, self.dir.path(), &self.spec, None)
    }

    /// A file in the run's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts another member of the group, with a store of its own, that serves what it is given or refuses it as cold.
    pub(crate) fn start_other(&mut self) -> Process {
        let number = self.others.len() as u32 + 1;
        let state_dir = self.dir.path().join(format!("other-{number}"));
        self.others.push(state_dir.clone());
        let spec = Spec {
            life: 100 * number,
            admin: free_address(),
            state_dir,
            ready: self.dir.path().join(format!("other-{number}-ready")),
            books: self.dir.path().join(format!("other-{number}-books")),
            ..self.spec.clone()
        };
        self.terms.moves = true;
        self.terms.cold = self.terms.class == Class::Idempotent;
        Process::start(self.dir.path(), &spec, None)
    }

    /// Waits until handlers run.
    pub(crate) fn works(&self) {
        let written = self.lines();
        kafka::eventually(&format!("{}: work", self.name), LIFE_WITHIN, || {
            (self.lines() > written).then_some(())
        });
    }

    /// Waits until another member has been given partitions.
    pub(crate) fn shares(&self, other: &mut Process) {
        kafka::eventually(
            &format!("{}: a share for another member", self.name),
            LIFE_WITHIN,
            || {
                assert!(other.ended().is_none(), "{}: {}", self.name, other.log_tail());
                other
                    .says("window is cold")
                    .then_some(())
                    .or_else(|| other.says(" is cold: ").then_some(()))
            },
        );
    }

    /// Ends another member in order.
    pub(crate) fn left(&self, other: &mut Process) {
        let ended = kafka::eventually(&format!("{}: the end of another", self.name), LIFE_WITHIN, || {
            other.terminate();
            other.ended()
        });
        assert!(
            matches!(ended, Ended::InOrder),
            "{}: {ended:?}: {}",
            self.name,
            other.log_tail()
        );
    }

    /// Watches a life until it is over.
    pub(crate) fn attend(&self, process: &mut Process, until: Until) -> Ended {
        if let (Until::Told(wanted), Some(operators)) = (until, &self.operators) {
            // At once: what is durable only a moment later than they were told is to be seen.
            if operators.await_told(wanted, LIFE_WITHIN) {
                process.kill();
            }
        }
        let written = self.lines();
        let mut working_since = None;
        kafka::eventually(
            &format!("{}: the end of life {}", self.name, self.spec.life),
            LIFE_WITHIN,
            || {
                if let Some(ended) = process.ended() {
                    return Some(ended);
                }
                let lines = self.lines() - written;
                if lines > 0 && working_since.is_none() {
                    working_since = Some(process.age());
                }
                match until {
                    Until::Start(after) if process.age() >= after => process.kill(),
                    Until::Work(after)
                        if working_since.is_some_and(|since| process.age() >= since + after) =>
                    {
                        process.kill();
                    }
                    Until::Asked(wanted, ..) if lines >= wanted => process.terminate(),
                    // Another member will come.
                    Until::Point("during-rebalance", _) => {}
                    _ if self.is_complete() && self.holds_nothing() => process.terminate(),
                    _ => {}
                }
                None
            },
        )
    }

    /// Whether nothing is held that runs by itself; and, with operators, nothing at all.
    fn holds_nothing(&self) -> bool {
        let states = match self.operated {
            Some(_) => &[None][..],
            None => &[Some("retry"), Some("behind-key")],
        };
        let held = |state: &Option<&str>| operator::held(self.spec.admin, *state);
        // What is held in a partition that it does not serve yet it does not list.
        let served = operator::served(self.spec.admin);
        served.is_some_and(|served| served.len() == PARTITIONS as usize)
            && states
                .iter()
                .all(|state| held(state).is_some_and(|held| held.is_empty()))
    }

    /// Keeps what a life has left.
    pub(crate) fn buried(&mut self, process: &Process, ended: Ended) -> bool {
        self.operators = None;
        let killed = match ended {
            Ended::Killed => true,
            Ended::InOrder => false,
            Ended::Badly(status) => panic!(
                "{}: life {} ended with {status}:\n{}",
                self.name,
                self.spec.life,
                process.log_tail()
            ),
        };
        let copy = self.dir.path().join(format!("store-after-{}", self.spec.life));
        copy_store(&self.spec.state_dir, &copy);
        let read = || serde_json::from_slice(&std::fs::read(&self.spec.books).unwrap()).unwrap();
        let books = (!killed).then(read);
        self.lives.push(Life {
            number: self.spec.life,
            killed,
            books,
            recorded: checker::recorded(&copy),
            after: Moment {
                store: Store::read(&copy, &self.spec.topic),
                committed: self.committed(),
            },
        });
        killed
    }

    fn committed(&self) -> BTreeMap<i32, (i64, String)> {
        kafka::eventually("the group's offsets", LIFE_WITHIN, || {
            checker::committed(&self.watcher, &self.spec.topic, PARTITIONS)
        })
    }

    /// The copy of the store that the last life left.
    pub(crate) fn last_store(&self) -> PathBuf {
        self.dir.path().join(format!("store-after-{}", self.spec.life))
    }

    /// Whether the group's offsets are at the ends of the log.
    pub(crate) fn is_complete(&self) -> bool {
        let committed = self.committed();
        self.ends.iter().all(|(partition, end)| {
            *end == 0 || committed.get(partition).is_some_and(|(offset, _)| offset == end)
        })
    }

    /// Lines that handlers have written so far.
    pub(crate) fn lines(&self) -> usize {
        let text = std::fs::read(&self.spec.effects).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Everything that is left. The last life has to have taken everything.
    pub(crate) fn evidence(&self) -> Evidence {
        Evidence {
            terms: self.terms.clone(),
            input: checker::read_topic(&self.client, &self.spec.topic, PARTITIONS),
            letters: checker::read_topic(&self.client, &letters(&self.spec.topic), 1),
            effects: checker::read_lines(&self.spec.effects),
            lives: self.lives.clone(),
            others: self
                .others
                .iter()
                .map(|dir| Store::read(dir, &self.spec.topic))
                .collect(),
        }
    }

    /// Lives once more to the end, and has everything judged.
    pub(crate) fn finish(mut self) -> Report {
        assert!(
            !self.live(Until::Everything),
            "{}: killed by somebody else",
            self.name
        );
        self.judged()
    }

    /// Has everything judged. The last life has ended in order, with everything taken.
    pub(crate) fn judged(self) -> Report {
        let evidence = self.evidence();
        let violations = checker::check(&evidence);
        if !violations.is_empty() {
            let found: Vec<String> = violations.iter().map(|v| format!("  {v}")).collect();
            panic!("{}\n{}", self.name, found.join("\n"));
        }
        Report::of(&evidence)
    }
}

impl Drop for Run {
    /// A run that failed keeps its folder: stores, effects, and what each life said.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            let lives: Vec<_> = self.lives.iter().map(|life| (life.number, life.killed)).collect();
            let dir = self.dir.path().display();
            let committed = checker::committed(&self.watcher, &self.spec.topic, PARTITIONS);
            eprintln!(
                "{}: committed {committed:?}, ends {:?}",
                self.terms.topic, self.ends
            );
            eprintln!(
                "{}: lives (number, killed) {lives:?}\nkept in {dir}\nto repeat: {}",
                self.terms.topic, self.again
            );
        }
    }
}

/// What a run came to, in numbers.
#[derive(Debug, Clone, Copy, Default)]
#[expect(dead_code, reason = "printed whole, for whoever reads the output of a test")]
pub(crate) struct Report {
    pub(crate) kills: usize,
    pub(crate) messages: usize,
    pub(crate) effects: usize,
    pub(crate) letters: usize,
    /// The most messages that one kill left begun.
    pub(crate) begun_max: usize,
    pub(crate) held: usize,
    /// Acts of operators that the audit has.
    pub(crate) acts: usize,
}

impl Report {
    fn of(evidence: &Evidence) -> Self {
        let killed = || evidence.lives.iter().filter(|life| life.killed);
        Self {
            kills: killed().count(),
            messages: evidence.input.len(),
            effects: evidence
                .effects
                .iter()
                .filter(|line| line.kind == checker::Kind::End)
                .count(),
            letters: evidence.letters.len(),
            begun_max: killed().map(|life| life.after.store.begun()).max().unwrap_or(0),
            held: evidence.lives.last().map_or(0, |life| life.after.store.held()),
            acts: evidence
                .lives
                .last()
                .map_or(0, |life| life.after.store.audit.len()),
        }
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], kafka::free_port()))
}

fn letters(topic: &str) -> String {
    format!("{topic}.dead-letters")
}

#[expect(
    clippy::disallowed_methods,
    reason = "Kafka wants the stamps of messages to be near its own clock"
)]
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_millis() as i64
}

fn send(broker: &Broker, topic: &str, planned: &[plan::Planned]) {
    let producer: BaseProducer = broker.client().set("linger.ms", "0").create().unwrap();
    for message in planned {
        let mut record = BaseRecord::<str, str>::to(topic)
            .partition(message.partition)
            .payload(&message.payload)
            .timestamp(message.timestamp_ms);
        record.key = message.key.as_deref();
        if let Some(token) = &message.token {
            record = record.headers(OwnedHeaders::new().insert(Header {
                key: "idempotency-key",
                value: Some(token),
            }));
        }
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

fn copy_store(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    // A life that was killed at once has made none.
    let Ok(entries) = std::fs::read_dir(from) else {
        return;
    };
    for entry in entries {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
