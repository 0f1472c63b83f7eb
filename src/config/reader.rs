//! Typed values of a configuration document: each wrong one is reported with its key, its line, what was expected and what
//! was found, and reading goes on.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::document::{ConfigProblem, Document, describe};
use crate::model::{ParseError, format_seconds, parse_duration};

/// Reads values by their keys, and collects the problems.
pub(super) struct SettingsReader<'d, 'a> {
    document: &'d Document<'a>,
    /// The directory that relative paths are relative to.
    base: &'d Path,
    problems: Vec<ConfigProblem>,
    /// Every key that was asked for.
    #[cfg(test)]
    pub(super) asked: std::collections::BTreeSet<String>,
}

impl<'d, 'a> SettingsReader<'d, 'a> {
    pub(super) fn new(document: &'d Document<'a>, base: &'d Path) -> Self {
        Self {
            document,
            base,
            problems: document.problems(),
            #[cfg(test)]
            asked: std::collections::BTreeSet::new(),
        }
    }

    /// All problems, found by the document or here.
    pub(super) fn into_problems(self) -> Vec<ConfigProblem> {
        self.problems
    }

    /// The line of a key.
    pub(super) fn line(&self, key: &str) -> Option<usize> {
        self.document.value(key).map(|(_, line)| line)
    }

    /// Reports a problem of the key on its line.
    pub(super) fn problem(&mut self, key: &str, message: impl Display, advice: Option<&str>) {
        self.problems.push(ConfigProblem {
            line: self.line(key),
            message: format!("`{key}`: {message}"),
            advice: advice.map(str::to_owned),
        });
    }

    /// Reports a problem of no single line.
    pub(super) fn problem_without_line(&mut self, message: String, advice: Option<&str>) {
        self.problems.push(ConfigProblem {
            line: None,
            message,
            advice: advice.map(str::to_owned),
        });
    }

    /// The elements of an array of tables.
    pub(super) fn len(&self, key: &str) -> usize {
        self.document.len(key)
    }

    /// A value that `read` accepts.
    fn value<T>(
        &mut self,
        key: &str,
        expected: &dyn Display,
        read: impl FnOnce(&DeValue<'a>) -> Option<T>,
    ) -> Option<T> {
        #[cfg(test)]
        self.asked.insert(key.to_owned());
        let (value, _) = self.document.value(key)?;
        let found = read(value);
        if found.is_none() {
            let message = format!("expected {expected}, got {}", describe(value));
            self.problem(key, message, None);
        }
        found
    }

    /// A text that `parse` accepts; the error's rule says what is expected.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        kind: &str,
        parse: impl FnOnce(&str) -> Result<T, ParseError>,
    ) -> Option<T> {
        #[cfg(test)]
        self.asked.insert(key.to_owned());
        let (value, _) = self.document.value(key)?;
        let expected = match value {
            DeValue::String(text) => match parse(text) {
                Ok(parsed) => return Some(parsed),
                Err(error) => match error.reason.strip_prefix("must be ") {
                    Some(rest) => format!("expected {rest}"),
                    None => format!("{kind} {}", error.reason),
                },
            },
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => format!("expected {kind}, as a text in quotes"),
        };
        self.problem(key, format!("{expected}, got {}", describe(value)), None);
        None
    }

    /// A text that `parse` accepts.
    pub(super) fn text<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(key, &expected, |value| parse(value.as_str()?))
    }

    /// A name of visible ASCII characters, such as an issuer or an audience.
    pub(super) fn visible(&mut self, key: &str) -> Option<String> {
        let expected = format!("1 to {NAME_BYTES_MAX} visible ASCII characters without spaces");
        self.text(key, &expected, |text| {
            let good = (1..=NAME_BYTES_MAX).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_graphic());
            good.then(|| text.to_owned())
        })
    }

    /// A path, absolute or relative to the file.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let base = self.base;
        let expected = format!("a path of at most {PATH_BYTES_MAX} bytes");
        self.text(key, &expected, |text| {
            path_below(base, text, PATH_BYTES_MAX)
        })
    }

    /// The path of a Unix socket.
    pub(super) fn socket_path(&mut self, key: &str) -> Option<PathBuf> {
        let base = self.base;
        self.text(key, SOCKET_EXPECTED, |text| socket_path(base, text))
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        self.value(key, &"true or false", DeValue::as_bool)
    }

    /// A whole number within bounds.
    pub(super) fn integer(&mut self, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.value(key, &expected, |value| {
            let number = value.as_integer()?;
            let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
            let number = u32::try_from(number).ok()?;
            range.contains(&number).then_some(number)
        })
    }

    /// A duration in seconds, from one to `most`.
    pub(super) fn seconds(&mut self, key: &str, most: u32) -> Option<u32> {
        let most_text = format_seconds(i64::from(most));
        let expected = format!("a duration such as \"90s\" or \"15m\", from 1s to {most_text}");
        self.text(key, &expected, |text| {
            let n = parse_duration("duration", text).ok()?;
            (n <= most).then_some(n)
        })
    }
}

/// A path without NUL; relative paths are below `base`.
fn path_below(base: &Path, text: &str, bytes_max: usize) -> Option<PathBuf> {
    let path = base.join(text);
    let good = !text.is_empty() && !text.contains('\0') && path.as_os_str().len() <= bytes_max;
    good.then_some(path)
}

/// A path that a Unix socket can have, also under the temporary name it is bound by.
pub(super) fn socket_path(base: &Path, text: &str) -> Option<PathBuf> {
    path_below(base, text, SOCKET_PATH_BYTES_MAX)
}

/// What [`socket_path`] accepts.
pub(super) const SOCKET_EXPECTED: &str = "a path of at most 96 bytes, counted from /";
/// `sun_path` has 108 bytes (unix(7)); the temporary name adds a dot and a process id, the end is a NUL.
const SOCKET_PATH_BYTES_MAX: usize = 96;
/// Longest path, in bytes (PATH_MAX of Linux, without its NUL).
const PATH_BYTES_MAX: usize = 4_095;
/// Longest issuer or audience, in bytes.
const NAME_BYTES_MAX: usize = 256;
