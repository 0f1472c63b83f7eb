use std::collections::BTreeMap;
use std::sync::Arc;

use super::vote::{self, ReviewedCard, SignedVote};
use super::{Endpoint, Error, Identity, CallOptions, methods};
use crate::card::Card;
use crate::jose::SigningKey;
use crate::model::{
    AccessRequestId, AgentId, Comment, FreezeScope, Malformed, Narrowing, PersonId, ProfileName,
    Prose, Secret, TaskId, Thumbprint, TokenId, Verdict,
};
use crate::proto::{card, convert, v1};

/// An approver or operator, by a key registered for the person in the policy bundle.
#[derive(Debug, Clone)]
pub struct Person {
    endpoint: Endpoint,
    key: Arc<SigningKey>,
    identity: Identity,
}

/// Most rows that a page may have, and pages that one reading of an inbox takes.
const PAGE_ROWS: u32 = 100;
const PAGES_MAX: usize = 1_000;

impl Person {
    /// The holder of this key.
    pub fn new(endpoint: Endpoint, key: Arc<SigningKey>) -> Self {
        Self {
            endpoint,
            identity: Identity::Key(key.clone()),
            key,
        }
    }

    /// One page of the inbox. `token` is the page's before, empty for the first.
    pub async fn inbox(
        &self,
        mine: bool,
        page_size: u32,
        token: &str,
    ) -> Result<v1::ListAccessRequestsResponse, Error> {
        let request = v1::ListAccessRequestsRequest {
            mine,
            page_size,
            page_token: token.to_owned(),
        };
        self.endpoint
            .call::<methods::ListAccessRequests>(self.order(), &[request])
            .await
    }

    /// All pages of the inbox: what waits for people and stands before this person, highest risk first, then the nearest
    /// deadline. The number is of those that wait their turn, which are not among the rows.
    pub async fn inbox_rows(&self) -> Result<(Vec<v1::InboxRow>, u32), Error> {
        let (mut rows, mut token, mut queued) = (Vec::new(), String::new(), 0);
        for _ in 0..PAGES_MAX {
            let page = self.inbox(false, PAGE_ROWS, &token).await?;
            rows.extend(page.rows);
            queued = page.queued;
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        Ok((rows, queued))
    }

    /// The access requests of [`Person::inbox_rows`].
    pub async fn list(&self) -> Result<Vec<v1::AccessRequest>, Error> {
        let rows = self.inbox_rows().await?.0.into_iter();
        Ok(rows.filter_map(|row| row.access_request).collect())
    }

    /// Follows what changes in inboxes: a snapshot first, unless it goes on from a position. The stream ends when the broker
    /// wants the key proved again, after five minutes at the latest: watch again from the last position.
    pub async fn watch_inbox(
        &self,
        after: Option<v1::Position>,
    ) -> Result<tonic::Streaming<v1::WatchAccessRequestsResponse>, Error> {
        let request = v1::WatchAccessRequestsRequest { after };
        self.endpoint
            .watch::<methods::WatchAccessRequests>(self.order(), &request)
            .await
    }

    /// Everything needed to decide one.
    pub async fn card(&self, id: AccessRequestId) -> Result<Card, Error> {
        let request = v1::GetCardRequest {
            access_request_id: id.to_string(),
        };
        let answer = self
            .endpoint
            .call::<methods::GetCard>(self.order(), &[request])
            .await?;
        let card = card::read(&there("card", answer.card)?).map_err(Error::Answer)?;
        // What a person decides must be what they asked to see.
        if card.access_request == id {
            Ok(card)
        } else {
            Err(Error::Answer(Malformed::new(
                "card",
                "is of another access request",
            )))
        }
    }

    /// The broker's statement, not yet compared with anything: [`vote::sign`] does.
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
        };
        Ok(self
            .endpoint
            .call::<methods::BeginVote>(self.order(), &[request])
            .await?
            .statement)
    }

    /// Hands a signed vote in.
    pub async fn cast_vote(&self, ballot: &SignedVote) -> Result<v1::AccessRequest, Error> {
        Ok(self.cast(ballot).await?.0)
    }

    /// The same, and whether the vote was one no too many, so that the agent is suspended.
    pub async fn cast(&self, ballot: &SignedVote) -> Result<(v1::AccessRequest, bool), Error> {
        let request = v1::CastVoteRequest {
            access_request_id: ballot.access_request_id().to_string(),
            statement: ballot.statement().to_owned(),
            signature: ballot.signature().to_vec(),
            passkey: None,
        };
        let answer = self
            .endpoint
            .call::<methods::CastVote>(self.order(), &[request])
            .await?;
        Ok((
            there("access_request", answer.access_request)?,
            answer.agent_suspended,
        ))
    }

    /// A signed vote on what was seen: begins, compares the broker's statement with the card, signs. Nothing counts until
    /// it is cast.
    pub async fn ballot(&self, seen: &ReviewedCard<'_>) -> Result<SignedVote, Error> {
        let id = seen.card.access_request;
        let statement = self
            .begin_vote(id, seen.profile, seen.verdict, seen.narrowing, seen.comment)
            .await?;
        Ok(vote::sign(
            &self.key,
            seen,
            &statement,
            self.endpoint.clock().now(),
        )?)
    }

    /// Votes on what was seen: [`Person::ballot`], cast.
    pub async fn vote(&self, seen: &ReviewedCard<'_>) -> Result<v1::AccessRequest, Error> {
        self.cast_vote(&self.ballot(seen).await?).await
    }

    /// Invites a registered person to enrol a passkey.
    pub async fn invite(&self, person: &PersonId) -> Result<v1::InviteApproverResponse, Error> {
        let request = v1::InviteApproverRequest {
            person_id: person.to_string(),
        };
        self.endpoint
            .call::<methods::InviteApprover>(self.order(), &[request])
            .await
    }

    /// People, their keys and passkeys, by id.
    pub async fn approvers(&self) -> Result<Vec<v1::Approver>, Error> {
        let request = v1::ListApproversRequest {};
        let answer = self
            .endpoint
            .call::<methods::ListApprovers>(self.order(), &[request])
            .await?;
        Ok(answer.approvers)
    }

    /// Makes one key of a person, or all, count no more. How many counted until now.
    pub async fn revoke_keys(
        &self,
        person: &PersonId,
        key: Option<Thumbprint>,
    ) -> Result<u32, Error> {
        let request = v1::RevokeApproverKeysRequest {
            person_id: person.to_string(),
            key: key.map(|k| k.to_string()).unwrap_or_default(),
        };
        let answer = self
            .endpoint
            .call::<methods::RevokeApproverKeys>(self.order(), &[request])
            .await?;
        Ok(answer.revoked)
    }

    /// Puts a policy bundle in force: its files by their paths inside it.
    pub async fn apply_policy_bundle(
        &self,
        files: &BTreeMap<String, String>,
    ) -> Result<v1::ApplyPolicyBundleResponse, Error> {
        self.endpoint
            .call::<methods::ApplyPolicyBundle>(self.order(), &pieces(files))
            .await
    }

    /// Puts the first policy bundle of a broker in force, with the one-time code it printed at its start. The bundle must
    /// list this key as an operator's.
    pub async fn apply_first_policy_bundle(
        &self,
        files: &BTreeMap<String, String>,
        code: &Secret,
    ) -> Result<v1::ApplyPolicyBundleResponse, Error> {
        let order = CallOptions {
            code: Some(code),
            ..self.order()
        };
        self.endpoint
            .call::<methods::ApplyPolicyBundle>(order, &pieces(files))
            .await
    }

    /// Takes an agent out of service and ends all it has.
    pub async fn suspend(
        &self,
        agent: &AgentId,
        reason: &str,
    ) -> Result<v1::SuspendAgentResponse, Error> {
        let reason = Prose::parse("reason", reason)?.as_str().to_owned();
        let request = v1::SuspendAgentRequest {
            agent_id: agent.to_string(),
            reason,
        };
        self.endpoint
            .call::<methods::SuspendAgent>(self.order(), &[request])
            .await
    }

    /// Lets an agent operate again.
    pub async fn resume(&self, agent: &AgentId) -> Result<v1::ResumeAgentResponse, Error> {
        let request = v1::ResumeAgentRequest {
            agent_id: agent.to_string(),
        };
        self.endpoint
            .call::<methods::ResumeAgent>(self.order(), &[request])
            .await
    }

    /// Every agent and how it stands, by id.
    pub async fn agents(&self) -> Result<Vec<v1::RegisteredAgent>, Error> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListAgentsRequest {
                page_size: 0,
                page_token,
            };
            let page = self
                .endpoint
                .call::<methods::ListAgents>(self.order(), &[request])
                .await?;
            all.extend(page.agents);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// One agent and how it stands.
    pub async fn agent(&self, agent: &AgentId) -> Result<v1::RegisteredAgent, Error> {
        let request = v1::GetAgentRequest {
            agent_id: agent.to_string(),
        };
        let answer = self
            .endpoint
            .call::<methods::GetAgent>(self.order(), &[request])
            .await?;
        there("agent", answer.agent)
    }

    /// Stops everything, an agent, an owner's agents or an action, and ends all they have.
    pub async fn freeze(
        &self,
        scope: &FreezeScope,
        reason: &str,
    ) -> Result<v1::FreezeResponse, Error> {
        let request = v1::FreezeRequest {
            scope: scope.to_string(),
            reason: Prose::parse("reason", reason)?.as_str().to_owned(),
        };
        self.endpoint
            .call::<methods::Freeze>(self.order(), &[request])
            .await
    }

    /// Lifts a freeze; nothing that ended comes back.
    pub async fn unfreeze(&self, scope: &FreezeScope) -> Result<v1::UnfreezeResponse, Error> {
        let request = v1::UnfreezeRequest {
            scope: scope.to_string(),
        };
        self.endpoint
            .call::<methods::Unfreeze>(self.order(), &[request])
            .await
    }

    /// Freezes in force.
    pub async fn freezes(&self) -> Result<Vec<v1::FreezeInForce>, Error> {
        let answer = self
            .endpoint
            .call::<methods::ListFreezes>(self.order(), &[v1::ListFreezesRequest {}])
            .await?;
        Ok(answer.freezes)
    }

    /// At most `max` tasks, the newest first; those that are over too when `ended`.
    pub async fn tasks(
        &self,
        agent: Option<&AgentId>,
        ended: bool,
        max: usize,
    ) -> Result<Vec<v1::TaskRow>, Error> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        while all.len() < max {
            let request = v1::ListTasksRequest {
                agent_id: agent.map(ToString::to_string).unwrap_or_default(),
                include_ended: ended,
                page_size: u32::try_from(max - all.len())
                    .unwrap_or(TASKS_PAGE)
                    .min(TASKS_PAGE),
                page_token,
            };
            let page = self
                .endpoint
                .call::<methods::ListTasks>(self.order(), &[request])
                .await?;
            all.extend(page.tasks);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        Ok(all)
    }

    /// Ends one token; its task goes on.
    pub async fn revoke_token(&self, jti: TokenId) -> Result<v1::RevokeTokenResponse, Error> {
        let request = v1::RevokeTokenRequest {
            jti: jti.to_string(),
        };
        self.endpoint
            .call::<methods::RevokeToken>(self.order(), &[request])
            .await
    }

    /// Ends a task.
    pub async fn end_task(&self, task: TaskId) -> Result<v1::EndReport, Error> {
        let request = v1::EndTaskRequest {
            task_id: task.to_string(),
        };
        let answer = self
            .endpoint
            .call::<methods::EndTask>(self.order(), &[request])
            .await?;
        there("report", answer.report)
    }

    /// Says why: a decision, an access request, a task, a token or a refused call, by its id.
    pub async fn explain(&self, id: &str) -> Result<v1::ExplainResponse, Error> {
        self.endpoint
            .call::<methods::Explain>(self.order(), &[v1::ExplainRequest { id: id.to_owned() }])
            .await
    }

    /// Rules in force with their figures, by id.
    pub async fn rules(&self) -> Result<Vec<v1::RuleFigures>, Error> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListRulesRequest {
                page_size: 0,
                page_token,
            };
            let page = self
                .endpoint
                .call::<methods::ListRules>(self.order(), &[request])
                .await?;
            all.extend(page.rules);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// People who vote and how they do, by id.
    pub async fn approver_figures(&self) -> Result<Vec<v1::ApproverFigures>, Error> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListApproverFiguresRequest {
                page_size: 0,
                page_token,
            };
            let page = self
                .endpoint
                .call::<methods::ListApproverFigures>(self.order(), &[request])
                .await?;
            all.extend(page.approvers);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// At most `max` tokens that are good now, the next to expire first.
    pub async fn live_tokens(&self, max: usize) -> Result<Vec<v1::LiveToken>, Error> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        while all.len() < max {
            let request = v1::ListTokensRequest {
                page_size: 0,
                page_token,
            };
            let page = self
                .endpoint
                .call::<methods::ListTokens>(self.order(), &[request])
                .await?;
            all.extend(page.tokens);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        all.truncate(max);
        Ok(all)
    }

    /// What happened in a task, from its verification to its end.
    pub async fn timeline(&self, task: TaskId) -> Result<v1::GetTimelineResponse, Error> {
        let mut whole = v1::GetTimelineResponse::default();
        let mut page_token = String::new();
        loop {
            let request = v1::GetTimelineRequest {
                task_id: task.to_string(),
                page_token,
            };
            let page = self
                .endpoint
                .call::<methods::GetTimeline>(self.order(), &[request])
                .await?;
            let mut moments = whole.moments;
            moments.extend(page.moments);
            page_token = page.next_page_token.clone();
            whole = v1::GetTimelineResponse { moments, ..page };
            if page_token.is_empty() {
                return Ok(whole);
            }
        }
    }

    /// One page of the entries that name a word, newest first; every entry for an empty one.
    pub async fn search(
        &self,
        query: &str,
        below: Option<u64>,
    ) -> Result<v1::SearchJournalResponse, Error> {
        let request = v1::SearchJournalRequest {
            query: query.to_owned(),
            below,
        };
        self.endpoint
            .call::<methods::SearchJournal>(self.order(), &[request])
            .await
    }

    fn order(&self) -> CallOptions<'_> {
        CallOptions::by(&self.identity)
    }
}

/// The files in pieces of at most [`PIECE_BYTES_MAX`] bytes, parted between characters; an empty file is one empty piece.
fn pieces(files: &BTreeMap<String, String>) -> Vec<v1::ApplyPolicyBundleRequest> {
    let mut out = Vec::new();
    for (path, content) in files {
        let mut rest = content.as_str();
        loop {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES_MAX));
            out.push(v1::ApplyPolicyBundleRequest {
                path: path.clone(),
                content: piece.to_owned(),
            });
            if after.is_empty() {
                break;
            }
            rest = after;
        }
    }
    out
}

fn there<T>(what: &'static str, field: Option<T>) -> Result<T, Error> {
    field.ok_or_else(|| Error::Answer(Malformed::new(what, "is required")))
}

/// Rows of a page of tasks.
const TASKS_PAGE: u32 = 100;
/// Well below the broker's bound on a message.
const PIECE_BYTES_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_in_pieces_and_come_together_again() {
        let files = BTreeMap::from([
            ("a.cedar".to_owned(), String::new()),
            ("b.cedar".to_owned(), "x".repeat(PIECE_BYTES_MAX)),
            // Three bytes each: no piece may part one.
            ("c.toml".to_owned(), "王".repeat(PIECE_BYTES_MAX)),
        ]);
        let pieces = pieces(&files);
        assert_eq!(pieces.len(), 1 + 1 + 4);
        assert!(
            pieces
                .iter()
                .all(|piece| piece.content.len() <= PIECE_BYTES_MAX)
        );
        let mut back: BTreeMap<String, String> = BTreeMap::new();
        for piece in pieces {
            back.entry(piece.path).or_default().push_str(&piece.content);
        }
        assert_eq!(back, files);
    }
}
