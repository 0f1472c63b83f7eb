//! A broker behind its real doors, its callers, and what they show, made before anything is timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dipylon::broker::{Broker, CallContext, TokenAsk};
use dipylon::client::{AgentClient, OpenTaskRequest};
use dipylon::clock::Clock;
use dipylon::jose::{SigningKey, dpop};
use dipylon::model::*;
use dipylon::proto::{convert, v1};
use dipylon::rate_limit::{ConcurrencyPermit, RATE_MAX, Rates};
use dipylon::serve::guard;
use tokio::runtime::{Builder, Runtime};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::harness::{World, read_case};
use crate::served::Served;

/// The broker's threads and those of its callers are apart, so that each one's processor time can be told.
pub struct Stage {
    pub load: Runtime,
    pub broker: Runtime,
    pub served: Served,
    pub clients: Vec<Channel>,
}

/// Who holds the key of an open task.
pub struct Holder {
    pub task: TaskId,
    pub key: Arc<SigningKey>,
}

/// Connections that many callers share.
const CONNECTIONS: usize = 4;

pub const REQUEST_TOKEN: &str = "dipylon.v1.TaskService/RequestToken";
pub const INTROSPECT: &str = "dipylon.v1.TokenService/Introspect";

impl Stage {
    pub fn start() -> Self {
        Self::start_in(World::new())
    }

    pub fn start_in(world: World) -> Self {
        let runtime = |name: &str| {
            Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name(name)
                .enable_all()
                .build()
                .expect("runtime")
        };
        let (broker, load) = (runtime("broker"), runtime("load"));
        let served = broker.block_on(Served::start_as(world, unbounded()));
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

    /// Open tasks of an agent, each with a key of its own.
    pub fn tasks(&self, agent: &str, count: usize) -> Vec<Holder> {
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
                    idempotency_key: Some(format!("open-{n}-{}", fresh())),
                    heartbeat_s: None,
                };
                let task = opener.open_task(&order).await.expect("opens").id();
                holders.push(Holder { task, key });
            }
            holders
        })
    }

    /// Calls for tokens, spread over the tasks, each with its proof.
    pub fn asks(&self, holders: &[Holder], count: usize) -> Vec<(TokenAsk, Secret)> {
        let (action, nonce) = (read_case(), self.served.broker.nonce());
        let adg = Some(action.digest());
        let ask = |holder: &Holder| {
            let ask = TokenAsk {
                task: holder.task,
                action: action.clone(),
                ttl: 900,
                reason: Some(Prose::parse("reason", "phish confirmed").expect("prose")),
                request_id: RequestId::parse(&format!("r-{}", fresh())).expect("id"),
                wait_ms: 0,
                evidence: None,
            };
            (ask, self.proof(REQUEST_TOKEN, &holder.key, adg, &nonce))
        };
        holders.iter().cycle().take(count).map(ask).collect()
    }

    /// A proof for a method of the broker.
    pub fn proof(
        &self,
        method: &str,
        key: &SigningKey,
        adg: Option<Digest>,
        nonce: &str,
    ) -> Secret {
        let claims = dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{}/{method}", self.served.url),
            iat: Clock::system().now(),
            jti: &format!("proof-{:016x}", fresh()),
            nonce: Some(nonce),
            ath: None,
            action_digest: adg,
            evidence_hash: None,
        };
        dpop::create(key, &claims).expect("proof")
    }
}

/// The call as the doors hand it to the broker.
pub fn presented(method: &str, proof: Secret) -> CallContext {
    let (method, allowed_roles) = guard::row(method).expect("a method with a row");
    CallContext {
        method,
        allowed_roles,
        proof: Some(proof),
        bearer: None,
        session: None,
        permit: ConcurrencyPermit::unlimited(guard::class(method)),
    }
}

/// The call as it goes to the doors.
pub fn wire<T>(message: T, proof: &Secret) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let mut proof: MetadataValue<_> = proof.expose_secret().parse().expect("ascii");
    // As the client library does: it stays out of the compression tables.
    proof.set_sensitive(true);
    request.metadata_mut().insert("dpop", proof);
    request
}

pub fn wire_ask(ask: &TokenAsk) -> v1::RequestTokenRequest {
    v1::RequestTokenRequest {
        task_id: ask.task.to_string(),
        action: Some(convert::action_to_wire(&ask.action)),
        ttl: Some(convert::seconds_to_wire(ask.ttl)),
        reason: ask
            .reason
            .as_ref()
            .map(|r| r.as_str().to_owned())
            .unwrap_or_default(),
        request_id: ask.request_id.to_string(),
        wait: None,
        evidence: None,
    }
}

/// A number that no call of this process had before.
pub fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Rates that nothing here comes near: what is measured is the work, not its refusal.
fn unbounded() -> Rates {
    let most = std::num::NonZeroU32::new(RATE_MAX).expect("a number");
    Rates {
        source_per_second: most,
        source_reserved_per_second: most,
        caller_per_second: most,
        caller_reserved_per_second: most,
        ..Rates::default()
    }
}
