//! Bad input from producers, brokers and whoever configures: each meets a clear error or the stated policy, and nothing
//! is lost.
//!
//! Method: real Kafka. "Nothing is lost" is read off the handlers, the dead-letter topic and the group's commits; an error
//! is read whole, as a user sees it. What a state directory can hold is in `bad_store.rs`.
//!
//! Seen to fail: no bound for a jump of the clock (`PartitionTime`, "left: [0, 1, 2, 3]", the duplicate ran); `deleted` not asked
//! in `prepare`; `missing_token = "stop"` taken for `use-offset` ("a consumer ends in time: Elapsed").

use std::collections::BTreeMap;
use std::time::Duration;

use hapax::accounts::Account;
use hapax::clock::Clock;
use hapax::config::{ByteCount, Deleted, MissingToken};
use hapax::{Class, Consumer, Context, Idempotent, NonIdempotent, Topic, Window};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::events;
use crate::kafka::{self, Broker, eventually};
use crate::member::{self, Effects, Member, Message, SOON};

/// One topic of one partition, with its group, named alike.
struct Input {
    brokers: String,
    topic: String,
    dir: TempDir,
    effects: Effects,
}

impl Input {
    fn new(broker: &Broker, configs: &[(&str, &str)]) -> Self {
        let topic = kafka::unique("bad-input");
        member::create_topic(broker, &topic, 1, configs);
        Self {
            brokers: broker.bootstrap(),
            topic,
            dir: TempDir::new().unwrap(),
            effects: Effects::default(),
        }
    }

    fn consumer(&self) -> Consumer {
        member::consumer(&self.brokers, &self.topic, self.dir.path())
    }

    fn bytes(
        &self,
        class: Class,
        change: impl FnOnce(
            Topic<hapax::handler::Undecoded, Effects>,
        ) -> Topic<hapax::handler::Undecoded, Effects>,
    ) -> Member {
        let topic = Topic::bytes(&self.topic, class)
            .state(self.effects.clone())
            .window(Window::hours(1));
        Member::start(self.consumer().handle(change(topic), member::handle))
    }

    async fn send(&self, messages: impl IntoIterator<Item = Message>) {
        member::send(&self.brokers, &self.topic, messages).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.brokers, &self.topic, &self.topic);
    }

    fn committed(&self) -> i64 {
        member::committed(&self.brokers, &self.topic, &self.topic)[&0].0
    }

    /// Dead letters by the offset that they came from.
    fn letters(&self) -> BTreeMap<i64, member::Found> {
        let letters = member::read_all(&self.brokers, &format!("{}.dead-letters", self.topic));
        letters
            .into_iter()
            .map(|letter| (letter.header("hapax-offset").parse().unwrap(), letter))
            .collect()
    }

    /// Offsets that were finished, in order.
    fn finished(&self) -> Vec<i64> {
        let mut offsets: Vec<i64> = self.effects.finished().iter().map(|call| call.offset).collect();
        offsets.sort_unstable();
        offsets
    }

    /// What hapax said of this topic as an error.
    fn refusal(&self) -> String {
        let said =
            || events::all(|said| said.level == tracing::Level::ERROR && said.text().contains(&self.topic));
        eventually("a refusal", SOON, || Some(said().first()?.text()))
    }
}

fn token(text: &str) -> Message {
    Message::new(0, text, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_goes_to_the_dead_letters_as_it_was() {
    #[derive(serde::Deserialize)]
    struct Order {
        cents: u64,
    }
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, &[]);
    let payloads: [Option<&[u8]>; 6] = [
        Some(br#"{"cents": 1}"#),
        Some(b"cents=2"),
        None,
        Some(b"\xff\xfe"),
        Some(br#"{"cents": -4}"#),
        Some(br#"{"cents": 5}"#),
    ];
    input
        .send(payloads.iter().enumerate().map(|(n, payload)| Message {
            payload: payload.map(<[u8]>::to_vec),
            ..Message::new(0, format!("token-{n}"), "").key("key")
        }))
        .await;
    let topic = Topic::json::<Order>(&input.topic, NonIdempotent)
        .state(input.effects.clone())
        .window(Window::hours(1));
    let member = Member::start(input.consumer().handle(
        topic,
        |order: Order, cx: Context<Effects>| async move {
            member::handle(order.cents.to_string().into(), cx).await
        },
    ));
    input.caught_up();
    let summary = member.stop().await;
    assert_eq!(
        (input.finished(), member::total(&summary, Account::Failed)),
        (vec![0, 5], 4)
    );
    let letters = input.letters();
    assert_eq!(letters.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (offset, letter) in &letters {
        assert_eq!(
            letter.payload.as_deref(),
            payloads[*offset as usize],
            "the bytes are intact"
        );
        assert_eq!(letter.key.as_deref(), Some(&b"key"[..]));
        assert_eq!(
            (letter.header("hapax-reason"), letter.header("hapax-attempts")),
            ("malformed".to_owned(), "0".to_owned())
        );
    }
    let error = |offset: i64| letters[&offset].header("hapax-error");
    assert!(
        error(1).contains("expected value at line 1 column 1"),
        "{}",
        error(1)
    );
    assert!(
        error(2).contains("it is a tombstone") && error(2).contains("Option<"),
        "{}",
        error(2)
    );
    assert!(error(4).contains("-4"), "{}", error(4));
}

/// A token that is missing or too long: dead-lettered, or replaced by the message's position.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_a_usable_token_follows_the_policy() {
    let Some(broker) = kafka::broker() else { return };
    for (policy, handled) in [
        (MissingToken::DeadLetter, vec![0, 4]),
        (MissingToken::UseOffset, vec![0, 1, 2, 3, 4]),
    ] {
        let input = Input::new(broker, &[]);
        let bare = |token| Message {
            token,
            ..Message::new(0, "", "bare")
        };
        input
            .send([
                token("first"),
                bare(None),
                bare(Some(Vec::new())),
                bare(Some(vec![b'x'; 513])),
                token("last"),
            ])
            .await;
        let member = input.bytes(NonIdempotent, |topic| topic.missing_token(policy));
        input.caught_up();
        member.stop().await;
        assert_eq!(input.finished(), handled);
        let letters: Vec<_> = input
            .letters()
            .into_iter()
            .map(|(offset, letter)| (offset, letter.header("hapax-reason")))
            .collect();
        if policy == MissingToken::DeadLetter {
            let missing = |offset| (offset, "missing-token".to_owned());
            assert_eq!(
                letters,
                [missing(1), missing(2), (3, "token-too-long".to_owned())]
            );
            let error = input.letters()[&3].header("hapax-error");
            assert!(
                error.contains("idempotency-key") && error.contains("has 513 bytes, `token_bytes` is 512"),
                "{error}"
            );
        } else {
            assert_eq!(letters, []);
        }
    }
}

/// `missing_token = "stop"`: the consumer ends with where and why, everything before is recorded and committed, and
/// another policy takes up the message where it lies.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_token_stops_the_consumer_where_that_is_the_policy() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, &[]);
    let bare = Message {
        token: None,
        ..Message::new(0, "", "bare")
    };
    input.send([token("first"), bare, token("last")]).await;
    let stopped = input.bytes(NonIdempotent, |topic| topic.missing_token(MissingToken::Stop));
    assert_eq!(
        stopped.failure().await,
        format!(
            "{}[0] stopped at offset 1: no source has a token, and `missing_token = \"stop\"`",
            input.topic
        )
    );
    assert_eq!((input.finished(), input.committed()), (vec![0], 1));
    let member = input.bytes(NonIdempotent, |topic| {
        topic.missing_token(MissingToken::UseOffset)
    });
    input.caught_up();
    member.stop().await;
    assert_eq!(input.finished(), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_no_text_is_a_token() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, &[]);
    let raw = |bytes: &[u8]| Message {
        token: Some(bytes.to_vec()),
        ..Message::new(0, "", "raw")
    };
    input
        .send([raw(b"\xff\x00"), raw(b"\xff\x01"), raw(b"\xff\x00")])
        .await;
    let member = input.bytes(NonIdempotent, |topic| topic);
    input.caught_up();
    let summary = member.stop().await;
    assert_eq!(
        (input.finished(), member::total(&summary, Account::Duplicate)),
        (vec![0, 1], 1)
    );
}

/// A bytes topic takes a tombstone as an empty payload: whether it means something is the handler's to say.
#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_of_a_bytes_topic_is_an_empty_payload() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(broker, &[]);
    input
        .send([Message {
            payload: None,
            ..token("gone")
        }])
        .await;
    let member = input.bytes(NonIdempotent, |topic| topic);
    input.caught_up();
    member.stop().await;
    assert_eq!(input.effects.finished()[0].payload, "");
}

/// One producer's clock is ten years ahead. Its stamp alone moves nothing: duplicates of before are still suppressed,
/// also after a restart. A second token that confirms it moves partition time, and the window with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_in_the_far_future_expires_nothing_alone() {
    let Some(broker) = kafka::broker() else { return };
    let input = Input::new(
        broker,
        &[("message.timestamp.after.max.ms", "9223372036854775807")],
    );
    let now_ms = Clock::system().wall_ms();
    let at = |text: &str, years: i64| Message {
        timestamp_ms: Some(now_ms + years * 365 * 86_400_000),
        ..token(text)
    };
    let starts = |text: &str| input.effects.starts_of(text);
    input
        .send([at("a", 0), at("future", 10), at("a", 0), at("b", 0)])
        .await;
    let member = input.bytes(NonIdempotent, |topic| topic);
    input.caught_up();
    member.stop().await;
    assert_eq!(input.finished(), [0, 1, 3]);
    input.send([at("a", 0), at("future", 10), at("b", 0)]).await;
    let member = input.bytes(NonIdempotent, |topic| topic);
    input.caught_up();
    assert_eq!((starts("a"), starts("b"), starts("future")), (1, 1, 1));
    input.send([at("confirms", 10)]).await;
    input.caught_up();
    input.send([at("a", 10)]).await;
    input.caught_up();
    member.stop().await;
    assert_eq!(
        starts("a"),
        2,
        "ten years later by two witnesses, its window is over"
    );
}

/// The broker has deleted messages that nobody took: refused with both offsets; with `deleted = "skip"` hapax goes on
/// with what is left.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_older_than_the_log_is_refused_or_skipped_by_choice() {
    let Some(broker) = kafka::broker() else { return };
    events::listen();
    let input = Input::new(broker, &[]);
    input.send((0..3).map(|n| token(&format!("early-{n}")))).await;
    let member = input.bytes(NonIdempotent, |topic| topic);
    input.caught_up();
    member.stop().await;
    input.send((3..9).map(|n| token(&format!("late-{n}")))).await;
    let admin: AdminClient<DefaultClientContext> = broker.client().create().unwrap();
    let mut until = TopicPartitionList::new();
    until
        .add_partition_offset(&input.topic, 0, Offset::Offset(7))
        .unwrap();
    admin.delete_records(&until, &AdminOptions::new()).await.unwrap();

    let member = input.bytes(NonIdempotent, |topic| topic);
    let text = input.refusal();
    member.stop().await;
    for part in [
        "[0] has lost messages",
        "the commit point is 3",
        "the log begins at 7",
        "4 offsets",
        "`deleted = \"skip\"`",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(
        (input.finished(), input.committed()),
        (vec![0, 1, 2], 3),
        "nothing ran, nothing was committed"
    );

    let topic = Topic::bytes(&input.topic, NonIdempotent)
        .state(input.effects.clone())
        .window(Window::hours(1));
    let skip = input
        .consumer()
        .with(|layer| layer.deleted = Some(Deleted::Skip))
        .handle(topic, member::handle);
    let member = Member::start(skip);
    input.caught_up();
    member.stop().await;
    assert_eq!(input.finished(), [0, 1, 2, 7, 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_beyond_the_log_is_refused() {
    let Some(broker) = kafka::broker() else { return };
    events::listen();
    let input = Input::new(broker, &[]);
    input.send((0..3).map(|n| token(&format!("{n}")))).await;
    let other: BaseConsumer = broker.client().set("group.id", &input.topic).create().unwrap();
    let mut beyond = TopicPartitionList::new();
    beyond
        .add_partition_offset(&input.topic, 0, Offset::Offset(100))
        .unwrap();
    other.commit(&beyond, CommitMode::Sync).unwrap();
    let member = input.bytes(Idempotent, |topic| topic);
    let text = input.refusal();
    member.stop().await;
    for part in [
        "[0] ends at 3",
        "before the commit point 100",
        "reset the group's offset",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!((input.finished(), input.committed()), (vec![], 100));
}

/// What `run` says of a consumer that cannot start, within a bound.
async fn refused(consumer: Consumer) -> String {
    let running = consumer.run_until(std::future::pending());
    let ended = tokio::time::timeout(2 * SOON, running)
        .await
        .expect("a refusal within a minute");
    hapax::error::chain(&ended.expect_err("it is refused"))
}

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_work_are_refused_all_at_once_and_before_anything_is_touched() {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("state");
    let consumer = member::consumer(NOWHERE, "bad-settings", &state)
        .with(|layer| {
            layer.limits.in_flight = Some(0);
            layer.limits.held = Some(0);
            layer.limits.token_bytes = Some(ByteCount(0));
            layer.drain = Some(Duration::from_secs(600));
            layer.commit_every = Some(Duration::ZERO);
            layer.memory = Some(ByteCount::mib(1));
            member::property(layer, "enable.auto.commit", "true");
        })
        .handle(
            Topic::bytes("orders", NonIdempotent)
                .state(Effects::default())
                .window(Window::days(365_250))
                .deadline(Duration::ZERO)
                .retry(0, Duration::ZERO),
            member::handle,
        );
    let text = refused(consumer).await;
    for (key, why) in [
        ("limits.in_flight = 0", "nothing could ever be taken"),
        ("limits.held = 0", "what is in doubt has to be held"),
        ("limits.token_bytes", "no message would have a token"),
        ("drain = \"10m\"", "max.poll.interval.ms"),
        ("commit_every", "a commit takes longer than that"),
        ("memory = \"1MiB\"", "the write buffers alone need that much"),
        ("kafka.\"enable.auto.commit\"", "hapax sets it itself"),
        ("topics.orders.window", "nothing would ever be forgotten"),
        ("topics.orders.deadline", "over before it began"),
        (
            "topics.orders.retry.in_place.attempts = 0",
            "nothing would ever run",
        ),
    ] {
        let line = text.lines().find(|line| line.contains(key));
        assert!(
            line.is_some_and(|line| line.contains(why)),
            "{key}: {why}: {text}"
        );
    }
    assert!(!state.exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_nobody_stated_is_refused_with_the_line_to_add() {
    let dir = TempDir::new().unwrap();
    let topic = Topic::bytes("orders", NonIdempotent).state(Effects::default());
    let text =
        refused(member::consumer(NOWHERE, "no-window", dir.path()).handle(topic, member::handle)).await;
    assert!(
        text.contains("topics.orders.window: it is stated nowhere") && text.contains("add window = \"24h\""),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_does_not_exist_is_refused_by_name() {
    let Some(broker) = kafka::broker() else { return };
    let dir = TempDir::new().unwrap();
    let (group, topic) = (kafka::unique("unknown-topic"), kafka::unique("no-such-topic"));
    let topics = Topic::bytes(&topic, NonIdempotent)
        .state(Effects::default())
        .window(Window::hours(1));
    let text =
        refused(member::consumer(&broker.bootstrap(), &group, dir.path()).handle(topics, member::handle))
            .await;
    assert!(
        text.contains(&format!("topic {topic:?} cannot be consumed")),
        "{text}"
    );
    assert!(text.contains("create it, mend its name"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_said_so() {
    let dir = TempDir::new().unwrap();
    let topic = Topic::bytes("orders", NonIdempotent)
        .state(Effects::default())
        .window(Window::hours(1));
    let text =
        refused(member::consumer(NOWHERE, "no-broker", dir.path()).handle(topic, member::handle)).await;
    assert!(
        text.contains("no answer from brokers \"127.0.0.1:1\" while asking for a topic"),
        "{text}"
    );
}
