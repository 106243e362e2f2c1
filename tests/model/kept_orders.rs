//! With every rule in force, whatever operators order at whatever moment.

use crate::check::keeps_everything;
use crate::properties::Sight;
use crate::records::Record;
use crate::rules::Rules;
use crate::world::Class::{self, Idempotent, NonIdempotent};
use crate::world::{AA, Budget, Message, NO_TROUBLE, ONE, World};

/// After its first attempt, of which nobody knows whether it was applied.
const IN_DOUBT: Record = Record::InDoubt(1);

fn ordered(
    name: &'static str,
    (log, class, found): (&'static [Message], Class, Record),
    budget: Budget,
    sees: &'static [Sight],
) {
    let world = World {
        name,
        log,
        class,
        slots: 1,
        found,
        budget,
        sees,
    };
    keeps_everything(world, Rules::ALL);
}

#[test]
fn two_operators_and_two_deaths() {
    let budget = Budget {
        orders: 2,
        crashes: 2,
        lost_replies: 1,
        assignments: 2,
        ..NO_TROUBLE
    };
    let sees = &[
        Sight::EndedByWord,
        Sight::RanByWord,
        Sight::CarriedOutLater,
        Sight::TwoAnswered,
        Sight::AnswerLost,
    ];
    ordered(
        "two operators and two deaths",
        (ONE, NonIdempotent, IN_DOUBT),
        budget,
        sees,
    );
}

#[test]
fn two_operators_and_a_freeze_over_three_ownerships() {
    let budget = Budget {
        orders: 2,
        freezes: 1,
        crashes: 1,
        assignments: 2,
        ..NO_TROUBLE
    };
    let sees = &[
        Sight::EndedByWord,
        Sight::RanByWord,
        Sight::CarriedOutLater,
        Sight::TwoAnswered,
        Sight::AnswerLost,
        Sight::AbortedLate,
        Sight::Refused,
        Sight::ThirdOwnerFinishes,
    ];
    ordered(
        "two operators, a freeze and a death",
        (ONE, NonIdempotent, IN_DOUBT),
        budget,
        sees,
    );
}

#[test]
fn two_operators_and_revocations() {
    let moves = Budget {
        orders: 2,
        moves: 2,
        assignments: 2,
        ..NO_TROUBLE
    };
    let freeze = Budget {
        moves: 1,
        freezes: 1,
        ..moves
    };
    for (name, budget) in [
        ("two operators and two moves", moves),
        ("two operators, a move and a freeze", freeze),
    ] {
        let sees = &[
            Sight::EndedByWord,
            Sight::RanByWord,
            Sight::CaughtByDrain,
            Sight::CarriedOutLater,
            Sight::TwoAnswered,
            Sight::AnswerLost,
            Sight::ThirdOwnerFinishes,
        ];
        ordered(name, (ONE, NonIdempotent, IN_DOUBT), budget, sees);
    }
}

#[test]
fn two_operators_and_a_commit_without_an_answer() {
    let budget = Budget {
        orders: 2,
        lost_replies: 1,
        freezes: 1,
        assignments: 1,
        ..NO_TROUBLE
    };
    let sees = &[
        Sight::EndedByWord,
        Sight::RanByWord,
        Sight::TwoAnswered,
        Sight::AnswerLost,
        Sight::Refused,
    ];
    ordered(
        "two operators, a lost answer",
        (ONE, NonIdempotent, IN_DOUBT),
        budget,
        sees,
    );
}

#[test]
fn operators_about_what_is_due_by_itself() {
    for (name, class, sees) in [
        (
            "operators and a retry, not idempotent",
            NonIdempotent,
            &[Sight::EndedByWord, Sight::TwoAnswered, Sight::TurnedAway][..],
        ),
        (
            "operators and a retry, idempotent",
            Idempotent,
            &[Sight::EndedByWord, Sight::TwoAnswered, Sight::TurnedAway],
        ),
    ] {
        let budget = Budget {
            orders: 2,
            refusals: 1,
            crashes: 1,
            assignments: 1,
            ..NO_TROUBLE
        };
        ordered(name, (ONE, class, Record::Retry(1)), budget, sees);
    }
}

#[test]
fn an_operator_and_a_duplicate() {
    let budget = Budget {
        orders: 1,
        crashes: 1,
        freezes: 1,
        assignments: 2,
        ..NO_TROUBLE
    };
    let sees = &[
        Sight::EndedByWord,
        Sight::RanByWord,
        Sight::BehindSuppressed,
        Sight::HeldAtTheEnd,
        Sight::ThirdOwnerFinishes,
    ];
    ordered(
        "an operator and a duplicate",
        (AA, NonIdempotent, IN_DOUBT),
        budget,
        sees,
    );
}

#[test]
fn an_operator_and_a_trim() {
    let budget = Budget {
        orders: 1,
        trims: 1,
        crashes: 1,
        assignments: 1,
        ..NO_TROUBLE
    };
    let sees = &[
        Sight::EndedByWord,
        Sight::RanByWord,
        Sight::CarriedOutLater,
        Sight::Trimmed,
    ];
    ordered(
        "an operator and a trim",
        (AA, NonIdempotent, IN_DOUBT),
        budget,
        sees,
    );
}
