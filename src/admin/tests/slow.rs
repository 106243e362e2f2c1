//! Whoever holds up the port by being slow: it ends by itself, and others are answered meanwhile.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::get;
use crate::admin::serve::Terms;
use crate::admin::{Office, Readiness, Server};
use crate::pulse::Unserved;

const TERMS: Terms = Terms {
    header: Duration::from_millis(400),
    whole: Duration::from_secs(60),
    connections: 4,
};

/// Long enough for the slowest machine; what is awaited comes after `TERMS` say.
const BOUND: Duration = Duration::from_secs(20);

async fn server(terms: Terms) -> (Server, watch::Sender<Unserved>) {
    let (reported, unserved) = watch::channel(Unserved::default());
    let office = Office::test(&Arc::new(Readiness::new(unserved)));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    (Server::start_by(listen, office, terms).await.unwrap(), reported)
}

/// A client that says a little more of its header, and whether it is hung up on.
struct Dribbler(TcpStream);

impl Dribbler {
    fn new(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nx: ").unwrap();
        Self(stream)
    }

    fn is_hung_up_on(&mut self) -> bool {
        let _ = self.0.write_all(b"x");
        match self.0.read(&mut [0; 512]) {
            Ok(bytes) => bytes == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

fn until(mut is_so: impl FnMut() -> bool) {
    let end = crate::clock::now() + BOUND;
    while !is_so() {
        assert!(crate::clock::now() < end, "not within {BOUND:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_comes_a_byte_at_a_time_is_hung_up_on_and_others_are_answered() {
    let (server, _reported) = server(TERMS).await;
    let address = server.address();
    tokio::task::block_in_place(|| {
        let mut dribblers = [Dribbler::new(address), Dribbler::new(address)];
        for dribbler in &mut dribblers {
            until(|| {
                assert_eq!(get(address, "/readyz").0, 503);
                dribbler.is_hung_up_on()
            });
        }
    });
}

/// One that asks nothing at all, and one that asks nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_nothing_ends() {
    let (server, _reported) = server(TERMS).await;
    let address = server.address();
    tokio::task::block_in_place(|| {
        for asks in [&b""[..], b"GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n"] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(BOUND)).unwrap();
            stream.write_all(asks).unwrap();
            let mut all = Vec::new();
            // To its end, which is the server's doing.
            stream.read_to_end(&mut all).unwrap();
            assert_eq!(all.is_empty(), asks.is_empty());
        }
    });
}

/// Every place is taken by somebody who is slow: whoever comes then is answered when one of these has gone.
#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_more_connections_than_places() {
    let header = Duration::from_secs(60);
    let (server, _reported) = server(Terms { header, ..TERMS }).await;
    let address = server.address();
    tokio::task::block_in_place(|| {
        let mut slow: Vec<Dribbler> = (0..TERMS.connections).map(|_| Dribbler::new(address)).collect();
        // Each of them has its place.
        assert!(slow.iter_mut().all(|slow| !slow.is_hung_up_on()));
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n")
            .unwrap();
        let mut first = [0; 12];
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        assert!(stream.read_exact(&mut first).is_err(), "it has no place yet");
        slow.pop();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 503");
    });
}

/// However much it asks: a connection has its time, and ends between two answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_its_time_is_over() {
    let whole = Duration::from_millis(400);
    let (server, _reported) = server(Terms { whole, ..TERMS }).await;
    let address = server.address();
    tokio::task::block_in_place(|| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        until(|| {
            let _ = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n");
            stream.read(&mut [0; 4096]).map_or(true, |bytes| bytes == 0)
        });
    });
}
