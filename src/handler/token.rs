//! Where code says a message's token is read.
//!
//! A file can name every source but a closure, so closures stay with the topic, under their names, until configuration
//! is resolved.

use std::fmt;
use std::sync::Arc;

use crate::config::TokenSource;
use crate::message::Raw;
use crate::token::Reader;

/// A place where a token is read: an argument of [`Topic::token`](crate::Topic::token).
///
/// Where it is read is part of what a token is: 42 in a header and 42 in the key are two tokens. So renaming a source
/// forgets what was recorded under its old name; state the new one beside the old until one window has passed.
#[derive(Clone)]
pub struct Token(Reader);

impl Token {
    /// The value of the last header of that name.
    #[must_use]
    pub fn header(name: impl Into<String>) -> Self {
        Self(Reader::Header(name.into()))
    }

    /// The message key.
    #[must_use]
    pub const fn key() -> Self {
        Self(Reader::Key)
    }

    /// The value at a JSON pointer into the payload, `"/payment/id"`: text, number or boolean.
    #[must_use]
    pub fn json(pointer: impl Into<String>) -> Self {
        Self(Reader::Json(pointer.into()))
    }

    /// The message's own position. Its redeliveries are found, duplicates are not.
    #[must_use]
    pub const fn offset() -> Self {
        Self(Reader::Offset)
    }

    /// What a closure reads; `None` (or empty) where the message has no token.
    ///
    /// `name` stands for the closure in the token's key: keep it as long as the closure reads the same tokens, and
    /// change it when they change. The closure runs once per message, before any handler: it must not block, and the
    /// same message must always give the same token.
    #[must_use]
    pub fn with<F>(name: impl Into<String>, read: F) -> Self
    where
        F: Fn(&Raw<'_>) -> Option<Vec<u8>> + Send + Sync + 'static,
    {
        Self(Reader::Code(name.into(), Arc::new(read)))
    }

    /// The source as configuration names it.
    pub(super) fn source(&self) -> TokenSource {
        self.0.source()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The sources that code stated, waiting for configuration to say which of them are read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readers(Vec<Reader>);

impl Readers {
    pub(super) fn add(&mut self, token: Token) {
        self.0.push(token.0);
    }

    /// Readers for the sources that configuration settled on, in its order.
    ///
    /// # Errors
    /// The name of a closure that this topic does not have.
    pub(crate) fn of(&self, sources: &[TokenSource]) -> Result<Vec<Reader>, String> {
        let reader = |source: &TokenSource| {
            Ok(match source {
                TokenSource::Header(name) => Reader::Header(name.clone()),
                TokenSource::Key => Reader::Key,
                TokenSource::Json(pointer) => Reader::Json(pointer.clone()),
                TokenSource::Offset => Reader::Offset,
                TokenSource::Code(name) => self.closure(name).ok_or_else(|| name.clone())?,
            })
        };
        sources.iter().map(reader).collect()
    }

    fn closure(&self, wanted: &str) -> Option<Reader> {
        self.0
            .iter()
            .find(|reader| matches!(reader, Reader::Code(name, _) if name == wanted))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{BatchBuilder, Offset};

    fn readers(tokens: &[Token]) -> Readers {
        let mut readers = Readers::default();
        tokens.iter().cloned().for_each(|token| readers.add(token));
        readers
    }

    #[test]
    fn every_source_becomes_its_reader() {
        let tokens = [
            Token::header("h"),
            Token::key(),
            Token::json("/p"),
            Token::offset(),
            Token::with("c", |_| None),
        ];
        let sources: Vec<_> = tokens.iter().map(Token::source).collect();
        let names: Vec<_> = readers(&tokens)
            .of(&sources)
            .unwrap()
            .iter()
            .map(Reader::name)
            .collect();
        assert_eq!(names, ["header:h", "key", "json:/p", "offset", "code:c"]);
    }

    #[test]
    fn configuration_says_which_sources_are_read() {
        let stated = readers(&[Token::header("old"), Token::with("c", |_| None)]);
        let names = |sources: &[TokenSource]| -> Vec<_> {
            stated.of(sources).unwrap().iter().map(Reader::name).collect()
        };
        assert_eq!(names(&[TokenSource::Header("new".into())]), ["header:new"]);
        assert_eq!(
            names(&[TokenSource::Code("c".into()), TokenSource::Key]),
            ["code:c", "key"]
        );
        assert_eq!(
            stated.of(&[TokenSource::Code("other".into())]).unwrap_err(),
            "other"
        );
    }

    #[test]
    fn a_closure_is_found_by_its_name_and_reads_the_message() {
        let tokens = [
            Token::with("a", |_| None),
            Token::with("b", |raw| raw.payload().map(<[u8]>::to_vec)),
        ];
        let found = readers(&tokens).of(&[TokenSource::Code("b".into())]).unwrap();
        let mut batch = BatchBuilder::new("orders".into(), 0, 1, 8);
        batch.push(Offset(1), None, None, Some(b"x"), []);
        let batch = batch.finish();
        let Reader::Code(_, read) = &found[0] else {
            panic!("{found:?}")
        };
        assert_eq!(read(&batch.get(0).unwrap()), Some(b"x".to_vec()));
    }
}
