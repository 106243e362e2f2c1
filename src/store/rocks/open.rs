//! Opening: whose store this is, and whether it may be used.
//!
//! Everything that can be refused is refused before anything is written: the identity is first read without
//! writing, then the store is opened, then the identity is read again under the lock.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;

use rocksdb::{ColumnFamilyDescriptor, DB, ErrorKind, IteratorMode, Options};
use serde::{Deserialize, Serialize};

use super::keys;
use super::options::Budget;
use crate::config::Durability;
use crate::store::{Error, StoreId, TopicId, TopicSpec};

/// The layout of families and of `meta` that this code writes, and the newest it reads.
pub(super) const FORMAT: u32 = 1;

/// What `meta` says before anything is written.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) store_id: StoreId,
    pub(super) group: String,
    pub(super) cluster: Option<String>,
    /// The last start has not ended in a close.
    pub(super) running: bool,
    pub(super) unclean: u32,
    pub(super) durability: Durability,
    pub(super) topics: BTreeMap<TopicId, TopicSpec>,
    pub(super) partitions: BTreeMap<TopicId, i32>,
}

/// A topic in `meta`.
#[derive(Serialize, Deserialize)]
struct TopicText {
    name: String,
    window_ms: i64,
}

pub(super) fn topic_text(spec: &TopicSpec) -> Vec<u8> {
    let text = TopicText {
        name: spec.name.clone(),
        window_ms: spec.window_ms,
    };
    // Two plain fields: there is nothing in them that JSON cannot say.
    serde_json::to_vec(&text).unwrap_or_default()
}

/// Whether there is a store in that directory.
pub(super) fn exists(dir: &Path) -> Result<bool, Error> {
    dir.join("CURRENT")
        .try_exists()
        .map_err(|source| directory(dir, source))
}

/// Makes the directory, and proves that it takes a file.
pub(super) fn prepare(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir)
        .and_then(|()| probe(dir))
        .map_err(|source| directory(dir, source))
}

/// RocksDB reports a full or read-only disk as text; the system reports it as an error with a kind.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!("hapax-probe-{}", std::process::id()));
    let written = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(&[0; 64 << 10])?;
        file.sync_all()
    });
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

fn directory(dir: &Path, source: io::Error) -> Error {
    Error::Directory {
        path: dir.to_owned(),
        source,
    }
}

/// Reads the identity of the store in `dir` without writing a byte. `None` where it cannot be read so: it may be
/// half made, damaged, or written to by another process at this moment, and opening it will say which.
pub(super) fn peek(dir: &Path) -> Result<Option<Found>, Error> {
    let db = DB::open_cf_for_read_only(&Budget::reading(), dir, [keys::META], false);
    db.map_or(Ok(None), |db| read(&db, dir))
}

/// Opens every family that exists, each with its own options, and `meta`, `open` and `audit` in any case.
pub(super) fn open(dir: &Path, budget: &Budget, create: bool) -> Result<(DB, Vec<String>), Error> {
    let mut names = vec![
        keys::META.to_owned(),
        keys::OPEN.to_owned(),
        keys::AUDIT.to_owned(),
    ];
    let mut buckets = Vec::new();
    if exists(dir)? {
        let listed = DB::list_cf(&Options::default(), dir).map_err(|error| refusal(dir, &error))?;
        for name in listed {
            if keys::parse_bucket(&name).is_some() {
                buckets.push(name);
            } else if name != rocksdb::DEFAULT_COLUMN_FAMILY_NAME && !names.contains(&name) {
                return Err(not_ours(dir, name));
            }
        }
    }
    names.push(rocksdb::DEFAULT_COLUMN_FAMILY_NAME.to_owned());
    names.extend(buckets.iter().cloned());
    let families = names
        .iter()
        .map(|name| ColumnFamilyDescriptor::new(name, budget.family(name)));
    let db = DB::open_cf_descriptors(&budget.database(create), dir, families)
        .map_err(|error| refusal(dir, &error))?;
    Ok((db, buckets))
}

/// What `meta` says; `None` for a store that was made but never given its identity.
pub(super) fn read(db: &DB, dir: &Path) -> Result<Option<Found>, Error> {
    let Some(meta) = db.cf_handle(keys::META) else {
        return Ok(None);
    };
    let mut texts = BTreeMap::new();
    for entry in db.iterator_cf(&meta, IteratorMode::Start) {
        let (key, value) = entry.map_err(|error| damage(dir, "read the identity", &error))?;
        // Those of partitions are many, and of no interest here.
        let of_partition = [keys::POSITION, keys::CHANGELOG].map(str::as_bytes);
        if !of_partition.iter().any(|prefix| key.starts_with(prefix)) {
            let text = |bytes: Box<[u8]>| String::from_utf8_lossy(&bytes).into_owned();
            texts.insert(text(key), text(value));
        }
    }
    let Some(format) = texts.get(keys::FORMAT) else {
        return match db.iterator(IteratorMode::Start).next() {
            None if texts.is_empty() => Ok(None),
            _ => Err(not_ours(dir, "without a format".to_owned())),
        };
    };
    let format = format.parse().map_err(|_| unreadable(dir, keys::FORMAT))?;
    if format > FORMAT {
        return Err(Error::Newer {
            path: dir.to_owned(),
            found: format,
            known: FORMAT,
        });
    }
    let parsed = |key: &str| texts.get(key).ok_or_else(|| unreadable(dir, key));
    let durability = match texts.get(keys::DURABILITY).map(String::as_str) {
        None => Durability::Local,
        Some(found) => [Durability::Local, Durability::Replicated]
            .into_iter()
            .find(|known| known.name() == found)
            .ok_or_else(|| unreadable(dir, keys::DURABILITY))?,
    };
    let mut topics = BTreeMap::new();
    for (key, value) in texts.range(keys::TOPIC.to_owned()..) {
        let Some(number) = key.strip_prefix(keys::TOPIC) else {
            break;
        };
        let id = number.parse().map_err(|_| unreadable(dir, key))?;
        let text: TopicText = serde_json::from_str(value).map_err(|_| unreadable(dir, key))?;
        let spec = TopicSpec {
            name: text.name,
            window_ms: text.window_ms,
        };
        topics.insert(TopicId(id), spec);
    }
    let mut partitions = BTreeMap::new();
    for (key, value) in texts.range(keys::PARTITIONS.to_owned()..) {
        let Some(number) = key.strip_prefix(keys::PARTITIONS) else {
            break;
        };
        let (Ok(id), Ok(count)) = (number.parse(), value.parse()) else {
            return Err(unreadable(dir, key));
        };
        partitions.insert(TopicId(id), count);
    }
    Ok(Some(Found {
        store_id: parsed(keys::STORE_ID)?
            .parse()
            .map_err(|()| unreadable(dir, keys::STORE_ID))?,
        group: parsed(keys::GROUP)?.clone(),
        cluster: texts.get(keys::CLUSTER).cloned(),
        running: texts.contains_key(keys::RUNNING),
        unclean: parsed(keys::UNCLEAN)?
            .parse()
            .map_err(|_| unreadable(dir, keys::UNCLEAN))?,
        durability,
        topics,
        partitions,
    }))
}

/// Refuses a store of another group, and one that was filled in another mode.
pub(super) fn check(dir: &Path, found: &Found, group: &str, durability: Durability) -> Result<(), Error> {
    if found.group != group {
        return Err(Error::Foreign {
            path: dir.to_owned(),
            what: "group",
            found: found.group.clone(),
            asked: group.to_owned(),
        });
    }
    if found.durability != durability {
        return Err(Error::Durability {
            path: dir.to_owned(),
            found: found.durability.to_string(),
            asked: durability.to_string(),
        });
    }
    Ok(())
}

fn not_ours(dir: &Path, found: String) -> Error {
    Error::Foreign {
        path: dir.to_owned(),
        what: "another application's database",
        found,
        asked: "hapax".to_owned(),
    }
}

pub(super) fn unreadable(dir: &Path, key: &str) -> Error {
    Error::Corrupt {
        path: dir.to_owned(),
        what: format!("`meta` has an unreadable {key:?}"),
    }
}

/// Why something that was open could not be read.
pub(super) fn damage(dir: &Path, what: &'static str, error: &rocksdb::Error) -> Error {
    match error.kind() {
        ErrorKind::Corruption => Error::Corrupt {
            path: dir.to_owned(),
            what: error.to_string(),
        },
        _ => Error::Io {
            what,
            why: error.to_string(),
        },
    }
}

/// Why RocksDB did not open.
///
/// It says that the lock is taken, that a disk fails and that a right is missing with one kind, `IOError`, and tells
/// them apart in English only. So this asks the system about the others; what is left is the lock. `LOCK` itself is
/// never opened: closing it would release the lock that another store of *this* process holds (POSIX).
fn refusal(dir: &Path, error: &rocksdb::Error) -> Error {
    if error.kind() == ErrorKind::IOError {
        if let Err(source) = every_file_opens(dir) {
            return directory(dir, source);
        }
        // The lock is taken before the manifest is read, so a manifest that reads was not what failed.
        if DB::list_cf(&Options::default(), dir).is_ok() {
            return Error::Locked { path: dir.to_owned() };
        }
    }
    damage(dir, "open the store", error)
}

fn every_file_opens(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == "LOCK" || !entry.file_type()?.is_file() {
            continue;
        }
        match std::fs::File::open(entry.path()) {
            // The process that holds the lock deletes files at any moment.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
