//! Acts: what an operator decides about a partition while it is served (`crate::act`).
//!
//! One order at a time. Each of its acts is asked first whether it may be, then written together with its entry in the
//! audit, and what follows from it happens when that is durable: a kill between leaves the verdict in the record, where
//! the next start finds it. What a verdict needs of the store, bytes and outcomes, comes by the look-up thread, in one
//! line with the look-ups of messages: whoever asks after the order meets what the order has left.

use hashbrown::{HashMap, HashSet};
use tokio::sync::oneshot;

use super::hold::{Loads, Name};
use super::leave::by_message;
use super::work::{Claimant, Holder, Keys, OpenId, Phase, Resting, RestingState, WorkId};
use super::{Asked, Partition, Who};
use crate::act::{Act, Answer, Answered, Order, Said};
use crate::broker::Letter;
use crate::message::Offset;
use crate::outcome::{Closed, End, HeldFor, Open, Stage, Verdict};
use crate::store::Hit;
use crate::token::TokenKey;

/// An order on its way.
pub(super) struct Acting {
    acts: Vec<Act>,
    said: Said,
    pub(super) dry_run: bool,
    answer: oneshot::Sender<Answered>,
    answers: Vec<Option<Answer>>,
    /// Held messages on their way from the store, each with the act about it.
    pub(super) loading: Option<Loading>,
    /// What it wrote is durable with the group of this number.
    number: u64,
    /// Stand for tokens whose act is not durable yet.
    places: Vec<OpenId>,
    /// Messages of these tokens, which are judged after it.
    waiting: Vec<WorkId>,
    letters: Vec<Letter>,
}

/// See [`Acting::loading`].
pub(super) struct Loading {
    found: Vec<(usize, OpenId, Name)>,
    pub(super) loads: Loads,
}

impl Partition {
    /// Whether another order may be taken.
    pub(super) fn takes_orders(&self) -> bool {
        self.acting.is_none() && self.draining.is_none() && self.stopped.is_none()
    }

    /// Asks of each act whether it may be, as far as memory knows, and the store for the rest.
    pub(super) fn order(&mut self, order: Order) {
        let Order {
            acts,
            said,
            dry_run,
            answer,
        } = order;
        let wanted: HashSet<Offset> = acts
            .iter()
            .filter_map(|act| match act {
                Act::Resolve { offset, .. } => Some(*offset),
                _ => None,
            })
            .collect();
        // Once for all of them: there may be a million at rest.
        let mut at_rest: HashMap<Offset, OpenId> = HashMap::new();
        if !wanted.is_empty() {
            let resting = self.resting.iter();
            let meant = resting.filter(|(_, resting)| wanted.contains(&resting.offset));
            at_rest.extend(meant.map(|(id, resting)| (resting.offset, id)));
        }
        let mut answers = Vec::with_capacity(acts.len());
        let (mut found, mut asked, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (index, act) in acts.iter().enumerate() {
            answers.push(match act {
                Act::Resolve {
                    offset,
                    verdict,
                    attempts,
                } => match self.may_resolve(&at_rest, *offset, *attempts) {
                    Err(refused) => Some(refused),
                    Ok(_) if dry_run => Some(Answer::Done(will(*verdict).to_owned())),
                    Ok((id, name)) => {
                        found.push((index, id, name));
                        None
                    }
                },
                Act::Invalidate { token } | Act::Forget { token } => {
                    let open = self.open_at(&[*token]);
                    if open.is_none() {
                        keys.push(*token);
                        asked.push((index, 1));
                    }
                    open
                }
                Act::Redrive(redriven) => match self.may_redrive(redriven) {
                    Err(refused) => Some(refused),
                    Ok(tokens) => {
                        asked.push((index, tokens.len()));
                        keys.extend(tokens);
                        None
                    }
                },
            });
        }
        let loading = (!found.is_empty()).then(|| {
            let ids = found.iter().map(|(_, id, name)| (*id, *name)).collect();
            Loading {
                found,
                loads: self.load(ids),
            }
        });
        self.acting = Some(Acting {
            acts,
            said,
            dry_run,
            answer,
            answers,
            loading,
            number: 0,
            places: Vec::new(),
            waiting: Vec::new(),
            letters: Vec::new(),
        });
        if !keys.is_empty() {
            // Behind every question that was asked before, and before every one that comes: a message of the token that
            // is taken meanwhile is in the index when the answer is here.
            self.ask();
            let answer = self.wiring.lookups.ask(self.id, self.remembered_since(), keys);
            self.asked.push_back(Asked {
                answer,
                who: Who::Order(asked),
            });
        }
    }

    /// The record that a verdict is about, where it takes one.
    fn may_resolve(
        &self,
        at_rest: &HashMap<Offset, OpenId>,
        offset: Offset,
        known: Option<u32>,
    ) -> Result<(OpenId, Name), Answer> {
        let refused = |why: String| Err(Answer::Refused(why));
        let Some((id, resting)) = at_rest
            .get(&offset)
            .and_then(|id| Some((*id, self.resting.get(*id)?)))
        else {
            return match self.works.iter().find(|(_, work)| work.offset() == offset) {
                Some((_, work)) => match work.phase {
                    Phase::Deciding(given) => refused(format!(
                        "--{} was given just now, and is on its way to the disk",
                        given.code()
                    )),
                    _ => refused(
                        "it is in flight, and not held: how its attempt ends decides about it".to_owned(),
                    ),
                },
                None => refused(
                    "it is not held; if it was, it has its outcome by now (`hapax inspect` shows it)"
                        .to_owned(),
                ),
            };
        };
        if let Some(known) = known.filter(|known| *known != resting.attempts) {
            return refused(format!(
                "it has had {} attempts, and the verdict is about {known}: look what became of it since",
                resting.attempts
            ));
        }
        match resting.state {
            RestingState::Held(HeldFor::InDoubt | HeldFor::Retry { .. } | HeldFor::Key) => {
                Ok((id, resting.name()))
            }
            RestingState::Held(HeldFor::Token) => refused(
                "it is held behind its token: resolve the message that has the token open; this one is judged by its outcome"
                    .to_owned(),
            ),
            RestingState::Begun { .. } => refused(
                "it is begun, and Kafka delivers it again: its class decides about it, and holds it where nobody can know"
                    .to_owned(),
            ),
            RestingState::Decided => refused("an act about its token is on its way".to_owned()),
        }
    }

    /// A token with unfinished business takes no act: whoever has it open decides.
    pub(super) fn open_at(&self, keys: &[TokenKey]) -> Option<Answer> {
        let holder = keys.iter().find_map(|key| self.index.get(key))?;
        Some(Answer::Refused(match holder {
            Holder::Work(id) => {
                let at = self.works.get(id).map(super::work::Work::offset);
                format!(
                    "a message of the token is in flight, at offset {}: try again when it has its outcome",
                    at.map_or_else(String::new, |at| at.to_string())
                )
            }
            Holder::Resting(id) => match self.resting.get(id) {
                Some(resting) if resting.state != RestingState::Decided => {
                    format!(
                        "the token is open at offset {}: resolve that message first",
                        resting.offset
                    )
                }
                _ => "another act about the token is on its way".to_owned(),
            },
        }))
    }

    /// The held messages that verdicts are about are here.
    pub(super) fn resolve_loaded(&mut self, records: &[Open]) {
        let Some(mut acting) = self.acting.take() else {
            return;
        };
        let found = acting
            .loading
            .take()
            .map(|loading| loading.found)
            .unwrap_or_default();
        let of = by_message(records);
        for (index, id, name) in found {
            let Some(Act::Resolve { verdict, .. }) = acting.acts.get(index) else {
                continue;
            };
            let verdict = *verdict;
            let why = match self.resting.get(id).filter(|resting| resting.name() == name) {
                Some(Resting {
                    state: RestingState::Held(why),
                    ..
                }) if self.draining.is_none() => *why,
                _ => {
                    // It became due, or too old, or its partition goes.
                    let why = "it has left its rest meanwhile: look again".to_owned();
                    acting.put(index, Answer::Refused(why));
                    continue;
                }
            };
            let Some(work) = self.decide(id, &of, why, verdict) else {
                acting.put(
                    index,
                    Answer::Refused("its record is not in the store".to_owned()),
                );
                continue;
            };
            let place = self
                .works
                .get(work)
                .map(super::work::Work::offset)
                .unwrap_or(name.1);
            self.note_act(&mut acting, index, place, name.0);
            acting.put(index, Answer::Done(did(verdict).to_owned()));
        }
        self.acting = Some(acting);
        self.answer_order(self.acks.durable());
    }

    /// Writes the verdict into the record. It is carried out when that is durable.
    fn decide(
        &mut self,
        id: OpenId,
        of: &super::leave::ByMessage<'_>,
        why: HeldFor,
        verdict: Verdict,
    ) -> Option<WorkId> {
        let (work, _) = self.follow(id, of)?;
        self.set_phase(work, Phase::Deciding(verdict));
        let message = crate::message::Kept::copy_of(&self.works.get(work)?.raw());
        let stage = Stage::Held {
            why,
            message,
            verdict: Some(verdict),
        };
        let open = self.open_record(work, stage)?;
        self.write_open(work, open);
        Some(work)
    }

    /// The outcomes of the tokens that acts are about are here.
    pub(super) fn acts_judged(&mut self, asked: &[(usize, usize)], keys: &[TokenKey], hits: &[Hit]) {
        let Some(mut acting) = self.acting.take() else {
            return;
        };
        let mut first = 0;
        for (index, count) in asked {
            let keys = keys.get(first..first + count).unwrap_or_default();
            let known: Vec<&Closed> = hits
                .iter()
                .filter(|hit| (first..first + count).contains(&hit.key))
                .map(|hit| &hit.closed)
                .filter(|closed| self.is_remembered(closed))
                .collect();
            first += count;
            let Some(act) = acting.acts.get(*index).cloned() else {
                continue;
            };
            let answer = if self.draining.is_some() {
                Answer::Refused("the partition is being given away".to_owned())
            } else if let Some(open) = self.open_at(keys) {
                // Since it was asked.
                open
            } else {
                self.judge_act(&mut acting, *index, &act, keys, &known)
            };
            acting.put(*index, answer);
        }
        self.acting = Some(acting);
        self.answer_order(self.acks.durable());
    }

    fn is_remembered(&self, closed: &Closed) -> bool {
        let now_ms = self.time.now_ms().unwrap_or(closed.first_seen_ms);
        let point = self.ledger.commit_point().next;
        self.counts(now_ms, closed, point)
    }

    fn judge_act(
        &mut self,
        acting: &mut Acting,
        index: usize,
        act: &Act,
        keys: &[TokenKey],
        known: &[&Closed],
    ) -> Answer {
        let latest = known.iter().max_by_key(|closed| closed.offset).copied();
        match (act, keys) {
            (Act::Invalidate { .. }, [token]) => match latest {
                Some(Closed {
                    end: End::Invalidated(why),
                    ..
                }) => Answer::Unchanged(format!("it was invalidated before: {why}")),
                _ => {
                    let end = End::Invalidated(acting.said.reason.clone());
                    self.close_by_act(acting, index, *token, end, latest);
                    Answer::Done("later messages of the token are dead-lettered".to_owned())
                }
            },
            (Act::Forget { .. }, [token]) => match latest {
                None => Answer::Unchanged("no outcome of the token is remembered".to_owned()),
                Some(Closed {
                    end: End::Forgotten, ..
                }) => Answer::Unchanged("it was forgotten before".to_owned()),
                Some(closed) => {
                    let point = self.acknowledged_point();
                    if closed.offset.0 >= point {
                        return Answer::Refused(format!(
                            "its outcome at offset {} is not below the committed offset {point}: Kafka may still deliver that message again, and it would run; try again in a moment",
                            closed.offset
                        ));
                    }
                    self.close_by_act(acting, index, *token, End::Forgotten, Some(closed));
                    Answer::Done("the next message of the token runs".to_owned())
                }
            },
            (Act::Redrive(redriven), keys) => self.redrive(acting, index, redriven, keys, known),
            _ => Answer::Refused("an act about no token".to_owned()),
        }
    }

    /// What the broker has of this partition: below it nothing is delivered again.
    fn acknowledged_point(&self) -> i64 {
        let acknowledged = self.wiring.commits.acknowledged();
        let own = acknowledged.iter().find(|(id, _)| *id == self.id);
        own.map_or(0, |(_, point)| point.next.0)
    }

    /// Closes a token by an act. Until that is durable its messages wait.
    fn close_by_act(
        &mut self,
        acting: &mut Acting,
        index: usize,
        token: TokenKey,
        end: End,
        known: Option<&Closed>,
    ) {
        if acting.dry_run {
            return;
        }
        // Everything delivered so far is decided, or the token would be open: what comes again of it is a redelivery, and
        // only what comes after is met by the act.
        let offset = self.ledger.delivered();
        let now_ms = self.time.now_ms().unwrap_or(0);
        let closed = Closed {
            end,
            offset,
            first_seen_ms: known.map_or(now_ms, |known| known.first_seen_ms.max(now_ms)),
            attempts: known.map_or(0, |known| known.attempts),
            fingerprint: known.and_then(|known| known.fingerprint),
        };
        self.changes.closed.push((token, closed));
        let about = known.map_or(Offset(-1), |known| known.offset);
        self.note_act(acting, index, about, token);
        let at = Offset(-1);
        let place = self.resting.insert(Resting {
            keys: Keys::One(token),
            offset: at,
            attempts: 0,
            since_ms: self.wiring.clock.wall_ms(),
            first_seen_ms: now_ms,
            state: RestingState::Decided,
            order: None,
            is_its_turn: false,
        });
        let who = Holder::Resting(place);
        self.index.give(token, Claimant { at, who });
        acting.places.push(place);
    }

    /// The act goes into the group that it changes, and to the audit topic.
    pub(super) fn note_act(&mut self, acting: &mut Acting, index: usize, of: Offset, token: TokenKey) {
        let Some(act) = acting.acts.get(index) else { return };
        let entry = acting
            .said
            .act(act.verb(), (&self.wiring.topic, self.partition, of), token);
        acting.number = self.next_number;
        self.wiring.meters.acted(act.verb());
        if let Some(topic) = &self.wiring.audit_topic {
            let letter = crate::act::letter(topic, &entry);
            if self.wiring.state_moves() {
                self.letters.push(letter);
            } else {
                acting.letters.push(letter);
            }
        }
        self.changes.acts.push(entry);
    }

    /// Answers the order where everything that it wrote is durable.
    pub(super) fn answer_order(&mut self, durable: u64) {
        let is_ready =
            |acting: &Acting| acting.answers.iter().all(Option::is_some) && acting.number <= durable;
        if !self.acting.as_ref().is_some_and(is_ready) {
            return;
        }
        let Some(acting) = self.acting.take() else { return };
        let places = acting.places.into_iter();
        let left: Vec<_> = places.filter_map(|place| self.take_resting(place)).collect();
        for id in acting.waiting {
            self.enter(id);
        }
        // Whoever has another token too may be held, and wait for nobody else any more.
        for place in left {
            self.free_next(&place.keys.first(), 1);
        }
        // Whoever asked may have gone.
        let _ = acting.answer.send(Answered {
            answers: acting.answers.into_iter().flatten().collect(),
            letters: acting.letters,
        });
    }

    /// A message whose token an act is about is judged when that is durable.
    pub(super) fn wait_for_act(&mut self, id: WorkId) {
        match &mut self.acting {
            Some(acting) => {
                acting.waiting.push(id);
                self.set_phase(id, Phase::Behind);
            }
            // Its places go with it.
            None => self.enter(id),
        }
    }
}

impl Acting {
    fn put(&mut self, index: usize, answer: Answer) {
        if let Some(place) = self.answers.get_mut(index) {
            *place = Some(answer);
        }
    }
}

const fn will(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Done => "it would be recorded as done",
        Verdict::Run => "it would run",
        Verdict::DeadLetter => "it would be dead-lettered",
    }
}

const fn did(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Done => "the verdict is durable: it is being recorded as done",
        Verdict::Run => "the verdict is durable: it runs next",
        Verdict::DeadLetter => "the verdict is durable: it is being dead-lettered",
    }
}
