//! The store: what hapax remembers on this machine, behind one trait.
//!
//! A store keeps closed records in time buckets per topic, open records apart from them, a position per partition,
//! and its own identity. It decides nothing: whether a record found still counts is asked of the window
//! ([`crate::window`]) with log time as an argument.
//!
//! [`memory`] is the simplest correct one: the oracle of the model test and the users' test double. `rocks` is the
//! one that survives.

use std::path::PathBuf;

use crate::fence::Fence;
use crate::message::{NextOffset, Offset};
use crate::outcome::{Closed, Open};
use crate::token::TokenKey;

mod audit;
mod bucket;
#[cfg(feature = "testing")]
pub mod conformance;
pub(crate) mod lookups;
pub mod memory;
#[cfg(feature = "rocks")]
pub mod rocks;

pub use audit::{AuditEntry, AuditMark, NoMark};

/// A topic as this store numbers it: small, stable for the life of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u16);

/// One partition of one topic, as a store knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// The partition number.
    pub partition: i32,
}

/// A topic as the store is opened for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// The topic's name.
    pub name: String,
    /// The window, in milliseconds; a time bucket is a quarter of it.
    pub window_ms: i64,
}

/// Whose store this is. Stated by the store, and refused where it differs from what is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Made when the store is created; travels in commit metadata.
    pub store_id: StoreId,
    /// The consumer group.
    pub group: String,
    /// The cluster, once a broker has said so.
    pub cluster: Option<String>,
}

/// 128 random bits that name one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreId(pub [u8; 16]);

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for StoreId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = u128::from_str_radix(text, 16).map_err(|_| ())?;
        if text.len() == 32 {
            Ok(Self(number.to_be_bytes()))
        } else {
            Err(())
        }
    }
}

/// How the last process that used the store ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastStarts {
    /// Starts in a row that did not end in [`Store::close`], this one not counted. 0 after a clean end.
    pub unclean: u32,
}

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The commit point.
    pub commit_point: NextOffset,
    /// Partition time at the commit point, in milliseconds since the epoch; `None` before the first message.
    pub time_ms: Option<i64>,
    /// Partition time at the last commit that the broker had acknowledged when this was written: what Kafka can still
    /// deliver is judged at this time or later. `None` before the first.
    pub acknowledged_ms: Option<i64>,
    /// Wall clock when it was written, in milliseconds since the epoch.
    pub written_ms: i64,
}

/// What a store knows of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// The last position written, `None` for a partition that this store never served.
    pub position: Option<Position>,
    /// The last fence raised; 0 before the first.
    pub fence: u64,
    /// The next offset of the changelog: what lies before it there is in this store. `None` where the store does not
    /// say, and what it holds of the partition then counts for nothing in replicated mode.
    pub changelog: Option<i64>,
    /// Every open record of the partition, by offset.
    pub open: Vec<Open>,
}

/// One record found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Which of the keys asked for.
    pub key: usize,
    /// The record of its newest bucket.
    pub closed: Closed,
}

/// The changes of one partition that become durable together.
///
/// Applied in this order: closes, removals, opens, position, fence; so that one group can end a token and open it
/// again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The partition.
    pub partition: PartitionId,
    /// Closed records to write, each into the bucket of its first seen.
    pub closed: Vec<(TokenKey, Closed)>,
    /// Open records to remove, by first key and offset. One that is absent is not an error.
    pub removed: Vec<(TokenKey, Offset)>,
    /// Open records to write or replace, by first key and offset.
    pub opened: Vec<Open>,
    /// The position, where it moved.
    pub position: Option<Position>,
    /// The fence, where one is raised.
    pub fence: Option<Fence>,
    /// Acts of operators that these changes follow from. One that is there already stays one.
    pub acts: Vec<AuditEntry>,
}

impl Changes {
    /// No change of that partition.
    #[must_use]
    pub const fn new(partition: PartitionId) -> Self {
        Self {
            partition,
            closed: Vec::new(),
            removed: Vec::new(),
            opened: Vec::new(),
            position: None,
            fence: None,
            acts: Vec::new(),
        }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty()
            && self.removed.is_empty()
            && self.opened.is_empty()
            && self.position.is_none()
            && self.fence.is_none()
            && self.acts.is_empty()
    }
}

/// How much of a topic's window is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Bytes of all its buckets, as near as the store can tell.
    pub bytes: u64,
    /// Buckets that exist.
    pub buckets: usize,
    /// Start of the oldest, in milliseconds since the epoch.
    pub oldest_ms: Option<i64>,
}

/// What hapax remembers on this machine.
///
/// Every call may block on a disk and is made from a thread of its own, never from the async runtime. What
/// [`apply`](Store::apply) wrote is on stable storage when it returns, and visible to every later
/// [`look_up`](Store::look_up).
pub trait Store: Send + Sync + 'static {
    /// Whose store this is.
    fn identity(&self) -> Identity;

    /// How the last process ended.
    fn past(&self) -> PastStarts;

    /// States the cluster, at the first contact with a broker.
    ///
    /// # Errors
    /// [`Error::Foreign`] where the store belongs to another cluster.
    fn claim_cluster(&self, cluster: &str) -> Result<(), Error>;

    /// The number of a topic.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] where the store was not opened for it.
    fn topic(&self, name: &str) -> Result<TopicId, Error>;

    /// What is known of one partition.
    ///
    /// # Errors
    /// An I/O error, or a record that this version cannot read.
    fn load(&self, partition: PartitionId) -> Result<Known, Error>;

    /// The same, with its open records one at a time, in no order: a million messages may be held, and whoever needs no
    /// more of each than what it is must not have them all in memory. The answer has none.
    ///
    /// # Errors
    /// An I/O error, or a record that this version cannot read; what was visited until then counts for nothing.
    fn visit(&self, partition: PartitionId, visit: &mut dyn FnMut(Open)) -> Result<Known, Error> {
        let mut known = self.load(partition)?;
        std::mem::take(&mut known.open).into_iter().for_each(visit);
        Ok(known)
    }

    /// Open records by the first key and the offset of each, in that order; those that are not there are left out.
    ///
    /// # Errors
    /// An I/O error, or a record that this version cannot read.
    fn load_open(&self, partition: PartitionId, names: &[(TokenKey, Offset)]) -> Result<Vec<Open>, Error>;

    /// The position of one partition alone, without its open records.
    ///
    /// # Errors
    /// An I/O error, or a record that this version cannot read.
    fn load_position(&self, partition: PartitionId) -> Result<Option<Position>, Error> {
        self.load(partition).map(|known| known.position)
    }

    /// Forgets the position of a partition: its window is gone, and who serves it again finds it cold. Its fence and
    /// its open records stay. The changelog's offset goes too: a tail read onto a window that is gone would pass for a
    /// whole one.
    ///
    /// # Errors
    /// An I/O error.
    fn forget_position(&self, partition: PartitionId) -> Result<(), Error>;

    /// The moment before which every closed record of the partition was first seen, as near as its newest bucket says;
    /// `None` where it has none. In milliseconds since the epoch.
    ///
    /// # Errors
    /// An I/O error.
    fn seen_until(&self, partition: PartitionId) -> Result<Option<i64>, Error>;

    /// Every partition with a position, an offset of its changelog, or an open record.
    ///
    /// # Errors
    /// An I/O error.
    fn partitions(&self) -> Result<Vec<PartitionId>, Error>;

    /// Looks up closed records in every bucket of the topic that ends after `since_ms`, newest bucket first, and
    /// appends what was found by ascending index of the key. One call for a whole batch.
    ///
    /// # Errors
    /// An I/O error, or a record that this version cannot read.
    fn look_up(
        &self,
        partition: PartitionId,
        since_ms: i64,
        keys: &[TokenKey],
        hits: &mut Vec<Hit>,
    ) -> Result<(), Error>;

    /// Makes all changes durable, together or not at all.
    ///
    /// # Errors
    /// An I/O error: nothing of the group may be taken for written, and the store takes no further write.
    fn apply(&self, group: &[Changes]) -> Result<(), Error>;

    /// Writes what a changelog has made durable already, with the changelog's next offset of each partition named.
    /// Visible at once to every later [`look_up`](Self::look_up), and not synced.
    ///
    /// A partition of whose changelog the store has no copy is left out, with all of its changes: it was cleared, and what
    /// follows does not make a copy whole. One begins with [`apply_restored`](Self::apply_restored).
    ///
    /// After a crash the store is as it was after some earlier call, of all partitions the same: the changes and the
    /// changelog's offset always agree, and whoever reads on from that offset misses nothing. What
    /// [`apply`](Self::apply) or [`close`](Self::close) made durable takes all that was logged before along.
    ///
    /// # Errors
    /// As [`apply`](Self::apply). Nothing is lost but a cache: the changelog has it all.
    fn apply_logged(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), Error>;

    /// The same of what is read back from a changelog, in large groups, before anybody looks anything up; it makes a copy
    /// where there is none. After a crash closed records alone may be ahead of the offset: they are read again, and the
    /// same.
    ///
    /// # Errors
    /// As [`apply_logged`](Self::apply_logged).
    fn apply_restored(&self, group: &[Changes], logged: &[(PartitionId, i64)]) -> Result<(), Error>;

    /// Forgets everything of one partition: closed records in every bucket, open records, position, fence, and the
    /// changelog's offset. As durable as [`apply_logged`](Self::apply_logged): after a crash all of it may be there
    /// again, never a part.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn clear(&self, partition: PartitionId) -> Result<(), Error>;

    /// Drops the topic's buckets that end at or before `until_ms`, whole; returns how many went.
    ///
    /// # Errors
    /// An I/O error.
    fn drop_buckets(&self, topic: TopicId, until_ms: i64) -> Result<usize, Error>;

    /// How large the topic's window is.
    ///
    /// # Errors
    /// An I/O error.
    fn window_size(&self, topic: TopicId) -> Result<WindowSize, Error>;

    /// Appends one act of an operator.
    ///
    /// # Errors
    /// An I/O error.
    fn audit(&self, entry: &AuditEntry) -> Result<(), Error>;

    /// All acts of operators, oldest first.
    ///
    /// # Errors
    /// An I/O error.
    fn audited(&self) -> Result<Vec<AuditEntry>, Error>;

    /// The same one at a time, the newest first, until `visit` says `false`; only those before a mark, where one is given. There may
    /// be a million, and whoever lists a page of them must not have them all in memory.
    ///
    /// # Errors
    /// An I/O error.
    fn visit_audit(
        &self,
        before: Option<AuditMark>,
        visit: &mut dyn FnMut(AuditEntry) -> bool,
    ) -> Result<(), Error> {
        let acts = self.audited()?.into_iter().rev();
        let mut acts = acts.filter(|act| before.is_none_or(|before| act.mark() < before));
        acts.all(visit);
        Ok(())
    }

    /// Notes a clean end; the store is not used afterwards.
    ///
    /// # Errors
    /// An I/O error.
    fn close(&self) -> Result<(), Error>;
}

/// What an open record is filed under, with its offset.
pub(crate) fn first_key(open: &Open) -> TokenKey {
    let first = open.keys.first().copied();
    assert!(
        first.is_some(),
        "open record without a token key at offset {}",
        open.offset.0
    );
    first.unwrap_or(TokenKey([0; 16]))
}

/// The length of a topic's time buckets: a quarter of the window, at least a millisecond.
#[must_use]
pub const fn bucket_ms(window_ms: i64) -> i64 {
    let quarter = window_ms / 4;
    if quarter < 1 { 1 } else { quarter }
}

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The state directory cannot be made, read or written. hapax did not start. Mend its owner, rights or disk.
    #[error("state directory {path} cannot be used")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has the store open. hapax did not start. Stop the other, or give this one its own `state_dir`.
    #[error(
        "state directory {path} is in use by another process; stop it, or give this one a `state_dir` of its own"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The files are damaged. hapax changed nothing. Move the directory away and start with `cold = "run"`, or
    /// restore it from a copy taken while hapax was stopped.
    #[error(
        "state directory {path} is corrupt: {what}; nothing was changed: move it away and decide about `cold`, or restore a copy"
    )]
    Corrupt {
        /// The directory.
        path: PathBuf,
        /// What the storage engine said.
        what: String,
    },
    /// The files of a replicated consumer turned out to be damaged while it ran. hapax stopped, and moved the directory out
    /// of the way: it is a copy. Start again; whoever wants to know why looks at the disk.
    #[error(
        "state directory {path} is corrupt: {what}; it was moved to {aside}, and the next start reads all of it from the changelogs"
    )]
    CorruptCopy {
        /// The directory.
        path: PathBuf,
        /// What the storage engine said.
        what: String,
        /// Where it is now.
        aside: PathBuf,
    },
    /// A later hapax wrote the store. hapax changed nothing. Run that version, or another `state_dir`.
    #[error(
        "state directory {path} has format {found}, this hapax reads up to {known}; run the version that wrote it"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format this version reads.
        known: u32,
    },
    /// The store belongs to another group or cluster. hapax changed nothing. Give this consumer its own `state_dir`.
    #[error(
        "state directory {path} belongs to {what} {found:?}, not {asked:?}; give this consumer a `state_dir` of its own"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// `group` or `cluster`.
        what: &'static str,
        /// What the store says.
        found: String,
        /// What was asked for.
        asked: String,
    },
    /// The store was filled in another durability mode, and what it holds means something else there. hapax changed
    /// nothing. Give this consumer its own `state_dir`; with `replicated` it is filled from the changelog.
    #[error(
        "state directory {path} was filled with durability {found:?}, not {asked:?}; give this consumer a `state_dir` \
         of its own (with \"replicated\" it is filled from the changelog)"
    )]
    Durability {
        /// The directory.
        path: PathBuf,
        /// What the store says.
        found: String,
        /// What was asked for.
        asked: String,
    },
    /// A topic has fewer partitions than when the store last saw it, so it was deleted and made again: its offsets and
    /// partitions mean other messages now. hapax changed nothing. Give this consumer a `state_dir` of its own.
    #[error(
        "state directory {path} knows topic {topic:?} with {known} partitions, now it has {now}: it was made again, \
         and its past is not that of the new topic; give this consumer a `state_dir` of its own"
    )]
    Shrunk {
        /// The directory.
        path: PathBuf,
        /// The topic.
        topic: String,
        /// Partitions it had.
        known: i32,
        /// Partitions it has.
        now: i32,
    },
    /// The store was opened without that topic. A bug in hapax, or a CLI call with a topic the store does not know.
    #[error("topic {0:?} is not known to this store")]
    UnknownTopic(String),
    /// A record cannot be read. hapax stopped before acting on it. See the record's error.
    #[error("a record of {place} cannot be read")]
    Record {
        /// Where it lies.
        place: String,
        /// Why.
        source: crate::record::Error,
    },
    /// The disk or the storage engine failed. hapax wrote nothing more and stops. Mend the disk, start again.
    #[error("store: {what} failed: {why}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the storage engine said.
        why: String,
    },
}
