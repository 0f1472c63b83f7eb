//! Connection to a broker: calls with a proof or evidence of the caller, nonces and retries.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::{Message, Name};
use tonic::client::Grpc;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::StatusExt as _;

#[cfg(feature = "validator")]
use super::TokenUseReport;
use super::responses::ReadWire as _;
use super::transport::{ConnectOptions, Connector, Transport};
use super::{Error, EvidenceSource, Introspection, random, random_name};
use crate::clock::Clock;
use crate::jose::SigningKey;
use crate::jose::dpop::{self, NONCE_BYTES_MAX, ProofClaims};
use crate::model::{Digest, ParseError, Reason, Secret, Timestamp};
use crate::proto::strict::StrictCodec;
use crate::proto::{BOOTSTRAP_CODE, v1};

/// A broker, by the external URL in its configuration: proofs are made for that URL and no other (`htu`, RFC 9449 §4.2).
/// Cheap to clone; clones share the connection and the newest nonce.
#[derive(Clone)]
pub struct Endpoint {
    url: Arc<str>,
    transport: Transport,
    channel: Channel,
    keep_alive_ms: u32,
    /// The connections for tasks with a short heartbeat, by their keep-alive: tasks share them, since a broker limits the
    /// connections of one address.
    heartbeat_channels: Arc<Mutex<BTreeMap<u32, Channel>>>,
    nonce: Arc<Mutex<Option<String>>>,
    clock: Clock,
    retry_ms: u32,
}

/// How the caller authenticates.
#[derive(Debug, Clone)]
pub enum Identity {
    /// The holder of a key, proved by DPoP (RFC 9449): agents by their task's key, people and validators by their own.
    Key(Arc<SigningKey>),
    /// A workload, by a JWT-SVID as `authorization: Bearer …`: validators.
    Svid(EvidenceSource),
}

/// Options of one call: the caller's identity and what its proof binds.
#[derive(Clone, Copy)]
pub struct CallOptions<'a> {
    pub identity: &'a Identity,
    /// Digest of the requested action.
    pub action_digest: Option<Digest>,
    /// SHA-256 of the evidence in the call.
    pub evidence_hash: Option<Digest>,
    /// How long the broker may wait before it answers, in seconds.
    pub wait_s: u32,
    /// The one-time code of a first operator.
    pub code: Option<&'a Secret>,
}

impl<'a> CallOptions<'a> {
    pub fn by(identity: &'a Identity) -> Self {
        Self {
            identity,
            action_digest: None,
            evidence_hash: None,
            wait_s: 0,
            code: None,
        }
    }
}

/// A method, with the messages that belong to it.
pub trait RpcMethod {
    const PATH: &'static str;
    /// Whether the method is idempotent: a retry after an unknown result is safe.
    const REPEATABLE: bool;
    type Request: Message + Name + Clone + Default + Send + Sync + 'static;
    type Response: Message + Name + Default + Send + Sync + 'static;
}

#[cfg_attr(
    not(feature = "validator"),
    allow(dead_code, reason = "validators consume tokens and watch revocations")
)]
pub mod methods {
    use super::RpcMethod;
    use crate::proto::v1;

    macro_rules! methods {
        ($($name:ident = $path:literal, $request:ident, $response:ident, $repeatable:literal;)*) => {
            $(pub struct $name;

            impl RpcMethod for $name {
                const PATH: &'static str = $path;
                const REPEATABLE: bool = $repeatable;
                type Request = v1::$request;
                type Response = v1::$response;
            })*

            #[cfg(test)]
            pub(crate) const ALL: &[(&str, &str, &str)] = &[$(($path, stringify!($request), stringify!($response))),*];
        };
    }

    methods! {
        OpenTask = "dipylon.v1.TaskService/OpenTask", OpenTaskRequest, OpenTaskResponse, true;
        GetTask = "dipylon.v1.TaskService/GetTask", GetTaskRequest, GetTaskResponse, true;
        RequestToken = "dipylon.v1.TaskService/RequestToken", RequestTokenRequest, RequestTokenResponse, true;
        ListRecommendations =
            "dipylon.v1.TaskService/ListRecommendations", ListRecommendationsRequest, ListRecommendationsResponse, true;
        GetAccessRequest = "dipylon.v1.TaskService/GetAccessRequest", GetAccessRequestRequest, GetAccessRequestResponse, true;
        WatchAccessRequest =
            "dipylon.v1.TaskService/WatchAccessRequest", WatchAccessRequestRequest, WatchAccessRequestResponse, true;
        CancelAccessRequest =
            "dipylon.v1.TaskService/CancelAccessRequest", CancelAccessRequestRequest, CancelAccessRequestResponse, false;
        KeepAlive = "dipylon.v1.TaskService/KeepAlive", KeepAliveRequest, KeepAliveResponse, true;
        WatchToken = "dipylon.v1.TaskService/WatchToken", WatchTokenRequest, WatchTokenResponse, true;
        CompleteTask = "dipylon.v1.TaskService/CompleteTask", CompleteTaskRequest, CompleteTaskResponse, true;
        Introspect = "dipylon.v1.TokenService/Introspect", IntrospectRequest, IntrospectResponse, true;
        ConsumeToken = "dipylon.v1.TokenService/ConsumeToken", ConsumeTokenRequest, ConsumeTokenResponse, true;
        RevokeToken = "dipylon.v1.TokenService/RevokeToken", RevokeTokenRequest, RevokeTokenResponse, true;
        WatchRevocations =
            "dipylon.v1.TokenService/WatchRevocations", WatchRevocationsRequest, WatchRevocationsResponse, true;
        ListAccessRequests =
            "dipylon.v1.ApprovalService/ListAccessRequests", ListAccessRequestsRequest, ListAccessRequestsResponse, true;
        WatchAccessRequests =
            "dipylon.v1.ApprovalService/WatchAccessRequests", WatchAccessRequestsRequest, WatchAccessRequestsResponse, true;
        GetCard = "dipylon.v1.ApprovalService/GetCard", GetCardRequest, GetCardResponse, true;
        BeginVote = "dipylon.v1.ApprovalService/BeginVote", BeginVoteRequest, BeginVoteResponse, true;
        CastVote = "dipylon.v1.ApprovalService/CastVote", CastVoteRequest, CastVoteResponse, false;
        InviteApprover = "dipylon.v1.ApprovalService/InviteApprover", InviteApproverRequest, InviteApproverResponse, false;
        ConfirmPasskey = "dipylon.v1.ApprovalService/ConfirmPasskey", ConfirmPasskeyRequest, ConfirmPasskeyResponse, false;
        ListApprovers = "dipylon.v1.ApprovalService/ListApprovers", ListApproversRequest, ListApproversResponse, true;
        RevokeApproverKeys = "dipylon.v1.ApprovalService/RevokeApproverKeys", RevokeApproverKeysRequest, RevokeApproverKeysResponse, true;
        ApplyPolicyBundle =
            "dipylon.v1.GovernanceService/ApplyPolicyBundle", ApplyPolicyBundleRequest, ApplyPolicyBundleResponse, false;
        SuspendAgent = "dipylon.v1.GovernanceService/SuspendAgent", SuspendAgentRequest, SuspendAgentResponse, false;
        ResumeAgent = "dipylon.v1.GovernanceService/ResumeAgent", ResumeAgentRequest, ResumeAgentResponse, false;
        ListAgents = "dipylon.v1.GovernanceService/ListAgents", ListAgentsRequest, ListAgentsResponse, true;
        GetAgent = "dipylon.v1.GovernanceService/GetAgent", GetAgentRequest, GetAgentResponse, true;
        Freeze = "dipylon.v1.GovernanceService/Freeze", FreezeRequest, FreezeResponse, true;
        WithdrawPolicyProposal = "dipylon.v1.GovernanceService/WithdrawPolicyProposal", WithdrawPolicyProposalRequest, WithdrawPolicyProposalResponse, false;
        ListPolicyBundles =
            "dipylon.v1.GovernanceService/ListPolicyBundles", ListPolicyBundlesRequest, ListPolicyBundlesResponse, true;
        PlanPolicyBundle =
            "dipylon.v1.GovernanceService/PlanPolicyBundle", PlanPolicyBundleRequest, PlanPolicyBundleResponse, true;
        GetPolicyPlan =
            "dipylon.v1.GovernanceService/GetPolicyPlan", GetPolicyPlanRequest, GetPolicyPlanResponse, true;
        GetPolicyBundle =
            "dipylon.v1.GovernanceService/GetPolicyBundle", GetPolicyBundleRequest, GetPolicyBundleResponse, true;
        Unfreeze = "dipylon.v1.GovernanceService/Unfreeze", UnfreezeRequest, UnfreezeResponse, false;
        ListFreezes = "dipylon.v1.GovernanceService/ListFreezes", ListFreezesRequest, ListFreezesResponse, true;
        SetFact = "dipylon.v1.GovernanceService/SetFact", SetFactRequest, SetFactResponse, true;
        ListFacts = "dipylon.v1.GovernanceService/ListFacts", ListFactsRequest, ListFactsResponse, true;
        ListTasks = "dipylon.v1.GovernanceService/ListTasks", ListTasksRequest, ListTasksResponse, true;
        EndTask = "dipylon.v1.GovernanceService/EndTask", EndTaskRequest, EndTaskResponse, true;
        Explain = "dipylon.v1.GovernanceService/Explain", ExplainRequest, ExplainResponse, true;
        GetTokenReceipt =
            "dipylon.v1.GovernanceService/GetTokenReceipt", GetTokenReceiptRequest, GetTokenReceiptResponse, true;
        ListRules = "dipylon.v1.GovernanceService/ListRules", ListRulesRequest, ListRulesResponse, true;
        ListApproverStats =
            "dipylon.v1.GovernanceService/ListApproverStats", ListApproverStatsRequest, ListApproverStatsResponse, true;
        ListTokens = "dipylon.v1.GovernanceService/ListTokens", ListTokensRequest, ListTokensResponse, true;
        GetTimeline = "dipylon.v1.GovernanceService/GetTimeline", GetTimelineRequest, GetTimelineResponse, true;
        SearchJournal = "dipylon.v1.GovernanceService/SearchJournal", SearchJournalRequest, SearchJournalResponse, true;
    }
}

impl Endpoint {
    /// The broker at this URL, such as `https://dipylon.soc.example`, with the operating system's certificate authorities.
    /// Connects with the first call. A trailing slash is dropped. Must be called within a tokio runtime.
    pub fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_with(url, &ConnectOptions::default())
    }

    /// A broker reached through a Unix socket or with other certificate authorities.
    pub fn connect_with(url: &str, options: &ConnectOptions) -> Result<Self, Error> {
        let url = url.strip_suffix('/').unwrap_or(url);
        let transport = Transport::new(url, options)?;
        Ok(Self {
            url: url.into(),
            channel: channel(&transport, KEEP_ALIVE_MS),
            keep_alive_ms: KEEP_ALIVE_MS,
            heartbeat_channels: Arc::default(),
            transport,
            nonce: Arc::default(),
            clock: Clock::system(),
            retry_ms: RETRY_MS,
        })
    }

    /// How long an idempotent call is retried while the broker cannot be reached or other changes conflict, in
    /// milliseconds: 5,000 by default, 0 for never.
    pub fn with_retry_ms(mut self, retry_ms: u32) -> Self {
        self.retry_ms = retry_ms;
        self
    }

    /// How long a connection may stay without a sign of the broker until calls and streams move to a new one, in milliseconds:
    /// 10,000 by default, at least 300. A network device that forgot the connection lets it look open for ever. The new
    /// endpoint has a connection of its own.
    pub fn with_keep_alive_ms(mut self, keep_alive_ms: u32) -> Self {
        self.keep_alive_ms = keep_alive_ms.max(KEEP_ALIVE_MS_MIN);
        self.channel = channel(&self.transport, self.keep_alive_ms);
        self
    }

    /// The same for a task that ends without a heartbeat of this many seconds: a dead connection is replaced within a third of
    /// that, so that heartbeats still arrive. All tasks of this endpoint with the same third share one connection.
    pub(super) fn for_heartbeat(mut self, heartbeat_s: u32) -> Self {
        let third = (heartbeat_s.saturating_mul(1_000) / 3).max(KEEP_ALIVE_MS_MIN);
        if third < self.keep_alive_ms {
            self.keep_alive_ms = third;
            self.channel = self
                .heartbeat_channels
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(third)
                .or_insert_with(|| channel(&self.transport, third))
                .clone();
        }
        self
    }

    /// The clock for the `iat` of proofs; the machine's by default.
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The URL that proofs are for, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Consumes one use of a token that has a limit, as a validator for its own audience. The same `use_id` gets the same answer
    /// and consumes nothing more. A validator that serves requests uses [`crate::validator::Validator::consume`].
    #[cfg(feature = "validator")]
    pub async fn consume_token(
        &self,
        identity: &Identity,
        token: &str,
        use_id: &str,
    ) -> Result<TokenUseReport, Error> {
        let request = v1::ConsumeTokenRequest {
            token: token.to_owned(),
            use_id: use_id.to_owned(),
        };
        let response = self
            .call::<methods::ConsumeToken>(CallOptions::by(identity), &[request])
            .await?;
        Ok(response.read())
    }

    /// Asks the broker for the status of a token (after RFC 7662), as a validator for its own audience.
    pub async fn introspect(
        &self,
        identity: &Identity,
        token: &str,
    ) -> Result<Introspection, Error> {
        let request = v1::IntrospectRequest {
            token: token.to_owned(),
        };
        let response = self
            .call::<methods::Introspect>(CallOptions::by(identity), &[request])
            .await?;
        Ok(response.read())
    }

    /// How to connect to the broker, for plain HTTP requests.
    #[cfg(feature = "validator")]
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Makes a call with the messages (one, unless the method streams them) and reads its one answer.
    pub async fn call<M: RpcMethod>(
        &self,
        options: CallOptions<'_>,
        messages: &[M::Request],
    ) -> Result<M::Response, Error> {
        let timeout = Duration::from_secs(CALL_TIMEOUT_S + u64::from(options.wait_s));
        let path = path::<M>()?;
        let send = |mut grpc: Grpc<Channel>, headers| {
            let mut request = Request::new(tokio_stream::iter(messages.to_vec()));
            *request.metadata_mut() = headers;
            request.set_timeout(timeout);
            let path = path.clone();
            async move { grpc.client_streaming(request, path, codec::<M>()).await }
        };
        self.send_with_retry::<M, _, _>(&options, send).await
    }

    /// Makes a call with a stream of responses.
    pub(crate) async fn watch<M: RpcMethod>(
        &self,
        options: CallOptions<'_>,
        message: &M::Request,
    ) -> Result<Streaming<M::Response>, Error> {
        let path = path::<M>()?;
        let send = |mut grpc: Grpc<Channel>, headers| {
            let mut request = Request::new(message.clone());
            *request.metadata_mut() = headers;
            let path = path.clone();
            async move { grpc.server_streaming(request, path, codec::<M>()).await }
        };
        self.send_with_retry::<M, _, _>(&options, send).await
    }

    /// Sends a call until it is answered or may not be repeated; each attempt carries a proof of its own.
    async fn send_with_retry<M: RpcMethod, T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        options: &CallOptions<'_>,
        send: impl Fn(Grpc<Channel>, MetadataMap) -> F,
    ) -> Result<T, Error> {
        let mut retry = RetryState::default();
        loop {
            let headers = self.headers::<M>(options).await?;
            let answer = match self.ready().await {
                Ok(grpc) => send(grpc, headers).await,
                Err(status) => Err(status),
            };
            match answer {
                Ok(response) => {
                    self.remember_nonce(response.metadata());
                    return Ok(response.into_inner());
                }
                Err(status) => retry.backoff::<M>(self, &status).await?,
            }
        }
    }

    /// The error that ended a stream.
    pub(crate) fn stream_error(&self, status: &Status) -> Error {
        self.remember_nonce(status.metadata());
        self.error(status)
    }

    fn error(&self, status: &Status) -> Error {
        match (
            Error::from_status(&self.url, status),
            self.transport.other_protocol(),
        ) {
            (Error::Unreachable { url, .. }, Some(other)) => Error::Unreachable {
                url,
                cause: other.to_owned(),
            },
            (error, _) => error,
        }
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready()
            .await
            .map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(grpc)
    }

    async fn headers<M: RpcMethod>(&self, options: &CallOptions<'_>) -> Result<MetadataMap, Error> {
        let (name, secret) = match options.identity {
            Identity::Key(key) => {
                let nonce = self
                    .nonce
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let claims = ProofClaims {
                    htm: "POST",
                    htu: &format!("{}/{}", self.url, M::PATH),
                    iat: self.clock.now(),
                    jti: &random_name()?,
                    nonce: nonce.as_deref(),
                    ath: None,
                    action_digest: options.action_digest,
                    evidence_hash: options.evidence_hash,
                };
                (DPOP, dpop::create(key, &claims)?)
            }
            Identity::Svid(source) => (
                AUTHORIZATION,
                Secret::new(format!("Bearer {}", source.fetch().await?.expose_secret())),
            ),
        };
        let mut value = MetadataValue::from_str(secret.expose_secret())
            .map_err(|_| super::EvidenceError::Form)?;
        value.set_sensitive(true);
        let mut headers = MetadataMap::new();
        headers.insert(name, value);
        if let Some(code) = options.code {
            let mut value = MetadataValue::from_str(code.expose_secret())
                .map_err(|_| ParseError::new("one-time code", "is not ASCII text"))?;
            value.set_sensitive(true);
            headers.insert(BOOTSTRAP_CODE, value);
        }
        Ok(headers)
    }

    /// Keeps the nonce of a response or an error (RFC 9449 §8.2).
    fn remember_nonce(&self, metadata: &MetadataMap) {
        let nonce = metadata
            .get(DPOP_NONCE)
            .and_then(|value| value.to_str().ok());
        if let Some(nonce) = nonce.filter(|n| {
            (1..=NONCE_BYTES_MAX).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_graphic())
        }) {
            *self.nonce.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonce.to_owned());
        }
    }
}

/// The retries of one call: once for a nonce, and, where a repetition can do no harm, while the broker cannot be reached.
#[derive(Default)]
struct RetryState {
    backoffs: u32,
    failing_since: Option<Timestamp>,
    slept_ms: i64,
    nonce_retried: bool,
}

impl RetryState {
    /// Waits until the next attempt is due, or gives up.
    async fn backoff<M: RpcMethod>(
        &mut self,
        endpoint: &Endpoint,
        status: &Status,
    ) -> Result<(), Error> {
        endpoint.remember_nonce(status.metadata());
        let error = endpoint.error(status);
        let reason = error.reason();
        if reason == Some(Reason::UseDpopNonce)
            && status.code() == Code::Unauthenticated
            && !self.nonce_retried
        {
            self.nonce_retried = true;
            return Ok(());
        }
        let passing = match &error {
            // Both say that nothing was done.
            Error::Refused(_)
                if reason == Some(Reason::Conflict) || reason == Some(Reason::RateLimited) =>
            {
                true
            }
            Error::Refused(_) => M::REPEATABLE && status.code() == Code::Unavailable,
            Error::Unreachable { .. } => M::REPEATABLE,
            Error::TimedOut { .. }
            | Error::NoNewerEvidence(_)
            | Error::TokenEnded { .. }
            | Error::Url(_)
            | Error::Trust(_)
            | Error::Evidence(_)
            | Error::InvalidInput(_)
            | Error::Answer(_)
            | Error::SignVote(_)
            | Error::Key(_)
            | Error::Proof(_)
            | Error::NoRandomness => false,
        };
        let now = endpoint.clock.now();
        let failing_ms = now.since(*self.failing_since.get_or_insert(now));
        let pause_ms = backoff_ms(self.backoffs)?;
        let pause_ms = match reason {
            Some(Reason::RateLimited) => retry_after_ms(status).saturating_add(pause_ms / 2),
            Some(_) | None => pause_ms,
        };
        self.backoffs = self.backoffs.saturating_add(1);
        // The pauses bound it too: a clock may stand still.
        let spent_ms = failing_ms
            .max(self.slept_ms)
            .saturating_add(i64::from(pause_ms));
        if !passing || spent_ms > i64::from(endpoint.retry_ms) {
            return Err(error);
        }
        self.slept_ms += i64::from(pause_ms);
        // A broker that comes back has new nonces.
        self.nonce_retried = false;
        tokio::time::sleep(Duration::from_millis(u64::from(pause_ms))).await;
        Ok(())
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({})", self.url)
    }
}

/// A channel that connects with the first call. HTTP/2 pings find a dead connection: one after half the time without a frame,
/// and the other half for its answer.
fn channel(transport: &Transport, keep_alive_ms: u32) -> Channel {
    let half = Duration::from_millis(u64::from(keep_alive_ms / 2));
    tonic::transport::Endpoint::from(transport.uri().clone())
        .connect_timeout(Duration::from_secs(CONNECT_TIMEOUT_S))
        .http2_keep_alive_interval(half)
        .keep_alive_timeout(half)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(Connector(transport.clone()))
}

fn path<M: RpcMethod>() -> Result<PathAndQuery, Error> {
    PathAndQuery::from_str(&format!("/{}", M::PATH))
        .map_err(|_| Error::Url("a method's path is not a path"))
}

fn codec<M: RpcMethod>() -> StrictCodec<M::Request, M::Response> {
    StrictCodec::default()
}

/// `RetryInfo` of the broker, in milliseconds. A wait longer than the retry budget ends the retries: the error is returned at
/// once.
fn retry_after_ms(status: &Status) -> u32 {
    let delay = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    delay.map_or(0, |delay| {
        u32::try_from(delay.as_millis())
            .unwrap_or(u32::MAX)
            .saturating_add(1)
    })
}

/// Exponential backoff from 50 ms to a second, half of it random, so that many clients do not return at once.
pub(crate) fn backoff_ms(round: u32) -> Result<u32, Error> {
    let full = PAUSE_MS
        .saturating_mul(1_u32.checked_shl(round.min(16)).unwrap_or(u32::MAX))
        .min(PAUSE_MS_MAX);
    let [chance] = random::<1>()?;
    Ok(full / 2 + full.saturating_mul(u32::from(chance)) / 512)
}

const DPOP: &str = "dpop";
const DPOP_NONCE: &str = "dpop-nonce";
const AUTHORIZATION: &str = "authorization";
/// Longest time to establish a connection, in seconds.
const CONNECT_TIMEOUT_S: u64 = 3;
/// Longest time for an answer, beside the requested wait, in seconds.
const CALL_TIMEOUT_S: u64 = 10;
/// A connection without a frame for this long is closed: a third of the heartbeat of `exec`.
const KEEP_ALIVE_MS: u32 = 10_000;
const KEEP_ALIVE_MS_MIN: u32 = 300;
const RETRY_MS: u32 = 5_000;
const PAUSE_MS: u32 = 50;
const PAUSE_MS_MAX: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    #[test]
    fn methods_match_the_descriptor() {
        let ours: Vec<_> = methods::ALL.iter().map(|(path, _, _)| *path).collect();
        for method in proto::methods() {
            assert!(ours.contains(&method.as_str()), "{method}");
        }
        assert_eq!(ours.len(), proto::methods().len());
        for (path, request, response) in methods::ALL {
            let name = path.rsplit('/').next().expect("name");
            assert_eq!(
                (*request, *response),
                (
                    format!("{name}Request").as_str(),
                    format!("{name}Response").as_str()
                )
            );
        }
    }

    #[tokio::test]
    async fn broker_url_validation() {
        for good in [
            "http://127.0.0.1:7700",
            "http://127.0.0.1:7700/",
            "http://[::1]:1",
            "http://localhost:7700",
            "http://127.9.9.9",
            "https://broker.example",
            "https://[::1]:7443/",
        ] {
            let endpoint = Endpoint::connect(good).expect("endpoint");
            assert_eq!(endpoint.url(), good.trim_end_matches('/'));
        }
        for bad in [
            "",
            "127.0.0.1:1",
            "http://",
            "https://",
            "ftp://b",
            "http://broker.example",
            "http://10.0.0.1:7700",
            "http://localhost.broker.example",
            "http://[::2]:1",
            "http:///",
            "http://b/p",
            "http://b?q",
            "http://u@b",
            "http://b//",
            "http://a b",
        ] {
            assert!(
                matches!(Endpoint::connect(bad), Err(Error::Url(_))),
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn plain_http_to_another_host_must_be_allowed() {
        let url = "http://broker.example:7700";
        let Err(Error::Url(why)) = Endpoint::connect(url) else {
            panic!("refused")
        };
        assert!(why.contains("https://"), "{why}");
        for options in [
            ConnectOptions {
                allow_plain_http: true,
                ..ConnectOptions::default()
            },
            // Nothing crosses the network.
            ConnectOptions {
                socket: Some("/run/dipylon.sock".into()),
                ..ConnectOptions::default()
            },
        ] {
            assert!(Endpoint::connect_with(url, &options).is_ok(), "{options:?}");
        }
    }

    #[test]
    fn backoff_is_capped() {
        for (round, full) in [(0, 50), (1, 100), (4, 800), (5, 1_000), (99, 1_000)] {
            let pause = backoff_ms(round).expect("pause");
            assert!((full / 2..=full).contains(&pause), "{round}: {pause}");
        }
    }
}
