//! What is wrong with a configuration, all of it at once: the key, the value, why, and what to write instead.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A configuration that hapax does not run with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    ///
    /// - what happened: it is missing, may not be read, or is not UTF-8; the source says which
    /// - what hapax did: nothing; it has no second place to look in
    /// - what you do: correct the path or its rights
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    ///
    /// - what happened: a quote, bracket or key is malformed, or a key is there twice
    /// - what hapax did: it read no key, since it cannot know where one ends
    /// - what you do: correct that line
    #[error("{place}: not TOML: {message}")]
    Syntax {
        /// Where it stops being TOML.
        place: Place,
        /// What the parser expected. Never the line itself, which may hold a password.
        message: String,
    },
    /// One or more keys are refused.
    ///
    /// - what happened: a key is unknown, missing, or its value cannot work
    /// - what hapax did: it looked at every key and started nothing
    /// - what you do: what each problem says; they are listed together so that one round mends them
    #[error("{}", Listed(.problems))]
    Refused {
        /// Every problem found: those of code and defaults first, then line by line.
        problems: Vec<Problem>,
    },
}

impl Error {
    /// The problems as one error, ordered for reading.
    pub(super) fn refused(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| (&a.place, &a.key).cmp(&(&b.place, &b.key)));
        Self::Refused { problems }
    }

    /// The problems of [`Error::Refused`], or none.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Refused { problems } => problems,
            _ => &[],
        }
    }
}

/// One refused key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Where the value was stated.
    pub place: Place,
    /// The key as one would write it on one line: `topics.orders.window`.
    pub key: String,
    /// The value, or the empty text where there is none or where it may be secret.
    pub value: String,
    /// Why it is refused.
    pub why: String,
    /// What to write instead.
    pub fix: String,
}

impl Problem {
    pub(super) fn new(
        key: impl Into<String>,
        value: impl fmt::Display,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            place: Place::Unstated,
            key: key.into(),
            value: value.to_string(),
            why: why.into(),
            fix: fix.into(),
        }
    }

    pub(super) fn at(mut self, place: &Place) -> Self {
        self.place = place.clone();
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != Place::Unstated {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.key)?;
        if !self.value.is_empty() {
            write!(f, " = {}", self.value)?;
        }
        write!(f, ": {}; {}", self.why, self.fix)
    }
}

/// Where a value was stated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Place {
    /// In code, or nowhere: the default.
    #[default]
    Unstated,
    /// In a file.
    File {
        /// Its path as it was given.
        path: Arc<str>,
        /// The line, counted from 1.
        line: usize,
    },
    /// In an environment variable.
    Env {
        /// Its name.
        name: Arc<str>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstated => f.write_str("code or default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Env { name } => write!(f, "environment {name}"),
        }
    }
}

/// One problem on the line itself, several on a line each.
struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [only] => write!(f, "configuration refused: {only}"),
            all => {
                write!(f, "configuration refused, {} problems:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}
