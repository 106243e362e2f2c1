//! What a run left on the disk.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hapax::store::Store as _;
use hapax::store::rocks::RocksStore;

use crate::Result;

/// Blocks of `st_blocks`, on every system.
const BLOCK: u64 = 512;

/// A store after its consumer has closed it. Nothing is compacted for the occasion.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    /// Buckets of the topic's window that exist.
    pub(crate) live_buckets: usize,
    /// Disk blocks of all table files: the buckets, and a few KiB of identity, positions and open tokens.
    pub(crate) table_bytes: u64,
}

pub(crate) fn look(dir: &Path) -> Result<Stored> {
    let mut table_bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "sst")
        {
            table_bytes += entry.metadata()?.blocks() * BLOCK;
        }
    }
    let store = RocksStore::open_existing_for_cli(dir)?;
    let mut live_buckets = 0;
    for (topic, _) in store.topics() {
        live_buckets += store.window_size(topic)?.buckets;
    }
    Ok(Stored {
        live_buckets,
        table_bytes,
    })
}
