//! Arrivals: what the broker knows of partitions that were just assigned, asked for by a thread of its own.
//!
//! The group's commits are asked for as *stable* ones (KIP-447): while a member that is gone has a transaction open with
//! the offset of a partition in it, nobody can say what that partition's commit is, for as long as that transaction may
//! last. So whoever asks waits, and whoever waits serves nothing else: not the poll thread, and not in the name of
//! partitions of which everything is known. What several have in common is asked at once; where that has no answer they
//! are asked in halves, until each that can be known is.
//!
//! A partition that goes and comes back has another ticket. What is told under the old one may be older than what its
//! owner in between has committed, and is dropped.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::assignments::Facts;
use crate::broker;
use crate::clock::{self, Instant};
use crate::error::Error;
use crate::patience::{self, GIVE_UP, Said};
use crate::store::PartitionId;
use crate::wanted::{Ticket, Wanted};

/// How the broker is asked.
pub(crate) trait Questions: Send + 'static {
    /// Asks for what it knows of those partitions, in their order. It gives up after about that long, or where it has no
    /// answer for one of them.
    ///
    /// # Errors
    /// Why there is no answer.
    fn ask(&mut self, ids: &[PartitionId], at_most: Duration) -> Result<Vec<Facts>, Error>;
}

/// The handle of the thread, which ends when this is dropped.
pub(crate) struct Arrivals {
    wishes: mpsc::Sender<Vec<Wish>>,
    told: mpsc::Receiver<Vec<Told>>,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy)]
struct Wish {
    id: PartitionId,
    ticket: Ticket,
    since: Instant,
}

#[derive(Debug)]
struct Told {
    id: PartitionId,
    ticket: Ticket,
    outcome: Result<Facts, Error>,
}

/// One question takes no longer, however long it has been waited: one partition without an answer does not keep the thread
/// from others for long.
const QUESTION_MAX: Duration = Duration::from_secs(10);

impl Arrivals {
    /// Starts the thread. `wake` is called when there is something to [take](Self::take).
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(
        questions: impl Questions,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wishes, inbox) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let wanted = Wanted::default();
        let known = wanted.clone();
        // Nobody waits for its end: it holds nothing but a client of its own, and may be in the middle of a question.
        thread::Builder::new()
            .name("hapax-ask".into())
            .spawn(move || Asking::new(questions, inbox, known).serve(&tell, &wake))?;
        Ok(Self { wishes, told, wanted })
    }

    /// Those were assigned.
    pub(crate) fn expect(&self, ids: &[PartitionId]) {
        let since = clock::now();
        let wish = |id: &PartitionId| Wish {
            id: *id,
            ticket: self.wanted.want(*id),
            since,
        };
        let wishes = ids.iter().map(wish).collect();
        // A thread that is gone has panicked, and said so.
        let _ = self.wishes.send(wishes);
    }

    /// Those are given away, or lost.
    pub(crate) fn forget(&self, ids: &[PartitionId]) {
        ids.iter().for_each(|id| self.wanted.forget(*id));
    }

    /// Partitions of which nothing is known yet. They are ours, and not served.
    pub(crate) fn waiting(&self) -> Vec<PartitionId> {
        self.wanted.ids()
    }

    /// What has been told since, of what is still wanted.
    ///
    /// # Errors
    /// Where the broker has given no answer for too long.
    pub(crate) fn take(&self) -> Result<Vec<(PartitionId, Facts)>, Error> {
        let mut known = Vec::new();
        for Told { id, ticket, outcome } in self.told.try_iter().flatten() {
            if self.wanted.wants(id, ticket) {
                self.wanted.forget(id);
                known.push((id, outcome?));
            }
        }
        Ok(known)
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.wanted.forget_all();
    }
}

/// What the thread works with.
struct Asking<Q> {
    questions: Q,
    inbox: mpsc::Receiver<Vec<Wish>>,
    wanted: Wanted,
    pending: VecDeque<Together>,
    said: Said,
}

/// Those that are asked for at once.
#[derive(Debug, Default)]
struct Together {
    wishes: Vec<Wish>,
    /// It is one, and had no answer.
    is_known_to_wait: bool,
}

impl Together {
    const fn new(wishes: Vec<Wish>) -> Self {
        Self {
            wishes,
            is_known_to_wait: false,
        }
    }
}

impl<Q: Questions> Asking<Q> {
    fn new(questions: Q, inbox: mpsc::Receiver<Vec<Wish>>, wanted: Wanted) -> Self {
        Self {
            questions,
            inbox,
            wanted,
            pending: VecDeque::new(),
            said: Said::default(),
        }
    }

    fn serve(mut self, tell: &mpsc::Sender<Vec<Told>>, wake: &dyn Fn()) {
        while let Some(asked) = self.gather() {
            let told = self.ask(asked);
            if !told.is_empty() {
                // Nobody listens any more where the consumer has stopped.
                let _ = tell.send(told);
                wake();
            }
        }
    }

    /// Waits for something to ask. `None` where nobody will want to know anything any more.
    fn gather(&mut self) -> Option<Together> {
        loop {
            // What has just come goes first: most of it can be known at once.
            while let Ok(new) = self.inbox.try_recv() {
                self.pending.push_front(Together::new(new));
            }
            while let Some(mut next) = self.pending.pop_front() {
                next.wishes.retain(|wish| self.wanted.wants(wish.id, wish.ticket));
                if !next.wishes.is_empty() {
                    return Some(next);
                }
            }
            self.said = Said::default();
            let new = self.inbox.recv().ok()?;
            self.pending.push_back(Together::new(new));
        }
    }

    fn ask(&mut self, together: Together) -> Vec<Told> {
        let mut asked = together.wishes;
        let ids: Vec<_> = asked.iter().map(|wish| wish.id).collect();
        let since = asked
            .iter()
            .map(|wish| wish.since)
            .min()
            .unwrap_or_else(clock::now);
        let waited = clock::now().saturating_duration_since(since);
        let at_most = patience::question(waited, QUESTION_MAX);
        let error = match self.questions.ask(&ids, at_most) {
            Ok(facts) => {
                if together.is_known_to_wait {
                    // Something has changed: it may have for the others as well.
                    let all = self
                        .pending
                        .drain(..)
                        .flat_map(|waiting| waiting.wishes)
                        .collect();
                    self.pending.push_back(Together::new(all));
                }
                let both = asked.into_iter().zip(facts);
                return both
                    .map(|(Wish { id, ticket, .. }, facts)| Told {
                        id,
                        ticket,
                        outcome: Ok(facts),
                    })
                    .collect();
            }
            Err(error) => error,
        };
        let now = clock::now();
        if let Some(Wish { id, ticket, .. }) = asked.first().copied()
            && (is_final(&error) || now.saturating_duration_since(since) > GIVE_UP)
        {
            // One reason for all of them: the consumer stops with it, unless that one has been given away meanwhile. Then
            // the others are still to be known.
            let others = asked.split_off(1);
            self.pending.push_back(Together::new(others));
            return vec![Told {
                id,
                ticket,
                outcome: Err(error),
            }];
        }
        if self.said.is_due(now) {
            tracing::warn!(
                why = %crate::error::chain(&error), partitions = asked.len(), ?waited,
                "partitions that were assigned are not served yet; they are asked for again, and the others are served. A question \
                 that times out: the broker is away, or an earlier owner's transaction is still open, until its own timeout"
            );
        }
        let half = asked.split_off(asked.len().div_ceil(2));
        let is_known_to_wait = half.is_empty();
        self.pending.push_back(Together {
            wishes: asked,
            is_known_to_wait,
        });
        self.pending.push_back(Together::new(half));
        thread::park_timeout(patience::pause(waited));
        Vec::new()
    }
}

/// Whether the next answer would be the same.
const fn is_final(error: &Error) -> bool {
    matches!(error, Error::Broker(broker::Error::Right { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::TopicId;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Arc, Mutex};

    const fn id(partition: i32) -> PartitionId {
        PartitionId {
            topic: TopicId(0),
            partition,
        }
    }

    fn facts(high: i64) -> Facts {
        Facts {
            committed: None,
            low: 0,
            high,
        }
    }

    /// A broker that has no answer for some partitions, and says `high` of the others.
    #[derive(Clone, Default)]
    struct Broker(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        unstable: BTreeSet<i32>,
        high: i64,
        asked: Vec<usize>,
    }

    impl Questions for Broker {
        fn ask(&mut self, ids: &[PartitionId], at_most: Duration) -> Result<Vec<Facts>, Error> {
            let mut state = self.0.lock().unwrap();
            state.asked.push(ids.len());
            if ids.iter().any(|id| state.unstable.contains(&id.partition)) {
                return Err(Error::Internal(format!("no answer within {at_most:?}")));
            }
            Ok(ids.iter().map(|_| facts(state.high)).collect())
        }
    }

    fn known(arrivals: &mut Arrivals, count: usize) -> BTreeMap<i32, i64> {
        let mut known = BTreeMap::new();
        let until = clock::now() + Duration::from_secs(60);
        while known.len() < count {
            assert!(clock::now() < until, "{known:?}");
            let told = arrivals.take().unwrap().into_iter();
            known.extend(told.map(|(id, facts)| (id.partition, facts.high)));
            thread::park_timeout(Duration::from_millis(1));
        }
        known
    }

    #[test]
    fn one_that_cannot_be_known_keeps_no_other_waiting() {
        let broker = Broker::default();
        broker.0.lock().unwrap().unstable.insert(5);
        let mut arrivals = Arrivals::start(broker.clone(), || {}).unwrap();
        arrivals.expect(&(0..8).map(id).collect::<Vec<_>>());
        let others = known(&mut arrivals, 7);
        assert!(!others.contains_key(&5));
        assert_eq!(arrivals.waiting(), [id(5)]);
        // What comes later does not wait either.
        arrivals.expect(&[id(9)]);
        assert!(known(&mut arrivals, 1).contains_key(&9));
        let mut state = broker.0.lock().unwrap();
        assert_eq!(
            state.asked.first(),
            Some(&8),
            "what answers at once is asked for at once"
        );
        state.unstable.clear();
        drop(state);
        assert!(known(&mut arrivals, 1).contains_key(&5));
    }

    #[test]
    fn what_was_asked_for_an_earlier_assignment_is_not_taken_for_a_later_one() {
        let broker = Broker::default();
        let (told, tell) = (mpsc::channel(), mpsc::channel());
        struct Held(Broker, mpsc::Sender<()>, mpsc::Receiver<()>);
        impl Questions for Held {
            fn ask(&mut self, ids: &[PartitionId], at_most: Duration) -> Result<Vec<Facts>, Error> {
                let answer = self.0.ask(ids, at_most);
                let _ = self.1.send(());
                let _ = self.2.recv_timeout(Duration::from_secs(60));
                answer
            }
        }
        let questions = Held(broker.clone(), told.0, tell.1);
        let mut arrivals = Arrivals::start(questions, || {}).unwrap();
        arrivals.expect(&[id(0)]);
        // The broker has answered, and the answer is on its way when the partition goes, is another's, and comes back.
        told.1.recv_timeout(Duration::from_secs(60)).unwrap();
        arrivals.forget(&[id(0)]);
        assert_eq!(arrivals.waiting(), []);
        broker.0.lock().unwrap().high = 7;
        arrivals.expect(&[id(0)]);
        tell.0.send(()).unwrap();
        tell.0.send(()).unwrap();
        assert_eq!(known(&mut arrivals, 1), [(0, 7)].into());
    }

    /// The consumer stops with a reason; one that came for a partition that is another's by now stops nobody.
    #[test]
    fn a_reason_to_stop_that_came_too_late_leaves_the_others_to_be_known() {
        struct Refused(Broker, Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>);
        impl Questions for Refused {
            fn ask(&mut self, ids: &[PartitionId], at_most: Duration) -> Result<Vec<Facts>, Error> {
                let Some((asked, forgotten)) = self.1.take() else {
                    return self.0.ask(ids, at_most);
                };
                asked.send(()).unwrap();
                forgotten.recv_timeout(Duration::from_secs(60)).unwrap();
                let text = String::new;
                Err(broker::Error::Right {
                    what: text(),
                    why: text(),
                    command: text(),
                }
                .into())
            }
        }
        let ((asked, is_asked), (forgotten, is_forgotten)) = (mpsc::channel(), mpsc::channel());
        let questions = Refused(Broker::default(), Some((asked, is_forgotten)));
        let mut arrivals = Arrivals::start(questions, || {}).unwrap();
        arrivals.expect(&[id(0), id(1)]);
        is_asked.recv_timeout(Duration::from_secs(60)).unwrap();
        arrivals.forget(&[id(0)]);
        forgotten.send(()).unwrap();
        assert!(known(&mut arrivals, 1).contains_key(&1));
    }

    #[test]
    fn nobody_waits_for_a_question_that_is_under_way() {
        struct Never(mpsc::Sender<()>, mpsc::Receiver<()>);
        impl Questions for Never {
            fn ask(&mut self, _: &[PartitionId], _: Duration) -> Result<Vec<Facts>, Error> {
                let _ = self.0.send(());
                let _ = self.1.recv();
                Err(Error::Internal("no answer".into()))
            }
        }
        let (asked, is_asked) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let arrivals = Arrivals::start(Never(asked, ended), || {}).unwrap();
        arrivals.expect(&[id(0)]);
        is_asked.recv_timeout(Duration::from_secs(60)).unwrap();
        drop(arrivals);
        drop(end);
    }
}
