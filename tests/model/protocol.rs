//! The steps, when each is possible, and what it does: the model that the checker walks through.

use std::fmt;

use stateright::{Model, Property};

use crate::broker::{CONSUMERS, Fate, Metadata, Reader};
use crate::consumer::{Consumer, Life, Stage, Step, Trim, Work};
use crate::orders::Order;
use crate::properties;
use crate::records::{Changes, Verdict};
use crate::rules::Rules;
use crate::state::State;
use crate::world::{Budget, World};

/// A world under rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) world: World,
    pub(crate) rules: Rules,
}

/// One step; the number is the consumer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    // What goes wrong, or is asked for from outside.
    Freeze(usize),
    Crash(usize),
    /// The coordinator wants the partition back politely, and the owner hears it.
    Revoke(usize),
    /// The answer to a commit is lost; whether the broker had committed.
    LoseReply(usize, bool),
    Trim(usize),
    /// The handler says that its attempt applied nothing.
    Refuse(usize, usize),
    /// An operator decides about a message.
    Order(usize, Order),

    // What the broker does.
    Expel(usize),
    AbortLate(usize),
    Assign(usize),

    // What the client and the poll thread do.
    Thaw(usize),
    /// The client hears that it was expelled: from now on it shows generation -1.
    HearExpelled(usize),
    /// The poll thread ends the assignment and joins again; or a new process joins.
    Join(usize),
    /// The drain is over or out of budget: the partition is given back.
    Release(usize),
    /// The gate is cleared, too late (only without the rule `gate_before_unassign`).
    ClearGateLate(usize),

    // Restore.
    AskOffsets(usize),
    TakeTarget(usize),
    Restored(usize),

    // The partition task.
    Take(usize),
    Start(usize, usize),
    /// The effect happens and the handler ends.
    Finish(usize, usize),
    /// A held message is due.
    Due(usize, usize),
    /// The bytes of the message are here that an order is about.
    Decide(usize, Order),

    // The journal.
    Check(usize),
    Produce(usize),
    SendOffsets(usize),
    Commit(usize),
    Recover(usize),
    DeleteHead(usize),
}

impl Action {
    /// Whether it need not happen. Everything else happens in the end.
    pub(crate) fn is_trouble(self) -> bool {
        matches!(
            self,
            Self::Freeze(_)
                | Self::Crash(_)
                | Self::Revoke(_)
                | Self::LoseReply(..)
                | Self::Trim(_)
                | Self::Refuse(..)
                | Self::Order(..)
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Freeze(c) => write!(f, "consumer {c} freezes"),
            Self::Crash(c) => write!(f, "consumer {c} is killed"),
            Self::Revoke(c) => write!(f, "the partition is revoked from {c}, which drains"),
            Self::LoseReply(c, true) => write!(f, "the broker commits for {c}, and the answer is lost"),
            Self::LoseReply(c, false) => write!(f, "the commit of {c} does not reach the broker"),
            Self::Trim(c) => write!(f, "consumer {c} wants to trim"),
            Self::Expel(c) => write!(f, "the group expels {c}"),
            Self::AbortLate(c) => write!(f, "the broker aborts the open transaction of {c}"),
            Self::Assign(c) => write!(f, "the partition is assigned to {c}"),
            Self::Thaw(c) => write!(f, "consumer {c} thaws"),
            Self::HearExpelled(c) => {
                write!(f, "the client of {c} hears that it is no member (generation -1)")
            }
            Self::Join(c) => write!(f, "consumer {c} joins, a new generation"),
            Self::Release(c) => write!(f, "consumer {c} gives the partition back"),
            Self::ClearGateLate(c) => write!(f, "consumer {c} clears its gate, late"),
            Self::AskOffsets(c) => write!(f, "consumer {c} reads the committed offset"),
            Self::TakeTarget(c) => write!(f, "consumer {c} takes its restore target"),
            Self::Restored(c) => write!(f, "consumer {c} has read the changelog up to its target"),
            Self::Take(c) => write!(f, "consumer {c} takes the next message"),
            Self::Start(c, offset) => write!(f, "consumer {c} starts its handler for offset {offset}"),
            Self::Finish(c, offset) => write!(
                f,
                "the handler of {c} has its effect for offset {offset} and ends"
            ),
            Self::Refuse(c, offset) => write!(f, "the handler of {c} applies nothing for offset {offset}"),
            Self::Order(c, order) => write!(f, "{}", told(c, order)),
            Self::Decide(c, order) => write!(
                f,
                "consumer {c} has the bytes of offset {}, looks again, and decides as operator {} says",
                order.offset, order.by
            ),
            Self::Due(c, offset) => write!(f, "offset {offset}, which {c} holds, is due"),
            Self::Check(c) => write!(f, "the journal of {c} makes a group: metadata, gate"),
            Self::Produce(c) => write!(f, "the journal of {c} produces its frames"),
            Self::SendOffsets(c) => write!(f, "the journal of {c} sends the commit point"),
            Self::Commit(c) => write!(f, "the transaction of {c} is committed"),
            Self::Recover(c) => write!(
                f,
                "consumer {c} has a new producer and looks what became of its group"
            ),
            Self::DeleteHead(c) => write!(f, "consumer {c} deletes the head of the changelog"),
        }
    }
}

fn told(c: usize, order: Order) -> String {
    let verdict = match order.verdict {
        Verdict::Done => "done",
        Verdict::Run => "run",
    };
    let Order {
        by, offset, known, ..
    } = order;
    format!(
        "operator {by} orders --{verdict} for offset {offset} at consumer {c}, knowing of {known} attempts"
    )
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.world)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for c in 0..CONSUMERS {
            match state.consumers[c].life {
                Life::Up => self.steps(state, c, actions),
                Life::Frozen => {
                    actions.push(Action::Thaw(c));
                    steps_without(state, c, actions);
                }
                Life::Down => {
                    steps_without(state, c, actions);
                    let joins = !state.broker.member[c] && state.all_members_answer();
                    actions.extend(joins.then_some(Action::Join(c)));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, action);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.world)
    }
}

/// What the broker does about a consumer that is not there.
fn steps_without(state: &State, c: usize, actions: &mut Vec<Action>) {
    actions.extend(state.broker.member[c].then_some(Action::Expel(c)));
    actions.extend(state.broker.has_open(c).then_some(Action::AbortLate(c)));
}

/// A consumer without assignment and transaction has nothing to lose: that it freezes or dies is of no interest.
fn has_something_to_lose(consumer: &Consumer) -> bool {
    consumer.stage != Stage::Idle || consumer.group.step != Step::None || consumer.trim == Trim::Due
}

impl Protocol {
    /// What a consumer that is up may do, and what may happen to it.
    fn steps(&self, state: &State, c: usize, actions: &mut Vec<Action>) {
        let (broker, consumer, left) = (&state.broker, &state.consumers[c], &state.left);
        let mut may = |possible: bool, action: Action| actions.extend(possible.then_some(action));

        let exposed = has_something_to_lose(consumer);
        may(exposed && left.freezes > 0, Action::Freeze(c));
        may(exposed && left.crashes > 0, Action::Crash(c));

        let owner = broker.owner == Some(c);
        may(
            !broker.member[c] && consumer.metadata == Metadata::Stale,
            Action::HearExpelled(c),
        );
        may(
            !broker.member[c] && consumer.metadata == Metadata::MinusOne && state.all_members_answer(),
            Action::Join(c),
        );
        may(
            broker.member[c] && broker.owner.is_none() && left.assignments > 0 && state.all_members_answer(),
            Action::Assign(c),
        );
        may(
            owner && consumer.stage == Stage::Serving && left.moves > 0,
            Action::Revoke(c),
        );
        may(owner && consumer.stage == Stage::Draining, Action::Release(c));
        may(
            !self.rules.gate_before_unassign && consumer.gate && !owner && broker.member[c],
            Action::ClearGateLate(c),
        );

        self.restore_steps(state, c, &mut may);
        self.task_steps(consumer, left, c, &mut may);
        self.desk_steps(consumer, left, c, &mut may);
        self.journal_steps(state, c, &mut may);
    }

    fn restore_steps(&self, state: &State, c: usize, may: &mut impl FnMut(bool, Action)) {
        let (broker, consumer) = (&state.broker, &state.consumers[c]);
        let (ask, target) = (Action::AskOffsets(c), Action::TakeTarget(c));
        let stable = !self.rules.stable_offsets || broker.pending.iter().all(Option::is_none);
        let begin = broker.owner == Some(c)
            && consumer.stage == Stage::Idle
            && (!self.rules.barrier || consumer.group.step == Step::None);
        let read = matches!(broker.readers[c], Reader::Read(_));
        if self.rules.offsets_before_target {
            may(begin && stable, ask);
            may(consumer.stage == Stage::Asked, target);
            may(consumer.stage == Stage::Reading && read, Action::Restored(c));
        } else {
            may(begin, target);
            may(
                consumer.stage == Stage::Reading && read && stable,
                Action::Restored(c),
            );
        }
    }

    fn task_steps(&self, consumer: &Consumer, left: &Budget, c: usize, may: &mut impl FnMut(bool, Action)) {
        let serving = consumer.stage == Stage::Serving;
        may(
            serving && usize::from(consumer.next) < self.world.len(),
            Action::Take(c),
        );
        for offset in 0..self.world.len() {
            may(
                serving && consumer.may_start(&self.world, offset),
                Action::Start(c, offset),
            );
            let runs = consumer.work[offset] == Work::Running || consumer.stray[offset] == Work::Running;
            may(runs, Action::Finish(c, offset));
            let refuses = consumer.work[offset] == Work::Running && left.refusals > 0;
            may(refuses, Action::Refuse(c, offset));
            may(serving && consumer.may_return(offset), Action::Due(c, offset));
        }
        may(
            serving && left.trims > 0 && consumer.trim == Trim::None,
            Action::Trim(c),
        );
    }

    fn desk_steps(&self, consumer: &Consumer, left: &Budget, c: usize, may: &mut impl FnMut(bool, Action)) {
        for order in consumer.desk.into_iter().flatten() {
            let is_here = !order.is_decided && consumer.stage == Stage::Serving;
            may(is_here, Action::Decide(c, order));
        }
        if left.orders == 0 {
            return;
        }
        let by = self.world.budget.orders - left.orders;
        for (offset, record) in (0..).zip(consumer.window.of) {
            let attempts = record.may_be_decided().unwrap_or(0);
            // Attempts that an operator may have heard of: what is said without a look is not in the model.
            for known in attempts.min(1)..=attempts {
                for verdict in [Verdict::Done, Verdict::Run] {
                    let order = Order {
                        by,
                        offset,
                        verdict,
                        known,
                        is_decided: false,
                    };
                    may(consumer.takes_order(&self.rules, &order), Action::Order(c, order));
                }
            }
        }
    }

    fn journal_steps(&self, state: &State, c: usize, may: &mut impl FnMut(bool, Action)) {
        let consumer = &state.consumers[c];
        match consumer.group.step {
            Step::None => may(self.has_to_say(consumer), Action::Check(c)),
            Step::Checked => may(true, Action::Produce(c)),
            Step::Produced => may(true, Action::SendOffsets(c)),
            Step::Sent => {
                may(true, Action::Commit(c));
                let lost = state.left.lost_replies > 0 && !state.broker.fenced[c];
                may(lost, Action::LoseReply(c, true));
                may(lost, Action::LoseReply(c, false));
            }
            Step::Unknown(_) => may(true, Action::Recover(c)),
        }
        let stands_for_it = state.broker.since_again.is_some() || !self.rules.rewrite_before_trim;
        may(consumer.trim == Trim::Due && stands_for_it, Action::DeleteHead(c));
    }

    /// Whether there is a group to make, and the gate and the metadata let it be made.
    fn has_to_say(&self, consumer: &Consumer) -> bool {
        let refused = self.rules.refuse_minus_one && consumer.metadata == Metadata::MinusOne;
        if !consumer.gate || refused {
            return false;
        }
        let changes = consumer.submitted(&self.rules);
        changes != Changes::default()
            || consumer.fence_due
            || consumer.trim == Trim::Wanted
            || consumer.commit_point(&self.world, &self.rules, &changes).offset > consumer.acknowledged.offset
    }

    fn apply(&self, state: &mut State, action: Action) {
        let (world, rules) = (&self.world, &self.rules);
        match action {
            Action::Freeze(c) => {
                state.left.freezes -= 1;
                state.consumers[c].life = Life::Frozen;
            }
            Action::Crash(c) => {
                state.left.crashes -= 1;
                state.end_assignment(c);
                state.consumers[c] = Consumer {
                    life: Life::Down,
                    ..Consumer::default()
                };
            }
            Action::Revoke(c) => {
                state.left.moves -= 1;
                state.consumers[c].drain();
            }
            Action::LoseReply(c, committed) => {
                state.left.lost_replies -= 1;
                if committed {
                    state.commit(world, rules, c, false);
                } else {
                    state.consumers[c].group.step = Step::Unknown(false);
                }
            }
            Action::Trim(c) => {
                state.left.trims -= 1;
                state.consumers[c].trim = if rules.rewrite_before_trim {
                    Trim::Wanted
                } else {
                    Trim::Due
                };
            }
            Action::Expel(c) => state.expel(c),
            Action::AbortLate(c) => {
                state.broker.end(world, c, Fate::Aborted);
                state.broker.fenced[c] = state.consumers[c].life == Life::Frozen;
                state.happened.aborted_late = true;
            }
            Action::Assign(c) => {
                state.left.assignments -= 1;
                state.broker.owner = Some(c);
                state.rebalance();
            }
            Action::Thaw(c) => state.consumers[c].life = Life::Up,
            Action::HearExpelled(c) => state.consumers[c].metadata = Metadata::MinusOne,
            Action::Join(c) => state.join(world, rules, c),
            Action::Release(c) => {
                state.broker.owner = None;
                if rules.gate_before_unassign {
                    state.end_assignment(c);
                }
            }
            Action::ClearGateLate(c) => state.end_assignment(c),
            Action::AskOffsets(c) => {
                state.consumers[c].acknowledged = state.broker.committed;
                state.consumers[c].stage = Stage::Asked;
            }
            Action::TakeTarget(c) => {
                state.consumers[c].stage = Stage::Reading;
                let frames = if rules.target_is_high_watermark {
                    state.broker.tail.len()
                } else {
                    0
                };
                state.broker.restore(c, frames);
            }
            Action::Restored(c) => {
                if let Reader::Read(records) = state.broker.readers[c] {
                    state.restored(world, rules, c, records);
                }
            }
            Action::Take(c) => state.take(world, rules, c),
            Action::Start(c, offset) => state.start(world, c, offset),
            Action::Finish(c, offset) => state.finish(world, rules, c, offset),
            Action::Refuse(c, offset) => {
                state.left.refusals -= 1;
                state.refuse(world, rules, c, offset);
            }
            Action::Order(c, order) => state.order(c, order),
            Action::Decide(c, order) => state.decide(world, rules, c, order),
            Action::Due(c, offset) => state.give_back(world, rules, c, offset),
            Action::Check(c) => state.check(world, rules, c),
            Action::Produce(c) => state.produce(world, rules, c),
            Action::SendOffsets(c) => state.send_offsets(world, rules, c),
            Action::Commit(c) => state.commit(world, rules, c, true),
            Action::Recover(c) => state.recover(world, rules, c),
            Action::DeleteHead(c) => {
                state.consumers[c].trim = Trim::None;
                state.broker.delete_head();
            }
        }
    }
}
