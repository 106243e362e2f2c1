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
    let Cli { verb } = Cli::parse();
    log_to_stderr();
    match verb {
        Verb::Demo(args) => demo::run(args),
    }
}

/// Nothing, unless `RUST_LOG` asks for it: what a verb has to say it prints.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing_subscriber::filter::LevelFilter::OFF.into())
        .from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Whoever calls this as a library may have one already.
    let _ = log.try_init();
}
