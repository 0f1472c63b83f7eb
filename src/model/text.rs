//! What the eye cannot see, made visible: for cards, logs and terminals. And which word was meant.

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

/// The known word nearest to `word`, when one is near.
pub fn nearest_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.into_iter().map(|k| (distance(word, k), k)).min();
    best.filter(|(far, k)| *far <= 1 + word.len().min(k.len()) / 3)
        .map(|(_, k)| k)
}

/// Levenshtein's distance over bytes, one row at a time. Words of more than 128 bytes are far from everything.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 128 || b.len() > 128 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.bytes().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(above + 1);
            next.push(left);
            diagonal = *above;
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
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

    #[test]
    fn words_are_as_far_apart_as_they_are() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
