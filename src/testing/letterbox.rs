//! The dead-letter topic of a harness: it keeps what it is sent, or refuses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::script::{Edge, Script, Side};
use crate::broker::{self, Letter, Letters, Sending};

/// The dead-letter topic. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Letterbox {
    inner: Arc<Mutex<Inner>>,
    /// Whoever sends may die before or after.
    script: Option<Script>,
}

#[derive(Default)]
struct Inner {
    letters: Vec<Letter>,
    refusing: bool,
    /// A topic that refuses, while others take.
    #[cfg(test)]
    refusing_topic: Option<String>,
}

impl Letterbox {
    /// From now on every letter is refused, or accepted again.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.lock().refusing = refusing;
    }

    /// From now on that topic refuses, or none does.
    #[cfg(test)]
    pub(crate) fn refuse_to(&self, topic: Option<&str>) {
        self.lock().refusing_topic = topic.map(str::to_owned);
    }

    /// The same topic, for a process that dies by that script.
    pub(crate) fn watched_by(&self, script: Option<Script>) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            script,
        }
    }

    /// Those of a transaction, which are there with it: the topic refuses none of them.
    pub(crate) fn post(&self, letters: Vec<Letter>) {
        self.lock().letters.extend(letters);
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
            .filter(|(_, reason)| !reason.is_empty())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A push is whole or not there.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Letters for Letterbox {
    fn send(&self, letter: Letter) -> Sending {
        let letterbox = self.clone();
        Box::pin(async move {
            let edge = Edge::Letter(said(&letter));
            let dies_at = |side| {
                let script = letterbox.script.as_ref();
                script.is_some_and(|script| script.dies_at(edge.clone(), side))
            };
            if dies_at(Side::Before) {
                return std::future::pending().await;
            }
            letterbox.deliver(letter)?;
            if dies_at(Side::After) {
                return std::future::pending().await;
            }
            Ok(())
        })
    }
}

impl Letterbox {
    fn deliver(&self, letter: Letter) -> Result<(), broker::Error> {
        let mut inner = self.lock();
        let is_refused = inner.refusing;
        #[cfg(test)]
        let is_refused = is_refused || inner.refusing_topic.as_ref() == Some(&letter.topic);
        if is_refused {
            return Err(broker::Error::Letter {
                topic: letter.topic,
                why: "the test refuses it".into(),
            });
        }
        inner.letters.push(letter);
        Ok(())
    }
}

/// Which message a letter is about, and why it was sent.
fn said(letter: &Letter) -> String {
    let of = |name: &str| {
        let header = letter.headers.iter().find(|(found, _)| found == name);
        let value = header.and_then(|(_, value)| value.as_deref()).unwrap_or_default();
        String::from_utf8_lossy(value).into_owned()
    };
    let (offset, reason, output) = (of("hapax-offset"), of("hapax-reason"), of("hapax-output"));
    match output.is_empty() {
        true => format!("message @{offset} ({reason})"),
        false => format!("output {output} of message @{offset}"),
    }
}
