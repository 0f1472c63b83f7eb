//! Policy bundles: those that were ever in force, the files of one as a stream, and plans.

use std::collections::{BTreeMap, BTreeSet};

use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::page::fit_items;
use super::service::GrpcService;
use super::streams::{DOCUMENT_LIFE_MS, Messages, STREAM_BUFFER, StreamSender, text_parts};
use crate::broker::{PlanState, PolicyBundleRecord, PolicyBundleSelector};
use crate::model::*;
use crate::policy::{self, BundleFiles};
use crate::proto::convert::timestamp_to_wire;
use crate::proto::v1;
use crate::serve::authorization::{
    GET_POLICY_BUNDLE, GET_POLICY_PLAN, LIST_POLICY_BUNDLES, PLAN_POLICY_BUNDLE,
};
use crate::state::AccessRequest;

/// Most bytes of the proposals on the first page: beside the rows, they fit into a message.
const PROPOSALS_BYTES_MAX: usize = 8 * 1024;

impl GrpcService {
    pub(super) async fn policy_history(
        &self,
        request: Request<v1::ListPolicyBundlesRequest>,
    ) -> Result<Response<v1::ListPolicyBundlesResponse>, Status> {
        let (call, message) = self.begin_call(LIST_POLICY_BUNDLES, request).await?;
        let query = self
            .page_query::<u64>(
                LIST_POLICY_BUNDLES,
                String::new(),
                message.page_size,
                &message.page_token,
            )
            .map_err(self.malformed(&call))?;
        let listed = self
            .broker
            .policy_history(&call, query.after, query.rows_to_read())
            .await;
        self.respond(listed.map(|listed| {
            let (bundles, next_page_token) =
                query.page(&listed.bundles, bundle_row, |row| row.index);
            let waiting = listed.proposals.iter().filter_map(|r| proposal_row(r));
            let waiting: Vec<_> = waiting.collect();
            let all = waiting.len();
            let proposals = fit_items(waiting, PROPOSALS_BYTES_MAX, prost::Message::encoded_len);
            v1::ListPolicyBundlesResponse {
                bundles,
                next_page_token,
                proposals_left_out: convert::count(all - proposals.len()),
                proposals,
            }
        }))
    }

    /// A policy bundle in chunks: it may be longer than a message.
    pub(super) async fn read_policy_bundle(
        &self,
        request: Request<v1::GetPolicyBundleRequest>,
    ) -> Result<Response<Messages<v1::GetPolicyBundleResponse>>, Status> {
        let (call, message) = self.begin_call(GET_POLICY_BUNDLE, request).await?;
        let selector = PolicyBundleSelector::parse(&message.version).at("version");
        let selector = selector.map_err(self.malformed(&call))?;
        let bundle = self.broker.policy_bundle(&call, selector).await;
        let bundle = bundle.map_err(|refusal| self.status(&refusal))?;
        let permit = self.admission.bundle_stream(&bundle.caller)?;
        let produce = |sender: StreamSender<_>| async move {
            let version = bundle.files.version().to_string();
            let mut chunks = chunks(&bundle.files).peekable();
            while let Some((path, content)) = chunks.next() {
                let message = v1::GetPolicyBundleResponse {
                    version: version.clone(),
                    path: path.to_owned(),
                    content: content.to_owned(),
                    is_last: chunks.peek().is_none(),
                };
                if sender.send(message).await.is_none() {
                    return;
                }
            }
        };
        Ok(self.stream(STREAM_BUFFER, DOCUMENT_LIFE_MS, permit, produce))
    }
}

impl GrpcService {
    pub(super) async fn begin_policy_plan(
        &self,
        request: Request<Streaming<v1::PlanPolicyBundleRequest>>,
    ) -> Result<Response<v1::PlanPolicyBundleResponse>, Status> {
        let (metadata, _, mut pieces) = request.into_parts();
        let call = self.admit_call(PLAN_POLICY_BUNDLE, &metadata).await?;
        let operator = self.broker.authenticate_person(&call);
        let operator = operator.map_err(|refusal| self.status(&refusal))?;
        // As for an apply: the call holds no permit while the pieces arrive.
        call.permit.release();
        let mut upload = BundleUpload::default();
        let (mut days, mut returning) = (0, BTreeSet::new());
        while let Some(piece) = pieces.message().await? {
            let more = piece.returning.iter().map(String::len).sum();
            upload
                .add(piece.path, &piece.content, more)
                .map_err(self.malformed(&call))?;
            days = days.max(piece.days);
            for person in &piece.returning {
                let person = PersonId::parse(person).at("returning");
                returning.insert(person.map_err(self.malformed(&call))?);
            }
        }
        call.permit.reacquire().await;
        let days = (days > 0).then_some(days);
        let begun = self
            .broker
            .plan_policy_bundle(&call, operator, upload.files, returning, days)
            .await;
        self.respond(begun.map(|id| v1::PlanPolicyBundleResponse {
            plan_id: id.to_string(),
        }))
    }

    /// A plan in parts, or how far it is: it may be longer than a message.
    pub(super) async fn read_policy_plan(
        &self,
        request: Request<v1::GetPolicyPlanRequest>,
    ) -> Result<Response<Messages<v1::GetPolicyPlanResponse>>, Status> {
        let (call, message) = self.begin_call(GET_POLICY_PLAN, request).await?;
        let id = Digest::parse(&message.plan_id).at("plan_id");
        let id = id.map_err(self.malformed(&call))?;
        let reply = self.broker.policy_plan(&call, &id);
        let reply = reply.map_err(|refusal| self.status(&refusal))?;
        let permit = self.admission.bundle_stream(&reply.caller)?;
        let produce = |sender: StreamSender<_>| async move {
            let (decisions, text) = match reply.state {
                PlanState::Running { decisions } => (decisions, String::new()),
                PlanState::Ready(text) => (0, text.to_string()),
            };
            let parts = match text.as_str() {
                "" => vec![""],
                text => text_parts(text),
            };
            let is_ready = !text.is_empty();
            let mut parts = parts.into_iter().peekable();
            while let Some(part) = parts.next() {
                let message = v1::GetPolicyPlanResponse {
                    decisions,
                    part: part.to_owned(),
                    is_last: is_ready && parts.peek().is_none(),
                };
                if sender.send(message).await.is_none() {
                    return;
                }
            }
        };
        Ok(self.stream(STREAM_BUFFER, DOCUMENT_LIFE_MS, permit, produce))
    }
}

/// The files of a policy bundle as their chunks arrive.
#[derive(Debug, Default)]
pub(super) struct BundleUpload {
    pub(super) files: BTreeMap<String, String>,
    bytes: usize,
}

impl BundleUpload {
    /// Takes the next chunk, which comes with `more` bytes of other fields.
    pub(super) fn add(
        &mut self,
        path: String,
        content: &str,
        more: usize,
    ) -> Result<(), ParseError> {
        let too_large = |rule: String| Err(ParseError::new("content", rule));
        self.bytes = self
            .bytes
            .saturating_add(content.len())
            .saturating_add(path.len())
            .saturating_add(more);
        if self.bytes > policy::BYTES_MAX.saturating_mul(2) {
            return too_large(format!("must be at most {} bytes", policy::BYTES_MAX));
        }
        self.files.entry(path).or_default().push_str(content);
        if self.files.len() > policy::FILES_MAX {
            return too_large(format!("must have at most {} files", policy::FILES_MAX));
        }
        Ok(())
    }
}

/// Each file in chunks that fit into a message; an empty file is one empty chunk.
fn chunks(files: &BundleFiles) -> impl Iterator<Item = (&str, &str)> {
    files.iter().flat_map(|(path, text)| {
        let parts = match text {
            "" => vec![""],
            text => text_parts(text),
        };
        parts.into_iter().map(move |part| (path, part))
    })
}

fn bundle_row(record: &PolicyBundleRecord) -> v1::PolicyBundleInForce {
    let PolicyApplied {
        version,
        by,
        recovery,
        proposal,
        returning: _,
    } = &record.applied;
    let text = |id: Option<String>| id.unwrap_or_default();
    let recovery = recovery.as_ref();
    v1::PolicyBundleInForce {
        version: version.to_string(),
        since: Some(timestamp_to_wire(record.at)),
        how: record.origin().as_str().to_owned(),
        by: text(by.as_ref().map(PersonId::to_string)),
        access_request_id: text(proposal.as_ref().map(AccessRequestId::to_string)),
        recovery_reason: text(recovery.map(|recovery| recovery.reason.to_string())),
        recovery_host_user: text(recovery.map(|recovery| recovery.host_user.to_string())),
        position: record.index,
    }
}

fn proposal_row(request: &AccessRequest) -> Option<v1::PolicyProposal> {
    let by = request.opened.by_person()?;
    let (bundle, _) = by.bundle()?;
    Some(v1::PolicyProposal {
        access_request_id: request.opened.access_request.to_string(),
        version: bundle.to_string(),
        by: by.person.to_string(),
        opened_at: Some(timestamp_to_wire(request.opened_at)),
        expires_at: Some(timestamp_to_wire(request.opened.expires_at)),
    })
}
