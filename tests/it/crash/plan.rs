//! What a run sends, made from a seed: tokens that are new, repeated near and far, or missing; keys that order them, or
//! null; and in each payload what its handler will do.

use std::time::Duration;

/// What the handler does with a message. It stands in the payload, so that every process does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Has its effect and succeeds.
    Succeed,
    /// The same after a wait of that many milliseconds.
    Wait(u64),
    /// Refuses the message for good.
    Reject,
    /// Says "not applied" at its first attempt.
    Refuse,
    /// Has its effect and ends with an error that does not say so.
    BreakAfter,
    /// Ends at its first attempt with an error that says nothing, and has had no effect.
    BreakBefore,
}

impl Act {
    fn text(self) -> String {
        match self {
            Self::Succeed => "succeed".into(),
            Self::Wait(ms) => format!("wait-{ms}"),
            Self::Reject => "reject".into(),
            Self::Refuse => "refuse".into(),
            Self::BreakAfter => "break-after".into(),
            Self::BreakBefore => "break-before".into(),
        }
    }

    /// What the payload says.
    pub(crate) fn of(payload: &[u8]) -> Self {
        let text = std::str::from_utf8(payload).unwrap();
        match text.split_once(' ').unwrap().1 {
            "succeed" => Self::Succeed,
            "reject" => Self::Reject,
            "refuse" => Self::Refuse,
            "break-after" => Self::BreakAfter,
            "break-before" => Self::BreakBefore,
            wait => Self::Wait(wait.strip_prefix("wait-").unwrap().parse().unwrap()),
        }
    }
}

/// A message to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) partition: i32,
    pub(crate) key: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) payload: String,
    pub(crate) timestamp_ms: i64,
}

/// How much, and how far apart.
const NEAR: usize = 4;
const STEP: Duration = Duration::from_millis(7);

/// That many messages over that many partitions, with timestamps that end at `now_ms` and now and then lag.
pub(crate) fn plan(seed: u64, messages: usize, partitions: i32, now_ms: i64) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sent: Vec<Planned> = Vec::with_capacity(messages);
    for n in 0..messages {
        let left = (messages - n) as i64;
        let mut timestamp_ms = now_ms - left * STEP.as_millis() as i64;
        if random.u8(..) < 25 {
            timestamp_ms -= random.i64(0..2_000);
        }
        let earlier = match random.u8(0..100) {
            0..12 => sent.len().checked_sub(1 + random.usize(0..NEAR)),
            12..25 if !sent.is_empty() => Some(random.usize(0..sent.len())),
            _ => None,
        };
        let message = match earlier.and_then(|at| sent.get(at)) {
            // The producer sends it again: the same in everything but the stamp.
            Some(first) => Planned {
                timestamp_ms,
                ..first.clone()
            },
            None => Planned {
                partition: random.i32(0..partitions),
                key: (random.u8(0..100) >= 15).then(|| format!("k{}", random.u8(0..6))),
                token: (random.u8(0..100) >= 4).then(|| format!("t{seed}-{n}")),
                payload: format!("{n} {}", act(&mut random, n).text()),
                timestamp_ms,
            },
        };
        sent.push(message);
    }
    sent
}

fn act(random: &mut fastrand::Rng, n: usize) -> Act {
    // One early in any plan, for the points that a run without a dead letter never reaches.
    if n == 3 {
        return Act::Reject;
    }
    match random.u8(0..100) {
        0..55 => Act::Succeed,
        55..78 => Act::Wait(random.u64(5..120)),
        78..85 => Act::Reject,
        85..92 => Act::Refuse,
        92..96 => Act::BreakAfter,
        _ => Act::BreakBefore,
    }
}

#[test]
fn a_payload_says_what_was_planned() {
    let acts = [
        Act::Succeed,
        Act::Wait(17),
        Act::Reject,
        Act::Refuse,
        Act::BreakAfter,
        Act::BreakBefore,
    ];
    for act in acts {
        assert_eq!(Act::of(format!("9 {}", act.text()).as_bytes()), act);
    }
}

#[test]
fn a_plan_has_duplicates_missing_tokens_and_null_keys_and_the_seed_fixes_it() {
    let sent = plan(1, 400, 3, 1_000_000);
    let text = |plan: &[Planned]| format!("{plan:?}");
    assert_eq!(text(&sent), text(&plan(1, 400, 3, 1_000_000)));
    assert_ne!(text(&sent), text(&plan(2, 400, 3, 1_000_000)));
    let tokens: Vec<_> = sent.iter().filter_map(|m| m.token.clone()).collect();
    let unique: std::collections::BTreeSet<_> = tokens.iter().collect();
    assert!(tokens.len() - unique.len() > 40, "duplicates");
    assert!(sent.iter().any(|m| m.token.is_none()) && sent.iter().any(|m| m.key.is_none()));
}
