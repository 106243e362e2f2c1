//! With every rule in force no copy has a hole, whoever writes to it and whoever stands still meanwhile.

use stateright::Property;

use crate::check::keeps;
use crate::copies::Frame::{self, Again, Put, Remove};
use crate::copies::{Copies, CopyBudget, CopyState, CopyWorld, Sight};
use crate::copies_rules::CopyRules;

/// Inv 8.
pub(crate) const WHOLE: &str = "a copy has everything up to where it stands";
/// Inv 5, 6 and 8.
pub(crate) const SERVED: &str =
    "what is served has all that was restored and acknowledged, and nothing older";

/// Begun, ended, and another token; written again, so that the first can be deleted; and what follows.
pub(crate) const LOG: &[Frame] = &[Put(0), Remove(0), Put(1), Again, Put(0)];

const RESUMED: Sight = ("seen: a restore goes on where the copy stood", |_, state| {
    state.seen.resumed
});
const FORGOTTEN: Sight = ("seen: a copy outside the log is forgotten", |_, state| {
    state.seen.forgotten
});
const LATE: Sight = ("seen: a group is applied to a copy that has left", |_, state| {
    state.seen.late
});
const KEPT_UP: Sight = ("seen: a copy is kept up", |_, state| state.seen.kept_up);
const SHED: Sight = (
    "seen: the standby is turned away with what it has read",
    |_, state| state.seen.shed,
);
const SWEPT: Sight = ("seen: a copy is swept", |_, state| state.seen.swept);

/// The invariants, and what has to be seen in that world.
pub(crate) fn properties(world: &CopyWorld) -> Vec<Property<Copies>> {
    let invariants = [
        Property::always(WHOLE, |model: &Copies, state: &CopyState| model.is_whole(state)),
        Property::always(SERVED, |model: &Copies, state: &CopyState| {
            model.is_served_whole(state)
        }),
    ];
    let sights = world.sees.iter().map(|(name, is)| Property::sometimes(name, *is));
    invariants.into_iter().chain(sights).collect()
}

fn kept(name: &'static str, keeps_copies: bool, budget: CopyBudget, sees: &'static [Sight]) {
    let world = CopyWorld {
        name,
        log: LOG,
        keeps: keeps_copies,
        budget,
        sees,
    };
    let rules = CopyRules::ALL;
    keeps(name, &Copies { world, rules });
}

#[test]
fn a_copy_that_is_kept_up_comes_and_goes() {
    let budget = CopyBudget {
        takes: 3,
        sweeps: 1,
        crashes: 0,
    };
    let sees = &[RESUMED, FORGOTTEN, LATE, KEPT_UP, SHED];
    kept("a copy is kept up", true, budget, sees);
}

#[test]
fn a_copy_that_is_left_is_swept() {
    let budget = CopyBudget {
        takes: 3,
        sweeps: 2,
        crashes: 0,
    };
    let sees = &[RESUMED, FORGOTTEN, LATE, SWEPT];
    kept("a copy is swept", false, budget, sees);
}

#[test]
fn a_copy_after_a_kill() {
    for (name, keeps_copies, sees) in [
        (
            "a copy is kept up, and its process killed",
            true,
            &[RESUMED, KEPT_UP, SHED][..],
        ),
        (
            "a copy is swept, and its process killed",
            false,
            &[RESUMED, SWEPT],
        ),
    ] {
        let budget = CopyBudget {
            takes: 2,
            sweeps: 1,
            crashes: 2,
        };
        kept(name, keeps_copies, budget, sees);
    }
}
