//! The brokers of a campaign, with a proxy for each member in front of each.

use std::sync::{Arc, Mutex};

use rdkafka::ClientConfig;

use super::plan::{MEMBERS, Net};
use super::proxy::Proxy;
use crate::kafka::{self, Broker, Extra};

/// See the module. Dropped, its brokers end.
pub(crate) struct Cluster {
    brokers: Arc<Mutex<Vec<Broker>>>,
    /// By broker, then member.
    proxies: Vec<Vec<Proxy>>,
    count: usize,
    bootstrap: String,
}

impl Cluster {
    /// One broker or three; `None` where there can be none.
    pub(crate) fn start(count: usize) -> Option<Self> {
        if !kafka::available() {
            return None;
        }
        let ports = kafka::free_ports(count * (MEMBERS + 1));
        let (own, listeners) = ports.split_at(count);
        let proxies: Vec<Vec<Proxy>> = listeners
            .chunks(MEMBERS)
            .map(|of_broker| of_broker.iter().map(|port| Proxy::start(*port)).collect())
            .collect();
        let id = fastrand::Rng::new().u128(..);
        // Twenty-two letters are the sixteen bytes that Kafka wants in base64.
        let cluster = format!("A{id:032x}")[..21].to_owned() + "A";
        let mut brokers: Vec<Broker> = (0..count)
            .map(|n| {
                let extra = Extra {
                    properties: properties(n, own, &listeners[n * MEMBERS..(n + 1) * MEMBERS], &proxies[n]),
                    cluster: Some(cluster.clone()),
                };
                Broker::of_cluster(own[n], extra)
            })
            .collect();
        for broker in &mut brokers {
            broker.await_service();
        }
        let bootstrap: Vec<String> = brokers.iter().map(Broker::bootstrap).collect();
        Some(Self {
            brokers: Arc::new(Mutex::new(brokers)),
            proxies,
            count,
            bootstrap: bootstrap.join(","),
        })
    }

    /// What a member connects to: its own proxies.
    pub(crate) fn bootstrap_of(&self, member: usize) -> String {
        let ports = self.proxies.iter().map(|of_broker| of_broker[member].port());
        let addresses: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
        addresses.join(",")
    }

    /// The start of any client's configuration that goes to the brokers straight.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("reconnect.backoff.max.ms", "200");
        config
    }

    pub(crate) fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let brokers = self.brokers.lock().unwrap();
        brokers[0].create_replicated_topic(name, partitions, self.count as i32, configs);
    }

    pub(crate) fn disturb(&self, member: usize, net: Net) {
        for of_broker in &self.proxies {
            of_broker[member].disturb(net);
        }
    }

    pub(crate) fn heal(&self, member: usize) {
        for of_broker in &self.proxies {
            of_broker[member].heal();
        }
    }

    /// Takes a broker down, at once, and up again, in a thread of its own.
    pub(crate) fn restart(
        &self,
        broker: usize,
        kill: bool,
        down: std::time::Duration,
    ) -> std::thread::JoinHandle<()> {
        let brokers = Arc::clone(&self.brokers);
        std::thread::spawn(move || {
            let mut brokers = brokers.lock().unwrap();
            if kill {
                brokers[broker].kill();
            } else {
                brokers[broker].stop();
            }
            std::thread::sleep(down);
            brokers[broker].restart();
        })
    }
}

fn properties(n: usize, own: &[u16], listeners: &[u16], proxies: &[Proxy]) -> String {
    let mut voters = Vec::new();
    for (n, port) in own.iter().enumerate() {
        voters.push(format!("{}@127.0.0.1:{}", n + 1, port + 1));
    }
    let port = own[n];
    let mut listen = format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{}", port + 1);
    let mut advertise = format!("PLAINTEXT://127.0.0.1:{port}");
    let mut map = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".to_owned();
    for (member, (listener, proxy)) in listeners.iter().zip(proxies).enumerate() {
        listen += &format!(",MEMBER{member}://127.0.0.1:{listener}");
        advertise += &format!(",MEMBER{member}://127.0.0.1:{}", proxy.port());
        map += &format!(",MEMBER{member}:PLAINTEXT");
    }
    let replicas = own.len();
    let enough = replicas.div_ceil(2);
    format!(
        "node.id={}\ncontroller.quorum.voters={}\nlisteners={listen}\nadvertised.listeners={advertise}\n\
         listener.security.protocol.map={map}\n\
         offsets.topic.replication.factor={replicas}\ntransaction.state.log.replication.factor={replicas}\n\
         transaction.state.log.min.isr={enough}\nmin.insync.replicas={enough}\n\
         transaction.abort.timed.out.transaction.cleanup.interval.ms=500\n",
        n + 1,
        voters.join(","),
    )
}
