//! Untrusted text: escapes for invisible characters in cards, logs and terminals, and spelling suggestions.

/// Control characters, line and paragraph separators, bidirectional controls, zero-width and other format characters,
/// variation selectors and tags. The ordinary space is visible; every other blank is not.
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00A0}' | '\u{00AD}' | '\u{034F}' | '\u{061C}' | '\u{115F}' | '\u{1160}' | '\u{1680}' | '\u{17B4}' | '\u{17B5}'
            | '\u{180B}'..='\u{180F}' | '\u{2000}'..='\u{200F}' | '\u{2028}'..='\u{202F}' | '\u{205F}'..='\u{206F}' | '\u{2800}'
            | '\u{3000}' | '\u{3164}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}'
            | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
}

/// Whether a character is shown as a code: invisible characters, and those whose glyph is undefined or differs between
/// machines: private use and noncharacters (Unicode chapter 23), the object replacement character, format characters of
/// hieroglyphs and musical notes.
/// Superset of Unicode's Default_Ignorable_Code_Point, Bidi_Control, Join_Control and Variation_Selector.
pub fn needs_escape(c: char) -> bool {
    is_invisible(c)
        || matches!(c,
            '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{10FFFF}' | '\u{FDD0}'..='\u{FDEF}' | '\u{FFFC}'
            | '\u{13430}'..='\u{1345F}' | '\u{16FE4}' | '\u{1D159}')
        || u32::from(c) & 0xFFFE == 0xFFFE
}

/// A value as text that is safe to print: one line, no control and no terminal escape. Every such character is a code like
/// `<U+202E>`, and so is a `<` of the value that would begin a code: different values have different texts
/// ([`unescape`] is the inverse). Escape a value once: for text that has codes already there is [`escape_rendered`].
pub fn escape_invisible(text: &str) -> String {
    escaped(text, needs_escape)
}

/// Text that was rendered before, such as a broker's explanation, made safe to print: its codes stay as they are.
/// Not for values: two of them may have one such text.
pub fn escape_rendered(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if needs_escape(c) {
            push_code(&mut out, c);
        } else {
            out.push(c);
        }
    }
    out
}

/// The text with a code for each character that `coded` picks, and for each `<` that would begin a code.
fn escaped(text: &str, coded: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if coded(c) || begins_code(text.get(at..).unwrap_or_default()) {
            push_code(&mut out, c);
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether the text begins as a code or a count of what is left out does.
pub fn begins_code(text: &str) -> bool {
    text.starts_with("<U+") || text.starts_with("<+")
}

/// Writes the code of a character: `<U+202E>`.
pub fn push_code(out: &mut String, c: char) {
    out.push_str(&format!("<U+{:04X}>", u32::from(c)));
}

/// The value that [`escape_invisible`], or another function with the same codes, wrote as this text; none if one of its
/// codes is not complete.
pub fn unescape(shown: &str) -> Option<String> {
    let mut out = String::with_capacity(shown.len());
    let mut left = shown;
    while let Some(at) = left.find("<U+") {
        let (plain, code) = left.split_at_checked(at)?;
        let (digits, rest) = code.strip_prefix("<U+")?.split_once('>')?;
        out.push_str(plain);
        out.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
        left = rest;
    }
    out.push_str(left);
    Some(out)
}

/// Like [`escape_invisible`], but at most `chars_max` characters, with a note of how many more there are, as no value has it:
/// `<+140 characters>`.
pub fn escape_invisible_capped(text: &str, chars_max: usize) -> String {
    match cut(text, chars_max) {
        (head, 0) => escape_invisible(head),
        (head, more) => format!("{}<+{more} characters>", escape_invisible(head)),
    }
}

/// Like [`escape_rendered`], but at most `chars_max` characters, with a note of how many more there are.
pub fn escape_rendered_capped(text: &str, chars_max: usize) -> String {
    match cut(text, chars_max) {
        (head, 0) => escape_rendered(head),
        (head, more) => format!("{}<+{more} characters>", escape_rendered(head)),
    }
}

/// A number of things: "1 passkey", "2 passkeys".
pub fn counted(count: impl std::fmt::Display + PartialEq + From<u8>, one: &str) -> String {
    match count == 1.into() {
        true => format!("1 {one}"),
        false => format!("{count} {one}s"),
    }
}

/// The first characters of a text, and how many more there are.
pub fn cut(text: &str, chars_max: usize) -> (&str, usize) {
    match text.char_indices().nth(chars_max) {
        None => (text, 0),
        Some((end, _)) => {
            let (head, rest) = text.split_at_checked(end).unwrap_or((text, ""));
            (head, rest.chars().count())
        }
    }
}

/// The text in double quotes, with a backslash before each quote and backslash in it, so that it ends where it seems to. It is not
/// escaped: a sentence that has it is escaped as a whole.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// The known word closest to `word` by edit distance, if one is close enough to be a misspelling.
pub fn nearest_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.into_iter().map(|k| (levenshtein(word, k), k)).min();
    best.filter(|(far, k)| *far <= 1 + word.len().min(k.len()) / 3)
        .map(|(_, k)| k)
}

/// Levenshtein distance; over bytes, one row at a time; the maximum for words of more than 128 bytes.
fn levenshtein(a: &str, b: &str) -> usize {
    if a.len() > 128 || b.len() > 128 {
        return usize::MAX;
    }
    strsim::levenshtein(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(
            escape_invisible("a\u{202E}b\n\u{1b}[31m\u{200B}"),
            "a<U+202E>b<U+000A><U+001B>[31m<U+200B>"
        );
        assert_eq!(escape_invisible("Ann Lée 王"), "Ann Lée 王");
        assert_eq!(escape_invisible_capped("abcdef", 3), "abc<+3 characters>");
        assert_eq!(escape_rendered("a<U+200B>\u{200B}"), "a<U+200B><U+200B>");
    }

    #[test]
    fn typed_codes_are_not_codes() {
        assert_eq!(escape_invisible("<U+200B>"), "<U+003C>U+200B>");
        assert_ne!(escape_invisible("<U+200B>"), escape_invisible("\u{200B}"));
        assert_ne!(
            escape_invisible("abc<+3 characters>"),
            escape_invisible_capped("abcdef", 3)
        );
        assert_eq!(
            escape_invisible("<b> a < b <U <+"),
            "<b> a < b <U <U+003C>+"
        );
        assert_eq!(unescape("<U+110000>"), None);
    }

    proptest::proptest! {
        #[test]
        fn every_text_has_an_escape_of_its_own(parts in proptest::collection::vec(
            proptest::prop_oneof!["<|U|\\+|>|200B|\\\\|\"| ", "[\u{200B}\u{202E}\n\r\u{1b}\u{0}\u{E0041}]", "\\PC"], 0..12)
        ) {
            let text = parts.concat();
            let shown = escape_invisible(&text);
            proptest::prop_assert!(!shown.contains(needs_escape));
            proptest::prop_assert_eq!(unescape(&shown), Some(text));
        }
    }

    /// Unicode 16: DerivedCoreProperties.txt (Default_Ignorable_Code_Point), PropList.txt (Bidi_Control, Variation_Selector,
    /// White_Space but for U+0020), and the general categories Cc, Zl, Zp and Co.
    #[test]
    fn unicode_ignorables_are_escaped() {
        let ranges: &[(u32, u32)] = &[
            (0x00, 0x1F),
            (0x7F, 0x9F),
            (0xA0, 0xA0),
            (0xAD, 0xAD),
            (0x34F, 0x34F),
            (0x61C, 0x61C),
            (0x115F, 0x1160),
            (0x1680, 0x1680),
            (0x17B4, 0x17B5),
            (0x180B, 0x180F),
            (0x2000, 0x200F),
            (0x2028, 0x202F),
            (0x205F, 0x206F),
            (0x3000, 0x3000),
            (0x3164, 0x3164),
            (0xE000, 0xF8FF),
            (0xFDD0, 0xFDEF),
            (0xFE00, 0xFE0F),
            (0xFEFF, 0xFEFF),
            (0xFFA0, 0xFFA0),
            (0xFFF0, 0xFFF8),
            (0xFFFE, 0xFFFF),
            (0x1BCA0, 0x1BCA3),
            (0x1D173, 0x1D17A),
            (0x1FFFE, 0x1FFFF),
            (0xE0000, 0xE0FFF),
            (0xF0000, 0x10FFFF),
        ];
        for c in ranges
            .iter()
            .flat_map(|(from, to)| *from..=*to)
            .filter_map(char::from_u32)
        {
            assert!(needs_escape(c), "U+{:04X}", u32::from(c));
        }
        for c in "aZ09 éß王€😀\u{FFFD}".chars() {
            assert!(!needs_escape(c), "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn levenshtein_distance() {
        assert_eq!(levenshtein("kitten", "sitting"), 3);
        assert_eq!(levenshtein("", "abc"), 3);
    }
}
