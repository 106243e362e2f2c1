//! The file of effects: one line for each thing that a handler or a probe did, synced before it went on; and one for each thing
//! that an operator asked for, before it was asked, and was told, after that.

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
    /// An operator is about to say that it was applied.
    AskedDone,
    /// An operator is about to have it run.
    AskedRun,
    /// An operator is about to give up on it.
    AskedLetter,
    /// The consumer has answered that the verdict is durable.
    ToldDone,
    /// The same of a run.
    ToldRun,
    /// The same of a dead letter.
    ToldLetter,
    /// The consumer has answered that nothing was done.
    ToldNo,
}

impl Kind {
    const ALL: [(Self, &'static str); 16] = [
        (Self::Begin, "begin"),
        (Self::End, "end"),
        (Self::Ok, "ok"),
        (Self::Refused, "refused"),
        (Self::Rejected, "rejected"),
        (Self::Broken, "broken"),
        (Self::ProbeDone, "probe-done"),
        (Self::ProbeNotDone, "probe-not-done"),
        (Self::ProbeUnknown, "probe-unknown"),
        (Self::AskedDone, "asked-done"),
        (Self::AskedRun, "asked-run"),
        (Self::AskedLetter, "asked-letter"),
        (Self::ToldDone, "told-done"),
        (Self::ToldRun, "told-run"),
        (Self::ToldLetter, "told-letter"),
        (Self::ToldNo, "told-no"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).unwrap().1
    }

    /// Whether an operator asked for something.
    pub(crate) const fn is_asked(self) -> bool {
        matches!(self, Self::AskedDone | Self::AskedRun | Self::AskedLetter)
    }

    /// Whether an operator was told something.
    pub(crate) const fn is_told(self) -> bool {
        matches!(
            self,
            Self::ToldDone | Self::ToldRun | Self::ToldLetter | Self::ToldNo
        )
    }
}

/// `<life> <topic> <partition> <offset> <token or -> <attempt> <kind> <child token>`; of an operator, the attempts that he knows
/// of, and instead of the child token the name of the act.
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
