//! Moments and words as pages show them. Every text of others leaves here with its invisible characters as codes.

use crate::model::text::escape_invisible;
use crate::model::{Timestamp, format_seconds};
use crate::policy::Risk;

/// A moment on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    /// RFC 3339, UTC.
    pub(super) iso: String,
    /// `14:20:09`, with its day where that is not today.
    pub(super) text: String,
    /// How long until then, as the script counts it down.
    pub(super) left: String,
    /// Milliseconds since the Unix epoch.
    pub(super) ms: i64,
}

impl Moment {
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
            left: left(at.since(now)),
            ms: at.millis(),
            iso,
        }
    }
}

/// The day and the time of day of an RFC 3339 moment in UTC.
fn split(iso: &str) -> (&str, &str) {
    let (day, clock) = iso.split_once('T').unwrap_or((iso, ""));
    (day, clock.trim_end_matches('Z'))
}

/// How long until a moment: exact where seconds matter.
pub(super) fn left(ms: i64) -> String {
    let s = ms.div_euclid(1_000);
    match s {
        ..=0 => "over".to_owned(),
        1..60 => format!("{s} s left"),
        60..600 => format!("{}:{:02} left", s / 60, s % 60),
        600..7_200 => format!("{} min left", s / 60),
        7_200..172_800 => format!("{} h left", s / 3_600),
        172_800.. => format!("{} days left", s / 86_400),
    }
}

/// How long ago, in one unit.
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

/// The word of a risk; one nobody stated is shown, and counts as high.
pub(super) const fn risk(risk: Option<Risk>) -> &'static str {
    match risk {
        Some(risk) => risk.as_str(),
        None => "unknown",
    }
}

/// Text of others, safe to show.
pub(super) fn shown(text: impl AsRef<str>) -> String {
    escape_invisible(text.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_absolute_and_counted_down() {
        let now = Timestamp::from_secs(1_792_656_000);
        let at = |s| Moment::new(now.plus_secs(s), now);
        assert_eq!(at(0).text, "08:00:00 UTC");
        assert_eq!(at(86_400).text, "2026-10-23 08:00:00 UTC");
        for (s, told) in [
            (-1, "over"),
            (0, "over"),
            (59, "59 s left"),
            (61, "1:01 left"),
            (845, "14 min left"),
            (7_300, "2 h left"),
            (200_000, "2 days left"),
        ] {
            assert_eq!(at(s).left, told);
        }
        assert_eq!(ago(now.plus_secs(-130), now), "2 min ago");
    }
}
