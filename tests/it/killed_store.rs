//! A store that is killed under load opens again.
//!
//! Under load write buffers fill, and the manifest of RocksDB names the logs that are still needed. Whoever looks at
//! the store then must know of that: a look that did not ended the process by SIGSEGV, at every start (seen again with
//! `Options::default()` in `peek`).

use hapax::config::Durability;
use hapax::message::Offset;
use hapax::outcome::{Closed, End, Open, Stage, Stored};
use hapax::store::rocks::RocksStore;
use hapax::store::{Changes, PartitionId, Store, TopicSpec};
use hapax::token::TokenKey;

fn key(number: u64) -> TokenKey {
    let [a, b] = [0x9e37_79b9_7f4a_7c15, 0xd134_2543_de82_ef95].map(|odd| number.wrapping_mul(odd));
    TokenKey((u128::from(a) << 64 | u128::from(b)).to_be_bytes())
}

#[test]
fn a_store_killed_under_load_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let spec = TopicSpec {
        name: "orders".into(),
        window_ms: 3_600_000,
    };
    let start = || {
        RocksStore::open(
            dir.path(),
            "billing",
            std::slice::from_ref(&spec),
            16 << 20,
            Durability::Local,
        )
        .unwrap()
    };
    let store = start();
    let id = PartitionId {
        topic: store.topic("orders").unwrap(),
        partition: 0,
    };
    let mut opened = Changes::new(id);
    opened.opened.push(Open {
        keys: vec![key(0)],
        offset: Offset(0),
        stage: Stage::Begun {
            not_applied: false,
            message: None,
        },
        first_seen_ms: 0,
        attempts: 1,
        since_ms: 0,
        fingerprint: None,
    });
    store.apply(&[opened]).unwrap();
    // Several write buffers of the least memory there is.
    let numbers: Vec<u64> = (1..300_000).collect();
    for numbers in numbers.chunks(10_000) {
        let mut changes = Changes::new(id);
        changes.closed = numbers
            .iter()
            .map(|number| {
                let closed = Closed {
                    end: End::Done(Stored::Nothing),
                    offset: Offset(*number as i64),
                    first_seen_ms: 0,
                    attempts: 1,
                    fingerprint: None,
                };
                (key(*number), closed)
            })
            .collect();
        store.apply(&[changes]).unwrap();
        // Beside the owner: a look is refused, and harms neither.
        assert!(RocksStore::open_existing_for_cli(dir.path()).is_err());
    }
    drop(store);

    let store = start();
    assert_eq!(store.past().unclean, 1);
    assert_eq!(store.load(id).unwrap().open.len(), 1);
    let keys: Vec<TokenKey> = (1..300_000).step_by(1_000).map(key).collect();
    let mut hits = Vec::new();
    store.look_up(id, i64::MIN, &keys, &mut hits).unwrap();
    assert_eq!(hits.len(), keys.len());
}
