//! Rights that are missing: each refusal names the right, its resource and the command that grants it, and that command
//! mends it.
//!
//! Method: a broker with Kafka's authorizer. The test speaks to it as a super user; hapax logs in (SASL PLAIN) as a user who
//! may describe and create topics and nothing else. It is started, the command in its refusal is carried out, it is
//! started again, until it serves; then it goes on to what takes more rights.
//!
//! Seen to fail: `wait` of `broker/kafka/transactions.rs` without its question to the client, and an abort that decides before
//! the cause does: a member that may not write to its changelog tries for ever, "nobody knows whether a group was written".

use std::path::Path;
use std::process::Command;

use hapax::config::Durability;
use hapax::{Consumer, NonIdempotent, Topic, Window};
use tempfile::TempDir;

use crate::kafka::{self, Broker, Extra, free_port};
use crate::member::{self, Effects, Member, Message};

const USER: &str = "billing";

struct Guarded {
    broker: Broker,
    topic: String,
    /// Where users log in.
    login: String,
}

impl Guarded {
    fn start() -> Option<Self> {
        if !kafka::available() {
            return None;
        }
        let (port, login) = (free_port(), free_port());
        let properties = format!(
            "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{},SASL_PLAINTEXT://127.0.0.1:{login}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{login}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT\n\
             sasl.enabled.mechanisms=PLAIN\n\
             listener.name.sasl_plaintext.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"secret\";\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n",
            port + 1
        );
        let extra = Extra {
            properties,
            cluster: None,
        };
        let mut broker = Broker::of_cluster(port, extra);
        broker.await_service();
        let topic = kafka::unique("rights");
        member::create_topic(&broker, &topic, 1, &[]);
        let login = format!("127.0.0.1:{login}");
        Some(Self { broker, topic, login })
    }

    fn member(&self, dir: &Path, effects: &Effects) -> Member {
        Member::start(self.consumer(dir, effects))
    }

    fn consumer(&self, dir: &Path, effects: &Effects) -> Consumer {
        member::consumer(&self.login, &self.topic, dir)
            .with(|layer| {
                layer.durability = Some(Durability::Replicated);
                for (name, value) in [
                    ("security.protocol", "SASL_PLAINTEXT"),
                    ("sasl.mechanism", "PLAIN"),
                    ("sasl.username", USER),
                    ("sasl.password", "secret"),
                ] {
                    member::property(layer, name, value);
                }
            })
            .handle(
                Topic::bytes(&self.topic, NonIdempotent)
                    .state(effects.clone())
                    .window(Window::hours(1)),
                member::handle,
            )
    }

    async fn send(&self, message: Message) {
        member::send(&self.broker.bootstrap(), &self.topic, [message]).await;
    }

    fn caught_up(&self) {
        member::await_caught_up(&self.broker.bootstrap(), &self.topic, &self.topic);
    }

    fn grant(&self, options: &str) {
        let acls = |verb: &str| {
            let jars = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka.sh"))
                .arg("fetch")
                .output()
                .unwrap();
            let jars = String::from_utf8(jars.stdout).unwrap();
            let jars = jars.trim().strip_prefix("jars ").unwrap();
            let mut command = Command::new("java");
            command
                .args([
                    "-XX:TieredStopAtLevel=1",
                    "-XX:+UseSerialGC",
                    "-cp",
                    &format!("{jars}/*"),
                ])
                .args([
                    "org.apache.kafka.tools.AclCommand",
                    "--bootstrap-server",
                    &self.broker.bootstrap(),
                ])
                .arg(verb);
            command
        };
        let granted = acls("--add").args(options.split(' ')).output().unwrap();
        assert!(granted.status.success(), "{options}: {granted:?}");
    }

    /// Carries out what a refusal says.
    fn mend(&self, refused: &str) {
        let command = refused.split('`').nth(1).unwrap();
        let options = command.strip_prefix("kafka-acls.sh --add ").unwrap();
        self.grant(&options.replace("<name>", USER));
    }
}

fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_named_and_the_mend_mends_it() {
    let Some(guarded) = Guarded::start() else { return };
    let (effects, dir) = (Effects::default(), TempDir::new().unwrap());
    let at = |name: &str| dir.path().join(name);
    let topic = guarded.topic.as_str();
    let (group, inputs) = (format!("read group {topic:?}"), format!("read topic {topic:?}"));
    let (changelog, letters) = (format!("{topic}.{topic}.hapax"), format!("{topic}.dead-letters"));
    guarded.send(Message::new(0, "one", "one")).await;

    let refused = guarded.member(&at("state"), &effects).failure().await;
    says(
        &refused,
        &["Topic authorization failed", topic, "grant the right"],
    );
    guarded.grant(&format!(
        "--allow-principal User:{USER} --operation Describe --operation DescribeConfigs --operation Create --topic *"
    ));
    let transactions = format!("write under transactional ids that begin with \"hapax-{topic}-\"");
    let writes = format!("write to topic {changelog:?}");
    // What was begun and aborted lies in it, and is read over.
    let reads = format!("read changelog topic {changelog:?}");
    let mut named = Vec::new();
    for wanted in [&transactions, &group, &writes, &inputs, &reads] {
        let refused = guarded.member(&at("state"), &effects).failure().await;
        says(&refused, &["no right to ", wanted, "authorization failed"]);
        guarded.mend(&refused);
        named.push(wanted);
    }
    let member = guarded.member(&at("state"), &effects);
    guarded.caught_up();
    assert_eq!(
        effects.finished().len(),
        1,
        "it serves once it has the rights {named:?}"
    );

    // The first dead letter.
    guarded
        .send(Message {
            token: None,
            ..Message::new(0, "", "without a token")
        })
        .await;
    let refused = member.failure().await;
    says(&refused, &["no right to ", "write to topic", &letters]);
    guarded.mend(&refused);
    let member = guarded.member(&at("state"), &effects);
    guarded.caught_up();
    member.stop().await;
    let found = member::read_all(&guarded.broker.bootstrap(), &letters);
    assert_eq!(found.len(), 1);

    // Everything that a disk that is lost takes is there.
    let member = guarded.member(&at("another"), &effects);
    guarded.send(Message::new(0, "one", "again")).await;
    guarded.caught_up();
    member.stop().await;
    assert_eq!(effects.started().len(), 1);
}
