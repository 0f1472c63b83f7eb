//! Files of a policy bundle: known paths within bounds, and their canonical form.

use std::collections::BTreeMap;

use serde_json::Value;

use super::problem::{BundleError, Problems};
use crate::model::text::escape_invisible_capped;
use crate::model::{Digest, json};

/// The files of one policy bundle, by path: known paths only, within bounds, not yet parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFiles {
    files: BTreeMap<String, String>,
    canonical: String,
}

impl BundleFiles {
    /// Takes the files. Refuses unknown paths, a missing file, more than [`FILES_MAX`] files or [`BYTES_MAX`] bytes.
    pub fn new(files: BTreeMap<String, String>) -> Result<Self, BundleError> {
        let mut problems = Problems::default();
        if files.len() > FILES_MAX {
            problems.add(
                "bundle",
                None,
                format!("must have at most {FILES_MAX} files"),
            );
        }
        if files
            .iter()
            .map(|(path, text)| path.len().saturating_add(text.len()))
            .fold(0, usize::saturating_add)
            > BYTES_MAX
        {
            problems.add(
                "bundle",
                None,
                format!("must have at most {BYTES_MAX} bytes, paths included"),
            );
        }
        for path in files.keys() {
            if !is_known(path) {
                let message = format!(
                    "is not a file of a policy bundle; expected {}, rules/*.cedar, {CALENDAR}, {FACTS}, {COUNTS}, {CHECKS}, {TESTS}, tests/*.toml, README.md",
                    REQUIRED.join(", ")
                );
                problems.add(
                    &escape_invisible_capped(path, PATH_CHARS_MAX),
                    None,
                    message,
                );
            }
        }
        for (path, text) in &files {
            let alone = text.replace("\r\n", "").find('\r');
            if is_known(path) && alone.is_some() {
                let message = "has a carriage return without a line feed: end lines with \\n";
                problems.add(path, None, message);
            }
        }
        for required in REQUIRED {
            if !files.contains_key(required) {
                problems.add(required, None, "is missing");
            }
        }
        if !files.keys().any(|path| is_rules(path)) {
            problems.add("rules/", None, "must hold at least one .cedar file");
        }
        let object = files
            .iter()
            .map(|(path, text)| (path.clone(), Value::String(text.clone())))
            .collect();
        // Text always has a canonical form; without one the bundle would have no version, and is refused.
        let canonical = json::canonical(&Value::Object(object)).unwrap_or_else(|e| {
            problems.add("bundle", None, e.to_string());
            String::new()
        });
        problems.or_value(Self { files, canonical })
    }

    /// Parses the output of [`BundleFiles::canonical`]; refuses any other form of the same files.
    pub fn parse(canonical: &str) -> Result<Self, BundleError> {
        let mut problems = Problems::default();
        let mut files = BTreeMap::new();
        match json::parse(canonical.as_bytes()) {
            Ok(Value::Object(members)) => {
                for (path, text) in members {
                    match text {
                        Value::String(text) => {
                            files.insert(path, text);
                        }
                        Value::Null
                        | Value::Bool(_)
                        | Value::Number(_)
                        | Value::Array(_)
                        | Value::Object(_) => {
                            problems.add("bundle", None, "every member must be the text of a file");
                        }
                    }
                }
            }
            Ok(_) => problems.add("bundle", None, "must be an object of paths and texts"),
            Err(e) => problems.add("bundle", None, e.to_string()),
        }
        if !problems.is_empty() {
            return Err(problems.into_error());
        }
        let read = Self::new(files)?;
        if read.canonical != canonical {
            problems.add("bundle", None, "is not in canonical form (RFC 8785)");
        }
        problems.or_value(read)
    }

    /// The RFC 8785 object of path and text.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// SHA-256 of the canonical form: the content-addressed version.
    pub fn version(&self) -> Digest {
        Digest::sha256(self.canonical.as_bytes())
    }

    /// The text of one file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Every path with its text, in the order of paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The same files, with another text of one.
    pub(super) fn with_text(&self, path: &str, text: String) -> Result<Self, BundleError> {
        let mut files = self.files.clone();
        files.insert(path.to_owned(), text);
        Self::new(files)
    }

    /// The files of tests.
    pub(super) fn tests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(|(path, _)| is_tests(path))
    }

    /// The files of `rules/`.
    pub(super) fn rules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(|(path, _)| is_rules(path))
    }
}

fn is_known(path: &str) -> bool {
    REQUIRED.contains(&path)
        || [CALENDAR, FACTS, COUNTS, CHECKS, "README.md"].contains(&path)
        || is_rules(path)
        || is_tests(path)
}

/// `rules/NAME.cedar`, one level deep.
fn is_rules(path: &str) -> bool {
    is_in_folder(path, "rules/", ".cedar")
}

/// `tests.toml` or `tests/NAME.toml`, one level deep.
fn is_tests(path: &str) -> bool {
    path == TESTS || is_in_folder(path, "tests/", ".toml")
}

/// A file of a folder, whose NAME is of letters, digits, `.`, `_` and `-`.
fn is_in_folder(path: &str, folder: &str, suffix: &str) -> bool {
    path.strip_prefix(folder)
        .and_then(|rest| rest.strip_suffix(suffix))
        .is_some_and(|name| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.len() <= 64
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        })
}

/// The catalogue.
pub(super) const SCHEMA: &str = "schema.cedarschema";
/// The targets.
pub(super) const ENTITIES: &str = "entities.json";
/// The registered agents.
pub(super) const AGENTS: &str = "agents.toml";
/// People, services, keys and step-up profiles.
pub(super) const PEOPLE: &str = "people.toml";
/// Time zones and holidays, for rules; optional.
pub(super) const CALENDAR: &str = "calendar.toml";
/// Named facts that people set, for rules; optional.
pub(super) const FACTS: &str = "facts.toml";
/// Counts of what happened a short while ago, for rules; optional.
pub(super) const COUNTS: &str = "counts.toml";
/// The findings of the check that are intended; optional.
pub(super) const CHECKS: &str = "checks.toml";
/// The tests of the bundle, beside those of `tests/`; optional.
pub(super) const TESTS: &str = "tests.toml";
const REQUIRED: [&str; 4] = [SCHEMA, ENTITIES, AGENTS, PEOPLE];

/// Most files of one policy bundle.
pub const FILES_MAX: usize = 256;
/// Most characters of an unknown path that a problem shows.
const PATH_CHARS_MAX: usize = 256;
/// Most bytes of one policy bundle, paths and texts together.
pub const BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> BTreeMap<String, String> {
        [
            "schema.cedarschema",
            "entities.json",
            "agents.toml",
            "people.toml",
            "rules/a.cedar",
            "README.md",
        ]
        .map(|path| (path.to_owned(), "é\n\"".to_owned()))
        .into()
    }

    #[test]
    fn canonical_form_roundtrip_and_version() {
        let files = BundleFiles::new(small()).expect("files");
        assert_eq!(BundleFiles::parse(files.canonical()).expect("again"), files);
        let mut other = small();
        other.insert("README.md".into(), String::new());
        assert_ne!(
            BundleFiles::new(other).expect("files").version(),
            files.version()
        );
        assert!(BundleFiles::parse(&format!(" {}", files.canonical())).is_err());
        assert!(BundleFiles::parse("{\"README.md\":1}").is_err());
    }

    #[test]
    fn unknown_missing_and_oversized_files() {
        let mut files = small();
        files.remove("agents.toml");
        files.insert("rules/../x.cedar".into(), String::new());
        files.insert("rules/deep/x.cedar".into(), String::new());
        files.insert("tests/deep/x.toml".into(), String::new());
        files.insert(
            "rules/\u{1b}[2J\nrules/b.cedar: is fine".into(),
            String::new(),
        );
        let text = BundleFiles::new(files).expect_err("refused").to_string();
        assert!(
            !text.contains('\u{1b}') && text.lines().count() == 5,
            "{text}"
        );
        for part in [
            "rules/<U+001B>[2J<U+000A>rules/b.cedar: is fine: is not a file",
            "agents.toml: is missing",
            "rules/../x.cedar",
            "rules/deep/x.cedar",
            "tests/deep/x.toml",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let mut files = small();
        files.insert("README.md".into(), "x".repeat(BYTES_MAX));
        assert!(BundleFiles::new(files).is_err());
        let mut files = small();
        files.extend((0..FILES_MAX).map(|n| (format!("rules/{n}.cedar"), String::new())));
        assert!(BundleFiles::new(files).is_err());
        let mut files = small();
        files.remove("rules/a.cedar");
        assert!(BundleFiles::new(files).is_err());
    }
}
