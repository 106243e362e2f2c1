//! What is done to a state directory while its process is down.

use std::path::Path;

use super::plan::Disk;

/// Does it. A directory that is not there yet stays away.
pub(crate) fn harm(dir: &Path, disk: Disk) {
    match disk {
        Disk::Delete => {
            let _ = std::fs::remove_dir_all(dir);
        }
        Disk::Corrupt(seed) => each_chosen(dir, seed, |bytes, random| {
            for _ in 0..random.usize(1..6) {
                if let Some(place) = (!bytes.is_empty()).then(|| random.usize(0..bytes.len())) {
                    bytes[place] ^= random.u8(1..);
                }
            }
        }),
        Disk::Truncate(seed) => each_chosen(dir, seed, |bytes, random| {
            bytes.truncate(random.usize(0..=bytes.len()));
        }),
    }
}

/// Changes a third of the files, and at least one.
fn each_chosen(dir: &Path, seed: u64, change: impl Fn(&mut Vec<u8>, &mut fastrand::Rng)) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    // Empty by nature: nothing can be wrong with it.
    files.retain(|path| path.is_file() && path.file_name().is_some_and(|name| name != "LOCK"));
    files.sort();
    let mut random = fastrand::Rng::with_seed(seed);
    random.shuffle(&mut files);
    let count = files.len().div_ceil(3);
    for path in files.into_iter().take(count) {
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes, &mut random);
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn harm_is_done_as_the_seed_says() {
    let contents = |dir: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.map(|path| std::fs::read(path).unwrap()).collect();
        files.sort();
        files
    };
    let made = || {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..6_u8 {
            std::fs::write(dir.path().join(format!("file-{n}")), vec![n; 100]).unwrap();
        }
        dir
    };
    let whole = contents(made().path());
    for disk in [Disk::Corrupt(5), Disk::Truncate(5)] {
        let (one, other) = (made(), made());
        harm(one.path(), disk);
        harm(other.path(), disk);
        assert_ne!(contents(one.path()), whole);
        assert_eq!(contents(one.path()), contents(other.path()));
    }
    let dir = made();
    harm(dir.path(), Disk::Delete);
    assert!(!dir.path().exists());
}
