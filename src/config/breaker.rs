//! When a handler is left in peace: the circuit breaker, and the budget of its retries.

use std::fmt;
use std::time::Duration;

/// A share, from 0 to 1, in millionths: exact to compare, and written as `0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

impl Share {
    const WHOLE: u32 = 1_000_000;

    /// All of it.
    pub const ALL: Self = Self(Self::WHOLE);

    /// That many hundredths; more than 100 are 100.
    #[must_use]
    pub const fn percent(hundredths: u32) -> Self {
        match hundredths {
            0..=100 => Self(hundredths * (Self::WHOLE / 100)),
            _ => Self::ALL,
        }
    }

    /// Whether so many of so many are at least this share.
    pub(crate) fn is_reached(self, part: u64, of: u64) -> bool {
        u128::from(part) * u128::from(Self::WHOLE) >= u128::from(self.0) * u128::from(of)
    }

    /// This share of so many, rounded down.
    pub(crate) fn of(self, many: u64) -> u64 {
        let part = u128::from(many) * u128::from(self.0) / u128::from(Self::WHOLE);
        u64::try_from(part).unwrap_or(u64::MAX)
    }

    /// Reads `0.5`; `None` for what is no share.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let share: f64 = text.trim().parse().ok()?;
        let is_share = (0.0..=1.0).contains(&share);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it lies between"
        )]
        is_share.then(|| Self((share * f64::from(Self::WHOLE)).round() as u32))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", f64::from(self.0) / f64::from(Self::WHOLE))
    }
}

/// When a handler's attempts stop, because too many of them fail. One breaker a topic and process.
///
/// While it is open the topic takes nothing and no attempt starts; what was taken keeps its order, and time that passes counts
/// for no retry. A failure is an attempt that ended with an error other than `reject`, with a panic, or at its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Breaker {
    /// The share of failures at which it opens.
    ///
    /// Default: `0.5`. Too small, and a few messages that cannot succeed stop all the others; too large, and a downstream that
    /// answers now and then is asked by every slot until it does not. Metrics: `hapax_breaker_state`,
    /// `hapax_breaker_opened_total`.
    pub failure_share: Share,
    /// How many of the latest attempts are looked at; not before 20 of them, or all of these where they are fewer, does it open.
    ///
    /// Default: `100`. Too small, and bad luck opens it; too large, and a downstream that goes away is asked by more messages
    /// before it does: by half of these with a share of one half, and each can come in doubt. `0`: there is no breaker.
    pub over: u32,
    /// How long nothing is tried. Then single attempts are, one at a time: three successes in a row close it, a failure opens
    /// it again for as long.
    ///
    /// Default: `10s`. Too small, and a downstream that starts is asked while it does; too large, and one that is back is
    /// noticed late.
    pub open_for: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failure_share: Share::percent(50),
            over: 100,
            open_for: Duration::from_secs(10),
        }
    }
}

/// How many retries in place there may be, as a share of all attempts: within ten seconds, one topic in one process. One for
/// which nothing is left waits for its turn; it is not given up, and the wait counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RetryBudget {
    /// The share of attempts that may be retries.
    ///
    /// Default: `0.2`. Without a budget five attempts a message make five times the load of a downstream that fails under load;
    /// with this one a quarter more. Too small, and messages wait for retries that would succeed. `1.0`: there is no budget.
    /// Metric: `hapax_retries_postponed_total`.
    pub share: Share,
    /// Retries a second that there may be beside those, so that a quiet topic retries at once.
    ///
    /// Default: `10`. Too large, and a budget that is spent spares nobody anything.
    pub per_second: u32,
}

impl RetryBudget {
    /// Whether there is one.
    pub(crate) fn is_limited(&self) -> bool {
        self.share < Share::ALL
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            share: Share::percent(20),
            per_second: 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_exactly_and_shown_as_written() {
        for (text, shown) in [
            ("0.5", "0.5"),
            ("1", "1.0"),
            ("1.0", "1.0"),
            ("0", "0.0"),
            ("0.07", "0.07"),
            ("1e-3", "0.001"),
        ] {
            let share = Share::parse(text).unwrap();
            assert_eq!(share.to_string(), shown);
            assert_eq!(Share::parse(shown), Some(share));
        }
        for text in ["", "half", "-0.1", "1.1", "nan", "inf", "50%"] {
            assert_eq!(Share::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_share_is_reached_from_its_boundary_on() {
        let share = Share::parse("0.07").unwrap();
        assert!(!share.is_reached(6, 100));
        assert!(share.is_reached(7, 100));
        assert_eq!(
            (share.of(100), share.of(99), share.of(u64::MAX) > 1 << 59),
            (7, 6, true)
        );
        assert_eq!((Share::percent(50).of(3), Share::percent(700)), (1, Share::ALL));
    }
}
