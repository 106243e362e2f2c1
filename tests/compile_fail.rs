//! The commonest mistakes do not compile, and what the compiler says names the line to mend.
//!
//! The words are those of one version of the compiler, so other versions skip this, loudly. It must not build RocksDB a
//! second time for a handful of error messages: trybuild builds with the features of the test that calls it, so a test
//! with default features runs itself again without.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::process::Command;

/// The compiler whose words are in `compile_fail/*.stderr`. After a change: delete them, run this test without default
/// features, read what it wrote to `wip/`, and move it back.
const WORDS_OF: &str = "rustc 1.95.";

#[test]
fn the_commonest_mistakes_are_refused_in_words_that_help() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.starts_with(WORDS_OF) {
        // Not `eprintln!`, which the test harness hides when a test passes.
        let _ = write!(
            std::io::stderr(),
            "SKIPPED: compile_fail: its words are those of {WORDS_OF}, this is {version}"
        );
        return;
    }
    if cfg!(any(feature = "rocks", feature = "kafka")) {
        without_default_features();
    } else {
        trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
    }
}

fn without_default_features() {
    let test = std::env::current_exe().unwrap();
    // target/release/deps/compile_fail-…
    let target = test.ancestors().nth(3).unwrap();
    let ran = Command::new(env!("CARGO"))
        .args([
            "test",
            "--release",
            "--locked",
            "--offline",
            "--no-default-features",
        ])
        // Nothing of it is run but this test.
        .args(["--config", "profile.release.package.hapax.opt-level=0"])
        .args(["--test", "compile_fail", "--", "--nocapture"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    let [out, err] = [&ran.stdout, &ran.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(ran.status.success() && out.contains("1 passed"), "{out}\n{err}");
}
