use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::responses::{GrantedTtl, MatchedRule, RequiredProfile};
use super::{Endpoint, Error, random_name};
use crate::jose::SigningKey;
use crate::jose::dpop::{self, ProofClaims};
use crate::model::{
    AccessRequestId, Action, DecisionId, DeniedReason, MatchPhrase, RequestId, Secret, Thumbprint,
    Timestamp, TokenId,
};

/// Gate 2's answer.
#[derive(Debug, Clone)]
pub enum TokenOutcome {
    /// Here it is.
    Token(AccessToken),
    /// People are asked. Ask again under the same request id.
    Pending(PendingApproval),
    /// No.
    Denied(Denial),
}

/// A token with the key it is bound to. Neither prints.
#[derive(Clone)]
pub struct AccessToken {
    pub(super) jwt: Secret,
    pub(super) key: Arc<SigningKey>,
    pub(super) endpoint: Endpoint,
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

/// Two headers of one HTTP request to the resource server.
#[derive(Debug, Clone)]
pub struct DpopHeaders {
    /// `authorization`: `DPoP` and the token (RFC 9449 §7.1).
    pub authorization: Secret,
    /// `dpop`: a proof for this one request.
    pub dpop: Secret,
}

impl AccessToken {
    /// What one request with the token carries: `method` as sent, such as `POST`; of `url`, query and fragment are left out
    /// of the proof (RFC 9449 §4.2). Make new ones for each request.
    pub fn headers(&self, method: &str, url: &str) -> Result<DpopHeaders, Error> {
        self.headers_with_nonce(method, url, None)
    }

    /// The same with the newest nonce that the resource server gave (RFC 9449 §9).
    pub fn headers_with_nonce(
        &self,
        method: &str,
        url: &str,
        nonce: Option<&str>,
    ) -> Result<DpopHeaders, Error> {
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

    /// The JWT itself.
    pub fn jwt(&self) -> &Secret {
        &self.jwt
    }

    /// Thumbprint of the key it is bound to (RFC 7638): its `cnf.jkt`.
    pub fn jkt(&self) -> Thumbprint {
        self.key.thumbprint()
    }

    /// Its id.
    pub fn jti(&self) -> TokenId {
        self.jti
    }

    /// When it ends by itself.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// What it is for.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// How its life came about.
    pub fn ttl(&self) -> Option<&GrantedTtl> {
        self.ttl.as_ref()
    }

    /// How often it may be used; `None` when its life is the only limit.
    pub fn uses(&self) -> Option<u32> {
        self.uses
    }

    /// The rules that determined the answer.
    pub fn rules(&self) -> &[MatchedRule] {
        &self.rules
    }

    /// Whether a retry got the same token signed anew.
    pub fn reissued(&self) -> bool {
        self.reissued
    }

    /// The salts of sensitive parameters, by name: the resource server needs them beside the values.
    pub fn openings(&self) -> &BTreeMap<String, String> {
        &self.openings
    }

    /// This answer, for `explain`.
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

/// The action waits for people.
#[derive(Debug, Clone)]
pub struct PendingApproval {
    pub(super) decision: DecisionId,
    pub(super) idempotency_key: RequestId,
    pub(super) access_request_id: AccessRequestId,
    pub(super) expires_at: Timestamp,
    pub(super) poll_interval_s: i64,
    pub(super) send_evidence: bool,
    pub(super) needs: Vec<RequiredProfile>,
    pub(super) rules: Vec<MatchedRule>,
    pub(super) ttl: Option<GrantedTtl>,
}

impl PendingApproval {
    /// What waits.
    pub fn access_request_id(&self) -> AccessRequestId {
        self.access_request_id
    }

    /// What the approver's card says, too: for whoever watches the agent, to know that both speak of the same request.
    pub fn match_phrase(&self) -> MatchPhrase {
        MatchPhrase::of(&self.access_request_id)
    }

    /// What to ask again under.
    pub fn idempotency_key(&self) -> &RequestId {
        &self.idempotency_key
    }

    /// When waiting ends: then it is denied.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// When to ask again, in seconds.
    pub fn poll_interval_s(&self) -> i64 {
        self.poll_interval_s
    }

    /// Whether evidence must be shown in the next call.
    pub fn send_evidence(&self) -> bool {
        self.send_evidence
    }

    /// The profiles that are needed, and how far they are.
    pub fn needs(&self) -> &[RequiredProfile] {
        &self.needs
    }

    /// The rules that ask for them.
    pub fn rules(&self) -> &[MatchedRule] {
        &self.rules
    }

    /// The life the token would have.
    pub fn ttl(&self) -> Option<&GrantedTtl> {
        self.ttl.as_ref()
    }

    /// This answer, for `explain`.
    pub fn decision_id(&self) -> DecisionId {
        self.decision
    }
}

/// Gate 2 said no.
#[derive(Debug, Clone)]
pub struct Denial {
    pub(super) decision: DecisionId,
    pub(super) access_request_id: Option<AccessRequestId>,
    pub(super) reason: String,
    pub(super) rules: Vec<MatchedRule>,
    pub(super) comment: String,
}

impl Denial {
    /// Why, in one word of the wire.
    pub fn reason_str(&self) -> &str {
        &self.reason
    }

    /// Why, if this client knows the word.
    pub fn reason(&self) -> Option<DeniedReason> {
        DeniedReason::parse(&self.reason)
    }

    /// The rules that determined it.
    pub fn rules(&self) -> &[MatchedRule] {
        &self.rules
    }

    /// What the person who said no tells the agent: one plain line, if they wrote one.
    pub fn comment(&self) -> Option<&str> {
        Some(self.comment.as_str()).filter(|comment| !comment.is_empty())
    }

    /// The access request that was denied or expired, if there was one.
    pub fn access_request_id(&self) -> Option<AccessRequestId> {
        self.access_request_id
    }

    /// This answer, for `explain`.
    pub fn decision_id(&self) -> DecisionId {
        self.decision
    }
}
