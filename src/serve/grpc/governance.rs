//! GovernanceService, for operators and auditors: policy bundles, agents, freezes, tasks and the journal.

use std::collections::BTreeSet;

use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::explanation::explanation;
use super::page::{fit_page, fit_texts};
use super::policy_bundles::BundleUpload;
use super::service::GrpcService;
use super::streams::Messages;
use crate::broker::{
    EndTaskInput, FactOrder, FactOutcome, FactStatus, FirstOperator, LiveToken, PersonCaller,
    TaskFilter, TaskView, TimelineCursor,
};
use crate::model::*;
use crate::proto::convert::timestamp_to_wire;
use crate::proto::v1;
use crate::serve::authorization::{
    APPLY_POLICY_BUNDLE, END_TASK, EXPLAIN, FREEZE, GET_AGENT, GET_TIMELINE, LIST_AGENTS,
    LIST_APPROVER_STATS, LIST_FACTS, LIST_FREEZES, LIST_RULES, LIST_TASKS, LIST_TOKENS,
    RESUME_AGENT, SEARCH_JOURNAL, SET_FACT, SUSPEND_AGENT, UNFREEZE, WITHDRAW_POLICY_PROPOSAL,
    bootstrap_code,
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
        let mut upload = BundleUpload::default();
        let mut returning = BTreeSet::new();
        let mut base = None;
        while let Some(piece) = pieces.message().await? {
            let more = piece.returning.iter().map(String::len).sum();
            upload
                .add(piece.path, &piece.content, more)
                .map_err(self.malformed(&call))?;
            for person in &piece.returning {
                let person = PersonId::parse(person).at("returning");
                returning.insert(person.map_err(self.malformed(&call))?);
            }
            if let Some(version) = optional(&piece.base_version) {
                let version = Digest::parse(version).at("base_version");
                let version = version.map_err(self.malformed(&call))?;
                if base.is_some_and(|base| base != version) {
                    let why = ParseError::new("base_version", "is another one in each message");
                    return Err(self.malformed(&call)(why));
                }
                base = Some(version);
            }
        }
        let files = upload.files;
        call.permit.reacquire().await;
        let applied = match author {
            Author::Operator(operator) => {
                self.broker
                    .apply_policy_bundle(&call, operator, files, returning, base)
                    .await
            }
            Author::First(_) if !returning.is_empty() || base.is_some() => {
                let why = ParseError::new(
                    "returning, base_version",
                    "must be empty with a one-time code: no bundle was in force before",
                );
                return Err(self.malformed(&call)(why));
            }
            Author::First(first) => {
                self.broker
                    .apply_first_policy_bundle(&call, first, files)
                    .await
            }
        };
        self.respond(applied.map(|a| {
            v1::ApplyPolicyBundleResponse {
                version: a.version,
                changed: a.changed,
                rules: convert::count(a.rules),
                agents: convert::count(a.agents),
                warnings: warnings(&a.warnings),
                tasks_ended: convert::count(a.revoked.tasks),
                tokens_ended: convert::count(a.revoked.grants),
                access_requests_closed: convert::count(a.revoked.requests),
                people: fitting(&a.people, "; 'dipylon approver list' shows every person"),
                access_request_id: a
                    .proposal
                    .map(|p| p.access_request.to_string())
                    .unwrap_or_default(),
                expires_at: a.proposal.map(|p| timestamp_to_wire(p.expires_at)),
            }
        }))
    }

    async fn plan_policy_bundle(
        &self,
        request: Request<Streaming<v1::PlanPolicyBundleRequest>>,
    ) -> Result<Response<v1::PlanPolicyBundleResponse>, Status> {
        self.begin_policy_plan(request).await
    }

    type GetPolicyPlanStream = Messages<v1::GetPolicyPlanResponse>;

    async fn get_policy_plan(
        &self,
        request: Request<v1::GetPolicyPlanRequest>,
    ) -> Result<Response<Self::GetPolicyPlanStream>, Status> {
        self.read_policy_plan(request).await
    }

    async fn withdraw_policy_proposal(
        &self,
        request: Request<v1::WithdrawPolicyProposalRequest>,
    ) -> Result<Response<v1::WithdrawPolicyProposalResponse>, Status> {
        let (call, message) = self.begin_call(WITHDRAW_POLICY_PROPOSAL, request).await?;
        let id = AccessRequestId::parse(&message.access_request_id)
            .at("access_request_id")
            .map_err(self.malformed(&call))?;
        record("access_request", &id);
        let withdrawn = self.broker.withdraw_proposal(&call, id).await;
        let view = withdrawn.and_then(|()| self.broker.view_of(&call, &id));
        self.respond(view.map(|view| v1::WithdrawPolicyProposalResponse {
            access_request: Some(convert::access_request(&view, true)),
        }))
    }

    async fn list_policy_bundles(
        &self,
        request: Request<v1::ListPolicyBundlesRequest>,
    ) -> Result<Response<v1::ListPolicyBundlesResponse>, Status> {
        self.policy_history(request).await
    }

    type GetPolicyBundleStream = Messages<v1::GetPolicyBundleResponse>;

    async fn get_policy_bundle(
        &self,
        request: Request<v1::GetPolicyBundleRequest>,
    ) -> Result<Response<Self::GetPolicyBundleStream>, Status> {
        self.read_policy_bundle(request).await
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
        let query = self
            .page_query(
                LIST_AGENTS,
                String::new(),
                message.page_size,
                &message.page_token,
            )
            .map_err(self.malformed(&call))?;
        let listed = self
            .broker
            .list_agents(&call, query.after.as_ref(), query.rows_to_read());
        self.respond(listed.map(|rows| {
            let (agents, next_page_token) =
                query.page(&rows, convert::registered_agent, |row| row.id.clone());
            v1::ListAgentsResponse {
                agents,
                next_page_token,
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

    async fn set_fact(
        &self,
        request: Request<v1::SetFactRequest>,
    ) -> Result<Response<v1::SetFactResponse>, Status> {
        let (call, message) = self.begin_call(SET_FACT, request).await?;
        let order = fact_order(&message).map_err(self.malformed(&call))?;
        let outcome = self.broker.set_fact(&call, &order).await;
        self.respond(outcome.map(|outcome| match outcome {
            FactOutcome::Waits(proposal) => v1::SetFactResponse {
                access_request_id: proposal.access_request.to_string(),
                expires_at: Some(timestamp_to_wire(proposal.expires_at)),
                ..v1::SetFactResponse::default()
            },
            FactOutcome::InForce { until, changed } => v1::SetFactResponse {
                changed,
                until: until.map(timestamp_to_wire),
                ..v1::SetFactResponse::default()
            },
        }))
    }

    async fn list_facts(
        &self,
        request: Request<v1::ListFactsRequest>,
    ) -> Result<Response<v1::ListFactsResponse>, Status> {
        let (call, _) = self.begin_call(LIST_FACTS, request).await?;
        self.respond(self.broker.facts(&call).map(|facts| v1::ListFactsResponse {
            facts: facts.iter().map(fact_row).collect(),
        }))
    }

    async fn list_freezes(
        &self,
        request: Request<v1::ListFreezesRequest>,
    ) -> Result<Response<v1::ListFreezesResponse>, Status> {
        let (call, message) = self.begin_call(LIST_FREEZES, request).await?;
        let query = self
            .page_query::<FreezeScope>(
                LIST_FREEZES,
                String::new(),
                message.page_size,
                &message.page_token,
            )
            .map_err(self.malformed(&call))?;
        let row = |(scope, frozen): &(FreezeScope, FreezeMarker)| v1::ActiveFreeze {
            scope: scope.to_string(),
            since: Some(timestamp_to_wire(frozen.at)),
            by: frozen.by.to_string(),
            reason: frozen
                .reason
                .as_ref()
                .map(|reason| reason.as_str().to_owned())
                .unwrap_or_default(),
            position: frozen.index,
        };
        self.respond(self.broker.freezes(&call).map(|mut rows| {
            rows.retain(|(scope, _)| query.after.as_ref().is_none_or(|last| scope > last));
            let (freezes, next_page_token) = query.page(&rows, row, |(scope, _)| scope.clone());
            v1::ListFreezesResponse {
                freezes,
                next_page_token,
            }
        }))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let (call, message) = self.begin_call(LIST_TASKS, request).await?;
        let selected = format!("{}\0{}", message.agent_id, message.include_ended);
        let parsed = self
            .page_query(LIST_TASKS, selected, message.page_size, &message.page_token)
            .and_then(|query| {
                let agent = optional(&message.agent_id).map(AgentId::parse);
                Ok((query, agent.transpose().at("agent_id")?))
            });
        let (query, agent) = parsed.map_err(self.malformed(&call))?;
        let filter = TaskFilter {
            agent,
            ended: message.include_ended,
            after: query.after,
            max: query.rows_to_read(),
        };
        let listed = self.broker.list_tasks(&call, &filter);
        self.respond(listed.map(|rows| {
            let (tasks, next_page_token) = query.page(&rows, convert::task_row, TaskView::cursor);
            v1::ListTasksResponse {
                tasks,
                next_page_token,
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
        let explained = self.broker.explain(&call, id).await;
        self.respond(explained.map(explanation))
    }

    type GetTokenReceiptStream = Messages<v1::GetTokenReceiptResponse>;

    async fn get_token_receipt(
        &self,
        request: Request<v1::GetTokenReceiptRequest>,
    ) -> Result<Response<Self::GetTokenReceiptStream>, Status> {
        self.read_receipt(request).await
    }

    async fn list_rules(
        &self,
        request: Request<v1::ListRulesRequest>,
    ) -> Result<Response<v1::ListRulesResponse>, Status> {
        let (call, message) = self.begin_call(LIST_RULES, request).await?;
        let query = self
            .page_query::<String>(
                LIST_RULES,
                String::new(),
                message.page_size,
                &message.page_token,
            )
            .map_err(self.malformed(&call))?;
        self.respond(self.broker.list_rules(&call).map(|mut rows| {
            rows.retain(|row| query.after.as_ref().is_none_or(|last| row.id > *last));
            let (rules, next_page_token) =
                query.page(&rows, convert::rule_stats, |row| row.id.clone());
            v1::ListRulesResponse {
                rules,
                next_page_token,
            }
        }))
    }

    async fn list_approver_stats(
        &self,
        request: Request<v1::ListApproverStatsRequest>,
    ) -> Result<Response<v1::ListApproverStatsResponse>, Status> {
        let (call, message) = self.begin_call(LIST_APPROVER_STATS, request).await?;
        let query = self
            .page_query::<PersonId>(
                LIST_APPROVER_STATS,
                String::new(),
                message.page_size,
                &message.page_token,
            )
            .map_err(self.malformed(&call))?;
        self.respond(self.broker.approver_stats(&call).map(|mut rows| {
            rows.retain(|row| query.after.as_ref().is_none_or(|last| row.id > *last));
            let (approvers, next_page_token) =
                query.page(&rows, convert::approver_stats, |row| row.id.clone());
            v1::ListApproverStatsResponse {
                approvers,
                next_page_token,
            }
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let (call, message) = self.begin_call(LIST_TOKENS, request).await?;
        let query = self
            .page_query(
                LIST_TOKENS,
                String::new(),
                message.page_size,
                &message.page_token,
            )
            .map_err(self.malformed(&call))?;
        let listed = self
            .broker
            .live_tokens(&call, query.after, query.rows_to_read())
            .await;
        self.respond(listed.map(|rows| {
            let (tokens, next_page_token) =
                query.page(&rows, convert::live_token, LiveToken::cursor);
            v1::ListTokensResponse {
                tokens,
                next_page_token,
            }
        }))
    }

    async fn get_timeline(
        &self,
        request: Request<v1::GetTimelineRequest>,
    ) -> Result<Response<v1::GetTimelineResponse>, Status> {
        let (call, message) = self.begin_call(GET_TIMELINE, request).await?;
        let tokens = self.broker.page_tokens();
        let parsed = TaskId::parse(&message.task_id)
            .at("task_id")
            .and_then(|task| {
                let after: Option<TimelineCursor> =
                    tokens.read(GET_TIMELINE.name, &task.to_string(), &message.page_token)?;
                Ok((task, after))
            });
        let (task, after) = parsed.map_err(self.malformed(&call))?;
        record("task", &task);
        let whole = self.broker.timeline(&call, task).await;
        self.respond(whole.map(|whole| {
            let rows = whole.events_after(after);
            let moments = fit_page(rows.iter().map(convert::timeline_event));
            let rest = rows.get(moments.len()..).unwrap_or_default();
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
                next_page_token: match whole.cursor_before(rest) {
                    Some(last) => tokens.issue(GET_TIMELINE.name, &task.to_string(), &last),
                    None => String::new(),
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

/// Most bytes of the warnings about a policy bundle.
const WARNINGS_BYTES_MAX: usize = 32 * 1024;

/// As many warnings as a message holds, and the number of the others.
fn warnings(all: &[String]) -> Vec<String> {
    fitting(all, "; 'dipylon policy check DIR' lists every warning")
}

/// As many as fit into the message; the last one then says how many are left out.
fn fitting(all: &[String], where_else: &str) -> Vec<String> {
    let (mut kept, left_out) = fit_texts(all.iter(), WARNINGS_BYTES_MAX);
    if left_out > 0 {
        kept.push(format!("and {left_out} more{where_else}"));
    }
    kept
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

fn fact_order(message: &v1::SetFactRequest) -> Result<FactOrder, ParseError> {
    let reason = optional(&message.reason).map(|text| UntrustedText::parse("reason", text));
    let seconds = message.valid_for.as_ref().map(|duration| {
        let whole = u32::try_from(duration.seconds).ok();
        let whole = whole.filter(|_| duration.nanos == 0);
        whole.ok_or_else(|| ParseError::new("valid_for", "must be whole seconds"))
    });
    Ok(FactOrder {
        fact: FactName::parse(&message.fact).at("fact")?,
        value: message.value,
        seconds: seconds.transpose()?,
        reason: reason.transpose()?,
    })
}

fn fact_row(status: &FactStatus) -> v1::Fact {
    let setting = status.setting.as_ref();
    let set = setting.map(|setting| &setting.set);
    v1::Fact {
        name: status.declared.name.to_string(),
        title: status.declared.title.clone(),
        value: status.value,
        safe: status.declared.safe,
        normal: status.declared.normal,
        max: Some(prost_types::Duration {
            seconds: status.declared.max_s.into(),
            nanos: 0,
        }),
        ends: status.declared.ends,
        rules: status.rules.clone(),
        since: setting.map(|setting| timestamp_to_wire(setting.at)),
        until: set.and_then(|set| set.until).map(timestamp_to_wire),
        by: set.map(|set| set.by.to_string()).unwrap_or_default(),
        reason: setting
            .and_then(|setting| setting.reason.as_ref())
            .map(|reason| reason.as_str().to_owned())
            .unwrap_or_default(),
        approved_by: set
            .and_then(|set| set.proposal)
            .map(|id| id.to_string())
            .unwrap_or_default(),
        proposals: status.proposals.iter().map(ToString::to_string).collect(),
    }
}
