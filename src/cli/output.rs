//! Output of commands: text for people or JSON for programs, errors on stderr.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde_json::Value;

use super::error::{CliError, io_error};
use crate::model::text::escape_invisible;

/// Prints results as text or JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) const fn is_json(&self) -> bool {
        self.json
    }

    /// Prints JSON or text. Callers escape untrusted text.
    pub(super) fn print(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        if self.json {
            self.print_json(&json())
        } else {
            self.text(&text())
        }
    }

    /// One JSON value on a line of its own.
    pub(super) fn print_json(&self, value: &Value) {
        self.text(&value.to_string());
    }

    /// Text, ending with a newline.
    pub(super) fn text(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let text = text.strip_suffix('\n').unwrap_or(text);
        // A closed pipe (`| head`) is not an error.
        let _ignored = out
            .write_all(text.as_bytes())
            .and_then(|()| out.write_all(b"\n"));
        let _ignored = out.flush();
    }

    /// Prints a note for people on stderr; nothing with --json.
    pub(super) fn note(&self, text: &str) {
        if !self.json {
            let _ignored = writeln!(std::io::stderr().lock(), "{}", text.trim_end_matches('\n'));
        }
    }

    /// Prints the error and gives its exit code.
    pub(super) fn print_error(&self, error: &CliError) -> ExitCode {
        let mut err = std::io::stderr().lock();
        let _ignored = if self.json {
            writeln!(err, "{}", error.to_json())
        } else {
            let hint = error
                .hint
                .as_ref()
                .map(|hint| format!("\n         {hint}"))
                .unwrap_or_default();
            writeln!(err, "dipylon: {}{hint}", error.message)
        };
        ExitCode::from(error.exit.number())
    }

    /// Prints to stderr, also with --json.
    pub(super) fn warn(&self, text: &str) {
        let _ignored = writeln!(std::io::stderr().lock(), "{}", text.trim_end_matches('\n'));
    }

    /// Prompts the user at the terminal for one line.
    pub(super) async fn prompt(&self, prompt: &str) -> Result<String, CliError> {
        let mut err = std::io::stderr();
        write!(err, "{prompt}")
            .and_then(|()| err.flush())
            .map_err(io_error("stderr"))?;
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        answer
            .await
            .map_err(|e| CliError::failed(e.to_string()))?
            .map_err(io_error("stdin"))
    }

    /// Whether the user can be prompted.
    pub(super) fn can_prompt(&self) -> bool {
        !self.json && std::io::stdin().is_terminal()
    }
}

/// Rows of a label and a text, with the texts aligned. Trusted text may have several lines.
#[derive(Debug, Default)]
pub(super) struct FieldList(Vec<(String, String)>);

impl FieldList {
    /// A row with trusted text.
    pub(super) fn row(&mut self, label: &str, text: impl Into<String>) -> &mut Self {
        self.0.push((label.to_owned(), text.into()));
        self
    }

    /// A row with untrusted text, which is escaped.
    pub(super) fn untrusted_row(&mut self, label: &str, text: &str) -> &mut Self {
        self.row(label, escape_invisible(text))
    }

    /// The rows as lines.
    pub(super) fn to_text(&self) -> String {
        let width = self
            .0
            .iter()
            .map(|(label, _)| label.chars().count())
            .max()
            .unwrap_or(0);
        let mut out = String::new();
        for (label, text) in &self.0 {
            for (i, line) in text
                .lines()
                .chain(text.is_empty().then_some(""))
                .enumerate()
            {
                let label = if i == 0 { label.as_str() } else { "" };
                out.push_str(format!("  {label:width$}  {line}").trim_end());
                out.push('\n');
            }
        }
        out
    }
}

/// A table with a heading: columns as wide as their widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_stays_on_one_line() {
        let mut fields = FieldList::default();
        fields
            .untrusted_row("a", "x\ny\u{1b}[2J\u{202E}z")
            .row("long", "1\n2");
        assert_eq!(
            fields.to_text(),
            "  a     x<U+000A>y<U+001B>[2J<U+202E>z\n  long  1\n        2\n"
        );
        let cell = |text: &str| text.to_owned();
        assert_eq!(
            table(&[vec![cell("a"), cell("b")], vec![cell("cc"), cell("d")]]),
            "a   b\ncc  d\n"
        );
    }
}
