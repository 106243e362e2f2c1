//! What is open is written again in portions, and others write in between: the log is cut when all of it is there, and holds then
//! what is open then.

use super::*;

const OPEN: std::ops::Range<u8> = 100..106;

/// A log whose head could go, with messages that are held; each of them is a portion.
fn held_ones() -> Rig {
    let mut rig = filled();
    for token in OPEN {
        rig.submit(|changes| changes.opened.push(held(token, i64::from(token))));
    }
    // Opened long ago: below what will be cut.
    close_long_ago(&mut rig);
    rig
}

/// In the middle of the second portion somebody writes that.
fn between(rig: &Rig, write: impl FnOnce(&mut Changes) + Send + 'static) {
    let (journal, gate, point) = (rig.journal.clone(), rig.gate.clone(), rig.point());
    let mut write = Some(write);
    let mut portions = 0;
    rig.log.0.lock().unwrap().on_commit = Some(Box::new(move || {
        portions += 1;
        let Some(write) = write.take_if(|_| portions == 2) else {
            return;
        };
        let mut changes = Changes::new(ID);
        write(&mut changes);
        changes.position = Some(Position {
            commit_point: point.next,
            time_ms: point.time_ms,
            acknowledged_ms: point.time_ms,
            written_ms: 5,
        });
        journal.submit(Submission {
            gate: gate.clone(),
            acks: Arc::new(Acks::default()),
            number: 1,
            changes,
            letters: Vec::new(),
            stands: None,
        });
    }));
}

fn end(rig: &Rig) -> (i64, usize) {
    let mut log = rig.log.0.lock().unwrap();
    log.on_commit = None;
    (log.low, log.cuts)
}

/// 101 and 105 end, 102 becomes another, and 110 is opened: whichever was written again before, the log says what is so.
#[test]
fn what_changes_between_two_portions_is_as_it_is_then() {
    let mut rig = held_ones();
    between(&rig, |changes| {
        for token in [101, 105] {
            changes.removed.push((key(token), Offset(i64::from(token))));
        }
        let mut another = held(102, 102);
        another.attempts = 9;
        changes.opened.extend([another, held(110, 110)]);
    });
    rig.trim();
    let (low, cuts) = end(&rig);
    assert!(low > 400 && cuts == 1, "cut {cuts} times, at {low}");
    assert_eq!(rig.missing(&BTreeMap::new()), Vec::<String>::new());
    let open = restored(&rig.log).load(ID).unwrap().open;
    let found: Vec<_> = open.iter().map(|open| (open.offset.0, open.attempts)).collect();
    assert_eq!(found, [(100, 1), (102, 9), (103, 1), (104, 1), (110, 1)]);
}

/// The assignment is over before the last portion is written: what was not written again is still where it was.
#[test]
fn nothing_is_cut_before_the_last_portion_is_written() {
    let mut rig = held_ones();
    let gate = rig.gate.clone();
    let mut portions = 0;
    rig.log.0.lock().unwrap().on_commit = Some(Box::new(move || {
        portions += 1;
        if portions == 3 {
            gate.clear();
        }
    }));
    rig.trim();
    assert_eq!(end(&rig), (0, 0));
    assert_eq!(restored(&rig.log).load(ID).unwrap().open.len(), OPEN.len());
}

/// However many there are: one portion is in memory, and in one transaction.
#[test]
fn each_portion_is_a_transaction() {
    let mut rig = held_ones();
    let portions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&portions);
    rig.log.0.lock().unwrap().on_commit = Some(Box::new(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }));
    rig.trim();
    assert_eq!(end(&rig).1, 1);
    assert_eq!(portions.load(std::sync::atomic::Ordering::SeqCst), OPEN.len());
}
