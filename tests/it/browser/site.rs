//! A broker with its console at `http://localhost:PORT` (a passkey's RP ID is a host name, not an address).
//! Its clock follows the machine's, and can be advanced.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dipylon::broker::{Broker, BrokerSettings, CallContext, VoteInput, VoteProof};
use dipylon::journal::FaultInjection;
use dipylon::rate_limit::ConcurrencyPermit;
use dipylon::serve::{self, authorization};
use dipylon_sdk::client::{
    AgentClient, Endpoint, Identity, OpenTaskRequest, TaskHandle, TokenOutcome, TokenRequest,
};
use dipylon_sdk::clock::{Clock, ManualClock};
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;
use dipylon_sdk::validator::{Validator, ValidatorConfig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::driver::{Browser, Viewport};
use crate::support::passkey_votes::{CONFIRM, ENROL, RP_ID, confirm_passkeys};
use crate::support::served_broker::token_request;
use crate::support::software_authenticator::SoftwareAuthenticator;
use crate::support::{DOMAIN, TestEnvironment, open_as, origin, rand_u64, settings};

/// Interval at which the manual clock follows the machine's.
const TICK: Duration = Duration::from_millis(10);

pub struct ConsoleServer {
    pub env: Arc<TestEnvironment>,
    pub broker: Arc<Broker>,
    /// The console's origin.
    pub console: String,
    pub dir: PathBuf,
    clock: Clock,
    manual_clock: ManualClock,
    wire: String,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
    ticking: JoinHandle<()>,
    _temp: tempfile::TempDir,
}

impl ConsoleServer {
    pub async fn start() -> Self {
        Self::with_policy(TestEnvironment::new(), Clock::system().now()).await
    }

    /// With another policy bundle and another day.
    pub async fn with_policy(env: TestEnvironment, today: Timestamp) -> Self {
        let temp = tempfile::tempdir().expect("dir");
        let dir = temp.path().join("data");
        let env = Arc::new(env);
        let listener = serve::listen("127.0.0.1:0".parse().expect("address"))
            .await
            .expect("listens");
        let address = listener.local_addr().expect("address");
        let wire = format!("http://{address}");
        let console = format!("http://localhost:{}", address.port());
        let settings = BrokerSettings {
            external_url: origin(&wire),
            issuer: wire.clone(),
            evidence_audience: wire.clone(),
            console_url: origin(&console),
            ..settings()
        };
        let (clock, manual_clock) = Clock::manual(today);
        let key = SigningKey::generate().expect("key").1;
        let broker = open_as(
            settings,
            &env,
            &dir,
            &clock,
            &key,
            FaultInjection::default(),
        )
        .await
        .expect("starts");
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve::serve(broker.clone(), listener, async move {
            let _stopped = stopped.await;
        });
        let server = tokio::spawn(async move { serving.await.expect("serves") });
        let ticking = tokio::spawn(tick(manual_clock.clone()));
        Self {
            env,
            broker,
            console,
            dir,
            clock,
            manual_clock,
            wire,
            stop: Some(stop),
            server: Some(server),
            ticking,
            _temp: temp,
        }
    }

    /// Advances the clock.
    pub fn advance_clock(&self, seconds: u32) {
        self.manual_clock.advance_millis(seconds * 1_000);
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Stops the broker and checks its journal against every invariant.
    pub async fn close(mut self) {
        drop(self.stop.take());
        let server = self.server.take().expect("serving");
        server.await.expect("stopped");
        crate::support::invariants::check(&self.dir);
    }

    // ------------------------------------------------------------------ agents and resource servers

    pub async fn task(&self, agent: &str) -> TaskHandle {
        self.task_for(agent, "contain INC-8841").await
    }

    pub async fn task_for(&self, agent: &str, purpose: &str) -> TaskHandle {
        let id = format!("spiffe://{DOMAIN}/agent/{agent}");
        let evidence = self.env.fresh_evidence(&self.wire, &id, &self.clock);
        let agent = AgentClient::new(self.endpoint(), evidence, None);
        let order = OpenTaskRequest {
            purpose: purpose.into(),
            max_duration_s: 3_600,
            idempotency_key: None,
            heartbeat_s: None,
        };
        agent.open_task(&order).await.expect("opens")
    }

    fn endpoint(&self) -> Endpoint {
        let endpoint = Endpoint::connect(&self.wire).expect("endpoint");
        endpoint.with_clock(self.clock.clone())
    }

    /// Requests a token that needs approval.
    pub async fn request_approval(
        &self,
        task: &TaskHandle,
        action: Action,
        idempotency_key: &str,
    ) -> AccessRequestId {
        self.pending_request(task, &token_request(action, idempotency_key))
            .await
    }

    pub async fn pending_request(
        &self,
        task: &TaskHandle,
        order: &TokenRequest,
    ) -> AccessRequestId {
        match task.request_token(order).await {
            Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
            other => panic!("not pending: {other:?}"),
        }
    }

    pub async fn validator(&self, name: &str, audience: &str) -> Validator {
        let audience = Audience::parse(audience).expect("audience");
        let identity = Identity::Key(Arc::new(self.env.key_of(name)));
        let config = ValidatorConfig {
            clock: self.clock.clone(),
            ..ValidatorConfig::new(&self.wire, &self.wire, audience, identity)
        };
        Validator::connect(config).await.expect("connects")
    }

    // ------------------------------------------------------------------ people

    /// A call signed by a key of people.toml.
    pub fn call(&self, method: &str, name: &str) -> CallContext {
        let policy = authorization::method_policy(method).expect("a method with a row");
        let claims = dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{}/{method}", self.wire),
            iat: self.now(),
            jti: &format!("{:016x}", rand_u64()),
            nonce: Some(&self.broker.nonce()),
            ath: None,
            action_digest: None,
            evidence_hash: None,
        };
        CallContext {
            method: policy.name,
            allowed_roles: policy.allowed_roles,
            proof: Some(dpop::create(&self.env.keys[name], &claims).expect("proof")),
            bearer: None,
            session: None,
            permit: ConcurrencyPermit::unlimited(policy.rate_class),
        }
    }

    /// Enrols a passkey without a browser, with which [`ConsoleServer::vote`] votes from then on.
    pub async fn enrol_without_browser(&self, name: &str) {
        let call = self.call("dipylon.v1.ApprovalService/InviteApprover", "olga");
        let person = PersonId::parse(name).expect("person");
        let invited = self.broker.invite_approver(&call, person).await;
        let code = invited.expect("invites").code;
        let begun = self.broker.begin_enrolment(ENROL, &code).expect("begins");
        let (passkey, made) =
            SoftwareAuthenticator::create(RP_ID, &self.console, &begun.challenge, &begun.user);
        let done = self.broker.finish_enrolment(ENROL, &code, &made, "Phone");
        done.await.expect("enrols");
        self.env.keep_passkey(name, passkey);
        self.confirm(name).await;
    }

    /// A vote signed by the passkey that [`ConsoleServer::enrol_without_browser`] enrolled, or else by a key of people.toml.
    pub async fn vote(&self, name: &str, id: AccessRequestId, profile: &str, verdict: Verdict) {
        let ask = VoteInput {
            profile: ProfileName::parse(profile).expect("profile"),
            verdict,
            narrowing: Narrowing::default(),
            comment: None,
            policy: None,
            facts: None,
        };
        let call = self.call("dipylon.v1.ApprovalService/BeginVote", name);
        let begun = self
            .broker
            .begin_vote(&call, id, ask)
            .await
            .expect("begins");
        let challenge = begun.challenge.as_bytes();
        let proof = match self.env.passkey_among(name, &begun.credentials) {
            Some(passkey) => VoteProof::Passkey(passkey.get(challenge, &self.console)),
            None => {
                let signature = self.env.keys[name].sign(challenge).expect("signed");
                VoteProof::Signature(signature.to_vec())
            }
        };
        let call = self.call("dipylon.v1.ApprovalService/CastVote", name);
        let cast = self.broker.cast_vote(&call, id, &begun.statement, proof);
        cast.await.expect("counts");
    }

    /// The URL of an invitation.
    pub async fn invite(&self, person: &str) -> String {
        let call = self.call("dipylon.v1.ApprovalService/InviteApprover", "olga");
        let person = PersonId::parse(person).expect("person");
        let invited = self.broker.invite_approver(&call, person).await;
        invited.expect("invites").url.expose_secret().to_owned()
    }

    /// The number of a person's passkeys.
    pub fn passkeys(&self, person: &str) -> usize {
        let call = self.call("dipylon.v1.ApprovalService/ListApprovers", "olga");
        let all = self.broker.list_approvers(&call).expect("lists");
        let found = all.iter().find(|approver| approver.id.as_str() == person);
        found.expect("registered").passkeys.len()
    }

    /// The status of an access request.
    pub fn status(&self, id: AccessRequestId) -> &'static str {
        let call = self.call("dipylon.v1.ApprovalService/GetCard", "maria");
        let card = self.broker.card(&call, &id).expect("a card");
        card.status.as_str()
    }

    /// Enrols a passkey in a browser through an invitation.
    pub async fn enrol(&self, browser: &Browser, person: &str) {
        enrol_by_invitation(browser, &self.invite(person).await, "desk key").await;
        browser.seen("#enrolled").await;
        self.confirm(person).await;
    }

    /// Has a person's passkeys confirmed by another person.
    async fn confirm(&self, person: &str) {
        confirm_passkeys(&self.broker, person, |by| {
            let known = self.env.keys.contains_key(by);
            known.then(|| self.call(CONFIRM, by))
        })
        .await;
    }

    pub async fn sign_in(&self, browser: &Browser) {
        self.open(browser, "/console/sign-in").await;
        browser.seen("#sign-in").await.click().await;
        browser.wait("#inbox").await;
    }

    /// A browser in which a person is enrolled and signed in.
    pub async fn signed_in_browser(&self, person: &str) -> Browser {
        let browser = Browser::open(Viewport::DESK).await;
        self.enrol_and_sign_in(&browser, person).await;
        browser
    }

    pub async fn enrol_and_sign_in(&self, browser: &Browser, person: &str) {
        self.enrol(browser, person).await;
        self.sign_in(browser).await;
    }

    pub async fn open(&self, browser: &Browser, path: &str) {
        browser.navigate(&format!("{}{path}", self.console)).await;
    }

    pub async fn open_card(&self, browser: &Browser, id: AccessRequestId) {
        self.open(browser, &card_of(id)).await;
        browser.wait("#card").await;
    }
}

/// Opens an invitation and creates a passkey with this label; the caller checks the outcome. Returns the code.
pub async fn enrol_by_invitation(browser: &Browser, invitation: &str, label: &str) -> String {
    browser.navigate(invitation).await;
    let code = browser
        .wait_for_script("document.querySelector('#code').value")
        .await;
    browser.wait("#label").await.type_in(label).await;
    browser.seen("#enrol").await.click().await;
    code.as_str().expect("text").to_owned()
}

pub fn card_of(id: AccessRequestId) -> String {
    format!("/console/requests/{id}")
}

impl Drop for ConsoleServer {
    fn drop(&mut self) {
        self.ticking.abort();
    }
}

async fn tick(manual_clock: ManualClock) {
    let machine = Clock::system();
    let mut applied = machine.uptime();
    loop {
        tokio::time::sleep(TICK).await;
        let passed = machine.uptime().saturating_sub(applied);
        let passed_ms = u32::try_from(passed.as_millis()).expect("a short while");
        manual_clock.advance_millis(passed_ms);
        applied += Duration::from_millis(passed_ms.into());
    }
}
