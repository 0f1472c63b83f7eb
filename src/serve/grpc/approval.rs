//! ApprovalService, for approvers and operators: the inbox, cards, votes and the keys of approvers.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::{Request, Response, Status};

use super::convert;
use super::service::GrpcService;
use super::streams::Messages;
use crate::broker::{
    Assertion, INBOX_PAGE_MAX, InboxCursor, InboxQuery, KeyRevocation, VoteInput, VoteProof,
};
use crate::model::*;
use crate::proto::convert as proto_convert;
use crate::proto::v1;
use crate::serve::authorization::{
    BEGIN_VOTE, CAST_VOTE, CONFIRM_PASSKEY, GET_CARD, INVITE_APPROVER, LIST_ACCESS_REQUESTS,
    LIST_APPROVERS, REVOKE_APPROVER_KEYS,
};
use crate::serve::request_log::record;
use crate::serve::services::approval_service_server::ApprovalService;

#[tonic::async_trait]
impl ApprovalService for GrpcService {
    async fn list_access_requests(
        &self,
        request: Request<v1::ListAccessRequestsRequest>,
    ) -> Result<Response<v1::ListAccessRequestsResponse>, Status> {
        let (call, message) = self.begin_call(LIST_ACCESS_REQUESTS, request).await?;
        let filter = if message.decidable_only {
            "decidable"
        } else {
            ""
        };
        let tokens = self.broker.page_tokens();
        let after = tokens.read(LIST_ACCESS_REQUESTS.name, filter, &message.page_token);
        let query = after
            .and_then(|after| parse_inbox_query(&message, after))
            .map_err(self.malformed(&call))?;
        self.respond(self.broker.inbox(&call, &query).map(|page| {
            convert::inbox_page(page, self.broker.notices(), |cursor| {
                tokens.issue(LIST_ACCESS_REQUESTS.name, filter, &cursor)
            })
        }))
    }

    type WatchAccessRequestsStream = Messages<v1::WatchAccessRequestsResponse>;

    async fn watch_access_requests(
        &self,
        request: Request<v1::WatchAccessRequestsRequest>,
    ) -> Result<Response<Self::WatchAccessRequestsStream>, Status> {
        self.watch_inboxes(request).await
    }

    async fn get_card(
        &self,
        request: Request<v1::GetCardRequest>,
    ) -> Result<Response<v1::GetCardResponse>, Status> {
        let (call, message) = self.begin_call(GET_CARD, request).await?;
        let id = AccessRequestId::parse(&message.access_request_id)
            .at("access_request_id")
            .map_err(self.malformed(&call))?;
        record("access_request", &id);
        self.respond(
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
        let (call, message) = self.begin_call(BEGIN_VOTE, request).await?;
        let (id, vote_request) = parse_vote_request(&message).map_err(self.malformed(&call))?;
        record("access_request", &id);
        let statement = self.broker.begin_vote(&call, id, vote_request).await;
        self.respond(statement.map(|begun| {
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
        let (call, message) = self.begin_call(CAST_VOTE, request).await?;
        let id = AccessRequestId::parse(&message.access_request_id)
            .at("access_request_id")
            .map_err(self.malformed(&call))?;
        record("access_request", &id);
        let proof =
            parse_proof(message.signature, message.passkey).map_err(self.malformed(&call))?;
        let outcome = self
            .broker
            .cast_vote(&call, id, &message.statement, proof)
            .await;
        self.respond(outcome.map(|outcome| v1::CastVoteResponse {
            access_request: Some(convert::access_request(&outcome.view, true)),
            agent_suspended: outcome.suspended,
        }))
    }

    async fn invite_approver(
        &self,
        request: Request<v1::InviteApproverRequest>,
    ) -> Result<Response<v1::InviteApproverResponse>, Status> {
        let (call, message) = self.begin_call(INVITE_APPROVER, request).await?;
        let person = PersonId::parse(&message.person_id)
            .at("person_id")
            .map_err(self.malformed(&call))?;
        let invited = self.broker.invite_approver(&call, person).await;
        self.respond(invited.map(|invited| v1::InviteApproverResponse {
            code: invited.code.expose_secret().to_owned(),
            url: invited.url.expose_secret().to_owned(),
            expires_at: Some(proto_convert::timestamp_to_wire(invited.expires_at)),
        }))
    }

    async fn confirm_passkey(
        &self,
        request: Request<v1::ConfirmPasskeyRequest>,
    ) -> Result<Response<v1::ConfirmPasskeyResponse>, Status> {
        let (call, message) = self.begin_call(CONFIRM_PASSKEY, request).await?;
        let parsed = PersonId::parse(&message.person_id)
            .at("person_id")
            .and_then(|person| Ok((person, Digest::parse(&message.key).at("key")?)));
        let (person, key) = parsed.map_err(self.malformed(&call))?;
        let confirmed = self
            .broker
            .confirm_passkey(&call, person, Thumbprint(key))
            .await;
        self.respond(confirmed.map(|position| v1::ConfirmPasskeyResponse { position }))
    }

    async fn list_approvers(
        &self,
        request: Request<v1::ListApproversRequest>,
    ) -> Result<Response<v1::ListApproversResponse>, Status> {
        let (call, message) = self.begin_call(LIST_APPROVERS, request).await?;
        let query = self
            .page_query::<PersonId>(
                LIST_APPROVERS,
                String::new(),
                message.page_size,
                &message.page_token,
            )
            .map_err(self.malformed(&call))?;
        self.respond(self.broker.list_approvers(&call).map(|mut rows| {
            rows.retain(|row| query.after.as_ref().is_none_or(|last| row.id > *last));
            let (approvers, next_page_token) =
                query.page(&rows, convert::approver, |row| row.id.clone());
            v1::ListApproversResponse {
                approvers,
                next_page_token,
            }
        }))
    }

    async fn revoke_approver_keys(
        &self,
        request: Request<v1::RevokeApproverKeysRequest>,
    ) -> Result<Response<v1::RevokeApproverKeysResponse>, Status> {
        let (call, message) = self.begin_call(REVOKE_APPROVER_KEYS, request).await?;
        let person = PersonId::parse(&message.person_id)
            .at("person_id")
            .map_err(self.malformed(&call))?;
        let key = match message.key.as_str() {
            "" => None,
            text => Some(Thumbprint(
                Digest::parse(text)
                    .at("key")
                    .map_err(self.malformed(&call))?,
            )),
        };
        let revocation = KeyRevocation {
            only: key,
            compromised: message.compromised,
        };
        let revoked = self
            .broker
            .revoke_approver_keys(&call, person, revocation)
            .await;
        self.respond(revoked.map(|revoked| convert::keys_revoked(&revoked)))
    }
}

/// Rows of a page when the request names no size.
const PAGE_ROWS: usize = 50;

fn parse_inbox_query(
    message: &v1::ListAccessRequestsRequest,
    after: Option<InboxCursor>,
) -> Result<InboxQuery, ParseError> {
    let size = match usize::try_from(message.page_size) {
        Ok(0) => PAGE_ROWS,
        Ok(size) if size <= INBOX_PAGE_MAX => size,
        Ok(_) | Err(_) => {
            return Err(ParseError::new(
                "page_size",
                format!(
                    "expected at most {INBOX_PAGE_MAX}, got {}",
                    message.page_size
                ),
            ));
        }
    };
    Ok(InboxQuery {
        mine: message.decidable_only,
        size,
        after,
    })
}

fn parse_vote_request(
    message: &v1::BeginVoteRequest,
) -> Result<(AccessRequestId, VoteInput), ParseError> {
    let vote_request = VoteInput {
        profile: ProfileName::parse(&message.profile).at("profile")?,
        verdict: proto_convert::verdict(message.verdict)?,
        narrowing: Narrowing {
            max_ttl: message
                .max_ttl
                .as_ref()
                .map(|ttl| proto_convert::seconds("max_ttl", ttl))
                .transpose()?,
            max_uses: message.max_uses,
        },
        facts: match message.facts.as_str() {
            "" => None,
            facts => Some(Digest::parse(facts).at("facts")?),
        },
        comment: match message.comment.as_str() {
            "" => None,
            text => Some(Comment::parse(text)?),
        },
        policy: match message.policy_version.as_str() {
            "" => None,
            text => Some(Digest::parse(text).at("policy_version")?),
        },
    };
    Ok((
        AccessRequestId::parse(&message.access_request_id).at("access_request_id")?,
        vote_request,
    ))
}

fn parse_proof(
    signature: Vec<u8>,
    passkey: Option<v1::PasskeyAssertion>,
) -> Result<VoteProof, ParseError> {
    match (signature.is_empty(), passkey) {
        (false, None) => Ok(VoteProof::Signature(signature)),
        (true, Some(made)) => Ok(VoteProof::Passkey(Assertion {
            credential: made.credential_id,
            authenticator_data: made.authenticator_data,
            client_data_json: made.client_data_json,
            signature: made.signature,
            user: (!made.user_handle.is_empty()).then_some(made.user_handle),
        })),
        (true, None) | (false, Some(_)) => Err(ParseError::new(
            "signature",
            "expected exactly one of `signature` and `passkey`",
        )),
    }
}
