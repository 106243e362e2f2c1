//! The books of a demo, kept again from what can be seen from outside: the messages that were sent, the file of
//! effects, the dead-letter topic, the stopped store, the committed offsets. Pure.
//!
//! A life that was killed cannot report its accounts. So each message is put where the outside says that it went, and
//! nothing is computed by subtraction: a message that went nowhere, or to two places, is a [`Fault`]. The accounts that
//! the last life reports are compared with the same evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::child::Books;
use super::orders::Order;
use super::shop::Effect;
use super::stopped::{Outcome, Stopped};
use super::{PARTITIONS, SLOTS};
use crate::accounts::Account;
use crate::outcome::Reason;

/// One message, as the broker acknowledged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) order: Order,
    pub(super) token: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

/// One message of the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeadLetter {
    pub(super) order: Order,
    /// The same for each copy of one letter: sending one is at least once.
    pub(super) id: String,
    pub(super) reason: String,
}

/// What was found after a kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kill {
    pub(super) life: u32,
    pub(super) in_doubt: Vec<Doubt>,
    /// Messages that are recorded and not yet committed.
    pub(super) redelivered: u64,
}

/// A message in doubt, and what the file of effects said of it while nobody ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) order: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) attempts: u32,
    pub(super) applied: bool,
}

/// What a probe answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) life: u32,
    pub(super) order: String,
    pub(super) applied: bool,
}

/// Everything that is known when all is over.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) sent: Vec<Sent>,
    pub(super) effects: Vec<Effect>,
    pub(super) letters: Vec<DeadLetter>,
    pub(super) kills: Vec<Kill>,
    pub(super) answers: Vec<Answer>,
    /// Of each partition, when the last life began, and when it had ended.
    pub(super) committed_before: Vec<i64>,
    pub(super) committed_after: Vec<i64>,
    pub(super) stopped: Stopped,
    /// The books of the last life, one for each assignment.
    pub(super) last_life: Vec<Books>,
}

/// What it came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) messages: usize,
    pub(super) tokens: usize,
    pub(super) effects: usize,
    pub(super) duplicates: usize,
    pub(super) redeliveries: u64,
    pub(super) in_doubt: usize,
    pub(super) applied: usize,
    pub(super) dead_lettered: usize,
    pub(super) lost: usize,
    pub(super) repeated: usize,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Lost {
        token: String,
        order: String,
    },
    Repeated {
        token: String,
        order: String,
        times: usize,
    },
    Invented {
        order: String,
    },
    Refused {
        token: String,
        order: String,
        what: &'static str,
    },
    Outcome {
        token: String,
        order: String,
        wanted: Outcome,
        found: Option<Option<Outcome>>,
    },
    Unbalanced {
        messages: usize,
        elsewhere: usize,
    },
    Uncommitted {
        partition: i32,
        committed: i64,
        end: i64,
    },
    Open {
        count: usize,
    },
    Slots {
        life: u32,
        in_doubt: usize,
    },
    Unanswered {
        life: u32,
        order: String,
    },
    Answer {
        life: u32,
        order: String,
        said: bool,
    },
    Remainder {
        entered: u64,
        accounted: u64,
    },
    Unfinished {
        account: Account,
        count: u64,
    },
    Taken {
        wanted: u64,
        found: u64,
    },
    Redelivered {
        wanted: u64,
        found: u64,
    },
}

/// What the outside says of one token.
#[derive(Default)]
struct Fate<'a> {
    order: Option<&'a Order>,
    effects: usize,
    letters: BTreeSet<&'a str>,
    wrong_reason: bool,
}

impl Evidence {
    /// Keeps the books. No fault means that they balance.
    pub(super) fn balance(&self) -> (Table, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut table = Table {
            messages: self.sent.len(),
            effects: self.effects.len(),
            redeliveries: self.kills.iter().map(|kill| kill.redelivered).sum(),
            ..Table::default()
        };
        let fates = self.fates(&mut table, &mut faults);
        table.tokens = fates.len();
        for (token, fate) in &fates {
            self.judge(token, fate, &mut table, &mut faults);
        }
        let elsewhere = table.effects + table.dead_lettered + table.duplicates;
        if elsewhere != table.messages {
            faults.push(Fault::Unbalanced {
                messages: table.messages,
                elsewhere,
            });
        }
        self.ends(&mut faults);
        self.doubts(&mut table, &mut faults);
        self.reported(&mut faults);
        (table, faults)
    }

    /// Puts every message, effect and letter to its token.
    fn fates(&self, table: &mut Table, faults: &mut Vec<Fault>) -> BTreeMap<&str, Fate<'_>> {
        let mut fates: BTreeMap<&str, Fate<'_>> = BTreeMap::new();
        let mut tokens: BTreeMap<&str, &str> = BTreeMap::new();
        for sent in &self.sent {
            tokens.insert(&sent.order.id, &sent.token);
            let fate = fates.entry(&sent.token).or_default();
            // The first message of a token is the one that counts; each other one is a duplicate.
            if fate.order.replace(&sent.order).is_some() {
                table.duplicates += 1;
            }
        }
        let mut invented = |order: &str| {
            faults.push(Fault::Invented {
                order: order.to_owned(),
            });
        };
        for effect in &self.effects {
            let fate = tokens
                .get(effect.order.as_str())
                .and_then(|token| fates.get_mut(token));
            match fate {
                Some(fate) => fate.effects += 1,
                None => invented(&effect.order),
            }
        }
        for letter in &self.letters {
            let fate = tokens
                .get(letter.order.id.as_str())
                .and_then(|token| fates.get_mut(token));
            match fate {
                Some(fate) => {
                    fate.letters.insert(&letter.id);
                    fate.wrong_reason |= letter.reason != Reason::Rejected.code();
                }
                None => invented(&letter.order.id),
            }
        }
        fates
    }

    /// A good order has one effect and no letter, a refused one has one letter and no effect, and the store says so.
    fn judge(&self, token: &str, fate: &Fate<'_>, table: &mut Table, faults: &mut Vec<Fault>) {
        let Some(order) = fate.order else { return };
        let (token, id) = (token.to_owned(), order.id.clone());
        table.dead_lettered += fate.letters.len();
        let refused = |what| Fault::Refused {
            token: token.clone(),
            order: id.clone(),
            what,
        };
        match (fate.effects, fate.letters.len()) {
            (0, 0) => {
                table.lost += 1;
                faults.push(Fault::Lost {
                    token: token.clone(),
                    order: id.clone(),
                });
            }
            (times @ 2.., _) => {
                table.repeated += times - 1;
                faults.push(Fault::Repeated {
                    token: token.clone(),
                    order: id.clone(),
                    times,
                });
            }
            (1, 1..) => faults.push(refused("it was charged, and dead-lettered too")),
            (0, 2..) => faults.push(refused(
                "it was dead-lettered more than once, under different ids",
            )),
            (0, 1) if order.is_good() => faults.push(refused(
                "it was dead-lettered, and there is nothing wrong with it",
            )),
            (0, 1) if fate.wrong_reason => faults.push(refused("its dead letter does not say `rejected`")),
            (1, 0) if !order.is_good() => faults.push(refused("it was charged, and is of 0 cents")),
            _ => {}
        }
        let wanted = if order.is_good() {
            Outcome::Done
        } else {
            Outcome::Rejected
        };
        let found = self.stopped.outcomes.get(&token).copied();
        if found != Some(Some(wanted)) {
            faults.push(Fault::Outcome {
                token,
                order: id,
                wanted,
                found,
            });
        }
    }

    /// Everything is committed, and nothing is left open.
    fn ends(&self, faults: &mut Vec<Fault>) {
        for (partition, end) in (0..).zip(ends(&self.sent)) {
            let committed = self.committed_after.get(partition as usize).copied().unwrap_or(0);
            if committed != end {
                faults.push(Fault::Uncommitted {
                    partition,
                    committed,
                    end,
                });
            }
        }
        let count = self.stopped.in_doubt.len() + self.stopped.open_otherwise;
        if count > 0 {
            faults.push(Fault::Open { count });
        }
    }

    /// Each doubt was decided by a probe of a later life, and as the file had it.
    fn doubts(&self, table: &mut Table, faults: &mut Vec<Fault>) {
        for kill in &self.kills {
            let in_doubt = kill.in_doubt.len();
            if in_doubt > PARTITIONS as usize * SLOTS as usize {
                faults.push(Fault::Slots {
                    life: kill.life,
                    in_doubt,
                });
            }
            for doubt in &kill.in_doubt {
                table.in_doubt += 1;
                table.applied += usize::from(doubt.applied);
                let asked = self
                    .answers
                    .iter()
                    .find(|answer| answer.life > kill.life && answer.order == doubt.order);
                match asked {
                    Some(answer) if answer.applied == doubt.applied => {}
                    Some(answer) => faults.push(Fault::Answer {
                        life: answer.life,
                        order: doubt.order.clone(),
                        said: answer.applied,
                    }),
                    None => faults.push(Fault::Unanswered {
                        life: kill.life,
                        order: doubt.order.clone(),
                    }),
                }
            }
        }
    }

    /// The accounts that the last life reports, against what it must have been given.
    fn reported(&self, faults: &mut Vec<Fault>) {
        let sum = |of: &dyn Fn(&Books) -> u64| self.last_life.iter().map(of).sum::<u64>();
        let account = |account: Account| {
            sum(&|books| books.accounts.get(account as usize).copied().unwrap_or_default())
        };
        let taken = sum(&|books| books.taken);
        let entered = taken + sum(&|books| books.restored);
        let accounted = Account::ALL.into_iter().map(account).sum();
        if entered != accounted {
            faults.push(Fault::Remainder { entered, accounted });
        }
        for left in [
            Account::InFlight,
            Account::Held,
            Account::Released,
            Account::Skipped,
        ] {
            let count = account(left);
            if count > 0 {
                faults.push(Fault::Unfinished { account: left, count });
            }
        }
        let begun: i64 = self.committed_before.iter().sum();
        let end: i64 = ends(&self.sent).iter().sum();
        let wanted = u64::try_from(end - begun).unwrap_or_default();
        // A partition assigned twice within the life is delivered again from its last commit.
        let once = self.last_life.len() <= PARTITIONS as usize;
        if taken < wanted || once && taken > wanted {
            faults.push(Fault::Taken { wanted, found: taken });
        }
        let wanted = self.kills.last().map_or(0, |kill| kill.redelivered);
        let found = account(Account::Redelivery);
        if found < wanted || once && found > wanted {
            faults.push(Fault::Redelivered { wanted, found });
        }
    }
}

/// The end of each partition: the offset after its last message.
pub(super) fn ends(sent: &[Sent]) -> Vec<i64> {
    let mut ends = vec![0; PARTITIONS as usize];
    for sent in sent {
        if let Some(end) = ends.get_mut(sent.partition as usize) {
            *end = (sent.offset + 1).max(*end);
        }
    }
    ends
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let applied = |yes: &bool| if *yes { "applied" } else { "not applied" };
        match self {
            Self::Lost { token, order } => {
                write!(
                    f,
                    "lost: token {token} ({order}) has no effect and no dead letter"
                )
            }
            Self::Repeated { token, order, times } => {
                write!(f, "repeated: token {token} ({order}) has {times} effects")
            }
            Self::Invented { order } => {
                write!(f, "{order} has an effect or a dead letter and was never sent")
            }
            Self::Refused { token, order, what } => write!(f, "token {token} ({order}): {what}"),
            Self::Outcome {
                token,
                order,
                wanted,
                found,
            } => write!(
                f,
                "token {token} ({order}): the store has {found:?} and not {wanted:?}"
            ),
            Self::Unbalanced { messages, elsewhere } => write!(
                f,
                "{messages} messages were sent; effects, dead letters and duplicates are {elsewhere}"
            ),
            Self::Uncommitted {
                partition,
                committed,
                end,
            } => write!(
                f,
                "partition {partition} is committed up to {committed} and ends at {end}"
            ),
            Self::Open { count } => write!(f, "{count} tokens are still open in the store"),
            Self::Slots { life, in_doubt } => {
                let slots = PARTITIONS as u32 * SLOTS;
                write!(
                    f,
                    "the kill of life {life} left {in_doubt} in doubt, with {slots} slots"
                )
            }
            Self::Unanswered { life, order } => {
                write!(
                    f,
                    "{order} was in doubt after life {life}, and no probe was asked about it"
                )
            }
            Self::Answer { life, order, said } => write!(
                f,
                "the probe of life {life} said of {order} that it was {}, and the file of effects said otherwise",
                applied(said)
            ),
            Self::Remainder { entered, accounted } => write!(
                f,
                "the last life took or restored {entered} messages, and its accounts hold {accounted}"
            ),
            Self::Unfinished { account, count } => {
                write!(f, "the last life ended with {count} messages {}", account.name())
            }
            Self::Taken { wanted, found } => write!(
                f,
                "the last life was to be delivered {wanted} messages, and says that it took {found}"
            ),
            Self::Redelivered { wanted, found } => write!(
                f,
                "{wanted} messages were recorded and not committed at the last kill, and the last life knew {found} again"
            ),
        }
    }
}
