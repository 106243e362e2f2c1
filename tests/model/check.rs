//! Running the checker: all of a world, or the shortest way to a fall.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display, Write};
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::{Action, Protocol};
use crate::rules::Rules;
use crate::world::World;

/// How the name of a property begins that says what has to be reachable.
const SEEN: &str = "seen:";

/// A model that can be asked more than once, and whose steps can be told.
pub(crate) trait Checked:
    Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + Display + PartialEq>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<M> Checked for M where
    M: Model<
            State: Clone + Debug + Hash + PartialEq + Send + Sync,
            Action: Clone + Debug + Display + PartialEq,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// Walks through every state of the world. Panics with the way to a state that breaks an invariant, and where something
/// that had to be seen was not.
pub(crate) fn keeps_everything(world: World, rules: Rules) {
    keeps(world.name, &Protocol { world, rules });
}

/// The same of any model.
pub(crate) fn keeps<M: Checked>(name: &str, model: &M) {
    let checker = model.clone().checker().spawn_bfs().join();
    let found = checker.discoveries();
    let properties = checker.model().properties();
    let (sights, invariants): (Vec<_>, Vec<_>) = properties
        .iter()
        .partition(|property| property.name.starts_with(SEEN));
    for invariant in invariants {
        if found.contains_key(invariant.name) {
            let story = shortest_of(model, invariant.name).unwrap_or_default();
            panic!("{}", told(name, invariant.name, &story));
        }
    }
    for sight in sights {
        assert!(found.contains_key(sight.name), "{name}: never {}", sight.name);
    }
    println!(
        "{name}: {} states, {} steps",
        checker.unique_state_count(),
        checker.state_count()
    );
}

/// Every invariant that falls somewhere in the world.
pub(crate) fn fallen(world: World, rules: Rules) -> BTreeSet<&'static str> {
    let checker = Protocol { world, rules }.checker().spawn_bfs().join();
    let found = checker.discoveries();
    found.into_keys().filter(|name| !name.starts_with(SEEN)).collect()
}

/// The shortest way to a state that breaks this invariant.
pub(crate) fn shortest(world: World, rules: Rules, invariant: &'static str) -> Option<Vec<Action>> {
    shortest_of(&Protocol { world, rules }, invariant)
}

/// The same of any model.
///
/// The checker looks at states in blocks and reports the last finding of a block, not the first. So it is asked again
/// for something shorter until there is nothing.
pub(crate) fn shortest_of<M: Checked>(model: &M, invariant: &'static str) -> Option<Vec<M::Action>> {
    let mut shortest: Option<Vec<M::Action>> = None;
    loop {
        let mut builder = model
            .clone()
            .checker()
            .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([invariant])));
        if let Some(known) = &shortest {
            // A depth counts states, one more than steps, and this one is left out.
            builder = builder.target_max_depth(known.len() + 1);
        }
        match builder.spawn_bfs().join().discovery(invariant) {
            Some(shorter) => shortest = Some(shorter.into_actions()),
            None => return shortest,
        }
    }
}

/// Demands that this invariant falls in the model, by these steps in this order with others between them, and that it
/// stands in the other, which has every rule.
pub(crate) fn falls_of<M: Checked>(
    name: &str,
    model: &M,
    invariant: &'static str,
    by: &[M::Action],
    with_every_rule: &M,
) {
    let story = shortest_of(model, invariant);
    let story = story.unwrap_or_else(|| panic!("{name}: {invariant}: kept without the rule"));
    let text = told(name, invariant, &story);
    println!("{text}");
    let mut rest = story.iter();
    for step in by {
        assert!(
            rest.any(|action| action == step),
            "no {step:?} in its place in\n{text}"
        );
    }
    // With the rule the same world is sound.
    assert_eq!(
        shortest_of(with_every_rule, invariant),
        None,
        "{name}: broken with every rule"
    );
}

/// A story that a person can follow, a step a line.
fn told<A: Display>(name: &str, invariant: &str, story: &[A]) -> String {
    let mut text = format!("{name}: broken after {} steps: {invariant}\n", story.len());
    for (at, action) in story.iter().enumerate() {
        let _ = writeln!(text, "{:>4}. {action}", at + 1);
    }
    text
}
