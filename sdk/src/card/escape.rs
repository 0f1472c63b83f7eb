//! Escaping of untrusted text for display: what cannot be seen, or looks like something else, is written as codes.

use unicode_normalization::char::{canonical_combining_class, compose, is_combining_mark};
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfc_quick};
use unicode_script::{Script, UnicodeScript as _};

use crate::model::Target;
use crate::model::text::{begins_code, cut, needs_escape, push_code, unescape};

/// Most combining marks on one letter that are shown as they are: as many as Vietnamese needs. More is a flood that climbs
/// into the lines above and below.
const MARKS_MAX: usize = 2;

/// The text with every character that cannot be seen, or that would leave its place, written as `<U+202E>`: controls, line
/// breaks, bidirectional and zero-width characters, variation selectors, tags, private use, unassigned ones, marks without
/// a letter or more than two on one; and spaces at either end or after another space. What is left is one line.
///
/// Different texts are shown differently, to a reader too: a `<` that would begin a code is written as one, and so is each
/// character whose look another spelling has (UAX #15: what is shown as it is, is in form C). [`unescape`] is the inverse.
pub fn escape_untrusted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let end = text.trim_end_matches(' ').len();
    let misspelt = not_composed(text);
    let (mut after_space, mut marks) = (true, MARKS_MAX);
    for (n, (at, c)) in text.char_indices().enumerate() {
        let mark = is_combining_mark(c);
        let coded = match c {
            ' ' => after_space || at >= end,
            '<' => begins_code(text.get(at..).unwrap_or_default()),
            _ if mark && marks >= MARKS_MAX => true,
            _ => has_no_look(c),
        } || misspelt.get(n).copied().unwrap_or(false);
        after_space = c == ' ';
        // A code or a space carries no marks.
        marks = match (coded || c == ' ', mark) {
            (true, _) => MARKS_MAX,
            (false, true) => marks + 1,
            (false, false) => 0,
        };
        if coded {
            push_code(&mut out, c);
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

/// For each character, whether form C has another in its place; empty where the whole text is in form C.
fn not_composed(text: &str) -> Vec<bool> {
    if is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Vec::new();
    }
    let chars: Vec<char> = text.chars().collect();
    let joins = |pair: &[char]| match pair {
        [before, c] => {
            is_combining_mark(*c)
                || canonical_combining_class(*c) != 0
                || compose(*before, *c).is_some()
        }
        _ => false,
    };
    let mut found = Vec::with_capacity(chars.len());
    // A letter and its marks are one unit: their order counts, too.
    for unit in chars.chunk_by(|before, c| joins(&[*before, *c])) {
        let composed = is_composed(unit);
        let first = unit.first().copied();
        let keeps_first = first.is_some_and(|c| is_composed(&[c]));
        found.extend((0..unit.len()).map(|n| !(composed || n == 0 && keeps_first)));
    }
    found
}

fn is_composed(unit: &[char]) -> bool {
    let chars = unit.iter().copied();
    chars.clone().nfc().eq(chars)
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

/// The text that [`quoted`] wrote as `shown`, and what follows it.
pub fn unquote(shown: &str) -> Option<(String, &str)> {
    let inside = shown.strip_prefix('"')?;
    let mut text = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => text.push(chars.next()?.1),
            '"' => return Some((unescape(&text)?, inside.get(at + 1..)?)),
            _ => text.push(c),
        }
    }
    None
}

/// A text of the policy bundle: [`escape_untrusted`], or [`quoted`] where it is empty or begins with a quote.
pub fn plain_or_quoted(text: &str) -> String {
    if text.is_empty() || text.starts_with('"') {
        quoted(text)
    } else {
        escape_untrusted(text)
    }
}

/// A target's id as it stands after the type and `::`: quoted, unless the policy bundle has the target. Agents choose the
/// ids of all others.
pub fn target_id(target: &Target, is_known: bool) -> String {
    let id = &target.id;
    // `A::B` and `c`, or `A` and `B::c`?
    if !is_known || id.starts_with(':') || id.contains("::") {
        quoted(id)
    } else {
        plain_or_quoted(id)
    }
}

/// [`quoted`] text in pieces that end where its line breaks are: the layout shows each on a line of its own. Joined they are the
/// text again.
pub(super) fn in_lines(shown: &str) -> Vec<String> {
    shown
        .split_inclusive(LINE_BREAK)
        .map(str::to_owned)
        .collect()
}

/// The first characters of escaped text, and how many more there are. A code is not cut: half of one is another character's.
pub(super) fn cut_shown(shown: &str, chars_max: usize) -> (&str, usize) {
    let (head, more) = cut(shown, chars_max);
    if more == 0 {
        return (shown, 0);
    }
    let half = head
        .rfind("<U+")
        .filter(|at| !head.get(*at..).unwrap_or_default().contains('>'));
    let head = head.get(..half.unwrap_or(head.len())).unwrap_or_default();
    (head, shown.chars().count() - head.chars().count())
}

const LINE_BREAK: &str = "<U+000A>";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        assert_eq!(escape_untrusted("x\u{323}\u{302}"), "x\u{323}\u{302}");
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

    #[test]
    fn other_spellings_are_escaped() {
        for (text, shown) in [
            ("\u{e9}", "\u{e9}"),
            ("e\u{301}", "e<U+0301>"),
            ("\u{e9}\u{323}", "\u{e9}<U+0323>"),
            ("\u{212b}", "<U+212B>"),
            ("\u{1100}\u{1161}\u{11a8}", "\u{1100}<U+1161>\u{11a8}"),
            ("\u{ac00}\u{11a8}", "\u{ac00}<U+11A8>"),
            ("<\u{338}", "<<U+0338>"),
            ("<U+200B><+1 ", "<U+003C>U+200B><U+003C>+1<U+0020>"),
        ] {
            assert_eq!(escape_untrusted(text), shown);
        }
    }

    #[test]
    fn ids_of_targets_end_where_they_seem_to() {
        let shown = |kind: &str, id: &str, is_known| {
            let target = Target::parse(kind, id).expect("target");
            format!("{kind}::{}", target_id(&target, is_known))
        };
        assert_eq!(shown("Account", "ann lee", true), "Account::ann lee");
        assert_eq!(shown("Account", "ann", false), "Account::\"ann\"");
        assert_ne!(shown("A::B", "c", true), shown("A", "B::c", true));
        assert_ne!(shown("A", "\"c\"", true), shown("A", "c", false));
    }

    fn texts() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "<U\\+200B>|<U\\+|<\\+",
            "<|U|\\+|>|200B|\\\\|\"| |a|e|::|'",
            "[\u{200B}\u{202E}\n\r\u{1b}\u{0}\u{E0041}\u{FE0F}\u{E000}\u{378}]",
            "[\u{300}-\u{34F}\u{e9}\u{1ea0}\u{212b}\u{1100}-\u{1105}\u{1161}-\u{1165}\u{11a8}-\u{11aa}\u{ac00}]",
            "\\PC",
        ];
        proptest::collection::vec(part, 0..16).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn every_text_has_a_look_of_its_own(text in texts()) {
            let shown = escape_untrusted(&text);
            prop_assert!(!shown.contains(needs_escape) && !shown.contains("  "));
            prop_assert!(unicode_normalization::is_nfc(&shown), "{shown:?} has the look of another");
            prop_assert_eq!(unescape(&shown), Some(text.clone()));
            let shown = quoted(&text);
            let followed = format!("{shown}\"x");
            prop_assert_eq!(unquote(&followed), Some((text.clone(), "\"x")));
            prop_assert_eq!(in_lines(&shown).concat(), shown);
            let shown = plain_or_quoted(&text);
            let read = match shown.starts_with('"') {
                true => unquote(&shown).map(|(text, _)| text),
                false => unescape(&shown),
            };
            prop_assert_eq!(read, Some(text));
        }
    }
}
