//! What an operator does while the consumers run: the command line, the ports of two members, and Kafka, in both modes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hapax::NonIdempotent;
use hapax::config::{AfterFailure, Durability, Listen};
use hapax::{Consumer, Topic, Window};
use tempfile::TempDir;

use crate::admin_port::get;
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message};

const WITHIN: Duration = Duration::from_secs(60);

const MODES: [Durability; 2] = [Durability::Local, Durability::Replicated];

struct Place {
    brokers: String,
    topic: String,
    durability: Durability,
    /// The token, and the configuration that `hapax redrive` reads.
    files: TempDir,
}

/// What a command came to.
struct Said {
    code: i32,
    text: String,
}

impl Said {
    fn says(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "{part:?} is not in: {}", self.text);
        }
        self
    }
}

impl Place {
    fn new(broker: &Broker, name: &str, partitions: i32, durability: Durability) -> Self {
        let topic = kafka::unique(name);
        member::create_topic(broker, &topic, partitions, &[]);
        broker.create_topic(&format!("{topic}.audit"), 1, &[]);
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), "correct-horse-battery\n").unwrap();
        std::fs::write(files.path().join("wrong"), "incorrect-horse-battery\n").unwrap();
        let mode = if durability == Durability::Local {
            "local"
        } else {
            "replicated"
        };
        let text = format!(
            "group = \"{topic}\"\nbrokers = \"{}\"\nstate_dir = \"unused\"\ndurability = \"{mode}\"\n[topics.\"{topic}\"]\nclass = \"non-idempotent\"\nwindow = \"1h\"\n",
            broker.bootstrap()
        );
        std::fs::write(files.path().join("hapax.toml"), text).unwrap();
        Self {
            brokers: broker.bootstrap(),
            topic,
            durability,
            files,
        }
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    fn consumer(&self, dir: &Path, effects: &Effects) -> (Consumer, SocketAddr) {
        let address = SocketAddr::from(([127, 0, 0, 1], kafka::free_port()));
        let consumer = member::consumer(&self.brokers, &self.topic, dir)
            .with(|layer| {
                layer.durability = Some(self.durability);
                layer.admin.listen = Some(Listen::At(address));
                layer.admin.token_file = Some(self.files.path().join("token"));
                // Most of what these messages do is fail.
                layer.breaker.over = Some(0);
                layer.admin.audit_topic = Some(format!("{}.audit", self.topic));
            })
            .handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(effects.clone())
                    .after_failure(AfterFailure::Suppress)
                    .window(Window::hours(1)),
                member::handle,
            );
        (consumer, address)
    }

    fn start(&self, dir: &Path, effects: &Effects) -> (Member, SocketAddr) {
        let (consumer, address) = self.consumer(dir, effects);
        (Member::start(consumer), address)
    }

    async fn send(&self, messages: impl IntoIterator<Item = Message>) {
        member::send(&self.brokers, &self.topic, messages).await;
    }

    async fn caught_up(&self) {
        let (brokers, topic) = (self.brokers.clone(), self.topic.clone());
        let caught_up = move || member::await_caught_up(&brokers, &topic, &topic);
        tokio::task::spawn_blocking(caught_up).await.unwrap();
    }

    fn letters(&self) -> Vec<member::Found> {
        member::read_all(&self.brokers, &format!("{}.dead-letters", self.topic))
    }

    fn audited(&self) -> Vec<serde_json::Value> {
        let found = member::read_all(&self.brokers, &format!("{}.audit", self.topic));
        found
            .iter()
            .map(|found| serde_json::from_str(&found.text()).unwrap())
            .collect()
    }

    /// The command, with the token where it changes something.
    async fn hapax(&self, ports: &[SocketAddr], args: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hapax"));
        command.args(args).env("USER", "tester");
        for port in ports {
            command.args(["--admin", &port.to_string()]);
        }
        let changes = ["resolve", "invalidate", "forget", "redrive"].contains(&args[0]);
        if changes && !args.contains(&"--token-file") {
            command.args(["--token-file", &self.file("token")]);
        }
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        Said {
            code: output.status.code().unwrap(),
            text: String::from_utf8(text).unwrap(),
        }
    }

    async fn resolve(&self, ports: &[SocketAddr], offset: i64, verdict: &str) -> Said {
        let at = offset.to_string();
        let place = ["--topic", &self.topic, "--partition", "0", "--offset", &at];
        let mut args = vec!["resolve", verdict, "--reason", "asked the bank"];
        args.extend(place);
        self.hapax(ports, &args).await
    }
}

async fn until(what: &'static str, mut is: impl FnMut() -> bool + Send + 'static) {
    let asked = move || eventually(what, WITHIN, || is().then_some(()));
    tokio::task::spawn_blocking(asked).await.unwrap();
}

fn held_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// One after the other: held, resolved, dead-lettered, redriven, invalidated, forgotten, audited; then the same disk, or none,
/// knows all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn verdicts_are_carried_out_while_the_consumer_runs() {
    let Some(broker) = kafka::broker() else { return };
    for durability in MODES {
        let place = Place::new(broker, "operator", 1, durability);
        let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
        let (running, at) = place.start(dir.path(), &effects);
        let at = [at];
        let sent = ["fail-done", "fail-run", "fail-letter", "fine", "fail-done"];
        place
            .send(sent.map(|text| Message::new(0, format!("t-{text}"), text)))
            .await;
        place.caught_up().await;
        let listed = place.hapax(&at, &["held", "--json"]).await.says(0, &[]);
        let held = held_lines(&listed.text);
        let states: Vec<_> = held
            .iter()
            .map(|one| (one["offset"].as_i64().unwrap(), one["state"].as_str().unwrap()))
            .collect();
        let expected = [
            (0, "in-doubt"),
            (1, "in-doubt"),
            (2, "in-doubt"),
            (4, "behind-token"),
        ];
        assert_eq!(states, expected);
        place
            .hapax(
                &at,
                &["inspect", "--topic", &place.topic, "--text", "t-fail-done"],
            )
            .await
            .says(
                0,
                &["@0: in doubt, 1 attempts", "@4: behind its token, open at 0"],
            );
        place
            .hapax(&at, &["status"])
            .await
            .says(0, &["ready", &place.topic]);

        // Without the token nothing is changed; a dry run changes nothing; what waits behind takes no verdict.
        let wrong = place.file("wrong");
        let one = ["--topic", &place.topic, "--partition", "0", "--offset", "0"];
        let mut args = vec!["resolve", "--done", "--reason", "r", "--token-file", &wrong];
        args.extend(one);
        place.hapax(&at, &args).await.says(1, &["not the token"]);
        place
            .hapax(&at, &["resolve", "--all-in-doubt", "--run", "--reason", "r"])
            .await
            .says(0, &["3 acts would be carried out; nothing was done", "--yes"]);
        place
            .resolve(&at, 4, "--done")
            .await
            .says(1, &["behind its token"]);
        place.resolve(&at, 3, "--done").await.says(1, &["not held"]);
        assert_eq!(place.audited(), [0i64; 0]);

        place
            .resolve(&at, 0, "--done")
            .await
            .says(0, &["1 act carried out"]);
        place
            .resolve(&at, 2, "--dead-letter")
            .await
            .says(0, &["1 act carried out"]);
        place
            .resolve(&at, 0, "--done")
            .await
            .says(1, &["has its outcome by now"]);
        let letters = || {
            place
                .letters()
                .iter()
                .map(|letter| letter.header("hapax-reason"))
                .collect::<Vec<_>>()
        };
        let (brokers, topic) = (place.brokers.clone(), format!("{}.dead-letters", place.topic));
        until("the letter", move || {
            member::read_all(&brokers, &topic).len() == 1
        })
        .await;
        assert_eq!(letters(), ["operator"]);
        place
            .resolve(&at, 1, "--run")
            .await
            .says(0, &["1 act carried out"]);
        let seen = effects.clone();
        until("the second call", move || seen.starts_of("fail-run") == 2).await;
        assert_eq!(effects.starts_of("fail-done"), 1);

        // A letter of what may have been applied needs a word; redriven twice it runs once.
        let config = place.file("hapax.toml");
        let redrive = [
            "redrive",
            "--config",
            &config,
            "--topic",
            &place.topic,
            "--reason",
            "mended",
            "--yes",
        ];
        place.hapax(&at, &redrive).await.says(1, &["--not-applied"]);
        let mut redrive = redrive.to_vec();
        redrive.push("--not-applied");
        let dry: Vec<&str> = redrive.iter().copied().filter(|arg| *arg != "--yes").collect();
        place
            .hapax(&at, &dry)
            .await
            .says(0, &["1 act would be carried out"]);
        assert_eq!(effects.starts_of("fail-letter"), 1);
        place.hapax(&at, &redrive).await.says(0, &["1 act carried out"]);
        let seen = effects.clone();
        until("the redriven one", move || seen.starts_of("fail-letter") == 2).await;

        // Invalidated, then forgotten.
        let inspected = place
            .hapax(
                &at,
                &["inspect", "--topic", &place.topic, "--text", "t-fine", "--json"],
            )
            .await
            .says(0, &["\"done\""]);
        let token = held_lines(&inspected.text)[0]["tokens"][0]
            .as_str()
            .unwrap()
            .to_owned();
        let of = [
            "--topic",
            &place.topic,
            "--partition",
            "0",
            "--token",
            &token,
            "--reason",
            "recalled by the shop",
        ];
        let with = |verb| [&[verb][..], &of].concat();
        place
            .hapax(&at, &with("invalidate"))
            .await
            .says(0, &["1 act carried out"]);
        place
            .hapax(&at, &with("invalidate"))
            .await
            .says(0, &["1 unchanged"]);
        place.send([Message::new(0, "t-fine", "fine")]).await;
        place.caught_up().await;
        let last = place.letters().pop().unwrap();
        assert_eq!(last.header("hapax-reason"), "invalidated");
        assert!(last.header("hapax-error").contains("recalled by the shop"));
        assert_eq!(effects.starts_of("fine"), 1);
        place
            .hapax(&at, &with("forget"))
            .await
            .says(0, &["1 act carried out"]);
        place.send([Message::new(0, "t-fine", "fine")]).await;
        let seen = effects.clone();
        until("it runs anew", move || seen.starts_of("fine") == 2).await;

        let acts = [
            "resolve --done",
            "resolve --dead-letter",
            "resolve --run",
            "redrive",
            "invalidate",
            "forget",
        ];
        let audit = place
            .hapax(&at, &["audit", "--json"])
            .await
            .says(0, &["asked the bank", "tester"]);
        let audited: Vec<_> = held_lines(&audit.text)
            .iter()
            .map(|act| act["act"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(audited, acts);
        let in_topic: Vec<_> = place
            .audited()
            .iter()
            .map(|act| act["act"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(in_topic, acts);
        let (_, page) = get(at[0], "/metrics").unwrap();
        let counted = |act: &str| {
            let labels = format!("{{topic=\"{}\",act=\"{act}\"}} 1", place.topic);
            page.contains(&format!("hapax_operator_acts_total{labels}"))
        };
        assert!(acts.into_iter().all(counted), "{page}");
        running.stop().await;

        // What was decided is where the state is.
        let elsewhere = tempfile::tempdir().unwrap();
        let dir = if durability == Durability::Local {
            dir.path()
        } else {
            elsewhere.path()
        };
        let (running, at) = place.start(dir, &effects);
        let at = [at];
        place.send([Message::new(0, "t-fail-done", "fail-done")]).await;
        place.caught_up().await;
        let audit = place.hapax(&at, &["audit", "--json"]).await;
        assert_eq!(held_lines(&audit.text).len(), acts.len(), "{}", audit.text);
        assert_eq!(
            effects.starts_of("fail-done"),
            1,
            "a duplicate of what an operator called done"
        );
        running.stop().await;
    }
}

/// Two members: whoever has the partition answers, and the other one names it. What is ordered while partitions move is carried out
/// once, or not at all and said so.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn orders_find_the_owner_also_when_partitions_move() {
    let Some(broker) = kafka::broker() else { return };
    let place = Place::new(broker, "operator-moves", 2, Durability::Replicated);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let effects = Effects::default();
    let (first, one) = place.start(dirs[0].path(), &effects);
    place
        .send((0..40).map(|n| Message::new(n % 2, format!("t-{n}"), format!("fail-{n}"))))
        .await;
    place.caught_up().await;
    // The other one comes, and half of the partitions move while verdicts are given.
    let (second, two) = place.start(dirs[1].path(), &effects);
    let ports = [one, two];
    let mut given = 0;
    for offset in 0..20 {
        let (at, topic) = (offset.to_string(), place.topic.clone());
        for partition in ["0", "1"] {
            // Said until it is so: while nobody serves the partition, nobody answers.
            loop {
                let args = [
                    "resolve",
                    "--done",
                    "--reason",
                    "asked",
                    "--topic",
                    &topic,
                    "--partition",
                    partition,
                    "--offset",
                    &at,
                ];
                let said = place.hapax(&ports, &args).await;
                if said.code == 0 {
                    given += 1;
                    break;
                }
                // Carried out before, and the answer lost with the assignment.
                if said.text.contains("has its outcome by now") {
                    break;
                }
                let retries = [
                    "not served",
                    "given away",
                    "left its rest",
                    "not open",
                    "the consumer",
                    "on its way",
                ];
                assert!(retries.iter().any(|why| said.text.contains(why)), "{}", said.text);
            }
        }
    }
    assert!(given > 0);
    until("both serve", move || {
        ports
            .iter()
            .all(|port| get(*port, "/readyz").is_some_and(|(status, _)| status == 200))
    })
    .await;
    // The last verdict is durable, and on its way to be carried out.
    loop {
        let listed = place.hapax(&ports, &["held", "--json"]).await.says(0, &[]);
        let held = held_lines(&listed.text);
        if held.is_empty() {
            break;
        }
        assert!(held.iter().all(|one| one["verdict"] == "done"), "{}", listed.text);
    }
    let audit = place.hapax(&ports, &["audit", "--json"]).await;
    assert_eq!(held_lines(&audit.text).len(), 40, "each verdict is one act");
    assert_eq!(effects.started().len(), 40, "and nothing ran again");
    // One of the two does not have partition 0, and says who does.
    let mut named = 0;
    for port in ports {
        let args = [
            "resolve",
            "--done",
            "--reason",
            "r",
            "--topic",
            &place.topic,
            "--partition",
            "0",
            "--offset",
            "0",
        ];
        let said = place.hapax(&[port], &args).await;
        named += usize::from(said.text.contains("is not served here, but by member"));
    }
    assert_eq!(named, 1);
    first.stop().await;
    second.stop().await;
}

/// A token file that is none stops the start, before anything connects.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_none_is_refused() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (text, why) in [
        (Some("short"), "5 characters"),
        (Some("two lines\nof it and more"), "one line"),
        (None, "No such file"),
    ] {
        let path = files.path().join("token");
        let _ = std::fs::remove_file(&path);
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let consumer = member::consumer("127.0.0.1:1", "g", dir.path())
            .with(|layer| layer.admin.token_file = Some(path.clone()))
            .handle(
                Topic::bytes("t", NonIdempotent)
                    .window(Window::hours(1))
                    .state(Effects::default()),
                member::handle,
            );
        let said = Member::start(consumer).failure().await;
        assert!(said.contains(why) && said.contains("admin.token_file"), "{said}");
    }
}
