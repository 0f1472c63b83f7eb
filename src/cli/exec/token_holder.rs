//! The token and its key, held here: nobody gets more of them than one request needs.

use std::sync::{Mutex, PoisonError};

use super::upstream::Upstream;
use crate::client::{Error, Headers, Token};
use crate::clock::Clock;
use crate::model::Timestamp;

/// Shows the token to the audience, and to nobody else, as long as there is anything to show.
pub(super) struct TokenHolder {
    pub(super) token: Token,
    pub(super) upstream: Upstream,
    clock: Clock,
    /// The resource server's newest nonce (RFC 9449 §9).
    nonce: Mutex<Option<String>>,
    /// Why the task is over, once it is.
    over: Mutex<Option<String>>,
}

/// Why nothing is shown any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenUnavailable {
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    #[error("the task is over: {0}")]
    Over(String),
}

impl TokenUnavailable {
    /// One word for machines.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Expired(_) => "TOKEN_EXPIRED",
            Self::Over(_) => "TASK_ENDED",
        }
    }
}

impl TokenHolder {
    pub(super) fn new(token: Token, upstream: Upstream, clock: Clock) -> Self {
        Self {
            token,
            upstream,
            clock,
            nonce: Mutex::default(),
            over: Mutex::default(),
        }
    }

    /// Whether the token can still be good. The audience knows better, and is asked by every request.
    pub(super) fn alive(&self) -> Result<(), TokenUnavailable> {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = over.as_ref() {
            return Err(TokenUnavailable::Over(why.clone()));
        }
        let expires_at = self.token.expires_at();
        if self.clock.now() < expires_at {
            Ok(())
        } else {
            Err(TokenUnavailable::Expired(expires_at))
        }
    }

    /// From now on nothing is shown.
    pub(super) fn end(&self, why: &str) {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        over.get_or_insert_with(|| why.to_owned());
    }

    /// The headers of one request to a path below the audience's base.
    pub(super) fn headers(&self, method: &str, path: &str) -> Result<Headers, Error> {
        let nonce = self
            .nonce
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.headers_with(method, path, nonce.as_deref())
    }

    /// The same with a nonce that the caller knows.
    pub(super) fn headers_with(
        &self,
        method: &str,
        path: &str,
        nonce: Option<&str>,
    ) -> Result<Headers, Error> {
        self.token
            .headers_with_nonce(method, &self.upstream.url(path), nonce)
    }

    /// Keeps a nonce that the audience gave.
    pub(super) fn remember(&self, nonce: &str) {
        *self.nonce.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonce.to_owned());
    }
}
