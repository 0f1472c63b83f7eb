use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::{Request, Response, Status};

use super::super::MESSAGE_BYTES_MAX;
use super::{GrpcService, note, shapes};
use crate::broker::{Assertion, INBOX_PAGE_MAX, InboxQuery, InboxCursor, VoteInput, VoteProof};
use crate::model::*;
use crate::proto::convert;
use crate::proto::v1;
use crate::proto::v1::approval_service_server::ApprovalService;

#[tonic::async_trait]
impl ApprovalService for GrpcService {
    async fn list_access_requests(
        &self,
        request: Request<v1::ListAccessRequestsRequest>,
    ) -> Result<Response<v1::ListAccessRequestsResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/ListAccessRequests", request)
            .await?;
        let ask = inbox_ask(&message).map_err(self.malformed(&call))?;
        let page = self.broker.inbox(&call, &ask);
        self.answer(page.map(|page| shapes::inbox_page(page, PAGE_BYTES_MAX)))
    }

    type WatchAccessRequestsStream = super::follow::InboxStream;

    async fn watch_access_requests(
        &self,
        request: Request<v1::WatchAccessRequestsRequest>,
    ) -> Result<Response<Self::WatchAccessRequestsStream>, Status> {
        self.follow_inboxes(request).await
    }

    async fn get_card(
        &self,
        request: Request<v1::GetCardRequest>,
    ) -> Result<Response<v1::GetCardResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/GetCard", request)
            .await?;
        let id =
            AccessRequestId::parse(&message.access_request_id).map_err(self.malformed(&call))?;
        note("access_request", &id);
        self.answer(
            self.broker
                .card(&call, &id)
                .map(|card| v1::GetCardResponse {
                    card: Some(crate::proto::card::to_wire(&card)),
                }),
        )
    }

    async fn begin_vote(
        &self,
        request: Request<v1::BeginVoteRequest>,
    ) -> Result<Response<v1::BeginVoteResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/BeginVote", request)
            .await?;
        let (id, ask) = vote_ask(&message).map_err(self.malformed(&call))?;
        note("access_request", &id);
        let begun = self.broker.begin_vote(&call, id, ask).await;
        self.answer(begun.map(|begun| {
            v1::BeginVoteResponse {
                statement: begun.statement,
                challenge: begun.challenge.as_bytes().to_vec(),
                credentials: begun
                    .credentials
                    .iter()
                    .filter_map(|id| URL_SAFE_NO_PAD.decode(id).ok())
                    .collect(),
            }
        }))
    }

    async fn cast_vote(
        &self,
        request: Request<v1::CastVoteRequest>,
    ) -> Result<Response<v1::CastVoteResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/CastVote", request)
            .await?;
        let id =
            AccessRequestId::parse(&message.access_request_id).map_err(self.malformed(&call))?;
        note("access_request", &id);
        let proof = proof(message.signature, message.passkey).map_err(self.malformed(&call))?;
        let cast = self
            .broker
            .cast_vote(&call, id, &message.statement, proof)
            .await;
        self.answer(cast.map(|done| v1::CastVoteResponse {
            access_request: Some(shapes::access_request(&done.view, true)),
            agent_suspended: done.suspended,
        }))
    }

    async fn invite_approver(
        &self,
        request: Request<v1::InviteApproverRequest>,
    ) -> Result<Response<v1::InviteApproverResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/InviteApprover", request)
            .await?;
        let person = PersonId::parse(&message.person_id).map_err(self.malformed(&call))?;
        let invited = self.broker.invite_approver(&call, person).await;
        self.answer(invited.map(|invited| v1::InviteApproverResponse {
            code: invited.code.expose_secret().to_owned(),
            url: invited.url.expose_secret().to_owned(),
            expires_at: Some(convert::timestamp_to_wire(invited.expires_at)),
        }))
    }

    async fn list_approvers(
        &self,
        request: Request<v1::ListApproversRequest>,
    ) -> Result<Response<v1::ListApproversResponse>, Status> {
        let (call, _) = self
            .open("dipylon.v1.ApprovalService/ListApprovers", request)
            .await?;
        let listed = self.broker.list_approvers(&call);
        self.answer(listed.map(|people| v1::ListApproversResponse {
            approvers: people.iter().map(shapes::approver).collect(),
        }))
    }

    async fn revoke_approver_keys(
        &self,
        request: Request<v1::RevokeApproverKeysRequest>,
    ) -> Result<Response<v1::RevokeApproverKeysResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/RevokeApproverKeys", request)
            .await?;
        let person = PersonId::parse(&message.person_id).map_err(self.malformed(&call))?;
        let key = match message.key.as_str() {
            "" => None,
            text => Some(Thumbprint(
                Digest::parse(text).map_err(self.malformed(&call))?,
            )),
        };
        let revoked = self.broker.revoke_approver_keys(&call, person, key).await;
        self.answer(revoked.map(|n| v1::RevokeApproverKeysResponse {
            revoked: shapes::count(n),
        }))
    }
}

/// Rows of one page, in bytes: what is beside them needs room too.
const PAGE_BYTES_MAX: usize = MESSAGE_BYTES_MAX * 3 / 4;
/// Rows of a page, where its reader does not say.
const PAGE_ROWS: usize = 50;

fn inbox_ask(message: &v1::ListAccessRequestsRequest) -> Result<InboxQuery, Malformed> {
    let size = match usize::try_from(message.page_size) {
        Ok(0) => PAGE_ROWS,
        Ok(size) if size <= INBOX_PAGE_MAX => size,
        Ok(_) | Err(_) => return Err(Malformed::new("page_size", "must be at most 100")),
    };
    let after = match message.page_token.as_str() {
        "" => None,
        text => Some(InboxCursor::parse(text)?),
    };
    Ok(InboxQuery {
        mine: message.mine,
        size,
        after,
    })
}

fn vote_ask(message: &v1::BeginVoteRequest) -> Result<(AccessRequestId, VoteInput), Malformed> {
    let ask = VoteInput {
        profile: ProfileName::parse(&message.profile)?,
        verdict: convert::verdict(message.verdict)?,
        narrowing: Narrowing {
            max_ttl: message
                .max_ttl
                .as_ref()
                .map(|ttl| convert::seconds("max_ttl", ttl))
                .transpose()?,
            max_uses: message.max_uses,
        },
        comment: match message.comment.as_str() {
            "" => None,
            text => Some(Comment::parse(text)?),
        },
        policy: match message.policy_version.as_str() {
            "" => None,
            text => Some(Digest::parse(text)?),
        },
    };
    Ok((AccessRequestId::parse(&message.access_request_id)?, ask))
}

fn proof(
    signature: Vec<u8>,
    passkey: Option<v1::PasskeyAssertion>,
) -> Result<VoteProof, Malformed> {
    match (signature.is_empty(), passkey) {
        (false, None) => Ok(VoteProof::Signature(signature)),
        (true, Some(made)) => Ok(VoteProof::Passkey(Assertion {
            credential: made.credential_id,
            authenticator_data: made.authenticator_data,
            client_data_json: made.client_data_json,
            signature: made.signature,
            user: (!made.user_handle.is_empty()).then_some(made.user_handle),
        })),
        (true, None) | (false, Some(_)) => Err(Malformed::new(
            "signature",
            "one of signature and passkey is required",
        )),
    }
}
