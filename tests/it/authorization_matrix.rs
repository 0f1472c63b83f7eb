//! Authorization matrix: every method of every service against every caller that may not call it. A method without a case
//! here fails the test.

use std::str::FromStr as _;

use dipylon::broker::CallerRole;
use dipylon::serve::authorization;
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
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::support::served_broker::ServedBroker;
use crate::support::{DOMAIN, rand_u64, read_case};

struct Caller<'a> {
    channel: Channel,
    served: &'a ServedBroker,
    proof: Option<(&'a SigningKey, String)>,
    bearer: Option<String>,
    evidence: String,
    task: String,
    access_request: String,
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

    async fn call(&self, method: &str) -> Result<(), Status> {
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
            "KeepAlive" => tasks
                .keep_alive(self.request(method, v1::KeepAliveRequest { task_id }))
                .await
                .map(drop),
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
            "ListApprovers" => approvals
                .list_approvers(self.request(method, v1::ListApproversRequest {}))
                .await
                .map(drop),
            "RevokeApproverKeys" => {
                let message = v1::RevokeApproverKeysRequest {
                    person_id: "lee".into(),
                    key: String::new(),
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
                }];
                governance
                    .apply_policy_bundle(self.request(method, tokio_stream::iter(pieces)))
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
                .list_freezes(self.request(method, v1::ListFreezesRequest {}))
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

fn reason(result: Result<(), Status>, method: &str, who: &str) -> (Code, String) {
    let status = result.expect_err(&format!("{method} admitted {who}"));
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("{method} for {who}: no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "dipylon");
    assert!(
        Reason::parse(&info.reason).is_some(),
        "{} is not a known reason",
        info.reason
    );
    (status.code(), info.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorization_matrix() {
    let s = ServedBroker::start().await;
    let channel = Channel::from_shared(s.url.clone())
        .expect("url")
        .connect()
        .await
        .expect("connects");
    let task = s.task("triage").await;
    let disable = crate::support::served_broker::order(crate::support::disable("ann"), "r-1");
    let Ok(dipylon_sdk::client::TokenOutcome::Pending(pending)) =
        task.request_token(&disable).await
    else {
        panic!("pending")
    };
    let now = dipylon_sdk::clock::Clock::system().now();
    let svid = |name: &str| {
        s.env
            .svid_for(&s.url, &format!("spiffe://{DOMAIN}/agent/{name}"), now, 300)
            .expose_secret()
            .to_owned()
    };
    let caller = || Caller {
        channel: channel.clone(),
        served: &s,
        proof: None,
        bearer: None,
        evidence: svid("triage"),
        task: task.id().to_string(),
        access_request: pending.access_request_id().to_string(),
    };
    let stranger = SigningKey::generate().expect("key").0;
    let entries = s.broker.state().position().1;
    for method in dipylon_sdk::proto::methods() {
        let admits = authorization::method_policy(method)
            .expect("a row")
            .allowed_roles;
        let agents = admits.contains(&CallerRole::Agent);

        let nobody = caller().call(method).await;
        assert_eq!(
            reason(nobody, method, "nobody"),
            (Code::Unauthenticated, "NOT_AUTHENTICATED".into())
        );

        let late = Caller {
            proof: Some((&stranger, "an-old-nonce".into())),
            ..caller()
        };
        assert_eq!(
            reason(late.call(method).await, method, "an old proof"),
            (Code::Unauthenticated, "USE_DPOP_NONCE".into())
        );

        let garbled = Caller {
            bearer: Some("x".into()),
            proof: Some((&stranger, s.broker.nonce())),
            ..caller()
        };
        let unknown = Caller {
            proof: Some((&stranger, s.broker.nonce())),
            evidence: svid("nobody"),
            ..caller()
        };
        let closed = (Code::Unauthenticated, "NOT_AUTHENTICATED".to_owned());
        if agents && !method.ends_with("OpenTask") {
            // A valid proof for another agent's task: answered like an unknown task.
            let nothing = (Code::NotFound, "NOT_FOUND".to_owned());
            assert_eq!(
                reason(unknown.call(method).await, method, "another's key"),
                nothing
            );
            let none = Caller {
                task: TaskId::from_random([1; 16]).to_string(),
                ..unknown
            };
            assert_eq!(reason(none.call(method).await, method, "no task"), nothing);
        } else {
            assert_eq!(
                reason(unknown.call(method).await, method, "a stranger"),
                closed
            );
            if !agents {
                assert_eq!(
                    reason(garbled.call(method).await, method, "two credentials"),
                    closed
                );
                let agent = Caller {
                    bearer: Some(svid("triage")),
                    ..caller()
                };
                assert_eq!(reason(agent.call(method).await, method, "an agent"), closed);
            }
        }
        for (name, kind) in [
            ("maria", CallerRole::Approver),
            ("olga", CallerRole::Operator),
            ("idp", CallerRole::Validator),
            ("audit", CallerRole::Auditor),
        ] {
            if agents || admits.contains(&kind) {
                continue;
            }
            let wrong = Caller {
                proof: Some((&s.env.keys[name], s.broker.nonce())),
                ..caller()
            };
            assert_eq!(
                reason(wrong.call(method).await, method, name),
                (Code::PermissionDenied, "NOT_PERMITTED".into())
            );
        }
    }
    assert_eq!(
        s.broker.state().position().1,
        entries,
        "refused calls write no entry"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_are_404() {
    let s = ServedBroker::start().await;
    let address = s.url.trim_start_matches("http://").to_owned();
    let get = |path: &'static str| {
        let address = address.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut socket = tokio::net::TcpStream::connect(&address)
                .await
                .expect("connects");
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.expect("read");
            answer
        }
    };
    assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/nothing").await.starts_with("HTTP/1.1 404"));
    let jwks = get("/.well-known/jwks.json").await;
    assert!(
        jwks.contains("\"keys\"") && !jwks.contains("\"d\""),
        "{jwks}"
    );
    // A path without a row in the guard table reaches no handler, in any spelling.
    for path in [
        "/dipylon.v1.TaskService/Mint",
        "/dipylon.v1.Admin/Do",
        "/dipylon.v1.TaskService/OpenTask/",
        "//dipylon.v1.TaskService/OpenTask",
    ] {
        let channel = Channel::from_shared(s.url.clone())
            .expect("url")
            .connect()
            .await
            .expect("connects");
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.expect("ready");
        let codec = tonic_prost::ProstCodec::<
            v1::ListAccessRequestsRequest,
            v1::ListAccessRequestsResponse,
        >::default();
        let uri = http::uri::PathAndQuery::from_str(path).expect("path");
        let status = grpc
            .unary(
                Request::new(v1::ListAccessRequestsRequest::default()),
                uri,
                codec,
            )
            .await
            .expect_err(path);
        assert!(
            matches!(status.code(), Code::PermissionDenied | Code::Unimplemented),
            "{path}: {status:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_probes_are_anonymous() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let s = ServedBroker::start().await;
    let channel = Channel::from_shared(s.url.clone())
        .expect("url")
        .connect()
        .await
        .expect("connects");
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .expect("answers")
        .into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
}

/// The guard table equals the `Callers:` comments of the proto files: neither can be widened alone.
#[test]
fn guard_table_matches_proto_comments() {
    use prost::Message as _;
    let set =
        prost_types::FileDescriptorSet::decode(dipylon_sdk::proto::DESCRIPTOR).expect("descriptor");
    let mut checked = 0;
    for file in set
        .file
        .iter()
        .filter(|f| f.package() == dipylon_sdk::proto::PACKAGE)
    {
        let comments = file.source_code_info.clone().unwrap_or_default().location;
        for (s, service) in (0_i32..).zip(&file.service) {
            for (m, method) in (0_i32..).zip(&service.method) {
                // Field 6 of a file holds its services, field 2 of a service its methods.
                let here = comments
                    .iter()
                    .find(|l| l.path == [6, s, 2, m])
                    .expect("a comment");
                let text = here.leading_comments().replace('\n', " ");
                let said = text.split("Callers:").nth(1).expect("a `Callers:` line");
                let said = said.split(['.', ';']).next().unwrap_or_default();
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                let admits = authorization::method_policy(&name)
                    .expect("a row")
                    .allowed_roles;
                for (word, kind) in [
                    ("agents", CallerRole::Agent),
                    ("approvers", CallerRole::Approver),
                    ("operators", CallerRole::Operator),
                    ("validators", CallerRole::Validator),
                    ("auditors", CallerRole::Auditor),
                ] {
                    assert_eq!(
                        said.contains(word),
                        admits.contains(&kind),
                        "{name}: {word} ({said})"
                    );
                }
                checked += 1;
            }
        }
    }
    assert_eq!(checked, dipylon_sdk::proto::methods().len());
}
