//! What each failure costs, in either durability mode.
//!
//! The rows are promises: each is what the tests of crashes, rebalances and lost disks show, and no more.

use super::Page;
use crate::config::{Cold, Durability, Settings, Standby, show_duration};

/// Both modes, so that the choice between them can be made from one page; the chosen one first.
pub(super) fn failures(settings: &Settings, page: &mut Page) {
    let cold = match settings.cold {
        Cold::Refuse => {
            "guarded topics are not served there until the user says cold = \"run\", and /readyz says no"
        }
        Cold::Rebuild => {
            "read back from the topic first (cold = \"rebuild\"), then served: what was done is known again, by what \
             outcome is not"
        }
        Cold::Run => "served all the same (cold = \"run\"): what the lost window knew runs again",
    };
    let both = [Durability::Local, Durability::Replicated];
    let others = both.into_iter().filter(|mode| *mode != settings.durability);
    for mode in [settings.durability].into_iter().chain(others) {
        let title = format!("what a failure costs with durability \"{mode}\"");
        if mode == settings.durability {
            page.title(&title);
        } else {
            page.title(&format!("{title}, which is not chosen here"));
        }
        match mode {
            Durability::Local => local_failures(cold, page),
            Durability::Replicated => replicated_failures(settings, cold, page),
        }
    }
}

fn local_failures(cold: &str, page: &mut Page) {
    page.row(
        "process killed",
        "nothing that was recorded: states are synced before an offset is committed. What ran is in doubt, as \
         above",
    );
    page.row(
        "machine or power lost",
        "the same, as far as the disk keeps what it acknowledged as synced. Until the machine is back its partitions \
         are cold elsewhere",
    );
    page.row(
        "disk lost",
        &format!("the windows and what was held; every partition is cold: {cold}"),
    );
    page.row(
        "broker lost",
        "nothing that was recorded. While a partition has no leader it stands still, and dead letters wait",
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
         ran. A handler that thaws may still reach the outside; cx.fence() does not order members in this mode",
    );
}

fn replicated_failures(settings: &Settings, cold: &str, page: &mut Page) {
    let timeout = show_duration(settings.transaction_timeout());
    page.row(
        "process killed",
        &format!(
            "nothing that was recorded: states and offsets are committed in one transaction. What ran is in doubt, as \
             above. Its partitions stand still until its session ends, and up to {timeout} more for a transaction \
             that it left open"
        ),
    );
    page.row(
        "machine or power lost",
        "the same: nothing that counts was on it, and another process goes on",
    );
    page.row(
        "disk lost",
        "nothing: the windows are read back from the changelogs, and each partition is served after that",
    );
    page.row(
        "broker lost",
        "nothing while the other replicas of the changelogs are enough for min.insync.replicas; with fewer nothing is \
         recorded, so nothing is committed, and partitions stand still",
    );
    page.row(
        "partition moves",
        match settings.standby {
            Standby::None => {
                "nothing: the other process reads the changelog, and serves after that. What is held moves with it"
            }
            Standby::All => {
                "nothing: the other process has a copy, so of the changelog only the tail is left to read, and serves after \
                 that. What is held moves with it"
            }
        },
    );
    page.row(
        "partition comes back",
        "nothing: only what changed meanwhile is read",
    );
    page.row(
        "broker loses messages",
        "those messages. States that it loses from a changelog (one replica and a lost disk, or an unclean leader \
         election) are lost as well, and what they knew runs again",
    );
    page.row(
        "changelog topic deleted",
        &format!("the windows and what was held; every partition is cold: {cold}"),
    );
    page.row(
        "committed offset vanishes",
        "nothing: the commit point is in the changelog too",
    );
    page.row(
        "process frozen",
        "beyond the session timeout it counts as lost: the broker refuses what it would record, and another member \
         may run what it ran. A handler that thaws may still reach the outside: where that matters the resource \
         checks cx.fence(), which grows from member to member",
    );
}

/// What standing by gives, and what it costs.
pub(super) const fn copies(standby: Standby) -> &'static str {
    match standby {
        Standby::None => {
            "none (standby = \"none\"): a partition that comes here is read from its changelog first, all of it on a disk \
             that never had it"
        }
        Standby::All => {
            "of every partition (standby = \"all\"): one that comes here is served once the tail is read. Each member \
             pays with its disk for every window, and with network and CPU for every changelog: it reads and writes what \
             all members together record"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::explain;
    use super::super::tests::row;
    use crate::config::settle;

    #[test]
    fn both_modes_say_what_each_failure_costs_and_the_chosen_one_comes_first() {
        let titles = |lines: &str| {
            let text = explain(&settle(lines).unwrap());
            let titles = text.lines().filter(|line| line.starts_with("what a failure"));
            titles.map(str::to_owned).collect::<Vec<_>>()
        };
        let title = |mode| format!("what a failure costs with durability \"{mode}\"");
        let other = |mode| format!("{}, which is not chosen here", title(mode));
        assert_eq!(titles(""), [title("local"), other("replicated")]);
        assert_eq!(
            titles("durability = \"replicated\""),
            [title("replicated"), other("local")]
        );

        let text = explain(&settle("").unwrap());
        let (_, costs) = text.split_once("what a failure costs").unwrap();
        let (local, replicated) = costs.split_once("what a failure costs").unwrap();
        for failure in [
            "process killed",
            "machine or power lost",
            "disk lost",
            "broker lost",
            "partition moves",
            "process frozen",
        ] {
            assert_ne!(row(local, failure), row(replicated, failure), "{failure}");
        }
    }

    #[test]
    fn standing_by_says_what_it_costs_and_what_it_gives() {
        let text = |lines: &str| explain(&settle(&format!("durability = \"replicated\"\n{lines}")).unwrap());
        let (none, all) = (text(""), text("standby = \"all\""));
        assert!(
            row(&none, "copies of others' windows").starts_with("none"),
            "{none}"
        );
        assert!(!none.contains("on the disk of each member"), "{none}");
        for says in [
            "once the tail is read",
            "on the disk of each member",
            "only the tail is left",
        ] {
            let words: String = all.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(says), "{says}: {all}");
        }
        let local = explain(&settle("").unwrap());
        assert!(!local.contains("copies of others' windows"), "{local}");
    }
}
