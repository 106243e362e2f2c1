//! The `hapax` binary.

mod demo;

use std::process::ExitCode;

use clap::Parser as _;

#[derive(clap::Parser)]
#[command(name = "hapax", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Demo(demo::Args),
}

/// Runs the verb that the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Demo(args) => demo::run(args),
    }
}
