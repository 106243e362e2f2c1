//! Claims about what a changelog has made durable: visible at once, and after a kill of one moment with the changelog's
//! offset.

use std::collections::BTreeSet;

use super::samples::*;
use super::{Medium, NOTHING};
use crate::fence::Fence;
use crate::message::Offset;
use crate::store::{Changes, Error, Hit, Known, PartitionId, Store, TopicId};
use crate::token::TokenKey;

/// Every state, with all its fields, as soon as the call returns and after a clean end.
pub fn what_is_logged_is_visible_at_once_and_survives_a_close(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 3);
    let (closed, open) = (every_closed(), every_open());
    let position = position(7, Some(1_050));
    let changes = Changes {
        closed: closed.clone(),
        opened: open.clone(),
        position: Some(position),
        fence: Some(Fence(4)),
        ..Changes::new(at)
    };
    store.apply_restored(&[], &[(at, 89)]).unwrap();
    store.apply_logged(&[changes], &[(at, 90)]).unwrap();
    store.apply_logged(&[], &[(at, i64::MAX)]).unwrap();
    let keys: Vec<TokenKey> = closed.iter().map(|(key, _)| *key).collect();
    let hits: Vec<Hit> = closed
        .into_iter()
        .enumerate()
        .map(|(key, (_, closed))| Hit { key, closed })
        .collect();
    let known = Known {
        position: Some(position),
        fence: 4,
        changelog: Some(i64::MAX),
        open,
    };
    let check = |store: &dyn Store| {
        assert_eq!(find(store, at, 0, &keys), hits);
        assert_eq!(store.load(at).unwrap(), known);
    };
    check(&store);
    store.close().unwrap();
    let late = store.apply_logged(&[], &[(at, 1)]);
    assert!(matches!(late, Err(Error::Io { .. })), "{late:?}");
    medium.kill(store);
    check(&start(&mut medium, &["orders"]));
}

/// What a changelog is trimmed by after a restart: of other partitions, and of what went with its bucket, nothing counts.
pub fn the_newest_bucket_of_a_partition_is_known(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let [at, other] = [3, 4].map(|number| partition(&store, "orders", number));
    let close = |at, number: u8, first_seen_ms| Changes {
        closed: vec![(key(number), done(number.into(), first_seen_ms))],
        ..Changes::new(at)
    };
    assert_eq!(store.seen_until(at).unwrap(), None);
    let group = [close(at, 1, 1_010), close(at, 2, 1_190), close(other, 3, 5_000)];
    store.apply_restored(&group, &[(at, 1), (other, 1)]).unwrap();
    assert_eq!(store.seen_until(at).unwrap(), Some(1_200));
    assert_eq!(store.seen_until(other).unwrap(), Some(5_100));
    store.drop_buckets(at.topic, 1_200).unwrap();
    assert_eq!(store.seen_until(at).unwrap(), None);
    assert_eq!(store.seen_until(other).unwrap(), Some(5_100));
    store.clear(other).unwrap();
    assert_eq!(store.seen_until(other).unwrap(), None);
}

/// The groups that one start logs, from the one of that number on: each closes a token of every partition, in one of
/// two buckets, opens another instead of the one before, and moves the position.
fn log(store: &dyn Store, partitions: &[PartitionId], numbers: std::ops::RangeInclusive<u8>) {
    for number in numbers {
        let changes = |at: &PartitionId| Changes {
            closed: vec![(
                key(number),
                done(number.into(), 1_000 + i64::from(number % 2) * 100),
            )],
            removed: vec![(key(number - 1), Offset(i64::from(number) - 1))],
            opened: vec![begun(number, number.into())],
            position: Some(position(number.into(), Some(number.into()))),
            fence: Some(Fence(number.into())),
            ..Changes::new(*at)
        };
        let group: Vec<Changes> = partitions.iter().map(changes).collect();
        let logged: Vec<_> = partitions.iter().map(|at| (*at, i64::from(number))).collect();
        let has_copy = |at: &PartitionId| store.load(*at).unwrap().changelog.is_some();
        if partitions.iter().all(has_copy) {
            store.apply_logged(&group, &logged).unwrap();
        } else {
            store.apply_restored(&group, &logged).unwrap();
        }
    }
}

/// How many groups the store holds, if it is those and nothing else in every partition.
fn held(store: &dyn Store, partitions: &[PartitionId], of: u8) -> u8 {
    let held = |at: &PartitionId| {
        let known = store.load(*at).unwrap();
        let number = u8::try_from(known.changelog.unwrap_or(0)).unwrap();
        let expected = if number == 0 {
            Known::default()
        } else {
            Known {
                position: Some(position(number.into(), Some(number.into()))),
                fence: number.into(),
                changelog: Some(number.into()),
                open: vec![begun(number, number.into())],
            }
        };
        assert_eq!(known, expected, "{at:?}");
        let keys: Vec<TokenKey> = (1..=of).map(key).collect();
        let closed: Vec<i64> = (1..=number).map(i64::from).collect();
        assert_eq!(offsets(&find(store, *at, 0, &keys)), closed, "{at:?}");
        number
    };
    let all: BTreeSet<u8> = partitions.iter().map(held).collect();
    assert_eq!(all.len(), 1, "of one moment: {all:?}");
    all.into_iter().next().unwrap()
}

/// Whatever was lost was lost of all partitions from one group on; reading on from there ends with all of it.
pub fn after_a_kill_changes_and_the_changelog_agree(mut medium: impl Medium) {
    let mut store = start(&mut medium, &["orders", "refunds"]);
    let partitions = [
        partition(&store, "orders", 0),
        partition(&store, "orders", 256),
        partition(&store, "refunds", 0),
    ];
    for number in (10u8..=50).step_by(10) {
        let from = held(&store, &partitions, number);
        log(&store, &partitions, from + 1..=number);
        assert_eq!(held(&store, &partitions, number), number);
        medium.kill(store);
        store = start(&mut medium, &["orders", "refunds"]);
        assert!(held(&store, &partitions, number) <= number);
    }
    log(&store, &partitions, held(&store, &partitions, 50) + 1..=50);
    store.close().unwrap();
    medium.kill(store);
    let store = start(&mut medium, &["orders", "refunds"]);
    assert_eq!(held(&store, &partitions, 50), 50);
}

/// What is written durably says that all before it is there too, and a verdict on a state that is lost would be none.
pub fn what_is_durable_takes_what_was_logged_along(mut medium: impl Medium) {
    let mut store = start(&mut medium, &["orders"]);
    let (at, other) = (partition(&store, "orders", 0), partition(&store, "orders", 1));
    let durable: [fn(&dyn Store, PartitionId); 2] = [
        |store, other| apply(store, other, |changes| changes.fence = Some(Fence(1))),
        |store, other| store.forget_position(other).unwrap(),
    ];
    for (durable, number) in durable.into_iter().zip([4u8, 8]) {
        let from = held(&store, &[at], number);
        assert_eq!(from, number - 4, "of the durable write before");
        log(&store, &[at], from + 1..=number);
        durable(&store, other);
        log(&store, &[other], number..=number);
        medium.kill(store);
        store = start(&mut medium, &["orders"]);
        assert_eq!(held(&store, &[at], number), number);
    }
}

/// All of one partition, in every bucket, and nothing of its neighbours; what is written afterwards is there.
pub fn a_partition_is_cleared_whole_and_alone(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders", "refunds"]);
    let at = partition(&store, "orders", 1);
    let neighbours = [
        partition(&store, "orders", 0),
        partition(&store, "orders", 2),
        partition(&store, "orders", 257),
        partition(&store, "refunds", 1),
    ];
    // Half of it lies in files by now, and half in memory.
    log(&store, &[at], 1..=3);
    log(&store, &neighbours, 1..=3);
    store.close().unwrap();
    medium.kill(store);
    let store = start(&mut medium, &["orders", "refunds"]);
    log(&store, &[at], 4..=6);
    log(&store, &neighbours, 4..=6);
    store.clear(at).unwrap();
    let nothing = |store: &dyn Store| {
        assert_eq!(held(store, &[at], 6), 0);
        assert_eq!(held(store, &neighbours, 6), 6);
        let mut expected = neighbours;
        expected.sort_unstable();
        assert_eq!(store.partitions().unwrap(), expected);
    };
    nothing(&store);
    store.clear(at).unwrap();
    store.close().unwrap();
    medium.kill(store);
    let store = start(&mut medium, &["orders", "refunds"]);
    nothing(&store);
    log(&store, &[at], 1..=2);
    store.clear(at).unwrap();
    log(&store, &[at], 1..=4);
    assert_eq!(held(&store, &[at], 6), 4);
}

/// After a kill a partition that was cleared is there whole, or is gone whole, or has what was logged since.
pub fn a_clear_is_undone_whole_or_not_at_all(mut medium: impl Medium) {
    let mut store = start(&mut medium, &["orders"]);
    let at = partition(&store, "orders", 1);
    for since in 0..3 {
        store.clear(at).unwrap();
        log(&store, &[at], 1..=5);
        store.close().unwrap();
        medium.kill(store);
        store = start(&mut medium, &["orders"]);
        assert_eq!(held(&store, &[at], 5), 5);
        store.clear(at).unwrap();
        log(&store, &[at], 1..=since);
        medium.kill(store);
        store = start(&mut medium, &["orders"]);
        let held = held(&store, &[at], 5);
        assert!(held == 5 || held <= since, "{held} of {since}");
    }
}

/// Whoever serves it again must not read a tail onto a window that is gone.
pub fn a_forgotten_position_takes_the_changelog_along(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let (at, other) = (partition(&store, "orders", 0), partition(&store, "orders", 1));
    log(&store, &[at, other], 1..=3);
    store.forget_position(at).unwrap();
    let known = store.load(at).unwrap();
    assert_eq!((known.position, known.changelog), (None, None));
    assert_eq!((known.fence, known.open.len()), (3, 1));
    assert_eq!(held(&store, &[other], 3), 3);
    medium.kill(store);
    let store = start(&mut medium, &["orders"]);
    assert_eq!(store.load(at).unwrap(), known, "durable");
}

/// What was on its way when a copy was cleared would be taken for all of it: the part that follows is none.
pub fn nothing_follows_a_copy_that_was_cleared(mut medium: impl Medium) {
    let store = start(&mut medium, &["orders"]);
    let [cleared, kept, new] = [0, 1, 2].map(|number| partition(&store, "orders", number));
    log(&store, &[cleared, kept], 1..=3);
    store.clear(cleared).unwrap();
    let partitions = [cleared, kept, new];
    let group = partitions.map(|at| Changes {
        closed: vec![(key(4), done(4, 1_000))],
        opened: vec![begun(4, 4)],
        position: Some(position(4, Some(4))),
        ..Changes::new(at)
    });
    store.apply_logged(&group, &partitions.map(|at| (at, 4))).unwrap();
    let check = |store: &dyn Store| {
        for at in [cleared, new] {
            assert_eq!(store.load(at).unwrap(), Known::default(), "{at:?}");
            assert_eq!(offsets(&find(store, at, 0, &[key(4)])), NOTHING, "{at:?}");
        }
        assert_eq!(store.load(kept).unwrap().changelog, Some(4));
        assert_eq!(offsets(&find(store, kept, 0, &[key(4)])), [4]);
    };
    check(&store);
    store.close().unwrap();
    medium.kill(store);
    let store = start(&mut medium, &["orders"]);
    check(&store);
    store.apply_restored(&[], &[(cleared, 5)]).unwrap();
    store.apply_logged(&group[..1], &[(cleared, 6)]).unwrap();
    assert_eq!(offsets(&find(&store, cleared, 0, &[key(4)])), [4]);
}

/// Neither in the group nor among the offsets.
pub fn a_logged_topic_without_a_number_is_refused_before_anything_is_written(mut medium: impl Medium) {
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
    let refused = [
        store.apply_logged(&[closing(at), closing(nowhere)], &[(at, 1)]),
        store.apply_logged(&[closing(at)], &[(at, 1), (nowhere, 1)]),
        store.clear(nowhere),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::UnknownTopic(_))), "{refused:?}");
    }
    assert_eq!(offsets(&find(&store, at, 0, &[key(1)])), NOTHING);
    assert_eq!(store.load(at).unwrap(), Known::default());
    store.apply_restored(&[closing(at)], &[(at, 1)]).unwrap();
    assert_eq!(offsets(&find(&store, at, 0, &[key(1)])), [1]);
}
