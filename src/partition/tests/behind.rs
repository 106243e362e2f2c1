//! Many duplicates behind one held message. What each of them costs does not grow with their number: steps in the index of tokens and
//! groups of the journal are counted, and no time is measured.

use super::*;
use crate::config::AfterFailure;
use crate::outcome::{Closed, End, Stored};
use crate::partition::work::STEPS;
use crate::testing::script::{Edge, Event, Script as Edges, Side};

/// What a rig did since its start.
struct Costs {
    rig: Rig,
    many: usize,
    edges: Edges,
    steps: u64,
}

impl Costs {
    fn groups(&self) -> impl Iterator<Item = Vec<crate::testing::script::Change>> {
        let written = |event| match event {
            Event::Reached(_, Edge::Group(changes), Side::After) => Some(changes),
            _ => None,
        };
        self.edges.events().into_iter().filter_map(written)
    }

    /// How often a message was written as held.
    fn holds(&self) -> usize {
        let of_group = |group: Vec<crate::testing::script::Change>| {
            group.iter().filter(|change| change.says == "held").count()
        };
        self.groups().map(of_group).sum()
    }

    /// Every message costs about as many steps and shares its groups with many others.
    fn assert_linear(&self, what: &str) {
        let (steps, groups) = (STEPS.get() - self.steps, self.groups().count());
        let each = steps / self.many as u64;
        assert!(each <= 40, "{what}: {each} steps for each of {}", self.many);
        // The rig acknowledges each letter by itself, and makes durable at once what follows from it.
        let most = self.many / 10 + self.rig.letterbox.letters().len();
        assert!(groups <= most, "{what}: {groups} groups for {}", self.many);
        let of = |account| self.rig.account(account);
        assert_eq!(
            (open_offsets(&self.rig), self.rig.books().remainder()),
            (vec![], 0),
            "{what}"
        );
        assert_eq!(of(Account::Held), 0, "{what}");
    }
}

/// That many messages of one token, the first of which is held for a minute. They are given two minutes more.
async fn of_one_token(many: usize, script: &Script, change: impl FnOnce(&mut TopicPolicy)) -> Costs {
    let mut rig = rig_with(Class::Idempotent, script, |policy| {
        policy.after_failure = AfterFailure::Run;
        policy.retry.in_place.attempts = 1;
        policy.retry.overall.attempts = 10;
        policy.retry.overall.first = Duration::from_secs(1);
        policy.retry.overall.max = Duration::from_secs(1);
        change(policy);
    });
    let edges = Edges::new().next_process(None);
    rig.script = Some(edges.clone());
    for _ in 0..many {
        rig.send(0, message("a"));
    }
    let steps = STEPS.get();
    rig.start().await.unwrap();
    rig.run_for(Duration::from_secs(50)).await;
    assert_eq!(open_offsets(&rig).len(), many);
    rig.run_for(Duration::from_secs(120)).await;
    Costs {
        rig,
        many,
        edges,
        steps,
    }
}

fn later() -> Answer {
    Box::pin(async { Err(HandlerError::retry_after(Duration::from_secs(60), "later")) })
}

fn away() -> Answer {
    Box::pin(async { Err(HandlerError::not_applied("away")) })
}

const MANY: [usize; 2] = [500, 4_000];

#[test]
fn duplicates_of_what_is_done_at_last_end_together() {
    for many in MANY {
        paused(async {
            let script = Script::new(|_, call| if call.attempt == 1 { later() } else { ok() });
            let costs = of_one_token(many, &script, |_| {}).await;
            costs.assert_linear("done");
            assert_eq!(script.calls(), [(0, 1), (0, 2)]);
            assert_eq!(costs.rig.account(Account::Duplicate), many as u64 - 1);
        });
    }
}

/// As many retries as there are: those behind are neither loaded nor written again.
#[test]
fn retries_of_the_first_do_not_touch_those_behind_it() {
    paused(async {
        let script = Script::new(|_, call| match call.attempt {
            1 => later(),
            2..=8 => away(),
            _ => ok(),
        });
        let costs = of_one_token(2_000, &script, |_| {}).await;
        costs.assert_linear("retried");
        assert_eq!((script.calls().len(), costs.holds()), (9, 2_000 + 7));
    });
}

/// The first fails, and the next takes over; it is held too before it is done. Nobody else is written again for that.
#[test]
fn the_next_takes_over_where_the_first_fails() {
    for many in MANY {
        paused(async {
            let script = Script::new(|offset, call| match (offset, call.attempt) {
                (0, 1) => later(),
                (0, _) => reject(),
                (1, 1) => away(),
                _ => ok(),
            });
            let costs = of_one_token(many, &script, |_| {}).await;
            costs.assert_linear("taken over");
            assert_eq!(script.calls(), [(0, 1), (0, 2), (1, 1), (1, 2)]);
            assert_eq!(costs.holds(), many + 1);
            assert_eq!(costs.rig.account(Account::Duplicate), many as u64 - 2);
        });
    }
}

/// Each of them is told, and all of those that are loaded at a time at once.
#[test]
fn duplicates_that_are_told_end_together() {
    for many in MANY {
        paused(async {
            let script = Script::new(|_, call| if call.attempt == 1 { later() } else { ok() });
            let told = |policy: &mut TopicPolicy| policy.receipts.topic = Some("receipts".into());
            let costs = of_one_token(many, &script, told).await;
            costs.assert_linear("told");
            assert_eq!(costs.rig.letterbox.letters().len(), many - 1);
        });
    }
}

/// The process dies while they are held, and finds them when the first has its outcome.
#[test]
fn duplicates_that_a_start_finds_end_together() {
    for many in MANY {
        paused(async {
            let script = Script::new(|_, call| if call.attempt == 1 { later() } else { ok() });
            let mut rig = rig_with(Class::Idempotent, &script, |policy| {
                policy.retry.in_place.attempts = 1;
                policy.retry.overall.attempts = 2;
                policy.retry.overall.max = Duration::from_secs(1);
            });
            for _ in 0..many {
                rig.send(0, message("a"));
            }
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(50)).await;
            rig.stop().await;
            resolve(&mut rig, 0, Verdict::Done);
            let edges = Edges::new().next_process(None);
            rig.script = Some(edges.clone());
            let steps = STEPS.get();
            rig.start().await.unwrap();
            rig.run_for(Duration::from_secs(60)).await;
            let costs = Costs {
                rig,
                many,
                edges,
                steps,
            };
            costs.assert_linear("found");
            assert_eq!(script.calls(), [(0, 1)]);
        });
    }
}

/// What they were held behind is closed, and the process died before they were judged by that: the next start does.
#[test]
fn a_start_judges_what_is_held_behind_a_token_that_is_closed_by_now() {
    paused(async {
        let script = Script::new(|_, _| later());
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            policy.retry.in_place.attempts = 1;
        });
        for _ in 0..600 {
            rig.send(0, message("a"));
        }
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(20)).await;
        rig.stop().await;
        in_store(&mut rig, |open, changes| {
            let first = &open[0];
            let closed = Closed {
                end: End::Done(Stored::Nothing),
                offset: first.offset,
                first_seen_ms: first.first_seen_ms,
                attempts: 1,
                fingerprint: None,
            };
            changes.removed.push((first.keys[0], first.offset));
            changes.closed.push((first.keys[0], closed));
        });
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        let of = |account| rig.account(account);
        assert_eq!(
            (of(Account::Duplicate), of(Account::Held), open_offsets(&rig)),
            (599, 0, vec![])
        );
    });
}

/// 1 is held behind 0, and comes again while that runs: the one that was held and the one that has come are both judged by how it ends.
/// One of them is told, and the other ends as a redelivery of it.
#[test]
fn a_message_that_was_held_and_comes_again_is_told_once() {
    paused(async {
        let script = Script::new(|_, call| {
            if call.attempt == 1 {
                later()
            } else {
                after(Duration::from_secs(1))
            }
        });
        let mut rig = rig_with(Class::Idempotent, &script, |policy| {
            policy.retry.in_place.attempts = 1;
            policy.deadline = Duration::from_secs(60);
            policy.receipts.topic = Some("receipts".into());
        });
        rig.commit_every = Duration::from_secs(30);
        for _ in 0..2 {
            rig.send(0, message("a"));
        }
        rig.start().await.unwrap();
        rig.run_for(A_WHILE).await;
        assert_eq!(open_offsets(&rig), [0, 1]);
        rig.crash();
        rig.clock.advance(Duration::from_secs(100));
        rig.start().await.unwrap();
        rig.run_for(Duration::from_secs(10)).await;
        let of = |account| rig.account(account);
        assert_eq!((of(Account::Done), of(Account::Held)), (1, 0));
        assert_eq!((open_offsets(&rig), rig.letterbox.letters().len()), (vec![], 1));
    });
}
