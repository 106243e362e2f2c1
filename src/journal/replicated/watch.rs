//! The watchdog: a call of the client library can outlive its own timeout where the coordinator is gone, and nothing ends
//! it then. Whoever waits for the group is told that it is over, and the consumer stops.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::clock::{self, Instant};
use crate::journal::{Acks, Failure};

/// Shared by the journal's thread and the one that watches it.
#[derive(Debug, Clone)]
pub(super) struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    call_max: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// The turn under way: since when, and who waits for it.
    turn: Option<(Instant, Vec<Arc<Acks>>)>,
    ended: bool,
    overdue: bool,
}

/// A turn under way.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Watch);

/// Ends the watching when it is dropped.
#[derive(Debug)]
pub(super) struct Watching(Watch);

impl Watch {
    /// Starts the thread. `broken` is called once, when a turn takes longer than `call_max`.
    pub(super) fn start(
        call_max: Duration,
        broken: Arc<dyn Fn(String) + Send + Sync>,
    ) -> std::io::Result<(Self, Watching)> {
        let watch = Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            call_max,
        }));
        let own = watch.clone();
        thread::Builder::new()
            .name("hapax-watch".into())
            .spawn(move || own.watch(&*broken))?;
        Ok((watch.clone(), Watching(watch)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn begins, for whoever is named; it ends when what this returns is dropped.
    pub(super) fn turn(&self, acks: Vec<Arc<Acks>>) -> Turn<'_> {
        self.state().turn = Some((clock::now(), acks));
        self.0.changed.notify_one();
        Turn(self)
    }

    /// Whether a turn has taken too long, and its thread may never end.
    pub(super) fn is_overdue(&self) -> bool {
        self.state().overdue
    }

    fn watch(&self, broken: &(dyn Fn(String) + Send + Sync)) {
        let mut state = self.state();
        while !state.ended {
            let wait = match &state.turn {
                None => Duration::MAX,
                Some((since, _)) => self
                    .0
                    .call_max
                    .saturating_sub(clock::now().saturating_duration_since(*since)),
            };
            if wait.is_zero() {
                state.overdue = true;
                let turn = state.turn.take();
                drop(state);
                let why = format!(
                    "a call to the broker has not returned within {:?}, and may never; what it was to write may be written",
                    self.0.call_max
                );
                for acks in turn.into_iter().flat_map(|(_, acks)| acks) {
                    acks.fail(Failure::Broken(why.clone()));
                }
                broken(why);
                return;
            }
            state = if wait == Duration::MAX {
                self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.0.changed.wait_timeout(state, wait);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().turn = None;
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.0.changed.notify_one();
    }
}
