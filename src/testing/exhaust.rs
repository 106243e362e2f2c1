//! Exhaust: a handler, some messages, and a crash at every place where there can be one.
//!
//! Each schedule is a run from the beginning: the messages are sent, a consumer starts, and dies at one edge: before or
//! after something becomes durable (a group of records, a commit, a dead letter, an assignment), before the handler's
//! first poll, at each `Pending` that it returns, after its last poll; the same for a probe. The next consumer starts
//! on what was durable and runs to the end. Schedules with fewer crashes come first, and earlier crashes before later
//! ones, so the first violation found is the shortest one.
//!
//! What it does not show: another order of the same events. A schedule is one order, the one that a single thread and a
//! clock that stands still make of it; what differs between schedules is where the process dies.

use std::fmt;
use std::panic::resume_unwind;

use tokio::runtime::{Builder, Runtime};

use super::effects::{Effect, Effects};
use super::harness::Harness;
use super::message::{Held, Message, Produced, Sent};
use super::script::{Edge, Event, Script, Side};
use crate::class::Class;
pub use error::{Error, Violation, Wrong};
pub use schedule::Schedule;

mod error;
mod judge;
mod schedule;
mod story;

/// Tries a handler at every crash. `make` is called for each consumer that starts, with the outside world: what it
/// makes is the process's own memory and is gone with it, what it notes in the [`Effects`] stays.
///
/// Not to be awaited: it makes a runtime of its own for each process, on a thread of its own, with a clock that stands
/// still. It works in a plain `#[test]` and in an async one.
///
/// ```
/// use hapax::testing::{Effects, Harness, Message, exhaust};
/// use hapax::{Context, PotentiallyIdempotent, Topic, Window};
///
/// # fn main() -> Result<(), exhaust::Error> {
/// let topic = || Topic::json::<u64>("payments", PotentiallyIdempotent).window(Window::hours(24));
/// let pay = |_cents: u64, cx: Context<Effects>| async move {
///     tokio::task::yield_now().await; // the bank is asked
///     cx.state().note("charge", cx.child_token("charge"));
///     Ok(())
/// };
/// let tried = exhaust(
///     |bank| Harness::new(topic().state(bank.clone()), pay),
///     [Message::json(&100).token("p-1"), Message::json(&100).token("p-1")],
/// )
/// .run()?;
/// assert!(tried.schedules() > 10);
/// # Ok(())
/// # }
/// ```
pub fn exhaust<'a, F>(make: F, messages: impl IntoIterator<Item = Message>) -> Exhaust<'a>
where
    F: Fn(&Effects) -> Harness + Send + Sync + 'a,
{
    Exhaust {
        make: Box::new(make),
        messages: messages.into_iter().collect(),
        crashes_max: 1,
        schedules_max: 10_000,
        nothing_held: false,
        final_state: None,
        #[cfg(test)]
        loses_begins: false,
    }
}

/// What [`exhaust`] is to try, and what counts as wrong.
///
/// By the topic's class, with effects told apart by name and token:
///
/// - `NonIdempotent`: no effect twice, with or without a crash
/// - `PotentiallyIdempotent`: an effect may be sent again by the same token, which the downstream knows; no other
///   effect than without a crash, so a second token for the same thing is one too many
/// - `Idempotent`: an effect may repeat; [`final_state`](Self::final_state) says what has to come out the same
///
/// In every class no effect of the run without a crash may be missing, but that of a message that is held.
#[must_use = "nothing is tried until it is run"]
pub struct Exhaust<'a> {
    make: Box<dyn Fn(&Effects) -> Harness + Send + Sync + 'a>,
    messages: Vec<Message>,
    crashes_max: usize,
    schedules_max: usize,
    nothing_held: bool,
    final_state: Option<ReadState<'a>>,
    #[cfg(test)]
    loses_begins: bool,
}

type ReadState<'a> = Box<dyn Fn(&Effects) -> Box<dyn judge::State> + Send + Sync + 'a>;

/// What was tried, and nothing wrong was found.
#[derive(Debug, Clone)]
pub struct Tried {
    schedules: usize,
    edges: usize,
    held: Vec<(Schedule, Sent)>,
}

impl Tried {
    /// How many schedules were run, the one without a crash included.
    #[must_use]
    pub const fn schedules(&self) -> usize {
        self.schedules
    }

    /// How many edges the run without a crash has: places to die at.
    #[must_use]
    pub const fn edges(&self) -> usize {
        self.edges
    }

    /// Messages that were held at the end, waiting for an operator's verdict, and in which schedule. No effect of such a
    /// message is lost: nobody knows whether it was applied.
    #[must_use]
    pub fn held(&self) -> &[(Schedule, Sent)] {
        &self.held
    }
}

/// One schedule, run alone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Replayed {
    /// What happened, line by line.
    pub story: String,
    /// The effects, in their order, repeats included.
    pub effects: Vec<Effect>,
    /// What is held at the end.
    pub held: Vec<Held>,
}

/// A run to the end.
struct Ran {
    schedule: Schedule,
    events: Vec<Event>,
    /// Edges that its last process reached.
    reached: usize,
    effects: Effects,
    held: Vec<Held>,
    letters: Vec<(String, String)>,
    /// What was produced besides, and for which message.
    outputs: Vec<(Effect, Sent)>,
    class: Class,
    topic: String,
    /// Why the consumer stopped, where it did.
    stopped: Option<crate::Error>,
    has_settled: bool,
    state: Option<Box<dyn judge::State>>,
}

impl Ran {
    /// The edges of its last process.
    fn edges(&self) -> Vec<(&Edge, Side)> {
        let start = self
            .events
            .iter()
            .rposition(|event| matches!(event, Event::Started(_)));
        let of_last = self.events.iter().skip(start.unwrap_or_default());
        let reached = of_last.filter_map(|event| match event {
            Event::Reached(_, edge, side) => Some((edge, *side)),
            _ => None,
        });
        reached.collect()
    }

    /// Where its last crash was.
    fn died_at(&self) -> Option<(&Edge, Side)> {
        let crash = self
            .events
            .iter()
            .rposition(|event| matches!(event, Event::Crashed))?;
        match self.events.get(crash.checked_sub(1)?)? {
            Event::Reached(_, edge, side) => Some((edge, *side)),
            _ => None,
        }
    }
}

/// How a process ended.
enum Ended {
    Crashed,
    Settled(bool),
    Stopped(crate::Error),
}

impl<'a> Exhaust<'a> {
    /// At most so many crashes in one schedule. Default: 1. With 2 there are about as many schedules as the square of
    /// the edges.
    pub const fn crashes(mut self, max: usize) -> Self {
        self.crashes_max = max;
        self
    }

    /// At most so many schedules; where there are more, none of the kind that is too many is run, and
    /// [`Error::TooMany`] says so. Default: 10,000.
    pub const fn at_most(mut self, schedules: usize) -> Self {
        self.schedules_max = schedules;
        self
    }

    /// A message that is held at the end is wrong too. Default: it is listed in [`Tried::held`].
    pub const fn nothing_held(mut self) -> Self {
        self.nothing_held = true;
        self
    }

    /// What has to be the same at the end as without a crash, wherever nothing is held: a balance, a table. It is all
    /// that tells a handler whose repeats do no harm from one whose repeats do. Default: the set of effects, without how
    /// often.
    pub fn final_state<S, R>(mut self, read: R) -> Self
    where
        S: PartialEq + fmt::Debug + Send + 'static,
        R: Fn(&Effects) -> S + Send + Sync + 'a,
    {
        self.final_state = Some(Box::new(move |effects| Box::new(read(effects))));
        self
    }

    /// Plants a fault in the engine: begins are acknowledged, and not written.
    #[cfg(test)]
    pub(super) fn losing_begins(mut self) -> Self {
        self.loses_begins = true;
        self
    }

    /// Tries every schedule, and ends at the first violation.
    ///
    /// # Errors
    /// [`Error::Violated`] with the shortest schedule that breaks something; its text is the story. The others say why
    /// not everything could be tried.
    pub fn run(&self) -> Result<Tried, Error> {
        on_a_thread(|| self.try_all())
    }

    /// Runs one schedule alone, for a debugger or a closer look: `.replay(&"7".parse()?)`.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`Error::NoSuchCrash`] where a process ends before it reaches its crash.
    pub fn replay(&self, schedule: &Schedule) -> Result<Replayed, Error> {
        on_a_thread(|| {
            let reference = self.reference()?;
            let ran = self.run_one(schedule)?;
            self.judge(&reference, &ran, 1)?;
            Ok(Replayed {
                story: story::of(&ran, None),
                effects: ran.effects.all(),
                held: ran.held,
            })
        })
    }

    fn try_all(&self) -> Result<Tried, Error> {
        let reference = self.reference()?;
        let mut tried = Tried {
            schedules: 1,
            edges: reference.reached,
            held: Vec::new(),
        };
        self.judge(&reference, &reference, 1)?;
        tried.note_held(&reference);
        // Every schedule with so many crashes, and the edges of its last process.
        let mut shorter = vec![reference.last_edges()];
        for _ in 0..self.crashes_max {
            let needed: usize = shorter.iter().map(|run| run.edges.len()).sum();
            if tried.schedules + needed > self.schedules_max {
                return Err(Error::TooMany {
                    needed: tried.schedules + needed,
                    tried: tried.schedules,
                    limit: self.schedules_max,
                });
            }
            let mut longer = Vec::new();
            for run in &shorter {
                for (before, edge) in run.edges.iter().enumerate() {
                    let schedule = run.schedule.and(before + 1);
                    let ran = self.run_one(&schedule)?;
                    tried.schedules += 1;
                    if ran
                        .died_at()
                        .is_none_or(|(died_at, side)| (died_at, side) != (&edge.0, edge.1))
                    {
                        let expected = story::edge(&edge.0, edge.1);
                        let found = ran.died_at().map(|(edge, side)| story::edge(edge, side));
                        return Err(Error::NotDeterministic {
                            expected,
                            found: found.unwrap_or_else(|| "the end".to_owned()),
                        });
                    }
                    self.judge(&reference, &ran, tried.schedules)?;
                    tried.note_held(&ran);
                    longer.push(ran.last_edges());
                }
            }
            shorter = longer;
        }
        Ok(tried)
    }

    /// The run without a crash, twice: what differs between them would differ between any two.
    fn reference(&self) -> Result<Ran, Error> {
        let none = Schedule::default();
        let (first, second) = (self.run_one(&none)?, self.run_one(&none)?);
        let pairs = first.events.iter().zip(&second.events);
        let differs = pairs.into_iter().find(|(a, b)| a != b);
        if let Some((expected, found)) = differs {
            return Err(Error::NotDeterministic {
                expected: story::event(expected),
                found: story::event(found),
            });
        }
        match first.stopped {
            Some(why) => Err(Error::Refused(why)),
            None => Ok(first),
        }
    }

    fn judge(&self, reference: &Ran, ran: &Ran, tried: usize) -> Result<(), Error> {
        match judge::wrong(reference, ran, self.nothing_held) {
            None => Ok(()),
            Some(wrong) => Err(Error::Violated(Box::new(Violation {
                schedule: ran.schedule.clone(),
                tried,
                story: story::violation(reference, ran, &wrong, tried),
                wrong,
            }))),
        }
    }

    /// One schedule, from the first message to the end.
    fn run_one(&self, schedule: &Schedule) -> Result<Ran, Error> {
        let script = Script::new();
        #[cfg(test)]
        if self.loses_begins {
            script.lose_begins();
        }
        let world = Effects::default();
        let mut crashes = schedule.crashes().iter().copied();
        let mut earlier: Option<Harness> = None;
        loop {
            let crash_at = crashes.next();
            let process = script.next_process(crash_at);
            let runtime = runtime()?;
            let entered = runtime.enter();
            let fresh = (self.make)(&world.seen_by(&process));
            drop(entered);
            // What was in the memory of the process is made anew; what is durable, sent or committed is not.
            let mut harness = match earlier.take() {
                None => fresh.sent(&self.messages),
                Some(earlier) => earlier.reborn(fresh),
            };
            harness.watched_by(&process);
            let ended = runtime.block_on(live(&mut harness, &process));
            match ended {
                Ended::Crashed => {
                    harness.crash();
                    earlier = Some(harness);
                    // With it goes whatever the handler had spawned.
                    drop(runtime);
                }
                _ if crash_at.is_some() => {
                    return Err(Error::NoSuchCrash {
                        schedule: schedule.clone(),
                        reached: process.reached(),
                    });
                }
                ended => return self.ran(schedule, &script, &world, &harness, ended),
            }
        }
    }

    fn ran(
        &self,
        schedule: &Schedule,
        script: &Script,
        world: &Effects,
        harness: &Harness,
        ended: Ended,
    ) -> Result<Ran, Error> {
        let letters = harness.dead_letters();
        let letters = letters.iter().map(|letter| {
            let of = letter.header("hapax-offset").unwrap_or_default();
            let of = String::from_utf8_lossy(of).into_owned();
            (of, letter.reason().to_owned())
        });
        Ok(Ran {
            schedule: schedule.clone(),
            events: script.events(),
            reached: script.reached(),
            effects: world.clone(),
            held: harness.held().map_err(Error::Refused)?,
            letters: letters.collect(),
            outputs: harness.outputs().iter().filter_map(effect_of).collect(),
            class: harness.class(),
            topic: harness.topic().to_owned(),
            has_settled: matches!(ended, Ended::Settled(true)),
            stopped: match ended {
                Ended::Stopped(why) => Some(why),
                Ended::Crashed | Ended::Settled(_) => None,
            },
            state: self.final_state.as_ref().map(|read| read(world)),
        })
    }
}

/// An output is an effect like any other, except that it may be sent again: whoever reads it has its token.
fn effect_of(output: &Produced) -> Option<(Effect, Sent)> {
    let effect = Effect {
        name: format!("output {} to {}", output.header("hapax-output"), output.topic()),
        token: output.header("idempotency-key").to_owned(),
    };
    let of = Sent {
        partition: output.header("hapax-partition").parse().ok()?,
        offset: crate::message::Offset(output.header("hapax-offset").parse().ok()?),
    };
    Some((effect, of))
}

/// A schedule that was run, and where its last process could have died.
struct Run {
    schedule: Schedule,
    edges: Vec<(Edge, Side)>,
}

impl Ran {
    fn last_edges(&self) -> Run {
        let edges = self.edges().into_iter();
        Run {
            schedule: self.schedule.clone(),
            edges: edges.map(|(edge, side)| (edge.clone(), side)).collect(),
        }
    }
}

impl Tried {
    fn note_held(&mut self, ran: &Ran) {
        let held = ran.held.iter().map(|held| (ran.schedule.clone(), held.of));
        self.held.extend(held);
    }
}

/// The life of one process: until it dies by the script, stops by itself, or has nothing left to do.
async fn live(harness: &mut Harness, process: &Script) -> Ended {
    let whole = async {
        match harness.start().await {
            Ok(()) => harness.run_out().await,
            Err(error) => Err(error),
        }
    };
    tokio::select! {
        biased;
        () = process.died() => Ended::Crashed,
        ended = whole => match ended {
            Ok(has_settled) => Ended::Settled(has_settled),
            Err(error) => Ended::Stopped(error),
        },
    }
}

/// A process's own runtime, with a clock that stands still.
fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|error| Error::Refused(crate::Error::Internal(format!("no runtime: {error}"))))
}

/// A runtime cannot be started inside another, so what makes runtimes has a thread of its own.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(output) => output,
        Err(panic) => resume_unwind(panic),
    })
}

impl fmt::Debug for Exhaust<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exhaust")
            .field("messages", &self.messages.len())
            .field("crashes_max", &self.crashes_max)
            .field("schedules_max", &self.schedules_max)
            .field("nothing_held", &self.nothing_held)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
