//! The judge on real runs: with a protecting rule of the runtime switched off, it finds violations.
//!
//! `HAPAX_BREAK=<name>` is read only with the feature `testing`; see `src/crash.rs`.

use super::judge::Rule;
use super::{Settings, run};

/// A rule that can be switched off, and what is found without it.
const BREAKS: &[(&str, &[Rule])] = &[
    ("drain", &[Rule::StaleWrite]),
    ("fence", &[Rule::StaleWrite]),
    ("key", &[Rule::KeyOrder]),
    ("offsets", &[Rule::StaleWrite, Rule::TwoOutcomes]),
    ("slots", &[Rule::TooManyBegun]),
    ("target", &[Rule::TwoOutcomes, Rule::StaleWrite]),
    ("time", &[Rule::Time]),
];

/// In a campaign of this seed each of them is needed.
const SEED: u64 = 21;

#[test]
#[ignore = "minutes long: make chaos-breaks"]
fn without_a_protecting_rule_violations_are_found() {
    for (name, expected) in BREAKS {
        let settings = Settings {
            seed: super::number("CHAOS_SEED").unwrap_or(SEED),
            seconds: super::number("CHAOS_SECONDS").unwrap_or(35),
            brokers: 1,
            restarts_brokers: false,
            per_second: 200,
            broken: Some(name),
        };
        // One alone, by its name.
        if std::env::var("CHAOS_BREAK").is_ok_and(|only| only != *name) {
            continue;
        }
        let Some(outcome) = run(&settings) else { return };
        println!("without {name}: {outcome}");
        for violation in outcome.violations.iter().take(20) {
            println!("  {violation}");
        }
        let found = |rule| outcome.violations.iter().any(|violation| violation.rule == rule);
        assert!(
            expected.iter().any(|rule| found(*rule)),
            "without {name} one of {expected:?} is to be found: {outcome}"
        );
    }
}

#[test]
fn every_rule_that_can_be_switched_off_is_tried() {
    let tried: Vec<&str> = BREAKS.iter().map(|(name, _)| *name).collect();
    assert_eq!(tried, hapax::crash::RULES);
}
