//! Escaping of untrusted text for display: invisible characters are written as codes.

use unicode_normalization::char::is_combining_mark;
use unicode_script::{Script, UnicodeScript as _};

use crate::model::text::needs_escape;

/// Most combining marks on one letter that are shown as they are: as many as Vietnamese needs. More is a flood that climbs
/// into the lines above and below.
const MARKS_MAX: usize = 2;

/// The text with every character that cannot be seen, or that would leave its place, written as `<U+202E>`: controls, line
/// breaks, bidirectional and zero-width characters, variation selectors, tags, private use, unassigned ones, marks without
/// a letter or more than two on one; and spaces at either end or after another space. What is left is one line.
pub fn escape_untrusted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let end = text.trim_end_matches(' ').len();
    let (mut after_space, mut marks) = (true, MARKS_MAX);
    for (at, c) in text.char_indices() {
        let mark = is_combining_mark(c);
        let coded = match c {
            ' ' => after_space || at >= end,
            _ if mark => marks >= MARKS_MAX || has_no_look(c),
            _ => has_no_look(c),
        };
        after_space = c == ' ';
        // A code or a space carries no marks.
        marks = match (coded || c == ' ', mark) {
            (true, _) => MARKS_MAX,
            (false, true) => marks + 1,
            (false, false) => 0,
        };
        if coded {
            out.push_str(&format!("<U+{:04X}>", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// Unassigned characters have no script: their look is unknown.
fn has_no_look(c: char) -> bool {
    needs_escape(c) || c.script() == Script::Unknown
}

/// [`escape_untrusted`] text in double quotes; a quote or backslash inside has a backslash before it, so that the end is where it seems.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in escape_untrusted(text).chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusual_whitespace_is_escaped() {
        assert_eq!(escape_untrusted("ann lee"), "ann lee");
        assert_eq!(
            escape_untrusted(" ann  lee "),
            "<U+0020>ann <U+0020>lee<U+0020>"
        );
        assert_eq!(escape_untrusted("   "), "<U+0020><U+0020><U+0020>");
        assert_eq!(escape_untrusted("a\tb\u{a0}c"), "a<U+0009>b<U+00A0>c");
        assert_eq!(escape_untrusted("a\u{378}"), "a<U+0378>", "unassigned");
        assert_eq!(escape_untrusted(""), "");
    }

    #[test]
    fn combining_marks_are_limited() {
        assert_eq!(escape_untrusted("e\u{323}\u{302}"), "e\u{323}\u{302}");
        let flood = format!("z{}", "\u{335}".repeat(50));
        let shown = escape_untrusted(&flood);
        assert_eq!(shown.matches("<U+0335>").count(), 48);
        assert!(shown.starts_with("z\u{335}\u{335}<U+0335>"));
        assert_eq!(escape_untrusted("\u{301}a"), "<U+0301>a");
        assert_eq!(escape_untrusted("a \u{301}"), "a <U+0301>");
        assert_eq!(escape_untrusted("\u{200b}\u{301}"), "<U+200B><U+0301>");
    }

    #[test]
    fn quotes_in_untrusted_text_are_escaped() {
        assert_eq!(quoted(r#"a" b\"#), r#""a\" b\\""#);
        assert_eq!(quoted("\n"), "\"<U+000A>\"");
    }
}
