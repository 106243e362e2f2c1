//! The outside world of a demo: a file of effects, one line for each charge, synced before the handler goes on.
//!
//! Nothing here refuses a second charge of one order: a repeat stays in the file for everybody to see.
//!
//! The probe may say *not applied* for a charge that is not in the file, because such a charge can no longer happen.
//! The process that might have made it is dead, and waited for, before the next one starts. And inside one process the
//! line is written within one poll of the handler's future: once a deadline has dropped the future, nobody writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::orders::Order;

/// Bytes of a line. A page of the page cache is a multiple of it, so that no write goes across two pages, between
/// which a SIGKILL could leave half a line.
const LINE_BYTES: usize = 128;

/// One charge, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Effect {
    /// The child token that the handler sent.
    pub(super) child: String,
    /// The order.
    pub(super) order: String,
    /// The life of the consumer that made it.
    pub(super) life: u32,
    /// The attempt.
    pub(super) attempt: u32,
}

/// The file, open for charges.
#[derive(Debug)]
pub(super) struct Shop(File);

impl Shop {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).open(path).map(Self)
    }

    /// Charges: one line, in one write, synced.
    pub(super) fn charge(&self, child: &str, order: &Order, life: u32, attempt: u32) -> io::Result<()> {
        let charge = format!("{child} {} life {life} attempt {attempt}", order.id);
        let line = format!("{charge:<width$}\n", width = LINE_BYTES - 1);
        (&self.0).write_all(line.as_bytes())?;
        self.0.sync_data()
    }
}

/// Every charge so far, in the order of the file.
pub(super) fn read(path: &Path) -> io::Result<Vec<Effect>> {
    let text = std::fs::read_to_string(path)?;
    text.split_inclusive('\n').map(parse).collect()
}

fn parse(line: &str) -> io::Result<Effect> {
    let effect = || {
        let words: Vec<&str> = line.strip_suffix('\n')?.split_whitespace().collect();
        let [child, order, "life", life, "attempt", attempt] = words.as_slice() else {
            return None;
        };
        Some(Effect {
            child: (*child).to_owned(),
            order: (*order).to_owned(),
            life: life.parse().ok()?,
            attempt: attempt.parse().ok()?,
        })
    };
    effect().ok_or_else(|| io::Error::other(format!("{line:?} is not a charge")))
}

/// Counts charges while they are being made, and reads each byte once.
#[derive(Debug)]
pub(super) struct Counter {
    file: File,
    effects: usize,
}

impl Counter {
    /// Begins at the start of the file, which it makes.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).open(path)?;
        let file = File::open(path)?;
        Ok(Self { file, effects: 0 })
    }

    /// Charges until now.
    pub(super) fn count(&mut self) -> io::Result<usize> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        self.effects += bytes.iter().filter(|byte| **byte == b'\n').count();
        Ok(self.effects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_was_charged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("effects");
        let mut counter = Counter::open(&path).unwrap();
        assert_eq!(counter.count().unwrap(), 0);
        let order = Order {
            id: "order-000007".into(),
            customer: "customer-001".into(),
            cents: 5,
        };
        for attempt in 1..=2 {
            Shop::open(&path)
                .unwrap()
                .charge("c0ffee", &order, 3, attempt)
                .unwrap();
        }
        assert_eq!(counter.count().unwrap(), 2);
        let effects = read(&path).unwrap();
        let second = Effect {
            child: "c0ffee".into(),
            order: order.id,
            life: 3,
            attempt: 2,
        };
        assert_eq!((effects.len(), &effects[1]), (2, &second));
    }

    #[test]
    fn half_a_line_is_not_a_charge() {
        for line in [
            "c0ffee order-1 life 1 attempt 1",
            "c0ffee order-1 life x attempt 1\n",
            "\n",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
