//! Parameters in a few words, for a row of the inbox: every name, the beginning of every value, and digests of what is cut.

use super::escape::{cut_shown, quoted};
use super::view::Extent;
use crate::model::text::{counted, cut};
use crate::model::{Action, Digest, Param, json};

/// Most characters of the parameters of one row.
pub const COMPACT_CHARS_MAX: usize = 1_000;
/// Fewest characters of a value that are shown.
const VALUE_CHARS_MIN: usize = 16;
/// Most characters of a value that are shown.
const VALUE_CHARS_MAX: usize = 60;
/// Characters that say how much of a value is cut, at most.
const CUT_CHARS: usize = 64;
/// Hexadecimal digits of a digest in a row; the card has them all.
const DIGITS: usize = 32;

/// The parameters of an action by name, safe to print: `"text"`, `true`, `5`, `[1, 2]` for a set and `{name: 1}` for a record. A
/// long value is cut, and ends with its length and its SHA-256: `"beginn<+ of 4096 characters, SHA-256 2cf24dba5fb0a30e>`.
/// Where there are too many parameters, the last name is empty and its value counts those left out. The many share
/// [`COMPACT_CHARS_MAX`], so that the last one is seen as well as the first.
pub fn compact_parameters(action: &Action) -> Vec<(String, String)> {
    let count = action.parameters.len().max(1);
    let names: usize = action.parameters.keys().map(String::len).sum();
    let share = COMPACT_CHARS_MAX.saturating_sub(names) / count;
    let chars_max = share
        .saturating_sub(CUT_CHARS)
        .clamp(VALUE_CHARS_MIN, VALUE_CHARS_MAX);
    let mut left = COMPACT_CHARS_MAX;
    let mut shown = Vec::new();
    for (name, param) in &action.parameters {
        let value = cut_value(param, chars_max);
        let cost = name.len() + value.chars().count();
        if cost > left && !shown.is_empty() {
            let more = action.parameters.len() - shown.len();
            let digest = action.digest();
            shown.push((
                String::new(),
                format!("<+{more} parameters, action digest {digest}>"),
            ));
            break;
        }
        left = left.saturating_sub(cost);
        shown.push((name.clone(), value));
    }
    shown
}

fn cut_value(param: &Param, chars_max: usize) -> String {
    let text = in_line(param);
    let (head, more) = cut_shown(&text, chars_max);
    if more == 0 {
        return text;
    }
    let Extent { length, digest } = Extent::of(param);
    let (digest, _) = cut(&digest, DIGITS);
    format!("{head}<+ of {length}, SHA-256 {digest}>")
}

/// The value in one line: different values have different lines.
pub(super) fn in_line(param: &Param) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match param {
        Param::Str(text) => quoted(text),
        Param::Bool(yes) => yes.to_string(),
        Param::Int(n) => n.to_string(),
        Param::Set(items) => format!("[{}]", joined(items.iter().map(in_line).collect())),
        Param::Record(members) => {
            let member = |(name, param): (&String, &Param)| format!("{name}: {}", in_line(param));
            format!("{{{}}}", joined(members.iter().map(member).collect()))
        }
    }
}

impl Extent {
    pub(super) fn of(param: &Param) -> Self {
        let (length, digest) = match param {
            Param::Str(text) => {
                let in_lines = match text.split('\n').count() {
                    1 => String::new(),
                    lines => format!(" in {lines} lines"),
                };
                let length = counted(text.chars().count(), "character");
                (
                    format!("{length}{in_lines}"),
                    Digest::sha256(text.as_bytes()),
                )
            }
            Param::Bool(_) | Param::Int(_) => (counted(1, "value"), json_digest(param)),
            Param::Set(items) => (counted(items.len(), "value"), json_digest(param)),
            Param::Record(members) => (counted(members.len(), "part"), json_digest(param)),
        };
        let digest = digest.as_bytes();
        Self {
            length,
            digest: digest.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}

/// SHA-256 of the canonical JSON. Its numbers are bounded, so the form exists.
fn json_digest(param: &Param) -> Digest {
    let form = json::canonical(&param.to_json()).unwrap_or_default();
    Digest::sha256(form.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::sample::action_with;
    use super::*;

    #[test]
    fn long_values_are_cut_and_told_apart() {
        let long = |end: &str| action_with(&[("note", Param::Str("a".repeat(4_000) + end))]);
        let [one, other] = ["1", "2"].map(|end| compact_parameters(&long(end)));
        assert_ne!(one, other);
        let (_, value) = one.first().expect("a parameter");
        assert!(value.chars().count() < 140, "{value}");
        assert!(value.contains("<+ of 4001 characters, SHA-256 "), "{value}");
        let typed = action_with(&[("note", Param::Str(value.clone()))]);
        assert_ne!(compact_parameters(&typed), one, "a value has no such end");
    }

    #[test]
    fn the_last_of_many_is_seen() {
        let names: Vec<String> = (1..=9).map(|n| format!("parameter_{n}")).collect();
        let mut parameters: Vec<(&str, Param)> = names
            .iter()
            .map(|name| (name.as_str(), Param::Str("x".repeat(4_000))))
            .collect();
        parameters.push(("role", Param::Str("superuser".to_owned())));
        let shown = compact_parameters(&action_with(&parameters));
        assert!(
            shown.contains(&("role".to_owned(), "\"superuser\"".to_owned())),
            "{shown:?}"
        );
        assert_eq!(shown.len(), 10);
    }

    #[test]
    fn many_parameters_are_counted() {
        let names: Vec<String> = (0..120).map(|n| format!("p{n}")).collect();
        let parameters: Vec<(&str, Param)> = names
            .iter()
            .map(|name| (name.as_str(), Param::Str("y".repeat(15))))
            .collect();
        let shown = compact_parameters(&action_with(&parameters));
        let (name, rest) = shown.last().expect("a rest");
        assert!(
            name.is_empty() && rest.contains(" parameters, action digest "),
            "{rest}"
        );
        let chars: usize = shown
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        assert!(chars < 2 * COMPACT_CHARS_MAX, "{chars}");
    }

    #[test]
    fn types_are_told_apart() {
        let set = Param::Set(Vec::new());
        let record = Param::Record([].into());
        let one = Param::Set(vec![Param::Int(1)]);
        let values = [
            Param::Str("true".to_owned()),
            Param::Bool(true),
            Param::Int(1),
            Param::Str("1".to_owned()),
            Param::Str(String::new()),
            Param::Str("[]".to_owned()),
            set,
            record,
            one,
        ];
        let shown: std::collections::BTreeSet<String> = values.iter().map(in_line).collect();
        assert_eq!(shown.len(), values.len());
    }
}
