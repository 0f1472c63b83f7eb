//! Test support: a broker in this process with real keys, a real journal and a manual clock. Fakes stand only for the
//! outside world: the trust domain's signer and the people.

pub mod invariants;
pub mod jwt_crosscheck;
pub mod served_broker;
pub mod software_authenticator;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon::policy::BundleFiles;
use dipylon::rate_limit::{ConcurrencyPermit, RateLimitConfig};
use dipylon::serve::authorization;
use dipylon_sdk::clock::{Clock, ManualClock};
use dipylon_sdk::jose::{SigningKey, Usage, dpop};
use dipylon_sdk::model::*;
use serde_json::json;

pub const URL: &str = "http://127.0.0.1:7700";
pub const CONSOLE: &str = "http://localhost:7700";
pub const DOMAIN: &str = "soc.example";
pub const IDP: &str = "https://idp.soc.example";
pub const CASES: &str = "https://cases.soc.example";

/// Everything outside the broker: the trust domain's signer, the people's keys, the policy files.
pub struct TestEnvironment {
    pub signer: SigningKey,
    pub keys: BTreeMap<String, SigningKey>,
    pub policy: BTreeMap<String, String>,
    pkcs8: BTreeMap<String, Vec<u8>>,
}

impl TestEnvironment {
    pub fn new() -> Self {
        let mut policy = soc();
        let mut keys = BTreeMap::new();
        let mut pkcs8 = BTreeMap::new();
        // Most tests vote repeatedly without advancing the clock, so the approval limits are off here; they have their
        // own tests.
        let people = policy.get_mut("people.toml").expect("people");
        let own = people.find("[approvals]").expect("the example has one");
        people.truncate(own);
        people.push_str(NO_LIMITS);
        for name in ["dana", "maria", "lee", "olga", "idp", "cases", "audit"] {
            let (key, secret) = SigningKey::generate().expect("key");
            let jwk = key.public().to_jwk();
            policy.get_mut("people.toml").expect("people").push_str(&format!(
                "\n[[key]]\nof = \"{name}\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = {}, y = {} }}\n",
                jwk["x"], jwk["y"]
            ));
            pkcs8.insert(name.to_owned(), secret.to_vec());
            keys.insert(name.to_owned(), key);
        }
        Self {
            signer: SigningKey::generate().expect("key").0,
            keys,
            policy,
            pkcs8,
        }
    }

    /// A second handle on a person's key, for code that owns its key.
    pub fn key_of(&self, name: &str) -> SigningKey {
        SigningKey::from_pkcs8(&self.pkcs8[name]).expect("key")
    }

    /// A person's private key as a PEM file.
    pub fn pem_of(&self, name: &str) -> String {
        SigningKey::to_pem(&self.pkcs8[name]).to_string()
    }

    pub fn trust_bundle(&self) -> String {
        let kid = KeyId::from_thumbprint(self.signer.thumbprint());
        json!({ "keys": [self.signer.public().to_jwk_named(&kid, Usage::JwtSvid)], "spiffe_sequence": 1 }).to_string()
    }

    /// A JWT-SVID for a SPIFFE ID, as the trust domain would issue it.
    pub fn svid(&self, spiffe_id: &str, now: Timestamp, life_s: i64) -> Secret {
        self.svid_for(URL, spiffe_id, now, life_s)
    }

    pub fn svid_for(&self, audience: &str, spiffe_id: &str, now: Timestamp, life_s: i64) -> Secret {
        self.svid_with(json!({ "sub": spiffe_id, "aud": [audience], "iat": now.secs(), "exp": now.secs() + life_s }))
    }

    /// Signs any claims, also those that no real signer would write.
    pub fn svid_with(&self, claims: serde_json::Value) -> Secret {
        let kid = KeyId::from_thumbprint(self.signer.thumbprint());
        let part = |v: &serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({ "alg": "ES256", "kid": kid, "typ": "JWT" })),
            part(&claims)
        );
        let signature = self.signer.sign(signed.as_bytes()).expect("signed");
        Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The policy bundle with one file changed.
    pub fn policy_with(
        &self,
        path: &str,
        change: impl FnOnce(&str) -> String,
    ) -> BTreeMap<String, String> {
        let mut files = self.policy.clone();
        let changed = change(files.get(path).map_or("", String::as_str));
        files.insert(path.to_owned(), changed);
        files
    }
}

/// Approval limits switched off.
pub const NO_LIMITS: &str = "[approvals]\nasks_per_minute = 100000\nopens_per_minute = 0\ndwell = \"off\"\nback_off = []\nquarantine = 0\n";

/// The policy bundle of `examples/soc`.
pub fn soc() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/soc");
    let paths = [
        "schema.cedarschema",
        "entities.json",
        "agents.toml",
        "people.toml",
        "rules/10-agents.cedar",
        "rules/20-guardrails.cedar",
    ];
    paths
        .iter()
        .map(|p| {
            (
                (*p).to_owned(),
                std::fs::read_to_string(root.join(p)).expect("example"),
            )
        })
        .collect()
}

pub struct TestBroker {
    pub env: Arc<TestEnvironment>,
    pub broker: Arc<Broker>,
    pub manual_clock: ManualClock,
    pub clock: Clock,
    pub dir: PathBuf,
    signing_pkcs8: Vec<u8>,
    _temp: Arc<tempfile::TempDir>,
}

/// A request for the first page of an inbox.
pub const fn first_inbox_page() -> InboxQuery {
    InboxQuery {
        mine: false,
        size: INBOX_PAGE_MAX,
        after: None,
    }
}

pub const START: Timestamp = Timestamp::from_secs(1_800_000_000);

pub fn settings() -> BrokerSettings {
    BrokerSettings {
        realm: Realm::parse("test").expect("realm"),
        issuer: URL.to_owned(),
        external_url: URL.to_owned(),
        console_url: CONSOLE.to_owned(),
        evidence_audience: URL.to_owned(),
        ttl_cap: 900,
        task_cap: 86_400,
        max_evidence_age: 300,
        expose_auth_errors: true,
        rate_limits: RateLimitConfig::default(),
    }
}

impl TestBroker {
    pub async fn start() -> Self {
        Self::start_with(TestEnvironment::new(), FaultInjection::default()).await
    }

    pub async fn start_with(env: TestEnvironment, faults: FaultInjection) -> Self {
        Self::start_as(settings(), env, faults).await
    }

    pub async fn start_at(rates: RateLimitConfig) -> Self {
        let settings = BrokerSettings {
            rate_limits: rates,
            ..settings()
        };
        Self::start_as(settings, TestEnvironment::new(), FaultInjection::default()).await
    }

    async fn start_as(
        settings: BrokerSettings,
        env: TestEnvironment,
        faults: FaultInjection,
    ) -> Self {
        let temp = tempfile::tempdir().expect("dir");
        let (clock, manual_clock) = Clock::manual(START);
        let signing_pkcs8 = SigningKey::generate().expect("key").1.to_vec();
        let env = Arc::new(env);
        let dir = temp.path().join("data");
        let broker = open_as(settings, &env, &dir, &clock, &signing_pkcs8, faults)
            .await
            .expect("starts");
        Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp: Arc::new(temp),
        }
    }

    /// Drops the broker and opens its directory again, like a restart.
    pub async fn restart(self, faults: FaultInjection) -> Self {
        let Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        } = self;
        drop(broker);
        let broker = open(&env, &dir, &clock, &signing_pkcs8, faults)
            .await
            .expect("restarts");
        Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        }
    }

    /// The same with other trust domains and another clock.
    pub async fn restart_with(
        self,
        trust: Vec<(TrustDomain, String)>,
        clock: Clock,
    ) -> Result<Self, BrokerOpenError> {
        let Self {
            env,
            broker,
            manual_clock,
            dir,
            signing_pkcs8,
            _temp,
            ..
        } = self;
        drop(broker);
        let broker = start(
            settings(),
            &env,
            trust,
            &dir,
            &clock,
            &signing_pkcs8,
            FaultInjection::default(),
        )
        .await?;
        Ok(Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        })
    }

    /// Opens a copy of the directory with its WAL cut to `wal_len` bytes: what a crash may leave.
    pub async fn crash(self, wal_len: u64, faults: FaultInjection) -> Self {
        let Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        } = self;
        let copy = dir.with_file_name(format!(
            "crash-{}",
            START.since(clock.now()).unsigned_abs() ^ rand_u64()
        ));
        std::fs::create_dir_all(&copy).expect("dir");
        std::fs::copy(dir.join("journal.db"), copy.join("journal.db")).expect("copy");
        let wal = std::fs::read(dir.join("journal.db-wal")).expect("wal");
        let keep = usize::try_from(wal_len).expect("small").min(wal.len());
        std::fs::write(copy.join("journal.db-wal"), &wal[..keep]).expect("wal");
        drop(broker);
        let broker = open(&env, &copy, &clock, &signing_pkcs8, faults)
            .await
            .expect("restarts after a crash");
        Self {
            env,
            broker,
            manual_clock,
            clock,
            dir: copy,
            signing_pkcs8,
            _temp,
        }
    }

    pub fn wal_len(&self) -> u64 {
        std::fs::metadata(self.dir.join("journal.db-wal")).map_or(0, |m| m.len())
    }

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
        let evh = evidence.as_ref().map(dipylon::verify::evidence_hash);
        let call = self.call(
            "dipylon.v1.TaskService/RequestToken",
            &agent.key,
            Some(action.digest()),
            evh,
        );
        let ask = RequestTokenInput {
            task,
            action: action.clone(),
            ttl,
            reason: Some(UntrustedText::parse("reason", "phish confirmed").expect("prose")),
            idempotency_key: IdempotencyKey::parse(idempotency_key).expect("id"),
            wait_ms: 0,
            evidence,
        };
        let reply = self.broker.request_token(&call, ask).await;
        if let Ok(TokenReply::Token(given)) = &reply {
            let audience = action.audience.as_str();
            let claims = jwt_crosscheck::decodes(&given.token, &self.broker.jwks(), URL, audience)
                .expect("decodes with another library");
            assert_eq!(claims["jti"], given.issued.jti.to_string());
            jwt_crosscheck::decodes(&given.token, &self.broker.jwks(), URL, "https://other")
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

    pub async fn vote(
        &self,
        name: &str,
        id: AccessRequestId,
        profile: &str,
        verdict: Verdict,
    ) -> Result<AccessView, Refusal> {
        let begun = self.begin_vote(name, id, profile, verdict).await?;
        self.cast_vote(name, id, &begun.statement).await
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

    pub fn introspect(&self, validator: &str, token: &Secret) -> bool {
        let call = self.person_call("dipylon.v1.TokenService/Introspect", validator);
        self.broker
            .introspect(&call, token)
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
        let call = self.person_call("dipylon.v1.GovernanceService/ApplyPolicyBundle", "olga");
        let operator = self.broker.authenticate_person(&call)?;
        self.broker
            .apply_policy_bundle(&call, operator, files)
            .await
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

async fn open(
    env: &TestEnvironment,
    dir: &Path,
    clock: &Clock,
    key: &[u8],
    faults: FaultInjection,
) -> Result<Arc<Broker>, BrokerOpenError> {
    open_as(settings(), env, dir, clock, key, faults).await
}

pub async fn open_as(
    settings: BrokerSettings,
    env: &TestEnvironment,
    dir: &Path,
    clock: &Clock,
    key: &[u8],
    faults: FaultInjection,
) -> Result<Arc<Broker>, BrokerOpenError> {
    let trust = vec![(
        TrustDomain::parse(DOMAIN).expect("domain"),
        env.trust_bundle(),
    )];
    start(settings, env, trust, dir, clock, key, faults).await
}

async fn start(
    settings: BrokerSettings,
    env: &TestEnvironment,
    trust: Vec<(TrustDomain, String)>,
    dir: &Path,
    clock: &Clock,
    key: &[u8],
    faults: FaultInjection,
) -> Result<Arc<Broker>, BrokerOpenError> {
    let mut tries = 0;
    loop {
        let options = BrokerOptions {
            settings: settings.clone(),
            data_dir: dir.to_owned(),
            key: SigningKey::from_pkcs8(key).expect("key"),
            trust: trust.clone(),
            seed: Some(BundleFiles::new(env.policy.clone()).expect("files")),
            clock: clock.clone(),
            faults: faults.clone(),
        };
        match Broker::open(options).await {
            // The previous broker's writer may still hold the lock.
            Err(BrokerOpenError::Open(dipylon::journal::OpenError::Locked(_))) if tries < 200 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => return other,
        }
    }
}

pub fn rand_u64() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

#[derive(Clone)]
pub struct TestAgent {
    pub spiffe_id: String,
    pub key: Arc<SigningKey>,
}

pub fn action(
    name: &str,
    kind: &str,
    id: &str,
    audience: &str,
    parameters: &[(&str, Param)],
) -> Action {
    Action::new(
        ActionName::parse(name).expect("action"),
        Audience::parse(audience).expect("audience"),
        Target::parse(kind, id).expect("target"),
        parameters
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect(),
    )
    .expect("action")
}

pub fn read_case() -> Action {
    action("case.read", "Case", "INC-8841", CASES, &[])
}

pub fn disable(account: &str) -> Action {
    action(
        "account.disable",
        "Account",
        account,
        IDP,
        &[("end_sessions", Param::Bool(true))],
    )
}

pub trait ExpectReply {
    fn token(self) -> IssuedReply;
    fn pending(self) -> PendingReply;
    fn denied(self) -> DeniedReply;
}

impl ExpectReply for Result<TokenReply, Refusal> {
    fn token(self) -> IssuedReply {
        match self {
            Ok(TokenReply::Token(given)) => *given,
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
}

pub fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Reason {
    result.expect_err("refused").reason
}
