//! What every store must do, as claims that any implementation can be held to.
//!
//! A [`Medium`] is where a store lives from one start to the next. Each claim takes a fresh one and panics where the
//! store breaks it; [`every_claim`] makes them all. hapax's own stores pass them, and so must yours:
//!
//! ```
//! use hapax::store::conformance::{Medium, every_claim};
//! use hapax::store::memory::MemoryStore;
//! use hapax::store::{Error, TopicSpec};
//!
//! #[derive(Default)]
//! struct Memory(Option<MemoryStore>);
//!
//! impl Medium for Memory {
//!     type Store = MemoryStore;
//!
//!     fn start(&mut self, group: &str, topics: &[TopicSpec]) -> Result<MemoryStore, Error> {
//!         let store = match self.0.take() {
//!             None => MemoryStore::new(group, topics),
//!             Some(earlier) => earlier.restart(topics),
//!         };
//!         self.0 = Some(store.clone());
//!         Ok(store)
//!     }
//! }
//!
//! every_claim(Memory::default);
//! ```

#![expect(
    clippy::unwrap_used,
    reason = "a claim that does not hold panics, as an assertion of a test does"
)]

use super::{AuditEntry, Changes, Error, Hit, Known, PartitionId, Store, TopicId, TopicSpec, WindowSize};
use crate::fence::Fence;
use crate::message::Offset;
use crate::outcome::Open;
use crate::token::TokenKey;
use samples::*;

pub mod logged;
mod samples;

/// Where a store lives from one start to the next.
pub trait Medium {
    /// The store under test.
    type Store: Store;

    /// The next start. The store of the start before was closed, or only dropped: then its process was killed.
    ///
    /// # Errors
    /// What the store's own opening gives.
    fn start(&mut self, group: &str, topics: &[TopicSpec]) -> Result<Self::Store, Error>;

    /// Kills the process of a store: what it has not made durable is gone. A store that writes something when it is
    /// dropped, as RocksDB does, needs a way of its own.
    fn kill(&mut self, store: Self::Store) {
        drop(store);
    }
}

/// A window of 400 ms, so buckets of 100.
const WINDOW_MS: i64 = 400;
const GROUP: &str = "billing";
const NOTHING: [i64; 0] = [];

/// Makes every claim, each on a medium of its own.
pub fn every_claim<M: Medium>(mut medium: impl FnMut() -> M) {
    a_new_store_knows_nothing(medium());
    whatever_was_applied_survives_a_kill(medium());
    one_partition_does_not_show_in_another(medium());
    a_group_can_end_a_token_and_open_it_again(medium());
    what_is_absent_can_be_removed(medium());
    a_visit_shows_what_a_load_gives(medium());
    the_newest_record_is_found(medium());
    a_look_up_reaches_exactly_as_far_as_asked(medium());
    hits_come_in_the_order_of_the_keys(medium());
    buckets_go_whole_and_nothing_else_with_them(medium());
    a_window_may_change_its_length(medium());
    time_may_lie_before_the_epoch(medium());
    starts_without_a_clean_end_are_counted(medium());
    topics_keep_their_numbers(medium());
    a_topic_without_a_number_is_refused_before_anything_is_written(medium());
    another_cluster_is_refused(medium());
    partitions_are_those_with_work_or_a_position(medium());
    a_forgotten_position_leaves_the_rest(medium());
    acts_are_kept_in_order(medium());
    a_closed_store_takes_no_write(medium());
    logged::what_is_logged_is_visible_at_once_and_survives_a_close(medium());
    logged::the_newest_bucket_of_a_partition_is_known(medium());
    logged::after_a_kill_changes_and_the_changelog_agree(medium());
    logged::what_is_durable_takes_what_was_logged_along(medium());
    logged::a_partition_is_cleared_whole_and_alone(medium());
    logged::a_clear_is_undone_whole_or_not_at_all(medium());
    logged::a_forgotten_position_takes_the_changelog_along(medium());
    logged::nothing_follows_a_copy_that_was_cleared(medium());
    logged::a_logged_topic_without_a_number_is_refused_before_anything_is_written(medium());
}

/// Nothing is known, and asking for it is no error.
pub fn a_new_store_knows_nothing(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    assert_eq!(store.load(at).unwrap(), Known::default());
    assert_eq!(store.partitions().unwrap(), []);
    assert_eq!(find(&store, at, i64::MIN, &[key(1)]), []);
    assert_eq!(find(&store, at, i64::MIN, &[]), []);
    assert_eq!(store.window_size(at.topic).unwrap(), WindowSize::default());
    assert_eq!(store.drop_buckets(at.topic, i64::MAX).unwrap(), 0);
    assert_eq!(store.audited().unwrap(), []);
    assert_eq!(store.identity().group, GROUP);
    store.apply(&[]).unwrap();
    store.apply(&[Changes::new(at)]).unwrap();
    assert_eq!(store.partitions().unwrap(), []);
}

/// Every state, with all its fields, as soon as `apply` returns and after a kill.
pub fn whatever_was_applied_survives_a_kill(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let store_id = store.identity().store_id;
    let at = partition(&store, "orders", 3);
    let closed = every_closed();
    let open = every_open();
    let position = position(7, Some(1_050));
    store
        .apply(&[Changes {
            closed: closed.clone(),
            opened: open.clone(),
            position: Some(position),
            fence: Some(Fence(4)),
            ..Changes::new(at)
        }])
        .unwrap();
    let keys: Vec<TokenKey> = closed.iter().map(|(key, _)| *key).collect();
    let hits: Vec<Hit> = closed
        .into_iter()
        .enumerate()
        .map(|(key, (_, closed))| Hit { key, closed })
        .collect();
    let known = Known {
        position: Some(position),
        fence: 4,
        changelog: None,
        open,
    };
    let check = |store: &dyn Store| {
        assert_eq!(find(store, at, 0, &keys), hits);
        assert_eq!(store.load(at).unwrap(), known);
        assert_eq!(store.identity().store_id, store_id);
    };
    check(&store);
    drop(store);
    check(&start(&mut medium, &["orders"]));
}

/// The same token in another partition or topic is another token.
pub fn one_partition_does_not_show_in_another(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders", "refunds"]);
    let at = partition(&store, "orders", 1);
    store
        .apply(&[Changes {
            closed: vec![(key(1), done(5, 1_000))],
            opened: vec![begun(2, 6)],
            fence: Some(Fence(2)),
            position: Some(position(5, None)),
            ..Changes::new(at)
        }])
        .unwrap();
    let neighbours = [
        partition(&store, "orders", 0),
        partition(&store, "orders", 2),
        partition(&store, "orders", 256),
        partition(&store, "refunds", 1),
    ];
    for other in neighbours {
        assert_eq!(find(&store, other, 0, &[key(1)]), [], "{other:?}");
        assert_eq!(store.load(other).unwrap(), Known::default(), "{other:?}");
    }
    assert_eq!(store.partitions().unwrap(), [at]);
}

/// Closes, removals, opens, in that order, whatever the order in which the group was put together.
pub fn a_group_can_end_a_token_and_open_it_again(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    let first = begun(1, 10);
    let again = Open {
        attempts: 2,
        ..first.clone()
    };
    apply(&store, at, |changes| changes.opened.push(first));
    apply(&store, at, |changes| {
        changes.opened.push(again.clone());
        changes.removed.push((key(1), Offset(10)));
        changes.closed.push((key(1), done(9, 1_000)));
    });
    assert_eq!(store.load(at).unwrap().open, [again]);
    assert_eq!(offsets(&find(&store, at, 0, &[key(1)])), [9]);
}

/// Removing is by key and offset, and a second time is no error.
pub fn what_is_absent_can_be_removed(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    let (ten, eleven) = (begun(1, 10), begun(1, 11));
    apply(&store, at, |changes| {
        changes.opened = vec![eleven.clone(), ten.clone()];
    });
    assert_eq!(store.load(at).unwrap().open, [ten, eleven.clone()], "by offset");
    for _ in 0..2 {
        apply(&store, at, |changes| {
            changes.removed = vec![(key(1), Offset(10)), (key(2), Offset(11))];
        });
        assert_eq!(store.load(at).unwrap().open, std::slice::from_ref(&eleven));
    }
}

/// Each open record once, of that partition alone, and all else as it is loaded.
pub fn a_visit_shows_what_a_load_gives(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let (at, other) = (partition(&store, "orders", 0), partition(&store, "orders", 1));
    apply(&store, other, |changes| changes.opened = vec![begun(9, 9)]);
    apply(&store, at, |changes| {
        changes.opened = vec![begun(3, 12), begun(1, 11), begun(2, 10)];
        changes.position = Some(position(7, Some(9)));
        changes.fence = Some(Fence(3));
    });
    let mut open = Vec::new();
    let known = store.visit(at, &mut |record| open.push(record)).unwrap();
    open.sort_by_key(|record| record.offset);
    assert_eq!(known.open, [], "they were visited");
    assert_eq!(store.load(at).unwrap(), Known { open, ..known });
}

/// In one bucket the last written rules, over several the newest bucket.
pub fn the_newest_record_is_found(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    for (offset, first_seen_ms) in [(1, 1_000), (2, 1_050), (3, 1_350)] {
        apply(&store, at, |changes| {
            changes.closed.push((key(1), done(offset, first_seen_ms)));
        });
        assert_eq!(offsets(&find(&store, at, 0, &[key(1)])), [offset]);
    }
    apply(&store, at, |changes| {
        changes.closed = vec![(key(2), done(4, 1_350)), (key(2), done(5, 1_360))];
    });
    assert_eq!(offsets(&find(&store, at, 0, &[key(2)])), [5], "in one group too");
    apply(&store, at, |changes| {
        changes.closed.push((key(1), done(6, 1_150)))
    });
    assert_eq!(
        offsets(&find(&store, at, 0, &[key(1)])),
        [3],
        "a late close does not hide a newer bucket"
    );
}

/// A bucket that ends at `since` is not asked, one that ends after it is, whole.
pub fn a_look_up_reaches_exactly_as_far_as_asked(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    apply(&store, at, |changes| {
        changes.closed = vec![(key(1), done(1, 1_000)), (key(2), done(2, 1_100))];
    });
    let found = |since_ms| offsets(&find(&store, at, since_ms, &[key(1), key(2)]));
    assert_eq!(found(1_099), [1, 2], "the bucket 1000..1100 ends after 1099");
    assert_eq!(found(1_100), [2]);
    assert_eq!(found(1_199), [2]);
    assert_eq!(found(1_200), NOTHING);
    assert_eq!(found(i64::MAX), NOTHING);
}

/// By index, whatever bucket they were found in; a key asked for twice is answered twice; earlier hits stay.
pub fn hits_come_in_the_order_of_the_keys(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    apply(&store, at, |changes| {
        changes.closed = vec![
            (key(9), done(1, 1_000)),
            (key(4), done(2, 1_300)),
            (key(7), done(3, 1_150)),
        ];
    });
    let mut hits = vec![Hit {
        key: 77,
        closed: done(0, 0),
    }];
    let keys = [9, 1, 4, 7, 9, 4, 200].map(key);
    store.look_up(at, 0, &keys, &mut hits).unwrap();
    let places: Vec<(usize, i64)> = hits.iter().map(|hit| (hit.key, hit.closed.offset.0)).collect();
    assert_eq!(places, [(77, 0), (0, 1), (2, 2), (3, 3), (4, 1), (5, 2)]);
}

/// A bucket that ends at `until` goes; open records, positions and other topics stay.
pub fn buckets_go_whole_and_nothing_else_with_them(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders", "refunds"]);
    let at = partition(&store, "orders", 0);
    let other = partition(&store, "refunds", 0);
    let kept = begun(8, 3);
    apply(&store, at, |changes| {
        changes.closed = vec![
            (key(1), done(1, 1_000)),
            (key(2), done(2, 1_199)),
            (key(3), done(3, 1_200)),
        ];
        changes.opened = vec![kept.clone()];
        changes.position = Some(position(4, Some(1_200)));
    });
    apply(&store, other, |changes| {
        changes.closed.push((key(1), done(1, 1_000)));
    });
    let buckets = |store: &dyn Store| {
        let size = store.window_size(at.topic).unwrap();
        (size.buckets, size.oldest_ms)
    };
    assert_eq!(buckets(&store), (3, Some(1_000)));
    assert!(store.window_size(at.topic).unwrap().bytes > 0);
    assert_eq!(store.drop_buckets(at.topic, 1_099).unwrap(), 0);
    assert_eq!(store.drop_buckets(at.topic, 1_200).unwrap(), 2);
    assert_eq!(buckets(&store), (1, Some(1_200)));
    let keys = [1, 2, 3].map(key);
    assert_eq!(offsets(&find(&store, at, 0, &keys)), [3]);
    assert_eq!(offsets(&find(&store, other, 0, &keys)), [1]);
    assert_eq!(store.load(at).unwrap().open, [kept]);
    drop(store);
    let store = start(&mut medium, &["orders", "refunds"]);
    assert_eq!(
        offsets(&find(&store, at, 0, &keys)),
        [3],
        "still gone after a kill"
    );
    assert_eq!(buckets(&store), (1, Some(1_200)));
    apply(&store, at, |changes| {
        changes.closed.push((key(1), done(5, 1_000)))
    });
    assert_eq!(
        offsets(&find(&store, at, 0, &keys)),
        [5, 3],
        "a dropped bucket can be made again"
    );
}

/// Records written under another length are found, expire with their own bucket, and never hide a newer one.
pub fn a_window_may_change_its_length(mut medium: impl Medium) {
    let long = TopicSpec {
        name: "orders".into(),
        window_ms: 10 * WINDOW_MS,
    };
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    apply(&store, at, |changes| {
        changes.closed = vec![(key(1), done(1, 1_010)), (key(2), done(2, 1_020))];
    });
    drop(store);
    let store = medium.start(GROUP, std::slice::from_ref(&long)).unwrap();
    let keys = [key(1), key(2)];
    assert_eq!(offsets(&find(&store, at, 1_099, &keys)), [1, 2]);
    // 1000..2000 overlaps 1000..1100.
    apply(&store, at, |changes| {
        changes.closed.push((key(1), done(3, 1_090)))
    });
    assert_eq!(offsets(&find(&store, at, 0, &keys)), [3, 2]);
    drop(store);
    let store = start(&mut medium, &["orders"]);
    apply(&store, at, |changes| {
        changes.closed.push((key(1), done(4, 1_095)))
    });
    assert_eq!(offsets(&find(&store, at, 0, &keys)), [4, 2]);
    assert_eq!(store.drop_buckets(at.topic, 1_100).unwrap(), 1);
    assert_eq!(offsets(&find(&store, at, 0, &keys)), NOTHING);
    assert_eq!(store.window_size(at.topic).unwrap().buckets, 1);
}

/// Buckets are aligned downwards, also below zero.
pub fn time_may_lie_before_the_epoch(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    apply(&store, at, |changes| {
        changes.closed = vec![
            (key(1), done(1, -1)),
            (key(2), done(2, 0)),
            (key(3), done(3, i64::MIN)),
        ];
    });
    let keys = [1, 2, 3].map(key);
    assert_eq!(offsets(&find(&store, at, i64::MIN, &keys)), [1, 2, 3]);
    assert_eq!(offsets(&find(&store, at, -1, &keys)), [1, 2]);
    assert_eq!(offsets(&find(&store, at, 0, &keys)), [2]);
    assert_eq!(store.window_size(at.topic).unwrap().oldest_ms, Some(i64::MIN));
}

/// One more for each kill in a row; a close ends the row.
pub fn starts_without_a_clean_end_are_counted(mut medium: impl Medium) {
    for unclean in 0..3 {
        let store = start(&mut medium, &["orders"]);
        assert_eq!(store.past().unclean, unclean);
    }
    let store = start(&mut medium, &["orders"]);
    assert_eq!(store.past().unclean, 3);
    store.close().unwrap();
    drop(store);
    let store = start(&mut medium, &["orders"]);
    assert_eq!(store.past().unclean, 0);
}

/// Whatever else a later start is opened for, and in whatever order.
pub fn topics_keep_their_numbers(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders", "refunds"]);
    let (orders, refunds) = (store.topic("orders").unwrap(), store.topic("refunds").unwrap());
    assert_ne!(orders, refunds);
    assert!(matches!(store.topic("invoices"), Err(Error::UnknownTopic(name)) if name == "invoices"));
    let at = PartitionId {
        topic: refunds,
        partition: 0,
    };
    apply(&store, at, |changes| {
        changes.closed.push((key(1), done(1, 1_000)))
    });
    drop(store);
    let store = start(&mut medium, &["invoices", "orders"]);
    assert_eq!(store.topic("orders").unwrap(), orders);
    assert!(
        matches!(store.topic("refunds"), Err(Error::UnknownTopic(_))),
        "this start is not for it"
    );
    let invoices = store.topic("invoices").unwrap();
    assert!(invoices != orders && invoices != refunds);
    drop(store);
    let store = start(&mut medium, &["refunds", "invoices"]);
    assert_eq!(store.topic("refunds").unwrap(), refunds);
    assert_eq!(store.topic("invoices").unwrap(), invoices);
    assert_eq!(offsets(&find(&store, at, 0, &[key(1)])), [1]);
}

/// Not a failure of the disk: nothing of the group is written, and the store goes on.
pub fn a_topic_without_a_number_is_refused_before_anything_is_written(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    let nowhere = PartitionId {
        topic: TopicId(999),
        partition: 0,
    };
    let closing = |partition| Changes {
        closed: vec![(key(1), done(1, 1_000))],
        ..Changes::new(partition)
    };
    let refused = store.apply(&[closing(at), closing(nowhere)]);
    assert!(matches!(refused, Err(Error::UnknownTopic(_))), "{refused:?}");
    assert_eq!(find(&store, at, 0, &[key(1)]), []);
    store.apply(&[closing(at)]).unwrap();
    assert_eq!(offsets(&find(&store, at, 0, &[key(1)])), [1]);
}

/// The first cluster claimed is the store's for good.
pub fn another_cluster_is_refused(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    assert_eq!(store.identity().cluster, None);
    store.claim_cluster("one").unwrap();
    store.claim_cluster("one").unwrap();
    drop(store);
    let store = start(&mut medium, &["orders"]);
    assert_eq!(store.identity().cluster.as_deref(), Some("one"));
    let refused = store.claim_cluster("other");
    assert!(
        matches!(&refused, Err(Error::Foreign { what: "cluster", found, asked, .. }) if found == "one" && asked == "other"),
        "{refused:?}"
    );
    assert_eq!(store.identity().cluster.as_deref(), Some("one"));
}

/// A partition whose open work ended and that has no position is gone from the list. One of a changelog that was only begun is
/// in it: what is there of it lies in the buckets.
pub fn partitions_are_those_with_work_or_a_position(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders", "refunds"]);
    let positioned = partition(&store, "refunds", 2);
    let working = partition(&store, "orders", 300);
    let fenced = partition(&store, "orders", 1);
    let closed = partition(&store, "orders", 0);
    let ended = partition(&store, "refunds", 0);
    apply(&store, positioned, |changes| {
        changes.position = Some(position(0, None))
    });
    apply(&store, working, |changes| {
        changes.opened = vec![begun(1, 1), begun(2, 2)]
    });
    apply(&store, fenced, |changes| changes.fence = Some(Fence(1)));
    apply(&store, closed, |changes| {
        changes.closed.push((key(1), done(1, 1_000)));
    });
    apply(&store, ended, |changes| changes.opened.push(begun(1, 1)));
    apply(&store, ended, |changes| changes.removed.push((key(1), Offset(1))));
    let begun_copy = partition(&store, "orders", 7);
    store.apply_restored(&[], &[(begun_copy, 3)]).unwrap();
    let mut expected = [positioned, working, begun_copy];
    expected.sort_unstable();
    assert_eq!(store.partitions().unwrap(), expected);
    assert_eq!(store.load(fenced).unwrap().fence, 1);
}

/// Its fence and its open records stay: only what the window is worth is forgotten.
pub fn a_forgotten_position_leaves_the_rest(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let (at, other) = (partition(&store, "orders", 0), partition(&store, "orders", 1));
    for id in [at, other] {
        apply(&store, id, |changes| {
            changes.position = Some(position(7, Some(9)));
            changes.fence = Some(Fence(3));
            changes.opened = vec![begun(1, 7)];
        });
    }
    store.forget_position(at).unwrap();
    store.forget_position(at).unwrap();
    let known = store.load(at).unwrap();
    assert_eq!((known.position, known.fence, known.open.len()), (None, 3, 1));
    assert_eq!(store.load_position(other).unwrap(), Some(position(7, Some(9))));
}

/// Oldest first, also over several starts.
pub fn acts_are_kept_in_order(mut medium: impl Medium) {
    let act = |number: i64| AuditEntry {
        at_ms: number,
        act: "resolve --done".into(),
        topic: "orders".into(),
        partition: 3,
        offset: 17,
        token: key(1).to_string(),
        reason: format!("seen in the \"ledger\" ({number})"),
        by: "anna".into(),
    };
    for kept in [0, 3, 6] {
        let store = start(&mut medium, &["orders"]);
        let expected: Vec<AuditEntry> = (0..kept).map(act).collect();
        assert_eq!(store.audited().unwrap(), expected);
        // The newest first, in pages of two.
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let mut page = Vec::new();
            let mut visit = |act: AuditEntry| {
                page.push(act);
                page.len() < 2
            };
            store.visit_audit(before, &mut visit).unwrap();
            let Some(last) = page.last() else { break };
            before = Some(last.mark());
            found.extend(page);
        }
        found.reverse();
        assert_eq!(found, expected);
        let at = partition(&store, "orders", 3);
        for number in kept..kept + 3 {
            match number % 2 {
                0 => store.audit(&act(number)).unwrap(),
                _ => apply(&store, at, |changes| changes.acts.push(act(number))),
            }
            // Read a second time, from a changelog, it is still one act.
            apply(&store, at, |changes| changes.acts.push(act(kept)));
        }
    }
}

/// Its process is about to end: whatever comes late is refused, and reads as it was.
pub fn a_closed_store_takes_no_write(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 0);
    apply(&store, at, |changes| {
        changes.closed.push((key(1), done(1, 1_000)))
    });
    store.close().unwrap();
    let late = store.apply(&[Changes {
        closed: vec![(key(2), done(2, 1_000))],
        ..Changes::new(at)
    }]);
    assert!(matches!(late, Err(Error::Io { .. })), "{late:?}");
    assert_eq!(offsets(&find(&store, at, 0, &[key(1), key(2)])), [1]);
    drop(store);
    let store = start(&mut medium, &["orders"]);
    assert_eq!(offsets(&find(&store, at, 0, &[key(1), key(2)])), [1]);
}
