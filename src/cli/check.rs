//! `hapax check`: whether a start with this configuration would succeed, as far as that can be told beforehand.
//!
//! One line a finding: `ok`, `warn` or `fail`, each with what to do. It writes nothing, to the cluster or to the store.
//! A right that it could not prove is said to be not proven, not assumed.

use std::net::TcpListener;
use std::process::ExitCode;

use super::{ConfigFile, Failure, count, print, visit};
use crate::broker::cluster::{Changelog, Cluster, Fit, given_to};
use crate::broker::{self, kafka::admin};
use crate::config::{self, Durability, Problem, Settings, Standby, TopicPolicy, warnings};
use crate::error::chain;
use crate::store::Store as _;

mod cold;

/// Check the configuration, the store, the broker and its topics. Nothing is changed.
///
/// One line a finding: ok, warn (allowed, probably not meant), or fail (a start would be refused), with what to do.
/// A right that only a start can show is listed as not proven.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut report = Report::default();
    let path = args.file.config.display();
    match args.file.settings() {
        Ok(settings) => {
            report.ok(format_args!(
                "configuration: {path}, {}, group {:?}",
                count(settings.topics.len(), "topic"),
                settings.group
            ));
            for warning in warnings(&settings) {
                report.warn(format_args!("configuration: {warning}"));
            }
            start(&settings, &mut report);
        }
        Err(error) => refused(&error, &mut report),
    }
    Ok(report.finish())
}

fn refused(error: &config::Error, report: &mut Report) {
    if error.problems().is_empty() {
        report.fail(format_args!("configuration: {}", chain(error)));
    }
    let problems: &[Problem] = error.problems();
    for problem in problems {
        report.fail(format_args!("configuration: {problem}"));
    }
}

fn start(settings: &Settings, report: &mut Report) {
    port(settings, report);
    let cluster = match admin::ask(settings) {
        Ok(cluster) => {
            let id = cluster
                .id
                .as_deref()
                .unwrap_or("without an id (its store cannot be told from another cluster's)");
            report.ok(format_args!("broker: {} answers, cluster {id}", settings.brokers));
            Some(cluster)
        }
        Err(error) => {
            report.fail(format_args!("broker: {}", chain(&error)));
            None
        }
    };
    if let Some(cluster) = &cluster {
        topics(settings, cluster, report);
    }
    store(settings, cluster.as_ref(), report);
    if let Some(cluster) = &cluster {
        rights(settings, cluster, report);
        cold::partitions(settings, cluster, report);
    }
}

fn port(settings: &Settings, report: &mut Report) {
    let Some(address) = settings.admin.listen else {
        return;
    };
    match TcpListener::bind(address) {
        Ok(_) => report.ok(format_args!("admin port: {address} is free")),
        Err(error) => report.fail(format_args!(
            "admin port: {address} cannot be listened on: {error}; stop what holds it (this consumer, if it runs), or set `admin.listen` to another one or to \"off\""
        )),
    }
}

fn topics(settings: &Settings, cluster: &Cluster, report: &mut Report) {
    if let Some(topic) = &settings.admin.audit_topic {
        match cluster.partitions(topic) {
            Ok(_) => report.ok(format_args!("audit topic {topic:?}: exists")),
            Err(error) => report.fail(format_args!("{error}")),
        }
    }
    for (topic, policy) in &settings.topics {
        match cluster.partitions(topic) {
            Ok(partitions) => report.ok(format_args!(
                "topic {topic:?}: {}",
                count(usize::try_from(partitions).unwrap_or(0), "partition")
            )),
            Err(error) => {
                // Whether its letters would fit cannot be said of a topic that is not there.
                report.fail(format_args!("{error}"));
                continue;
            }
        }
        let letters = settings.dead_letter.topic_of(topic);
        match cluster.letters(settings, topic) {
            Ok(Fit::Proven { input, letters: to }) => report.ok(format_args!(
                "dead-letter topic {letters:?}: takes {to} bytes, {topic:?} has messages of up to {input}"
            )),
            Ok(Fit::Unproven(why)) => report.warn(format_args!(
                "dead-letter topic {letters:?}: exists; not proven that every message fits with hapax's headers: {why}"
            )),
            Err(broker::Error::NoLetters { .. }) if settings.dead_letter.create => report.ok(format_args!(
                "dead-letter topic {letters:?}: does not exist, the start creates it; not proven that it may"
            )),
            Err(error) => report.fail(format_args!("{error}")),
        }
        given(topic, policy, cluster, report);
        if settings.durability == Durability::Replicated {
            changelog(settings, topic, cluster, report);
        }
    }
    if settings.standby == Standby::All {
        let partitions = settings
            .topics
            .keys()
            .filter_map(|topic| cluster.partitions(topic).ok());
        let partitions = partitions
            .filter_map(|partitions| usize::try_from(partitions).ok())
            .sum();
        report.ok(format_args!(
            "standby: this member keeps the windows of {} on its disk, and reads all their changelogs; a partition that comes here costs the tail",
            count(partitions, "partition")
        ));
    }
}

fn given(input: &str, policy: &TopicPolicy, cluster: &Cluster, report: &mut Report) {
    for to in given_to(policy) {
        let (what, topic) = (to.what, to.topic);
        match cluster.takes(input, &to) {
            Ok(Ok(bytes)) => report.ok(format_args!("{what} topic {topic:?} of {input:?}: takes {bytes} bytes")),
            Ok(Err(why)) => report.warn(format_args!(
                "{what} topic {topic:?} of {input:?}: exists; not proven that every {what} fits with hapax's headers: {why}"
            )),
            Err(error) => report.fail(format_args!("{error}")),
        }
    }
}

fn changelog(settings: &Settings, topic: &str, cluster: &Cluster, report: &mut Report) {
    let name = settings.changelog_of(topic);
    match cluster.changelog(settings, topic) {
        Ok(Changelog::Kept(kept)) => {
            let partitions = count(usize::try_from(kept.partitions).unwrap_or(0), "partition");
            let what = format!("changelog topic {name:?}: {partitions}");
            if kept.unproven.is_empty() {
                report.ok(format_args!(
                    "{what}, takes {} bytes, and the broker deletes nothing of it by itself",
                    kept.message_bytes_max
                ));
            } else {
                report.warn(format_args!("{what}; not proven: {}", kept.unproven.join("; ")));
            }
            for why in kept.weak {
                report.warn(format_args!("changelog topic {name:?}: {why}"));
            }
        }
        Ok(Changelog::Missing(new)) => report.ok(format_args!(
            "changelog topic {name:?}: does not exist, the start creates it with {}; not proven that it may",
            new.words()
        )),
        Ok(Changelog::Short { has, wanted }) => report.ok(format_args!(
            "changelog topic {name:?}: has {} of {}, since {topic:?} has grown; the start adds the others; not proven that it may",
            has, count(usize::try_from(wanted.partitions).unwrap_or(0), "partition")
        )),
        Err(error) => report.fail(format_args!("{error}")),
    }
}

fn store(settings: &Settings, cluster: Option<&Cluster>, report: &mut Report) {
    let dir = settings.state_dir.display();
    match settings.state_dir.join("CURRENT").try_exists() {
        Ok(true) => {}
        Ok(false) => {
            report.ok(format_args!(
                "store: none in {dir} yet, the first start makes it; not proven that it may write there"
            ));
            return;
        }
        Err(error) => {
            report.fail(format_args!(
                "store: {dir} cannot be read: {error}; mend its owner or rights"
            ));
            return;
        }
    }
    let found = match visit(&settings.state_dir) {
        Ok(found) => found,
        Err(error) => {
            report.fail(format_args!("store: {}", chain(&error)));
            return;
        }
    };
    let identity = found.identity();
    let failed = report.failed;
    let mut differs = |what: &str, has: &str, asked: &str| {
        if has != asked {
            report.fail(format_args!(
                "store: {dir} belongs to {what} {has:?}, not {asked:?}; give this consumer a `state_dir` of its own"
            ));
        }
    };
    differs("group", &identity.group, &settings.group);
    if let (Some(has), Some(asked)) = (&identity.cluster, cluster.and_then(|cluster| cluster.id.as_ref())) {
        differs("cluster", has, asked);
    }
    for (id, spec) in found.topics() {
        let Some(known) = found.partitions_of(id) else {
            continue;
        };
        let now = cluster.and_then(|cluster| cluster.topics.get(&spec.name)?.partitions.clone().ok());
        match now {
            Some(now) if now < known => report.fail(format_args!(
                "store: {dir} knows topic {:?} with {known} partitions, now it has {now}: it was made again; give this consumer a `state_dir` of its own",
                spec.name
            )),
            Some(now) if now > known => report.warn(format_args!(
                "store: topic {:?} had {known} partitions and has {now}: a token may come back in another partition, where it is not known, for one window",
                spec.name
            )),
            _ => {}
        }
    }
    if report.failed == failed {
        report.ok(format_args!("store: {dir} opens, id {}", identity.store_id));
    }
    let unclean = found.past().unclean;
    if unclean > 0 {
        report.warn(format_args!(
            "store: the last {} without a clean end; messages in flight then are counted as suspects at the next",
            match unclean {
                1 => "start ended".to_owned(),
                starts => format!("{starts} starts ended"),
            }
        ));
    }
}

fn rights(settings: &Settings, cluster: &Cluster, report: &mut Report) {
    match admin::ask_group(settings, cluster) {
        Ok(()) => report.ok(format_args!(
            "rights: topics and the committed offsets of group {:?} may be described; not proven: {} (a start shows them)",
            settings.group,
            match settings.durability {
                Durability::Local => "reading messages, joining the group, committing, writing dead letters",
                Durability::Replicated =>
                    "reading messages and changelogs, joining the group, committing, writing states and dead letters in transactions, deleting expired states",
            }
        )),
        Err(error) => report.fail(format_args!("rights: {}", chain(&error))),
    }
}

/// What was found. Each line is printed at once: the broker may take its time.
#[derive(Default)]
struct Report {
    warned: usize,
    failed: usize,
}

impl Report {
    fn ok(&mut self, what: std::fmt::Arguments<'_>) {
        print(&format!("ok    {what}\n"));
    }

    fn warn(&mut self, what: std::fmt::Arguments<'_>) {
        self.warned += 1;
        print(&format!("warn  {what}\n"));
    }

    fn fail(&mut self, what: std::fmt::Arguments<'_>) {
        self.failed += 1;
        print(&format!("fail  {what}\n"));
    }

    fn finish(self) -> ExitCode {
        let Self { warned, failed } = self;
        print(&format!(
            "{}, {}\n",
            count(failed, "problem"),
            count(warned, "warning")
        ));
        match failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}
