//! Each rule about copies, left out: the invariant that falls, and the story by which it is known.

use crate::check::{falls_of, keeps};
use crate::copies::Deed::{self, *};
use crate::copies::{Copies, CopyBudget, CopyWorld};
use crate::copies_kept::{LOG, SERVED, WHOLE};
use crate::copies_rules::CopyRules;

const QUIET: CopyBudget = CopyBudget {
    takes: 2,
    sweeps: 0,
    crashes: 0,
};

const fn world(name: &'static str, keeps_copies: bool, budget: CopyBudget) -> CopyWorld {
    CopyWorld {
        name,
        log: LOG,
        keeps: keeps_copies,
        budget,
        sees: &[],
    }
}

fn falls(world: CopyWorld, rules: CopyRules, invariant: &'static str, by: &[Deed]) {
    let with_every_rule = Copies {
        world,
        rules: CopyRules::ALL,
    };
    falls_of(
        world.name,
        &Copies { world, rules },
        invariant,
        by,
        &with_every_rule,
    );
}

/// What it has read of a partition is written over what the owner has made of it since.
#[test]
fn the_standby_asks() {
    let rules = CopyRules {
        the_standby_asks: false,
        ..CopyRules::ALL
    };
    let world = world("the standby does not ask", true, QUIET);
    falls(world, rules, SERVED, &[Keep, Take, Restored, Ask, KeepUp]);
}

/// The restorer looks where the copy stands, then the standby writes.
#[test]
fn the_restorer_waits() {
    let rules = CopyRules {
        the_restorer_waits: false,
        ..CopyRules::ALL
    };
    let world = world("the restorer does not wait", true, QUIET);
    falls(world, rules, SERVED, &[Ask, Take, Restore, Restored, KeepUp]);
}

/// A group of the last assignment is applied over what the standby has read meanwhile.
#[test]
fn settled_first() {
    let rules = CopyRules {
        settled_first: false,
        ..CopyRules::ALL
    };
    let world = world("kept up before the journal has settled", true, QUIET);
    falls(
        world,
        rules,
        WHOLE,
        &[Leave, Left, Commit, Keep, KeepUp, Apply(0), KeepUp],
    );
}

/// A reading that nobody wants any more writes until it notices.
#[test]
fn what_is_read_is_not_free() {
    let rules = CopyRules {
        what_is_read_is_not_free: false,
        ..CopyRules::ALL
    };
    let world = world("kept up or swept while it is read", true, QUIET);
    falls(world, rules, WHOLE, &[Restore, Leave, Keep, KeepUp, Restored]);
}

/// Assigned to oneself again: the copy is read before the last group of the earlier assignment is in it.
#[test]
fn a_restore_settles() {
    let rules = CopyRules {
        a_restore_settles: false,
        ..CopyRules::ALL
    };
    let world = world("restored before the journal has settled", false, QUIET);
    falls(world, rules, SERVED, &[Commit, Leave, Take, Restored, Apply(0)]);
}

/// The standby goes on where it stands, and the copy below that is gone.
#[test]
fn a_copy_has_not_left() {
    let rules = CopyRules {
        a_copy_has_not_left: false,
        ..CopyRules::ALL
    };
    let budget = CopyBudget { sweeps: 1, ..QUIET };
    let world = world("a copy that is kept up is swept", true, budget);
    falls(world, rules, WHOLE, &[KeepUp, Sweep, Clear, KeepUp]);
}

/// A process stood still with a group on its way, and its copy was swept before the board of copies knew of that.
#[test]
fn no_part_of_a_copy() {
    let rules = CopyRules {
        no_part_of_a_copy: false,
        ..CopyRules::ALL
    };
    let budget = CopyBudget { sweeps: 1, ..QUIET };
    let world = world("a late group makes a copy", false, budget);
    falls(
        world,
        rules,
        WHOLE,
        &[Write, Leave, Commit, Sweep, Clear, Apply(0)],
    );
}

/// The restorer has looked where the copy stands, and the copy is cleared under it.
#[test]
fn nobody_comes_while_it_deletes() {
    let rules = CopyRules {
        nobody_comes_while_it_deletes: false,
        ..CopyRules::ALL
    };
    let budget = CopyBudget { sweeps: 1, ..QUIET };
    let world = world("taken while the sweep deletes", false, budget);
    falls(
        world,
        rules,
        WHOLE,
        &[Leave, Sweep, Take, Restore, Clear, Restored],
    );
    falls(world, rules, SERVED, &[Leave, Sweep, Take, Clear]);
}

/// A record was removed in the part of the log that is gone.
#[test]
fn begun_anew_outside_the_log() {
    let rules = CopyRules {
        begun_anew_outside_the_log: false,
        ..CopyRules::ALL
    };
    let world = world("resumed from before the log", false, QUIET);
    falls(
        world,
        rules,
        SERVED,
        &[Restored, Trim(4), Take, Restore, Restored],
    );
}

/// The store says that it has a group, and lacks the one before.
#[test]
fn applied_in_order() {
    let rules = CopyRules {
        applied_in_order: false,
        ..CopyRules::ALL
    };
    let world = world("applied out of order", false, QUIET);
    falls(world, rules, WHOLE, &[Commit, Commit, Apply(1)]);
}

/// What was acknowledged is looked for, and not found.
#[test]
fn applied_before_acknowledged() {
    let rules = CopyRules {
        applied_before_acknowledged: false,
        ..CopyRules::ALL
    };
    let world = world("acknowledged before it is applied", false, QUIET);
    falls(world, rules, SERVED, &[Commit]);
}

/// A kill leaves the position of later records with the earlier ones.
#[test]
fn position_with_its_records() {
    let rules = CopyRules {
        position_with_its_records: false,
        ..CopyRules::ALL
    };
    let budget = CopyBudget { crashes: 1, ..QUIET };
    let world = world("a position without its records", false, budget);
    falls(world, rules, WHOLE, &[Restored, Flush, Apply(0), Crash]);
}

/// Whatever the journal writes to late is not made a copy of again; and what is not swept has nothing to be made of. Either
/// of the two is enough once the board of copies knows that the assignment is over.
#[test]
fn unsettled_is_not_swept_is_a_second_line() {
    let rules = CopyRules {
        unsettled_is_not_swept: false,
        ..CopyRules::ALL
    };
    let budget = CopyBudget { sweeps: 1, ..QUIET };
    let world = world("what is unsettled is swept", false, budget);
    keeps(world.name, &Copies { world, rules });
}

/// The partition has come and gone, and then the standby writes what it had read before: the copy goes back to there, and
/// on from there, and costs the reading again. It would be a hole only where the standby did not go on from what it wrote.
#[test]
fn one_turn_is_a_second_line() {
    let rules = CopyRules {
        one_turn: false,
        ..CopyRules::ALL
    };
    let budget = CopyBudget { takes: 3, ..QUIET };
    let world = world("read before it came, written after it went", true, budget);
    keeps(world.name, &Copies { world, rules });
}
