use std::fmt;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::EvidenceError;
use super::vote::SignVoteError;
use crate::jose::KeyError;
use crate::jose::dpop::ProofError;
use crate::model::text::{escape_invisible_capped, escape_rendered_capped};
use crate::model::{ParseError, Reason, RetryHint};
use crate::proto::{ERROR_DOMAIN, code_name};

/// Why a call failed. One line, never with a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The broker's URL is not one that this client can call.
    #[error("broker URL: {0}")]
    Url(&'static str),
    /// The certificate authorities to trust cannot be read.
    #[error("certificate authorities: {0}")]
    Trust(String),
    /// The broker could not be reached, or the connection broke before it answered.
    #[error("the broker at {url} cannot be reached: {cause}")]
    Unreachable {
        /// The broker's URL.
        url: String,
        /// The transport's error.
        cause: String,
    },
    /// The broker did not answer in time.
    #[error("the broker at {url} did not answer in time")]
    TimedOut {
        /// The broker's URL.
        url: String,
    },
    /// The broker refused the call.
    #[error("{0}")]
    Refused(RefusedCall),
    /// The broker refused the evidence as too old that its source had just given: newer evidence must come from the issuer.
    #[error(
        "{0}; the evidence is what its source gave for this very call: renew it at its issuer, then call again"
    )]
    NoNewerEvidence(RefusedCall),
    /// The token has ended: it is no longer presented.
    #[error("the token has ended: {cause}")]
    TokenEnded {
        /// Why, as the broker said.
        cause: String,
    },
    /// There is no evidence to send.
    #[error("{0}")]
    Evidence(#[from] EvidenceError),
    /// A value of the request is malformed.
    #[error("{0}")]
    InvalidInput(#[from] ParseError),
    /// The broker's response is malformed.
    #[error("the broker's response cannot be read: {0}")]
    Answer(ParseError),
    /// The vote was not signed.
    #[error("{0}")]
    SignVote(#[from] SignVoteError),
    /// A key could not be generated.
    #[error("key: {0}")]
    Key(#[from] KeyError),
    /// A DPoP proof could not be created.
    #[error("{0}")]
    Proof(#[from] ProofError),
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    NoRandomness,
}

/// A call that the broker refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedCall {
    reason: Option<Reason>,
    code: Code,
    message: String,
    correlation: Option<String>,
}

impl Error {
    /// The broker's reason, if it sent one that this client knows.
    pub fn reason(&self) -> Option<Reason> {
        self.refused().and_then(|refused| refused.reason)
    }

    /// What the caller can do about it, if the broker sent a reason that this client knows.
    pub fn next(&self) -> Option<&'static str> {
        self.reason().map(Reason::next_step)
    }

    /// The gRPC code of a refusal, such as `PERMISSION_DENIED`.
    pub fn code(&self) -> Option<&'static str> {
        self.refused().map(|refused| code_name(refused.code))
    }

    /// The id by which the operator's `explain` finds the refused call.
    pub fn correlation(&self) -> Option<&str> {
        self.refused()
            .and_then(|refused| refused.correlation.as_deref())
    }

    /// Whether the same call may succeed later, unchanged.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Refused(refused) => refused.is_retryable(),
            Self::NoNewerEvidence(_)
            | Self::Url(_)
            | Self::Trust(_)
            | Self::TokenEnded { .. }
            | Self::Evidence(_)
            | Self::InvalidInput(_)
            | Self::Answer(_)
            | Self::SignVote(_)
            | Self::Key(_)
            | Self::Proof(_)
            | Self::NoRandomness => false,
        }
    }

    /// How long to wait before the call is repeated, in milliseconds: by its reason, at least 1,000.
    pub fn retry_after_ms(&self) -> u32 {
        match self.reason().map(Reason::retry) {
            Some(RetryHint::AfterMs(ms)) => ms.max(RETRY_MS_MIN),
            Some(RetryHint::Never) | None => RETRY_MS_MIN,
        }
    }

    /// The error of a call that carried evidence fetched for it: asking the same source again would not help.
    pub(super) fn of_fresh_evidence(self) -> Self {
        match self {
            Self::Refused(refused) if refused.reason == Some(Reason::EvidenceStale) => {
                Self::NoNewerEvidence(refused)
            }
            other => other,
        }
    }

    fn refused(&self) -> Option<&RefusedCall> {
        match self {
            Self::Refused(refused) | Self::NoNewerEvidence(refused) => Some(refused),
            Self::Url(_)
            | Self::Trust(_)
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::TokenEnded { .. }
            | Self::Evidence(_)
            | Self::InvalidInput(_)
            | Self::Answer(_)
            | Self::SignVote(_)
            | Self::Key(_)
            | Self::Proof(_)
            | Self::NoRandomness => None,
        }
    }

    /// Reads a failed call. `url` is the broker's.
    pub(crate) fn from_status(url: &str, status: &Status) -> Self {
        let info = status
            .get_details_error_info()
            .filter(|info| info.domain == ERROR_DOMAIN);
        // The broker's own word that the deadline passed, or tonic's.
        let late = status.code() == Code::Cancelled && status.message() == TIMED_OUT;
        if late || status.code() == Code::DeadlineExceeded {
            return Self::TimedOut {
                url: url.to_owned(),
            };
        }
        if info.is_none() {
            // tonic keeps a source only for errors of its own side of the wire.
            if let Some(source) = std::error::Error::source(status) {
                return Self::Unreachable {
                    url: url.to_owned(),
                    cause: escape_invisible_capped(
                        &root(status.message(), source),
                        MESSAGE_CHARS_MAX,
                    ),
                };
            }
        }
        Self::Refused(RefusedCall {
            reason: info.as_ref().and_then(|info| Reason::parse(&info.reason)),
            code: status.code(),
            message: escape_rendered_capped(status.message(), MESSAGE_CHARS_MAX),
            correlation: info
                .and_then(|info| info.metadata.get(CORRELATION).cloned())
                .map(|id| escape_invisible_capped(&id, ID_CHARS_MAX)),
        })
    }
}

impl RefusedCall {
    fn is_retryable(&self) -> bool {
        match self.reason {
            Some(reason) => reason.retry() != RetryHint::Never,
            None => matches!(
                self.code,
                Code::Unavailable | Code::Aborted | Code::Cancelled | Code::ResourceExhausted
            ),
        }
    }
}

/// `REASON: message [correlation]`.
impl fmt::Display for RefusedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.map_or(code_name(self.code), Reason::as_str))?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        match &self.correlation {
            Some(correlation) => write!(f, " [{correlation}]"),
            None => Ok(()),
        }
    }
}

/// The transport's message with its root cause: "transport error" alone does not mention the certificate.
fn root(message: &str, source: &dyn std::error::Error) -> String {
    let mut root = source;
    while let Some(deeper) = root.source() {
        root = deeper;
    }
    match root.to_string() {
        cause if cause == message || message == TRANSPORT_ERROR => cause,
        cause => format!("{message}: {cause}"),
    }
}

/// tonic's message for every failure of a connection: the root cause says more.
const TRANSPORT_ERROR: &str = "transport error";
/// tonic's message when the timeout of a call is over; its code is CANCELLED.
const TIMED_OUT: &str = "Timeout expired";
/// Shortest wait before a call is repeated by hand.
const RETRY_MS_MIN: u32 = 1_000;
/// Key in `ErrorInfo.metadata`.
const CORRELATION: &str = "correlation";
/// Longest message kept of a refusal, in characters.
const MESSAGE_CHARS_MAX: usize = 2_000;
const ID_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str, domain: &str, message: &str) -> Status {
        let metadata = HashMap::from([(CORRELATION.to_owned(), "cor_1".to_owned())]);
        Status::with_error_details(
            code,
            message,
            ErrorDetails::with_error_info(reason, domain, metadata),
        )
    }

    #[test]
    fn refusal_displays_as_one_line() {
        let error = Error::from_status(
            "u",
            &status(
                Code::NotFound,
                "NOT_FOUND",
                "dipylon",
                "no such\ntask\u{1b}[31m",
            ),
        );
        assert_eq!(
            error.to_string(),
            "NOT_FOUND: no such<U+000A>task<U+001B>[31m [cor_1]"
        );
        assert_eq!(
            (error.reason(), error.code()),
            (Some(Reason::NotFound), Some("NOT_FOUND"))
        );
        assert_eq!(error.correlation(), Some("cor_1"));
        assert!(!error.is_retryable());
    }

    #[test]
    fn unknown_error_domain_has_no_reason() {
        let error = Error::from_status("u", &status(Code::Unavailable, "CONFLICT", "other", "m"));
        assert_eq!(
            (error.reason(), error.code(), error.correlation()),
            (None, Some("UNAVAILABLE"), None)
        );
        assert!(error.is_retryable());
        assert!(
            Error::from_status("u", &status(Code::Aborted, "CONFLICT", "dipylon", ""))
                .is_retryable()
        );
        assert!(
            !Error::from_status(
                "u",
                &status(Code::Unauthenticated, "NOT_AUTHENTICATED", "dipylon", "")
            )
            .is_retryable()
        );
    }

    #[test]
    fn transport_errors_are_not_refusals() {
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert!(matches!(
            Error::from_status("http://b", &broken),
            Error::Unreachable { .. }
        ));
        let late = Status::cancelled(TIMED_OUT);
        assert_eq!(
            Error::from_status("http://b", &late),
            Error::TimedOut {
                url: "http://b".to_owned()
            }
        );
    }
}
