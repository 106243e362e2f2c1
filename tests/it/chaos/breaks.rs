//! The judge on real runs: with a protecting rule of the runtime switched off, it finds violations.
//!
//! `HAPAX_BREAK=<name>` is read only with the feature `testing`.

use super::judge::Rule;
use super::{Settings, run};

/// A rule that can be switched off, the seed of a run that needs it, and what is found without it.
const BREAKS: &[(&str, u64, &[Rule])] = &[];

#[test]
#[ignore = "minutes long: make chaos"]
fn without_a_protecting_rule_violations_are_found() {
    for (name, seed, expected) in BREAKS {
        let settings = Settings {
            seed: *seed,
            seconds: 40,
            brokers: 1,
            restarts_brokers: false,
            per_second: 200,
            broken: Some(name),
        };
        let Some(outcome) = run(&settings) else { return };
        println!("without {name}: {outcome}");
        for violation in &outcome.violations {
            println!("  {violation}");
        }
        let found = |rule| outcome.violations.iter().any(|violation| violation.rule == rule);
        assert!(
            expected.iter().any(|rule| found(*rule)),
            "without {name} one of {expected:?} is to be found: {outcome}"
        );
    }
}
