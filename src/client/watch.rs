use std::time::Duration;

use tonic::Streaming;

use super::agent::TaskHandle;
use super::{Error, CallOptions, methods, backoff_ms};
use crate::model::{AccessRequestId, Malformed, Timestamp};
use crate::proto::v1;
use crate::proto::v1::watch_access_request_response::Message;

/// One access request of a task, followed to its end: over broken connections and restarts of the broker. Dropping it ends
/// nothing.
#[derive(Debug)]
pub struct AccessRequestWatch {
    task: TaskHandle,
    id: AccessRequestId,
    seen: Option<v1::AccessRequestMark>,
    stream: Option<Streaming<v1::WatchAccessRequestResponse>>,
    /// Streams that broke since one was heard of.
    broken: u32,
    last: bool,
}

impl AccessRequestWatch {
    pub(super) fn new(task: TaskHandle, id: AccessRequestId) -> Self {
        Self {
            task,
            id,
            seen: None,
            stream: None,
            broken: 0,
            last: false,
        }
    }

    /// What is watched.
    pub fn access_request_id(&self) -> AccessRequestId {
        self.id
    }

    /// How it stands, as soon as that is not what was told last; `None` after it was decided for good. While the broker is
    /// away it is waited for: bound it with a time of your own. An error is a no of the broker: watching again would get the
    /// same. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<v1::AccessRequest>, Error> {
        while !self.last {
            let told = match &mut self.stream {
                Some(stream) => tokio::time::timeout(SILENCE, stream.message()).await,
                None => {
                    match self.begin().await {
                        Ok(stream) => self.stream = Some(stream),
                        Err(error) => self.pause(error).await?,
                    }
                    continue;
                }
            };
            match told {
                Ok(Ok(Some(message))) => {
                    self.broken = 0;
                    if let Some(stands) = self.take(message).map_err(Error::Answer)? {
                        return Ok(Some(stands));
                    }
                }
                // The broker wants the key proved again, or stops.
                Ok(Ok(None)) => self.again().await?,
                Ok(Err(status)) => {
                    let error = self.task.endpoint().stream_error(&status);
                    self.pause(error).await?;
                }
                Err(_silent) => self.again().await?,
            }
        }
        Ok(None)
    }

    /// The same until it is decided, one way or another: approved counts. `None` when that did not come by this moment.
    pub async fn decided(&mut self, until: Timestamp) -> Result<Option<v1::AccessRequest>, Error> {
        let left = until.after(self.task.endpoint().clock().now());
        let decided = async {
            while let Some(stands) = self.next().await? {
                if stands.status() != v1::AccessRequestStatus::Waiting {
                    return Ok(Some(stands));
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
            task_id: self.task.id().to_string(),
            access_request_id: self.id.to_string(),
            seen: self.seen,
        };
        self.task
            .endpoint()
            .watch::<methods::WatchAccessRequest>(CallOptions::by(self.task.identity()), &request)
            .await
    }

    fn take(
        &mut self,
        message: v1::WatchAccessRequestResponse,
    ) -> Result<Option<v1::AccessRequest>, Malformed> {
        let missing = |what| Malformed::new(what, "is required");
        match message.message.ok_or_else(|| missing("message"))? {
            Message::Stands(stands) => {
                let request = stands
                    .access_request
                    .ok_or_else(|| missing("access_request"))?;
                if request.access_request_id != self.id.to_string() {
                    return Err(Malformed::new("access_request", "is another one"));
                }
                self.seen = Some(stands.mark.ok_or_else(|| missing("mark"))?);
                self.last = stands.last;
                Ok(Some(request))
            }
            Message::Heartbeat(heartbeat) => {
                self.seen = Some(heartbeat.mark.ok_or_else(|| missing("mark"))?);
                Ok(None)
            }
        }
    }

    /// Lets the stream go and waits a little, unless the broker said no.
    async fn pause(&mut self, error: Error) -> Result<(), Error> {
        if !error.retryable() {
            return Err(error);
        }
        self.again().await
    }

    async fn again(&mut self) -> Result<(), Error> {
        self.stream = None;
        let pause = backoff_ms(self.broken)?;
        self.broken = self.broken.saturating_add(1);
        tokio::time::sleep(Duration::from_millis(u64::from(pause))).await;
        Ok(())
    }
}

/// A stream on which nothing is heard for this long is given up: the broker says every five seconds that it is there.
const SILENCE: Duration = Duration::from_secs(20);
