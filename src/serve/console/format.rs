//! Formatting for pages: times, percentages, and untrusted text with its invisible characters escaped.

use crate::model::text::escape_invisible;
use crate::model::{Timestamp, format_seconds};
use crate::policy::Risk;

/// A time on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DisplayTime {
    /// RFC 3339, UTC.
    pub(super) iso: String,
    /// `14:20:09 UTC`, with the date unless it is today.
    pub(super) text: String,
    /// The time left, as the script counts it down.
    pub(super) left: String,
    /// Milliseconds since the Unix epoch.
    pub(super) ms: i64,
}

impl DisplayTime {
    pub(super) fn new(at: Timestamp, now: Timestamp) -> Self {
        let iso = at.to_string();
        let (day, clock) = split(&iso);
        let today = now.to_string();
        let text = if day == split(&today).0 {
            format!("{clock} UTC")
        } else {
            format!("{day} {clock} UTC")
        };
        Self {
            text,
            left: time_left(at.since(now)),
            ms: at.millis(),
            iso,
        }
    }
}

/// The date and the time of day of an RFC 3339 time in UTC.
fn split(iso: &str) -> (&str, &str) {
    let (day, clock) = iso.split_once('T').unwrap_or((iso, ""));
    (day, clock.trim_end_matches('Z'))
}

/// The time left: exact where seconds matter.
fn time_left(ms: i64) -> String {
    let s = ms.div_euclid(1_000);
    match s {
        ..=0 => "expired".to_owned(),
        1..60 => format!("{s} s left"),
        60..600 => format!("{}:{:02} left", s / 60, s % 60),
        600..7_200 => format!("{} min left", s / 60),
        7_200..172_800 => format!("{} h left", s / 3_600),
        172_800.. => format!("{} days left", s / 86_400),
    }
}

/// The time since, in one unit.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    let s = now.since(at).max(0) / 1_000;
    match s {
        0..60 => "just now".to_owned(),
        60..7_200 => format!("{} min ago", s / 60),
        7_200..172_800 => format!("{} h ago", s / 3_600),
        172_800.. => format!("{} days ago", s / 86_400),
        ..0 => format_seconds(s),
    }
}

/// The word of a risk; a request without a stated risk says `unknown`, and counts as high.
pub(super) const fn risk(risk: Option<Risk>) -> &'static str {
    match risk {
        Some(risk) => risk.as_str(),
        None => "unknown",
    }
}

/// A percentage, or a dash.
pub(super) fn percent(percent: Option<u32>) -> String {
    percent.map_or_else(|| "—".to_owned(), |percent| format!("{percent} %"))
}

/// A number of seconds, or a dash.
pub(super) fn seconds(seconds: Option<u32>) -> String {
    seconds.map_or_else(|| "—".to_owned(), |s| format_seconds(i64::from(s)))
}

/// Untrusted text, safe to show.
pub(super) fn escape(text: impl AsRef<str>) -> String {
    escape_invisible(text.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_time_and_time_left() {
        let now = Timestamp::from_secs(1_792_656_000);
        let at = |s| DisplayTime::new(now.plus_secs(s), now);
        assert_eq!(at(0).text, "08:00:00 UTC");
        assert_eq!(at(86_400).text, "2026-10-23 08:00:00 UTC");
        for (s, expected) in [
            (-1, "expired"),
            (0, "expired"),
            (59, "59 s left"),
            (61, "1:01 left"),
            (845, "14 min left"),
            (7_300, "2 h left"),
            (200_000, "2 days left"),
        ] {
            assert_eq!(at(s).left, expected);
        }
        assert_eq!(ago(now.plus_secs(-130), now), "2 min ago");
    }
}
