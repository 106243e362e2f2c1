//! Named crash points: a test-only seam (feature `testing`).
//!
//! `HAPAX_CRASH_AT=<name>:<n>` makes the process kill itself with SIGKILL the n-th time it reaches the point of that
//! name. Without the feature a point is nothing at all.

/// Every point, so that a campaign can run through them and a misspelt one is refused.
pub const POINTS: &[&str] = &[
    "before-begin",
    "after-begin",
    "inside-handler",
    "after-handler",
    "after-record",
    "before-letter-record",
    "before-commit",
    "after-commit",
    "during-rebalance",
    "at-shutdown",
    "during-rebuild",
    "before-rebuilt",
];

/// Reaches a point.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(crate) fn point(_: &'static str) {}

/// Reaches a point. Public with the feature, so that a handler can have one too.
#[cfg(feature = "testing")]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);

    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("HAPAX_CRASH_AT").ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        assert!(
            POINTS.contains(&name),
            "HAPAX_CRASH_AT={text}: no such point, there are {POINTS:?}"
        );
        Some((name.to_owned(), count.parse().unwrap_or(1)))
    });
    let Some((armed, count)) = armed else { return };
    if armed != name {
        return;
    }
    match (REACHED.fetch_add(1, Ordering::SeqCst) + 1).cmp(count) {
        std::cmp::Ordering::Less => {}
        // SIGKILL, not abort: no destructor, no handler, no flush. A shell has `kill` built in; the program of that
        // name is not everywhere.
        std::cmp::Ordering::Equal => {
            let pid = std::process::id().to_string();
            let _ = std::process::Command::new("sh")
                .args(["-c", "kill -s KILL $0", &pid])
                .status();
            rest();
        }
        // Whoever comes later, while the signal is on its way, does not get past the point either.
        std::cmp::Ordering::Greater => rest(),
    }
}

/// Until the signal arrives.
#[cfg(feature = "testing")]
fn rest() -> ! {
    loop {
        std::thread::park();
    }
}
