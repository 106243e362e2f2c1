//! Why a handler did not pass. The text is for the person whose test fails; `Debug` is the same text, because a test
//! that returns an error prints that.

use std::fmt;

use super::schedule::Schedule;
use crate::testing::{Effect, Sent};

/// Why not everything was tried, or what was found.
#[non_exhaustive]
pub enum Error {
    /// What: a schedule in which an effect repeats or is lost. hapax ended there; all schedules before it are fine. Read
    /// the story, mend the handler, and replay the schedule alone.
    Violated(Box<Violation>),
    /// What: there are more schedules than allowed. hapax ran only those with fewer crashes. Send fewer messages, ask
    /// for fewer crashes, or raise [`at_most`](super::Exhaust::at_most).
    TooMany {
        /// How many there would be, those already tried included.
        needed: usize,
        /// How many were tried, and found right.
        tried: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// What: two runs of the same schedule went different ways, so there is no list of schedules to go through. hapax
    /// ended there. Take tokens from the message, and neither the machine's clock nor chance into the handler.
    NotDeterministic {
        /// What happened in the first run.
        expected: String,
        /// What happened in its place in the second.
        found: String,
    },
    /// What: a process ended before the edge at which it was to die. hapax ended there. The schedule is of another
    /// handler, of other messages, or of another version.
    NoSuchCrash {
        /// The schedule asked for.
        schedule: Schedule,
        /// How many edges that process reached.
        reached: usize,
    },
    /// What: the consumer stopped without any crash, by its configuration or a policy. hapax tried nothing.
    Refused(crate::Error),
}

/// A schedule that breaks what the class promises.
#[non_exhaustive]
pub struct Violation {
    /// Where the processes die: for [`replay`](super::Exhaust::replay).
    pub schedule: Schedule,
    /// What is wrong.
    pub wrong: Wrong,
    /// How many schedules were tried, this one included.
    pub tried: usize,
    /// What happened, why, and how to mend it.
    pub story: String,
}

/// What is wrong at the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wrong {
    /// A `NonIdempotent` handler applied an effect more than once.
    Repeated {
        /// Which.
        effect: Effect,
        /// How often.
        times: usize,
    },
    /// An effect that the run without a crash does not have: the same thing done again by another token.
    OneTooMany {
        /// Which.
        effect: Effect,
    },
    /// An effect that the run without a crash has is missing.
    Lost {
        /// Which.
        effect: Effect,
    },
    /// The final state is another than without a crash.
    Differs {
        /// Without a crash.
        expected: String,
        /// In this schedule.
        found: String,
    },
    /// A message is held, and nothing was to be.
    Held {
        /// Which.
        of: Sent,
    },
    /// The consumer stopped, and without a crash it does not.
    Stopped {
        /// What it said.
        why: String,
    },
    /// After 10 minutes of the clock that stands still something is still in flight.
    Unsettled,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeated { effect, times } => write!(f, "an effect was applied {times} times: {effect}"),
            Self::OneTooMany { effect } => {
                write!(f, "an effect that a run without a crash does not have: {effect}")
            }
            Self::Lost { effect } => write!(f, "an effect was lost: {effect}"),
            Self::Differs { expected, found } => {
                write!(f, "the final state is {found}, without a crash it is {expected}")
            }
            Self::Held { of } => write!(f, "message {of} is held, and nothing was to be"),
            Self::Stopped { why } => write!(f, "the consumer stopped: {why}"),
            Self::Unsettled => write!(f, "something is still in flight after 10 minutes"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.story.fmt(f)
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violated(violation) => violation.fmt(f),
            Self::TooMany { needed, tried, limit } => write!(
                f,
                "{needed} schedules are more than the limit of {limit}: {tried} with fewer crashes were tried and are \
                 right, the rest was not tried; send fewer messages, ask for fewer `crashes`, or raise `at_most`"
            ),
            Self::NotDeterministic { expected, found } => write!(
                f,
                "two runs of the same schedule went different ways: the first went on with \"{expected}\", the second \
                 with \"{found}\"; take tokens from the message or from `cx.child_token`, and leave chance and the \
                 machine's clock out of the handler"
            ),
            Self::NoSuchCrash { schedule, reached } => write!(
                f,
                "schedule {schedule} lets a process die later than it lives: it reached {reached} edges; the schedule \
                 belongs to another handler, other messages or another version"
            ),
            Self::Refused(_) => write!(f, "without any crash the consumer stopped"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "{self}: {}", crate::error::chain(why)),
            _ => fmt::Display::fmt(self, f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(why) => Some(why),
            _ => None,
        }
    }
}
