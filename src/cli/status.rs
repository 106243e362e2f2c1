//! `hapax status`: what running consumers serve, and how they are.

use std::process::ExitCode;

use super::port::Ports;
use super::{Failure, Table, moment, print};
use crate::admin::shapes::Status;

/// Show what running consumers serve: partitions, commit points, what is in flight and held.
///
/// The counts are those of the current assignments. 1 where a member does not serve everything that it was given.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ports: Ports,
    /// One JSON object for each member.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut ready = true;
    for (address, status) in args.ports.get_all::<Status>("/v1/status", &[])? {
        ready &= status.unready.is_none();
        if args.json {
            let line = serde_json::to_string(&status).map_err(Failure::new)?;
            print(&format!("{line}\n"));
        } else {
            print(&page(address, &status));
        }
    }
    Ok(ExitCode::from(u8::from(!ready)))
}

fn page(address: &str, status: &Status) -> String {
    let Status {
        version,
        group,
        durability,
        store_id,
        unready,
        partitions,
    } = status;
    let store = store_id.as_deref().unwrap_or("not open");
    let ready = unready.as_deref().unwrap_or("ready");
    let mut text =
        format!("{address}: hapax {version}, group {group}, {durability}, store {store}\n{ready}\n");
    if partitions.is_empty() {
        return text;
    }
    let mut table = Table::new([
        "PARTITION",
        "COMMIT POINT",
        "LOG TIME",
        "IN FLIGHT",
        "HELD",
        "DONE",
        "FAILED",
        "DUPLICATES",
    ]);
    for served in partitions {
        table.row([
            format!("{}[{}]", served.topic, served.partition),
            served
                .commit_point
                .map_or("-".to_owned(), |next| next.to_string()),
            served.time_ms.map_or("-".to_owned(), moment),
            served.in_flight.to_string(),
            served.held.to_string(),
            served.done.to_string(),
            served.failed.to_string(),
            served.duplicates.to_string(),
        ]);
    }
    text.push_str(&table.to_string());
    text
}
