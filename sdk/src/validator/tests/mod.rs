//! A validator against a broker that serves keys and plays a feed.

mod broker_link;
mod token_check;
mod vectors;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::client::random_name;
use crate::jose::access_token::{AccessTokenClaims, ActionDetail, Confirmation};
use crate::jose::dpop::{self, ProofClaims, ProofError};
use crate::jose::{PublicKey, SigningKey};
use crate::model::{Action, ActionName, AgentId, KeyId, Param, SpiffeId, Target, TaskId};
use crate::proto::servers::v1::token_service_server as service;
use crate::proto::v1::{revocation_event::Selector, watch_revocations_response::Message};

const URL: &str = "https://idp.example/users/ann/disable";

type Feed = mpsc::UnboundedSender<Result<v1::WatchRevocationsResponse, Status>>;

struct FakeBroker {
    url: String,
    key: SigningKey,
    watches: mpsc::UnboundedReceiver<(Option<v1::Position>, Feed)>,
    fetches: Arc<AtomicUsize>,
    keys: Arc<Mutex<serde_json::Value>>,
}

struct Service {
    watches: mpsc::UnboundedSender<(Option<v1::Position>, Feed)>,
    watch_url: String,
}

#[tonic::async_trait]
impl service::TokenService for Service {
    type WatchRevocationsStream =
        UnboundedReceiverStream<Result<v1::WatchRevocationsResponse, Status>>;

    async fn introspect(
        &self,
        _: Request<v1::IntrospectRequest>,
    ) -> Result<Response<v1::IntrospectResponse>, Status> {
        Ok(Response::new(v1::IntrospectResponse {
            active: true,
            ..v1::IntrospectResponse::default()
        }))
    }

    async fn revoke_token(
        &self,
        _: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn consume_token(
        &self,
        request: Request<v1::ConsumeTokenRequest>,
    ) -> Result<Response<v1::ConsumeTokenResponse>, Status> {
        let refuse = |reason: Reason| {
            let details = ErrorDetails::with_error_info(
                reason.as_str(),
                "dipylon",
                std::collections::HashMap::new(),
            );
            Err(Status::with_error_details(
                Code::FailedPrecondition,
                "no",
                details,
            ))
        };
        let jti = TokenId::from_random([1; 16]).to_string();
        match request.into_inner().use_id.as_str() {
            "good" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti,
                uses_left: Some(0),
                position: Some(77),
                outcome: v1::ConsumeOutcome::Spent.into(),
            })),
            "repeated" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti,
                uses_left: Some(0),
                position: Some(77),
                outcome: v1::ConsumeOutcome::Repeated.into(),
            })),
            "no-outcome" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti,
                uses_left: Some(0),
                position: Some(77),
                outcome: 0,
            })),
            "no-limit" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti,
                uses_left: None,
                position: Some(77),
                outcome: v1::ConsumeOutcome::NoLimit.into(),
            })),
            "unspent" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti,
                uses_left: None,
                position: None,
                outcome: v1::ConsumeOutcome::Spent.into(),
            })),
            "other" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti: "tok".to_owned(),
                uses_left: Some(0),
                position: Some(1),
                outcome: v1::ConsumeOutcome::Spent.into(),
            })),
            "spent" => refuse(Reason::UsesExhausted),
            "inactive" => refuse(Reason::TokenInactive),
            _ => refuse(Reason::NotPermitted),
        }
    }

    async fn watch_revocations(
        &self,
        request: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let bearer = request
            .metadata()
            .get("authorization")
            .is_some_and(|v| v == "Bearer svid");
        let proof = request.metadata().get("dpop").and_then(|v| v.to_str().ok());
        assert!(bearer != proof.is_some());
        let expect = dpop::ExpectedProof {
            htm: "POST",
            htu: &self.watch_url,
            freshness: dpop::Freshness::Nonce,
        };
        if proof.is_some_and(|proof| {
            dpop::check(proof, &expect)
                .map_err(|e| assert_eq!(e, ProofError::NonceMissing))
                .is_err()
        }) {
            let details = ErrorDetails::with_error_info(
                "USE_DPOP_NONCE",
                "dipylon",
                std::collections::HashMap::new(),
            );
            let mut status = Status::with_error_details(Code::Unauthenticated, "no", details);
            status
                .metadata_mut()
                .insert("dpop-nonce", "fresh".parse().expect("nonce"));
            return Err(status);
        }
        let (feed, messages) = mpsc::unbounded_channel();
        self.watches
            .send((request.into_inner().after, feed))
            .map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(messages)))
    }
}

fn jwks(key: &PublicKey) -> serde_json::Value {
    let mut jwk = key.to_jwk();
    jwk["kid"] = serde_json::json!(KeyId::from_thumbprint(key.thumbprint()));
    serde_json::json!({ "keys": [jwk] })
}

impl FakeBroker {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let watch_url = format!("{url}/dipylon.v1.TokenService/WatchRevocations");
        let key = SigningKey::generate().expect("key").0;
        let (sender, watches) = mpsc::unbounded_channel();
        let fetches = Arc::new(AtomicUsize::new(0));
        let keys = Arc::new(Mutex::new(jwks(key.public())));
        let (count, served) = (fetches.clone(), keys.clone());
        let answer = move || {
            let (count, served) = (count.clone(), served.clone());
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                served.lock().await.to_string()
            }
        };
        let grpc = tonic::service::Routes::new(service::TokenServiceServer::new(Service {
            watches: sender,
            watch_url,
        }));
        let router = grpc
            .into_axum_router()
            .route("/.well-known/jwks.json", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            url,
            key,
            watches,
            fetches,
            keys,
        }
    }

    fn config(&self) -> ValidatorConfig {
        let svid = crate::client::EvidenceSource::Fixed(Secret::new("svid".to_owned()));
        let audience = Audience::parse("https://idp.example").expect("audience");
        ValidatorConfig::new(
            &self.url,
            "https://broker.example",
            audience,
            Identity::Svid(svid),
        )
    }

    /// A validator whose feed has come to its present end at entry 10.
    async fn validator(&mut self) -> (Validator, Feed) {
        let connecting = tokio::spawn(Validator::connect(self.config()));
        let feed = self.watch(None).await;
        feed.send(Ok(heartbeat(10, None))).expect("sent");
        (connecting.await.expect("join").expect("validator"), feed)
    }

    async fn watch(&mut self, after: Option<u64>) -> Feed {
        let (position, feed) = self.watches.recv().await.expect("a watch");
        assert_eq!(
            position,
            after.map(|index| v1::Position { epoch: 1, index })
        );
        feed
    }

    fn token(&self, holder: &SigningKey, bend: impl FnOnce(&mut AccessTokenClaims)) -> String {
        let now = Clock::system().now().secs();
        let (record, _) = action().on_record(&["note".to_owned()].into(), &mut || [7; 16]);
        let mut claims = AccessTokenClaims {
            iss: "https://broker.example".to_owned(),
            sub: SpiffeId::parse("spiffe://d/a").expect("id"),
            aud: record.audience.clone(),
            exp: now + 300,
            iat: now,
            nbf: now,
            jti: TokenId::from_random([1; 16]),
            client_id: AgentId::parse("ci").expect("agent"),
            cnf: Confirmation {
                jkt: holder.thumbprint(),
            },
            authorization_details: [ActionDetail::from(&record)],
            txn: TaskId::from_random([2; 16]),
            epoch: 1,
            pos: 9,
            uses: None,
            approval: None,
        };
        bend(&mut claims);
        let kid = KeyId::from_thumbprint(self.key.thumbprint());
        access_token::sign(&claims, &kid, &self.key)
            .expect("token")
            .expose_secret()
            .to_owned()
    }
}

fn action() -> Action {
    let parameters = BTreeMap::from([
        ("end_sessions".to_owned(), Param::Bool(true)),
        ("note".to_owned(), Param::Str("secret words".to_owned())),
    ]);
    Action::new(
        ActionName::parse("account.disable").expect("name"),
        Audience::parse("https://idp.example").expect("audience"),
        Target::parse("Account", "ann").expect("target"),
        parameters,
    )
    .expect("action")
}

fn require() -> RequiredAction {
    let action = action();
    RequiredAction {
        action: action.name,
        target: action.target,
        parameters: Some(action.parameters),
    }
}

fn openings() -> BTreeMap<String, String> {
    let (_, secret) = action().on_record(&["note".to_owned()].into(), &mut || [7; 16]);
    let salts = secret
        .expect("secret")
        .parameters
        .into_iter()
        .map(|(name, opening)| (name, opening.salt));
    salts.collect()
}

fn heartbeat(index: u64, last_event: Option<u64>) -> v1::WatchRevocationsResponse {
    let read_through = Some(v1::Position { epoch: 1, index });
    v1::WatchRevocationsResponse {
        message: Some(Message::Heartbeat(v1::RevocationHeartbeat {
            position: read_through,
            last_event,
        })),
    }
}

fn ended(index: u64, prev: Option<u64>, task: u8) -> v1::WatchRevocationsResponse {
    let task_ids = vec![TaskId::from_random([task; 16]).to_string()];
    let selector = Some(Selector::Tasks(v1::TaskList { task_ids }));
    let event = v1::RevocationEvent {
        epoch: 1,
        index,
        previous: prev,
        selector,
    };
    v1::WatchRevocationsResponse {
        message: Some(Message::Event(event)),
    }
}

fn proof(holder: &SigningKey, token: &str, bend: impl FnOnce(&mut ProofClaims<'_>)) -> String {
    let jti = random_name().expect("jti");
    let ath = Some(dpop::ath(token));
    let iat = Clock::system().now();
    let mut claims = ProofClaims {
        htm: "POST",
        htu: URL,
        iat,
        jti: &jti,
        nonce: None,
        ath,
        action_digest: None,
        evidence_hash: None,
    };
    bend(&mut claims);
    dpop::create(holder, &claims)
        .expect("proof")
        .expose_secret()
        .to_owned()
}

async fn check(
    validator: &Validator,
    token: &str,
    proof: Option<&str>,
    require: &RequiredAction,
) -> Result<Authorized, ValidationError> {
    let presented = PresentedToken {
        token,
        dpop: proof,
        method: "POST",
        url: &format!("{URL}?query"),
        openings: &openings(),
    };
    validator.check(&presented, require).await
}
