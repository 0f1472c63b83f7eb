//! Parsers of command-line values: targets, parameters, durations.

use std::collections::BTreeMap;

use crate::model::{Param, ParseError, Target, json, parse_duration};

/// One `--param` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedParam {
    name: String,
    value: Param,
}

/// Parses `name=value`, where `true` and `false` are booleans, whole numbers are numbers and everything else is text; or
/// `name:=JSON`, for sets (arrays), records (objects), and texts that look like numbers.
pub(super) fn param(text: &str) -> Result<NamedParam, ParseError> {
    let error = |rule: &str| ParseError::new("parameter", rule.to_owned());
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| error("must be name=value or name:=JSON"))?;
    let (name, value) = match name.strip_suffix(':') {
        Some(name) => {
            let value = json::parse(value.as_bytes())
                .map_err(|e| error(&format!("after ':=' must be JSON: {e}")))?;
            (name, sorted(Param::from_json(&value)?)?)
        }
        None => (name, plain(value)?),
    };
    if name.is_empty() {
        return Err(error("must have a name before '='"));
    }
    Ok(NamedParam {
        name: name.to_owned(),
        value,
    })
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

/// The parameters by name; a repeated name is an error.
pub(super) fn params(given: Vec<NamedParam>) -> Result<BTreeMap<String, Param>, ParseError> {
    let mut out = BTreeMap::new();
    for NamedParam { name, value } in given {
        if out.insert(name, value).is_some() {
            return Err(ParseError::new(
                "parameter",
                "each name must be given only once",
            ));
        }
    }
    Ok(out)
}

/// `Type::id`.
pub(super) fn target(text: &str) -> Result<Target, ParseError> {
    Target::parse_pair(text)
}

/// `90s`, `15m`, `2h`: whole seconds.
pub(super) fn seconds(text: &str) -> Result<u32, ParseError> {
    parse_duration("duration", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(text: &str) -> Param {
        param(text).expect(text).value
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
