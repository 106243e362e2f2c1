//! The invariants of the design as properties. The first seven hold always; the others say that the checker has seen
//! what it should have seen: a world in which nothing happens keeps every rule.

use stateright::{Model, Property};

use crate::consumer::Life;
use crate::protocol::Protocol;
use crate::records::Record;
use crate::state::State;
use crate::world::{Class, World};

/// Inv 1: nothing is lost, and no commit point lies beyond an undecided offset.
pub(crate) const DECIDED: &str =
    "Inv 1: whatever lies below the committed offset is done, held or suppressed";
pub(crate) const ONE_OUTCOME: &str = "at most one recorded outcome for a token within one window";
pub(crate) const ONE_EFFECT: &str = "no effect twice where the handler is not idempotent";
pub(crate) const SUPPRESSED: &str = "Inv 2: every suppressed message had an outcome";
pub(crate) const IN_DOUBT: &str = "Inv 3: a kill leaves no more in doubt than there are slots";
pub(crate) const FENCES: &str = "Inv 5: no two assignments show the same fence";
pub(crate) const ENDS: &str = "when nothing more can happen, everything is decided and committed";

/// Whether a state keeps an invariant.
type Holds = fn(&Protocol, &State) -> bool;

const ALWAYS: [(&str, Holds); 7] = [
    (DECIDED, |protocol, state| {
        decided_below_the_commit(&protocol.world, state)
    }),
    (ONE_OUTCOME, |protocol, state| {
        at_most_one(&protocol.world, &state.happened.outcomes)
    }),
    (ONE_EFFECT, |protocol, state| {
        protocol.world.class == Class::Idempotent || at_most_one(&protocol.world, &state.happened.effects)
    }),
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

fn at_most_one(world: &World, counts: &[u8]) -> bool {
    (0..world.len()).all(|one| {
        let repeats = (0..=one).filter(|other| world.repeats(*other, one));
        repeats.map(|other| counts[other]).sum::<u8>() <= 1
    })
}

/// Only trouble could still happen, and somebody owns the partition: so it has done all its work.
fn ends_decided(protocol: &Protocol, state: &State) -> bool {
    let owned = state
        .broker
        .owner
        .is_some_and(|owner| state.consumers[owner].life == Life::Up);
    if !owned || usize::from(state.broker.committed.offset) == protocol.world.len() {
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
        }
    }

    fn condition(self) -> Holds {
        match self {
            Self::HeldAtTheEnd => |protocol, state| {
                finished(protocol, state) && state.broker.truth(&protocol.world).of.contains(&Record::Held)
            },
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
                    && !state.broker.truth(&protocol.world).of.contains(&Record::Held)
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
        }
    }
}

fn finished(protocol: &Protocol, state: &State) -> bool {
    usize::from(state.broker.committed.offset) == protocol.world.len()
}
