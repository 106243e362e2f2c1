//! The operation class: what repeating a handler would do to the world.
//!
//! The class is the user's statement and the one thing hapax never guesses: every row of the decision
//! tables (`docs/design.md`, "States, classes, verdicts") starts from it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What happens to the world when a handler runs twice for one token.
///
/// A required argument of every topic; it has no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Repeat freely: the second run leaves the world as the first did.
    Idempotent,
    /// Repeating is harmless *with the same child tokens, while the downstream remembers them*
    /// (`rerun_within`).
    PotentiallyIdempotent,
    /// Never repeat unknowingly. After an attempt that may have applied something only a probe or an
    /// operator can start it again.
    NonIdempotent,
}

impl Class {
    /// Whether a handler of this class may start only after its `Begun` is durable (Inv 3).
    #[must_use]
    pub const fn is_guarded(self) -> bool {
        !matches!(self, Self::Idempotent)
    }

    /// The name used in `hapax.toml`, headers and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idempotent => "idempotent",
            Self::PotentiallyIdempotent => "potentially-idempotent",
            Self::NonIdempotent => "non-idempotent",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
