//! What an operator does by the port: each request is checked whole before anything of it is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::look::{entries, filtered};
use super::office::{Office, Refused, json, read};
use super::shapes::{Answers, Came, Letter, Redrive, Resolve, Tokens, Which, Words, to_bytes};
use crate::act::{ACTS_MAX, Act, Answer, REASON_BYTES_MAX, Redriven, Said};
use crate::desk::Unanswered;
use crate::error::chain;
use crate::held::{Entry, State as HeldState};
use crate::message::{Kept, Offset};
use crate::outcome::{Reason, Verdict};
use crate::store::PartitionId;
use crate::token::TokenKey;

/// Acts of one partition.
struct Part {
    topic: String,
    id: PartitionId,
    acts: Vec<Act>,
}

pub(super) async fn resolve(State(office): State<Arc<Office>>, body: Bytes) -> Result<Response, Refused> {
    let Resolve {
        which,
        verdict,
        words,
    } = read(&body)?;
    let verdict = verdict_of(&verdict)?;
    let said = said(&office, &words)?;
    let (parts, more) = match (&which.topic, which.partition, which.offset) {
        (Some(topic), Some(partition), Some(offset)) => {
            let id = office.served(topic, partition).await?;
            let acts = vec![Act::Resolve {
                offset: Offset(offset),
                verdict,
                attempts: which.attempts,
            }];
            let topic = topic.clone();
            (vec![Part { topic, id, acts }], false)
        }
        (_, _, Some(_)) => {
            return Err(Refused::bad(
                "an offset needs its topic and partition; nothing was done",
            ));
        }
        _ => chosen(&office, which, verdict).await?,
    };
    carry(&office, parts, said, words.dry_run, more).await
}

/// Those that a description means, of the partitions that are served here.
async fn chosen(
    office: &Arc<Office>,
    mut which: Which,
    verdict: Verdict,
) -> Result<(Vec<Part>, bool), Refused> {
    if let (Some(topic), Some(partition)) = (&which.topic, which.partition) {
        office.served(topic, partition).await?;
    }
    let by_token = which.token.is_some();
    if which.state.is_none() && !by_token {
        // What nobody but a person can decide about.
        which.state = Some(HeldState::InDoubt.name().to_owned());
    }
    let limit = which.limit.unwrap_or(ACTS_MAX).min(ACTS_MAX);
    let found = entries(office, &which).await?;
    let takes_verdict = |entry: &&Entry| {
        matches!(
            entry.state,
            HeldState::InDoubt | HeldState::Retry(_) | HeldState::BehindKey
        )
    };
    let (chosen, more) = filtered(found.iter().filter(takes_verdict), &which, limit)?;
    if chosen.is_empty() && by_token {
        return Err(Refused::new(
            StatusCode::NOT_FOUND,
            "no message with that token is held here for a verdict; if one was, it has its outcome by now, or it is in flight; nothing was done",
        ));
    }
    if chosen.len() > 1 && by_token {
        let places: Vec<_> = chosen.iter().map(|entry| entry.place()).collect();
        return Err(Refused::new(
            StatusCode::CONFLICT,
            format!(
                "the token is held at {}; name one of them by topic, partition and offset; nothing was done",
                places.join(", ")
            ),
        ));
    }
    let mut parts: BTreeMap<PartitionId, Part> = BTreeMap::new();
    for entry in chosen {
        let part = parts.entry(entry.id).or_insert_with(|| Part {
            topic: entry.topic.clone(),
            id: entry.id,
            acts: Vec::new(),
        });
        part.acts.push(Act::Resolve {
            offset: entry.offset,
            verdict,
            // As they were when they were listed.
            attempts: Some(entry.attempts),
        });
    }
    Ok((parts.into_values().collect(), more))
}

pub(super) async fn invalidate(State(office): State<Arc<Office>>, body: Bytes) -> Result<Response, Refused> {
    tokens(office, &body, |token| Act::Invalidate { token }).await
}

pub(super) async fn forget(State(office): State<Arc<Office>>, body: Bytes) -> Result<Response, Refused> {
    tokens(office, &body, |token| Act::Forget { token }).await
}

async fn tokens(
    office: Arc<Office>,
    body: &[u8],
    act: impl Fn(TokenKey) -> Act,
) -> Result<Response, Refused> {
    let Tokens {
        topic,
        partition,
        tokens,
        words,
    } = read(body)?;
    let said = said(&office, &words)?;
    let mut acts = Vec::new();
    for token in &tokens {
        acts.push(act(token_of(token)?));
    }
    let id = office.served(&topic, partition).await?;
    carry(
        &office,
        vec![Part { topic, id, acts }],
        said,
        words.dry_run,
        false,
    )
    .await
}

pub(super) async fn redrive(State(office): State<Arc<Office>>, body: Bytes) -> Result<Response, Refused> {
    let Redrive {
        topic,
        partition,
        letters,
        not_applied,
        words,
    } = read(&body)?;
    drop(body);
    let said = said(&office, &words)?;
    let mut acts = Vec::new();
    for letter in letters {
        acts.push(Act::Redrive(Box::new(redriven(letter, not_applied)?)));
    }
    let id = office.served(&topic, partition).await?;
    carry(
        &office,
        vec![Part { topic, id, acts }],
        said,
        words.dry_run,
        false,
    )
    .await
}

fn redriven(letter: Letter, not_applied: bool) -> Result<Redriven, Refused> {
    let offset = letter.offset;
    let bytes = |text: Option<String>| match text {
        None => Ok(None),
        Some(text) => to_bytes(&text).map(Some).map_err(|error| {
            Refused::bad(format!(
                "the letter of offset {offset}: {error}; nothing was done"
            ))
        }),
    };
    let mut headers = Vec::new();
    for (name, value) in letter.headers {
        headers.push((name, bytes(value)?));
    }
    let reason = letter.reason.as_deref();
    Ok(Redriven {
        offset: Offset(offset),
        reason: reason.and_then(|code| Reason::ALL.into_iter().find(|reason| reason.code() == code)),
        not_applied,
        message: Kept {
            timestamp_ms: letter.timestamp_ms,
            key: bytes(letter.key)?,
            payload: bytes(letter.payload)?,
            headers,
        },
    })
}

/// Hands the acts to the tasks, and tells what came of them.
async fn carry(
    office: &Arc<Office>,
    parts: Vec<Part>,
    said: Said,
    dry_run: bool,
    more: bool,
) -> Result<Response, Refused> {
    let count: usize = parts.iter().map(|part| part.acts.len()).sum();
    if count > ACTS_MAX {
        return Err(Refused::bad(format!(
            "{count} acts; {ACTS_MAX} at a time are carried out; nothing was done"
        )));
    }
    let single = count == 1;
    let mut answers = Answers {
        dry_run,
        more,
        ..Answers::default()
    };
    for Part { topic, id, acts } in parts {
        let came = office.desk.order(id, acts.clone(), said.clone(), dry_run).await;
        let letters = match came {
            Ok(answered) => {
                let all = acts.iter().zip(answered.answers);
                answers
                    .acts
                    .extend(all.map(|(act, answer)| came_of(&topic, id, act, &answer)));
                answered.letters
            }
            // It went between the question and the order.
            Err(Unanswered::NotHere) if single => return Err(office.elsewhere(&topic, id.partition).await),
            Err(why) if single => return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, why)),
            Err(why) => {
                let all = acts.iter().map(|act| Came {
                    answer: "unknown".to_owned(),
                    ..came_of(&topic, id, act, &Answer::Refused(why.to_string()))
                });
                answers.acts.extend(all);
                Vec::new()
            }
        };
        for letter in letters {
            let to = letter.topic.clone();
            let failed = match office.letters() {
                Some(letters) => letters.send(letter).await.err().map(|error| chain(&error)),
                None => Some("the consumer ends".to_owned()),
            };
            if let Some(why) = failed {
                tracing::warn!(topic = %to, %why, "an act of an operator is in the store, and not in the audit topic");
                answers.warning = Some(format!(
                    "it is in the store, and not in the audit topic {to:?}: {why}"
                ));
            }
        }
    }
    Ok(json(StatusCode::OK, &answers))
}

fn came_of(topic: &str, id: PartitionId, act: &Act, answer: &Answer) -> Came {
    let (offset, token) = match act {
        Act::Resolve { offset, .. } => (Some(offset.0), None),
        Act::Redrive(redriven) => (Some(redriven.offset.0), None),
        Act::Invalidate { token } | Act::Forget { token } => (None, Some(token.to_string())),
    };
    Came {
        topic: topic.to_owned(),
        partition: id.partition,
        offset,
        token,
        act: act.verb().to_owned(),
        answer: answer.name().to_owned(),
        text: answer.to_string(),
    }
}

fn verdict_of(text: &str) -> Result<Verdict, Refused> {
    [Verdict::Done, Verdict::Run, Verdict::DeadLetter]
        .into_iter()
        .find(|verdict| verdict.code() == text)
        .ok_or_else(|| {
            Refused::bad(format!(
                "{text:?} is no verdict: done, run or dead-letter; nothing was done"
            ))
        })
}

pub(super) fn token_of(text: &str) -> Result<TokenKey, Refused> {
    text.parse().map_err(|()| {
        Refused::bad(format!(
            "{text:?} is no token: 32 hex digits, as `hapax held` prints it; nothing was done"
        ))
    })
}

fn said(office: &Office, words: &Words) -> Result<Said, Refused> {
    let text = |what: &str, text: &str| {
        let text = text.trim();
        if text.is_empty() || text.len() > REASON_BYTES_MAX {
            let bytes = text.len();
            return Err(Refused::bad(format!(
                "{what} has {bytes} bytes; 1 to {REASON_BYTES_MAX} are wanted; nothing was done"
            )));
        }
        Ok(text.to_owned())
    };
    Ok(Said {
        reason: text("`reason`", &words.reason)?,
        by: text("`by`", &words.by)?,
        at_ms: office.clock.wall_ms(),
    })
}
