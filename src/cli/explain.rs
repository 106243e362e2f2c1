//! `hapax explain`: what a configuration means. Nothing is connected to and nothing is opened.

use std::process::ExitCode;

use super::{ConfigFile, Failure, print};
use crate::explain::explain;

/// Say in words what the configuration promises, and what each failure costs.
///
/// Per topic: the policy, the decision table, the disk it takes, how many messages one kill can leave in doubt, and
/// what weakens the promise. Nothing is connected to.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    print(&explain(&args.file.settings()?));
    Ok(ExitCode::SUCCESS)
}
