//! A broker served on a loopback socket, with the system clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dipylon::broker::{Broker, BrokerSettings};
use dipylon::journal::FaultInjection;
use dipylon::rate_limit::RateLimitConfig;
use dipylon::serve;
use dipylon_sdk::client::{
    AgentClient, ApproverClient, Endpoint, EvidenceSource, Identity, OpenTaskRequest,
    OperatorClient, TaskHandle, TokenRequest,
};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use dipylon_sdk::validator::{Validator, ValidatorConfig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{DOMAIN, TestEnvironment, open_as, origin, settings};

pub struct ServedBroker {
    pub env: Arc<TestEnvironment>,
    pub broker: Arc<Broker>,
    pub url: String,
    pub dir: PathBuf,
    key: Vec<u8>,
    clock: Clock,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
    _temp: Arc<tempfile::TempDir>,
}

impl ServedBroker {
    pub async fn start() -> Self {
        Self::start_at(RateLimitConfig::default()).await
    }

    pub async fn start_at(rates: RateLimitConfig) -> Self {
        Self::start_as(TestEnvironment::new(), rates).await
    }

    pub async fn start_in(env: TestEnvironment) -> Self {
        Self::start_as(env, RateLimitConfig::default()).await
    }

    /// With another policy bundle.
    pub async fn start_with_policy(change: impl FnOnce(&mut BTreeMap<String, String>)) -> Self {
        let mut env = TestEnvironment::new();
        change(&mut env.policy);
        Self::start_in(env).await
    }

    pub async fn start_as(env: TestEnvironment, rates: RateLimitConfig) -> Self {
        Self::start_with_clock(env, rates, Clock::system()).await
    }

    /// With a clock of its own.
    pub async fn start_with_clock(
        env: TestEnvironment,
        rates: RateLimitConfig,
        clock: Clock,
    ) -> Self {
        let temp = Arc::new(tempfile::tempdir().expect("dir"));
        let key = SigningKey::generate().expect("key").1.to_vec();
        let dir = temp.path().join("data");
        Self::listen(
            Arc::new(env),
            dir,
            key,
            "127.0.0.1:0".to_owned(),
            rates,
            clock,
            temp,
        )
        .await
    }

    async fn listen(
        env: Arc<TestEnvironment>,
        dir: PathBuf,
        key: Vec<u8>,
        address: String,
        rates: RateLimitConfig,
        clock: Clock,
        temp: Arc<tempfile::TempDir>,
    ) -> Self {
        let listener = serve::listen(address.parse().expect("address"))
            .await
            .expect("listens");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let settings = BrokerSettings {
            external_url: origin(&url),
            console_url: origin(&url.replace("127.0.0.1", "localhost")),
            issuer: url.clone(),
            evidence_audience: url.clone(),
            rate_limits: rates,
            ..settings()
        };
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
        Self {
            env,
            broker,
            url,
            dir,
            key,
            clock,
            stop: Some(stop),
            server: Some(server),
            _temp: temp,
        }
    }

    /// Stops the broker and starts another on the same directory and address.
    pub async fn restart(self) -> Self {
        self.restart_after(async |_, _| ()).await
    }

    /// The same with something that is done to the directory in between.
    pub async fn restart_after(mut self, between: impl AsyncFnOnce(&Path, &Clock)) -> Self {
        drop(self.stop.take());
        self.server.take().expect("serving").await.expect("stopped");
        let address = self.url.trim_start_matches("http://").to_owned();
        let Self {
            env,
            dir,
            key,
            clock,
            _temp,
            broker,
            ..
        } = self;
        let rates = broker.settings().rate_limits;
        drop(broker);
        between(&dir, &clock).await;
        Self::listen(env, dir, key, address, rates, clock, _temp).await
    }

    /// The key that signs its tokens.
    pub fn signing_key(&self) -> SigningKey {
        SigningKey::from_pkcs8(&self.key).expect("key")
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::connect(&self.url).expect("endpoint")
    }

    pub fn evidence(&self, agent: &str) -> EvidenceSource {
        let id = format!("spiffe://{DOMAIN}/agent/{agent}");
        self.env.fresh_evidence(&self.url, &id, &self.clock)
    }

    pub async fn task(&self, agent: &str) -> TaskHandle {
        self.task_for(agent, "contain INC-8841").await
    }

    /// A task, and a second handle to it: what one learns of its end, the other does not know.
    pub async fn task_with_second_handle(&self, agent: &str) -> (TaskHandle, TaskHandle) {
        let key = Arc::new(SigningKey::generate().expect("key").0);
        let evidence = self.evidence(agent);
        let client = AgentClient::new(self.endpoint(), evidence.clone(), Some(key.clone()));
        let order = OpenTaskRequest {
            purpose: "contain INC-8841".into(),
            max_duration_s: 600,
            idempotency_key: None,
            heartbeat_s: None,
        };
        let task = client.open_task(&order).await.expect("opens");
        let second = TaskHandle::attach(self.endpoint(), evidence, task.id(), key);
        (task, second)
    }

    pub async fn task_for(&self, agent: &str, purpose: &str) -> TaskHandle {
        let agent = AgentClient::new(self.endpoint(), self.evidence(agent), None);
        let order = OpenTaskRequest {
            purpose: purpose.into(),
            max_duration_s: 600,
            idempotency_key: None,
            heartbeat_s: None,
        };
        agent.open_task(&order).await.expect("opens")
    }

    pub fn approver(&self, name: &str) -> ApproverClient {
        ApproverClient::new(self.endpoint(), Arc::new(self.env.key_of(name)))
    }

    pub fn operator(&self, name: &str) -> OperatorClient {
        OperatorClient::new(self.endpoint(), Arc::new(self.env.key_of(name)))
    }

    pub async fn validator(&self, name: &str, audience: &str) -> Validator {
        let audience = Audience::parse(audience).expect("audience");
        let identity = Identity::Key(Arc::new(self.env.key_of(name)));
        Validator::connect(ValidatorConfig::new(
            &self.url, &self.url, audience, identity,
        ))
        .await
        .expect("connects")
    }
}

pub fn token_request(action: Action, idempotency_key: &str) -> TokenRequest {
    TokenRequest {
        action,
        ttl_s: 300,
        reason: "phish confirmed".into(),
        idempotency_key: Some(idempotency_key.into()),
        wait_s: 0,
        executor: None,
        recommendation: None,
    }
}
