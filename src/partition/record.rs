//! Record and complete: what is decided goes to the journal in groups, and nothing is complete before its group is
//! durable (Inv 1).
//!
//! A dead letter takes two steps, so that a crash between them loses nothing: the outcome and the message are made
//! durable as `Settling`, then the letter is sent, then the token is closed. A crash after the first step sends again. What an
//! outcome gives back goes the same way (`given.rs`).

use futures_util::FutureExt as _;

use super::hold::LOAD_MAX;
use super::work::{Claimant, Holder, Keys, Origin, Phase, Resting, RestingState, WorkId};
use super::{Partition, Stop};
use crate::accounts::Account;
use crate::broker::{self, Letter};
use crate::clock::{self, Instant};
use crate::dead_letter::{self, Lineage};
use crate::ledger::CommitPoint;
use crate::message::Kept;
use crate::outcome::{Closed, End, HeldFor, Reason, Stage};
use crate::store::{Changes, Position};

impl Partition {
    /// Closes the token with that outcome; complete when it is durable.
    pub(super) fn record(&mut self, id: WorkId, account: Account, end: End) {
        let is_duplicate = matches!(account, Account::Duplicate);
        if !is_duplicate {
            self.take_fingerprint(id);
        }
        self.free_slot(id);
        let now_ms = self.time.now_ms().unwrap_or(0);
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        // After a hold the window counts from the outcome.
        let first_seen_ms = if work.origin == Origin::Restored {
            now_ms.max(work.first_seen_ms())
        } else {
            work.first_seen_ms()
        };
        let closed = Closed {
            end,
            offset: work.offset(),
            first_seen_ms,
            attempts: work.attempts,
            fingerprint: work.fingerprint,
        };
        // A duplicate that was told so has a record of its own, under its position: it is told once.
        if !is_duplicate || work.answer.is_some() {
            let keys = work.keys.as_slice();
            if let [key] = keys {
                self.changes.closed.push((*key, closed.clone()));
            } else {
                self.changes
                    .closed
                    .extend(keys.iter().map(|key| (*key, closed.clone())));
            }
        }
        self.changes.removed.extend(work.open_at.take());
        work.phase = Phase::Recording;
        work.closing = Some((account, closed));
        self.changed.push(id);
    }

    pub(super) fn take_fingerprint(&mut self, id: WorkId) {
        let Some(work) = self.works.get(id).filter(|work| work.fingerprint.is_none()) else {
            return;
        };
        let print = self.fingerprint(&work.raw(), !self.wiring.policy.mismatch.fields.is_empty());
        if let Some(work) = self.works.get_mut(id) {
            work.fingerprint = print;
        }
    }

    /// Gives up on a message. Where letters are written with outcomes, both at once; else `Settling` first, the letter
    /// next, the outcome last.
    pub(super) fn give_up(&mut self, id: WorkId, reason: Reason, error: String) {
        let receipt = self.receipt_of_failure(id, reason, &error);
        let (account, end) = (Account::Failed, End::Failed(reason));
        let receipt = receipt.into_iter().collect();
        if self.wiring.state_moves() {
            let Some(letter) = self.letter(id, reason, &error) else {
                return;
            };
            self.letters.push(letter);
            self.record_with(id, account, end, receipt);
            return;
        }
        self.settle(id, account, end, error, receipt);
    }

    /// Keeps a message for a verdict, or behind the token that is open.
    pub(super) fn hold(&mut self, id: WorkId, why: HeldFor) {
        self.take_fingerprint(id);
        self.note_hold(id, why);
        self.free_slot(id);
        let wall_ms = self.wiring.clock.wall_ms();
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        if work.since_ms == 0 {
            work.since_ms = wall_ms;
        }
        work.phase = Phase::Holding;
        work.held_for = Some(why);
        let message = Kept::copy_of(&work.raw());
        self.count_held(message.bytes());
        if let Some(open) = self.open_record(
            id,
            Stage::Held {
                why,
                message,
                verdict: None,
            },
        ) {
            self.write_open(id, open);
        }
    }

    /// Hands the collected group over, unless enough are on their way: the next one collects meanwhile.
    pub(super) fn submit(&mut self) {
        if self.changes.is_empty() || self.submitted.len() >= super::SUBMITTED_MAX {
            return;
        }
        if self.wiring.state_moves() {
            // Changed or not: by the commit point in it Kafka refuses the group of a process that is replaced.
            self.put_position();
        }
        let changes = std::mem::replace(&mut self.changes, Changes::new(self.id));
        let point = changes.position.map(|position| CommitPoint {
            next: position.commit_point,
            time_ms: position.time_ms,
        });
        let number = self.next_number;
        self.next_number += 1;
        let ids = std::mem::take(&mut self.changed);
        self.submitted.push_back(Submitted {
            number,
            at: self.now,
            ids,
            point,
        });
        self.wiring.journal.submit(crate::journal::Submission {
            gate: self.gate.clone(),
            acks: std::sync::Arc::clone(&self.acks),
            number,
            changes,
            letters: std::mem::take(&mut self.letters),
            stands: None,
        });
    }

    /// Goes on with whatever has become durable.
    pub(super) fn acknowledged(&mut self) -> Result<(), Stop> {
        let durable = self.acks.durable();
        while self
            .submitted
            .front()
            .is_some_and(|submitted| submitted.number <= durable)
        {
            let Some(submitted) = self.submitted.pop_front() else {
                break;
            };
            crate::crash::point("after-record");
            self.wiring
                .meters
                .record
                .record(self.now.duration_since(submitted.at).as_secs_f64());
            for id in submitted.ids {
                self.durable(id)?;
            }
            if let Some(point) = submitted.point {
                self.published = point;
                if self.wiring.state_moves() {
                    // It was committed with the group.
                    self.wiring.commits.rules(self.id, &self.gate, point);
                } else {
                    self.wiring.commits.publish(self.id, &self.gate, point);
                }
            }
        }
        self.answer_order(durable);
        self.acks.state()?;
        Ok(())
    }

    /// What was on its way to the disk for this work is there.
    fn durable(&mut self, id: WorkId) -> Result<(), Stop> {
        let Some(work) = self.works.get_mut(id) else {
            return Ok(());
        };
        match work.phase {
            Phase::Beginning => self.begun(id)?,
            Phase::Noting => self.noted(id)?,
            Phase::Settling => self.send(id),
            Phase::Recording => {
                if let Some((account, closed)) = work.closing.take() {
                    self.finish(id, account, Some(&closed));
                }
            }
            Phase::Holding => self.held(id),
            Phase::Deciding(verdict) => self.carry_out(id, verdict),
            // Un-begun at a drain: the removal is durable, and the message is the next owner's.
            _ => {}
        }
        Ok(())
    }

    /// Its hold is durable: the message is complete, its token stays open.
    fn held(&mut self, id: WorkId) {
        let Some(work) = self.works.get(id) else {
            return;
        };
        let Some(why) = work.held_for else { return };
        // It waited twice behind its token: found in the store, and delivered again. They share one record.
        if why == HeldFor::Token && self.is_held_already(id) {
            let bytes = Kept::copy_of(&work.raw()).bytes();
            self.uncount_held(bytes);
            self.wiring.meters.redeliveries.increment(1);
            self.finish(id, Account::Redelivery, None);
            return;
        }
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        let order = match why {
            HeldFor::Key => work.order,
            _ => work.blocks.take(),
        };
        let resting = Resting {
            order,
            keys: work.keys.clone(),
            offset: work.offset(),
            attempts: work.attempts,
            since_ms: work.since_ms,
            first_seen_ms: work.first_seen_ms(),
            state: RestingState::Held(why),
            is_its_turn: false,
        };
        let (keys, own) = (work.keys.clone(), work.claimant(id));
        let at = own.at;
        let open = self.resting.insert(resting);
        let who = Holder::Resting(open);
        self.hand_over(keys.as_slice(), own, Claimant { at, who });
        // Whoever it was held behind may have left while this was on the way to the disk: then it is freed at once.
        self.finish(id, Account::Held, None);
        match why {
            HeldFor::Retry { due_ms, .. } => {
                self.retry_due.insert((due_ms, open));
            }
            HeldFor::Key => self.held_behind_key(order, open),
            HeldFor::InDoubt | HeldFor::Token => {}
        }
    }

    /// The message is complete. Whoever waited behind it shares a durable outcome, or is judged anew.
    pub(super) fn finish(&mut self, id: WorkId, account: Account, closed: Option<&Closed>) {
        self.free_slot(id);
        self.end_block(id);
        self.leave_index(id);
        let Some(mut work) = self.works.try_remove(id) else {
            return;
        };
        if !self.leaving_works.is_empty() {
            self.leaving_works.remove(&id);
        }
        // 9 has the tokens n and o and waits behind 7, which has n; so does 21, which has both, while 23, which has o, waits behind
        // 9. Once 7 has ended 21 waits behind 9 too, after 23: taken in that order 23 would run first, and 21 would find its token
        // closed above itself and pass for a redelivery.
        let works = &self.works;
        work.behind
            .sort_by_key(|waiter| works.get(*waiter).map(super::work::Work::offset));
        match work.origin {
            Origin::Taken(slot) => {
                self.accounts.shift(Account::InFlight, account);
                self.ledger.complete(slot);
                self.released_budget += 1;
            }
            Origin::Restored => {
                self.accounts.shift(Account::Held, account);
                self.uncount_held(Kept::copy_of(&work.raw()).bytes());
            }
        }
        // Where the token itself was not decided, there is nothing to share. A repeat that has several keys may have met
        // an outcome of one of them alone; an outcome of its own is recorded under all.
        let is_own = matches!(account, Account::Done | Account::Failed | Account::Skipped)
            || work.keys.as_slice().len() == 1;
        let closed = closed.filter(|_| is_own && work.refused.is_none());
        // A duplicate that was told so went by its position; what it was told of its only token stands.
        let has_one = matches!(work.refused.as_deref(), Some(Keys::One(_)));
        let told = work.answer.as_ref().filter(|_| has_one);
        let closed = closed.or(told.map(|answer| &answer.closed));
        for waiter in work.behind {
            match closed {
                // The outcome is durable, and nobody has opened the token since: no look-up is needed to share it.
                Some(closed) if self.may_share(waiter, closed) => self.meets_closed(waiter, closed, None),
                _ => self.enter(waiter),
            }
        }
        let refused = work.refused.iter().flat_map(|keys| keys.as_slice());
        for key in work.keys.as_slice().iter().chain(refused) {
            if self.index.has_line(key) {
                // Whoever runs has the others behind it again: the first alone, then.
                let most = closed.map_or(1, |closed| if self.suppresses(closed) { LOAD_MAX } else { 1 });
                self.free_next(key, most);
            }
        }
    }

    /// Sends the dead letter, if it ends with one, and then the outputs, all at once; again what was not acknowledged, with the
    /// same headers.
    pub(super) fn send(&mut self, id: WorkId) {
        let Some(ending) = self.works.get(id).and_then(|work| work.ending.as_ref()) else {
            return;
        };
        let failed_sends = ending.failed_sends;
        let letters = match &ending.unsent {
            Some(unsent) => unsent.clone(),
            None => {
                let dead = match ending.end {
                    End::Failed(reason) if ending.account == Account::Failed => {
                        self.letter(id, reason, &ending.error)
                    }
                    _ => None,
                };
                let outputs = ending.outputs.iter().cloned().map(dead_letter::output);
                dead.into_iter().chain(outputs).collect()
            }
        };
        self.set_phase(id, Phase::Sending);
        let sends = letters
            .iter()
            .map(|letter| self.wiring.letters.send(letter.clone()));
        let sending = futures_util::future::join_all(sends);
        let wait = match failed_sends {
            0 => None,
            // One message a second at the slowest: the topic may be down for long, and its partition waits.
            failed => Some(clock::now() + std::time::Duration::from_millis(100 << failed.min(3))),
        };
        let gate = self.gate.clone();
        self.sending.push(
            async move {
                if let Some(wait) = wait {
                    clock::sleep_until(wait).await;
                }
                // What an older assignment gave up on reaches no output (Inv 5).
                if !gate.accepts() {
                    let why = Box::new(broker::Error::Fatal("the assignment is over".into()));
                    return (id, Err(Unsent { letters, why }));
                }
                (id, Unsent::of(letters, sending.await))
            }
            .boxed(),
        );
    }

    fn letter(&self, id: WorkId, reason: Reason, error: &str) -> Option<Letter> {
        let work = self.works.get(id)?;
        let raw = work.raw();
        let token = self.wiring.extractor.text(&raw);
        let lineage = Lineage {
            reason,
            error,
            attempts: work.attempts,
            class: self.wiring.policy.class,
            token: token.as_deref(),
            topic: &self.wiring.topic,
            partition: self.partition,
            offset: raw.offset(),
        };
        let message = Kept::copy_of(&raw);
        Some(dead_letter::letter(
            &self.wiring.dead_letter_topic,
            &message,
            &lineage,
        ))
    }

    /// What was sent is acknowledged, or has to be sent again.
    pub(super) fn sent(&mut self, id: WorkId, result: Result<(), Unsent>) {
        let Some(ending) = self.works.get_mut(id).and_then(|work| work.ending.as_mut()) else {
            return;
        };
        match result {
            Ok(()) => {
                crate::crash::point("before-letter-record");
                if std::mem::take(&mut ending.failed_sends) > 0 {
                    self.letters_failing -= 1;
                }
                let (account, end) = (ending.account, ending.end.clone());
                let outputs = std::mem::take(&mut ending.outputs);
                self.count_given(&outputs);
                if account != Account::Duplicate {
                    self.count_closed(&end);
                }
                self.record(id, account, end);
            }
            Err(Unsent { letters, why }) => {
                self.wiring.meters.letters_failed.increment(letters.len() as u64);
                ending.unsent = Some(letters);
                ending.failed_sends += 1;
                if ending.failed_sends == 1 {
                    self.letters_failing += 1;
                    let why = crate::error::chain(&why);
                    tracing::warn!(
                        topic = %self.wiring.topic, partition = self.partition, %why,
                        "a dead letter or an output was not acknowledged; it is sent again, and its partition takes nothing meanwhile. \
                         If its topic is missing, make it: topics named in `outputs.topics` are looked for by a start"
                    );
                }
                if self.draining.is_none_or(|draining| draining.revoked) {
                    self.send(id);
                } else {
                    // At a shutdown it stays as settling, and the next start sends it: a topic that is down must not
                    // hold the process for the whole budget.
                    self.set_phase(id, Phase::Unsent);
                }
            }
        }
    }

    pub(super) fn is_published(&self) -> bool {
        self.published == self.publishable()
    }

    fn publishable(&self) -> CommitPoint {
        self.point_max.unwrap_or_else(|| self.ledger.commit_point())
    }

    /// Puts the commit point into the group when a commit is due. It is committed once the store knows it: an offset
    /// that the store does not know means that the window is cold.
    pub(super) fn publish(&mut self) {
        if self.publish_due <= self.now {
            self.publish_due = self.now + self.wiring.commit_every;
            self.publish_now = true;
            self.show();
        }
        if !self.publish_now || self.is_published() || self.submitted.len() >= super::SUBMITTED_MAX {
            return;
        }
        self.publish_now = false;
        self.put_position();
    }

    fn put_position(&mut self) {
        let point = self.publishable();
        self.changes.position = Some(Position {
            commit_point: point.next,
            time_ms: point.time_ms,
            acknowledged_ms: self.wiring.commits.acknowledged_ms(self.id),
            written_ms: self.wiring.clock.wall_ms(),
        });
    }
}

/// One group handed to the journal.
pub(super) struct Submitted {
    pub(super) number: u64,
    pub(super) at: Instant,
    pub(super) ids: Vec<WorkId>,
    /// The commit point that may be committed once this group is durable.
    pub(super) point: Option<CommitPoint>,
}

/// What was not acknowledged of what was sent together.
pub(super) struct Unsent {
    letters: Vec<Letter>,
    /// The first reason.
    why: Box<broker::Error>,
}

impl Unsent {
    fn of(letters: Vec<Letter>, results: Vec<Result<(), broker::Error>>) -> Result<(), Self> {
        let mut unsent: Option<Self> = None;
        for (letter, result) in letters.into_iter().zip(results) {
            if let Err(why) = result {
                let unsent = unsent.get_or_insert(Self {
                    letters: Vec::new(),
                    why: Box::new(why),
                });
                unsent.letters.push(letter);
            }
        }
        unsent.map_or(Ok(()), Err)
    }
}
