//! The surface as it reads in a user's code: it compiles without annotations, and the engine's shape calls it.
