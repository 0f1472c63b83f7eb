//! Offline token validation for resource servers: signature, lifetime, revocation, proof of possession and action.
//!
//! In: the token and proof of a request, and the action that the server is about to do. Out: [`Authorized`], which only a
//! complete check makes and which [`Validator::consume`] takes by value; or a [`ValidationError`].
//! Trusts: the broker at its configured URL for keys and for the revocation feed; the server for its own external URL.
//! Refuses: every token while the feed is silent, has a gap, or sends a message that this validator cannot read.
//! Never: calls the broker for an offline check, shows a token, or takes an issuer, key or URL from the request.

mod check;
mod feed;
mod keys;
mod replay;
mod revocation_set;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use check::{Authorized, ConsumedUse, PresentedToken, RequiredAction, ValidationError};
pub use keys::FetchError;

pub use crate::client::Introspection;
use crate::client::{CallOptions, ConnectOptions, Endpoint, Error, Identity, methods};
use crate::clock::Clock;
use crate::jose::access_token::{self, TokenError};
use crate::model::{Audience, JournalPosition, Reason, Secret, TokenId, UseId};
use crate::proto::v1;
use keys::Keys;
use replay::ProofReplayCache;
use revocation_set::RevocationSet;

/// Configuration of a validator: the issuer and audience of its tokens, and the revocation feed.
#[derive(Clone)]
pub struct ValidatorConfig {
    /// The broker's external URL.
    pub url: String,
    /// How to connect to the broker.
    pub connect: ConnectOptions,
    /// The issuer that tokens must name, byte by byte.
    pub issuer: String,
    /// The one audience that tokens must name.
    pub audience: Audience,
    /// How this server authenticates to the broker.
    pub identity: Identity,
    /// Longest silence of the feed, in milliseconds, before every token is rejected.
    pub max_silence_ms: u32,
    /// The clock.
    pub clock: Clock,
}

impl ValidatorConfig {
    /// With a silence of at most 5,000 ms, the machine's clock, and a direct connection to the URL.
    pub fn new(url: &str, issuer: &str, audience: Audience, identity: Identity) -> Self {
        Self {
            url: url.to_owned(),
            connect: ConnectOptions::default(),
            issuer: issuer.to_owned(),
            audience,
            identity,
            max_silence_ms: MAX_SILENCE_MS,
            clock: Clock::system(),
        }
    }
}

/// Why a validator did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The broker's keys could not be fetched.
    #[error("{0}")]
    Keys(#[from] FetchError),
    /// The broker refused the feed, or cannot be called.
    #[error("{0}")]
    Broker(#[from] Error),
    /// The feed did not reach the end of the journal in time.
    #[error("the revocation feed is not complete yet")]
    Feed,
}

/// Validates tokens offline, for one audience, and follows the revocation feed until it is dropped.
pub struct Validator {
    shared: Arc<ValidatorState>,
    proofs: Mutex<ProofReplayCache>,
    feed: JoinHandle<()>,
}

/// State shared by the feed's task and the checks.
struct ValidatorState {
    config: ValidatorConfig,
    endpoint: Endpoint,
    keys: Keys,
    revoked: RwLock<RevocationSet>,
    position: watch::Sender<Option<JournalPosition>>,
    last_error: Mutex<Option<Error>>,
}

impl Validator {
    /// Fetches the broker's keys and follows its feed; returns once every revocation that can still matter is known, or fails
    /// after ten seconds.
    pub async fn connect(config: ValidatorConfig) -> Result<Self, ConnectError> {
        let endpoint =
            Endpoint::connect_with(&config.url, &config.connect)?.with_clock(config.clock.clone());
        let keys = Keys::fetch(endpoint.transport(), config.clock.now()).await?;
        let position = watch::Sender::new(None);
        let mut positions = position.subscribe();
        let revoked = RwLock::default();
        let shared = Arc::new(ValidatorState {
            config,
            endpoint,
            keys,
            revoked,
            position,
            last_error: Mutex::default(),
        });
        let feed = tokio::spawn(feed::run_feed(shared.clone()));
        let validator = Self {
            shared,
            proofs: Mutex::default(),
            feed,
        };
        let complete = async {
            while !validator.shared.read(RevocationSet::is_complete) {
                if positions.changed().await.is_err() {
                    break;
                }
            }
        };
        match tokio::time::timeout(Duration::from_millis(START_MS), complete).await {
            Ok(()) => Ok(validator),
            Err(_) => Err(validator
                .last_error()
                .map_or(ConnectError::Feed, ConnectError::Broker)),
        }
    }

    /// Checks a request: signature and lifetime, revocation, proof of possession (RFC 9449 §7), and then the action.
    pub async fn check(
        &self,
        presented: &PresentedToken<'_>,
        require: &RequiredAction,
    ) -> Result<Authorized, ValidationError> {
        let ValidatorState { config, keys, .. } = &*self.shared;
        let now = config.clock.now();
        // A revocation may have been missed: nothing else is checked.
        if self
            .shared
            .read(|revoked| revoked.is_stale(now, config.max_silence_ms))
        {
            return Err(ValidationError::Stale);
        }
        let expect = access_token::ExpectedToken {
            iss: &config.issuer,
            aud: Some(&config.audience),
            now,
        };
        let token = match access_token::check(presented.token, &keys.now(), &expect) {
            Err(TokenError::UnknownKey) => {
                keys.refresh(now)
                    .await
                    .map_err(|_| ValidationError::Stale)?;
                access_token::check(presented.token, &keys.now(), &expect)
            }
            checked => checked,
        };
        let token = token.map_err(ValidationError::Token)?;
        // The fetch may have taken a while; the answer is of now.
        let now = config.clock.now();
        self.shared
            .read(|revoked| revoked.check(token.claims(), now, config.max_silence_ms))?;
        let proof = check::possession(presented, token.claims(), now)?;
        self.proofs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert_once(&proof, now)?;
        check::action(presented, token.claims(), require)?;
        Ok(Authorized::new(
            token,
            Secret::new(presented.token.to_owned()),
            &proof,
        ))
    }

    /// Consumes one use of a token that has a limit: the broker records the use before it answers. A token without a limit
    /// costs no call.
    ///
    /// Choose the `use_id` so that it names the request: with [`Authorized::use_id`] every server of this validator names it
    /// alike, though each has a replay cache of its own, and exactly one of them gets a [`ConsumedUse`].
    ///
    /// # Errors
    ///
    /// [`ValidationError::UseRepeated`] when an earlier call with this `use_id` spent the use, by another server or by this one
    /// before its answer was lost: do not act, because the earlier call may have. [`ValidationError::UsesExhausted`] when
    /// other uses have spent the token, [`ValidationError::Revoked`] when it has ended, and [`ValidationError::Broker`] when the
    /// broker's answer is missing or is not about this use.
    pub async fn consume(
        &self,
        authorized: Authorized,
        use_id: &str,
    ) -> Result<ConsumedUse, ValidationError> {
        let use_id = UseId::parse(use_id)
            .map_err(|error| ValidationError::Broker(Error::InvalidInput(error)))?;
        if authorized.uses().is_none() {
            return Ok(ConsumedUse::new(authorized, None, None));
        }
        let request = v1::ConsumeTokenRequest {
            token: authorized.token().expose_secret().to_owned(),
            use_id: use_id.to_string(),
        };
        let ValidatorState {
            endpoint, config, ..
        } = &*self.shared;
        let answer = endpoint
            .call::<methods::ConsumeToken>(CallOptions::by(&config.identity), &[request])
            .await;
        let answer = answer.map_err(|error| {
            if error.reason() == Some(Reason::UsesExhausted) {
                ValidationError::UsesExhausted
            } else if matches!(
                error.reason(),
                Some(Reason::TokenInactive | Reason::TokenNoLongerValid | Reason::TaskEnded)
            ) {
                ValidationError::Revoked
            } else {
                ValidationError::Broker(error)
            }
        })?;
        // Only an answer about this token, with the entry of the use, authorizes it.
        let is_same_token =
            TokenId::parse(&answer.jti).is_ok_and(|jti| jti == authorized.token_id());
        let outcome = v1::ConsumeOutcome::try_from(answer.outcome);
        match (is_same_token, answer.position, outcome) {
            (true, Some(position), Ok(v1::ConsumeOutcome::Spent)) => Ok(ConsumedUse::new(
                authorized,
                answer.uses_left,
                Some(position),
            )),
            (true, Some(position), Ok(v1::ConsumeOutcome::Repeated)) => {
                Err(ValidationError::UseRepeated { position })
            }
            _ => Err(ValidationError::Broker(Error::Answer(
                crate::model::ParseError::new("use", "is not of this token"),
            ))),
        }
    }

    /// Introspects a token at the broker (after RFC 7662): the answer does not depend on the feed.
    pub async fn introspect(&self, token: &str) -> Result<Introspection, Error> {
        let ValidatorState {
            endpoint, config, ..
        } = &*self.shared;
        endpoint.introspect(&config.identity, token).await
    }

    /// The journal position up to which every revocation is known; `None` while the feed is not complete.
    pub fn position(&self) -> Option<JournalPosition> {
        *self.shared.position.borrow()
    }

    /// [`Validator::position`] as a watch channel.
    pub fn positions(&self) -> watch::Receiver<Option<JournalPosition>> {
        self.shared.position.subscribe()
    }

    /// Waits until every revocation up to this journal index is known, such as the position of a
    /// [`crate::client::TaskEndReport`].
    pub async fn wait_for_position(&self, index: u64) -> JournalPosition {
        let mut positions = self.positions();
        loop {
            if let Some(position) = *positions.borrow_and_update()
                && position.index >= index
            {
                return position;
            }
            if positions.changed().await.is_err() {
                // Its sender lives as long as this validator.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The error that last interrupted the feed, if any.
    pub fn last_error(&self) -> Option<Error> {
        self.shared
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Validator {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Validator({} at {})",
            self.shared.config.audience,
            self.shared.endpoint.url()
        )
    }
}

impl ValidatorState {
    fn read<T>(&self, look: impl FnOnce(&RevocationSet) -> T) -> T {
        look(&self.revoked.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the revocations, and publishes the new position.
    fn change<T>(&self, change: impl FnOnce(&mut RevocationSet) -> T) -> T {
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        let out = change(&mut revoked);
        self.position.send_replace(if revoked.is_complete() {
            revoked.position()
        } else {
            None
        });
        out
    }

    fn record_error(&self, error: Error) {
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// Default longest silence of the feed, in milliseconds: the broker sends a heartbeat every second.
const MAX_SILENCE_MS: u32 = 5_000;
/// How long a start may take, in milliseconds.
const START_MS: u64 = 10_000;

#[cfg(test)]
mod tests;
