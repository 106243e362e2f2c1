//! The admin port: `/metrics`, `/healthz`, `/readyz`, and what an operator reads and does.
//!
//! It runs from before the store is opened to after it is closed, so that whoever asks meanwhile is told why not. `axum`
//! and `hyper` below it are named here only, and the exporter in `recorder.rs` only.
//!
//! | file | what |
//! |---|---|
//! | `ready.rs` | well, and ready: why not, in words |
//! | `office.rs` | who may change something, what there is to ask, how much at once |
//! | `look.rs` | what is read |
//! | `operate.rs` | what is done: requests become orders for partition tasks (`crate::desk`) |
//! | `shapes.rs` | the JSON of both sides |
//! | `serve.rs` | connections: how many at once, and how slow they may be |

mod look;
mod office;
mod operate;
mod ready;
mod recorder;
mod serve;
pub(crate) mod shapes;
#[cfg(test)]
mod tests;

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
use self::serve::Terms;
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
        Self::start_by(listen, office, Terms::default()).await
    }

    async fn start_by(listen: SocketAddr, office: Arc<Office>, terms: Terms) -> Result<Self, Error> {
        let refused = |source| Error::Admin { listen, source };
        let page = recorder::install();
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(serve::serve(listener, router(office, page), terms, stopped));
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
