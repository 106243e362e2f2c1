//! Each rule about operators, left out: the invariant that falls, and the story by which it is known.

use std::collections::BTreeSet;

use crate::broken::falls;
use crate::check::{fallen, keeps_everything};
use crate::orders::Order;
use crate::properties::{ANSWERED, AUDITED, ENDS, ONE_EFFECT, ONE_OUTCOME, PERMITTED, STANDS};
use crate::protocol::Action::{self, *};
use crate::records::Record;
use crate::records::Verdict::{self, Done, Run};
use crate::rules::Rules;
use crate::world::Class::{self, Idempotent, NonIdempotent};
use crate::world::{AA, Budget, Message, NO_TROUBLE, ONE, World};

/// An operator who knows of one attempt.
const fn order(by: u8, verdict: Verdict) -> Order {
    Order {
        by,
        offset: 0,
        verdict,
        known: 1,
        is_decided: false,
    }
}

const fn orders(c: usize, by: u8, verdict: Verdict) -> Action {
    Order(c, order(by, verdict))
}

const fn decides(c: usize, by: u8, verdict: Verdict) -> Action {
    Decide(c, order(by, verdict))
}

const ONE_ORDER: Budget = Budget {
    orders: 1,
    ..NO_TROUBLE
};
const ORDER_AND_DEATH: Budget = Budget {
    crashes: 1,
    assignments: 1,
    ..ONE_ORDER
};

/// What is held of the first message is there at the start.
const fn world(
    name: &'static str,
    (log, class, found): (&'static [Message], Class, Record),
    budget: Budget,
) -> World {
    World {
        name,
        log,
        class,
        slots: 1,
        found,
        budget,
        sees: &[],
    }
}

const IN_DOUBT: (&[Message], Class, Record) = (ONE, NonIdempotent, Record::InDoubt(1));

/// A verdict written by itself, without the commit point, meets no generation: a frozen owner's is taken after the next
/// one has read the changelog.
#[test]
fn verdict_with_its_group() {
    let rules = Rules {
        verdict_with_its_group: false,
        ..Rules::ALL
    };
    let budget = Budget {
        freezes: 1,
        assignments: 1,
        ..ONE_ORDER
    };
    // It is answered, and nobody carries it out.
    let unheard = world("a verdict of a frozen owner", IN_DOUBT, budget);
    falls(
        unheard,
        rules,
        ENDS,
        &[
            Expel(0),
            decides(0, 0, Run),
            Check(0),
            Assign(1),
            TakeTarget(1),
            Commit(0),
            Commit(1),
        ],
    );
    // One operator says done, as another could tell in the changelog; the owner that does not know says yes to run.
    let two = Budget { orders: 2, ..budget };
    let unread = world("done, and it runs", IN_DOUBT, two);
    let story = [
        TakeTarget(1),
        orders(0, 1, Done),
        Commit(0),
        decides(1, 0, Run),
        Finish(1, 0),
    ];
    falls(unread, rules, ONE_EFFECT, &story);
    falls(unread, rules, PERMITTED, &[TakeTarget(1), Commit(0), Commit(1)]);
}

/// The operator has an answer, and the process dies.
#[test]
fn answered_when_durable() {
    let rules = Rules {
        answered_when_durable: false,
        ..Rules::ALL
    };
    let world = world("answered before it is durable", IN_DOUBT, ORDER_AND_DEATH);
    falls(world, rules, ANSWERED, &[orders(0, 0, Run), decides(0, 0, Run)]);
}

/// What nobody can read in the audit was done. Where attempts are begun, the begin takes the act along.
#[test]
fn carried_out_when_durable() {
    let rules = Rules {
        carried_out_when_durable: false,
        ..Rules::ALL
    };
    let held = (ONE, Idempotent, Record::Retry(1));
    let idempotent = world("carried out before it is durable", held, ORDER_AND_DEATH);
    falls(
        idempotent,
        rules,
        AUDITED,
        &[orders(0, 0, Run), decides(0, 0, Run), Start(0, 0)],
    );
    let begun = world("the same where it is begun", IN_DOUBT, ORDER_AND_DEATH);
    assert_eq!(fallen(begun, rules), BTreeSet::new());
}

/// The answer was given, and then the owner dies: nobody else knows of it but the changelog.
#[test]
fn found_verdict_is_carried_out() {
    let rules = Rules {
        found_verdict_is_carried_out: false,
        ..Rules::ALL
    };
    let world = world("a verdict is found and left", IN_DOUBT, ORDER_AND_DEATH);
    falls(
        world,
        rules,
        ENDS,
        &[decides(0, 0, Run), Commit(0), Crash(0), Restored(1)],
    );
}

/// The ordered attempt has its effect, the owner dies, and the next one finds the verdict still in the record.
#[test]
fn verdict_is_spent() {
    let rules = Rules {
        verdict_is_spent: false,
        ..Rules::ALL
    };
    let world = world("a verdict that permits for ever", IN_DOUBT, ORDER_AND_DEATH);
    falls(
        world,
        rules,
        ONE_EFFECT,
        &[
            decides(0, 0, Run),
            Commit(0),
            Finish(0, 0),
            Crash(0),
            Restored(1),
            Finish(1, 0),
        ],
    );
    falls(world, rules, PERMITTED, &[Crash(0), Restored(1), Commit(1)]);
}

/// Two operators know of one attempt, or one who had no answer says it again: the second order would be about an attempt
/// that nobody has looked at.
#[test]
fn tied_to_attempts() {
    let rules = Rules {
        tied_to_attempts: false,
        ..Rules::ALL
    };
    let budget = Budget {
        orders: 2,
        ..ORDER_AND_DEATH
    };
    let world = world("an order about any attempt", IN_DOUBT, budget);
    let story = [
        orders(0, 0, Run),
        Finish(0, 0),
        Crash(0),
        Due(1, 0),
        orders(1, 1, Run),
        Finish(1, 0),
    ];
    falls(world, rules, ONE_EFFECT, &story);
    falls(world, rules, PERMITTED, &[]);
}

/// The same where the record says one attempt again after the second.
#[test]
fn attempts_go_on() {
    let rules = Rules {
        attempts_go_on: false,
        ..Rules::ALL
    };
    let budget = Budget {
        orders: 2,
        ..ORDER_AND_DEATH
    };
    let world = world("an attempt that is not counted", IN_DOUBT, budget);
    let story = [
        orders(0, 0, Run),
        Finish(0, 0),
        Crash(0),
        Due(1, 0),
        orders(1, 1, Run),
        Finish(1, 0),
    ];
    falls(world, rules, ONE_EFFECT, &story);
}

/// What is held behind its token runs, and the message before it may have been applied.
#[test]
fn behind_takes_no_verdict() {
    let rules = Rules {
        behind_takes_no_verdict: false,
        ..Rules::ALL
    };
    let held = (AA, NonIdempotent, Record::InDoubt(1));
    let world = world("a verdict about a duplicate", held, ONE_ORDER);
    let behind = Order {
        offset: 1,
        known: 0,
        ..order(0, Run)
    };
    falls(
        world,
        rules,
        ONE_EFFECT,
        &[Take(0), Commit(0), Order(0, behind), Commit(0), Finish(0, 1)],
    );
}

/// While its bytes are read the message becomes due, and runs.
#[test]
fn looked_at_again() {
    let rules = Rules {
        looked_at_again: false,
        ..Rules::ALL
    };
    let held = (ONE, NonIdempotent, Record::Retry(1));
    let world = world("decided without a second look", held, ONE_ORDER);
    let story = [
        orders(0, 0, Run),
        Due(0, 0),
        Start(0, 0),
        decides(0, 0, Run),
        Finish(0, 0),
        Finish(0, 0),
    ];
    falls(world, rules, ONE_EFFECT, &story);
    let story = [orders(0, 0, Done), Due(0, 0), Start(0, 0), decides(0, 0, Done)];
    falls(world, rules, ONE_OUTCOME, &story);
}

/// Two operators at once. The second look stands between them; without it, this rule does.
#[test]
fn one_order_at_a_time_is_a_second_line() {
    let two = Budget {
        orders: 2,
        ..NO_TROUBLE
    };
    let world = world("two orders at once", IN_DOUBT, two);
    let rules = Rules {
        one_order_at_a_time: false,
        ..Rules::ALL
    };
    keeps_everything(world, rules);
    let look = Rules {
        looked_at_again: false,
        ..Rules::ALL
    };
    assert_eq!(fallen(world, look), BTreeSet::new());
    let neither = Rules {
        looked_at_again: false,
        ..rules
    };
    falls(
        world,
        neither,
        STANDS,
        &[
            orders(0, 0, Run),
            orders(0, 1, Run),
            decides(0, 0, Run),
            Commit(0),
            decides(0, 1, Run),
            Commit(0),
        ],
    );
}
