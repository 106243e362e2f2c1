//! Byte counts, durations and words as they are written in `hapax.toml`, read and printed the same way.
//!
//! What is printed here can be pasted back into the file: `parse(show(x)) == x`.

use std::fmt;
use std::time::Duration;

/// A number of bytes. Written as `"64MiB"`, `"16KiB"`, `"1.5GB"` (decimal), or a bare number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(pub u64);

/// The binary units, largest first.
const UNITS: [(u64, &str); 4] = [
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
];

impl ByteCount {
    /// That many KiB (1,024 bytes).
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// That many MiB.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// That many GiB.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The count as a length in memory; what does not fit there is as good as unlimited.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads `"64MiB"` and its like.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        text.trim()
            .parse::<bytesize::ByteSize>()
            .map(|size| Self(size.as_u64()))
    }
}

impl fmt::Display for ByteCount {
    /// The largest binary unit that states the count exactly: `64MiB`, but `1000B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS
            .iter()
            .find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Reads `"7d"`, `"100ms"`, `"1h 30m"`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|error| error.to_string())
}

/// A duration as one would write it in the file: `7d`, `24h`, `100ms`.
pub(crate) fn show_duration(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match (seconds, nanos) {
        (0, 0) => "0s".to_owned(),
        // One day is a window of 24 hours; from two days on, days read better.
        (s, 0) if s >= 2 * 86_400 && s % 86_400 == 0 => format!("{}d", s / 86_400),
        (s, 0) if s % 3_600 == 0 => format!("{}h", s / 3_600),
        (s, 0) if s % 60 == 0 => format!("{}m", s / 60),
        (s, 0) => format!("{s}s"),
        (s, n) if s < 60 && n % 1_000_000 == 0 => format!("{}ms", duration.as_millis()),
        _ => humantime::format_duration(duration).to_string(),
    }
}

/// A choice that the file states as one word.
pub(super) trait Word: Copy + 'static {
    /// Every word with what it means.
    const WORDS: &'static [(&'static str, Self)];
}

impl Word for crate::class::Class {
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::Idempotent.name(), Self::Idempotent),
        (Self::PotentiallyIdempotent.name(), Self::PotentiallyIdempotent),
        (Self::NonIdempotent.name(), Self::NonIdempotent),
    ];
}

/// Gives an enum its words: `name()`, `Display`, and reading from the file.
macro_rules! words {
    ($($type:ty { $($variant:ident = $text:literal),+ $(,)? })+) => { $(
        impl $type {
            /// The word for it in `hapax.toml`, metrics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl $crate::config::units::Word for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($text, Self::$variant)),+];
        }
    )+ };
}

pub(super) use words;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_read_with_and_without_a_unit() {
        let cases = [
            ("64MiB", 64 << 20),
            ("16 KiB", 16 << 10),
            ("1.5GB", 1_500_000_000),
            ("512", 512),
            ("0", 0),
        ];
        for (text, bytes) in cases {
            assert_eq!(ByteCount::parse(text), Ok(ByteCount(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "64 mebis", "1..5GB", "١KiB"] {
            assert!(ByteCount::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_exactly() {
        let cases = [
            (0, "0B"),
            (1_000, "1000B"),
            (1 << 10, "1KiB"),
            (1_536, "1536B"),
            (3 << 30, "3GiB"),
            (1 << 41, "2TiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(ByteCount(bytes).to_string(), text);
        }
    }

    #[test]
    fn durations_are_shown_as_one_writes_them() {
        let cases = [
            "0s", "100ms", "1500ms", "30s", "90s", "2m", "1h", "24h", "36h", "2d", "7d",
        ];
        for text in cases {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        for text in [
            "",
            "10",
            "ten seconds",
            "-1s",
            "1s!",
            "99999999999999999999s",
            "600000000000y",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(bytes: u64, seconds in 0..1u64 << 33, nanos in 0..1_000_000_000u32) {
            prop_assert_eq!(ByteCount::parse(&ByteCount(bytes).to_string()), Ok(ByteCount(bytes)));
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = ByteCount::parse(&text);
            let _ = parse_duration(&text);
        }
    }
}
