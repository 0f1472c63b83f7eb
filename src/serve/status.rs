//! Reasons as statuses: the model's one table, in the words of gRPC (google.rpc.Status) and HTTP (RFC 9457).

use std::collections::HashMap;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::broker::{Hall, Refusal};
use crate::model::{self, Retry};
use crate::proto::ERROR_DOMAIN;

/// The model's codes, by tonic's names.
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

/// The status of a refusal; a caller who has shown something that holds gets a fresh nonce with it.
pub fn status(refusal: &Refusal, hall: &Hall) -> Status {
    let metadata = HashMap::from([("correlation".to_owned(), refusal.correlation.to_string())]);
    let mut details =
        ErrorDetails::with_error_info(refusal.reason.as_str(), ERROR_DOMAIN, metadata);
    let retry = match refusal.reason.retry() {
        Retry::AfterMs(ms @ 1..) => Some(Duration::from_millis(u64::from(ms))),
        Retry::AfterMs(0) | Retry::Never => None,
    };
    if let Some(after) = refusal.retry_after.or(retry) {
        details.set_retry_info(Some(after));
    }
    let code = code(refusal.reason.code());
    let mut status = Status::with_error_details(code, refusal.told.clone(), details);
    if refusal.known {
        put_nonce(status.metadata_mut(), hall);
    }
    status
}

/// The same refusal for whoever speaks HTTP: problem details (RFC 9457), the reason beside the standard members.
pub fn problem(refusal: &Refusal) -> Response {
    let reason = refusal.reason;
    let body = json!({
        "type": format!("urn:dipylon:reason:{reason}"),
        "title": reason.text(),
        "status": reason.code().http(),
        "detail": refusal.told,
        "reason": reason,
        "next": reason.next(),
        "correlation": refusal.correlation.to_string(),
    });
    let status =
        StatusCode::from_u16(reason.code().http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    let mut response = (status, kind, body.to_string()).into_response();
    if let Retry::AfterMs(ms @ 1..) = reason.retry() {
        // RFC 9110 §10.2.3 counts whole seconds.
        let after = HeaderValue::from(ms.div_ceil(1_000));
        response.headers_mut().insert(header::RETRY_AFTER, after);
    }
    response
}

/// What a call is told that nobody has looked at: when to come again.
pub fn rate_limited(after: Duration) -> Status {
    let reason = model::Reason::RateLimited;
    let mut details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::new());
    details.set_retry_info(Some(after));
    Status::with_error_details(code(reason.code()), reason.text(), details)
}

/// The next nonce, as the metadata of every reply after a key or evidence held.
pub fn put_nonce(metadata: &mut tonic::metadata::MetadataMap, hall: &Hall) {
    if let Ok(nonce) = hall.nonce().parse() {
        metadata.insert("dpop-nonce", nonce);
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{CorrelationId, Reason};

    use super::*;

    #[test]
    fn every_code_keeps_its_name() {
        for reason in Reason::ALL {
            let ours = reason.code();
            let theirs = format!("{:?}", code(ours)).to_uppercase();
            assert_eq!(theirs, ours.as_str().replace('_', ""), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_problem_says_the_same_as_the_status() {
        let refusal = Refusal {
            reason: Reason::Conflict,
            told: "nothing was done".to_owned(),
            correlation: CorrelationId::from_random([7; 16]),
            known: true,
            retry_after: None,
        };
        let response = problem(&refusal);
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        assert_eq!(response.headers()["retry-after"], "1");
        let body = axum::body::to_bytes(response.into_body(), 4_096).await;
        let body: serde_json::Value = serde_json::from_slice(&body.expect("body")).expect("json");
        assert_eq!(body["reason"], "CONFLICT");
        assert_eq!(body["status"], 409);
        assert_eq!(body["detail"], "nothing was done");
        assert_eq!(body["correlation"], refusal.correlation.to_string());
        for reason in Reason::ALL {
            let status = problem(&Refusal {
                reason: *reason,
                ..refusal.clone()
            })
            .status();
            assert_eq!(status.as_u16(), reason.code().http(), "{reason}");
        }
    }
}
