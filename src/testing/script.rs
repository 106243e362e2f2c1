//! The script of one schedule: every edge that a process reaches, and the one at which it dies.
//!
//! An edge is a moment between two things that a crash can separate: before and after something becomes durable, and
//! wherever the user's code is not running. Whoever reaches one asks the script; from the moment it answers *dies*
//! nothing of the process goes on: its journal answers nobody, its letters and commits are not sent, its handlers are
//! not polled, and what it says of effects is not heard. The driver then drops what is left of it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::effects::Effect;
use super::message::Sent;
use crate::outcome::{End, HeldFor, Stage};
use crate::store::Changes;

/// A moment at which a process can die.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edge {
    /// A group of records becomes durable.
    Group(Vec<Change>),
    /// The offset to go on from becomes the broker's.
    Commit { partition: i32, next: i64 },
    /// A dead letter reaches its topic.
    Letter(String),
    /// A partition is assigned: its fence and its start become durable.
    Assigned { partition: i32 },
    /// The user's code is not running.
    Code { code: Code, of: Attempt, at: At },
}

/// Which code of the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Handler,
    Probe,
}

/// One attempt at one message; for a probe, the one that it asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// In which process: an `Idempotent` attempt is not written down, so the next process counts from 1 again.
    pub(crate) process: usize,
    pub(crate) of: Sent,
    pub(crate) number: u32,
}

/// Where the user's code stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// Before it is polled.
    Start,
    /// It returned `Pending`, for the n-th time.
    Await(u32),
    /// It ended, and said so.
    End(Said),
}

/// What the user's code said at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Ok,
    NotApplied(String),
    Unknown(String),
    Reject(String),
    ProbeDone,
    ProbeNotDone,
    ProbeUnknown,
}

/// On which side of something that becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Before,
    After,
}

/// What a group says of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// `None` for the position of the partition.
    pub(crate) of: Option<Sent>,
    pub(crate) says: String,
}

/// What happened in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It started.
    Started(usize),
    /// It reached an edge, its n-th.
    Reached(usize, Edge, Side),
    /// It died at the edge before.
    Crashed,
    /// An effect was applied.
    Effect(Effect, Option<Attempt>),
}

/// See the module. A handle belongs to one process; clones share it.
#[derive(Clone)]
pub(crate) struct Script {
    shared: Arc<Shared>,
    process: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    died: Notify,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    /// The number of the process that lives, from 1.
    process: usize,
    dead: bool,
    /// Edges that it has reached.
    reached: usize,
    crash_at: Option<usize>,
    /// Whose code is running.
    running: Option<Attempt>,
    /// The planted fault: begins are acknowledged, and not written.
    #[cfg(test)]
    loses_begins: bool,
}

impl Script {
    /// A script without a process.
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::default(),
            process: 0,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing of the user's runs under the lock.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next process, which dies at its n-th edge, if it is to die.
    pub(crate) fn next_process(&self, crash_at: Option<usize>) -> Self {
        let mut state = self.state();
        state.process += 1;
        state.dead = false;
        state.reached = 0;
        state.crash_at = crash_at;
        state.running = None;
        let process = state.process;
        state.events.push(Event::Started(process));
        drop(state);
        Self {
            shared: Arc::clone(&self.shared),
            process,
        }
    }

    /// An attempt of this process.
    pub(crate) const fn attempt(&self, of: Sent, number: u32) -> Attempt {
        Attempt {
            process: self.process,
            of,
            number,
        }
    }

    /// Whether the process of this handle is gone.
    pub(crate) fn is_dead(&self) -> bool {
        let state = self.state();
        state.dead || state.process != self.process
    }

    /// Reaches an edge; true where the process dies there, or is dead.
    #[must_use]
    pub(crate) fn dies_at(&self, edge: Edge, side: Side) -> bool {
        let mut state = self.state();
        if state.dead || state.process != self.process {
            return true;
        }
        state.reached += 1;
        let number = state.reached;
        state.events.push(Event::Reached(number, edge, side));
        if state.crash_at != Some(number) {
            return false;
        }
        state.dead = true;
        state.events.push(Event::Crashed);
        drop(state);
        self.shared.died.notify_one();
        true
    }

    /// Waits until the process dies.
    pub(crate) async fn died(&self) {
        self.shared.died.notified().await;
    }

    /// Runs the user's code in the name of that attempt.
    pub(crate) fn run<T>(&self, attempt: Attempt, code: impl FnOnce() -> T) -> T {
        self.state().running = Some(attempt);
        let output = code();
        self.state().running = None;
        output
    }

    /// Notes an effect; returns the message whose code is running.
    pub(crate) fn effect(&self, effect: &Effect) -> Option<Sent> {
        let mut state = self.state();
        let running = state.running;
        state.events.push(Event::Effect(effect.clone(), running));
        running.map(|attempt| attempt.of)
    }

    /// What has happened so far, in every process.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    /// How many edges the last process reached.
    pub(crate) fn reached(&self) -> usize {
        self.state().reached
    }
}

#[cfg(test)]
impl Script {
    /// Plants the fault: what is begun is not remembered.
    pub(crate) fn lose_begins(&self) {
        self.state().loses_begins = true;
    }

    /// Takes out of a group what the planted fault loses.
    pub(crate) fn tamper(&self, changes: &mut Changes) {
        if self.state().loses_begins {
            changes
                .opened
                .retain(|open| !matches!(open.stage, Stage::Begun { .. }));
        }
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What a group says, message by message.
pub(crate) fn changes(group: &Changes) -> Vec<Change> {
    let partition = group.partition.partition;
    let of = |offset| Some(Sent { partition, offset });
    let closed = group.closed.iter().map(|(_, closed)| Change {
        of: of(closed.offset),
        says: match &closed.end {
            End::Done(_) => "done".to_owned(),
            End::Failed(reason) => format!("failed ({})", reason.code()),
            End::Invalidated(why) => format!("invalidated ({why})"),
            End::Forgotten => "forgotten".to_owned(),
        },
    });
    let opened = group.opened.iter().map(|open| Change {
        of: of(open.offset),
        says: match &open.stage {
            Stage::Begun {
                not_applied: false, ..
            } => format!("attempt {} begun", open.attempts),
            Stage::Begun {
                not_applied: true, ..
            } => format!("attempt {} applied nothing", open.attempts),
            Stage::Held {
                why: HeldFor::InDoubt,
                ..
            } => "held in doubt".to_owned(),
            Stage::Held { .. } => "held".to_owned(),
            Stage::Settling {
                end: End::Done(_),
                outputs,
                ..
            } => format!("done, {} to be sent", counted(outputs.len(), "output")),
            Stage::Settling { .. } => "given up, its dead letter is to be sent".to_owned(),
        },
    });
    let known: Vec<Change> = closed.chain(opened).collect();
    let removed = group
        .removed
        .iter()
        .filter(|(_, offset)| !known.iter().any(|change| change.of == of(*offset)));
    let removed = removed.map(|(_, offset)| Change {
        of: of(*offset),
        says: "no longer open".to_owned(),
    });
    let position = group.position.map(|position| Change {
        of: None,
        says: format!("commit point {}", position.commit_point.0),
    });
    let removed: Vec<Change> = removed.collect();
    known.into_iter().chain(removed).chain(position).collect()
}

impl Edge {
    /// Whether it is about that message.
    pub(crate) fn is_about(&self, message: Sent) -> bool {
        match self {
            Self::Group(changes) => changes.iter().any(|change| change.of == Some(message)),
            Self::Code { of, .. } => of.of == message,
            Self::Commit { .. } | Self::Letter(_) | Self::Assigned { .. } => false,
        }
    }
}

impl fmt::Display for Sent {
    /// As everywhere in hapax, without the topic: `[0]@7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]@{}", self.partition, self.offset)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => write!(f, "`Ok`"),
            Self::NotApplied(why) => write!(f, "an error that says that nothing was applied: {why}"),
            Self::Unknown(why) => write!(f, "an end that leaves open what was applied: {why}"),
            Self::Reject(why) => write!(f, "`reject`: {why}"),
            Self::ProbeDone => write!(f, "`Done`"),
            Self::ProbeNotDone => write!(f, "`NotDone`"),
            Self::ProbeUnknown => write!(f, "`Unknown`"),
        }
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(changes) => {
                for (n, change) in changes.iter().enumerate() {
                    let comma = if n == 0 { "" } else { ", " };
                    match change.of {
                        Some(of) => write!(f, "{comma}message {of}: {}", change.says)?,
                        None => write!(f, "{comma}{}", change.says)?,
                    }
                }
                Ok(())
            }
            Self::Commit { partition, next } => write!(f, "commit of offset {next} of partition {partition}"),
            Self::Letter(of) => write!(f, "dead letter of {of}"),
            Self::Assigned { partition } => write!(f, "start of partition {partition}"),
            Self::Code { code, of, at } => {
                let Attempt { of, number, .. } = of;
                match (code, at) {
                    (Code::Handler, At::Start) => write!(f, "message {of}: attempt {number} starts"),
                    (Code::Handler, At::Await(n)) => {
                        write!(f, "message {of}: attempt {number} waits at its await {n}")
                    }
                    (Code::Handler, At::End(said)) => {
                        write!(f, "message {of}: attempt {number} ends with {said}")
                    }
                    (Code::Probe, At::Start) => {
                        write!(f, "message {of}: the probe is asked about attempt {number}")
                    }
                    (Code::Probe, At::Await(n)) => {
                        write!(f, "message {of}: the probe waits at its await {n}")
                    }
                    (Code::Probe, At::End(said)) => write!(f, "message {of}: the probe answers {said}"),
                }
            }
        }
    }
}
