//! A whole consumer, the one to copy: configuration file, logs, signals, exit codes, metrics port.
//!
//! ```text
//! make kafka
//! cargo run --release --example consumer_binary -- examples/consumer_binary.toml --try
//! curl http://127.0.0.1:9464/metrics
//! ```
//!
//! `--try` makes the topic and sends three payments to it first; a real consumer has no such thing. It runs until SIGTERM
//! or SIGINT (Ctrl-C).
//!
//! | exit code | means | the orchestrator should |
//! |---|---|---|
//! | 0 | it was told to stop; what ran was finished and recorded | do nothing |
//! | 1 | broker, store or a policy ended it; everything recorded stays recorded | start it again |
//! | 2 | the configuration is refused, nothing was connected to | wait for a person |

mod kafka;

use std::process::ExitCode;

use hapax::accounts::{Account, Balance};
use hapax::{Consumer, Context, Error, HandlerError, NonIdempotent, Summary, Topic};
use tracing_subscriber::EnvFilter;

const TOPIC: &str = "payments";

#[derive(serde::Deserialize)]
struct Payment {
    id: String,
    cents: u64,
}

async fn pay(payment: Payment, cx: Context) -> Result<(), HandlerError> {
    if payment.cents == 0 {
        return Err(HandlerError::reject("a payment of nothing"));
    }
    println!(
        "paid {} for {} ({})",
        payment.cents,
        payment.id,
        cx.child_token("pay")
    );
    Ok(())
}

async fn run(file: &str) -> Result<Summary, Error> {
    Consumer::from_file(file)?
        .handle(Topic::json::<Payment>(TOPIC, NonIdempotent), pay)
        .run()
        .await
}

#[tokio::main]
async fn main() -> ExitCode {
    // Standard output is the handler's; logs go beside it. HAPAX_LOG=debug says more.
    let filter = EnvFilter::try_from_env("HAPAX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(file) = arguments.iter().find(|argument| !argument.starts_with("--")) else {
        eprintln!("usage: consumer_binary FILE [--try]");
        return ExitCode::from(2);
    };
    if arguments.iter().any(|argument| argument == "--try")
        && let Err(error) = try_it(file).await
    {
        eprintln!("consumer: --try: {error}");
        return ExitCode::FAILURE;
    }

    match run(file).await {
        Ok(summary) => {
            let books = Balance::sum(&summary.balances);
            let [done, failed] = [Account::Done, Account::Failed].map(|account| books.of(account));
            println!(
                "stopped: {} taken, {done} done, {failed} dead-lettered",
                books.taken
            );
            if books.remainder() != 0 {
                // A message that lies in no account: a bug in hapax.
                eprintln!("consumer: the accounts do not balance: {books:?}");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("consumer: {}", hapax::error::chain(&error));
            ExitCode::from(code(&error))
        }
    }
}

/// Whether starting it again can help.
fn code(error: &Error) -> u8 {
    match error {
        Error::Config(_)
        | Error::NoHandler { .. }
        | Error::TwoHandlers { .. }
        | Error::NoTokenCode { .. } => 2,
        _ => 1,
    }
}

async fn try_it(file: &str) -> Result<(), Box<dyn std::error::Error>> {
    let settings = Consumer::from_file(file)?
        .handle(Topic::json::<Payment>(TOPIC, NonIdempotent), pay)
        .settings()?;
    let payment = |id: &str, cents: u64| format!(r#"{{"id":"{id}","cents":{cents}}}"#);
    let sent = [
        ("t-1", payment("rent", 90_000)),
        ("t-2", payment("bread", 350)),
        ("t-1", payment("rent", 90_000)), // paid once
    ];
    kafka::topic(&settings.brokers, TOPIC, &sent).await
}
