//! gRPC statuses: the model's table of reasons as `google.rpc.Status` with `ErrorInfo` and `RetryInfo`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::broker::{Broker, Refusal};
use crate::model::{self, RetryHint};
use crate::proto::ERROR_DOMAIN;

/// Key of the correlation id in `ErrorInfo.metadata`.
pub const CORRELATION: &str = "correlation";

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
        model::Code::Unimplemented => Code::Unimplemented,
        model::Code::DeadlineExceeded => Code::DeadlineExceeded,
        model::Code::Internal => Code::Internal,
    }
}

/// The status of a refusal; a caller whose key or evidence verified gets a fresh nonce with it.
pub fn status(refusal: &Refusal, broker: &Broker) -> Status {
    let metadata = HashMap::from([(CORRELATION.to_owned(), refusal.correlation.to_string())]);
    let mut details =
        ErrorDetails::with_error_info(refusal.reason.as_str(), ERROR_DOMAIN, metadata);
    if let Some(after) = retry_delay(refusal) {
        details.set_retry_info(Some(after));
    }
    let code = code(refusal.reason.code());
    let mut status = Status::with_error_details(code, shorten(&refusal.message), details);
    if refusal.gives_nonce {
        put_nonce(status.metadata_mut(), broker);
    }
    if !refusal.is_logged {
        status.set_source(Arc::new(UnloggedRefusal));
    }
    status
}

/// When to try again: what the refusal says, else its reason.
pub fn retry_delay(refusal: &Refusal) -> Option<Duration> {
    let hint = match refusal.reason.retry() {
        RetryHint::AfterMs(ms @ 1..) => Some(Duration::from_millis(u64::from(ms))),
        RetryHint::AfterMs(0) | RetryHint::Never => None,
    };
    refusal.retry_after.or(hint)
}

/// Marks the response to a refusal without a log line, for the request log: the source of a status, an extension of an HTTP
/// response.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the refusal has no log line")]
pub struct UnloggedRefusal;

/// Longest message of a status, in bytes as sent: percent-encoded in `grpc-message`, and once more in the base64 of
/// `grpc-status-details-bin`. gRPC's own libraries accept 8 KiB of metadata by default, and a client that accepts less than it
/// gets reports RESOURCE_EXHAUSTED in place of the refusal.
const MESSAGE_SENT_BYTES_MAX: usize = 6 * 1024;
/// Room for the line that counts what was left out.
const NOTE_BYTES: usize = 128;

/// A message that fits into a status: its first lines, and how many more there are.
fn shorten(message: &str) -> Cow<'_, str> {
    if sent_bytes(message) <= MESSAGE_SENT_BYTES_MAX {
        return Cow::Borrowed(message);
    }
    let mut left = MESSAGE_SENT_BYTES_MAX - NOTE_BYTES;
    let mut kept = String::new();
    let lines = message.lines().count();
    for (n, line) in message.lines().enumerate() {
        let cost = sent_bytes(line) + sent_bytes("\n");
        if cost <= left {
            left -= cost;
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        if n > 0 {
            kept.push_str(&format!("and {} more", lines - n));
            return Cow::Owned(kept);
        }
        // Not one whole line fits.
        let mut buffer = [0; 4];
        for c in line.chars() {
            let cost = sent_bytes(c.encode_utf8(&mut buffer));
            if cost > left {
                break;
            }
            left -= cost;
            kept.push(c);
        }
        kept.push('…');
        if lines > 1 {
            kept.push_str(&format!("\nand {} more", lines - 1));
        }
        return Cow::Owned(kept);
    }
    Cow::Owned(kept)
}

/// Upper bound of the bytes that a text takes in a status.
fn sent_bytes(text: &str) -> usize {
    let encoded: usize = text
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { 1 } else { 3 })
        .sum();
    encoded + text.len().div_ceil(3) * 4
}

/// Adds the next DPoP nonce, as every reply does whose caller's key or evidence verified.
pub fn put_nonce(metadata: &mut tonic::metadata::MetadataMap, broker: &Broker) {
    if let Ok(nonce) = broker.nonce().parse() {
        metadata.insert("dpop-nonce", nonce);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::model::Reason;

    use super::*;

    proptest! {
        #[test]
        fn statuses_fit_into_trailers(lines in prop::collection::vec("\\PC{0,300}", 1..80)) {
            let message = lines.join("\n");
            let short = shorten(&message);
            prop_assert!(sent_bytes(&short) <= MESSAGE_SENT_BYTES_MAX);
            if sent_bytes(&message) <= MESSAGE_SENT_BYTES_MAX {
                prop_assert_eq!(&short, &message);
            }
        }
    }

    #[test]
    fn a_shortened_message_counts_what_is_left_out() {
        let line = "rules/10-agents.cedar:7: the attribute `x` is unknown".to_owned();
        let many = vec![line.clone(); 500].join("\n");
        let short = shorten(&many);
        let kept = short.lines().count() - 1;
        assert!(kept > 10, "{kept}");
        assert_eq!(
            short.lines().last(),
            Some(format!("and {} more", 500 - kept).as_str())
        );
        assert!(short.lines().take(kept).all(|l| l == line));
        let long = shorten(&"é".repeat(10_000)).into_owned();
        assert!(long.ends_with('…') && long.len() > 500, "{}", long.len());
        let both = format!("{}\nsecond", "x".repeat(10_000));
        assert!(shorten(&both).ends_with("…\nand 1 more"));
    }

    #[test]
    fn codes_have_tonic_names() {
        for reason in Reason::ALL {
            let ours = reason.code();
            let theirs = format!("{:?}", code(ours)).to_uppercase();
            assert_eq!(theirs, ours.as_str().replace('_', ""), "{reason}");
        }
    }
}
