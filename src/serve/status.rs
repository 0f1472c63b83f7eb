//! gRPC statuses: the model's table of reasons as `google.rpc.Status` with `ErrorInfo` and `RetryInfo`.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::broker::{Broker, Refusal};
use crate::model::{self, RetryHint};
use crate::proto::ERROR_DOMAIN;

/// The model's codes as tonic's.
pub const fn code(code: model::Code) -> Code {
    match code {
        model::Code::InvalidArgument => Code::InvalidArgument,
        model::Code::NotFound => Code::NotFound,
        model::Code::AlreadyExists => Code::AlreadyExists,
        model::Code::PermissionDenied => Code::PermissionDenied,
        model::Code::ResourceExhausted => Code::ResourceExhausted,
        model::Code::FailedPrecondition => Code::FailedPrecondition,
        model::Code::Aborted => Code::Aborted,
        model::Code::OutOfRange => Code::OutOfRange,
        model::Code::Unavailable => Code::Unavailable,
        model::Code::Unauthenticated => Code::Unauthenticated,
    }
}

/// The status of a refusal; a caller whose key or evidence verified gets a fresh nonce with it.
pub fn status(refusal: &Refusal, broker: &Broker) -> Status {
    let metadata = HashMap::from([("correlation".to_owned(), refusal.correlation.to_string())]);
    let mut details =
        ErrorDetails::with_error_info(refusal.reason.as_str(), ERROR_DOMAIN, metadata);
    let retry = match refusal.reason.retry() {
        RetryHint::AfterMs(ms @ 1..) => Some(Duration::from_millis(u64::from(ms))),
        RetryHint::AfterMs(0) | RetryHint::Never => None,
    };
    if let Some(after) = refusal.retry_after.or(retry) {
        details.set_retry_info(Some(after));
    }
    let code = code(refusal.reason.code());
    let mut status = Status::with_error_details(code, refusal.message.clone(), details);
    if refusal.authenticated {
        put_nonce(status.metadata_mut(), broker);
    }
    status
}

/// The status of a call that was shed before its message was read: when to retry.
pub fn rate_limited(after: Duration) -> Status {
    let reason = model::Reason::RateLimited;
    let mut details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::new());
    details.set_retry_info(Some(after));
    Status::with_error_details(code(reason.code()), reason.text(), details)
}

/// Adds the next DPoP nonce, as every reply does whose caller's key or evidence verified.
pub fn put_nonce(metadata: &mut tonic::metadata::MetadataMap, broker: &Broker) {
    if let Ok(nonce) = broker.nonce().parse() {
        metadata.insert("dpop-nonce", nonce);
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Reason;

    use super::*;

    #[test]
    fn codes_have_tonic_names() {
        for reason in Reason::ALL {
            let ours = reason.code();
            let theirs = format!("{:?}", code(ours)).to_uppercase();
            assert_eq!(theirs, ours.as_str().replace('_', ""), "{reason}");
        }
    }
}
