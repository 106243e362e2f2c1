//! Effects: what a handler under test did to the outside world.
//!
//! A handler notes its effects here instead of charging a card. What is noted outlives a crash, as the card does; the
//! process's own memory does not.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::message::Sent;
use super::script::Script;

/// The outside world of a handler under test. Clones share it; give one to [`Topic::state`](crate::Topic::state).
///
/// [`exhaust`](super::exhaust()) hands one to each process that it starts. `Effects::default()` is one for a test of
/// your own, with a [`Harness`](super::Harness).
///
/// ```
/// use hapax::testing::Effects;
///
/// let bank = Effects::default();
/// bank.note("charge", "p-1");
/// bank.note("charge", "p-1");
/// assert!(bank.contains("charge", "p-1"));
/// assert_eq!((bank.times("charge"), bank.times("refund")), (2, 0));
/// ```
#[derive(Clone, Default)]
pub struct Effects {
    world: Arc<Mutex<World>>,
    /// The process that holds this handle; `None` where nobody crashes it.
    process: Option<Script>,
}

#[derive(Default)]
struct World {
    noted: Vec<Noted>,
    things: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

/// One effect: two with the same name and token are the same effect, applied twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Effect {
    /// What was done: `"charge"`.
    pub name: String,
    /// By which token: the child token that was sent, the payment's number.
    pub token: String,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.token)
    }
}

/// An effect, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) effect: Effect,
    /// The message whose handler or probe was running; `None` for a task that it had spawned.
    pub(super) of: Option<Sent>,
}

impl Effects {
    /// The same world, as the running process of a script sees it.
    pub(super) fn seen_by(&self, script: &Script) -> Self {
        Self {
            world: Arc::clone(&self.world),
            process: Some(script.clone()),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // A push is whole or not there.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The effect `name` is applied by this token, once more if it was before. Whether that is harm is for the topic's
    /// class to say. What a process says after it has crashed is not heard.
    pub fn note(&self, name: impl Into<String>, token: impl fmt::Display) {
        let effect = Effect {
            name: name.into(),
            token: token.to_string(),
        };
        let of = match &self.process {
            Some(script) if script.is_dead() => return,
            Some(script) => script.effect(&effect),
            None => None,
        };
        self.world().noted.push(Noted { effect, of });
    }

    /// Whether the effect `name` was applied by this token: what a probe asks, or a downstream that keeps tokens.
    #[must_use]
    pub fn contains(&self, name: &str, token: impl fmt::Display) -> bool {
        let token = token.to_string();
        self.world()
            .noted
            .iter()
            .any(|noted| noted.effect.name == name && noted.effect.token == token)
    }

    /// How often the effect `name` was applied, by whatever token, repeats included.
    #[must_use]
    pub fn times(&self, name: &str) -> usize {
        let world = self.world();
        world
            .noted
            .iter()
            .filter(|noted| noted.effect.name == name)
            .count()
    }

    /// Every effect so far, in the order in which it was applied, repeats included.
    #[must_use]
    pub fn all(&self) -> Vec<Effect> {
        self.noted().into_iter().map(|noted| noted.effect).collect()
    }

    /// A piece of the outside world that is more than a list, a table of your own for example: made by its `Default`
    /// when it is first asked for, and from then on the same for every process. It outlives crashes.
    #[must_use]
    pub fn shared<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let mut world = self.world();
        let thing = world
            .things
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(T::default()));
        // What lies under a type's own number is of that type.
        Arc::clone(thing).downcast().unwrap_or_default()
    }

    pub(super) fn noted(&self) -> Vec<Noted> {
        self.world().noted.clone()
    }
}

impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Effects").field(&self.all()).finish()
    }
}
