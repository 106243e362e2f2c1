//! Order per key: every attempt at a message of a key comes before the first attempt at a later one, whether it waits in
//! place, is held for a retry, or its process dies. So whatever takes effect takes effect in order.
//!
//! Asked of classes that are begun, by crash tests and campaign alike: any other starts the next message before it is durable that
//! the one before has ended, and runs that again after a kill. Not asked of what has no key; nor of what is sent again: that waits
//! for the outcome of its token, and may have to run after all. Whoever asks leaves out what runs by a person's word, which may
//! come late.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::token;

/// A handler started with a message of a key.
pub(crate) struct Start<'a, L> {
    pub(crate) offset: i64,
    pub(crate) key: &'a [u8],
    /// What says so.
    pub(crate) line: &'a L,
}

/// The first message of each token of a partition, from its messages in their order.
pub(crate) fn firsts(messages: impl IntoIterator<Item = (i64, token::Key)>) -> BTreeSet<i64> {
    let mut first: BTreeMap<token::Key, i64> = BTreeMap::new();
    for (offset, token) in messages {
        first.entry(token).or_insert(offset);
    }
    first.into_values().collect()
}

/// What is out of order among the starts of a partition, which come in the order of time.
pub(crate) fn out_of_order<'a, L: fmt::Display + 'a>(
    starts: impl IntoIterator<Item = Start<'a, L>>,
) -> Vec<String> {
    // The latest message of each key that was begun.
    let mut begun: BTreeMap<&[u8], Start<'a, L>> = BTreeMap::new();
    let mut found = Vec::new();
    for start in starts {
        match begun.get(start.key) {
            Some(later) if later.offset > start.offset => found.push(format!(
                "{}\n    and then {}, which comes before it in key {}",
                later.line,
                start.line,
                String::from_utf8_lossy(start.key)
            )),
            _ => {
                begun.insert(start.key, start);
            }
        }
    }
    found
}

/// The offsets and keys of starts, and how many of them are out of order.
#[cfg(test)]
fn count(starts: &[(i64, &str)]) -> usize {
    let text = |(offset, key): &(i64, &str)| format!("{key}@{offset}");
    let lines: Vec<String> = starts.iter().map(text).collect();
    let starts = starts.iter().zip(&lines).map(|((offset, key), line)| Start {
        offset: *offset,
        key: key.as_bytes(),
        line,
    });
    out_of_order(starts).len()
}

#[test]
fn a_message_that_is_begun_after_a_later_one_of_its_key_is_found() {
    // Again and again, and then the next: that is what order is.
    assert_eq!(count(&[(3, "a"), (3, "a"), (7, "a"), (7, "a"), (9, "a")]), 0);
    // Keys know nothing of each other.
    assert_eq!(count(&[(7, "a"), (3, "b"), (9, "a"), (4, "b")]), 0);
    // Held for a retry, and passed by a later one; each time that it runs counts.
    assert_eq!(count(&[(3, "a"), (7, "a"), (3, "a"), (3, "a")]), 2);
    // Passed by two.
    assert_eq!(count(&[(3, "a"), (7, "a"), (9, "a"), (7, "a"), (3, "a")]), 2);
}

#[test]
fn of_messages_of_one_token_the_first_is_asked() {
    let sent = [(3, [1; 16]), (4, [2; 16]), (5, [1; 16]), (8, [2; 16])];
    assert_eq!(firsts(sent), BTreeSet::from([3, 4]));
}
