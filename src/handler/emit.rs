//! Emit: what a handler wants to become visible with its outcome.
//!
//! An attempt's outputs are collected in an outbox that its context shares, and taken only where the attempt ends well. A partition
//! task uses its outboxes again: an attempt that emits nothing allocates nothing.
//!
//! Nothing is lost silently. An emit that is refused says why, and an attempt with a refused emit does not end well, whatever its
//! handler returns: otherwise whoever drops the error loses the message.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::HandlerError;
use crate::config::{self, Outputs};
use crate::output::Output;

/// Why an output was not taken. The attempt does not end well after it, whatever the handler returns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// Two outputs of one attempt have one name, so both would carry one child token, and whoever reads them would drop the
    /// second. hapax took neither into the outcome. Give each output of a handler a name of its own.
    #[error(
        "output {name:?} was emitted already in this attempt: both would carry one child token, and whoever reads them would drop the second; give each output a name of its own, such as \"{name}-2\""
    )]
    Repeated {
        /// The name.
        name: String,
    },
    /// The name is empty, longer than 255 bytes, or hapax's own. hapax took nothing into the outcome. Give it another name.
    #[error(
        "an output's name has 1 to 255 bytes and does not begin with \"hapax:\", this one has {bytes}: its child token is made of it"
    )]
    Name {
        /// Its length.
        bytes: usize,
    },
    /// There are more outputs than `outputs.max` allows. hapax took none into the outcome. Emit fewer, or raise the limit.
    #[error(
        "output {name:?} is one more than the {max} that an outcome may have; raise `outputs.max` of the topic"
    )]
    TooMany {
        /// The name of the one too many.
        name: String,
        /// The limit.
        max: usize,
    },
    /// The outputs have more bytes than `outputs.bytes` allows. hapax took none into the outcome. Emit less, or raise the limit.
    #[error(
        "with output {name:?} the outcome has {bytes} bytes of outputs, and may have {max}; raise `outputs.bytes` of the topic, and `max.message.bytes` of the topics that they go to"
    )]
    TooLarge {
        /// The name of the one that did not fit.
        name: String,
        /// All bytes, with this one.
        bytes: usize,
        /// The limit.
        max: u64,
    },
    /// Outputs do not go to that topic. hapax took none into the outcome. Mend the name, or add it to `outputs.topics`.
    #[error("output {name:?} cannot go to topic {topic:?}: {why}")]
    Topic {
        /// The name.
        name: String,
        /// The topic.
        topic: String,
        /// Why.
        why: String,
    },
    /// A header that hapax itself adds. hapax took nothing into the outcome. Give the header another name.
    #[error("output {name:?} has a header {header:?}, which hapax adds itself; give it another name")]
    Header {
        /// The name.
        name: String,
        /// The header.
        header: String,
    },
    /// The attempt has ended: there is no outcome that the output could belong to. hapax took nothing. Emit before the handler
    /// returns.
    #[error("output {name:?} belongs to no attempt: it was emitted after the handler had returned")]
    NoAttempt {
        /// The name.
        name: String,
    },
}

/// The header that carries a child token, so that a hapax downstream reads it as its token.
pub(crate) const TOKEN_HEADER: &str = "idempotency-key";

/// What all headers of hapax's own begin with.
const OWN_HEADERS: &str = "hapax-";

/// What the names of hapax's own outputs begin with: replies and receipts.
pub(crate) const OWN_NAMES: &str = "hapax:";

/// What every changelog's name ends with.
const CHANGELOG: &str = ".hapax";

/// The longest name of an output: it travels in a header.
const NAME_BYTES_MAX: usize = 255;

/// An output, and the name that its child token is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Emitted {
    pub(crate) name: String,
    pub(crate) output: Output,
}

/// What one attempt has emitted so far. Clones share it.
#[derive(Clone)]
pub(crate) struct Outbox(Arc<Mutex<Gathered>>);

struct Gathered {
    rules: Arc<Outputs>,
    outputs: Vec<Emitted>,
    bytes: usize,
    refused: Option<EmitError>,
    is_over: bool,
}

/// The outboxes of one partition task.
pub(crate) struct Outboxes {
    rules: Arc<Outputs>,
    spare: Vec<Outbox>,
}

impl Outboxes {
    pub(crate) fn new(rules: &Arc<Outputs>) -> Self {
        Self {
            rules: Arc::clone(rules),
            spare: Vec::new(),
        }
    }

    /// One for an attempt that starts.
    pub(crate) fn open(&mut self) -> Outbox {
        self.spare.pop().unwrap_or_else(|| Outbox::new(&self.rules))
    }

    /// The attempt is over. One that a task of the user's still holds is not used again.
    pub(crate) fn give_back(&mut self, mut outbox: Outbox) {
        if let Some(gathered) = Arc::get_mut(&mut outbox.0) {
            let gathered = gathered.get_mut().unwrap_or_else(PoisonError::into_inner);
            gathered.reset();
            self.spare.push(outbox);
        }
    }
}

impl Outbox {
    pub(crate) fn new(rules: &Arc<Outputs>) -> Self {
        Self(Arc::new(Mutex::new(Gathered {
            rules: Arc::clone(rules),
            outputs: Vec::new(),
            bytes: 0,
            refused: None,
            is_over: false,
        })))
    }

    /// Takes one output, under its name.
    pub(crate) fn emit(&self, name: &str, output: Output) -> Result<(), EmitError> {
        let mut gathered = self.lock();
        if gathered.is_over {
            return Err(EmitError::NoAttempt {
                name: name.to_owned(),
            });
        }
        let taken = gathered.take(name, output);
        if let Err(refused) = &taken {
            gathered.refused.get_or_insert_with(|| refused.clone());
        }
        taken
    }

    /// The attempt ended well: what it emitted, and nothing more from here on.
    ///
    /// # Errors
    /// Where an emit was refused: the attempt did not end well after all.
    pub(crate) fn close(&mut self) -> Result<Vec<Emitted>, HandlerError> {
        // Nobody else holds it, nearly always: no lock then.
        match Arc::get_mut(&mut self.0) {
            Some(gathered) => gathered.get_mut().unwrap_or_else(PoisonError::into_inner).close(),
            None => self.lock().close(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // Nothing of the user's runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    fn take(&mut self, name: &str, output: Output) -> Result<(), EmitError> {
        let named = name.to_owned();
        if named.is_empty() || named.len() > NAME_BYTES_MAX || named.starts_with(OWN_NAMES) {
            return Err(EmitError::Name { bytes: named.len() });
        }
        if self.outputs.iter().any(|emitted| emitted.name == named) {
            return Err(EmitError::Repeated { name: named });
        }
        let (max, bytes_max) = (self.rules.max, self.rules.bytes.0);
        if self.outputs.len() >= max {
            return Err(EmitError::TooMany { name: named, max });
        }
        if let Err(why) = may_go_to(&self.rules, &output.topic) {
            return Err(EmitError::Topic {
                name: named,
                topic: output.topic,
                why,
            });
        }
        if let Some((header, _)) = output.headers.iter().find(|(header, _)| is_own(header)) {
            return Err(EmitError::Header {
                name: named,
                header: header.clone(),
            });
        }
        let bytes = self.bytes + output.bytes() + named.len();
        if bytes as u64 > bytes_max {
            return Err(EmitError::TooLarge {
                name: named,
                bytes,
                max: bytes_max,
            });
        }
        self.bytes = bytes;
        self.outputs.push(Emitted { name: named, output });
        Ok(())
    }

    fn close(&mut self) -> Result<Vec<Emitted>, HandlerError> {
        self.is_over = true;
        match self.refused.take() {
            // Whatever the handler did besides is done: unknown, as with any other error after an effect.
            Some(refused) => Err(HandlerError::unknown(refused)),
            None => Ok(std::mem::take(&mut self.outputs)),
        }
    }

    fn reset(&mut self) {
        self.outputs.clear();
        self.bytes = 0;
        self.refused = None;
        self.is_over = false;
    }
}

/// A header that nobody but hapax writes.
fn is_own(header: &str) -> bool {
    header == TOKEN_HEADER || header.starts_with(OWN_HEADERS)
}

fn may_go_to(rules: &Outputs, topic: &str) -> Result<(), String> {
    config::legal(topic)?;
    if topic.ends_with(CHANGELOG) {
        return Err(
            "a name that ends in \".hapax\" is a changelog's, which nobody but hapax writes".to_owned(),
        );
    }
    if !rules.topics.is_empty() && !rules.topics.iter().any(|known| known == topic) {
        let known: BTreeSet<_> = rules.topics.iter().map(String::as_str).collect();
        let known: Vec<_> = known.into_iter().collect();
        return Err(format!(
            "`outputs.topics` names {} and no other",
            known.join(", ")
        ));
    }
    Ok(())
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gathered = self.lock();
        write!(
            f,
            "Outbox({} outputs, {} B)",
            gathered.outputs.len(),
            gathered.bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteCount;

    fn outbox(change: impl FnOnce(&mut Outputs)) -> Outbox {
        let mut rules = Outputs::default();
        change(&mut rules);
        Outbox::new(&Arc::new(rules))
    }

    /// Schedule 19: two of one name would carry one child token, and the second would be dropped downstream.
    #[test]
    fn a_repeated_name_is_an_error_that_nobody_can_drop() {
        let mut outbox = outbox(|_| {});
        outbox.emit("x", Output::to("a")).unwrap();
        let refused = outbox.emit("x", Output::to("b")).unwrap_err();
        assert!(refused.to_string().contains("such as \"x-2\""), "{refused}");
        // The handler goes on as if nothing had happened.
        outbox.emit("y", Output::to("a")).unwrap();
        let error = outbox.close().unwrap_err();
        assert!(error.message().contains("output \"x\" was emitted already"));
    }

    #[test]
    fn limits_are_held_at_the_number_and_the_byte() {
        let mut two = outbox(|rules| rules.max = 2);
        two.emit("1", Output::to("a")).unwrap();
        two.emit("2", Output::to("a")).unwrap();
        assert_eq!(
            two.emit("3", Output::to("a")),
            Err(EmitError::TooMany {
                name: "3".into(),
                max: 2
            })
        );
        assert!(two.close().is_err());

        let full = outbox(|rules| rules.bytes = ByteCount(10));
        let ten = Output::to("a").key("kkk").payload("ppp").header("h", "vv");
        full.emit("n", ten).unwrap();
        assert!(matches!(
            full.emit("m", Output::to("a")),
            Err(EmitError::TooLarge {
                bytes: 11,
                max: 10,
                ..
            })
        ));
    }

    #[test]
    fn no_output_goes_where_it_must_not() {
        let any = outbox(|_| {});
        for topic in ["", "..", "a b", "group.orders.hapax"] {
            assert!(
                matches!(any.emit("x", Output::to(topic)), Err(EmitError::Topic { .. })),
                "{topic}"
            );
        }
        let one = outbox(|rules| rules.topics = vec!["a".into()]);
        let refused = one.emit("x", Output::to("b")).unwrap_err();
        assert!(refused.to_string().contains("names a and no other"), "{refused}");
        assert_eq!(one.emit("x", Output::to("a")), Ok(()));
    }

    #[test]
    fn a_name_is_there_and_is_not_one_of_hapax() {
        for name in ["", "hapax:reply", &"n".repeat(256)] {
            let refused = outbox(|_| {}).emit(name, Output::to("a"));
            assert_eq!(refused, Err(EmitError::Name { bytes: name.len() }), "{name}");
        }
        assert_eq!(outbox(|_| {}).emit(&"n".repeat(255), Output::to("a")), Ok(()));
    }

    #[test]
    fn no_handler_writes_the_headers_that_hapax_writes() {
        for header in ["idempotency-key", "hapax-id", "hapax-anything"] {
            let output = Output::to("a").header(header, "v");
            assert!(
                matches!(outbox(|_| {}).emit("x", output), Err(EmitError::Header { .. })),
                "{header}"
            );
        }
    }

    #[test]
    fn what_is_emitted_after_the_end_is_refused_and_reaches_no_other_attempt() {
        let rules = Arc::new(Outputs::default());
        let mut outboxes = Outboxes::new(&rules);
        let mut first = outboxes.open();
        let kept = first.clone();
        assert_eq!(first.close().unwrap(), []);
        outboxes.give_back(first);
        let late = kept.emit("x", Output::to("a"));
        assert_eq!(late, Err(EmitError::NoAttempt { name: "x".into() }));
        let mut second = outboxes.open();
        second.emit("y", Output::to("a")).unwrap();
        assert_eq!(second.close().unwrap().len(), 1);
        // Nobody holds this one any more: it is used again, empty.
        second.emit("z", Output::to("a")).unwrap_err();
        outboxes.give_back(second);
        let mut third = outboxes.open();
        third.emit("y", Output::to("a")).unwrap();
        assert_eq!(third.close().unwrap().len(), 1);
    }
}
