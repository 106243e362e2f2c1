//! Dead letters: the bytes as they were, for a reason that fits, and twice only where a kill came between.

use super::{Case, Class, Findings, Kind, Message, Rule, token};

pub(super) fn check(case: &Case<'_>, findings: &mut Findings) {
    let kills = kills(case);
    // Served without its past, a partition is served anew on its way there and back.
    let anew = if case.evidence.terms.cold {
        2 * case.evidence.others.len()
    } else {
        0
    };
    for (place, letters) in &case.letters {
        let message = case.input[place];
        for letter in letters {
            if let Err(what) = intact(letter, message).and_then(|()| fits(case, letter, message)) {
                findings.add(Rule::Letter, format!("{place:?}: {what}"));
            }
            // By name: topic, partition, offset and reason, in lines.
            let reason = letter.header("hapax-reason").unwrap_or_default();
            let text = format!(
                "{}\n{}\n{}\n{reason}",
                case.evidence.terms.topic, place.0, place.1
            );
            let id = token::hex(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
            if letter.header("hapax-id") != Some(id) {
                findings.add(
                    Rule::Letter,
                    format!("{place:?}: its id is {:?}", letter.header("hapax-id")),
                );
            }
        }
        let ids = letters.iter().map(|letter| letter.header("hapax-id"));
        let first = letters.first().map(|letter| letter.header("hapax-id"));
        if ids.clone().any(|id| Some(id) != first) {
            let ids: Vec<_> = ids.collect();
            findings.add(
                Rule::Letter,
                format!("{place:?}: dead-lettered for two reasons: {ids:?}"),
            );
        }
        if letters.len() > 1 + kills + anew {
            let what = format!("{place:?}: {} letters after {kills} kills", letters.len());
            findings.add(Rule::Letter, what);
        }
        if case.has_told(&(place.0, case.keys[place]), *place) {
            findings.add(Rule::Letter, format!("{place:?} succeeded, and it has a letter"));
        }
    }
}

fn kills(case: &Case<'_>) -> usize {
    case.evidence.lives.iter().filter(|life| life.killed).count()
}

/// Key, payload, timestamp and headers are the message's.
fn intact(letter: &Message, message: &Message) -> Result<(), String> {
    let own = |headers: &[(String, Option<Vec<u8>>)]| -> Vec<_> {
        let own = headers.iter().filter(|(name, _)| !name.starts_with("hapax-"));
        own.cloned().collect()
    };
    let content = |of: &Message| {
        (
            of.key.clone(),
            of.payload.clone(),
            of.timestamp_ms,
            own(&of.headers),
        )
    };
    if content(letter) == content(message) {
        Ok(())
    } else {
        Err(format!("{letter:?} is not {message:?}"))
    }
}

/// The reason is one that this message can have.
fn fits(case: &Case<'_>, letter: &Message, message: &Message) -> Result<(), String> {
    let terms = &case.evidence.terms;
    let reason = letter.header("hapax-reason").unwrap_or_default();
    let attempts: u64 = letter
        .header("hapax-attempts")
        .and_then(|text| text.parse().ok())
        .ok_or("no number of attempts")?;
    let lines = case.lines_of(&(message.partition, case.keys[&message.place()]));
    let own = || lines.iter().filter(|line| line.place() == message.place());
    let spent = attempts >= u64::from(terms.attempts_max);
    let does_fit = match reason.as_str() {
        "rejected" => own().any(|line| line.kind == Kind::Rejected && line.attempt == attempts),
        "missing-token" => {
            terms.class == Class::NonIdempotent && token::text(message).is_none() && own().count() == 0
        }
        "retries-spent" => {
            let failed = [Kind::Refused, Kind::Broken, Kind::ProbeNotDone];
            spent && own().any(|line| failed.contains(&line.kind))
        }
        // Where it is held and runs from the disk more are allowed.
        "crashed" => attempts >= u64::from(terms.in_place),
        "moved" => terms.moves,
        "operator" => own().any(|line| line.kind == Kind::AskedLetter),
        _ => false,
    };
    if does_fit {
        Ok(())
    } else {
        let own: Vec<String> = own().map(ToString::to_string).collect();
        Err(format!(
            "reason {reason:?} after {attempts} attempts does not fit {own:?}"
        ))
    }
}
