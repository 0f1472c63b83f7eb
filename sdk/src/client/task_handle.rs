//! Task handle: an agent's open task, its token requests, heartbeats and end.

use std::sync::Arc;
use std::time::Duration;

use super::responses::{
    AccessRequestInfo, EvidenceVerification, ReadWire as _, TaskEndReport, TaskStatus,
};
use super::token_outcome::{
    AccessToken, ApprovedRecommendation, Denial, EndCell, PendingApproval, TokenOutcome,
};
use super::watch::AccessRequestWatcher;
use super::{
    CallOptions, Endpoint, Error, EvidenceSource, Identity, RpcMethod, methods, random_name,
    required,
};
use crate::jose::SigningKey;
use crate::model::{
    AccessRequestId, Action, AgentId, DecisionId, Digest, Evidence, IdempotencyKey, ParseError,
    Reason, Secret, TaskId, TaskOutcome, Timestamp, TokenId, UntrustedText,
};
use crate::proto::card;
use crate::proto::convert;
use crate::proto::v1::{self, request_token_response};

/// An open task, with the key that its tokens are bound to. Dropping the handle does not end the task:
/// [`TaskHandle::complete`] does, or its deadline.
#[derive(Debug, Clone)]
pub struct TaskHandle {
    endpoint: Endpoint,
    evidence: EvidenceSource,
    id: TaskId,
    key: Arc<SigningKey>,
    identity: Identity,
    opened: Option<OpenTaskResult>,
    always_send_evidence: bool,
    end: EndCell,
}

/// The broker's answer to `OpenTask`.
#[derive(Debug, Clone)]
struct OpenTaskResult {
    id: TaskId,
    agent_id: AgentId,
    deadline: Timestamp,
    lease_until: Option<Timestamp>,
    verification: EvidenceVerification,
}

impl OpenTaskResult {
    fn read(answer: v1::OpenTaskResponse) -> Result<Self, ParseError> {
        Ok(Self {
            id: TaskId::parse(&answer.task_id)?,
            agent_id: AgentId::parse(&answer.agent_id)?,
            deadline: convert::timestamp(
                "deadline",
                convert::required("deadline", answer.deadline.as_ref())?,
            )?,
            lease_until: answer
                .lease_until
                .as_ref()
                .map(|until| convert::timestamp("lease_until", until))
                .transpose()?,
            verification: answer
                .verification
                .ok_or_else(|| ParseError::new("verification", "is required"))?
                .read(),
        })
    }
}

/// The request for a token.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The one action that the token is for.
    pub action: Action,
    /// Requested lifetime, in seconds; the broker limits it further.
    pub ttl_s: i64,
    /// The reason in the agent's words, at most 2,000 bytes. Approvers read it, rules do not.
    pub reason: String,
    /// Idempotency key: the same key gets the same token or the same access request. Random when absent.
    pub idempotency_key: Option<String>,
    /// How long the broker may wait for approvals before it answers *pending*, in seconds, at most 60.
    pub wait_s: u32,
    /// Of an advisory agent: the agent that would execute the action; absent names the only one that the bundle lists.
    pub executor: Option<AgentId>,
    /// Of an executor: the access request in which an advisory agent recommends exactly this action to it.
    pub recommendation: Option<AccessRequestId>,
}

impl TokenRequest {
    /// A request for a token of this lifetime, in seconds, without a reason, that does not wait.
    pub const fn new(action: Action, ttl_s: i64) -> Self {
        Self {
            action,
            ttl_s,
            reason: String::new(),
            idempotency_key: None,
            wait_s: 0,
            executor: None,
            recommendation: None,
        }
    }
}

impl TaskHandle {
    /// The task that the broker just opened.
    pub(super) fn from_opened(
        endpoint: Endpoint,
        evidence: EvidenceSource,
        key: Arc<SigningKey>,
        answer: v1::OpenTaskResponse,
    ) -> Result<Self, ParseError> {
        let opened = OpenTaskResult::read(answer)?;
        Ok(Self {
            opened: Some(opened.clone()),
            ..Self::attach(endpoint, evidence, opened.id, key)
        })
    }

    /// A handle to a task opened before, by its id and the key it was opened with. Makes no call.
    pub fn attach(
        endpoint: Endpoint,
        evidence: EvidenceSource,
        id: TaskId,
        key: Arc<SigningKey>,
    ) -> Self {
        Self {
            endpoint,
            evidence,
            id,
            identity: Identity::Key(key.clone()),
            key,
            opened: None,
            always_send_evidence: false,
            end: EndCell::default(),
        }
    }

    /// The task's id: the `txn` of its tokens.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The registered agent that the evidence matched; `None` for an attached task.
    pub fn agent_id(&self) -> Option<&AgentId> {
        self.opened.as_ref().map(|opened| &opened.agent_id)
    }

    /// When the task ends by itself; `None` for an attached task.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.opened.as_ref().map(|opened| opened.deadline)
    }

    /// When the task ends without [`TaskHandle::keep_alive`], as of its opening; `None` without a heartbeat and for an attached
    /// task.
    pub fn lease_until(&self) -> Option<Timestamp> {
        self.opened.as_ref().and_then(|opened| opened.lease_until)
    }

    /// Why the task has ended, once a reply to this handle or a clone of it said so: a cause such as `completed`, or the refusal
    /// of a call. Its tokens make no more headers then.
    pub fn end_cause(&self) -> Option<&str> {
        self.end.cause()
    }

    /// Makes a call as the task, and learns from the answer whether the task has ended.
    async fn call<M: RpcMethod>(
        &self,
        options: CallOptions<'_>,
        request: M::Request,
    ) -> Result<M::Response, Error> {
        let answer = self.endpoint.call::<M>(options, &[request]).await;
        if let Err(error) = &answer
            && error.reason() == Some(Reason::TaskEnded)
        {
            self.end.set(&error.to_string());
        }
        answer
    }

    /// Heartbeat: extends the lease of a task opened with [`super::OpenTaskRequest::heartbeat_s`]. Returns until when. About three
    /// calls in a heartbeat's length tolerate the loss of one.
    pub async fn keep_alive(&self) -> Result<Timestamp, Error> {
        let request = v1::KeepAliveRequest {
            task_id: self.id.to_string(),
        };
        let answer = self
            .call::<methods::KeepAlive>(CallOptions::by(&self.identity), request)
            .await?;
        let until = convert::required("lease_until", answer.lease_until.as_ref());
        until
            .and_then(|until| convert::timestamp("lease_until", until))
            .map_err(Error::Answer)
    }

    /// What gate 1 verified; `None` for an attached task.
    pub fn verification(&self) -> Option<&EvidenceVerification> {
        self.opened.as_ref().map(|opened| &opened.verification)
    }

    /// Sends the evidence with every [`TaskHandle::request_token`] and with the first request of a
    /// [`TaskHandle::wait_for_token`], not only when the broker requires it again.
    #[must_use]
    pub fn always_send_evidence(self) -> Self {
        Self {
            always_send_evidence: true,
            ..self
        }
    }

    /// Requests a token, once. Evidence is sent again if the broker answers that what it verified is too old.
    pub async fn request_token(&self, request: &TokenRequest) -> Result<TokenOutcome, Error> {
        let key = idempotency_key(request.idempotency_key.as_deref())?;
        self.request(request, &key, request.wait_s, self.always_send_evidence)
            .await
    }

    /// Requests a token under one idempotency key until it is issued or denied, or until `until`: then the last pending answer is
    /// returned. In between it watches the access request; without a stream it polls, at the interval that the broker names.
    /// Evidence is sent again when the broker requires it. A broker that cannot be reached, or restarts, is retried: the same
    /// action in the same task finds the same access request.
    pub async fn wait_for_token(
        &self,
        request: &TokenRequest,
        until: Timestamp,
    ) -> Result<TokenOutcome, Error> {
        let key = idempotency_key(request.idempotency_key.as_deref())?;
        let clock = self.endpoint.clock().clone();
        let mut send = self.always_send_evidence;
        let mut watch: Option<AccessRequestWatcher> = None;
        let mut streams = true;
        let (mut is_last, mut waits) = (false, None);
        loop {
            let began = clock.now();
            let left_s = until.since(began).max(0) / 1_000;
            let wait_s = match streams {
                true => 0,
                false => u32::try_from(left_s).unwrap_or(WAIT_S_MAX).min(WAIT_S_MAX),
            };
            let answer = self.request(request, &key, wait_s, send).await;
            let now = clock.now();
            // Evidence is fetched again when the broker requires it, not for every request.
            let required_now = match &answer {
                Ok(TokenOutcome::Pending(pending)) => pending.send_evidence() && !send,
                Ok(_) | Err(_) => false,
            };
            let pause_ms = match &answer {
                Ok(TokenOutcome::Pending(pending)) => {
                    send = pending.send_evidence();
                    let id = pending.access_request_id();
                    if required_now {
                        PAUSE_MS_MIN
                    } else if streams {
                        let watch = match &mut watch {
                            Some(watch) if watch.access_request_id() == id => watch,
                            other => other.insert(self.watch(id)),
                        };
                        // Requested again at intervals even without a change: rules and time may have decided it.
                        let by = until.min(ask_again_at(pending, now));
                        // Without a stream, polling does.
                        streams = watch.decided(by).await.is_ok();
                        if streams { PAUSE_MS_MIN } else { 0 }
                    } else if now.since(began) >= 1_000 {
                        // The broker did wait: request again at once.
                        PAUSE_MS_MIN
                    } else {
                        pending.poll_interval_s().saturating_mul(1_000)
                    }
                }
                Err(error) if error.is_retryable() => i64::from(error.retry_after_ms()),
                Ok(
                    TokenOutcome::Token(_) | TokenOutcome::Recommended(_) | TokenOutcome::Denied(_),
                )
                | Err(_) => return answer,
            };
            let left_ms = until.since(clock.now());
            // One more request where the wait outlasted the answer, or the broker requires evidence: what was decided is not missed.
            let is_fresh = clock.now().since(now) < FRESH_ANSWER_MS;
            let is_over = is_last || (left_ms <= 0 && is_fresh);
            match answer {
                // The answer before it stands, if the last request met a fault that passes.
                Err(error) if is_over => return waits.ok_or(error),
                answer if is_over && !required_now => return answer,
                Ok(pending) => waits = Some(pending),
                Err(_) => {}
            }
            if left_ms <= 0 {
                is_last = true;
                continue;
            }
            let pause_ms = pause_ms.clamp(PAUSE_MS_MIN, PAUSE_MS_MAX).min(left_ms);
            tokio::time::sleep(Duration::from_millis(pause_ms.unsigned_abs())).await;
        }
    }

    /// Watches an access request of this task until its final status.
    pub fn watch(&self, access_request: AccessRequestId) -> AccessRequestWatcher {
        AccessRequestWatcher::new(
            self.endpoint.clone(),
            self.identity.clone(),
            self.id,
            access_request,
        )
    }

    async fn request(
        &self,
        request: &TokenRequest,
        key: &IdempotencyKey,
        wait_s: u32,
        send_evidence: bool,
    ) -> Result<TokenOutcome, Error> {
        let wait_s = wait_s.min(WAIT_S_MAX);
        let answer = match self.request_once(request, key, wait_s, send_evidence).await {
            Err(error) if error.reason() == Some(Reason::EvidenceStale) && !send_evidence => {
                self.request_once(request, key, wait_s, true).await
            }
            answer => answer,
        };
        // Without evidence in it, the call was repeated with some.
        let answer = answer.map_err(Error::of_fresh_evidence)?;
        self.outcome(answer, &request.action, key)
            .map_err(Error::Answer)
    }

    async fn request_once(
        &self,
        request: &TokenRequest,
        key: &IdempotencyKey,
        wait_s: u32,
        send_evidence: bool,
    ) -> Result<v1::RequestTokenResponse, Error> {
        let evidence = if send_evidence {
            Some(self.evidence.fetch().await?)
        } else {
            None
        };
        let options = CallOptions {
            identity: &self.identity,
            action_digest: Some(request.action.digest()),
            evidence_hash: evidence
                .as_ref()
                .map(|evidence| Digest::sha256(evidence.expose_secret().as_bytes())),
            wait_s,
            code: None,
        };
        let message = v1::RequestTokenRequest {
            task_id: self.id.to_string(),
            action: Some(convert::action_to_wire(&request.action)),
            ttl: Some(convert::seconds_to_wire(request.ttl_s)),
            reason: UntrustedText::parse("reason", &request.reason)?
                .as_str()
                .to_owned(),
            idempotency_key: key.to_string(),
            wait: (wait_s > 0).then(|| convert::seconds_to_wire(i64::from(wait_s))),
            evidence: evidence
                .map(|evidence| convert::evidence_to_wire(&Evidence::JwtSvid(evidence))),
            executor: request
                .executor
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            recommendation: request
                .recommendation
                .map(|id| id.to_string())
                .unwrap_or_default(),
        };
        self.call::<methods::RequestToken>(options, message).await
    }

    fn outcome(
        &self,
        answer: v1::RequestTokenResponse,
        action: &Action,
        key: &IdempotencyKey,
    ) -> Result<TokenOutcome, ParseError> {
        let decision = DecisionId::parse(&answer.decision_id)?;
        let moment = |what, wire: Option<prost_types::Timestamp>| {
            convert::timestamp(what, convert::required(what, wire.as_ref())?)
        };
        match answer
            .outcome
            .ok_or_else(|| ParseError::new("outcome", "is required"))?
        {
            request_token_response::Outcome::Token(mut info) => {
                let jwt = Secret::new(std::mem::take(&mut info.token));
                let openings = std::mem::take(&mut info.openings)
                    .into_iter()
                    .map(|o| (o.parameter, o.salt))
                    .collect();
                Ok(TokenOutcome::Token(AccessToken {
                    jwt,
                    key: self.key.clone(),
                    endpoint: self.endpoint.clone(),
                    task: self.id,
                    task_end: self.end.clone(),
                    end: EndCell::default(),
                    decision,
                    action: action.clone(),
                    jti: TokenId::parse(&info.jti)?,
                    expires_at: moment("expires_at", info.expires_at)?,
                    openings,
                    ttl: info.ttl.read(),
                    uses: info.uses,
                    rules: info.rules.read(),
                    reissued: info.reissued,
                }))
            }
            request_token_response::Outcome::Pending(info) => {
                Ok(TokenOutcome::Pending(PendingApproval {
                    decision,
                    idempotency_key: key.clone(),
                    access_request_id: AccessRequestId::parse(&info.access_request_id)?,
                    expires_at: moment("expires_at", info.expires_at)?,
                    poll_interval_s: match &info.poll_interval {
                        Some(wire) => convert::seconds("poll_interval", wire)?,
                        None => 1,
                    },
                    send_evidence: info.evidence_required,
                    needs: info.needs.read(),
                    rules: info.rules.read(),
                    ttl: info.ttl.read(),
                    void_votes: info.void_votes.read(),
                    executor: match info.executor.as_str() {
                        "" => None,
                        id => Some(AgentId::parse(id)?),
                    },
                    delay: info.delay.as_ref().map(card::delay_from_wire).transpose()?,
                }))
            }
            request_token_response::Outcome::Recommended(info) => {
                let jti = Some(info.jti.as_str()).filter(|jti| !jti.is_empty());
                Ok(TokenOutcome::Recommended(ApprovedRecommendation {
                    decision,
                    access_request_id: AccessRequestId::parse(&info.access_request_id)?,
                    executor: AgentId::parse(&info.executor)?,
                    expires_at: moment("expires_at", info.expires_at)?,
                    jti: jti.map(TokenId::parse).transpose()?,
                }))
            }
            request_token_response::Outcome::Denied(info) => {
                let id = Some(info.access_request_id.as_str()).filter(|id| !id.is_empty());
                let access_request_id = id.map(AccessRequestId::parse).transpose()?;
                Ok(TokenOutcome::Denied(Denial {
                    decision,
                    access_request_id,
                    reason: info.reason,
                    rules: info.rules.read(),
                    comment: info.comment,
                }))
            }
        }
    }

    /// The approved recommendations of advisory agents that this task's agent may execute, the first to expire first: each with its
    /// action. A [`TokenRequest`] with its id as `recommendation` and this action gets the token.
    pub async fn recommendations(&self) -> Result<Vec<AccessRequestInfo>, Error> {
        let request = v1::ListRecommendationsRequest {
            task_id: self.id.to_string(),
        };
        let answer = self
            .call::<methods::ListRecommendations>(CallOptions::by(&self.identity), request)
            .await?;
        Ok(answer.recommendations.read())
    }

    /// An access request of this task.
    pub async fn access_request(&self, id: AccessRequestId) -> Result<AccessRequestInfo, Error> {
        let request = v1::GetAccessRequestRequest {
            task_id: self.id.to_string(),
            access_request_id: id.to_string(),
        };
        let answer = self
            .call::<methods::GetAccessRequest>(CallOptions::by(&self.identity), request)
            .await?;
        Ok(required("access_request", answer.access_request)?.read())
    }

    /// Cancels an access request of this task. Returns it after that.
    pub async fn cancel(&self, id: AccessRequestId) -> Result<AccessRequestInfo, Error> {
        let request = v1::CancelAccessRequestRequest {
            task_id: self.id.to_string(),
            access_request_id: id.to_string(),
        };
        let answer = self
            .call::<methods::CancelAccessRequest>(CallOptions::by(&self.identity), request)
            .await?;
        Ok(required("access_request", answer.access_request)?.read())
    }

    /// Asks the broker whether the task runs, until when, and how it ended. Changes nothing. The tokens of a task that has ended
    /// make no more headers.
    pub async fn status(&self) -> Result<TaskStatus, Error> {
        let request = v1::GetTaskRequest {
            task_id: self.id.to_string(),
        };
        let answer = self
            .call::<methods::GetTask>(CallOptions::by(&self.identity), request)
            .await?;
        let status: TaskStatus = answer.read();
        if !status.end_cause.is_empty() {
            self.end.set(&status.end_cause);
        }
        Ok(status)
    }

    /// Ends the task, its tokens and its access requests. Idempotent: the report of a task that had ended already has the cause
    /// of its first end.
    pub async fn complete(&self, outcome: TaskOutcome) -> Result<TaskEndReport, Error> {
        let outcome = convert::task_outcome_to_wire(outcome).into();
        let request = v1::CompleteTaskRequest {
            task_id: self.id.to_string(),
            outcome,
        };
        let answer = self
            .call::<methods::CompleteTask>(CallOptions::by(&self.identity), request)
            .await?;
        let report: TaskEndReport = required("report", answer.report)?.read();
        self.end.set(&report.cause);
        Ok(report)
    }
}

/// When a pending request is made again without a change that a watch tells: after an interval, and when its delay is over by the clock of
/// the broker, which may be somewhat behind this one.
fn ask_again_at(pending: &PendingApproval, now: Timestamp) -> Timestamp {
    let delay = pending.delay().map(|delay| delay.at);
    let over_ms = delay.map(|at| now.since(at));
    let due = match over_ms {
        Some(..0) => delay,
        Some(over_ms) if over_ms < REQUEST_INTERVAL_MS => Some(now.plus_millis(DELAY_RETRY_MS)),
        Some(_) | None => None,
    };
    let interval = now.plus_millis(REQUEST_INTERVAL_MS);
    due.map_or(interval, |due| due.min(interval))
}

pub(super) fn idempotency_key(given: Option<&str>) -> Result<IdempotencyKey, Error> {
    match given {
        Some(text) => Ok(IdempotencyKey::parse(text)?),
        None => Ok(IdempotencyKey::parse(&format!("r{}", random_name()?))?),
    }
}

/// Longest wait that the broker accepts, in seconds.
const WAIT_S_MAX: u32 = 60;

const PAUSE_MS_MIN: i64 = 20;

const PAUSE_MS_MAX: i64 = 5_000;

/// Longest time between two requests while a watch is open, in milliseconds.
const REQUEST_INTERVAL_MS: i64 = 60_000;

/// An answer is not asked again at the end of a wait before it is so old, in milliseconds.
const FRESH_ANSWER_MS: i64 = 1_000;

/// Time between two requests once a delay is over, in milliseconds.
const DELAY_RETRY_MS: i64 = 2_000;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::clock::Clock;
    use crate::jose::dpop::{self, ExpectedProof, Freshness};
    use crate::model::{ActionName, Audience, Target};

    fn action() -> Action {
        let target = Target::parse("Account", "ann").expect("target");
        let (name, audience) = (
            ActionName::parse("account.disable"),
            Audience::parse("https://idp.example"),
        );
        Action::new(
            name.expect("name"),
            audience.expect("audience"),
            target,
            BTreeMap::new(),
        )
        .expect("action")
    }

    fn task() -> TaskHandle {
        let key = Arc::new(SigningKey::generate().expect("key").0);
        let evidence = EvidenceSource::Fixed(Secret::new("svid-s3cr3t".to_owned()));
        let endpoint = Endpoint::connect("http://127.0.0.1:1").expect("endpoint");
        TaskHandle::attach(endpoint, evidence, TaskId::from_random([1; 16]), key)
    }

    fn issued() -> v1::RequestTokenResponse {
        let token = v1::IssuedToken {
            token: "jwt-s3cr3t".to_owned(),
            jti: TokenId::from_random([2; 16]).to_string(),
            expires_at: Some(convert::timestamp_to_wire(Timestamp::from_secs(
                1_800_000_300,
            ))),
            openings: vec![v1::Opening {
                parameter: "note".to_owned(),
                salt: "salt-s3cr3t".to_owned(),
            }],
            uses: Some(1),
            ..v1::IssuedToken::default()
        };
        v1::RequestTokenResponse {
            outcome: Some(request_token_response::Outcome::Token(token)),
            decision_id: DecisionId::from_random([3; 16]).to_string(),
            verification: None,
        }
    }

    #[tokio::test]
    async fn token_headers_carry_proof_and_debug_is_redacted() {
        let task = task();
        let outcome = task
            .outcome(
                issued(),
                &action(),
                &idempotency_key(Some("r1")).expect("id"),
            )
            .expect("outcome");
        assert!(!format!("{task:?} {outcome:#?}").contains("s3cr3t"));
        let TokenOutcome::Token(token) = outcome else {
            panic!("a token")
        };
        assert_eq!(
            (
                token.uses(),
                token.openings().get("note").map(String::as_str)
            ),
            (Some(1), Some("salt-s3cr3t"))
        );
        let url = "https://idp.example/users/ann";
        let headers = token
            .headers("POST", &format!("{url}?x=1#y"))
            .expect("headers");
        assert_eq!(headers.authorization.expose_secret(), "DPoP jwt-s3cr3t");
        let freshness = Freshness::Iat {
            now: Clock::system().now(),
            window_s: 60,
        };
        let proof = dpop::check(
            headers.dpop.expose_secret(),
            &ExpectedProof {
                htm: "POST",
                htu: url,
                freshness,
            },
        )
        .expect("proof");
        assert_eq!(
            (proof.jkt(), proof.ath()),
            (task.key.thumbprint(), Some(dpop::ath("jwt-s3cr3t")))
        );
        let other = token.headers("POST", url).expect("headers");
        assert_ne!(other.dpop.expose_secret(), headers.dpop.expose_secret());
    }

    #[tokio::test]
    async fn malformed_response_is_an_error() {
        let task = task();
        let id = idempotency_key(None).expect("id");
        let bends: [&dyn Fn(&mut v1::RequestTokenResponse); 5] = [
            &|answer| answer.outcome = None,
            &|answer| answer.decision_id = "x".to_owned(),
            &|answer| {
                answer.outcome = Some(request_token_response::Outcome::Pending(
                    v1::PendingApproval::default(),
                ))
            },
            &|answer| match &mut answer.outcome {
                Some(request_token_response::Outcome::Token(token)) => token.expires_at = None,
                _ => panic!("a token"),
            },
            &|answer| match &mut answer.outcome {
                Some(request_token_response::Outcome::Token(token)) => {
                    token.jti = "tok_".to_owned()
                }
                _ => panic!("a token"),
            },
        ];
        for (i, bend) in bends.iter().enumerate() {
            let mut answer = issued();
            bend(&mut answer);
            assert!(task.outcome(answer, &action(), &id).is_err(), "bend {i}");
        }
        assert!(task.outcome(issued(), &action(), &id).is_ok());
    }

    #[test]
    fn idempotency_key_is_generated_or_validated() {
        let (a, b) = (
            idempotency_key(None).expect("id"),
            idempotency_key(None).expect("id"),
        );
        assert_ne!(a, b);
        assert!(matches!(
            idempotency_key(Some("a b")),
            Err(Error::InvalidInput(_))
        ));
    }
}
