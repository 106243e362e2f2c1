//! What an example needs of a broker before its consumer starts: a topic with messages in it.

use std::error::Error;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists;

/// The first argument, else `HAPAX_BROKERS`, else the node that `make kafka` starts.
#[allow(dead_code, reason = "one example has its brokers in a file")]
pub(crate) fn brokers() -> String {
    let argument = std::env::args().nth(1);
    let stated = argument.or_else(|| std::env::var("HAPAX_BROKERS").ok());
    stated.unwrap_or_else(|| "127.0.0.1:9092".to_owned())
}

/// Makes the topic (one partition) and its dead-letter topic, and sends `(token, payload)` to it, in that order.
pub(crate) async fn topic(
    brokers: &str,
    name: &str,
    messages: &[(&str, String)],
) -> Result<(), Box<dyn Error>> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers);
    let admin: AdminClient<DefaultClientContext> = client.create()?;
    let dead_letters = format!("{name}.dead-letters");
    let [topic, dead_letters] =
        [name, &dead_letters].map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1)));
    // A dead letter is its message and the headers that say why: what fitted into the one must fit into the other.
    let topics = [topic, dead_letters.set("max.message.bytes", "2097152")];
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for made in admin.create_topics(&topics, &options).await? {
        match made {
            Ok(_) | Err((_, TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(format!("topic {topic} was not created: {code}").into()),
        }
    }
    let producer: FutureProducer = client.create()?;
    for (token, payload) in messages {
        let header = Header {
            key: "idempotency-key",
            value: Some(*token),
        };
        let record = FutureRecord::to(name)
            .key("one key, one order")
            .payload(payload)
            .headers(OwnedHeaders::new().insert(header));
        let sent = producer.send(record, Duration::from_secs(30)).await;
        sent.map_err(|(error, _)| error)?;
    }
    Ok(())
}
