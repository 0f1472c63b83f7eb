//! A validator against a broker that serves keys and plays a feed.

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

struct Broker {
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
            })),
            "unspent" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti,
                uses_left: None,
                position: None,
            })),
            "other" => Ok(Response::new(v1::ConsumeTokenResponse {
                jti: "tok".to_owned(),
                uses_left: Some(0),
                position: Some(1),
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

impl Broker {
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

#[tokio::test]
async fn action_parameters_and_key_are_enforced() {
    let mut broker = Broker::start().await;
    let (validator, _feed) = broker.validator().await;
    let (holder, thief) = (
        SigningKey::generate().expect("key").0,
        SigningKey::generate().expect("key").0,
    );
    let token = broker.token(&holder, |_| ());
    let fresh = || proof(&holder, &token, |_| ());

    let used = fresh();
    let authorized = check(&validator, &token, Some(&used), &require())
        .await
        .expect("authorized");
    assert_eq!(
        (authorized.task_id(), authorized.uses()),
        (TaskId::from_random([2; 16]), None)
    );
    assert!(!format!("{authorized:?}").contains(&token));
    assert_eq!(
        check(&validator, &token, Some(&used), &require())
            .await
            .err(),
        Some(ValidationError::ProofReplayed)
    );

    let now = Clock::system().now();
    let rejected = [
        (None, ValidationError::ProofMissing),
        (
            Some(proof(&thief, &token, |_| ())),
            ValidationError::ProofOfOtherKey,
        ),
        (
            Some(proof(&holder, "other", |_| ())),
            ValidationError::ProofOfOtherToken,
        ),
        (
            Some(proof(&holder, &token, |p| p.ath = None)),
            ValidationError::ProofOfOtherToken,
        ),
        (
            Some(proof(&holder, &token, |p| p.htm = "GET")),
            ValidationError::Proof(ProofError::WrongMethod),
        ),
        (
            Some(proof(&holder, &token, |p| p.htu = "https://other/")),
            ValidationError::Proof(ProofError::WrongUrl),
        ),
        (
            Some(proof(&holder, &token, |p| p.iat = now.plus_secs(-62))),
            ValidationError::Proof(ProofError::Stale),
        ),
        (
            Some(proof(&holder, &token, |p| p.iat = now.plus_secs(64))),
            ValidationError::Proof(ProofError::Stale),
        ),
    ];
    for (proof, expected) in rejected {
        let error = check(&validator, &token, proof.as_deref(), &require())
            .await
            .expect_err("rejected");
        assert_eq!(error, expected);
        assert!(
            error
                .www_authenticate()
                .expect("challenge")
                .starts_with("DPoP error=\"invalid_"),
            "{error}"
        );
        assert_eq!(error.status(), 401);
    }

    let with = |bend: &dyn Fn(&mut RequiredAction)| {
        let mut require = require();
        bend(&mut require);
        require
    };
    let parameter = |name: &'static str, value: Param| {
        with(&move |r| {
            drop(
                r.parameters
                    .as_mut()
                    .expect("parameters")
                    .insert(name.to_owned(), value.clone()),
            )
        })
    };
    let wrong = [
        (
            with(&|r| r.action = ActionName::parse("account.enable").expect("name")),
            ValidationError::ActionMismatch,
        ),
        (
            with(&|r| r.target = Target::parse("Account", "bob").expect("target")),
            ValidationError::TargetMismatch,
        ),
        (
            parameter("end_sessions", Param::Bool(false)),
            ValidationError::ParametersMismatch,
        ),
        (
            parameter("note", Param::Str("other words".to_owned())),
            ValidationError::ParametersMismatch,
        ),
        (
            parameter("more", Param::Int(1)),
            ValidationError::ParametersMismatch,
        ),
        (
            with(&|r| r.parameters = Some(BTreeMap::new())),
            ValidationError::ParametersMismatch,
        ),
    ];
    for (require, expected) in wrong {
        let error = check(&validator, &token, Some(&fresh()), &require)
            .await
            .expect_err("rejected");
        assert_eq!(error, expected);
        assert!(
            error
                .www_authenticate()
                .expect("challenge")
                .contains("insufficient_scope")
        );
        assert_eq!(error.status(), 403);
    }
    assert!(
        check(
            &validator,
            &token,
            Some(&fresh()),
            &with(&|r| r.parameters = None)
        )
        .await
        .is_ok()
    );
    let unopened = PresentedToken {
        token: &token,
        dpop: Some(&fresh()),
        method: "POST",
        url: URL,
        openings: &BTreeMap::new(),
    };
    assert_eq!(
        validator.check(&unopened, &require()).await.err(),
        Some(ValidationError::ParametersMismatch)
    );

    for (bend, expected) in [
        (
            (|c| c.iss = "https://other".to_owned()) as fn(&mut AccessTokenClaims),
            TokenError::WrongIssuer,
        ),
        (
            |c| c.aud = Audience::parse("other").expect("audience"),
            TokenError::WrongAudience,
        ),
        (
            |c| (c.iat, c.nbf, c.exp) = (c.iat - 301, c.nbf - 301, c.exp - 301),
            TokenError::Expired,
        ),
    ] {
        let token = broker.token(&holder, bend);
        let proof = proof(&holder, &token, |_| ());
        assert_eq!(
            check(&validator, &token, Some(&proof), &require())
                .await
                .err(),
            Some(ValidationError::Token(expected))
        );
    }
}

#[tokio::test]
async fn feed_resumes_after_disconnect_and_restarts_after_gap() {
    let mut broker = Broker::start().await;
    let (validator, feed) = broker.validator().await;
    let holder = SigningKey::generate().expect("key").0;
    let good = broker.token(&holder, |c| c.txn = TaskId::from_random([5; 16]));
    let token = broker.token(&holder, |_| ());
    let ask = async |token: &str| {
        check(
            &validator,
            token,
            Some(&proof(&holder, token, |_| ())),
            &require(),
        )
        .await
        .err()
    };
    assert_eq!((ask(&good).await, ask(&token).await), (None, None));

    feed.send(Ok(ended(12, None, 2))).expect("sent");
    assert_eq!(
        validator.wait_for_position(12).await,
        JournalPosition {
            epoch: 1,
            index: 12
        }
    );
    assert_eq!(
        (ask(&good).await, ask(&token).await),
        (None, Some(ValidationError::Revoked))
    );

    // The broker closes watches after some minutes.
    drop(feed);
    let feed = broker.watch(Some(12)).await;
    assert_eq!(ask(&good).await, None);
    feed.send(Ok(ended(14, Some(13), 6))).expect("sent");
    let feed = broker.watch(None).await;
    assert_eq!(
        (ask(&good).await, validator.position()),
        (Some(ValidationError::Stale), None)
    );
    assert!(
        validator
            .last_error()
            .is_some_and(|e| e.to_string().contains("an event is missing"))
    );
    feed.send(Ok(ended(13, Some(12), 5))).expect("sent");
    feed.send(Ok(heartbeat(14, Some(13)))).expect("sent");
    validator.wait_for_position(14).await;
    assert_eq!(
        (ask(&good).await, ask(&token).await),
        (
            Some(ValidationError::Revoked),
            Some(ValidationError::Revoked)
        )
    );
}

#[tokio::test]
async fn stale_feed_rejects_all() {
    let mut broker = Broker::start().await;
    let (clock, hand) = Clock::manual(Clock::system().now());
    let config = ValidatorConfig {
        clock,
        ..broker.config()
    };
    let connecting = tokio::spawn(Validator::connect(config));
    let feed = broker.watch(None).await;
    feed.send(Ok(heartbeat(10, None))).expect("sent");
    let validator = connecting.await.expect("join").expect("validator");
    let holder = SigningKey::generate().expect("key").0;
    let token = broker.token(&holder, |_| ());
    let ask = async || {
        check(
            &validator,
            &token,
            Some(&proof(&holder, &token, |_| ())),
            &require(),
        )
        .await
        .err()
    };
    hand.advance_millis(5_000);
    assert_eq!(ask().await, None);
    hand.advance_millis(1);
    let error = ask().await.expect("rejected");
    assert_eq!(
        (&error, error.status(), error.www_authenticate()),
        (&ValidationError::Stale, 503, None)
    );
    feed.send(Ok(heartbeat(11, None))).expect("sent");
    validator.wait_for_position(11).await;
    assert_eq!(ask().await, None);
}

#[tokio::test]
async fn unknown_key_is_refetched_once() {
    let mut broker = Broker::start().await;
    let (clock, hand) = Clock::manual(Clock::system().now());
    let config = ValidatorConfig {
        clock,
        max_silence_ms: 3_600_000,
        ..broker.config()
    };
    let connecting = tokio::spawn(Validator::connect(config));
    let feed = broker.watch(None).await;
    feed.send(Ok(heartbeat(10, None))).expect("sent");
    let validator = connecting.await.expect("join").expect("validator");
    let holder = SigningKey::generate().expect("key").0;
    broker.key = SigningKey::generate().expect("key").0;
    let token = broker.token(&holder, |_| ());
    let ask = async || {
        check(
            &validator,
            &token,
            Some(&proof(&holder, &token, |_| ())),
            &require(),
        )
        .await
        .err()
    };
    let unknown = Some(ValidationError::Token(TokenError::UnknownKey));
    assert_eq!(
        (ask().await, broker.fetches.load(Ordering::SeqCst)),
        (unknown.clone(), 1)
    );
    hand.advance_millis(10_000);
    assert_eq!(
        (
            ask().await,
            ask().await,
            broker.fetches.load(Ordering::SeqCst)
        ),
        (unknown.clone(), unknown, 2)
    );
    *broker.keys.lock().await = jwks(broker.key.public());
    hand.advance_millis(10_000);
    assert_eq!(
        (
            ask().await,
            ask().await,
            broker.fetches.load(Ordering::SeqCst)
        ),
        (None, None, 3)
    );
}

#[tokio::test]
async fn only_limited_tokens_consume_uses() {
    let mut broker = Broker::start().await;
    let (validator, _feed) = broker.validator().await;
    let holder = SigningKey::generate().expect("key").0;
    let admit = async |uses: Option<u32>| {
        let token = broker.token(&holder, |c| c.uses = uses);
        check(
            &validator,
            &token,
            Some(&proof(&holder, &token, |_| ())),
            &require(),
        )
        .await
        .expect("authorized")
    };
    let spent = validator
        .consume(admit(Some(1)).await, "good")
        .await
        .expect("spent");
    assert_eq!((spent.uses_left(), spent.position()), (Some(0), Some(77)));
    assert_eq!(spent.authorized().token_id(), TokenId::from_random([1; 16]));
    let free = validator
        .consume(admit(None).await, "no-call-is-made")
        .await
        .expect("free");
    assert_eq!((free.uses_left(), free.position()), (None, None));
    assert_eq!(
        validator.consume(admit(Some(1)).await, "spent").await.err(),
        Some(ValidationError::UsesExhausted)
    );
    assert_eq!(
        validator
            .consume(admit(Some(1)).await, "inactive")
            .await
            .err(),
        Some(ValidationError::Revoked)
    );
    for use_id in ["unspent", "other", "unknown", "no good id"] {
        let error = validator
            .consume(admit(Some(1)).await, use_id)
            .await
            .expect_err("rejected");
        assert!(
            matches!(error, ValidationError::Broker(_)),
            "{use_id}: {error}"
        );
        assert_eq!(error.status(), 503);
    }
    assert!(validator.introspect("token").await.expect("answer").active);
}

#[tokio::test]
async fn validator_may_authenticate_with_a_key() {
    let mut broker = Broker::start().await;
    let identity = Identity::Key(Arc::new(SigningKey::generate().expect("key").0));
    let connecting = tokio::spawn(Validator::connect(ValidatorConfig {
        identity,
        ..broker.config()
    }));
    let feed = broker.watch(None).await;
    feed.send(Ok(heartbeat(10, None))).expect("sent");
    let validator = connecting.await.expect("join").expect("validator");
    assert_eq!(
        validator.position(),
        Some(JournalPosition {
            epoch: 1,
            index: 10
        })
    );
}

#[tokio::test]
async fn connect_requires_keys_and_feed() {
    let broker = Broker::start().await;
    *broker.keys.lock().await = serde_json::json!({});
    assert_eq!(
        Validator::connect(broker.config()).await.err(),
        Some(ConnectError::Keys(FetchError::Form))
    );
}
