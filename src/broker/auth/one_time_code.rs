//! One-time codes that people read from one screen and type into another.

use crate::model::Secret;

/// Characters of a code: five bits each, 100 in all.
const CHARS: usize = 20;
/// Characters between two hyphens.
const GROUP: usize = 5;
/// Crockford's base 32: no letter that is read as another.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A code of random bytes, as it is shown.
pub(in crate::broker) fn format(random: &[u8; 32]) -> Secret {
    let letters = random.iter().take(CHARS).map(|byte| {
        let letter = ALPHABET.get(usize::from(byte % 32)).copied();
        char::from(letter.unwrap_or(b'0'))
    });
    let mut shown = String::with_capacity(CHARS + CHARS / GROUP);
    for (at, letter) in letters.enumerate() {
        if at > 0 && at % GROUP == 0 {
            shown.push('-');
        }
        shown.push(letter);
    }
    Secret::new(shown)
}

/// A code as it is compared: people type it in any case, with or without hyphens, and O for 0, I or L for 1.
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
