//! gRPC handlers: parse, call the hall, translate. One file for each service.

mod approval;
mod counted;
mod follow;
mod governance;
mod shapes;
mod task;
mod token;

use std::sync::Arc;

use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::admit::Porch;
use super::call::note;
use super::guard::presented;
use super::status::{put_nonce, status};
use crate::broker::{Hall, Presented, Refusal};
use crate::model::Malformed;

/// Every gRPC service, over one hall.
#[derive(Clone)]
pub(super) struct Door {
    hall: Arc<Hall>,
    porch: Arc<Porch>,
    stopped: watch::Receiver<bool>,
}

impl Door {
    pub(super) fn new(hall: Arc<Hall>, porch: Arc<Porch>, stopped: watch::Receiver<bool>) -> Self {
        Self {
            hall,
            porch,
            stopped,
        }
    }

    /// Takes a call whose message has come whole, when there is a place for it.
    async fn open<T>(
        &self,
        method: &'static str,
        request: Request<T>,
    ) -> Result<(Presented, T), Status> {
        let (metadata, _, message) = request.into_parts();
        Ok((self.seated(method, &metadata).await?, message))
    }

    async fn seated(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
    ) -> Result<Presented, Status> {
        let seat = self.porch.place(method).await?;
        Ok(Presented {
            seat,
            ..presented(method, metadata)
        })
    }

    fn malformed(&self, call: &Presented) -> impl Fn(Malformed) -> Status {
        move |error| status(&self.hall.malformed(call.method, &error), &self.hall)
    }

    fn answer<T>(&self, result: Result<T, Refusal>) -> Result<Response<T>, Status> {
        match result {
            Ok(message) => {
                let mut response = Response::new(message);
                put_nonce(response.metadata_mut(), &self.hall);
                Ok(response)
            }
            Err(refusal) => Err(status(&refusal, &self.hall)),
        }
    }
}
