//! Revocation feed: follows `WatchRevocations` until the validator is dropped.

use std::sync::Arc;
use std::time::Duration;

use super::{START_MS, ValidatorState};
use crate::client::{CallOptions, Error, backoff_ms, methods};
use crate::model::{ParseError, Reason};
use crate::proto::{convert, v1};

/// Watches, and when the stream ends, for any cause, watches again from the last position; from the start after a gap.
pub(super) async fn run_feed(shared: Arc<ValidatorState>) {
    let mut round = 0;
    loop {
        if watch(&shared).await {
            round = 0;
        }
        let pause = backoff_ms(round).unwrap_or(1_000);
        round = round.saturating_add(1);
        tokio::time::sleep(Duration::from_millis(u64::from(pause))).await;
        // Streams last minutes at most, so a key that the broker withdrew is dropped here within that time.
        let _keys_kept = shared.keys.refresh(shared.config.clock.now()).await;
    }
}

/// One stream, to its end. Returns whether a usable message was received.
async fn watch(shared: &ValidatorState) -> bool {
    let options = CallOptions::by(&shared.config.identity);
    let after = shared
        .read(super::RevocationSet::position)
        .map(convert::position_to_wire);
    let request = v1::WatchRevocationsRequest { after };
    let started = shared
        .endpoint
        .watch::<methods::WatchRevocations>(options, &request);
    let mut stream = match tokio::time::timeout(Duration::from_millis(START_MS), started).await {
        Ok(Ok(stream)) => stream,
        Err(_) => {
            shared.record_error(Error::TimedOut {
                url: shared.endpoint.url().to_owned(),
            });
            return false;
        }
        Ok(Err(error)) => {
            if matches!(
                error.reason(),
                Some(Reason::PositionAhead | Reason::EpochMismatch)
            ) {
                shared.change(super::RevocationSet::restart);
            }
            shared.record_error(error);
            return false;
        }
    };
    let mut received = false;
    let silence = Duration::from_millis(u64::from(shared.config.max_silence_ms));
    loop {
        let message = match tokio::time::timeout(silence, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return received,
            Ok(Err(status)) => {
                shared.record_error(shared.endpoint.stream_error(&status));
                return received;
            }
            // The connection may be broken without a sign.
            Err(_) => return received,
        };
        let now = shared.config.clock.now();
        if let Err(gap) = shared.change(|revoked| revoked.apply(message, now)) {
            shared.record_error(Error::Answer(ParseError::new(
                "revocation feed",
                gap.to_string(),
            )));
            // A message of no use: the backoff goes on.
            return false;
        }
        received = true;
    }
}
