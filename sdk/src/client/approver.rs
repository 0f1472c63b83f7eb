use std::sync::Arc;

use tonic::Streaming;

use super::channel::RpcMethod;
use super::responses::{AccessRequestInfo, InboxListing, InboxUpdate, ReadWire};
use super::vote::{self, ReviewedCard, SignedVote};
use super::{CallOptions, Endpoint, Error, Identity, methods, required};
use crate::card::Card;
use crate::jose::SigningKey;
use crate::model::{
    AccessRequestId, Comment, JournalPosition, Narrowing, ParseError, ProfileName, Verdict,
};
use crate::proto::{card, convert, v1};

/// A client for approvers: the inbox, cards and votes.
///
/// The approver is known by a key that the policy bundle registers for the person; the same key signs the votes.
#[derive(Debug, Clone)]
pub struct ApproverClient {
    endpoint: Endpoint,
    key: Arc<SigningKey>,
    identity: Identity,
}

impl ApproverClient {
    /// A client that proves the possession of this key (RFC 9449) and signs votes with it.
    pub fn new(endpoint: Endpoint, key: Arc<SigningKey>) -> Self {
        Self {
            endpoint,
            identity: Identity::Key(key.clone()),
            key,
        }
    }

    /// One page of the inbox; with `decidable_only`, only what the approver may decide. `page_size` is at most 100, 0 for 50;
    /// `page_token` is [`InboxListing::next_page_token`] of the page before, empty for the first.
    pub async fn inbox_page(
        &self,
        decidable_only: bool,
        page_size: u32,
        page_token: &str,
    ) -> Result<InboxListing, Error> {
        let request = v1::ListAccessRequestsRequest {
            decidable_only,
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = self.call::<methods::ListAccessRequests>(request).await?;
        // A row without its access request would be shown as one without an id.
        let complete = page.rows.iter().all(|row| row.access_request.is_some());
        required("access_request", complete.then(|| page.read()))
    }

    /// The whole inbox, highest risk first, then the nearest deadline.
    pub async fn inbox(&self) -> Result<InboxListing, Error> {
        let mut listing = self.inbox_page(false, PAGE_ROWS, "").await?;
        for _ in 1..PAGES_MAX {
            if listing.next_page_token.is_empty() {
                break;
            }
            let token = &listing.next_page_token;
            let page = self.inbox_page(false, PAGE_ROWS, token).await?;
            let rows = std::mem::take(&mut listing.rows);
            listing = page;
            listing.rows.splice(..0, rows);
        }
        Ok(listing)
    }

    /// The access requests of [`ApproverClient::inbox`].
    pub async fn access_requests(&self) -> Result<Vec<AccessRequestInfo>, Error> {
        let rows = self.inbox().await?.rows.into_iter();
        Ok(rows.map(|row| row.access_request).collect())
    }

    /// Watches the inbox: a snapshot first, or the changes after a position. The stream ends when the broker wants a new
    /// proof of the key, after five minutes at the latest: watch again from the last position.
    pub async fn watch_inbox(&self, after: Option<JournalPosition>) -> Result<InboxWatcher, Error> {
        let request = v1::WatchAccessRequestsRequest {
            after: after.map(convert::position_to_wire),
        };
        let options = CallOptions::by(&self.identity);
        let stream = self
            .endpoint
            .watch::<methods::WatchAccessRequests>(options, &request)
            .await?;
        Ok(InboxWatcher {
            endpoint: self.endpoint.clone(),
            stream,
        })
    }

    /// Everything needed to decide an access request.
    pub async fn card(&self, id: AccessRequestId) -> Result<Card, Error> {
        let request = v1::GetCardRequest {
            access_request_id: id.to_string(),
        };
        let response = self.call::<methods::GetCard>(request).await?;
        let card = card::read(&required("card", response.card)?).map_err(Error::Answer)?;
        // The card must be of the access request that the approver opened.
        if card.access_request == id {
            Ok(card)
        } else {
            Err(Error::Answer(ParseError::new(
                "card",
                "is of another access request",
            )))
        }
    }

    /// The broker's statement for a vote, not yet compared with anything: [`vote::sign`] does.
    pub async fn begin_vote(
        &self,
        id: AccessRequestId,
        profile: &ProfileName,
        verdict: Verdict,
        narrowing: Narrowing,
        comment: Option<&Comment>,
    ) -> Result<String, Error> {
        let request = v1::BeginVoteRequest {
            access_request_id: id.to_string(),
            profile: profile.to_string(),
            verdict: convert::verdict_to_wire(verdict).into(),
            max_ttl: narrowing.max_ttl.map(convert::seconds_to_wire),
            max_uses: narrowing.max_uses,
            comment: comment.map_or("", Comment::as_str).to_owned(),
            policy_version: String::new(),
            facts: String::new(),
        };
        Ok(self.call::<methods::BeginVote>(request).await?.statement)
    }

    /// A signed vote on a reviewed card: requests the broker's statement, compares it with the card, signs it. It counts once
    /// it is cast.
    pub async fn sign_vote(&self, review: &ReviewedCard<'_>) -> Result<SignedVote, Error> {
        let statement = self
            .begin_vote(
                review.card.access_request,
                review.profile,
                review.verdict,
                review.narrowing,
                review.comment,
            )
            .await?;
        let now = self.endpoint.clock().now();
        Ok(vote::sign(&self.key, review, &statement, now)?)
    }

    /// Casts a signed vote. Returns the access request after it, and whether this denial reached the limit
    /// and suspended the agent.
    pub async fn cast_vote(&self, vote: &SignedVote) -> Result<(AccessRequestInfo, bool), Error> {
        let request = v1::CastVoteRequest {
            access_request_id: vote.access_request_id().to_string(),
            statement: vote.statement().to_owned(),
            signature: vote.signature().to_vec(),
            passkey: None,
        };
        let response = self.call::<methods::CastVote>(request).await?;
        let access_request = required("access_request", response.access_request)?;
        Ok((access_request.read(), response.agent_suspended))
    }

    /// Signs and casts a vote on a reviewed card. Returns the access request after it.
    pub async fn vote(&self, review: &ReviewedCard<'_>) -> Result<AccessRequestInfo, Error> {
        Ok(self.cast_vote(&self.sign_vote(review).await?).await?.0)
    }

    async fn call<M: RpcMethod>(&self, request: M::Request) -> Result<M::Response, Error> {
        self.endpoint
            .call::<M>(CallOptions::by(&self.identity), &[request])
            .await
    }
}

/// A stream of inbox changes. Dropping it ends the watch.
#[derive(Debug)]
pub struct InboxWatcher {
    endpoint: Endpoint,
    stream: Streaming<v1::WatchAccessRequestsResponse>,
}

impl InboxWatcher {
    /// The next update; `None` when the broker ended the stream. May be dropped while it waits.
    pub async fn next(&mut self) -> Result<Option<InboxUpdate>, Error> {
        match self.stream.message().await {
            Ok(None) => Ok(None),
            Ok(Some(message)) => InboxUpdate::read(message).map(Some).map_err(Error::Answer),
            Err(status) => Err(self.endpoint.stream_error(&status)),
        }
    }
}

/// Most rows of a page.
const PAGE_ROWS: u32 = 100;
/// Most pages that one listing reads.
const PAGES_MAX: usize = 1_000;
