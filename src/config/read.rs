//! Reading keys out of a tree of values, so that every key is either asked for or refused.
//!
//! A [`Section`] is one table. Its reader takes the keys it knows; what is left at the end nobody asked for, and
//! becomes a problem that names the nearest key that somebody did. So the list of keys is the reading itself, and the
//! two cannot drift apart.

use std::collections::BTreeMap;

use super::error::{Place, Problem};
use super::tree::{Node, Table, Value};
use super::values::Refusal;

/// What was found in all sections: problems, and where each key that was read is stated.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) places: BTreeMap<String, Place>,
    /// Every key that was asked for, present or not.
    pub(super) asked: Vec<String>,
}

impl Findings {
    fn refuse(&mut self, key: String, place: &Place, refusal: Refusal) {
        self.problems.push(refusal.of(key).at(place));
    }
}

/// One table while it is read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// The dotted key of this table; empty at the top.
    path: String,
    table: Table,
    asked: Vec<&'static str>,
    findings: &'a mut Findings,
}

impl<'a> Section<'a> {
    pub(super) fn new(path: &str, table: Table, findings: &'a mut Findings) -> Self {
        let path = path.to_owned();
        let asked = Vec::new();
        Self {
            path,
            table,
            asked,
            findings,
        }
    }

    /// Takes a key; `None` where it is absent or refused.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value, &Place) -> Result<T, Refusal>,
    ) -> Option<T> {
        let path = self.path_of(key);
        self.asked.push(key);
        self.findings.asked.push(path.clone());
        let Node { place, value } = self.table.remove(key)?;
        match read(value, &place) {
            Ok(value) => {
                self.findings.places.insert(path, place);
                Some(value)
            }
            Err(refusal) => {
                self.findings.refuse(path, &place, refusal);
                None
            }
        }
    }

    /// Reads the table under `key`; an absent one is read as empty.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let table = self.table(key);
        let mut section = Section::new(&self.path_of(key), table, self.findings);
        let layer = read(&mut section);
        section.finish();
        layer
    }

    /// Reads every table under `key`; their names are the user's.
    pub(super) fn each<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_>) -> T,
    ) -> BTreeMap<String, T> {
        let path = self.path_of(key);
        let mut layers = BTreeMap::new();
        for (name, Node { place, value }) in self.table(key) {
            let path = format!("{path}.{}", segment(&name));
            match value.into_table(&place) {
                Ok(table) => {
                    let mut section = Section::new(&path, table, self.findings);
                    layers.insert(name, read(&mut section));
                    section.finish();
                    self.findings.places.insert(path, place);
                }
                Err(refusal) => self.findings.refuse(path, &place, refusal),
            }
        }
        layers
    }

    /// Reads the table under `key` as names with dots, quoted or not, and values of any type that has one obvious
    /// text. Values stay out of every message: some are passwords.
    pub(super) fn properties(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let path = self.path_of(key);
        self.findings.asked.push(path.clone());
        let mut properties = BTreeMap::new();
        let mut nested = vec![(String::new(), self.table(key))];
        while let Some((prefix, table)) = nested.pop() {
            for (name, Node { place, value }) in table {
                let name = format!("{prefix}{name}");
                let key = format!("{path}.{}", segment(&name));
                let text = match value {
                    Value::Text(text) | Value::Untyped(text) | Value::Integer(text) => text,
                    Value::Boolean(value) => value.to_string(),
                    Value::Table(table) => {
                        nested.push((format!("{name}."), table));
                        continue;
                    }
                    Value::List(_) | Value::Other(_) => {
                        let why = "a property is a text, a whole number or a boolean";
                        self.findings
                            .refuse(key, &place, Refusal::hiding(why, "write it in quotes"));
                        continue;
                    }
                };
                self.findings.places.insert(key, place);
                properties.insert(name, text);
            }
        }
        properties
    }

    /// Refuses what nobody asked for. Its value stays out of the message: it may be a password under a wrong name.
    pub(super) fn finish(self) {
        for (key, Node { place, value }) in &self.table {
            let topic = self
                .path
                .strip_prefix("topics.")
                .filter(|_| matches!(value, Value::Table(_)));
            let fix = match (nearest(key, self.asked.iter().copied()), topic) {
                (Some(known), _) => format!("did you mean `{known}`?"),
                (None, Some(topic)) => {
                    format!("a topic with a dot in its name is quoted: [topics.\"{topic}.{key}\"]")
                }
                (None, None) => format!("known here: {}", self.asked.join(", ")),
            };
            self.findings
                .refuse(self.path_of(key), place, Refusal::hiding("unknown key", fix));
        }
    }

    fn table(&mut self, key: &'static str) -> Table {
        self.asked.push(key);
        let Some(Node { place, value }) = self.table.remove(key) else {
            return Table::new();
        };
        value.into_table(&place).unwrap_or_else(|_| {
            let refusal = Refusal::hiding("it is not a table", format!("write [{}]", self.path_of(key)));
            self.findings.refuse(self.path_of(key), &place, refusal);
            Table::new()
        })
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => segment(key),
            path => format!("{path}.{}", segment(key)),
        }
    }
}

/// A key as TOML writes it: quoted where it is not a bare word.
pub(super) fn segment(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(bare) {
        key.to_owned()
    } else {
        format!("{key:?}")
    }
}

/// The known word that was probably meant, if any is near enough.
pub(super) fn nearest(word: &str, known: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '.', ' '], "_");
    let word = plain(word);
    let distances = known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(&word, &plain(known)), known));
    let (distance, known) = distances.min()?;
    // A third of the letters: `in_flght` is a typing error, `offset` is no `limits`.
    (distance <= known.len().div_ceil(3).min(3)).then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["in_flight", "in_flight_bytes", "held", "drain"];
        for (word, meant) in [
            ("in_flght", "in_flight"),
            ("in-flight", "in_flight"),
            ("InFlight", "in_flight"),
            ("drian", "drain"),
        ] {
            assert_eq!(nearest(word, known), Some(meant), "{word}");
        }
        for word in ["", "brokers", "h", "window"] {
            assert_eq!(nearest(word, known), None, "{word}");
        }
    }

    #[test]
    fn a_key_is_quoted_where_toml_wants_it() {
        assert_eq!(segment("orders-2_x"), "orders-2_x");
        assert_eq!(segment("a.b"), "\"a.b\"");
        assert_eq!(segment(""), "\"\"");
    }
}
