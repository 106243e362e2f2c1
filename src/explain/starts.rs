//! When attempts wait, and for what.

use super::Page;
use crate::breaker::{LEAST, TRIALS};
use crate::config::{TopicPolicy, show_duration};
use crate::retry_budget::WINDOW;

/// The budget of retries, and the breaker.
pub(super) fn rows(policy: &TopicPolicy, page: &mut Page) {
    let budget = &policy.budget;
    page.row(
        "its retries",
        &if budget.is_limited() {
            format!(
                "wait for their turn where they are more than {} of all attempts and {} a second, over {}",
                budget.share,
                budget.per_second,
                show_duration(WINDOW)
            )
        } else {
            "wait for nothing but their time".to_owned()
        },
    );
    let breaker = &policy.breaker;
    page.row(
        "the breaker",
        &if breaker.over == 0 {
            "none: attempts go on, however many fail".to_owned()
        } else {
            format!(
                "opens for {} where {} of the last {} attempts failed, from {} on; {TRIALS} single successes in a row close it",
                show_duration(breaker.open_for),
                breaker.failure_share,
                breaker.over,
                LEAST.min(u64::from(breaker.over))
            )
        },
    );
}

#[cfg(test)]
mod tests {
    use super::super::explain;
    use super::super::tests::row;
    use crate::config::settle;

    #[test]
    fn a_breaker_and_a_budget_say_what_they_do_and_where_there_is_none() {
        let text = |lines: &str| explain(&settle(lines).unwrap());
        let with = text("breaker.over = 7\nretry.budget.per_second = 77");
        assert!(row(&with, "the breaker").contains("0.5 of the last 7"), "{with}");
        assert!(
            row(&with, "its retries").contains("0.2 of all attempts and 77"),
            "{with}"
        );
        let without = text("breaker.over = 0\nretry.budget.share = 1.0");
        assert!(row(&without, "the breaker").starts_with("none"), "{without}");
        assert!(row(&without, "its retries").contains("nothing but"), "{without}");
    }
}
