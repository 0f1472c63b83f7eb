//! A gRPC caller that can call every method with any credential.

use std::str::FromStr as _;

use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::convert::{action_to_wire, seconds_to_wire};
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::approval_service_client::ApprovalServiceClient;
use dipylon_sdk::proto::v1::governance_service_client::GovernanceServiceClient;
use dipylon_sdk::proto::v1::task_service_client::TaskServiceClient;
use dipylon_sdk::proto::v1::token_service_client::TokenServiceClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::support::served_broker::ServedBroker;
use crate::support::{rand_u64, read_case};

pub struct Caller<'a> {
    pub channel: Channel,
    pub served: &'a ServedBroker,
    pub proof: Option<(&'a SigningKey, String)>,
    pub bearer: Option<String>,
    pub evidence: String,
    pub task: String,
    pub access_request: String,
}

impl Caller<'_> {
    fn request<T>(&self, method: &str, message: T) -> Request<T> {
        self.request_for(method, message, None, None)
    }

    fn request_for<T>(
        &self,
        method: &str,
        message: T,
        adg: Option<Digest>,
        evh: Option<Digest>,
    ) -> Request<T> {
        let mut request = Request::new(message);
        if let Some((key, nonce)) = &self.proof {
            let claims = dpop::ProofClaims {
                htm: "POST",
                htu: &format!("{}/{method}", self.served.url),
                iat: dipylon_sdk::clock::Clock::system().now(),
                jti: &format!("{:x}{:x}", rand_u64(), rand_u64()),
                nonce: Some(nonce),
                ath: None,
                action_digest: adg,
                evidence_hash: evh,
            };
            let proof = dpop::create(key, &claims).expect("proof");
            request.metadata_mut().insert(
                "dpop",
                MetadataValue::from_str(proof.expose_secret()).expect("ascii"),
            );
        }
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert(
                "authorization",
                format!("Bearer {bearer}").parse().expect("ascii"),
            );
        }
        request
    }

    pub async fn call(&self, method: &str) -> Result<(), Status> {
        let mut tasks = TaskServiceClient::new(self.channel.clone());
        let mut tokens = TokenServiceClient::new(self.channel.clone());
        let mut approvals = ApprovalServiceClient::new(self.channel.clone());
        let mut governance = GovernanceServiceClient::new(self.channel.clone());
        let (task_id, access_request_id) = (self.task.clone(), self.access_request.clone());
        match method.rsplit('/').next().expect("a name") {
            "OpenTask" => {
                let kind = Some(v1::evidence::Kind::JwtSvid(self.evidence.clone()));
                let message = v1::OpenTaskRequest {
                    evidence: Some(v1::Evidence { kind }),
                    purpose: "x".into(),
                    max_duration: Some(seconds_to_wire(60)),
                    idempotency_key: "walk".into(),
                    heartbeat: None,
                };
                let evh = Digest::sha256(self.evidence.as_bytes());
                tasks
                    .open_task(self.request_for(method, message, None, Some(evh)))
                    .await
                    .map(drop)
            }
            "RequestToken" => {
                let message = v1::RequestTokenRequest {
                    task_id,
                    action: Some(action_to_wire(&read_case())),
                    ttl: Some(seconds_to_wire(60)),
                    reason: String::new(),
                    idempotency_key: "walk".into(),
                    wait: None,
                    evidence: None,
                    executor: String::new(),
                    recommendation: String::new(),
                };
                tasks
                    .request_token(self.request_for(
                        method,
                        message,
                        Some(read_case().digest()),
                        None,
                    ))
                    .await
                    .map(drop)
            }
            "ListRecommendations" => {
                let message = v1::ListRecommendationsRequest { task_id };
                tasks
                    .list_recommendations(self.request(method, message))
                    .await
                    .map(drop)
            }
            "GetAccessRequest" => {
                let message = v1::GetAccessRequestRequest {
                    task_id,
                    access_request_id,
                };
                tasks
                    .get_access_request(self.request(method, message))
                    .await
                    .map(drop)
            }
            "WatchAccessRequest" => {
                let message = v1::WatchAccessRequestRequest {
                    task_id,
                    access_request_id,
                    after: None,
                };
                tasks
                    .watch_access_request(self.request(method, message))
                    .await
                    .map(drop)
            }
            "CancelAccessRequest" => {
                let message = v1::CancelAccessRequestRequest {
                    task_id,
                    access_request_id,
                };
                tasks
                    .cancel_access_request(self.request(method, message))
                    .await
                    .map(drop)
            }
            "GetTask" => tasks
                .get_task(self.request(method, v1::GetTaskRequest { task_id }))
                .await
                .map(drop),
            "KeepAlive" => tasks
                .keep_alive(self.request(method, v1::KeepAliveRequest { task_id }))
                .await
                .map(drop),
            "WatchToken" => {
                let message = v1::WatchTokenRequest {
                    task_id,
                    jti: TokenId::from_random([1; 16]).to_string(),
                };
                tasks
                    .watch_token(self.request(method, message))
                    .await
                    .map(drop)
            }
            "CompleteTask" => {
                let message = v1::CompleteTaskRequest {
                    task_id,
                    outcome: v1::TaskOutcome::Failed.into(),
                };
                tasks
                    .complete_task(self.request(method, message))
                    .await
                    .map(drop)
            }
            "Introspect" => tokens
                .introspect(self.request(
                    method,
                    v1::IntrospectRequest {
                        token: "a.b.c".into(),
                    },
                ))
                .await
                .map(drop),
            "ConsumeToken" => {
                let message = v1::ConsumeTokenRequest {
                    token: "a.b.c".into(),
                    use_id: "walk".into(),
                };
                tokens
                    .consume_token(self.request(method, message))
                    .await
                    .map(drop)
            }
            "WatchRevocations" => tokens
                .watch_revocations(
                    self.request(method, v1::WatchRevocationsRequest { after: None }),
                )
                .await
                .map(drop),
            "ListAccessRequests" => approvals
                .list_access_requests(
                    self.request(method, v1::ListAccessRequestsRequest::default()),
                )
                .await
                .map(drop),
            "WatchAccessRequests" => approvals
                .watch_access_requests(
                    self.request(method, v1::WatchAccessRequestsRequest { after: None }),
                )
                .await
                .map(drop),
            "GetCard" => approvals
                .get_card(self.request(method, v1::GetCardRequest { access_request_id }))
                .await
                .map(drop),
            "BeginVote" => {
                let verdict = v1::Verdict::Deny.into();
                let message = v1::BeginVoteRequest {
                    access_request_id,
                    profile: "one-security".into(),
                    verdict,
                    max_ttl: None,
                    max_uses: None,
                    comment: String::new(),
                    policy_version: String::new(),
                    facts: String::new(),
                };
                approvals
                    .begin_vote(self.request(method, message))
                    .await
                    .map(drop)
            }
            "CastVote" => {
                let message = v1::CastVoteRequest {
                    access_request_id,
                    statement: "{}".into(),
                    signature: vec![0; 64],
                    passkey: None,
                };
                approvals
                    .cast_vote(self.request(method, message))
                    .await
                    .map(drop)
            }
            "InviteApprover" => {
                let message = v1::InviteApproverRequest {
                    person_id: "maria".into(),
                };
                approvals
                    .invite_approver(self.request(method, message))
                    .await
                    .map(drop)
            }
            "ConfirmPasskey" => {
                let message = v1::ConfirmPasskeyRequest {
                    person_id: "lee".into(),
                    key: Digest::sha256(b"unknown").to_string(),
                };
                approvals
                    .confirm_passkey(self.request(method, message))
                    .await
                    .map(drop)
            }
            "ListApprovers" => approvals
                .list_approvers(self.request(method, v1::ListApproversRequest::default()))
                .await
                .map(drop),
            "RevokeApproverKeys" => {
                let message = v1::RevokeApproverKeysRequest {
                    person_id: "lee".into(),
                    key: String::new(),
                    compromised: false,
                };
                approvals
                    .revoke_approver_keys(self.request(method, message))
                    .await
                    .map(drop)
            }
            "ApplyPolicyBundle" => {
                let pieces = vec![v1::ApplyPolicyBundleRequest {
                    path: "agents.toml".into(),
                    content: "x".into(),
                    ..v1::ApplyPolicyBundleRequest::default()
                }];
                governance
                    .apply_policy_bundle(self.request(method, tokio_stream::iter(pieces)))
                    .await
                    .map(drop)
            }
            "WithdrawPolicyProposal" => {
                let message = v1::WithdrawPolicyProposalRequest { access_request_id };
                governance
                    .withdraw_policy_proposal(self.request(method, message))
                    .await
                    .map(drop)
            }
            "SuspendAgent" => {
                let message = v1::SuspendAgentRequest {
                    agent_id: "triage".into(),
                    reason: String::new(),
                };
                governance
                    .suspend_agent(self.request(method, message))
                    .await
                    .map(drop)
            }
            "ResumeAgent" => governance
                .resume_agent(self.request(
                    method,
                    v1::ResumeAgentRequest {
                        agent_id: "triage".into(),
                    },
                ))
                .await
                .map(drop),
            "RevokeToken" => {
                let jti = TokenId::from_random([9; 16]).to_string();
                tokens
                    .revoke_token(self.request(method, v1::RevokeTokenRequest { jti }))
                    .await
                    .map(drop)
            }
            "ListAgents" => governance
                .list_agents(self.request(method, v1::ListAgentsRequest::default()))
                .await
                .map(drop),
            "GetAgent" => {
                let agent_id = "triage".into();
                governance
                    .get_agent(self.request(method, v1::GetAgentRequest { agent_id }))
                    .await
                    .map(drop)
            }
            "Freeze" => {
                let message = v1::FreezeRequest {
                    scope: "all".into(),
                    reason: String::new(),
                };
                governance
                    .freeze(self.request(method, message))
                    .await
                    .map(drop)
            }
            "Unfreeze" => {
                let scope = "all".into();
                governance
                    .unfreeze(self.request(method, v1::UnfreezeRequest { scope }))
                    .await
                    .map(drop)
            }
            "ListFreezes" => governance
                .list_freezes(self.request(method, v1::ListFreezesRequest::default()))
                .await
                .map(drop),
            "SetFact" => {
                let message = v1::SetFactRequest {
                    fact: "drill".into(),
                    ..v1::SetFactRequest::default()
                };
                governance
                    .set_fact(self.request(method, message))
                    .await
                    .map(drop)
            }
            "ListFacts" => governance
                .list_facts(self.request(method, v1::ListFactsRequest::default()))
                .await
                .map(drop),
            "ListTasks" => governance
                .list_tasks(self.request(method, v1::ListTasksRequest::default()))
                .await
                .map(drop),
            "EndTask" => governance
                .end_task(self.request(method, v1::EndTaskRequest { task_id }))
                .await
                .map(drop),
            "Explain" => governance
                .explain(self.request(
                    method,
                    v1::ExplainRequest {
                        id: self.task.clone(),
                    },
                ))
                .await
                .map(drop),
            "ListPolicyBundles" => governance
                .list_policy_bundles(self.request(method, v1::ListPolicyBundlesRequest::default()))
                .await
                .map(drop),
            "PlanPolicyBundle" => {
                let pieces = vec![v1::PlanPolicyBundleRequest {
                    path: "agents.toml".into(),
                    content: "x".into(),
                    days: 1,
                    returning: Vec::new(),
                }];
                governance
                    .plan_policy_bundle(self.request(method, tokio_stream::iter(pieces)))
                    .await
                    .map(drop)
            }
            "GetPolicyPlan" => {
                let plan_id = Digest::sha256(b"").to_string();
                let message = v1::GetPolicyPlanRequest { plan_id };
                governance
                    .get_policy_plan(self.request(method, message))
                    .await
                    .map(drop)
            }
            "GetPolicyBundle" => governance
                .get_policy_bundle(self.request(method, v1::GetPolicyBundleRequest::default()))
                .await
                .map(drop),
            "GetTokenReceipt" => {
                let message = v1::GetTokenReceiptRequest {
                    jti: TokenId::from_random([1; 16]).to_string(),
                };
                governance
                    .get_token_receipt(self.request(method, message))
                    .await
                    .map(drop)
            }
            "ListRules" => governance
                .list_rules(self.request(method, v1::ListRulesRequest::default()))
                .await
                .map(drop),
            "ListApproverStats" => governance
                .list_approver_stats(self.request(method, v1::ListApproverStatsRequest::default()))
                .await
                .map(drop),
            "ListTokens" => governance
                .list_tokens(self.request(method, v1::ListTokensRequest::default()))
                .await
                .map(drop),
            "GetTimeline" => {
                let message = v1::GetTimelineRequest {
                    task_id,
                    page_token: String::new(),
                };
                governance
                    .get_timeline(self.request(method, message))
                    .await
                    .map(drop)
            }
            "SearchJournal" => governance
                .search_journal(self.request(method, v1::SearchJournalRequest::default()))
                .await
                .map(drop),
            other => panic!("{other} has no denial test: add its case"),
        }
    }
}
