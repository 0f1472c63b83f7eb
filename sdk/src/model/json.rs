//! Strict JSON: a parser that refuses ambiguous texts, and the canonical writer (RFC 8785).

use std::cmp::Ordering;
use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deepest nesting that the parser accepts.
pub const DEPTH_MAX: usize = 32;

/// Largest integer that every JSON parser represents exactly: 2^53 − 1 (RFC 8785 §3.2.2.3, RFC 7493 §2.2).
pub const INTEGER_MAX: i64 = 9_007_199_254_740_991;

/// Why a text was not parsed, or a value not written.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, a duplicate member, too deep, or trailing bytes.
    #[error("not acceptable JSON: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// A number that is not an integer within ±(2^53 − 1).
    #[error("a number is not an integer within ±(2^53-1)")]
    Number,
    /// The bytes are not the canonical form (RFC 8785) of what they say.
    #[error("it is not in its canonical form")]
    NotCanonical,
    /// An entry of another stored form than [`super::ENTRY_FORM`].
    #[error(
        "it has the stored form {0}, and this version reads form 2: the journal was written by another version of Dipylon"
    )]
    Form(u64),
}

/// Parses one JSON text. Refuses duplicate members, nesting deeper than [`DEPTH_MAX`], lone surrogates and trailing bytes.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Parses one JSON text strictly into a type.
pub fn parse_as<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    Ok(serde_json::from_value(parse(bytes)?)?)
}

struct Strict {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let depth = deeper(self.depth)?;
        let mut out = Vec::new();
        while let Some(v) = seq.next_element_seed(Strict { depth })? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let depth = deeper(self.depth)?;
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict { depth })?;
            if out.insert(key, value).is_some() {
                return Err(serde::de::Error::custom("duplicate member"));
            }
        }
        Ok(Value::Object(out))
    }
}

fn deeper<E: serde::de::Error>(depth: usize) -> Result<usize, E> {
    if depth >= DEPTH_MAX {
        Err(E::custom("nested too deep"))
    } else {
        Ok(depth + 1)
    }
}

/// The canonical form (RFC 8785) of a value whose numbers are integers within ±(2^53 − 1).
pub fn canonical(value: &Value) -> Result<String, JsonError> {
    let mut out = String::new();
    write_value(value, &mut out)?;
    Ok(out)
}

/// The canonical form of a serializable value.
pub fn canonical_of<T: serde::Serialize>(value: &T) -> Result<String, JsonError> {
    canonical(&serde_json::to_value(value)?)
}

fn write_value(value: &Value, out: &mut String) -> Result<(), JsonError> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(n) => {
            let n = n
                .as_i64()
                .filter(|n| (-INTEGER_MAX..=INTEGER_MAX).contains(n))
                .ok_or(JsonError::Number)?;
            // Writing to a String cannot fail.
            let _written = write!(out, "{n}");
        }
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(item, out)?;
            }
            out.push(']');
        }
        Value::Object(members) => {
            // RFC 8785 §3.2.3: members sorted by their names as arrays of UTF-16 code units.
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by(|(a, _), (b, _)| by_code_units(a, b));
            out.push('{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_string(name, out);
                out.push(':');
                write_value(member, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// ASCII bytes sort like their UTF-16 code units; other text does not always, because of surrogates.
fn by_code_units(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() {
        a.cmp(b)
    } else {
        a.encode_utf16().cmp(b.encode_utf16())
    }
}

/// RFC 8785 §3.2.2.2: the two-character escapes where JSON has them, `\u00xx` for other controls, all else verbatim.
fn write_string(s: &str, out: &mut String) {
    out.push('"');
    if !s.bytes().any(|b| b < b' ' || matches!(b, b'"' | b'\\')) {
        out.push_str(s);
        out.push('"');
        return;
    }
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => {
                let _written = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_json_is_rejected() {
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            "1 2",
            "",
            r#""\ud800""#,
            "{\"a\":1}x",
            "nul",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = format!("{}{}", "[".repeat(DEPTH_MAX + 1), "]".repeat(DEPTH_MAX + 1));
        assert!(parse(deep.as_bytes()).is_err());
        let ok = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(parse(ok.as_bytes()).is_ok());
    }

    #[test]
    fn escapes_match_serde_json() {
        for c in (0..0x80)
            .filter_map(char::from_u32)
            .chain(['é', '\u{2028}', '王', '𝄞'])
        {
            let text = format!("a{c}b");
            // RFC 8785 §3.2.2.2 escapes as ECMAScript does, and so does serde_json.
            let expected = serde_json::to_string(&text).expect("text");
            assert_eq!(
                canonical(&Value::String(text)).expect("text"),
                expected,
                "{c:?}"
            );
        }
    }

    #[test]
    fn integers_beyond_2_53_are_rejected() {
        let write = |text: &str| canonical(&parse(text.as_bytes()).expect("readable"));
        assert_eq!(
            write("[9007199254740991,-9007199254740991]").expect("in range"),
            "[9007199254740991,-9007199254740991]"
        );
        for bad in [
            "1.5",
            "9007199254740992",
            "-9007199254740992",
            "1e3",
            "18446744073709551615",
        ] {
            assert!(write(bad).is_err(), "{bad}");
        }
    }
}
