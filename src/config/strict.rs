use std::fmt;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, Error};

use crate::model::ParseError;
use crate::model::text::{escape_invisible_capped, nearest_word};

/// One thing that is wrong with a file, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// From 1; `None` for what is not there.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: Option<String>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(line) = self.line {
            write!(f, " at line {line}")?;
        }
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// A key as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    /// Names joined by dots; an element of an array by its number.
    pub(super) path: String,
    /// From 1.
    pub(super) line: usize,
    /// Whether its value is neither a table nor an array of them.
    pub(super) leaf: bool,
    key: Range<usize>,
    value: Range<usize>,
    secret: Option<&'static str>,
}

/// Reads a text as `T`, or says all that can be said to be wrong with it.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Vec<Wrong>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let told = errors.iter().take(WRONG_MAX);
        let told = told.map(|error| understood(text, error)).collect();
        return Err(in_order(told));
    }
    let placed = every(text, table.get_ref());
    let mut found: Vec<Wrong> = placed
        .iter()
        .filter_map(|key| key.secret.map(|what| secret(key, what)))
        .collect();
    // What a secret stands under is told once: as a secret.
    let mut rest = text.to_owned();
    for key in placed.iter().filter(|key| key.secret.is_some()) {
        blank(&mut rest, key);
    }
    for _ in 0..WRONG_MAX {
        match toml::from_str(&rest) {
            Ok(whole) if found.is_empty() => return Ok(whole),
            Ok(_) => break,
            Err(error) => {
                let start = error.span().map(|span| span.start);
                let unknown = error.message().starts_with(UNKNOWN);
                found.push(understood(text, &error));
                // The rest is read without what is unknown; any other error hides what comes after it.
                match placed
                    .iter()
                    .find(|key| unknown && key.leaf && Some(key.key.start) == start)
                {
                    Some(key) => blank(&mut rest, key),
                    None => break,
                }
            }
        }
    }
    Err(in_order(found))
}

/// As one reads the file; what is not there comes last.
pub(super) fn in_order(mut found: Vec<Wrong>) -> Vec<Wrong> {
    found.sort_by_key(|wrong| wrong.line.unwrap_or(usize::MAX));
    found
}

/// A value that was read and is not of its form.
pub(super) fn value(text: &str, error: &ParseError) -> (Wrong, Option<Placed>) {
    let placed = placed(text).unwrap_or_default();
    let key = placed.into_iter().find(|key| {
        let last = key.path.rsplit('.').next().unwrap_or_default();
        key.leaf && (key.path == error.field || last == error.field)
    });
    let wrong = Wrong {
        line: key.as_ref().map(|key| key.line),
        what: error.to_string(),
        advice: None,
    };
    (wrong, key)
}

/// Every key of a text, in the order of the file.
pub(super) fn placed(text: &str) -> Result<Vec<Placed>, Error> {
    let table = DeTable::parse(text)?;
    Ok(every(text, table.get_ref()))
}

fn every(text: &str, table: &DeTable<'_>) -> Vec<Placed> {
    let mut out = Vec::new();
    walk(text, "", table, &mut out);
    out.sort_by_key(|key| key.key.start);
    out
}

fn walk(text: &str, above: &str, table: &DeTable<'_>, out: &mut Vec<Placed>) {
    for (key, value) in table {
        let name: &str = key.get_ref();
        let path = if above.is_empty() {
            name.to_owned()
        } else {
            format!("{above}.{name}")
        };
        let tables = match value.get_ref() {
            DeValue::Table(_) => true,
            DeValue::Array(items) => items
                .iter()
                .any(|item| matches!(item.get_ref(), DeValue::Table(_))),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => false,
        };
        let last = name.rsplit(['_', '-']).next().unwrap_or_default();
        let secret = if tables {
            None
        } else if holds_key(value.get_ref()) {
            Some("a private key")
        } else if SECRETS.iter().any(|word| last.eq_ignore_ascii_case(word)) {
            Some("a secret")
        } else {
            None
        };
        out.push(Placed {
            path: path.clone(),
            line: line_at(text, key.span().start),
            leaf: !tables,
            key: key.span(),
            value: value.span(),
            secret,
        });
        match value.get_ref() {
            DeValue::Table(table) => walk(text, &path, table, out),
            DeValue::Array(items) => {
                for (n, item) in items.iter().enumerate() {
                    if let DeValue::Table(table) = item.get_ref() {
                        walk(text, &format!("{path}.{n}"), table, out);
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
}

/// Whether a private key in PEM stands here (RFC 7468, and the forms before it).
fn holds_key(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::String(text) => text.contains("-----BEGIN") && text.contains("PRIVATE KEY"),
        DeValue::Array(items) => items.iter().any(|item| holds_key(item.get_ref())),
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Table(_) => false,
    }
}

fn secret(key: &Placed, what: &str) -> Wrong {
    Wrong {
        line: Some(key.line),
        what: format!(
            "`{}` holds {what}",
            escape_invisible_capped(&key.path, NAME_CHARS_MAX)
        ),
        advice: Some(
            "put it into a file that only the broker may read (mode 0600), name that file here, and treat what stood here as known to others"
                .to_owned(),
        ),
    }
}

/// Spaces where a key and its value stood: every other key keeps its place.
pub(super) fn blank(text: &mut String, key: &Placed) {
    let range = key.key.start..key.value.end.max(key.key.end);
    if let Some(part) = text.get(range.clone()) {
        let spaces: String = part
            .bytes()
            .map(|b| if b == b'\n' { '\n' } else { ' ' })
            .collect();
        text.replace_range(range, &spaces);
    }
}

/// What the reader says, in our words and without the line itself, which may hold what nobody should see.
fn understood(text: &str, error: &Error) -> Wrong {
    let message = error.message();
    let at = error.span().map(|span| span.start);
    let names = quoted(message);
    let name = names.first().copied().unwrap_or_default();
    let name = escape_invisible_capped(name, NAME_CHARS_MAX);
    if message.starts_with(UNKNOWN) {
        let known = names.get(1..).unwrap_or_default();
        let advice = match nearest_word(&name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        return Wrong {
            line: at.map(|at| line_at(text, at)),
            what: format!("unknown key `{name}`"),
            advice: Some(advice),
        };
    }
    if message.starts_with(MISSING) {
        return Wrong {
            line: at.filter(|at| *at > 0).map(|at| line_at(text, at)),
            what: format!("missing key `{name}`"),
            advice: None,
        };
    }
    Wrong {
        line: at.map(|at| line_at(text, at)),
        what: escape_invisible_capped(&message.replace('\n', ", "), MESSAGE_CHARS_MAX),
        advice: None,
    }
}

/// What stands between backticks.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|b| **b == b'\n').count()
}

/// Every key that `T` knows, as its reader itself names them: `*` stands for the number of an element.
pub(super) fn known<T: DeserializeOwned>() -> Vec<String> {
    let mut out = Vec::new();
    below::<T>(&mut Vec::new(), &mut out);
    out
}

/// A table on the way to a key: a name, and whether it is one of many.
type Step = (String, bool);

fn below<T: DeserializeOwned>(way: &mut Vec<Step>, out: &mut Vec<String>) -> bool {
    let Some(names) = names::<T>(way) else {
        return false;
    };
    for name in names {
        let mut nested = false;
        for many in [false, true] {
            way.push((name.clone(), many));
            nested = nested || (way.len() < DEPTH_MAX && below::<T>(way, out));
            way.pop();
        }
        if !nested {
            let above = way
                .iter()
                .map(|(name, many)| format!("{name}.{}", if *many { "*." } else { "" }));
            out.push(format!("{}{name}", above.collect::<String>()));
        }
    }
    true
}

/// The keys of a table: asked by one it cannot know.
fn names<T: DeserializeOwned>(way: &[Step]) -> Option<Vec<String>> {
    let mut text = format!("{PROBE} = 1");
    for (name, many) in way.iter().rev() {
        text = match many {
            true => format!("{name} = [{{ {text} }}]"),
            false => format!("{name} = {{ {text} }}"),
        };
    }
    let error = toml::from_str::<T>(&text).err()?;
    let mut names = quoted(error.message()).into_iter().map(str::to_owned);
    let asked = error.message().starts_with(UNKNOWN) && names.next().as_deref() == Some(PROBE);
    asked.then(|| names.collect())
}

/// How serde's derive begins its messages.
const UNKNOWN: &str = "unknown field";
const MISSING: &str = "missing field";
const PROBE: &str = "dipylon-asks-what-is-known-here";
/// Last words of the names of keys that would hold a secret.
const SECRETS: [&str; 8] = [
    "password",
    "passphrase",
    "secret",
    "token",
    "credential",
    "credentials",
    "pem",
    "pkcs8",
];
/// Tables within tables that are asked for their keys.
const DEPTH_MAX: usize = 4;
/// Wrong things told at once.
pub(super) const WRONG_MAX: usize = 20;
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

    fn told(text: &str) -> Vec<String> {
        let found = parse::<Whole>(text).expect_err(text);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_reader_itself_says_what_is_known() {
        assert_eq!(
            known::<Whole>(),
            [
                "realm",
                "count",
                "part.name",
                "part.key_file",
                "many.*.name",
                "many.*.key_file"
            ]
        );
    }

    #[test]
    fn all_that_is_unknown_is_told_at_once_with_its_line() {
        assert_eq!(
            told(
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
            told("realm = \"r\"\n[prat]\nname = \"x\"\n"),
            ["unknown key `prat` at line 2; did you mean `part`?"]
        );
        assert_eq!(told("realm = \"r\"\ncount = \"1\"\n").len(), 1);
        assert!(told("realm = \"r\"\ncount = \"1\"\n")[0].contains("at line 2"));
        let broken = told("realm = \"r\ncount\n");
        assert!(
            broken[0].contains("at line 1") && broken[1].contains("at line 2"),
            "{broken:?}"
        );
    }

    #[test]
    fn a_secret_is_refused_with_advice_and_not_repeated() {
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
        ] {
            let told = told(text);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains("put it into a file"), "{told:?}");
            assert!(told[0].contains(&format!("at line {line}")), "{told:?}");
            assert!(!told[0].contains("hunter2"), "{told:?}");
        }
        parse::<Whole>("realm = \"secret\"\n[part]\nkey_file = \"token.pem\"\n")
            .expect("paths are no secrets");
    }
}
