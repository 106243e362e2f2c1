//! Serve: the connections of the admin port, how many there are at once, and how long each may take.
//!
//! Whoever reaches the port can try to hold it up, and needs no token for that: a header that comes a byte at a time, a connection
//! that asks nothing, an answer that nobody reads. So each of these ends by itself, and there are so many at once (Inv 10). How long
//! a request may take is in the module above.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::REQUEST_MAX;
use crate::clock;

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// A header is there by then, whole, or the connection ends: counted from the connection, or from the answer before.
    pub(super) header: Duration,
    /// Then it ends, once what it asks is answered: a client that wants more comes again.
    pub(super) whole: Duration,
    /// At once. More of them wait for a place, and have it when one of these has ended.
    pub(super) connections: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            whole: Duration::from_secs(300),
            connections: 128,
        }
    }
}

/// A longer header is refused.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Where the system gives no connection, for want of files mostly.
const AGAIN: Duration = Duration::from_secs(1);

/// Answers until it is told to stop; what is being answered then is answered still.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    terms: Terms,
    mut stopped: oneshot::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(terms.connections));
    let (stop, stops) = watch::channel(());
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = async { (place.await, listener.accept().await) };
        let (place, stream) = tokio::select! {
            // Told, or hung up on.
            _ = &mut stopped => break,
            (place, accepted) = accepted => match (place, accepted) {
                (Ok(place), Ok((stream, _))) => (place, stream),
                _ => {
                    clock::sleep_until(clock::now() + AGAIN).await;
                    continue;
                }
            },
        };
        tokio::spawn(connection(stream, router.clone(), terms, stops.clone(), place));
    }
    drop(stop);
}

async fn connection(
    stream: TcpStream,
    router: Router,
    terms: Terms,
    mut stops: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(terms.header)
        .max_buf_size(HEADER_BYTES_MAX);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(served);
    tokio::select! {
        // How it ended is the client's matter.
        _ = served.as_mut() => return,
        _ = stops.changed() => {}
        () = clock::sleep_until(clock::now() + terms.whole) => {}
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        _ = served => {}
        // Answered by then, and not read.
        () = clock::sleep_until(clock::now() + REQUEST_MAX) => {}
    }
}
