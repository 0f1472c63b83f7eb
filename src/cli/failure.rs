//! Why a verb did not do what it was asked to, and what to do next.

use std::fmt::Display;

use serde_json::{Value, json};

use crate::client::Error;
use crate::model::{Malformed, Reason};

/// Ways a verb ends, each with its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Anything that is none of the others.
    Failed,
    /// What was asked is not understood.
    Usage,
    /// Rules or people said no, or the caller may not.
    Denied,
    /// The broker cannot be reached, or cannot write.
    Unavailable,
    /// Gate 1 did not open.
    NotAuthenticated,
}

/// Exit code of an answer that waits for people.
pub(super) const PENDING: u8 = 11;
/// Exit code of a no.
pub(super) const DENIED: u8 = 10;
/// Exit code of an access request that nobody decided.
pub(super) const EXPIRED: u8 = 12;

impl Kind {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Denied => DENIED,
            Self::Unavailable => 14,
            Self::NotAuthenticated => 20,
        }
    }
}

/// One line for a person, one word for a machine, one hint.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// The broker's reason, where it gave one.
    pub(super) reason: Option<Reason>,
    /// Safe to print.
    pub(super) message: String,
    pub(super) correlation: Option<String>,
    pub(super) next: Option<String>,
}

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            reason: None,
            message: message.into(),
            correlation: None,
            next: None,
        }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub(super) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    pub(super) fn to_json(&self) -> Value {
        let mut error = json!({ "code": self.kind.code(), "message": self.message });
        if let Some(members) = error.as_object_mut() {
            for (name, value) in [
                ("reason", self.reason.map(|r| r.as_str().to_owned())),
                ("correlation", self.correlation.clone()),
                ("next", self.next.clone()),
            ] {
                if let Some(value) = value {
                    members.insert(name.to_owned(), Value::String(value));
                }
            }
        }
        json!({ "error": error })
    }
}

/// `what: why`, for errors of files and the like.
pub(super) fn failed(what: impl Display) -> impl FnOnce(std::io::Error) -> Failure {
    let what = what.to_string();
    move |source| Failure::failed(format!("{what}: {source}"))
}

impl From<Malformed> for Failure {
    fn from(error: Malformed) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<crate::keys::KeyFileError> for Failure {
    fn from(error: crate::keys::KeyFileError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Unreachable { .. } | Error::TimedOut { .. } => Kind::Unavailable,
            Error::Url(_) | Error::Malformed(_) => Kind::Usage,
            Error::Refused(_)
                if error.reason().is_none() && error.code() == Some("UNAVAILABLE") =>
            {
                Kind::Unavailable
            }
            Error::Refused(_)
            | Error::Evidence(_)
            | Error::Answer(_)
            | Error::Ballot(_)
            | Error::Key(_)
            | Error::Proof(_)
            | Error::NoRandomness => error.reason().map_or(Kind::Failed, kind_of),
        };
        let next = match &error {
            Error::Unreachable { .. } | Error::TimedOut { .. } => {
                Some("is it running? 'dipylon serve --dev' starts one; DIPYLON_URL names another")
            }
            Error::Ballot(_) => Some(
                "the broker says one thing and asks you to sign another: do not vote, tell your security team",
            ),
            Error::Refused(_)
            | Error::Url(_)
            | Error::Evidence(_)
            | Error::Malformed(_)
            | Error::Answer(_)
            | Error::Key(_)
            | Error::Proof(_)
            | Error::NoRandomness => error.reason().and_then(hint),
        };
        Self {
            kind,
            reason: error.reason(),
            correlation: error.correlation().map(str::to_owned),
            message: error.to_string(),
            next: next.map(str::to_owned),
        }
    }
}

/// The exit code that belongs to a reason.
const fn kind_of(reason: Reason) -> Kind {
    match reason {
        Reason::NotAuthenticated | Reason::UseDpopNonce | Reason::EvidenceStale => {
            Kind::NotAuthenticated
        }
        Reason::NotPermitted | Reason::NotEligible => Kind::Denied,
        Reason::JournalUnavailable | Reason::Undecided | Reason::TooBusy | Reason::RateLimited => {
            Kind::Unavailable
        }
        Reason::Malformed
        | Reason::UnknownAction
        | Reason::UnknownTarget
        | Reason::WrongParameters
        | Reason::UnknownAudience
        | Reason::InvalidTtl
        | Reason::InvalidPolicyBundle
        | Reason::NotFound
        | Reason::RequestIdReused
        | Reason::TaskEnded
        | Reason::TokenDead
        | Reason::UseSpent
        | Reason::TokenInactive
        | Reason::AccessRequestClosed
        | Reason::StatementUnknown
        | Reason::SignatureWrong
        | Reason::PositionAhead
        | Reason::OtherEpoch
        | Reason::Conflict
        | Reason::TooManyPending
        | Reason::TooManyTasks
        | Reason::TooManyRefusals => Kind::Failed,
    }
}

/// What the person at the terminal can do about it.
const fn hint(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::NotAuthenticated => {
            Some("an operator finds the cause with 'dipylon explain' and the correlation id")
        }
        Reason::EvidenceStale => {
            Some("show fresh evidence: --evidence FILE, or --agent ID in development")
        }
        Reason::NotPermitted => Some("use the key of a person or service whose role allows it"),
        Reason::TaskEnded => Some("open another task: 'dipylon task open'"),
        Reason::RequestIdReused | Reason::TokenDead => Some("ask again under a new --request-id"),
        Reason::AccessRequestClosed => Some("'dipylon inbox' lists what still waits"),
        Reason::NotEligible => Some("somebody else has to vote"),
        Reason::StatementUnknown => {
            Some("vote again: a statement waits two minutes for its signature")
        }
        Reason::UnknownAction
        | Reason::UnknownTarget
        | Reason::WrongParameters
        | Reason::UnknownAudience => Some(
            "the catalogue is schema.cedarschema of the policy bundle, targets are in entities.json, audiences in people.toml",
        ),
        Reason::Conflict
        | Reason::TooBusy
        | Reason::RateLimited
        | Reason::JournalUnavailable
        | Reason::Undecided => Some("try again"),
        Reason::TooManyPending | Reason::TooManyRefusals => Some("wait a minute, then try again"),
        Reason::TooManyTasks => Some("complete tasks that are done: 'dipylon task complete'"),
        Reason::UseDpopNonce
        | Reason::Malformed
        | Reason::InvalidTtl
        | Reason::InvalidPolicyBundle
        | Reason::NotFound
        | Reason::UseSpent
        | Reason::TokenInactive
        | Reason::SignatureWrong
        | Reason::PositionAhead
        | Reason::OtherEpoch => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_code() {
        let code = |reason| kind_of(reason).code();
        assert_eq!(code(Reason::NotAuthenticated), 20);
        assert_eq!(code(Reason::NotEligible), 10);
        assert_eq!(code(Reason::JournalUnavailable), 14);
        assert_eq!(code(Reason::NotFound), 1);
        let away = Error::Unreachable {
            url: "http://b".to_owned(),
            cause: "refused".to_owned(),
        };
        assert_eq!(Failure::from(away).kind.code(), 14);
        let error = Failure::failed("m").next("n").to_json();
        assert_eq!(
            error,
            json!({ "error": { "code": 1, "message": "m", "next": "n" } })
        );
    }
}
