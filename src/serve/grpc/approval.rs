use tonic::{Request, Response, Status};

use super::{Door, note, shapes};
use crate::model::*;
use crate::proto::convert;
use crate::proto::v1;
use crate::proto::v1::approval_service_server::ApprovalService;

#[tonic::async_trait]
impl ApprovalService for Door {
    async fn list_access_requests(
        &self,
        request: Request<v1::ListAccessRequestsRequest>,
    ) -> Result<Response<v1::ListAccessRequestsResponse>, Status> {
        let (call, _) = self
            .open("dipylon.v1.ApprovalService/ListAccessRequests", request)
            .await?;
        let listed = self.hall.list_access_requests(&call);
        self.answer(listed.map(|views| {
            v1::ListAccessRequestsResponse {
                access_requests: views
                    .iter()
                    .map(|view| shapes::access_request(view, true))
                    .collect(),
            }
        }))
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
        self.answer(self.hall.card(&call, &id).map(|card| v1::GetCardResponse {
            card: Some(shapes::card(&card)),
        }))
    }

    async fn begin_vote(
        &self,
        request: Request<v1::BeginVoteRequest>,
    ) -> Result<Response<v1::BeginVoteResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/BeginVote", request)
            .await?;
        let (id, profile, verdict, narrowing) =
            vote_ask(&message).map_err(self.malformed(&call))?;
        note("access_request", &id);
        let begun = self
            .hall
            .begin_vote(&call, id, profile, verdict, narrowing)
            .await;
        self.answer(begun.map(|begun| v1::BeginVoteResponse {
            statement: begun.statement,
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
        let cast = self
            .hall
            .cast_vote(&call, id, &message.statement, &message.signature)
            .await;
        self.answer(cast.map(|view| v1::CastVoteResponse {
            access_request: Some(shapes::access_request(&view, true)),
        }))
    }
}

fn vote_ask(
    message: &v1::BeginVoteRequest,
) -> Result<(AccessRequestId, ProfileName, Verdict, Narrowing), Malformed> {
    Ok((
        AccessRequestId::parse(&message.access_request_id)?,
        ProfileName::parse(&message.profile)?,
        convert::verdict(message.verdict)?,
        Narrowing {
            max_ttl: message
                .max_ttl
                .as_ref()
                .map(|ttl| convert::seconds("max_ttl", ttl))
                .transpose()?,
        },
    ))
}
