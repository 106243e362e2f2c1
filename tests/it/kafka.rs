//! A real Kafka for the tests that need one: a single node on loopback, started from jars by `scripts/kafka.sh`.
//!
//! [`broker`] is shared by all tests of the process, which keep apart by [`unique`] topics and groups. A test that kills,
//! freezes or restarts its broker takes one of its own from [`Broker::own`]: only an owned one has those methods.
//!
//! The invariant: **no node outlives the test process**, however that ends. Statics are never dropped, and a process that is
//! killed runs nothing at all, so each node has a guard beside it: a small process that reads a pipe whose other end is held
//! here. The system closes the pipe when this process is gone, and the guard kills the node and deletes its folder.
//!
//! Without Java or Maven there is no node: the test says `SKIPPED` and returns. With `CI=true` that is a failure.

#![allow(dead_code, reason = "each test takes the part of the fixture that it needs")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

/// A start takes 3 to 6 s on a quiet machine; a busy one must not fail a test.
const START_WITHIN: Duration = Duration::from_secs(120);
/// One request to a node that runs.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The node that all tests of this process share, started by the first that asks; `None` where there can be none.
///
/// ```ignore
/// let Some(broker) = kafka::broker() else { return };
/// ```
pub(crate) fn broker() -> Option<&'static Broker> {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    available().then(|| SHARED.get_or_init(Broker::launch))
}

/// A name that no other test has, in this process or another: for topics, groups and transactional ids.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{name}-{pid}-{n}")
}

/// Asks until there is an answer; panics when there is none in time. For what happens in another process, where nothing
/// here can be awaited.
#[expect(
    clippy::disallowed_methods,
    reason = "another process is waited for: no clock of ours drives it"
)]
pub(crate) fn eventually<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let asked_at = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(asked_at.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What makes a node another than the shared one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extra {
    /// Lines of its configuration, which win over the usual ones.
    pub(crate) properties: String,
    /// The id that all nodes of one cluster share; `None` for a cluster of its own.
    pub(crate) cluster: Option<String>,
}

/// One running node.
pub(crate) struct Broker {
    dir: PathBuf,
    port: u16,
    extra: Extra,
    node: Child,
    /// Holds the pipe. Waiting for it closes the pipe first, which is its sign to kill the node and delete `dir`.
    guard: Child,
}

impl Broker {
    /// A node for one test alone, ended when dropped; `None` where there can be none.
    pub(crate) fn own() -> Option<Self> {
        available().then(Self::launch)
    }

    /// A node of a cluster, on a port that [`free_port`] gave. It serves later: see [`await_service`](Self::await_service).
    pub(crate) fn of_cluster(port: u16, extra: Extra) -> Self {
        Self::begin(port, extra)
    }

    /// Waits until a node [of a cluster](Self::of_cluster) serves.
    pub(crate) fn await_service(&mut self) {
        if !self.serves() {
            self.give_up();
        }
    }

    /// For `bootstrap.servers`. It stays the same across restarts.
    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The start of any client's configuration. Reconnects come soon: a test that restarts its node waits for them.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.bootstrap())
            .set("reconnect.backoff.max.ms", "200");
        config
    }

    /// Creates a topic and waits until every partition has a leader, so that the test's first request can succeed.
    ///
    /// Two of the node's defaults surprise tests of time: it refuses timestamps more than an hour ahead
    /// (`message.timestamp.after.max.ms`) and deletes segments older than a week (`retention.ms`).
    pub(crate) fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        self.create_replicated_topic(name, partitions, 1, configs);
    }

    /// The same with so many replicas of each partition.
    pub(crate) fn create_replicated_topic(
        &self,
        name: &str,
        partitions: i32,
        replicas: i32,
        configs: &[(&str, &str)],
    ) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let admin = self.admin();
        let options = AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN));
        let created = wait_for(admin.create_topics([&topic], &options));
        match created.as_deref() {
            Ok([Ok(_)]) => {}
            refused => panic!("topic {name} was not created: {refused:?}"),
        }
        let client = admin.inner();
        eventually(&format!("leaders of {name}"), ANSWER_WITHIN, || {
            let metadata = client.fetch_metadata(Some(name), ANSWER_WITHIN).ok()?;
            let [topic] = metadata.topics() else { return None };
            let led = topic.partitions().iter().filter(|p| p.leader() >= 0);
            (i32::try_from(led.count()) == Ok(partitions)).then_some(())
        });
    }

    /// SIGKILL: the process crashes. What it has written stays, synced or not.
    pub(crate) fn kill(&mut self) {
        self.signal("KILL");
        self.ended();
    }

    /// SIGTERM: an orderly end, as in a rolling restart.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        self.ended();
    }

    /// SIGSTOP: connections stay open and nothing answers, as with a long pause or a lost network.
    pub(crate) fn freeze(&mut self) {
        self.signal("STOP");
    }

    /// Ends a [`freeze`](Self::freeze).
    pub(crate) fn thaw(&mut self) {
        self.signal("CONT");
    }

    /// Starts a node that was killed or stopped again, on the same port and data, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        self.ended();
        self.node = run(&self.dir, self.port, &self.extra);
        if !self.serves() {
            self.give_up();
        }
    }

    fn begin(port: u16, extra: Extra) -> Self {
        let dir = tempfile::Builder::new().prefix("hapax-kafka-").tempdir();
        let dir = dir
            .unwrap_or_else(|e| panic!("no folder for a broker: {e}"))
            .keep();
        // The guard comes first: from its start on, nothing can be left behind.
        let guard = spawn(script("guard").arg("--dir").arg(&dir).stdin(Stdio::piped()));
        Self {
            node: run(&dir, port, &extra),
            dir,
            port,
            extra,
            guard,
        }
    }

    fn launch() -> Self {
        let mut broker = Self::begin(free_port(), Extra::default());
        for _ in 0..2 {
            if broker.serves() {
                return broker;
            }
            if !broker.log().contains("Address already in use") {
                break;
            }
            // Someone took the port between our look and the node's bind.
            broker.port = free_port();
            broker.node = run(&broker.dir, broker.port, &broker.extra);
        }
        if broker.serves() { broker } else { broker.give_up() }
    }

    /// Whether the node came to serve; false when it ended first.
    fn serves(&mut self) -> bool {
        let admin = self.admin();
        eventually("a broker that serves", START_WITHIN, || {
            if matches!(self.node.try_wait(), Ok(Some(_))) {
                return Some(false);
            }
            // It lists itself once it is unfenced, which is when it may lead partitions.
            let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(1)).ok()?;
            (!metadata.brokers().is_empty()).then_some(true)
        })
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client()
            .create()
            .unwrap_or_else(|e| panic!("no admin client: {e}"))
    }

    fn signal(&self, name: &str) {
        // A shell has `kill` built in; the program of that name is not everywhere.
        let pid = self.node.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", "kill -s $0 $1", name, &pid])
            .status();
        assert!(
            sent.is_ok_and(|s| s.success()),
            "SIG{name} was not sent to pid {pid}"
        );
    }

    fn ended(&mut self) {
        eventually("the end of a broker", START_WITHIN, || {
            matches!(self.node.try_wait(), Ok(Some(_))).then_some(())
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn give_up(&self) -> ! {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.split_at(lines.len().saturating_sub(20)).1.join("\n");
        panic!("the broker did not start:\n{tail}")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.guard.wait();
        let _ = self.node.wait();
    }
}

/// Says so, or panics in CI, when no node can be had here: no Java, no Maven, or no jars.
pub(crate) fn available() -> bool {
    static FETCHED: OnceLock<Result<(), String>> = OnceLock::new();
    let fetched = FETCHED.get_or_init(|| match script("fetch").stderr(Stdio::piped()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(e) => Err(e.to_string()),
    });
    let Err(why) = fetched else { return true };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "no broker, and CI=true: {why}"
    );
    // Not `eprintln!`, which the test harness hides when a test passes.
    let thread = std::thread::current();
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: {}: no real Kafka: {why}",
        thread.name().unwrap_or("a test")
    );
    false
}

fn script(verb: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka.sh"));
    // Nobody may hold our output open after we are gone: whoever reads it would wait.
    command
        .arg(verb)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn run(dir: &Path, port: u16, extra: &Extra) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(dir.join("log"));
    let (out, err) = match log.and_then(|log| Ok((log.try_clone()?, log))) {
        Ok(both) => both,
        Err(e) => panic!("no log file in {}: {e}", dir.display()),
    };
    let mut command = script("run");
    command.arg("--port").arg(port.to_string()).arg("--dir").arg(dir);
    if !extra.properties.is_empty() {
        let file = dir.join("extra.properties");
        if let Err(e) = std::fs::write(&file, &extra.properties) {
            panic!("{}: {e}", file.display());
        }
        command.arg("--with").arg(file);
    }
    if let Some(cluster) = &extra.cluster {
        command.arg("--cluster").arg(cluster);
    }
    spawn(command.stdout(out).stderr(err))
}

/// A port whose successor is free too: that one is the controller's. Not from the range that systems hand out for outgoing
/// connections, where any client could take it while the node is being restarted.
pub(crate) fn free_port() -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    eventually("a free port", ANSWER_WITHIN, || {
        let port = 20_000 + fastrand::u16(0..6_000) * 2;
        (free(port) && free(port + 1)).then_some(port)
    })
}

/// So many, no two alike.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = free_port();
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

/// Runs a future to its end from any thread, a runtime's worker included, where a second runtime may not be entered.
fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let ended = std::thread::scope(|scope| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| panic!("no runtime: {e}"));
        scope.spawn(move || runtime.block_on(future)).join()
    });
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
