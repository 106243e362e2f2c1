//! What a failure costs, mode by mode.

use super::Page;
use crate::config::{Cold, Durability, Settings, warnings};

pub(super) fn failures(settings: &Settings, page: &mut Page) {
    match settings.durability {
        Durability::Local => local_failures(settings, page),
        Durability::Replicated => replicated_failures(page),
    }
    let warnings = warnings(settings);
    if !warnings.is_empty() {
        page.title("to look at");
    }
    for warning in warnings {
        page.row(
            &warning.key,
            &format!("{}: {}; {}", warning.value, warning.why, warning.fix),
        );
    }
}

fn replicated_failures(page: &mut Page) {
    page.title("what a failure costs with durability \"replicated\"");
    page.row(
        "process killed",
        "nothing that a transaction committed: states, dead letters and offsets are in it together. What ran is in \
         doubt, as above",
    );
    page.row(
        "machine or power lost",
        "the same: the disk is a copy of the changelog topic",
    );
    page.row(
        "disk lost",
        "the time of reading the changelog: a partition is served when it is read",
    );
    page.row(
        "partition moves",
        "the other process reads the changelog first, with what is held; it is not cold there",
    );
    page.row(
        "broker loses messages",
        "those messages; hapax cannot bring back what the log does not have",
    );
    page.row(
        "changelog topic lost",
        "the windows and what was held; every partition is cold. Give it the replication of what it protects",
    );
    page.row(
        "broker without transactions",
        "nothing runs: this mode needs them, and waits where the coordinator is away",
    );
    page.row(
        "process frozen",
        "beyond the session timeout it counts as lost: its transaction is refused, and another member may run what \
         it ran",
    );
}

fn local_failures(settings: &Settings, page: &mut Page) {
    let cold = match settings.cold {
        Cold::Refuse => {
            "guarded topics are not served there until the user says cold = \"run\", and /readyz says no"
        }
        Cold::Run => "served all the same (cold = \"run\"): what the lost window knew runs again",
    };
    page.title("what a failure costs with durability \"local\"");
    page.row(
        "process killed",
        "nothing that was recorded: states are synced before an offset is committed. What ran is in doubt, as \
         above",
    );
    page.row(
        "machine or power lost",
        "the same, as far as the disk keeps what it acknowledged as synced",
    );
    page.row(
        "disk lost",
        &format!("the windows and what was held; every partition is cold: {cold}"),
    );
    page.row(
        "partition moves",
        &format!(
            "the other process does not know the window, so it is cold there: {cold}. What was held below the \
             committed offset is dead-lettered, reason `moved`"
        ),
    );
    page.row(
        "partition comes back",
        "where another process committed meanwhile the store has a gap, and that is cold as well",
    );
    page.row(
        "broker loses messages",
        "those messages; hapax cannot bring back what the log does not have",
    );
    page.row(
        "committed offset vanishes",
        "nothing while the store knows its own position; otherwise the partition stops and asks",
    );
    page.row(
        "process frozen",
        "beyond the session timeout it counts as lost: it commits nothing, and another member may run what it \
         ran",
    );
}
