use std::time::Duration;

use tonic::Streaming;

use super::responses::ReadWire as _;
use super::{AccessRequestInfo, CallOptions, Endpoint, Error, Identity, backoff_ms, methods};
use crate::card::AccessRequestStatus;
use crate::model::{AccessRequestId, ParseError, TaskId, Timestamp};
use crate::proto::v1;
use crate::proto::v1::watch_access_request_response::Message;

/// Watches one access request of a task until it is final: over broken connections and restarts of the broker. Dropping it
/// ends nothing.
#[derive(Debug)]
pub struct AccessRequestWatcher {
    endpoint: Endpoint,
    identity: Identity,
    task: TaskId,
    id: AccessRequestId,
    /// Resume cursor: the last status received.
    cursor: Option<v1::AccessRequestCursor>,
    stream: Option<Streaming<v1::WatchAccessRequestResponse>>,
    /// Streams that broke since the last message.
    broken: u32,
    last: bool,
}

impl AccessRequestWatcher {
    /// A watch of this access request of the task. `identity` is the holder of the task's key. It connects with the first
    /// [`AccessRequestWatcher::next`].
    pub fn new(endpoint: Endpoint, identity: Identity, task: TaskId, id: AccessRequestId) -> Self {
        Self {
            endpoint,
            identity,
            task,
            id,
            cursor: None,
            stream: None,
            broken: 0,
            last: false,
        }
    }

    /// The access request that is watched.
    pub fn access_request_id(&self) -> AccessRequestId {
        self.id
    }

    /// The access request as soon as it differs from the last one returned; `None` after its final status. While the broker
    /// cannot be reached it retries without end: bound it with a timeout of your own. An error is a refusal by the broker:
    /// another watch would get the same. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<AccessRequestInfo>, Error> {
        while !self.last {
            let received = match &mut self.stream {
                Some(stream) => tokio::time::timeout(SILENCE, stream.message()).await,
                None => {
                    match self.begin().await {
                        Ok(stream) => self.stream = Some(stream),
                        Err(error) => self.reconnect_after(error).await?,
                    }
                    continue;
                }
            };
            match received {
                Ok(Ok(Some(message))) => {
                    self.broken = 0;
                    if let Some(request) = self.receive(message).map_err(Error::Answer)? {
                        return Ok(Some(request));
                    }
                }
                // The broker wants a new proof of the key, or stops.
                Ok(Ok(None)) => self.reconnect().await?,
                Ok(Err(status)) => {
                    let error = self.endpoint.stream_error(&status);
                    self.reconnect_after(error).await?;
                }
                Err(_silent) => self.reconnect().await?,
            }
        }
        Ok(None)
    }

    /// The access request once it no longer waits for people: approved counts, and a delay that is over. `None` when that did not happen by
    /// `until`; a delay is over by time, and nothing says so: its time is a good `until`.
    pub async fn decided(&mut self, until: Timestamp) -> Result<Option<AccessRequestInfo>, Error> {
        let left = until.after(self.endpoint.clock().now());
        let decided = async {
            while let Some(request) = self.next().await? {
                let now = self.endpoint.clock().now();
                let delay = request.delay.as_ref();
                let is_over = delay.is_some_and(|delay| delay.needs.is_empty() && delay.at <= now);
                if is_over || request.status != Some(AccessRequestStatus::Waiting) {
                    return Ok(Some(request));
                }
            }
            Ok(None)
        };
        tokio::time::timeout(left, decided)
            .await
            .unwrap_or(Ok(None))
    }

    async fn begin(&self) -> Result<Streaming<v1::WatchAccessRequestResponse>, Error> {
        let request = v1::WatchAccessRequestRequest {
            task_id: self.task.to_string(),
            access_request_id: self.id.to_string(),
            after: self.cursor,
        };
        self.endpoint
            .watch::<methods::WatchAccessRequest>(CallOptions::by(&self.identity), &request)
            .await
    }

    fn receive(
        &mut self,
        message: v1::WatchAccessRequestResponse,
    ) -> Result<Option<AccessRequestInfo>, ParseError> {
        let missing = |field| ParseError::new(field, "is required");
        match message.message.ok_or_else(|| missing("message"))? {
            Message::State(update) => {
                let request = update
                    .access_request
                    .ok_or_else(|| missing("access_request"))?;
                if request.access_request_id != self.id.to_string() {
                    return Err(ParseError::new("access_request", "is another one"));
                }
                self.cursor = Some(update.cursor.ok_or_else(|| missing("cursor"))?);
                self.last = update.is_final;
                Ok(Some(request.read()))
            }
            Message::Heartbeat(heartbeat) => {
                self.cursor = Some(heartbeat.cursor.ok_or_else(|| missing("cursor"))?);
                Ok(None)
            }
        }
    }

    /// Drops the stream and waits a little, unless the broker refused the watch.
    async fn reconnect_after(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_retryable() {
            return Err(error);
        }
        self.reconnect().await
    }

    async fn reconnect(&mut self) -> Result<(), Error> {
        self.stream = None;
        let pause = backoff_ms(self.broken)?;
        self.broken = self.broken.saturating_add(1);
        tokio::time::sleep(Duration::from_millis(u64::from(pause))).await;
        Ok(())
    }
}

/// A stream without a message for this long is given up: the broker sends a heartbeat every five seconds.
const SILENCE: Duration = Duration::from_secs(20);
