//! Errors of commands: message, reason, hint and exit code.

use std::fmt::Display;

use serde_json::{Value, json};

use crate::client::Error;
use crate::model::{Exit, ParseError, Reason};

/// An error with its exit code, message and hint.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) exit: Exit,
    /// The broker's reason, if it gave one.
    pub(super) reason: Option<Reason>,
    /// The message: untrusted text in it is escaped.
    pub(super) message: String,
    pub(super) correlation: Option<String>,
    pub(super) hint: Option<String>,
}

impl CliError {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            reason: None,
            message: message.into(),
            correlation: None,
            hint: None,
        }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::UsageError, message)
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn to_json(&self) -> Value {
        let mut error = json!({ "code": self.exit.number(), "message": self.message });
        if let Some(members) = error.as_object_mut() {
            for (name, value) in [
                ("reason", self.reason.map(|r| r.as_str().to_owned())),
                ("correlation", self.correlation.clone()),
                ("hint", self.hint.clone()),
            ] {
                if let Some(value) = value {
                    members.insert(name.to_owned(), Value::String(value));
                }
            }
        }
        json!({ "error": error })
    }
}

/// An error of a file or another system call, as `subject: why`.
pub(super) fn io_error(subject: impl Display) -> impl FnOnce(std::io::Error) -> CliError {
    let subject = subject.to_string();
    move |source| CliError::failed(format!("{subject}: {source}"))
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
            | Error::TokenEnded { .. }
            | Error::Evidence(_)
            | Error::Answer(_)
            | Error::SignVote(_)
            | Error::Key(_)
            | Error::Proof(_)
            | Error::NoRandomness => error.reason().map_or(Exit::Failed, Reason::exit),
        };
        let hint = match &error {
            Error::Unreachable { .. } | Error::TimedOut { .. } => Some(
                "check that the broker is running and that --url or DIPYLON_URL is its address; 'dipylon serve --dev' starts one",
            ),
            Error::SignVote(_) => Some(
                "the broker's statement differs from the card: do not vote, and tell your security team",
            ),
            Error::Refused(_)
            | Error::TokenEnded { .. }
            | Error::Url(_)
            | Error::Trust(_)
            | Error::Evidence(_)
            | Error::InvalidInput(_)
            | Error::Answer(_)
            | Error::Key(_)
            | Error::Proof(_)
            | Error::NoRandomness => error.reason().map(Reason::next_step),
        };
        Self {
            exit,
            reason: error.reason(),
            correlation: error.correlation().map(str::to_owned),
            message: error.to_string(),
            hint: hint.map(str::to_owned),
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
        let error = CliError::failed("m").with_hint("n").to_json();
        assert_eq!(
            error,
            json!({ "error": { "code": 1, "message": "m", "hint": "n" } })
        );
    }
}
