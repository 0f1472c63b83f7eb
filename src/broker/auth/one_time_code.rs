//! One-time codes: formatting for display and normalization for comparison.

use crate::model::Secret;

/// Characters of a code: five bits each, 100 in all.
const CHARS: usize = 20;
/// Characters between two hyphens.
const GROUP: usize = 5;
/// Crockford's base 32: no letters that look alike.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Formats random bytes as a code for display.
pub(in crate::broker) fn format(random: &[u8; 32]) -> Secret {
    let letters = random.iter().take(CHARS).map(|byte| {
        let letter = ALPHABET.get(usize::from(byte % 32)).copied();
        char::from(letter.unwrap_or(b'0'))
    });
    let mut text = String::with_capacity(CHARS + CHARS / GROUP);
    for (at, letter) in letters.enumerate() {
        if at > 0 && at % GROUP == 0 {
            text.push('-');
        }
        text.push(letter);
    }
    Secret::new(text)
}

/// Normalizes a typed code for comparison: any case, with or without hyphens, O for 0, I or L for 1.
pub(in crate::broker) fn normalize(code: &Secret) -> Secret {
    let letters = code
        .expose_secret()
        .chars()
        .filter(|c| *c != '-' && *c != ' ');
    let letters = letters.map(|c| match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    });
    Secret::new(letters.collect())
}
