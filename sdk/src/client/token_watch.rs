use std::time::Duration;

use tonic::Streaming;

use super::token_outcome::EndCell;
use super::{CallOptions, Endpoint, Error, Identity, backoff_ms, methods};
use crate::model::{ParseError, TaskId, TokenId};
use crate::proto::v1;
use crate::proto::v1::watch_token_response::Message;

/// Watches one token until it has ended: over broken connections and restarts of the broker.
#[derive(Debug)]
pub struct TokenWatcher {
    endpoint: Endpoint,
    identity: Identity,
    task: TaskId,
    jti: TokenId,
    end: EndCell,
    stream: Option<Streaming<v1::WatchTokenResponse>>,
    /// Streams that broke since the last message.
    broken: u32,
}

impl TokenWatcher {
    pub(super) fn new(
        endpoint: Endpoint,
        identity: Identity,
        task: TaskId,
        jti: TokenId,
        end: EndCell,
    ) -> Self {
        Self {
            endpoint,
            identity,
            task,
            jti,
            end,
            stream: None,
            broken: 0,
        }
    }

    /// Waits until the token has ended, and returns the cause: `expired`, `completed`, `deadline`, `lease`, `operator`,
    /// `suspended`, `frozen`, `policy` or `trust`. From then on [`super::AccessToken::headers`] refuses, except for an expired
    /// token. Cancel-safe. While the broker cannot be reached it retries without end.
    ///
    /// # Errors
    /// A refusal by the broker: another watch would get the same.
    pub async fn ended(&mut self) -> Result<String, Error> {
        loop {
            if let Some(cause) = self.next().await? {
                return Ok(cause);
            }
        }
    }

    /// Waits for one message: `None` while the token is active.
    async fn next(&mut self) -> Result<Option<String>, Error> {
        let Some(stream) = &mut self.stream else {
            match self.begin().await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) if error.is_retryable() => self.reconnect().await?,
                Err(error) => return Err(error),
            }
            return Ok(None);
        };
        match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(message))) => {
                self.broken = 0;
                let missing = || Error::Answer(ParseError::new("message", "is required"));
                match message.message.ok_or_else(missing)? {
                    Message::Heartbeat(_) => Ok(None),
                    Message::End(end) => {
                        if end.cause != EXPIRED {
                            self.end.set(&end.cause);
                        }
                        Ok(Some(end.cause))
                    }
                }
            }
            Ok(Err(status)) => {
                let error = self.endpoint.stream_error(&status);
                if !error.is_retryable() {
                    return Err(error);
                }
                self.reconnect().await.map(|()| None)
            }
            // The broker wants a new proof of the key, or stops; or the connection is silent.
            Ok(Ok(None)) | Err(_) => self.reconnect().await.map(|()| None),
        }
    }

    async fn begin(&self) -> Result<Streaming<v1::WatchTokenResponse>, Error> {
        let request = v1::WatchTokenRequest {
            task_id: self.task.to_string(),
            jti: self.jti.to_string(),
        };
        self.endpoint
            .watch::<methods::WatchToken>(CallOptions::by(&self.identity), &request)
            .await
    }

    async fn reconnect(&mut self) -> Result<(), Error> {
        self.stream = None;
        let pause = backoff_ms(self.broken)?;
        self.broken = self.broken.saturating_add(1);
        tokio::time::sleep(Duration::from_millis(u64::from(pause))).await;
        Ok(())
    }
}

/// The cause of a token whose own lifetime is over.
const EXPIRED: &str = "expired";
/// A stream without a message for this long is given up: the broker sends a heartbeat every five seconds.
const SILENCE: Duration = Duration::from_secs(20);
