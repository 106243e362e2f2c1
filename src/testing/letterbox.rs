//! The dead-letter topic of a harness: it keeps what it is sent, or refuses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::broker::{self, Letter, Letters, Sending};

/// The dead-letter topic. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Letterbox(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    letters: Vec<Letter>,
    refusing: bool,
}

impl Letterbox {
    /// From now on every letter is refused, or accepted again.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.lock().refusing = refusing;
    }

    /// The letters so far.
    pub(crate) fn letters(&self) -> Vec<Letter> {
        self.lock().letters.clone()
    }

    /// The letters so far, as `(offset, reason)`.
    #[cfg(test)]
    pub(crate) fn reasons(&self) -> Vec<(String, String)> {
        let of = |letter: &Letter, name: &str| {
            let found = letter
                .headers
                .iter()
                .find(|(n, _)| n == name)
                .and_then(|(_, value)| value.clone());
            String::from_utf8_lossy(&found.unwrap_or_default()).into_owned()
        };
        self.letters()
            .iter()
            .map(|letter| (of(letter, "hapax-offset"), of(letter, "hapax-reason")))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A push is whole or not there.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Letters for Letterbox {
    fn send(&self, letter: Letter) -> Sending {
        let letterbox = self.clone();
        Box::pin(async move {
            let mut inner = letterbox.lock();
            if inner.refusing {
                return Err(broker::Error::Letter {
                    topic: letter.topic,
                    why: "the test refuses it".into(),
                });
            }
            inner.letters.push(letter);
            Ok(())
        })
    }
}
