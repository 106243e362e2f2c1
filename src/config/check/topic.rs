//! What cannot work in the policy of one topic.

use std::time::Duration;

use super::bound::{Found, Shown};
use super::{CENTURY, DAY, HOUR, SECOND};
use crate::class::Class;
use crate::config::breaker::{Breaker, RetryBudget, Share};
use crate::config::given::{Outputs, Replies};
use crate::config::read::segment;
use crate::config::settings::Settings;
use crate::config::topic::{InPlace, Mode, OnMismatch, Overall, TokenSource, TopicPolicy};
use crate::config::units::ByteCount;

pub(super) fn check(settings: &Settings, name: &str, policy: &TopicPolicy, found: &mut Found) {
    let topic = format!("topics.{}", segment(name));
    let key = |key: &str| format!("{topic}.{key}");
    if let Err(why) = legal(name) {
        found
            .key(topic.clone(), name)
            .when(true, why, "use the topic's name in Kafka");
    }
    dead_letters(settings, name, found);
    found
        .key(key("window"), policy.window)
        .least(
            SECOND,
            "it is forgotten by quarters, and stamps are whole milliseconds",
        )
        .most(
            CENTURY,
            "nothing would ever be forgotten: 100 messages a second are 101 GB a year",
        );
    if let Some(window_bytes) = policy.window_bytes {
        let why = "the window would be shed as fast as it is written";
        found
            .key(key("window_bytes"), window_bytes)
            .least(ByteCount::mib(1), why);
    }
    tokens(&key("token"), &policy.token, found);
    found
        .key(key("concurrency"), policy.concurrency.slots())
        .most(65_536, "no partition runs so many at a time");
    found
        .key(key("begun_ahead"), policy.begun_ahead)
        .most(65_536, "a kill would leave that many more in doubt");
    for (name, deadline) in [
        ("deadline", policy.deadline),
        ("probe_deadline", policy.probe_deadline),
    ] {
        found
            .key(key(name), deadline)
            .least(Duration::from_millis(1), "it would be over before it began")
            .most(DAY, "nobody would find a stuck one");
    }
    found
        .key(key("probe_settle"), policy.probe_settle)
        .most(HOUR, "nobody waits so long for a verdict");
    if policy.class == Class::PotentiallyIdempotent {
        found
            .key(key("rerun_within"), policy.rerun_within)
            .least(
                Duration::from_millis(1),
                "nothing would run again, which class \"non-idempotent\" says",
            )
            .most(CENTURY, "no downstream remembers a child token so long");
    }

    if let Some(after) = policy.max_age.after {
        found
            .key(key("max_age.after"), after)
            .least(Duration::from_millis(1), "every message would be too old")
            .most(CENTURY, "no message is so old; leave it out");
    }
    if let Some(header) = &policy.max_age.header {
        found.key(key("max_age.header"), header.as_str()).when(
            header.is_empty(),
            "a header has a name",
            "write for example \"useless-after\"",
        );
    }
    let fields = &policy.mismatch.fields;
    unique_pointers(&key("mismatch.fields"), fields, found);
    found.key(key("mismatch.then"), policy.mismatch.then.name()).when(
        fields.is_empty() && policy.mismatch.then == OnMismatch::DeadLetter,
        "without fields the bytes are compared, and those differ where a producer only reorders its keys",
        "name the fields: mismatch = { fields = [\"/amount\"] }",
    );
    outputs(&key("outputs"), &policy.outputs, found);
    replies(&topic, name, policy, found);
    in_place(&key("retry.in_place"), &policy.retry.in_place, found);
    overall(&key("retry.overall"), &policy.retry.overall, found);
    budget(&key("retry.budget"), &policy.budget, found);
    breaker(&key("breaker"), &policy.breaker, found);
}

pub(super) fn warn(settings: &Settings, name: &str, policy: &TopicPolicy, found: &mut Found) {
    let topic = format!("topics.{}", segment(name));
    let key = |key: &str| format!("{topic}.{key}");
    let cut_off = format!(
        "longer than drain = {}, so a rebalance may cut it off",
        settings.drain.show()
    );
    found.key(key("deadline"), policy.deadline).when(
        policy.deadline > settings.drain,
        cut_off,
        "lower it, or raise `drain`",
    );
    let jump = format!(
        "not longer than max_clock_jump = {}, so one wrong stamp may end it",
        settings.max_clock_jump.show()
    );
    found.key(key("window"), policy.window).when(
        policy.window <= settings.max_clock_jump,
        jump,
        "lower `max_clock_jump`",
    );
    let (in_flight, slots) = (settings.limits.in_flight, policy.concurrency.slots());
    let wanted = slots.saturating_add(policy.begun_ahead);
    found.key(key("concurrency"), slots).when(
        wanted > in_flight,
        format!(
            "limits.in_flight = {in_flight} is fewer than the {wanted} that one partition runs and begins"
        ),
        "lower it, or raise `limits.in_flight`",
    );
    found.key(key("begun_ahead"), policy.begun_ahead).when(
        policy.begun_ahead > 0 && !policy.class.is_guarded(),
        format!("nothing of class \"{}\" is begun", policy.class),
        "remove it",
    );
    found.key(key("mode"), policy.mode.name()).when(
        policy.mode == Mode::Observe,
        "duplicates run",
        "set \"enforce\" once the counts look right",
    );
}

/// One template serves every topic: what is wrong with it is said once.
fn dead_letters(settings: &Settings, topic: &str, found: &mut Found) {
    const KEY: &str = "dead_letter.topic";
    const FIX: &str = "only {topic} is replaced; write for example \"{topic}.dead-letters\"";
    if found.problems.iter().any(|problem| problem.key == KEY) {
        return;
    }
    let target = settings.dead_letter.topic_of(topic);
    let why = match legal(&target) {
        Err(why) => why,
        Ok(()) if target == topic => "it is the topic itself, and that would never end",
        Ok(()) => return,
    };
    let why = format!("for topic {topic:?} it gives {target:?}: {why}");
    found
        .key(KEY, settings.dead_letter.topic.as_str())
        .when(true, why, FIX);
}

fn tokens(key: &str, sources: &[TokenSource], found: &mut Found) {
    const EXAMPLE: &str = "write for example [{ header = \"idempotency-key\" }]";
    if sources.is_empty() {
        found
            .key(key, "")
            .when(true, "without a source no message has a token", EXAMPLE);
    }
    for (at, source) in sources.iter().enumerate() {
        let twice = sources.iter().take(at).any(|earlier| earlier == source);
        found
            .key(key, "")
            .when(twice, format!("it names {source} twice"), "name it once");
        match source {
            TokenSource::Header(name) | TokenSource::Code(name) => {
                found
                    .key(key, "")
                    .when(name.is_empty(), "a source has an empty name", EXAMPLE);
            }
            TokenSource::Json(text) => pointer(key, text, found),
            TokenSource::Offset => {
                found.key(key, "offset").when(
                    sources.len() > 1,
                    "the position is always present, so a missing token would never be noticed",
                    "leave it out: `missing_token = \"use-offset\"` falls back to it",
                );
            }
            TokenSource::Key => {}
        }
    }
}

fn unique_pointers(key: &str, pointers: &[String], found: &mut Found) {
    for (at, text) in pointers.iter().enumerate() {
        let twice = pointers.iter().take(at).any(|earlier| earlier == text);
        found
            .key(key, text.as_str())
            .when(twice, "it is there twice", "name it once");
        pointer(key, text, found);
    }
}

/// RFC 6901: a slash before every name, and a tilde only as `~0` or `~1`. The empty pointer is the whole document,
/// which is neither a token nor a field.
fn pointer(key: &str, text: &str, found: &mut Found) {
    let slash = text.starts_with('/');
    let escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    found
        .key(key, text)
        .when(
            !slash,
            "a JSON pointer starts with a slash",
            format!("write \"/{text}\""),
        )
        .when(
            slash && !escaped,
            "a JSON pointer writes a tilde as ~0",
            format!("write {:?}", text.replace('~', "~0")),
        );
}

fn in_place(key: &str, bounds: &InPlace, found: &mut Found) {
    let at = |name: &str| format!("{key}.{name}");
    found
        .key(at("attempts"), bounds.attempts)
        .least(1, "nothing would ever run");
    found
        .key(at("total"), bounds.total)
        .most(DAY, "the message keeps its slot all the while")
        .when(
            bounds.attempts > 1 && bounds.total < bounds.first,
            format!(
                "shorter than first = {}, so nothing would be repeated",
                bounds.first.show()
            ),
            "raise it, or set attempts = 1",
        );
    found
        .key(at("max"), bounds.max)
        .most(DAY, "`total` ends it sooner");
    waits(key, bounds.first, bounds.max, found);
}

fn overall(key: &str, bounds: &Overall, found: &mut Found) {
    let at = |name: &str| format!("{key}.{name}");
    found
        .key(at("attempts"), bounds.attempts)
        .least(1, "nothing would ever run");
    found
        .key(at("total"), bounds.total)
        .most(CENTURY, "`limits.held_age` ends it sooner");
    found
        .key(at("max"), bounds.max)
        .most(CENTURY, "`limits.held_age` ends it sooner");
    waits(key, bounds.first, bounds.max, found);
}

fn waits(key: &str, first: Duration, max: Duration, found: &mut Found) {
    found
        .key(format!("{key}.first"), first)
        .least(
            Duration::from_millis(1),
            "a downstream that is down would be asked again at once",
        )
        .when(
            first > max,
            format!("longer than max = {}", max.show()),
            "the first wait is the shortest: lower it, or raise `max`",
        );
}

fn budget(key: &str, budget: &RetryBudget, found: &mut Found) {
    found
        .key(format!("{key}.per_second"), budget.per_second)
        .least(1, "a quiet topic would never retry")
        .most(100_000, "that is no budget, which share = 1.0 says");
}

fn breaker(key: &str, breaker: &Breaker, found: &mut Found) {
    let key = |name: &str| format!("{key}.{name}");
    found
        .key(key("failure_share"), breaker.failure_share)
        .least(Share::percent(1), "one failure would stop the topic");
    found.key(key("over"), breaker.over).most(
        10_000,
        "a downstream that is away would be asked thousands of times first",
    );
    found
        .key(key("open_for"), breaker.open_for)
        .least(
            Duration::from_millis(1),
            "it would never be open; without a breaker is over = 0",
        )
        .most(HOUR, "a downstream that is back would not be noticed");
}

/// A topic that something is sent to.
fn sent_to(key: &str, topic: &str, found: &mut Found) {
    if let Err(why) = legal(topic) {
        let fix = "use the topic's name in Kafka";
        found.key(key.to_owned(), topic).when(true, why, fix);
    }
    found.key(key.to_owned(), topic).when(
        topic.ends_with(".hapax"),
        "a name that ends in \".hapax\" is a changelog's, which nobody but hapax writes",
        "name another topic",
    );
}

fn replies(key: &str, name: &str, policy: &TopicPolicy, found: &mut Found) {
    let Replies {
        header,
        topic,
        allowed,
    } = &policy.reply;
    let to = [("reply.topic", topic), ("receipts.topic", &policy.receipts.topic)];
    let to = to
        .into_iter()
        .filter_map(|(key, topic)| Some((key, topic.as_ref()?)));
    for (at, topic) in to.chain(allowed.iter().map(|topic| ("reply.allowed", topic))) {
        let key = format!("{key}.{at}");
        sent_to(&key, topic, found);
        found.key(key, topic.as_str()).when(
            topic == name,
            "it would come back as a message, and be answered again, for ever",
            "name another topic",
        );
    }
    if let Some(header) = header {
        found.key(format!("{key}.reply.header"), header.as_str()).when(
            topic.is_none() && allowed.is_empty(),
            "no topic that it could name is allowed",
            "list them: reply = { header = \"reply-to\", allowed = [\"replies\"] }",
        );
    }
}

fn outputs(key: &str, outputs: &Outputs, found: &mut Found) {
    for topic in &outputs.topics {
        sent_to(&format!("{key}.topics"), topic, found);
    }
    found
        .key(format!("{key}.max"), outputs.max)
        .least(1, "nothing could be emitted")
        .most(100_000, "they are in memory all at once");
    found
        .key(format!("{key}.bytes"), outputs.bytes)
        .least(ByteCount(1), "nothing could be emitted")
        .most(
            ByteCount::mib(64),
            "no topic takes as much, and it is in memory all at once",
        );
}

/// Kafka's own rule for the names of topics.
pub(crate) fn legal(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("a topic has a name"),
        "." | ".." => Err("Kafka has no topic of that name"),
        name if name.len() > 249 => Err("a name in Kafka ends at 249 characters"),
        name if !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) =>
        {
            Err("a name in Kafka is made of letters, digits, dots, underscores and hyphens")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::settle;

    #[test]
    fn what_cannot_work_for_a_topic_is_refused() {
        let table = [
            ("window = \"0s\"", "window", "forgotten by quarters"),
            ("window = \"999ms\"", "window", "forgotten by quarters"),
            ("window = \"1000y\"", "window", "nothing would ever be forgotten"),
            ("outputs.topics = [\"a b\"]", "outputs.topics", "letters, digits"),
            (
                "outputs.topics = [\"g.orders.hapax\"]",
                "outputs.topics",
                "a changelog's",
            ),
            ("reply.topic = \"orders\"", "reply.topic", "for ever"),
            (
                "reply.allowed = [\"g.orders.hapax\"]",
                "reply.allowed",
                "a changelog's",
            ),
            ("receipts.topic = \"{topic}\"", "receipts.topic", "for ever"),
            ("reply.header = \"reply-to\"", "reply.header", "is allowed"),
            ("outputs.max = 0", "outputs.max", "nothing could be emitted"),
            (
                "outputs.bytes = \"65MiB\"",
                "outputs.bytes",
                "no topic takes as much",
            ),
            ("window_bytes = \"1023KiB\"", "window_bytes", "shed as fast"),
            ("token = []", "token", "no message has a token"),
            ("token = [\"key\", \"key\"]", "token", "twice"),
            ("token = [{ header = \"\" }]", "token", "empty name"),
            ("token = [{ json = \"id\" }]", "token", "starts with a slash"),
            ("token = [{ json = \"\" }]", "token", "starts with a slash"),
            ("token = [{ json = \"/a~b\" }]", "token", "a tilde as ~0"),
            ("token = [\"key\", \"offset\"]", "token", "always present"),
            (
                "concurrency = { unordered = 65537 }",
                "concurrency",
                "no partition runs so many",
            ),
            ("begun_ahead = 65537", "begun_ahead", "more in doubt"),
            ("deadline = \"0s\"", "deadline", "before it began"),
            ("deadline = \"25h\"", "deadline", "stuck"),
            ("probe_deadline = \"0s\"", "probe_deadline", "before it began"),
            ("probe_settle = \"2h\"", "probe_settle", "waits so long"),
            ("max_age.after = \"0s\"", "max_age.after", "too old"),
            ("max_age.after = \"1000y\"", "max_age.after", "so old"),
            ("max_age.header = \"\"", "max_age.header", "a name"),
            (
                "rerun_within = \"1h\"",
                "rerun_within",
                "nothing of class \"non-idempotent\"",
            ),
            (
                "mismatch.then = \"dead-letter\"",
                "mismatch.then",
                "reorders its keys",
            ),
            (
                "mismatch.fields = [\"amount\"]",
                "mismatch.fields",
                "starts with a slash",
            ),
            ("mismatch.fields = [\"/a\", \"/a\"]", "mismatch.fields", "twice"),
            (
                "retry.in_place.attempts = 0",
                "retry.in_place.attempts",
                "nothing would ever run",
            ),
            (
                "retry.in_place.first = \"0s\"",
                "retry.in_place.first",
                "asked again at once",
            ),
            (
                "retry.in_place.first = \"11s\"",
                "retry.in_place.first",
                "longer than max = \"10s\"",
            ),
            (
                "retry.in_place.total = \"50ms\"",
                "retry.in_place.total",
                "shorter than first = \"100ms\"",
            ),
            (
                "retry.in_place.total = \"2d\"",
                "retry.in_place.total",
                "keeps its slot",
            ),
            (
                "retry.budget.per_second = 0",
                "retry.budget.per_second",
                "never retry",
            ),
            (
                "retry.budget.per_second = 100001",
                "retry.budget.per_second",
                "no budget",
            ),
            (
                "breaker.failure_share = 0",
                "breaker.failure_share",
                "one failure",
            ),
            ("breaker.over = 10001", "breaker.over", "thousands of times"),
            ("breaker.open_for = \"0s\"", "breaker.open_for", "never be open"),
            ("breaker.open_for = \"2h\"", "breaker.open_for", "not be noticed"),
        ];
        for (line, key, why) in table {
            let error = settle(&format!("topics.orders.{line}")).expect_err(line);
            let [problem] = error.problems() else {
                panic!("{line}: {error}")
            };
            assert_eq!(problem.key, format!("topics.orders.{key}"), "{error}");
            assert!(problem.why.contains(why), "{error}");
            assert!(!problem.fix.is_empty(), "{error}");
        }
    }

    #[test]
    fn a_child_token_that_is_remembered_for_no_time_is_refused() {
        let lines =
            "topics.clicks = { class = \"potentially-idempotent\", window = \"2h\", rerun_within = \"0s\" }";
        let error = settle(lines).unwrap_err();
        assert_eq!(error.problems()[0].key, "topics.clicks.rerun_within");
    }

    #[test]
    fn a_name_that_kafka_would_refuse_is_refused() {
        let long = "x".repeat(250);
        for (name, why) in [
            ("", "has a name"),
            ("..", "no topic of that name"),
            ("^orders", "made of letters"),
            ("a b", "made of letters"),
            ("größe", "made of letters"),
            (&long, "249"),
        ] {
            let lines = format!(
                "dead_letter.topic = \"dead\"\n[topics.{name:?}]\nclass = \"idempotent\"\nwindow = \"2h\""
            );
            let error = settle(&lines).expect_err(name);
            assert!(error.problems()[0].why.contains(why), "{error}");
        }
    }
}
