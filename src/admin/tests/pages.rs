//! Pages of the audit: whoever goes on from each to the next is told every act once, however members share them.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::admin::shapes::Acts;
use crate::store::memory::MemoryStore;
use crate::store::{AuditEntry, AuditMark, Store};

fn act(number: i64) -> AuditEntry {
    AuditEntry {
        // Some of the same moment.
        at_ms: number / 3,
        act: "resolve --done".into(),
        topic: if number % 5 == 0 { "orders" } else { "bills" }.into(),
        partition: 0,
        offset: number,
        token: String::new(),
        reason: "asked".into(),
        by: "anna".into(),
    }
}

fn store(acts: impl IntoIterator<Item = i64>) -> MemoryStore {
    let store = MemoryStore::new("billing", &[]);
    acts.into_iter()
        .for_each(|number| store.audit(&act(number)).unwrap());
    store
}

/// Every act that a walk through the pages is told, and how many pages those were.
fn walk(stores: &[MemoryStore], limit: usize, at_most: usize) -> (Vec<i64>, usize) {
    let (mut told, mut pages, mut before) = (Vec::new(), 0, None::<AuditMark>);
    loop {
        let page = |store: &MemoryStore| Acts::page(store, before, at_most.min(limit), |_| true).unwrap();
        let page = Acts::together(stores.iter().map(page), limit);
        assert!(page.acts.len() <= limit && page.acts.is_sorted_by_key(AuditEntry::mark));
        assert_eq!(page.before.is_some(), page.more);
        pages += 1;
        told.splice(0..0, page.acts.iter().map(|act| act.offset));
        match page.before {
            Some(next) => before = Some(next.parse().unwrap()),
            None => return (told, pages),
        }
    }
}

#[test]
fn pages_have_every_act_once_and_the_newest_first() {
    let all: Vec<i64> = {
        let mut all: Vec<AuditEntry> = (0..50).map(act).collect();
        all.sort_by_key(AuditEntry::mark);
        all.iter().map(|act| act.offset).collect()
    };
    // Two members that share some of it, and one that has little.
    let stores = [
        store(0..40),
        store((0..50).filter(|n| n % 2 == 0)),
        store(30..50),
        store([3]),
    ];
    for limit in [1, 2, 7, 50, 100] {
        // A member tells no more than so many, whatever it is asked for.
        for at_most in [1, 5, 1_000] {
            let (told, pages) = walk(&stores, limit, at_most);
            assert_eq!(told, all, "pages of {limit}, of members that tell {at_most}");
            assert!(pages >= 50 / limit, "{pages} pages of {limit}");
        }
    }
}

#[test]
fn of_one_topic_only_its_acts_count() {
    let store = store(0..50);
    let is_meant = |act: &AuditEntry| act.topic == "orders";
    let page = Acts::page(&store, None, 4, is_meant).unwrap();
    let offsets: Vec<i64> = page.acts.iter().map(|act| act.offset).collect();
    assert_eq!((offsets, page.more), (vec![30, 35, 40, 45], true));
    let before = page.before.map(|before| before.parse().unwrap());
    let rest = Acts::page(&store, before, 100, is_meant).unwrap();
    assert_eq!((rest.acts.len(), rest.more, rest.before), (6, false, None));
}

/// However many there are: what is read ends with the page.
#[test]
fn no_more_is_read_than_a_page_has() {
    let store = store(0..50);
    let read = AtomicUsize::new(0);
    let is_meant = |_: &AuditEntry| read.fetch_add(1, Ordering::SeqCst) < usize::MAX;
    let page = Acts::page(&store, None, 7, is_meant).unwrap();
    assert_eq!(page.acts.len(), 7);
    // Each is asked about, and one more: whether there are others.
    assert_eq!(read.load(Ordering::SeqCst), 8);
}

#[test]
fn what_is_no_mark_is_refused() {
    for text in [
        "",
        "7",
        "+0000000000000000000000000000001",
        &"g".repeat(32),
        &"0".repeat(33),
    ] {
        assert!(text.parse::<AuditMark>().is_err(), "{text:?}");
    }
    let mark = act(7).mark();
    assert_eq!(mark.to_string().parse(), Ok(mark));
}
