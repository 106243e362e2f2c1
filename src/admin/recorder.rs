//! The recorder behind `/metrics`: one for the whole process, as the `metrics` crate has it.
//!
//! A process that installed a recorder before is respected: hapax's metrics go there, and `/metrics` says so.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::metrics::{DEFINITIONS, Kind, buckets};

/// The text format of Prometheus.
pub(super) const CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Samples of histograms wait in memory until they are counted, also where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// What `/metrics` shows.
#[derive(Clone)]
pub(super) struct Page(PrometheusHandle);

impl Page {
    pub(super) fn render(&self) -> String {
        self.0.render()
    }
}

/// The process's page; `None` where somebody else's recorder was there first. Installed at the first call.
pub(super) fn install() -> Option<Page> {
    static INSTALLED: OnceLock<Option<Page>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let installed = builder().and_then(PrometheusBuilder::install_recorder);
            let handle = match installed {
                Ok(handle) => handle,
                Err(error) => {
                    tracing::info!(why = %crate::error::chain(&error), "metrics go to the recorder that is there");
                    return None;
                }
            };
            let upkeep = handle.clone();
            // As long as the recorder, which is as long as the process: consumers come and go under it.
            let thread = thread::Builder::new().name("hapax-metrics".into()).spawn(move || {
                loop {
                    thread::park_timeout(UPKEEP);
                    upkeep.run_upkeep();
                }
            });
            if let Err(error) = thread {
                tracing::warn!(%error, "no thread for metrics: each scrape counts them instead");
            }
            Some(Page(handle))
        })
        .clone()
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let histograms = DEFINITIONS
        .iter()
        .filter(|definition| definition.kind == Kind::Histogram);
    histograms
        .into_iter()
        .try_fold(PrometheusBuilder::new(), |builder, definition| {
            builder.set_buckets_for_metric(
                Matcher::Full(definition.name.to_owned()),
                buckets(definition.name),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_histogram_has_buckets() {
        assert!(builder().is_ok());
        for definition in DEFINITIONS {
            let rising = buckets(definition.name).windows(2).all(|pair| pair[0] < pair[1]);
            assert!(rising, "{}", definition.name);
            assert_eq!(
                definition.kind == Kind::Histogram,
                !buckets(definition.name).is_empty(),
                "{}",
                definition.name
            );
        }
    }
}
