//! The admin port: `/metrics`, `/healthz`, `/readyz`, and what an operator reads and does.
//!
//! It runs from before the store is opened to after it is closed, so that whoever asks meanwhile is told why not. `axum`
//! is named here only, and the exporter in `recorder.rs` only.
//!
//! | file | what |
//! |---|---|
//! | `ready.rs` | well, and ready: why not, in words |
//! | `office.rs` | who may change something, what there is to ask, how much at once |
//! | `look.rs` | what is read |
//! | `operate.rs` | what is done: requests become orders for partition tasks (`crate::desk`) |
//! | `shapes.rs` | the JSON of both sides |

mod look;
mod office;
mod operate;
mod ready;
mod recorder;
pub(crate) mod shapes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::office::Refused;
pub(crate) use self::office::{Office, Owners};
pub(crate) use self::ready::Readiness;
use self::recorder::Page;
use crate::clock;
use crate::error::Error;

/// A body that is longer is refused: descriptions, and tokens by the thousand.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The same for letters, whose bytes are in it.
const LETTERS_BYTES_MAX: usize = 16 << 20;

/// A request is answered by then, its body included. Longer than an order may take (`crate::desk`).
const REQUEST_MAX: Duration = Duration::from_secs(40);

/// The server, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

#[derive(Clone)]
struct Shared {
    readiness: Arc<Readiness>,
    page: Option<Page>,
}

/// Before a body is read: whether whoever asks may, and whether there is a turn for it.
async fn admit(State(office): State<Arc<Office>>, request: Request, next: Next) -> Response {
    if request.method() == Method::POST
        && let Err(refused) = office.may_change(request.headers())
    {
        return refused.into_response();
    }
    let _turn = match office.turn() {
        Ok(turn) => turn,
        Err(refused) => return refused.into_response(),
    };
    tokio::select! {
        answer = next.run(request) => answer,
        () = clock::sleep_until(clock::now() + REQUEST_MAX) => {
            let why = format!(
                "not answered within {} s: if it was to change something, look whether it did",
                REQUEST_MAX.as_secs()
            );
            Refused::new(StatusCode::REQUEST_TIMEOUT, why).into_response()
        }
    }
}

impl Server {
    /// Listens, and answers from the caller's runtime. The recorder is installed first: a metric that is made before it
    /// would be nobody's.
    ///
    /// # Errors
    /// [`Error::Admin`] where the address cannot be listened on.
    pub(crate) async fn start(listen: SocketAddr, office: Arc<Office>) -> Result<Self, Error> {
        let refused = |source| Error::Admin { listen, source };
        let page = recorder::install();
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = axum::serve(listener, router(office, page));
        tokio::spawn(async move {
            // It ends by the signal alone: an accept that fails is tried again by the server itself.
            let _ = server
                .with_graceful_shutdown(async {
                    let _ = stopped.await;
                })
                .await;
        });
        Ok(Self { address, _stop: stop })
    }

    /// Where it listens: with port 0 the system chose.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn router(office: Arc<Office>, page: Option<Page>) -> Router {
    let shared = Shared {
        readiness: Arc::clone(&office.readiness),
        page,
    };
    let letters = post(operate::redrive).layer(DefaultBodyLimit::max(LETTERS_BYTES_MAX));
    let operators = Router::new()
        .route("/v1/status", get(look::status))
        .route("/v1/held", get(look::held))
        .route("/v1/inspect", get(look::inspect))
        .route("/v1/audit", get(look::audit))
        .route("/v1/resolve", post(operate::resolve))
        .route("/v1/invalidate", post(operate::invalidate))
        .route("/v1/forget", post(operate::forget))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .route("/v1/redrive", letters)
        .layer(middleware::from_fn_with_state(Arc::clone(&office), admit))
        .with_state(office);
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
        .merge(operators)
        .fallback(|| async {
            let text = "hapax: /metrics, /healthz, /readyz, /v1/{status,held,inspect,audit}, and to post /v1/{resolve,invalidate,forget,redrive}\n";
            (StatusCode::NOT_FOUND, text)
        })
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match &shared.page {
        Some(page) => ([(CONTENT_TYPE, recorder::CONTENT)], page.render()).into_response(),
        None => (
            StatusCode::NOT_FOUND,
            "this process has a metrics recorder of its own, installed before hapax started: its metrics, hapax's among them, are there\n",
        )
            .into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    answer(shared.readiness.unhealthy(clock::now()), "healthy\n")
}

async fn readyz(State(shared): State<Shared>) -> Response {
    answer(shared.readiness.unready(), "ready\n")
}

fn answer(why_not: Option<String>, well: &'static str) -> Response {
    match why_not {
        None => well.into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
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
}
