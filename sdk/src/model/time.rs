//! Timestamps and durations.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ParseError;

/// A point in time: milliseconds since 1970-01-01T00:00:00Z. Read from the clock at an entry point and passed down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    /// From whole seconds since the Unix epoch.
    pub const fn from_secs(s: i64) -> Self {
        Self(s.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down: the resolution of JWT dates (RFC 7519 §2).
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// `ms` milliseconds later.
    pub const fn plus_millis(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// `s` seconds later.
    pub const fn plus_secs(self, s: i64) -> Self {
        Self(self.0.saturating_add(s.saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to `self`; negative when `earlier` is later.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub fn after(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.since(earlier)).unwrap_or(0))
    }
}

/// RFC 3339 in UTC, to the second.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match time::OffsetDateTime::from_unix_timestamp(self.secs()) {
            Ok(t) => write!(
                f,
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                t.year(),
                u8::from(t.month()),
                t.day(),
                t.hour(),
                t.minute(),
                t.second()
            ),
            Err(_) => write!(f, "{} s", self.secs()),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// Parses a duration of whole seconds, at least 1 and at most ten years: whole numbers with the units `d`, `h`, `m` and `s` in
/// this order, such as `90s`, `15m`, `1h30m` or `4m 59s`. Everything that [`format_seconds`] prints within these bounds.
pub fn parse_duration(field: &'static str, text: &str) -> Result<u32, ParseError> {
    let wrong = || {
        ParseError::new(
            field,
            "must be whole numbers with the units d, h, m, s in this order, such as 90s, 15m or 1h30m, and not zero",
        )
    };
    let mut units = UNITS.iter();
    let mut seconds: u32 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        // At most one blank, and only between two parts.
        let part = match seconds {
            0 => rest,
            _ => rest.strip_prefix(' ').unwrap_or(rest),
        };
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = part.split_at(digits);
        let unit = after.chars().next().ok_or_else(wrong)?;
        let (_, factor) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u32 = number.parse().map_err(|_| wrong())?;
        seconds = number
            .checked_mul(*factor)
            .and_then(|more| seconds.checked_add(more))
            .filter(|_| number > 0)
            .ok_or_else(wrong)?;
        rest = after.strip_prefix(unit).unwrap_or_default();
    }
    match seconds {
        1..=DURATION_MAX_S => Ok(seconds),
        _ => Err(wrong()),
    }
}

/// Each unit in seconds, the largest first.
const UNITS: [(char, u32); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];
/// Longest duration that is parsed: ten years.
const DURATION_MAX_S: u32 = 10 * 366 * 86_400;

/// Seconds as text: `45s`, `5m`, `5m 30s`, `2h`.
pub fn format_seconds(seconds: i64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3_600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let text = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, u)| format!("{n}{u}"))
        .collect::<Vec<_>>()
        .join(" ");
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("ttl", "90s"), Ok(90));
        assert_eq!(parse_duration("ttl", "2h"), Ok(7_200));
        assert_eq!(parse_duration("ttl", "4m59s"), Ok(299));
        assert_eq!(parse_duration("ttl", "4m 59s"), Ok(299));
        assert_eq!(parse_duration("ttl", "1d 5s"), Ok(86_405));
        for bad in [
            "",
            "0s",
            "5",
            "m",
            "-5m",
            "1.5h",
            "5 m",
            "99999999999d",
            "5m5",
            "5s5m",
            "5m5m",
            "5m0s",
            "0m5s",
            "5m  5s",
            " 5m",
            "5m ",
            "5m,5s",
            "3661d",
            "+5m",
            "é",
        ] {
            assert!(parse_duration("ttl", bad).is_err(), "{bad}");
        }
        assert_eq!(format_seconds(330), "5m 30s");
        assert_eq!(
            Timestamp::from_secs(1_792_656_000).to_string(),
            "2026-10-22T08:00:00Z"
        );
    }

    proptest::proptest! {
        #[test]
        fn printed_durations_are_accepted(seconds in 1..=DURATION_MAX_S) {
            let printed = format_seconds(i64::from(seconds));
            proptest::prop_assert_eq!(parse_duration("ttl", &printed), Ok(seconds));
            proptest::prop_assert_eq!(parse_duration("ttl", &printed.replace(' ', "")), Ok(seconds));
        }
    }
}
