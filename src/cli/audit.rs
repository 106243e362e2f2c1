//! `hapax audit`: what operators did, oldest first.

use std::process::ExitCode;

use super::{Failure, StateDir, Table, moment, print};
use crate::store::Store as _;

/// List what operators decided: when, what, about which message, who, and why.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    dir: StateDir,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let acts = args.dir.open()?.audited()?;
    if args.json {
        for act in &acts {
            let line = serde_json::to_string(act).map_err(Failure::new)?;
            print(&format!("{line}\n"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if acts.is_empty() {
        print("no operator has done anything here\n");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["WHEN", "WHAT", "MESSAGE", "TOKEN", "WHO", "WHY"]);
    for act in acts {
        table.row([
            moment(act.at_ms),
            act.act,
            format!("{}[{}]@{}", act.topic, act.partition, act.offset),
            act.token,
            act.by,
            act.reason,
        ]);
    }
    print(&table.to_string());
    Ok(ExitCode::SUCCESS)
}
