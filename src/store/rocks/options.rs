//! Options of RocksDB, one function per kind of family, and the one memory budget that all of them share.
//!
//! Options belong to a *family*: one that is opened or made without its own gets RocksDB's defaults, silently, and
//! with them another cache and no filter. So every family comes from [`Budget::family`], at open and later.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options, WriteBufferManager};

use super::keys;
use crate::config::Durability;

const MIB: usize = 1 << 20;
/// Below this RocksDB flushes so often that it does little else.
const MEMORY_MIN: usize = 16 * MIB;
/// A larger write buffer is no faster to fill, and slower to look into.
const WRITE_BUFFER_MAX: usize = 64 * MIB;

/// One block cache and one write-buffer manager for all families. Write buffers are charged to the cache, so the
/// capacity of the cache bounds both.
pub(super) struct Budget {
    cache: Cache,
    buffers: WriteBufferManager,
    write_buffer_bytes: usize,
    /// Whether the families are flushed together or not at all.
    atomic: bool,
}

impl Budget {
    pub(super) fn new(memory_bytes: u64, durability: Durability) -> Self {
        let memory = usize::try_from(memory_bytes)
            .unwrap_or(usize::MAX)
            .max(MEMORY_MIN);
        let buffers = memory / 2;
        let cache = Cache::new_lru_cache(memory);
        Self {
            buffers: WriteBufferManager::new_write_buffer_manager_with_cache(buffers, false, cache.clone()),
            cache,
            write_buffer_bytes: WRITE_BUFFER_MAX.min(buffers / 2),
            atomic: durability == Durability::Replicated,
        }
    }

    /// Bytes held now, blocks and write buffers.
    pub(super) fn used_bytes(&self) -> u64 {
        self.cache.get_usage() as u64
    }

    /// The database as a whole.
    pub(super) fn database(&self, create: bool) -> Options {
        let mut options = Options::default();
        options.create_if_missing(create);
        options.create_missing_column_families(true);
        // PointInTime, the default, would drop whatever was acknowledged after a damaged record, in silence.
        // AbsoluteConsistency would refuse a store whose process was killed in the middle of a write. This one
        // forgives an incomplete last record, which nobody was told is durable, and refuses damage before it.
        // One thing it cannot tell apart: a damaged *length* in the last 32 KiB of the log looks like an
        // incomplete record. The position is then behind what the broker knows, and the partition is cold.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        // A log that is missing as a whole leaves no damaged record to find.
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_write_buffer_manager(&self.buffers);
        // Families that are seldom written would keep old logs alive, and a reopen would read them all.
        options.set_max_total_wal_size(4 * self.write_buffer_bytes as u64);
        // What is not in the log lies in memory until a flush, and the families must come back of one moment. RocksDB
        // writes the tables of all of them first and then one group of edits into the manifest, whole or not at all.
        options.set_atomic_flush(self.atomic);
        options.set_max_background_jobs(2);
        options.set_max_open_files(512);
        // One thread writes.
        options.set_allow_concurrent_memtable_write(false);
        options.set_avoid_unnecessary_blocking_io(true);
        options.set_skip_stats_update_on_db_open(true);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_max_log_file_size(MIB);
        options.set_keep_log_file_num(4);
        options
    }

    /// For looking at a database without writing to it.
    pub(super) fn reading() -> Options {
        let mut options = Options::default();
        // As in `database`, and not only for the same check: without it RocksDB 11.8 wants to note in the manifest that
        // logs are tracked no more, has nowhere to note it when it only reads, and the process dies by SIGSEGV. A log is
        // in the manifest from the first full write buffer on, so every store killed under load would be lost.
        options.set_track_and_verify_wals_in_manifest(true);
        options
    }

    /// The family of that name.
    pub(super) fn family(&self, name: &str) -> Options {
        match name {
            _ if keys::parse_bucket(name).is_some() => self.closed(),
            keys::OPEN => self.open(),
            _ => self.small(),
        }
    }

    /// Closed records: written once, looked up by whole key, mostly in vain, and dropped with the family.
    fn closed(&self) -> Options {
        let mut table = self.table();
        // A look-up that finds nothing, as most do, is answered by the filter and reads no block: large ones cost it
        // nothing, and give the coder below something to learn from.
        table.set_block_size(16 << 10);
        let mut options = Self::family_options(&table);
        options.set_write_buffer_size(self.write_buffer_bytes);
        options.set_max_write_buffer_number(4);
        // Half a record is random (the token, the fingerprint), and the other half nearly constant: an entropy coder
        // gets that down to bits, where LZ4, which only finds repeats, leaves ten bytes a key on the disk.
        options.set_compression_type(DBCompressionType::Zstd);
        options.set_compression_options(-14, 1, 0, 0);
        // Most look-ups are for tokens never seen: this answers them without a walk through the write buffer.
        // 2 % is about ten bits a key, at some 60 bytes a record in memory.
        options.set_memtable_prefix_bloom_ratio(0.02);
        options.set_memtable_whole_key_filtering(true);
        // The family goes as a whole: rewriting old files by age would be work for nothing.
        options.set_ttl(0);
        options.set_periodic_compaction_seconds(0);
        options
    }

    /// Open records: few at a time, soon deleted, some with a whole message in them.
    fn open(&self) -> Options {
        let mut options = self.common();
        self.set_buffer(&mut options, 16 * MIB);
        options
    }

    /// Families of a few keys.
    fn small(&self) -> Options {
        let mut options = self.common();
        self.set_buffer(&mut options, MIB);
        options
    }

    /// A write buffer of that size at most. Where families are flushed together the first full buffer flushes all of
    /// them, so a small one would cut the large ones into crumbs.
    fn set_buffer(&self, options: &mut Options, bytes_max: usize) {
        if self.atomic {
            options.set_write_buffer_size(self.write_buffer_bytes);
            options.set_max_write_buffer_number(4);
        } else {
            options.set_write_buffer_size(self.write_buffer_bytes.min(bytes_max));
        }
    }

    fn common(&self) -> Options {
        Self::family_options(&self.table())
    }

    fn table(&self) -> BlockBasedOptions {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_bloom_filter(10.0, false);
        table.set_whole_key_filtering(true);
        table.set_optimize_filters_for_memory(true);
        // In the cache, so that the budget holds for them too; first to stay.
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table
    }

    fn family_options(table: &BlockBasedOptions) -> Options {
        let mut options = Options::default();
        options.set_block_based_table_factory(table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_level_compaction_dynamic_level_bytes(true);
        options
    }
}
