//! What the eye cannot see, made visible: for cards, logs and terminals.

/// Control characters, line and paragraph separators, bidirectional controls, zero-width and other format characters,
/// variation selectors and tags. Ordinary spaces are visible enough; every other blank is not.
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00A0}' | '\u{00AD}' | '\u{034F}' | '\u{061C}' | '\u{115F}' | '\u{1160}' | '\u{1680}' | '\u{17B4}' | '\u{17B5}'
            | '\u{180B}'..='\u{180F}' | '\u{2000}'..='\u{200F}' | '\u{2028}'..='\u{202F}' | '\u{205F}'..='\u{206F}' | '\u{2800}'
            | '\u{3000}' | '\u{3164}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}'
            | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
}

/// The text with every invisible character written as `<U+202E>`. Safe to print: no newline and no escape survives.
pub fn reveal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) {
            out.push_str(&format!("<U+{:04X}>", c as u32));
        } else {
            out.push(c);
        }
    }
    out
}

/// Like [`reveal`], but at most `chars_max` characters, with a note of how many are not shown.
pub fn reveal_capped(text: &str, chars_max: usize) -> String {
    let total = text.chars().count();
    if total <= chars_max {
        return reveal(text);
    }
    let head: String = text.chars().take(chars_max).collect();
    format!("{} [{} more characters]", reveal(&head), total - chars_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_shown_as_codes() {
        assert_eq!(
            reveal("a\u{202E}b\n\u{1b}[31m\u{200B}"),
            "a<U+202E>b<U+000A><U+001B>[31m<U+200B>"
        );
        assert_eq!(reveal("Ann Lée 王"), "Ann Lée 王");
        assert_eq!(reveal_capped("abcdef", 3), "abc [3 more characters]");
    }
}
