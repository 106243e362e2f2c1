//! What a store holds, read from its column families without the runtime.

use std::collections::BTreeMap;
use std::path::Path;

use rocksdb::{DB, IteratorMode, Options};

use super::record::{self, Closed, Open, Stage};
use super::token::Key;

/// A key and its value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// An act of an operator, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Audited {
    pub(crate) act: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The name of the act: operators give no other reason.
    pub(crate) reason: String,
}

/// What a store knows of one topic.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    pub(crate) id: String,
    /// By partition: the commit point that is durable.
    pub(crate) positions: BTreeMap<i32, i64>,
    /// Every closed record, by token. More than one where several buckets have one.
    pub(crate) closed: BTreeMap<(i32, Key), Vec<Closed>>,
    /// Every open record, by partition.
    pub(crate) open: Vec<(i32, Open)>,
    /// What operators did, in the order of time.
    pub(crate) audit: Vec<Audited>,
}

impl Store {
    /// The newest closed record of a token.
    pub(crate) fn closed(&self, token: &(i32, Key)) -> Option<&Closed> {
        self.closed
            .get(token)?
            .iter()
            .max_by_key(|closed| (closed.first_seen_ms, closed.offset))
    }

    /// The open record of one message.
    pub(crate) fn open(&self, (partition, key): &(i32, Key), offset: i64) -> Option<&Open> {
        self.open
            .iter()
            .find(|(of, open)| of == partition && open.offset == offset && open.keys.contains(key))
            .map(|(_, open)| open)
    }

    pub(crate) fn is_held(&self, token: &(i32, Key), offset: i64) -> bool {
        self.open(token, offset).is_some_and(Open::is_kept)
    }

    /// Messages that are begun.
    pub(crate) fn begun(&self) -> usize {
        let begun = |open: &Open| open.stage == Stage::Begun;
        self.open.iter().filter(|(_, open)| begun(open)).count()
    }

    /// Messages that are held.
    pub(crate) fn held(&self) -> usize {
        self.open.iter().filter(|(_, open)| open.is_kept()).count()
    }

    /// Reads the store in `dir`, which nobody has open.
    pub(crate) fn read(dir: &Path, topic: &str) -> Self {
        if !dir.join("CURRENT").exists() {
            return Self::default();
        }
        let names = DB::list_cf(&options(), dir).unwrap();
        let db = DB::open_cf_for_read_only(&options(), dir, &names, false).unwrap();
        let all = |name: &str| -> Vec<Entry> {
            let family = db.cf_handle(name).unwrap();
            db.iterator_cf(&family, IteratorMode::Start)
                .collect::<Result<_, _>>()
                .unwrap()
        };
        let mut store = Self::default();
        let meta: BTreeMap<String, String> = if names.iter().any(|name| name == "meta") {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            all("meta").iter().map(|(k, v)| (text(k), text(v))).collect()
        } else {
            BTreeMap::new()
        };
        store.id = meta.get("store-id").cloned().unwrap_or_default();
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let number = meta.iter().find_map(|(name, value)| {
            let number = name.strip_prefix("topic/")?;
            (json(value)["name"] == topic).then(|| number.parse::<u16>().unwrap())
        });
        // Killed before it had noted its topics: then there is nothing else either.
        let Some(number) = number else { return store };
        for (name, value) in &meta {
            if let Some(partition) = name.strip_prefix(&format!("position/{number}/")) {
                let position = json(value)["commit_point"].as_i64().unwrap();
                store.positions.insert(partition.parse().unwrap(), position);
            }
        }
        for name in names
            .iter()
            .filter(|name| name.starts_with(&format!("w/{number}/")))
        {
            let bucket_ms = name.split('/').nth(2).unwrap().parse().unwrap();
            for (key, value) in all(name) {
                let (partition, token) = key.split_at(4);
                let token = (be(partition), token.try_into().unwrap());
                let closed = record::closed(&value, bucket_ms);
                store.closed.entry(token).or_default().push(closed);
            }
        }
        if names.iter().any(|name| name == "audit") {
            let acts = all("audit");
            let acts = acts
                .iter()
                .map(|(_, value)| serde_json::from_slice(value).unwrap());
            store.audit = acts.collect();
        }
        for (key, value) in all("open") {
            if key[..2] == number.to_be_bytes() {
                let open = record::open(&value);
                assert_eq!(key[6..22], open.keys[0], "an open record under another name");
                store.open.push((be(&key[2..6]), open));
            }
        }
        store
    }
}

/// A manifest that tracks its logs is read only with the option that tracks them: RocksDB 11.8 crashes without it.
fn options() -> Options {
    let mut options = Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    options
}

fn be(bytes: &[u8]) -> i32 {
    i32::from_be_bytes(bytes.try_into().unwrap())
}

/// Plants a fault: takes the closed record of a token out of the store in `dir`.
pub(super) fn delete_closed(dir: &Path, (partition, key): &(i32, Key)) {
    let names = DB::list_cf(&options(), dir).unwrap();
    let db = DB::open_cf(&options(), dir, &names).unwrap();
    let place = [&partition.to_be_bytes()[..], key].concat();
    for name in names.iter().filter(|name| name.starts_with("w/")) {
        db.delete_cf(&db.cf_handle(name).unwrap(), &place).unwrap();
    }
}
