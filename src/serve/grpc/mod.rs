//! gRPC handlers: parse, call the broker, translate. One file for each service.

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

use super::admit::AdmissionControl;
use super::call::note;
use super::guard::presented;
use super::status::{put_nonce, status};
use crate::broker::{Broker, CallContext, Refusal};
use crate::model::ParseError;

/// Every gRPC service, over one broker.
#[derive(Clone)]
pub(super) struct GrpcService {
    broker: Arc<Broker>,
    admission: Arc<AdmissionControl>,
    stopped: watch::Receiver<bool>,
}

impl GrpcService {
    pub(super) fn new(
        broker: Arc<Broker>,
        admission: Arc<AdmissionControl>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            broker,
            admission,
            stopped,
        }
    }

    /// Takes a call whose message has come whole, when there is a place for it.
    async fn open<T>(
        &self,
        method: &'static str,
        request: Request<T>,
    ) -> Result<(CallContext, T), Status> {
        let (metadata, _, message) = request.into_parts();
        Ok((self.seated(method, &metadata).await?, message))
    }

    async fn seated(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
    ) -> Result<CallContext, Status> {
        let permit = self.admission.place(method).await?;
        Ok(CallContext {
            permit,
            ..presented(method, metadata)
        })
    }

    fn malformed(&self, call: &CallContext) -> impl Fn(ParseError) -> Status {
        move |error| status(&self.broker.malformed(call.method, &error), &self.broker)
    }

    fn answer<T>(&self, result: Result<T, Refusal>) -> Result<Response<T>, Status> {
        match result {
            Ok(message) => {
                let mut response = Response::new(message);
                put_nonce(response.metadata_mut(), &self.broker);
                Ok(response)
            }
            Err(refusal) => Err(status(&refusal, &self.broker)),
        }
    }
}
