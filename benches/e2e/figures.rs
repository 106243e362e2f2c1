//! The figures: one line for each, for a script to read, and the targets that some of them have to reach.

use crate::contestants::Measured;

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// What a figure has to reach.
#[derive(Debug, Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

/// The promises of the README: a bench that does not keep them fails.
const TARGETS: &[(&str, Target)] = &[
    ("local_vs_streams", Target::AtLeast(4.0)),
    ("local_vs_bare", Target::AtLeast(0.35)),
    ("replicated_vs_streams_eos", Target::AtLeast(4.0)),
    ("replicated_vs_bare", Target::AtLeast(0.3)),
    ("restore_vs_streams", Target::AtLeast(2.0)),
    ("bytes_per_key", Target::AtMost(32.0)),
    ("reopen_10m", Target::Below(2.0)),
    ("held_vs_none", Target::AtLeast(0.95)),
    ("held_due_p99", Target::AtMost(100.0)),
    ("duplicates_vs_unique", Target::AtLeast(1.0)),
    ("slow_of_ideal", Target::AtLeast(0.95)),
    ("slow_vs_parallel", Target::AtLeast(1.0)),
    ("quick_vs_parallel", Target::AtLeast(1.0)),
];

impl Target {
    fn reached(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
        }
    }

    fn words(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("at least {bound}"),
            Self::AtMost(bound) => format!("at most {bound}"),
            Self::Below(bound) => format!("below {bound}"),
        }
    }
}

/// `bench NAME VALUE UNIT`: four significant digits, and no thousands separator.
pub(crate) fn line(figure: &Figure) -> String {
    let decimals = match figure.value.abs() {
        value if value >= 1000.0 => 0,
        value if value >= 100.0 => 1,
        value if value >= 10.0 => 2,
        _ => 3,
    };
    format!(
        "bench {} {:.decimals$} {}",
        figure.name, figure.value, figure.unit
    )
}

/// A line for each figure that misses its target. One that was not measured misses nothing.
pub(crate) fn missed(figures: &[Figure]) -> Vec<String> {
    let targets = TARGETS.iter().filter_map(|(name, target)| {
        let figure = figures.iter().find(|figure| figure.name == *name)?;
        (!target.reached(figure.value)).then(|| {
            let line = line(figure);
            let measured = line.strip_prefix("bench ").unwrap_or(&line);
            format!("bench: MISSED {measured}: the target is {}", target.words())
        })
    });
    targets.collect()
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// Messages a second.
pub(crate) fn rate(measured: &Measured) -> f64 {
    measured.count as f64 / measured.seconds
}

/// KiB as MiB.
pub(crate) fn mib(measured: &Measured) -> f64 {
    measured.rss_kib as f64 / 1024.0
}

/// The threads that used most time, for the table: `name 1.23s`.
pub(crate) fn busiest(measured: &Measured, count: usize) -> String {
    let mut threads: Vec<_> = measured.cpu.iter().collect();
    threads.sort_by(|a, b| b.1.total_cmp(a.1));
    let threads = threads.into_iter().take(count);
    let words: Vec<String> = threads
        .map(|(name, seconds)| format!("{name} {seconds:.2}s"))
        .collect();
    words.join(", ")
}
