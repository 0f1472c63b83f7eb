//! Parsers of command-line values: targets, parameters, durations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::CliError;
use super::files;
use crate::model::text::escape_invisible;
use crate::model::{Param, ParseError, Target, json, parse_duration};

/// One `--param` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedParam {
    name: String,
    value: ParamValue,
}

/// A value on the command line, or where it is read from: a command line is visible to all users of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ParamValue {
    Given(Param),
    Text(ValueSource),
    Json(ValueSource),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ValueSource {
    /// `@FILE`, or `@-` for stdin.
    File(PathBuf),
    /// `@env:VARIABLE`.
    Environment(String),
}

/// Parses `name=value`, where `true` and `false` are booleans, whole numbers are numbers and everything else is text; or
/// `name:=JSON`, for sets (arrays), records (objects), and texts that look like numbers. After `=@` or `:=@` a file, `-` for
/// stdin, or `env:VARIABLE`: its content is text, or JSON.
pub(super) fn param(text: &str) -> Result<NamedParam, ParseError> {
    let error = |rule: &str| ParseError::new("parameter", rule.to_owned());
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| error("must be name=value or name:=JSON"))?;
    let (name, is_json) = match name.strip_suffix(':') {
        Some(name) => (name, true),
        None => (name, false),
    };
    if name.is_empty() {
        return Err(error("must have a name before '='"));
    }
    let value = match (value.strip_prefix('@'), is_json) {
        (Some(""), _) => {
            return Err(error(
                "must have a file, - or env:VARIABLE after '@'; text that begins with @ is written name:='\"@…\"'",
            ));
        }
        (Some(source), true) => ParamValue::Json(ValueSource::parse(source)),
        (Some(source), false) => ParamValue::Text(ValueSource::parse(source)),
        (None, true) => ParamValue::Given(from_json(value)?),
        (None, false) => ParamValue::Given(plain(value)?),
    };
    Ok(NamedParam {
        name: name.to_owned(),
        value,
    })
}

fn from_json(text: &str) -> Result<Param, ParseError> {
    let value = json::parse(text.as_bytes())
        .map_err(|e| ParseError::new("parameter", format!("after ':=' must be JSON: {e}")))?;
    sorted(Param::from_json(&value)?)
}

impl ValueSource {
    fn parse(text: &str) -> Self {
        match text.strip_prefix("env:") {
            Some(variable) => Self::Environment(variable.to_owned()),
            None => Self::File(PathBuf::from(text)),
        }
    }

    /// The value, without one newline at its end.
    fn read(&self, name: &str) -> Result<String, CliError> {
        let mut text = match self {
            Self::File(path) => files::read_exact_text(path).map_err(|error| CliError {
                message: format!("parameter `{name}`: {}", error.message),
                next_step: Some(format!(
                    "after '@' stands a file; text that begins with @ is written --param '{name}:=\"@…\"'"
                )),
                ..error
            })?,
            Self::Environment(variable) => std::env::var(variable).map_err(|_| {
                CliError::usage(format!(
                    "parameter `{name}`: the environment variable {} is not set, or not text",
                    escape_invisible(variable)
                ))
            })?,
        };
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }
}

fn plain(text: &str) -> Result<Param, ParseError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_integer = !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    match text {
        "true" => Ok(Param::Bool(true)),
        "false" => Ok(Param::Bool(false)),
        _ if is_integer && text != "-0" => {
            let number = text
                .parse()
                .map_err(|_| ParseError::new("parameter", "numbers must be within ±(2^53-1)"))?;
            Ok(Param::Int(number))
        }
        _ => Ok(Param::Str(text.to_owned())),
    }
}

/// Sorts sets and removes duplicates, as the broker requires.
fn sorted(param: Param) -> Result<Param, ParseError> {
    Ok(match param {
        Param::Set(items) => Param::set(items.into_iter().map(sorted).collect::<Result<_, _>>()?)?,
        Param::Record(members) => Param::Record(
            members
                .into_iter()
                .map(|(k, v)| Ok((k, sorted(v)?)))
                .collect::<Result<_, ParseError>>()?,
        ),
        plain @ (Param::Str(_) | Param::Bool(_) | Param::Int(_)) => plain,
    })
}

/// The parameters by name, read from where they are; a repeated name is an error.
pub(super) fn params(given: Vec<NamedParam>) -> Result<BTreeMap<String, Param>, CliError> {
    let mut out = BTreeMap::new();
    for NamedParam { name, value } in given {
        if out.contains_key(&name) {
            return Err(CliError::usage(format!(
                "parameter `{}`: expected one value, got two",
                escape_invisible(&name)
            )));
        }
        let value = match value {
            ParamValue::Given(value) => value,
            ParamValue::Text(source) => Param::Str(source.read(&name)?),
            ParamValue::Json(source) => from_json(&source.read(&name)?)?,
        };
        out.insert(name, value);
    }
    Ok(out)
}

/// How a value of the type in a refusal's message is written: `parameter count: expected an integer, got text`.
pub(super) fn param_form(message: &str) -> Option<String> {
    let name = message.split('`').nth(1)?;
    let (_, expected) = message.split_once("expected ")?;
    let expected = expected.split(',').next()?;
    // A member of a record is written within it.
    let name = name.split('.').next()?;
    let value = match expected {
        "text" => format!(
            "{name}=TEXT, or '{name}:=\"5\"' for a text that looks like a number or true or false"
        ),
        "true or false" => format!("{name}=true"),
        "an integer" => format!("{name}=5"),
        "a set" => format!("'{name}:=[\"a\",\"b\"]'"),
        "a record" => format!("'{name}:={{\"member\":\"value\"}}'"),
        _ => return None,
    };
    Some(format!("write --param {value}"))
}

/// `Type::id`.
pub(super) fn target(text: &str) -> Result<Target, ParseError> {
    Target::parse_pair(text)
}

/// How long to wait for approvers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// For this many seconds.
    Seconds(u32),
    /// Until the access request expires.
    Deadline,
}

/// A duration, or `deadline`.
pub(super) fn wait(text: &str) -> Result<Wait, ParseError> {
    match text {
        "deadline" => Ok(Wait::Deadline),
        duration => seconds(duration).map(Wait::Seconds),
    }
}

/// `90s`, `15m`, `1h 30m`: whole seconds.
pub(super) fn seconds(text: &str) -> Result<u32, ParseError> {
    parse_duration("duration", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(text: &str) -> Param {
        let param = param(text).expect(text);
        let mut values = params(vec![param]).expect(text).into_values();
        values.next().expect("one value")
    }

    #[test]
    fn param_values_from_files() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("value");
        let given = |separator: &str| format!("a{separator}@{}", file.display());
        for (content, text) in [
            ("12\n", "12"),
            ("s3cr3t\r\n", "s3cr3t"),
            ("a\n\n", "a\n"),
            (" a ", " a "),
        ] {
            std::fs::write(&file, content).expect("written");
            assert_eq!(value_of(&given("=")), Param::Str(text.to_owned()));
        }
        std::fs::write(&file, "[2,1]\n").expect("written");
        let set = Param::Set(vec![Param::Int(1), Param::Int(2)]);
        assert_eq!(value_of(&given(":=")), set);
        assert_eq!(
            value_of("a=@env:CARGO_PKG_NAME"),
            Param::Str("dipylon".to_owned())
        );
        assert_eq!(value_of("a:=\"@x\""), Param::Str("@x".to_owned()));
        for bad in ["a=@/nowhere/x", "a=@env:DIPYLON_NO_SUCH", "a:=@/nowhere"] {
            let error = params(vec![param(bad).expect(bad)]).expect_err(bad);
            assert!(error.message.contains("parameter `a`"), "{}", error.message);
        }
        assert!(param("a=@").is_err());
    }

    #[test]
    fn param_form_by_expected_type() {
        for (message, form) in [
            (
                "invalid parameters: `n`: expected an integer, got text",
                "n=5",
            ),
            ("`on`: expected true or false, got text", "on=true"),
            ("`tags`: expected a set, got text", "'tags:=[\"a\",\"b\"]'"),
            ("`r.x.y`: expected a record", "'r:={\"member\":\"value\"}'"),
            ("`t` is missing: expected text", "t=TEXT"),
        ] {
            let text = param_form(message).expect(message);
            assert!(text.starts_with(&format!("write --param {form}")), "{text}");
        }
        assert_eq!(param_form("no such action"), None);
    }

    #[test]
    fn param_type_inference() {
        assert_eq!(value_of("a=true"), Param::Bool(true));
        assert_eq!(value_of("a=-12"), Param::Int(-12));
        assert_eq!(value_of("a=0"), Param::Int(0));
        for text in ["007", "1.5", "+1", "-0", "", "TRUE", "1e3", "a=b", "-"] {
            assert_eq!(
                value_of(&format!("a={text}")),
                Param::Str(text.to_owned()),
                "{text}"
            );
        }
        assert_eq!(value_of("a:=\"7\""), Param::Str("7".to_owned()));
        let set = Param::Set(vec![Param::Int(1), Param::Int(2)]);
        assert_eq!(value_of("a:=[2,1,2]"), set, "sorted, without duplicates");
        assert_eq!(
            value_of("a:={\"s\":[2,1]}"),
            Param::Record(BTreeMap::from([("s".to_owned(), set)]))
        );
        for bad in [
            "a",
            "=1",
            ":=1",
            "a:=",
            "a:=null",
            "a:=1.5",
            "a:={\"x\":1,\"x\":2}",
            "a=99999999999999999999",
        ] {
            assert!(param(bad).is_err(), "{bad}");
        }
        let twice = vec![param("a=1").expect("a"), param("a=2").expect("a")];
        assert!(params(twice).is_err());
    }
}
