//! Each rule, left out: the invariant that falls, and the story by which it is known.
//!
//! A story is the shortest one there is. Its main steps are named in the test, so that it is this story and not some
//! other that breaks the invariant; `--nocapture` prints all of it. Three rules turn out to be second lines: without
//! one of them nothing falls as long as the first line stands, and the tests show both halves of that.

use std::collections::BTreeSet;

use crate::check::{fallen, falls_of, keeps_everything, shortest};
use crate::properties::{DECIDED, ENDS, FENCES, IN_DOUBT, ONE_EFFECT, ONE_OUTCOME, SUPPRESSED};
use crate::protocol::Action::{self, *};
use crate::protocol::Protocol;
use crate::records::Record;
use crate::rules::Rules;
use crate::world::Class::{self, Idempotent, NonIdempotent};
use crate::world::{AA, AB, ABBA_LATE, Budget, Message, NO_TROUBLE, ONE, World};

const FREEZE: Budget = Budget {
    freezes: 1,
    assignments: 1,
    ..NO_TROUBLE
};
const DEATH: Budget = Budget {
    crashes: 1,
    assignments: 1,
    ..NO_TROUBLE
};

/// Demands that this invariant falls, by these steps in this order with others between them.
pub(crate) fn falls(world: World, rules: Rules, invariant: &'static str, by: &[Action]) {
    let with_every_rule = Protocol {
        world,
        rules: Rules::ALL,
    };
    falls_of(
        world.name,
        &Protocol { world, rules },
        invariant,
        by,
        &with_every_rule,
    );
}

const THREE_OWNERS: Budget = Budget {
    freezes: 1,
    crashes: 1,
    assignments: 2,
    ..NO_TROUBLE
};
const REVOCATION: Budget = Budget {
    moves: 1,
    assignments: 1,
    ..NO_TROUBLE
};
const LOST_ANSWER: Budget = Budget {
    lost_replies: 1,
    ..NO_TROUBLE
};

/// One handler at a time.
const fn world(name: &'static str, log: &'static [Message], class: Class, budget: Budget) -> World {
    World {
        name,
        log,
        class,
        slots: 1,
        found: Record::None,
        budget,
        sees: &[],
    }
}

/// Schedule 2, first half: the member has joined again, its metadata is fresh, and its old assignment still writes.
#[test]
fn gate_before_unassign() {
    let rules = Rules {
        gate_before_unassign: false,
        ..Rules::ALL
    };
    let lost = world("a lost partition, gate cleared late", ONE, NonIdempotent, FREEZE);
    let story = [
        Expel(0),
        Join(0),
        Assign(1),
        Check(0),
        TakeTarget(1),
        Commit(0),
        Start(0, 0),
        Start(1, 0),
    ];
    falls(lost, rules, ONE_EFFECT, &story);
    let revoked = world(
        "a revoked partition, gate cleared late",
        ONE,
        Idempotent,
        REVOCATION,
    );
    let story = [
        Start(0, 0),
        Release(0),
        Assign(1),
        Check(0),
        Commit(0),
        Start(1, 0),
        Commit(1),
    ];
    falls(revoked, rules, ONE_OUTCOME, &story);
    // The zombie's commit point is the last one that the broker hears, and nobody has a reason to mend it.
    let left = world(
        "a lost partition, commit point left behind",
        ONE,
        Idempotent,
        THREE_OWNERS,
    );
    falls(left, rules, ENDS, &[Join(0), Assign(1), Commit(0), Commit(1)]);
}

/// Schedule 2, the order: the gate was asked, then the partition was lost and the member joined, then metadata is taken.
#[test]
fn metadata_before_gate() {
    let rules = Rules {
        metadata_before_gate: false,
        ..Rules::ALL
    };
    let world = world("gate asked before metadata", ONE, Idempotent, FREEZE);
    let story = [
        Check(0),
        Join(0),
        Assign(1),
        TakeTarget(1),
        SendOffsets(0),
        Commit(0),
        Start(1, 0),
        Commit(1),
    ];
    falls(world, rules, ONE_OUTCOME, &story);
}

/// Schedule 2, second half: the client says generation -1, and the broker does not check that.
#[test]
fn refuse_minus_one() {
    let rules = Rules {
        refuse_minus_one: false,
        ..Rules::ALL
    };
    let world = world("generation -1", ONE, NonIdempotent, FREEZE);
    let story = [
        HearExpelled(0),
        Check(0),
        Assign(1),
        TakeTarget(1),
        Commit(0),
        Start(0, 0),
        Start(1, 0),
    ];
    falls(world, rules, ONE_EFFECT, &story);
}

/// Schedule 1: a begin without offsets meets no generation.
#[test]
fn offsets_in_every_transaction() {
    let rules = Rules {
        offsets_in_every_transaction: false,
        ..Rules::ALL
    };
    let world = world("begun without a commit point", ONE, NonIdempotent, FREEZE);
    let story = [
        Expel(0),
        Check(0),
        Assign(1),
        TakeTarget(1),
        Commit(0),
        Start(0, 0),
        Start(1, 0),
    ];
    falls(world, rules, ONE_EFFECT, &story);
}

/// Schedule 11: the resource is to refuse a frozen handler by its fence, and both owners show the same one.
#[test]
fn fence_before_handler() {
    let rules = Rules {
        fence_before_handler: false,
        ..Rules::ALL
    };
    let budget = Budget {
        freezes: 1,
        moves: 1,
        assignments: 2,
        ..NO_TROUBLE
    };
    let world = world("a fence that nobody else knows", ONE, Idempotent, budget);
    falls(
        world,
        rules,
        FENCES,
        &[Start(1, 0), Freeze(1), Expel(1), Assign(0), Start(0, 0)],
    );
    // And nothing else falls: what guards the records is the generation in every transaction. Where a handler is begun,
    // its fence is durable with the begin, and even this does not fall.
    let idempotent = self::world("no fence first, idempotent", AB, Idempotent, THREE_OWNERS);
    assert_eq!(fallen(idempotent, rules), BTreeSet::from([FENCES]));
    let begun = self::world("no fence first, not idempotent", AB, NonIdempotent, THREE_OWNERS);
    assert_eq!(fallen(begun, rules), BTreeSet::new());
}

/// Schedule 3: an open transaction of a dead peer hides what the second owner recorded from the third.
#[test]
fn target_is_high_watermark() {
    let rules = Rules {
        target_is_high_watermark: false,
        ..Rules::ALL
    };
    let one = world(
        "a restore up to the last stable offset",
        ONE,
        NonIdempotent,
        THREE_OWNERS,
    );
    let story = [
        Produce(0),
        Freeze(0),
        Assign(1),
        Commit(1),
        Start(1, 0),
        Crash(1),
        TakeTarget(1),
        Restored(1),
        Start(1, 0),
    ];
    falls(one, rules, ONE_EFFECT, &story);
    let two = World {
        slots: 2,
        ..world(
            "the same, with an outcome above the commit point",
            AB,
            Idempotent,
            THREE_OWNERS,
        )
    };
    let story = [
        Produce(0),
        Freeze(0),
        Finish(1, 1),
        Commit(1),
        Crash(1),
        Restored(1),
        Finish(1, 1),
        Commit(1),
    ];
    falls(two, rules, ONE_OUTCOME, &story);
}

/// Schedule 6: offset 2 was suppressed as a duplicate of 1, 0 is slow, and 3 has moved partition time past the window.
#[test]
fn restored_time() {
    let rules = Rules {
        restored_time: false,
        ..Rules::ALL
    };
    let world = World {
        slots: 2,
        ..world("the commit carries the latest time", ABBA_LATE, Idempotent, DEATH)
    };
    falls(
        world,
        rules,
        ONE_OUTCOME,
        &[
            Finish(0, 1),
            Commit(0),
            Crash(0),
            Restored(1),
            Start(1, 2),
            Commit(1),
        ],
    );
}

/// Schedule 12: what has no slot is begun too.
#[test]
fn slot_wise_begin() {
    let rules = Rules {
        slot_wise_begin: false,
        ..Rules::ALL
    };
    let world = world("begun for the whole batch", AB, NonIdempotent, DEATH);
    falls(world, rules, IN_DOUBT, &[Take(0), Take(0), Commit(0)]);
}

/// Schedule 9: a commit has no answer, everything is read again, and the attempt that runs gets a second one beside it.
#[test]
fn keep_what_runs() {
    let rules = Rules {
        keep_what_runs: false,
        ..Rules::ALL
    };
    let world = world("a new producer forgets what runs", ONE, Idempotent, LOST_ANSWER);
    let story = [
        Start(0, 0),
        LoseReply(0, false),
        Recover(0),
        Start(0, 0),
        Commit(0),
        Commit(0),
    ];
    falls(world, rules, ONE_OUTCOME, &story);
}

/// The other half of a commit of unknown fate.
#[test]
fn look_up_unknown_fate() {
    let rules = Rules {
        look_up_unknown_fate: false,
        ..Rules::ALL
    };
    let world = world("made again without a look", ONE, NonIdempotent, LOST_ANSWER);
    falls(
        world,
        rules,
        ONE_OUTCOME,
        &[LoseReply(0, true), Recover(0), Commit(0)],
    );
}

/// Schedule 4, with our own hand: what is held exists in the changelog alone, and its head is deleted.
#[test]
fn rewrite_before_trim() {
    let rules = Rules {
        rewrite_before_trim: false,
        ..Rules::ALL
    };
    let budget = Budget { trims: 1, ..DEATH };
    let world = world("trimmed without writing again", ONE, NonIdempotent, budget);
    falls(
        world,
        rules,
        DECIDED,
        &[Crash(0), Restored(1), Commit(1), DeleteHead(1)],
    );
    falls(
        world,
        rules,
        ONE_EFFECT,
        &[Finish(0, 0), DeleteHead(0), Crash(0), Restored(1), Finish(1, 0)],
    );
}

/// Schedule 18: a duplicate of what is open disappears.
#[test]
fn open_does_not_suppress() {
    let rules = Rules {
        open_does_not_suppress: false,
        ..Rules::ALL
    };
    let world = world("an open token suppresses", AA, NonIdempotent, DEATH);
    falls(world, rules, SUPPRESSED, &[Take(0), Take(0)]);
    falls(world, rules, DECIDED, &[Crash(0), Restored(1), Commit(1)]);
}

/// What is held for another attempt is open, as what is begun is.
#[test]
fn held_is_open() {
    let rules = Rules {
        held_is_open: false,
        ..Rules::ALL
    };
    let budget = Budget {
        refusals: 1,
        ..NO_TROUBLE
    };
    let world = world("what is held for later is not open", AA, NonIdempotent, budget);
    falls(
        world,
        rules,
        ONE_EFFECT,
        &[Refuse(0, 0), Due(0, 0), Finish(0, 1), Finish(0, 0)],
    );
    falls(world, rules, ONE_OUTCOME, &[Refuse(0, 0), Due(0, 0)]);
}

/// What was held is nowhere else: a drain that takes its begin back must not take the message with it.
#[test]
fn unbegun_stays_held() {
    let rules = Rules {
        unbegun_stays_held: false,
        ..Rules::ALL
    };
    let budget = Budget {
        refusals: 1,
        moves: 1,
        assignments: 1,
        ..NO_TROUBLE
    };
    let world = world("un-begun and gone", ONE, NonIdempotent, budget);
    falls(world, rules, DECIDED, &[Refuse(0, 0), Due(0, 0), Revoke(0)]);
}

/// A held message whose attempt was begun by somebody who is gone may have been applied.
#[test]
fn begun_again_is_in_doubt() {
    let rules = Rules {
        begun_again_is_in_doubt: false,
        ..Rules::ALL
    };
    let budget = Budget { refusals: 1, ..DEATH };
    let world = world("begun again and run again", ONE, NonIdempotent, budget);
    falls(
        world,
        rules,
        ONE_EFFECT,
        &[
            Refuse(0, 0),
            Due(0, 0),
            Finish(0, 0),
            Crash(0),
            Due(1, 0),
            Finish(1, 0),
        ],
    );
}

/// Whatever the committed offset waits for is below the target as well: a transaction whose offsets were accepted before
/// the partition changed hands had produced its frames before that. So reading the committed offset too early costs
/// redeliveries. Without the target, this rule is what stands between two owners.
#[test]
fn stable_offsets_are_a_second_line() {
    let rules = Rules {
        stable_offsets: false,
        ..Rules::ALL
    };
    second_line(rules);
    let world = world("neither stable offsets nor the target", AB, NonIdempotent, FREEZE);
    let target = Rules {
        target_is_high_watermark: false,
        ..Rules::ALL
    };
    let neither = Rules {
        stable_offsets: false,
        ..target
    };
    assert_eq!(shortest(world, target, ONE_EFFECT), None);
    let story = [
        SendOffsets(0),
        Freeze(0),
        Assign(1),
        TakeTarget(1),
        Commit(0),
        Start(0, 0),
        Start(1, 0),
    ];
    falls(world, neither, ONE_EFFECT, &story);
}

/// For the same reason the order does not matter while the target is the high watermark. Up to the last stable offset,
/// it does: the offset that is read later lies past what was restored.
#[test]
fn offsets_before_target_is_a_second_line() {
    let rules = Rules {
        offsets_before_target: false,
        ..Rules::ALL
    };
    second_line(rules);
    let world = world("the target first, and too low", AA, Idempotent, REVOCATION);
    let target = Rules {
        target_is_high_watermark: false,
        ..Rules::ALL
    };
    let both = Rules {
        offsets_before_target: false,
        ..target
    };
    assert_eq!(shortest(world, target, ONE_OUTCOME), None);
    let story = [
        SendOffsets(0),
        Assign(1),
        TakeTarget(1),
        Commit(0),
        Restored(1),
        Start(1, 1),
        Commit(1),
    ];
    falls(world, both, ONE_OUTCOME, &story);
}

/// The changelog does not need the barrier: a transaction of the earlier assignment is either below the target, or its
/// generation is an old one. The copy on the disk needs it, to which groups are applied in their order: that is the
/// other model.
#[test]
fn the_barrier_is_for_the_copy() {
    second_line(Rules {
        barrier: false,
        ..Rules::ALL
    });
}

/// Nothing falls without this rule.
fn second_line(rules: Rules) {
    let moved = Budget {
        freezes: 1,
        moves: 1,
        assignments: 2,
        ..NO_TROUBLE
    };
    keeps_everything(
        world(
            "without a second line, not idempotent",
            AB,
            NonIdempotent,
            THREE_OWNERS,
        ),
        rules,
    );
    keeps_everything(
        world("without a second line, idempotent", AA, Idempotent, moved),
        rules,
    );
}
