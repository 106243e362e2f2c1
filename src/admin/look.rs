//! What an operator reads by the port. It changes nothing, and needs no token: payloads and replies are not shown.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::office::{Office, Refused, json};
use super::operate::token_of;
use super::shapes::{Acts, HeldList, HeldOne, Inspected, Outcome, Served, Status, Which};
use crate::accounts::Account;
use crate::config::{Durability, TokenSource};
use crate::held::{self, Entry, State as HeldState};
use crate::outcome::{Closed, End, Stored};
use crate::store::{AuditEntry, NoMark, PartitionId, Store};
use crate::token::{TokenKey, key_of};
use crate::window::Window;

/// Of a list, where the request does not say how many.
const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1_000;

/// Reads the store, off the async runtime.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error)))
}

pub(super) async fn status(State(office): State<Arc<Office>>) -> Result<Response, Refused> {
    let settings = Arc::clone(&office.settings);
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        group: settings.group.clone(),
        durability: match settings.durability {
            Durability::Local => "local".to_owned(),
            Durability::Replicated => "replicated".to_owned(),
        },
        unready: office.readiness.unready(),
        ..Status::default()
    };
    // While it starts there is nothing to say of partitions.
    if let Ok(store) = office.store() {
        let office = Arc::clone(&office);
        let (id, partitions) = blocking(move || {
            let mut partitions = Vec::new();
            for (id, balance) in office.desk.balances() {
                let Some(topic) = office.topics()?.get(&id.topic) else {
                    continue;
                };
                let position = store.load_position(id)?;
                let of = |account| balance.of(account);
                partitions.push(Served {
                    topic: topic.clone(),
                    partition: id.partition,
                    commit_point: position.map(|position| position.commit_point.0),
                    time_ms: position.and_then(|position| position.time_ms),
                    in_flight: of(Account::InFlight),
                    held: of(Account::Held),
                    done: of(Account::Done),
                    failed: of(Account::Failed),
                    duplicates: of(Account::Duplicate),
                });
            }
            Ok((store.identity().store_id.to_string(), partitions))
        })
        .await?;
        status.store_id = Some(id);
        status.partitions = partitions;
    }
    Ok(json(StatusCode::OK, &status))
}

pub(super) async fn held(
    State(office): State<Arc<Office>>,
    Query(which): Query<Which>,
) -> Result<Response, Refused> {
    if let (Some(topic), Some(partition)) = (&which.topic, which.partition) {
        office.served(topic, partition).await?;
    }
    let limit = which.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let found = entries(&office, &which).await?;
    let (shown, more) = filtered(found.iter(), &which, limit)?;
    let held = shown.into_iter().map(HeldOne::of).collect();
    Ok(json(StatusCode::OK, &HeldList { held, more }))
}

/// Every open record of the partitions that are served here, and that the description may mean.
pub(super) async fn entries(office: &Arc<Office>, which: &Which) -> Result<Vec<Entry>, Refused> {
    let store = office.store()?;
    let mut names = office.topics()?.clone();
    if let Some(topic) = &which.topic {
        office.id(topic, 0)?;
        names.retain(|_, name| name == topic);
    }
    let (desk, partition) = (office.desk.clone(), which.partition);
    blocking(move || {
        let is_asked =
            |id: PartitionId| desk.serves(id) && partition.is_none_or(|partition| partition == id.partition);
        Ok(held::list_some(&*store, &names, is_asked)?)
    })
    .await
}

/// Those of them that are meant, and whether there are more than so many.
pub(super) fn filtered<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    which: &Which,
    limit: usize,
) -> Result<(Vec<&'a Entry>, bool), Refused> {
    let names = HeldState::NAMES;
    if let Some(state) = &which.state
        && !names.contains(&state.as_str())
    {
        return Err(Refused::bad(format!(
            "{state:?} is no state: {}; nothing was done",
            names.join(", ")
        )));
    }
    let token = which.token.as_deref().map(token_of).transpose()?;
    let mut meant = entries.filter(|entry| {
        which.offset.is_none_or(|offset| entry.offset.0 == offset)
            && token.is_none_or(|token| entry.keys.contains(&token))
            && which
                .state
                .as_ref()
                .is_none_or(|state| entry.state.name() == state)
            && which.since_ms.is_none_or(|since| entry.since_ms >= since)
            && which.until_ms.is_none_or(|until| entry.since_ms < until)
    });
    let shown: Vec<_> = meant.by_ref().take(limit).collect();
    Ok((shown, meant.next().is_some()))
}

/// What is asked about one token or message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    topic: String,
    partition: Option<i32>,
    /// 32 hex digits.
    token: Option<String>,
    /// The token as the message has it, and the source that it comes from: that of the configuration by default.
    text: Option<String>,
    source: Option<String>,
    offset: Option<i64>,
}

pub(super) async fn inspect(
    State(office): State<Arc<Office>>,
    Query(asked): Query<Asked>,
) -> Result<Response, Refused> {
    if let Some(partition) = asked.partition {
        office.served(&asked.topic, partition).await?;
    }
    let mut keys = match (&asked.token, &asked.text, asked.offset) {
        (Some(token), None, None) => vec![token_of(token)?],
        (None, Some(text), None) => keys_of(&office, &asked, text)?,
        (None, None, Some(_)) => Vec::new(),
        _ => {
            return Err(Refused::bad(
                "ask about a `token`, a `text` or an `offset`: one of them",
            ));
        }
    };
    let which = Which {
        topic: Some(asked.topic.clone()),
        partition: asked.partition,
        ..Which::default()
    };
    let open: Vec<Entry> = entries(&office, &which)
        .await?
        .into_iter()
        .filter(|entry| {
            entry.keys.iter().any(|key| keys.contains(key)) || asked.offset == Some(entry.offset.0)
        })
        .collect();
    for key in open.iter().flat_map(|entry| &entry.keys) {
        if !keys.contains(key) {
            keys.push(*key);
        }
    }
    let store = office.store()?;
    let office_of = Arc::clone(&office);
    let inspected = blocking(move || {
        let mut outcomes = Vec::new();
        let topic = office_of.id(&asked.topic, 0)?.topic;
        let served = office_of.desk.served();
        let partitions = served
            .into_iter()
            .filter(|id| id.topic == topic && asked.partition.is_none_or(|one| one == id.partition));
        for id in partitions {
            outcomes.extend(outcomes_of(&office_of, &*store, id, &asked.topic, &keys)?);
        }
        let tokens: Vec<String> = keys.iter().map(ToString::to_string).collect();
        let is_about = |act: &AuditEntry| {
            act.topic == asked.topic
                && asked.partition.is_none_or(|partition| act.partition == partition)
                && (tokens.contains(&act.token) || asked.offset == Some(act.offset))
        };
        let mut acts = Vec::new();
        store.visit_audit(None, &mut |act| {
            acts.extend(Some(act).filter(is_about));
            acts.len() < LIST_MAX
        })?;
        acts.reverse();
        Ok(Inspected {
            tokens,
            open: open.iter().map(HeldOne::of).collect(),
            outcomes,
            acts,
        })
    })
    .await?;
    Ok(json(StatusCode::OK, &inspected))
}

fn keys_of(office: &Office, asked: &Asked, text: &str) -> Result<Vec<TokenKey>, Refused> {
    let Some(policy) = office.settings.topics.get(&asked.topic) else {
        office.id(&asked.topic, 0)?;
        return Ok(Vec::new());
    };
    let names: Vec<String> = match &asked.source {
        Some(source) => vec![source.clone()],
        None => policy.token.iter().map(TokenSource::name).collect(),
    };
    Ok(names
        .iter()
        .map(|name| key_of(&asked.topic, name, text.as_bytes()))
        .collect())
}

fn outcomes_of(
    office: &Office,
    store: &dyn Store,
    id: PartitionId,
    topic: &str,
    keys: &[TokenKey],
) -> Result<Vec<Outcome>, Refused> {
    let mut hits = Vec::new();
    store.look_up(id, i64::MIN, keys, &mut hits)?;
    let position = store.load_position(id)?;
    let window = office
        .settings
        .topics
        .get(topic)
        .map(|policy| Window::of_ms(crate::clock::millis(policy.window)));
    let in_window = |closed: &Closed| match (position, window) {
        (Some(position), Some(window)) => window.holds(
            position.time_ms.unwrap_or(closed.first_seen_ms),
            closed.first_seen_ms,
            closed.offset,
            position.commit_point,
        ),
        _ => true,
    };
    let outcome = |closed: &Closed| {
        let (end, reason, reply_bytes) = match &closed.end {
            End::Done(stored) => {
                let bytes = match stored {
                    Stored::Nothing | Stored::Later(_) => None,
                    Stored::Reply(bytes) => Some(bytes.len() as u64),
                    Stored::Digest(_, bytes) => Some(*bytes),
                };
                ("done", None, bytes)
            }
            End::Failed(reason) => ("failed", Some(reason.code().to_owned()), None),
            End::Invalidated(why) => ("invalidated", Some(why.clone()), None),
            End::Forgotten => ("forgotten", None, None),
        };
        Outcome {
            partition: id.partition,
            end: end.to_owned(),
            reason,
            offset: closed.offset.0,
            first_seen_ms: closed.first_seen_ms,
            attempts: closed.attempts,
            reply_bytes,
            in_window: in_window(closed),
        }
    };
    Ok(hits.iter().map(|hit| outcome(&hit.closed)).collect())
}

/// How much of the audit is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    topic: Option<String>,
    limit: Option<usize>,
    /// Only what is older than the act of that mark.
    before: Option<String>,
}

pub(super) async fn audit(
    State(office): State<Arc<Office>>,
    Query(part): Query<Part>,
) -> Result<Response, Refused> {
    let store = office.store()?;
    let limit = part.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let before = part.before.as_deref().map(str::parse).transpose();
    let before = before.map_err(|error: NoMark| Refused::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let is_meant = move |act: &AuditEntry| part.topic.as_ref().is_none_or(|topic| act.topic == *topic);
    let acts = blocking(move || Ok(Acts::page(&*store, before, limit, is_meant)?)).await?;
    Ok(json(StatusCode::OK, &acts))
}
