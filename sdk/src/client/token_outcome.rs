use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::responses::{GrantedTtl, MatchedRule, RequiredProfile, VoidApproval};
use super::token_watch::TokenWatcher;
use super::{Endpoint, Error, Identity, random_name};
use crate::card::CardDelay;
use crate::jose::SigningKey;
use crate::jose::dpop::{self, ProofClaims};
use crate::model::{
    AccessRequestId, Action, AgentId, DecisionId, DeniedReason, IdempotencyKey, MatchPhrase,
    Secret, TaskId, Thumbprint, Timestamp, TokenId,
};

/// The decision of gate 2 on a token request.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "one outcome for each call, matched at once"
)]
pub enum TokenOutcome {
    /// The token is issued.
    Token(AccessToken),
    /// The action waits for approvals. Repeat the request with the same idempotency key.
    Pending(PendingApproval),
    /// Of an advisory agent: people approved what it recommends, and its executor may request the token.
    Recommended(ApprovedRecommendation),
    /// The request is denied.
    Denied(Denial),
}

/// The cause for which something has ended, once the client knows it; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct EndCell(Arc<OnceLock<String>>);

impl EndCell {
    /// Keeps the first cause.
    pub(super) fn set(&self, cause: &str) {
        self.0.get_or_init(|| cause.to_owned());
    }

    pub(super) fn cause(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

/// An access token with the key it is bound to (`cnf.jkt`, RFC 9449 §6). `Debug` shows neither.
#[derive(Clone)]
pub struct AccessToken {
    pub(super) jwt: Secret,
    pub(super) key: Arc<SigningKey>,
    pub(super) endpoint: Endpoint,
    pub(super) task: TaskId,
    /// The end of its task, as far as the task's handle knows.
    pub(super) task_end: EndCell,
    pub(super) end: EndCell,
    pub(super) decision: DecisionId,
    pub(super) action: Action,
    pub(super) jti: TokenId,
    pub(super) expires_at: Timestamp,
    pub(super) openings: BTreeMap<String, String>,
    pub(super) ttl: Option<GrantedTtl>,
    pub(super) uses: Option<u32>,
    pub(super) rules: Vec<MatchedRule>,
    pub(super) reissued: bool,
}

/// The two headers of one HTTP request to the resource server.
#[derive(Debug, Clone)]
pub struct DpopHeaders {
    /// `authorization`: `DPoP` and the token (RFC 9449 §7.1).
    pub authorization: Secret,
    /// `dpop`: a proof for this one request.
    pub dpop: Secret,
}

impl AccessToken {
    /// The headers for one request: `method` as sent, such as `POST`; query and fragment of `url` are left out of the proof
    /// (RFC 9449 §4.2). Each request needs new ones.
    ///
    /// # Errors
    /// [`Error::TokenEnded`] once the client knows that the token or its task has ended: from a reply to the task's handle, or
    /// from [`AccessToken::watch`]. Otherwise it fails only without randomness from the system. The expiry is not checked: the
    /// resource server's clock decides.
    pub fn headers(&self, method: &str, url: &str) -> Result<DpopHeaders, Error> {
        self.headers_with_nonce(method, url, None)
    }

    /// The same, with the newest `DPoP-Nonce` of the resource server (RFC 9449 §9).
    pub fn headers_with_nonce(
        &self,
        method: &str,
        url: &str,
        nonce: Option<&str>,
    ) -> Result<DpopHeaders, Error> {
        if let Some(cause) = self.end_cause() {
            return Err(Error::TokenEnded {
                cause: cause.to_owned(),
            });
        }
        let claims = ProofClaims {
            htm: method,
            htu: url.split(['?', '#']).next().unwrap_or_default(),
            iat: self.endpoint.clock().now(),
            jti: &random_name()?,
            nonce,
            ath: Some(dpop::ath(self.jwt.expose_secret())),
            action_digest: None,
            evidence_hash: None,
        };
        let dpop = dpop::create(&self.key, &claims)?;
        Ok(DpopHeaders {
            authorization: Secret::new(format!("DPoP {}", self.jwt.expose_secret())),
            dpop,
        })
    }

    /// Why the token has ended, once the client knows that it has: `operator`, `frozen`, …, or the refusal of a later call of its
    /// task.
    pub fn end_cause(&self) -> Option<&str> {
        self.end.cause().or_else(|| self.task_end.cause())
    }

    /// A watch that hears within a second that the token ended. It connects with the first call, and ends nothing when dropped.
    pub fn watch(&self) -> TokenWatcher {
        TokenWatcher::new(
            self.endpoint.clone(),
            Identity::Key(self.key.clone()),
            self.task,
            self.jti,
            self.end.clone(),
        )
    }

    /// The JWT itself.
    pub fn jwt(&self) -> &Secret {
        &self.jwt
    }

    /// Thumbprint of the key it is bound to (RFC 7638): its `cnf.jkt`.
    pub fn jkt(&self) -> Thumbprint {
        self.key.thumbprint()
    }

    /// The token's id.
    pub fn jti(&self) -> TokenId {
        self.jti
    }

    /// When the token expires.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The action the token is for.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// How its lifetime was computed.
    pub fn ttl(&self) -> Option<&GrantedTtl> {
        self.ttl.as_ref()
    }

    /// How often it may be used; `None` when its lifetime is the only limit.
    pub fn uses(&self) -> Option<u32> {
        self.uses
    }

    /// The rules that determined the decision.
    pub fn rules(&self) -> &[MatchedRule] {
        &self.rules
    }

    /// Whether the request was a retry that got the same token, signed again.
    pub fn reissued(&self) -> bool {
        self.reissued
    }

    /// The salts of sensitive parameters, by name: the resource server needs them with the values.
    pub fn openings(&self) -> &BTreeMap<String, String> {
        &self.openings
    }

    /// The id of the decision, for `explain`.
    pub fn decision_id(&self) -> DecisionId {
        self.decision
    }
}

/// Neither the token nor the salts.
impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("jti", &self.jti)
            .field("action", &self.action)
            .field("expires_at", &self.expires_at)
            .field("uses", &self.uses)
            .finish_non_exhaustive()
    }
}

/// An action that waits for approvals.
#[derive(Debug, Clone)]
pub struct PendingApproval {
    pub(super) decision: DecisionId,
    pub(super) idempotency_key: IdempotencyKey,
    pub(super) access_request_id: AccessRequestId,
    pub(super) expires_at: Timestamp,
    pub(super) poll_interval_s: i64,
    pub(super) send_evidence: bool,
    pub(super) needs: Vec<RequiredProfile>,
    pub(super) rules: Vec<MatchedRule>,
    pub(super) ttl: Option<GrantedTtl>,
    pub(super) void_votes: Vec<VoidApproval>,
    pub(super) executor: Option<AgentId>,
    pub(super) delay: Option<CardDelay>,
}

impl PendingApproval {
    /// What time alone changes, unless somebody says no: the same request is then to be made again.
    pub fn delay(&self) -> Option<&CardDelay> {
        self.delay.as_ref()
    }

    /// Of a recommendation: the agent that would execute the action, which alone gets the token.
    pub fn executor(&self) -> Option<&AgentId> {
        self.executor.as_ref()
    }

    /// The access request that waits.
    pub fn access_request_id(&self) -> AccessRequestId {
        self.access_request_id
    }

    /// Words that the approver's card shows too, so that both sides know that they speak of the same request (the
    /// `binding_message` of OpenID CIBA §7.1).
    pub fn match_phrase(&self) -> MatchPhrase {
        MatchPhrase::from_request(&self.access_request_id)
    }

    /// The key to repeat the request with.
    pub fn idempotency_key(&self) -> &IdempotencyKey {
        &self.idempotency_key
    }

    /// When the access request expires: then the request is denied.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The interval for polling, in seconds.
    pub fn poll_interval_s(&self) -> i64 {
        self.poll_interval_s
    }

    /// Whether the next request must carry evidence.
    pub fn send_evidence(&self) -> bool {
        self.send_evidence
    }

    /// The step-up profiles it needs, and their votes so far.
    pub fn needs(&self) -> &[RequiredProfile] {
        &self.needs
    }

    /// Approvals that no longer count, because what they were given for has changed: the agent's user may tell the approver.
    pub fn void_votes(&self) -> &[VoidApproval] {
        &self.void_votes
    }

    /// The rules that require them.
    pub fn rules(&self) -> &[MatchedRule] {
        &self.rules
    }

    /// How the lifetime of the token would be computed.
    pub fn ttl(&self) -> Option<&GrantedTtl> {
        self.ttl.as_ref()
    }

    /// The id of the decision, for `explain`.
    pub fn decision_id(&self) -> DecisionId {
        self.decision
    }
}

/// A recommendation that people approved. The agent that made it gets no token.
#[derive(Debug, Clone)]
pub struct ApprovedRecommendation {
    pub(super) decision: DecisionId,
    pub(super) access_request_id: AccessRequestId,
    pub(super) executor: AgentId,
    pub(super) expires_at: Timestamp,
    pub(super) jti: Option<TokenId>,
}

impl ApprovedRecommendation {
    /// The access request: what the executor names as `recommendation`.
    pub fn access_request_id(&self) -> AccessRequestId {
        self.access_request_id
    }

    /// The agent that executes it.
    pub fn executor(&self) -> &AgentId {
        &self.executor
    }

    /// When the approval expires.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The id of the executor's token, once it has one.
    pub fn jti(&self) -> Option<TokenId> {
        self.jti
    }

    /// The id of the decision, for `explain`.
    pub fn decision_id(&self) -> DecisionId {
        self.decision
    }
}

/// A token request that gate 2 denied.
#[derive(Debug, Clone)]
pub struct Denial {
    pub(super) decision: DecisionId,
    pub(super) access_request_id: Option<AccessRequestId>,
    pub(super) reason: String,
    pub(super) rules: Vec<MatchedRule>,
    pub(super) comment: String,
}

impl Denial {
    /// The reason as the broker sent it.
    pub fn reason_str(&self) -> &str {
        &self.reason
    }

    /// The reason, if this client knows it.
    pub fn reason(&self) -> Option<DeniedReason> {
        DeniedReason::parse(&self.reason)
    }

    /// The rules that determined the denial.
    pub fn rules(&self) -> &[MatchedRule] {
        &self.rules
    }

    /// The comment of the person who denied it: one plain line, if there is one.
    pub fn comment(&self) -> Option<&str> {
        Some(self.comment.as_str()).filter(|comment| !comment.is_empty())
    }

    /// The access request that was denied or expired, if there was one.
    pub fn access_request_id(&self) -> Option<AccessRequestId> {
        self.access_request_id
    }

    /// The id of the decision, for `explain`.
    pub fn decision_id(&self) -> DecisionId {
        self.decision
    }
}
