//! Problems of a policy bundle, each with its file and line.

use std::fmt;

use cedar_policy::ffi::DetailedError;

use crate::model::text::nearest_word;

/// A problem of a policy bundle, with the place to correct.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BundleProblem {
    /// Path inside the policy bundle, or `bundle` for what concerns no single file.
    pub file: String,
    /// Line in that file, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong and, where it helps, what to write instead.
    pub message: String,
}

impl fmt::Display for BundleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

/// Why a policy bundle was refused: every problem found, never empty, printed one on a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(BundleProblem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct BundleError {
    problems: Vec<BundleProblem>,
}

impl BundleError {
    /// The problems, in the order of files and lines.
    pub fn problems(&self) -> &[BundleProblem] {
        &self.problems
    }
}

/// The problems found while a bundle is read; reading goes on, so that one pass finds all.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<BundleProblem>);

impl Problems {
    pub(super) fn add(&mut self, file: &str, line: Option<usize>, message: impl Into<String>) {
        self.0.push(BundleProblem {
            file: file.to_owned(),
            line,
            message: message.into(),
        });
    }

    /// An error of Cedar's about `file`, with its related errors. Its positions refer to the given text, which begins on the
    /// given line of the file.
    pub(super) fn add_cedar(
        &mut self,
        file: &str,
        text: Option<(&str, usize)>,
        prefix: &str,
        error: &DetailedError,
    ) {
        let line = error.source_locations.first().and_then(|at| {
            let (text, first_line) = text?;
            Some(first_line + line_of(text, at.loc.start)? - 1)
        });
        let label = error
            .source_locations
            .first()
            .and_then(|at| at.label.as_deref());
        let mut message = format!("{prefix}{}", error.message);
        for extra in [label, error.help.as_deref()].into_iter().flatten() {
            message.push_str("; ");
            message.push_str(extra);
        }
        self.add(file, line, message);
        for related in &error.related {
            self.add_cedar(file, text, prefix, related);
        }
    }

    pub(super) fn into_sorted(mut self) -> Vec<BundleProblem> {
        self.0.sort();
        self.0.dedup();
        self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value` if there is no problem.
    pub(super) fn or_value<T>(self, value: T) -> Result<T, BundleError> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self.into_error())
        }
    }

    /// The problems as an error. Never empty: a caller without a problem still refuses.
    pub(super) fn into_error(mut self) -> BundleError {
        if self.0.is_empty() {
            self.add("bundle", None, "could not be read");
        }
        BundleError {
            problems: self.into_sorted(),
        }
    }
}

/// The line, from 1, of a byte offset.
pub(super) fn line_of(text: &str, offset: usize) -> Option<usize> {
    Some(
        text.as_bytes()
            .get(..offset)?
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1,
    )
}

/// ` (did you mean "…"?)` with the known word nearest to `word`, when one is near.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest_word(word, known) {
        Some(k) => format!(" (did you mean \"{k}\"?)"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word_is_suggested() {
        assert_eq!(
            nearest("ownr", ["owner", "model"]),
            " (did you mean \"owner\"?)"
        );
        assert_eq!(
            nearest("step-up", ["step_up", "max_ttl"]),
            " (did you mean \"step_up\"?)"
        );
        assert_eq!(nearest("colour", ["owner", "model"]), "");
    }

    #[test]
    fn line_of_offset() {
        assert_eq!(line_of("a\nb\nc", 0), Some(1));
        assert_eq!(line_of("a\nb\nc", 4), Some(3));
        assert_eq!(line_of("a", 9), None);
    }
}
