//! A TOML document with spans: every key with its line, checked against the table of known keys.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use crate::model::text::{escape_invisible, escape_invisible_capped, nearest_word};

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

    /// Every secret, unknown key, missing key, and table where the file has something else.
    pub(super) fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = self.missing_keys();
        for key in self.keys() {
            problems.extend(match key.secret {
                Some(what) => Some(secret_problem(&key, what)),
                None => self.unknown_key(&key).or_else(|| self.wrong_table(&key)),
            });
        }
        problems
    }

    /// The value of a key and its line, unless the value seems to be a secret.
    pub(super) fn value(&self, path: &str) -> Option<(&DeValue<'a>, usize)> {
        let (at, value) = find(self.table.get_ref(), path)?;
        let name = path.rsplit('.').next().unwrap_or_default();
        let secret = secret(name, value, !holds_table(value)).is_some();
        (!secret).then(|| (value, line_at(self.text, at)))
    }

    /// The number of elements of an array of tables; 0 for anything else.
    pub(super) fn len(&self, path: &str) -> usize {
        let value = find(self.table.get_ref(), path).map(|(_, value)| value);
        value
            .and_then(DeValue::as_array)
            .map_or(0, |items| items.len())
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

    fn unknown_key(&self, key: &KeySpan) -> Option<ConfigProblem> {
        let (name, above) = key.path.split_last()?;
        // No names are known below an unknown key, which is reported itself, or below a key whose value is no table.
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
            message: format!("unknown key `{}`", with_parent(above, &name)),
            advice: Some(advice),
        })
    }

    /// A key that must be a table, or an array of tables, and is not.
    fn wrong_table(&self, key: &KeySpan) -> Option<ConfigProblem> {
        let path = key.path.join(".");
        let array = self.known.iter().any(|known| {
            let mut parts = known.path.split(".*.");
            parts.next() == Some(&path) && parts.next().is_some()
        });
        let table = self.known.iter().any(|known| {
            let below = known.path.strip_prefix(&path);
            below.is_some_and(|below| below.starts_with('.') && !below.starts_with(".*"))
        });
        let (value, line) = self.value(&path)?;
        let all_tables = |items: &[Spanned<DeValue<'_>>]| {
            let mut items = items.iter();
            items.all(|item| item.get_ref().is_table())
        };
        let expected = match value {
            DeValue::Array(items) if array && all_tables(items) => return None,
            DeValue::Table(_) if table => return None,
            _ if array => format!("expected one [[{path}]] or more"),
            _ if table => format!("expected a table, [{path}]"),
            _ => return None,
        };
        Some(ConfigProblem {
            line: Some(line),
            message: format!("`{path}`: {expected}, got {}", describe(value)),
            advice: None,
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
                        message: format!("missing key `{}`", with_parent(&table.path, name)),
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

/// A value, and the offset of its key; the element of an array is found by its number.
fn find<'t, 'a>(table: &'t DeTable<'a>, path: &str) -> Option<(usize, &'t DeValue<'a>)> {
    let mut parts = path.split('.');
    let (key, value) = table.get_key_value(parts.next()?)?;
    let (mut at, mut value) = (key.span().start, value.get_ref());
    for part in parts {
        value = match value {
            DeValue::Table(inner) => {
                let (key, value) = inner.get_key_value(part)?;
                at = key.span().start;
                value.get_ref()
            }
            DeValue::Array(items) => items.get(part.parse::<usize>().ok()?)?.get_ref(),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => return None,
        };
    }
    Some((at, value))
}

/// The name of a key with those of its tables, as messages write it.
fn with_parent(table: &[String], name: &str) -> String {
    let mut path = table.to_vec();
    path.push(name.to_owned());
    escape_invisible_capped(&path.join("."), NAME_CHARS_MAX)
}

/// A value as messages show it: short, on one line, and without what may be a password in a URL.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.is_empty() => "an empty text".to_owned(),
        DeValue::String(text) if text.contains('@') => {
            "a text with `@`, not shown since it may hold a password".to_owned()
        }
        DeValue::String(text) if text.chars().count() > SHOWN_CHARS_MAX => {
            format!("a text of {} bytes", text.len())
        }
        DeValue::String(text) => format!("\"{}\"", escape_invisible(text)),
        DeValue::Integer(number) if number.as_str().len() <= SHOWN_CHARS_MAX => number.to_string(),
        DeValue::Float(number) if number.as_str().len() <= SHOWN_CHARS_MAX => number.to_string(),
        DeValue::Integer(_) | DeValue::Float(_) => "a long number".to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
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

/// An error of the TOML reader, without the line itself, which may hold a secret.
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
/// Longest value that a message shows, in characters.
const SHOWN_CHARS_MAX: usize = 80;
const MESSAGE_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[KnownKey] = &[
        required("realm"),
        optional("count"),
        optional("part.name"),
        optional("part.key_file"),
        optional("many.*.name"),
        optional("many.*.key_file"),
    ];

    fn problems(text: &str) -> Vec<String> {
        let found = match Document::parse(text, KNOWN) {
            Ok(document) => in_order(document.problems()),
            Err(problems) => problems,
        };
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
                "unknown key `part.nam` at line 5; did you mean `name`?",
                "unknown key `many.0.keyfile` at line 7; did you mean `key_file`?",
                "unknown key `many.0.zzzzzzzzzz` at line 8; known here: name, key_file",
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
        let broken = problems("realm = \"r\ncount\n");
        assert!(
            broken[0].contains("at line 1") && broken[1].contains("at line 2"),
            "{broken:?}"
        );
    }

    #[test]
    fn tables_and_arrays_of_tables_are_told_apart() {
        for (text, expected) in [
            (
                "realm = \"r\"\n[[part]]\nname = \"x\"\n",
                "`part`: expected a table, [part], got an array at line 2",
            ),
            (
                "realm = \"r\"\n[many]\nname = \"x\"\n",
                "`many`: expected one [[many]] or more, got a table at line 2",
            ),
            (
                "realm = \"r\"\nmany = [{ name = \"a\" }, 3]\n",
                "`many`: expected one [[many]] or more, got an array at line 2",
            ),
            (
                "realm = \"r\"\npart = 3\n",
                "`part`: expected a table, [part], got 3 at line 2",
            ),
        ] {
            assert_eq!(problems(text), [expected], "{text}");
        }
        assert!(problems("realm = { x = 1 }\nmany = []\n").is_empty());
    }

    #[test]
    fn values_are_described_without_passwords() {
        let shown = |value: &str| {
            let text = format!("realm = {value}\n");
            let document = Document::parse(&text, KNOWN).expect("TOML");
            let (value, line) = document.value("realm").expect("there");
            (describe(value), line)
        };
        for (value, expected) in [
            ("\"\"", "an empty text"),
            ("\"a\\u0000b\"", "\"a<U+0000>b\""),
            (
                "\"https://u:hunter2@x\"",
                "a text with `@`, not shown since it may hold a password",
            ),
            ("0x10", "0x10"),
            ("1.5", "1.5"),
            ("true", "true"),
            ("1979-05-27", "a date or time"),
            ("[1]", "an array"),
            ("{ a = 1 }", "a table"),
        ] {
            assert_eq!(shown(value), (expected.to_owned(), 1));
        }
        assert_eq!(
            shown(&format!("\"{}\"", "x".repeat(300))).0,
            "a text of 300 bytes"
        );
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
        let text = "realm = \"secret\"\n[part]\nkey_file = \"token.pem\"\n";
        assert!(problems(text).is_empty(), "paths are no secrets");
        let document = Document::parse("realm = \"-----BEGIN PRIVATE KEY-----\"\n", KNOWN);
        assert!(document.expect("TOML").value("realm").is_none());
    }
}
