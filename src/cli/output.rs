//! Output of commands: text for people or JSON for programs, errors on stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use clap::error::ErrorKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, fstatvfs};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use super::error::{CliError, io_error, system_text};
use crate::model::Exit;
use crate::model::text::escape_invisible;

/// Prints results as text or JSON. Clones share the first failure to write.
#[derive(Debug, Clone)]
pub(super) struct Output {
    json: bool,
    errors_to: ErrorStream,
    failure: Arc<OnceLock<io::Error>>,
}

/// Where the error of a command goes with --json; as text it goes to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorStream {
    /// Stdout, so that it holds exactly one JSON value whether the command succeeds or fails.
    Stdout,
    /// Stderr, because stdout belongs to another program.
    Stderr,
}

impl Output {
    pub(super) fn new(json: bool, errors_to: ErrorStream) -> Self {
        Self {
            json,
            errors_to,
            failure: Arc::default(),
        }
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

    /// Text, ending with a newline. A failure is kept for [`Output::finish`]; nothing is written after it.
    pub(super) fn text(&self, text: &str) {
        if self.is_closed() {
            return;
        }
        let mut out = io::stdout().lock();
        let text = text.strip_suffix('\n').unwrap_or(text);
        let written = out
            .write_all(text.as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush());
        self.note_failure(written);
    }

    fn note_failure(&self, written: io::Result<()>) {
        if let Err(error) = written {
            let _first = self.failure.set(error);
        }
    }

    /// Whether stdout took no more text: a command that prints a stream ends.
    pub(super) fn is_closed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Refuses, before the deed, when stdout cannot take a result that exists nowhere else.
    pub(super) fn require_writable(&self) -> Result<(), CliError> {
        stdout_is_writable().map_err(|error| {
            CliError::failed(format!("stdout cannot be written: {}", system_text(&error)))
                .with_next_step("nothing was done: the result would have been lost")
        })
    }

    /// Refuses, before the deed, when a text that a person must read first could not be written. With `on_terminal`, a person
    /// is about to answer: the text is then also written to the stream of the prompt, unless stdout is a terminal itself.
    pub(super) fn require_read(&self, text: &str, on_terminal: bool) -> Result<(), CliError> {
        self.text(text);
        let unwritten = |stream: &str, error: &io::Error| {
            CliError::failed(format!(
                "{stream} cannot be written: {}",
                system_text(error)
            ))
            .with_next_step("nothing was done: the text to read first was not shown")
        };
        if let Some(error) = self.failure.get() {
            return Err(unwritten("stdout", error));
        }
        if on_terminal && !io::stdout().is_terminal() {
            let mut err = io::stderr().lock();
            writeln!(err, "{}", text.trim_end_matches('\n'))
                .and_then(|()| err.flush())
                .map_err(|error| unwritten("stderr", &error))?;
        }
        Ok(())
    }

    /// The exit code, or that of a failure to write the result. A closed pipe (`| head`) is not a failure.
    pub(super) fn finish(&self, code: ExitCode) -> ExitCode {
        match self.failure.get() {
            None => code,
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
            Some(error) => {
                let text = system_text(error);
                self.warn(&format!(
                    "dipylon: the result could not be written to stdout: {text}"
                ));
                if code == ExitCode::SUCCESS {
                    ExitCode::from(Exit::Failed.number())
                } else {
                    code
                }
            }
        }
    }

    /// Prints a note for people on stderr; nothing with --json.
    pub(super) fn note(&self, text: &str) {
        if !self.json {
            self.warn(text);
        }
    }

    /// Prints the error and gives its exit code.
    pub(super) fn print_error(&self, error: &CliError) -> ExitCode {
        let json = error.to_json();
        match (self.json, self.errors_to) {
            (false, _) => self.warn(&error.to_text()),
            (true, ErrorStream::Stderr) => self.warn(&json.to_string()),
            (true, ErrorStream::Stdout) => {
                self.print_json(&json);
                if self.is_closed() {
                    self.warn(&json.to_string());
                }
            }
        }
        ExitCode::from(error.exit.number())
    }

    /// Prints what clap has to say: help and version, or an error of the arguments.
    pub(super) fn print_clap(&self, error: &clap::Error) -> ExitCode {
        if error.use_stderr() {
            if self.json {
                return self.print_error(&CliError::from_clap(error));
            }
            let _ignored = error.print();
            return ExitCode::from(Exit::UsageError.number());
        }
        if self.json {
            let name = match error.kind() {
                ErrorKind::DisplayVersion => "version",
                _ => "help",
            };
            self.print_json(&json!({ name: error.render().to_string().trim_end() }));
        } else {
            self.note_failure(error.print());
        }
        ExitCode::SUCCESS
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

    /// Whether the user can be prompted: the prompt goes to stderr, the answer comes from stdin.
    pub(super) fn can_prompt(&self) -> bool {
        !self.json && io::stdin().is_terminal() && io::stderr().is_terminal()
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
            .map(|(label, _)| label.width())
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
                out.push_str(format!("  {}  {line}", padded(label, width)).trim_end());
                out.push('\n');
            }
        }
        out
    }
}

/// The text, followed by blanks up to a width in terminal columns: a wide character takes two.
fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// Whether stdout takes a write now, as far as can be known without writing.
fn stdout_is_writable() -> io::Result<()> {
    let stdout = io::stdout();
    // A device such as /dev/full refuses even an empty write; a closed pipe takes one, but reports an error when polled.
    rustix::io::write(&stdout, &[])?;
    let mut polled = [PollFd::new(&stdout, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&at_once))?;
    if polled
        .iter()
        .any(|fd| fd.revents().intersects(PollFlags::ERR))
    {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let is_file = fstat(&stdout)
        .is_ok_and(|file| FileType::from_raw_mode(file.st_mode) == FileType::RegularFile);
    // The space reserved for root does not count.
    if is_file && fstatvfs(&stdout).is_ok_and(|disk| disk.f_blocks > 0 && disk.f_bavail == 0) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// A table with a heading: columns as wide as their widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.width())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| padded(cell, *width))
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
        // Two columns for each wide character, none for a combining one.
        assert_eq!(
            table(&[
                vec![cell("漢字"), cell("x")],
                vec![cell("e\u{301}"), cell("y")]
            ]),
            "漢字  x\ne\u{301}     y\n"
        );
    }
}
