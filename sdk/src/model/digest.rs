//! SHA-256 digests with domain tags, and key thumbprints.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ParseError;

/// A SHA-256 value, written as base64url without padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// SHA-256 of the bytes.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::sha256_parts(&[bytes])
    }

    /// SHA-256 of the concatenated parts. Callers must separate or tag them so that no two lists concatenate to the same bytes.
    pub fn sha256_parts(parts: &[&[u8]]) -> Self {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        for part in parts {
            hash.update(part);
        }
        let mut out = [0; 32];
        out.copy_from_slice(hash.finish().as_ref());
        Self(out)
    }

    /// SHA-256(tag ‖ 0x00 ‖ bytes): one domain tag for each use, so that no digest can be used for another purpose.
    pub fn tagged(tag: &str, bytes: &[u8]) -> Self {
        Self::sha256_parts(&[tag.as_bytes(), &[0], bytes])
    }

    /// From the bytes of a digest computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the base64url form. Refuses padding, other alphabets and non-canonical trailing bits.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| ParseError::new("digest", "must be base64url without padding"))?;
        <[u8; 32]>::try_from(bytes.as_slice())
            .map(Self)
            .map_err(|_| ParseError::new("digest", "must be 32 bytes"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base64::<43>("", &self.0, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The first characters of a digest as it is written, at least [`DigestPrefix::CHARS_MIN`]: how people name one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestPrefix(String);

impl DigestPrefix {
    /// Fewest characters.
    pub const CHARS_MIN: usize = 8;
    /// All characters of a digest.
    const CHARS: usize = 43;

    /// Reads the first 8 to 43 characters of a digest's base64url form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let is_base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(Self::CHARS_MIN..=Self::CHARS).contains(&text.len()) || !text.bytes().all(is_base64url)
        {
            return Err(ParseError::new(
                "digest",
                format!(
                    "expected its first {} to {} characters, of letters, digits, `-` and `_`",
                    Self::CHARS_MIN,
                    Self::CHARS
                ),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the digest begins with it.
    pub fn matches(&self, digest: &Digest) -> bool {
        digest.to_string().starts_with(&self.0)
    }
}

impl From<Digest> for DigestPrefix {
    fn from(digest: Digest) -> Self {
        Self(digest.to_string())
    }
}

impl fmt::Display for DigestPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes a prefix and bytes as base64url, `LENGTH` characters in all, without an allocation: ids are written many times in
/// each call.
pub(super) fn write_base64<const LENGTH: usize>(
    prefix: &str,
    bytes: &[u8],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let mut text = [0; LENGTH];
    let (head, rest) = text.split_at_mut_checked(prefix.len()).ok_or(fmt::Error)?;
    head.copy_from_slice(prefix.as_bytes());
    let written = URL_SAFE_NO_PAD
        .encode_slice(bytes, rest)
        .map_err(|_| fmt::Error)?;
    debug_assert_eq!(written, rest.len(), "LENGTH fits");
    f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
}

/// A JWK thumbprint (RFC 7638, SHA-256): the name of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Thumbprint(pub Digest);

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one holder of a private key can sign as: compared where a key may be somebody's once. The same for each key that the holder
/// has with it: P-256 by x and Ed25519 by y, because who has the private key of a point has that of its negative; RSA by the modulus.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyIdentity(pub Digest);

impl fmt::Display for KeyIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for KeyIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_prefix_has_eight_characters_at_least() {
        let digest = Digest::sha256(b"a");
        let whole = digest.to_string();
        for length in 0..=whole.len() {
            let prefix = DigestPrefix::parse(&whole[..length]);
            assert_eq!(
                prefix.is_ok(),
                length >= DigestPrefix::CHARS_MIN,
                "{length}"
            );
            assert!(prefix.is_err() || prefix.is_ok_and(|prefix| prefix.matches(&digest)));
        }
        for wrong in [
            "sha256:abcdefgh",
            "abcdefg=",
            "abcdefg ",
            &format!("{whole}A"),
        ] {
            assert!(DigestPrefix::parse(wrong).is_err(), "{wrong}");
        }
        let other = DigestPrefix::from(Digest::sha256(b"b"));
        assert!(!other.matches(&digest) && DigestPrefix::from(digest).matches(&digest));
    }
}
