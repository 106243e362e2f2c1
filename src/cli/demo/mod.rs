//! `hapax demo`.

use std::process::ExitCode;

/// The main job, with kills and restarts, on an embedded broker.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args) -> ExitCode {
    super::print("demo: this build has none\n");
    ExitCode::FAILURE
}
