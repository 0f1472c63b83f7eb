use std::collections::BTreeMap;

use tonic::{Request, Response, Status, Streaming};

use super::super::guard::bootstrap_code;
use super::{GrpcService, counted, note, shapes};
use crate::broker::{ApproverStatsRow, FirstOperator, PersonCaller, RuleStatsRow, TaskEndAsk, TaskFilter};
use crate::model::*;
use crate::policy;
use crate::proto::convert::timestamp_to_wire;
use crate::proto::v1;
use crate::proto::v1::governance_service_server::GovernanceService;
use crate::state::FrozenAt;

/// Who brings a policy bundle.
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
        let call = self
            .seated("dipylon.v1.GovernanceService/ApplyPolicyBundle", &metadata)
            .await?;
        // Known before a byte of the bundle is read.
        let known = match bootstrap_code(&metadata) {
            None => self.broker.authenticate_person(&call).map(Author::Operator),
            Some(code) => self.broker.first_operator(&call, &code).map(Author::First),
        };
        let author = known.map_err(|refusal| super::status(&refusal, &self.broker))?;
        // The pieces come as slowly as the operator's line: that takes nobody's place.
        call.permit.release();
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        let mut size = 0_usize;
        while let Some(piece) = pieces.message().await? {
            let too_large =
                |rule: String| self.malformed(&call)(Malformed::new("policy bundle", rule));
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
        self.answer(applied.map(|a| v1::ApplyPolicyBundleResponse {
            version: a.version,
            changed: a.changed,
            rules: shapes::count(a.rules),
            agents: shapes::count(a.agents),
            warnings: a.warnings,
            tasks_ended: shapes::count(a.revoked.tasks),
            tokens_ended: shapes::count(a.revoked.grants),
            access_requests_closed: shapes::count(a.revoked.requests),
        }))
    }

    async fn suspend_agent(
        &self,
        request: Request<v1::SuspendAgentRequest>,
    ) -> Result<Response<v1::SuspendAgentResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/SuspendAgent", request)
            .await?;
        let parsed = AgentId::parse(&message.agent_id).and_then(|agent| {
            let reason = given(&message.reason).map(|text| Prose::parse("reason", text));
            Ok((agent, reason.transpose()?))
        });
        let (agent, reason) = parsed.map_err(self.malformed(&call))?;
        let suspended = self.broker.suspend_agent(&call, agent, reason).await;
        self.answer(suspended.map(|(tasks, position)| v1::SuspendAgentResponse {
            tasks_ended: shapes::count(tasks),
            position,
        }))
    }

    async fn resume_agent(
        &self,
        request: Request<v1::ResumeAgentRequest>,
    ) -> Result<Response<v1::ResumeAgentResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/ResumeAgent", request)
            .await?;
        let agent = AgentId::parse(&message.agent_id).map_err(self.malformed(&call))?;
        self.answer(
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/ListAgents", request)
            .await?;
        let parsed = page_size(message.page_size).and_then(|max| {
            let after = given(&message.page_token).map(AgentId::parse).transpose()?;
            Ok((max, after))
        });
        let (max, after) = parsed.map_err(self.malformed(&call))?;
        let page = self.broker.list_agents(&call, after.as_ref(), max);
        self.answer(page.map(|page| {
            let agents = fitting(page.iter().map(shapes::registered_agent));
            let more = page.len() >= max || agents.len() < page.len();
            v1::ListAgentsResponse {
                next_page_token: match agents.last().filter(|_| more) {
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/GetAgent", request)
            .await?;
        let id = AgentId::parse(&message.agent_id).map_err(self.malformed(&call))?;
        let found = self.broker.get_agent(&call, &id);
        self.answer(found.map(|view| v1::GetAgentResponse {
            agent: Some(shapes::registered_agent(&view)),
        }))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FreezeResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/Freeze", request)
            .await?;
        let parsed = FreezeScope::parse(&message.scope).and_then(|scope| {
            let reason = given(&message.reason).map(|text| Prose::parse("reason", text));
            Ok((scope, reason.transpose()?))
        });
        let (scope, reason) = parsed.map_err(self.malformed(&call))?;
        let done = self.broker.freeze(&call, scope, reason).await;
        self.answer(done.map(|done| v1::FreezeResponse {
            changed: done.changed,
            position: done.index,
            tasks_ended: shapes::count(done.tasks),
            tokens_ended: shapes::count(done.tokens),
            access_requests_closed: shapes::count(done.access_requests),
        }))
    }

    async fn unfreeze(
        &self,
        request: Request<v1::UnfreezeRequest>,
    ) -> Result<Response<v1::UnfreezeResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/Unfreeze", request)
            .await?;
        let scope = FreezeScope::parse(&message.scope).map_err(self.malformed(&call))?;
        let lifted = self.broker.unfreeze(&call, scope).await;
        self.answer(lifted.map(|position| v1::UnfreezeResponse { position }))
    }

    async fn list_freezes(
        &self,
        request: Request<v1::ListFreezesRequest>,
    ) -> Result<Response<v1::ListFreezesResponse>, Status> {
        let (call, _) = self
            .open("dipylon.v1.GovernanceService/ListFreezes", request)
            .await?;
        let row = |(scope, frozen): (FreezeScope, FrozenAt)| v1::FreezeInForce {
            scope: scope.to_string(),
            since: Some(timestamp_to_wire(frozen.at)),
            by: frozen.by.to_string(),
            reason: frozen
                .reason
                .map(|p| p.as_str().to_owned())
                .unwrap_or_default(),
            position: frozen.index,
        };
        self.answer(
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/ListTasks", request)
            .await?;
        let parsed = page_size(message.page_size).and_then(|max| {
            Ok(TaskFilter {
                agent: given(&message.agent_id).map(AgentId::parse).transpose()?,
                ended: message.include_ended,
                after: given(&message.page_token).map(TaskId::parse).transpose()?,
                max,
            })
        });
        let filter = parsed.map_err(self.malformed(&call))?;
        let page = self.broker.list_tasks(&call, &filter);
        self.answer(page.map(|page| {
            let tasks = fitting(page.iter().map(shapes::task_row));
            let more = page.len() >= filter.max || tasks.len() < page.len();
            v1::ListTasksResponse {
                next_page_token: match tasks.last().filter(|_| more) {
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/EndTask", request)
            .await?;
        let task = TaskId::parse(&message.task_id).map_err(self.malformed(&call))?;
        note("task", &task);
        let ended = self
            .broker
            .end_task_as_operator(
                &call,
                TaskEndAsk {
                    task,
                    outcome: None,
                },
            )
            .await;
        self.answer(ended.map(|report| v1::EndTaskResponse {
            report: Some(shapes::end_report(&report)),
        }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/Explain", request)
            .await?;
        self.answer(self.broker.explain(&call, &message.id).map(|e| {
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/ListRules", request)
            .await?;
        let max = page_size(message.page_size).map_err(self.malformed(&call))?;
        self.answer(self.broker.list_rules(&call).map(|all| {
            let after = |row: &&RuleStatsRow| row.id > message.page_token;
            let left: Vec<_> = all.iter().filter(after).collect();
            let page = left.iter().take(max);
            let rules = fitting(page.map(|row| counted::rule(row)));
            let more = rules.len() < left.len();
            v1::ListRulesResponse {
                next_page_token: match rules.last().filter(|_| more) {
                    Some(last) => last.rule_id.clone(),
                    None => String::new(),
                },
                rules,
            }
        }))
    }

    async fn list_approver_figures(
        &self,
        request: Request<v1::ListApproverFiguresRequest>,
    ) -> Result<Response<v1::ListApproverFiguresResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/ListApproverFigures", request)
            .await?;
        let max = page_size(message.page_size).map_err(self.malformed(&call))?;
        self.answer(self.broker.approver_stats(&call).map(|all| {
            let after = |row: &&ApproverStatsRow| *row.id.as_str() > *message.page_token;
            let left: Vec<_> = all.iter().filter(after).collect();
            let page = left.iter().take(max);
            let approvers = fitting(page.map(|row| counted::approver(row)));
            let more = approvers.len() < left.len();
            v1::ListApproverFiguresResponse {
                next_page_token: match approvers.last().filter(|_| more) {
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/ListTokens", request)
            .await?;
        let parsed = page_size(message.page_size).and_then(|max| {
            let after = given(&message.page_token).map(TokenId::parse).transpose()?;
            Ok((max, after))
        });
        let (max, after) = parsed.map_err(self.malformed(&call))?;
        let page = self.broker.live_tokens(&call, after, max).await;
        self.answer(page.map(|page| {
            let tokens = fitting(page.iter().map(counted::live_token));
            let more = page.len() >= max || tokens.len() < page.len();
            v1::ListTokensResponse {
                next_page_token: match tokens.last().filter(|_| more) {
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/GetTimeline", request)
            .await?;
        let parsed = TaskId::parse(&message.task_id).and_then(|task| {
            let wrong = |_| Malformed::new("page_token", "must be one of ours");
            let place = given(&message.page_token).map(|text| text.parse::<usize>());
            Ok((task, place.transpose().map_err(wrong)?.unwrap_or(0)))
        });
        let (task, place) = parsed.map_err(self.malformed(&call))?;
        note("task", &task);
        let whole = self.broker.timeline(&call, task).await;
        self.answer(whole.map(|whole| {
            let page = whole.events.iter().skip(place);
            let moments = fitting(page.map(counted::moment));
            let next = place.saturating_add(moments.len());
            v1::GetTimelineResponse {
                task_id: whole.task.to_string(),
                agent_id: whole.agent.to_string(),
                owner: whole.owner.to_string(),
                ended: whole
                    .ended
                    .map(|cause| cause.as_str())
                    .unwrap_or("")
                    .to_owned(),
                moments,
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
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/SearchJournal", request)
            .await?;
        let found = self
            .broker
            .search(&call, &message.query, message.below)
            .await;
        self.answer(found.map(|found| {
            let moments = fitting(found.events.iter().map(counted::moment));
            let cut = moments.len() < found.events.len();
            v1::SearchJournalResponse {
                next: match moments.last().filter(|_| cut) {
                    Some(last) => last.index,
                    None => found.next,
                },
                moments,
            }
        }))
    }
}

/// Most rows of a page.
const PAGE_MAX: u32 = 100;
/// Most bytes of a page's rows: below the longest message, with room for the rest of it.
const PAGE_BYTES_MAX: usize = 48 * 1024;

/// As many rows as a message can hold; at least one, if there is one.
fn fitting<T: prost::Message>(rows: impl Iterator<Item = T>) -> Vec<T> {
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

fn page_size(asked: u32) -> Result<usize, Malformed> {
    match asked {
        0 => Ok(PAGE_MAX as usize),
        1..=PAGE_MAX => Ok(asked as usize),
        _ => Err(Malformed::new(
            "page_size",
            format!("must be at most {PAGE_MAX}"),
        )),
    }
}

/// Text that was given; empty is absent in proto3.
fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
