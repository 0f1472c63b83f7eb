//! Problems of a policy bundle, each with its file and line.

use std::collections::BTreeMap;
use std::fmt;

use cedar_policy::ffi::DetailedError;

use super::files::BundleFiles;
use crate::model::text::{escape_invisible, nearest_word};

/// A problem of a policy bundle, with the place to correct.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BundleProblem {
    /// Path inside the policy bundle, or `bundle` for what concerns no single file.
    pub file: String,
    /// Line in that file, from 1, where it is known.
    pub line: Option<usize>,
    /// Character in that line, from 1, where it is known.
    pub column: Option<usize>,
    /// What is wrong and, where it helps, what to write instead.
    pub message: String,
    /// The name of the check that found it, by which a bundle can silence it; `None` for what no bundle may have.
    pub check: Option<&'static str>,
    /// The text of the line.
    pub source: Option<String>,
}

impl BundleProblem {
    pub(super) fn new(file: &str, line: Option<usize>, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            column: None,
            message: message.into(),
            check: None,
            source: None,
        }
    }

    /// The problem, with the line of the file below it and a caret under the place.
    pub fn with_source(&self) -> String {
        let (Some(line), Some(source)) = (self.line, &self.source) else {
            return self.to_string();
        };
        let blank = source.chars().take_while(|c| c.is_whitespace()).count();
        let caret = self.column.map_or(blank, |column| column.saturating_sub(1));
        // Tabs stay, so that the caret stands below its place.
        let before: String = source
            .chars()
            .take(caret)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let source = escape_invisible(source);
        format!("{self}\n  {number} | {source}\n  {margin} | {before}^")
    }
}

/// One line: the place, the message, and the name of the check.
impl fmt::Display for BundleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for place in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{place}")?;
        }
        write!(f, ": {}", self.message)?;
        match self.check {
            Some(check) => write!(f, " [{check}]"),
            None => Ok(()),
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
    /// The tests that failed; of very many, the first.
    pub(super) fn of_tests(mut failures: Vec<BundleProblem>) -> Self {
        let more = failures.len().saturating_sub(FAILURES_MAX);
        failures.truncate(FAILURES_MAX);
        if more > 0 {
            let message = format!("and {more} more requests fail");
            failures.push(BundleProblem::new("tests", None, message));
        }
        Self { problems: failures }
    }

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
        self.push(BundleProblem::new(file, line, message));
    }

    pub(super) fn push(&mut self, problem: BundleProblem) {
        self.0.push(problem);
    }

    /// Gives each problem the text of its line.
    pub(super) fn attach_sources(&mut self, files: &BundleFiles) {
        let mut lines: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for problem in &mut self.0 {
            let text = || files.text(&problem.file).unwrap_or_default();
            let lines = lines.entry(problem.file.clone());
            let lines = lines.or_insert_with(|| text().lines().collect());
            let line = problem
                .line
                .and_then(|line| lines.get(line.checked_sub(1)?));
            problem.source = line.map(|line| line.chars().take(SOURCE_CHARS_MAX).collect());
        }
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
        let place = error.source_locations.first().and_then(|at| {
            let (text, first_line) = text?;
            let (lines, column) = line_and_column(text, at.loc.start)?;
            // A rule may begin behind another one on the same line.
            let column = (first_line == 1 || lines > 1).then_some(column);
            Some((first_line + lines - 1, column))
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
        let mut problem = BundleProblem::new(file, place.map(|(line, _)| line), message);
        problem.column = place.and_then(|(_, column)| column);
        self.push(problem);
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

/// Most failing tests that are listed.
const FAILURES_MAX: usize = 50;
/// Most characters of a line that a problem shows.
const SOURCE_CHARS_MAX: usize = 200;

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

/// The line and the character in it, both from 1, of a byte offset.
pub(super) fn line_and_column(text: &str, offset: usize) -> Option<(usize, usize)> {
    let before = text.get(..offset)?.rsplit('\n').next()?;
    Some((line_of(text, offset)?, before.chars().count() + 1))
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
