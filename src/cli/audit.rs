//! `hapax audit`: what operators did, oldest first, a page of it at a time.

use std::path::PathBuf;
use std::process::ExitCode;

use super::port::Ports;
use super::{Failure, Table, moment, open, print, say};
use crate::admin::shapes::Acts;
use crate::store::{AuditEntry, AuditMark};

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
    /// Not more than so many, the latest.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
    /// Only those older than that: the mark that the page before ended with.
    #[arg(long, value_name = "MARK")]
    before: Option<AuditMark>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let page = match &args.state_dir {
        Some(dir) => Acts::page(&open(dir)?, args.before, args.limit, |_| true)?,
        None => {
            let before = args.before.map(|before| before.to_string());
            let query = [("limit", Some(args.limit.to_string())), ("before", before)];
            let answers = args.ports.get_all::<Acts>("/v1/audit", &query)?;
            Acts::together(answers.into_iter().map(|(_, page)| page), args.limit)
        }
    };
    list(args, page.acts)?;
    if let Some(before) = page.before {
        say(&format!(
            "hapax audit: there are older ones: add --before {before}\n"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &Args, acts: Vec<AuditEntry>) -> Result<(), Failure> {
    if args.json {
        for act in &acts {
            let line = serde_json::to_string(act).map_err(Failure::new)?;
            print(&format!("{line}\n"));
        }
        return Ok(());
    }
    if acts.is_empty() {
        print("no operator has done anything here\n");
        return Ok(());
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
    Ok(())
}
