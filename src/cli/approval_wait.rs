//! Waiting for the decision on an access request.

use crate::client::{Error, PendingApproval, TaskHandle, TokenOutcome, TokenRequest};
use crate::clock::Clock;

/// How long a broker is waited for that cannot be reached, in seconds, once the access request has expired by this machine's
/// clock.
const UNREACHABLE_S: i64 = 900;

/// Repeats the token request until it is decided. Only the broker says that the access request has expired: the clock of this
/// machine may be wrong.
///
/// # Errors
/// A refusal by the broker, or that it cannot be reached any more.
pub(super) async fn until_decided(
    task: &TaskHandle,
    request: &TokenRequest,
    pending: &PendingApproval,
    clock: &Clock,
) -> Result<TokenOutcome, Error> {
    loop {
        let until = clock.now().plus_secs(UNREACHABLE_S);
        match task.wait_for_token(request, until).await {
            Ok(TokenOutcome::Pending(_)) => {}
            Err(error) if error.is_retryable() && clock.now() < pending.expires_at() => {}
            decided => return decided,
        }
    }
}
