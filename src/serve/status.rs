//! The one table from reasons to statuses.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::broker::{Hall, Refusal};
use crate::model::Reason;
use crate::proto::ERROR_DOMAIN;

/// The gRPC code of a reason, and when a retry may help.
pub const fn code(reason: Reason) -> (Code, Option<Duration>) {
    match reason {
        Reason::NotAuthenticated | Reason::UseDpopNonce | Reason::EvidenceStale => {
            (Code::Unauthenticated, None)
        }
        Reason::NotPermitted | Reason::NotEligible => (Code::PermissionDenied, None),
        Reason::Malformed
        | Reason::UnknownAction
        | Reason::UnknownTarget
        | Reason::WrongParameters
        | Reason::UnknownAudience
        | Reason::InvalidTtl
        | Reason::InvalidPolicyBundle
        | Reason::SignatureWrong => (Code::InvalidArgument, None),
        Reason::NotFound => (Code::NotFound, None),
        Reason::RequestIdReused => (Code::AlreadyExists, None),
        Reason::TaskEnded
        | Reason::TokenDead
        | Reason::UseSpent
        | Reason::TokenInactive
        | Reason::AccessRequestClosed
        | Reason::StatementUnknown
        | Reason::OtherEpoch => (Code::FailedPrecondition, None),
        Reason::PositionAhead => (Code::OutOfRange, None),
        Reason::Conflict => (Code::Aborted, Some(Duration::from_millis(50))),
        Reason::TooManyPending | Reason::TooManyTasks | Reason::TooManyRefusals => {
            (Code::ResourceExhausted, Some(Duration::from_secs(60)))
        }
        Reason::TooBusy | Reason::RateLimited => {
            (Code::ResourceExhausted, Some(Duration::from_secs(1)))
        }
        Reason::JournalUnavailable | Reason::Undecided => {
            (Code::Unavailable, Some(Duration::from_secs(1)))
        }
    }
}

/// The status of a refusal; a caller who has shown something that holds gets a fresh nonce with it.
pub fn status(refusal: &Refusal, hall: &Hall) -> Status {
    let (code, retry) = code(refusal.reason);
    let metadata = HashMap::from([("correlation".to_owned(), refusal.correlation.to_string())]);
    let mut details =
        ErrorDetails::with_error_info(refusal.reason.as_str(), ERROR_DOMAIN, metadata);
    if let Some(after) = refusal.retry_after.or(retry) {
        details.set_retry_info(Some(after));
    }
    let mut status = Status::with_error_details(code, refusal.told.clone(), details);
    if refusal.known {
        put_nonce(status.metadata_mut(), hall);
    }
    status
}

/// The word for a code in figures and logs.
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What a call is told that nobody has looked at: when to come again.
pub fn rate_limited(after: Duration) -> Status {
    let reason = Reason::RateLimited;
    let mut details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::new());
    details.set_retry_info(Some(after));
    Status::with_error_details(
        code(reason).0,
        "too many calls; nothing was done, try again when told",
        details,
    )
}

/// The next nonce, as the metadata of every reply after a key or evidence held.
pub fn put_nonce(metadata: &mut tonic::metadata::MetadataMap, hall: &Hall) {
    if let Ok(nonce) = hall.nonce().parse() {
        metadata.insert("dpop-nonce", nonce);
    }
}
