//! The contestants that run in a process of this program. Each prints one line of JSON, or fails.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use hapax::accounts::Account;
use hapax::config::{ByteCount, Durability, Layer, Listen};
use hapax::{Class, Consumer, Context, Summary, Topic, Window};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use serde::{Deserialize, Serialize};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::broker::{Ends, Observer};
use crate::serve::serve;
use crate::{Result, filled, held, process, slow, twice};

/// The header that all contestants read the token from.
pub(crate) const HEADER: &str = "idempotency-key";
/// All that was run is recorded and committed within this, or the run has failed.
pub(crate) const COMMITTED_WITHIN: Duration = Duration::from_secs(60);

/// A run in which no handler is called for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// One poll of the bare loop, and how many in a row may bring nothing.
const POLL: Duration = Duration::from_millis(100);
const SILENT_POLLS_MAX: u32 = 600;

/// One contestant's work.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Task {
    #[arg(long)]
    pub(crate) kind: Kind,
    #[arg(long, default_value = "")]
    pub(crate) brokers: String,
    #[arg(long, default_value = "")]
    pub(crate) topic: String,
    #[arg(long, default_value = "")]
    pub(crate) group: String,
    #[arg(long)]
    pub(crate) state_dir: PathBuf,
    /// Messages in the topic, or tokens in the store.
    #[arg(long)]
    pub(crate) count: u64,
    /// hapax's `memory`, in MiB; its default where it is left out.
    #[arg(long)]
    pub(crate) memory_mib: Option<u64>,
    /// librdkafka properties, as KEY=VALUE.
    #[arg(long)]
    pub(crate) set: Vec<String>,
}

/// Which contestant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A loop around librdkafka's poll that reads one header.
    Bare,
    /// hapax with an idempotent handler that does nothing.
    Idempotent,
    /// hapax with a non-idempotent handler that does nothing.
    NonIdempotent,
    /// The same two in replicated mode.
    Replicated,
    ReplicatedNonIdempotent,
    /// hapax on an empty disk, in a group whose changelog holds every token.
    Restore,
    /// Fills a store, and waits to be killed.
    Fill,
    /// Opens that store, loads its partitions, closes it.
    Reopen,
    /// A store with so many held messages, due one after another within an hour from now.
    FillHeld,
    /// hapax with an idempotent handler that does nothing, on such a store or on an empty one.
    Held,
    /// hapax over unique messages, and over the same ones again.
    Once,
    Twice,
    /// hapax by key with a handler that sleeps, and with one that does nothing.
    Slow,
    Quick,
    /// hapax until its input is closed: measured from outside.
    ServeLocal,
    ServeReplicated,
}

/// What a contestant came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Messages, or tokens.
    pub(crate) count: u64,
    /// From the first message to the last one, dealt with as the contestant promises.
    pub(crate) seconds: f64,
    /// Of these, after the last handler: the rest of the records, the drain, the commit.
    #[serde(default)]
    pub(crate) end_seconds: f64,
    /// Peak resident set.
    pub(crate) rss_kib: u64,
    /// Seconds on a processor by thread, at the last message.
    pub(crate) cpu: BTreeMap<String, f64>,
    /// From the start of the consumer to the first handler of a fresh message.
    #[serde(default)]
    pub(crate) start_seconds: f64,
    /// How late held messages started that came due meanwhile, in milliseconds.
    #[serde(default)]
    pub(crate) late_ms: Vec<i64>,
    /// What a call of the handler took, on average.
    #[serde(default)]
    pub(crate) handler_seconds: f64,
}

pub(crate) fn run(task: Task) -> Result<()> {
    let restores = Restores::default();
    // What hapax warns of belongs beside a figure that it may explain.
    let warnings = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_filter(tracing::level_filters::LevelFilter::WARN);
    tracing_subscriber::registry()
        .with(warnings)
        // Only there: with it spans and events are made that nobody else wants, and they would count as work.
        .with((task.kind == Kind::Restore).then(|| {
            let info = tracing_subscriber::filter::LevelFilter::INFO;
            restores.clone().with_filter(info)
        }))
        .init();
    let measured = match task.kind {
        Kind::ServeLocal => return serve(&task, Durability::Local),
        Kind::ServeReplicated => return serve(&task, Durability::Replicated),
        Kind::Bare => bare(&task),
        Kind::Idempotent => hapax(&task, Class::Idempotent, Durability::Local),
        Kind::NonIdempotent => hapax(&task, Class::NonIdempotent, Durability::Local),
        Kind::Replicated => hapax(&task, Class::Idempotent, Durability::Replicated),
        Kind::ReplicatedNonIdempotent => hapax(&task, Class::NonIdempotent, Durability::Replicated),
        Kind::Restore => restore(&task, &restores),
        Kind::FillHeld => held::fill(&task),
        Kind::Held => held::consume(&task),
        Kind::Once => twice::consume(&task, Account::Done),
        Kind::Twice => twice::consume(&task, Account::Duplicate),
        Kind::Slow => slow::consume(&task, slow::SLEEP),
        Kind::Quick => slow::consume(&task, Duration::ZERO),
        Kind::Fill => fill(&task),
        Kind::Reopen => reopen(&task),
    }?;
    println!("{}", serde_json::to_string(&measured)?);
    if task.kind == Kind::Fill {
        // The driver kills it now: the next one to open the store finds what a kill leaves.
        loop {
            thread::park();
        }
    }
    Ok(())
}

/// One thread, one consumer queue, one header, nothing committed: what librdkafka gives at its best.
fn bare(task: &Task) -> Result<Measured> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &task.brokers)
        .set("group.id", &task.group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false");
    for (key, value) in properties(task)? {
        config.set(key, value);
    }
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[&task.topic])?;
    let mut first = None;
    let mut count = 0;
    let mut silent = 0;
    while count < task.count {
        let Some(message) = consumer.poll(POLL) else {
            // A rebalance also ends a poll without a message.
            silent += 1;
            if silent > SILENT_POLLS_MAX {
                return Err(format!("bare: {count} of {} messages, and no more come", task.count).into());
            }
            continue;
        };
        silent = 0;
        let message = message?;
        first.get_or_insert_with(Instant::now);
        let headers = message.headers().ok_or("bare: a message without headers")?;
        let token = headers.iter().find(|header| header.key == HEADER);
        let token = token
            .and_then(|header| header.value)
            .ok_or("bare: a message without a token")?;
        std::hint::black_box(token);
        count += 1;
    }
    let took = first.map(|first| first.elapsed()).unwrap_or_default();
    Ok(Measured {
        count,
        seconds: took.as_secs_f64(),
        end_seconds: 0.0,
        rss_kib: process::peak_rss_kib()?,
        cpu: process::cpu_by_thread()?,
        ..Measured::default()
    })
}

fn properties(task: &Task) -> Result<Vec<(&str, &str)>> {
    let pairs = task.set.iter().map(|pair| pair.split_once('='));
    Ok(pairs.collect::<Option<_>>().ok_or("--set wants KEY=VALUE")?)
}

/// What is counted: calls of the handler, or messages read.
#[derive(Debug)]
pub(crate) struct Progress {
    wanted: u64,
    pub(crate) ran: AtomicU64,
    pub(crate) first: OnceLock<Instant>,
    pub(crate) last: OnceLock<Instant>,
    all: tokio::sync::Notify,
}

impl Progress {
    pub(crate) fn new(wanted: u64) -> Self {
        Self {
            wanted,
            ran: AtomicU64::new(0),
            first: OnceLock::new(),
            last: OnceLock::new(),
            all: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn one(&self) {
        let before = self.ran.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            let _ = self.first.set(Instant::now());
        }
        if before + 1 == self.wanted {
            let _ = self.last.set(Instant::now());
            self.all.notify_one();
        }
    }

    /// Waits for the last handler; `false` once none has been called for too long.
    pub(crate) async fn all_have_run(&self) -> bool {
        let mut seen = 0;
        while tokio::time::timeout(SILENCE_MAX, self.all.notified())
            .await
            .is_err()
        {
            let ran = self.ran.load(Ordering::Relaxed);
            if ran == seen {
                return false;
            }
            seen = ran;
        }
        true
    }
}

/// hapax with its defaults. The clock starts at the first call of the handler, and stops when another client sees that
/// the group has committed the ends of the log. The consumer is asked to stop once the last handler has run, so that
/// the rest of a commit interval is not counted; a drain records and commits what has run.
fn hapax(task: &Task, class: Class, durability: Durability) -> Result<Measured> {
    let observer = Observer::new(&task.brokers, &task.topic, &task.group)?;
    let (ends, held) = observer.ends()?;
    if held != task.count {
        return Err(format!("topic {} holds {held} messages, not {}", task.topic, task.count).into());
    }
    let progress = Arc::new(Progress::new(task.count));
    let topic = Topic::bytes(&task.topic, class)
        .window(Window::hours(24))
        .state(Arc::clone(&progress));
    let consumer = configured(task, durability, |_| {})?.handle(
        topic,
        |_payload, cx: Context<Arc<Progress>>| async move {
            cx.state().one();
            Ok(())
        },
    );
    let ended = to_the_end(consumer, observer, ends, progress.all_have_run())?;
    let ran = progress.ran.load(Ordering::Relaxed);
    let Ended {
        summary,
        committed,
        cpu,
    } = ended.ok_or_else(|| {
        format!(
            "{ran} handlers have run, {} are expected, and no more came",
            task.count
        )
    })?;
    check(&summary, task.count)?;
    let (first, last) = (progress.first.get(), progress.last.get());
    let (first, last) = first.zip(last).ok_or("no handler has run")?;
    Ok(Measured {
        count: task.count,
        seconds: committed.duration_since(*first).as_secs_f64(),
        end_seconds: committed.duration_since(*last).as_secs_f64(),
        rss_kib: process::peak_rss_kib()?,
        cpu,
        ..Measured::default()
    })
}

/// What is the same for everybody: dead letters have somewhere to go, and several may run on one machine.
pub(crate) fn configured(
    task: &Task,
    durability: Durability,
    change: impl FnOnce(&mut Layer),
) -> Result<Consumer> {
    let properties = properties(task)?;
    let consumer = match durability {
        Durability::Replicated => Consumer::replicated(&task.group, &task.state_dir),
        _ => Consumer::local(&task.group, &task.state_dir),
    };
    Ok(consumer.brokers(&task.brokers).with(|layer| {
        layer.kafka = properties.into_iter().collect();
        layer.memory = task.memory_mib.map(ByteCount::mib);
        // The clock stops at the last commit: at the default, a second, waiting for it would count as work. Ten times
        // the commits are paid for by hapax.
        layer.commit_every = Some(Duration::from_millis(100));
        // hapax starts only where dead letters have somewhere to go; none is expected.
        layer.dead_letter.create = Some(true);
        layer.admin.listen = Some(Listen::Off);
        change(layer);
    }))
}

/// What a consumer came to that has run everything.
pub(crate) struct Ended {
    pub(crate) summary: Summary,
    /// When another client saw the ends of the log committed.
    pub(crate) committed: Instant,
    pub(crate) cpu: BTreeMap<String, f64>,
}

/// Runs until everything has run and is committed; `None` where `all` says that no more comes.
pub(crate) fn to_the_end(
    consumer: Consumer,
    observer: Observer,
    ends: Ends,
    all: impl Future<Output = bool>,
) -> Result<Option<Ended>> {
    let (run_out, ran_out) = mpsc::channel();
    let watcher = thread::Builder::new()
        .name("bench-observer".into())
        .spawn(move || {
            // Nothing is asked while messages are taken. An error here is that `consumer` has failed, which says why.
            ran_out.recv().ok()?;
            Some(observer.await_committed(&ends, COMMITTED_WITHIN))
        })?;
    let mut cpu = Ok(BTreeMap::new());
    let runtime = tokio::runtime::Runtime::new()?;
    let summary = runtime.block_on(consumer.run_until(async {
        if all.await {
            cpu = process::cpu_by_thread();
            let _ = run_out.send(());
        }
    }));
    drop(run_out);
    let committed = watcher.join().map_err(|_| "the observer panicked")?;
    let summary = summary.map_err(|error| chain(&error))?;
    let Some(committed) = committed else {
        return Ok(None);
    };
    Ok(Some(Ended {
        summary,
        committed: committed?,
        cpu: cpu?,
    }))
}

/// Every message is done, once, and the books balance.
pub(crate) fn check(summary: &Summary, wanted: u64) -> Result<()> {
    let (mut taken, mut done) = (0, 0);
    for balance in &summary.balances {
        taken += balance.taken;
        done += balance.of(Account::Done);
        if balance.remainder() != 0 {
            return Err(format!("the books do not balance: {balance:?}").into());
        }
    }
    if (taken, done) != (wanted, wanted) {
        return Err(format!("{taken} messages taken, {done} done, {wanted} expected: {summary:?}").into());
    }
    Ok(())
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What hapax logs of its restores. Timed as Kafka Streams' is: from the first partition that starts to the last that ends.
#[derive(Debug, Clone, Default)]
struct Restores(Arc<Mutex<Restored>>);

#[derive(Debug, Clone, Copy, Default)]
struct Restored {
    first: Option<Instant>,
    last: Option<Instant>,
    partitions: usize,
    records: u64,
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Restores {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let Ok(mut restored) = self.0.lock() else { return };
        if said.message == "restoring from the changelog" {
            restored.first.get_or_insert_with(Instant::now);
        } else if said.message == "restored from the changelog" {
            restored.last = Some(Instant::now());
            restored.partitions += 1;
            restored.records += said.records;
        }
    }
}

/// What of an event is of interest.
#[derive(Default)]
struct Said {
    message: String,
    records: u64,
}

impl tracing::field::Visit for Said {
    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        if field.name() == "records" {
            self.records = value;
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

/// Starts, restores, and stops. Nothing is left to be taken of the topic.
fn restore(task: &Task, restores: &Restores) -> Result<Measured> {
    let partitions = Observer::new(&task.brokers, &task.topic, &task.group)?
        .ends()?
        .0
        .len();
    let topic = Topic::bytes(&task.topic, Class::Idempotent).window(Window::hours(24));
    let consumer = Consumer::replicated(&task.group, &task.state_dir)
        .brokers(&task.brokers)
        .with(|layer| {
            layer.dead_letter.create = Some(true);
            layer.admin.listen = Some(Listen::Off);
        })
        .handle(topic, |_payload, _: Context| async move { Ok(()) });
    let read = || restores.0.lock().map(|restored| *restored).unwrap_or_default();
    let begun = Instant::now();
    let mut cpu = Ok(BTreeMap::new());
    let runtime = tokio::runtime::Runtime::new()?;
    let summary = runtime.block_on(consumer.run_until(async {
        while read().partitions < partitions && begun.elapsed() < 2 * SILENCE_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cpu = process::cpu_by_thread();
    }));
    summary.map_err(|error| chain(&error))?;
    let restored = read();
    let (first, last) = restored.first.zip(restored.last).ok_or("nothing was restored")?;
    if (restored.partitions, restored.records) != (partitions, task.count) {
        return Err(format!("{restored:?}: {} records expected", task.count).into());
    }
    Ok(Measured {
        count: task.count,
        seconds: last.duration_since(first).as_secs_f64(),
        end_seconds: 0.0,
        rss_kib: process::peak_rss_kib()?,
        cpu: cpu?,
        ..Measured::default()
    })
}

fn fill(task: &Task) -> Result<Measured> {
    let store = filled::open(&task.state_dir)?;
    let begun = Instant::now();
    filled::fill(&store, filled::Span::new(task.count, 5))?;
    Ok(Measured {
        count: task.count,
        seconds: begun.elapsed().as_secs_f64(),
        end_seconds: 0.0,
        rss_kib: process::peak_rss_kib()?,
        cpu: process::cpu_by_thread()?,
        ..Measured::default()
    })
}

fn reopen(task: &Task) -> Result<Measured> {
    use hapax::store::Store as _;
    let begun = Instant::now();
    let store = filled::open(&task.state_dir)?;
    let mut points = 0;
    for number in 0..filled::PARTITIONS {
        let known = store.load(filled::partition(&store, number)?)?;
        let position = known.position.ok_or("a partition has lost its position")?;
        points += position.commit_point.0;
    }
    let took = begun.elapsed();
    if u64::try_from(points)? != task.count {
        return Err(format!("the store knows {points} tokens, {} were written", task.count).into());
    }
    store.close()?;
    Ok(Measured {
        count: task.count,
        seconds: took.as_secs_f64(),
        end_seconds: 0.0,
        rss_kib: process::peak_rss_kib()?,
        cpu: process::cpu_by_thread()?,
        ..Measured::default()
    })
}
