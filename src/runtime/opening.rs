//! Opening: the store, and what the cluster has to be for it and for these settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::broker::cluster::{Changelog, Cluster, Fit, given_to};
use crate::broker::kafka;
use crate::clock;
use crate::config::{Durability, Settings};
use crate::error::Error;
use crate::store::rocks::RocksStore;
use crate::store::{Store, TopicSpec};

/// An open store that closes at the latest when this is dropped: a start that was refused, or whose future was dropped,
/// must not count as one that was killed.
pub(super) struct Unclosed(pub(super) Option<Arc<dyn Store>>);

impl Unclosed {
    pub(super) fn close(mut self) -> Result<(), crate::store::Error> {
        self.0.take().map_or(Ok(()), |store| store.close())
    }
}

impl Drop for Unclosed {
    fn drop(&mut self) {
        if let Some(store) = self.0.take()
            && let Err(error) = store.close()
        {
            tracing::warn!(why = %crate::error::chain(&error), "the store was not closed; the next start counts this one as killed");
        }
    }
}

/// How many partitions each topic has.
pub(super) type Counts = BTreeMap<String, i32>;

/// An open store, and what the cluster was found to be.
pub(super) struct Opened {
    pub(super) store: Unclosed,
    pub(super) counts: Counts,
    pub(super) growth: Growth,
}

/// What a start does about a topic that has grown, for one that grows while the consumer runs.
pub(super) struct Growth {
    settings: Arc<Settings>,
    /// Not held: whoever asks the cluster may be asking still when the store is closed.
    store: Weak<RocksStore>,
}

impl Growth {
    /// Notes how many partitions the topics have by now, and lets their changelogs grow with them. Blocks.
    ///
    /// # Errors
    /// As a start: whatever keeps the states of the new partitions from being safe.
    pub(super) fn claim(&self) -> Result<Counts, Error> {
        let cluster = kafka::admin::ask(&self.settings)?;
        let claim = |topic: &str, count| match self.store.upgrade() {
            Some(store) => store.claim_partitions(topic, count),
            None => Ok(None),
        };
        let counts = claim_partitions(&self.settings, &cluster, claim)?;
        if self.settings.durability == Durability::Replicated {
            claim_changelogs(&self.settings, cluster)?;
        }
        Ok(counts)
    }
}

pub(super) fn open(settings: &Arc<Settings>) -> Result<Opened, Error> {
    let specs: Vec<_> = settings
        .topics
        .iter()
        .map(|(name, policy)| TopicSpec {
            name: name.clone(),
            window_ms: clock::millis(policy.window),
        })
        .collect();
    let opened = || {
        RocksStore::open(
            &settings.state_dir,
            &settings.group,
            &specs,
            settings.memory.0,
            settings.durability,
        )
    };
    let store = match opened() {
        Err(crate::store::Error::Corrupt { path, what }) if settings.durability == Durability::Replicated => {
            let aside = set_aside(&path)?;
            tracing::error!(
                %what, aside = %aside.display(),
                "the local copy is corrupt; it was set aside, and all of it is read from the changelogs again"
            );
            opened()?
        }
        opened => opened?,
    };
    let claimed = claim(settings, &store);
    let store = Arc::new(store);
    let growth = Growth {
        settings: Arc::clone(settings),
        store: Arc::downgrade(&store),
    };
    let store = Unclosed(Some(store));
    Ok(Opened {
        counts: claimed?,
        store,
        growth,
    })
}

/// A copy that turned out to be corrupt while the consumer ran is out of the way of the next start, which would meet the
/// same again. Called when the store is closed.
pub(super) fn without_corrupt_copy(settings: &Settings, error: Error) -> Error {
    match error {
        Error::Store(crate::store::Error::Corrupt { path, what })
            if settings.durability == Durability::Replicated =>
        {
            match set_aside(&path) {
                Ok(aside) => crate::store::Error::CorruptCopy { path, what, aside }.into(),
                Err(error) => error,
            }
        }
        error => error,
    }
}

/// Moves a directory out of the way, beside where it was. One such copy is kept.
fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".corrupt");
    let aside = PathBuf::from(name);
    let moved = match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::rename(path, &aside),
    };
    moved.map(|()| aside).map_err(|source| {
        let path = path.to_owned();
        crate::store::Error::Directory { path, source }.into()
    })
}

/// What the cluster has to be for this store and these settings.
fn claim(settings: &Settings, store: &RocksStore) -> Result<Counts, Error> {
    let mut cluster = kafka::admin::ask(settings)?;
    if let Some(id) = &cluster.id {
        store.claim_cluster(id)?;
    }
    let counts = claim_partitions(settings, &cluster, |topic, count| {
        store.claim_partitions(topic, count)
    })?;
    if let Some(topic) = &settings.admin.audit_topic {
        cluster.partitions(topic)?;
    }
    let missing = cluster.missing_letters(settings);
    if settings.dead_letter.create && !missing.is_empty() {
        for new in &missing {
            kafka::admin::create(settings, new)?;
            tracing::info!(topic = %new.name, partitions = new.partitions, "dead-letter topic created");
        }
        cluster = kafka::admin::ask(settings)?;
    }
    for topic in settings.topics.keys() {
        if let Fit::Unproven(why) = cluster.letters(settings, topic)? {
            tracing::warn!(%topic, %why, "not proven that every message fits into the dead-letter topic with hapax's headers");
        }
    }
    for (topic, policy) in &settings.topics {
        for to in given_to(policy) {
            if let Err(why) = cluster.takes(topic, &to)? {
                let (what, to) = (to.what, to.topic);
                tracing::warn!(%topic, %to, %why, "not proven that every {what} fits into its topic with hapax's headers");
            }
        }
    }
    if settings.durability == Durability::Replicated {
        claim_changelogs(settings, cluster)?;
    }
    Ok(counts)
}

/// Every topic is there, and the store knows how many partitions it has.
fn claim_partitions(
    settings: &Settings,
    cluster: &Cluster,
    claim: impl Fn(&str, i32) -> Result<Option<i32>, crate::store::Error>,
) -> Result<Counts, Error> {
    let mut counts = Counts::new();
    for topic in settings.topics.keys() {
        let partitions = cluster.partitions(topic)?;
        if let Some(known) = claim(topic, partitions)? {
            tracing::warn!(
                %topic, known, partitions,
                "the topic has grown: a token may come back in another partition, where it is not known, for one window"
            );
        }
        counts.insert(topic.clone(), partitions);
    }
    Ok(counts)
}

/// Every topic has a changelog that keeps its states safe: one that is missing is created, one whose input has grown
/// grows with it, and one that is something else is refused as it is.
fn claim_changelogs(settings: &Settings, mut cluster: Cluster) -> Result<(), Error> {
    let mut changed = false;
    for topic in settings.topics.keys() {
        match cluster.changelog(settings, topic)? {
            Changelog::Kept(_) => {}
            Changelog::Missing(new) => {
                kafka::admin::create_changelog(settings, &new)?;
                tracing::info!(topic = %new.name, partitions = new.partitions, "changelog topic created");
                changed = true;
            }
            Changelog::Short { has, wanted } => {
                kafka::admin::grow(settings, has, &wanted)?;
                tracing::info!(topic = %wanted.name, has, partitions = wanted.partitions, "the input has grown, and its changelog with it");
                changed = true;
            }
        }
    }
    // What another member made at the same time is judged like anybody's.
    if changed {
        cluster = kafka::admin::ask(settings)?;
    }
    for topic in settings.topics.keys() {
        match cluster.changelog(settings, topic)? {
            Changelog::Kept(kept) => {
                let changelog = settings.changelog_of(topic);
                if !kept.unproven.is_empty() {
                    let unproven = kept.unproven.join("; ");
                    tracing::warn!(%topic, %changelog, %unproven, "not proven that the changelog keeps its states: the broker does not tell what it does with them");
                }
                for why in kept.weak {
                    tracing::warn!(%topic, %changelog, %why, "the changelog may lose states");
                }
            }
            Changelog::Missing(wanted) => {
                return Err(wanted.refused("it was made, and is gone again".to_owned()).into());
            }
            Changelog::Short { has, wanted } => {
                return Err(wanted
                    .not_grown(has, "they were added, and are gone again")
                    .into());
            }
        }
    }
    Ok(())
}
