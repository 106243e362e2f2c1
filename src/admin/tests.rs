//! What the port says of a consumer, and that it comes and goes with it.

mod pages;
mod requests;
mod slow;

use super::*;
use crate::pulse::Unserved;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use tokio::sync::watch;

/// Tests run on two threads: one serves, one asks.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    tokio::task::block_in_place(|| {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_why_it_is_not_ready_until_it_is() {
    let (cold, reported) = watch::channel(Unserved::default());
    let readiness = Arc::new(Readiness::new(reported));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(listen, Office::test(&readiness)).await.unwrap();
    let address = server.address();
    let (status, why) = get(address, "/readyz");
    assert_eq!((status, why.contains("no assignment")), (503, true), "{why}");
    assert_eq!(get(address, "/healthz").0, 200);
    cold.send_replace(Unserved::default());
    assert_eq!(get(address, "/readyz"), (200, "ready\n".to_owned()));
    let coming = Unserved {
        arriving: 1,
        restoring: 2,
        rebuilding: 3,
        ..Unserved::default()
    };
    readiness.progress().note(0, 0, 30, 100);
    readiness.progress().note(0, 1, 120, 100);
    cold.send_replace(coming.clone());
    let (status, why) = get(address, "/readyz");
    assert_eq!(status, 503);
    for part in [
        "6 partitions are not served yet: 1 until the broker says where to start",
        "2 until the changelog is read, 3 until the window is read back",
        "65 % of 200 offsets are read",
    ] {
        assert!(why.contains(part), "{part:?} is not in: {why}");
    }
    let refused = Unserved {
        refused: vec!["orders[3] is cold".into(), "orders[4] is cold".into()],
        ..coming
    };
    cold.send_replace(refused);
    let (status, why) = get(address, "/readyz");
    assert_eq!(status, 503);
    for part in [
        "2 partitions are refused: orders[3] is cold (and 1 more",
        "not served yet",
    ] {
        assert!(why.contains(part), "{part:?} is not in: {why}");
    }
    cold.send_replace(Unserved::default());
    readiness.stop();
    assert!(get(address, "/readyz").1.contains("stopping"));
    assert_eq!(get(address, "/healthz").0, 200, "it drains, which is healthy");
    drop(cold);
    assert_eq!(get(address, "/healthz").0, 503);
    assert_eq!(get(address, "/other").0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_refused_with_the_key_to_change() {
    let holder = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let listen = holder.local_addr().unwrap();
    let (_cold, reported) = watch::channel(Unserved::default());
    let error = Server::start(listen, Office::test(&Arc::new(Readiness::new(reported))))
        .await
        .unwrap_err();
    let text = crate::error::chain(&error);
    assert!(
        text.contains(&listen.to_string()) && text.contains("admin.listen"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_is_free_again_after_the_server() {
    let (_cold, reported) = watch::channel(Unserved::default());
    let readiness = Arc::new(Readiness::new(reported));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(listen, Office::test(&readiness)).await.unwrap();
    let address = server.address();
    // A client that keeps its connection does not keep the server.
    tokio::task::block_in_place(|| {
        let mut idle = TcpStream::connect(address).unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
            .unwrap();
        let mut first = [0; 15];
        idle.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        drop(server);
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).unwrap();
        // The listener goes a moment after the connections.
        while TcpStream::connect(address).is_ok() {
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_poll_thread_that_stands_still_is_not_healthy() {
    let (_cold, reported) = watch::channel(Unserved::default());
    let readiness = Readiness::new(reported);
    let (now, session) = (crate::clock::now(), std::time::Duration::from_secs(6));
    let pulse = crate::pulse::Pulse::new(now, session);
    readiness.feel(pulse.clone());
    assert_eq!(readiness.unhealthy(now + session), None);
    let late = now + 2 * session;
    assert!(readiness.unhealthy(late).is_some());
    pulse.beat(late);
    assert_eq!(readiness.unhealthy(late), None);
    readiness.stop();
    assert_eq!(readiness.unhealthy(now + 9 * session), None);
}

#[tokio::test]
async fn a_recorder_that_was_there_first_is_respected() {
    let (_cold, reported) = watch::channel(Unserved::default());
    let shared = Shared {
        readiness: Arc::new(Readiness::new(reported)),
        page: None,
    };
    assert_eq!(metrics(State(shared)).await.status(), StatusCode::NOT_FOUND);
}
