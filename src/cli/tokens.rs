//! `hapax invalidate` and `hapax forget`: acts about tokens, whatever message has them.

use std::process::ExitCode;

use super::Failure;
use super::inspect::token;
use super::port::{Act, Ports, show};
use crate::admin::shapes::Tokens;
use crate::token::TokenKey;

/// Take tokens back: later messages of them are dead-lettered, and their letters say why.
///
/// A token that is open is refused: resolve its message first. To say it twice changes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Invalidate {
    #[command(flatten)]
    which: Which,
}

/// Make tokens new: the next message of each runs.
///
/// Refused while a token is open, and while Kafka may still deliver the message of its outcome again.
#[derive(Debug, clap::Args)]
pub(super) struct Forget {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct Which {
    #[command(flatten)]
    ports: Ports,
    /// The topic.
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// The partition: a token counts within one.
    #[arg(long, value_name = "N")]
    partition: i32,
    /// A token, as `hapax held` and `hapax inspect` print it: 32 hex digits. More than once for several.
    #[arg(long, value_name = "HEX", value_parser = token, required = true)]
    token: Vec<TokenKey>,
    #[command(flatten)]
    act: Act,
}

impl Which {
    fn post(&self, path: &str) -> Result<ExitCode, Failure> {
        let body = Tokens {
            topic: self.topic.clone(),
            partition: self.partition,
            tokens: self.token.iter().map(ToString::to_string).collect(),
            words: self.act.words(false),
        };
        self.ports
            .post(path, &self.act, &body)
            .map(|answers| show(&answers))
    }
}

pub(super) fn invalidate(args: &Invalidate) -> Result<ExitCode, Failure> {
    args.which.post("/v1/invalidate")
}

pub(super) fn forget(args: &Forget) -> Result<ExitCode, Failure> {
    args.which.post("/v1/forget")
}
