//! What cannot work in replicated mode alone: names of changelog topics, and a drain that no transaction outlives.

use std::time::Duration;

use super::bound::{Found, Shown};
use super::topic::legal;
use crate::config::read::segment;
use crate::config::settings::Settings;

/// The broker's default of `transaction.max.timeout.ms`: it refuses a producer that asks for more.
const TRANSACTION_MAX: Duration = Duration::from_secs(900);

pub(super) fn check(settings: &Settings, found: &mut Found) {
    names(settings, found);
    meetings(settings, found);
    let timeout = settings.transaction_timeout();
    let why = format!(
        "a transaction stays open for up to {}, and brokers allow {} by default (transaction.max.timeout.ms)",
        timeout.show(),
        TRANSACTION_MAX.show()
    );
    // One that the broker gives away sooner is refused already, for that reason.
    let news = found.problems.iter().all(|problem| problem.key != "drain");
    found.key("drain", settings.drain).when(
        news && timeout > TRANSACTION_MAX,
        why,
        "write for example \"10s\"",
    );
}

pub(super) fn warn(settings: &Settings, found: &mut Found) {
    let usual = Settings::new("", "", "", settings.durability).commit_every;
    found.key("commit_every", settings.commit_every).when(
        settings.commit_every != usual,
        "in replicated mode every transaction commits, so it does nothing",
        "remove it",
    );
}

/// The group's name begins the name of every changelog: what is wrong with it is said once.
fn names(settings: &Settings, found: &mut Found) {
    let group = settings.group.as_str();
    let topics = settings.topics.keys().filter(|topic| legal(topic).is_ok());
    let changelogs = topics.map(|topic| settings.changelog_of(topic));
    let Some(longest) = changelogs.max_by_key(String::len) else {
        return;
    };
    let Err(why) = legal(&longest) else { return };
    let why = format!(
        "in replicated mode it begins the name of a topic, here {longest:?} of {} characters: {why}",
        longest.chars().count()
    );
    found.key("group", group).when(
        !group.trim().is_empty(),
        why,
        "use another group: it starts where a new one starts, without the past of this one",
    );
}

/// No changelog may be a topic that messages come from or that dead letters go to.
fn meetings(settings: &Settings, found: &mut Found) {
    const LETTERS: &str = "dead_letter.topic";
    for topic in settings.topics.keys() {
        let changelog = settings.changelog_of(topic);
        let why = format!("it is the changelog of topic {topic:?}, where only hapax writes");
        found
            .key(format!("topics.{}", segment(&changelog)), changelog.as_str())
            .when(
                settings.topics.contains_key(&changelog),
                why.as_str(),
                "remove it",
            );
        let letters = settings
            .topics
            .keys()
            .any(|other| settings.dead_letter.topic_of(other) == changelog);
        let template = settings.dead_letter.topic.as_str();
        let news = found.problems.iter().all(|problem| problem.key != LETTERS);
        found.key(LETTERS, template).when(
            letters && news,
            format!("it gives {changelog:?}, and {why}"),
            "write for example \"{topic}.dead-letters\"",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::{Problem, settle, warnings};

    fn replicated(lines: &str) -> Vec<Problem> {
        let lines = format!("durability = \"replicated\"\n{lines}");
        settle(&lines).map_or_else(|error| error.problems().to_vec(), |_| Vec::new())
    }

    #[track_caller]
    fn refused(lines: &str, key: &str, why: &str) {
        let problems = replicated(lines);
        let [problem] = &problems[..] else {
            panic!("{lines}: {problems:?}")
        };
        assert_eq!(problem.key, key, "{problem}");
        assert!(problem.why.contains(why) && !problem.fix.is_empty(), "{problem}");
        assert!(settle(lines).is_ok(), "{lines}: the local mode does not mind");
    }

    #[test]
    fn a_group_that_cannot_begin_the_name_of_a_topic_is_refused() {
        refused(
            "group = \"shop/billing\"",
            "group",
            "\"shop/billing.orders.hapax\"",
        );
        refused("group = \"é\"", "group", "letters, digits, dots");
        // `.orders.hapax` takes 13 of 249.
        let of = |length: usize| format!("group = \"{}\"", "g".repeat(length));
        refused(&of(237), "group", "of 250 characters");
        assert_eq!(replicated(&of(236)), []);
        let long = "topics.refunds_of_all = { class = \"idempotent\", window = \"2h\" }";
        refused(&format!("{}\n{long}", of(236)), "group", "refunds_of_all.hapax");
        let empty = replicated("group = \"\"");
        assert_eq!(empty.len(), 1, "said once: {empty:?}");
    }

    #[test]
    fn a_changelog_is_nobodys_input_and_takes_no_letters() {
        let topic = |name: &str| format!("topics.\"{name}\" = {{ class = \"idempotent\", window = \"2h\" }}");
        refused(
            &topic("g.orders.hapax"),
            "topics.\"g.orders.hapax\"",
            "the changelog of topic \"orders\"",
        );
        refused(
            "dead_letter.topic = \"g.{topic}.hapax\"",
            "dead_letter.topic",
            "the changelog of topic \"orders\"",
        );
    }

    #[test]
    fn a_transaction_outlives_a_drain_and_not_the_brokers_patience() {
        let timeout = |drain: &str| {
            let settings = settle(&format!("drain = \"{drain}\"")).unwrap();
            settings.transaction_timeout()
        };
        let seconds = Duration::from_secs;
        assert_eq!(
            ["1s", "10s", "11s", "1m"].map(timeout),
            [seconds(15), seconds(15), seconds(16), seconds(65)]
        );
        let patient = "kafka.\"max.poll.interval.ms\" = 3600000";
        let drain = |text: &str| format!("drain = \"{text}\"\n{patient}");
        assert_eq!(replicated(&drain("895s")), []);
        refused(&drain("896s"), "drain", "transaction.max.timeout.ms");
        let both = replicated("drain = \"16m\"");
        assert_eq!(both.len(), 1, "said once: {both:?}");
    }

    #[test]
    fn copies_of_the_windows_of_others_need_changelogs() {
        assert_eq!(replicated("standby = \"all\""), []);
        assert_eq!(settle("").unwrap(), settle("standby = \"none\"").unwrap());
        let error = settle("standby = \"all\"").unwrap_err();
        let [problem] = error.problems() else {
            panic!("{error}")
        };
        assert_eq!(
            (problem.key.as_str(), problem.value.as_str()),
            ("standby", "\"all\"")
        );
        assert!(problem.fix.contains("durability = \"replicated\""), "{problem}");
    }

    #[test]
    fn an_interval_of_commits_is_worth_a_warning_where_nothing_follows_it() {
        let keys = |lines: &str| {
            let settings = settle(lines).unwrap();
            let keys = warnings(&settings).into_iter().map(|warning| warning.key);
            keys.collect::<Vec<_>>()
        };
        assert_eq!(keys("durability = \"replicated\""), Vec::<String>::new());
        assert_eq!(
            keys("durability = \"replicated\"\ncommit_every = \"2s\""),
            ["commit_every"]
        );
    }
}
