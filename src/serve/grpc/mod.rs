//! gRPC handlers: parse, call the hall, translate. One file for each service.

mod approval;
mod governance;
mod shapes;
mod task;
mod token;

use std::sync::Arc;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::guard::presented;
use super::status::{put_nonce, status};
use crate::broker::{Hall, Presented, Refusal};
use crate::model::Malformed;

/// Every gRPC service, over one hall.
#[derive(Clone)]
pub(super) struct Door {
    hall: Arc<Hall>,
    stopped: watch::Receiver<bool>,
}

impl Door {
    pub(super) fn new(hall: Arc<Hall>, stopped: watch::Receiver<bool>) -> Self {
        Self { hall, stopped }
    }

    fn open<T>(&self, method: &'static str, request: Request<T>) -> (Presented, T) {
        let (metadata, _, message) = request.into_parts();
        (presented(method, &metadata), message)
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
