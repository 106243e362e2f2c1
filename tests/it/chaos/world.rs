//! The world of a campaign: what handlers do to it, as lines in files that are only ever appended to.
//!
//! There is a file for each partition of each topic. Several processes write to it, each line with one call, so that the
//! file has one order, which is the order in which things happened. A process that is killed loses nothing of it.
//!
//! It is also the resource that some handlers call: a line [`Kind::Post`] is the effect. The resource of a topic that
//! [checks fences](super::terms::Terms::fenced) takes a post only if nobody with a later fence was there before: with a
//! post, or with a question ([`Kind::Ask`]). Whoever appends a line reads there what became of it.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What the handler does with a message. It stands in the payload, so that every process does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Has its effect and succeeds.
    Succeed,
    /// The same after so many milliseconds.
    Wait(u64),
    /// Refuses the message for good.
    Reject,
    /// Says "not applied" at its first attempt.
    Refuse,
    /// Has its effect at its first attempt, and ends with an error that does not say so.
    BreakAfter,
    /// Ends at its first attempt with an error that says nothing, and has had no effect.
    BreakBefore,
}

impl Act {
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        match random.u16(0..1_000) {
            0..500 => Self::Succeed,
            500..830 => Self::Wait(random.u64(5..120)),
            830..860 => Self::Wait(random.u64(500..1_500)),
            860..910 => Self::Reject,
            910..960 => Self::Refuse,
            960..980 => Self::BreakAfter,
            _ => Self::BreakBefore,
        }
    }

    /// The payload of a message of that name: the same however often it is sent.
    pub(crate) fn payload(self, name: &str) -> String {
        let act = match self {
            Self::Succeed => "succeed".into(),
            Self::Wait(ms) => format!("wait-{ms}"),
            Self::Reject => "reject".into(),
            Self::Refuse => "refuse".into(),
            Self::BreakAfter => "break-after".into(),
            Self::BreakBefore => "break-before".into(),
        };
        format!("{name} {act}")
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

/// The header that says when a message was sent, whatever its timestamp says.
pub(crate) const SENT_MS: &str = "sent-ms";

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An attempt started.
    Begin,
    /// The resource was called.
    Post,
    /// The resource said that the call came too late.
    Stale,
    /// The attempt returns success.
    Ok,
    /// The attempt returns "not applied".
    Refused,
    /// The attempt returns "reject".
    Rejected,
    /// The attempt returns an error that says nothing.
    Broken,
    /// A probe asks the resource.
    Ask,
    /// The probe answers that it was applied.
    ProbeDone,
    /// The probe answers that it was not.
    ProbeNotDone,
    /// The probe cannot tell.
    ProbeUnknown,
}

impl Kind {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Begin, "begin"),
        (Self::Post, "post"),
        (Self::Stale, "stale"),
        (Self::Ok, "ok"),
        (Self::Refused, "refused"),
        (Self::Rejected, "rejected"),
        (Self::Broken, "broken"),
        (Self::Ask, "ask"),
        (Self::ProbeDone, "probe-done"),
        (Self::ProbeNotDone, "probe-not-done"),
        (Self::ProbeUnknown, "probe-unknown"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).unwrap().1
    }
}

/// `<life> <fence> <offset> <token or -> <attempt> <kind> <child token>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) life: u32,
    pub(crate) fence: u64,
    pub(crate) offset: i64,
    pub(crate) token: String,
    pub(crate) attempt: u64,
    pub(crate) kind: Kind,
    pub(crate) child: String,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [life, fence, offset, token, attempt, kind, child] = words[..] else {
            return None;
        };
        Some(Self {
            life: life.parse().ok()?,
            fence: fence.parse().ok()?,
            offset: offset.parse().ok()?,
            token: token.to_owned(),
            attempt: attempt.parse().ok()?,
            kind: Kind::ALL.iter().find(|(_, name)| *name == kind)?.0,
            child: child.to_owned(),
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            life,
            fence,
            offset,
            token,
            attempt,
            kind,
            child,
        } = self;
        write!(
            f,
            "{life} {fence} {offset} {token} {attempt} {} {child}",
            kind.name()
        )
    }
}

/// While this file is there, most of what handlers call is away.
pub(crate) fn flapping(dir: &Path) -> PathBuf {
    dir.join("flapping")
}

/// The file of a partition.
pub(crate) fn file(dir: &Path, topic: &str, partition: i32) -> PathBuf {
    dir.join(format!("{topic}-{partition}"))
}

/// Appends one line.
pub(crate) fn append(path: &Path, line: &Line) {
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The lines of a file, in its order. One that was cut short is something that nobody saw.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| Line::parse(line).unwrap_or_else(|| panic!("{}: not a line: {line:?}", path.display())))
        .collect()
}

/// For each line whether it is a post that the resource has taken.
pub(crate) fn taken(lines: &[Line], checks_fences: bool) -> Vec<bool> {
    let mut highest = 0;
    lines
        .iter()
        .map(|line| {
            if !matches!(line.kind, Kind::Post | Kind::Ask) {
                return false;
            }
            let is_late = checks_fences && line.fence < highest;
            highest = highest.max(line.fence);
            line.kind == Kind::Post && !is_late
        })
        .collect()
}

#[test]
fn a_payload_says_what_was_planned() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let act = Act::random(&mut random);
        assert_eq!(Act::of(act.payload("t3-9").as_bytes()), act);
    }
}

#[test]
fn a_resource_that_checks_fences_refuses_who_comes_late() {
    let line = |fence, kind| Line {
        life: 1,
        fence,
        offset: 5,
        token: "t".into(),
        attempt: 1,
        kind,
        child: "c".into(),
    };
    let lines = [
        line(1, Kind::Post),
        line(2, Kind::Ask),
        line(1, Kind::Post),
        line(2, Kind::Post),
        line(9, Kind::Begin),
        line(2, Kind::Post),
    ];
    assert_eq!(taken(&lines, true), [true, false, false, true, false, true]);
    assert_eq!(taken(&lines, false), [true, false, true, true, false, true]);
    let path = tempfile::NamedTempFile::new().unwrap();
    for line in &lines {
        append(path.path(), line);
    }
    assert_eq!(read(path.path()), lines);
}
