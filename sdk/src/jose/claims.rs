//! JWT claims, read strictly: a claim of the wrong JSON type is an error, never an absent one.

use serde_json::{Map, Value};

use crate::model::Digest;
use crate::model::json::INTEGER_MAX;

/// A claim that is missing or is not what its specification says. Names the claim, never its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("claim {name}: {rule}")]
pub struct ClaimError {
    /// The claim.
    pub name: &'static str,
    /// The rule it broke.
    pub rule: &'static str,
}

/// The claims of a JWT (RFC 7519 §4), without duplicates. Only a check of this module makes them.
#[derive(Clone, PartialEq, Eq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    pub(super) fn new(members: Map<String, Value>) -> Self {
        Self(members)
    }

    /// Every claim, unchecked.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The claims by value.
    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Whether there are no claims but these.
    pub fn only(&self, names: &[&str]) -> bool {
        self.0.keys().all(|name| names.contains(&name.as_str()))
    }

    /// A required string that is not empty.
    pub fn string(&self, name: &'static str) -> Result<&str, ClaimError> {
        self.optional_string(name)?.ok_or(missing(name))
    }

    /// A string that is not empty, if the claim is there at all; `null` is not absent.
    pub fn optional_string(&self, name: &'static str) -> Result<Option<&str>, ClaimError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(s)) if !s.is_empty() => Ok(Some(s)),
            Some(_) => Err(ClaimError {
                name,
                rule: "must be a string and not empty",
            }),
        }
    }

    /// A required NumericDate: whole seconds since 1970, 0 to 2^53 − 1, written as a JSON integer.
    /// RFC 7519 §2 also allows fractions; no token here needs them, and parsers round them differently.
    pub fn seconds(&self, name: &'static str) -> Result<i64, ClaimError> {
        self.optional_seconds(name)?.ok_or(missing(name))
    }

    /// A NumericDate as [`Claims::seconds`] reads it, if the claim is there at all.
    pub fn optional_seconds(&self, name: &'static str) -> Result<Option<i64>, ClaimError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(n) if (0..=INTEGER_MAX).contains(&n) => Ok(Some(n)),
                _ => Err(ClaimError {
                    name,
                    rule: "must be whole seconds, an integer from 0 to 2^53-1",
                }),
            },
        }
    }

    /// A required `aud` with exactly one audience: a string, or an array of one string (RFC 7519 §4.1.3).
    pub fn audience(&self) -> Result<&str, ClaimError> {
        const NAME: &str = "aud";
        let audience = match self.0.get(NAME).ok_or(missing(NAME))? {
            Value::Array(items) => match items.as_slice() {
                [Value::String(s)] => Some(s),
                _ => None,
            },
            Value::String(s) => Some(s),
            _ => None,
        };
        audience
            .map(String::as_str)
            .filter(|s| !s.is_empty())
            .ok_or(ClaimError {
                name: NAME,
                rule: "must be one audience, a string or an array of one string",
            })
    }

    /// A SHA-256 value as base64url, if the claim is there at all.
    pub fn optional_digest(&self, name: &'static str) -> Result<Option<Digest>, ClaimError> {
        match self.optional_string(name)? {
            None => Ok(None),
            Some(text) => Digest::parse(text).map(Some).map_err(|_| ClaimError {
                name,
                rule: "must be 32 bytes as base64url without padding",
            }),
        }
    }
}

/// Claims may name people and places: only how many there are is printed.
impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claims({})", self.0.len())
    }
}

fn missing(name: &'static str) -> ClaimError {
    ClaimError {
        name,
        rule: "is missing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::json;

    fn claims(text: &str) -> Claims {
        match json::parse(text.as_bytes()).expect("json") {
            Value::Object(map) => Claims::new(map),
            _ => panic!("an object"),
        }
    }

    #[test]
    fn a_date_of_the_wrong_type_is_an_error_not_absence() {
        for bad in [
            "\"1\"",
            "1.5",
            "1.0",
            "1e3",
            "true",
            "null",
            "[1]",
            "{}",
            "-1",
            "9007199254740992",
            "18446744073709551615",
        ] {
            let claims = claims(&format!("{{\"exp\":{bad}}}"));
            assert!(claims.seconds("exp").is_err(), "{bad}");
            assert!(claims.optional_seconds("exp").is_err(), "{bad}");
        }
        assert_eq!(
            claims("{\"exp\":9007199254740991}").seconds("exp"),
            Ok(INTEGER_MAX)
        );
        assert_eq!(claims("{\"exp\":0}").seconds("exp"), Ok(0));
        assert_eq!(claims("{}").optional_seconds("exp"), Ok(None));
        assert_eq!(claims("{}").seconds("exp"), Err(missing("exp")));
    }

    #[test]
    fn one_audience() {
        assert_eq!(claims(r#"{"aud":"a"}"#).audience(), Ok("a"));
        assert_eq!(claims(r#"{"aud":["a"]}"#).audience(), Ok("a"));
        for bad in [
            "{}",
            r#"{"aud":[]}"#,
            r#"{"aud":["a","b"]}"#,
            r#"{"aud":["a","a"]}"#,
            r#"{"aud":""}"#,
            r#"{"aud":[""]}"#,
        ] {
            assert!(claims(bad).audience().is_err(), "{bad}");
        }
        for bad in [
            r#"{"aud":null}"#,
            r#"{"aud":1}"#,
            r#"{"aud":{"a":1}}"#,
            r#"{"aud":[["a"]]}"#,
            r#"{"aud":[1]}"#,
        ] {
            assert!(claims(bad).audience().is_err(), "{bad}");
        }
    }

    #[test]
    fn strings_and_digests() {
        for bad in [
            r#"{"sub":null}"#,
            r#"{"sub":""}"#,
            r#"{"sub":1}"#,
            r#"{"sub":["a"]}"#,
        ] {
            assert!(claims(bad).optional_string("sub").is_err(), "{bad}");
        }
        let digest = Digest::sha256(b"x");
        let good = claims(&format!("{{\"ath\":\"{digest}\"}}"));
        assert_eq!(good.optional_digest("ath"), Ok(Some(digest)));
        assert!(
            claims(&format!("{{\"ath\":\"{digest}=\"}}"))
                .optional_digest("ath")
                .is_err()
        );
        assert!(good.only(&["ath", "iat"]) && !good.only(&["iat"]));
    }
}
