//! GovernanceService, for operators and auditors: policy bundles, agents, freezes, tasks and the journal.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::service::GrpcService;
use crate::broker::{
    ApproverStatsRow, EndTaskInput, FirstOperator, PersonCaller, RuleStatsRow, TaskFilter,
};
use crate::model::*;
use crate::policy;
use crate::proto::convert::timestamp_to_wire;
use crate::proto::v1;
use crate::serve::authorization::{
    APPLY_POLICY_BUNDLE, END_TASK, EXPLAIN, FREEZE, GET_AGENT, GET_TIMELINE, LIST_AGENTS,
    LIST_APPROVER_STATS, LIST_FREEZES, LIST_RULES, LIST_TASKS, LIST_TOKENS, RESUME_AGENT,
    SEARCH_JOURNAL, SUSPEND_AGENT, UNFREEZE, bootstrap_code,
};
use crate::serve::request_log::record;
use crate::serve::services::governance_service_server::GovernanceService;
use crate::state::FreezeMarker;

/// The operator who applies a policy bundle.
enum Author {
    Operator(PersonCaller),
    First(FirstOperator),
}

#[tonic::async_trait]
impl GovernanceService for GrpcService {
    async fn apply_policy_bundle(
        &self,
        request: Request<Streaming<v1::ApplyPolicyBundleRequest>>,
    ) -> Result<Response<v1::ApplyPolicyBundleResponse>, Status> {
        let (metadata, _, mut pieces) = request.into_parts();
        let call = self.admit_call(APPLY_POLICY_BUNDLE, &metadata).await?;
        // The operator is authenticated before a byte of the bundle is read.
        let author = match bootstrap_code(&metadata) {
            None => self.broker.authenticate_person(&call).map(Author::Operator),
            Some(code) => self.broker.first_operator(&call, &code).map(Author::First),
        };
        let author = author.map_err(|refusal| self.status(&refusal))?;
        // The pieces arrive as slowly as the operator's connection is: meanwhile the call holds no permit.
        call.permit.release();
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        let mut size = 0_usize;
        while let Some(piece) = pieces.message().await? {
            let too_large = |rule: String| self.malformed(&call)(ParseError::new("content", rule));
            size = size
                .saturating_add(piece.content.len())
                .saturating_add(piece.path.len());
            if size > policy::BYTES_MAX.saturating_mul(2) {
                return Err(too_large(format!(
                    "must be at most {} bytes",
                    policy::BYTES_MAX
                )));
            }
            files
                .entry(piece.path)
                .or_default()
                .push_str(&piece.content);
            if files.len() > policy::FILES_MAX {
                return Err(too_large(format!(
                    "must have at most {} files",
                    policy::FILES_MAX
                )));
            }
        }
        call.permit.reacquire().await;
        let applied = match author {
            Author::Operator(operator) => {
                self.broker
                    .apply_policy_bundle(&call, operator, files)
                    .await
            }
            Author::First(first) => {
                self.broker
                    .apply_first_policy_bundle(&call, first, files)
                    .await
            }
        };
        self.respond(applied.map(|a| v1::ApplyPolicyBundleResponse {
            version: a.version,
            changed: a.changed,
            rules: convert::count(a.rules),
            agents: convert::count(a.agents),
            warnings: a.warnings,
            tasks_ended: convert::count(a.revoked.tasks),
            tokens_ended: convert::count(a.revoked.grants),
            access_requests_closed: convert::count(a.revoked.requests),
        }))
    }

    async fn suspend_agent(
        &self,
        request: Request<v1::SuspendAgentRequest>,
    ) -> Result<Response<v1::SuspendAgentResponse>, Status> {
        let (call, message) = self.begin_call(SUSPEND_AGENT, request).await?;
        let parsed = AgentId::parse(&message.agent_id)
            .at("agent_id")
            .and_then(|agent| {
                let reason =
                    optional(&message.reason).map(|text| UntrustedText::parse("reason", text));
                Ok((agent, reason.transpose()?))
            });
        let (agent, reason) = parsed.map_err(self.malformed(&call))?;
        let suspended = self.broker.suspend_agent(&call, agent, reason).await;
        self.respond(suspended.map(|(tasks, position)| v1::SuspendAgentResponse {
            tasks_ended: convert::count(tasks),
            position,
        }))
    }

    async fn resume_agent(
        &self,
        request: Request<v1::ResumeAgentRequest>,
    ) -> Result<Response<v1::ResumeAgentResponse>, Status> {
        let (call, message) = self.begin_call(RESUME_AGENT, request).await?;
        let agent = AgentId::parse(&message.agent_id)
            .at("agent_id")
            .map_err(self.malformed(&call))?;
        self.respond(
            self.broker
                .resume_agent(&call, agent)
                .await
                .map(|position| v1::ResumeAgentResponse { position }),
        )
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let (call, message) = self.begin_call(LIST_AGENTS, request).await?;
        let parsed = page_size(message.page_size).and_then(|max| {
            let after = optional(&message.page_token)
                .map(AgentId::parse)
                .transpose()
                .at("page_token")?;
            Ok((max, after))
        });
        let (max, after) = parsed.map_err(self.malformed(&call))?;
        let page = self.broker.list_agents(&call, after.as_ref(), max);
        self.respond(page.map(|page| {
            let agents = fit_page(page.iter().map(convert::registered_agent));
            let has_more = page.len() >= max || agents.len() < page.len();
            v1::ListAgentsResponse {
                next_page_token: match agents.last().filter(|_| has_more) {
                    Some(last) => last.agent_id.clone(),
                    None => String::new(),
                },
                agents,
            }
        }))
    }

    async fn get_agent(
        &self,
        request: Request<v1::GetAgentRequest>,
    ) -> Result<Response<v1::GetAgentResponse>, Status> {
        let (call, message) = self.begin_call(GET_AGENT, request).await?;
        let id = AgentId::parse(&message.agent_id)
            .at("agent_id")
            .map_err(self.malformed(&call))?;
        let found = self.broker.get_agent(&call, &id);
        self.respond(found.map(|view| v1::GetAgentResponse {
            agent: Some(convert::registered_agent(&view)),
        }))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FreezeResponse>, Status> {
        let (call, message) = self.begin_call(FREEZE, request).await?;
        let parsed = FreezeScope::parse(&message.scope)
            .at("scope")
            .and_then(|scope| {
                let reason =
                    optional(&message.reason).map(|text| UntrustedText::parse("reason", text));
                Ok((scope, reason.transpose()?))
            });
        let (scope, reason) = parsed.map_err(self.malformed(&call))?;
        let summary = self.broker.freeze(&call, scope, reason).await;
        self.respond(summary.map(|summary| v1::FreezeResponse {
            changed: summary.changed,
            position: summary.index,
            tasks_ended: convert::count(summary.tasks),
            tokens_ended: convert::count(summary.tokens),
            access_requests_closed: convert::count(summary.access_requests),
        }))
    }

    async fn unfreeze(
        &self,
        request: Request<v1::UnfreezeRequest>,
    ) -> Result<Response<v1::UnfreezeResponse>, Status> {
        let (call, message) = self.begin_call(UNFREEZE, request).await?;
        let scope = FreezeScope::parse(&message.scope)
            .at("scope")
            .map_err(self.malformed(&call))?;
        let lifted = self.broker.unfreeze(&call, scope).await;
        self.respond(lifted.map(|position| v1::UnfreezeResponse { position }))
    }

    async fn list_freezes(
        &self,
        request: Request<v1::ListFreezesRequest>,
    ) -> Result<Response<v1::ListFreezesResponse>, Status> {
        let (call, _) = self.begin_call(LIST_FREEZES, request).await?;
        let row = |(scope, frozen): (FreezeScope, FreezeMarker)| v1::ActiveFreeze {
            scope: scope.to_string(),
            since: Some(timestamp_to_wire(frozen.at)),
            by: frozen.by.to_string(),
            reason: frozen
                .reason
                .map(|p| p.as_str().to_owned())
                .unwrap_or_default(),
            position: frozen.index,
        };
        self.respond(
            self.broker
                .freezes(&call)
                .map(|all| v1::ListFreezesResponse {
                    freezes: all.into_iter().map(row).collect(),
                }),
        )
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let (call, message) = self.begin_call(LIST_TASKS, request).await?;
        let parsed = page_size(message.page_size).and_then(|max| {
            Ok(TaskFilter {
                agent: optional(&message.agent_id)
                    .map(AgentId::parse)
                    .transpose()
                    .at("agent_id")?,
                ended: message.include_ended,
                after: optional(&message.page_token)
                    .map(TaskId::parse)
                    .transpose()
                    .at("page_token")?,
                max,
            })
        });
        let filter = parsed.map_err(self.malformed(&call))?;
        let page = self.broker.list_tasks(&call, &filter);
        self.respond(page.map(|page| {
            let tasks = fit_page(page.iter().map(convert::task_row));
            let has_more = page.len() >= filter.max || tasks.len() < page.len();
            v1::ListTasksResponse {
                next_page_token: match tasks.last().filter(|_| has_more) {
                    Some(last) => last.task_id.clone(),
                    None => String::new(),
                },
                tasks,
            }
        }))
    }

    async fn end_task(
        &self,
        request: Request<v1::EndTaskRequest>,
    ) -> Result<Response<v1::EndTaskResponse>, Status> {
        let (call, message) = self.begin_call(END_TASK, request).await?;
        let task = TaskId::parse(&message.task_id)
            .at("task_id")
            .map_err(self.malformed(&call))?;
        record("task", &task);
        let ended = self
            .broker
            .end_task_as_operator(
                &call,
                EndTaskInput {
                    task,
                    outcome: None,
                },
            )
            .await;
        self.respond(ended.map(|report| v1::EndTaskResponse {
            report: Some(convert::end_report(&report)),
        }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (call, message) = self.begin_call(EXPLAIN, request).await?;
        let id = explain_id(&message.id).map_err(self.malformed(&call))?;
        self.respond(self.broker.explain(&call, id).map(|e| {
            v1::ExplainResponse {
                headline: e.headline,
                lines: e
                    .lines
                    .into_iter()
                    .map(|(label, text)| v1::ExplainLine { label, text })
                    .collect(),
                entries: e.entries,
            }
        }))
    }

    async fn list_rules(
        &self,
        request: Request<v1::ListRulesRequest>,
    ) -> Result<Response<v1::ListRulesResponse>, Status> {
        let (call, message) = self.begin_call(LIST_RULES, request).await?;
        let max = page_size(message.page_size).map_err(self.malformed(&call))?;
        self.respond(self.broker.list_rules(&call).map(|all| {
            let after = |row: &&RuleStatsRow| row.id > message.page_token;
            let left: Vec<_> = all.iter().filter(after).collect();
            let page = left.iter().take(max);
            let rules = fit_page(page.map(|row| convert::rule_stats(row)));
            let has_more = rules.len() < left.len();
            v1::ListRulesResponse {
                next_page_token: match rules.last().filter(|_| has_more) {
                    Some(last) => last.rule_id.clone(),
                    None => String::new(),
                },
                rules,
            }
        }))
    }

    async fn list_approver_stats(
        &self,
        request: Request<v1::ListApproverStatsRequest>,
    ) -> Result<Response<v1::ListApproverStatsResponse>, Status> {
        let (call, message) = self.begin_call(LIST_APPROVER_STATS, request).await?;
        let max = page_size(message.page_size).map_err(self.malformed(&call))?;
        self.respond(self.broker.approver_stats(&call).map(|all| {
            let after = |row: &&ApproverStatsRow| *row.id.as_str() > *message.page_token;
            let left: Vec<_> = all.iter().filter(after).collect();
            let page = left.iter().take(max);
            let approvers = fit_page(page.map(|row| convert::approver_stats(row)));
            let has_more = approvers.len() < left.len();
            v1::ListApproverStatsResponse {
                next_page_token: match approvers.last().filter(|_| has_more) {
                    Some(last) => last.person_id.clone(),
                    None => String::new(),
                },
                approvers,
            }
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let (call, message) = self.begin_call(LIST_TOKENS, request).await?;
        let parsed = page_size(message.page_size).and_then(|max| {
            let after = optional(&message.page_token)
                .map(TokenId::parse)
                .transpose()
                .at("page_token")?;
            Ok((max, after))
        });
        let (max, after) = parsed.map_err(self.malformed(&call))?;
        let page = self.broker.live_tokens(&call, after, max).await;
        self.respond(page.map(|page| {
            let tokens = fit_page(page.iter().map(convert::live_token));
            let has_more = page.len() >= max || tokens.len() < page.len();
            v1::ListTokensResponse {
                next_page_token: match tokens.last().filter(|_| has_more) {
                    Some(last) => last.jti.clone(),
                    None => String::new(),
                },
                tokens,
            }
        }))
    }

    async fn get_timeline(
        &self,
        request: Request<v1::GetTimelineRequest>,
    ) -> Result<Response<v1::GetTimelineResponse>, Status> {
        let (call, message) = self.begin_call(GET_TIMELINE, request).await?;
        let parsed = TaskId::parse(&message.task_id)
            .at("task_id")
            .and_then(|task| {
                let wrong =
                    |_| ParseError::new("page_token", "expected a token of the page before");
                let offset = optional(&message.page_token).map(|text| text.parse::<usize>());
                Ok((task, offset.transpose().map_err(wrong)?.unwrap_or(0)))
            });
        let (task, offset) = parsed.map_err(self.malformed(&call))?;
        record("task", &task);
        let whole = self.broker.timeline(&call, task).await;
        self.respond(whole.map(|whole| {
            let page = whole.events.iter().skip(offset);
            let moments = fit_page(page.map(convert::timeline_event));
            let next = offset.saturating_add(moments.len());
            v1::GetTimelineResponse {
                task_id: whole.task.to_string(),
                agent_id: whole.agent.to_string(),
                owner: whole.owner.to_string(),
                ended: whole
                    .ended
                    .map(|cause| cause.as_str())
                    .unwrap_or("")
                    .to_owned(),
                events: moments,
                left_out: whole.left_out,
                next_page_token: match next < whole.events.len() {
                    true => next.to_string(),
                    false => String::new(),
                },
            }
        }))
    }

    async fn search_journal(
        &self,
        request: Request<v1::SearchJournalRequest>,
    ) -> Result<Response<v1::SearchJournalResponse>, Status> {
        let (call, message) = self.begin_call(SEARCH_JOURNAL, request).await?;
        let found = self
            .broker
            .search(&call, &message.query, message.below)
            .await;
        self.respond(found.map(|found| {
            let moments = fit_page(found.events.iter().map(convert::timeline_event));
            let cut = moments.len() < found.events.len();
            v1::SearchJournalResponse {
                next: match moments.last().filter(|_| cut) {
                    Some(last) => last.index,
                    None => found.next,
                },
                events: moments,
            }
        }))
    }
}

/// Most rows of a page.
const PAGE_MAX: u32 = 100;
/// Most bytes of a page's rows: below the longest message, with room for the rest of it.
const PAGE_BYTES_MAX: usize = 48 * 1024;

/// As many rows as a message can hold; at least one, if there is one.
fn fit_page<T: prost::Message>(rows: impl Iterator<Item = T>) -> Vec<T> {
    let mut bytes = 0;
    let mut page = Vec::new();
    for row in rows {
        bytes += row.encoded_len() + 8;
        if bytes > PAGE_BYTES_MAX && !page.is_empty() {
            break;
        }
        page.push(row);
    }
    page
}

fn page_size(size: u32) -> Result<usize, ParseError> {
    match size {
        0 => Ok(PAGE_MAX as usize),
        1..=PAGE_MAX => Ok(size as usize),
        _ => Err(ParseError::new(
            "page_size",
            format!("must be at most {PAGE_MAX}"),
        )),
    }
}

/// An id that `Explain` takes.
fn explain_id(text: &str) -> Result<&str, ParseError> {
    let prefix = text.split_once('_').map_or("", |(prefix, _)| prefix);
    match prefix {
        "dec" => DecisionId::parse(text).map(drop),
        "areq" => AccessRequestId::parse(text).map(drop),
        "task" => TaskId::parse(text).map(drop),
        "tok" => TokenId::parse(text).map(drop),
        "cor" => CorrelationId::parse(text).map(drop),
        _ => Err(ParseError::new(
            "id",
            "expected the id of a decision, an access request, a task, a token or a refusal, which begins dec_, areq_, task_, \
             tok_ or cor_",
        )),
    }
    .at("id")?;
    Ok(text)
}

/// Text, if there is any: empty means absent in proto3.
fn optional(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
