//! What is committed was synced before, and what runs was begun on the disk: shown by the order of system calls.
//!
//! That records survive SIGKILL shows nothing of this: the page cache survives it too. So a consumer runs under `strace`,
//! and the trace is read: the bytes written to the write-ahead log, the syncs of that file, and the requests that leave
//! on the sockets. For every offset in every OffsetCommit request, each message below it must have its record in the log,
//! and a sync of the log must have begun after that write and returned before the request left. The same for every begin
//! of a handler and its `Begun`.
//!
//! Without strace (or where the system forbids it) the test says `SKIPPED` and returns; with `CI=true` that is a failure.

mod judge;
mod trace;

use std::io::Write as _;
use std::process::Command;

use crate::crash::{Run, Until, VARIANTS};
use crate::kafka;

/// So few that the log stays within one of its blocks: then its bytes need no unframing.
const MESSAGES: usize = 48;

#[test]
fn records_are_synced_before_their_offsets_are_committed() {
    let Some(broker) = kafka::broker() else { return };
    if !available() {
        return;
    }
    let again = "make test ARGS='--test it sync_order'";
    for (seed, variant) in [(11, VARIANTS[0]), (12, VARIANTS[1]), (13, VARIANTS[2])] {
        let mut run = Run::new(broker, seed, variant, MESSAGES, again).calm();
        let path = run.path("trace");
        let mut strace = Command::new("strace");
        strace
            // The consumer is our child and strace is nobody's, so that signals and the exit code are the consumer's.
            .args(["-D", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-o"])
            .arg(&path)
            .args(["-e", &format!("trace={}", trace::CALLS.join(",")), "--"])
            .arg(std::env::current_exe().unwrap());
        let mut process = run.start_under(strace);
        let ended = run.attend(&mut process, Until::Everything);
        assert!(
            !run.buried(&process, ended),
            "{}: killed by somebody else",
            run.name
        );
        let text = kafka::eventually("the end of the trace", std::time::Duration::from_secs(30), || {
            let text = std::fs::read_to_string(&path).ok()?;
            text.trim_end().ends_with("+++ exited with 0 +++").then_some(text)
        });
        let evidence = run.evidence();
        let calls = trace::parse(&text);
        let seen = judge::judge(&calls, &evidence).unwrap_or_else(|wrong| panic!("{}: {wrong}", run.name));
        println!("{}: {seen:?}", variant.name());
        assert!(
            seen.commits > 2 && seen.messages >= evidence.input.len(),
            "{}: {seen:?}",
            run.name
        );
        assert_eq!(seen.begins > 0, variant != VARIANTS[0], "{}: {seen:?}", run.name);

        // The same trace as if nothing had been synced.
        let without: Vec<_> = calls.iter().filter(|call| !call.is_sync()).cloned().collect();
        assert!(
            judge::judge(&without, &evidence).is_err(),
            "{}: nothing was synced",
            run.name
        );
        println!("{}: {:?}", variant.name(), run.judged());
    }
}

/// Says so, or panics in CI, when there is no strace that may trace.
fn available() -> bool {
    let tried = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "no strace, and CI=true: {why}"
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED: sync_order: no strace: {why}");
    false
}
