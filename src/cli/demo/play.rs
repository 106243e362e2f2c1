//! The play itself: a producer beside a consumer that is killed twice, and what is looked at in between.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Mutex;

use super::books::{Answer, DeadLetter, Doubt, Evidence, Kill, Sent, ends};
use super::child::{Said, Told};
use super::life::Life;
use super::orders::{Order, Plan};
use super::shop::{self, Counter, Effect};
use super::stopped::{self, Stopped};
use super::{
    Args, EMBEDDED_REST, EMBEDDED_SESSION, Error, PARTITIONS, SESSION, SLOTS, TOKEN_HEADER, Teller, log_of,
};
use crate::broker::Letter;
use crate::broker::kafka::demo::{Cluster, Observer, Sender};
use crate::clock;
use crate::dead_letter;

/// How often the consumer is killed.
const KILLS: u32 = 2;

/// Far more than an order has, and than the headers of a dead letter.
const MESSAGE_BYTES_MAX: u32 = 100_000;

/// The producer sends a slice of its messages that often.
const SLICE_EVERY: Duration = Duration::from_millis(50);
const SLICES: usize = 100;

/// How often the effects are counted: a kill has to find the handlers that are counted on.
const COUNT_EVERY: Duration = Duration::from_millis(5);

/// How often the broker is asked for what is committed.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// How often the audience is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Messages in doubt that are shown by name.
const DOUBTS_SHOWN: usize = 5;

/// What a play needs.
pub(super) struct Stage<'a> {
    pub(super) args: &'a Args,
    pub(super) teller: &'a Teller,
    pub(super) dir: &'a Path,
    /// Topic and group have this name.
    pub(super) group: &'a str,
}

/// What of the play is still going on while the consumer is.
struct Scene<'a> {
    stage: &'a Stage<'a>,
    plan: &'a Plan,
    observer: Observer,
    told: Told,
    /// How long after a kill the next life may start.
    rest: Duration,
    /// Locked while a slice is under way: whoever looks sees only what is acknowledged, and all of that.
    sent: &'a Mutex<Vec<Sent>>,
}

impl Stage<'_> {
    /// Plays, up to the end of the last life; the books are kept by the caller.
    pub(super) async fn play(&self, cluster: &mut Cluster) -> Result<Evidence, Error> {
        let plan = Plan::new(self.args.messages as usize, self.args.seed);
        let (topic, letters) = (self.group.to_owned(), format!("{}.dead-letters", self.group));
        let kind = if cluster.is_embedded() {
            "embedded broker"
        } else {
            "cluster"
        };
        self.teller.awaits("the topics");
        cluster
            .create_topic(&topic, PARTITIONS, MESSAGE_BYTES_MAX)
            .await?;
        // A dead letter has headers that its message did not have.
        cluster.create_topic(&letters, 1, 2 * MESSAGE_BYTES_MAX).await?;
        self.teller.tell(format_args!(
            "{kind} at {}: topic {topic} with {PARTITIONS} partitions, and its dead letters",
            cluster.brokers()
        ));
        self.teller.tell(format_args!(
            "producer: {} messages of {} orders, {} of them sent twice or more (--seed {})",
            plan.sends.len(),
            plan.orders.len(),
            plan.resent(),
            self.args.seed
        ));
        let sent = Mutex::new(Vec::with_capacity(plan.sends.len()));
        let scene = Scene {
            stage: self,
            observer: Observer::new(cluster.brokers(), self.group)?,
            told: self.told(cluster, &topic, &plan),
            rest: if cluster.is_embedded() {
                EMBEDDED_REST
            } else {
                Duration::ZERO
            },
            plan: &plan,
            sent: &sent,
        };
        let sender = Sender::new(cluster.brokers())?;
        let ((), mut evidence) = tokio::try_join!(produce(&sender, &topic, &plan, &sent), scene.act(&topic))?;
        self.teller.awaits("the dead letters");
        let observer = scene.observer.clone();
        let found = blocking(move || observer.read(&letters)).await??;
        evidence.letters = found.iter().map(read_letter).collect::<Result<_, _>>()?;
        evidence.sent = sent.into_inner();
        Ok(evidence)
    }

    fn told(&self, cluster: &Cluster, topic: &str, plan: &Plan) -> Told {
        // One from the middle, so that it has every chance to meet a kill.
        let middle = plan.orders.iter().skip(plan.orders.len() / 2);
        let planted = middle.map(|order| &order.order).find(|order| order.is_good());
        Told {
            brokers: cluster.brokers().to_owned(),
            group: self.group.to_owned(),
            topic: topic.to_owned(),
            state_dir: self.dir.join("state"),
            effects: self.dir.join("effects"),
            life: 0,
            session: if cluster.is_embedded() {
                EMBEDDED_SESSION
            } else {
                SESSION
            },
            plant: self.args.plant.zip(planted.map(|order| order.id.clone())),
        }
    }
}

/// Sends everything, in slices, and notes where each message went.
async fn produce(sender: &Sender, topic: &str, plan: &Plan, sent: &Mutex<Vec<Sent>>) -> Result<(), Error> {
    let slice = plan.sends.len().div_ceil(SLICES).max(1);
    for slice in plan.sends.chunks(slice) {
        let due = clock::now() + SLICE_EVERY;
        {
            let mut sent = sent.lock().await;
            let sending = slice
                .iter()
                .filter_map(|order| plan.orders.get(*order))
                .map(|one| async move {
                    let payload = serde_json::to_vec(&one.order).map_err(|error| Error::Io {
                        what: "writing an order".to_owned(),
                        source: error.into(),
                    })?;
                    let header = (TOKEN_HEADER, one.token.as_str());
                    let (partition, offset) =
                        sender.send(topic, &one.order.customer, &payload, header).await?;
                    Ok::<_, Error>(Sent {
                        order: one.order.clone(),
                        token: one.token.clone(),
                        partition,
                        offset,
                    })
                });
            sent.extend(try_join_all(sending).await?);
        }
        clock::sleep_until(due).await;
    }
    Ok(())
}

impl Scene<'_> {
    /// Every life of the consumer.
    async fn act(&self, topic: &str) -> Result<Evidence, Error> {
        let teller = self.stage.teller;
        let mut evidence = Evidence::default();
        let counting = |source| self.effects_failed(source);
        let mut counter = Counter::open(&self.told.effects).map_err(counting)?;
        for number in 1..=KILLS {
            let mut life = self.start(number)?;
            // A third of the way, and two thirds.
            let enough = self.plan.good() * number as usize / (KILLS as usize + 1);
            self.watch(
                &mut life,
                &mut counter,
                evidence.kills.last(),
                Until::Effects(enough),
            )
            .await?;
            let said = life.kill().await?;
            let next_life = clock::now() + self.rest;
            let effects = shop::read(&self.told.effects).map_err(counting)?;
            teller.tell(format_args!(
                "life {number}: SIGKILL in mid-flight, after {} effects",
                effects.len()
            ));
            note_answers(&mut evidence.answers, number, said);
            let (committed, stopped) = self.look(topic).await?;
            let kill = self.note_kill(number, &effects, &stopped).await;
            self.show_doubts(&kill);
            evidence.committed_before = committed;
            evidence.kills.push(kill);
            clock::sleep_until(next_life).await;
        }
        let number = KILLS + 1;
        let mut life = self.start(number)?;
        self.watch(&mut life, &mut counter, evidence.kills.last(), Until::Committed)
            .await?;
        teller.tell(format_args!(
            "life {number}: SIGTERM, now that every message is committed"
        ));
        teller.awaits(format!("life {number} to end"));
        let said = life.end().await?;
        for said in &said {
            if let Said::Ended { books } = said {
                evidence.last_life.clone_from(books);
            }
        }
        note_answers(&mut evidence.answers, number, said);
        evidence.effects = shop::read(&self.told.effects).map_err(counting)?;
        (evidence.committed_after, evidence.stopped) = self.look(topic).await?;
        teller.tell(format_args!("life {number}: ended in good order"));
        Ok(evidence)
    }

    fn start(&self, number: u32) -> Result<Life, Error> {
        let told = Told {
            life: number,
            ..self.told.clone()
        };
        let life = Life::start(&told, log_of(self.stage.dir, number))?;
        self.stage.teller.tell(format_args!(
            "life {number}: the consumer starts, pid {}, {SLOTS} handlers at once on each partition",
            life.pid()
        ));
        Ok(life)
    }

    /// Watches a life until it has come so far; tells now and then how far it is, and what the probe answered.
    async fn watch(
        &self,
        life: &mut Life,
        counter: &mut Counter,
        kill: Option<&Kill>,
        until: Until,
    ) -> Result<(), Error> {
        let teller = self.stage.teller;
        let number = life.number();
        let wanted: BTreeSet<&str> = kill
            .iter()
            .flat_map(|kill| &kill.in_doubt)
            .map(|doubt| doubt.order.as_str())
            .collect();
        let mut decided = wanted.is_empty();
        let before = counter.count().map_err(|source| self.effects_failed(source))?;
        let mut tell_at = clock::now() + TELL_EVERY;
        loop {
            life.must_live()?;
            let effects = counter.count().map_err(|source| self.effects_failed(source))?;
            if !decided {
                let answers = answers(&life.said(), &wanted);
                if answers.len() == wanted.len() {
                    decided = true;
                    let applied = answers.iter().filter(|applied| **applied).count();
                    teller.tell(format_args!(
                        "life {number}: the probe answered for all {} in doubt: {applied} applied (not run again), \
                         {} not applied (run)",
                        answers.len(),
                        answers.len() - applied
                    ));
                }
            }
            let of = self.plan.good();
            match until {
                Until::Effects(enough) if effects >= enough => return Ok(()),
                Until::Effects(enough) => {
                    teller.awaits(format!("effect {enough} in life {number}, at {effects} of {of}"));
                }
                Until::Committed if self.is_committed().await? => return Ok(()),
                Until::Committed => {
                    teller.awaits(format!(
                        "the last commit in life {number}, at {effects} effects of {of}"
                    ));
                }
            }
            if clock::now() >= tell_at {
                tell_at = clock::now() + TELL_EVERY;
                let sent = self.sent.lock().await.len();
                let joins = if effects == before {
                    "; it joins the group"
                } else {
                    ""
                };
                teller.tell(format_args!(
                    "life {number}: {effects} effects of {of}, {sent} messages sent{joins}"
                ));
            }
            let pause = match until {
                Until::Effects(_) => COUNT_EVERY,
                Until::Committed => ASK_EVERY,
            };
            clock::sleep_until(clock::now() + pause).await;
        }
    }

    /// Whether everything is sent, and committed to its end.
    async fn is_committed(&self) -> Result<bool, Error> {
        let ends = {
            let sent = self.sent.lock().await;
            if sent.len() < self.plan.sends.len() {
                return Ok(false);
            }
            ends(&sent)
        };
        Ok(self.committed().await? == ends)
    }

    async fn committed(&self) -> Result<Vec<i64>, Error> {
        let (observer, topic) = (self.observer.clone(), self.told.topic.clone());
        Ok(blocking(move || observer.committed(&topic, PARTITIONS)).await??)
    }

    /// What broker and store say while nobody consumes.
    async fn look(&self, topic: &str) -> Result<(Vec<i64>, Stopped), Error> {
        self.stage.teller.awaits("a look into the stopped store");
        // A commit that left just before the kill may still be on its way.
        let mut committed = self.committed().await?;
        loop {
            let (dir, topic) = (self.told.state_dir.clone(), topic.to_owned());
            let (sent, known) = (self.sent.lock().await.clone(), committed.clone());
            let stopped = blocking(move || stopped::look(&dir, &topic, &sent, &known)).await??;
            let now = self.committed().await?;
            if now == committed {
                return Ok((committed, stopped));
            }
            committed = now;
        }
    }

    /// Names what is in doubt, and says what the file of effects has of it.
    async fn note_kill(&self, life: u32, effects: &[Effect], stopped: &Stopped) -> Kill {
        let applied: BTreeSet<&str> = effects.iter().map(|effect| effect.order.as_str()).collect();
        let sent = self.sent.lock().await;
        let in_doubt = stopped.in_doubt.iter().map(|doubt| {
            let message = sent
                .iter()
                .find(|sent| (sent.partition, sent.offset) == (doubt.partition, doubt.offset));
            let order = message.map_or_else(
                || "a message nobody sent".to_owned(),
                |sent| sent.order.id.clone(),
            );
            Doubt {
                applied: applied.contains(order.as_str()),
                order,
                partition: doubt.partition,
                offset: doubt.offset,
                attempts: doubt.attempts,
            }
        });
        Kill {
            life,
            in_doubt: in_doubt.collect(),
            redelivered: stopped.redelivered,
        }
    }

    fn show_doubts(&self, kill: &Kill) {
        let teller = self.stage.teller;
        teller.tell(format_args!(
            "stopped store: {} in doubt (begun, no outcome, and nobody left to give one), {} recorded and not yet committed",
            kill.in_doubt.len(),
            kill.redelivered
        ));
        for doubt in kill.in_doubt.iter().take(DOUBTS_SHOWN) {
            let found = if doubt.applied { "charged" } else { "not charged" };
            teller.tell(format_args!(
                "    {} (partition {}, offset {}, attempt {}): the file of effects says {found}",
                doubt.order, doubt.partition, doubt.offset, doubt.attempts
            ));
        }
        if kill.in_doubt.len() > DOUBTS_SHOWN {
            teller.tell(format_args!(
                "    and {} more",
                kill.in_doubt.len() - DOUBTS_SHOWN
            ));
        }
    }

    fn effects_failed(&self, source: std::io::Error) -> Error {
        Error::Io {
            what: format!("reading {}", self.told.effects.display()),
            source,
        }
    }
}

/// How far a life has to come.
#[derive(Clone, Copy)]
enum Until {
    /// So many effects, those of earlier lives included.
    Effects(usize),
    /// Everything is sent and committed.
    Committed,
}

/// What the probe answered for those orders, the first answer of each.
fn answers(said: &[Said], wanted: &BTreeSet<&str>) -> Vec<bool> {
    let mut seen = BTreeSet::new();
    let answers = said.iter().filter_map(|said| match said {
        Said::Probed { order, applied } if wanted.contains(order.as_str()) && seen.insert(order) => {
            Some(*applied)
        }
        _ => None,
    });
    answers.collect()
}

fn note_answers(answers: &mut Vec<Answer>, life: u32, said: Vec<Said>) {
    answers.extend(said.into_iter().filter_map(|said| match said {
        Said::Probed { order, applied } => Some(Answer { life, order, applied }),
        _ => None,
    }));
}

fn read_letter(letter: &Letter) -> Result<DeadLetter, Error> {
    let header = |name: &str| {
        let name = format!("{}{name}", dead_letter::PREFIX);
        let value = letter.headers.iter().find(|(found, _)| *found == name);
        let value = value.and_then(|(_, value)| value.as_deref());
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let payload = letter.payload.as_deref().unwrap_or_default();
    let order: Order = serde_json::from_slice(payload).map_err(|error| Error::Letter(error.to_string()))?;
    let missing = |name| Error::Letter(format!("{}: no header {}{name}", order.id, dead_letter::PREFIX));
    Ok(DeadLetter {
        id: header("id").ok_or_else(|| missing("id"))?,
        reason: header("reason").ok_or_else(|| missing("reason"))?,
        order,
    })
}

/// Writes what was seen beside the consumer's state, for whoever looks for the fault.
pub(super) fn keep(evidence: &Evidence, dir: &Path) {
    let mut sent = String::new();
    for one in &evidence.sent {
        sent.push_str(&format!(
            "{} {} partition {} offset {} cents {}\n",
            one.token, one.order.id, one.partition, one.offset, one.order.cents
        ));
    }
    let rest = format!(
        "kills {:#?}\nanswers {:#?}\nletters {:#?}\nbooks of the last life {:#?}\ncommitted before it {:?}\ncommitted after it {:?}\n",
        evidence.kills,
        evidence.answers,
        evidence.letters,
        evidence.last_life,
        evidence.committed_before,
        evidence.committed_after
    );
    let write = |name: &str, text: String| {
        let path: PathBuf = dir.join(name);
        if let Err(error) = std::fs::write(&path, text) {
            super::eprint(&format!("demo: {} could not be written: {error}", path.display()));
        }
    };
    write("sent", sent);
    write("evidence", rest);
}

async fn blocking<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(ask)
        .await
        .map_err(|error| Error::Internal(error.to_string()))
}
