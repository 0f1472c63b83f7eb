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

    /// A required NumericDate (RFC 7519 §2): seconds since 1970, 0 to 2^53 − 1, with or without a fraction, rounded down to
    /// whole seconds. So `exp` is never later than it says; `iat` and `nbf` are less than a second earlier.
    pub fn seconds(&self, name: &'static str) -> Result<i64, ClaimError> {
        self.optional_seconds(name)?.ok_or(missing(name))
    }

    /// A NumericDate as [`Claims::seconds`] reads it, if the claim is there at all.
    pub fn optional_seconds(&self, name: &'static str) -> Result<Option<i64>, ClaimError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => whole_seconds(value).map(Some).ok_or(ClaimError {
                name,
                rule: "must be seconds since 1970, a number from 0 to 2^53-1",
            }),
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

/// A NumericDate, rounded down. A double is exact to a quarter of a microsecond for the dates of this century, so a fraction
/// that it rounds up to the next second is one that no clock of milliseconds can tell from it.
fn whole_seconds(value: &Value) -> Option<i64> {
    let seconds = match value.as_i64() {
        Some(whole) => whole,
        // Not an integer: beyond the range of one, written with a fraction or an exponent, or not a number at all.
        None if value.is_f64() => rounded_down(value.as_f64()?)?,
        None => return None,
    };
    (0..=INTEGER_MAX).contains(&seconds).then_some(seconds)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the bounds are exact doubles, and a floored double between them is exactly an i64"
)]
fn rounded_down(seconds: f64) -> Option<i64> {
    // NaN is in no range; the sign of -0.0 is refused like every other.
    let in_range = (0.0..=INTEGER_MAX as f64).contains(&seconds) && seconds.is_sign_positive();
    in_range.then(|| seconds.floor() as i64)
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
            "\"1.5\"",
            "true",
            "null",
            "[1]",
            "{}",
            "-1",
            "-0.5",
            "-0.0",
            "-1e-300",
            "9007199254740992",
            "9007199254740992.0",
            "18446744073709551615",
            "18446744073709551616",
            "1e17",
            "1e308",
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
    fn a_date_with_a_fraction_is_rounded_down() {
        for (written, seconds) in [
            ("1.5", 1),
            ("1.0", 1),
            ("0.999", 0),
            ("1e3", 1_000),
            ("18e8", 1_800_000_000),
            ("1800000000.999999", 1_800_000_000),
            ("1800000000.000001", 1_800_000_000),
            ("1800000001.0", 1_800_000_001),
            ("4102444800.999", 4_102_444_800),
        ] {
            let claims = claims(&format!("{{\"exp\":{written}}}"));
            assert_eq!(claims.seconds("exp"), Ok(seconds), "{written}");
        }
        // No JSON text makes these, and a caller's map could not either: `serde_json` has no such numbers.
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(rounded_down(number), None, "{number}");
        }
        // An exponent that overflows does not parse at all.
        assert!(json::parse(b"{\"exp\":1e400}").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_date_is_later_than_it_says(seconds in 0_i64..=4_102_444_800, micros in 0_u32..1_000_000) {
            let claims = claims(&format!("{{\"exp\":{seconds}.{micros:06}}}"));
            proptest::prop_assert_eq!(claims.seconds("exp"), Ok(seconds));
        }
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
