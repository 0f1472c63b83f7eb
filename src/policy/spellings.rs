//! Ids that differ in their Unicode normalization form alone: people cannot tell them apart, but rules and requests compare
//! them byte by byte, so that a rule for one spelling would silently not apply to the other.

use std::collections::BTreeMap;

use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

/// The first spelling of each entity id of a bundle.
#[derive(Debug, Default)]
pub(super) struct Spellings {
    /// By type, and id in normalization form C (UAX #15).
    first: BTreeMap<(String, String), String>,
}

impl Spellings {
    /// Notes a spelling. An error names an earlier one of the same id, with the code points of both.
    pub(super) fn add(&mut self, kind: &str, id: &str) -> Result<(), String> {
        let normal = (kind.to_owned(), id.nfc().collect());
        let first = self.first.entry(normal).or_insert_with(|| id.to_owned());
        if first == id {
            return Ok(());
        }
        let (ours, theirs) = difference(id, first);
        Err(format!(
            "{kind}::\"{id}\" is spelled in two ways that look the same: here with {ours}, elsewhere in this bundle with \
             {theirs}; write one of them everywhere"
        ))
    }

    /// Notes every entity that a JSON value names (`{"type": …, "id": …}`), at any depth.
    pub(super) fn add_json(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::Object(members) => {
                let text = |name| members.get(name).and_then(Value::as_str);
                if let (Some(kind), Some(id)) = (text("type"), text("id")) {
                    self.add(kind, id)?;
                }
                members
                    .values()
                    .try_for_each(|member| self.add_json(member))
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.add_json(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }
}

/// The code points between the common start and the common end of two texts.
fn difference(left: &str, right: &str) -> (String, String) {
    let (left, right): (Vec<_>, Vec<_>) = (left.chars().collect(), right.chars().collect());
    let start = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let shorter = left.len().min(right.len()) - start;
    let ends = left.iter().rev().zip(right.iter().rev());
    let end = ends.take_while(|(a, b)| a == b).count().min(shorter);
    let codes = |text: &[char]| {
        let middle = text.get(start..text.len() - end).unwrap_or_default();
        let codes = middle.iter().map(|c| format!("U+{:04X}", u32::from(*c)));
        codes.collect::<Vec<_>>().join(" ")
    };
    (codes(&left), codes(&right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_id_are_found() {
        let mut spellings = Spellings::default();
        for id in [
            "ann",
            "jos\u{e9}",
            "jos\u{e9}",
            "\u{212b}ngstrom",
            "Jos\u{e9}",
        ] {
            assert_eq!(spellings.add("Account", id), Ok(()), "{id}");
        }
        assert_eq!(spellings.add("Case", "jose\u{301}"), Ok(()), "another type");
        for (id, codes) in [
            (
                "jose\u{301}",
                "here with U+0065 U+0301, elsewhere in this bundle with U+00E9;",
            ),
            (
                "\u{c5}ngstrom",
                "here with U+00C5, elsewhere in this bundle with U+212B;",
            ),
            (
                "A\u{30a}ngstrom",
                "here with U+0041 U+030A, elsewhere in this bundle with U+212B;",
            ),
        ] {
            let error = spellings.add("Account", id).expect_err(id);
            assert!(error.contains(codes), "{error}");
        }
    }
}
