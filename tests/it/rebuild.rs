//! `cold = "rebuild"`: the window of a cold partition is read back from its topic before a message of it runs.
//!
//! The group's past is made by a plain client that knows nothing of hapax, by a disk that is thrown away, or by another
//! member. What is asserted is which payloads reached a handler, by the handler's own account.
//!
//! Seen to fail with one line changed (25 November 2026):
//!
//! | changed | test | found |
//! |---|---|---|
//! | `rebuild.rs`, `decide`: records nothing | every test of this file | each duplicate runs |
//! | `assignments.rs`, `prepare`: the position is written before the rebuild | `a_kill_in_the_middle_leaves_it_cold_local` | the next start serves it, and does not rebuild |
//! | `journal/replicated.rs`, `make`: frames of a rebuild state the commit point | `a_kill_in_the_middle_leaves_it_cold_replicated` | the same |

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use hapax::accounts::Account;
use hapax::config::{Cold, Durability};
use hapax::{Bytes, Consumer, Context, HandlerError, NonIdempotent, Topic, Window};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::cli::{Said, hapax};
use crate::kafka::{self, Broker};
use crate::member::{self, Effects, Member, Message};

const MINUTE_MS: i64 = 60_000;

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

struct Fleet {
    brokers: String,
    topic: String,
    durability: Durability,
    cold: Cold,
}

impl Fleet {
    fn new(broker: &Broker, name: &str, partitions: i32, durability: Durability) -> Self {
        let topic = kafka::unique(name);
        member::create_topic(broker, &topic, partitions, &[]);
        Self {
            brokers: broker.bootstrap(),
            topic,
            durability,
            cold: Cold::Rebuild,
        }
    }

    fn consumer(&self, dir: &Path) -> Consumer {
        member::consumer(&self.brokers, &self.topic, dir).with(|layer| {
            layer.durability = Some(self.durability);
            layer.cold = Some(self.cold);
        })
    }

    fn start(&self, dir: &Path, effects: &Effects) -> Member {
        Member::start(
            self.consumer(dir).handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(effects.clone())
                    .window(Window::hours(1)),
                member::handle,
            ),
        )
    }

    async fn send(&self, messages: impl IntoIterator<Item = Message>) {
        member::send(&self.brokers, &self.topic, messages).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.brokers, &self.topic, &self.topic);
    }

    /// What `hapax check` says where no state directory is yet.
    fn check(&self) -> Said {
        self.check_in(Path::new("no-such-state"))
    }

    fn check_in(&self, state: &Path) -> Said {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hapax.toml");
        let text = format!(
            "group = \"{0}\"\nbrokers = \"{1}\"\nstate_dir = \"{2}\"\ndurability = \"{3}\"\ncold = \"{4}\"\n\
             admin.listen = \"off\"\n[topics.{0}]\nclass = \"non-idempotent\"\nwindow = \"1h\"\n",
            self.topic,
            self.brokers,
            state.display(),
            self.durability,
            self.cold,
        );
        std::fs::write(&file, text).unwrap();
        hapax(&["check", "--config", file.to_str().unwrap()])
    }

    /// What a client without hapax does: it has handled everything that is there, and says so.
    fn commit_as_a_stranger(&self) {
        let stranger: BaseConsumer = member::client(&self.brokers)
            .set("group.id", &self.topic)
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for (partition, (_, high)) in member::ends(&self.brokers, &self.topic) {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(high))
                .unwrap();
        }
        stranger.commit(&list, CommitMode::Sync).unwrap();
    }
}

fn at(partition: i32, token: String, payload: String, timestamp_ms: i64) -> Message {
    Message {
        timestamp_ms: Some(timestamp_ms),
        ..Message::new(partition, token, payload)
    }
}

fn payloads(effects: &Effects) -> BTreeSet<String> {
    effects.finished().into_iter().map(|call| call.payload).collect()
}

async fn an_existing_group_is_adopted(durability: Durability) {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker, "adopted", 2, durability);
    let now = now_ms();
    let of = |kind: &str, count: i32, stamp: i64| -> Vec<Message> {
        (0..count)
            .map(|n| {
                at(
                    n % 2,
                    format!("{kind}-{n}"),
                    format!("{kind}-{n}"),
                    stamp + i64::from(n),
                )
            })
            .collect()
    };
    // Older than the window of an hour; inside it; and stamped long ago but sent inside it, so it was first seen then.
    fleet.send(of("old", 20, now - 180 * MINUTE_MS)).await;
    fleet.send(of("recent", 300, now - 10 * MINUTE_MS)).await;
    fleet.send(of("late", 10, now - 170 * MINUTE_MS)).await;
    fleet.send(of("last", 2, now - 5 * MINUTE_MS)).await;
    fleet
        .send([Message {
            token: None,
            ..at(0, String::new(), "no token".into(), now - 4 * MINUTE_MS)
        }])
        .await;
    fleet.commit_as_a_stranger();
    // Of 333 messages the 20 old ones are not read: 10 in each partition.
    let counted = "2 partitions of topic";
    fleet
        .check()
        .ended(0)
        .says(counted)
        .says("at most 313 messages: [0] 157 (10..167), [1] 156 (10..166); to read them takes about ")
        .says("by a sample of 313 that were read now");

    let again = ["old", "recent", "late", "last", "fresh"];
    for (kind, count) in again.into_iter().zip([20, 300, 10, 2, 7]) {
        fleet.send(of(kind, count, now)).await;
    }
    let (dir, effects) = (tempfile::tempdir().unwrap(), Effects::default());
    let member = fleet.start(dir.path(), &effects);
    fleet.caught_up();
    let summary = member.stop().await;

    let ran = |kind: &str, count: i32| (0..count).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
    let expected: BTreeSet<String> = ran("old", 20).into_iter().chain(ran("fresh", 7)).collect();
    assert_eq!(payloads(&effects), expected);
    assert_eq!(effects.started().len(), expected.len());
    let (done, duplicates) = (
        member::total(&summary, Account::Done),
        member::total(&summary, Account::Duplicate),
    );
    assert_eq!((done, duplicates), (27, 312));

    // It is the group's own now: nothing is cold any more, on the same disk or (where the state moves) on another.
    let refusing = Fleet {
        cold: Cold::Refuse,
        ..fleet
    };
    refusing.check_in(dir.path()).ended(0).says("cold: no partition");
    refusing.send(of("recent", 300, now)).await;
    let another = tempfile::tempdir().unwrap();
    let dir = match durability {
        Durability::Local => dir.path(),
        _ => another.path(),
    };
    let member = refusing.start(dir, &effects);
    refusing.caught_up();
    assert_eq!(member::total(&member.stop().await, Account::Duplicate), 300);
    assert_eq!(effects.started().len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_group_is_adopted_local() {
    an_existing_group_is_adopted(Durability::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_group_is_adopted_replicated() {
    an_existing_group_is_adopted(Durability::Replicated).await;
}

fn tokens(count: i32, say: &'static str) -> impl Iterator<Item = Message> {
    (0..count).map(move |n| Message::new(n % 4, format!("t-{n}"), format!("{say}-{n}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_lost_is_no_loss() {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker, "ephemeral", 4, Durability::Local);
    let effects = Effects::default();
    fleet.send(tokens(400, "first")).await;
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let member = fleet.start(dir.path(), &effects);
        fleet.caught_up();
        let summary = member.stop().await;
        let (done, duplicates) = (
            member::total(&summary, Account::Done),
            member::total(&summary, Account::Duplicate),
        );
        let expected = if round == 0 { (400, 0) } else { (0, 400) };
        assert_eq!((done, duplicates), expected, "round {round}");
        fleet.send(tokens(400, "again")).await;
    }
    assert_eq!(effects.started().len(), 400);
}

/// Partitions move to a member that has never seen them, and back to one that has missed what was done meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_in_local_mode_and_are_rebuilt() {
    let Some(broker) = kafka::broker() else { return };
    let fleet = Fleet::new(broker, "moving", 4, Durability::Local);
    let (first_dir, second_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first_effects, second_effects) = (Effects::default(), Effects::default());
    let first = fleet.start(first_dir.path(), &first_effects);
    fleet.send(tokens(400, "first")).await;
    fleet.caught_up();

    let second = fleet.start(second_dir.path(), &second_effects);
    kafka::eventually("two members, settled", member::SOON, || {
        (member::group_state(&fleet.brokers, &fleet.topic) == ("Stable".to_owned(), 2)).then_some(())
    });
    // Tokens that the second handles itself tell that it serves, and the first does not know them.
    let mut sent = 400;
    while second_effects.finished().is_empty() {
        assert!(sent < 8_000, "the second member serves nothing");
        let fresh = (sent..sent + 400).map(|n| Message::new(n % 4, format!("t-{n}"), format!("new-{n}")));
        fleet.send(fresh).await;
        fleet.caught_up();
        sent += 400;
    }
    fleet.send(tokens(sent, "again")).await;
    fleet.caught_up();
    second.stop().await;
    fleet.send(tokens(sent, "once more")).await;
    fleet.caught_up();
    first.stop().await;

    let ran = [first_effects.started(), second_effects.started()].concat();
    let repeated: Vec<_> = ran
        .iter()
        .filter(|call| call.payload.starts_with("again") || call.payload.starts_with("once more"))
        .collect();
    assert_eq!(repeated.len(), 0, "{:?}", repeated.first());
    assert_eq!(ran.len(), usize::try_from(sent).unwrap());
}

// ---- Kills: a consumer process of its own, which is this test binary started for one ignored test.

/// Not one of the variables that hapax reads as its configuration.
const CHILD: &str = "REBUILD_TEST_CHILD";

#[derive(Serialize, Deserialize)]
struct Spec {
    brokers: String,
    topic: String,
    replicated: bool,
    cold: String,
    dir: PathBuf,
    effects: PathBuf,
}

impl Spec {
    fn start(&self, scratch: &Path, armed: Option<&str>) -> Process {
        let told = scratch.join("spec");
        std::fs::write(&told, serde_json::to_vec(self).unwrap()).unwrap();
        let log = scratch.join(format!("log-{}", kafka::unique("life")));
        let out = File::create(&log).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["rebuild::consumer_process", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, &told)
            .env_remove("HAPAX_CRASH_AT")
            .stdin(Stdio::piped())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        if let Some(armed) = armed {
            command.env("HAPAX_CRASH_AT", armed);
        }
        Process {
            child: command.spawn().unwrap(),
            log,
        }
    }

    fn fleet(&self) -> Fleet {
        Fleet {
            brokers: self.brokers.clone(),
            topic: self.topic.clone(),
            durability: if self.replicated {
                Durability::Replicated
            } else {
                Durability::Local
            },
            cold: match self.cold.as_str() {
                "rebuild" => Cold::Rebuild,
                _ => Cold::Refuse,
            },
        }
    }
}

/// Killed when dropped; and where this process ends without that, it ends itself.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn says(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).is_ok_and(|log| log.contains(text))
    }

    fn await_words(&self, text: &str) {
        let said = std::panic::catch_unwind(|| {
            kafka::eventually(text, member::SOON, || self.says(text).then_some(()));
        });
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        assert!(said.is_ok(), "it never said {text:?}:\n{log}");
    }

    /// It was killed at the point that it was armed with.
    fn await_kill(mut self) {
        let status = kafka::eventually("the end of a process", 2 * member::SOON, || {
            self.child.try_wait().unwrap()
        });
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        assert_eq!(status.signal(), Some(9), "{log}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn note(payload: Bytes, cx: Context<PathBuf>) -> Result<(), HandlerError> {
    let mut file = File::options().append(true).create(true).open(cx.state())?;
    file.write_all(&[&payload, &b"\n"[..]].concat())?;
    Ok(())
}

#[test]
#[ignore = "a consumer process, started by the tests of kills"]
fn consumer_process() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let spec: Spec = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    crate::process::is_a_child();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let topic = Topic::bytes(&spec.topic, NonIdempotent)
        .state(spec.effects.clone())
        .window(Window::hours(1));
    let consumer = spec.fleet().consumer(&spec.dir).handle(topic, note);
    runtime
        .block_on(consumer.run_until(std::future::pending()))
        .unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), &target).unwrap()),
        }
    }
}

/// Killed when a part of the records is written, when the rest of them is, and when all are known and the position is not:
/// each time the partition is as cold as it was, and the start after that reads again.
async fn a_kill_in_the_middle_leaves_it_cold(replicated: bool) {
    const FIRST: i32 = 500;
    // More than are written at a time.
    const ALL: i32 = 25_000;
    let Some(broker) = kafka::broker() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let durability = if replicated {
        Durability::Replicated
    } else {
        Durability::Local
    };
    let fleet = Fleet::new(broker, "killed-rebuild", 1, durability);
    let mut spec = Spec {
        brokers: fleet.brokers.clone(),
        topic: fleet.topic.clone(),
        replicated,
        cold: "rebuild".into(),
        dir: scratch.path().join("state"),
        effects: scratch.path().join("effects"),
    };
    let one = |n: i32, say: &str| Message::new(0, format!("t-{n}"), format!("{say}-{n}"));
    fleet.send((0..FIRST).map(|n| one(n, "first"))).await;
    if replicated {
        fleet.send((FIRST..ALL).map(|n| one(n, "first"))).await;
        fleet.commit_as_a_stranger();
    } else {
        // An older copy of the disk: the commits are this store's own, so nothing but the position tells that it is cold.
        let (dir, effects) = (scratch.path().join("whole"), Effects::default());
        let member = fleet.start(&dir, &effects);
        fleet.caught_up();
        member.stop().await;
        copy(&dir, &spec.dir);
        let member = fleet.start(&dir, &effects);
        fleet.send((FIRST..ALL).map(|n| one(n, "first"))).await;
        fleet.caught_up();
        member.stop().await;
    }
    let again = (0..ALL).step_by(10).map(|n| one(n, "again"));
    fleet.send(again.chain([one(ALL, "fresh")])).await;

    for point in ["during-rebuild:1", "during-rebuild:1", "before-rebuilt:1"] {
        spec.start(scratch.path(), Some(point)).await_kill();
        spec.cold = "refuse".into();
        spec.start(scratch.path(), None).await_words("is cold");
        spec.cold = "rebuild".into();
    }
    let process = spec.start(scratch.path(), None);
    process.await_words("a window is whole again");
    fleet.caught_up();
    let ran = std::fs::read_to_string(&spec.effects).unwrap();
    assert_eq!(ran, format!("fresh-{ALL}\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_leaves_it_cold_local() {
    a_kill_in_the_middle_leaves_it_cold(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_leaves_it_cold_replicated() {
    a_kill_in_the_middle_leaves_it_cold(true).await;
}
