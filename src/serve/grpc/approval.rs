use tonic::{Request, Response, Status};

use super::super::MESSAGE_BYTES_MAX;
use super::{Door, note, shapes};
use crate::broker::{INBOX_PAGE_MAX, InboxAsk, InboxCursor};
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
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/ListAccessRequests", request)
            .await?;
        let ask = inbox_ask(&message).map_err(self.malformed(&call))?;
        let page = self.hall.inbox(&call, &ask);
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

/// Rows of one page, in bytes: what is beside them needs room too.
const PAGE_BYTES_MAX: usize = MESSAGE_BYTES_MAX * 3 / 4;
/// Rows of a page, where its reader does not say.
const PAGE_ROWS: usize = 50;

fn inbox_ask(message: &v1::ListAccessRequestsRequest) -> Result<InboxAsk, Malformed> {
    let size = match usize::try_from(message.page_size) {
        Ok(0) => PAGE_ROWS,
        Ok(size) if size <= INBOX_PAGE_MAX => size,
        Ok(_) | Err(_) => return Err(Malformed::new("page_size", "must be at most 100")),
    };
    let after = match message.page_token.as_str() {
        "" => None,
        text => Some(InboxCursor::parse(text)?),
    };
    Ok(InboxAsk {
        mine: message.mine,
        size,
        after,
    })
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
