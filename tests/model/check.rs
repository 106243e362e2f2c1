//! Running the checker: all of a world, or the shortest way to a fall.

use std::collections::BTreeSet;
use std::fmt::Write;

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::{Action, Protocol};
use crate::rules::Rules;
use crate::world::World;

/// How the name of a property begins that says what has to be reachable.
const SEEN: &str = "seen:";

/// Walks through every state of the world. Panics with the way to a state that breaks an invariant, and where something
/// that had to be seen was not.
pub(crate) fn keeps_everything(world: World, rules: Rules) {
    let name = world.name;
    let checker = Protocol { world, rules }.checker().spawn_bfs().join();
    let found = checker.discoveries();
    let properties = checker.model().properties();
    let (sights, invariants): (Vec<_>, Vec<_>) = properties
        .iter()
        .partition(|property| property.name.starts_with(SEEN));
    for invariant in invariants {
        if found.contains_key(invariant.name) {
            let story = shortest(world, rules, invariant.name).unwrap_or_default();
            panic!("{}", told(&world, invariant.name, &story));
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
///
/// The checker looks at states in blocks and reports the last finding of a block, not the first. So it is asked again
/// for something shorter until there is nothing.
pub(crate) fn shortest(world: World, rules: Rules, invariant: &'static str) -> Option<Vec<Action>> {
    let mut shortest: Option<Vec<Action>> = None;
    loop {
        let mut builder = Protocol { world, rules }
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

/// A story that a person can follow, a step a line.
pub(crate) fn told(world: &World, invariant: &str, story: &[Action]) -> String {
    let mut text = format!(
        "{}: broken after {} steps: {invariant}\n",
        world.name,
        story.len()
    );
    for (at, action) in story.iter().enumerate() {
        let _ = writeln!(text, "{:>4}. {action}", at + 1);
    }
    text
}
