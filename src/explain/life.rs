//! How long a token and a message count.

use super::Page;
use crate::config::{Expired, MaxAge, OnUseless, Renewal, TopicPolicy, show_duration};

/// Renewal, stated birth, and maximal age.
pub(super) fn rows(policy: &TopicPolicy, page: &mut Page) {
    page.row(
        "a duplicate",
        match policy.renewal {
            Renewal::Never => "leaves the window of its token as it is",
            Renewal::OnDuplicate => "starts the window of its token anew, to within a quarter of it",
        },
    );
    page.row(
        "born before the window",
        match policy.expired {
            Expired::DeadLetter => "dead-lettered, reason `expired`",
            Expired::Run => "runs",
        },
    );
    page.row("too old to be of use", &too_old(&policy.max_age));
}

fn too_old(max_age: &MaxAge) -> String {
    let after = max_age
        .after
        .map(|after| format!("{} after its timestamp", show_duration(after)));
    let own = max_age.header.as_ref();
    let own = own.map(|header| format!("after as many milliseconds as its header `{header}` says"));
    let stated: Vec<String> = own.into_iter().chain(after).collect();
    let then = match max_age.then {
        OnUseless::DeadLetter => "dead-lettered, reason `useless`",
        OnUseless::Skip => "passed over",
    };
    match stated.join(", else ") {
        none if none.is_empty() => "never".to_owned(),
        when => format!("{when}, if no attempt before may have applied anything: {then}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::explain;
    use super::super::tests::row;
    use crate::config::settle;

    #[test]
    fn it_says_when_a_message_is_too_old_and_what_a_duplicate_does() {
        let text = |lines: &str| explain(&settle(lines).unwrap());
        assert_eq!(row(&text(""), "too old to be of use"), "never");
        let both = text(
            "topics.orders = { max_age = { after = \"5m\", header = \"old\", then = \"skip\" }, renewal = \"on-duplicate\" }",
        );
        let words = both.split_whitespace().collect::<Vec<_>>().join(" ");
        for says in [
            "after as many milliseconds as its header `old` says, else 5m after its timestamp",
            "may have applied anything: passed over",
            "starts the window of its token anew",
        ] {
            assert!(words.contains(says), "{says}: {both}");
        }
    }
}
