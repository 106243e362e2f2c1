//! A tree of values with the place of each: what a file and an environment have in common.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Place;
use super::values::Refusal;

/// A value and where it was stated.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// The keys of one table.
pub(super) type Table = BTreeMap<String, Node>;

/// What TOML can state, and what an environment variable can.
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    /// From the environment: text, number, list or table, as the key that reads it wants.
    Untyped(String),
    /// As it is written; TOML's integers have 64 bits, and a longer one is refused by who reads it.
    Integer(String),
    Boolean(bool),
    /// A float, as it is written, or a date, which no key of hapax takes.
    Other(String),
    List(Vec<Node>),
    Table(Table),
}

impl Value {
    /// The text of a text, whichever layer it is from.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Untyped(text) => Some(text),
            _ => None,
        }
    }

    /// As one would write it on one line, for messages.
    pub(super) fn show(&self) -> String {
        match self {
            Self::Text(text) | Self::Untyped(text) => format!("{text:?}"),
            Self::Integer(text) | Self::Other(text) => text.clone(),
            Self::Boolean(value) => value.to_string(),
            Self::List(_) => "[..]".to_owned(),
            Self::Table(_) => "{..}".to_owned(),
        }
    }

    /// The table inside, also where an environment variable spells it out.
    pub(super) fn into_table(self, place: &Place) -> Result<Table, Refusal> {
        match self.spelled_out(place) {
            Self::Table(table) => Ok(table),
            other => Err(Refusal::new(&other, "it is not a table", "write { key = value }")),
        }
    }

    /// The list inside, also where an environment variable spells it out.
    pub(super) fn into_list(self, place: &Place) -> Result<Vec<Node>, Refusal> {
        match self.spelled_out(place) {
            Self::List(list) => Ok(list),
            other => Err(Refusal::new(&other, "it is not a list", "write [ .. ]")),
        }
    }

    /// An environment variable read as the right-hand side of a line of TOML, if it is one.
    fn spelled_out(self, place: &Place) -> Self {
        let Self::Untyped(text) = self else { return self };
        match DeValue::parse(&text) {
            Ok(value) => convert(value.into_inner(), &|_| place.clone()),
            Err(_) => Self::Untyped(text),
        }
    }
}

/// A parsed document; `place_of` turns a byte position into a place.
pub(super) fn convert_table(table: DeTable<'_>, place_of: &dyn Fn(usize) -> Place) -> Table {
    let entry = |(key, value): (Spanned<Cow<'_, str>>, Spanned<DeValue<'_>>)| {
        let place = place_of(key.span().start);
        let value = convert(value.into_inner(), place_of);
        (key.into_inner().into_owned(), Node { place, value })
    };
    table.into_iter().map(entry).collect()
}

fn convert(value: DeValue<'_>, place_of: &dyn Fn(usize) -> Place) -> Value {
    let item = |item: Spanned<DeValue<'_>>| {
        let place = place_of(item.span().start);
        let value = convert(item.into_inner(), place_of);
        Node { place, value }
    };
    match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(number.to_string()),
        DeValue::Float(number) => Value::Other(number.to_string()),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(date) => Value::Other(date.to_string()),
        DeValue::Array(list) => Value::List(list.into_iter().map(item).collect()),
        DeValue::Table(table) => Value::Table(convert_table(table, place_of)),
    }
}

/// Turns byte positions of one file into lines.
pub(super) fn lines(text: &str, path: &str) -> impl Fn(usize) -> Place + use<> {
    let path: Arc<str> = path.into();
    let newlines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    move |position| {
        let line = newlines.partition_point(|newline| *newline < position) + 1;
        let path = Arc::clone(&path);
        Place::File { path, line }
    }
}
