//! The confirmation code of a passkey: what its person reads out to the one who confirms it.

use std::fmt;

use super::{ParseError, Thumbprint};

/// The first 60 bits of the thumbprint of a passkey's key, as twelve characters of Crockford's base 32 in three groups. Shown to the
/// person who enrolled the passkey; the person who confirms it enters what they hear. It is no secret: it only tells the passkey
/// that the person made from one that another made in their name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfirmationCode([u8; CHARS]);

/// Characters of a code, five bits each.
const CHARS: usize = 12;
/// Characters between two hyphens.
const GROUP: usize = 4;
/// Crockford's base 32: no letters that look alike.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl ConfirmationCode {
    /// The code of a key.
    pub fn of(key: Thumbprint) -> Self {
        let bytes = key.0.as_bytes();
        let number = bytes
            .iter()
            .take(8)
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let mut chars = [b'0'; CHARS];
        let mut rest = number >> 4;
        for place in chars.iter_mut().rev() {
            let digit = usize::try_from(rest & 31).unwrap_or_default();
            *place = ALPHABET.get(digit).copied().unwrap_or(b'0');
            rest >>= 5;
        }
        Self(chars)
    }

    /// Reads a code as people write it: any case, with or without hyphens and spaces, O for 0, I or L for 1.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let wrong = || {
            ParseError::new(
                "code",
                "expected 12 letters and digits, like 7Q2M-KX4T-9HBC",
            )
        };
        let mut chars = [b'0'; CHARS];
        let mut places = chars.iter_mut();
        for letter in text.chars().filter(|c| *c != '-' && *c != ' ') {
            let letter = match letter.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let byte = u8::try_from(letter).map_err(|_| wrong())?;
            if !ALPHABET.contains(&byte) {
                return Err(wrong());
            }
            *places.next().ok_or_else(wrong)? = byte;
        }
        match places.next() {
            Some(_) => Err(wrong()),
            None => Ok(Self(chars)),
        }
    }
}

impl fmt::Display for ConfirmationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if at > 0 && at % GROUP == 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(*byte))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ConfirmationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    #[test]
    fn code_is_read_as_people_write_it() {
        let key = Thumbprint(Digest::sha256(b"a key"));
        let code = ConfirmationCode::of(key);
        let text = code.to_string();
        assert_eq!(text.len(), CHARS + 2, "{text}");
        for written in [
            text.clone(),
            text.to_lowercase(),
            text.replace('-', " "),
            text.replace('-', "").replace('0', "o").replace('1', "l"),
        ] {
            assert_eq!(ConfirmationCode::parse(&written), Ok(code), "{written}");
        }
        for wrong in [
            "",
            "7Q2M",
            "7Q2M-KX4T-9HBU",
            "7Q2M-KX4T-9HBC-0",
            "7Q2M-KX4T-9HBé",
            &key.to_string(),
        ] {
            assert!(ConfirmationCode::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn code_has_the_first_sixty_bits() {
        let of = |bytes: [u8; 32]| {
            ConfirmationCode::of(Thumbprint(Digest::from_bytes(bytes))).to_string()
        };
        let mut bytes = [0; 32];
        assert_eq!(of(bytes), "0000-0000-0000");
        bytes[7] = 0x0F;
        assert_eq!(of(bytes), "0000-0000-0000");
        bytes[7] = 0x10;
        assert_eq!(of(bytes), "0000-0000-0001");
        bytes[0] = 0x80;
        assert_eq!(of(bytes), "G000-0000-0001");
    }
}
