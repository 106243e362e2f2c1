//! The invariants of the design as properties. The first eleven hold always; the others say that the checker has seen
//! what it should have seen: a world in which nothing happens keeps every rule.

use stateright::{Model, Property};

use crate::consumer::{Life, Stage};
use crate::protocol::Protocol;
use crate::records::{Record, Verdict};
use crate::state::State;
use crate::world::{Class, World};

/// Inv 1: nothing is lost, and no commit point lies beyond an undecided offset.
pub(crate) const DECIDED: &str =
    "Inv 1: whatever lies below the committed offset is done, held or suppressed";
pub(crate) const ONE_OUTCOME: &str = "at most one recorded outcome for a token within one window";
pub(crate) const ONE_EFFECT: &str = "no effect twice where the handler is not idempotent, but where an operator said run who knew of every attempt";
pub(crate) const SUPPRESSED: &str = "Inv 2: every suppressed message had an outcome";
pub(crate) const IN_DOUBT: &str = "Inv 3: a kill leaves no more in doubt than there are slots";
pub(crate) const FENCES: &str = "Inv 5: no two assignments show the same fence";
pub(crate) const ENDS: &str = "when nothing more can happen, everything is decided and committed";

pub(crate) const PERMITTED: &str = "Inv 4: an attempt is begun once, once more after one that applied nothing, and once more for each such verdict; never after done";
pub(crate) const ANSWERED: &str =
    "an order that was answered has one act in the changelog, and no order has two";
pub(crate) const STANDS: &str = "a durable verdict is carried out, and nothing comes between";
pub(crate) const AUDITED: &str = "nothing is done in an operator's name before the changelog has the act";

/// Whether a state keeps an invariant.
type Holds = fn(&Protocol, &State) -> bool;

const ALWAYS: [(&str, Holds); 11] = [
    (DECIDED, |protocol, state| {
        decided_below_the_commit(&protocol.world, state)
    }),
    (ONE_OUTCOME, |protocol, state| {
        at_most(&protocol.world, &state.happened.outcomes, |_| 1)
    }),
    (ONE_EFFECT, |protocol, state| {
        let (world, runs) = (&protocol.world, &state.happened.permits.runs);
        world.class == Class::Idempotent
            || at_most(world, &state.happened.effects, |repeats| 1 + sum(runs, repeats))
    }),
    (PERMITTED, |_, state| !state.happened.permits.exceeded),
    (ANSWERED, |_, state| {
        let orders = state.happened.acts.iter().zip(state.happened.answered);
        orders
            .clone()
            .all(|(acts, answered)| *acts == 1 || (*acts == 0 && answered.is_none()))
    }),
    (STANDS, |_, state| !state.happened.permits.overruled),
    (AUDITED, |_, state| !state.happened.unaudited),
    (SUPPRESSED, |_, state| !state.happened.swallowed),
    (IN_DOUBT, |protocol, state| {
        state
            .consumers
            .iter()
            .all(|consumer| consumer.would_be_in_doubt() <= protocol.world.slots)
    }),
    (FENCES, |_, state| !state.happened.fence_shared),
    (ENDS, ends_decided),
];

/// The properties of one world.
pub(crate) fn all(world: &World) -> Vec<Property<Protocol>> {
    let always = ALWAYS.iter().map(|(name, holds)| Property::always(name, *holds));
    always
        .chain(
            world
                .sees
                .iter()
                .map(|sight| Property::sometimes(sight.name(), sight.condition())),
        )
        .collect()
}

fn decided_below_the_commit(world: &World, state: &State) -> bool {
    let records = state.broker.truth(world);
    (0..usize::from(state.broker.committed.offset)).all(|offset| decided(world, state, &records.of, offset))
}

fn decided(world: &World, state: &State, records: &[Record], offset: usize) -> bool {
    records[offset].is_kept()
        || (0..=offset).any(|other| world.repeats(other, offset) && state.happened.outcomes[other] > 0)
}

/// Whether the messages of one token within one window count to no more than what is said of them.
fn at_most(world: &World, counts: &[u8], most: impl Fn(&[usize]) -> u8) -> bool {
    (0..world.len()).all(|one| {
        let repeats: Vec<usize> = (0..=one).filter(|other| world.repeats(*other, one)).collect();
        sum(counts, &repeats) <= most(&repeats)
    })
}

fn sum(counts: &[u8], offsets: &[usize]) -> u8 {
    offsets.iter().map(|offset| counts[*offset]).sum()
}

/// Only trouble could still happen, and somebody owns the partition: so it has done all its work, and carried out every
/// verdict.
fn ends_decided(protocol: &Protocol, state: &State) -> bool {
    let owned = state
        .broker
        .owner
        .is_some_and(|owner| state.consumers[owner].life == Life::Up);
    let ordered = |record: &Record| matches!(record, Record::Ordered(..));
    let done = finished(protocol, state) && !state.broker.truth(&protocol.world).of.iter().any(ordered);
    if !owned || done {
        return true;
    }
    let mut actions = Vec::new();
    protocol.actions(state, &mut actions);
    actions.iter().any(|action| !action.is_trouble())
}

/// Something that has to be reachable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sight {
    HeldAtTheEnd,
    /// What was held for another attempt ran, and all is committed.
    RanLater,
    Suppressed,
    Expired,
    AbortedLate,
    Refused,
    ThirdOwnerFinishes,
    Trimmed,
    /// An operator's word ended what was held, and it did not run.
    EndedByWord,
    /// An operator's word made it run once more.
    RanByWord,
    /// A verdict became durable while its partition was drained: it is the next owner's.
    CaughtByDrain,
    /// A verdict was carried out by another owner than the one that was told.
    CarriedOutLater,
    /// Both orders were answered.
    TwoAnswered,
    /// An order came to nothing, because its message had left its rest meanwhile.
    TurnedAway,
    /// An order is durable, and whoever gave it will not hear of it.
    AnswerLost,
    /// A duplicate that was held behind its token was suppressed when an operator ended that.
    BehindSuppressed,
}

impl Sight {
    fn name(self) -> &'static str {
        match self {
            Self::HeldAtTheEnd => "seen: all is committed and something is held",
            Self::RanLater => "seen: what was held for another attempt is done, and all is committed",
            Self::Suppressed => "seen: all is committed, and one of two messages of a token has run",
            Self::Expired => "seen: a token runs again after its window",
            Self::AbortedLate => "seen: the broker aborts what was open for too long",
            Self::Refused => "seen: the broker refuses an old generation",
            Self::ThirdOwnerFinishes => "seen: the third owner commits the last message",
            Self::Trimmed => "seen: the head of the changelog is deleted and all is committed",
            Self::EndedByWord => "seen: an operator said done, and it is done without another attempt",
            Self::RanByWord => "seen: an operator said run, and it ran once more",
            Self::CaughtByDrain => "seen: a drain catches a verdict that has become durable",
            Self::CarriedOutLater => "seen: an owner finds a verdict that another was told",
            Self::TwoAnswered => "seen: two operators have an answer",
            Self::TurnedAway => "seen: an order is refused, because its message has left its rest",
            Self::AnswerLost => "seen: an order is carried out, and its answer is lost",
            Self::BehindSuppressed => {
                "seen: what was held behind its token is suppressed, and nothing is held"
            }
        }
    }

    fn condition(self) -> Holds {
        match self {
            Self::HeldAtTheEnd => {
                |protocol, state| finished(protocol, state) && holds_for_ever(protocol, state)
            }
            Self::RanLater => |protocol, state| {
                let records = state.broker.truth(&protocol.world).of;
                finished(protocol, state)
                    && state.happened.postponed
                    && !records.iter().any(|record| record.is_kept())
            },
            Self::Suppressed => |protocol, state| {
                let ran: u8 = state.happened.effects.iter().sum();
                finished(protocol, state)
                    && usize::from(ran) < protocol.world.len()
                    && !holds_for_ever(protocol, state)
            },
            Self::Expired => |_, state| state.happened.expired,
            Self::AbortedLate => |_, state| state.happened.aborted_late,
            Self::Refused => |_, state| state.happened.refused,
            Self::ThirdOwnerFinishes => |protocol, state| {
                state.left.assignments == 0
                    && protocol.world.budget.assignments == 2
                    && finished(protocol, state)
            },
            Self::Trimmed => {
                |protocol, state| state.left.trims < protocol.world.budget.trims && finished(protocol, state)
            }
            Self::EndedByWord => |protocol, state| {
                let done = Some(Verdict::Done);
                let ran = state.happened.effects[0] > u8::from(protocol.world.found != Record::None);
                is_over(protocol, state) && state.happened.answered.contains(&done) && !ran
            },
            Self::RanByWord => |protocol, state| {
                let runs = state.happened.permits.runs[0];
                is_over(protocol, state) && runs > 0 && state.happened.effects[0] == 1 + runs
            },
            Self::CaughtByDrain => |_, state| {
                state.consumers.iter().any(|consumer| {
                    matches!(consumer.window.of[0], Record::Ordered(..)) && consumer.stage == Stage::Draining
                })
            },
            Self::CarriedOutLater => |_, state| {
                state.consumers.iter().any(|consumer| {
                    matches!(consumer.window.of[0], Record::Ordered(..)) && consumer.stage == Stage::Fencing
                })
            },
            Self::TwoAnswered => |protocol, state| {
                is_over(protocol, state) && state.happened.answered.iter().all(Option::is_some)
            },
            Self::TurnedAway => |protocol, state| is_over(protocol, state) && state.happened.turned_away,
            Self::AnswerLost => |protocol, state| {
                let happened = &state.happened;
                is_over(protocol, state) && happened.acts[0] == 1 && happened.answered[0].is_none()
            },
            Self::BehindSuppressed => |protocol, state| {
                let ran = state.happened.effects[1] + state.happened.outcomes[1] > 0;
                is_over(protocol, state) && state.happened.answered[0].is_some() && !ran
            },
        }
    }
}

/// All is committed, and nothing is held.
fn is_over(protocol: &Protocol, state: &State) -> bool {
    let records = state.broker.truth(&protocol.world).of;
    finished(protocol, state) && !records.iter().any(|record| record.is_kept())
}

/// Something is held that waits for a person.
fn holds_for_ever(protocol: &Protocol, state: &State) -> bool {
    let records = state.broker.truth(&protocol.world).of;
    records.iter().any(|record| matches!(record, Record::InDoubt(_)))
}

fn finished(protocol: &Protocol, state: &State) -> bool {
    usize::from(state.broker.committed.offset) == protocol.world.len()
}
