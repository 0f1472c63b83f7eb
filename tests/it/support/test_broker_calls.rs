//! Calls to the test broker as agents, approvers, operators and validators make them.

use std::collections::BTreeMap;
use std::sync::Arc;

use dipylon::audit::TokenReceipt;
use dipylon::broker::*;
use dipylon::rate_limit::ConcurrencyPermit;
use dipylon::serve::authorization;
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;

use crate::support::*;
use crate::support::{DOMAIN, URL, rand_u64};

/// A request for the first page of an inbox.
pub const fn first_inbox_page() -> InboxQuery {
    InboxQuery {
        mine: false,
        size: INBOX_PAGE_MAX,
        after: None,
    }
}

impl TestBroker {
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn agent(&self, id: &str) -> TestAgent {
        TestAgent {
            spiffe_id: format!("spiffe://{DOMAIN}/agent/{id}"),
            key: Arc::new(SigningKey::generate().expect("key").0),
        }
    }

    pub fn svid(&self, agent: &TestAgent) -> Evidence {
        Evidence::JwtSvid(self.env.svid(&agent.spiffe_id, self.now(), 3_600))
    }

    /// A call with a proof by a key.
    pub fn call(
        &self,
        method: &str,
        key: &SigningKey,
        adg: Option<Digest>,
        evh: Option<Digest>,
    ) -> CallContext {
        self.call_with_nonce(method, key, adg, evh, &self.broker.nonce())
    }

    pub fn call_with_nonce(
        &self,
        method: &str,
        key: &SigningKey,
        adg: Option<Digest>,
        evh: Option<Digest>,
        nonce: &str,
    ) -> CallContext {
        let policy = authorization::method_policy(method).expect("a method with a row");
        let jti = format!(
            "{:032x}",
            u128::from(rand_u64()) << 64 | u128::from(rand_u64())
        );
        let claims = dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{URL}/{method}"),
            iat: self.now(),
            jti: &jti,
            nonce: Some(nonce),
            ath: None,
            action_digest: adg,
            evidence_hash: evh,
        };
        CallContext {
            method: policy.name,
            allowed_roles: policy.allowed_roles,
            proof: Some(dpop::create(key, &claims).expect("proof")),
            bearer: None,
            session: None,
            permit: ConcurrencyPermit::unlimited(policy.rate_class),
        }
    }

    pub fn person_call(&self, method: &str, name: &str) -> CallContext {
        self.call(method, &self.env.keys[name], None, None)
    }

    pub async fn open_task(&self, agent: &TestAgent) -> TaskId {
        self.try_open_task(agent, "contain INC-8841", "open-1")
            .await
            .expect("opens")
            .task
            .task
    }

    pub async fn try_open_task(
        &self,
        agent: &TestAgent,
        purpose: &str,
        idempotency_key: &str,
    ) -> Result<OpenTaskReply, Refusal> {
        self.open_task_with(agent, purpose, idempotency_key, None)
            .await
    }

    pub async fn open_task_with(
        &self,
        agent: &TestAgent,
        purpose: &str,
        idempotency_key: &str,
        heartbeat: Option<i64>,
    ) -> Result<OpenTaskReply, Refusal> {
        let evidence = self.svid(agent);
        let evh = dipylon::verify::evidence_hash(&evidence);
        let call = self.call(
            "dipylon.v1.TaskService/OpenTask",
            &agent.key,
            None,
            Some(evh),
        );
        let ask = OpenTaskInput {
            evidence,
            purpose: UntrustedText::parse("purpose", purpose).expect("prose"),
            max_duration: 3_600,
            idempotency_key: IdempotencyKey::parse(idempotency_key).expect("id"),
            heartbeat,
        };
        self.broker.open_task(&call, ask).await
    }

    pub async fn keep_alive(&self, agent: &TestAgent, task: TaskId) -> Result<Timestamp, Refusal> {
        let call = self.call("dipylon.v1.TaskService/KeepAlive", &agent.key, None, None);
        self.broker.keep_alive(&call, task).await
    }

    pub async fn request_token(
        &self,
        agent: &TestAgent,
        task: TaskId,
        action: &Action,
        ttl: i64,
        idempotency_key: &str,
    ) -> Result<TokenReply, Refusal> {
        self.request_token_with_evidence(agent, task, action, ttl, idempotency_key, None)
            .await
    }

    pub async fn request_token_with_evidence(
        &self,
        agent: &TestAgent,
        task: TaskId,
        action: &Action,
        ttl: i64,
        idempotency_key: &str,
        evidence: Option<Evidence>,
    ) -> Result<TokenReply, Refusal> {
        let ask = RequestTokenInput {
            task,
            action: action.clone(),
            ttl,
            reason: Some(UntrustedText::parse("reason", "phish confirmed").expect("prose")),
            idempotency_key: IdempotencyKey::parse(idempotency_key).expect("id"),
            wait_ms: 0,
            evidence,
            executor: None,
            recommendation: None,
        };
        self.request_with(agent, ask).await
    }

    /// The request as it is.
    pub async fn request_with(
        &self,
        agent: &TestAgent,
        ask: RequestTokenInput,
    ) -> Result<TokenReply, Refusal> {
        let evh = ask.evidence.as_ref().map(dipylon::verify::evidence_hash);
        let action = ask.action.clone();
        let call = self.call(
            "dipylon.v1.TaskService/RequestToken",
            &agent.key,
            Some(action.digest()),
            evh,
        );
        let reply = self.broker.request_token(&call, ask).await;
        if let Ok(TokenReply::Token(issued)) = &reply {
            let audience = action.audience.as_str();
            let claims = jwt_crosscheck::decodes(&issued.token, &self.broker.jwks(), URL, audience)
                .expect("decodes with another library");
            assert_eq!(claims["jti"], issued.issued.jti.to_string());
            // A resource server whose clock is up to half a minute behind accepts it at once.
            assert_eq!(claims["nbf"].as_i64(), Some(issued.issued.iat - 30));
            assert_eq!(claims["iat"].as_i64(), Some(issued.issued.iat));
            assert_eq!(claims["exp"].as_i64(), Some(issued.issued.exp));
            jwt_crosscheck::decodes(&issued.token, &self.broker.jwks(), URL, "https://other")
                .expect_err("valid for its audience only");
        }
        reply
    }

    pub async fn begin_vote(
        &self,
        name: &str,
        id: AccessRequestId,
        profile: &str,
        verdict: Verdict,
    ) -> Result<VoteStatementReply, Refusal> {
        self.begin_narrowed_vote(name, id, profile, verdict, None)
            .await
    }

    pub async fn begin_narrowed_vote(
        &self,
        name: &str,
        id: AccessRequestId,
        profile: &str,
        verdict: Verdict,
        max_ttl: Option<i64>,
    ) -> Result<VoteStatementReply, Refusal> {
        let call = self.person_call("dipylon.v1.ApprovalService/BeginVote", name);
        let profile = ProfileName::parse(profile).expect("profile");
        self.broker
            .begin_vote(
                &call,
                id,
                VoteInput {
                    profile,
                    verdict,
                    narrowing: Narrowing {
                        max_ttl,
                        max_uses: None,
                    },
                    comment: None,
                    policy: None,
                    facts: None,
                },
            )
            .await
    }

    pub async fn cast_vote(
        &self,
        name: &str,
        id: AccessRequestId,
        statement: &str,
    ) -> Result<AccessView, Refusal> {
        let digest = VoteStatement::parse(statement)
            .expect("statement")
            .digest()
            .expect("digest");
        let signature = self.env.keys[name].sign(digest.as_bytes()).expect("signed");
        let call = self.person_call("dipylon.v1.ApprovalService/CastVote", name);
        let proof = VoteProof::Signature(signature.to_vec());
        let cast = self.broker.cast_vote(&call, id, statement, proof).await;
        cast.map(|done| done.view)
    }

    /// A complete vote: by the passkey that [`TestBroker::enrol_voters`] kept, or else by key.
    pub async fn vote(
        &self,
        name: &str,
        id: AccessRequestId,
        profile: &str,
        verdict: Verdict,
    ) -> Result<AccessView, Refusal> {
        let begun = self.begin_vote(name, id, profile, verdict).await?;
        let Some(passkey) = self.env.passkey_among(name, &begun.credentials) else {
            return self.cast_vote(name, id, &begun.statement).await;
        };
        let assertion = passkey.get(begun.challenge.as_bytes(), CONSOLE);
        let call = self.person_call("dipylon.v1.ApprovalService/CastVote", name);
        let proof = VoteProof::Passkey(assertion);
        let cast = self.broker.cast_vote(&call, id, &begun.statement, proof);
        cast.await.map(|done| done.view)
    }

    /// A complete vote with any key.
    pub async fn vote_with(
        &self,
        key: &SigningKey,
        id: AccessRequestId,
        ask: VoteInput,
    ) -> Result<AccessView, Refusal> {
        let call = self.call("dipylon.v1.ApprovalService/BeginVote", key, None, None);
        let statement = self.broker.begin_vote(&call, id, ask).await?.statement;
        let digest = VoteStatement::parse(&statement)
            .expect("statement")
            .digest()
            .expect("digest");
        let signature = key.sign(digest.as_bytes()).expect("signed");
        let call = self.call("dipylon.v1.ApprovalService/CastVote", key, None, None);
        let proof = VoteProof::Signature(signature.to_vec());
        let cast = self.broker.cast_vote(&call, id, &statement, proof).await;
        cast.map(|done| done.view)
    }

    /// Votes to approve, and expects the vote to count.
    pub async fn approve(&self, name: &str, id: AccessRequestId, profile: &str) {
        let vote = self.vote(name, id, profile, Verdict::Approve);
        vote.await.expect("the vote counts");
    }

    pub async fn consume(
        &self,
        validator: &str,
        token: &Secret,
        use_id: &str,
    ) -> Result<Consumed, Refusal> {
        let call = self.person_call("dipylon.v1.TokenService/ConsumeToken", validator);
        self.broker
            .consume_token(&call, token, &UseId::parse(use_id).expect("id"))
            .await
    }

    /// The receipt of a token, which verified with the keys that the broker publishes before it left, and can be read.
    pub async fn receipt(&self, jti: TokenId) -> TokenReceipt {
        let call = self.person_call("dipylon.v1.GovernanceService/GetTokenReceipt", "olga");
        let reply = self.broker.token_receipt(&call, jti).await;
        TokenReceipt::parse(&reply.expect("a receipt").text).expect("readable")
    }

    pub async fn introspect(&self, validator: &str, token: &Secret) -> bool {
        let call = self.person_call("dipylon.v1.TokenService/Introspect", validator);
        self.broker
            .introspect(&call, token)
            .await
            .expect("a validator may ask")
            .is_some()
    }

    pub async fn complete_task(
        &self,
        agent: &TestAgent,
        task: TaskId,
    ) -> Result<EndReport, Refusal> {
        let call = self.call(
            "dipylon.v1.TaskService/CompleteTask",
            &agent.key,
            None,
            None,
        );
        self.broker
            .complete_task(
                &call,
                EndTaskInput {
                    task,
                    outcome: Some(TaskOutcome::Succeeded),
                },
            )
            .await
    }

    pub async fn apply_policy(
        &self,
        files: BTreeMap<String, String>,
    ) -> Result<BundleApplied, Refusal> {
        self.apply_returning(files, &[]).await
    }

    /// Applies a bundle in which these people are the ones who left.
    pub async fn apply_returning(
        &self,
        files: BTreeMap<String, String>,
        returning: &[&str],
    ) -> Result<BundleApplied, Refusal> {
        let call = self.person_call("dipylon.v1.GovernanceService/ApplyPolicyBundle", "olga");
        let operator = self.broker.authenticate_person(&call)?;
        let returning = returning.iter();
        let returning = returning
            .map(|id| PersonId::parse(id).expect("id"))
            .collect();
        self.broker
            .apply_policy_bundle(&call, operator, files, returning, None)
            .await
    }

    /// Revokes one key of a person, or all.
    pub async fn revoke_keys_of(
        &self,
        person: &str,
        only: Option<Thumbprint>,
    ) -> Result<usize, Refusal> {
        let call = self.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
        let person = PersonId::parse(person).expect("id");
        let revocation = KeyRevocation {
            only,
            compromised: false,
        };
        self.broker
            .revoke_approver_keys(&call, person, revocation)
            .await
            .map(|revoked| revoked.keys)
    }

    pub async fn suspend(&self, agent: &str) -> Result<(usize, u64), Refusal> {
        let call = self.person_call("dipylon.v1.GovernanceService/SuspendAgent", "olga");
        self.broker
            .suspend_agent(&call, AgentId::parse(agent).expect("id"), None)
            .await
    }

    pub async fn resume(&self, agent: &str) -> Result<u64, Refusal> {
        let call = self.person_call("dipylon.v1.GovernanceService/ResumeAgent", "olga");
        self.broker
            .resume_agent(&call, AgentId::parse(agent).expect("id"))
            .await
    }

    pub async fn freeze(&self, scope: &str) -> Result<FreezeSummary, Refusal> {
        let call = self.person_call("dipylon.v1.GovernanceService/Freeze", "olga");
        let scope = FreezeScope::parse(scope).expect("scope");
        let reason = UntrustedText::parse("reason", "an incident").expect("prose");
        self.broker.freeze(&call, scope, Some(reason)).await
    }

    pub async fn unfreeze(&self, scope: &str) -> Result<u64, Refusal> {
        let call = self.person_call("dipylon.v1.GovernanceService/Unfreeze", "olga");
        let scope = FreezeScope::parse(scope).expect("scope");
        self.broker.unfreeze(&call, scope).await
    }

    pub async fn revoke(&self, jti: TokenId) -> Result<TokenRevoked, Refusal> {
        let call = self.person_call("dipylon.v1.TokenService/RevokeToken", "olga");
        self.broker.revoke_token(&call, jti).await
    }

    /// Checks every invariant that the journal alone can show.
    pub fn check_invariants(&self) {
        invariants::check(&self.dir);
    }
}

#[derive(Clone)]
pub struct TestAgent {
    pub spiffe_id: String,
    pub key: Arc<SigningKey>,
}

pub trait ExpectReply {
    fn token(self) -> IssuedReply;
    fn pending(self) -> PendingReply;
    fn denied(self) -> DeniedReply;
    fn recommended(self) -> RecommendedReply;
}

impl ExpectReply for Result<TokenReply, Refusal> {
    fn token(self) -> IssuedReply {
        match self {
            Ok(TokenReply::Token(issued)) => *issued,
            other => panic!("not a token: {other:?}"),
        }
    }

    fn pending(self) -> PendingReply {
        match self {
            Ok(TokenReply::Pending(pending)) => *pending,
            other => panic!("not pending: {other:?}"),
        }
    }

    fn denied(self) -> DeniedReply {
        match self {
            Ok(TokenReply::Denied(denied)) => *denied,
            other => panic!("not denied: {other:?}"),
        }
    }

    fn recommended(self) -> RecommendedReply {
        match self {
            Ok(TokenReply::Recommended(recommended)) => *recommended,
            other => panic!("not recommended: {other:?}"),
        }
    }
}

pub fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Reason {
    result.expect_err("refused").reason
}
