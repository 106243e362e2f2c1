//! Messages at a steady pace, and when each of them was recorded: the time from append to outcome, and the time without
//! service while instances are stopped and started in turn.
//!
//! The instances are processes of this program. This one sends, and asks for the group's committed offsets all the time: in
//! replicated mode they are committed in the transaction that records the outcomes, so what is committed is recorded, and
//! somebody else has seen it. In local mode they follow the record; there every millisecond, instead of every second.
//!
//! A message is appended when the broker says so (`message.timestamp.type=LogAppendTime`, in milliseconds, on the same clock).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use crate::broker::Observer;
use crate::contestants::HEADER;
use crate::figures::{Figure, median};
use crate::{Result, Run};

/// Messages of the size that the others are measured with.
const PAYLOAD: usize = 200;
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How often committed offsets are asked for: bounds how much later than the commit it is noticed.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// The time from append to outcome: warm first, then measured.
const WARM: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(20);

/// The rolling restart.
const INSTANCES: usize = 3;
const ROLLING_PARTITIONS: i32 = 64;
const ROLLING_PACE: Pace = Pace {
    rate: 6_400,
    tokens: None,
};
/// Between the end of an instance and its next start.
const AWAY: Duration = Duration::from_secs(2);
/// The group is quiet once every partition has been served at least every so often, for so long.
const QUIET_GAP_MS: i64 = 1_000;
const QUIET: Duration = Duration::from_secs(5);
const QUIET_WITHIN: Duration = Duration::from_secs(120);

/// What is sent at a steady pace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Messages a second.
    pub(crate) rate: u64,
    /// So many different tokens, over and over; each a new one where it is left out.
    pub(crate) tokens: Option<u64>,
}

/// Median and 99th percentile of the time from append to recorded outcome. At the end nothing is left to be recorded.
pub(crate) fn latency(run: &Run, durability: &'static str, pace: Pace, state: &Path) -> Result<[f64; 2]> {
    let kind = pace.tokens.map_or("", |_| "-again");
    let topic = format!("{}-paced-{durability}{kind}-{}", run.topic, std::process::id());
    create(&run.brokers, &topic, 4)?;
    let instance = Instance::start(run, &topic, durability, state)?;
    let flow = Flow::start(&run.brokers, &topic, 4, pace)?;
    instance.await_service()?;
    thread::sleep(WARM);
    let begin_ms = wall_ms();
    thread::sleep(MEASURED);
    let end_ms = wall_ms();
    let flown = flow.stop()?;
    instance.stop()?;
    let observer = Observer::new(&run.brokers, &topic, &topic)?;
    observer.await_committed(&observer.ends()?.0, ANSWER_MAX)?;
    let mut times = flown.times(begin_ms, end_ms)?;
    times.sort_unstable();
    let wanted = pace.rate * MEASURED.as_secs();
    if (times.len() as u64) < wanted * 9 / 10 {
        return Err(format!(
            "{} messages were recorded in time, {wanted} were to be sent",
            times.len()
        )
        .into());
    }
    Ok([0.5, 0.99].map(|part| quantile(&times, part)))
}

/// The time in which a partition is not served, for each partition and each instance that is stopped and started again.
pub(crate) fn rolling(run: &Run, state: &Path) -> Result<Vec<Figure>> {
    let topic = format!("{}-rolling-{}", run.topic, std::process::id());
    create(&run.brokers, &topic, ROLLING_PARTITIONS)?;
    let dirs: Vec<PathBuf> = (0..INSTANCES)
        .map(|number| state.join(number.to_string()))
        .collect();
    let start = |dir: &PathBuf| Instance::start(run, &topic, "replicated", dir);
    let mut instances = dirs.iter().map(start).collect::<Result<Vec<_>>>()?;
    let flow = Flow::start(&run.brokers, &topic, ROLLING_PARTITIONS, ROLLING_PACE)?;
    for instance in &instances {
        instance.await_service()?;
    }
    flow.await_quiet()?;
    let mut spans = Vec::new();
    for dir in &dirs {
        let begin_ms = wall_ms();
        instances.remove(0).stop()?;
        thread::sleep(AWAY);
        let instance = start(dir)?;
        instance.await_service()?;
        instances.push(instance);
        flow.await_quiet()?;
        spans.push((begin_ms, wall_ms()));
    }
    let flown = flow.stop()?;
    for instance in instances {
        instance.stop()?;
    }
    let mut gaps = Vec::new();
    for (begin_ms, end_ms) in spans {
        let of_restart = flown.gaps(begin_ms, end_ms);
        let worst = of_restart.iter().max().copied().unwrap_or_default();
        println!(
            "rolling: an instance stopped and started again within {:.1} s: a partition stands still for at most {worst} ms",
            (end_ms - begin_ms) as f64 / 1e3
        );
        gaps.extend(of_restart);
    }
    gaps.sort_unstable();
    let figure = |name, value: f64| Figure {
        name,
        value: value / 1e3,
        unit: "s",
    };
    let middle = median(gaps.iter().map(|gap| *gap as f64).collect()).unwrap_or_default();
    Ok(vec![
        figure("rolling_restart_median", middle),
        figure("rolling_restart_p99", quantile(&gaps, 0.99)),
        figure("rolling_restart_max", quantile(&gaps, 1.0)),
    ])
}

/// Of sorted values.
pub(crate) fn quantile(sorted: &[i64], part: f64) -> f64 {
    let place = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(place.max(1) - 1).copied().unwrap_or_default() as f64
}

pub(crate) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn create(brokers: &str, topic: &str, partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "LogAppendTime");
    let runtime = tokio::runtime::Runtime::new()?;
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_MAX));
    for created in runtime.block_on(admin.create_topics([&new], &options))? {
        created.map_err(|(name, code)| format!("topic {name} was not created: {code}"))?;
    }
    Ok(())
}

/// A consumer in a process of its own, which runs until its input is closed.
struct Instance {
    child: Child,
    input: Option<ChildStdin>,
    /// Closed with the process.
    serving: mpsc::Receiver<String>,
}

impl Instance {
    fn start(run: &Run, topic: &str, durability: &str, state: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["contestant", "--kind", &format!("serve-{durability}")])
            .args([
                "--count",
                "0",
                "--brokers",
                &run.brokers,
                "--topic",
                topic,
                "--group",
                topic,
            ])
            .arg("--state-dir")
            .arg(state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (tell, serving) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                    let _ = tell.send(line);
                }
            });
        }
        Ok(Self {
            input: child.stdin.take(),
            child,
            serving,
        })
    }

    /// Waits for its first handler.
    fn await_service(&self) -> Result<()> {
        match self.serving.recv_timeout(QUIET_WITHIN) {
            Ok(line) if line == crate::serve::SERVING => Ok(()),
            other => Err(format!("an instance did not come to serve: {other:?}").into()),
        }
    }

    fn stop(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("an instance failed: {status}").into()),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When each message was appended, by partition and offset.
#[derive(Default)]
struct Appended(Mutex<Vec<Vec<i64>>>);

impl ClientContext for Appended {}

impl ProducerContext for Appended {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Ok(message) = result else { return };
        let (Ok(partition), Ok(offset)) = (
            usize::try_from(message.partition()),
            usize::try_from(message.offset()),
        ) else {
            return;
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() <= partition {
            all.resize_with(partition + 1, Vec::new);
        }
        if let Some(of) = all.get_mut(partition) {
            if of.len() <= offset {
                of.resize(offset + 1, 0);
            }
            if let (Some(place), Some(stamp_ms)) = (of.get_mut(offset), message.timestamp().to_millis()) {
                *place = stamp_ms;
            }
        }
    }
}

/// What was seen to be committed: when, which partition, its next offset.
type Commits = Arc<Mutex<Vec<(i64, i32, i64)>>>;

/// Sends and observes, until it is stopped.
struct Flow {
    over: Arc<AtomicBool>,
    partitions: i32,
    commits: Commits,
    sender: JoinHandle<Result<Vec<Vec<i64>>>>,
    observer: JoinHandle<Result<()>>,
}

impl Flow {
    fn start(brokers: &str, topic: &str, partitions: i32, pace: Pace) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let producer: ThreadedProducer<Appended> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("linger.ms", "1")
            .create_with_context(Appended::default())?;
        let stop = Arc::clone(&over);
        let to = topic.to_owned();
        let sender = thread::Builder::new()
            .name("bench-sender".into())
            .spawn(move || send(&producer, &to, partitions, pace, &stop))?;
        // A commit that is still open is not waited for: it is seen once it is made.
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", topic)
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_uncommitted")
            .create()?;
        let commits = Commits::default();
        let (seen, stop, of) = (Arc::clone(&commits), Arc::clone(&over), topic.to_owned());
        let observer = thread::Builder::new()
            .name("bench-observer".into())
            .spawn(move || observe(&client, &of, partitions, &seen, &stop))?;
        Ok(Self {
            over,
            partitions,
            commits,
            sender,
            observer,
        })
    }

    /// Waits until nobody stands still any more.
    fn await_quiet(&self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < QUIET_WITHIN {
            thread::sleep(Duration::from_millis(500));
            let now_ms = wall_ms();
            let from_ms = now_ms - i64::try_from(QUIET.as_millis())?;
            let commits = self
                .commits
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let gaps = gaps(&commits, self.partitions, from_ms, now_ms);
            if begun.elapsed() > QUIET && gaps.iter().all(|gap| *gap < QUIET_GAP_MS) {
                return Ok(());
            }
        }
        Err(format!("some partition still stands still after {QUIET_WITHIN:?}").into())
    }

    fn stop(self) -> Result<Flown> {
        // What was sent last is to be recorded too.
        thread::sleep(Duration::from_secs(2));
        self.over.store(true, Ordering::Release);
        let appended = self.sender.join().map_err(|_| "the sender panicked")??;
        self.observer.join().map_err(|_| "the observer panicked")??;
        let commits = self
            .commits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ok(Flown {
            appended,
            partitions: self.partitions,
            commits,
        })
    }
}

/// What was sent and what was seen.
struct Flown {
    appended: Vec<Vec<i64>>,
    partitions: i32,
    commits: Vec<(i64, i32, i64)>,
}

impl Flown {
    /// From append to recorded outcome, in milliseconds, of the messages that were appended in that time.
    fn times(&self, begin_ms: i64, end_ms: i64) -> Result<Vec<i64>> {
        let mut next = vec![0_usize; self.appended.len()];
        let mut times = Vec::new();
        for (seen_ms, partition, to) in &self.commits {
            let (partition, to) = (usize::try_from(*partition)?, usize::try_from(*to)?);
            let (Some(of), Some(next)) = (self.appended.get(partition), next.get_mut(partition)) else {
                continue;
            };
            let recorded = of.get(*next..to.max(*next).min(of.len())).unwrap_or_default();
            let within = recorded
                .iter()
                .filter(|stamp_ms| (begin_ms..end_ms).contains(*stamp_ms));
            times.extend(within.map(|stamp_ms| seen_ms - stamp_ms));
            *next = to.max(*next);
        }
        Ok(times)
    }

    fn gaps(&self, begin_ms: i64, end_ms: i64) -> Vec<i64> {
        gaps(&self.commits, self.partitions, begin_ms, end_ms)
    }
}

/// The longest time between two outcomes of each partition, in milliseconds.
fn gaps(commits: &[(i64, i32, i64)], partitions: i32, begin_ms: i64, end_ms: i64) -> Vec<i64> {
    let of = |partition: i32| {
        let mut last = begin_ms;
        let mut longest = 0;
        let seen = commits
            .iter()
            .filter(|(_, of, _)| *of == partition)
            .map(|(seen_ms, ..)| *seen_ms);
        for seen_ms in seen
            .filter(|seen_ms| (begin_ms..end_ms).contains(seen_ms))
            .chain([end_ms])
        {
            longest = longest.max(seen_ms - last);
            last = seen_ms;
        }
        longest
    };
    (0..partitions).map(of).collect()
}

fn send(
    producer: &ThreadedProducer<Appended>,
    topic: &str,
    partitions: i32,
    pace: Pace,
    over: &AtomicBool,
) -> Result<Vec<Vec<i64>>> {
    let mut payload = Vec::new();
    write!(payload, "{{\"text\":\"")?;
    payload.resize(PAYLOAD - 2, b'x');
    payload.extend_from_slice(b"\"}");
    let begun = Instant::now();
    let mut sent = 0_u64;
    while !over.load(Ordering::Acquire) {
        let due = u64::try_from(begun.elapsed().as_micros())? * pace.rate / 1_000_000;
        while sent < due {
            let number = pace.tokens.map_or(sent, |tokens| sent % tokens);
            let token = format!("{topic}-{number}");
            let headers = OwnedHeaders::new().insert(Header {
                key: HEADER,
                value: Some(&token),
            });
            let partition = i32::try_from(sent % u64::try_from(partitions)?)?;
            let record = BaseRecord::<(), [u8]>::to(topic)
                .partition(partition)
                .payload(&payload)
                .headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
            sent += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    producer.flush(ANSWER_MAX)?;
    let mut appended = producer
        .context()
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *appended))
}

fn observe(
    client: &BaseConsumer,
    topic: &str,
    partitions: i32,
    seen: &Commits,
    over: &AtomicBool,
) -> Result<()> {
    let mut asked = TopicPartitionList::new();
    for partition in 0..partitions {
        asked.add_partition(topic, partition);
    }
    let mut known = vec![0; usize::try_from(partitions)?];
    while !over.load(Ordering::Acquire) {
        // Nobody may have committed yet, and a coordinator is found a moment later.
        if let Ok(answer) = client.committed_offsets(asked.clone(), ANSWER_MAX) {
            let now_ms = wall_ms();
            let mut commits = seen.lock().unwrap_or_else(PoisonError::into_inner);
            for element in answer.elements() {
                let (Offset::Offset(next), Some(known)) = (
                    element.offset(),
                    known.get_mut(usize::try_from(element.partition())?),
                ) else {
                    continue;
                };
                if next > *known {
                    *known = next;
                    commits.push((now_ms, element.partition(), next));
                }
            }
        }
        thread::sleep(ASK_EVERY);
    }
    Ok(())
}
