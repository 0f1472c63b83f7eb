//! Workload identity: SPIFFE ids, trust domains and evidence.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::{Digest, KeyId, ParseError, Secret, Timestamp};

/// A SPIFFE trust domain name: 1 to 255 bytes of `[a-z0-9._-]` (SPIFFE-ID §2.1). Compared byte by byte, never normalised.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses the bare name, without `spiffe://`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let ok =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if (1..=255).contains(&text.len()) && text.bytes().all(ok) {
            Ok(Self(text.into()))
        } else {
            Err(ParseError::new(
                "trust domain",
                "must be 1 to 255 of a-z, 0-9, '.', '_' and '-'",
            ))
        }
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A SPIFFE ID of a workload: `spiffe://trust-domain/path`, at most 2,048 bytes, path not empty (SPIFFE-ID §2).
/// Refuses upper-case hosts, `%`, `?`, `#`, ports, empty or dot segments, and a trailing `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// Parses the ID; a parsed ID prints as the same bytes.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let wrong = |rule: &str| ParseError::new("SPIFFE ID", rule);
        if text.len() > 2_048 {
            return Err(wrong("must be at most 2048 bytes"));
        }
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or_else(|| wrong("must begin with spiffe://"))?;
        let (domain, path) = rest
            .split_once('/')
            .ok_or_else(|| wrong("must have a path"))?;
        TrustDomain::parse(domain)
            .map_err(|_| wrong("trust domain must be 1 to 255 of a-z, 0-9, '.', '_' and '-'"))?;
        for segment in path.split('/') {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            if segment.is_empty() || segment == "." || segment == ".." || !segment.bytes().all(ok) {
                return Err(wrong(
                    "path segments must be letters, digits, '.', '_' or '-', and not empty, '.' or '..'",
                ));
            }
        }
        Ok(Self(text.into()))
    }

    /// The ID as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same ID with the `Arc` that `intern` has for its text.
    #[must_use]
    pub fn interned(&self, intern: &mut dyn FnMut(&Arc<str>) -> Arc<str>) -> Self {
        Self(intern(&self.0))
    }

    /// The trust domain the ID belongs to.
    pub fn trust_domain(&self) -> TrustDomain {
        let rest = self.0.strip_prefix("spiffe://").unwrap_or_default();
        TrustDomain(rest.split('/').next().unwrap_or_default().into())
    }
}

macro_rules! text_word {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}
text_word!(TrustDomain);
text_word!(SpiffeId);

/// Evidence of identity that a workload presents at gate 1. A closed set; one file under `verify` for each kind.
#[derive(Debug, Clone)]
pub enum Evidence {
    /// A SPIFFE JWT-SVID in JWS compact serialization.
    JwtSvid(Secret),
}

/// The kind of an [`Evidence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvidenceKind {
    /// `jwt-svid`
    #[serde(rename = "jwt-svid")]
    JwtSvid,
}

impl EvidenceKind {
    /// The name in rules and entries.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JwtSvid => "jwt-svid",
        }
    }
}

/// The journalled facts of verified evidence, with its hash, never the evidence itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceFacts {
    /// The kind of the evidence.
    pub kind: EvidenceKind,
    /// The subject it names.
    pub subject: SpiffeId,
    /// The key of the trust domain that verified it.
    pub kid: KeyId,
    /// SHA-256 of the evidence as presented.
    pub sha256: Digest,
    /// When its issuer issued it, as the evidence says; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
    /// When this broker verified it.
    pub verified_at: Timestamp,
    /// Its own expiry.
    pub expires_at: Timestamp,
}

impl EvidenceFacts {
    /// Its ages at a moment. Evidence that does not say when it was issued counts as issued in 1970, so that every bound on that age
    /// refuses it; an issuer's or a broker's clock that was ahead gives age 0.
    pub fn ages(&self, now: Timestamp) -> EvidenceAges {
        let issued_at = self.issued_at.unwrap_or(Timestamp::from_millis(0));
        EvidenceAges {
            issued_ms: now.since(issued_at).max(0),
            verified_ms: now.since(self.verified_at).max(0),
        }
    }
}

/// The two ages of evidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvidenceAges {
    /// Milliseconds since its issuer issued it.
    pub issued_ms: i64,
    /// Milliseconds since this broker last verified it.
    pub verified_ms: i64,
}

impl EvidenceAges {
    /// Evidence that was issued and verified at this moment.
    pub const ZERO: Self = Self {
        issued_ms: 0,
        verified_ms: 0,
    };

    /// Each age, or the other's where that is less.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            issued_ms: self.issued_ms.min(other.issued_ms),
            verified_ms: self.verified_ms.min(other.verified_ms),
        }
    }

    /// Each age, or the other's where that is greater.
    #[must_use]
    pub fn greatest(self, other: Self) -> Self {
        Self {
            issued_ms: self.issued_ms.max(other.issued_ms),
            verified_ms: self.verified_ms.max(other.verified_ms),
        }
    }

    /// Whether one of the ages is greater than the other's.
    pub const fn exceeds(self, other: Self) -> bool {
        self.issued_ms > other.issued_ms || self.verified_ms > other.verified_ms
    }
}
