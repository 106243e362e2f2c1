//! `hapax audit`: what operators did, oldest first.

use std::path::PathBuf;
use std::process::ExitCode;

use super::port::Ports;
use super::{Failure, Table, moment, open, print};
use crate::admin::shapes::Acts;
use crate::store::Store as _;

/// List what operators decided: when, what, about which message, who, and why.
///
/// Of running consumers, or of a stopped one with --state-dir.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ports: Ports,
    /// The state directory of a stopped consumer. Run this as the user that the consumer runs as.
    #[arg(long, value_name = "DIR", conflicts_with = "admin")]
    state_dir: Option<PathBuf>,
    /// Of running consumers: not more than so many, the latest.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let acts = match &args.state_dir {
        Some(dir) => open(dir)?.audited()?,
        None => {
            let query = [("limit", Some(args.limit.to_string()))];
            let answers = args.ports.get_all::<Acts>("/v1/audit", &query)?;
            let mut acts: Vec<_> = answers.into_iter().flat_map(|(_, answer)| answer.acts).collect();
            // What is replicated more than one member may have.
            acts.sort_by(|a, b| {
                (a.at_ms, &a.topic, a.partition, a.offset).cmp(&(b.at_ms, &b.topic, b.partition, b.offset))
            });
            acts.dedup();
            acts
        }
    };
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
        let offset = match act.offset {
            0.. => act.offset.to_string(),
            _ => "-".to_owned(),
        };
        table.row([
            moment(act.at_ms),
            act.act,
            format!("{}[{}]@{offset}", act.topic, act.partition),
            act.token,
            act.by,
            act.reason,
        ]);
    }
    print(&table.to_string());
    Ok(ExitCode::SUCCESS)
}
