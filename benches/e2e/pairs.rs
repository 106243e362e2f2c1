//! What is compared with one other contestant, in rounds of its own: the two run one after the other, every second round
//! the other way about, and a ratio is the median of the rounds' own.

use std::time::Duration;

use crate::contestants::Measured;
use crate::driver::{State, contestant};
use crate::figures::{self, Figure, median};
use crate::paced::{self, Pace};
use crate::{Result, Run, held, slow, twice};

/// Runs all rounds of one comparison.
type Measure = fn(&Run) -> Result<Vec<Figure>>;

/// By name.
pub(crate) const ALL: [(&str, Measure); 3] = [("held", held), ("duplicates", duplicates), ("slow", slow)];

/// The hot path is short: a pair takes some ten seconds, and what the machine does meanwhile is most of its noise.
const HELD_PAIRS: usize = 3;
/// Of those that are sent at a steady pace; a multiple of the partitions.
const TOKENS: u64 = 40_000;
/// A tenth of what `local` makes, about.
const PACE: u64 = 65_000;

fn say(what: &str, round: usize, name: &str, measured: &Measured) {
    println!(
        "{what}: round {round}  {name:18}  {:7.2} s  {:10.0} messages/s  peak {:6.0} MiB  {}",
        measured.seconds,
        figures::rate(measured),
        figures::mib(measured),
        figures::busiest(measured, 5)
    );
}

/// The first and the second, or the other way about.
fn in_turn<T>(
    round: usize,
    first: impl FnOnce() -> Result<T>,
    second: impl FnOnce() -> Result<T>,
) -> Result<(T, T)> {
    if round.is_multiple_of(2) {
        let second = second()?;
        Ok((first()?, second))
    } else {
        Ok((first()?, second()?))
    }
}

/// hapax as a contestant on that topic, in that group.
fn ours(run: &Run, kind: &str, topic: &str, group: &str, state: &State, count: u64) -> Result<Measured> {
    let arguments = ["--brokers", &run.brokers, "--topic", topic, "--group", group];
    contestant(kind, &state.0, count, &arguments)
}

fn held(run: &Run) -> Result<Vec<Figure>> {
    let mut pairs = Vec::new();
    for round in 1..=run.rounds * HELD_PAIRS {
        let one = |name: &str, fills: bool| {
            let group = format!("{name}-{round}-{}", std::process::id());
            let state = State::new(run, name)?;
            if fills {
                ours(run, "fill-held", &run.topic, &group, &state, run.held_messages)?;
            }
            let measured = ours(run, "held", &run.topic, &group, &state, run.messages)?;
            say("held", round, name, &measured);
            Ok(measured)
        };
        pairs.push(in_turn(round, || one("held", true), || one("none_held", false))?);
    }
    held::figures(&pairs, run.held_messages)
}

fn duplicates(run: &Run) -> Result<Vec<Figure>> {
    let mut pairs = Vec::new();
    for round in 1..=run.rounds {
        let topic = format!("{}-twice-{round}-{}", run.topic, std::process::id());
        let group = format!("twice-{round}-{}", std::process::id());
        let state = State::new(run, "twice")?;
        twice::load(run, &topic, false)?;
        let once = ours(run, "once", &topic, &group, &state, run.messages)?;
        say("duplicates", round, "unique", &once);
        twice::load(run, &topic, true)?;
        let again = ours(run, "twice", &topic, &group, &state, run.messages)?;
        say("duplicates", round, "duplicates", &again);
        pairs.push((again, once));
    }
    let each = |value: &dyn Fn(&(Measured, Measured)) -> f64| {
        median(pairs.iter().map(value).collect()).unwrap_or_default()
    };
    let rate = figures::rate;
    let state = State::new(run, "paced")?;
    let pace = Pace {
        rate: PACE,
        tokens: Some(TOKENS),
    };
    let times = paced::latency(run, "local", pace, &state.0)?;
    println!(
        "duplicates: at {PACE} messages/s: {} ms at the median, {} ms at 99 %, from append to commit; all committed at the end",
        times[0], times[1]
    );
    let figure = |name, value, unit| Figure { name, value, unit };
    Ok(vec![
        figure(
            "duplicates_vs_unique",
            each(&|(again, once)| rate(again) / rate(once)),
            "x",
        ),
        figure("duplicates", each(&|(again, _)| rate(again)), "msg/s"),
        figure("unique", each(&|(_, once)| rate(once)), "msg/s"),
        figure("duplicates_p50", times[0], "ms"),
        figure("duplicates_p99", times[1], "ms"),
    ])
}

fn slow(run: &Run) -> Result<Vec<Figure>> {
    let (topic, messages) = (&run.slow_topic, run.slow_messages);
    let mut rounds = [Vec::new(), Vec::new()];
    for round in 1..=run.rounds {
        for ((kind, sleep), of_kind) in [("slow", slow::SLEEP), ("quick", Duration::ZERO)]
            .into_iter()
            .zip(&mut rounds)
        {
            let hapax = || {
                let group = format!("{kind}-{round}-{}", std::process::id());
                let state = State::new(run, kind)?;
                let measured = ours(run, kind, topic, &group, &state, messages)?;
                say_slow(round, kind, "hapax", &measured);
                Ok(measured)
            };
            let peer = || {
                let measured = slow::peer(run, topic, messages, sleep)?;
                say_slow(round, kind, "parallel", &measured);
                Ok(measured)
            };
            of_kind.push(in_turn(round, hapax, peer)?);
        }
    }
    let [slow_rounds, quick_rounds] = &rounds;
    let each = |of: &[(Measured, Measured)], value: &dyn Fn(&Measured, &Measured) -> f64| {
        median(of.iter().map(|(hapax, peer)| value(hapax, peer)).collect()).unwrap_or_default()
    };
    let ratio = |hapax: &Measured, peer: &Measured| figures::rate(hapax) / figures::rate(peer);
    let share = |hapax: &Measured, peer: &Measured| slow::of_ideal(hapax) / slow::of_ideal(peer);
    let figure = |name, value, unit| Figure { name, value, unit };
    Ok(vec![
        figure(
            "slow_of_ideal",
            each(slow_rounds, &|hapax, _| slow::of_ideal(hapax)),
            "of 1",
        ),
        figure(
            "parallel_of_ideal",
            each(slow_rounds, &|_, peer| slow::of_ideal(peer)),
            "of 1",
        ),
        figure("slow_vs_parallel", each(slow_rounds, &share), "x"),
        figure(
            "slow",
            each(slow_rounds, &|hapax, _| figures::rate(hapax)),
            "msg/s",
        ),
        figure(
            "slow_parallel",
            each(slow_rounds, &|_, peer| figures::rate(peer)),
            "msg/s",
        ),
        figure("quick_vs_parallel", each(quick_rounds, &ratio), "x"),
        figure(
            "quick",
            each(quick_rounds, &|hapax, _| figures::rate(hapax)),
            "msg/s",
        ),
        figure(
            "quick_parallel",
            each(quick_rounds, &|_, peer| figures::rate(peer)),
            "msg/s",
        ),
    ])
}

fn say_slow(round: usize, kind: &str, name: &str, measured: &Measured) {
    println!(
        "slow: round {round}  {name:9} {kind:6}  {:7.2} s  {:10.0} messages/s  a handler took {:7.3} ms  {:.3} of the ideal  peak {:5.0} MiB",
        measured.seconds,
        figures::rate(measured),
        measured.handler_seconds * 1e3,
        slow::of_ideal(measured),
        figures::mib(measured)
    );
}
