//! An instance that serves until its input is closed, for what is measured from outside.

use std::io::Read as _;
use std::sync::Once;
use std::time::Duration;

use hapax::config::{Durability, Listen};
use hapax::{Class, Consumer, Context, Topic, Window};

use crate::Result;
use crate::contestants::{Task, chain};

/// The line that it prints with its first handler.
pub(crate) const SERVING: &str = "serving";

/// hapax with an idempotent handler that does nothing.
pub(crate) fn serve(task: &Task, durability: Durability) -> Result<()> {
    static FIRST: Once = Once::new();
    let consumer = match durability {
        Durability::Replicated => Consumer::replicated(&task.group, &task.state_dir),
        _ => Consumer::local(&task.group, &task.state_dir),
    };
    let topic = Topic::bytes(&task.topic, Class::Idempotent).window(Window::hours(24));
    let consumer = consumer
        .brokers(&task.brokers)
        .with(|layer| {
            if durability == Durability::Local {
                // What is recorded is seen by its commit.
                layer.commit_every = Some(Duration::from_millis(1));
            }
            layer.dead_letter.create = Some(true);
            layer.admin.listen = Some(Listen::Off);
        })
        .handle(topic, |_payload, _: Context| async {
            FIRST.call_once(|| println!("{SERVING}"));
            Ok(())
        });
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(consumer.run_until(async {
        let closed = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let _ = closed.await;
    }));
    // Whoever reads the input would hold up the end of a consumer that has ended by itself, and its reason with it.
    runtime.shutdown_background();
    let summary = ended.map_err(|error| chain(&error))?;
    match summary.balances.iter().find(|balance| balance.remainder() != 0) {
        Some(balance) => Err(format!("the books do not balance: {balance:?}").into()),
        None => Ok(()),
    }
}
