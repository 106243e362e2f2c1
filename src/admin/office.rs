//! The office: what the port needs to know of a running consumer, who may change something, and how much may be asked at
//! once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::ready::Readiness;
use super::shapes::Problem;
use crate::broker::Letters;
use crate::clock::Clock;
use crate::config::Settings;
use crate::desk::Desk;
use crate::error::{Error, chain};
use crate::store::{self, PartitionId, Store, TopicId};

/// Requests that are answered at once: each may read a store, or hold a body.
const REQUESTS_MAX: usize = 8;

/// A token of fewer characters is guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;
const TOKEN_CHARACTERS_MAX: usize = 512;

/// Who has a partition, where the group says it: asked of the broker, so it may take a while.
pub(crate) type Owners = Box<dyn Fn(&str, i32) -> Option<String> + Send + Sync>;

/// See the module.
pub(crate) struct Office {
    pub(super) settings: Arc<Settings>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) desk: Desk,
    pub(super) clock: Clock,
    token: Option<Secret>,
    open: OnceLock<Open>,
    owners: Owners,
    turns: Semaphore,
}

/// What there is once the store is open. Not held: the store closes while somebody may still be asking.
struct Open {
    store: Weak<dyn Store>,
    letters: Weak<dyn Letters>,
    topics: BTreeMap<TopicId, String>,
}

/// The digest of a token: compared in constant time, and never printed.
struct Secret(blake3::Hash);

impl Secret {
    fn of(token: &str) -> Self {
        Self(blake3::hash(token.as_bytes()))
    }
}

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) problem: Problem,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: impl ToString) -> Self {
        Self {
            status,
            problem: Problem {
                error: error.to_string(),
                owner: None,
            },
        }
    }

    pub(super) fn bad(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl From<store::Error> for Refused {
    fn from(error: store::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &self.problem);
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let text = serde_json::to_string(body).unwrap_or_default();
    let kind = [(axum::http::header::CONTENT_TYPE, "application/json")];
    (status, kind, text + "\n").into_response()
}

/// The body of a request.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| Refused::bad(format!("the body is not understood: {error}; nothing was done")))
}

impl Office {
    /// Reads the token.
    ///
    /// # Errors
    /// [`Error::AdminToken`] where the file cannot be read, or what is in it is no token.
    pub(crate) fn new(
        settings: Arc<Settings>,
        readiness: Arc<Readiness>,
        desk: Desk,
        owners: Owners,
    ) -> Result<Self, Error> {
        let token = match &settings.admin.token_file {
            Some(path) => Some(Secret::of(&token(path)?)),
            None => None,
        };
        Ok(Self {
            settings,
            readiness,
            desk,
            clock: Clock::system(),
            token,
            open: OnceLock::new(),
            owners,
            turns: Semaphore::new(REQUESTS_MAX),
        })
    }

    /// The store is open.
    pub(crate) fn open(
        &self,
        store: &Arc<dyn Store>,
        letters: &Arc<dyn Letters>,
    ) -> Result<(), store::Error> {
        let mut topics = BTreeMap::new();
        for name in self.settings.topics.keys() {
            topics.insert(store.topic(name)?, name.clone());
        }
        // There is one store in the life of a consumer.
        let _ = self.open.set(Open {
            store: Arc::downgrade(store),
            letters: Arc::downgrade(letters),
            topics,
        });
        Ok(())
    }

    /// Where orders find the partitions.
    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// A place among those who are answered now.
    pub(super) fn turn(&self) -> Result<SemaphorePermit<'_>, Refused> {
        self.turns.try_acquire().map_err(|_| {
            let why = format!("{REQUESTS_MAX} requests are answered already; nothing was done: try again");
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, why)
        })
    }

    /// Whether whoever asks may change something.
    pub(super) fn may_change(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(Secret(token)) = &self.token else {
            return Err(Refused::new(
                StatusCode::FORBIDDEN,
                "nothing can be changed by this port: `admin.token_file` is not set",
            ));
        };
        let shown = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| Secret::of(token.trim()));
        match shown {
            Some(Secret(shown)) if shown == *token => Ok(()),
            Some(_) => Err(Refused::new(
                StatusCode::UNAUTHORIZED,
                "that is not the token in `admin.token_file`; nothing was done",
            )),
            None => Err(Refused::new(
                StatusCode::UNAUTHORIZED,
                "a token is needed to change something: `authorization: bearer TOKEN`, with what is in `admin.token_file`; nothing was done",
            )),
        }
    }

    fn opened(&self) -> Result<&Open, Refused> {
        let why = "the store is not open: the consumer starts, or ends; nothing was done";
        self.open
            .get()
            .ok_or_else(|| Refused::new(StatusCode::SERVICE_UNAVAILABLE, why))
    }

    pub(super) fn store(&self) -> Result<Arc<dyn Store>, Refused> {
        self.opened()?.store.upgrade().ok_or_else(|| {
            Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the consumer ends; nothing was done",
            )
        })
    }

    pub(super) fn letters(&self) -> Option<Arc<dyn Letters>> {
        self.open.get()?.letters.upgrade()
    }

    /// The names of the topics, by number.
    pub(super) fn topics(&self) -> Result<&BTreeMap<TopicId, String>, Refused> {
        self.opened().map(|open| &open.topics)
    }

    /// The partition, where the topic is one of this consumer's.
    pub(super) fn id(&self, topic: &str, partition: i32) -> Result<PartitionId, Refused> {
        let topics = self.topics()?;
        let Some((id, _)) = topics.iter().find(|(_, name)| *name == topic) else {
            let known: Vec<_> = topics.values().map(String::as_str).collect();
            return Err(Refused::new(
                StatusCode::NOT_FOUND,
                format!(
                    "this consumer has no topic {topic:?}; it has: {}",
                    known.join(", ")
                ),
            ));
        };
        Ok(PartitionId {
            topic: *id,
            partition,
        })
    }

    /// The partition, where it is served here; else who has it.
    pub(super) async fn served(
        self: &Arc<Self>,
        topic: &str,
        partition: i32,
    ) -> Result<PartitionId, Refused> {
        let id = self.id(topic, partition)?;
        if self.desk.serves(id) {
            return Ok(id);
        }
        Err(self.elsewhere(topic, partition).await)
    }

    pub(super) async fn elsewhere(self: &Arc<Self>, topic: &str, partition: i32) -> Refused {
        let (office, of) = (Arc::clone(self), topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || (office.owners)(&of, partition));
        let owner = asked.await.ok().flatten();
        let error = match &owner {
            Some(owner) => format!(
                "{topic}[{partition}] is not served here, but by {owner}; nothing was done: ask that member's port"
            ),
            None => format!(
                "{topic}[{partition}] is not served here, and the group does not say by whom it is; nothing was done: ask the other members' ports, or try again after the rebalance"
            ),
        };
        Refused {
            status: StatusCode::MISDIRECTED_REQUEST,
            problem: Problem { error, owner },
        }
    }
}

#[cfg(test)]
impl Office {
    /// Of a consumer that has no topic and no token.
    pub(super) fn test(readiness: &Arc<Readiness>) -> Arc<Self> {
        let settings = Settings::new(
            "billing",
            "localhost:1",
            "state",
            crate::config::Durability::Local,
        );
        let office = Self::new(
            Arc::new(settings),
            Arc::clone(readiness),
            Desk::default(),
            Box::new(|_, _| None),
        );
        Arc::new(office.expect("it has no file to read"))
    }
}

fn token(path: &Path) -> Result<String, Error> {
    let refused = |why: String| Error::AdminToken {
        path: path.to_owned(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let token = text.trim();
    let characters = token.chars().count();
    if token.chars().any(|c| c.is_whitespace() || !c.is_ascii_graphic()) {
        return Err(refused(
            "it holds more than one line of printable ASCII".to_owned(),
        ));
    }
    if !(TOKEN_CHARACTERS_MIN..=TOKEN_CHARACTERS_MAX).contains(&characters) {
        return Err(refused(format!(
            "its token has {characters} characters; {TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} are wanted"
        )));
    }
    Ok(token.to_owned())
}
