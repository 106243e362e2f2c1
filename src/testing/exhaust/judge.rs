//! What counts as wrong at the end of a run, by the topic's class.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Ran, Wrong};
use crate::class::Class;
use crate::testing::{Effect, Sent};

/// A final state, whatever it is made of.
pub(super) trait State: Send {
    fn is(&self, other: &dyn State) -> bool;
    fn text(&self) -> String;
    fn any(&self) -> &dyn Any;
}

impl<S: PartialEq + fmt::Debug + Send + 'static> State for S {
    fn is(&self, other: &dyn State) -> bool {
        other.any().downcast_ref::<S>() == Some(self)
    }

    fn text(&self) -> String {
        format!("{self:?}")
    }

    fn any(&self) -> &dyn Any {
        self
    }
}

/// The first thing that is wrong, the gravest first.
pub(super) fn wrong(reference: &Ran, ran: &Ran, nothing_held: bool) -> Option<Wrong> {
    if let Some(why) = &ran.stopped {
        return Some(Wrong::Stopped {
            why: crate::error::chain(why),
        });
    }
    let expected: BTreeSet<Effect> = reference.effects.all().into_iter().collect();
    let mut found = BTreeMap::<Effect, usize>::new();
    for effect in ran.effects.all() {
        *found.entry(effect).or_default() += 1;
    }
    if ran.class == Class::NonIdempotent
        && let Some((effect, times)) = found.iter().find(|(_, times)| **times > 1)
    {
        let (effect, times) = (effect.clone(), *times);
        return Some(Wrong::Repeated { effect, times });
    }
    let outputs = |ran: &Ran| -> BTreeMap<Effect, Sent> { ran.outputs.iter().cloned().collect() };
    let (due, sent) = (outputs(reference), outputs(ran));
    if let Some(effect) = sent.keys().find(|effect| !due.contains_key(*effect)) {
        let effect = effect.clone();
        return Some(Wrong::OneTooMany { effect });
    }
    if let Some(effect) = found.keys().find(|effect| !expected.contains(*effect)) {
        let effect = effect.clone();
        return Some(Wrong::OneTooMany { effect });
    }
    let held: BTreeSet<Sent> = ran.held.iter().map(|held| held.of).collect();
    // Nobody knows whether the effects of a held message were applied: it waits for somebody who does.
    let is_excused = |effect: &Effect| {
        let by = reference.effects.noted().into_iter();
        by.filter(|noted| noted.effect == *effect)
            .all(|noted| noted.of.is_some_and(|of| held.contains(&of)))
    };
    if let Some(effect) = expected
        .iter()
        .find(|effect| !found.contains_key(*effect) && !is_excused(effect))
    {
        let effect = effect.clone();
        return Some(Wrong::Lost { effect });
    }
    let is_due = |(effect, of): &(&Effect, &Sent)| !sent.contains_key(*effect) && !held.contains(*of);
    if let Some((effect, _)) = due.iter().find(is_due) {
        let effect = effect.clone();
        return Some(Wrong::Lost { effect });
    }
    if !ran.has_settled {
        return Some(Wrong::Unsettled);
    }
    if let Some(of) = held.first().filter(|_| nothing_held) {
        return Some(Wrong::Held { of: *of });
    }
    match (&reference.state, &ran.state) {
        (Some(expected), Some(found)) if held.is_empty() && !expected.is(found.as_ref()) => {
            Some(Wrong::Differs {
                expected: expected.text(),
                found: found.text(),
            })
        }
        _ => None,
    }
}
