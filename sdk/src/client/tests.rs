//! The client against a broker that only checks proofs and plays a script.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::clock::Clock;
use crate::jose::dpop::{self, CheckedProof, ExpectedProof, Freshness};
use crate::jose::{Nonces, SigningKey};
use crate::model::{
    Action, ActionName, AgentId, Audience, DecisionId, Digest, DigestPrefix, Reason, Secret,
    Target, TaskId, TaskOutcome, TokenId,
};
use crate::proto::convert;
use crate::proto::servers::v1::{self as servers, task_service_server as task};
use crate::proto::v1::{self, request_token_response};

mod ended_tokens;

type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone)]
struct FakeBroker {
    url: String,
    nonces: Arc<Mutex<Arc<Nonces>>>,
    /// What the next calls are refused with, after their proof.
    script: Arc<Mutex<VecDeque<Status>>>,
    /// Proofs that held, by method.
    proofs: Arc<Mutex<Vec<(&'static str, CheckedProof)>>>,
    /// How often a call came without a good nonce.
    nonce_refusals: Arc<Mutex<u32>>,
    requests: Arc<Mutex<Vec<v1::RequestTokenRequest>>>,
    /// Why the task has ended, as its status says.
    end_cause: Arc<Mutex<String>>,
    /// How many connections it accepted.
    connections: Arc<Mutex<usize>>,
    /// The messages of a policy bundle.
    bundle: Arc<Mutex<Vec<v1::GetPolicyBundleResponse>>>,
}

fn refusal(code: Code, reason: Reason) -> Status {
    Status::with_error_details(
        code,
        "no",
        ErrorDetails::with_error_info(reason.as_str(), "dipylon", HashMap::new()),
    )
}

impl FakeBroker {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let broker = Self {
            url: format!("http://{}", listener.local_addr().expect("address")),
            nonces: Arc::new(Mutex::new(Arc::new(Nonces::new(&[1; 32])))),
            script: Arc::default(),
            proofs: Arc::default(),
            nonce_refusals: Arc::default(),
            requests: Arc::default(),
            end_cause: Arc::default(),
            connections: Arc::default(),
            bundle: Arc::default(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(task::TaskServiceServer::new(broker.clone()))
            .add_service(
                servers::governance_service_server::GovernanceServiceServer::new(broker.clone()),
            );
        let connections = broker.connections.clone();
        let incoming = TcpListenerStream::new(listener).map(move |accepted| {
            *connections.lock().expect("count") += 1;
            accepted
        });
        tokio::spawn(server.serve_with_incoming(incoming));
        broker
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::connect(&self.url).expect("endpoint")
    }

    fn agent(&self) -> AgentClient {
        AgentClient::new(
            self.endpoint(),
            EvidenceSource::Fixed(Secret::new("svid".to_owned())),
            None,
        )
    }

    fn refuse(&self, statuses: impl IntoIterator<Item = Status>) {
        self.script.lock().expect("script").extend(statuses);
    }

    fn calls(&self, method: &str) -> usize {
        self.proofs
            .lock()
            .expect("proofs")
            .iter()
            .filter(|(name, _)| *name == method)
            .count()
    }

    /// The proof, then the script.
    fn admit<T>(&self, method: &'static str, request: &Request<T>) -> Result<String, Status> {
        let proof = request
            .metadata()
            .get("dpop")
            .and_then(|v| v.to_str().ok())
            .expect("a proof");
        let htu = format!("{}/dipylon.v1.{method}", self.url);
        let now = Clock::system().now();
        let nonces = self.nonces.lock().expect("nonces").clone();
        let checked = dpop::check(
            proof,
            &ExpectedProof {
                htm: "POST",
                htu: &htu,
                freshness: Freshness::Nonce,
            },
        );
        let good = checked.as_ref().is_ok_and(|proof| {
            proof
                .nonce()
                .is_some_and(|nonce| nonces.check(nonce, now).is_some())
        });
        let nonce = nonces.issue(now);
        let with_nonce = |mut status: Status| {
            status
                .metadata_mut()
                .insert("dpop-nonce", nonce.parse().expect("nonce"));
            status
        };
        if !good {
            assert!(
                matches!(checked, Ok(_) | Err(dpop::ProofError::NonceMissing)),
                "{checked:?}"
            );
            *self.nonce_refusals.lock().expect("count") += 1;
            return Err(with_nonce(refusal(
                Code::Unauthenticated,
                Reason::UseDpopNonce,
            )));
        }
        self.proofs
            .lock()
            .expect("proofs")
            .push((method, checked.expect("good")));
        match self.script.lock().expect("script").pop_front() {
            Some(status) => Err(with_nonce(status)),
            None => Ok(nonce),
        }
    }

    fn answer<T>(nonce: &str, message: T) -> Answer<T> {
        let mut response = Response::new(message);
        response
            .metadata_mut()
            .insert("dpop-nonce", nonce.parse().expect("nonce"));
        Ok(response)
    }
}

#[tonic::async_trait]
impl task::TaskService for FakeBroker {
    async fn open_task(
        &self,
        request: Request<v1::OpenTaskRequest>,
    ) -> Answer<v1::OpenTaskResponse> {
        let nonce = self.admit("TaskService/OpenTask", &request)?;
        let opened = v1::OpenTaskResponse {
            task_id: TaskId::from_random([1; 16]).to_string(),
            agent_id: "ci".to_owned(),
            deadline: Some(convert::timestamp_to_wire(
                Clock::system().now().plus_secs(600),
            )),
            verification: Some(v1::Verification::default()),
            lease_until: None,
        };
        Self::answer(&nonce, opened)
    }

    async fn request_token(
        &self,
        request: Request<v1::RequestTokenRequest>,
    ) -> Answer<v1::RequestTokenResponse> {
        let nonce = self.admit("TaskService/RequestToken", &request)?;
        let request = request.into_inner();
        let mut requests = self.requests.lock().expect("requests");
        let soon = Some(convert::timestamp_to_wire(
            Clock::system().now().plus_secs(300),
        ));
        let outcome = match (request.reason.as_str(), requests.len()) {
            ("pend", 0 | 1) => request_token_response::Outcome::Pending(v1::PendingApproval {
                access_request_id: crate::model::AccessRequestId::from_random([4; 16]).to_string(),
                expires_at: soon,
                poll_interval: Some(convert::seconds_to_wire(0)),
                evidence_required: requests.len() == 1,
                ..v1::PendingApproval::default()
            }),
            _ => request_token_response::Outcome::Token(v1::IssuedToken {
                token: "jwt".to_owned(),
                jti: TokenId::from_random([2; 16]).to_string(),
                expires_at: soon,
                ..v1::IssuedToken::default()
            }),
        };
        requests.push(request);
        let decision_id = DecisionId::from_random([3; 16]).to_string();
        Self::answer(
            &nonce,
            v1::RequestTokenResponse {
                outcome: Some(outcome),
                decision_id,
                verification: None,
            },
        )
    }

    async fn get_access_request(
        &self,
        _: Request<v1::GetAccessRequestRequest>,
    ) -> Answer<v1::GetAccessRequestResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_recommendations(
        &self,
        _: Request<v1::ListRecommendationsRequest>,
    ) -> Answer<v1::ListRecommendationsResponse> {
        Err(Status::unimplemented(""))
    }

    type WatchAccessRequestStream =
        tokio_stream::Empty<Result<v1::WatchAccessRequestResponse, Status>>;

    async fn watch_access_request(
        &self,
        _: Request<v1::WatchAccessRequestRequest>,
    ) -> Result<Response<Self::WatchAccessRequestStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_access_request(
        &self,
        _: Request<v1::CancelAccessRequestRequest>,
    ) -> Answer<v1::CancelAccessRequestResponse> {
        Err(Status::unimplemented(""))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Answer<v1::GetTaskResponse> {
        let nonce = self.admit("TaskService/GetTask", &request)?;
        let status = v1::GetTaskResponse {
            end_cause: self.end_cause.lock().expect("cause").clone(),
            ..v1::GetTaskResponse::default()
        };
        Self::answer(&nonce, status)
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Answer<v1::KeepAliveResponse> {
        let nonce = self.admit("TaskService/KeepAlive", &request)?;
        let until = Clock::system().now().plus_secs(30);
        let lease_until = Some(convert::timestamp_to_wire(until));
        Self::answer(&nonce, v1::KeepAliveResponse { lease_until })
    }

    type WatchTokenStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<v1::WatchTokenResponse, Status>>>;

    /// Active, then a broken stream; ended in the second stream.
    async fn watch_token(
        &self,
        request: Request<v1::WatchTokenRequest>,
    ) -> Result<Response<Self::WatchTokenStream>, Status> {
        use v1::watch_token_response::Message;
        let nonce = self.admit("TaskService/WatchToken", &request)?;
        let cause = "operator".to_owned();
        let message = match self.calls("TaskService/WatchToken") {
            1 => Message::Heartbeat(v1::TokenHeartbeat {}),
            _ => Message::End(v1::TokenEnd { cause }),
        };
        let message = Some(message);
        let messages = vec![Ok(v1::WatchTokenResponse { message })];
        Self::answer(&nonce, tokio_stream::iter(messages))
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Answer<v1::CompleteTaskResponse> {
        let nonce = self.admit("TaskService/CompleteTask", &request)?;
        Self::answer(
            &nonce,
            v1::CompleteTaskResponse {
                report: Some(v1::EndReport::default()),
            },
        )
    }
}

#[tonic::async_trait]
impl servers::governance_service_server::GovernanceService for FakeBroker {
    async fn apply_policy_bundle(
        &self,
        request: Request<tonic::Streaming<v1::ApplyPolicyBundleRequest>>,
    ) -> Answer<v1::ApplyPolicyBundleResponse> {
        let nonce = self.admit("GovernanceService/ApplyPolicyBundle", &request)?;
        let mut pieces = request.into_inner();
        let mut bytes = 0;
        while let Some(piece) = pieces.message().await? {
            bytes += piece.content.len();
        }
        let rules = u32::try_from(bytes).expect("small");
        Self::answer(
            &nonce,
            v1::ApplyPolicyBundleResponse {
                rules,
                ..v1::ApplyPolicyBundleResponse::default()
            },
        )
    }

    async fn plan_policy_bundle(
        &self,
        _: Request<tonic::Streaming<v1::PlanPolicyBundleRequest>>,
    ) -> Answer<v1::PlanPolicyBundleResponse> {
        Err(Status::unimplemented("of the broker's own tests"))
    }

    type GetPolicyPlanStream = tokio_stream::Empty<Result<v1::GetPolicyPlanResponse, Status>>;

    async fn get_policy_plan(
        &self,
        _: Request<v1::GetPolicyPlanRequest>,
    ) -> Answer<Self::GetPolicyPlanStream> {
        Err(Status::unimplemented("of the broker's own tests"))
    }

    async fn suspend_agent(
        &self,
        request: Request<v1::SuspendAgentRequest>,
    ) -> Answer<v1::SuspendAgentResponse> {
        let nonce = self.admit("GovernanceService/SuspendAgent", &request)?;
        Self::answer(&nonce, v1::SuspendAgentResponse::default())
    }

    async fn resume_agent(
        &self,
        _: Request<v1::ResumeAgentRequest>,
    ) -> Answer<v1::ResumeAgentResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Answer<v1::ListAgentsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn get_agent(&self, _: Request<v1::GetAgentRequest>) -> Answer<v1::GetAgentResponse> {
        Err(Status::unimplemented(""))
    }

    async fn freeze(&self, _: Request<v1::FreezeRequest>) -> Answer<v1::FreezeResponse> {
        Err(Status::unimplemented(""))
    }

    async fn withdraw_policy_proposal(
        &self,
        _: Request<v1::WithdrawPolicyProposalRequest>,
    ) -> Answer<v1::WithdrawPolicyProposalResponse> {
        Err(Status::unimplemented(""))
    }

    async fn set_fact(&self, _: Request<v1::SetFactRequest>) -> Answer<v1::SetFactResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_facts(&self, _: Request<v1::ListFactsRequest>) -> Answer<v1::ListFactsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn unfreeze(&self, _: Request<v1::UnfreezeRequest>) -> Answer<v1::UnfreezeResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_freezes(
        &self,
        _: Request<v1::ListFreezesRequest>,
    ) -> Answer<v1::ListFreezesResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_tasks(&self, _: Request<v1::ListTasksRequest>) -> Answer<v1::ListTasksResponse> {
        Err(Status::unimplemented(""))
    }

    async fn end_task(&self, _: Request<v1::EndTaskRequest>) -> Answer<v1::EndTaskResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_rules(&self, _: Request<v1::ListRulesRequest>) -> Answer<v1::ListRulesResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_approver_stats(
        &self,
        _: Request<v1::ListApproverStatsRequest>,
    ) -> Answer<v1::ListApproverStatsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Answer<v1::ListTokensResponse> {
        Err(Status::unimplemented(""))
    }

    async fn get_timeline(
        &self,
        _: Request<v1::GetTimelineRequest>,
    ) -> Answer<v1::GetTimelineResponse> {
        Err(Status::unimplemented(""))
    }

    async fn search_journal(
        &self,
        _: Request<v1::SearchJournalRequest>,
    ) -> Answer<v1::SearchJournalResponse> {
        Err(Status::unimplemented(""))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Answer<v1::ExplainResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_policy_bundles(
        &self,
        _: Request<v1::ListPolicyBundlesRequest>,
    ) -> Answer<v1::ListPolicyBundlesResponse> {
        Err(Status::unimplemented(""))
    }

    type GetPolicyBundleStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<v1::GetPolicyBundleResponse, Status>>>;

    async fn get_policy_bundle(
        &self,
        request: Request<v1::GetPolicyBundleRequest>,
    ) -> Answer<Self::GetPolicyBundleStream> {
        let nonce = self.admit("GovernanceService/GetPolicyBundle", &request)?;
        let parts = self.bundle.lock().expect("parts").clone();
        Self::answer(
            &nonce,
            tokio_stream::iter(parts.into_iter().map(Ok).collect::<Vec<_>>()),
        )
    }

    type GetTokenReceiptStream = tokio_stream::Empty<Result<v1::GetTokenReceiptResponse, Status>>;

    async fn get_token_receipt(
        &self,
        _: Request<v1::GetTokenReceiptRequest>,
    ) -> Answer<Self::GetTokenReceiptStream> {
        Err(Status::unimplemented(""))
    }
}

/// A broker limits the connections of one address.
#[tokio::test]
async fn tasks_with_short_heartbeats_share_connections() {
    let broker = FakeBroker::start().await;
    let agent = broker.agent();
    let mut tasks = Vec::new();
    for heartbeat_s in [3, 3, 3, 6, 6, 30, 60] {
        let opening = OpenTaskRequest {
            heartbeat_s: Some(heartbeat_s),
            ..open()
        };
        let task = agent.open_task(&opening).await.expect("opens");
        task.keep_alive().await.expect("alive");
        tasks.push(task);
    }
    // Its own, one for each keep-alive that is shorter.
    assert_eq!(*broker.connections.lock().expect("count"), 3);
}

fn open() -> OpenTaskRequest {
    OpenTaskRequest {
        purpose: "why".to_owned(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    }
}

fn order(reason: &str) -> TokenRequest {
    let target = Target::parse("Account", "ann").expect("target");
    let (name, audience) = (
        ActionName::parse("account.disable"),
        Audience::parse("https://idp.example"),
    );
    let action = Action::new(
        name.expect("name"),
        audience.expect("audience"),
        target,
        BTreeMap::new(),
    )
    .expect("action");
    TokenRequest {
        action,
        ttl_s: 300,
        reason: reason.to_owned(),
        idempotency_key: None,
        wait_s: 0,
        executor: None,
        recommendation: None,
    }
}

#[tokio::test]
async fn nonce_is_cached_and_renewed_after_restart() {
    let broker = FakeBroker::start().await;
    let agent = broker.agent();
    let task = tokio::spawn(async move { agent.open_task(&open()).await })
        .await
        .expect("join")
        .expect("task");
    assert_eq!(*broker.nonce_refusals.lock().expect("count"), 1);
    assert_eq!(task.agent_id().map(AgentId::as_str), Some("ci"));
    task.request_token(&order("")).await.expect("token");
    assert_eq!(
        *broker.nonce_refusals.lock().expect("count"),
        1,
        "the nonce of the answer was used"
    );
    *broker.nonces.lock().expect("nonces") = Arc::new(Nonces::new(&[2; 32]));
    task.complete(TaskOutcome::Succeeded)
        .await
        .expect("completed");
    assert_eq!(*broker.nonce_refusals.lock().expect("count"), 2);

    let proofs = broker.proofs.lock().expect("proofs");
    let claims: Vec<_> = proofs
        .iter()
        .map(|(name, proof)| (*name, proof.action_digest(), proof.evidence_hash()))
        .collect();
    assert_eq!(
        claims,
        [
            ("TaskService/OpenTask", None, Some(Digest::sha256(b"svid"))),
            (
                "TaskService/RequestToken",
                Some(order("").action.digest()),
                None
            ),
            ("TaskService/CompleteTask", None, None),
        ]
    );
    let mut jtis: Vec<_> = proofs.iter().map(|(_, proof)| proof.jti()).collect();
    jtis.dedup();
    assert_eq!(jtis.len(), 3);
}

#[tokio::test]
async fn rejected_nonce_is_retried_once() {
    let broker = FakeBroker::start().await;
    broker.refuse([
        refusal(Code::Unauthenticated, Reason::UseDpopNonce),
        refusal(Code::Unauthenticated, Reason::UseDpopNonce),
    ]);
    let error = broker
        .agent()
        .open_task(&open())
        .await
        .expect_err("refused");
    assert_eq!(error.reason(), Some(Reason::UseDpopNonce));
    assert_eq!(broker.calls("TaskService/OpenTask"), 1);
}

#[tokio::test]
async fn only_retryable_errors_are_retried() {
    let broker = FakeBroker::start().await;
    let away = || refusal(Code::Unavailable, Reason::JournalUnavailable);
    broker.refuse([away(), refusal(Code::Aborted, Reason::Conflict), away()]);
    let task = broker.agent().open_task(&open()).await.expect("task");
    assert_eq!(broker.calls("TaskService/OpenTask"), 4);

    broker.refuse([refusal(Code::NotFound, Reason::NotFound)]);
    let error = task
        .complete(TaskOutcome::Failed)
        .await
        .expect_err("refused");
    assert_eq!(
        (error.reason(), error.is_retryable()),
        (Some(Reason::NotFound), false)
    );
    assert_eq!(broker.calls("TaskService/CompleteTask"), 1);

    // Its fate would be unknown.
    let operator = OperatorClient::new(
        broker.endpoint(),
        Arc::new(SigningKey::generate().expect("key").0),
    );
    broker.refuse([away()]);
    let agent = AgentId::parse("ci").expect("agent");
    assert_eq!(
        operator
            .suspend(&agent, "")
            .await
            .expect_err("refused")
            .reason(),
        Some(Reason::JournalUnavailable)
    );
    assert_eq!(broker.calls("GovernanceService/SuspendAgent"), 1);
    broker.refuse([refusal(Code::Aborted, Reason::Conflict)]);
    operator.suspend(&agent, "").await.expect("suspended");
    assert_eq!(broker.calls("GovernanceService/SuspendAgent"), 3);
}

#[tokio::test]
async fn retries_stop_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let endpoint = Endpoint::connect(&url)
        .expect("endpoint")
        .with_retry_ms(200);
    let agent = AgentClient::new(
        endpoint,
        EvidenceSource::Fixed(Secret::new("svid-s3cr3t".to_owned())),
        None,
    );
    let error = agent.open_task(&open()).await.expect_err("away");
    assert!(matches!(&error, Error::Unreachable { .. }), "{error:?}");
    assert!(
        error.is_retryable()
            && error.to_string().contains(&url)
            && !format!("{error:?} {error}").contains("s3cr3t")
    );
}

#[tokio::test]
async fn stale_evidence_is_resent_once() {
    let broker = FakeBroker::start().await;
    let task = broker.agent().open_task(&open()).await.expect("task");
    let stale = || refusal(Code::Unauthenticated, Reason::EvidenceStale);
    broker.refuse([stale()]);
    assert!(matches!(
        task.request_token(&order("")).await,
        Ok(TokenOutcome::Token(_))
    ));
    {
        let requests = broker.requests.lock().expect("requests");
        assert!(requests.last().expect("a request").evidence.is_some());
        let proofs = broker.proofs.lock().expect("proofs");
        assert_eq!(
            proofs.last().expect("a proof").1.evidence_hash(),
            Some(Digest::sha256(b"svid"))
        );
    }
    broker.refuse([stale(), stale()]);
    let error = task.request_token(&order("")).await.expect_err("refused");
    assert_eq!(error.reason(), Some(Reason::EvidenceStale));
    assert!(matches!(error, Error::NoNewerEvidence(_)), "{error:?}");
    let sent = broker.requests.lock().expect("requests").len();
    assert!(!error.is_retryable() && sent <= 4, "{sent}");
}

#[tokio::test]
async fn waiting_reuses_idempotency_key_and_resends_evidence() {
    let broker = FakeBroker::start().await;
    let task = broker.agent().open_task(&open()).await.expect("task");
    let until = Clock::system().now().plus_secs(30);
    assert!(matches!(
        task.wait_for_token(&order("pend"), until).await,
        Ok(TokenOutcome::Token(_))
    ));
    let requests = broker.requests.lock().expect("requests");
    assert_eq!(requests.len(), 3);
    assert!(
        requests
            .iter()
            .all(|r| r.idempotency_key == requests[0].idempotency_key)
    );
    assert_eq!(
        requests
            .iter()
            .map(|r| r.evidence.is_some())
            .collect::<Vec<_>>(),
        [false, false, true]
    );
    // This broker has no streams: from the second question on it is asked to wait itself.
    let waits =
        |r: &v1::RequestTokenRequest| r.wait.is_some_and(|w| (28..=30).contains(&w.seconds));
    let waited: Vec<bool> = requests.iter().map(waits).collect();
    assert_eq!(waited, [false, true, true]);
}

#[tokio::test]
async fn waiting_ends_at_deadline_with_last_outcome() {
    let broker = FakeBroker::start().await;
    let task = broker.agent().open_task(&open()).await.expect("task");
    let now = Clock::system().now();
    assert!(matches!(
        task.wait_for_token(&order("pend"), now).await,
        Ok(TokenOutcome::Pending(_))
    ));
}

#[tokio::test]
async fn policy_bundle_is_uploaded_in_chunks() {
    let broker = FakeBroker::start().await;
    let operator = OperatorClient::new(
        broker.endpoint(),
        Arc::new(SigningKey::generate().expect("key").0),
    );
    let files = BTreeMap::from([
        ("a.cedar".to_owned(), "x".repeat(100_000)),
        ("b.toml".to_owned(), "y".to_owned()),
    ]);
    assert_eq!(
        operator
            .apply_policy_bundle(&files)
            .await
            .expect("applied")
            .rules,
        100_001
    );
}

/// What a broker sends as a bundle is taken only if it is the one that was asked for, whole and with its version.
#[tokio::test]
async fn policy_bundle_is_verified() {
    let broker = FakeBroker::start().await;
    let operator = OperatorClient::new(
        broker.endpoint(),
        Arc::new(SigningKey::generate().expect("key").0),
    );
    let version = Digest::sha256(br#"{"a.cedar":"one two","b.toml":""}"#);
    let part = |path: &str, content: &str, is_last| v1::GetPolicyBundleResponse {
        version: version.to_string(),
        path: path.to_owned(),
        content: content.to_owned(),
        is_last,
    };
    let whole = vec![
        part("a.cedar", "one ", false),
        part("a.cedar", "two", false),
        part("b.toml", "", true),
    ];
    let asked = DigestPrefix::parse(&version.to_string()[..8]).expect("prefix");
    let read = async |parts: &[v1::GetPolicyBundleResponse], asked: Option<&DigestPrefix>| {
        *broker.bundle.lock().expect("parts") = parts.to_vec();
        operator.policy_bundle(asked).await
    };
    for asked in [None, Some(&asked)] {
        let bundle = read(&whole, asked).await.expect("the bundle");
        assert_eq!(bundle.version, version);
        assert_eq!(bundle.files["a.cedar"], "one two");
        assert_eq!(bundle.files["b.toml"], "");
    }
    let another = DigestPrefix::from(Digest::sha256(b"another"));
    let wrong = read(&whole, Some(&another)).await.expect_err("another");
    assert!(wrong.to_string().contains("another version"), "{wrong}");
    let cut = read(&whole[..2], None).await.expect_err("cut");
    assert!(cut.to_string().contains("cut"), "{cut}");
    let mut changed = whole.clone();
    changed[1].content.push('!');
    let changed = read(&changed, None).await.expect_err("changed");
    assert!(changed.to_string().contains("version"), "{changed}");
    let mut mixed = whole.clone();
    mixed[1].version = Digest::sha256(b"another").to_string();
    assert!(read(&mixed, None).await.is_err());
    let long = part("a.cedar", &"x".repeat(48 * 1024), false);
    let long = read(&vec![long; 30], None).await.expect_err("too long");
    assert!(long.to_string().contains("1 MiB"), "{long}");
}

#[tokio::test]
async fn server_rejects_unknown_fields() {
    let broker = FakeBroker::start().await;
    let mut grpc = tonic::client::Grpc::new(
        tonic::transport::Channel::from_shared(broker.url.clone())
            .expect("url")
            .connect_lazy(),
    );
    grpc.ready().await.expect("ready");
    // A message of another type: its field 5 is a timestamp, unknown to the request it is sent as.
    let request = v1::AccessRequest {
        title: "x".to_owned(),
        ..v1::AccessRequest::default()
    };
    let path = ::http::uri::PathAndQuery::from_static("/dipylon.v1.TaskService/CompleteTask");
    let codec =
        crate::proto::strict::StrictCodec::<v1::AccessRequest, v1::CompleteTaskResponse>::default();
    let status = grpc
        .unary(Request::new(request), path, codec)
        .await
        .expect_err("refused");
    let error = Error::from_status("u", &status);
    assert_eq!(
        (error.code(), error.reason()),
        (Some("INVALID_ARGUMENT"), Some(Reason::Malformed))
    );
    assert_eq!(error.to_string(), "MALFORMED: message: field 9 is unknown");
}
