//! Readers of one value each: text, number, duration, bytes, word, list.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::breaker::Share;
use super::error::{Place, Problem};
use super::read::nearest;
use super::tree::Value;
use super::units::{self, ByteCount, Word};

/// Why one value is refused; who asked for it knows the key and the place.
#[derive(Debug)]
pub(super) struct Refusal {
    value: String,
    why: String,
    fix: String,
}

impl Refusal {
    pub(super) fn new(value: &Value, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            value: value.show(),
            ..Self::hiding(why, fix)
        }
    }

    /// A refusal that does not show the value.
    pub(super) fn hiding(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            value: String::new(),
            why: why.into(),
            fix: fix.into(),
        }
    }

    pub(super) fn of(self, key: String) -> Problem {
        Problem::new(key, self.value, self.why, self.fix)
    }
}

pub(super) fn text(value: Value, _: &Place) -> Result<String, Refusal> {
    match value {
        Value::Text(text) | Value::Untyped(text) => Ok(text),
        other => Err(Refusal::new(&other, "it is not a text", "write it in quotes")),
    }
}

pub(super) fn path(value: Value, place: &Place) -> Result<PathBuf, Refusal> {
    text(value, place).map(PathBuf::from)
}

pub(super) fn boolean(value: Value, _: &Place) -> Result<bool, Refusal> {
    match value {
        Value::Boolean(value) => Ok(value),
        Value::Untyped(text) if text == "true" => Ok(true),
        Value::Untyped(text) if text == "false" => Ok(false),
        other => Err(Refusal::new(
            &other,
            "it is neither true nor false",
            "write true or false",
        )),
    }
}

/// A whole number of a type that may be narrower than TOML's.
pub(super) fn number<T: TryFrom<i64>>(value: Value, _: &Place) -> Result<T, Refusal> {
    let number = match &value {
        Value::Integer(text) | Value::Untyped(text) => text.trim().parse::<i64>().ok(),
        _ => None,
    };
    let refused = || {
        Refusal::new(
            &value,
            "it is not a whole number in range",
            "write one such as 16, unquoted",
        )
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(refused)
}

pub(super) fn duration(value: Value, _: &Place) -> Result<Duration, Refusal> {
    const EXAMPLE: &str = "write for example \"7d\", \"10s\" or \"100ms\"";
    let Some(text) = value.as_text() else {
        return Err(Refusal::new(&value, "a duration is a text with a unit", EXAMPLE));
    };
    let refused = |why| Refusal::new(&value, format!("it is not a duration ({why})"), EXAMPLE);
    units::parse_duration(text).map_err(refused)
}

pub(super) fn bytes(value: Value, _: &Place) -> Result<ByteCount, Refusal> {
    const EXAMPLE: &str = "write for example \"64MiB\", or a bare number of bytes";
    let (Value::Text(text) | Value::Untyped(text) | Value::Integer(text)) = &value else {
        return Err(Refusal::new(&value, "it is not a number of bytes", EXAMPLE));
    };
    let refused = |why| Refusal::new(&value, format!("it is not a number of bytes ({why})"), EXAMPLE);
    ByteCount::parse(text).map_err(refused)
}

/// A share, unquoted: 0.5.
pub(super) fn share(value: Value, _: &Place) -> Result<Share, Refusal> {
    let share = match &value {
        Value::Other(text) | Value::Integer(text) | Value::Untyped(text) => Share::parse(text),
        _ => None,
    };
    share.ok_or_else(|| {
        Refusal::new(
            &value,
            "it is not a share",
            "write a number from 0 to 1, such as 0.5",
        )
    })
}

pub(super) fn address(value: &Value) -> Result<SocketAddr, Refusal> {
    const EXAMPLE: &str = "write for example \"127.0.0.1:9464\", or \"off\"";
    let address = value.as_text().and_then(|text| text.parse().ok());
    address.ok_or_else(|| Refusal::new(value, "it is not an address with a port", EXAMPLE))
}

/// One of the words of a choice.
pub(super) fn word<T: Word>(value: Value, _: &Place) -> Result<T, Refusal> {
    let known = || T::WORDS.iter().map(|(word, _)| *word);
    let written = value.as_text().unwrap_or_default();
    if let Some((_, choice)) = T::WORDS.iter().find(|(word, _)| *word == written) {
        return Ok(*choice);
    }
    let fix = match nearest(written, known()) {
        Some(word) => format!("did you mean \"{word}\"?"),
        None => format!("write \"{}\"", known().collect::<Vec<_>>().join("\" or \"")),
    };
    Err(Refusal::new(&value, "unknown value", fix))
}

/// A list, read item by item; the first item that is refused speaks for the list.
pub(super) fn list<T>(
    value: Value,
    place: &Place,
    item: impl Fn(Value, &Place) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    value
        .into_list(place)?
        .into_iter()
        .map(|node| item(node.value, &node.place))
        .collect()
}

/// The only key of a table, such as `{ header = "x" }`.
pub(super) fn single(value: Value, place: &Place) -> Option<(String, Value)> {
    let mut entries = value.into_table(place).ok()?.into_iter();
    let (key, node) = entries.next()?;
    entries.next().is_none().then_some((key, node.value))
}
