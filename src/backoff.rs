//! How long to wait before the next attempt: exponential, capped, full jitter.
//!
//! Source of the formula: "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015), *full jitter*: the wait is
//! uniform in `[0, min(max, first * 2^(attempt - 1)))`. The crate `backoff` computes the capped exponential; the jitter
//! is ours, because its own is applied after the cap and cannot be seeded (Inv 11).

use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;

/// The bounds of retries in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Attempts in all, the first included.
    pub attempts_max: u32,
    /// Time in all, from the start of the first attempt.
    pub total: Duration,
    /// The first wait's upper end.
    pub first: Duration,
    /// No wait is longer.
    pub wait_max: Duration,
}

/// Draws waits. One per partition task, seeded.
#[derive(Debug)]
pub struct Waits {
    random: fastrand::Rng,
}

impl Waits {
    /// Waits that a test can foresee by their seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The wait after attempt `attempt` (counted from 1) has failed `elapsed` after the first one started; `None`
    /// when attempts or time are spent. A handler that asked for a longer wait with `asked` gets it, as long as the
    /// total allows.
    pub fn next(
        &mut self,
        bounds: &Bounds,
        attempt: u32,
        elapsed: Duration,
        asked: Option<Duration>,
    ) -> Option<Duration> {
        if attempt >= bounds.attempts_max {
            return None;
        }
        let wait = asked.unwrap_or_else(|| self.jitter(ceiling(bounds, attempt)));
        (elapsed + wait <= bounds.total).then_some(wait)
    }

    fn jitter(&mut self, ceiling: Duration) -> Duration {
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random.u64(0..nanos.max(1)))
    }
}

/// The capped exponential after that attempt.
fn ceiling(bounds: &Bounds, attempt: u32) -> Duration {
    let mut intervals = ExponentialBackoffBuilder::new()
        .with_initial_interval(bounds.first)
        .with_max_interval(bounds.wait_max)
        .with_multiplier(2.0)
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build();
    // 64 doublings reach any cap.
    (0..attempt.clamp(1, 64))
        .filter_map(|_| intervals.next_backoff())
        .last()
        .unwrap_or(bounds.wait_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        attempts_max: 5,
        total: Duration::from_secs(30),
        first: Duration::from_millis(100),
        wait_max: Duration::from_millis(300),
    };

    #[test]
    fn the_ceiling_doubles_up_to_its_cap() {
        let ceilings: Vec<_> = (1..=4)
            .map(|attempt| ceiling(&BOUNDS, attempt).as_millis())
            .collect();
        assert_eq!(ceilings, [100, 200, 300, 300]);
    }

    #[test]
    fn every_wait_lies_below_its_ceiling_and_the_seed_fixes_it() {
        let draw = |seed| {
            let mut waits = Waits::seeded(seed);
            (1..5)
                .map(move |attempt| waits.next(&BOUNDS, attempt, Duration::ZERO, None).unwrap())
                .collect::<Vec<_>>()
        };
        for seed in 0..200 {
            for (attempt, wait) in (1..5).zip(draw(seed)) {
                assert!(
                    wait < ceiling(&BOUNDS, attempt),
                    "seed {seed}, attempt {attempt}: {wait:?}"
                );
            }
        }
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn attempts_and_time_both_end_it() {
        let mut waits = Waits::seeded(1);
        assert_eq!(waits.next(&BOUNDS, 5, Duration::ZERO, None), None);
        assert_eq!(waits.next(&BOUNDS, 1, Duration::from_secs(31), None), None);
        assert_eq!(
            waits.next(&BOUNDS, 1, Duration::ZERO, Some(Duration::from_secs(31))),
            None
        );
        assert_eq!(
            waits.next(&BOUNDS, 1, Duration::ZERO, Some(Duration::from_secs(7))),
            Some(Duration::from_secs(7))
        );
    }
}
