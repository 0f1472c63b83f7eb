//! Ids that differ in their Unicode normalization form alone, and registered names that differ in letter case alone: people
//! cannot tell them apart, but rules and requests compare them byte by byte, so that a rule for one spelling would silently not
//! apply to the other.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

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

/// Registered names of one kind, with the place of each. Names are ASCII, so that letter case is all that may differ unseen.
#[derive(Debug, Default)]
pub(super) struct RegisteredNames {
    /// By the name in lower case.
    first: BTreeMap<String, RegisteredName>,
}

/// A name as it is first written, and the line of its table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RegisteredName {
    text: String,
    line: Option<usize>,
}

/// An earlier name that is the same, or that only letter case tells apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NameClash {
    /// The same name, at this place.
    Same(String),
    /// Another spelling; the text says what to do.
    LetterCase(String),
}

impl RegisteredNames {
    /// Notes a name. An error names an earlier one that is the same in lower case.
    pub(super) fn add(&mut self, name: &str, line: Option<usize>) -> Result<(), NameClash> {
        let first = match self.first.entry(name.to_ascii_lowercase()) {
            Entry::Vacant(free) => {
                let text = name.to_owned();
                free.insert(RegisteredName { text, line });
                return Ok(());
            }
            Entry::Occupied(first) => first.into_mut(),
        };
        Err(if first.text == name {
            NameClash::Same(first.place())
        } else {
            NameClash::LetterCase(format!(
                "\"{name}\" differs from \"{}\"{} in letter case alone; people cannot tell them apart: rename one of them, or write \
                 the same name everywhere",
                first.text,
                first.place()
            ))
        })
    }

    /// Notes a name that may be written many times, in one spelling. The error says what to do.
    pub(super) fn add_use(&mut self, name: &str, line: Option<usize>) -> Result<(), String> {
        match self.add(name, line) {
            Ok(()) | Err(NameClash::Same(_)) => Ok(()),
            Err(NameClash::LetterCase(message)) => Err(message),
        }
    }
}

impl RegisteredName {
    fn place(&self) -> String {
        self.line
            .map_or_else(String::new, |line| format!(" of line {line}"))
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
    fn names_that_letter_case_tells_apart_are_found() {
        let mut names = RegisteredNames::default();
        for (line, name) in [(1, "maria"), (2, "mari"), (3, "maria-2"), (4, "ma.ria")] {
            assert_eq!(names.add(name, Some(line)), Ok(()), "{name}");
            assert_eq!(names.add_use(name, Some(9)), Ok(()), "{name}");
            let same = NameClash::Same(format!(" of line {line}"));
            assert_eq!(names.add(name, Some(9)), Err(same), "{name}");
        }
        for name in ["Maria", "MARIA", "mariA"] {
            let error = names.add_use(name, Some(9)).expect_err(name);
            let expected = format!("\"{name}\" differs from \"maria\" of line 1 in letter case");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

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
