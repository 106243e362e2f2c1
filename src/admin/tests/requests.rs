//! Requests that are none, are too much, or come from somebody who may not: nothing of them reaches a partition's task.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::accounts::Accounts;
use crate::act::{Answer, Answered, Order};
use crate::admin::{Office, Readiness, Server};
use crate::broker::{Error, Letter, Letters};
use crate::config::{Durability, Settings, TopicPolicy};
use crate::desk::Desk;
use crate::pulse::Unserved;
use crate::store::memory::MemoryStore;
use crate::store::{PartitionId, Store, TopicSpec};

const TOKEN: &str = "correct-horse-battery";

struct Nowhere;

impl Letters for Nowhere {
    fn send(&self, _: Letter) -> futures_util::future::BoxFuture<'static, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// A consumer of `orders` that serves partition 0; the orders come out at the other end.
struct Desked {
    server: Server,
    orders: mpsc::Receiver<Order>,
    _kept: (
        Arc<dyn Store>,
        Arc<dyn Letters>,
        watch::Sender<Unserved>,
        tempfile::TempDir,
    ),
}

async fn desked(with_token: bool) -> Desked {
    let files = tempfile::tempdir().unwrap();
    let mut settings = Settings::new("billing", "localhost:1", "state", Durability::Local);
    let policy = TopicPolicy::new(crate::Class::NonIdempotent, Duration::from_secs(3_600));
    settings.topics.insert("orders".into(), policy);
    if with_token {
        let path = files.path().join("token");
        std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
        settings.admin.token_file = Some(path);
    }
    let (reported, unserved) = watch::channel(Unserved::default());
    let readiness = Arc::new(Readiness::new(unserved));
    let desk = Desk::default();
    let owners = Box::new(|_: &str, partition: i32| (partition == 1).then(|| "member b".to_owned()));
    let office = Office::new(Arc::new(settings), readiness, desk.clone(), owners).unwrap();
    let topic = TopicSpec {
        name: "orders".into(),
        window_ms: 3_600_000,
    };
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new("billing", &[topic]));
    let letters: Arc<dyn Letters> = Arc::new(Nowhere);
    office.open(&store, &letters).unwrap();
    let id = PartitionId {
        topic: store.topic("orders").unwrap(),
        partition: 0,
    };
    let orders = desk.open(id, Accounts::default());
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(listen, Arc::new(office)).await.unwrap();
    Desked {
        server,
        orders,
        _kept: (store, letters, reported, files),
    }
}

fn send(address: SocketAddr, head: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(format!("{head}\r\nhost: h\r\nconnection: close\r\n").as_bytes())
        .unwrap();
    stream
        .write_all(format!("content-length: {}\r\n\r\n", body.len()).as_bytes())
        .unwrap();
    // Refused before it is read, the rest of a body finds a closed connection.
    let _ = stream.write_all(body);
    stream
}

fn read(mut stream: TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (
        head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap()),
        body.to_owned(),
    )
}

fn post(address: SocketAddr, path: &str, token: Option<&str>, body: &[u8]) -> (u16, String) {
    let authorization = token.map_or(String::new(), |token| format!("\r\nauthorization: {token}"));
    tokio::task::block_in_place(|| {
        read(send(
            address,
            &format!("POST {path} HTTP/1.1{authorization}"),
            body,
        ))
    })
}

fn resolve(partition: i32) -> String {
    format!(
        r#"{{"which":{{"topic":"orders","partition":{partition},"offset":5}},"verdict":"done","words":{{"reason":"asked","by":"anna"}}}}"#
    )
}

fn bearer() -> String {
    format!("Bearer {TOKEN}")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_token_changes_nothing() {
    for with_token in [true, false] {
        let mut desked = desked(with_token).await;
        let at = desked.server.address();
        for path in ["resolve", "invalidate", "forget", "redrive"] {
            let path = format!("/v1/{path}");
            for (token, status) in [
                (None, 401),
                (Some("bearer wrong-horse-battery"), 401),
                (Some(TOKEN), 401),
                (Some("basic correct-horse-battery"), 401),
                (Some("bearer "), 401),
            ] {
                let expected = if with_token { status } else { 403 };
                let (found, why) = post(at, &path, token, resolve(0).as_bytes());
                assert_eq!(found, expected, "{path} {token:?}: {why}");
            }
        }
        assert!(desked.orders.try_recv().is_err(), "no task heard of it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_or_too_much_changes_nothing() {
    let mut desked = desked(true).await;
    let at = desked.server.address();
    let words = r#""words":{"reason":"asked","by":"anna"}"#;
    let long = "x".repeat(2_000);
    let tokens = |count: usize| {
        let all = vec![format!("\"{}\"", "0a".repeat(16)); count].join(",");
        format!(r#"{{"topic":"orders","partition":0,"tokens":[{all}],{words}}}"#)
    };
    let bad: Vec<(&str, String, u16)> = vec![
        ("resolve", String::new(), 400),
        ("resolve", "{".into(), 400),
        ("resolve", "[]".into(), 400),
        // A flag that is not known could be one that was meant to keep it from being done.
        (
            "resolve",
            resolve(0).replace("\"by\"", "\"dryrun\":true,\"by\""),
            400,
        ),
        (
            "resolve",
            resolve(0).replace("\"offset\":5", "\"offset\":\"five\""),
            400,
        ),
        (
            "resolve",
            resolve(0).replace("\"offset\":5", "\"offset\":99999999999999999999"),
            400,
        ),
        ("resolve", resolve(0).replace("done", "gone"), 400),
        ("resolve", resolve(0).replace("asked", " "), 400),
        ("resolve", resolve(0).replace("asked", &long), 400),
        ("resolve", resolve(0).replace("\"topic\":\"orders\",", ""), 400),
        ("resolve", resolve(0).replace("orders", "other"), 404),
        (
            "resolve",
            resolve(0).replace("\"offset\":5", "\"token\":\"0a\""),
            400,
        ),
        (
            "resolve",
            resolve(0).replace("\"offset\":5", "\"state\":\"lost\""),
            400,
        ),
        ("forget", tokens(1).replace("0a0a", "0a"), 400),
        ("forget", tokens(1_001), 400),
        ("invalidate", tokens(40_000), 413),
        (
            "redrive",
            format!(r#"{{"topic":"orders","partition":0,"letters":[{{"offset":1,"payload":"%"}}],{words}}}"#),
            400,
        ),
        ("resolve", resolve(1), 421),
        ("resolve", resolve(2), 421),
    ];
    for (verb, body, status) in bad {
        let (found, why) = post(at, &format!("/v1/{verb}"), Some(&bearer()), body.as_bytes());
        let shown: String = body.chars().take(120).collect();
        assert_eq!(found, status, "{verb} {shown}: {why}");
        assert!(!why.is_empty());
        assert_eq!(
            why.contains("\"owner\":\"member b\""),
            body == resolve(1),
            "{why}"
        );
    }
    let letters = vec![b' '; 17 << 20];
    assert_eq!(post(at, "/v1/redrive", Some(&bearer()), &letters).0, 413);
    let (status, _) = tokio::task::block_in_place(|| read(send(at, "PUT /v1/resolve HTTP/1.1", b"")));
    assert_eq!(status, 405);
    assert!(desked.orders.try_recv().is_err(), "no task heard of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_answered_by_the_task_or_by_its_end() {
    let mut desked = desked(true).await;
    let at = desked.server.address();
    let ask = || {
        let body = resolve(0);
        tokio::spawn(async move { post(at, "/v1/resolve", Some(&bearer()), body.as_bytes()) })
    };
    let asked = ask();
    let order = desked.orders.recv().await.unwrap();
    assert_eq!(
        (order.acts.len(), order.dry_run, order.said.by.as_str()),
        (1, false, "anna")
    );
    let answers = vec![Answer::Refused("it is not held".into())];
    let letters = Vec::new();
    order.answer.send(Answered { answers, letters }).unwrap();
    let (status, text) = asked.await.unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains("\"answer\":\"refused\"") && text.contains("it is not held"),
        "{text}"
    );

    // Its assignment ends: nobody knows whether it was done, and that is said.
    let asked = ask();
    drop(desked.orders.recv().await.unwrap());
    let (status, text) = asked.await.unwrap();
    assert_eq!((status, text.contains("not known")), (503, true), "{text}");
}

/// More than a few requests at once are turned away, and what waits holds up neither them nor the checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 12)]
async fn too_many_at_once_are_turned_away() {
    let mut desked = desked(true).await;
    let at = desked.server.address();
    let ask = || {
        let body = resolve(0);
        tokio::spawn(async move { post(at, "/v1/resolve", Some(&bearer()), body.as_bytes()).0 })
    };
    // The task answers nobody: some wait for it, the others find its door full, or no turn.
    let asked: Vec<_> = (0..9).map(|_| ask()).collect();
    let turned_away = |status: u16| status == 503;
    let mut open = 0;
    for one in asked {
        tokio::select! {
            status = one => assert!(turned_away(status.unwrap())),
            () = crate::clock::sleep_until(crate::clock::now() + Duration::from_millis(1_500)) => open += 1,
        }
    }
    assert!((1..=4).contains(&open), "{open} wait");
    let (status, _) = tokio::task::block_in_place(|| read(send(at, "GET /healthz HTTP/1.1", b"")));
    assert_eq!(status, 200);
    while desked.orders.try_recv().is_ok() {}
}
