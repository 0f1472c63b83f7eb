//! Errors of commands: message, reason, next step and exit code.

use std::fmt::Display;

use clap::error::ErrorKind;
use serde_json::{Value, json};

use super::parse;
use crate::client::Error;
use crate::model::{Exit, ParseError, Reason};

/// An error with its exit code, message and next step.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) exit: Exit,
    /// The broker's reason, if it gave one.
    pub(super) reason: Option<Reason>,
    /// The message: untrusted text in it is escaped.
    pub(super) message: String,
    pub(super) correlation: Option<String>,
    /// What the user can do about it.
    pub(super) next_step: Option<String>,
}

impl CliError {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            reason: None,
            message: without_error_numbers(&message.into()),
            correlation: None,
            next_step: None,
        }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::UsageError, message)
    }

    pub(super) fn with_next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = Some(next_step.into());
        self
    }

    /// A usage error that clap found: its first paragraph, and its tip or the usage.
    pub(super) fn from_clap(error: &clap::Error) -> Self {
        if matches!(
            error.kind(),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
        ) {
            return Self::usage("no command given").with_next_step("'--help' lists the commands");
        }
        let text = error.render().to_string();
        let mut paragraphs = text.split("\n\n").map(|paragraph| {
            let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
            lines.join(" ")
        });
        let message = paragraphs.next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        let rest: Vec<String> = paragraphs.collect();
        let starts = |word: &str| rest.iter().find_map(|text| text.strip_prefix(word));
        let next_step = starts("tip: ").map_or_else(
            || match starts("Usage: ") {
                Some(usage) => format!("usage: {usage}"),
                None => "'--help' lists the options".to_owned(),
            },
            str::to_owned,
        );
        Self::usage(message).with_next_step(next_step)
    }

    /// All five members are always there: `null` means that there is none.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "error": {
                "reason": self.reason.map(Reason::as_str),
                "message": self.message,
                "next_step": self.next_step,
                "correlation_id": self.correlation,
                "exit": self.exit.number(),
            }
        })
    }

    /// The message, and the next step on a line of its own.
    pub(super) fn to_text(&self) -> String {
        let next_step = self
            .next_step
            .as_ref()
            .map(|next_step| format!("\n         {next_step}"))
            .unwrap_or_default();
        format!("dipylon: {}{next_step}", self.message)
    }
}

/// An error of a file or another system call, as `subject: why`.
pub(super) fn io_error(subject: impl Display) -> impl FnOnce(std::io::Error) -> CliError {
    let subject = subject.to_string();
    move |source| {
        let error = CliError::failed(format!("{subject}: {}", system_text(&source)));
        match source.kind() {
            std::io::ErrorKind::NotFound => error.with_next_step(
                "check the path: it is relative to the current directory unless it begins with /",
            ),
            std::io::ErrorKind::PermissionDenied => {
                error.with_next_step("check the owner and the mode of the file and its directory")
            }
            std::io::ErrorKind::IsADirectory => {
                error.with_next_step("give a file, not a directory")
            }
            std::io::ErrorKind::StorageFull => error.with_next_step("free some space first"),
            _ => error,
        }
    }
}

/// The text without ` (os error 2)`: the words before it say the same.
fn without_error_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.split_once(')').map_or(part, |(_, after)| after));
    }
    out
}

/// A system error as text, without its number and in lower case.
pub(super) fn system_text(error: &std::io::Error) -> String {
    let text = without_error_numbers(&error.to_string());
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => format!("{}{}", first.to_lowercase(), letters.as_str()),
        None => String::new(),
    }
}

impl From<ParseError> for CliError {
    fn from(error: ParseError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<crate::keys::KeyFileError> for CliError {
    fn from(error: crate::keys::KeyFileError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<crate::keys::FileError> for CliError {
    fn from(error: crate::keys::FileError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<crate::config::ConfigError> for CliError {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<Error> for CliError {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Unreachable { .. } | Error::TimedOut { .. } => Exit::Unavailable,
            Error::Url(_) | Error::Trust(_) | Error::InvalidInput(_) => Exit::UsageError,
            Error::Refused(_)
                if error.reason().is_none() && error.code() == Some("UNAVAILABLE") =>
            {
                Exit::Unavailable
            }
            Error::Refused(_)
            | Error::NoNewerEvidence(_)
            | Error::TokenEnded { .. }
            | Error::Evidence(_)
            | Error::Answer(_)
            | Error::SignVote(_)
            | Error::Key(_)
            | Error::Proof(_)
            | Error::NoRandomness => error.reason().map_or(Exit::Failed, Reason::exit),
        };
        let next_step = match &error {
            // The cause says what to do; the options have names of this program.
            Error::Unreachable { .. } => Some(
                "options: --url (DIPYLON_URL), --ca (DIPYLON_CA), --socket (DIPYLON_SOCKET); 'dipylon serve --dev' starts a development broker",
            ),
            Error::TimedOut { .. } => Some(
                "the call may have taken effect: repeat it; 'dipylon doctor' checks a broker on this machine",
            ),
            Error::Url(_) => Some(
                "--url or DIPYLON_URL is the broker's external URL; --allow-plain-http allows plain http in a network that you trust",
            ),
            Error::SignVote(_) => Some(
                "the broker's statement differs from the card: do not vote, and tell your security team",
            ),
            Error::NoNewerEvidence(_) => Some(
                "get newer evidence from its issuer (--evidence FILE is read for each call; --agent ID makes it in development)",
            ),
            Error::Refused(_)
            | Error::TokenEnded { .. }
            | Error::Trust(_)
            | Error::Evidence(_)
            | Error::InvalidInput(_)
            | Error::Answer(_)
            | Error::Key(_)
            | Error::Proof(_)
            | Error::NoRandomness => error.reason().map(Reason::next_step),
        };
        let form = match error.reason() {
            Some(Reason::InvalidParameters) => parse::param_form(&error.to_string()),
            Some(_) | None => None,
        };
        Self {
            exit,
            reason: error.reason(),
            correlation: error.correlation().map(str::to_owned),
            message: error.to_string(),
            next_step: form.or_else(|| next_step.map(str::to_owned)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_carries_exit_code() {
        let away = Error::Unreachable {
            url: "http://b".to_owned(),
            cause: "refused".to_owned(),
        };
        assert_eq!(CliError::from(away).exit.number(), 14);
        let error = CliError::failed("m").with_next_step("n").to_json();
        assert_eq!(
            error,
            json!({ "error": {
                "reason": null, "message": "m", "next_step": "n", "correlation_id": null, "exit": 1
            } })
        );
    }
}
