//! The file of effects: one line for each thing that a handler or a probe did, synced before it went on.

use std::fmt;
use std::path::Path;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An attempt started.
    Begin,
    /// The effect itself.
    End,
    /// The attempt returns success.
    Ok,
    /// The attempt returns "not applied".
    Refused,
    /// The attempt returns "reject".
    Rejected,
    /// The attempt returns an error that says nothing.
    Broken,
    /// The probe answered that it was applied.
    ProbeDone,
    /// The probe answered that it was not.
    ProbeNotDone,
    /// The probe could not tell.
    ProbeUnknown,
}

impl Kind {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Begin, "begin"),
        (Self::End, "end"),
        (Self::Ok, "ok"),
        (Self::Refused, "refused"),
        (Self::Rejected, "rejected"),
        (Self::Broken, "broken"),
        (Self::ProbeDone, "probe-done"),
        (Self::ProbeNotDone, "probe-not-done"),
        (Self::ProbeUnknown, "probe-unknown"),
    ];
}

/// `<life> <topic> <partition> <offset> <token or -> <attempt> <kind> <child token>`.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) life: u32,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) attempt: u64,
    pub(crate) kind: Kind,
    pub(crate) child: String,
    text: String,
}

impl Line {
    pub(crate) fn place(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }

    /// `None` for a line that a kill cut short.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [life, _topic, partition, offset, _token, attempt, kind, child] = words[..] else {
            return None;
        };
        Some(Self {
            life: life.parse().ok()?,
            partition: partition.parse().ok()?,
            offset: offset.parse().ok()?,
            attempt: attempt.parse().ok()?,
            kind: Kind::ALL.iter().find(|(_, name)| *name == kind)?.0,
            child: child.to_owned(),
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The lines of a file, in its order. One that was cut short is an effect that nobody saw: it ends the file.
pub(crate) fn read_lines(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_terminator('\n')
        .map(|line| Line::parse(line).unwrap_or_else(|| panic!("{}: not a line: {line:?}", path.display())))
        .collect()
}
