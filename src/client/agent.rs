use std::sync::Arc;
use std::time::Duration;

use super::token_outcome::{Denial, TokenOutcome, PendingApproval, AccessToken};
use super::watch::AccessRequestWatch;
use super::{Endpoint, Error, EvidenceSource, Identity, CallOptions, methods, random_name};
use crate::jose::SigningKey;
use crate::model::{
    AccessRequestId, Action, AgentId, DecisionId, Digest, Evidence, Malformed, Prose, Reason,
    RequestId, Secret, TaskId, TaskOutcome, Timestamp, TokenId,
};
use crate::proto::convert;
use crate::proto::v1::{self, request_token_response};

/// A workload that may open tasks, by the evidence it can show.
#[derive(Debug, Clone)]
pub struct AgentClient {
    endpoint: Endpoint,
    evidence: EvidenceSource,
    task_key: Option<Arc<SigningKey>>,
}

/// A task as asked for.
#[derive(Debug, Clone)]
pub struct OpenTaskRequest {
    /// Why, in the agent's words; at most 2,000 bytes.
    pub purpose: String,
    /// How long it may run, in seconds; the broker clamps it.
    pub max_duration_s: i64,
    /// Idempotency key; drawn when absent.
    pub request_id: Option<String>,
    /// End the task when this many seconds pass without [`TaskHandle::keep_alive`]: 2 to 3,600. Absent: the deadline alone.
    pub heartbeat_s: Option<u32>,
}

impl AgentClient {
    /// An agent at this broker. Each task gets a new key, unless one is given: a given one can be kept by the caller, so
    /// that another process takes the task up with [`TaskHandle::attach`].
    pub fn new(
        endpoint: Endpoint,
        evidence: EvidenceSource,
        task_key: Option<Arc<SigningKey>>,
    ) -> Self {
        Self {
            endpoint,
            evidence,
            task_key,
        }
    }

    /// Opens a task: gate 1.
    pub async fn open_task(&self, order: &OpenTaskRequest) -> Result<TaskHandle, Error> {
        let key = match &self.task_key {
            Some(key) => key.clone(),
            None => Arc::new(SigningKey::generate()?.0),
        };
        let identity = Identity::Key(key.clone());
        let evidence = self.evidence.fetch().await?;
        let evidence_hash = Digest::of(evidence.expose_secret().as_bytes());
        let request = v1::OpenTaskRequest {
            evidence: Some(convert::evidence_to_wire(&Evidence::JwtSvid(evidence))),
            purpose: Prose::parse("purpose", &order.purpose)?.as_str().to_owned(),
            max_duration: Some(convert::seconds_to_wire(order.max_duration_s)),
            request_id: request_id(order.request_id.as_deref())?.to_string(),
            heartbeat: order
                .heartbeat_s
                .map(|seconds| convert::seconds_to_wire(i64::from(seconds))),
        };
        let order = CallOptions {
            evidence_hash: Some(evidence_hash),
            ..CallOptions::by(&identity)
        };
        let answer = self
            .endpoint
            .call::<methods::OpenTask>(order, &[request])
            .await?;
        let opened = Opened::read(answer).map_err(Error::Answer)?;
        Ok(TaskHandle {
            endpoint: self.endpoint.clone(),
            evidence: self.evidence.clone(),
            id: opened.id,
            key,
            identity,
            opened: Some(opened),
            always_send_evidence: false,
        })
    }
}

/// A task of one's own, open at the broker. Dropping it ends nothing: [`TaskHandle::complete`] does, or its deadline.
#[derive(Debug, Clone)]
pub struct TaskHandle {
    endpoint: Endpoint,
    evidence: EvidenceSource,
    id: TaskId,
    key: Arc<SigningKey>,
    identity: Identity,
    opened: Option<Opened>,
    always_send_evidence: bool,
}

#[derive(Debug, Clone)]
struct Opened {
    id: TaskId,
    agent_id: AgentId,
    deadline: Timestamp,
    lease_until: Option<Timestamp>,
    verification: v1::Verification,
}

impl Opened {
    fn read(answer: v1::OpenTaskResponse) -> Result<Self, Malformed> {
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
                .ok_or_else(|| Malformed::new("verification", "is required"))?,
        })
    }
}

/// A token as asked for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The one thing it is for.
    pub action: Action,
    /// Asked life, in seconds; the broker clamps it.
    pub ttl_s: i64,
    /// Why, in the agent's words; at most 2,000 bytes. Invisible to rules.
    pub reason: String,
    /// Idempotency key; drawn when absent.
    pub request_id: Option<String>,
    /// How long the broker may wait for people before it answers pending, in seconds, at most 60.
    pub wait_s: u32,
}

impl TaskHandle {
    /// Takes a task up again: the key is the one it was opened with.
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
        }
    }

    /// Its id, the `txn` of its tokens.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The registered agent that the evidence matched; unknown of an attached task.
    pub fn agent_id(&self) -> Option<&AgentId> {
        self.opened.as_ref().map(|opened| &opened.agent_id)
    }

    /// When it ends by itself; unknown of an attached task.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.opened.as_ref().map(|opened| opened.deadline)
    }

    /// When it ends unless it is kept alive, as of its opening; absent without a heartbeat, unknown of an attached task.
    pub fn lease_until(&self) -> Option<Timestamp> {
        self.opened.as_ref().and_then(|opened| opened.lease_until)
    }

    /// A sign of life: extends the lease of a task opened with a heartbeat, and says until when. About three calls in a
    /// heartbeat's length leave room for one that is lost.
    pub async fn keep_alive(&self) -> Result<Timestamp, Error> {
        let request = v1::KeepAliveRequest {
            task_id: self.id.to_string(),
        };
        let answer = self
            .endpoint
            .call::<methods::KeepAlive>(CallOptions::by(&self.identity), &[request])
            .await?;
        let until = convert::required("lease_until", answer.lease_until.as_ref());
        until
            .and_then(|until| convert::timestamp("lease_until", until))
            .map_err(Error::Answer)
    }

    /// What gate 1 saw; unknown of an attached task.
    pub fn verification(&self) -> Option<&v1::Verification> {
        self.opened.as_ref().map(|opened| &opened.verification)
    }

    /// Shows the evidence in every call, whether the broker needs it again or not.
    #[must_use]
    pub fn always_send_evidence(self) -> Self {
        Self {
            always_send_evidence: true,
            ..self
        }
    }

    /// Asks for a token, once. Evidence is shown again if the broker says that what it saw is too old.
    pub async fn request_token(&self, order: &TokenRequest) -> Result<TokenOutcome, Error> {
        let request_id = request_id(order.request_id.as_deref())?;
        self.ask(order, &request_id, order.wait_s, self.always_send_evidence)
            .await
    }

    /// Asks under one request id until the answer is a token or a no, or until this moment: then the last pending answer is
    /// given. Between two questions it watches what people decide; where no stream can be had, the broker waits, or says
    /// when to ask again. Evidence is shown again when the broker wants it. A broker that is away for a while is waited for
    /// too, and so is one that starts again: the same action in the same task finds the same access request.
    pub async fn wait_for_token(
        &self,
        order: &TokenRequest,
        until: Timestamp,
    ) -> Result<TokenOutcome, Error> {
        let request_id = request_id(order.request_id.as_deref())?;
        let clock = self.endpoint.clock().clone();
        let mut show = self.always_send_evidence;
        let mut watch: Option<AccessRequestWatch> = None;
        let mut streams = true;
        loop {
            let began = clock.now();
            let left_s = until.since(began).max(0) / 1_000;
            let wait_s = match streams {
                true => 0,
                false => u32::try_from(left_s).unwrap_or(WAIT_S_MAX).min(WAIT_S_MAX),
            };
            let answer = self.ask(order, &request_id, wait_s, show).await;
            let now = clock.now();
            let pause_ms = match &answer {
                Ok(TokenOutcome::Pending(pending)) => {
                    show = self.always_send_evidence || pending.send_evidence();
                    let id = pending.access_request_id();
                    if streams && !show {
                        let watch = match &mut watch {
                            Some(watch) if watch.access_request_id() == id => watch,
                            other => other.insert(self.watch(id)),
                        };
                        // Asked again now and then, whatever the watch says: rules and time may have decided it.
                        let by = until.min(now.plus_millis(ASK_AGAIN_MS));
                        // Whatever keeps a stream from being had, asking does without.
                        streams = watch.decided(by).await.is_ok();
                        if streams { PAUSE_MS_MIN } else { 0 }
                    } else if now.since(began) >= 1_000 || show {
                        // A broker that did wait is asked again at once.
                        PAUSE_MS_MIN
                    } else {
                        pending.poll_interval_s().saturating_mul(1_000)
                    }
                }
                Err(error) if error.retryable() => i64::from(error.retry_after_ms()),
                Ok(TokenOutcome::Token(_) | TokenOutcome::Denied(_)) | Err(_) => return answer,
            };
            let left_ms = until.since(clock.now());
            if left_ms <= 0 {
                return answer;
            }
            let pause_ms = pause_ms.clamp(PAUSE_MS_MIN, PAUSE_MS_MAX).min(left_ms);
            tokio::time::sleep(Duration::from_millis(pause_ms.unsigned_abs())).await;
        }
    }

    /// Follows an access request of this task to its end: how it stands now, and each change.
    pub fn watch(&self, access_request: AccessRequestId) -> AccessRequestWatch {
        AccessRequestWatch::new(self.clone(), access_request)
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) const fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn ask(
        &self,
        order: &TokenRequest,
        request_id: &RequestId,
        wait_s: u32,
        show: bool,
    ) -> Result<TokenOutcome, Error> {
        let wait_s = wait_s.min(WAIT_S_MAX);
        let answer = match self.ask_once(order, request_id, wait_s, show).await {
            Err(error) if error.reason() == Some(Reason::EvidenceStale) && !show => {
                self.ask_once(order, request_id, wait_s, true).await?
            }
            answer => answer?,
        };
        self.outcome(answer, &order.action, request_id)
            .map_err(Error::Answer)
    }

    async fn ask_once(
        &self,
        order: &TokenRequest,
        request_id: &RequestId,
        wait_s: u32,
        show: bool,
    ) -> Result<v1::RequestTokenResponse, Error> {
        let evidence = if show {
            Some(self.evidence.fetch().await?)
        } else {
            None
        };
        let call = CallOptions {
            identity: &self.identity,
            action_digest: Some(order.action.digest()),
            evidence_hash: evidence
                .as_ref()
                .map(|evidence| Digest::of(evidence.expose_secret().as_bytes())),
            wait_s,
            code: None,
        };
        let request = v1::RequestTokenRequest {
            task_id: self.id.to_string(),
            action: Some(convert::action_to_wire(&order.action)),
            ttl: Some(convert::seconds_to_wire(order.ttl_s)),
            reason: Prose::parse("reason", &order.reason)?.as_str().to_owned(),
            request_id: request_id.to_string(),
            wait: (wait_s > 0).then(|| convert::seconds_to_wire(i64::from(wait_s))),
            evidence: evidence
                .map(|evidence| convert::evidence_to_wire(&Evidence::JwtSvid(evidence))),
        };
        self.endpoint
            .call::<methods::RequestToken>(call, &[request])
            .await
    }

    fn outcome(
        &self,
        answer: v1::RequestTokenResponse,
        action: &Action,
        request_id: &RequestId,
    ) -> Result<TokenOutcome, Malformed> {
        let decision = DecisionId::parse(&answer.decision_id)?;
        let moment = |what, wire: Option<prost_types::Timestamp>| {
            convert::timestamp(what, convert::required(what, wire.as_ref())?)
        };
        match answer
            .outcome
            .ok_or_else(|| Malformed::new("outcome", "is required"))?
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
                    decision,
                    action: action.clone(),
                    jti: TokenId::parse(&info.jti)?,
                    expires_at: moment("expires_at", info.expires_at)?,
                    openings,
                    info: Box::new(info),
                }))
            }
            request_token_response::Outcome::Pending(info) => Ok(TokenOutcome::Pending(PendingApproval {
                decision,
                request_id: request_id.clone(),
                access_request_id: AccessRequestId::parse(&info.access_request_id)?,
                expires_at: moment("expires_at", info.expires_at)?,
                poll_interval_s: match &info.poll_after {
                    Some(wire) => convert::seconds("poll_after", wire)?,
                    None => 1,
                },
                info,
            })),
            request_token_response::Outcome::Denied(info) => {
                let id = Some(info.access_request_id.as_str()).filter(|id| !id.is_empty());
                let access_request_id = id.map(AccessRequestId::parse).transpose()?;
                Ok(TokenOutcome::Denied(Denial {
                    decision,
                    access_request_id,
                    info,
                }))
            }
        }
    }

    /// Shows an access request of this task.
    pub async fn access_request(&self, id: AccessRequestId) -> Result<v1::AccessRequest, Error> {
        let request = v1::GetAccessRequestRequest {
            task_id: self.id.to_string(),
            access_request_id: id.to_string(),
        };
        let answer = self
            .endpoint
            .call::<methods::GetAccessRequest>(CallOptions::by(&self.identity), &[request])
            .await?;
        there("access_request", answer.access_request)
    }

    /// Takes an access request back.
    pub async fn cancel(&self, id: AccessRequestId) -> Result<v1::AccessRequest, Error> {
        let request = v1::CancelAccessRequestRequest {
            task_id: self.id.to_string(),
            access_request_id: id.to_string(),
        };
        let answer = self
            .endpoint
            .call::<methods::CancelAccessRequest>(CallOptions::by(&self.identity), &[request])
            .await?;
        there("access_request", answer.access_request)
    }

    /// Ends the task, its tokens and its access requests. Again is the same.
    pub async fn complete(&self, outcome: TaskOutcome) -> Result<v1::EndReport, Error> {
        let outcome = convert::task_outcome_to_wire(outcome).into();
        let request = v1::CompleteTaskRequest {
            task_id: self.id.to_string(),
            outcome,
        };
        let answer = self
            .endpoint
            .call::<methods::CompleteTask>(CallOptions::by(&self.identity), &[request])
            .await?;
        there("report", answer.report)
    }
}

fn request_id(given: Option<&str>) -> Result<RequestId, Error> {
    match given {
        Some(text) => Ok(RequestId::parse(text)?),
        None => Ok(RequestId::parse(&format!("r{}", random_name()?))?),
    }
}

fn there<T>(what: &'static str, field: Option<T>) -> Result<T, Error> {
    field.ok_or_else(|| Error::Answer(Malformed::new(what, "is required")))
}

/// Longest wait that the broker grants, in seconds.
const WAIT_S_MAX: u32 = 60;
const PAUSE_MS_MIN: i64 = 20;
const PAUSE_MS_MAX: i64 = 5_000;
/// Longest time that a watch is relied on alone, in milliseconds.
const ASK_AGAIN_MS: i64 = 60_000;

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
    async fn a_token_is_shown_with_a_proof_and_never_printed() {
        let task = task();
        let outcome = task
            .outcome(issued(), &action(), &request_id(Some("r1")).expect("id"))
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
    async fn an_answer_without_form_is_refused() {
        let task = task();
        let id = request_id(None).expect("id");
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
    fn an_idempotency_key_is_drawn_or_checked() {
        let (a, b) = (request_id(None).expect("id"), request_id(None).expect("id"));
        assert_ne!(a, b);
        assert!(matches!(request_id(Some("a b")), Err(Error::Malformed(_))));
    }
}
