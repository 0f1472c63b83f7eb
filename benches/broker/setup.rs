//! Benchmark setup: a broker on real sockets, its clients, and their evidence and proofs, made before timing starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dipylon::broker::{Broker, CallContext, RequestTokenInput};
use dipylon::rate_limit::{ConcurrencyPermit, RATE_MAX, RateLimitConfig};
use dipylon::serve::authorization;
use dipylon::verify::evidence_hash;
use dipylon_sdk::client::{AgentClient, OpenTaskRequest};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::{convert, v1};
use tokio::runtime::{Builder, Runtime};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::support::served_broker::ServedBroker;
use crate::support::{TestEnvironment, read_case};

/// The broker and the load generator run on separate thread pools, so that their processor time can be told apart.
pub struct BenchSetup {
    pub load: Runtime,
    pub broker: Runtime,
    pub served: ServedBroker,
    pub clients: Vec<Channel>,
}

/// An open task and its key.
pub struct TaskHolder {
    pub task: TaskId,
    pub key: Arc<SigningKey>,
}

/// Connections shared by all callers.
const CONNECTIONS: usize = 4;

const OPEN_TASK: &str = "dipylon.v1.TaskService/OpenTask";
pub const REQUEST_TOKEN: &str = "dipylon.v1.TaskService/RequestToken";
pub const INTROSPECT: &str = "dipylon.v1.TokenService/Introspect";

impl BenchSetup {
    pub fn start() -> Self {
        Self::start_in(TestEnvironment::new())
    }

    pub fn start_in(env: TestEnvironment) -> Self {
        let runtime = |name: &str| {
            Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name(name)
                .enable_all()
                .build()
                .expect("runtime")
        };
        let (broker, load) = (runtime("broker"), runtime("load"));
        let served = broker.block_on(ServedBroker::start_as(env, unbounded()));
        let clients = load.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..CONNECTIONS {
                let endpoint = Channel::from_shared(served.url.clone()).expect("url");
                clients.push(
                    endpoint
                        .tcp_nodelay(true)
                        .connect()
                        .await
                        .expect("connects"),
                );
            }
            clients
        });
        Self {
            load,
            broker,
            served,
            clients,
        }
    }

    pub fn broker(&self) -> Arc<Broker> {
        self.served.broker.clone()
    }

    /// Opens tasks of an agent, each with its own key.
    pub fn tasks(&self, agent: &str, count: usize) -> Vec<TaskHolder> {
        self.load.block_on(async {
            let mut holders = Vec::new();
            for n in 0..count {
                let key = Arc::new(SigningKey::generate().expect("key").0);
                let opener = AgentClient::new(
                    self.served.endpoint(),
                    self.served.evidence(agent),
                    Some(key.clone()),
                );
                let order = OpenTaskRequest {
                    purpose: "contain INC-8841".into(),
                    max_duration_s: 3_600,
                    idempotency_key: Some(format!("open-{n}-{}", unique_number())),
                    heartbeat_s: None,
                };
                let task = opener.open_task(&order).await.expect("opens").id();
                holders.push(TaskHolder { task, key });
            }
            holders
        })
    }

    /// Token requests spread over the tasks, each with its proof.
    pub fn token_requests(
        &self,
        holders: &[TaskHolder],
        count: usize,
    ) -> Vec<(RequestTokenInput, Secret)> {
        self.token_requests_for(&read_case(), holders, count)
    }

    /// The same for any action.
    pub fn token_requests_for(
        &self,
        action: &Action,
        holders: &[TaskHolder],
        count: usize,
    ) -> Vec<(RequestTokenInput, Secret)> {
        let nonce = self.served.broker.nonce();
        let adg = Some(action.digest());
        let ask = |holder: &TaskHolder| {
            let ask = RequestTokenInput {
                task: holder.task,
                action: action.clone(),
                ttl: 900,
                reason: Some(UntrustedText::parse("reason", "phish confirmed").expect("prose")),
                idempotency_key: IdempotencyKey::parse(&format!("r-{}", unique_number()))
                    .expect("id"),
                wait_ms: 0,
                evidence: None,
                executor: None,
                recommendation: None,
            };
            (ask, self.proof(REQUEST_TOKEN, &holder.key, adg, &nonce))
        };
        holders.iter().cycle().take(count).map(ask).collect()
    }

    /// Requests of an agent to open tasks, each with its key and proof.
    pub fn open_task_requests(
        &self,
        agent: &str,
        count: usize,
    ) -> Vec<(Arc<SigningKey>, tonic::Request<v1::OpenTaskRequest>)> {
        let evidence = self.served.evidence(agent);
        let svid = self.load.block_on(evidence.fetch()).expect("evidence");
        let evidence = Evidence::JwtSvid(svid);
        let (hash, nonce) = (evidence_hash(&evidence), self.served.broker.nonce());
        let ask = |_| {
            let key = Arc::new(SigningKey::generate().expect("key").0);
            let message = v1::OpenTaskRequest {
                evidence: Some(convert::evidence_to_wire(&evidence)),
                purpose: "contain INC-8841".to_owned(),
                max_duration: Some(convert::seconds_to_wire(3_600)),
                idempotency_key: format!("open-{}", unique_number()),
                heartbeat: None,
            };
            let proof = self.proof_with_evidence(OPEN_TASK, &key, None, Some(hash), &nonce);
            (key, wire(message, &proof))
        };
        (0..count).map(ask).collect()
    }

    /// A proof for a method of the broker.
    pub fn proof(
        &self,
        method: &str,
        key: &SigningKey,
        adg: Option<Digest>,
        nonce: &str,
    ) -> Secret {
        self.proof_with_evidence(method, key, adg, None, nonce)
    }

    fn proof_with_evidence(
        &self,
        method: &str,
        key: &SigningKey,
        adg: Option<Digest>,
        evidence_hash: Option<Digest>,
        nonce: &str,
    ) -> Secret {
        let claims = dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{}/{method}", self.served.url),
            iat: Clock::system().now(),
            jti: &format!("proof-{:016x}", unique_number()),
            nonce: Some(nonce),
            ath: None,
            action_digest: adg,
            evidence_hash,
        };
        dpop::create(key, &claims).expect("proof")
    }
}

/// The call as the gRPC layer hands it to the broker.
pub fn call_context(method: &str, proof: Secret) -> CallContext {
    let policy = authorization::method_policy(method).expect("a method with a row");
    CallContext {
        method: policy.name,
        allowed_roles: policy.allowed_roles,
        proof: Some(proof),
        bearer: None,
        session: None,
        permit: ConcurrencyPermit::unlimited(policy.rate_class),
    }
}

/// The call as a gRPC client sends it.
pub fn wire<T>(message: T, proof: &Secret) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let mut proof: MetadataValue<_> = proof.expose_secret().parse().expect("ascii");
    // As the client library does: kept out of HPACK's tables.
    proof.set_sensitive(true);
    request.metadata_mut().insert("dpop", proof);
    request
}

pub fn wire_token_request(ask: &RequestTokenInput) -> v1::RequestTokenRequest {
    v1::RequestTokenRequest {
        task_id: ask.task.to_string(),
        action: Some(convert::action_to_wire(&ask.action)),
        ttl: Some(convert::seconds_to_wire(ask.ttl)),
        reason: ask
            .reason
            .as_ref()
            .map(|r| r.as_str().to_owned())
            .unwrap_or_default(),
        idempotency_key: ask.idempotency_key.to_string(),
        wait: None,
        evidence: None,
        executor: String::new(),
        recommendation: String::new(),
    }
}

/// Agents `a-0`, `a-1` and so on that read cases and request to disable the accounts `u-0`, `u-1` and so on, half of the
/// agents of each of two owners, and approval limits that the benchmarks never reach.
pub fn environment(agents: usize, accounts: usize) -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace("wait = \"15m\"", "wait = \"1h\"").replace(
        "asks_per_minute = 100000",
        "asks_per_minute = 100000\npending_per_agent = 10000\npending_per_owner = 100000",
    );
    let file = env.policy.get_mut("agents.toml").expect("agents");
    for n in 0..agents {
        let owner = ["dana", "maria"][n % 2];
        file.push_str(&format!(
            "\n[[agent]]\nid = \"a-{n}\"\nspiffe_id = \"spiffe://soc.example/agent/a-{n}\"\nowner = \"{owner}\"\nenvironment = \"prod\"\n\
             model = \"m\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\nactions = [\"case.read\", \"account.disable\"]\n"
        ));
    }
    let entities = env.policy.get_mut("entities.json").expect("entities");
    let accounts: String = (0..accounts)
        .map(|n| format!(
            ", {{ \"uid\": {{ \"type\": \"Account\", \"id\": \"u-{n}\" }}, \"parents\": [], \"attrs\": {{ \"name\": \"U {n}\", \
             \"environment\": {{ \"type\": \"Environment\", \"id\": \"prod\" }}, \"protected\": false }} }}"
        ))
        .collect();
    let end = entities.rfind(']').expect("a list");
    entities.insert_str(end, &accounts);
    env
}

/// A number unique in this process.
pub fn unique_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Rate limits that are never reached: the benchmark measures work, not refusals.
fn unbounded() -> RateLimitConfig {
    let most = std::num::NonZeroU32::new(RATE_MAX).expect("a number");
    RateLimitConfig {
        source_per_second: most,
        source_reserved_per_second: most,
        caller_per_second: most,
        caller_reserved_per_second: most,
        ..RateLimitConfig::default()
    }
}
