//! The token holder: keeps the token and its key, and makes the headers of one request at a time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::lease::TaskLease;
use super::upstream::Upstream;
use crate::client::{AccessToken, DpopHeaders, Error};
use crate::clock::Clock;
use crate::model::Timestamp;

/// The token, its audience, and whether it may still be used.
pub(super) struct TokenHolder {
    pub(super) token: AccessToken,
    pub(super) upstream: Upstream,
    clock: Clock,
    /// The uptime from which the token is not sent, if the broker gave its lifetime: the wall clock may be wrong.
    usable_until: Option<Duration>,
    /// The lease of the task, if it has one.
    lease: Option<TaskLease>,
    /// The resource server's newest nonce (RFC 9449 §9).
    nonce: Mutex<Option<String>>,
    /// Why the token or its task ended, once it has.
    end_cause: watch::Sender<Option<String>>,
}

/// Why the token can no longer be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenUnavailable {
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    #[error("the token has ended: {0}")]
    Ended(String),
    #[error(
        "the broker has not answered for the length of the task's heartbeat, so the task may have ended: retry once it can be reached"
    )]
    Unconfirmed,
}

impl TokenUnavailable {
    /// The machine-readable reason.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Expired(_) => "TOKEN_EXPIRED",
            Self::Ended(_) => "TOKEN_ENDED",
            Self::Unconfirmed => "TASK_UNCONFIRMED",
        }
    }
}

impl TokenHolder {
    pub(super) fn new(
        token: AccessToken,
        upstream: Upstream,
        clock: Clock,
        lease: Option<TaskLease>,
    ) -> Self {
        let granted = token.ttl().and_then(|ttl| ttl.granted);
        let granted = granted.and_then(|seconds| u64::try_from(seconds).ok());
        let lives = |seconds| clock.uptime().saturating_add(Duration::from_secs(seconds));
        Self {
            usable_until: granted.map(lives),
            token,
            upstream,
            clock,
            lease,
            nonce: Mutex::default(),
            end_cause: watch::Sender::new(None),
        }
    }

    /// Fails once the token expired or ended, and while its task may have ended unheard. The audience checks for itself on every request.
    pub(super) fn check_available(&self) -> Result<(), TokenUnavailable> {
        if let Some(end) = self.end_on_record() {
            return Err(end);
        }
        let expires_at = self.token.expires_at();
        let has_expired = match self.usable_until {
            Some(until) => self.clock.uptime() >= until,
            None => self.clock.now() >= expires_at,
        };
        if has_expired {
            return Err(TokenUnavailable::Expired(expires_at));
        }
        match &self.lease {
            Some(lease) if !lease.is_current() => Err(TokenUnavailable::Unconfirmed),
            Some(_) | None => Ok(()),
        }
    }

    /// The end of the token, if it has ended. Expiry does not count.
    pub(super) fn end_on_record(&self) -> Option<TokenUnavailable> {
        let end_cause = self.end_cause.borrow();
        end_cause.clone().map(TokenUnavailable::Ended)
    }

    /// Ends the use of the token; the first cause stays.
    pub(super) fn end(&self, cause: &str) {
        self.end_cause.send_if_modified(|end_cause| {
            let first = end_cause.is_none();
            end_cause.get_or_insert_with(|| cause.to_owned());
            first
        });
    }

    /// Waits until the token has ended. Expiry does not count: a request that began before it may finish.
    pub(super) fn ended(&self) -> impl Future<Output = TokenUnavailable> + Send + use<> {
        let mut end_cause = self.end_cause.subscribe();
        async move {
            let cause = match end_cause.wait_for(Option::is_some).await {
                Ok(cause) => cause.clone().unwrap_or_default(),
                // The holder is gone, and the token with it.
                Err(_) => String::new(),
            };
            TokenUnavailable::Ended(cause)
        }
    }

    /// The headers of one request to a path below the audience's base.
    pub(super) fn headers(&self, method: &str, path: &str) -> Result<DpopHeaders, Error> {
        let nonce = self
            .nonce
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.headers_with(method, path, nonce.as_deref())
    }

    /// The same with a nonce the caller gives.
    pub(super) fn headers_with(
        &self,
        method: &str,
        path: &str,
        nonce: Option<&str>,
    ) -> Result<DpopHeaders, Error> {
        self.token
            .headers_with_nonce(method, &self.upstream.url(path), nonce)
    }

    /// Stores a nonce that the audience gave.
    pub(super) fn set_nonce(&self, nonce: &str) {
        *self.nonce.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonce.to_owned());
    }
}
