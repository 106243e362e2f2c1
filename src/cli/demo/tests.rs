//! The books of the demo: they balance for a good run, and each fault put into one is found.

use super::books::*;
use super::child::Books;
use super::orders::Order;
use super::shop::Effect;
use super::stopped::{InDoubt, Outcome, Stopped};
use super::{PARTITIONS, SLOTS};
use crate::accounts::Account;

const GOOD: &str = "order-a";
const DOUBTFUL: &str = "order-b";
const BAD: &str = "order-c";

fn order(id: &str) -> Order {
    Order {
        id: id.into(),
        customer: "customer-1".into(),
        cents: if id == BAD { 0 } else { 5 },
    }
}

fn sent(id: &str, offset: i64) -> Sent {
    Sent {
        order: order(id),
        token: format!("token of {id}"),
        partition: 1,
        offset,
    }
}

fn effect(id: &str) -> Effect {
    Effect {
        child: format!("child of {id}"),
        order: id.into(),
        life: 1,
        attempt: 1,
    }
}

fn letter(id: &str, letter_id: &str) -> DeadLetter {
    DeadLetter {
        order: order(id),
        id: letter_id.into(),
        reason: "rejected".into(),
    }
}

/// Four messages of three orders on one partition; one order twice, one in doubt and applied, one refused. The last
/// life is given the last three messages, of which one is recorded.
fn good_run() -> Evidence {
    let mut books = Books {
        taken: 3,
        ..Books::default()
    };
    for account in [Account::Done, Account::Failed, Account::Redelivery] {
        books.accounts[account as usize] = 1;
    }
    let outcome = |id: &str, outcome| (format!("token of {id}"), Some(outcome));
    Evidence {
        sent: vec![sent(GOOD, 0), sent(GOOD, 1), sent(DOUBTFUL, 2), sent(BAD, 3)],
        effects: vec![effect(GOOD), effect(DOUBTFUL)],
        letters: vec![letter(BAD, "1")],
        kills: vec![Kill {
            life: 1,
            in_doubt: vec![Doubt {
                order: DOUBTFUL.into(),
                partition: 1,
                offset: 2,
                attempts: 1,
                applied: true,
            }],
            redelivered: 1,
        }],
        answers: vec![Answer {
            life: 2,
            order: DOUBTFUL.into(),
            applied: true,
        }],
        committed_before: vec![0, 1, 0, 0],
        committed_after: vec![0, 4, 0, 0],
        stopped: Stopped {
            outcomes: [
                outcome(GOOD, Outcome::Done),
                outcome(DOUBTFUL, Outcome::Done),
                outcome(BAD, Outcome::Rejected),
            ]
            .into(),
            ..Stopped::default()
        },
        last_life: vec![books],
    }
}

#[test]
fn a_good_run_balances() {
    let (table, faults) = good_run().balance();
    assert_eq!(faults, []);
    let wanted = Table {
        messages: 4,
        tokens: 3,
        effects: 2,
        duplicates: 1,
        redeliveries: 1,
        in_doubt: 1,
        applied: 1,
        dead_lettered: 1,
        lost: 0,
        repeated: 0,
    };
    assert_eq!(table, wanted);
}

/// The faults of a good run into which one was put.
fn faults(put: impl FnOnce(&mut Evidence)) -> Vec<Fault> {
    let mut evidence = good_run();
    put(&mut evidence);
    evidence.balance().1
}

#[test]
fn a_lost_effect_is_found_and_named() {
    let found = faults(|run| drop(run.effects.remove(0)));
    let (token, order) = (format!("token of {GOOD}"), GOOD.to_owned());
    assert_eq!(
        found,
        [
            Fault::Lost { token, order },
            Fault::Unbalanced {
                messages: 4,
                elsewhere: 3
            }
        ]
    );
    assert!(found[0].to_string().contains("token of order-a"));
}

#[test]
fn a_repeated_effect_is_found_and_named() {
    let found = faults(|run| run.effects.push(effect(DOUBTFUL)));
    let wanted = Fault::Repeated {
        token: format!("token of {DOUBTFUL}"),
        order: DOUBTFUL.into(),
        times: 2,
    };
    assert_eq!(found[0], wanted);
}

/// One effect too few and one too many must not cancel out.
#[test]
fn a_loss_does_not_hide_a_repeat() {
    let mut run = good_run();
    run.effects[0] = effect(DOUBTFUL);
    let (table, found) = run.balance();
    assert_eq!((table.lost, table.repeated, found.len()), (1, 1, 2));
}

#[test]
fn a_lost_letter_is_found_and_a_letter_sent_twice_is_one() {
    assert!(matches!(
        faults(|run| run.letters.clear())[..],
        [Fault::Lost { .. }, _]
    ));
    assert_eq!(faults(|run| run.letters.push(letter(BAD, "1"))), []);
    let twice = faults(|run| run.letters.push(letter(BAD, "2")));
    assert!(matches!(twice[..], [Fault::Refused { .. }, _]), "{twice:?}");
}

#[test]
fn what_went_to_the_wrong_place_is_found() {
    type Put = fn(&mut Evidence);
    let puts: [Put; 5] = [
        |run| run.effects.push(effect(BAD)),
        |run| run.letters[0].reason = "crashed".into(),
        |run| run.letters.push(letter(GOOD, "3")),
        |run| run.effects.push(effect("order-of-nobody")),
        |run| {
            run.effects.remove(0);
            run.letters.push(letter(GOOD, "3"));
        },
    ];
    for (number, put) in puts.into_iter().enumerate() {
        let found = faults(put);
        assert!(
            found
                .iter()
                .any(|fault| matches!(fault, Fault::Refused { .. } | Fault::Invented { .. })),
            "{number}: {found:?}"
        );
    }
}

#[test]
fn an_outcome_that_the_store_lacks_is_found() {
    for outcome in [None, Some(Outcome::Rejected)] {
        let found = faults(|run| {
            run.stopped.outcomes.insert(format!("token of {GOOD}"), outcome);
        });
        assert!(matches!(found[..], [Fault::Outcome { .. }]), "{found:?}");
    }
    let found = faults(|run| {
        run.stopped.outcomes.remove("token of order-a");
    });
    assert!(
        matches!(found[..], [Fault::Outcome { found: None, .. }]),
        "{found:?}"
    );
}

#[test]
fn what_is_left_behind_is_found() {
    assert!(matches!(
        faults(|run| run.committed_after[1] = 3)[..],
        [Fault::Uncommitted {
            partition: 1,
            committed: 3,
            end: 4
        }]
    ));
    assert_eq!(
        faults(|run| run.stopped.open_otherwise = 1),
        [Fault::Open { count: 1 }]
    );
    let doubt = InDoubt {
        partition: 1,
        offset: 2,
        attempts: 1,
    };
    assert_eq!(
        faults(|run| run.stopped.in_doubt.push(doubt)),
        [Fault::Open { count: 1 }]
    );
}

#[test]
fn a_doubt_is_decided_by_a_later_probe_and_as_the_file_has_it() {
    let unanswered = faults(|run| run.answers[0].life = 1);
    assert!(matches!(unanswered[..], [Fault::Unanswered { life: 1, .. }]));
    let other = faults(|run| run.answers[0].applied = false);
    assert!(matches!(other[..], [Fault::Answer { said: false, .. }]));
}

#[test]
fn more_in_doubt_than_slots_is_found_and_as_many_is_not() {
    let slots = PARTITIONS as usize * SLOTS as usize;
    for (in_doubt, is_fault) in [(slots, false), (slots + 1, true)] {
        let found = faults(|run| {
            let doubt = run.kills[0].in_doubt[0].clone();
            run.kills[0].in_doubt = vec![doubt; in_doubt];
        });
        assert_eq!(!found.is_empty(), is_fault, "{in_doubt}: {found:?}");
    }
}

#[test]
fn the_books_of_the_last_life_are_compared() {
    let remainder = faults(|run| run.last_life[0].accounts[Account::Done as usize] = 0);
    assert!(matches!(
        remainder[..],
        [Fault::Remainder {
            entered: 3,
            accounted: 2
        }]
    ));
    let held = faults(|run| {
        run.last_life[0].accounts[Account::Done as usize] = 0;
        run.last_life[0].accounts[Account::Held as usize] = 1;
    });
    assert!(matches!(
        held[..],
        [Fault::Unfinished {
            account: Account::Held,
            count: 1
        }]
    ));
    let taken = faults(|run| run.committed_before[1] = 0);
    assert!(matches!(taken[..], [Fault::Taken { wanted: 4, found: 3 }]));
    let redelivered = faults(|run| run.kills[0].redelivered = 2);
    assert!(matches!(
        redelivered[..],
        [Fault::Redelivered { wanted: 2, found: 1 }]
    ));
}
