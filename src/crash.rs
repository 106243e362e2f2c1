//! Named crash points: a test-only seam (feature `testing`).
//!
//! `HAPAX_CRASH_AT=<name>:<n>` makes the process kill itself with SIGKILL the n-th time it reaches the point of that
//! name. `HAPAX_CRASH_AT=<name>:<n>:stop` makes it stop itself there with SIGSTOP: it goes on when somebody sends
//! SIGCONT. Without the feature a point is nothing at all.

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
    "before-transaction",
    "in-transaction",
    "outputs-in-transaction",
    "before-offsets",
    "before-commit-transaction",
    "after-transaction",
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

    static ARMED: OnceLock<Option<(String, u64, bool)>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);

    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("HAPAX_CRASH_AT").ok()?;
        let mut words = text.split(':');
        let (name, count) = (words.next()?, words.next().unwrap_or("1"));
        let stops = words.next() == Some("stop");
        assert!(
            POINTS.contains(&name),
            "HAPAX_CRASH_AT={text}: no such point, there are {POINTS:?}"
        );
        Some((name.to_owned(), count.parse().unwrap_or(1), stops))
    });
    let Some((armed, count, stops)) = armed else {
        return;
    };
    if armed != name {
        return;
    }
    match (REACHED.fetch_add(1, Ordering::SeqCst) + 1).cmp(count) {
        std::cmp::Ordering::Less => {}
        // Every thread stands still with this one; it goes on here.
        std::cmp::Ordering::Equal if *stops => send("STOP"),
        // SIGKILL, not abort: no destructor, no handler, no flush.
        std::cmp::Ordering::Equal => {
            send("KILL");
            rest();
        }
        std::cmp::Ordering::Greater if *stops => {}
        // Whoever comes later, while the signal is on its way, does not get past the point either.
        std::cmp::Ordering::Greater => rest(),
    }
}

/// Sends this process a signal. A shell has `kill` built in; the program of that name is not everywhere.
#[cfg(feature = "testing")]
fn send(signal: &str) {
    let pid = std::process::id().to_string();
    let _ = std::process::Command::new("sh")
        .args(["-c", "kill -s $0 $1", signal, &pid])
        .status();
}

/// Protecting rules that can be switched off, to see that a campaign notices: `HAPAX_BREAK=<name>`.
///
/// - `drain`: a revoked partition is neither drained nor fenced before it is given away
/// - `fence`: the journal writes what belongs to an assignment that is over
/// - `key`: a later message of a key does not wait for one that is held
/// - `offsets`: a transaction carries offsets only where a commit point moved
/// - `slots`: everything that is ready is begun
/// - `target`: a changelog is read to the last stable offset
/// - `time`: partition time is not restored
pub const RULES: &[&str] = &["drain", "fence", "key", "offsets", "slots", "target", "time"];

/// Whether a protecting rule is switched off.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(crate) fn is_off(_: &'static str) -> bool {
    false
}

/// Whether a protecting rule is switched off.
#[cfg(feature = "testing")]
pub(crate) fn is_off(rule: &'static str) -> bool {
    static OFF: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let off = OFF.get_or_init(|| {
        let name = std::env::var("HAPAX_BREAK").ok()?;
        assert!(
            RULES.contains(&name.as_str()),
            "HAPAX_BREAK={name}: no such rule, there are {RULES:?}"
        );
        Some(name)
    });
    off.as_deref() == Some(rule)
}

/// Until the signal arrives.
#[cfg(feature = "testing")]
fn rest() -> ! {
    loop {
        std::thread::park();
    }
}
