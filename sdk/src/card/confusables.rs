//! Confusable text: warnings about untrusted text that looks like other text (UTS #39).

use std::collections::{BTreeMap, BTreeSet};

use unicode_normalization::UnicodeNormalization as _;
use unicode_script::{Script, UnicodeScript as _};
use unicode_security::confusable_detection::skeleton;

use super::escape_untrusted;
use crate::model::text::needs_escape;

/// Most odd characters that are named one by one; the others are counted.
const NAMED_MAX: usize = 8;
/// Most look-alike words that are named one by one; the others are counted.
const WORDS_MAX: usize = 3;
/// Most characters shown of each of them.
const WORD_CHARS_MAX: usize = 32;
/// Most flags of one row or headline; the others are counted.
const FLAGS_MAX: usize = 6;

/// Warnings about how the text is written, one sentence each; empty for ordinary text. At most one sentence of each kind, of
/// bounded length, however long the text: a warning that floods the card hides its subject.
///
/// - Letters of scripts that are not written together (Latin with Cyrillic or Greek), characters that stand for an ASCII one
///   (full-width, mathematical, circled, dotless), and digits of other scripts beside ASCII: each odd one by its code
///   (UTS #39 §5.2, §5.3, with the sets of its "highly restrictive" level).
/// - A word that is written in one foreign script and looks like a Latin one (UTS #39 §4, whole-script confusables).
/// - Letters that run from right to left, because what stands beside them is shown in another order than it is stored.
pub fn confusable_warnings(text: &str) -> Vec<String> {
    // The common case costs one look at each byte.
    if text.is_ascii() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mixed = odd_characters(text);
    if !mixed.is_empty() {
        found.push(format!("MIXED SCRIPTS: {}", named(&mixed)));
    }
    found.extend(latin_doubles(text));
    if text.chars().any(runs_right_to_left) {
        found.push("RIGHT TO LEFT: may be shown in another order than it is stored".to_owned());
    }
    found
}

/// The characters that do not belong to the writing of the rest.
fn odd_characters(text: &str) -> BTreeSet<char> {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for script in text.chars().map(|c| c.script()) {
        if !matches!(script, Script::Common | Script::Inherited | Script::Unknown) {
            *counts.entry(written_with(script)).or_default() += 1;
        }
    }
    // Latin goes first among equals: it is what the names around it are written in.
    let main = counts
        .iter()
        .max_by_key(|(name, count)| (**count, **name == LATIN))
        .map(|(name, _)| *name);
    let ascii = text.chars().any(|c| c.is_ascii_alphanumeric());
    let foreign = |c: char| {
        let script = c.script();
        !matches!(script, Script::Common | Script::Inherited | Script::Unknown)
            && !together(main.unwrap_or(LATIN), written_with(script))
    };
    text.chars()
        .filter(|c| !c.is_ascii() && !needs_escape(*c) || c.is_ascii_alphabetic())
        .filter(|c| foreign(*c) || stands_for_ascii(*c) || ascii && foreign_digit(*c))
        .collect()
}

const LATIN: &str = "Latin";
const HAN: &str = "Han";

/// Han, kana, Bopomofo and Hangul are one writing where they meet.
fn written_with(script: Script) -> &'static str {
    match script {
        Script::Han | Script::Hiragana | Script::Katakana | Script::Bopomofo | Script::Hangul => {
            HAN
        }
        other => other.full_name(),
    }
}

/// UTS #39 §5.2, highly restrictive: one script, or Latin with the scripts of East Asia.
fn together(main: &str, other: &str) -> bool {
    main == other || matches!((main, other), (LATIN, HAN) | (HAN, LATIN))
}

/// A character past Latin-1 that compatibility or the eye makes ASCII characters which names and URLs are made of: one, or several as a
/// ligature does.
fn stands_for_ascii(c: char) -> bool {
    if u32::from(c) <= 0xFF || !matches!(c.script(), Script::Latin | Script::Common) {
        return false;
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.:@%&?#=\\".contains(c);
    let one = |text: &str| text.chars().count() == 1 && text.chars().all(plain);
    let text = c.to_string();
    let compatible: String = text.nfkc().collect();
    // Of several characters, letters and digits alone: the ellipsis is ordinary.
    compatible.chars().all(|c| c.is_ascii_alphanumeric())
        || one(&compatible)
        || one(&skeleton(&text).collect::<String>())
}

fn foreign_digit(c: char) -> bool {
    u32::from(c) > 0xFF && c.is_numeric()
}

/// The words that look like Latin ones, in the order they come, in one sentence.
fn latin_doubles(text: &str) -> Option<String> {
    let mut likes = Vec::new();
    let (mut seen, mut scripts, mut chars) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        let Some(latin) = latin_double(word) else {
            continue;
        };
        if seen.insert(word) && likes.len() < WORDS_MAX {
            let head: String = latin.chars().take(WORD_CHARS_MAX).collect();
            let cut = if head.len() < latin.len() { "…" } else { "" };
            likes.push(format!("\"{head}{cut}\""));
            scripts.insert(script_of(word));
            chars.extend(word.chars());
        }
    }
    if likes.is_empty() {
        return None;
    }
    let more = match seen.len() - likes.len() {
        0 => String::new(),
        more => format!(" and {more} more words"),
    };
    let scripts: Vec<&str> = scripts.into_iter().collect();
    Some(format!(
        "LOOKS LIKE {}{more} but is written in {}: {}",
        likes.join(", "),
        scripts.join(" and "),
        named(&chars)
    ))
}

/// Distinct flags in their order, at most [`FLAGS_MAX`], and a count of the rest.
pub(super) fn cap_flags(flags: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut all = distinct(flags);
    let more = all.len().saturating_sub(FLAGS_MAX);
    if more > 0 {
        all.truncate(FLAGS_MAX);
        all.push(format!("and {more} more"));
    }
    all
}

/// Distinct flags, in their order.
pub(super) fn distinct(flags: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let fresh = |flag: &String| seen.insert(flag.clone());
    flags.into_iter().filter(fresh).collect()
}

/// The Latin word that a word without a single ASCII letter looks like.
fn latin_double(word: &str) -> Option<String> {
    if word.is_empty()
        || word
            .chars()
            .any(|c| c.is_ascii() || c.script() == Script::Latin)
    {
        return None;
    }
    let latin: String = skeleton(word).collect();
    (word.chars().count() > 1 && latin.chars().all(|c| c.is_ascii_alphanumeric())).then_some(latin)
}

fn script_of(word: &str) -> &'static str {
    word.chars()
        .map(|c| c.script())
        .find(|s| !matches!(s, Script::Common | Script::Inherited))
        .map_or("signs", |s| s.full_name())
}

/// Letters of the scripts whose characters Unicode gives the classes R and AL.
fn runs_right_to_left(c: char) -> bool {
    matches!(
        c.script(),
        Script::Hebrew
            | Script::Arabic
            | Script::Syriac
            | Script::Thaana
            | Script::Nko
            | Script::Samaritan
            | Script::Mandaic
            | Script::Adlam
            | Script::Mende_Kikakui
            | Script::Hanifi_Rohingya
            | Script::Yezidi
            | Script::Phoenician
            | Script::Imperial_Aramaic
            | Script::Cypriot
            | Script::Lydian
            | Script::Kharoshthi
            | Script::Old_South_Arabian
            | Script::Old_North_Arabian
            | Script::Avestan
            | Script::Inscriptional_Parthian
            | Script::Inscriptional_Pahlavi
            | Script::Psalter_Pahlavi
            | Script::Old_Turkic
            | Script::Old_Hungarian
            | Script::Palmyrene
            | Script::Nabataean
            | Script::Hatran
            | Script::Manichaean
            | Script::Sogdian
            | Script::Old_Sogdian
            | Script::Elymaic
            | Script::Chorasmian
            | Script::Old_Uyghur
            | Script::Meroitic_Hieroglyphs
            | Script::Meroitic_Cursive
    )
}

fn named(mixed: &BTreeSet<char>) -> String {
    let mut all: Vec<String> = mixed
        .iter()
        .take(NAMED_MAX)
        .map(|c| {
            let script = match c.script() {
                Script::Common | Script::Inherited | Script::Unknown => "not ASCII",
                script => script.full_name(),
            };
            format!(
                "{} U+{:04X} {script}",
                escape_untrusted(&c.to_string()),
                u32::from(*c)
            )
        })
        .collect();
    if mixed.len() > NAMED_MAX {
        all.push(format!("and {} more", mixed.len() - NAMED_MAX));
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_raises_no_flag() {
        for fine in [
            "ann@corp.example",
            "Ann Lée, Łódź, Dvořák, Nguyễn, straße, æther",
            "東京サーバー web-1",
            "서울 web",
            "Иванова",
            "Ελλάδα 2026",
            "10 m² at 20°",
            "“quoted” – it’s fine…",
            "emoji 😀",
            "œuvre",
        ] {
            assert_eq!(confusable_warnings(fine), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn mixed_scripts_are_flagged() {
        assert_eq!(
            confusable_warnings("p\u{430}ypal"),
            ["MIXED SCRIPTS: \u{430} U+0430 Cyrillic"]
        );
        // The script with fewer letters is the odd one.
        assert_eq!(
            confusable_warnings("\u{418}\u{432}\u{430}\u{43d}\u{43e}va"),
            ["MIXED SCRIPTS: a U+0061 Latin, v U+0076 Latin"]
        );
        for (text, mixed) in [
            ("admin \u{3bf}", "U+03BF Greek"),
            ("\u{ff41}dmin", "U+FF41 Latin"),
            ("web\u{ff0e}example", "U+FF0E not ASCII"),
            ("\u{1d41a}dmin", "U+1D41A not ASCII"),
            ("adm\u{131}n", "U+0131 Latin"),
            ("a\u{2215}b", "U+2215 not ASCII"),
            ("room 1\u{661}", "U+0661"),
            ("host\u{967}", "U+0967"),
            ("\u{2460}", "U+2460 not ASCII"),
            ("o\u{fb00}ice", "U+FB00 Latin"),
            ("con\u{fb01}g", "U+FB01 Latin"),
            ("ward \u{2167}", "U+2167 Latin"),
            ("\u{13a0}dmin", "U+13A0 Cherokee"),
        ] {
            let found = confusable_warnings(text).join("\n");
            assert!(
                found.starts_with("MIXED SCRIPTS: ") && found.contains(mixed),
                "{text}: {found}"
            );
        }
        let many: String = ('\u{430}'..='\u{44a}').collect();
        let found = confusable_warnings(&format!("{}{many}", "x".repeat(40)));
        assert!(found.join("").ends_with("and 19 more"), "{found:?}");
    }

    #[test]
    fn latin_lookalike_is_flagged() {
        let found = confusable_warnings("\u{441}\u{43e}\u{440}");
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("LOOKS LIKE \"cop\" but is written in Cyrillic"),
            "{found:?}"
        );
    }

    #[test]
    fn confusable_flags_are_merged() {
        let word = |n: usize| "\u{441}\u{43e}\u{440}".repeat(n);
        let text: Vec<String> = (1..=200).map(word).chain([word(1), word(2)]).collect();
        let found = confusable_warnings(&text.join(" "));
        assert_eq!(found.len(), 1, "{found:?}");
        let start = "LOOKS LIKE \"cop\", \"copcop\", \"copcopcop\" and 197 more words but is";
        assert!(found[0].starts_with(start), "{found:?}");
        let long = confusable_warnings(&word(5_000));
        assert!(long[0].len() < 300, "{long:?}");
    }

    #[test]
    fn flags_are_capped() {
        let flags = |n: usize| (0..n).chain(0..n).map(|n| format!("flag {n}"));
        assert_eq!(cap_flags(flags(FLAGS_MAX)).len(), FLAGS_MAX);
        let many = cap_flags(flags(FLAGS_MAX + 40));
        assert_eq!(many.len(), FLAGS_MAX + 1);
        assert_eq!(many.last().map(String::as_str), Some("and 40 more"));
    }

    #[test]
    fn right_to_left_is_flagged() {
        let found = confusable_warnings("\u{5d0}\u{5d1}\u{5d2}");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("RIGHT TO LEFT"), "{found:?}");
    }
}
