//! A run as a story: what happened in which process, why that is wrong, and how to mend it.

use std::fmt::Write as _;

use super::{Ran, Wrong};
use crate::testing::Sent;
use crate::testing::script::{At, Attempt, Code, Edge, Event, Said, Side};

/// An edge, as the place of a crash.
pub(super) fn edge(edge: &Edge, side: Side) -> String {
    match (edge, side) {
        (Edge::Code { at: At::Start, .. }, _) => format!("just before: {edge}"),
        (Edge::Code { at: At::End(_), .. }, _) => format!("just after: {edge}"),
        (Edge::Code { .. }, _) => format!("while: {edge}"),
        (_, Side::Before) => format!("before this was durable: {edge}"),
        (_, Side::After) => format!("after this was durable: {edge}"),
    }
}

/// What happened, on one line.
pub(super) fn event(event: &Event) -> String {
    match event {
        Event::Started(process) => format!("process {process} starts"),
        Event::Reached(_, reached, side) => edge(reached, *side),
        Event::Crashed => "the process dies".to_owned(),
        Event::Effect(effect, _) => format!("effect: {effect}"),
    }
}

/// The run, line by line; only what concerns that message, where one is given.
pub(super) fn of(ran: &Ran, about: Option<Sent>) -> String {
    let mut story = String::new();
    let mut events = ran.events.iter().peekable();
    while let Some(happened) = events.next() {
        let is_last = matches!(events.peek(), Some(Event::Crashed));
        // Writing to a string does not fail.
        let _ = match happened {
            Event::Started(process) => writeln!(story, "  process {process} starts"),
            Event::Crashed => Ok(()),
            Event::Reached(number, reached, side) if is_last => {
                writeln!(story, "  CRASH at edge {number}, {}", edge(reached, *side))
            }
            Event::Reached(_, reached, side) => {
                let is_told = about.is_none_or(|message| reached.is_about(message));
                match (reached, side) {
                    _ if !is_told => Ok(()),
                    (Edge::Code { .. }, _) => writeln!(story, "    {reached}"),
                    (_, Side::Before) => Ok(()),
                    (_, Side::After) => writeln!(story, "    durable: {reached}"),
                }
            }
            Event::Effect(effect, by) => {
                let is_told = about.is_none_or(|message| by.is_none_or(|attempt| attempt.of == message));
                match by {
                    _ if !is_told => Ok(()),
                    Some(attempt) => writeln!(
                        story,
                        "      effect: {effect} (process {}, attempt {})",
                        attempt.process, attempt.number
                    ),
                    None => writeln!(
                        story,
                        "      effect: {effect} (by a task that the handler spawned)"
                    ),
                }
            }
        };
    }
    for held in &ran.held {
        if about.is_none_or(|message| message == held.of) {
            let _ = writeln!(story, "  at the end message {} is held ({:?})", held.of, held.why);
        }
    }
    for (offset, reason) in &ran.letters {
        if about.is_none_or(|message| message.offset.0.to_string() == *offset) {
            let _ = writeln!(
                story,
                "  at the end message @{offset} is a dead letter ({reason})"
            );
        }
    }
    story
}

/// The whole report.
pub(super) fn violation(reference: &Ran, ran: &Ran, wrong: &Wrong, tried: usize) -> String {
    let about = message_of(reference, ran, wrong);
    let mut text = format!("{wrong}\n\n");
    let topic = &ran.topic;
    let place = match ran.died_at() {
        None => "without any crash".to_owned(),
        Some((reached, side)) => edge(reached, side),
    };
    let _ = writeln!(
        text,
        "Topic {topic} is {}. The shortest schedule that shows it, after {tried} tried: {place}.\n",
        ran.class
    );
    text.push_str(&of(ran, about));
    let (why, mend) = advice(ran, wrong, about);
    let _ = writeln!(text, "\nWhy: {why}");
    let _ = writeln!(text, "To mend it: {mend}");
    let _ = write!(text, "To see it alone: .replay(&\"{}\".parse()?)", ran.schedule);
    text
}

/// The message that it is about, where there is one.
fn message_of(reference: &Ran, ran: &Ran, wrong: &Wrong) -> Option<Sent> {
    match wrong {
        Wrong::Repeated { effect, .. } | Wrong::OneTooMany { effect } => {
            let noted = ran.effects.noted().into_iter();
            noted
                .filter(|noted| noted.effect == *effect)
                .find_map(|noted| noted.of)
        }
        Wrong::Lost { effect } => {
            let noted = reference.effects.noted().into_iter();
            noted
                .filter(|noted| noted.effect == *effect)
                .find_map(|noted| noted.of)
        }
        Wrong::Held { of } => Some(*of),
        Wrong::Differs { .. } | Wrong::Stopped { .. } | Wrong::Unsettled => None,
    }
}

fn advice(ran: &Ran, wrong: &Wrong, about: Option<Sent>) -> (&'static str, &'static str) {
    let lied = ran.events.iter().any(|event| {
        matches!(event, Event::Reached(_, Edge::Code { of, at: At::End(Said::NotApplied(_)), .. }, _)
            if applied(ran, *of) && about.is_none_or(|message| message == of.of))
    });
    let probe_said = |said: &Said| {
        ran.events.iter().any(|event| {
            matches!(event, Event::Reached(_, Edge::Code { code: Code::Probe, of, at: At::End(answer) }, _)
                if answer == said && about.is_none_or(|message| message == of.of))
        })
    };
    match wrong {
        Wrong::Repeated { .. } | Wrong::OneTooMany { .. } | Wrong::Differs { .. } if lied => (
            "an attempt ended with an error that says that nothing was applied, and it had applied something.",
            "say `not_applied` and `retry_after` only of what comes before the first effect; `?` alone says that nobody \
             knows, and the class decides.",
        ),
        Wrong::Repeated { .. } if probe_said(&Said::ProbeNotDone) => (
            "the probe answered `NotDone`, and the attempt had applied it.",
            "let the probe ask the resource by the token that the attempt sent, and answer `Unknown` where it cannot be \
             sure.",
        ),
        Wrong::Repeated { .. } => (
            "the handler applied it more than once, and the class says never to repeat it unknowingly.",
            "give each effect of the handler a name of its own (`cx.child_token(name)`). Where one attempt applied it \
             once, hapax ran the handler again where it must not: look for a policy that says `run`, or report it.",
        ),
        Wrong::OneTooMany { .. } => (
            "the attempt before had applied it by another token, so the downstream takes it for a second effect.",
            "send `cx.child_token(name)`: it is the same at every attempt, in every process. Leave the attempt's number, \
             the time and chance out of a token.",
        ),
        Wrong::Differs { .. } => (
            "the crash made hapax run the handler again, and running it again is not without harm.",
            "declare the topic `PotentiallyIdempotent` and send `cx.child_token(name)` to a downstream that keeps it; or \
             `NonIdempotent`, then the message is held in doubt, or a probe is asked; or write so that the second time \
             changes nothing (a put by key).",
        ),
        Wrong::Lost { .. } if probe_said(&Said::ProbeDone) => (
            "the probe answered `Done`, and it had not been applied.",
            "let the probe ask the resource by the token that the attempt sent.",
        ),
        Wrong::Lost { .. } => (
            "the message was recorded as finished, and the effect was not applied.",
            "apply the effect before the handler returns: await what it spawns, and keep nothing for later in the \
             process's memory.",
        ),
        Wrong::Held { .. } => (
            "an attempt may have applied something when the process died, and nobody says whether it had.",
            "give the topic a probe; or declare it `PotentiallyIdempotent` and send `cx.child_token(name)` to a \
             downstream that keeps it.",
        ),
        Wrong::Stopped { .. } => (
            "a policy says stop, or the store refused something.",
            "see what it said; a schedule without that crash does not stop.",
        ),
        Wrong::Unsettled => (
            "a message is neither finished nor held: it is tried again and again, or its handler never ends.",
            "see where the story ends.",
        ),
    }
}

/// Whether that attempt applied something.
fn applied(ran: &Ran, attempt: Attempt) -> bool {
    let by = |event: &Event| matches!(event, Event::Effect(_, Some(by)) if *by == attempt);
    ran.events.iter().any(by)
}
