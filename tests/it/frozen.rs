//! A process that is frozen for longer than its session has lost its partitions (Inv 5): when it thaws, another member
//! has taken over, and the thawed one starts no handler, records nothing and commits nothing of the old assignment.
//!
//! Method: the member is a child process, this same test binary started for [`child`], so that SIGSTOP stands still all
//! of its threads. It notes every start of a handler in a file, with the key of its token. It is frozen inside a handler,
//! with many messages ready behind it; another member, in this process, takes over and catches up; then it thaws.
//!
//! Seen to fail without the partition task's look at the pulse (`is_stale` in `partition/mod.rs`), in both classes: "it started
//! a handler after its partition was gone", the one at offset 6.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hapax::clock::Clock;
use hapax::config::Cold;
use hapax::store::rocks::RocksStore;
use hapax::store::{PartitionId, Store as _};
use hapax::token::TokenKey;
use hapax::{Bytes, Class, Consumer, Context, Idempotent, NonIdempotent, Topic, Window};
use tempfile::TempDir;

use crate::kafka::{self, eventually};
use crate::member::{self, Effects, Member, Message, SOON};
use crate::process::{self, Process, told};

/// The handler that is running when the process freezes takes this long.
const STUCK: Duration = Duration::from_secs(3);
/// The message at this offset.
const STUCK_AT: i64 = 5;
const MESSAGES: i64 = 60;

/// What the child is told, and where it writes.
#[derive(Clone)]
pub(crate) struct Orders {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) dir: PathBuf,
    pub(crate) class: Class,
}

impl Orders {
    fn effects(&self) -> PathBuf {
        self.dir.join("effects")
    }

    pub(crate) fn consumer(&self, dir: &Path) -> Consumer {
        member::consumer(&self.brokers, &self.topic, dir).with(|layer| {
            member::property(layer, "session.timeout.ms", "2000");
            layer.cold = Some(Cold::Run);
        })
    }

    /// What the child's handlers started: offset, and key of the token.
    pub(crate) fn starts(&self) -> Vec<(i64, TokenKey)> {
        let text = std::fs::read_to_string(self.effects()).unwrap_or_default();
        // A line that is being written has no end yet.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| {
                let (offset, key) = line.split_once(' ').unwrap();
                let key = u128::from_str_radix(key, 16).unwrap().to_be_bytes();
                (offset.parse().unwrap(), TokenKey(key))
            })
            .collect()
    }
}

/// Starts the child.
pub(crate) fn start(orders: &Orders) -> Process {
    let told = [
        ("brokers", orders.brokers.as_str()),
        ("topic", &orders.topic),
        ("dir", orders.dir.to_str().unwrap()),
        ("class", &orders.class.to_string()),
    ];
    Process::start("frozen::child", &told)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child process of the tests in this file"]
async fn child() {
    let orders = Orders {
        brokers: told("brokers"),
        topic: told("topic"),
        dir: told("dir").into(),
        class: if told("class") == Idempotent.to_string() {
            Idempotent
        } else {
            NonIdempotent
        },
    };
    let topic = Topic::bytes(&orders.topic, orders.class)
        .state(orders.clone())
        .window(Window::hours(1))
        .ordered();
    let consumer = orders.consumer(&orders.dir.join("state")).handle(
        topic,
        |_payload: Bytes, cx: Context<Orders>| async move {
            let line = format!("{} {}\n", cx.offset(), cx.token());
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(cx.state().effects())?;
            file.write_all(line.as_bytes())?;
            if cx.offset().0 == STUCK_AT {
                member::nap(STUCK).await;
            }
            Ok(())
        },
    );
    process::run(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thawed_process_starts_and_commits_nothing_of_what_it_lost() {
    thaws(Idempotent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thawed_process_of_a_guarded_class_starts_and_commits_nothing_of_what_it_lost() {
    thaws(NonIdempotent).await;
}

async fn thaws(class: Class) {
    let Some(broker) = kafka::broker() else { return };
    let topic = kafka::unique("frozen");
    member::create_topic(broker, &topic, 1, &[]);
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let orders = Orders {
        brokers: broker.bootstrap(),
        topic: topic.clone(),
        dir: dirs[0].path().to_owned(),
        class,
    };
    let messages = (0..MESSAGES).map(|n| Message::new(0, format!("token-{n}"), format!("message-{n}")));
    member::send(&orders.brokers, &topic, messages).await;

    let frozen = start(&orders);
    eventually("the handler to freeze in", 2 * SOON, || {
        (orders.starts().last()?.0 == STUCK_AT).then_some(())
    });
    frozen.signal("STOP");
    let clock = Clock::system();
    let over_ms = clock.wall_ms() + STUCK.as_millis() as i64;

    let effects = Effects::default();
    let other = Member::start(
        orders.consumer(dirs[1].path()).handle(
            Topic::bytes(&topic, class)
                .state(effects.clone())
                .window(Window::hours(1))
                .ordered(),
            member::handle,
        ),
    );
    member::await_caught_up(&orders.brokers, &topic, &topic);
    let ends = member::committed(&orders.brokers, &topic, &topic);
    // Its own timer is over too, so that it wakes with everything to do at once.
    eventually("the end of the handler's time", SOON, || {
        (clock.wall_ms() > over_ms).then_some(())
    });
    let before = orders.starts();
    assert_eq!(before.last().unwrap().0, STUCK_AT, "it stood still");

    frozen.signal("CONT");
    eventually("two members", 2 * SOON, || {
        (member::group_state(&orders.brokers, &topic) == ("Stable".to_owned(), 2)).then_some(())
    });
    frozen.stop();
    assert_eq!(
        orders.starts(),
        before,
        "it started a handler after its partition was gone"
    );
    let after = member::committed(&orders.brokers, &topic, &topic);
    assert_eq!(after[&0].0, ends[&0].0, "it moved the commit");
    other.stop().await;
    let others: Vec<i64> = effects.finished().iter().map(|call| call.offset).collect();
    let first = others[0];
    assert!(
        first <= STUCK_AT,
        "the message it froze in was delivered to the other: {first}"
    );
    assert_eq!(others, (first..MESSAGES).collect::<Vec<_>>());

    let store = RocksStore::open_existing_for_cli(&dirs[0].path().join("state")).unwrap();
    let (id, key) = (store.topic(&topic).unwrap(), before.last().unwrap().1);
    let mut hits = Vec::new();
    let at = PartitionId {
        topic: id,
        partition: 0,
    };
    store.look_up(at, i64::MIN, &[key], &mut hits).unwrap();
    assert_eq!(
        hits,
        [],
        "the handler that it froze in was recorded after the partition was gone"
    );
}
