//! A TOML document with spans: every key with its line, checked against the table of known keys.

use std::fmt;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use crate::model::ParseError;
use crate::model::text::{escape_invisible_capped, nearest_word};

/// A problem of a configuration file, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// From 1; `None` for a missing key of the top level.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(line) = self.line {
            write!(f, " at line {line}")?;
        }
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// A key that a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KnownKey {
    /// Names joined by dots; `*` stands for the number of an array's element.
    pub(super) path: &'static str,
    /// Whether its table must have it.
    pub(super) required: bool,
}

/// A key that must be in its table.
pub(super) const fn required(path: &'static str) -> KnownKey {
    KnownKey {
        path,
        required: true,
    }
}

/// A key that may be left out.
pub(super) const fn optional(path: &'static str) -> KnownKey {
    KnownKey {
        path,
        required: false,
    }
}

/// A key of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeySpan {
    /// The names of its tables and its own; an element of an array by its number, from 0.
    pub(super) path: Vec<String>,
    /// From 1.
    pub(super) line: usize,
    /// Whether its value is neither a table nor an array of tables.
    pub(super) leaf: bool,
    /// What its value seems to be, where that must not stand in a configuration.
    secret: Option<&'static str>,
}

/// A parsed document.
#[derive(Debug, Clone)]
pub(super) struct Document<'a> {
    text: &'a str,
    table: Spanned<DeTable<'a>>,
    known: &'static [KnownKey],
}

impl<'a> Document<'a> {
    /// Parses TOML, or returns every error of its syntax.
    pub(super) fn parse(
        text: &'a str,
        known: &'static [KnownKey],
    ) -> Result<Self, Vec<ConfigProblem>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self { text, table, known });
        }
        let problems = errors.iter().map(|error| toml_problem(text, error));
        Err(in_order(problems.collect()))
    }

    /// Reads the document as `T`, or returns every secret, unknown key and missing key, and the first value of a wrong type.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Vec<ConfigProblem>> {
        let mut problems = self.missing_keys();
        let mut accepted = self.clone();
        for key in self.keys() {
            let problem = match key.secret {
                Some(what) => Some(secret_problem(&key, what)),
                None => self.unknown_key(&key),
            };
            if let Some(problem) = problem {
                problems.push(problem);
                accepted.remove(&key.path);
            }
        }
        // Without a required key serde fails: that key was reported as missing, or was removed as a secret.
        if accepted.missing_keys().is_empty() {
            match T::deserialize(Deserializer::from(accepted.table)) {
                Ok(whole) if problems.is_empty() => return Ok(whole),
                Ok(_) => {}
                Err(error) => problems.push(toml_problem(self.text, &error)),
            }
        }
        Err(in_order(problems))
    }

    /// Every key, in the order of the file.
    pub(super) fn keys(&self) -> Vec<KeySpan> {
        let mut found = Vec::new();
        for table in self.tables() {
            for (key, value) in table.entries {
                let name: &str = key.get_ref();
                let mut path = table.path.clone();
                path.push(name.to_owned());
                let leaf = !holds_table(value.get_ref());
                let key_span = KeySpan {
                    path,
                    line: line_at(self.text, key.span().start),
                    leaf,
                    secret: secret(name, value.get_ref(), leaf),
                };
                found.push((key.span().start, key_span));
            }
        }
        found.sort_by_key(|(start, _)| *start);
        found.into_iter().map(|(_, key)| key).collect()
    }

    /// The key that a value's error is about.
    pub(super) fn locate(&self, error: &ParseError) -> Option<KeySpan> {
        self.keys().into_iter().find(|key| {
            let last = key.path.last().is_some_and(|last| last == error.field);
            key.leaf && (last || key.path.join(".") == error.field)
        })
    }

    /// Takes a key and its value out.
    pub(super) fn remove(&mut self, path: &[String]) {
        remove(self.table.get_mut(), path);
    }

    fn unknown_key(&self, key: &KeySpan) -> Option<ConfigProblem> {
        let (name, above) = key.path.split_last()?;
        // No names are known below an unknown key, which is reported itself, or below a scalar key, whose type serde reports.
        let known = self.names_in(above);
        if known.is_empty() || known.contains(&name.as_str()) {
            return None;
        }
        let name = escape_invisible_capped(name, NAME_CHARS_MAX);
        let advice = match nearest_word(&name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        Some(ConfigProblem {
            line: Some(key.line),
            message: format!("unknown key `{name}`"),
            advice: Some(advice),
        })
    }

    fn missing_keys(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        for table in self.tables() {
            for known in self.known.iter().filter(|known| known.required) {
                let (above, name) = known.path.rsplit_once('.').unwrap_or(("", known.path));
                if matches(above, &table.path) && !table.entries.contains_key(name) {
                    problems.push(ConfigProblem {
                        line: table.line,
                        message: format!("missing key `{name}`"),
                        advice: None,
                    });
                }
            }
        }
        problems
    }

    /// The names a table may have, in the order of the table of known keys; none for what is no table.
    fn names_in(&self, table: &[String]) -> Vec<&'static str> {
        let mut names = Vec::new();
        for known in self.known {
            let mut parts = known.path.split('.');
            let within = table
                .iter()
                .all(|part| parts.next().is_some_and(|known| part_matches(known, part)));
            match parts.next() {
                Some(name) if within && name != "*" && !names.contains(&name) => names.push(name),
                Some(_) | None => {}
            }
        }
        names
    }

    /// Every table, the top level first.
    fn tables(&self) -> Vec<TableSpan<'_, 'a>> {
        let mut tables = vec![TableSpan {
            path: Vec::new(),
            line: None,
            entries: self.table.get_ref(),
        }];
        let mut next = 0;
        while let Some(table) = tables.get(next) {
            let mut inner = Vec::new();
            for (key, value) in table.entries {
                let mut path = table.path.clone();
                path.push(key.get_ref().to_string());
                match value.get_ref() {
                    DeValue::Table(entries) => inner.push(TableSpan {
                        path,
                        line: Some(line_at(self.text, key.span().start)),
                        entries,
                    }),
                    DeValue::Array(items) => {
                        for (n, item) in items.iter().enumerate() {
                            if let DeValue::Table(entries) = item.get_ref() {
                                let mut path = path.clone();
                                path.push(n.to_string());
                                inner.push(TableSpan {
                                    path,
                                    line: Some(line_at(self.text, item.span().start)),
                                    entries,
                                });
                            }
                        }
                    }
                    DeValue::String(_)
                    | DeValue::Integer(_)
                    | DeValue::Float(_)
                    | DeValue::Boolean(_)
                    | DeValue::Datetime(_) => {}
                }
            }
            tables.extend(inner);
            next += 1;
        }
        tables
    }
}

/// A table of a document.
struct TableSpan<'t, 'a> {
    path: Vec<String>,
    /// From 1; `None` for the top level.
    line: Option<usize>,
    entries: &'t DeTable<'a>,
}

/// Whether a known path, `*` standing for any number, is this one.
pub(super) fn matches(known: &str, path: &[String]) -> bool {
    let mut parts = known.split('.').filter(|part| !part.is_empty());
    path.iter()
        .all(|part| parts.next().is_some_and(|known| part_matches(known, part)))
        && parts.next().is_none()
}

fn part_matches(known: &str, part: &str) -> bool {
    known == part || (known == "*" && part.bytes().all(|b| b.is_ascii_digit()))
}

fn remove(table: &mut DeTable<'_>, path: &[String]) {
    match path {
        [] => {}
        [name] => {
            table.remove(name.as_str());
        }
        [name, rest @ ..] => match table.get_mut(name.as_str()).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => remove(inner, rest),
            Some(DeValue::Array(items)) => {
                let (n, rest) = match rest.split_first() {
                    Some((n, rest)) => (n.parse().unwrap_or(usize::MAX), rest),
                    None => return,
                };
                if let Some(DeValue::Table(inner)) = items.get_mut(n).map(Spanned::get_mut) {
                    remove(inner, rest);
                }
            }
            Some(
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_),
            )
            | None => {}
        },
    }
}

/// Whether a value is a table or an array with one.
fn holds_table(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(items) => items
            .iter()
            .any(|item| matches!(item.get_ref(), DeValue::Table(_))),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => false,
    }
}

/// What kind of secret a value is, by its content or by the last word of its name.
/// A private key is one wherever it stands; a table may have such a name.
fn secret(name: &str, value: &DeValue<'_>, leaf: bool) -> Option<&'static str> {
    let last = name.rsplit(['_', '-']).next().unwrap_or_default();
    if holds_private_key(value) {
        Some("a private key")
    } else if leaf
        && SECRET_WORDS
            .iter()
            .any(|word| last.eq_ignore_ascii_case(word))
    {
        Some("a secret")
    } else {
        None
    }
}

/// Whether a value holds a private key in PEM (RFC 7468, and the forms before it).
fn holds_private_key(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::String(text) => text.contains("-----BEGIN") && text.contains("PRIVATE KEY"),
        DeValue::Array(items) => items.iter().any(|item| holds_private_key(item.get_ref())),
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Table(_) => false,
    }
}

fn secret_problem(key: &KeySpan, what: &str) -> ConfigProblem {
    ConfigProblem {
        line: Some(key.line),
        message: format!(
            "`{}` holds {what}",
            escape_invisible_capped(&key.path.join("."), NAME_CHARS_MAX)
        ),
        advice: Some(
            "put it into a file that only the broker may read (mode 0600), name that file here, and replace the secret: it is no longer confidential"
                .to_owned(),
        ),
    }
}

/// An error of the TOML reader or of serde, without the line itself, which may hold a secret.
fn toml_problem(text: &str, error: &Error) -> ConfigProblem {
    ConfigProblem {
        line: error.span().map(|span| line_at(text, span.start)),
        message: escape_invisible_capped(&error.message().replace('\n', ", "), MESSAGE_CHARS_MAX),
        advice: None,
    }
}

/// The first problems, in the order of the file; missing keys of the top level come last.
pub(super) fn in_order(mut problems: Vec<ConfigProblem>) -> Vec<ConfigProblem> {
    problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    problems.truncate(PROBLEMS_MAX);
    problems
}

fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|b| **b == b'\n').count()
}

/// Last words of the names of keys that would hold a secret.
const SECRET_WORDS: [&str; 8] = [
    "password",
    "passphrase",
    "secret",
    "token",
    "credential",
    "credentials",
    "pem",
    "pkcs8",
];
/// Most problems that are reported at once.
pub(super) const PROBLEMS_MAX: usize = 20;
const NAME_CHARS_MAX: usize = 100;
const MESSAGE_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read by serde alone")]
    struct Whole {
        realm: String,
        count: Option<u32>,
        #[serde(default)]
        part: Part,
        #[serde(default, rename = "many")]
        parts: Vec<Part>,
    }

    #[derive(Deserialize, Default, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read by serde alone")]
    struct Part {
        name: Option<String>,
        key_file: Option<String>,
    }

    const KNOWN: &[KnownKey] = &[
        required("realm"),
        optional("count"),
        optional("part.name"),
        optional("part.key_file"),
        optional("many.*.name"),
        optional("many.*.key_file"),
    ];

    fn read(text: &str) -> Result<Whole, Vec<ConfigProblem>> {
        Document::parse(text, KNOWN)?.read()
    }

    fn problems(text: &str) -> Vec<String> {
        let found = read(text).expect_err(text);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_unknown_keys_reported_with_lines() {
        assert_eq!(
            problems(
                "reallm = \"r\"\ncount = 1\n\n[part]\nnam = \"x\"\n[[many]]\nkeyfile = \"k\"\nzzzzzzzzzz = 1\n"
            ),
            [
                "unknown key `reallm` at line 1; did you mean `realm`?",
                "unknown key `nam` at line 5; did you mean `name`?",
                "unknown key `keyfile` at line 7; did you mean `key_file`?",
                "unknown key `zzzzzzzzzz` at line 8; known here: name, key_file",
                "missing key `realm`",
            ]
        );
        assert_eq!(
            problems("realm = \"r\"\n[prat]\nname = \"x\"\n"),
            ["unknown key `prat` at line 2; did you mean `part`?"]
        );
        assert_eq!(
            problems("realm = \"r\"\n\"a.b\" = 1\n"),
            ["unknown key `a.b` at line 2; known here: realm, count, part, many"]
        );
        assert_eq!(problems("realm = \"r\"\ncount = \"1\"\n").len(), 1);
        assert!(problems("realm = \"r\"\ncount = \"1\"\n")[0].contains("at line 2"));
        let both = problems("realm = \"r\"\ncuont = 1\n[part]\nname = 1\n");
        assert!(
            both.len() == 2 && both[0].contains("`cuont`") && both[1].contains("at line 4"),
            "{both:?}"
        );
        let broken = problems("realm = \"r\ncount\n");
        assert!(
            broken[0].contains("at line 1") && broken[1].contains("at line 2"),
            "{broken:?}"
        );
    }

    #[test]
    fn values_of_a_wrong_type_are_no_unknown_keys() {
        for text in [
            "realm = { x = 1 }\n",
            "realm = \"r\"\n[[part]]\nname = \"x\"\n",
            "realm = \"r\"\n[many]\nname = \"x\"\n",
            "realm = \"r\"\npart = 3\n",
        ] {
            let problems = problems(text);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains("invalid type"), "{problems:?}");
        }
    }

    #[test]
    fn secrets_are_refused_and_not_repeated() {
        for (text, line) in [
            ("realm = \"r\"\nclient_secret = \"hunter2\"\n", 2),
            ("realm = \"r\"\nPASSWORD = \"hunter2\"\n", 2),
            ("realm = \"r\"\n[part]\napi-token = \"hunter2\"\n", 3),
            (
                "realm = \"r\"\n[part]\nname = \"-----BEGIN EC PRIVATE KEY-----hunter2\"\n",
                3,
            ),
            (
                "realm = \"r\"\n[[many]]\nname = \"\"\"\n-----BEGIN PRIVATE KEY-----\nhunter2\n\"\"\"\n",
                3,
            ),
            (
                "realm = \"r\"\nmany = [{ name = \"a\" }, \"-----BEGIN PRIVATE KEY-----hunter2\"]\n",
                2,
            ),
        ] {
            let problems = problems(text);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains("put it into a file"), "{problems:?}");
            assert!(
                problems[0].contains(&format!("at line {line}")),
                "{problems:?}"
            );
            assert!(!problems[0].contains("hunter2"), "{problems:?}");
        }
        read("realm = \"secret\"\n[part]\nkey_file = \"token.pem\"\n")
            .expect("paths are no secrets");
    }
}
