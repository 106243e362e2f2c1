//! The harness shows what the engine does, and nothing that it does not do.

use std::sync::{Arc, Mutex};

use super::*;
use crate::config::MissingToken;
use crate::handler::Undecoded;
use crate::testing::{Account, End, HeldFor, Stored};
use crate::{Classify as _, NonIdempotent, PotentiallyIdempotent, Probe, Reply, Window};

type Seen = Arc<Mutex<Vec<u32>>>;

fn topic() -> Topic<Undecoded> {
    Topic::bytes("payments", NonIdempotent).window(Window::hours(24))
}

/// A bank whose handler notes its attempts and answers the first of them with `first`.
fn bank(
    topic: Topic<Undecoded>,
    first: impl Fn() -> Result<(), HandlerError> + Copy + Send + Sync + 'static,
) -> (Harness, Seen) {
    let seen = Seen::default();
    let harness = Harness::new(
        topic.state(Arc::clone(&seen)),
        move |_, cx: Context<Seen>| async move {
            cx.state().lock().unwrap().push(cx.attempt());
            if cx.attempt() == 1 { first() } else { Ok(()) }
        },
    );
    (harness, seen)
}

fn message(token: &str) -> Message {
    Message::bytes(token.to_owned()).token(token.to_owned()).key("k")
}

fn attempts(seen: &Seen) -> Vec<u32> {
    seen.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn what_is_settled_is_decided_and_committed() {
    let (mut bank, seen) = bank(topic(), || Err("busy").not_applied());
    bank.start().await.unwrap();
    let first = bank.send(message("a"));
    bank.send(message("a"));
    let books = bank.settle().await.unwrap();
    assert_eq!(
        (
            books.of(Account::Done),
            books.of(Account::Duplicate),
            books.remainder()
        ),
        (1, 1, 0)
    );
    assert_eq!(bank.committed(0), Some(NextOffset(2)));
    assert_eq!(attempts(&seen), [1, 2], "it waited for the retry");
    let outcome = bank.outcome(first).unwrap().unwrap();
    assert_eq!((outcome.end, outcome.attempts), (End::Done(Stored::Nothing), 2));
    assert_eq!(bank.stop().await, books);
    assert_eq!(bank.books(), books, "the books stay when the process is gone");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_settle_stays_in_flight() {
    let (mut bank, _) = bank(topic(), || Err("no").reject());
    bank.refuse_dead_letters(true);
    bank.send(message("a"));
    bank.start().await.unwrap();
    let books = bank.settle().await.unwrap();
    assert_eq!((books.of(Account::InFlight), books.of(Account::Failed)), (1, 0));
    bank.refuse_dead_letters(false);
    let books = bank.settle().await.unwrap();
    assert_eq!((books.of(Account::InFlight), books.of(Account::Failed)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_crash_leaves_what_was_recorded_and_nothing_else() {
    let (mut bank, seen) = bank(topic(), || Ok(()));
    bank.send(message("a"));
    bank.start().await.unwrap();
    // Long enough to record, too short to commit.
    bank.run_for(Duration::from_millis(20)).await.unwrap();
    bank.crash();
    assert_eq!(
        (attempts(&seen), bank.committed(0)),
        (vec![1], Some(NextOffset(0)))
    );
    bank.restart().await.unwrap();
    let books = bank.settle().await.unwrap();
    assert_eq!((books.of(Account::Redelivery), attempts(&seen).len()), (1, 1));
}

/// The three verdicts, given after a clean stop and after a crash.
#[tokio::test(start_paused = true)]
async fn a_verdict_is_carried_out_by_the_next_start() {
    for crashes in [false, true] {
        for (verdict, runs, account) in [
            (Verdict::Done, 1, Account::Done),
            (Verdict::Run, 2, Account::Done),
            (Verdict::DeadLetter, 1, Account::Failed),
        ] {
            let (mut bank, seen) = bank(topic(), || Err("who knows".into()));
            let first = bank.send(message("a"));
            bank.start().await.unwrap();
            bank.settle().await.unwrap();
            let held = |bank: &Harness| -> Vec<_> {
                let held = bank.held().unwrap();
                held.iter()
                    .map(|held| (held.of, held.why, held.verdict))
                    .collect()
            };
            assert_eq!(held(&bank), [(first, HeldFor::InDoubt, None)]);
            if crashes {
                bank.crash();
            } else {
                bank.stop().await;
            }
            assert_eq!(held(&bank).len(), 1, "readable when the process is gone");
            bank.decide(first, verdict);
            assert_eq!(held(&bank), [(first, HeldFor::InDoubt, Some(verdict))]);
            bank.start().await.unwrap();
            let books = bank.settle().await.unwrap();
            assert_eq!(attempts(&seen).len(), runs, "{verdict:?}");
            assert_eq!(
                (books.of(account), books.remainder(), held(&bank).len()),
                (1, 0, 0),
                "{verdict:?}"
            );
        }
    }
}

/// Nothing is delivered and nothing is left to commit: only the store shows that something still runs.
#[tokio::test(start_paused = true)]
async fn settling_waits_for_what_a_verdict_has_started() {
    let mut bank = Harness::new(topic(), |_, cx: Context| async move {
        if cx.attempt() == 1 {
            return Err("who knows".into());
        }
        crate::clock::sleep_until(crate::clock::now() + Duration::from_secs(5)).await;
        Ok(())
    });
    let sent = bank.send(message("a"));
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    bank.stop().await;
    bank.decide(sent, Verdict::Run);
    bank.start().await.unwrap();
    let books = bank.settle().await.unwrap();
    assert_eq!((books.of(Account::Done), books.of(Account::Held)), (1, 0));
}

/// Inv 2: whoever waits behind a held token is judged by what became of it.
#[tokio::test(start_paused = true)]
async fn what_was_held_behind_a_token_follows_its_verdict() {
    for verdict in [Verdict::Done, Verdict::Run, Verdict::DeadLetter] {
        let (mut bank, _) = bank(topic(), || Err("who knows".into()));
        let (first, second) = (bank.send(message("a")), bank.send(message("a")));
        bank.start().await.unwrap();
        bank.settle().await.unwrap();
        let held: Vec<_> = bank
            .held()
            .unwrap()
            .iter()
            .map(|held| (held.of, held.why))
            .collect();
        assert_eq!(held, [(first, HeldFor::InDoubt), (second, HeldFor::Token)]);
        bank.stop().await;
        bank.decide(first, verdict);
        bank.start().await.unwrap();
        let books = bank.settle().await.unwrap();
        assert_eq!(
            (books.of(Account::Duplicate), books.remainder()),
            (1, 0),
            "{verdict:?}"
        );
        assert_eq!(bank.held().unwrap(), [], "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "stop or crash it first")]
async fn a_verdict_is_refused_while_the_consumer_runs() {
    let (mut bank, _) = bank(topic(), || Err("who knows".into()));
    let first = bank.send(message("a"));
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    bank.decide(first, Verdict::Done);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no message is open at payments[0]@0")]
async fn a_verdict_on_nothing_is_refused() {
    let (mut bank, _) = bank(topic(), || Ok(()));
    let first = bank.send(message("a"));
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    bank.crash();
    bank.decide(first, Verdict::Done);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "resolve that one: payments[0]@1 is judged by its outcome")]
async fn a_verdict_on_what_waits_behind_its_token_is_refused() {
    let (mut bank, _) = bank(topic(), || Err("who knows".into()));
    bank.send(message("a"));
    let second = bank.send(message("a"));
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    bank.crash();
    bank.decide(second, Verdict::Done);
}

#[tokio::test(start_paused = true)]
async fn a_letter_says_why_and_keeps_its_message() {
    let (mut bank, _) = bank(topic(), || Err("no such account").reject());
    let sent = bank.send(message("a").header("trace", "x"));
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    let letters = bank.dead_letters();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.reason(), letter.error()), ("rejected", "no such account"));
    assert_eq!(
        (letter.key(), letter.payload()),
        (Some(&b"k"[..]), Some(&b"a"[..]))
    );
    assert_eq!(letter.topic(), "payments.dead-letters");
    assert_eq!(
        (letter.header("trace"), letter.header("hapax-offset")),
        (Some(&b"x"[..]), Some(&b"0"[..]))
    );
    let outcome = bank.outcome(sent).unwrap().unwrap();
    assert_eq!(outcome.end, End::Failed(crate::outcome::Reason::Rejected));
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_says_stop_ends_the_consumer_with_its_reason() {
    let (mut bank, _) = bank(topic().missing_token(MissingToken::Stop), || Ok(()));
    bank.send(message("a"));
    bank.send(Message::bytes("no token"));
    bank.start().await.unwrap();
    let error = bank.settle().await.unwrap_err();
    assert!(matches!(error, Error::Stopped { offset: 1, .. }), "{error:?}");
    assert_eq!(bank.committed(0), Some(NextOffset(1)));
}

#[tokio::test(start_paused = true)]
async fn configuration_is_refused_as_in_production() {
    let mut bank = Harness::new(Topic::bytes("payments", NonIdempotent), |_, _: Context| async {
        Ok(())
    });
    let error = crate::error::chain(&bank.start().await.unwrap_err());
    assert!(error.contains("topics.payments.window"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_file_is_over_code_and_other_topics_in_it_are_left_out() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "topics.payments.missing_token = \"use-offset\"\n\
                topics.other = { class = \"idempotent\", window = \"1h\" }";
    std::fs::write(file.path(), text).unwrap();
    let (bank, seen) = bank(topic().missing_token(MissingToken::Stop), || Ok(()));
    let mut bank = bank.file(file.path()).unwrap();
    bank.send(Message::bytes("no token"));
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    assert_eq!(attempts(&seen), [1]);
}

/// The end of the window from both sides, moved by the clock of the harness.
#[tokio::test(start_paused = true)]
async fn messages_are_stamped_by_the_clock_unless_they_say_otherwise() {
    for (later, runs) in [
        (Duration::from_millis(3_599_999), 1),
        (Duration::from_secs(3_600), 2),
    ] {
        let (mut bank, seen) = bank(topic().window(Window::hours(1)), || Ok(()));
        let born = bank.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        bank.send(message("a").at(born));
        bank.advance(later);
        bank.send(message("a"));
        bank.start().await.unwrap();
        bank.settle().await.unwrap();
        assert_eq!(attempts(&seen).len(), runs, "{later:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn replies_are_kept_and_every_partition_is_served() {
    let mut bank = Harness::with_reply(topic(), |_, cx: Context| async move {
        Ok(format!("from {}", cx.partition()))
    })
    .partitions(2);
    let (a, b) = (bank.send(message("a")), bank.send(message("a").partition(1)));
    bank.start().await.unwrap();
    let books = bank.settle().await.unwrap();
    assert_eq!(books.of(Account::Done), 2, "a token belongs to its partition");
    for (sent, reply) in [(a, "from 0"), (b, "from 1")] {
        let end = bank.outcome(sent).unwrap().unwrap().end;
        assert_eq!(end, End::Done(Stored::Reply(reply.into())));
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "partition 1 of a topic with 1")]
async fn a_message_to_a_partition_that_is_not_there_is_refused() {
    let (mut bank, _) = bank(topic(), || Ok(()));
    bank.send(message("a").partition(1));
}

/// A handler that is a value, with its probe.
struct Stock;

impl Handler<bytes::Bytes> for Stock {
    type Reply = Reply;

    async fn handle(&self, _: bytes::Bytes, _: Context) -> Result<Reply, HandlerError> {
        Err("who knows".into())
    }

    async fn probe(&self, _: bytes::Bytes, _: Context) -> Result<Probe, HandlerError> {
        Ok(Probe::done("found"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_a_value_is_run_and_asked() {
    let topic = Topic::bytes("stock", PotentiallyIdempotent).window(Window::hours(1));
    let mut stock = Harness::with_handler(topic, Stock);
    let sent = stock.send(message("a"));
    stock.start().await.unwrap();
    stock.settle().await.unwrap();
    let end = stock.outcome(sent).unwrap().unwrap().end;
    assert_eq!(end, End::Done(Stored::Reply("found".into())));
}

/// The store's next write fails: nothing is taken for written, and the next start goes on with what is there.
#[tokio::test(start_paused = true)]
async fn a_write_that_fails_stops_the_consumer_and_drops_nothing() {
    for (fault, account) in [(Fault::Lost, Account::Done), (Fault::Survives, Account::Held)] {
        let (mut bank, seen) = bank(topic(), || Ok(()));
        bank.start().await.unwrap();
        bank.send(message("a"));
        // The very next one is its begin.
        bank.fail_write(0, fault);
        let error = bank.settle().await.unwrap_err();
        assert!(matches!(error, Error::Journal(_)), "{error:?}");
        assert_eq!(attempts(&seen), [] as [u32; 0], "begun before run");
        bank.start().await.unwrap();
        let books = bank.settle().await.unwrap();
        assert_eq!((books.of(account), books.remainder()), (1, 0), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_in_the_next_start_is_counted_from_there() {
    let (mut bank, seen) = bank(topic(), || Ok(()));
    bank.send(message("a"));
    bank.fail_write(0, Fault::Lost);
    let error = bank.start().await.unwrap_err();
    assert!(matches!(error, Error::Store(_)), "{error:?}");
    bank.crash();
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    assert_eq!(attempts(&seen), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_rewind_is_silent() {
    let (mut bank, seen) = bank(topic(), || Ok(()));
    let first = bank.send(message("a"));
    bank.send(message("b"));
    bank.start().await.unwrap();
    bank.settle().await.unwrap();
    bank.redeliver(first);
    let books = bank.settle().await.unwrap();
    assert_eq!((books.of(Account::Redelivery), attempts(&seen).len()), (2, 2));
}

/// Away and back: politely, and by a loss that drops what runs.
#[tokio::test(start_paused = true)]
async fn a_partition_goes_away_and_comes_back() {
    for lost in [false, true] {
        let mut bank = Harness::new(topic(), |_, cx: Context| async move {
            if cx.partition() == 0 {
                crate::clock::sleep_until(crate::clock::now() + Duration::from_secs(5)).await;
            }
            Ok(())
        })
        .partitions(2);
        let slow = bank.send(message("a"));
        bank.start().await.unwrap();
        bank.run_for(Duration::from_millis(50)).await.unwrap();
        if lost {
            bank.lose(0);
        } else {
            bank.revoke(0).await.unwrap();
        }
        assert_eq!(
            bank.committed(0),
            Some(NextOffset(i64::from(!lost))),
            "what runs may end, unless the partition is lost"
        );
        // The other one is served meanwhile.
        let other = bank.send(message("b").partition(1));
        bank.settle().await.unwrap();
        assert!(bank.outcome(other).unwrap().is_some());
        bank.assign(0).unwrap();
        bank.assign(0).unwrap();
        bank.settle().await.unwrap();
        let held: Vec<_> = bank.held().unwrap().iter().map(|held| held.of).collect();
        assert_eq!(held, if lost { vec![slow] } else { vec![] }, "lost: {lost}");
        assert_eq!(bank.outcome(slow).unwrap().is_some(), !lost);
    }
}
