//! The struct that implements every gRPC service, and the steps that all handlers share.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::page::PageQuery;
use crate::broker::{Broker, CallContext, Refusal};
use crate::model::ParseError;
use crate::serve::admission::AdmissionControl;
use crate::serve::authorization::{MethodPolicy, call_context};
use crate::serve::status::{put_nonce, status};

/// Every gRPC service, over one broker.
#[derive(Clone)]
pub(in crate::serve) struct GrpcService {
    pub(super) broker: Arc<Broker>,
    pub(super) admission: Arc<AdmissionControl>,
    pub(super) stopped: watch::Receiver<bool>,
}

impl GrpcService {
    pub(in crate::serve) fn new(
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

    /// Begins a call whose message has arrived whole, once it has a concurrency permit.
    pub(super) async fn begin_call<T>(
        &self,
        method: &'static MethodPolicy,
        request: Request<T>,
    ) -> Result<(CallContext, T), Status> {
        let (metadata, _, message) = request.into_parts();
        Ok((self.admit_call(method, &metadata).await?, message))
    }

    /// The same for an upload, whose messages are still to come.
    pub(super) async fn admit_call(
        &self,
        method: &'static MethodPolicy,
        metadata: &MetadataMap,
    ) -> Result<CallContext, Status> {
        let permit = self.admission.acquire(method).await?;
        Ok(CallContext {
            permit,
            ..call_context(method, metadata)
        })
    }

    /// The page of a list that a request names.
    pub(super) fn page_query<C: Serialize + DeserializeOwned>(
        &self,
        method: &MethodPolicy,
        filter: String,
        page_size: u32,
        page_token: &str,
    ) -> Result<PageQuery<'_, C>, ParseError> {
        PageQuery::parse(
            self.broker.page_tokens(),
            method,
            filter,
            page_size,
            page_token,
        )
    }

    /// The status of a malformed request.
    pub(super) fn malformed(&self, call: &CallContext) -> impl Fn(ParseError) -> Status {
        move |error| self.status(&self.broker.malformed(call.method, &error))
    }

    /// The status of a refusal.
    pub(super) fn status(&self, refusal: &Refusal) -> Status {
        status(refusal, &self.broker)
    }

    /// The response to an authenticated call, with the next nonce.
    pub(super) fn ok<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        put_nonce(response.metadata_mut(), &self.broker);
        response
    }

    /// The response to a call, or the status of its refusal.
    pub(super) fn respond<T>(&self, result: Result<T, Refusal>) -> Result<Response<T>, Status> {
        result
            .map(|message| self.ok(message))
            .map_err(|refusal| self.status(&refusal))
    }
}
