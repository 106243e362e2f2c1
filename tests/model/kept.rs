//! With every rule in force no world breaks an invariant.
//!
//! One world with everything in it would have far too many states. So each has two or three kinds of trouble, which
//! together are every pair that has something to do with one another, and the messages that matter to them.

use crate::check::keeps_everything;
use crate::properties::Sight;
use crate::records::Record;
use crate::rules::Rules;
use crate::world::Class::{Idempotent, NonIdempotent};
use crate::world::{AA, AB, ABA, ABBA_LATE, Budget, NO_TROUBLE, World};

#[test]
fn a_freeze_and_a_death_over_three_ownerships() {
    let world = World {
        name: "a freeze and a death, not idempotent",
        log: ABA,
        class: NonIdempotent,
        slots: 1,
        found: Record::None,
        budget: Budget {
            freezes: 1,
            crashes: 1,
            assignments: 2,
            ..NO_TROUBLE
        },
        sees: &[
            Sight::HeldAtTheEnd,
            Sight::Suppressed,
            Sight::AbortedLate,
            Sight::Refused,
            Sight::ThirdOwnerFinishes,
        ],
    };
    keeps_everything(world, Rules::ALL);
}

#[test]
fn the_same_where_attempts_may_be_repeated() {
    let world = World {
        name: "a freeze and a death, idempotent",
        log: ABA,
        class: Idempotent,
        slots: 1,
        found: Record::None,
        budget: Budget {
            freezes: 1,
            crashes: 1,
            assignments: 2,
            ..NO_TROUBLE
        },
        sees: &[
            Sight::Suppressed,
            Sight::AbortedLate,
            Sight::Refused,
            Sight::ThirdOwnerFinishes,
        ],
    };
    keeps_everything(world, Rules::ALL);
}

#[test]
fn two_freezes() {
    for (name, class) in [
        ("two freezes, not idempotent", NonIdempotent),
        ("two freezes, idempotent", Idempotent),
    ] {
        let world = World {
            name,
            log: AB,
            class,
            slots: 1,
            found: Record::None,
            budget: Budget {
                freezes: 2,
                assignments: 2,
                ..NO_TROUBLE
            },
            sees: &[Sight::AbortedLate, Sight::Refused, Sight::ThirdOwnerFinishes],
        };
        keeps_everything(world, Rules::ALL);
    }
}

#[test]
fn two_handlers_at_a_time_and_a_window_that_ends() {
    for (name, class) in [
        ("expiry and deaths, not idempotent", NonIdempotent),
        ("expiry and deaths, idempotent", Idempotent),
    ] {
        let world = World {
            name,
            log: ABBA_LATE,
            class,
            slots: 2,
            found: Record::None,
            budget: Budget {
                crashes: 2,
                assignments: 2,
                ..NO_TROUBLE
            },
            sees: &[Sight::Expired, Sight::Suppressed, Sight::ThirdOwnerFinishes],
        };
        keeps_everything(world, Rules::ALL);
    }
}

#[test]
fn two_handlers_at_a_time_and_a_freeze() {
    let world = World {
        name: "expiry and a freeze",
        log: ABBA_LATE,
        class: NonIdempotent,
        slots: 2,
        found: Record::None,
        budget: Budget {
            freezes: 1,
            assignments: 1,
            ..NO_TROUBLE
        },
        sees: &[
            Sight::Expired,
            Sight::HeldAtTheEnd,
            Sight::Suppressed,
            Sight::AbortedLate,
            Sight::Refused,
        ],
    };
    keeps_everything(world, Rules::ALL);
}

#[test]
fn a_revocation_and_a_freeze() {
    let world = World {
        name: "a revocation and a freeze",
        log: AB,
        class: NonIdempotent,
        slots: 1,
        found: Record::None,
        budget: Budget {
            freezes: 1,
            moves: 1,
            assignments: 2,
            ..NO_TROUBLE
        },
        sees: &[Sight::HeldAtTheEnd, Sight::Refused, Sight::ThirdOwnerFinishes],
    };
    keeps_everything(world, Rules::ALL);
}

#[test]
fn a_lost_answer_and_everything_around_it() {
    for (name, class) in [
        ("a lost answer, not idempotent", NonIdempotent),
        ("a lost answer, idempotent", Idempotent),
    ] {
        let world = World {
            name,
            log: AB,
            class,
            slots: 1,
            found: Record::None,
            budget: Budget {
                freezes: 1,
                crashes: 1,
                lost_replies: 1,
                assignments: 2,
                ..NO_TROUBLE
            },
            sees: &[Sight::AbortedLate, Sight::Refused, Sight::ThirdOwnerFinishes],
        };
        keeps_everything(world, Rules::ALL);
    }
}

#[test]
fn a_trim_and_everything_around_it() {
    for (name, budget, sees) in [
        (
            "a trim and a freeze",
            Budget {
                freezes: 1,
                trims: 1,
                assignments: 1,
                ..NO_TROUBLE
            },
            &[Sight::Trimmed, Sight::HeldAtTheEnd, Sight::Refused][..],
        ),
        (
            "a trim and two deaths",
            Budget {
                crashes: 2,
                trims: 1,
                assignments: 2,
                ..NO_TROUBLE
            },
            &[Sight::Trimmed, Sight::HeldAtTheEnd, Sight::ThirdOwnerFinishes],
        ),
    ] {
        let world = World {
            name,
            log: ABA,
            class: NonIdempotent,
            slots: 1,
            found: Record::None,
            budget,
            sees,
        };
        keeps_everything(world, Rules::ALL);
    }
    let world = World {
        name: "a trim and the end of the window",
        log: ABBA_LATE,
        class: Idempotent,
        slots: 2,
        found: Record::None,
        budget: Budget {
            crashes: 1,
            trims: 1,
            assignments: 1,
            ..NO_TROUBLE
        },
        sees: &[Sight::Trimmed, Sight::Expired, Sight::Suppressed],
    };
    keeps_everything(world, Rules::ALL);
}

/// Held for another attempt, and what goes wrong meanwhile.
fn held(
    name: &'static str,
    log: &'static [crate::world::Message],
    class: crate::world::Class,
    budget: Budget,
) {
    let world = World {
        name,
        log,
        class,
        slots: 1,
        found: Record::None,
        budget: Budget {
            refusals: 1,
            assignments: 2,
            ..budget
        },
        sees: &[Sight::RanLater],
    };
    keeps_everything(world, Rules::ALL);
}

#[test]
fn a_message_is_held_for_another_attempt_and_its_owner_dies() {
    let budget = Budget {
        crashes: 2,
        ..NO_TROUBLE
    };
    held("held, and two deaths, not idempotent", AA, NonIdempotent, budget);
    held("held, and two deaths, idempotent", AA, Idempotent, budget);
}

#[test]
fn a_message_is_held_for_another_attempt_and_the_partition_moves() {
    let budget = Budget {
        moves: 2,
        ..NO_TROUBLE
    };
    held("held, and two moves", AA, NonIdempotent, budget);
    let budget = Budget {
        moves: 1,
        freezes: 1,
        ..NO_TROUBLE
    };
    held("held, a move and a freeze", AA, NonIdempotent, budget);
}

#[test]
fn a_message_is_held_for_another_attempt_and_the_log_is_trimmed() {
    let budget = Budget {
        trims: 1,
        crashes: 1,
        ..NO_TROUBLE
    };
    held("held, a trim and a death", AA, NonIdempotent, budget);
}
