//! Every example runs and ends with 0: each asserts its own result. `consumer_binary`, the one to copy, also ends by
//! SIGTERM, and with the exit codes that it documents.
//!
//! `cargo test` builds the examples beside this binary; `cargo test --test it` does not: then what is missing, or older
//! than its source, is skipped loudly, and with `CI=true` that is a failure.

use std::io::{BufRead, BufReader, Read as _, Seek as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use crate::kafka;

/// A consumer on a busy machine: joining its group takes seconds.
const WITHIN: Duration = Duration::from_secs(120);

/// The example's binary; `None`, and a line that says so, where it was not built from what is here now.
fn binary(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().with_file_name("examples").join(name);
    let changed = last_change(&path.with_extension("d"));
    let built = path.metadata().and_then(|file| file.modified()).ok();
    if built.is_some() && built >= changed {
        return Some(path);
    }
    let why = format!(
        "{} is {}: run `cargo test` without `--test`, or `cargo build --examples` before it",
        path.display(),
        if built.is_some() {
            "older than its source"
        } else {
            "not built"
        }
    );
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    // Not `eprintln!`, which the test harness hides when a test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    None
}

/// The last change of what the binary was built from, which cargo lists beside it: `binary: source source`.
fn last_change(list: &Path) -> Option<SystemTime> {
    let list = std::fs::read_to_string(list).ok()?;
    let (_, sources) = list.split_once(": ")?;
    sources
        .replace("\\ ", "\0")
        .split_whitespace()
        .filter_map(|source| {
            let source = std::fs::metadata(source.replace('\0', " ")).ok()?;
            source.modified().ok()
        })
        .max()
}

/// The example without any setting of ours, but that it takes no port that another one has.
fn example(name: &str) -> Option<Command> {
    let mut command = Command::new(binary(name)?);
    for (setting, _) in std::env::vars_os() {
        if setting.to_string_lossy().starts_with("HAPAX_") {
            command.env_remove(setting);
        }
    }
    command.env("HAPAX_ADMIN__LISTEN", "127.0.0.1:0");
    command.stdin(Stdio::null());
    Some(command)
}

/// Runs it to its end. One that hangs is killed, and fails the test with what it said until then.
#[expect(
    clippy::disallowed_methods,
    reason = "another process is waited for: no clock of ours drives it"
)]
fn end(command: &mut Command) -> Output {
    let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let [out, err] = files.each_ref().map(|file| file.try_clone().unwrap());
    let mut child = command.stdout(out).stderr(err).spawn().unwrap();
    let asked_at = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if asked_at.elapsed() > WITHIN {
            let _ = child.kill();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let [stdout, stderr] = files.map(|mut file| {
        let mut said = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut said)).unwrap();
        said
    });
    let Some(status) = status else {
        let [out, err] = [&stdout, &stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        panic!("{command:?} was still running after {WITHIN:?}:\n{out}{err}");
    };
    Output {
        status,
        stdout,
        stderr,
    }
}

fn told(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    format!("{}\n{out}{err}", output.status)
}

fn succeeds(name: &str, broker: Option<&kafka::Broker>) {
    let Some(mut command) = example(name) else { return };
    if let Some(broker) = broker {
        command.env("HAPAX_BROKERS", broker.bootstrap());
    }
    let output = end(&mut command);
    assert!(output.status.success(), "{name}: {}", told(&output));
    let last = format!("{name}: ");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.lines().last().is_some_and(|line| line.starts_with(&last)),
        "{name} came to no conclusion: {said}"
    );
}

#[test]
fn those_without_a_broker() {
    for name in [
        "decode_registry",
        "emit_and_reply",
        "in_doubt",
        "named_handler",
        "probe",
        "retry_and_dead_letter",
        "test_a_handler",
        "test_without_broker",
        "token_sources",
        "windows_per_topic",
    ] {
        succeeds(name, None);
    }
}

#[test]
fn hello() {
    let Some(broker) = kafka::broker() else { return };
    succeeds("hello", Some(broker));
}

#[test]
fn graceful_shutdown() {
    let Some(broker) = kafka::broker() else { return };
    succeeds("graceful_shutdown", Some(broker));
}

/// A running example; killed where the test ends before it does.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (line, lines) = channel();
        std::thread::spawn(move || {
            for said in out.lines().map_while(Result::ok) {
                if line.send(said).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// What it says next.
    fn line(&self) -> String {
        self.lines
            .recv_timeout(WITHIN)
            .expect("another line of the example")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", "kill -s $0 $1", name, &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let ended = kafka::eventually("the example's end", WITHIN, || self.child.try_wait().unwrap());
        ended.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn consumer(arguments: &[&str]) -> Option<Command> {
    let mut command = example("consumer_binary")?;
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    Some(command)
}

#[test]
fn the_consumer_binary_ends_by_a_signal_and_its_next_start_repeats_nothing() {
    let Some(broker) = kafka::broker() else { return };
    let (state, group) = (tempfile::tempdir().unwrap(), kafka::unique("consumer-binary"));
    for (signal, arguments, taken) in [
        ("TERM", &["examples/consumer_binary.toml", "--try"][..], 3),
        ("INT", &["examples/consumer_binary.toml", "--try"][..], 3),
    ] {
        let Some(mut command) = consumer(arguments) else {
            return;
        };
        let port = free_port();
        command
            .env("HAPAX_BROKERS", broker.bootstrap())
            .env("HAPAX_GROUP", &group)
            .env("HAPAX_STATE_DIR", state.path())
            // Every commit in time: the second start is to be given nothing of the first.
            .env("HAPAX_COMMIT_EVERY", "100ms")
            .env("HAPAX_ADMIN__LISTEN", format!("127.0.0.1:{port}"));
        let mut running = Running::start(command);
        if signal == "TERM" {
            for paid in ["paid 90000 for rent", "paid 350 for bread"] {
                let line = running.line();
                assert!(line.starts_with(paid), "{line}");
            }
            shows_its_metrics(port);
        } else {
            // The three sent by the second start are duplicates of those of the first: nothing is paid. What shows
            // that it runs is the group's commit.
            broker_committed(broker, &group, 6);
        }
        running.signal(signal);
        assert_eq!(running.exit_code(), Some(0), "SIG{signal}");
        let done = if signal == "TERM" { 2 } else { 0 };
        assert_eq!(
            running.line(),
            format!("stopped: {taken} taken, {done} done, 0 dead-lettered")
        );
    }
}

/// A port that was free a moment ago: the example is told which one, as an operator would.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The port answers: the two payments are on the page, and the consumer is ready.
fn shows_its_metrics(port: u16) {
    let page = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: hapax\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    };
    kafka::eventually("two payments on the metrics page", WITHIN, || {
        let page = page("/metrics")?;
        let done = page
            .lines()
            .find(|line| line.starts_with("hapax_outcomes_total{") && line.contains("\"done\""))?;
        done.ends_with(" 2").then_some(())
    });
    for path in ["/healthz", "/readyz"] {
        kafka::eventually(path, WITHIN, || {
            page(path)?.starts_with("HTTP/1.1 200").then_some(())
        });
    }
}

/// Waits until the group has committed that offset of `payments`.
fn broker_committed(broker: &kafka::Broker, group: &str, offset: i64) {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    let mut config = broker.client();
    let observer: BaseConsumer = config.set("group.id", group).create().unwrap();
    let mut asked = rdkafka::TopicPartitionList::new();
    asked.add_partition("payments", 0);
    kafka::eventually("the second start's commit", WITHIN, || {
        let committed = observer
            .committed_offsets(asked.clone(), Duration::from_secs(10))
            .ok()?;
        let reached = committed.find_partition("payments", 0)?.offset().to_raw()?;
        (reached >= offset).then_some(())
    });
}

/// Exit code 2: nothing was connected to, and what is wrong is said.
#[test]
fn the_consumer_binary_refuses_a_configuration_that_cannot_work() {
    let folder = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = folder.path().join("hapax.toml");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/consumer_binary.toml"
    ))
    .unwrap();
    let cases = [
        (good.replace("window = ", "windw = "), "did you mean"),
        (good.replace("drain = \"10s\"", "drain = \"soon\""), "drain"),
        (
            good.replace("[topics.payments]", "[topics.refunds]"),
            "topics.payments.window",
        ),
        (
            format!("{good}\n[topics.refunds]\nclass = \"idempotent\"\nwindow = \"1h\""),
            "has no handler",
        ),
    ];
    for (text, says) in cases {
        let Some(mut command) = consumer(&[&file(&text)]) else {
            return;
        };
        let output = end(&mut command);
        assert_eq!(output.status.code(), Some(2), "{says}: {}", told(&output));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(says), "{says}: {said}");
    }
    for arguments in [&[][..], &["no/such/file.toml"][..]] {
        let Some(mut command) = consumer(arguments) else {
            return;
        };
        let output = end(&mut command);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
    }
}

/// Exit code 1: something that may be mended without touching the configuration.
#[test]
fn the_consumer_binary_says_when_there_is_no_broker() {
    let state = tempfile::tempdir().unwrap();
    let Some(mut command) = consumer(&["examples/consumer_binary.toml"]) else {
        return;
    };
    command.env("HAPAX_STATE_DIR", state.path());
    // Nobody may listen there without being root, and nobody does.
    command.env("HAPAX_BROKERS", "127.0.0.1:1");
    let output = end(&mut command);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("127.0.0.1:1"), "{said}");
}
