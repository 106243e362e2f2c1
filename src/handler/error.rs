//! What a handler says of an attempt that failed: was anything applied, and is there any point in another?
//!
//! `?` alone says the weakest thing, *unknown whether anything was applied*, because that is true of any error that
//! nobody looked at. A guarded class then asks its probe or holds the message in doubt. Every stronger statement is
//! made by name: [`not_applied`](HandlerError::not_applied), [`retry_after`](HandlerError::retry_after),
//! [`reject`](HandlerError::reject), or the [`Classify`] methods on any `Result`. hapax believes the statement; it
//! never reads an error's text.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// What `?` converts from: any error, anything that wraps one, and text.
pub(super) type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The most of an error's text that is kept; the rest is cut. It travels in a header of the dead letter.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Why an attempt ended without an outcome, and what is known about what it applied.
///
/// It does not implement [`Error`] itself: that is what lets `?` take every error there is, those of `anyhow` and
/// plain text included. [`source`](Self::source) gives the error inside.
///
/// ```
/// use hapax::{Classify, HandlerError};
///
/// fn charge(card: &str, cents: &str) -> Result<u64, HandlerError> {
///     let cents: u64 = cents.parse().reject()?; // it will be malformed at the next attempt too
///     if card.is_empty() {
///         return Err(HandlerError::reject("no card on file"));
///     }
///     std::fs::read("/no/such/price/list").not_applied()?; // nothing was sent yet: safe to try again
///     std::fs::write("/no/such/ledger", card)?; // who knows
///     Ok(cents)
/// }
/// # assert!(charge("4242", "100").is_err());
/// ```
pub struct HandlerError {
    kind: ErrorKind,
    source: BoxError,
}

/// What is known about an attempt that ended with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// It may have applied something. `Idempotent` handlers are retried; the other classes take the in-doubt rule.
    Unknown,
    /// It applied nothing: every class retries it, with backoff.
    NotApplied,
    /// It applied nothing, and the next attempt should wait at least this long.
    RetryAfter(Duration),
    /// It applied nothing, and no attempt ever will: the message is dead-lettered.
    Reject,
}

impl HandlerError {
    /// Unknown whether anything was applied: what `?` says.
    #[must_use]
    pub fn unknown(source: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::Unknown,
            source: source.into(),
        }
    }

    /// Nothing was applied. hapax records that before it waits for the next attempt, so it stays true after a crash.
    ///
    /// Say it of a read that failed or a connection that was refused, not of a time-out: what was sent may arrive.
    #[must_use]
    pub fn not_applied(source: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::NotApplied,
            source: source.into(),
        }
    }

    /// Nothing was applied, and the downstream named a time: the next attempt waits at least `wait`, longer where
    /// backoff would.
    #[must_use]
    pub fn retry_after(wait: Duration, source: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::RetryAfter(wait),
            source: source.into(),
        }
    }

    /// Nothing was applied, and this message can never succeed: it is recorded as failed and dead-lettered, without
    /// another attempt.
    #[must_use]
    pub fn reject(source: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::Reject,
            source: source.into(),
        }
    }

    /// What is known about the attempt.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error that was returned.
    #[must_use]
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.source
    }

    /// The error and its sources on one line, each said once, cut after 4 KiB. Also what `Display` prints.
    #[must_use]
    pub fn message(&self) -> String {
        chain(&*self.source)
    }
}

impl<E: Into<BoxError>> From<E> for HandlerError {
    fn from(source: E) -> Self {
        Self::unknown(source)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("kind", &self.kind)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

/// Says of an error what is known about it, on the way out: `bank.price(id).await.not_applied()?`.
pub trait Classify<T> {
    /// Nothing was applied: see [`HandlerError::not_applied`].
    ///
    /// # Errors
    /// The error of `self`, so classified.
    fn not_applied(self) -> Result<T, HandlerError>;

    /// Nothing was applied, and nothing ever will be: see [`HandlerError::reject`].
    ///
    /// # Errors
    /// The error of `self`, so classified.
    fn reject(self) -> Result<T, HandlerError>;

    /// Nothing was applied; wait this long: see [`HandlerError::retry_after`].
    ///
    /// # Errors
    /// The error of `self`, so classified.
    fn retry_after(self, wait: Duration) -> Result<T, HandlerError>;
}

impl<T, E: Into<BoxError>> Classify<T> for Result<T, E> {
    fn not_applied(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::not_applied)
    }

    fn reject(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::reject)
    }

    fn retry_after(self, wait: Duration) -> Result<T, HandlerError> {
        self.map_err(|source| HandlerError::retry_after(wait, source))
    }
}

/// An error and its sources on one line, no longer than a dead letter takes.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    crate::error::cut(&crate::error::chain(error), MESSAGE_BYTES_MAX).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// An error that prints what it is told and has the source it is given.
    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (first, rest) = texts.split_first().unwrap();
        Layer(first, (!rest.is_empty()).then(|| Box::new(layers(rest))))
    }

    #[test]
    fn a_question_mark_claims_nothing() {
        fn of_io() -> Result<(), HandlerError> {
            Err(io::Error::other("reset"))?
        }
        fn of_text() -> Result<(), HandlerError> {
            Err("reset")?
        }
        fn of_string() -> Result<(), HandlerError> {
            Err(String::from("reset"))?
        }
        for run in [of_io, of_text, of_string] {
            let error = run().unwrap_err();
            assert_eq!(
                (error.kind(), error.message()),
                (ErrorKind::Unknown, "reset".to_owned())
            );
        }
    }

    #[test]
    fn a_question_mark_keeps_what_was_claimed_before() {
        fn inner() -> Result<(), HandlerError> {
            Err::<(), _>("gone").reject()
        }
        fn outer() -> Result<(), HandlerError> {
            inner()?;
            Ok(())
        }
        assert_eq!(outer().unwrap_err().kind(), ErrorKind::Reject);
    }

    #[test]
    fn each_claim_is_its_own_kind() {
        let wait = Duration::from_secs(3);
        let failed = || Err::<(), _>(io::Error::other("x"));
        assert_eq!(failed().not_applied().unwrap_err().kind(), ErrorKind::NotApplied);
        assert_eq!(
            failed().retry_after(wait).unwrap_err().kind(),
            ErrorKind::RetryAfter(wait)
        );
        assert_eq!(failed().reject().unwrap_err().kind(), ErrorKind::Reject);
        assert_eq!(Ok::<_, io::Error>(7).not_applied().unwrap(), 7);
    }

    #[test]
    fn the_error_inside_can_be_looked_at() {
        let error = HandlerError::from(io::Error::from(io::ErrorKind::TimedOut));
        let inside = error.source().downcast_ref::<io::Error>().unwrap();
        assert_eq!(inside.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_chain_is_printed_once() {
        let cases: [(&[&str], &str); 4] = [
            (&["charge", "connect", "timed out"], "charge: connect: timed out"),
            (&["charge: timed out", "timed out"], "charge: timed out"),
            (&["timed out", "timed out"], "timed out"),
            (
                &["charge: connect: timed out", "connect: timed out", "timed out"],
                "charge: connect: timed out",
            ),
        ];
        for (texts, printed) in cases {
            assert_eq!(HandlerError::from(layers(texts)).message(), printed);
        }
    }

    #[test]
    fn a_text_at_the_limit_is_whole_and_a_longer_one_is_cut_between_characters() {
        let fits = "x".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(HandlerError::from(fits.as_str()).message(), fits);
        let longer = format!("{}é", "x".repeat(MESSAGE_BYTES_MAX - 1));
        assert_eq!(
            HandlerError::from(longer).message(),
            "x".repeat(MESSAGE_BYTES_MAX - 1)
        );
    }

    #[test]
    fn an_error_that_is_its_own_source_is_printed_once() {
        #[derive(Debug)]
        struct Round;
        impl fmt::Display for Round {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("round")
            }
        }
        impl Error for Round {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(self)
            }
        }
        assert_eq!(HandlerError::from(Round).message(), "round");
    }
}
